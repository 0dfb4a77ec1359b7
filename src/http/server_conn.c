/* http/server_conn.c - one connection: its events, its time limits, its reading, its end. */
#include <errno.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "http/server_internal.h"

/* ---- time ---- */

static void on_timer(struct ev_timer *t);

/* The timer is moved only when it would be too late, and re-armed when it fires too early: a busy connection never touches the heap. */
void conn_deadline(struct conn *c, int64_t in_ms)
{
    if (in_ms < 0) {
        c->deadline_ms = INT64_MAX;
        return;
    }
    c->deadline_ms = ev_now_ms(c->s->ev) + in_ms;
    if (!ev_timer_armed(&c->timer) || c->timer_at_ms > c->deadline_ms) {
        c->timer_at_ms = c->deadline_ms;
        ev_timer_set(c->s->ev, &c->timer, in_ms, on_timer);
    }
}

static void on_timer(struct ev_timer *t)
{
    struct conn *c = container_of(t, struct conn, timer);
    int64_t left = c->deadline_ms == INT64_MAX ? INT64_MAX : c->deadline_ms - ev_now_ms(c->s->ev);
    if (left == INT64_MAX)
        return;
    if (left > 0) {
        conn_deadline(c, left);
        return;
    }
    /* The socket reports itself writable only when a large part of its buffer is free: a slow reader makes progress that shows only here. */
    if ((c->state == CONN_WRITING || c->state == CONN_STREAM) && conn_unread(c) < c->unread) {
        c->unread = conn_unread(c);
        conn_deadline(c, c->s->conf.limits.write_ms);
        return;
    }
    conn_enter(c);
    if (c->state == CONN_HEAD)
        conn_refuse(c, 408, "the request head took too long");
    else if (c->state == CONN_BODY)
        conn_refuse(c, 408, "the request body took too long");
    else
        conn_close(c);      /* handshake, idle, linger, or a peer that does not read */
    conn_leave(c);
}

int conn_unread(const struct conn *c)
{
    int n = 0;
    return ioctl(c->fd, SIOCOUTQ, &n) < 0 ? 0 : n;
}

/* ---- life ---- */

void conn_enter(struct conn *c)
{
    c->busy++;
}

static bool wants_read(const struct conn *c)
{
    if (c->eof)
        return false;
    return (c->state != CONN_HANDLING && c->state != CONN_WRITING) || buf_len(&c->in) < HTTP_AHEAD_MAX;
}

void conn_leave(struct conn *c)
{
    if (--c->busy > 0)
        return;
    if (c->dead) {
        struct http_server *s = c->s;
        buf_done(&c->in);
        buf_done(&c->out);
        buf_done(&c->body);
        free(c);
        server_unref(s);
        return;
    }
    unsigned want = 0;
    if (c->state == CONN_HANDSHAKE) {
        want = c->rd_want;
    } else {
        want |= wants_read(c) ? c->rd_want : 0;
        want |= buf_len(&c->out) || buf_len(&c->body) ? c->wr_want : 0;
    }
    ev_io_want(&c->io, want);
}

static void req_gone(struct http_req *r)
{
    void (*tell)(void *) = TAKE(r->on_gone);
    atomic_store_explicit(&r->gone, true, memory_order_relaxed);
    if (tell)
        tell(r->gone_ctx);                  /* may answer: `r` is not to be used after */
}

void conn_close(struct conn *c)
{
    if (c->dead)
        return;
    c->dead = true;
    ev_io_stop(&c->io);
    ev_timer_stop(&c->timer);
    ev_timer_stop(&c->kick);
    tls_free(c->tls);
    c->tls = NULL;
    (void)close(c->fd);
    list_del(&c->node);
    server_conn_gone(c->s);
    struct http_req *r = TAKE(c->req);
    if (r && c->state == CONN_HANDLING) {
        r->conn = NULL;                     /* the application has it; its answer will be dropped */
        req_gone(r);
    } else if (r) {
        req_free(r);
    }
    if (c->stream)
        stream_conn_closed(c);
    if (c->busy == 0) {
        c->busy = 1;
        conn_leave(c);
    }
}

