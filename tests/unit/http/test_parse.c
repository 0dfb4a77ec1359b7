#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "http/parse.h"

#define H "Host: a\r\n"
#define GET "GET / HTTP/1.1\r\n" H

static void test_request_rc(void **st)
{
    (void)st;
    static const struct { const char *in; int rc; } t[] = {
        { "", RC_AGAIN }, { "G", RC_AGAIN }, { GET, RC_AGAIN }, { GET "\r", RC_AGAIN }, { GET "\r\n", RC_OK }, { GET "\r\nrest", RC_OK },
        { "\r\n" GET "\r\n", RC_INVALID }, { " GET / HTTP/1.1\r\n" H "\r\n", RC_INVALID }, { "\x16\x03\x01", RC_INVALID },
        { "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", RC_INVALID }, { "GET /\r\n\r\n", RC_INVALID },
        { "GET / HTTP/1.1\n" H "\r\n", RC_INVALID }, { "GET / HTTP/1.1\r\nHost: a\n\r\n", RC_INVALID }, { GET "\n", RC_INVALID },
        { "GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", RC_INVALID }, { "GET / HTTP/1.1\r\r\n" H "\r\n", RC_INVALID },
        { "GET  / HTTP/1.1\r\n" H "\r\n", RC_INVALID }, { "GET /  HTTP/1.1\r\n" H "\r\n", RC_INVALID }, { "GET / HTTP/1.1 \r\n" H "\r\n", RC_INVALID },
        { "GET\t/ HTTP/1.1\r\n" H "\r\n", RC_INVALID }, { "GET / HTTP/1.2\r\n" H "\r\n", RC_INVALID }, { "GET / HTTP/0.9\r\n" H "\r\n", RC_INVALID },
        { "GET / http/1.1\r\n" H "\r\n", RC_INVALID }, { "GET / HTTP/1.10\r\n" H "\r\n", RC_INVALID }, { "GET / HTTP/2\r\n" H "\r\n", RC_INVALID },
        { "get / HTTP/1.1\r\n" H "\r\n", RC_UNSUPPORTED }, { "BREW / HTTP/1.1\r\n" H "\r\n", RC_UNSUPPORTED }, { "BREW / HTTP/1.1\r\n\r\n", RC_INVALID },
        { "GE(T / HTTP/1.1\r\n" H "\r\n", RC_INVALID },
        { "GET a HTTP/1.1\r\n" H "\r\n", RC_INVALID }, { "GET * HTTP/1.1\r\n" H "\r\n", RC_INVALID }, { "OPTIONS * HTTP/1.1\r\n" H "\r\n", RC_OK },
        { "GET http://a/x HTTP/1.1\r\n" H "\r\n", RC_OK }, { "GET http:// HTTP/1.1\r\n" H "\r\n", RC_INVALID }, { "GET http:///x HTTP/1.1\r\n" H "\r\n", RC_INVALID },
        { "GET https://a:1?q HTTP/1.1\r\n" H "\r\n", RC_OK }, { "GET http://u@a/ HTTP/1.1\r\n" H "\r\n", RC_INVALID }, { "GET http://\"a/ HTTP/1.1\r\n" H "\r\n", RC_INVALID },
        { "GET ftp://a/ HTTP/1.1\r\n" H "\r\n", RC_INVALID },
        { "CONNECT a:443 HTTP/1.1\r\n" H "\r\n", RC_OK }, { "CONNECT / HTTP/1.1\r\n" H "\r\n", RC_INVALID }, { "CONNECT a HTTP/1.1\r\n" H "\r\n", RC_INVALID },
        { "GET /a#b HTTP/1.1\r\n" H "\r\n", RC_INVALID }, { "GET /\x7f HTTP/1.1\r\n" H "\r\n", RC_INVALID }, { "GET /\xc3\xa4 HTTP/1.1\r\n" H "\r\n", RC_INVALID },
        { "GET / HTTP/1.1\r\n\r\n", RC_INVALID }, { "GET / HTTP/1.1\r\n" H H "\r\n", RC_INVALID }, { "GET / HTTP/1.0\r\n\r\n", RC_OK },
        { "GET / HTTP/1.0\r\n" H H "\r\n", RC_INVALID }, { "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", RC_INVALID }, { "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", RC_INVALID },
        { "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", RC_OK }, { "GET / HTTP/1.1\r\nHost:\r\n\r\n", RC_OK }, { "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", RC_INVALID },
        { GET "A : b\r\n\r\n", RC_INVALID }, { GET "A b: c\r\n\r\n", RC_INVALID }, { GET ": c\r\n\r\n", RC_INVALID }, { GET "A\r\n\r\n", RC_INVALID },
        { GET " A: b\r\n\r\n", RC_INVALID }, { GET "A: b\r\n c\r\n\r\n", RC_INVALID }, { GET "A: b\r\n\tc\r\n\r\n", RC_INVALID }, { GET "A:\r\n\r\n", RC_OK },
        { GET "A: \x01\r\n\r\n", RC_INVALID }, { GET "A: \x7f\r\n\r\n", RC_INVALID }, { GET "A: x\ty\xff\r\n\r\n", RC_OK },
        { GET "Content-Length: 5\r\n\r\n", RC_OK }, { GET "Content-Length: 5\r\ncontent-length: 5\r\n\r\n", RC_OK },
        { GET "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", RC_INVALID }, { GET "Content-Length: 5, 5\r\n\r\n", RC_INVALID },
        { GET "Content-Length: +5\r\n\r\n", RC_INVALID }, { GET "Content-Length: -1\r\n\r\n", RC_INVALID }, { GET "Content-Length:\r\n\r\n", RC_INVALID },
        { GET "Content-Length: 0x5\r\n\r\n", RC_INVALID }, { GET "Content-Length: 999999999999999999\r\n\r\n", RC_OK },
        { GET "Content-Length: 1000000000000000000\r\n\r\n", RC_INVALID }, { GET "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", RC_INVALID },
        { GET "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", RC_INVALID }, { GET "Transfer-Encoding: chunked\r\n\r\n", RC_OK },
        { GET "Transfer-Encoding: CHUNKED\r\n\r\n", RC_OK }, { GET "Transfer-Encoding: gzip, chunked\r\n\r\n", RC_INVALID },
        { GET "Transfer-Encoding: chunked, identity\r\n\r\n", RC_INVALID }, { GET "Transfer-Encoding: identity\r\n\r\n", RC_INVALID },
        { GET "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", RC_INVALID }, { GET "Transfer-Encoding:\r\n\r\n", RC_INVALID },
        { GET "Transfer-Encoding: \x0b" "chunked\r\n\r\n", RC_INVALID }, { "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", RC_INVALID },
        { GET "Connection: a b\r\n\r\n", RC_INVALID }, { GET "Connection: ,close,\r\n\r\n", RC_OK },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct http_head h;
        const char *why = NULL;
        size_t n = strlen(t[i].in), used = 12345;
        int rc = http_parse_request(t[i].in, n, 0, &h, &used, &why);
        if (rc != t[i].rc)
            fail_msg("row %zu: got %d, want %d (%s): %s", i, rc, t[i].rc, why, t[i].in);
        assert_true(rc == RC_OK ? used <= n : used == 12345);
        assert_true(rc == RC_OK || rc == RC_AGAIN || why[0]);
        /* Byte by byte with `seen` gives the same, first time that it is not AGAIN. */
        int rc2 = RC_AGAIN;
        for (size_t k = 1; k <= n && rc2 == RC_AGAIN; k++)
            rc2 = http_parse_request(t[i].in, k, k - 1, &h, &used, &why);
        if (n && rc2 != t[i].rc)
            fail_msg("row %zu in pieces: got %d, want %d", i, rc2, t[i].rc);
    }
}

