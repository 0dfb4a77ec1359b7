/* http/server.c - accepting, draining, and what requests show to the application. */
#include "http/server.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "http/server_internal.h"

#define ACCEPT_TURN 64              /* connections accepted before others are looked at */
#define ACCEPT_PAUSE_MS 100         /* after running out of descriptors or memory */

const struct http_limits http_limits_default = {
    .conns_max = 4096, .body_max = 32 * MIB, .bodies_max = 256 * MIB, .head_ms = 10000, .body_ms = 30000, .idle_ms = 75000, .write_ms = 60000,
};

METRIC_DEFINE(http_metric_requests, METRIC_COUNTER, "outwork_http_requests_total", "Requests whose head was accepted");
METRIC_DEFINE(http_metric_conns, METRIC_GAUGE, "outwork_http_connections", "Open client connections");
METRIC_DEFINE(http_metric_refused, METRIC_COUNTER, "outwork_http_refused_total", "Requests refused by the server itself: malformed, too large, too slow");
METRIC_DEFINE(http_metric_bodies, METRIC_GAUGE, "outwork_http_body_bytes", "Bytes of request bodies in memory");

void server_unref(struct http_server *s)
{
    if (--s->refs == 0)
        free(s);
}

const char *server_date(struct http_server *s)
{
    int64_t now = clock_now_ms() / 1000;
    if (now != s->date_s || !s->date[0]) {
        time_t t = (time_t)now;
        struct tm tm;
        s->date_s = now;
        if (!gmtime_r(&t, &tm) || !strftime(s->date, sizeof s->date, "%a, %d %b %Y %H:%M:%S GMT", &tm))
            s->date[0] = '\0';
    }
    return s->date;
}

/* ---- accepting ---- */

static bool accept_error_is_transient(int err)      /* concerns one connection only: accept(2) */
{
    return err == ECONNABORTED || err == EINTR || err == EPROTO || err == ENETDOWN || err == ENOPROTOOPT || err == EHOSTDOWN || err == ENONET ||
           err == EHOSTUNREACH || err == EOPNOTSUPP || err == ENETUNREACH || err == EPERM;
}

static void on_accept_again(struct ev_timer *t)
{
    struct http_server *s = container_of(t, struct http_server, accept_timer);
    s->full = false;
    ev_io_want(&s->listen_io, EV_READ);
}

/* At the limit the connection that has asked nothing for the longest time makes room, so that silent ones do not keep others out; not one that came just now. */
static bool make_room(struct http_server *s)
{
    struct conn *oldest = NULL;
    list_foreach (c, &s->conns, struct conn, node)
        if ((c->state == CONN_HANDSHAKE || c->state == CONN_IDLE || c->state == CONN_HEAD) && (!oldest || c->since_ms < oldest->since_ms))
            oldest = c;
    if (!oldest || ev_now_ms(s->ev) - oldest->since_ms < HTTP_PATIENCE_MS)
        return false;
    conn_close(oldest);
    return true;
}

static void on_accept(struct ev_io *io, unsigned got)
{
    (void)got;
    struct http_server *s = container_of(io, struct http_server, listen_io);
    atomic_store_explicit(&s->loop_thread, pthread_self(), memory_order_relaxed);
    for (int i = 0; i < ACCEPT_TURN; i++) {
        bool full = s->n_conns >= s->conf.limits.conns_max;
        if (full && i > 0)
            return;                                 /* whether another one waits is told by the loop: no room is made for nobody */
        if (full && !make_room(s)) {
            s->full = true;
            ev_io_want(io, 0);                      /* the next ones wait in the backlog */
            ev_timer_set(s->ev, &s->accept_timer, ACCEPT_PAUSE_MS, on_accept_again);
            return;
        }
        struct net_addr peer = { .len = sizeof peer.ss };
        int fd = accept4(s->listen_fd, (struct sockaddr *)&peer.ss, &peer.len, SOCK_CLOEXEC | SOCK_NONBLOCK), one = 1;
        if (fd < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (fd < 0 && accept_error_is_transient(errno))
            continue;
        if (fd < 0) {
            ev_io_want(io, 0);
            ev_timer_set(s->ev, &s->accept_timer, ACCEPT_PAUSE_MS, on_accept_again);
            return;
        }
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);   /* refused by Unix sockets, which need it not */
        conn_new(s, fd, &peer);
    }
}

static void on_drain_done(struct ev_timer *t)
{
    struct http_server *s = container_of(t, struct http_server, drain_done);
    ev_timer_stop(&s->drain_timer);
    s->drain_cb(s->drain_ctx);
}

static void drain_check(struct http_server *s)
{
    if (!s->draining || s->closed || s->done_armed || s->n_conns)
        return;
    s->done_armed = true;
    ev_timer_set(s->ev, &s->drain_done, 0, on_drain_done);
}

void server_conn_gone(struct http_server *s)
{
    s->n_conns--;
    metric_add(&http_metric_conns, -1);
    if (s->listen_io.ev && (s->full || !ev_timer_armed(&s->accept_timer))) {
        ev_timer_stop(&s->accept_timer);
        s->full = false;
        ev_io_want(&s->listen_io, EV_READ);
    }
    drain_check(s);
}

