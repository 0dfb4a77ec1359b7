#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "base/rc.h"
#include "edge/host.h"
#include "edge/stats.h"
#include "edge/table.h"

static void test_parse(void **st)
{
    (void)st;
    static const struct { const char *in, *host; int port; } t[] = {
        { "m.t1.example:443", "m.t1.example", 443 }, { "M.T1.Example:443", "m.t1.example", 443 }, { "localhost:1", "localhost", 1 }, { "a_b.x-y:65535", "a_b.x-y", 65535 },
        { "1.2.3.a:443", "1.2.3.a", 443 },
        { "m.example", NULL, 0 }, { "m.example:", NULL, 0 }, { "m.example:0", NULL, 0 }, { "m.example:65536", NULL, 0 }, { "m.example:+1", NULL, 0 }, { ":443", NULL, 0 },
        { "", NULL, 0 }, { "127.0.0.1:443", NULL, 0 }, { "[::1]:443", NULL, 0 }, { "::1:443", NULL, 0 }, { "a..b:443", NULL, 0 }, { ".a:443", NULL, 0 }, { "a.:443", NULL, 0 },
        { "a b:443", NULL, 0 }, { "a/b:443", NULL, 0 }, { "a@b:443", NULL, 0 }, { "\xc3\xa4.example:443", NULL, 0 }, { "a%00:443", NULL, 0 },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        char host[HOST_MAX] = "untouched";
        uint16_t port = 7;
        int rc = host_parse(slice_of(t[i].in), host, &port);
        if ((rc == RC_OK) != (t[i].host != NULL) || strcmp(host, t[i].host ? t[i].host : "untouched") != 0 || port != (t[i].host ? t[i].port : 7))
            fail_msg("row %zu \"%s\": %d \"%s\" %u", i, t[i].in, rc, host, port);
    }
    char host[HOST_MAX];
    uint16_t port;
    assert_int_equal(host_parse((struct slice){ "a\0b.example:443", 15 }, host, &port), RC_INVALID);
    char longest[HOST_MAX + 8];
    for (int n = 252; n <= 254; n++) {
        for (int i = 0; i < n; i++)
            longest[i] = i % 64 == 63 ? '.' : 'a';
        snprintf(longest + n, sizeof longest - (size_t)n, ":1");
        assert_int_equal(host_parse(slice_of(longest), host, &port), n <= 253 ? RC_OK : RC_INVALID);
    }
    assert_true(host_valid("a23456789012345678901234567890123456789012345678901234567890123.b"));
    assert_false(host_valid("a234567890123456789012345678901234567890123456789012345678901234.b"));
}

static void test_domain(void **st)
{
    (void)st;
    assert_string_equal(host_domain("m.t1.example"), "t1.example");
    assert_string_equal(host_domain("a.b.t1.example"), "b.t1.example");       /* so a wildcard's two labels find no tunnel */
    assert_null(host_domain("localhost"));
    assert_null(host_domain("a."));
}

static void test_table(void **st)
{
    (void)st;
    struct table t;
    static struct { struct table_node node; char key[16]; } v[1000];
    table_init(&t);
    for (size_t i = 0; i < COUNT_OF(v); i++) {
        snprintf(v[i].key, sizeof v[i].key, "key%zu", i);
        table_add(&t, &v[i].node, v[i].key);
    }
    for (size_t i = 0; i < COUNT_OF(v); i++)
        assert_ptr_equal(table_find(&t, v[i].key), &v[i].node);
    assert_null(table_find(&t, "key1000"));
    assert_null(table_find(&t, ""));
    for (size_t i = 0; i < COUNT_OF(v); i += 2)
        table_del(&t, &v[i].node);
    for (size_t i = 0; i < COUNT_OF(v); i++)
        assert_ptr_equal(table_find(&t, v[i].key), i % 2 ? &v[i].node : NULL);
    assert_int_equal(t.n, COUNT_OF(v) / 2);
    for (size_t i = 1; i < COUNT_OF(v); i += 2)
        table_del(&t, &v[i].node);
    table_done(&t);
}

static void test_refusals(void **st)        /* each row says something, and the codes are those of the protocol */
{
    (void)st;
    for (int i = REFUSE_NONE + 1; i < REFUSAL_MAX_; i++) {
        assert_true(refusals[i].name && *refusals[i].name && *refusals[i].text);
        if (refusals[i].status)
            assert_true(refusals[i].status >= 400 && refusals[i].status < 600 && *refusals[i].code && *refusals[i].reason);
    }
    assert_int_equal(refusals[REFUSE_UNKNOWN_TUNNEL].status, 404);
    assert_int_equal(refusals[REFUSE_NO_CERTIFICATE].status, 403);
    assert_int_equal(refusals[REFUSE_NO_CONNECTOR].status, 502);
    assert_int_equal(refusals[REFUSE_CONNECTOR_FAILED].status, 502);
    assert_int_equal(refusals[REFUSE_BUSY].status, 503);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_parse), cmocka_unit_test(test_domain), cmocka_unit_test(test_table), cmocka_unit_test(test_refusals) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
