/* edge/gateways.c - see gateways.h */
#include "edge/gateways.h"

#include <string.h>

#include "base/clock.h"
#include "base/secret.h"
#include "base/str.h"
#include "crypto/crypto.h"
#include "edge/host.h"
#include "edge/table.h"
#include "log/log.h"
#include "tunnel/token.h"

#define FIRST_ECHO_SPREAD 0.5        /* of the interval: links that came together are not checked together */

struct gateways { struct edge *e; struct table by_domain, by_id; struct list all; size_t n_links; uint64_t number; };

struct tunnel {                      /* lives as long as it has a link */
    struct table_node domain_node, id_node;
    struct list node, links;
    size_t n_links;
    enum tunnel_state state;
    char id[ID_MAX], domain[CONTROL_DOMAIN_MAX];
};

struct glink {
    struct list node;
    struct gateways *g;
    struct tunnel *tunnel;
    struct link *link;
    struct seat seat;
    struct ev_timer echo;
    uint64_t number;
    int64_t connected_ms;
    bool ending;                     /* callbacks that come out of link_free() find nothing to do */
    char token_id[ID_MAX], connector[CONNECTOR_ID_MAX], connection[24], version[CONNECTOR_VERSION_MAX], peer[NET_ADDR_TEXT];
};

/* A connection whose token is being checked. */
struct entry {
    struct edge *e;
    struct guest *guest;
    struct control_auth *auth;
    enum tunnel_state state;
    char tunnel_id[ID_MAX], domain[CONTROL_DOMAIN_MAX], token_id[ID_MAX], connector[CONNECTOR_ID_MAX], connection[24], version[CONNECTOR_VERSION_MAX];
};

/* ---- tunnels ---- */

static struct tunnel *tunnel_get(struct gateways *g, const char *id, const char *domain)
{
    struct table_node *n = table_find(&g->by_id, id);
    if (n)
        return container_of(n, struct tunnel, id_node);
    struct tunnel *t = xcalloc(1, sizeof *t);
    list_init(&t->links);
    (void)str_copy(t->id, sizeof t->id, id);
    (void)str_copy(t->domain, sizeof t->domain, domain);
    table_add(&g->by_id, &t->id_node, t->id);
    table_add(&g->by_domain, &t->domain_node, t->domain);
    list_add_tail(&g->all, &t->node);
    metric_add(&stat_tunnels, 1);
    return t;
}

static void tunnel_release(struct gateways *g, struct tunnel *t)
{
    if (t->n_links)
        return;
    table_del(&g->by_id, &t->id_node);
    table_del(&g->by_domain, &t->domain_node);
    list_del(&t->node);
    metric_add(&stat_tunnels, -1);
    free(t);
}

static struct tunnel *tunnel_of_host(const struct gateways *g, const char *host)
{
    const char *domain = host_domain(host);
    struct table_node *n = domain ? table_find(&g->by_domain, domain) : NULL;
    return n ? container_of(n, struct tunnel, domain_node) : NULL;
}

/* ---- links ---- */

static void glink_free(struct glink *l)
{
    struct gateways *g = l->g;
    l->ending = true;
    ev_timer_stop(&l->echo);
    link_free(l->link);
    seat_done(&l->seat);
    list_del(&l->node);
    l->tunnel->n_links--;
    g->n_links--;
    metric_add(&stat_links, -1);
    tunnel_release(g, l->tunnel);
    if (g->e->control)
        control_changed(g->e->control);
    free(l);
}

static void glink_down(struct glink *l, const char *why)
{
    log_info("edge.gateway_down", "tunnel=%s connector=%s connection=%s peer=%s seconds=%lld why=%s", l->tunnel->id, l->connector, l->connection, l->peer,
             (long long)((ev_now_ms(l->g->e->ev) - l->connected_ms) / 1000), why);
    glink_free(l);
}

static void on_link_end(void *ctx, struct link *link, const struct err *why)
{
    (void)link;
    struct glink *l = ctx;
    if (!l->ending)
        glink_down(l, why->msg);
}

static void on_echo_due(struct ev_timer *t);

static void on_echo(void *ctx, bool ok, int64_t rtt_us)
{
    struct glink *l = ctx;
    if (l->ending)
        return;
    if (!ok && link_usable(l->link)) {       /* a link that drains may refuse */
        metric_add(&stat_echo_failed, 1);
        glink_down(l, "the health check through the link was not answered");
        return;
    }
    if (ok)
        metric_observe_us(&stat_echo, rtt_us);
    ev_timer_set(l->g->e->ev, &l->echo, l->g->e->set.echo_ms, on_echo_due);
}