/* ---- start, drain, end ---- */

static int64_t or_default(int64_t v, int64_t dflt)
{
    return v > 0 ? v : dflt;
}

int http_server_new(struct ev *ev, const struct http_server_conf *c, int listen_fd, struct http_server **ret, struct err *e)
{
    struct http_server *s = xcalloc(1, sizeof *s);
    const struct http_limits *d = &http_limits_default;
    struct http_limits *l = &s->conf.limits;
    s->conf = *c;
    l->conns_max = l->conns_max ? l->conns_max : d->conns_max;
    l->body_max = l->body_max ? l->body_max : d->body_max;
    l->bodies_max = l->bodies_max ? l->bodies_max : d->bodies_max;
    l->head_ms = or_default(l->head_ms, d->head_ms);
    l->body_ms = or_default(l->body_ms, d->body_ms);
    l->idle_ms = or_default(l->idle_ms, d->idle_ms);
    l->write_ms = or_default(l->write_ms, d->write_ms);
    s->refs = 1;
    s->ev = ev;
    s->listen_fd = listen_fd;
    s->loop_thread = pthread_self();
    list_init(&s->conns);
    list_init(&s->dirty);
    if (ev_io_start(ev, &s->listen_io, listen_fd, EV_READ, on_accept) < 0) {
        free(s);
        return err_set(e, RC_IO, "watch the listening socket");
    }
    *ret = s;
    return RC_OK;
}

static void stop_accepting(struct http_server *s)
{
    ev_io_stop(&s->listen_io);
    ev_timer_stop(&s->accept_timer);
    if (s->listen_fd >= 0)
        (void)close(s->listen_fd);
    s->listen_fd = -1;
}

/* Calls `fn` on each connection, whatever `fn` closes meanwhile. */
static void each_conn(struct http_server *s, void (*fn)(struct conn *c))
{
    struct list todo;
    list_init(&todo);
    while (!list_empty(&s->conns)) {
        struct list *n = s->conns.next;
        list_del(n);
        list_add_tail(&todo, n);
    }
    while (!list_empty(&todo)) {
        struct conn *c = list_first(&todo, struct conn, node);
        list_del(&c->node);
        list_add_tail(&s->conns, &c->node);
        conn_enter(c);
        fn(c);
        conn_leave(c);
    }
}

static void drain_conn(struct conn *c)
{
    if ((c->state == CONN_IDLE && buf_len(&c->in) == 0) || c->state == CONN_HANDSHAKE)
        conn_close(c);
    else if (c->state == CONN_STREAM)
        stream_drain(c->stream, false);
}

static void close_conn(struct conn *c)
{
    if (c->state == CONN_STREAM)
        stream_drain(c->stream, true);
    if (!c->dead)
        conn_close(c);
}

static void on_grace_over(struct ev_timer *t)
{
    struct http_server *s = container_of(t, struct http_server, drain_timer);
    each_conn(s, close_conn);
}

void http_server_drain(struct http_server *s, int64_t grace_ms, void (*cb)(void *ctx), void *ctx)
{
    if (s->draining)
        return;
    s->draining = true;
    s->drain_cb = cb;
    s->drain_ctx = ctx;
    stop_accepting(s);
    ev_timer_set(s->ev, &s->drain_timer, grace_ms, on_grace_over);
    each_conn(s, drain_conn);
    drain_check(s);
}

void http_server_free(struct http_server *s)
{
    if (!s)
        return;
    s->closed = true;
    stop_accepting(s);
    each_conn(s, conn_close);
    ev_timer_stop(&s->drain_timer);
    ev_timer_stop(&s->drain_done);
    server_unref(s);
}

size_t http_server_conns(const struct http_server *s)
{
    return s->n_conns;
}

/* ---- requests ---- */

void req_free(struct http_req *r)
{
    struct http_server *s = r->s;
    s->bodies -= r->body_charged;
    if (r->body_charged)
        metric_add(&http_metric_bodies, -(int64_t)r->body_charged);
    buf_done(&r->body);
    buf_done(&r->out);
    buf_done(&r->reply_body);
    arena_free(r->arena);       /* holds `r`, too */
    server_unref(s);
}

const struct http_head *http_req_head(const struct http_req *r) { return &r->head; }
struct slice http_req_path(const struct http_req *r) { return r->path; }
struct slice http_req_query(const struct http_req *r) { return r->query; }
int http_req_watch(struct http_req *r, void (*cb)(void *ctx), void *ctx)
{
    if (cb && http_req_gone(r))
        return RC_CLOSED;
    r->on_gone = cb;
    r->gone_ctx = ctx;
    return RC_OK;
}

void http_req_take_body(struct http_req *r, struct buf *ret)
{
    *ret = r->body;
    buf_init(&r->body, 0);
}

struct slice http_req_body(const struct http_req *r) { return (struct slice){ buf_data((struct buf *)(uintptr_t)&r->body), buf_len(&r->body) }; }
struct arena *http_req_arena(struct http_req *r) { return r->arena; }
const struct net_addr *http_req_peer(const struct http_req *r) { return &r->peer; }
bool http_req_gone(const struct http_req *r) { return atomic_load_explicit(&r->gone, memory_order_relaxed); }
