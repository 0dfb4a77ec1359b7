#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "gateway/mcp.h"

struct got { struct mcp_call c[MCP_BATCH_MAX]; size_t n; };

static void on_call(void *ctx, const struct mcp_call *c)
{
    struct got *g = ctx;
    assert_true(g->n < MCP_BATCH_MAX);
    g->c[g->n++] = *c;
}

/* In pieces of `step` bytes; every cut must give the same. */
static enum mcp_result scan(const char *p, size_t n, size_t step, struct got *g, struct mcp_scan *s)
{
    g->n = 0;
    mcp_init(s, on_call, g);
    for (size_t i = 0; i < n; i += step)
        mcp_feed(s, p + i, n - i < step ? n - i : step);
    return mcp_finish(s);
}

#define CALL(m, t) "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"" m "\",\"params\":{\"name\":\"" t "\",\"arguments\":{\"name\":\"inner\",\"x\":[1,{\"method\":\"no\"}]}}}"

static const struct row { const char *text; enum mcp_result result; size_t n; const char *method, *name, *id, *version; bool unclear; } rows[] = {
    { CALL("tools/call", "read"), MCP_RPC, 1, "tools/call", "read", "1", "", false },
    { "{\"params\":{\"arguments\":{},\"name\":\"b\"},\"method\":\"tools/call\",\"id\":\"x\\n\\u0041\"}", MCP_RPC, 1, "tools/call", "b", "\"x\\n\\u0041\"", "", false },
    { " \r\n\t{ \"method\" : \"ping\" , \"id\" : -1.5e+3 } \n", MCP_RPC, 1, "ping", "", "-1.5e+3", "", false },
    { "{\"\\u006d\\u0065thod\":\"tools\\/c\\u0061ll\",\"params\":{\"\\u006eame\":\"\\u00e9\\ud83d\\ude00\"}}", MCP_RPC, 1, "tools/call", "\xc3\xa9\xf0\x9f\x98\x80", "", "", false },
    { "{\"method\":\"initialize\",\"params\":{\"protocolVersion\":\"2025-06-18\"},\"id\":0}", MCP_RPC, 1, "initialize", "", "0", "2025-06-18", false },
    { "{\"method\":\"m\",\"params\":{\"_meta\":{\"io.modelcontextprotocol/protocolVersion\":\"2026-07-28\",\"name\":\"no\"}}}", MCP_RPC, 1, "m", "", "", "2026-07-28", false },
    { "{\"id\":3,\"result\":{\"method\":\"x\",\"params\":{\"name\":\"y\"}}}", MCP_RPC, 1, "", "", "3", "", false },
    { "{\"method\":\"m\",\"params\":[{\"name\":\"x\"}]}", MCP_RPC, 1, "m", "", "", "", false },
    { "{\"method\":\"m\",\"params\":null}", MCP_RPC, 1, "m", "", "", "", false },
    { "{\"x\":{\"name\":\"no\"},\"method\":\"m\"}", MCP_RPC, 1, "m", "", "", "", false },
    { "{}", MCP_RPC, 1, "", "", "", "", false },
    { "[]", MCP_RPC, 0, NULL, NULL, NULL, NULL, false },
    { "", MCP_OTHER, 0, NULL, NULL, NULL, NULL, false },
    { "  ", MCP_OTHER, 0, NULL, NULL, NULL, NULL, false },
    { "a=b&c=d", MCP_OTHER, 0, NULL, NULL, NULL, NULL, false },
    { "\"text\"", MCP_OTHER, 0, NULL, NULL, NULL, NULL, false },
    /* two readings */
    { "{\"method\":\"a\",\"method\":\"b\"}", MCP_RPC, 1, NULL, NULL, NULL, NULL, true },
    { "{\"method\":\"a\",\"METHOD\":\"b\"}", MCP_RPC, 1, NULL, NULL, NULL, NULL, true },
    { "{\"method\":\"a\",\"Params\":{\"name\":\"x\"}}", MCP_RPC, 1, NULL, NULL, NULL, NULL, true },
    { "{\"method\":\"a\",\"param\xc5\xbf\":{\"name\":\"x\"}}", MCP_RPC, 1, NULL, NULL, NULL, NULL, true },
    { "{\"method\":\"a\",\"params\":{\"name\":\"x\",\"Name\":\"y\"}}", MCP_RPC, 1, NULL, NULL, NULL, NULL, true },
    { "{\"method\":\"a\",\"params\":{\"name\":\"x\"},\"params\":{}}", MCP_RPC, 1, NULL, NULL, NULL, NULL, true },
    { "{\"method\":\"a\",\"params\":{\"name\":\"x\\u0000y\"}}", MCP_RPC, 1, NULL, NULL, NULL, NULL, true },
    { "{\"method\":\"a\",\"params\":{\"name\":\"\\ud800\"}}", MCP_RPC, 1, NULL, NULL, NULL, NULL, true },
    { "{\"method\":\"a\",\"params\":{\"name\":\"\\ud800x\"}}", MCP_RPC, 1, NULL, NULL, NULL, NULL, true },
    { "{\"method\":\"a\",\"params\":{\"name\":\"\xff\"}}", MCP_RPC, 1, NULL, NULL, NULL, NULL, true },
    { "{\"method\":1}", MCP_RPC, 1, NULL, NULL, NULL, NULL, true },
    { "{\"method\":\"a\",\"params\":{\"name\":{\"x\":1}}}", MCP_RPC, 1, NULL, NULL, NULL, NULL, true },
    { "{\"method\":\"a\",\"params\":\"x\"}", MCP_RPC, 1, NULL, NULL, NULL, NULL, true },
    /* not to be read */
    { "{\"method\":\"a\"", MCP_UNPARSED, 0, NULL, NULL, NULL, NULL, false },
    { "{\"method\":\"a\"}x", MCP_UNPARSED, 1, NULL, NULL, NULL, NULL, false },
    { "{\"method\":\"a\"}{\"method\":\"b\"}", MCP_UNPARSED, 1, NULL, NULL, NULL, NULL, false },
    { "{'method':'a'}", MCP_UNPARSED, 0, NULL, NULL, NULL, NULL, false },
    { "{\"a\":01}", MCP_UNPARSED, 0, NULL, NULL, NULL, NULL, false },
    { "{\"a\":1.}", MCP_UNPARSED, 0, NULL, NULL, NULL, NULL, false },
    { "{\"a\":NaN}", MCP_UNPARSED, 0, NULL, NULL, NULL, NULL, false },
    { "{\"a\":1,}", MCP_UNPARSED, 0, NULL, NULL, NULL, NULL, false },
    { "{\"a\":tru}", MCP_UNPARSED, 0, NULL, NULL, NULL, NULL, false },
    { "{\"a\":\"\n\"}", MCP_UNPARSED, 0, NULL, NULL, NULL, NULL, false },
    { "{\"a\":\"\\x\"}", MCP_UNPARSED, 0, NULL, NULL, NULL, NULL, false },
    { "{/* */}", MCP_UNPARSED, 0, NULL, NULL, NULL, NULL, false },
    { "[1}", MCP_UNPARSED, 1, NULL, NULL, NULL, NULL, false },
    { "\xef\xbb\xbf{}", MCP_UNPARSED, 0, NULL, NULL, NULL, NULL, false },
    { "\xff\xfe{", MCP_UNPARSED, 0, NULL, NULL, NULL, NULL, false },
    { "\x1f\x8b\x08", MCP_UNPARSED, 0, NULL, NULL, NULL, NULL, false },
};

