/* edge/dial.c - see dial.h */
#include "edge/dial.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "edge/gateways.h"
#include "edge/host.h"
#include "edge/peers.h"
#include "edge/routes.h"
#include "log/log.h"

#define AUTHORITY_MAX (HOST_MAX + 6)
#define CLIENT_MAX NET_ADDR_TEXT

struct dial {
    struct edge *e;
    struct dial_conf c;
    char host[HOST_MAX], authority[AUTHORITY_MAX], client[CLIENT_MAX];
    struct ev_timer step, deadline;
    struct link_stream *stream;          /* waits for its answer */
    uint64_t tried[DIAL_LINKS_MAX];
    size_t n_tried;
    bool asked, at_peer;
    enum refusal worst;                  /* what is said when no way is left */
    struct route_wait route_wait;
    struct peer_wait peer_wait;
    size_t n_edges, next_edge;
    char edges[CONTROL_EDGES_MAX][CONTROL_DOMAIN_MAX + 8];
};

static void step(struct dial *d);

static void on_step(struct ev_timer *t)
{
    step(container_of(t, struct dial, step));
}

static void later(struct dial *d)
{
    ev_timer_set(d->e->ev, &d->step, 0, on_step);
}

static void dial_free(struct dial *d)
{
    ev_timer_stop(&d->step);
    ev_timer_stop(&d->deadline);
    list_del(&d->route_wait.node);
    list_del(&d->peer_wait.node);
    link_stream_free(d->stream);
    free(d);
}

static void finish(struct dial *d, struct link_stream *s, enum refusal why)
{
    struct dial_conf c = d->c;
    if (s)
        d->stream = NULL;
    else if (d->at_peer)
        routes_forget(d->e->routes, d->host);
    dial_free(d);
    c.done(c.ctx, s, why);
}

/* ---- one attempt ---- */

/* What another edge's refusal means here: its statuses are those of stats.h. */
static enum refusal from_peer(int status)
{
    return status == refusals[REFUSE_NO_CERTIFICATE].status ? REFUSE_NO_CERTIFICATE : status == refusals[REFUSE_BUSY].status ? REFUSE_BUSY : REFUSE_NO_CONNECTOR;
}

static void on_reply(void *ctx, struct link_stream *s, int status)
{
    struct dial *d = ctx;
    if (status == 200) {
        finish(d, s, REFUSE_NONE);
        return;
    }
    log_debug("edge.dial_refused", "host=%s status=%d by=%s", d->host, status, d->at_peer ? "edge" : "gateway");
    d->worst = d->at_peer ? from_peer(status) : REFUSE_CONNECTOR_FAILED;
    if (!d->at_peer && status != 503)       /* the gateway's last word; 503: that connection takes no more, another one may */
        d->n_tried = DIAL_LINKS_MAX;
    link_stream_free(TAKE(d->stream));
    later(d);
}

static void on_close(void *ctx, struct link_stream *s, const struct err *why)
{
    (void)s;
    struct dial *d = ctx;
    log_debug("edge.dial_failed", "host=%s why=%s", d->host, why->msg);
    d->worst = REFUSE_CONNECTOR_FAILED;
    link_stream_free(TAKE(d->stream));
    later(d);
}

static const struct link_stream_ops waiting_ops = { .on_reply = on_reply, .on_close = on_close };

static void on_deadline(struct ev_timer *t)
{
    struct dial *d = container_of(t, struct dial, deadline);
    finish(d, NULL, d->stream ? REFUSE_CONNECTOR_FAILED : d->worst);
}