/* ---- reading ---- */

/* RC_OK and *ret_n > 0; RC_AGAIN; RC_CLOSED at the peer's end; another code: broken. */
static int conn_recv(struct conn *c, char *p, size_t n, size_t *ret_n)
{
    if (c->tls) {
        unsigned want = EV_READ;
        int rc = tls_read(c->tls, p, n, ret_n, &want, NULL);
        c->rd_want = rc == RC_AGAIN ? want : EV_READ;
        return rc;
    }
    ssize_t got;
    do {
        got = recv(c->fd, p, n, 0);
    } while (got < 0 && errno == EINTR);
    if (got > 0) {
        *ret_n = (size_t)got;
        return RC_OK;
    }
    return got == 0 ? RC_CLOSED : errno == EAGAIN || errno == EWOULDBLOCK ? RC_AGAIN : RC_IO;
}

static void on_eof(struct conn *c)
{
    c->eof = true;
    switch (c->state) {
    case CONN_HANDLING:         /* maybe only half-closed: the answer is still tried */
        req_gone(c->req);
        break;
    case CONN_WRITING:
        break;
    case CONN_ILLEGAL:
    case CONN_HANDSHAKE:
    case CONN_IDLE:
    case CONN_HEAD:
    case CONN_BODY:
    case CONN_STREAM:
    case CONN_LINGER:
    default:
        conn_close(c);
    }
}

/* Bytes that were read: processed from where they lie; only what is left over is kept. */
static void conn_input(struct conn *c, const char *p, size_t n)
{
    if (c->state == CONN_STREAM || c->state == CONN_LINGER || c->close_after)
        return;                             /* nothing after this answer will be served */
    if (buf_len(&c->in) == 0) {
        size_t used = conn_process(c, p, n);
        if (!c->dead && used < n && !c->close_after && buf_put(&c->in, p + used, n - used) < 0)
            conn_close(c);
        return;
    }
    if (buf_put(&c->in, p, n) < 0) {        /* cannot be: HTTP_IN_MAX covers what we read */
        conn_close(c);
        return;
    }
    size_t used = conn_process(c, buf_data(&c->in), buf_len(&c->in));
    if (!c->dead && buf_len(&c->in))        /* a refusal has dropped it */
        buf_consume(&c->in, used);
    if (!c->dead && buf_len(&c->in) == 0)
        buf_done(&c->in);
}

/* A body of known length goes straight to its place. */
static int recv_body(struct conn *c, size_t *ret_n)
{
    struct http_req *r = c->req;
    size_t want = r->body_left < (int64_t)HTTP_SCRATCH ? (size_t)r->body_left : HTTP_SCRATCH;
    char *to = buf_reserve(&r->body, want);
    if (!to)
        return RC_NOMEM;
    int rc = conn_recv(c, to, want, ret_n);
    if (rc == RC_OK) {
        buf_commit(&r->body, *ret_n);
        r->body_left -= (int64_t)*ret_n;
        conn_body_progress(c, *ret_n);
        if (!c->dead && c->state == CONN_BODY)
            conn_body_end_if_whole(c);
    }
    return rc;
}

static void conn_read(struct conn *c)
{
    c->tls_more = false;
    for (size_t total = 0; total < HTTP_READ_TURN && !c->dead && wants_read(c);) {
        bool direct = c->state == CONN_BODY && !c->req->head.chunked && buf_len(&c->in) == 0;
        size_t n = 0;
        int rc = direct ? recv_body(c, &n) : conn_recv(c, c->s->scratch, HTTP_SCRATCH, &n);
        if (rc == RC_AGAIN)
            return;
        if (rc == RC_CLOSED) {
            on_eof(c);
            return;
        }
        if (rc < 0) {
            conn_close(c);
            return;
        }
        total += n;
        if (!direct)
            conn_input(c, c->s->scratch, n);
        if (!direct && !c->tls && n < HTTP_SCRATCH)
            return;                         /* a short read: there is no more now */
    }
    c->tls_more = c->tls != NULL;           /* bytes may lie in OpenSSL, where epoll does not see them */
    if (c->tls_more && !c->dead && wants_read(c))
        conn_kick(c);
}

