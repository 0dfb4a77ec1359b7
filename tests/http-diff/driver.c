/* One message per line in hex on stdin; one verdict per line on stdout: "refused", "incomplete", or
 * "ok <method> <target> <minor> <headers> <body in hex> <bytes used>". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "http/parse.h"

static int body(const struct http_head *h, const char *p, size_t n, struct buf *out, size_t *ret_used)
{
    if (!h->chunked) {
        size_t want = h->content_length > 0 ? (size_t)h->content_length : 0;
        if (n < want)
            return RC_AGAIN;
        *ret_used = want;
        return buf_put(out, p, want);
    }
    struct http_chunked c = { 0 };
    int rc = RC_OK;
    size_t at = 0;
    while (rc == RC_OK && at < n) {
        size_t used;
        struct slice d;
        rc = http_chunked_step(&c, p + at, n - at, &used, &d);
        buf_put(out, d.p, d.n);
        at += used;
    }
    *ret_used = at;
    return rc == RC_CLOSED ? RC_OK : rc == RC_OK ? RC_AGAIN : rc;
}

static void verdict(const char *p, size_t n)
{
    struct http_head h;
    struct buf b;
    size_t used = 0, body_used = 0;
    const char *why;
    buf_init(&b, 1 * MIB);
    int rc = http_parse_request(p, n, 0, &h, &used, &why);
    if (rc == RC_OK)
        rc = body(&h, p + used, n - used, &b, &body_used);
    if (rc == RC_OK) {
        printf("ok %s %.*s %d %zu ", http_method_name(h.method), (int)h.target.n, h.target.p, h.minor, h.n_headers);
        for (size_t i = 0; i < buf_len(&b); i++)
            printf("%02x", (unsigned char)buf_data(&b)[i]);
        printf(" %zu\n", used + body_used);
    } else {
        puts(rc == RC_AGAIN ? "incomplete" : "refused");
    }
    buf_done(&b);
}

int main(void)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    while ((n = getline(&line, &cap, stdin)) > 0) {
        size_t k = 0;
        char *msg = malloc((size_t)n / 2 + 1);
        for (; 2 * k + 1 < (size_t)n; k++) {
            unsigned v = 0;
            char two[3] = { line[2 * k], line[2 * k + 1], 0 };
            v = (unsigned)strtoul(two, NULL, 16);
            msg[k] = (char)v;
        }
        verdict(msg, k);
        free(msg);
    }
    free(line);
    return 0;
}
