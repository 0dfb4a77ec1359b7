/* Request shapes: what is accepted, what is refused, and that the message names the place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "server/api/schema.h"

static uint16_t body_of(const char *op)
{
    const struct schema_op *o = schema_op_find(op);
    assert_non_null(o);
    assert_int_not_equal(o->body, 0);
    return o->body;
}

static json_t *parse(const char *text)
{
    json_t *v = NULL;
    struct err e = { 0 };
    if (js_parse(text, strlen(text), JS_BODY_MAX, &v, &e) != RC_OK)
        fail_msg("%s: %s", text, e.msg);
    return v;
}

#define EV "{\"type\":\"user.message\",\"content\":[{\"type\":\"text\",\"text\":\"x\"}]}"

static void test_bodies(void **state)
{
    (void)state;
    static const struct { const char *op, *in, *msg; } t[] = {
        { "beta_agents_create", "{\"name\":\"n\",\"model\":\"m\"}", NULL },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":{\"id\":\"m\",\"effort\":\"low\"}}", NULL },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":{\"id\":\"m\",\"effort\":{\"type\":\"low\"}}}", NULL },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":{\"id\":\"m\",\"effort\":null,\"speed\":null}}", NULL },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":\"m\",\"unknown\":[1]}", NULL },
        { "beta_agents_create", "{}", "model: field required; name: field required" },
        { "beta_agents_create", "{\"model\":\"m\"}", "name: field required" },
        { "beta_agents_create", "{\"name\":5,\"model\":\"m\"}", "name: expected a string" },
        { "beta_agents_create", "{\"name\":\"\",\"model\":\"m\"}", "name: minimum string length is 1" },
        { "beta_agents_create", "{\"name\":null,\"model\":\"m\"}", "name: expected a string" },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":7}", "model: expected a string or an object" },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":{}}", "model.id: field required" },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":{\"id\":\"m\",\"speed\":\"warp\"}}", "model.speed: expected one of 'standard', 'fast'" },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":\"m\",\"tools\":{}}", "tools: expected an array" },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":\"m\",\"tools\":[{\"type\":\"x\"}]}", "tools.0.type: expected one of" },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":\"m\",\"tools\":[{}]}", "tools.0.type: field required" },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":\"m\",\"tools\":[{\"type\":5}]}", "tools.0.type: expected one of" },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":\"m\",\"tools\":[5]}", "tools.0: expected an object" },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":\"m\",\"tools\":[{\"type\":\"custom\",\"name\":\"bad name\",\"description\":\"d\",\"input_schema\":{\"type\":\"object\"}}]}",
          "tools.0.name: expected 1 to 128 characters" },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":\"m\",\"tools\":[{\"type\":\"custom\",\"name\":\"ok\",\"description\":\"d\",\"input_schema\":{\"type\":\"array\"}}]}",
          "tools.0.input_schema.type: expected" },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":\"m\",\"tools\":[{\"type\":\"agent_toolset_20260401\",\"configs\":[{\"name\":\"bash\",\"enabled\":\"yes\"}]}]}",
          "tools.0.configs.0.enabled: expected a boolean" },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":\"m\",\"metadata\":{\"k\":1}}", "metadata.k: expected a string" },
        { "beta_agents_create", "{\"name\":\"n\",\"model\":\"m\",\"metadata\":{\"\":\"v\"}}", "metadata: an empty key" },
        { "beta_agents_create", "[]", "body: expected an object" },
        { "beta_agents_update", "{}", NULL },
        { "beta_agents_update", "{\"metadata\":{\"k\":null},\"system\":null,\"tools\":null}", NULL },
        { "beta_agents_update", "{\"name\":null}", "name: expected a string" },
        { "beta_environments_create", "{\"name\":\"local\",\"config\":{\"type\":\"self_hosted\"}}", NULL },
        { "beta_environments_create", "{\"name\":\"local\",\"config\":null}", NULL },
        { "beta_environments_create", "{\"name\":\"local\",\"config\":{\"type\":\"moon\"}}", "config.type: expected one of" },
        { "beta_environments_work_stop", "{}", NULL },
        { "beta_environments_work_stop", "{\"force\":true}", NULL },
        { "beta_environments_work_stop", "{\"force\":1}", "force: expected a boolean" },
        { "beta_environments_work_update", "{}", "metadata: field required" },
        { "beta_sessions_create", "{\"agent\":\"a\",\"environment_id\":\"e\",\"initial_events\":[" EV "]}", NULL },
        { "beta_sessions_create", "{\"agent\":{\"type\":\"agent\",\"id\":\"a\",\"version\":0},\"environment_id\":\"e\"}", "agent.version: must be at least 1" },
        { "beta_sessions_create", "{\"agent\":{\"type\":\"agent_with_overrides\",\"id\":\"a\",\"tools\":null,\"model\":null},\"environment_id\":\"e\"}", NULL },
        { "beta_sessions_create", "{\"agent\":\"a\",\"environment_id\":\"e\",\"initial_events\":[{\"type\":\"user.interrupt\"}]}", "initial_events.0.type: expected one of" },
        { "beta_sessions_events_send", "{\"events\":[]}", "events: expected at least 1 entries" },
        { "beta_sessions_events_send", "{\"events\":[" EV "]}", NULL },
        { "beta_sessions_events_send", "{\"events\":[" EV ",{\"type\":\"user.message\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"},{\"type\":\"text\"}]}]}",
          "events.1.content.2.text: field required" },
        { "beta_sessions_events_send", "{\"events\":[{\"type\":\"user.message\",\"content\":[{\"type\":\"text\",\"text\":5}]}]}", "events.0.content.0.text: expected a string" },
        { "beta_sessions_events_send", "{\"events\":[{\"type\":\"user.message\",\"content\":[{\"type\":\"text\",\"text\":\"\"}]}]}", "minimum string length is 1" },
        { "beta_sessions_events_send", "{\"events\":[{\"type\":\"user.message\",\"content\":[{\"type\":\"redacted\"}]}]}", "events.0.content.0.type: expected one of" },
        { "beta_sessions_events_send", "{\"events\":[{\"type\":\"agent.message\",\"content\":[]}]}", "events.0.type: expected one of" },
        { "beta_sessions_events_send", "{\"events\":[{\"type\":\"user.tool_confirmation\",\"tool_use_id\":\"t\",\"result\":\"maybe\"}]}", "events.0.result: expected one of 'allow', 'deny'" },
        { "beta_sessions_events_send", "{\"events\":[{\"type\":\"user.tool_result\",\"tool_use_id\":\"t\"}]}", NULL },
        { "beta_sessions_events_send", "{\"events\":[{\"type\":\"user.define_outcome\",\"description\":\"d\",\"rubric\":{\"type\":\"text\",\"content\":\"c\"},\"max_iterations\":21}]}",
          "max_iterations: must be at most 20" },
        { "beta_sessions_update", "{\"title\":null,\"metadata\":null}", NULL },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct err e = { 0 };
        AUTO_JS v = parse(t[i].in);
        int rc = shape_check(body_of(t[i].op), v, &e);
        if ((rc == RC_OK) != (t[i].msg == NULL) || (t[i].msg && !strstr(e.msg, t[i].msg)))
            fail_msg("row %zu %s %s: rc %d '%s'", i, t[i].op, t[i].in, rc, e.msg);
    }
}

/* At a limit and one over it, in characters, not bytes. */
static void test_lengths(void **state)
{
    (void)state;
    static const struct { const char *op, *key; int max; } t[] = {
        { "beta_agents_create", "name", 256 }, { "beta_agents_create", "description", 2048 }, { "beta_agents_create", "system", 100000 },
        { "beta_environments_create", "name", 256 }, { "beta_sessions_create", "title", 512 },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++)
        for (int over = 0; over < 2; over++) {
            struct err e = { 0 };
            struct buf b;
            buf_init(&b, MIB);
            for (int k = 0; k < t[i].max + over; k++)
                buf_puts(&b, "\xc3\xa4");
            AUTO_JS v = parse("{\"name\":\"n\",\"model\":\"m\",\"agent\":\"a\",\"environment_id\":\"e\"}");
            js_set_str(v, t[i].key, buf_data(&b));
            assert_int_equal(shape_check(body_of(t[i].op), v, &e), over ? RC_INVALID : RC_OK);
            buf_done(&b);
        }
}

