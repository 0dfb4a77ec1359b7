#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "edge/ranges.h"
#include "edge/source.h"

static struct net_addr addr(const char *s)
{
    struct net_addr a;
    struct err e;
    assert_int_equal(net_addr_parse(s, &a, &e), RC_OK);
    return a;
}

static void test_match(void **st)
{
    (void)st;
    static const struct { const char *range, *address; bool in; } t[] = {
        { "10.0.0.0/8", "10.255.1.2:80", true },        { "10.0.0.0/8", "11.0.0.0:80", false },      { "192.0.2.7", "192.0.2.7:1", true },
        { "192.0.2.7", "192.0.2.8:1", false },          { "0.0.0.0/0", "8.8.8.8:1", true },          { "0.0.0.0/0", "[2001:db8::1]:1", false },
        { "::/0", "[2001:db8::1]:1", true },            { "::/0", "8.8.8.8:1", true },               { "2001:db8::/33", "[2001:db8:7fff::1]:1", true },
        { "2001:db8::/33", "[2001:db8:8000::1]:1", false }, { "10.0.0.0/8", "[::ffff:10.1.1.1]:1", true }, { "192.0.2.0/31", "192.0.2.1:1", true },
        { "192.0.2.0/31", "192.0.2.2:1", false },       { "::1", "[::1]:1", true },                  { "10.0.0.0/8", "unix:/tmp/x", false },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct ranges r = { 0 };
        struct net_addr a = addr(t[i].address);
        char *one = (char *)(uintptr_t)t[i].range;
        assert_int_equal(ranges_parse(&one, 1, &r, NULL), RC_OK);
        if (ranges_have(&r, &a) != t[i].in)
            fail_msg("row %zu: %s in %s", i, t[i].address, t[i].range);
        ranges_done(&r);
    }
    struct ranges none = { 0 };
    struct net_addr a = addr("127.0.0.1:1");
    assert_false(ranges_have(&none, &a));
}

static void test_refused(void **st)
{
    (void)st;
    static const char *const bad[] = { "", "/8", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.1/8", "::1/64", "::/129", "10.0.0", "host", "10.0.0.0/8/8", "10.0.0.0 /8" };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        struct ranges r = { 0 };
        struct err e;
        char *two[] = { (char *)(uintptr_t) "127.0.0.1", (char *)(uintptr_t)bad[i] };
        if (ranges_parse(two, 2, &r, &e) != RC_INVALID || r.v)
            fail_msg("row %zu \"%s\"", i, bad[i]);
        assert_non_null(strstr(e.msg, bad[i]));
    }
    char **many = xcalloc(RANGES_MAX + 1, sizeof *many);
    for (size_t i = 0; i <= RANGES_MAX; i++)
        many[i] = (char *)(uintptr_t) "10.0.0.0/8";
    struct ranges r = { 0 };
    assert_int_equal(ranges_parse(many, RANGES_MAX + 1, &r, NULL), RC_INVALID);
    assert_int_equal(ranges_parse(many, RANGES_MAX, &r, NULL), RC_OK);
    ranges_done(&r);
    free(many);
}

static void test_sources(void **st)
{
    (void)st;
    struct sources *s = sources_new();
    struct net_addr a = addr("192.0.2.1:1"), a2 = addr("192.0.2.1:999"), m = addr("[::ffff:192.0.2.1]:5"), b = addr("192.0.2.2:1");
    struct net_addr v6 = addr("[2001:db8::1]:1"), same = addr("[2001:db8::ffff:0:0:1]:1"), other = addr("[2001:db8:0:1::1]:1");
    struct source *x = source_enter(s, &a);
    assert_ptr_equal(source_enter(s, &a2), x);
    assert_ptr_equal(source_enter(s, &m), x);
    assert_ptr_not_equal(source_enter(s, &b), x);
    assert_int_equal(x->conns, 3);
    assert_int_equal(x->fresh, 3);
    source_known(x);
    source_leave(x, false);
    source_leave(x, true);
    assert_int_equal(x->conns, 1);
    assert_int_equal(x->fresh, 1);
    struct source *y = source_enter(s, &v6);
    assert_ptr_equal(source_enter(s, &same), y);        /* one host walks through its /64 */
    assert_ptr_not_equal(source_enter(s, &other), y);
    source_leave(x, true);
    assert_int_equal(source_enter(s, &a)->conns, 1);    /* forgotten in between */
    for (int i = 0; i < 20000; i++) {
        char text[NET_ADDR_TEXT];
        snprintf(text, sizeof text, "10.%d.%d.1:1", i / 250, i % 250);
        struct net_addr n = addr(text);
        assert_int_equal(source_enter(s, &n)->conns, 1);
    }
    sources_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_match), cmocka_unit_test(test_refused), cmocka_unit_test(test_sources) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
