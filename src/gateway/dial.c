/* gateway/dial.c - see dial.h. One slot for each connection that is kept; a link that an edge drains goes on beside the slot's next one until it ends. */
#include "gateway/dial.h"

#include <stdio.h>
#include <string.h>

#include "base/list.h"
#include "base/random.h"
#include "base/str.h"
#include "gateway/carrier_link.h"
#include "gateway/egress.h"
#include "http/parse.h"
#include "log/log.h"
#include "metrics/metrics.h"
#include "net/net.h"
#include "tunnel/proto.h"
#include "tunnel/token.h"

#define HEALTH_MS 2500                   /* between two looks at the links */
#define HOST_MAX 256
#define REQUEST_MAX (PROTO_TOKEN_MAX + 2 * KIB)

static METRIC_DEFINE(m_links, METRIC_GAUGE, "gateway_links", "Connections to edges that are established.");
static METRIC_DEFINE(m_dials, METRIC_COUNTER, "gateway_dials_total", "Attempts to connect to an edge.");
static METRIC_DEFINE(m_failed, METRIC_COUNTER, "gateway_dials_failed_total", "Attempts to connect to an edge that failed.");
static METRIC_DEFINE(m_streams, METRIC_COUNTER, "gateway_streams_total", "Streams that edges have opened.");

struct edge { char host[HOST_MAX]; uint16_t port; };
enum slot_state { SLOT_WAIT, SLOT_DIAL, SLOT_TLS, SLOT_SEND, SLOT_REPLY, SLOT_UP };
struct slot {
    struct dialler *d;
    size_t index, attempt;
    enum slot_state state;
    struct net_connect *dial;            /* one of these while SLOT_DIAL */
    struct egress_dial *egress;
    int fd;
    struct tls *tls;
    struct ev_io io;
    struct ev_timer timer;               /* SLOT_WAIT: the wait; later: the step's limit */
    struct edge edge;
    struct buf msg;                      /* the upgrade request (with the token), then the answer to it */
    struct up *up;
    unsigned failures;
};
struct up { struct list node; struct dialler *d; struct slot *slot; struct link *link; int64_t since_ms; char where[HOST_MAX + 8]; };

struct dialler {
    struct ev *ev;
    struct front *front;
    struct edge *edge; size_t n_edges;
    char *token_file, *proxy, *no_proxy;
    struct secret *token;
    struct tls_ctx *tls;
    struct link_budget budget;
    struct slot *slot; size_t n;
    struct list ups; size_t n_ups;
    struct ev_timer health;
    bool draining;
    char id[ID_MAX];
};

static void begin(struct slot *s);
static void on_io(struct ev_io *io, unsigned got);

/* ---- waiting and giving up ---- */

static void on_wait(struct ev_timer *t)
{
    begin(container_of(t, struct slot, timer));
}

static void drop(struct slot *s)
{
    net_connect_cancel(TAKE(s->dial));
    egress_cancel(TAKE(s->egress));
    ev_timer_stop(&s->timer);
    ev_io_stop(&s->io);
    tls_free(TAKE(s->tls));
    if (s->fd >= 0)
        (void)close(TAKE_FD(s->fd));
    buf_wipe(&s->msg);
}

static int64_t backoff(unsigned failures)
{
    int64_t top = DIAL_BACKOFF_MIN_MS << (failures < 10 ? failures : 10);
    top = top < DIAL_BACKOFF_MAX_MS ? top : DIAL_BACKOFF_MAX_MS;
    return (int64_t)(random_unit() * (double)top);
}

static void wait_for(struct slot *s, int64_t least_ms)
{
    int64_t ms = backoff(s->failures);
    s->failures++;
    s->state = SLOT_WAIT;
    if (!s->d->draining)
        ev_timer_set(s->d->ev, &s->timer, least_ms + ms, on_wait);
}

static void fail(struct slot *s, int64_t least_ms, const struct err *why)
{
    metric_add(&m_failed, 1);
    log_warn("edge.failed", "edge=%s:%u connection=%zu failures=%u why=%s", s->edge.host, s->edge.port, s->index + 1, s->failures + 1, why->msg);
    drop(s);
    wait_for(s, least_ms);
}

