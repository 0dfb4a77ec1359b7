#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "gateway/headers.h"

static struct http_head head;

static void parse(const char *text, bool request)
{
    size_t used = 0;
    const char *why = "";
    int rc = request ? http_parse_request(text, strlen(text), 0, &head, &used, &why) : http_parse_response(text, strlen(text), 0, &head, &used, &why);
    if (rc < 0)
        fail_msg("%s", why);
}

static void requests(void **st)
{
    (void)st;
    static struct header_rules none;
    static const struct { const char *in, *host_upstream, *out; } rows[] = {
        { "GET /a HTTP/1.1\r\nHost: H\r\nB: 1\r\na: 2\r\nB: 3\r\n\r\n", NULL, "GET /a HTTP/1.1\r\nHost: H\r\nB: 1\r\na: 2\r\nB: 3\r\nx-forwarded-host: h\r\nx-forwarded-proto: https\r\n\r\n" },
        { "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n", "up:1",
          "POST / HTTP/1.1\r\nHost: up:1\r\nx-forwarded-host: h\r\nx-forwarded-proto: https\r\ncontent-length: 3\r\n\r\n" },
        { "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\nTE: trailers\r\nHost: h\r\nConnection: close , X-Hop\r\nX-Hop: 1\r\nX-Hope: 2\r\nKeep-Alive: 1\r\n\r\n", NULL,
          "POST / HTTP/1.1\r\nHost: h\r\nX-Hope: 2\r\nx-forwarded-host: h\r\nx-forwarded-proto: https\r\ntransfer-encoding: chunked\r\n\r\n" },
        { "GET / HTTP/1.0\r\n\r\n", NULL, "GET / HTTP/1.1\r\nhost: h\r\nx-forwarded-host: h\r\nx-forwarded-proto: https\r\n\r\n" },
        { "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Host: evil\r\nX-Forwarded-For: 1.2.3.4\r\nOrigin: o\r\nProxy-Authorization: x\r\n\r\n", NULL,
          "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.2.3.4\r\nOrigin: o\r\nx-forwarded-host: h\r\nx-forwarded-proto: https\r\n\r\n" },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct buf b;
        buf_init(&b, HEADERS_OUT_MAX);
        parse(rows[i].in, true);
        assert_int_equal(headers_request(&b, &head, head.target, "h", rows[i].host_upstream, &none), RC_OK);
        assert_string_equal(buf_data(&b), rows[i].out);
        buf_done(&b);
    }
}

static void rules(void **st)
{
    (void)st;
    struct header_rules r = { .n_add = 2, .n_remove = 1 };
    r.add[0] = (struct header_add){ .name = str_dup("Authorization"), .secret = secret_new("Bearer s", 8) };
    r.add[1] = (struct header_add){ .name = str_dup("X-New"), .value = str_dup("v") };
    r.remove[0] = str_dup("cookie");
    struct buf b;
    buf_init(&b, HEADERS_OUT_MAX);
    parse("GET / HTTP/1.1\r\nHost: h\r\nCookie: c\r\nauthorization: mine\r\nKeep: 1\r\n\r\n", true);
    assert_int_equal(headers_request(&b, &head, head.target, "h", NULL, &r), RC_OK);
    assert_string_equal(buf_data(&b), "GET / HTTP/1.1\r\nHost: h\r\nKeep: 1\r\nx-forwarded-host: h\r\nx-forwarded-proto: https\r\nAuthorization: Bearer s\r\nX-New: v\r\n\r\n");
    buf_done(&b);
    header_rules_done(&r);
}

static void responses(void **st)
{
    (void)st;
    struct buf b;
    buf_init(&b, HEADERS_OUT_MAX);
    parse("HTTP/1.1 200 OK\r\nX-Accel-Buffering: no\r\nContent-Length: 3\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n"
          "WWW-Authenticate: Bearer resource_metadata=\"x\"\r\n\r\n", false);
    assert_int_equal(headers_response(&b, &head), RC_OK);
    assert_string_equal(buf_data(&b), "X-Accel-Buffering: no\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nWWW-Authenticate: Bearer resource_metadata=\"x\"\r\n");
    buf_done(&b);
}

static void checks(void **st)
{
    (void)st;
    struct err e;
    static const char *const bad[] = { "", "a b", "a:", "host", "Connection", "content-length", "X-Forwarded-Proto", "\xc3\xa9" };
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_int_equal(header_name_check(bad[i], &e), RC_INVALID);
    assert_int_equal(header_name_check("X-Api-Key", &e), RC_OK);
    assert_int_equal(header_value_check("a\tb \xc3\xa9", 6, &e), RC_OK);
    assert_int_equal(header_value_check("a\r\nb", 4, &e), RC_INVALID);
    assert_int_equal(header_value_check("a\0", 2, &e), RC_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(requests), cmocka_unit_test(rules), cmocka_unit_test(responses), cmocka_unit_test(checks) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
