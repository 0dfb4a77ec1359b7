/* The pure core of the loop where MCP servers come in: every state of two calls under every fact; every pair of events; tools offered and found again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "json/js.h"
#include "server/loop/decide.h"
#include "server/loop/tools.h"

static json_t *parse(const char *text)
{
    json_t *j = NULL;
    struct err e;
    if (js_parse(text, strlen(text), JS_BODY_MAX, &j, &e) < 0)
        fail_msg("%s", e.msg);
    return j;
}

/* ---- decide: all states ---- */
static bool may_run(const struct turn_call *c)
{
    return c->kind == CALL_MCP && !c->answered && (c->perm == PERM_ALLOW || (c->perm == PERM_ASK && c->verdict == VERDICT_ALLOW));
}

static void check_effect(const struct turn_state *st, const struct facts *f, struct effect ef)
{
    size_t open = 0, ready = 0, started = 0;
    for (size_t i = 0; i < st->n_calls; i++) {
        const struct turn_call *c = &st->calls[i];
        open += !c->answered;
        ready += may_run(c) && !c->started;
        started += may_run(c) && c->started;
    }
    switch (ef.kind) {
    case EFFECT_CALL_MCP: assert_true(ready > 0 && !f->draining && (started == 0 || f->calls_in_flight)); break;
    case EFFECT_RECOVER_MCP: assert_true(started > 0 && !f->calls_in_flight && !f->draining); break;
    case EFFECT_BLOCK: assert_true(open > 0 && ready == 0 && started == 0); break;
    case EFFECT_LIST_TOOLS: assert_true(f->mcp && !st->tools_listed && !f->listing && open == 0 && !f->draining); break;
    case EFFECT_CALL_MODEL: assert_true(open == 0 && (!f->mcp || st->tools_listed) && !f->listing && !f->draining); break;
    case EFFECT_COMPACT: assert_true(open == 0 && (!f->mcp || st->tools_listed)); break;
    case EFFECT_END: assert_true(open == 0); break;
    case EFFECT_WAIT: assert_true(f->listing || started > 0); break;
    case EFFECT_YIELD: assert_true(f->draining); break;
    case EFFECT_NONE: assert_true(st->run == TURN_IDLE && ready == 0 && started == 0); break;
    case EFFECT_INTERRUPT: assert_true(turn_has_input(st, INPUT_INTERRUPT)); break;
    case EFFECT_CANCEL:
    case EFFECT_RECOVER:
    case EFFECT_NOTE:
    case EFFECT_FAIL:
    case EFFECT_KIND_MAX_: fail_msg("unexpected effect %s", effect_kind_name(ef.kind));
    }
    if (turn_has_input(st, INPUT_INTERRUPT))
        assert_int_equal(ef.kind, EFFECT_INTERRUPT);
}

/* A call's state in one number. */
#define CALL_STATES (CALL_KIND_MAX_ * PERM_MAX_ * 3 * 2 * 2)
static struct turn_call call_of(int n)
{
    struct turn_call c = { .id = "sevt_x" };
    c.kind = (enum call_kind)(n % CALL_KIND_MAX_), n /= CALL_KIND_MAX_;
    c.perm = (enum call_perm)(n % PERM_MAX_), n /= PERM_MAX_;
    c.verdict = (enum call_verdict)(n % 3), n /= 3;
    c.answered = n % 2, n /= 2;
    c.started = n % 2 && c.kind == CALL_MCP;
    return c;
}

static void test_all_states(void **state)
{
    (void)state;
    size_t n = 0;
    for (int a = 0; a < CALL_STATES; a++)
        for (int b = 0; b < CALL_STATES; b++)
            for (int bits = 0; bits < 256; bits++) {
                struct turn_call calls[2] = { call_of(a), call_of(b) };
                struct turn_input in = { .id = "sevt_i", .kind = INPUT_INTERRUPT };
                struct turn_state st = { .run = bits & 1 ? TURN_RUNNING : TURN_IDLE, .calls = calls, .n_calls = 2, .stop = STOP_TOOL_USE, .tools_listed = bits & 2,
                                         .inputs = &in, .n_inputs = bits & 64 ? 1 : 0, .has_history = true, .context_tokens = bits & 128 ? 1000 : 0 };
                struct facts f = { .mcp = bits & 4, .listing = bits & 8, .calls_in_flight = bits & 16, .draining = bits & 32, .recoveries_max = 5, .compact_at = 500 };
                check_effect(&st, &f, decide(&st, &f));
                n++;
            }
    assert_int_equal(n, (size_t)CALL_STATES * CALL_STATES * 256);
}