static void table(void **st)
{
    (void)st;
    static struct got g;
    struct mcp_scan s;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct row *r = &rows[i];
        for (size_t step = 1; step <= strlen(r->text) + 1; step++) {
            enum mcp_result got = scan(r->text, strlen(r->text), step, &g, &s);
            if (got != r->result || g.n != r->n)
                fail_msg("row %zu step %zu: %s: result %d n %zu why %s", i, step, r->text, got, g.n, mcp_why(&s));
            if (!r->n)
                continue;
            assert_int_equal(g.c[0].unclear, r->unclear || (r->result == MCP_UNPARSED && g.c[0].unclear));
            if (r->method) {
                assert_string_equal(g.c[0].method, r->method);
                assert_string_equal(g.c[0].name, r->name);
                assert_string_equal(g.c[0].id, r->id);
                assert_string_equal(g.c[0].version, r->version);
                assert_int_equal(g.c[0].is_call, *r->method != 0);
            }
        }
    }
}

static void utf16(void **st)
{
    (void)st;
    static struct got g;
    struct mcp_scan s;
    static const char le[] = "{\0}", be[] = "\0{\0}", spaced[] = " \0{\0}";
    assert_int_equal(scan(le, sizeof le, 1, &g, &s), MCP_UNPARSED);
    assert_int_equal(scan(be, sizeof be, 1, &g, &s), MCP_UNPARSED);
    assert_int_equal(scan(spaced, sizeof spaced, 1, &g, &s), MCP_UNPARSED);
}