static void on_step_limit(struct ev_timer *t)
{
    struct slot *s = container_of(t, struct slot, timer);
    struct err e;
    (void)err_set(&e, RC_TIMEOUT, "%s: no answer in time", s->state == SLOT_TLS ? "TLS handshake" : "upgrade to a tunnel");
    fail(s, 0, &e);
}

static void step(struct slot *s, enum slot_state to)
{
    s->state = to;
    ev_timer_set(s->d->ev, &s->timer, DIAL_STEP_MS, on_step_limit);
}

/* ---- links ---- */

static void up_free(struct up *u)
{
    list_del(&u->node);
    u->d->n_ups--;
    metric_set(&m_links, (int64_t)u->d->n_ups);
    link_free(u->link);
    free(u);
}

static void up_end(struct up *u, const struct err *why)
{
    struct slot *s = u->slot;
    int64_t age = ev_now_ms(u->d->ev) - u->since_ms;
    log_info("edge.disconnected", "edge=%s connection=%zu seconds=%lld why=%s", u->where, s ? s->index + 1 : 0, (long long)(age / 1000), why->msg);
    up_free(u);
    if (!s)
        return;
    s->up = NULL;
    if (age >= DIAL_GOOD_MS)
        s->failures = 0;
    wait_for(s, 0);
}

static void on_link_open(void *ctx, struct link *l, struct link_stream *st, const struct link_open *o)
{
    struct up *u = ctx;
    (void)l;
    metric_add(&m_streams, 1);
    carrier_link_accept(u->d->front, st, o);
}

/* The edge drains: its connection serves what it carries, a new one to another edge takes over. */
static void on_link_goaway(void *ctx, struct link *l)
{
    struct up *u = ctx;
    struct slot *s = TAKE(u->slot);
    (void)l;
    if (!s)
        return;
    log_info("edge.drains", "edge=%s connection=%zu", u->where, s->index + 1);
    s->up = NULL;
    s->failures = 0;
    s->state = SLOT_WAIT;
    if (!s->d->draining)
        ev_timer_set(s->d->ev, &s->timer, 0, on_wait);
}

static void on_link_end(void *ctx, struct link *l, const struct err *why)
{
    (void)l;
    up_end(ctx, why);
}

static const struct link_ops link_ops = { .on_open = on_link_open, .on_goaway = on_link_goaway, .on_end = on_link_end };

static bool echoes(const struct up *u)
{
    int64_t at = link_echoed_ms(u->link);
    return ev_now_ms(u->d->ev) - (at > u->since_ms ? at : u->since_ms) < DIAL_ECHO_MS;
}

static void on_health(struct ev_timer *t)
{
    struct dialler *d = container_of(t, struct dialler, health);
    struct err e;
    (void)err_set(&e, RC_TIMEOUT, "no echo through the data path for %d s", DIAL_ECHO_MS / 1000);
    list_foreach(u, &d->ups, struct up, node)
        if (u->slot && !echoes(u))       /* one that drains ends by itself */
            up_end(u, &e);
    ev_timer_set(d->ev, t, HEALTH_MS, on_health);
}

/* ---- the upgrade ---- */

static void established(struct slot *s, const char *early, size_t early_n)
{
    struct dialler *d = s->d;
    struct up *u = xcalloc(1, sizeof *u);
    struct err e = { 0 };
    u->d = d;
    u->slot = s;
    u->since_ms = ev_now_ms(d->ev);
    (void)snprintf(u->where, sizeof u->where, "%s:%u", s->edge.host, s->edge.port);
    ev_timer_stop(&s->timer);
    ev_io_stop(&s->io);
    char group[32];
    (void)str_copy(group, sizeof group, tls_group(s->tls) ? tls_group(s->tls) : "?");
    int rc = link_new(d->ev, LINK_ACCEPTOR, &d->budget, s->fd, s->tls, early, early_n, &link_ops, u, &u->link, &e);
    if (rc < 0) {
        free(u);
        fail(s, 0, &e);
        return;
    }
    s->fd = -1;
    s->tls = NULL;
    buf_wipe(&s->msg);
    s->up = u;
    s->state = SLOT_UP;
    list_add_tail(&d->ups, &u->node);
    metric_set(&m_links, (int64_t)++d->n_ups);
    log_info("edge.connected", "edge=%s connection=%zu of=%zu key_exchange=%s", u->where, s->index + 1, d->n, group);
}

