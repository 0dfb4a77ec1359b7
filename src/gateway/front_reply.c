/* gateway/front_reply.c - answers out: what upstream kinds call (exchange.h), and the gateway's own answers. Bytes wait in the connection's queue until a full
 * TLS record is there, the answer ends, or the turn ends. */
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "gateway/front_internal.h"

static const char *reason_of(int status)
{
    static const struct { int status; const char *text; } rows[] = {
        { 200, "OK" }, { 201, "Created" }, { 202, "Accepted" }, { 204, "No Content" }, { 206, "Partial Content" }, { 301, "Moved Permanently" }, { 302, "Found" },
        { 303, "See Other" }, { 304, "Not Modified" }, { 307, "Temporary Redirect" }, { 308, "Permanent Redirect" }, { 400, "Bad Request" }, { 401, "Unauthorized" },
        { 403, "Forbidden" }, { 404, "Not Found" }, { 405, "Method Not Allowed" }, { 406, "Not Acceptable" }, { 408, "Request Timeout" }, { 409, "Conflict" },
        { 410, "Gone" }, { 413, "Content Too Large" }, { 415, "Unsupported Media Type" }, { 421, "Misdirected Request" }, { 422, "Unprocessable Content" },
        { 429, "Too Many Requests" }, { 431, "Request Header Fields Too Large" }, { 500, "Internal Server Error" }, { 501, "Not Implemented" }, { 502, "Bad Gateway" },
        { 503, "Service Unavailable" }, { 504, "Gateway Timeout" },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (rows[i].status == status)
            return rows[i].text;
    return "";
}

void exchange_reply(struct exchange *x, int status, const char *headers, size_t n, int64_t length)
{
    struct inner *c = x->c;
    struct buf *out = &c->out;
    x->replied = true;
    x->status = status;
    x->no_body = x->head.method == HTTP_HEAD || status == 204 || status == 304;
    x->chunked_out = !x->no_body && length < 0 && x->head.minor == 1;
    if (!x->no_body && length < 0 && x->head.minor == 0)
        c->close_after = true;           /* HTTP/1.0: the end of the connection is the end of the body */
    if ((x->has_body && !x->body_ended && !x->call) || c->f->draining)
        c->close_after = true;
    (void)buf_printf(out, "HTTP/1.1 %d %s\r\n", status, reason_of(status));
    (void)buf_put(out, headers, n);
    if (x->chunked_out)
        (void)buf_puts(out, "transfer-encoding: chunked\r\n");
    else if (length >= 0 && status != 204)
        (void)buf_printf(out, "content-length: %lld\r\n", (long long)length);
    if (c->close_after)
        (void)buf_puts(out, "connection: close\r\n");
    else if (x->head.minor == 0)
        (void)buf_puts(out, "connection: keep-alive\r\n");
    (void)buf_puts(out, "\r\n");
    inner_dirty(c);
}

size_t exchange_write(struct exchange *x, const void *p, size_t n)
{
    struct inner *c = x->c;
    const char *at = p;
    size_t left = n;
    if (x->no_body)
        return n;                        /* HEAD: there should be none */
    inner_enter(c);
    while (left && !c->dead) {
        size_t waits = buf_len(&c->out), room = waits + FRONT_CHUNK_ROOM < FRONT_OUT_MAX ? FRONT_OUT_MAX - waits - FRONT_CHUNK_ROOM : 0;
        size_t take = left < room ? left : room;
        if (!take) {
            x->wants_resume = true;
            break;
        }
        if (x->chunked_out)
            (void)buf_printf(&c->out, "%zx\r\n", take);
        (void)buf_put(&c->out, at, take);
        if (x->chunked_out)
            (void)buf_puts(&c->out, "\r\n");
        at += take;
        left -= take;
        x->bytes_out += take;
        if (buf_len(&c->out) >= FRONT_FLUSH_AT)
            inner_flush(c);
    }
    if (!c->dead && buf_len(&c->out))
        inner_dirty(c);
    bool dead = c->dead;
    inner_leave(c);
    return dead ? n : n - left;
}

void exchange_end(struct exchange *x)
{
    struct inner *c = x->c;
    inner_enter(c);
    if (x->chunked_out)
        (void)buf_puts(&c->out, "0\r\n\r\n");
    x->call = NULL;
    x->ended = true;
    inner_leave(c);
}

void exchange_local(struct exchange *x, int status, const char *type, const char *headers, const void *body, size_t n)
{
    struct buf lines;
    struct inner *c = x->c;
    inner_enter(c);
    buf_init(&lines, HTTP_HEAD_MAX);
    (void)buf_printf(&lines, "content-type: %s\r\n%s", type, headers ? headers : "");
    x->chunked_out = false;
    exchange_reply(x, status, buf_data(&lines), buf_len(&lines), (int64_t)n);
    buf_done(&lines);
    if (!x->no_body) {
        (void)buf_put(&c->out, body, n);
        x->bytes_out += n;
    }
    exchange_end(x);
    inner_leave(c);
}

void exchange_text(struct exchange *x, int status, const char *text)
{
    exchange_local(x, status, "text/plain; charset=utf-8", NULL, text, strlen(text));
}

void exchange_fail(struct exchange *x, int status, const struct err *why)
{
    struct inner *c = x->c;
    inner_enter(c);
    x->call = NULL;
    if (x->replied) {
        bool framed = x->no_body || x->chunked_out || x->head.minor == 1;
        x->replied = false;              /* for the audit: it was not answered whole */
        x->ended = true;
        c->close_after = true;           /* what came still goes out; that the rest is missing shows in its framing */
        if (!framed)
            inner_close(c);
    } else {
        exchange_text(x, status, why->msg);
    }
    inner_leave(c);
}
