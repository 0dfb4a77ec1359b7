#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "http/url.h"

static void test_parse(void **state)
{
    (void)state;
    static const struct { const char *in; bool user_ok; int rc; bool tls; const char *host; uint16_t port; const char *target, *authority; } rows[] = {
        { "http://h", false, RC_OK, false, "h", 80, "/", "h" },
        { "https://H.Example/", false, RC_OK, true, "h.example", 443, "/", "h.example" },
        { "HTTPS://h:8443/a?b=c", false, RC_OK, true, "h", 8443, "/a?b=c", "h:8443" },
        { "http://h:443/", false, RC_OK, false, "h", 443, "/", "h:443" },
        { "https://h:80/", false, RC_OK, true, "h", 80, "/", "h:80" },
        { "http://[::1]:81/x", false, RC_OK, false, "::1", 81, "/x", "[::1]:81" },
        { "http://[::1]", false, RC_OK, false, "::1", 80, "/", "[::1]" },
        { "http://127.0.0.1:1", false, RC_OK, false, "127.0.0.1", 1, "/", "127.0.0.1:1" },
        { "http://u:p@h:3128", true, RC_OK, false, "h", 3128, "/", "h:3128" },
        { "http://u:p@h:3128", false, RC_INVALID, 0, 0, 0, 0, 0 },
        { "", false, RC_INVALID, 0, 0, 0, 0, 0 }, { NULL, false, RC_INVALID, 0, 0, 0, 0, 0 }, { "h", false, RC_INVALID, 0, 0, 0, 0, 0 },
        { "ftp://h", false, RC_INVALID, 0, 0, 0, 0, 0 }, { "http:/h", false, RC_INVALID, 0, 0, 0, 0, 0 }, { "http://", false, RC_INVALID, 0, 0, 0, 0, 0 },
        { "http://:80/", false, RC_INVALID, 0, 0, 0, 0, 0 }, { "http://h:/", false, RC_INVALID, 0, 0, 0, 0, 0 },
        { "http://h:0", false, RC_INVALID, 0, 0, 0, 0, 0 }, { "http://h:65536", false, RC_INVALID, 0, 0, 0, 0, 0 },
        { "http://h:8a", false, RC_INVALID, 0, 0, 0, 0, 0 }, { "http://h h/", false, RC_INVALID, 0, 0, 0, 0, 0 },
        { "http://h/\r\n", false, RC_INVALID, 0, 0, 0, 0, 0 }, { "http://h/#x", false, RC_INVALID, 0, 0, 0, 0, 0 },
        { "http://h?x", false, RC_INVALID, 0, 0, 0, 0, 0 }, { "http://[::1", false, RC_INVALID, 0, 0, 0, 0, 0 },
        { "http://[::1]x", false, RC_INVALID, 0, 0, 0, 0, 0 }, { "http://[h]/", false, RC_INVALID, 0, 0, 0, 0, 0 },
        { "http://h%41/", false, RC_INVALID, 0, 0, 0, 0, 0 }, { "http://\xc3\xa9/", false, RC_INVALID, 0, 0, 0, 0, 0 },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct http_url u;
        struct err e;
        char a[URL_HOST_MAX + 10];
        if (http_url_parse(rows[i].in, rows[i].user_ok, &u, &e) != rows[i].rc)
            fail_msg("row %zu '%s'", i, rows[i].in);
        if (rows[i].rc < 0)
            continue;
        assert_int_equal(u.tls, rows[i].tls);
        assert_string_equal(u.host, rows[i].host);
        assert_int_equal(u.port, rows[i].port);
        assert_true(slice_eq(u.target, rows[i].target));
        http_url_authority(&u, false, a);
        assert_string_equal(a, rows[i].authority);
    }
}

static void test_lengths(void **state)
{
    (void)state;
    char s[URL_HOST_MAX + 32] = "http://";
    struct http_url u;
    struct err e;
    memset(s + 7, 'a', URL_HOST_MAX - 1);
    assert_int_equal(http_url_parse(s, false, &u, &e), RC_OK);
    memset(s + 7, 'a', URL_HOST_MAX);
    assert_int_equal(http_url_parse(s, false, &u, &e), RC_INVALID);
}

static void test_no_proxy(void **state)
{
    (void)state;
    static const struct { const char *list, *host; uint16_t port; bool want; } rows[] = {
        { NULL, "h", 80, false }, { "", "h", 80, false }, { "*", "h", 80, true }, { "h", "h", 80, true }, { "H", "h", 80, true }, { "x", "h", 80, false },
        { "a,h , b", "h", 80, true }, { "a h b", "h", 80, true }, { ",,", "h", 80, false }, { "example.com", "example.com", 80, true },
        { "example.com", "a.example.com", 80, true }, { ".example.com", "a.example.com", 80, true }, { ".example.com", "example.com", 80, true },
        { "example.com", "badexample.com", 80, false }, { "a.example.com", "example.com", 80, false }, { "h:80", "h", 80, true }, { "h:81", "h", 80, false },
        { "h:x", "h", 80, false }, { "10.0.0.1", "10.0.0.1", 80, true }, { "10.0.0.0/8", "10.200.3.4", 80, true }, { "10.0.0.0/8", "11.0.0.1", 80, false },
        { "10.0.0.0/33", "10.0.0.1", 80, false }, { "192.168.1.128/25", "192.168.1.129", 80, true }, { "192.168.1.128/25", "192.168.1.127", 80, false },
        { "0.0.0.0/0", "1.2.3.4", 80, true }, { "0.0.0.0/0", "name", 80, false }, { "::1", "::1", 80, true }, { "fd00::/8", "fd12::1", 80, true },
        { "fd00::/8", "fe80::1", 80, false }, { "[::1]:80", "::1", 80, true }, { "[::1]:81", "::1", 80, false }, { "[::1]", "::1", 443, true },
        { "[::1", "::1", 80, false }, { ".", "h", 80, false },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (http_no_proxy(rows[i].list, rows[i].host, rows[i].port) != rows[i].want)
            fail_msg("row %zu: '%s' with '%s'", i, rows[i].host, rows[i].list);
}

int main(void)
{
    const struct CMUnitTest t[] = { cmocka_unit_test(test_parse), cmocka_unit_test(test_lengths), cmocka_unit_test(test_no_proxy) };
    return cmocka_run_group_tests(t, NULL, NULL);
}
