#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "gateway/rpc.h"
#include "base/rc.h"

static void test_kinds(void **st)
{
    (void)st;
    const struct { const char *in; int rc; enum rpc_kind kind; bool syntax; const char *id; } t[] = {
        { "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\"}", RC_OK, RPC_REQUEST, false, "1" },
        { " \n{ \"method\" : \"a\" , \"id\" : \"x\" } \r\n", RC_OK, RPC_REQUEST, false, "\"x\"" },
        { "{\"method\":\"a\"}", RC_OK, RPC_NOTIFICATION, false, "" },
        { "{\"id\":1,\"result\":{}}", RC_OK, RPC_RESPONSE, false, "1" },
        { "{\"id\":-1.5e3,\"error\":{}}", RC_OK, RPC_RESPONSE, false, "-1.5e3" },
        { "{\"id\":null,\"error\":{}}", RC_OK, RPC_RESPONSE, false, "" },
        { "{\"id\":123456789012345678901234567890,\"method\":\"a\"}", RC_OK, RPC_REQUEST, false, "123456789012345678901234567890" },
        { "{\"id\":1,\"method\":\"a\",\"other\":[{\"id\":7},\"\\u12aF\"]}", RC_OK, RPC_REQUEST, false, "1" },
        { "{\"id\":null,\"result\":{}}", RC_INVALID, 0, false, NULL }, { "{\"id\":null,\"method\":\"a\"}", RC_INVALID, 0, false, NULL },
        { "{\"id\":1}", RC_INVALID, 0, false, NULL }, { "{\"id\":1,\"result\":1,\"error\":1}", RC_INVALID, 0, false, NULL },
        { "{\"id\":[1],\"method\":\"a\"}", RC_INVALID, 0, false, NULL }, { "{\"id\":true,\"method\":\"a\"}", RC_INVALID, 0, false, NULL },
        { "{\"id\":1,\"id\":1,\"method\":\"a\"}", RC_INVALID, 0, false, NULL }, { "{\"\\u0069d\":1,\"method\":\"a\"}", RC_INVALID, 0, false, NULL },
        { "{\"id\":1,\"method\":7}", RC_INVALID, 0, false, NULL }, { "{\"id\":1,\"method\":\"\"}", RC_INVALID, 0, false, NULL },
        { "{\"id\":1,\"method\":\"a\",\"params\":\"x\"}", RC_INVALID, 0, false, NULL }, { "{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"a\"}", RC_INVALID, 0, false, NULL },
        { "7", RC_INVALID, 0, false, NULL }, { "[]", RC_INVALID, 0, false, NULL }, { "\"x\"", RC_INVALID, 0, false, NULL },
        { "", RC_INVALID, 0, true, NULL }, { "{", RC_INVALID, 0, true, NULL }, { "{\"id\":1,}", RC_INVALID, 0, true, NULL }, { "{\"a\":01}", RC_INVALID, 0, true, NULL },
        { "{\"a\":\"\\x\"}", RC_INVALID, 0, true, NULL }, { "{\"a\":\"\t\"}", RC_INVALID, 0, true, NULL }, { "{\"a\":1} x", RC_INVALID, 0, true, NULL },
        { "{\"a\":tru}", RC_INVALID, 0, true, NULL }, { "{\"a\":1.}", RC_INVALID, 0, true, NULL }, { "{\"a\":\"\xff\"}", RC_INVALID, 0, true, NULL }, { "hello", RC_INVALID, 0, true, NULL },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct rpc m;
        bool syntax = false;
        const char *why = "";
        int rc = rpc_parse(t[i].in, strlen(t[i].in), &m, &syntax, &why);
        if (rc != t[i].rc || syntax != t[i].syntax || (rc == RC_OK && (m.kind != t[i].kind || !slice_eq(m.id, t[i].id))))
            fail_msg("row %zu %s: rc %d syntax %d why %s", i, t[i].in, rc, syntax, why);
    }
}

