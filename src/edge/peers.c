/* edge/peers.c - see peers.h */
#include "edge/peers.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "edge/splice.h"
#include "edge/table.h"
#include "http/url.h"
#include "log/log.h"

#define ANSWER_MAX (8 * KIB)             /* head of an edge's answer to our upgrade */

enum { PEER_CONNECTING = 1, PEER_HANDSHAKE, PEER_ASKING, PEER_LINK, PEER_REST };

struct peers {
    struct edge *e;
    struct table out;                    /* struct peer by address */
    struct list in;                      /* struct visitor */
    struct list peers;
};

struct peer {                            /* an edge that we reach */
    struct table_node by_address;
    struct list node, waits;
    struct peers *p;
    int state, fd;
    struct net_connect *connect;
    struct tls *tls;
    struct ev_io io;
    struct ev_timer timer, echo;         /* timer: limit of the current state; idle look while there is a link */
    struct buf ask, answer;
    size_t seen;
    struct link *link;
    bool ready, ending, counted;
    char host[URL_HOST_MAX], address[CONTROL_DOMAIN_MAX + 8];
};

struct visitor {                         /* an edge that reaches us */
    struct list node;
    struct peers *p;
    struct link *link;
    struct seat seat;
    bool ending;
    char peer[NET_ADDR_TEXT];
};

/* ---- links to other edges ---- */

static void on_timer(struct ev_timer *t);

static void close_parts(struct peer *x)
{
    x->ending = true;
    net_connect_cancel(TAKE(x->connect));
    ev_io_stop(&x->io);
    ev_timer_stop(&x->timer);
    ev_timer_stop(&x->echo);
    if (x->link)
        link_free(TAKE(x->link));
    tls_free(TAKE(x->tls));
    if (x->fd >= 0)
        (void)close(TAKE_FD(x->fd));
    buf_done(&x->ask);
    buf_done(&x->answer);
    if (x->counted)
        metric_add(&stat_peers, -1);
    x->counted = x->ready = false;
}

static void peer_free(struct peer *x)
{
    close_parts(x);
    table_del(&x->p->out, &x->by_address);
    list_del(&x->node);
    free(x);
}

static void tell(struct peer *x, struct link *l)
{
    struct list now;
    list_init(&now);
    while (!list_empty(&x->waits)) {
        struct list *n = x->waits.next;
        list_del(n);
        list_add_tail(&now, n);
    }
    while (!list_empty(&now)) {
        struct peer_wait *w = list_first(&now, struct peer_wait, node);
        list_del(&w->node);
        w->done(w, l && link_usable(l) ? l : NULL);
    }
}

/* No way to that edge for a moment. */
static void rest(struct peer *x, const char *why)
{
    log_warn("edge.peer_failed", "address=%s why=%s", x->address, why);
    close_parts(x);
    x->state = PEER_REST;
    ev_timer_set(x->p->e->ev, &x->timer, PEER_REST_MS, on_timer);
    tell(x, NULL);
}

static void on_echo_due(struct ev_timer *t);

static void on_echo(void *ctx, bool ok, int64_t rtt_us)
{
    struct peer *x = ctx;
    if (x->ending)
        return;
    if (!ok && link_usable(x->link)) {
        metric_add(&stat_echo_failed, 1);
        rest(x, "the health check through the link was not answered");
        return;
    }
    if (ok)
        metric_observe_us(&stat_echo, rtt_us);
    ev_timer_set(x->p->e->ev, &x->echo, x->p->e->set.echo_ms, on_echo_due);
}

static void on_echo_due(struct ev_timer *t)
{
    struct peer *x = container_of(t, struct peer, echo);
    if (link_usable(x->link))
        link_echo(x->link, x->p->e->set.echo_ms, on_echo, x);
}

static void on_out_ready(void *ctx, struct link *l)
{
    struct peer *x = ctx;
    x->ready = true;
    log_info("edge.peer_up", "address=%s", x->address);
    ev_timer_set(x->p->e->ev, &x->timer, PEER_IDLE_MS, on_timer);
    ev_timer_set(x->p->e->ev, &x->echo, x->p->e->set.echo_ms, on_echo_due);
    tell(x, l);
}

static void on_out_end(void *ctx, struct link *l, const struct err *why)
{
    (void)l;
    struct peer *x = ctx;
    if (x->ending)
        return;
    log_info("edge.peer_down", "address=%s why=%s", x->address, why->msg);
    if (x->ready && list_empty(&x->waits))
        peer_free(x);                    /* the next stream dials again at once */
    else
        rest(x, why->msg);
}