static void on_echo_due(struct ev_timer *t)
{
    struct glink *l = container_of(t, struct glink, echo);
    if (link_usable(l->link))
        link_echo(l->link, l->g->e->set.echo_ms, on_echo, l);
    else
        ev_timer_set(l->g->e->ev, &l->echo, l->g->e->set.echo_ms, on_echo_due);
}

static void on_link_ready(void *ctx, struct link *link)
{
    (void)link;
    struct glink *l = ctx;
    log_debug("edge.gateway_ready", "tunnel=%s connector=%s connection=%s", l->tunnel->id, l->connector, l->connection);     /* streams can be opened */
    double first = 1.0 - FIRST_ECHO_SPREAD * random_unit();
    ev_timer_set(l->g->e->ev, &l->echo, (int64_t)(first * (double)l->g->e->set.echo_ms), on_echo_due);
    control_changed(l->g->e->control);
}

static void on_link_goaway(void *ctx, struct link *link)
{
    (void)link;
    struct glink *l = ctx;
    log_debug("edge.gateway_drains", "tunnel=%s connector=%s connection=%s peer=%s", l->tunnel->id, l->connector, l->connection, l->peer);
}

/* ---- a gateway asks to be let in ---- */

static void entry_free(struct entry *n)
{
    control_auth_cancel(n->auth);
    free(n);
}

static void on_entry_gone(struct guest *g)
{
    entry_free(g->ctx);
}

static void entry_refuse(struct entry *n, enum refusal why)
{
    struct guest *g = n->guest;
    if (why == REFUSE_TOKEN || why == REFUSE_ARCHIVED || why == REFUSE_TOO_MANY_LINKS)
        log_info("edge.gateway_refused", "tunnel=%s connector=%s peer=%s why=%s", n->tunnel_id, n->connector, g->peer_text, refusals[why].text);
    entry_free(n);
    guest_refuse(g, why, NULL);
}

static void let_in(struct guest *guest)
{
    static const struct link_ops ops = { .on_ready = on_link_ready, .on_goaway = on_link_goaway, .on_end = on_link_end };
    struct entry *n = guest->ctx;
    struct gateways *g = n->e->gateways;
    char peer[NET_ADDR_TEXT];
    memcpy(peer, guest->peer_text, sizeof peer);
    struct guest_gift gift = guest_take(guest);
    struct glink *l = xcalloc(1, sizeof *l);
    struct err e;
    l->g = g;
    l->seat = gift.seat;
    int rc = link_new(n->e->ev, LINK_OPENER, &n->e->budget, gift.fd, gift.tls, buf_data(&gift.early), buf_len(&gift.early), &ops, l, &l->link, &e);
    buf_done(&gift.early);
    if (rc < 0) {
        log_err(LOG_ERROR, "edge.link_failed", &e);
        tls_free(gift.tls);
        (void)close(gift.fd);
        seat_done(&l->seat);
        free(l);
        entry_free(n);
        return;
    }
    struct tunnel *t = tunnel_get(g, n->tunnel_id, n->domain);
    t->state = n->state;
    l->tunnel = t;
    l->number = ++g->number;
    l->connected_ms = ev_now_ms(n->e->ev);
    memcpy(l->token_id, n->token_id, sizeof l->token_id);
    memcpy(l->connector, n->connector, sizeof l->connector);
    memcpy(l->connection, n->connection, sizeof l->connection);
    memcpy(l->version, n->version, sizeof l->version);
    memcpy(l->peer, peer, sizeof l->peer);
    list_add_tail(&t->links, &l->node);
    t->n_links++;
    g->n_links++;
    metric_add(&stat_links, 1);
    log_info("edge.gateway_up", "tunnel=%s domain=%s connector=%s connection=%s peer=%s version=%s", t->id, t->domain, l->connector, l->connection, l->peer, l->version);
    control_changed(n->e->control);
    if (n->e->draining)
        link_goaway(l->link);
    entry_free(n);
}

