/* down.c - the answer to the client: one JSON body, or a stream with back-pressure. Outlives its exchange while the HTTP server still calls back. */
#include <string.h>

#include "server/messages/private.h"

#define QUEUE_MAX (64 * MIB)                 /* one event is at most 40 MiB (http/sse.h); MESSAGES_QUEUE_MARK stops the source long before */
#define WAIT_MAX (QUEUE_MAX - MIB)
#define STATUS_GONE 499                      /* for the metrics only: nobody reads it */

struct down {
    struct messages_request r;
    struct down_events ev;
    char *request_id, *headers;
    struct http_stream *stream;
    struct buf wait;                         /* written before the stream was live */
    bool started, live, closed, ended;       /* http_stream_start() called; on_start came; the reader is gone; the owner is done */
};

struct down *down_new(const struct messages_request *r)
{
    struct down *d = xcalloc(1, sizeof *d);
    d->r = *r;
    d->request_id = str_dup(r->request_id);
    d->headers = str_dup(r->headers);
    d->r.request_id = d->r.headers = NULL;
    buf_init(&d->wait, WAIT_MAX);
    return d;
}

static void down_free(struct down *d)
{
    free(d->request_id);
    free(d->headers);
    buf_done(&d->wait);
    free(d);
}

static void gone(void *ctx)
{
    struct down *d = ctx;
    d->closed = true;
    if (!d->ended && d->ev.on_gone)
        d->ev.on_gone(d->ev.ctx);
}

int down_watch(struct down *d, const struct down_events *ev)
{
    d->ev = *ev;
    return http_req_watch(d->r.req, gone, d);
}

const char *down_request_id(const struct down *d) { return d->request_id; }
bool down_streaming(const struct down *d) { return d->started; }

/* ---- streamed ---- */

static void finish(struct down *d)
{
    struct http_stream *s = TAKE(d->stream);
    if (s)
        http_stream_end(s);
    down_free(d);
}

static void on_close(void *ctx, struct http_stream *s)
{
    (void)s;
    gone(ctx);                               /* the owner calls down_drop(), now or later */
}

static void on_start(void *ctx, struct http_stream *s)
{
    struct down *d = ctx;
    d->stream = s;
    d->live = true;
    if (buf_len(&d->wait) && http_stream_write(s, buf_data(&d->wait), buf_len(&d->wait)) != RC_OK)
        d->closed = true;                    /* it broke meanwhile: on_close follows */
    buf_done(&d->wait);
    buf_init(&d->wait, WAIT_MAX);
    if (d->ended)
        finish(d);
    else if (http_stream_queued(s) <= MESSAGES_QUEUE_MARK)
        d->ev.on_room(d->ev.ctx);
}

static void on_room(void *ctx, struct http_stream *s)
{
    struct down *d = ctx;
    (void)s;
    if (!d->ended)
        d->ev.on_room(d->ev.ctx);
}

void down_stream(struct down *d, int status, const char *content_type, const char *lines)
{
    AUTO_FREE char *all = str_printf("cache-control: no-cache\r\nx-accel-buffering: no\r\n%s%s", d->headers ? d->headers : "", lines ? lines : "");
    struct http_stream_conf c = {
        .status = status, .content_type = content_type, .headers = all, .queue_max = QUEUE_MAX, .on_start = on_start, .on_close = on_close,
        .on_room = on_room, .room_below = MESSAGES_QUEUE_MARK, .ctx = d,
    };
    d->started = true;
    (void)http_req_watch(d->r.req, NULL, NULL);
    http_stream_start(TAKE(d->r.req), &c);
    d->r.streamed(d->r.ctx);
}

bool down_write(struct down *d, const void *p, size_t n)
{
    if (d->closed)
        return false;
    if (!d->live) {
        d->closed = buf_put(&d->wait, p, n) != RC_OK;
        return true;
    }
    if (http_stream_write(d->stream, p, n) != RC_OK) {
        d->closed = true;                    /* broken (on_close comes), or the source took no notice of the mark: the reader must not see a gap */
        return false;
    }
    return http_stream_queued(d->stream) > MESSAGES_QUEUE_MARK;
}

void down_end(struct down *d)
{
    d->ended = true;
    if (d->live)
        finish(d);                           /* else on_start does */
}

/* ---- one body ---- */

static void answer(struct down *d, const struct messages_answer *a)
{
    d->ended = true;
    (void)http_req_watch(d->r.req, NULL, NULL);
    d->r.answer(d->r.ctx, a);
    down_free(d);
}

void down_answer(struct down *d, int status, const char *content_type, const char *lines, struct buf *body)
{
    answer(d, &(struct messages_answer){ .rc = RC_OK, .status = status, .content_type = content_type, .headers = lines, .body = body });
}

void down_refuse(struct down *d, int rc, const char *error_type, const struct err *e)
{
    answer(d, &(struct messages_answer){ .rc = rc, .error_type = error_type, .e = e });
}

void down_drop(struct down *d)
{
    if (d->started) {
        down_end(d);
        return;
    }
    struct buf none;
    buf_init(&none, 0);
    down_answer(d, STATUS_GONE, NULL, NULL, &none);
}