static void make_link(struct peer *x)
{
    static const struct link_ops ops = { .on_ready = on_out_ready, .on_end = on_out_end };
    struct err e;
    ev_io_stop(&x->io);
    int rc = link_new(x->p->e->ev, LINK_OPENER, &x->p->e->budget, x->fd, x->tls, buf_data(&x->answer), buf_len(&x->answer), &ops, x, &x->link, &e);
    if (rc < 0) {
        rest(x, e.msg);
        return;
    }
    x->fd = -1;
    x->tls = NULL;
    buf_done(&x->answer);
    x->state = PEER_LINK;
    x->counted = true;
    metric_add(&stat_peers, 1);
}

static void read_answer(struct peer *x)
{
    struct http_head h;
    const char *why = "the answer is too large";
    size_t used = 0;
    char *to;
    while ((to = buf_reserve(&x->answer, buf_room(&x->answer))) && buf_room(&x->answer)) {
        size_t n = 0;
        unsigned want = EV_READ;
        struct err e;
        int rc = tls_read(x->tls, to, buf_room(&x->answer), &n, &want, &e);
        if (rc == RC_AGAIN) {
            ev_io_want(&x->io, want);
            return;
        }
        if (rc < 0) {
            rest(x, e.msg);
            return;
        }
        buf_commit(&x->answer, n);
        rc = http_parse_response(buf_data(&x->answer), buf_len(&x->answer), x->seen, &h, &used, &why);
        x->seen = buf_len(&x->answer);
        if (rc == RC_AGAIN)
            continue;
        if (rc == RC_OK && h.status == 101) {
            buf_consume(&x->answer, used);
            make_link(x);
            return;
        }
        rest(x, rc == RC_OK ? "the edge refuses the upgrade" : why);
        return;
    }
    rest(x, why);
}

static void ask(struct peer *x)
{
    while (buf_len(&x->ask)) {
        size_t n = 0;
        unsigned want = EV_WRITE;
        struct err e;
        int rc = tls_write(x->tls, buf_data(&x->ask), buf_len(&x->ask), &n, &want, &e);
        if (rc == RC_AGAIN) {
            ev_io_want(&x->io, want);
            return;
        }
        if (rc < 0) {
            rest(x, e.msg);
            return;
        }
        buf_consume(&x->ask, n);
    }
    ev_io_want(&x->io, EV_READ);
    read_answer(x);
}

static void on_io(struct ev_io *io, unsigned got)
{
    (void)got;                           /* a hang-up shows in the call */
    struct peer *x = container_of(io, struct peer, io);
    unsigned want = EV_READ;
    struct err e;
    if (x->state == PEER_HANDSHAKE) {
        int rc = tls_handshake(x->tls, &want, &e);
        if (rc == RC_AGAIN) {
            ev_io_want(io, want);
            return;
        }
        if (rc < 0) {
            rest(x, e.msg);
            return;
        }
        x->state = PEER_ASKING;
    }
    ask(x);
}

static void on_connected(void *ctx, int fd, const struct err *why)
{
    struct peer *x = ctx;
    struct err e;
    x->connect = NULL;
    if (fd < 0) {
        rest(x, why->msg);
        return;
    }
    x->fd = fd;
    x->state = PEER_HANDSHAKE;
    int rc = tls_connect(x->p->e->tls_peer_client, fd, x->host, &x->tls, &e);
    if (rc == RC_OK && (rc = ev_io_start(x->p->e->ev, &x->io, fd, EV_WRITE, on_io)) < 0)
        (void)err_set(&e, rc, "register with the event loop");
    if (rc < 0)
        rest(x, e.msg);
}

static void on_timer(struct ev_timer *t)
{
    struct peer *x = container_of(t, struct peer, timer);
    if (x->state == PEER_REST) {
        peer_free(x);
    } else if (x->state == PEER_LINK && x->ready) {
        if (link_streams(x->link) == 0) {
            log_info("edge.peer_down", "address=%s why=%s", x->address, "idle");
            peer_free(x);
        } else {
            ev_timer_set(x->p->e->ev, t, PEER_IDLE_MS, on_timer);
        }
    } else {
        rest(x, "no answer in time");
    }
}

/* "edge-2.example:8445" or "[2001:db8::2]:8445". */
static int split_address(const char *address, char host[URL_HOST_MAX], uint16_t *ret_port)
{
    AUTO_FREE char *text = str_printf("https://%s/", address);
    struct http_url u;
    TRY(http_url_parse(text, false, &u, NULL));
    memcpy(host, u.host, URL_HOST_MAX);
    *ret_port = u.port;
    return RC_OK;
}