static void test_depth(void **st)
{
    (void)st;
    static char text[4 * RPC_DEPTH_MAX];
    for (int extra = -1; extra <= 1; extra++) {
        size_t n = 0, depth = (size_t)(RPC_DEPTH_MAX + extra - 1);
        n += (size_t)sprintf(text, "{\"id\":1,\"result\":");
        memset(text + n, '[', depth);
        n += depth;
        memset(text + n, ']', depth);
        n += depth;
        text[n++] = '}';
        struct rpc m;
        bool syntax;
        const char *why;
        assert_int_equal(rpc_parse(text, n, &m, &syntax, &why), extra <= 0 ? RC_OK : RC_INVALID);
    }
}

static void test_parts(void **st)
{
    (void)st;
    struct slice object = slice_of("{\"a\":{\"b\":[1]},\"c\":\"x\",\"c\":\"y\"}"), v;
    assert_true(rpc_member(object, "a", &v));
    assert_true(slice_eq(v, "{\"b\":[1]}"));
    assert_true(rpc_member(v, "b", &v));
    assert_true(slice_eq(v, "[1]"));
    assert_false(rpc_member(v, "b", &v));
    assert_true(rpc_member(object, "c", &v));
    assert_true(slice_eq(v, "\"y\""));
    assert_false(rpc_member(object, "d", &v));
    assert_false(rpc_member((struct slice){ NULL, 0 }, "d", &v));

    char a[RPC_ID_MAX], b[RPC_ID_MAX], text[8];
    assert_true(rpc_key(slice_of("\"\\u0061\\/\""), a) && rpc_key(slice_of("\"a/\""), b));
    assert_string_equal(a, b);
    assert_true(rpc_key(slice_of("7"), a) && rpc_key(slice_of("\"7\""), b));
    assert_string_not_equal(a, b);
    assert_false(rpc_key(slice_of("null"), a));
    assert_false(rpc_key(slice_of("{}"), a));
    char longest[RPC_ID_MAX + 8];
    memset(longest, 'x', sizeof longest);
    longest[0] = longest[RPC_ID_MAX - 2] = '"';
    assert_true(rpc_key((struct slice){ longest, RPC_ID_MAX - 1 }, a));
    longest[RPC_ID_MAX - 2] = 'x';
    longest[RPC_ID_MAX - 1] = '"';
    assert_false(rpc_key((struct slice){ longest, RPC_ID_MAX }, a));
    assert_true(rpc_string(slice_of("\"a\\nb\""), text, sizeof text));
    assert_string_equal(text, "a\nb");
    assert_false(rpc_string(slice_of("\"12345678\""), text, sizeof text));
    assert_false(rpc_string(slice_of("7"), text, sizeof text));
}

static void test_batches(void **st)
{
    (void)st;
    struct slice items[RPC_BATCH_MAX];
    size_t n = 9;
    const char *two = " [ {\"a\":[1,2]} , {} ]";
    assert_true(rpc_is_batch(two, strlen(two)));
    assert_int_equal(rpc_items(two, strlen(two), items, &n), RC_OK);
    assert_int_equal(n, 2);
    assert_true(slice_eq(items[0], "{\"a\":[1,2]}"));
    assert_int_equal(rpc_items("[]", 2, items, &n), RC_OK);
    assert_int_equal(n, 0);
    assert_int_equal(rpc_items("[1,]", 4, items, &n), RC_INVALID);
    assert_int_equal(rpc_items("{}", 2, items, &n), RC_INVALID);
    assert_false(rpc_is_batch("{}", 2));
    char many[3 * RPC_BATCH_MAX + 8] = "[1";
    for (int i = 1; i < RPC_BATCH_MAX; i++)
        memcpy(many + 2 * i, ",1", 3);
    size_t len = strlen(many);
    memcpy(many + len, "]", 2);
    assert_int_equal(rpc_items(many, len + 1, items, &n), RC_OK);
    assert_int_equal(n, RPC_BATCH_MAX);
    memcpy(many + len, ",1]", 4);
    assert_int_equal(rpc_items(many, len + 3, items, &n), RC_TOO_LARGE);
}

int main(void)
{
    const struct CMUnitTest t[] = { cmocka_unit_test(test_kinds), cmocka_unit_test(test_depth), cmocka_unit_test(test_parts), cmocka_unit_test(test_batches) };
    return cmocka_run_group_tests(t, NULL, NULL);
}