static void test_request_fields(void **st)
{
    (void)st;
    static const char in[] = "POST /v1/a?b=%20c HTTP/1.1\r\nhOst: x:1\r\nX-One: \t a b \t\r\nExpect: 100-Continue\r\n"
                             "Content-Length: 12\r\nConnection: Keep-Alive, Upgrade\r\nUpgrade: h2c\r\n\r\nhello";
    struct http_head h;
    const char *why;
    size_t used;
    assert_int_equal(http_parse_request(in, sizeof in - 1, 0, &h, &used, &why), RC_OK);
    assert_int_equal(used, sizeof in - 1 - 5);
    assert_int_equal(h.method, HTTP_POST);
    assert_true(slice_eq(h.target, "/v1/a?b=%20c"));
    assert_int_equal(h.minor, 1);
    assert_int_equal(h.content_length, 12);
    assert_true(h.keep_alive && h.expect_continue && h.upgrade && !h.chunked);
    assert_int_equal(h.n_headers, 6);
    assert_true(slice_eq(*http_find(&h, "x-one"), "a b"));
    assert_true(slice_eq(*http_find(&h, "HOST"), "x:1"));
    assert_null(http_find(&h, "x-on"));
    for (int m = 0; m < HTTP_METHOD_MAX_; m++) {
        char b[64];
        snprintf(b, sizeof b, "%s %s HTTP/1.1\r\nhost: a\r\n\r\n", http_method_name(m), m == HTTP_CONNECT ? "a:1" : "/");
        assert_int_equal(http_parse_request(b, strlen(b), 0, &h, &used, &why), RC_OK);
        assert_int_equal(h.method, m);
    }
    assert_string_equal(http_method_name(HTTP_METHOD_MAX_), "?");
}

