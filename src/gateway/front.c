/* gateway/front.c - connections of the front: carriers in, TLS, time limits, reading, writing, the end. */
#include "gateway/front.h"

#include <string.h>

#include "base/str.h"
#include "gateway/front_internal.h"
#include "log/log.h"
#include "metrics/metrics.h"

static METRIC_DEFINE(m_conns, METRIC_GAUGE, "gateway_inner_connections", "Open inner connections.");
static METRIC_DEFINE(m_accepted, METRIC_COUNTER, "gateway_inner_connections_total", "Inner connections that were taken.");
static METRIC_DEFINE_LABEL(m_full, METRIC_COUNTER, "gateway_refusals_total", "reason=\"connections\"", "What the gateway refused, by reason.");
static METRIC_DEFINE_LABEL(m_tls, METRIC_COUNTER, "gateway_refusals_total", "reason=\"tls_handshake\"", "What the gateway refused, by reason.");

/* ---- the leaf ---- */

static struct served *served_ref(struct served *s)
{
    s->refs++;
    return s;
}

static void served_unref(struct served *s)
{
    if (!s || --s->refs)
        return;
    tls_ctx_free(s->tls);
    free(s);
}

/* ---- time ---- */

static void on_timer(struct ev_timer *t);

/* The timer is moved only when it would be too late, and armed again when it fires too early: a busy connection never touches the heap. */
void inner_deadline(struct inner *c, int64_t in_ms)
{
    if (in_ms < 0) {
        c->deadline_ms = INT64_MAX;
        return;
    }
    c->deadline_ms = ev_now_ms(c->f->ev) + in_ms;
    if (!ev_timer_armed(&c->timer) || c->timer_at_ms > c->deadline_ms) {
        c->timer_at_ms = c->deadline_ms;
        ev_timer_set(c->f->ev, &c->timer, in_ms, on_timer);
    }
}

static void on_timer(struct ev_timer *t)
{
    struct inner *c = container_of(t, struct inner, timer);
    int64_t left = c->deadline_ms == INT64_MAX ? INT64_MAX : c->deadline_ms - ev_now_ms(c->f->ev);
    if (left == INT64_MAX)
        return;
    if (left > 0) {
        inner_deadline(c, left);
        return;
    }
    if (c->state != INNER_IDLE && c->state != INNER_LINGER)
        log_info("gateway.client_slow", "client=%s what=%s", c->carrier->ops->peer(c->carrier),
                 c->state == INNER_HANDSHAKE ? "TLS handshake" : c->state == INNER_HEAD ? "head of a request" : "body of a request");
    inner_close(c);
}

/* ---- life ---- */

static void gone(struct front *f)
{
    metric_set(&m_conns, (int64_t)f->n_conns);
    if (f->draining && f->n_conns == 0 && f->drained)
        ev_timer_set(f->ev, &f->drained_timer, 0, f->drained_timer.cb);
}

static void inner_free(struct inner *c)
{
    struct front *f = c->f;
    buf_done(&c->in);
    buf_done(&c->out);
    served_unref(c->served);
    free(c);
    gone(f);
}

void inner_close(struct inner *c)
{
    if (c->dead)
        return;
    c->dead = true;
    struct exchange *x = TAKE(c->x);
    if (x && x->call && !x->ended)
        x->route->ops->cancel(TAKE(x->call));
    if (x)
        exchange_put(x);
    ev_timer_stop(&c->timer);
    ev_timer_stop(&c->kick);
    tls_free(TAKE(c->tls));
    c->carrier->ops->free(c->carrier);
    c->carrier = NULL;
    list_del(&c->node);
    list_del(&c->dirty);
    c->f->n_conns--;
    if (c->busy == 0)
        inner_free(c);
}

void inner_enter(struct inner *c)
{
    c->busy++;
}

