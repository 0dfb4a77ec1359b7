/* http/server_stream.c - streaming answers. What is written in one turn of the loop leaves in one send at its end. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>

#include "http/server_internal.h"

#define FRAME_MAX 24                    /* chunk size line and line end */
#define FLUSH_NOW (64 * KIB)            /* queued bytes that do not wait for the end of the turn */
#define QUEUE_MAX (1 * GIB)

METRIC_DEFINE(metric_streams, METRIC_GAUGE, "outwork_sse_streams", "Open streaming answers");
METRIC_DEFINE(metric_bytes, METRIC_COUNTER, "outwork_sse_bytes_total", "Bytes written to streaming answers");

static void stream_free(struct http_stream *st)
{
    struct http_server *s = st->s;
    list_del(&st->dirty);
    free(st);
    server_unref(s);
}

static void tell_closed(struct http_stream *st)
{
    if (st->close_told || st->ended)
        return;
    st->close_told = true;
    if (st->on_close)
        st->on_close(st->ctx, st);
}

void stream_conn_closed(struct conn *c)
{
    struct http_stream *st = TAKE(c->stream);
    st->conn = NULL;
    list_del(&st->dirty);
    if (!st->in_callback)
        tell_closed(st);
}

/* on_start and on_drain may end the stream, or its connection may break meanwhile. */
static void guarded(struct http_stream *st, void (*fn)(void *ctx, struct http_stream *s))
{
    st->in_callback = true;
    if (fn)
        fn(st->ctx, st);
    st->in_callback = false;
    if (st->ended)
        stream_free(st);
    else if (!st->conn)
        tell_closed(st);
}