static void test_keep_alive(void **st)
{
    (void)st;
    static const struct { int minor; const char *conn; bool keep; } t[] = {
        { 1, "", true }, { 1, "Connection: close\r\n", false }, { 1, "Connection: keep-alive\r\n", true },
        { 1, "Connection: x, CLOSE\r\n", false }, { 1, "Connection: keep-alive\r\nConnection: close\r\n", false }, { 1, "Connection: closed\r\n", true },
        { 0, "", false }, { 0, "Connection: keep-alive\r\n", true }, { 0, "Connection: keep-alive, close\r\n", false }, { 0, "Connection: close\r\n", false },
        { 1, "Proxy-Connection: close\r\n", true },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        char b[256];
        struct http_head h;
        const char *why;
        size_t used;
        snprintf(b, sizeof b, "GET / HTTP/1.%d\r\nHost: a\r\n%s\r\n", t[i].minor, t[i].conn);
        assert_int_equal(http_parse_request(b, strlen(b), 0, &h, &used, &why), RC_OK);
        if (h.keep_alive != t[i].keep)
            fail_msg("row %zu", i);
        assert_int_equal(h.content_length, -1);
    }
}

static int parse_sized(size_t head, size_t target, size_t n_headers)
{
    struct buf b;
    buf_init(&b, 1 * MIB);
    buf_puts(&b, "GET /");
    for (size_t i = 1; i < target; i++)
        buf_putc(&b, 'a');
    buf_puts(&b, " HTTP/1.1\r\nHost: a\r\n");
    for (size_t i = 1; i < n_headers; i++)
        buf_puts(&b, "a:b\r\n");
    if (head) {
        buf_puts(&b, "x:");
        while (buf_len(&b) < head - 4)
            buf_putc(&b, 'y');
        buf_puts(&b, "\r\n");
    }
    buf_puts(&b, "\r\n");
    struct http_head h;
    size_t used;
    const char *why;
    int rc = http_parse_request(buf_data(&b), buf_len(&b), 0, &h, &used, &why);
    size_t n = buf_len(&b);
    int rc2 = RC_AGAIN;
    for (size_t k = 7, seen = 0; rc2 == RC_AGAIN && seen < n; k = k + 97 < n ? k + 97 : n) {
        rc2 = http_parse_request(buf_data(&b), k, seen, &h, &used, &why);
        seen = k;
    }
    assert_int_equal(rc, rc2);
    buf_done(&b);
    return rc;
}

static void test_limits(void **st)
{
    (void)st;
    assert_int_equal(parse_sized(HTTP_HEAD_MAX, 1, 1), RC_OK);
    assert_int_equal(parse_sized(HTTP_HEAD_MAX + 1, 1, 1), RC_TOO_LARGE);
    assert_int_equal(parse_sized(HTTP_HEAD_MAX * 4, 1, 1), RC_TOO_LARGE);
    assert_int_equal(parse_sized(0, HTTP_TARGET_MAX, 1), RC_OK);
    assert_int_equal(parse_sized(0, HTTP_TARGET_MAX + 1, 1), RC_TOO_LARGE);
    assert_int_equal(parse_sized(0, 1, HTTP_HEADERS_MAX), RC_OK);
    assert_int_equal(parse_sized(0, 1, HTTP_HEADERS_MAX + 1), RC_TOO_LARGE);
}