/* Both sides are done with the connection: say so, then wait for the client to close. */
static void linger(struct inner *c)
{
    c->state = INNER_LINGER;
    buf_done(&c->in);
    buf_done(&c->out);
    tls_free(TAKE(c->tls));              /* sends close_notify */
    c->carrier->ops->shutdown(c->carrier);
    inner_deadline(c, FRONT_LINGER_MS);
    inner_kick(c);
}

static void process_waiting(struct inner *c)
{
    size_t n = buf_len(&c->in);
    if (n) {
        size_t used = inner_process(c, buf_data(&c->in), n);
        if (!c->dead)
            buf_consume(&c->in, used);
    }
    if (!c->dead && buf_len(&c->in) == 0)
        buf_done(&c->in);
}

/* The answer is whole. A request whose body has not come whole can be followed by nothing. */
static void answered(struct inner *c)
{
    struct exchange *x = TAKE(c->x);
    bool rest = x->has_body && !x->body_ended;
    exchange_put(x);
    c->close_after = c->close_after || rest || c->f->draining;
    c->state = INNER_IDLE;
    c->seen = 0;
    inner_flush(c);
    if (c->dead)
        return;
    if (c->close_after) {
        if (buf_len(&c->out) == 0)
            linger(c);
        else
            inner_deadline(c, c->f->limits.keep_ms);     /* the rest goes out in on_writable */
        return;
    }
    inner_deadline(c, c->f->limits.keep_ms);
    process_waiting(c);
    if (!c->dead && c->more)
        inner_kick(c);
}

void inner_leave(struct inner *c)
{
    while (c->busy == 1 && !c->dead && c->x && c->x->ended)
        answered(c);
    if (--c->busy == 0 && c->dead)
        inner_free(c);
}

/* ---- reading ---- */

static bool wants_read(const struct inner *c)
{
    if (c->state == INNER_LINGER || c->dead)
        return false;
    if (c->state != INNER_BUSY || !c->x)
        return !c->close_after && buf_len(&c->out) == 0;     /* a client that does not read its answers is not asked for more */
    return c->x->body_ended || c->x->pouring ? buf_len(&c->in) < FRONT_AHEAD_MAX : !c->x->blocked && !c->x->payload;
}

static void input(struct inner *c, const char *p, size_t n)
{
    if (buf_len(&c->in) == 0) {
        size_t used = inner_process(c, p, n);
        if (!c->dead && used < n && !c->close_after && buf_put(&c->in, p + used, n - used) < 0)
            inner_close(c);
        return;
    }
    if (buf_put(&c->in, p, n) < 0) {     /* cannot be: FRONT_IN_MAX covers what wants_read() lets in */
        inner_close(c);
        return;
    }
    size_t used = inner_process(c, buf_data(&c->in), buf_len(&c->in));
    if (c->dead)
        return;
    buf_consume(&c->in, used);
    if (buf_len(&c->in) == 0)
        buf_done(&c->in);
}

static void handshake(struct inner *c)
{
    struct err e = { 0 };
    unsigned want = 0;
    int rc = tls_handshake(c->tls, &want, &e);
    if (rc == RC_AGAIN)
        return;
    if (rc < 0) {
        metric_add(&m_tls, 1);
        log_info("gateway.tls", "client=%s what=%s why=%s", c->carrier->ops->peer(c->carrier), "tls handshake failed", e.msg);
        if (rc == RC_PROTO)
            linger(c);                   /* the alert says why, and is to arrive */
        else
            inner_close(c);
        return;
    }
    c->state = INNER_IDLE;
    inner_deadline(c, c->f->limits.keep_ms);
}

static void discard(struct inner *c)
{
    size_t n = 0;
    for (size_t total = 0; total < FRONT_READ_TURN; total += n) {
        int rc = c->carrier->ops->read(c->carrier, c->f->scratch, sizeof c->f->scratch, &n);
        if (rc == RC_AGAIN)
            return;
        if (rc < 0) {
            inner_close(c);
            return;
        }
    }
    inner_kick(c);
}

