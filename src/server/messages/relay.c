/* relay.c - a request passed through: the provider's bytes to the client as they come, a slow client slows the provider, a client that leaves ends the call. */
#include <string.h>

#include "log/log.h"
#include "server/messages/private.h"

#define TAIL_MAX (1 * MIB)       /* of an event that is not whole yet; a longer one goes on in parts */

struct relay {
    struct exchange *x;
    struct buf lines, tail;      /* header lines for the client; the beginning of the next event */
    char *content_type;
    int status;
    bool torn;                   /* a part of an event has been sent */
};

static void relay_free(struct relay *y)
{
    buf_done(&y->lines);
    buf_done(&y->tail);
    free(y->content_type);
    free(y);
}

/* Ends the exchange; `down` has been dealt with. */
static void over(struct relay *y)
{
    struct exchange *x = y->x;
    relay_free(y);
    messages_exchange_free(x);
}

static void cancel(struct exchange *x)
{
    struct model_raw *raw = TAKE(x->raw);
    if (raw)
        x->p->raw_cancel(raw);
    down_drop(x->down);
    over(x->more);
}

static void on_gone(void *ctx)
{
    struct relay *y = ctx;
    cancel(y->x);
}

static void on_room(void *ctx)
{
    struct relay *y = ctx;
    if (y->x->raw)
        y->x->p->raw_hold(y->x->raw, false);
}

static void on_head(void *ctx, int status, struct slice lines)
{
    struct relay *y = ctx;
    struct slice type = fetch_header(lines, "content-type");
    y->status = status;
    y->content_type = type.p && type.n ? str_ndup(type.p, type.n) : NULL;
    provider_lines(lines, &y->lines);
    if (status < 200 || status > 299 || !y->x->q.stream)
        return;                  /* comes in one piece */
    down_stream(y->x->down, status, y->content_type, buf_data(&y->lines));
}

/* Bytes of [p, p + n) up to the end of the last whole event. */
static size_t whole_events(const char *p, size_t n)
{
    for (size_t i = n; i > 1; i--) {
        if (p[i - 1] != '\n' && p[i - 1] != '\r')
            continue;
        if ((p[i - 1] == '\n' && p[i - 2] == '\n') || (p[i - 1] == '\r' && p[i - 2] == '\r') || (i > 3 && memcmp(p + i - 4, "\r\n\r\n", 4) == 0))
            return i;
    }
    return 0;
}

/* Whole events only, so that a provider that breaks off leaves no half event in front of the error that tells it. */
static void on_data(void *ctx, const char *p, size_t n)
{
    struct relay *y = ctx;
    bool hold;
    if (buf_len(&y->tail) == 0) {
        size_t k = whole_events(p, n);
        hold = k && down_write(y->x->down, p, k);
        if (k)
            y->torn = false;
        p += k;
        n -= k;
        (void)buf_put(&y->tail, p, n);
    } else {
        (void)buf_put(&y->tail, p, n);
        size_t k = whole_events(buf_data(&y->tail), buf_len(&y->tail));
        hold = k && down_write(y->x->down, buf_data(&y->tail), k);
        if (k)
            y->torn = false;
        buf_consume(&y->tail, k);
    }
    if (buf_len(&y->tail) > TAIL_MAX) {
        hold = down_write(y->x->down, buf_data(&y->tail), buf_len(&y->tail));
        buf_clear(&y->tail);
        y->torn = true;
    }
    if (hold)
        y->x->p->raw_hold(y->x->raw, true);
}

static void end_stream(struct relay *y, int rc, const struct err *e)
{
    struct down *d = y->x->down;
    if (rc == RC_OK) {
        if (buf_len(&y->tail))
            (void)down_write(d, buf_data(&y->tail), buf_len(&y->tail));
    } else {
        const char *type;
        struct err why;
        struct buf out;
        buf_init(&out, 128 * KIB);
        (void)provider_failure(rc, e, &type, &why);
        if (y->torn)
            (void)buf_puts(&out, "\n\n");
        provider_error_event(&out, type, why.msg, down_request_id(d));
        (void)down_write(d, buf_data(&out), buf_len(&out));
        buf_done(&out);
        log_warn("messages.broken", "request_id=%s why=%s", down_request_id(d), why.msg);
    }
    down_end(d);
}

static void on_done(void *ctx, int rc, int status, const struct buf *body, const struct err *e)
{
    struct relay *y = ctx;
    struct exchange *x = y->x;
    struct buf *b = (struct buf *)(uintptr_t)body;       /* buf_data() takes no const */
    x->raw = NULL;
    if (down_streaming(x->down)) {
        end_stream(y, rc, e);
    } else if (rc < 0) {
        const char *type;
        struct err why;
        rc = provider_failure(rc, e, &type, &why);
        down_refuse(x->down, rc, type, &why);
    } else {
        struct buf out;
        buf_init(&out, SIZE_MAX);
        int told = status;
        if (status >= 200 && status <= 299)
            (void)buf_put(&out, buf_data(b), buf_len(b));
        else
            told = provider_error(status, (struct slice){ buf_data(b), buf_len(b) }, down_request_id(x->down), &out);
        if (told != status)
            log_warn("messages.provider", "request_id=%s status=%d", down_request_id(x->down), status);
        down_answer(x->down, told, told == status && status <= 299 && y->content_type ? y->content_type : "application/json", buf_data(&y->lines), &out);
        buf_done(&out);
    }
    over(y);
}

void messages_relay_start(struct exchange *x)
{
    struct relay *y = xcalloc(1, sizeof *y);
    struct down_events events = { .on_gone = on_gone, .on_room = on_room, .ctx = y };
    y->x = x;
    x->more = y;
    x->cancel = cancel;
    buf_init(&y->lines, LINES_MAX);
    buf_init(&y->tail, SIZE_MAX);
    if (down_watch(x->down, &events) != RC_OK) {
        down_drop(x->down);
        over(y);
        return;
    }
    struct model_raw_request r = {
        .path = x->q.path, .headers = (const char *const *)x->q.headers, .n_headers = x->q.n_headers, .body = buf_data(&x->q.body), .body_n = buf_len(&x->q.body),
        .stream = x->q.stream, .on_head = on_head, .on_data = on_data, .on_done = on_done, .ctx = y,
    };
    x->raw = x->p->raw_start(x->self, &r);
}