static struct peer *peer_new(struct peers *p, const char *address)
{
    char host[URL_HOST_MAX];
    uint16_t port;
    if (!p->e->tls_peer_client || p->out.n >= PEERS_MAX || split_address(address, host, &port) < 0)
        return NULL;
    struct peer *x = xcalloc(1, sizeof *x);
    x->p = p;
    x->fd = -1;
    x->state = PEER_CONNECTING;
    list_init(&x->waits);
    (void)str_copy(x->address, sizeof x->address, address);
    memcpy(x->host, host, sizeof x->host);
    buf_init(&x->ask, ANSWER_MAX);
    buf_init(&x->answer, ANSWER_MAX);
    buf_printf(&x->ask, "GET " PROTO_PATH " HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: " PROTO_UPGRADE_PEER "\r\nUser-Agent: outwork-edge/" OUTWORK_VERSION "\r\n\r\n",
               x->address);
    table_add(&p->out, &x->by_address, x->address);
    list_add_tail(&p->peers, &x->node);
    ev_timer_set(p->e->ev, &x->timer, PEER_CONNECT_MS, on_timer);
    x->connect = net_connect_start(p->e->ev, x->host, port, PEER_CONNECT_MS, on_connected, x);
    return x;
}

int peers_get(struct peers *p, const char *address, struct peer_wait *w, struct link **ret)
{
    struct table_node *n = table_find(&p->out, address);
    struct peer *x = n ? container_of(n, struct peer, by_address) : peer_new(p, address);
    if (!x || x->state == PEER_REST)
        return RC_CLOSED;
    if (x->ready) {
        if (!link_usable(x->link))
            return RC_CLOSED;
        *ret = x->link;
        return RC_OK;
    }
    list_add_tail(&x->waits, &w->node);
    return RC_AGAIN;
}

/* ---- links from other edges ---- */

static void visitor_free(struct visitor *v)
{
    v->ending = true;
    link_free(v->link);
    seat_done(&v->seat);
    list_del(&v->node);
    metric_add(&stat_peers, -1);
    free(v);
}

static void on_in_end(void *ctx, struct link *l, const struct err *why)
{
    (void)l;
    struct visitor *v = ctx;
    if (v->ending)
        return;
    log_info("edge.peer_in_down", "peer=%s why=%s", v->peer, why->msg);
    visitor_free(v);
}

static void on_in_open(void *ctx, struct link *l, struct link_stream *s, const struct link_open *o)
{
    (void)l;
    splice_start(((struct visitor *)ctx)->p->e, s, o);
}

static void let_in(struct guest *g)
{
    static const struct link_ops ops = { .on_open = on_in_open, .on_end = on_in_end };
    struct peers *p = g->ctx;
    struct visitor *v = xcalloc(1, sizeof *v);
    struct err e;
    v->p = p;
    memcpy(v->peer, g->peer_text, sizeof v->peer);
    struct guest_gift gift = guest_take(g);
    v->seat = gift.seat;
    int rc = link_new(p->e->ev, LINK_ACCEPTOR, &p->e->budget, gift.fd, gift.tls, buf_data(&gift.early), buf_len(&gift.early), &ops, v, &v->link, &e);
    buf_done(&gift.early);
    if (rc < 0) {
        log_err(LOG_ERROR, "edge.link_failed", &e);
        tls_free(gift.tls);
        (void)close(gift.fd);
        seat_done(&v->seat);
        free(v);
        return;
    }
    list_add_tail(&p->in, &v->node);
    metric_add(&stat_peers, 1);
    log_info("edge.peer_in_up", "peer=%s", v->peer);
    if (p->e->draining)
        link_goaway(v->link);
}

void peers_input(struct guest *g)
{
    static const char yes[] = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " PROTO_UPGRADE_PEER "\r\n\r\n";
    struct edge *e = door_ctx(g->door);
    struct http_head h;
    size_t used = 0;
    if (guest_head(g, &h, &used) != RC_OK)
        return;
    const struct slice *up = http_find(&h, "upgrade");
    if (h.method != HTTP_GET || !slice_eq(h.target, PROTO_PATH) || !h.upgrade || !up || !slice_eq_nocase(*up, PROTO_UPGRADE_PEER)) {
        guest_refuse(g, REFUSE_NOT_A_PEER, NULL);
        return;
    }
    if (e->draining) {
        guest_refuse(g, REFUSE_DRAINING, NULL);
        return;
    }
    buf_consume(&g->in, used);
    guest_hold(g, NULL, e->peers);
    guest_answer(g, yes, sizeof yes - 1, let_in);
}

/* ---- start, end ---- */

struct peers *peers_new(struct edge *e)
{
    struct peers *p = xcalloc(1, sizeof *p);
    p->e = e;
    table_init(&p->out);
    list_init(&p->in);
    list_init(&p->peers);
    return p;
}

void peers_drain(struct peers *p)
{
    list_foreach (v, &p->in, struct visitor, node)
        link_goaway(v->link);
}

void peers_free(struct peers *p)
{
    if (!p)
        return;
    list_foreach (v, &p->in, struct visitor, node)
        visitor_free(v);
    list_foreach (x, &p->peers, struct peer, node)
        peer_free(x);
    table_done(&p->out);
    free(p);
}