/* ---- events ---- */

static void conn_handshake(struct conn *c)
{
    int rc = tls_handshake(c->tls, &c->rd_want, NULL);
    if (rc == RC_AGAIN)
        return;
    if (rc < 0) {
        conn_close(c);
        return;
    }
    c->rd_want = EV_READ;
    c->state = CONN_IDLE;
    conn_deadline(c, c->s->conf.limits.head_ms);
    conn_read(c);
}

static bool is_set(unsigned got, unsigned want) { return (got & want) != 0; }

static void on_conn(struct ev_io *io, unsigned got)
{
    struct conn *c = container_of(io, struct conn, io);
    conn_enter(c);
    if (c->state == CONN_HANDSHAKE) {
        conn_handshake(c);
    } else {
        if (is_set(got, c->wr_want) && (buf_len(&c->out) || buf_len(&c->body)))
            conn_flush(c);
        if (!c->dead && is_set(got, c->rd_want) && wants_read(c))
            conn_read(c);
    }
    /* A reset, or both directions closed. While a request is on its way in, reading comes first and finds the end itself. */
    if (!c->dead && is_set(got, EV_HUP) && (!is_set(got, EV_READ) || !wants_read(c)))
        conn_close(c);
    conn_leave(c);
}

static void on_kick(struct ev_timer *t)
{
    struct conn *c = container_of(t, struct conn, kick);
    conn_enter(c);
    if (c->broken) {
        conn_close(c);
    } else if (c->state == CONN_IDLE || c->state == CONN_HEAD || c->state == CONN_BODY) {
        size_t n = buf_len(&c->in);
        if (n) {
            size_t used = conn_process(c, buf_data(&c->in), n);
            if (!c->dead && buf_len(&c->in))
                buf_consume(&c->in, used);
            if (!c->dead && buf_len(&c->in) == 0)
                buf_done(&c->in);
        }
        if (!c->dead && c->eof && (c->state == CONN_IDLE || c->state == CONN_HEAD || c->state == CONN_BODY))
            conn_close(c);                  /* the rest will never come */
    }
    if (!c->dead && c->stream)
        stream_room(c->stream);
    if (!c->dead && c->tls_more && wants_read(c))
        conn_read(c);
    conn_leave(c);
}

void conn_kick(struct conn *c)
{
    if (!ev_timer_armed(&c->kick))
        ev_timer_set(c->s->ev, &c->kick, 0, on_kick);
}

void conn_new(struct http_server *s, int fd, const struct net_addr *peer)
{
    struct conn *c = xcalloc(1, sizeof *c);
    c->s = s;
    c->fd = fd;
    c->peer = *peer;
    c->first = true;
    c->rd_want = EV_READ;
    c->wr_want = EV_WRITE;
    c->state = s->conf.tls ? CONN_HANDSHAKE : CONN_IDLE;
    buf_init(&c->in, HTTP_IN_MAX);
    if ((s->conf.tls && tls_accept(s->conf.tls, fd, &c->tls, NULL) < 0) || ev_io_start(s->ev, &c->io, fd, EV_READ, on_conn) < 0) {
        tls_free(c->tls);
        free(c);
        (void)close(fd);
        return;
    }
    s->refs++;
    s->n_conns++;
    metric_add(&http_metric_conns, 1);
    list_add_tail(&s->conns, &c->node);
    c->since_ms = ev_now_ms(s->ev);
    conn_deadline(c, s->conf.limits.head_ms);
}