static void batches(void **st)
{
    (void)st;
    static struct got g;
    struct mcp_scan s;
    static const char two[] = "[" CALL("tools/call", "a") " , " CALL("ping", "b") "]", odd[] = "[[" CALL("tools/call", "a") "],1,\"x\"]";
    assert_int_equal(scan(two, sizeof two - 1, 3, &g, &s), MCP_RPC);
    assert_true(mcp_is_batch(&s));
    assert_int_equal(g.n, 2);
    assert_string_equal(g.c[0].name, "a");
    assert_string_equal(g.c[1].method, "ping");
    assert_string_equal(g.c[1].name, "b");
    assert_int_equal(scan(odd, sizeof odd - 1, 1, &g, &s), MCP_RPC);
    assert_int_equal(g.n, 3);
    for (size_t i = 0; i < 3; i++)
        assert_true(g.c[i].unclear);
    char many[2 + 3 * (MCP_BATCH_MAX + 1)] = "[";
    for (size_t i = 0; i < MCP_BATCH_MAX; i++)
        strcat(many, i ? ",{}" : "{}");
    size_t n = strlen(many);
    many[n] = ']';
    assert_int_equal(scan(many, n + 1, 7, &g, &s), MCP_RPC);
    strcpy(many + n, ",{}]");
    assert_int_equal(scan(many, n + 4, 7, &g, &s), MCP_UNPARSED);
}

static void limits(void **st)
{
    (void)st;
    static struct got g;
    struct mcp_scan s;
    char text[1024], deep[2 * MCP_DEPTH_MAX + 32] = "{\"a\":";
    for (size_t n = MCP_NAME_MAX - 1; n <= MCP_NAME_MAX + 1; n++) {
        int len = snprintf(text, sizeof text, "{\"method\":\"tools/call\",\"params\":{\"name\":\"%0*d\"}}", (int)n, 0);
        assert_int_equal(scan(text, (size_t)len, 9, &g, &s), MCP_RPC);
        assert_int_equal(g.c[0].unclear, n > MCP_NAME_MAX);
        len = snprintf(text, sizeof text, "{\"id\":\"%0*d\",\"method\":\"x\"}", (int)n - 2, 0);
        assert_int_equal(scan(text, (size_t)len, 9, &g, &s), MCP_RPC);
        assert_int_equal(strlen(g.c[0].id), n > MCP_ID_MAX ? 0 : n);
        assert_false(g.c[0].unclear);
    }
    memset(deep + 5, '[', MCP_DEPTH_MAX);
    assert_int_equal(scan(deep, 5 + MCP_DEPTH_MAX, 64, &g, &s), MCP_UNPARSED);
    assert_string_equal(mcp_why(&s), "nested too deep");
    size_t at = 5 + MCP_DEPTH_MAX - 1;
    memset(deep + at, ']', MCP_DEPTH_MAX - 1);
    deep[at + MCP_DEPTH_MAX - 1] = '}';
    assert_int_equal(scan(deep, at + MCP_DEPTH_MAX, 64, &g, &s), MCP_RPC);
    g.n = 0;
    mcp_init(&s, on_call, &g);
    static char blanks[MIB];
    memset(blanks, ' ', sizeof blanks);
    mcp_feed(&s, "{", 1);
    for (size_t i = 0; i < MCP_SCAN_MAX / MIB; i++)
        mcp_feed(&s, blanks, sizeof blanks);
    assert_int_equal(mcp_finish(&s), MCP_UNPARSED);
    assert_string_equal(mcp_why(&s), "too large");
}

static void mirrored_headers(void **st)
{
    (void)st;
    assert_true(mcp_mirrors("2026-07-28"));
    assert_true(mcp_mirrors("2027-01-01"));
    assert_false(mcp_mirrors("2025-11-25"));
    assert_false(mcp_mirrors(""));
    assert_true(mcp_header_agrees("search", 6, "search"));
    assert_false(mcp_header_agrees("search", 6, "Search"));
    assert_true(mcp_header_agrees("=?base64?w6k=?=", 15, "\xc3\xa9"));
    assert_false(mcp_header_agrees("=?base64?!!?=", 13, "x"));
    assert_false(mcp_header_agrees("=?base64?", 9, "x"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table), cmocka_unit_test(utf16), cmocka_unit_test(batches), cmocka_unit_test(limits), cmocka_unit_test(mirrored_headers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
