/* HTTP/1.1 heads and chunked bodies. The first byte chooses the parser and the size of the pieces. Properties: cutting the input does not
 * change the result; slices lie inside the head; an accepted head, written again from its parts, is accepted with the same meaning. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "http/parse.h"

#define REQUIRE(c) do { if (!(c)) { fprintf(stderr, "property broken: %s (line %d)\n", #c, __LINE__); abort(); } } while (0)

typedef int parse_fn(const char *, size_t, size_t, struct http_head *, size_t *, const char **);

static bool inside(struct slice s, const char *p, size_t n)
{
    return s.n == 0 || (s.p >= p && s.p + s.n <= p + n);
}

static void same(const struct http_head *a, const struct http_head *b)
{
    REQUIRE(a->method == b->method && a->status == b->status && a->minor == b->minor && a->n_headers == b->n_headers);
    REQUIRE(a->chunked == b->chunked && a->keep_alive == b->keep_alive && a->expect_continue == b->expect_continue && a->upgrade == b->upgrade);
    REQUIRE(a->content_length == b->content_length && a->target.n == b->target.n);
    for (size_t i = 0; i < a->n_headers; i++) {
        const struct http_header *x = &a->headers[i], *y = &b->headers[i];
        REQUIRE(x->name.n == y->name.n && memcmp(x->name.p, y->name.p, x->name.n) == 0);
        REQUIRE(x->value.n == y->value.n && (x->value.n == 0 || memcmp(x->value.p, y->value.p, x->value.n) == 0));
    }
}

static void rewrite(const struct http_head *h, bool request)
{
    struct buf b;
    buf_init(&b, 2 * HTTP_HEAD_MAX);
    if (request)
        buf_printf(&b, "%s %.*s HTTP/1.%d\r\n", http_method_name(h->method), (int)h->target.n, h->target.p, h->minor);
    else
        buf_printf(&b, "HTTP/1.%d %03d %.*s\r\n", h->minor, h->status, (int)h->reason.n, h->reason.p);
    for (size_t i = 0; i < h->n_headers; i++) {
        buf_put(&b, h->headers[i].name.p, h->headers[i].name.n);
        buf_puts(&b, ":");
        buf_put(&b, h->headers[i].value.p, h->headers[i].value.n);
        buf_puts(&b, "\r\n");
    }
    buf_puts(&b, "\r\n");
    struct http_head again;
    size_t used = 0;
    const char *why;
    parse_fn *fn = request ? http_parse_request : http_parse_response;
    if (buf_len(&b) <= HTTP_HEAD_MAX) {
        REQUIRE(fn(buf_data(&b), buf_len(&b), 0, &again, &used, &why) == RC_OK && used == buf_len(&b));
        same(h, &again);
    }
    buf_done(&b);
}

static void heads(const char *p, size_t n, size_t step, bool request)
{
    parse_fn *fn = request ? http_parse_request : http_parse_response;
    struct http_head a, b;
    size_t used = 0, used2 = 0;
    const char *why = NULL;
    int rc = fn(p, n, 0, &a, &used, &why), rc2 = RC_AGAIN;
    for (size_t k = 0, seen = 0; rc2 == RC_AGAIN && seen < n; seen = k) {
        k = k + step < n ? k + step : n;
        rc2 = fn(p, k, seen, &b, &used2, &why);
    }
    REQUIRE(rc == rc2);
    REQUIRE(rc == RC_OK || why[0] || rc == RC_AGAIN);
    if (rc != RC_OK)
        return;
    REQUIRE(used == used2 && used <= n && used <= HTTP_HEAD_MAX);
    same(&a, &b);
    REQUIRE(inside(a.target, p, used) && inside(a.reason, p, used));
    REQUIRE(!(a.chunked && a.content_length >= 0));
    for (size_t i = 0; i < a.n_headers; i++)
        REQUIRE(a.headers[i].name.n && inside(a.headers[i].name, p, used) && inside(a.headers[i].value, p, used));
    rewrite(&a, request);
}

static int chunked(const char *p, size_t n, size_t step, struct buf *out, size_t *ret_used)
{
    struct http_chunked c = { 0 };
    size_t at = 0;
    int rc = RC_OK;
    while (rc == RC_OK && at < n) {
        size_t part = n - at < step ? n - at : step, used = 0;
        struct slice d;
        rc = http_chunked_step(&c, p + at, part, &used, &d);
        REQUIRE(used <= part && inside(d, p + at, used));
        REQUIRE(rc != RC_OK || used > 0);
        if (rc != RC_INVALID)
            buf_put(out, d.p, d.n);
        at += used;
    }
    *ret_used = at;
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len)
{
    if (len < 1)
        return 0;
    const char *p = (const char *)in + 1;
    size_t n = len - 1, step = in[0] / 3 % 37 + 1;
    if (in[0] % 3 < 2) {
        heads(p, n, step, in[0] % 3 == 0);
        return 0;
    }
    struct buf a, b;
    size_t ua = 0, ub = 0;
    buf_init(&a, len);
    buf_init(&b, len);
    int ra = chunked(p, n, n ? n : 1, &a, &ua), rb = chunked(p, n, step, &b, &ub);
    REQUIRE(ra == rb && ua == ub && buf_len(&a) == buf_len(&b) && memcmp(buf_data(&a), buf_data(&b), buf_len(&a)) == 0);
    buf_done(&a);
    buf_done(&b);
    return 0;
}
