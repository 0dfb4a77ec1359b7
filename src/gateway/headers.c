/* gateway/headers.c - see headers.h */
#include "gateway/headers.h"

#include <string.h>

#include "base/str.h"

/* Sorted out by length first: this runs for each header of each message. */
static bool is_hop(struct slice k)
{
    switch (k.n) {
    case 2:  return slice_eq_nocase(k, "te");
    case 6:  return slice_eq_nocase(k, "expect");
    case 7:  return slice_eq_nocase(k, "upgrade") || slice_eq_nocase(k, "trailer");
    case 10: return slice_eq_nocase(k, "connection") || slice_eq_nocase(k, "keep-alive");
    case 14: return slice_eq_nocase(k, "content-length") || slice_eq_nocase(k, "http2-settings");
    case 16: return slice_eq_nocase(k, "proxy-connection");
    case 17: return slice_eq_nocase(k, "transfer-encoding");
    case 19: return slice_eq_nocase(k, "proxy-authorization");
    default: return false;
    }
}

static bool is_ours(struct slice k)
{
    return (k.n == 16 && slice_eq_nocase(k, "x-forwarded-host")) || (k.n == 17 && slice_eq_nocase(k, "x-forwarded-proto"));
}

/* Does a Connection header name it? Most messages have none. */
static bool named_by_connection(const struct http_head *h, struct slice k)
{
    for (size_t i = 0; i < h->n_headers; i++) {
        if (!slice_eq_nocase(h->headers[i].name, "connection"))
            continue;
        for (struct slice v = h->headers[i].value; v.n;) {
            const char *comma = memchr(v.p, ',', v.n);
            size_t n = comma ? (size_t)(comma - v.p) : v.n;
            struct slice token = slice_trim((struct slice){ v.p, n });
            if (token.n == k.n && strncasecmp(token.p, k.p, k.n) == 0)
                return true;
            n += comma != NULL;
            v = (struct slice){ v.p + n, v.n - n };
        }
    }
    return false;
}

static bool has_connection(const struct http_head *h)
{
    for (size_t i = 0; i < h->n_headers; i++)
        if (h->headers[i].name.n == 10 && slice_eq_nocase(h->headers[i].name, "connection") && !slice_eq_nocase(h->headers[i].value, "keep-alive") &&
            !slice_eq_nocase(h->headers[i].value, "close"))
            return true;
    return false;
}

static bool ruled_out(const struct header_rules *r, struct slice k)
{
    for (size_t i = 0; i < r->n_remove; i++)
        if (slice_eq_nocase(k, r->remove[i]))
            return true;
    for (size_t i = 0; i < r->n_add; i++)
        if (slice_eq_nocase(k, r->add[i].name))
            return true;
    return false;
}

static void line(struct buf *out, struct slice k, struct slice v)
{
    char *to = buf_reserve(out, k.n + v.n + 4);
    if (!to)
        return;
    memcpy(to, k.p, k.n);
    memcpy(to + k.n, ": ", 2);
    memcpy(to + k.n + 2, v.p, v.n);
    memcpy(to + k.n + 2 + v.n, "\r\n", 2);
    buf_commit(out, k.n + v.n + 4);
}

static void framing(struct buf *out, const struct http_head *h)
{
    if (h->chunked)
        (void)buf_puts(out, "transfer-encoding: chunked\r\n");
    else if (h->content_length >= 0)
        (void)buf_printf(out, "content-length: %lld\r\n", (long long)h->content_length);
}

int headers_request(struct buf *out, const struct http_head *h, struct slice target, const char *host, const char *host_upstream, const struct header_rules *r)
{
    bool named = has_connection(h), host_seen = false;
    (void)buf_puts(out, http_method_name(h->method));
    (void)buf_putc(out, ' ');
    (void)buf_put(out, target.p, target.n);
    (void)buf_puts(out, " HTTP/1.1\r\n");
    for (size_t i = 0; i < h->n_headers; i++) {
        struct slice k = h->headers[i].name, v = h->headers[i].value;
        if (k.n == 4 && slice_eq_nocase(k, "host")) {
            line(out, k, host_upstream ? slice_of(host_upstream) : v);
            host_seen = true;
        } else if (!is_hop(k) && !is_ours(k) && !(named && named_by_connection(h, k)) && !ruled_out(r, k)) {
            line(out, k, v);
        }
    }
    if (!host_seen)
        line(out, SLICE("host"), slice_of(host_upstream ? host_upstream : host));
    line(out, SLICE("x-forwarded-host"), slice_of(host));
    line(out, SLICE("x-forwarded-proto"), SLICE("https"));
    for (size_t i = 0; i < r->n_add; i++)
        line(out, slice_of(r->add[i].name), r->add[i].secret ? (struct slice){ secret_text(r->add[i].secret), secret_len(r->add[i].secret) } : slice_of(r->add[i].value));
    framing(out, h);
    (void)buf_puts(out, "\r\n");
    return buf_ok(out) ? RC_OK : RC_LIMIT;
}

int headers_response(struct buf *out, const struct http_head *h)
{
    bool named = has_connection(h);
    for (size_t i = 0; i < h->n_headers; i++)
        if (!is_hop(h->headers[i].name) && !(named && named_by_connection(h, h->headers[i].name)))
            line(out, h->headers[i].name, h->headers[i].value);
    return buf_ok(out) ? RC_OK : RC_LIMIT;
}

/* ---- rules ---- */

void header_rules_done(struct header_rules *r)
{
    for (size_t i = 0; i < r->n_add; i++) {
        free(r->add[i].name);
        free(r->add[i].value);
        secret_free(r->add[i].secret);
    }
    for (size_t i = 0; i < r->n_remove; i++)
        free(r->remove[i]);
    *r = (struct header_rules){ .n_add = 0 };
}

int header_name_check(const char *name, struct err *e)
{
    static const char token[] = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    struct slice k = slice_of(name);
    if (k.n == 0 || k.n > 128 || strspn(name, token) != k.n)
        return err_set(e, RC_INVALID, "'%.60s' is no name of a header", name);
    if (is_hop(k) || is_ours(k) || slice_eq_nocase(k, "host"))
        return err_set(e, RC_INVALID, "the header '%s' is decided by the gateway itself", name);
    return RC_OK;
}

int header_value_check(const char *value, size_t n, struct err *e)
{
    if (n > HEADER_VALUE_MAX)
        return err_set(e, RC_INVALID, "a header's value has at most %zu bytes", (size_t)HEADER_VALUE_MAX);
    for (size_t i = 0; i < n; i++)
        if (((unsigned char)value[i] < 0x20 && value[i] != '\t') || value[i] == 0x7f)
            return err_set(e, RC_INVALID, "a header's value holds a control character");
    return RC_OK;
}