static int64_t retry_after_ms(const struct http_head *h)
{
    const struct slice *v = http_find(h, "retry-after");
    int64_t seconds = 0;
    if (!v || slice_to_i64(*v, 0, DIAL_RETRY_AFTER_MAX_MS / 1000, &seconds) < 0)
        return v ? DIAL_REFUSED_MS : 0;
    return seconds * 1000;
}

static void refused(struct slot *s, const struct http_head *h)
{
    struct err e;
    int64_t wait = retry_after_ms(h);
    switch (h->status) {
    case 401:
        (void)err_set(&e, RC_UNAUTHORIZED, "the edge refuses the token (401): it was rotated, archived, or is not whole; fetch it again with "
                                           "`outwork tunnel` and replace %s", s->d->token_file ? s->d->token_file : "the variable");
        wait = wait > DIAL_REFUSED_MS ? wait : DIAL_REFUSED_MS;
        break;
    case 403:
        (void)err_set(&e, RC_DENIED, "the tunnel is archived (403); no gateway can serve it again");
        wait = wait > DIAL_REFUSED_MS ? wait : DIAL_REFUSED_MS;
        break;
    case 429:
    case 503:
        (void)err_set(&e, RC_LIMIT, "the edge takes no connection now (%d), trying again in %lld s or later", h->status, (long long)(wait / 1000));
        break;
    default:
        (void)err_set(&e, RC_PROTO, "the edge answered the upgrade with HTTP %d; is this an edge?", h->status);
    }
    fail(s, wait, &e);
}

static void reply(struct slot *s)
{
    for (;;) {
        struct err e = { 0 };
        struct http_head h;
        unsigned want = EV_READ;
        size_t n = 0, used = 0, before = buf_len(&s->msg);
        const char *why = "";
        char *to = buf_reserve(&s->msg, KIB);
        if (!to) {
            (void)err_set(&e, RC_PROTO, "the edge's answer is larger than %zu bytes", (size_t)DIAL_REPLY_MAX);
            fail(s, 0, &e);
            return;
        }
        int rc = tls_read(s->tls, to, KIB, &n, &want, &e);
        if (rc == RC_AGAIN) {
            ev_io_want(&s->io, want);
            return;
        }
        if (rc < 0) {
            (void)err_wrap(&e, rc, "upgrade to a tunnel");
            fail(s, 0, &e);
            return;
        }
        buf_commit(&s->msg, n);
        rc = http_parse_response(buf_data(&s->msg), buf_len(&s->msg), before, &h, &used, &why);
        if (rc == RC_AGAIN)
            continue;
        const struct slice *protocol = rc == RC_OK ? http_find(&h, "upgrade") : NULL;
        if (rc < 0) {
            (void)err_set(&e, RC_PROTO, "the edge's answer is malformed: %s", why);
            fail(s, 0, &e);
        } else if (h.status == 101 && protocol && slice_eq_nocase(*protocol, PROTO_UPGRADE_TUNNEL)) {
            established(s, buf_data(&s->msg) + used, buf_len(&s->msg) - used);
        } else {
            refused(s, &h);
        }
        return;
    }
}

static void send_request(struct slot *s)
{
    struct err e = { 0 };
    unsigned want = EV_WRITE;
    while (buf_len(&s->msg)) {
        size_t n = 0;
        int rc = tls_write(s->tls, buf_data(&s->msg), buf_len(&s->msg), &n, &want, &e);
        if (rc == RC_AGAIN) {
            ev_io_want(&s->io, want);
            return;
        }
        if (rc < 0) {
            fail(s, 0, &e);
            return;
        }
        buf_consume(&s->msg, n);
    }
    buf_wipe(&s->msg);                   /* it held the token */
    buf_init(&s->msg, DIAL_REPLY_MAX);
    step(s, SLOT_REPLY);
    reply(s);
}

static int read_token(const struct dialler *d, struct secret **ret, struct err *e)
{
    if (!d->token_file) {
        *ret = secret_dup(d->token);
        return RC_OK;
    }
    TRY(secret_read_file(d->token_file, ret, e));
    struct tunnel_token t;
    int rc = tunnel_token_parse(secret_text(*ret), secret_len(*ret), &t, e);
    if (rc < 0) {
        secret_free(TAKE(*ret));
        return err_wrap(e, rc, "token file %s", d->token_file);
    }
    return RC_OK;
}

