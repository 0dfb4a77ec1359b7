/* http/sse.c - server-sent events, both ways. The decoder copies a line only when a cut goes through it. */
#include "http/sse.h"

#include <string.h>

#define SSE_SMALL_MAX (4 * KIB)     /* an event name or an id; longer ones are refused as a too large frame */
#define SSE_KEEP_MAX (64 * KIB)     /* memory kept from one frame to the next */

int sse_write(struct buf *out, const char *id, const char *event, const char *data, size_t n)
{
    size_t id_n = id ? strlen(id) : 0, ev_n = event ? strlen(event) : 0;
    size_t need = (id ? id_n + 5 : 0) + (ev_n ? ev_n + 8 : 0) + n + 8;
    char *p = buf_reserve(out, need);
    if (!p)
        return buf_room(out) < need ? RC_LIMIT : RC_NOMEM;
#define LIT(s) (memcpy(p, s, sizeof s - 1), p += sizeof s - 1)
#define VAR(s, len) (memcpy(p, s, len), p += len)
    if (id)
        LIT("id: "), VAR(id, id_n), LIT("\n");
    if (ev_n)
        LIT("event: "), VAR(event, ev_n), LIT("\n");
    LIT("data: ");
    if (n)
        VAR(data, n);
    LIT("\n\n");
    buf_commit(out, need);
    return RC_OK;
}

struct sse_decoder {
    struct buf line;            /* the part of a line that came so far; empty while lines come whole */
    struct buf data, event, id;
    size_t max;
    unsigned bom;               /* bytes of the leading BOM matched; BOM_DONE afterwards */
    bool has_data, has_id, skip_lf;
    int64_t retry_ms;
};

#define BOM "\xEF\xBB\xBF"
#define BOM_DONE 3u

struct sse_decoder *sse_decoder_new(size_t event_max)
{
    struct sse_decoder *d = xcalloc(1, sizeof *d);
    d->max = event_max;
    d->retry_ms = -1;
    buf_init(&d->line, event_max);
    buf_init(&d->data, event_max);
    buf_init(&d->event, SSE_SMALL_MAX);
    buf_init(&d->id, SSE_SMALL_MAX);
    return d;
}

void sse_decoder_free(struct sse_decoder *d)
{
    if (!d)
        return;
    buf_done(&d->line);
    buf_done(&d->data);
    buf_done(&d->event);
    buf_done(&d->id);
    free(d);
}

static int dispatch(struct sse_decoder *d, int (*cb)(void *, const struct sse_event *), void *ctx)
{
    int rc = RC_OK;
    if (d->has_data) {
        struct sse_event ev = {
            .event = buf_data(&d->event), .id = d->has_id ? buf_data(&d->id) : NULL, .data = buf_data(&d->data), .data_n = buf_len(&d->data),
        };
        rc = cb(ctx, &ev);
    }
    if (d->data.cap > SSE_KEEP_MAX)        /* a rare large frame does not keep its memory */
        buf_done(&d->data);
    buf_clear(&d->data);
    buf_clear(&d->event);
    d->has_data = false;
    return rc < 0 ? rc : RC_OK;
}

static int put(struct buf *b, struct slice v)
{
    return buf_put(b, v.p, v.n) < 0 ? RC_TOO_LARGE : RC_OK;
}

/* `whole`: the line lies in d->line, so that a first data line can keep that memory instead of being copied. */
static int field_data(struct sse_decoder *d, struct slice v, bool whole)
{
    if (!d->has_data && whole) {
        struct buf b = d->line;
        size_t skip = (size_t)(v.p - buf_data(&b));
        d->line = d->data;
        d->data = b;
        buf_consume(&d->data, skip);
        d->has_data = true;
        return RC_OK;
    }
    if (d->has_data)
        TRY(put(&d->data, SLICE("\n")));
    d->has_data = true;
    return put(&d->data, v);
}