static void stream_apply(void *arg)
{
    struct http_req *r = arg;
    struct conn *c = r->conn;
    struct http_server *s = r->s;
    struct http_stream *st = xcalloc(1, sizeof *st);
    void (*on_start)(void *, struct http_stream *) = r->stream.on_start;
    st->s = s;
    st->on_close = r->stream.on_close;
    st->on_drain = r->stream.on_drain;
    st->on_room = r->stream.on_room;
    st->room_below = r->stream.room_below;
    st->ctx = r->stream.ctx;
    st->queue_max = r->stream.queue_max < QUEUE_MAX ? r->stream.queue_max : QUEUE_MAX;
    st->in_callback = true;                 /* on_start comes first, also when the connection breaks before */
    st->sse = r->sse;
    st->chunked = r->head.minor == 1;
    list_init(&st->dirty);
    s->refs++;
    metric_add(&metric_streams, 1);
    if (c) {
        conn_enter(c);
        if (st->chunked)
            buf_puts(&r->out, "transfer-encoding: chunked\r\n");
        reply_head_end(s, &r->out, &r->head, true);
        c->req = NULL;
        c->close_after = true;
        struct buf head = r->out, none;
        buf_init(&none, 0);
        r->out = none;
        buf_done(&c->in);
        if (!buf_ok(&head) || r->head.method == HTTP_HEAD) {
            conn_answer(c, &head, &none);       /* no body will follow: the stream is closed from the start */
        } else {
            int unsent = (int)HTTP_STREAM_UNSENT;
            (void)setsockopt(c->fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
            st->conn = c;
            c->stream = st;
            c->state = CONN_STREAM;
            conn_deadline(c, -1);
            buf_done(&c->out);
            c->out = head;
            conn_flush(c);
        }
    }
    req_free(r);
    guarded(st, on_start);
    if (c && !c->dead && c->stream && s->draining)
        stream_drain(c->stream, false);
    if (c)
        conn_leave(c);
}

void http_stream_start(struct http_req *r, const struct http_stream_conf *conf)
{
    reply_head_begin(&r->out, conf->status, conf->content_type, conf->headers);
    r->sse = conf->content_type && str_prefix(conf->content_type, "text/event-stream");
    r->stream = *conf;
    r->stream.content_type = r->stream.headers = NULL;      /* borrowed: not to be used later */
    ev_post(r->s->ev, stream_apply, r);
}

/* ---- writing ---- */

static void stream_flush(struct http_stream *st)
{
    struct conn *c = st->conn;
    list_del(&st->dirty);
    if (c) {
        conn_enter(c);
        conn_flush(c);
        conn_leave(c);
    }
}

static void flush_all(void *arg)
{
    struct http_server *s = arg;
    s->flush_posted = false;
    while (!list_empty(&s->dirty))
        stream_flush(list_first(&s->dirty, struct http_stream, dirty));
    server_unref(s);
}

static void flush_later(struct http_stream *st)
{
    struct http_server *s = st->s;
    if (list_empty(&st->dirty))
        list_add_tail(&s->dirty, &st->dirty);
    if (s->flush_posted)
        return;
    s->flush_posted = true;
    s->refs++;
    ev_post(s->ev, flush_all, s);
}

static void queue_init(struct http_stream *st)      /* the queue has no memory while nothing waits */
{
    struct buf *out = &st->conn->out;
    if (!out->mem)
        buf_init(out, st->queue_max + 2 * FRAME_MAX);
    else if (out->max < st->queue_max + 2 * FRAME_MAX + HTTP_REPLY_HEAD_MAX)
        out->max = st->queue_max + 2 * FRAME_MAX + HTTP_REPLY_HEAD_MAX;         /* the head of the answer is still in it */
}

int http_stream_write(struct http_stream *st, const void *p, size_t n)
{
    struct conn *c = st->conn;
    if (!c || c->broken)
        return RC_CLOSED;
    if (n == 0)
        return RC_OK;
    char frame[FRAME_MAX];
    int k = st->chunked ? snprintf(frame, sizeof frame, "%zx\r\n", n) : 0;
    size_t need = n + (st->chunked ? (size_t)k + 2 : 0);
    if (need > st->queue_max)
        return RC_LIMIT;
    if (buf_len(&c->out) > st->queue_max - need || buf_len(&c->out) >= FLUSH_NOW) {
        int rc = conn_send(c);
        if (rc < 0 && rc != RC_AGAIN) {
            c->broken = true;               /* closed by a kick: on_close never runs inside this call */
            conn_kick(c);
            return RC_CLOSED;
        }
    }
    if (buf_len(&c->out) > st->queue_max - need)
        return RC_LIMIT;
    queue_init(st);
    if (!buf_reserve(&c->out, need))
        return RC_LIMIT;
    (void)buf_put(&c->out, frame, (size_t)k);
    (void)buf_put(&c->out, p, n);
    if (st->chunked)
        (void)buf_put(&c->out, "\r\n", 2);
    metric_add(&metric_bytes, (int64_t)n);
    st->full = st->full || buf_len(&c->out) > st->room_below;
    flush_later(st);
    return RC_OK;
}

/* on_room never runs inside a write or a flush: the kick brings it. */
void stream_sent(struct http_stream *st)
{
    if (!st->full || buf_len(&st->conn->out) > st->room_below)
        return;
    st->full = false;
    st->room_due = st->on_room != NULL;
    if (st->room_due)
        conn_kick(st->conn);
}

void stream_room(struct http_stream *st)
{
    if (!st->room_due || st->in_callback)
        return;
    st->room_due = false;
    st->full = buf_len(&st->conn->out) > st->room_below;        /* written to meanwhile: not yet */
    if (!st->full)
        guarded(st, st->on_room);
}

size_t http_stream_queued(const struct http_stream *st)
{
    return st->conn ? buf_len(&st->conn->out) : 0;
}

void http_stream_end(struct http_stream *st)
{
    if (st->ended)
        return;
    struct conn *c = st->conn;
    st->ended = true;
    metric_add(&metric_streams, -1);
    list_del(&st->dirty);
    if (c) {
        queue_init(st);
        st->conn = NULL;
        if (st->chunked)
            (void)buf_puts(&c->out, "0\r\n\r\n");
        c->stream = NULL;
        c->state = CONN_WRITING;
        conn_enter(c);
        conn_flush(c);
        conn_leave(c);
    }
    if (!st->in_callback)
        stream_free(st);
}

void stream_drain(struct http_stream *st, bool last)
{
    static const char bye[] = ": the server is going away\n\n";
    struct conn *c = st->conn;
    if (!last) {
        if (st->on_drain && !st->in_callback)
            guarded(st, st->on_drain);
        return;
    }
    /* Time is up: a clean end, as far as the socket takes it at once. */
    if (st->sse)
        (void)http_stream_write(st, bye, sizeof bye - 1);
    queue_init(st);
    if (st->chunked)
        (void)buf_puts(&c->out, "0\r\n\r\n");
    conn_flush(c);
}