static void read_some(struct inner *c)
{
    c->more = false;
    if (c->state == INNER_HANDSHAKE)
        handshake(c);
    if (!c->dead && c->state == INNER_LINGER) {
        discard(c);
        return;
    }
    for (size_t total = 0; !c->dead && c->state != INNER_HANDSHAKE && wants_read(c);) {
        size_t n = 0;
        unsigned want = 0;
        if (total >= FRONT_READ_TURN) {
            inner_kick(c);
            break;
        }
        int rc = tls_read(c->tls, c->f->scratch, sizeof c->f->scratch, &n, &want, NULL);
        if (rc == RC_AGAIN)
            return;
        if (rc < 0) {                    /* the client has ended, cleanly or not: for a request in flight that is its end (tunnels.md 4.6) */
            inner_close(c);
            return;
        }
        total += n;
        input(c, c->f->scratch, n);
    }
    if (!c->dead)
        c->more = true;
}

static void on_readable(void *ctx)
{
    struct inner *c = ctx;
    inner_enter(c);
    read_some(c);
    inner_leave(c);
}

static void on_kick(struct ev_timer *t)
{
    struct inner *c = container_of(t, struct inner, kick);
    inner_enter(c);
    if (!c->x || (!c->x->body_ended && !c->x->pouring && !c->x->blocked))
        process_waiting(c);
    if (!c->dead)
        read_some(c);
    inner_leave(c);
}

void inner_kick(struct inner *c)
{
    if (!ev_timer_armed(&c->kick))
        ev_timer_set(c->f->ev, &c->kick, 0, on_kick);
}

/* ---- writing ---- */

void inner_flush(struct inner *c)
{
    list_del(&c->dirty);
    while (buf_len(&c->out)) {
        size_t n = 0;
        unsigned want = 0;
        int rc = tls_write(c->tls, buf_data(&c->out), buf_len(&c->out), &n, &want, NULL);
        if (rc == RC_AGAIN)
            return;
        if (rc < 0) {
            inner_close(c);
            return;
        }
        buf_consume(&c->out, n);
    }
    if (!c->x)
        buf_done(&c->out);
}

static void offer_room(struct inner *c)
{
    struct exchange *x = c->x;
    if (!x || !x->wants_resume || x->ended || buf_len(&c->out) > FRONT_OUT_MAX / 2)
        return;
    x->wants_resume = false;
    if (x->call)
        x->route->ops->resume(x->call);
}

static void on_flush(struct ev_timer *t)
{
    struct front *f = container_of(t, struct front, flush);
    struct list now;
    list_init(&now);
    while (!list_empty(&f->dirty)) {
        struct list *n = f->dirty.next;
        list_del(n);
        list_add_tail(&now, n);
    }
    while (!list_empty(&now)) {
        struct inner *c = list_first(&now, struct inner, dirty);
        inner_enter(c);
        inner_flush(c);                  /* takes it off the list */
        if (!c->dead)
            offer_room(c);
        inner_leave(c);
    }
}

void inner_dirty(struct inner *c)
{
    if (!list_empty(&c->dirty))
        return;
    list_add_tail(&c->f->dirty, &c->dirty);
    if (!ev_timer_armed(&c->f->flush))
        ev_timer_set(c->f->ev, &c->f->flush, 0, on_flush);
}

static void on_writable(void *ctx)
{
    struct inner *c = ctx;
    inner_enter(c);
    if (c->state == INNER_HANDSHAKE)
        read_some(c);
    else if (c->tls)
        inner_flush(c);
    if (!c->dead && c->tls && !c->x && c->close_after && buf_len(&c->out) == 0)
        linger(c);
    else if (!c->dead && c->x)
        offer_room(c);
    else if (!c->dead && c->state != INNER_LINGER)
        inner_kick(c);                   /* requests that waited for room for their answers */
    inner_leave(c);
}

static void on_close(void *ctx, const struct err *why)
{
    struct inner *c = ctx;
    (void)why;
    inner_close(c);
}