static void test_response(void **st)
{
    (void)st;
    static const struct { const char *in; int rc, status; } t[] = {
        { "HTTP/1.1 200 OK\r\n\r\n", RC_OK, 200 }, { "HTTP/1.1 200\r\n\r\n", RC_OK, 200 }, { "HTTP/1.1 404 \r\n\r\n", RC_OK, 404 },
        { "HTTP/1.0 599 a b \xe4\r\nContent-Length: 0\r\n\r\n", RC_OK, 599 }, { "HTTP/1.1 20 OK\r\n\r\n", RC_INVALID, 0 }, { "HTTP/1.1 2000 OK\r\n\r\n", RC_INVALID, 0 },
        { "HTTP/1.1 099 OK\r\n\r\n", RC_INVALID, 0 }, { "HTTP/2 200\r\n\r\n", RC_INVALID, 0 }, { "HTTP/1.1  200 OK\r\n\r\n", RC_INVALID, 0 },
        { "HTTP/1.1 200 O\x01K\r\n\r\n", RC_INVALID, 0 }, { "HTTP/1.1 200 OK\n\r\n", RC_INVALID, 0 }, { "ICY 200 OK\r\n\r\n", RC_INVALID, 0 },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", RC_INVALID, 0 }, { "HTTP/1.1 200 OK\r\n", RC_AGAIN, 0 },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", RC_OK, 200 }, { "HTTP/1.1 200xOK\r\n\r\n", RC_INVALID, 0 },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct http_head h;
        const char *why;
        size_t used;
        int rc = http_parse_response(t[i].in, strlen(t[i].in), 0, &h, &used, &why);
        if (rc != t[i].rc || (rc == RC_OK && h.status != t[i].status))
            fail_msg("row %zu: %d", i, rc);
    }
}

/* A head sent one byte at a time, tried after each byte: 32 KiB must not cost 32 Ki times 32 KiB. */
static void test_linear(void **st)
{
    (void)st;
    static char b[HTTP_HEAD_MAX];
    memset(b, 'a', sizeof b);
    memcpy(b, GET "x:", sizeof GET + 1);
    int64_t t0 = clock_mono_ms();
    for (int round = 0; round < 20; round++)
        for (size_t k = 1; k < sizeof b; k++) {
            struct http_head h;
            const char *why;
            size_t used;
            assert_int_equal(http_parse_request(b, k, k - 1, &h, &used, &why), RC_AGAIN);
        }
    assert_true(clock_mono_ms() - t0 < 1000);   /* quadratic work would be 10 GB of scanning */
}

static int chunked_all(const char *in, size_t n, size_t step, struct buf *out, size_t *ret_used)
{
    struct http_chunked c = { 0 };
    size_t at = 0;
    int rc = RC_OK;
    while (rc == RC_OK && at < n) {
        size_t end = at + step < n ? at + step : n;
        while (rc == RC_OK && at < end) {
            size_t used = 0;
            struct slice d;
            rc = http_chunked_step(&c, in + at, end - at, &used, &d);
            assert_true(used <= end - at && d.n <= used);
            buf_put(out, d.p, d.n);
            at += used;
        }
    }
    *ret_used = at;
    return rc;
}

static void test_chunked(void **st)
{
    (void)st;
    static const struct { const char *in, *out; int rc; size_t rest; } t[] = {
        { "0\r\n\r\n", "", RC_CLOSED, 0 }, { "5\r\nhello\r\n0\r\n\r\nNEXT", "hello", RC_CLOSED, 4 }, { "5\r\nhel", "hel", RC_OK, 0 }, { "", "", RC_OK, 0 },
        { "3\r\nabc\r\n2\r\nde\r\n000\r\n\r\n", "abcde", RC_CLOSED, 0 }, { "A\r\n0123456789\r\n0\r\n\r\n", "0123456789", RC_CLOSED, 0 },
        { "a;x=y;z=\"q\"\r\n0123456789\r\n0;e\r\n\r\n", "0123456789", RC_CLOSED, 0 }, { "0\r\nA: b\r\nC:\r\n\r\n", "", RC_CLOSED, 0 },
        { "0\r\nA: b\r\n", "", RC_OK, 0 }, { "\r\n", "", RC_INVALID, 0 }, { ";x\r\n", "", RC_INVALID, 0 }, { " 5\r\nhello", "", RC_INVALID, 0 },
        { "5 \r\nhello", "", RC_INVALID, 0 }, { "5\nhello", "", RC_INVALID, 0 }, { "5\rhello", "", RC_INVALID, 0 }, { "0x5\r\n", "", RC_INVALID, 0 },
        { "-1\r\n", "", RC_INVALID, 0 }, { "5;a\nb\r\nhello", "", RC_INVALID, 0 }, { "0;\r\n\r\n", "", RC_INVALID, 0 }, { "0;a=\r\n\r\n", "", RC_INVALID, 0 },
        { "0;a b\r\n\r\n", "", RC_INVALID, 0 }, { "0; a\r\n\r\n", "", RC_INVALID, 0 }, { "0;a=\"x;\\\"y\"\r\n\r\n", "", RC_CLOSED, 0 }, { "0;a=\"x\r\n\r\n", "", RC_INVALID, 0 },
        { "0;a=\"x\"y\r\n\r\n", "", RC_INVALID, 0 }, { "0;a;b=c;d\r\n\r\n", "", RC_CLOSED, 0 }, { "5;\x01\r\n", "", RC_INVALID, 0 }, { "5\r\nhelloX", "hello", RC_INVALID, 0 },
        { "5\r\nhello\n", "hello", RC_INVALID, 0 }, { "5\r\nhello\rX", "hello", RC_INVALID, 0 }, { "0\r\n\n", "", RC_INVALID, 0 }, { "0\r\n b\r\n\r\n", "", RC_INVALID, 0 },
        { "0\r\nab\r\n\r\n", "", RC_INVALID, 0 }, { "0\r\nA: b\nC: d\r\n\r\n", "", RC_INVALID, 0 }, { "0\r\n\rX", "", RC_INVALID, 0 },
        { "000000000000001\r\na\r\n0\r\n\r\n", "a", RC_CLOSED, 0 }, { "0000000000000001\r\na\r\n0\r\n\r\n", "", RC_INVALID, 0 }, { "ffffffffffffffffff\r\n", "", RC_INVALID, 0 },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++)
        for (size_t step = 1; step < 12; step += 2) {
            struct buf out;
            size_t used = 0;
            buf_init(&out, 1 * MIB);
            int rc = chunked_all(t[i].in, strlen(t[i].in), step, &out, &used);
            if (rc != t[i].rc || strcmp(buf_data(&out), t[i].out) != 0 || (rc == RC_CLOSED && used != strlen(t[i].in) - t[i].rest))
                fail_msg("row %zu step %zu: rc %d, \"%s\"", i, step, rc, buf_data(&out));
            buf_done(&out);
        }
}