/* Digits alone count, as the standard has it. */
static void field_retry(struct sse_decoder *d, struct slice v)
{
    char text[16];
    int64_t ms;
    if (v.n == 0 || v.n >= sizeof text)
        return;
    memcpy(text, v.p, v.n);
    text[v.n] = '\0';
    if (text[strspn(text, "0123456789")] == '\0' && str_to_i64(text, 0, INT64_MAX, &ms) == RC_OK)
        d->retry_ms = ms;
}

int64_t sse_retry_ms(const struct sse_decoder *d) { return d->retry_ms; }

static int on_line(struct sse_decoder *d, struct slice l, bool whole, int (*cb)(void *, const struct sse_event *), void *ctx)
{
    if (l.n == 0)
        return dispatch(d, cb, ctx);
    const char *colon = memchr(l.p, ':', l.n);
    if (colon == l.p)
        return RC_OK;                                   /* comment */
    struct slice k = { l.p, colon ? (size_t)(colon - l.p) : l.n };
    struct slice v = { l.p + k.n, 0 };
    if (colon)
        v = (struct slice){ colon + 1, l.n - k.n - 1 };
    if (v.n && v.p[0] == ' ')
        v = (struct slice){ v.p + 1, v.n - 1 };
    if (slice_eq(k, "data"))
        return field_data(d, v, whole);
    if (slice_eq(k, "event")) {
        buf_clear(&d->event);
        return put(&d->event, v);
    }
    if (slice_eq(k, "id") && !(v.n && memchr(v.p, '\0', v.n))) {
        buf_clear(&d->id);
        d->has_id = true;                               /* stays for later frames, as the standard has it */
        return put(&d->id, v);
    }
    if (slice_eq(k, "retry"))
        field_retry(d, v);
    return RC_OK;                                       /* unknown fields */
}

/* A part of a line, or with `end` its last part. */
static int take(struct sse_decoder *d, const char *p, size_t n, bool end, int (*cb)(void *, const struct sse_event *), void *ctx)
{
    size_t held = buf_len(&d->data) + buf_len(&d->event);
    if (held + buf_len(&d->line) + n > d->max)
        return RC_TOO_LARGE;
    if (end && buf_len(&d->line) == 0)
        return on_line(d, (struct slice){ p, n }, false, cb, ctx);
    if (buf_put(&d->line, p, n) < 0)
        return RC_TOO_LARGE;
    if (!end)
        return RC_OK;
    int rc = on_line(d, (struct slice){ buf_data(&d->line), buf_len(&d->line) }, true, cb, ctx);
    if (d->line.cap > SSE_KEEP_MAX)
        buf_done(&d->line);
    buf_clear(&d->line);
    return rc;
}

/* In windows, so that many short lines ended by CR alone cost linear time. */
static size_t line_end(const char *p, size_t n)
{
    for (size_t off = 0; off < n; off += 512) {
        size_t w = n - off < 512 ? n - off : 512;
        const char *lf = memchr(p + off, '\n', w);
        const char *cr = memchr(p + off, '\r', lf ? (size_t)(lf - p) - off : w);
        if (cr || lf)
            return (size_t)((cr ? cr : lf) - p);
    }
    return n;
}

int sse_feed(struct sse_decoder *d, const char *p, size_t n, int (*cb)(void *ctx, const struct sse_event *ev), void *ctx)
{
    while (n && d->bom < BOM_DONE) {
        if (p[0] != BOM[d->bom]) {
            size_t had = d->bom;                        /* it was text after all */
            d->bom = BOM_DONE;
            TRY(take(d, BOM, had, false, cb, ctx));
            break;
        }
        d->bom++, p++, n--;
    }
    while (n) {
        if (d->skip_lf && p[0] == '\n') {
            d->skip_lf = false;
            p++, n--;
            continue;
        }
        d->skip_lf = false;
        size_t i = line_end(p, n);
        bool end = i < n;
        TRY(take(d, p, i, end, cb, ctx));
        if (!end)
            break;
        d->skip_lf = p[i] == '\r';
        p += i + 1;
        n -= i + 1;
    }
    return RC_OK;
}