/* ---- the front ---- */

static int pipe_read(void *ctx, void *p, size_t n, size_t *ret_n)
{
    struct carrier *c = ctx;
    return c->ops->read(c, p, n, ret_n);
}

static int pipe_write(void *ctx, const void *p, size_t n, size_t *ret_n)
{
    struct carrier *c = ctx;
    return c->ops->write(c, p, n, ret_n);
}

void front_accept(struct front *f, struct carrier *take)
{
    struct tls *tls = NULL;
    struct err e = { 0 };
    struct tls_io io = { pipe_read, pipe_write, take };
    bool full = f->n_conns >= f->limits.conns_max;
    if (full)
        metric_add(&m_full, 1);
    if (full || f->draining || !f->served || tls_accept_io(f->served->tls, &io, &tls, &e) < 0) {
        log_debug("gateway.not_accepted", "client=%s connections=%zu draining=%d", take->ops->peer(take), f->n_conns, f->draining);
        take->ops->free(take);
        return;
    }
    struct inner *c = xcalloc(1, sizeof *c);
    c->f = f;
    c->carrier = take;
    c->tls = tls;
    c->served = served_ref(f->served);
    buf_init(&c->in, FRONT_IN_MAX);
    buf_init(&c->out, FRONT_OUT_MAX + HEADERS_OUT_MAX);
    list_init(&c->dirty);
    list_add_tail(&f->conns, &c->node);
    f->n_conns++;
    metric_add(&m_accepted, 1);
    metric_set(&m_conns, (int64_t)f->n_conns);
    take->on_readable = on_readable;
    take->on_writable = on_writable;
    take->on_close = on_close;
    take->ctx = c;
    inner_deadline(c, f->limits.head_ms);
    inner_kick(c);                       /* bytes may be there already */
}

struct front *front_new(struct ev *ev, const struct front_limits *l, struct trail *trail)
{
    struct front *f = xcalloc(1, sizeof *f);
    f->ev = ev;
    f->limits = *l;
    f->trail = trail;
    list_init(&f->conns);
    list_init(&f->dirty);
    return f;
}

void front_limits(struct front *f, const struct front_limits *l) { f->limits = *l; }
const struct route_table *front_routes(const struct front *f) { return f->routes; }
size_t front_conns(const struct front *f) { return f->n_conns; }
size_t front_requests(const struct front *f) { return f->n_requests; }

void front_serve(struct front *f, struct tls_ctx *take_tls, struct route_table *take_routes)
{
    struct served *s = xcalloc(1, sizeof *s);
    s->refs = 1;
    s->tls = take_tls;
    served_unref(f->served);
    f->served = s;
    route_table_free(f->routes);
    f->routes = take_routes;
}

static void on_drained(struct ev_timer *t)
{
    struct front *f = container_of(t, struct front, drained_timer);
    void (*cb)(void *) = f->drained;
    f->drained = NULL;
    if (cb)
        cb(f->drained_ctx);
}

void front_drain(struct front *f, void (*cb)(void *ctx), void *ctx)
{
    f->draining = true;
    f->drained = cb;
    f->drained_ctx = ctx;
    f->drained_timer.cb = on_drained;
    list_foreach(c, &f->conns, struct inner, node)
        if (c->state == INNER_IDLE || c->state == INNER_HANDSHAKE || c->state == INNER_LINGER)
            inner_close(c);
    if (f->n_conns == 0)
        ev_timer_set(f->ev, &f->drained_timer, 0, on_drained);
}

void front_free(struct front *f)
{
    if (!f)
        return;
    list_foreach(c, &f->conns, struct inner, node)
        inner_close(c);
    ev_timer_stop(&f->drained_timer);
    ev_timer_stop(&f->flush);
    while (f->spare) {
        struct exchange *x = f->spare;
        f->spare = x->next;
        buf_done(&x->head_mem);
        free(x);
    }
    served_unref(f->served);
    route_table_free(f->routes);
    free(f);
}