static int chunked_bounds(const char *before, size_t n, const char *after)
{
    struct buf in, out;
    size_t used;
    buf_init(&in, 1 * MIB);
    buf_init(&out, 1 * MIB);
    buf_puts(&in, before);
    for (size_t i = 0; i < n; i++)
        buf_putc(&in, 'x');
    buf_puts(&in, after);
    int rc = chunked_all(buf_data(&in), buf_len(&in), 1000, &out, &used);
    buf_done(&in);
    buf_done(&out);
    return rc;
}

static void test_chunked_bounds(void **st)
{
    (void)st;
    assert_int_equal(chunked_bounds("0;", 4000, "\r\n\r\n"), RC_CLOSED);
    assert_int_equal(chunked_bounds("0;", 4096, "\r\n\r\n"), RC_INVALID);
    assert_int_equal(chunked_bounds("0\r\na:", 16000, "\r\n\r\n"), RC_CLOSED);
    assert_int_equal(chunked_bounds("0\r\na:", 16384, "\r\n\r\n"), RC_INVALID);
}

static void test_pct(void **st)
{
    (void)st;
    static const struct { const char *in; bool plus; size_t cap; int rc; const char *out; } t[] = {
        { "", false, 1, RC_OK, "" }, { "", false, 0, RC_TOO_LARGE, NULL }, { "abc", false, 4, RC_OK, "abc" }, { "abc", false, 3, RC_TOO_LARGE, NULL },
        { "a%20b", false, 9, RC_OK, "a b" }, { "a+b", false, 9, RC_OK, "a+b" }, { "a+b", true, 9, RC_OK, "a b" }, { "%2B", true, 9, RC_OK, "+" },
        { "%2f%2F", false, 3, RC_OK, "//" }, { "%", false, 9, RC_INVALID, NULL }, { "%2", false, 9, RC_INVALID, NULL }, { "%2g", false, 9, RC_INVALID, NULL },
        { "%g2", false, 9, RC_INVALID, NULL }, { "%00", false, 9, RC_INVALID, NULL }, { "%c3%a4", false, 9, RC_OK, "\xc3\xa4" }, { "%c3", false, 9, RC_INVALID, NULL },
        { "%ff", false, 9, RC_INVALID, NULL }, { "%ed%a0%80", false, 9, RC_INVALID, NULL }, { "%25", false, 9, RC_OK, "%" }, { "%2541", false, 9, RC_OK, "%41" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        char out[16] = "";
        int rc = http_pct_decode(slice_of(t[i].in), t[i].plus, out, t[i].cap);
        if (rc != t[i].rc || (rc == RC_OK && strcmp(out, t[i].out) != 0))
            fail_msg("row %zu: %d %s", i, rc, out);
    }
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_request_rc), cmocka_unit_test(test_request_fields), cmocka_unit_test(test_keep_alive), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_response), cmocka_unit_test(test_linear), cmocka_unit_test(test_chunked), cmocka_unit_test(test_chunked_bounds), cmocka_unit_test(test_pct),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