static void test_metadata_count(void **state)
{
    (void)state;
    for (int n = 15; n <= 17; n++) {
        struct err e = { 0 };
        AUTO_JS v = parse("{\"name\":\"n\",\"model\":\"m\",\"metadata\":{}}");
        for (int i = 0; i < n; i++) {
            char key[16];
            snprintf(key, sizeof key, "k%d", i);
            js_set_str(json_object_get(v, "metadata"), key, "v");
        }
        assert_int_equal(shape_check(body_of("beta_agents_create"), v, &e), n > 16 ? RC_INVALID : RC_OK);
    }
}

static void test_prune(void **state)
{
    (void)state;
    static const struct { const char *op, *in, *out; } t[] = {
        { "beta_sessions_events_send", "{\"x\":1,\"events\":[{\"type\":\"user.message\",\"id\":\"mine\",\"processed_at\":\"now\",\"content\":[{\"type\":\"text\",\"text\":\"a\",\"extra\":{}}]}]}",
          "{\"events\":[{\"type\":\"user.message\",\"content\":[{\"type\":\"text\",\"text\":\"a\"}]}]}" },
        { "beta_agents_create",
          "{\"name\":\"n\",\"model\":{\"id\":\"m\",\"y\":2},\"tools\":[{\"type\":\"custom\",\"name\":\"t\",\"description\":\"d\",\"input_schema\":{\"type\":\"object\",\"$defs\":{\"k\":1}},\"z\":0}]}",
          "{\"name\":\"n\",\"model\":{\"id\":\"m\"},\"tools\":[{\"type\":\"custom\",\"name\":\"t\",\"description\":\"d\",\"input_schema\":{\"type\":\"object\",\"$defs\":{\"k\":1}}}]}" },
        { "beta_environments_create", "{\"name\":\"n\",\"config\":null,\"metadata\":{\"any\":\"thing\"}}", "{\"name\":\"n\",\"config\":null,\"metadata\":{\"any\":\"thing\"}}" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        AUTO_JS v = parse(t[i].in);
        assert_int_equal(shape_check(body_of(t[i].op), v, NULL), RC_OK);
        AUTO_JS out = shape_prune(body_of(t[i].op), v);
        AUTO_FREE char *text = js_text(out);
        assert_string_equal(text, t[i].out);
    }
}

static void test_queries(void **state)
{
    (void)state;
    static const struct { const char *op, *in, *out; } t[] = {      /* out NULL: refused */
        { "beta_sessions_events_list", "", "{}" },
        { "beta_sessions_events_list", "beta=true&limit=5", "{\"limit\":5}" },
        { "beta_sessions_events_list", "types[]=agent.message&types[]=user.message", "{\"types\":[\"agent.message\",\"user.message\"]}" },
        { "beta_sessions_events_list", "types%5B%5D=agent.message&types%5b%5d=user.message", "{\"types\":[\"agent.message\",\"user.message\"]}" },
        { "beta_sessions_events_list", "types=agent.message&types=user.message", "{\"types\":[\"agent.message\",\"user.message\"]}" },
        { "beta_sessions_events_list", "types=a", NULL },
        { "beta_sessions_events_list", "limit=1000", "{\"limit\":1000}" },
        { "beta_sessions_events_list", "limit=1001", NULL },
        { "beta_sessions_events_list", "limit=0", NULL },
        { "beta_sessions_events_list", "limit=", NULL },
        { "beta_sessions_events_list", "limit=5x", NULL },
        { "beta_sessions_events_list", "limit=3&limit=4", "{\"limit\":4}" },
        { "beta_sessions_events_list", "order=sideways", NULL },
        { "beta_sessions_events_list", "page=", "{}" },
        { "beta_sessions_events_list", "&&page=abc&", "{\"page\":\"abc\"}" },
        { "beta_sessions_events_list", "created_at[gte]=2026-01-01T00:00:00Z", "{\"created_at[gte]\":\"2026-01-01T00:00:00Z\"}" },
        { "beta_sessions_events_list", "created_at%5Bgte%5D=2026-01-01T00:00:00+02:00", "{\"created_at[gte]\":\"2026-01-01T00:00:00+02:00\"}" },
        { "beta_sessions_events_list", "created_at[gte]=yesterday", NULL },
        { "beta_sessions_events_list", "page=%zz", NULL },
        { "beta_sessions_list", "include_archived=true&statuses[]=idle", "{\"include_archived\":true,\"statuses\":[\"idle\"]}" },
        { "beta_sessions_list", "include_archived=maybe", NULL },
        { "beta_sessions_list", "statuses[]=asleep", NULL },
        { "beta_environments_work_poll", "block_ms=1", "{\"block_ms\":1}" },
        { "beta_environments_work_poll", "block_ms=999", "{\"block_ms\":999}" },
        { "beta_environments_work_poll", "block_ms=0", NULL },
        { "beta_environments_work_poll", "block_ms=1000", NULL },
        { "beta_environments_work_poll", "block_ms=-1", NULL },
        { "beta_environments_work_poll", "block_ms=x", NULL },
        { "beta_environments_work_poll", "reclaim_older_than_ms=x", NULL },
        { "beta_environments_work_heartbeat", "expected_last_heartbeat=NO_HEARTBEAT", "{\"expected_last_heartbeat\":\"NO_HEARTBEAT\"}" },
        { "beta_environments_work_heartbeat", "expected_last_heartbeat=2026-11-24T00%3A00%3A00.123Z&desired_ttl_seconds=10",
          "{\"expected_last_heartbeat\":\"2026-11-24T00:00:00.123Z\",\"desired_ttl_seconds\":10}" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct err e = { 0 };
        AUTO_JS v = NULL;
        int rc = shape_query(schema_op_find(t[i].op)->query, slice_of(t[i].in), &v, &e);
        AUTO_FREE char *text = v ? js_text(v) : NULL;
        if ((rc == RC_OK) != (t[i].out != NULL) || (t[i].out && strcmp(text, t[i].out) != 0))
            fail_msg("row %zu %s: rc %d '%s' %s", i, t[i].in, rc, e.msg, text ? text : "");
    }
}

/* A thousand and one values of a repeated parameter; a long value. */
static void test_query_limits(void **state)
{
    (void)state;
    for (int n = 100; n <= 101; n++) {
        struct buf b;
        struct err e = { 0 };
        AUTO_JS v = NULL;
        buf_init(&b, MIB);
        for (int i = 0; i < n; i++)
            buf_puts(&b, "types=agent.message&");
        assert_int_equal(shape_query(schema_op_find("beta_sessions_events_list")->query, (struct slice){ buf_data(&b), buf_len(&b) }, &v, &e), n > 100 ? RC_INVALID : RC_OK);
        buf_done(&b);
    }
    struct buf b;
    AUTO_JS v = NULL;
    buf_init(&b, MIB);
    buf_puts(&b, "page=");
    for (int i = 0; i < 5000; i++)
        buf_putc(&b, 'a');
    assert_int_equal(shape_query(schema_op_find("beta_sessions_events_list")->query, (struct slice){ buf_data(&b), buf_len(&b) }, &v, NULL), RC_INVALID);
    buf_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bodies), cmocka_unit_test(test_lengths), cmocka_unit_test(test_metadata_count),
        cmocka_unit_test(test_prune), cmocka_unit_test(test_queries), cmocka_unit_test(test_query_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
