#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "base/str.h"
#include "gateway/policy.h"
#include "json/js.h"

static void globs(void **st)
{
    (void)st;
    static const struct { const char *rule, *name; bool want; } rows[] = {
        { "a", "a", true }, { "a", "b", false }, { "a", "", false }, { "", "", true }, { "*", "", true }, { "*", "x/y", true }, { "a*", "abc", true }, { "*c", "abc", true },
        { "a*c", "abbbc", true }, { "a*c", "abbbd", false }, { "*b*", "abc", true }, { "a?c", "abc", true }, { "a?c", "ac", false }, { "**", "x", true }, { "*a*b*c", "xaxbxc", true },
        { "*a*b*c", "xaxcxb", false }, { "A", "a", false }, { "[a]", "a", false }, { "?*", "", false },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (tool_match(rows[i].rule, rows[i].name) != rows[i].want)
            fail_msg("row %zu", i);
}

static struct mcp_call call(const char *method, const char *name)
{
    struct mcp_call c = { .is_call = true };
    (void)str_copy(c.method, sizeof c.method, method);
    (void)str_copy(c.name, sizeof c.name, name);
    return c;
}

static void decisions(void **st)
{
    (void)st;
    const char *allow[] = { "read_*", "search" }, *deny[] = { "*_all" };
    struct tool_policy *p = NULL, *only_deny = NULL;
    struct err e;
    char why[256];
    assert_int_equal(tool_policy_new(allow, 2, deny, 1, &p, &e), RC_OK);
    assert_int_equal(tool_policy_new(NULL, 0, deny, 1, &only_deny, &e), RC_OK);
    static const struct { const char *method, *name; bool refused, refused_deny; } rows[] = {
        { "tools/call", "search", false, false }, { "tools/call", "read_x", false, false }, { "tools/call", "read_all", true, true }, { "tools/call", "write", true, false },
        { "tools/call", "", true, false }, { "tools/list", "write", false, false }, { "prompts/get", "x_all", false, false },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct mcp_call c = call(rows[i].method, rows[i].name);
        assert_int_equal(tool_policy_refuses(p, &c, why) != NULL, rows[i].refused);
        assert_int_equal(tool_policy_refuses(only_deny, &c, why) != NULL, rows[i].refused_deny);
        c.unclear = true;
        assert_non_null(tool_policy_refuses(p, &c, why));
    }
    tool_policy_free(p);
    tool_policy_free(only_deny);
}

static void bad_rules(void **st)
{
    (void)st;
    const char *twice[] = { "a", "a" }, *empty[] = { "" };
    char text[POLICY_RULE_MAX + 2];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    const char *lengthy[] = { text };
    struct tool_policy *p = NULL;
    struct err e;
    assert_int_equal(tool_policy_new(twice, 2, NULL, 0, &p, &e), RC_INVALID);
    assert_int_equal(tool_policy_new(NULL, 0, empty, 1, &p, &e), RC_INVALID);
    assert_int_equal(tool_policy_new(lengthy, 1, NULL, 0, &p, &e), RC_INVALID);
    lengthy[0]++;
    assert_int_equal(tool_policy_new(lengthy, 1, NULL, 0, &p, &e), RC_OK);
    tool_policy_free(p);
}

static void answers(void **st)
{
    (void)st;
    struct buf b;
    struct err e;
    static const struct { const char *id, *tool; } rows[] = { { "", NULL }, { "7", "x" }, { "\"a\\\"b\"", "we\"ird\n" } };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_JS j = NULL;
        buf_init(&b, POLICY_REFUSAL_MAX);
        assert_int_equal(tool_policy_answer(&b, rows[i].id, "docs", rows[i].tool, "because"), RC_OK);
        assert_int_equal(js_parse(buf_data(&b), buf_len(&b), 1 << 20, &j, &e), RC_OK);
        assert_int_equal(js_int(j, "error.code", 0), -32603);
        assert_non_null(strstr(js_str(j, "error.message"), "'docs'"));
        assert_non_null(strstr(js_str(j, "error.message"), "because. Do not retry."));
        assert_string_equal(js_str(j, "error.data.policy"), "docs");
        assert_true(*rows[i].id ? json_object_get(j, "id") && !js_is_null(j, "id") : js_is_null(j, "id"));
        buf_done(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(globs), cmocka_unit_test(decisions), cmocka_unit_test(bad_rules), cmocka_unit_test(answers) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