/* ---- reduce: all pairs of events ---- */
static const struct { const char *type, *body, *ref; bool private; } events[] = {
    { "turn.tools", "{\"servers\":[],\"failed\":false}", NULL, true },
    { "turn.tools", "{\"servers\":[],\"failed\":true}", NULL, true },
    { "turn.tools", "{\"same\":true,\"failed\":false}", NULL, true },
    { "turn.assistant", "{\"content\":[],\"stop_reason\":\"tool_use\",\"usage\":{},\"calls\":["
      "{\"id\":\"t1\",\"event\":\"e1\",\"kind\":\"mcp\",\"permission\":\"allow\",\"server\":\"s\",\"tool\":\"t\",\"read_only\":true},"
      "{\"id\":\"t2\",\"event\":\"e2\",\"kind\":\"mcp\",\"permission\":\"ask\",\"server\":\"s\",\"tool\":\"u\"}]}", NULL, true },
    { "turn.call", "{\"ids\":[\"e1\"]}", NULL, true },
    { "turn.call", "{\"ids\":[\"e1\",\"e2\",\"nobody\",5]}", NULL, true },
    { "turn.recall", "{\"ids\":[\"e1\"]}", NULL, true },
    { "user.tool_confirmation", "{\"result\":\"allow\"}", "e2", false },
    { "user.tool_confirmation", "{\"result\":\"deny\"}", "e2", false },
    { "agent.mcp_tool_result", "{}", "e1", false },
    { "agent.mcp_tool_result", "{}", "e2", false },
    { "session.status_running", "{}", NULL, false },
    { "session.status_idle", "{\"stop_reason\":{\"type\":\"requires_action\"}}", NULL, false },
    { "session.status_idle", "{\"stop_reason\":{\"type\":\"end_turn\"}}", NULL, false },
    { "session.updated", "{}", NULL, false },
    { "session.error", "{}", NULL, false },
};

static void apply(struct turn_state *st, size_t i)
{
    struct err e = { 0 };
    struct turn_entry en = { .seq = st->last_seq + 1, .at_ms = 1000 + st->last_seq, .id = "x", .type = events[i].type, .body = events[i].body, .ref = events[i].ref };
    if (reduce_entry(st, &en, &e) < 0)
        fail_msg("%s: %s", events[i].type, e.msg);
}

static void check_state(const struct turn_state *before, const struct turn_state *st, size_t i)
{
    const char *t = events[i].type, *b = events[i].body;
    if (str_eq(t, "turn.tools")) {
        assert_true(st->tools_listed && !st->tools_retry);
        assert_int_equal(st->tools_failed, strstr(b, "\"failed\":true") != NULL);
        assert_int_equal(st->tools_seq, strstr(b, "same") ? before->tools_seq : st->last_seq);
    } else if (str_eq(t, "session.status_idle")) {
        bool stop = strstr(b, "requires") != NULL;
        assert_int_equal(st->tools_listed, stop && before->tools_listed && !before->tools_failed);
        assert_int_equal(st->tools_retry, stop);
        assert_int_equal(st->n_calls, stop ? before->n_calls : 0);
    } else if (str_eq(t, "session.updated")) {
        assert_false(st->tools_listed || st->tools_retry);
    } else {
        assert_int_equal(st->tools_listed, before->tools_listed);
        assert_int_equal(st->tools_seq, before->tools_seq);
    }
    if (str_eq(t, "turn.assistant")) {
        assert_int_equal(st->assistant_seq, st->last_seq);
        assert_int_equal(st->n_calls, 2);
        assert_true(st->calls[0].read_only && !st->calls[1].read_only && !st->calls[0].started && !st->calls[0].answered);
    } else if (str_eq(t, "turn.call") && st->n_calls) {
        assert_true(st->calls[0].started);
        assert_int_equal(st->calls[0].starts, before->calls[0].starts + 1);
    } else if (str_eq(t, "turn.recall") && st->n_calls) {
        assert_false(st->calls[0].started);
        assert_int_equal(st->calls[0].starts, before->calls[0].starts);
    } else if (str_eq(t, "agent.mcp_tool_result") && st->n_calls) {
        assert_true(st->calls[str_eq(events[i].ref, "e2")].answered);
    }
    assert_int_equal(turn_worker_calls(st), 0);      /* nothing of this is for a worker */
    assert_true(turn_mcp_calls(st, true) + turn_mcp_calls(st, false) <= turn_open_calls(st));
}