static int put_request(struct slot *s, struct err *e)
{
    AUTO_PTR(secret) token = NULL;
    TRY(read_token(s->d, &token, e));
    buf_init(&s->msg, REQUEST_MAX);
    (void)buf_printf(&s->msg, "GET " PROTO_PATH " HTTP/1.1\r\nHost: %s:%u\r\nConnection: Upgrade\r\nUpgrade: " PROTO_UPGRADE_TUNNEL "\r\nAuthorization: Bearer ",
                     s->edge.host, s->edge.port);
    (void)buf_put(&s->msg, secret_text(token), secret_len(token));
    (void)buf_printf(&s->msg, "\r\n" PROTO_H_CONNECTOR ": %s\r\n" PROTO_H_CONNECTION ": %zu/%zu\r\nUser-Agent: outwork-gateway/" OUTWORK_VERSION "\r\n\r\n",
                     s->d->id, s->index + 1, s->d->n);
    return buf_ok(&s->msg) ? RC_OK : err_set(e, RC_LIMIT, "the tunnel token is too long");
}

static void handshake(struct slot *s)
{
    struct err e = { 0 };
    unsigned want = 0;
    int rc = tls_handshake(s->tls, &want, &e);
    if (rc == RC_AGAIN) {
        ev_io_want(&s->io, want);
        return;
    }
    if (rc == RC_OK)
        rc = put_request(s, &e);
    if (rc < 0) {
        fail(s, 0, &e);
        return;
    }
    step(s, SLOT_SEND);
    send_request(s);
}

static void on_io(struct ev_io *io, unsigned got)
{
    struct slot *s = container_of(io, struct slot, io);
    (void)got;
    if (s->state == SLOT_TLS)
        handshake(s);
    else if (s->state == SLOT_SEND)
        send_request(s);
    else if (s->state == SLOT_REPLY)
        reply(s);
}

static void on_dialled(void *ctx, int fd, const struct err *why)
{
    struct slot *s = ctx;
    struct err e = { 0 };
    s->dial = NULL;
    s->egress = NULL;
    if (fd < 0) {
        fail(s, 0, why);
        return;
    }
    s->fd = fd;
    step(s, SLOT_TLS);
    int rc = ev_io_start(s->d->ev, &s->io, fd, EV_READ, on_io);
    if (rc < 0)
        (void)err_set(&e, rc, "cannot watch the connection");
    else
        rc = tls_connect(s->d->tls, fd, s->edge.host, &s->tls, &e);
    if (rc < 0)
        fail(s, 0, &e);
    else
        handshake(s);
}

static int parse_edge(const char *text, struct edge *ret, struct err *e)
{
    const char *at = str_prefix(text, "https://") ? text + 8 : text, *colon = strrchr(at, ':');
    size_t n = colon ? (size_t)(colon - at) : 0;
    int64_t port = 0;
    bool bracket = n > 2 && at[0] == '[' && at[n - 1] == ']';
    if (n == 0 || n >= sizeof ret->host || str_to_i64(colon + 1, 1, 65535, &port) < 0 || (!bracket && memchr(at, ':', n)) || strpbrk(at, "/ "))
        return err_set(e, RC_INVALID, "edge '%.80s' is no HOST:PORT", text);
    memcpy(ret->host, at, n);
    ret->host[n] = '\0';
    ret->port = (uint16_t)port;
    return RC_OK;
}

/* Slots begin at different edges and at different addresses of one name; each attempt goes to the next. */
static void begin(struct slot *s)
{
    struct dialler *d = s->d;
    size_t at = s->index + s->attempt++;
    struct net_connect_opts o = { .timeout_ms = DIAL_STEP_MS, .rotate = at / d->n_edges };
    s->edge = d->edge[at % d->n_edges];
    s->state = SLOT_DIAL;
    metric_add(&m_dials, 1);
    if (d->proxy)
        s->egress = egress_dial(d->ev, &(struct egress_conf){ d->proxy, d->no_proxy }, s->edge.host, s->edge.port, DIAL_STEP_MS, on_dialled, s);
    else
        s->dial = net_connect_opts(d->ev, s->edge.host, s->edge.port, &o, on_dialled, s);
}