static void on_checked(void *ctx, int rc, const struct control_tunnel *t)
{
    struct entry *n = ctx;
    n->auth = NULL;
    if (rc == RC_UNAUTHORIZED) {
        entry_refuse(n, REFUSE_TOKEN);
        return;
    }
    if (rc != RC_OK) {
        entry_refuse(n, REFUSE_NO_SERVER);
        return;
    }
    if (t->state == TUNNEL_ARCHIVED || !str_eq(t->tunnel_id, n->tunnel_id)) {
        entry_refuse(n, t->state == TUNNEL_ARCHIVED ? REFUSE_ARCHIVED : REFUSE_TOKEN);
        return;
    }
    struct table_node *known = table_find(&n->e->gateways->by_id, t->tunnel_id);
    if (known && container_of(known, struct tunnel, id_node)->n_links >= (size_t)n->e->set.max_links) {
        entry_refuse(n, REFUSE_TOO_MANY_LINKS);
        return;
    }
    static const char yes[] = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " PROTO_UPGRADE_TUNNEL "\r\n\r\n";
    n->state = t->state;
    (void)str_copy(n->domain, sizeof n->domain, t->domain);
    (void)str_copy(n->token_id, sizeof n->token_id, t->token_id);
    guest_answer(n->guest, yes, sizeof yes - 1, let_in);
}

/* Visible ASCII only: these go into logs and the server's directory. */
static bool copy_word(char *to, size_t cap, const struct slice *s)
{
    if (!s || s->n == 0 || s->n >= cap)
        return false;
    for (size_t i = 0; i < s->n; i++)
        if (s->p[i] <= ' ' || s->p[i] >= 127)
            return false;
    memcpy(to, s->p, s->n);
    to[s->n] = '\0';
    return true;
}

/* RC_OK with the tunnel and the hash of the token; the token itself goes no further. */
static int read_token(const struct http_head *h, char tunnel_id[ID_MAX], char hash[SHA256_HEX])
{
    static const char scheme[] = "bearer ";
    const struct slice *a = http_find(h, "authorization");
    struct tunnel_token t;
    if (!a || a->n <= sizeof scheme - 1 || a->n > PROTO_TOKEN_MAX + sizeof scheme || !slice_eq_nocase((struct slice){ a->p, sizeof scheme - 1 }, scheme))
        return RC_UNAUTHORIZED;
    struct slice text = slice_trim((struct slice){ a->p + sizeof scheme - 1, a->n - (sizeof scheme - 1) });
    int rc = tunnel_token_parse(text.p, text.n, &t, NULL);
    if (rc < 0 || !str_copy(tunnel_id, ID_MAX, t.tunnel_id))
        return RC_UNAUTHORIZED;
    sha256_hex(text.p, text.n, hash);
    return RC_OK;
}

void gateways_input(struct guest *g)
{
    struct edge *e = door_ctx(g->door);
    struct http_head h;
    size_t used = 0;
    char hash[SHA256_HEX];
    if (guest_head(g, &h, &used) != RC_OK)
        return;
    const struct slice *up = http_find(&h, "upgrade");
    if (h.method != HTTP_GET || !slice_eq(h.target, PROTO_PATH) || !h.upgrade || !up || !slice_eq_nocase(*up, PROTO_UPGRADE_TUNNEL)) {
        guest_refuse(g, REFUSE_BAD_REQUEST, "this listener is for `outwork gateway`: GET " PROTO_PATH " with Upgrade: " PROTO_UPGRADE_TUNNEL);
        return;
    }
    if (e->draining) {
        guest_refuse(g, REFUSE_DRAINING, NULL);
        return;
    }
    struct entry *n = xcalloc(1, sizeof *n);
    n->e = e;
    n->guest = g;
    bool named = copy_word(n->connector, sizeof n->connector, http_find(&h, PROTO_H_CONNECTOR));
    (void)copy_word(n->connection, sizeof n->connection, http_find(&h, PROTO_H_CONNECTION));
    (void)copy_word(n->version, sizeof n->version, http_find(&h, "user-agent"));
    int rc = named ? read_token(&h, n->tunnel_id, hash) : RC_INVALID;
    buf_consume(&g->in, used);
    if (rc != RC_OK) {
        entry_free(n);
        guest_refuse(g, named ? REFUSE_TOKEN : REFUSE_BAD_REQUEST, named ? "there is no tunnel token in the Authorization header" : "the header " PROTO_H_CONNECTOR " is missing");
        return;
    }
    guest_hold(g, on_entry_gone, n);
    n->auth = control_authenticate(e->control, n->tunnel_id, hash, on_checked, n);
}

/* ---- choosing ---- */

static bool among(const uint64_t *v, size_t n, uint64_t x)
{
    for (size_t i = 0; i < n; i++)
        if (v[i] == x)
            return true;
    return false;
}