/* True: an attempt runs, or the dial is over. */
static bool try_here(struct dial *d)
{
    const struct link_open o = { .authority = d->authority, .client = d->client, .forwarded = d->c.forwarded };
    if (d->n_tried >= DIAL_LINKS_MAX)
        return false;
    uint64_t number = 0;
    int rc = gateways_open(d->e->gateways, d->host, &o, d->tried, d->n_tried, &waiting_ops, d, &d->stream, &number);
    if (rc == RC_OK)
        d->tried[d->n_tried++] = number;
    else if (rc == RC_PRECONDITION)
        finish(d, NULL, REFUSE_NO_CERTIFICATE);
    else if (rc == RC_DENIED)
        finish(d, NULL, REFUSE_UNKNOWN_TUNNEL);
    else if (rc == RC_LIMIT)
        finish(d, NULL, REFUSE_BUSY);
    else
        return false;
    return true;
}

/* ---- elsewhere ---- */

static void open_at(struct dial *d, struct link *l)
{
    const struct link_open o = { .authority = d->authority, .client = d->client, .forwarded = true };
    d->at_peer = true;
    if (link_stream_open(l, &o, &waiting_ops, d, &d->stream, NULL) == RC_OK)
        metric_add(&stat_forwarded_out, 1);
    else
        later(d);
}

static void on_peer(struct peer_wait *w, struct link *l)
{
    struct dial *d = container_of(w, struct dial, peer_wait);
    if (l)
        open_at(d, l);
    else
        later(d);
}

static void try_next_edge(struct dial *d)
{
    struct link *l = NULL;
    int rc = peers_get(d->e->peers, d->edges[d->next_edge++], &d->peer_wait, &l);
    if (rc == RC_OK)
        open_at(d, l);
    else if (rc != RC_AGAIN)
        later(d);
}

/* False: the dial is over. */
static bool take_route(struct dial *d, int rc, const struct control_route *r)
{
    if (rc == RC_NOT_FOUND || (rc == RC_OK && r->state == TUNNEL_ARCHIVED)) {
        finish(d, NULL, REFUSE_UNKNOWN_TUNNEL);
        return false;
    }
    if (rc == RC_OK && r->state == TUNNEL_NEEDS_CERTIFICATE) {
        finish(d, NULL, REFUSE_NO_CERTIFICATE);
        return false;
    }
    for (size_t i = 0; rc == RC_OK && i < r->n; i++)
        if (!str_eq(r->edges[i].id, d->e->id) && !str_eq(r->edges[i].address, PROTO_NO_PEER))
            memcpy(d->edges[d->n_edges++], r->edges[i].address, sizeof d->edges[0]);
    return true;
}

static void on_route(struct route_wait *w, int rc, const struct control_route *r)
{
    struct dial *d = container_of(w, struct dial, route_wait);
    if (take_route(d, rc, r))
        later(d);
}

static void step(struct dial *d)
{
    const struct control_route *r = NULL;
    if (try_here(d))
        return;
    if (d->c.forwarded) {                /* never a second time */
        finish(d, NULL, d->worst);
        return;
    }
    if (!d->asked) {
        d->asked = true;
        int rc = routes_get(d->e->routes, d->host, &d->route_wait, &r);
        if (rc == RC_AGAIN || !take_route(d, rc, r))
            return;
    }
    if (d->next_edge < d->n_edges)
        try_next_edge(d);
    else
        finish(d, NULL, d->worst);
}

struct dial *dial_start(struct edge *e, const struct dial_conf *c)
{
    struct dial *d = xcalloc(1, sizeof *d);
    d->e = e;
    d->c = *c;
    d->worst = REFUSE_NO_CONNECTOR;
    list_init(&d->route_wait.node);
    list_init(&d->peer_wait.node);
    d->route_wait.done = on_route;
    d->peer_wait.done = on_peer;
    (void)str_copy(d->host, sizeof d->host, c->host);
    (void)str_copy(d->client, sizeof d->client, c->client);
    (void)snprintf(d->authority, sizeof d->authority, "%s:%u", c->host, c->port);
    ev_timer_set(e->ev, &d->deadline, e->set.connect_ms, on_deadline);
    later(d);
    return d;
}

void dial_cancel(struct dial *d)
{
    if (d)
        dial_free(d);
}