/* ---- the dialler ---- */

static int edges_of(struct dialler *d, const struct dial_conf *c, struct err *e)
{
    AUTO_PTR(secret) token = NULL;
    struct tunnel_token t;
    if (c->n_edges > DIAL_EDGES_MAX)
        return err_set(e, RC_INVALID, "at most %d edges", DIAL_EDGES_MAX);
    TRY(read_token(d, &token, e));
    TRY(tunnel_token_parse(secret_text(token), secret_len(token), &t, e));
    d->edge = xcalloc(c->n_edges ? c->n_edges : 1, sizeof *d->edge);
    for (size_t i = 0; i < c->n_edges; i++)
        TRY(parse_edge(c->edges[i], &d->edge[d->n_edges++], e));
    if (d->n_edges)
        return RC_OK;
    if (!*t.endpoint)
        return err_set(e, RC_INVALID, "no edge: give --edge HOST:PORT (the token names none)");
    d->n_edges = 1;
    int rc = parse_edge(t.endpoint, &d->edge[0], e);
    return rc < 0 ? err_wrap(e, rc, "the token's endpoint") : RC_OK;
}

int dialler_new(struct ev *ev, const struct dial_conf *c, struct front *f, struct dialler **ret, struct err *e)
{
    if (!c->token_file && !c->token)
        return err_set(e, RC_INVALID, "no tunnel token: give --token-file FILE, or set TUNNEL_TOKEN");
    struct dialler *d = xcalloc(1, sizeof *d);
    struct tls_conf tc = { .ca_file = c->ca_file, .tls13_only = true };
    d->ev = ev;
    d->front = f;
    d->budget.max = c->window_budget;
    d->token_file = str_dup(c->token_file);
    d->proxy = str_dup(c->proxy && *c->proxy ? c->proxy : NULL);
    d->no_proxy = str_dup(c->no_proxy);
    d->token = c->token ? secret_dup(c->token) : NULL;
    list_init(&d->ups);
    id_new("conn", d->id);
    int rc = edges_of(d, c, e);
    if (rc == RC_OK) {
        rc = tls_ctx_client(&tc, &d->tls, e);
        if (rc < 0)
            (void)err_wrap(e, rc, "edge-ca");
    }
    if (rc < 0) {
        dialler_free(d);
        return rc;
    }
    d->n = c->connections;
    d->slot = xcalloc(d->n, sizeof *d->slot);
    for (size_t i = 0; i < d->n; i++) {
        struct slot *s = &d->slot[i];
        *s = (struct slot){ .d = d, .index = i, .fd = -1 };
        buf_init(&s->msg, DIAL_REPLY_MAX);
        ev_timer_set(ev, &s->timer, 0, on_wait);
    }
    ev_timer_set(ev, &d->health, HEALTH_MS, on_health);
    *ret = d;
    return RC_OK;
}

void dialler_drain(struct dialler *d)
{
    d->draining = true;
    for (size_t i = 0; i < d->n; i++)
        if (d->slot[i].state != SLOT_UP)
            drop(&d->slot[i]);
    list_foreach(u, &d->ups, struct up, node)
        link_goaway(u->link);
}

void dialler_free(struct dialler *d)
{
    if (!d)
        return;
    d->draining = true;
    ev_timer_stop(&d->health);
    list_foreach(u, &d->ups, struct up, node)
        up_free(u);
    for (size_t i = 0; i < d->n; i++)
        drop(&d->slot[i]);
    tls_ctx_free(d->tls);
    secret_free(d->token);
    free(d->token_file);
    if (d->proxy)
        wipe(d->proxy, strlen(d->proxy));        /* it may hold a password */
    free(d->proxy);
    free(d->no_proxy);
    free(d->slot);
    free(d->edge);
    free(d);
}

size_t dialler_links(const struct dialler *d) { return d->n_ups; }

size_t dialler_healthy(const struct dialler *d)
{
    size_t n = 0;
    for (const struct list *at = d->ups.next; at != &d->ups; at = at->next)
        n += echoes(list_entry((struct list *)(uintptr_t)at, struct up, node));
    return n;
}
