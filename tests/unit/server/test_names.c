/* Names of MCP tools as the model sees them: legal, stable, never the same for two tools. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/attr.h"
#include "server/mcp/names.h"

static void test_names(void **state)
{
    (void)state;
    static const struct { const char *server, *tool, *want; } t[] = {          /* want ending in '*': a hash follows */
        { "docs", "search", "mcp__docs__search" },
        { "my-docs", "read_file", "mcp__my-docs__read_file" },
        { "docs", "a__b", "mcp__docs__a__b" },
        { "docs", "files.read", "mcp__docs__files_read_*" },
        { "my docs", "search", "mcp__my_docs__search_*" },
        { "a__b", "c", "mcp__a__b__c_*" },
        { "a_", "c", "mcp__a___c_*" },
        { "a", "_c", "mcp__a___c_*" },
        { "d\xc3\xb6" "cs", "x", "mcp__d__cs__x_*" },
        { "docs", "x_0123456789", "mcp__docs__x_0123456789_*" },
        { "docs", "x_012345678g", "mcp__docs__x_012345678g" },
        { "", "x", "mcp____x_*" },
        { "s", "", "mcp__s___*" },
    };
    char got[COUNT_OF(t)][MCP_NAME_MAX];
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        mcp_tool_name(t[i].server, t[i].tool, got[i]);
        size_t n = strlen(t[i].want);
        if (t[i].want[n - 1] == '*') {
            assert_int_equal(strlen(got[i]), n - 1 + 10);
            assert_memory_equal(got[i], t[i].want, n - 1);
        } else {
            assert_string_equal(got[i], t[i].want);
        }
        assert_int_equal(got[i][strspn(got[i], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")], '\0');
        assert_true(mcp_tool_name_is(got[i]));
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(got[i], got[k]);
    }
    assert_false(mcp_tool_name_is("bash"));
    assert_false(mcp_tool_name_is("mcp__x"));
}

static void test_long_names(void **state)
{
    (void)state;
    char server[300], tool[300], a[MCP_NAME_MAX], b[MCP_NAME_MAX];
    for (size_t n = 1; n < sizeof tool; n++) {
        memset(server, 's', n), memset(tool, 't', n);
        server[n] = tool[n] = '\0';
        mcp_tool_name(server, tool, a);
        assert_true(strlen(a) < MCP_NAME_MAX);
        tool[n - 1] = 'u';
        mcp_tool_name(server, tool, b);
        assert_string_not_equal(a, b);
    }
    /* A tool cannot choose a name that looks like another's hashed one: its own would have been hashed too. */
    memset(tool, 't', 200), tool[200] = '\0';
    mcp_tool_name("s", tool, a);
    assert_int_equal(strlen(a), MCP_NAME_MAX - 1);
    mcp_tool_name("s", a + strlen("mcp__s__"), b);
    assert_string_not_equal(a, b);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_names), cmocka_unit_test(test_long_names) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
