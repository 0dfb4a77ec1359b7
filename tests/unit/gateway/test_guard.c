#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "gateway/guard.h"
#include "gateway/sticky.h"

static struct ip_guard *make(const char *list)
{
    struct conf_list l = { 0 };
    AUTO_FREE char *copy = str_dup(list);
    char *item[8];
    for (char *p = copy; p && *p;) {
        char *comma = strchr(p, ',');
        if (comma)
            *comma = '\0';
        item[l.n++] = p;
        p = comma ? comma + 1 : NULL;
    }
    l.item = item;
    struct ip_guard *g = NULL;
    struct err e;
    assert_int_equal(ip_guard_new(&l, false, &g, &e), RC_OK);
    return g;
}

static bool allows(const struct ip_guard *g, const char *ip)
{
    struct net_addr a;
    char text[80];
    struct err e = { 0 };
    (void)snprintf(text, sizeof text, strchr(ip, ':') ? "[%s]:80" : "%s:80", ip);
    assert_int_equal(net_addr_parse(text, &a, &e), RC_OK);
    int rc = ip_guard_check(g, &a, &e);
    if (rc < 0)
        assert_non_null(strstr(e.msg, "IP validation failed: "));
    return rc == RC_OK;
}

static void addresses(void **st)
{
    (void)st;
    static const struct { const char *list, *ip; bool want; } rows[] = {
        { "", "10.0.0.1", true }, { "", "172.16.0.1", true }, { "", "172.32.0.1", false }, { "", "192.168.255.255", true }, { "", "192.169.0.0", false },
        { "", "fd12::1", true }, { "", "fe80::1", false }, { "", "::1", false }, { "", "2001:db8::1", false }, { "", "127.0.0.1", false }, { "", "0.0.0.0", false },
        { "", "169.254.169.254", false }, { "", "8.8.8.8", false }, { "", "fd00:ec2::254", false }, { "", "::ffff:10.0.0.1", true }, { "", "::ffff:127.0.0.1", false },
        { "", "::10.0.0.1", false }, { "", "64:ff9b::a00:1", false }, { "", "100.64.0.1", false }, { "", "224.0.0.1", false }, { "", "255.255.255.255", false },
        { "127.0.0.1", "127.0.0.1", true }, { "127.0.0.1", "127.0.0.2", false }, { "127.0.0.0/8", "127.9.9.9", true }, { "::1", "::1", true }, { "127.0.0.1", "10.0.0.1", false },
        { "0.0.0.0/0", "8.8.8.8", true }, { "0.0.0.0/0", "127.0.0.1", false }, { "0.0.0.0/0", "169.254.169.254", false }, { "0.0.0.0/0", "fd12::1", false },
        { "::/0", "2001:db8::1", true }, { "::/0", "::1", false }, { "::/0", "fe80::1", false }, { "169.254.169.254", "169.254.169.254", true },
        { "fd00:ec2::254", "fd00:ec2::254", true }, { "fd00::/8", "fd00:ec2::254", false }, { "10.1.0.0/16,192.0.2.7", "192.0.2.7", true }, { "10.1.0.0/16", "10.2.0.1", false },
        { "10.0.0.0/9", "10.127.0.1", true }, { "10.0.0.0/9", "10.128.0.1", false }, { "0.0.0.0/0,::/0", "::ffff:127.0.0.1", false },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct ip_guard *g = make(rows[i].list);
        if (allows(g, rows[i].ip) != rows[i].want)
            fail_msg("row %zu: %s %s", i, rows[i].list, rows[i].ip);
        ip_guard_free(g);
    }
}

static void words_and_errors(void **st)
{
    (void)st;
    struct net_addr a;
    struct err e = { 0 };
    struct ip_guard *g = make("");
    assert_int_equal(net_addr_parse("8.8.8.8:1", &a, &e), RC_OK);
    assert_int_equal(ip_guard_check(g, &a, &e), RC_DENIED);
    assert_string_equal(e.msg, "IP validation failed: 8.8.8.8 is not a private address");
    ip_guard_free(g);
    static const char *const bad[] = { "x", "10.0.0.0/33", "::/129", "10.0.0", "10.0.0.0/", "10.0.0.1-2", "[::1]", " 10.0.0.1", "" };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        char *item = (char *)(uintptr_t)bad[i];
        struct conf_list l = { &item, 1 };
        assert_int_equal(ip_guard_new(&l, false, &g, &e), RC_INVALID);
    }
    assert_int_equal(ip_guard_new(NULL, true, &g, &e), RC_OK);
    assert_int_equal(ip_guard_check(g, &a, &e), RC_OK);
    ip_guard_free(g);
}

static void sticky_is_bounded_and_forgets_the_oldest(void **st)
{
    (void)st;
    struct sticky *s = sticky_new();
    char id[32];
    size_t at = 99;
    for (int i = 0; i < STICKY_MAX + 10; i++) {
        (void)snprintf(id, sizeof id, "session-%d", i);
        sticky_set(s, slice_of(id), (size_t)i % 7);
        assert_true(sticky_get(s, SLICE("session-0"), &at));        /* looking counts as use */
        assert_int_equal(at, 0);
    }
    assert_false(sticky_get(s, SLICE("session-1"), &at));
    assert_true(sticky_get(s, slice_of(id), &at));
    sticky_set(s, slice_of(id), 3);
    assert_true(sticky_get(s, slice_of(id), &at));
    assert_int_equal(at, 3);
    sticky_drop(s, slice_of(id));
    assert_false(sticky_get(s, slice_of(id), &at));
    sticky_drop(s, slice_of(id));
    char lengthy[STICKY_ID_MAX + 2];
    memset(lengthy, 'x', sizeof lengthy);
    sticky_set(s, (struct slice){ lengthy, STICKY_ID_MAX + 1 }, 1);
    assert_false(sticky_get(s, (struct slice){ lengthy, STICKY_ID_MAX + 1 }, &at));
    sticky_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(addresses), cmocka_unit_test(words_and_errors), cmocka_unit_test(sticky_is_bounded_and_forgets_the_oldest) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