int gateways_open(struct gateways *g, const char *host, const struct link_open *o, const uint64_t *tried, size_t n_tried, const struct link_stream_ops *ops, void *ctx,
                  struct link_stream **ret, uint64_t *ret_number)
{
    struct tunnel *t = tunnel_of_host(g, host);
    struct glink *best = NULL;
    size_t streams = 0;
    if (!t)
        return RC_NOT_FOUND;
    if (t->state == TUNNEL_ARCHIVED)
        return RC_DENIED;
    if (t->state == TUNNEL_NEEDS_CERTIFICATE)
        return RC_PRECONDITION;
    list_foreach (l, &t->links, struct glink, node) {
        streams += link_streams(l->link);
        if (!link_usable(l->link) || among(tried, n_tried, l->number))
            continue;
        size_t q = link_queued(l->link), bq = best ? link_queued(best->link) : 0;
        if (!best || q < bq || (q == bq && link_streams(l->link) < link_streams(best->link)))
            best = l;
    }
    if (!best)
        return RC_NOT_FOUND;
    if (streams >= (size_t)g->e->set.max_streams)
        return RC_LIMIT;
    int rc = link_stream_open(best->link, o, ops, ctx, ret, NULL);
    if (rc == RC_OK)
        *ret_number = best->number;
    return rc == RC_CLOSED ? RC_NOT_FOUND : rc;
}

/* ---- the server's words ---- */

void gateways_state(struct gateways *g, const char *tunnel_id, enum tunnel_state s)
{
    struct table_node *n = table_find(&g->by_id, tunnel_id);
    if (!n)
        return;
    struct tunnel *t = container_of(n, struct tunnel, id_node);
    if (t->state == s)
        return;
    log_info("edge.tunnel_state", "tunnel=%s state=%s", t->id, s == TUNNEL_ACTIVE ? "active" : s == TUNNEL_ARCHIVED ? "archived" : "needs_certificate");
    t->state = s;
    if (s != TUNNEL_ARCHIVED)
        return;
    for (size_t left = t->n_links; left > 0; left--)        /* the last one takes the tunnel along */
        glink_down(list_first(&t->links, struct glink, node), "the tunnel is archived");
}

/* One entry for all connections of a gateway process with the same token. */
static void add_connector(json_t *list, const struct tunnel *t, const struct glink *l, int64_t now_ms, int64_t wall_ms)
{
    for (size_t i = json_array_size(list); i-- > 0;) {
        json_t *it = json_array_get(list, i);
        if (!str_eq(js_str(it, "tunnel_id"), t->id))
            break;                      /* those of one tunnel stand together */
        if (str_eq(js_str(it, "id"), l->connector) && str_eq(js_str(it, "token_id"), l->token_id)) {
            js_set_int(it, "connections", js_int(it, "connections", 0) + 1);
            return;
        }
    }
    json_t *it = json_object();
    js_set_str(it, "id", l->connector);
    js_set_str(it, "tunnel_id", t->id);
    js_set_str(it, "token_id", l->token_id);
    js_set_int(it, "connections", 1);
    js_set_str(it, "version", l->version);
    js_set_str(it, "remote_address", l->peer);
    js_set_time(it, "connected_at", wall_ms - (now_ms - l->connected_ms));
    js_push(list, it);
}

json_t *gateways_connectors(const struct gateways *g)
{
    json_t *list = json_array();
    int64_t now = ev_now_ms(g->e->ev), wall = clock_now_ms();
    list_foreach (t, &g->all, struct tunnel, node)
        list_foreach (l, &t->links, struct glink, node)
            add_connector(list, t, l, now, wall);
    return list;
}

size_t gateways_links(const struct gateways *g) { return g->n_links; }
size_t gateways_streams(const struct gateways *g)
{
    size_t n = 0;
    list_foreach (t, &g->all, struct tunnel, node)
        list_foreach (l, &t->links, struct glink, node)
            n += link_streams(l->link);
    return n;
}

size_t gateways_tunnels(const struct gateways *g) { return g->by_id.n; }

/* ---- start, end ---- */

struct gateways *gateways_new(struct edge *e)
{
    struct gateways *g = xcalloc(1, sizeof *g);
    g->e = e;
    table_init(&g->by_domain);
    table_init(&g->by_id);
    list_init(&g->all);
    return g;
}

void gateways_drain(struct gateways *g)
{
    list_foreach (t, &g->all, struct tunnel, node)
        list_foreach (l, &t->links, struct glink, node)
            link_goaway(l->link);
}

void gateways_free(struct gateways *g)
{
    if (!g)
        return;
    list_foreach (t, &g->all, struct tunnel, node)
        for (size_t left = t->n_links; left > 0; left--)
            glink_free(list_first(&t->links, struct glink, node));
    table_done(&g->by_domain);
    table_done(&g->by_id);
    free(g);
}