static void test_all_pairs(void **state)
{
    (void)state;
    for (size_t a = 0; a < COUNT_OF(events); a++)
        for (size_t b = 0; b < COUNT_OF(events); b++)
            for (size_t c = 0; c < COUNT_OF(events); c++) {
                const size_t order[] = { a, b, c };
                struct turn_state st, before;
                turn_state_init(&st);
                for (size_t k = 0; k < 3; k++) {
                    turn_state_init(&before);
                    turn_state_copy(&before, &st);
                    apply(&st, order[k]);
                    check_state(&before, &st, order[k]);
                    for (int bits = 0; bits < 16; bits++) {
                        struct facts f = { .mcp = bits & 1, .listing = bits & 2, .calls_in_flight = bits & 4, .draining = bits & 8, .recoveries_max = 5 };
                        check_effect(&st, &f, decide(&st, &f));
                    }
                    turn_state_done(&before);
                }
                turn_state_done(&st);
            }
}

/* ---- tools ---- */
#define AGENT "{\"mcp_servers\":[{\"name\":\"a\",\"url\":\"https://a/\"},{\"name\":\"b c\",\"url\":\"https://b/\"}],\"tools\":[" \
              "{\"type\":\"mcp_toolset\",\"mcp_server_name\":\"a\",\"default_config\":{\"enabled\":true,\"permission_policy\":{\"type\":\"always_ask\"}}," \
              "\"configs\":[{\"name\":\"off\",\"enabled\":false},{\"name\":\"free\",\"permission_policy\":{\"type\":\"always_allow\"}}]}," \
              "{\"type\":\"mcp_toolset\",\"mcp_server_name\":\"b c\",\"default_config\":{\"enabled\":false},\"configs\":[{\"name\":\"x.y\",\"enabled\":true}]}," \
              "{\"type\":\"custom\",\"name\":\"mine\",\"input_schema\":{\"type\":\"object\"}}]}"
#define OFFER "[{\"name\":\"a\",\"url\":\"https://a/\",\"tools\":[{\"name\":\"one\",\"description\":\"d\",\"inputSchema\":{\"type\":\"object\",\"properties\":{}}}," \
              "{\"name\":\"off\"},{\"name\":\"free\",\"annotations\":{\"readOnlyHint\":true}}]}," \
              "{\"name\":\"b c\",\"url\":\"https://b/\",\"tools\":[{\"name\":\"x.y\",\"inputSchema\":{}},{\"name\":\"z\"}]}]"

static void test_tools(void **state)
{
    (void)state;
    AUTO_JS agent = parse(AGENT);
    AUTO_JS mcp = parse(OFFER);
    AUTO_JS defs = tools_define(agent, mcp);
    AUTO_JS again = tools_define(agent, mcp);
    assert_true(json_equal(defs, again));
    assert_int_equal(json_array_size(defs), 4);
    assert_string_equal(js_str(defs, "0.name"), "mine");
    assert_string_equal(js_str(defs, "1.name"), "mcp__a__one");
    assert_string_equal(js_str(defs, "2.name"), "mcp__a__free");
    assert_string_equal(js_str(defs, "3.input_schema.type"), "object");
    size_t i;
    json_t *d;
    json_array_foreach(defs, i, d) {
        struct tool_use_rule r = tools_rule(agent, mcp, js_str(d, "name"));
        assert_int_equal(r.kind, i == 0 ? CALL_CUSTOM : CALL_MCP);
    }
    struct tool_use_rule one = tools_rule(agent, mcp, "mcp__a__one"), free_ = tools_rule(agent, mcp, "mcp__a__free"), off = tools_rule(agent, mcp, "mcp__a__off");
    assert_true(one.perm == PERM_ASK && str_eq(one.server, "a") && str_eq(one.tool, "one") && !one.read_only);
    assert_true(free_.perm == PERM_ALLOW && free_.read_only);
    assert_true(off.kind == CALL_NONE && off.perm == PERM_DENY && str_eq(off.tool, "off"));
    struct tool_use_rule odd = tools_rule(agent, mcp, js_str(defs, "3.name"));
    assert_true(str_eq(odd.server, "b c") && str_eq(odd.tool, "x.y"));
    assert_int_equal(tools_rule(agent, mcp, "mcp__a__nothing").kind, CALL_NONE);
    assert_int_equal(tools_rule(agent, NULL, "mcp__a__one").kind, CALL_NONE);
    assert_true(tools_any_mcp(agent));
    assert_false(tools_any_worker(agent));
    /* Another URL under the same name: the list is not that server's. */
    js_set_str(json_array_get(json_object_get(agent, "mcp_servers"), 0), "url", "https://other/");
    AUTO_JS fewer = tools_define(agent, mcp);
    assert_int_equal(json_array_size(fewer), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_all_states), cmocka_unit_test(test_all_pairs), cmocka_unit_test(test_tools) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
