/* Handlers over a real store and real credentials; HTTP, loop and models are stand-ins of this file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/random.h"
#include "fake_http.h"
#include "server/api/api.h"
#include "store/store.h"

/* ---- stand-ins ---- */
int model_resolve(struct model_registry *m, const char *model, const struct model_provider **ret, void **self, struct model_caps *caps)
{
    (void)m, (void)ret, (void)self, (void)caps;
    return strcmp(model, "unknown") == 0 ? RC_NOT_FOUND : RC_OK;
}
json_t *model_list_all(struct model_registry *m)
{
    (void)m;
    return json_loads("[{\"id\":\"m1\",\"lifecycle\":\"active\"},{\"id\":\"m2\",\"lifecycle\":\"retired\"},{\"id\":\"m3\",\"lifecycle\":\"deprecated\"},{\"id\":\"m4\",\"lifecycle\":\"active\"}]", 0, NULL);
}
static struct { bool from_worker; char *events; } sent;
int inbox_send(struct loop *l, const char *sid, json_t *events, bool from_worker, struct buf *ret, struct err *e)
{
    (void)l, (void)sid, (void)e;
    free(sent.events);
    sent.events = js_text(events);
    sent.from_worker = from_worker;
    return buf_puts(ret, "[]");
}
int inbox_initial(struct arena *a, const char *sid, const char *tid, json_t *events, struct store_step **ret, struct err *e)
{
    (void)tid, (void)e;
    *ret = NULL;
    if (json_array_size(events) == 0)
        return RC_OK;
    struct store_step *s = arena_zalloc(a, sizeof *s);
    *s = (struct store_step){ .session_id = sid, .expect_seq = -1, .run = RUN_KEEP, .needs_worker = 1, .ensure_work = true, .now_ms = clock_now_ms() };
    *ret = s;
    return RC_OK;
}
static struct { char *title, *metadata, *agent, *changed; } updated;
int inbox_update(struct loop *l, const char *sid, const char *title, const char *metadata, const char *agent, json_t *changed, struct err *e)
{
    (void)l, (void)sid, (void)e;
    free(updated.title), free(updated.metadata), free(updated.agent), free(updated.changed);
    updated.title = str_dup(title), updated.metadata = str_dup(metadata), updated.agent = str_dup(agent), updated.changed = js_text(changed);
    return RC_OK;
}
int inbox_archive(struct loop *l, const char *sid, struct err *e) { (void)l, (void)sid; return err_set(e, RC_INVALID, "running"); }
size_t loop_running(const struct loop *l) { (void)l; return 3; }
void http_stream_start(struct http_req *r, const struct http_stream_conf *c) { (void)r, (void)c; }
int http_stream_write(struct http_stream *s, const void *p, size_t n) { (void)s, (void)p, (void)n; return RC_CLOSED; }
size_t http_stream_queued(const struct http_stream *s) { (void)s; return 0; }
void http_stream_end(struct http_stream *s) { (void)s; }

/* ---- the world ---- */
static struct {
    char dir[64];
    struct ev *ev; struct jobs *jobs; struct store *store; struct hub *hub; struct park *park; struct api *api;
    char admin[TOKEN_MAX], dev[TOKEN_MAX], user[TOKEN_MAX];
    json_t *last;                /* body of the last answer */
    struct http_req *req;
} w;

static void on_note(void *ctx, enum store_note note, const char *id)
{
    (void)ctx;
    if (note == STORE_NOTE_WORK)
        park_note(w.park, id);
}

static int setup(void **state)
{
    (void)state;
    struct err e = { 0 };
    char dsn[128], id[ID_MAX];
    snprintf(w.dir, sizeof w.dir, "/tmp/ow-api-XXXXXX");
    assert_non_null(mkdtemp(w.dir));
    snprintf(dsn, sizeof dsn, "%s/s.db", w.dir);
    if (ev_new(&w.ev, &e) || jobs_new(3, 1000, &w.jobs, &e) || store_open(dsn, true, &w.store, &e))
        fail_msg("%s", e.msg);
    struct hub_conf hc = { .ev = w.ev, .jobs = w.jobs, .store = w.store };
    assert_int_equal(hub_new(&hc, &w.hub, &e) | park_new(w.ev, w.jobs, &w.park, &e), RC_OK);
    struct api_conf ac = { .ev = w.ev, .jobs = w.jobs, .store = w.store, .hub = w.hub, .park = w.park, .organization_id = "org_1", .workspace_id = "wrkspc_1", .lease_ms = 60000 };
    assert_int_equal(api_new(&ac, &w.api, &e), RC_OK);
    w.store->ops->on_note(w.store, on_note, NULL);
    assert_int_equal(auth_api_key_create(w.store, ROLE_ADMIN, "a", w.admin, id, &e), RC_OK);
    assert_int_equal(auth_api_key_create(w.store, ROLE_DEVELOPER, "d", w.dev, id, &e), RC_OK);
    assert_int_equal(auth_api_key_create(w.store, ROLE_USER, "u", w.user, id, &e), RC_OK);
    return 0;
}

static void forget(void)
{
    json_decref(w.last);
    w.last = NULL;
    if (w.req)
        fake_free(TAKE(w.req));
}

static int teardown(void **state)
{
    (void)state;
    struct err e;
    forget();
    jobs_free(w.jobs);
    park_free(w.park);
    hub_free(w.hub);
    api_free(w.api);
    store_close(w.store);
    ev_free(w.ev);
    free(sent.events), sent.events = NULL;
    free(updated.title), free(updated.metadata), free(updated.agent), free(updated.changed);
    memset(&updated, 0, sizeof updated);
    return fd_remove_tree(AT_FDCWD, w.dir, &e);
}

static void send_request(const char *key, enum http_method m, const char *target, const char *body, const char *more)
{
    char auth[TOKEN_MAX + 32];
    snprintf(auth, sizeof auth, "Authorization: Bearer %s", key ? key : "");
    const char *headers[5] = { "anthropic-beta: other-1, managed-agents-2026-04-01", NULL };
    size_t n = 1;
    if (key)
        headers[n++] = auth;
    if (more)
        headers[n++] = more;
    forget();
    w.req = fake_request(m, target, headers, body);
    api_request(w.api, w.req);
}

static int answer(void)
{
    for (int64_t end = clock_mono_ms() + 5000; !fake_done(w.req);) {
        (void)ev_run_once(w.ev, 2);
        if (clock_mono_ms() > end)
            fail_msg("no answer to %s", w.req->target);
    }
    if (w.req->content_type && strstr(w.req->content_type, "json"))
        w.last = json_loads(w.req->answer, JSON_DECODE_ANY, NULL);
    assert_non_null(strstr(w.req->headers, "request-id: req_"));
    return w.req->status;
}

static int ask(const char *key, enum http_method m, const char *target, const char *body)
{
    send_request(key, m, target, body, NULL);
    return answer();
}

#define GET(key, ...) ask(key, HTTP_GET, path(__VA_ARGS__), NULL)
#define POST(key, body, ...) ask(key, HTTP_POST, path(__VA_ARGS__), body)
#define DELETE(key, ...) ask(key, HTTP_DELETE, path(__VA_ARGS__), NULL)
static const char * PRINTF_LIKE(1, 2) path(const char *fmt, ...)
{
    static char ring[8][4096];
    static size_t i;
    char *text = ring[i++ % COUNT_OF(ring)];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof ring[0], fmt, ap);
    va_end(ap);
    return text;
}

static const char *str(const char *p)
{
    const char *s = js_str(w.last, p);
    return s ? s : "(none)";
}

static char *keep(const char *p)     /* borrowed until 2048 further calls */
{
    static char ring[2048][128];
    static size_t i;
    char *at = ring[i++ % COUNT_OF(ring)];
    str_copy(at, sizeof ring[0], str(p));
    return at;
}

static char *make_env(const char *name)
{
    char body[128];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"config\":{\"type\":\"self_hosted\"}}", name);
    assert_int_equal(POST(w.admin, body, "/v1/environments"), 200);
    return keep("id");
}

static char *make_agent(void)
{
    assert_int_equal(POST(w.admin, "{\"name\":\"a\",\"model\":\"m1\",\"tools\":[{\"type\":\"agent_toolset_20260401\"}]}", "/v1/agents"), 200);
    return keep("id");
}

static char *make_session(const char *agent, const char *env, bool work)
{
    char body[512];
    snprintf(body, sizeof body, "{\"agent\":\"%s\",\"environment_id\":\"%s\"%s}", agent, env,
             work ? ",\"initial_events\":[{\"type\":\"user.message\",\"content\":[{\"type\":\"text\",\"text\":\"x\"}]}]" : "");
    if (POST(w.user, body, "/v1/sessions") != 200)
        fail_msg("%s", w.req->answer);
    return keep("id");
}

/* ---- cases ---- */
static void test_agents(void **state)
{
    (void)state;
    assert_int_equal(POST(w.dev, "{\"name\":\"a\",\"model\":\"m1\",\"junk\":1,\"system\":\"\",\"tools\":[{\"type\":\"agent_toolset_20260401\",\"default_config\":{\"enabled\":false},"
                                 "\"configs\":[{\"name\":\"bash\",\"enabled\":true,\"permission_policy\":{\"type\":\"always_ask\"}},{\"name\":\"web_fetch\"}]}]}", "/v1/agents"), 200);
    char *id = keep("id");
    assert_int_equal(js_int(w.last, "version", 0), 1);
    assert_string_equal(str("model.effort.type"), "high");
    assert_string_equal(str("model.speed"), "standard");
    assert_true(js_is_null(w.last, "system") && js_is_null(w.last, "multiagent") && js_is_null(w.last, "archived_at"));
    assert_null(json_object_get(w.last, "junk"));
    assert_string_equal(str("tools.0.default_config.permission_policy.type"), "always_allow");
    assert_string_equal(str("tools.0.configs.0.permission_policy.type"), "always_ask");
    assert_false(js_bool(w.last, "tools.0.configs.1.enabled", true));
    assert_true(js_is_null(w.last, "tools.0.configs.1.url_sources"));
    assert_non_null(strstr(w.req->headers, "anthropic-organization-id: org_1"));
    /* versions */
    assert_int_equal(POST(w.dev, "{\"name\":\"a\",\"version\":1}", "/v1/agents/%s", id), 200);
    assert_int_equal(js_int(w.last, "version", 0), 1);
    assert_int_equal(POST(w.dev, "{\"system\":\"s\",\"metadata\":{\"k\":\"v\"},\"model\":{\"id\":\"m1\",\"effort\":\"low\"}}", "/v1/agents/%s", id), 200);
    assert_int_equal(js_int(w.last, "version", 0), 2);
    assert_int_equal(POST(w.dev, "{\"model\":{\"id\":\"m1\"}}", "/v1/agents/%s", id), 200);
    assert_string_equal(str("model.effort.type"), "low");           /* the same model keeps its level */
    assert_int_equal(js_int(w.last, "version", 0), 2);
    assert_int_equal(POST(w.dev, "{\"model\":\"m4\",\"metadata\":{\"k\":null}}", "/v1/agents/%s", id), 200);
    assert_string_equal(str("model.effort.type"), "high");
    assert_int_equal(json_object_size(json_object_get(w.last, "metadata")), 0);
    assert_int_equal(POST(w.dev, "{\"name\":\"late\",\"version\":1}", "/v1/agents/%s", id), 409);
    assert_string_equal(str("error.type"), "conflict_error");
    assert_non_null(strstr(w.req->headers, "x-should-retry: false"));
    assert_int_equal(GET(w.user, "/v1/agents/%s?version=2", id), 200);
    assert_string_equal(str("system"), "s");
    assert_int_equal(GET(w.user, "/v1/agents/%s?version=9", id), 404);
    assert_int_equal(GET(w.user, "/v1/agents/%s/versions?limit=2", id), 200);
    assert_int_equal(js_int(w.last, "data.0.version", 0), 3);
    char *page = keep("next_page");
    assert_int_equal(GET(w.user, "/v1/agents/%s/versions?limit=2&page=%s", id, page), 200);
    assert_int_equal(js_int(w.last, "data.0.version", 0), 1);
    assert_true(js_is_null(w.last, "next_page") && !json_object_get(w.last, "prev_page"));
    assert_int_equal(GET(w.user, "/v1/agents?page=%s", page), 400);  /* of another list */
    /* archive */
    assert_int_equal(POST(w.dev, NULL, "/v1/agents/%s/archive", id), 200);
    char *at = keep("archived_at");
    assert_int_equal(POST(w.dev, NULL, "/v1/agents/%s/archive", id), 200);
    assert_string_equal(str("archived_at"), at);
    assert_int_equal(POST(w.dev, "{\"name\":\"x\"}", "/v1/agents/%s", id), 400);
    assert_int_equal(GET(w.user, "/v1/agents"), 200);
    assert_int_equal(json_array_size(json_object_get(w.last, "data")), 0);
    assert_int_equal(GET(w.user, "/v1/agents?include_archived=true"), 200);
    assert_int_equal(json_array_size(json_object_get(w.last, "data")), 1);
}

static void test_agent_refusals(void **state)
{
    (void)state;
    static const struct { const char *body, *words; } t[] = {
        { "{\"name\":\"a\",\"model\":\"unknown\"}", "no provider" },
        { "{\"name\":\"a\",\"model\":{\"id\":\"m1\",\"inference_geo\":\"us\"}}", "inference_geo" },
        { "{\"name\":\"a\",\"model\":\"m1\",\"mcp_servers\":[{\"type\":\"url\",\"name\":\"n\",\"url\":\"u\"}]}", "mcp_servers.0.url" },
        { "{\"name\":\"a\",\"model\":\"m1\",\"mcp_servers\":[{\"type\":\"url\",\"name\":\"n\",\"url\":\"https://m.example/mcp\"}]}", "n" },
        { "{\"name\":\"a\",\"model\":\"m1\",\"skills\":[{\"type\":\"custom\",\"skill_id\":\"s\"}]}", "skills: not served yet" },
        { "{\"name\":\"a\",\"model\":\"m1\",\"multiagent\":{\"type\":\"coordinator\",\"agents\":[\"x\"]}}", "multiagent: not served yet" },
        { "{\"name\":\"a\",\"model\":\"m1\",\"tools\":[{\"type\":\"mcp_toolset\",\"mcp_server_name\":\"n\"}]}", "tools.0.mcp_server_name" },
        { "{\"name\":\"a\",\"model\":\"m1\",\"execution_identity\":{\"type\":\"aws_role\",\"role_arn\":\"r\"}}", "execution_identity" },
        { "{\"name\":\"a\",\"model\":\"m1\",\"tools\":[{\"type\":\"agent_toolset_20260401\"},{\"type\":\"agent_toolset_20260401\"}]}", "tools.1" },
        { "{\"name\":\"a\",\"model\":\"m1\",\"tools\":[{\"type\":\"agent_toolset_20260401\",\"configs\":[{\"name\":\"bash\"},{\"name\":\"bash\"}]}]}", "tools.0.configs.1" },
        { "{\"name\":\"a\",\"model\":\"m1\",\"tools\":[{\"type\":\"custom\",\"name\":\"bash\",\"description\":\"d\",\"input_schema\":{\"type\":\"object\"}}]}", "built-in" },
        { "{\"name\":\"a\",\"model\":\"m1\",\"tools\":[{\"type\":\"agent_toolset_20260401\",\"configs\":[{\"name\":\"web_search\"}]}]}", "web_search" },
        { "{\"name\":\"a\",\"model\":\"m1\"", "" }, { "[]", "" }, { "7", "" }, { "", "required" }, { "{\"name\":\"a\",\"name\":\"b\",\"model\":\"m1\"}", "" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        int status = POST(w.dev, t[i].body, "/v1/agents");
        if (status != 400 || !strstr(str("error.message"), t[i].words) || strcmp(str("error.type"), "invalid_request_error") != 0)
            fail_msg("row %zu: %d %s", i, status, w.req->answer);
    }
}

static void test_environments(void **state)
{
    (void)state;
    char *id = make_env("local");
    assert_string_equal(str("config.type"), "self_hosted");
    assert_int_equal(POST(w.dev, "{\"name\":\"local\"}", "/v1/environments"), 409);
    assert_int_equal(POST(w.dev, "{\"name\":\"plain\"}", "/v1/environments"), 200);
    assert_string_equal(str("config.type"), "self_hosted");
    assert_int_equal(POST(w.dev, "{\"name\":\"c\",\"config\":{\"type\":\"cloud\"}}", "/v1/environments"), 400);
    assert_int_equal(POST(w.dev, "{\"config\":{\"type\":\"cloud\"}}", "/v1/environments/%s", id), 400);
    assert_string_equal(str("error.details.error_code"), "invalid_config_type_change");
    assert_int_equal(POST(w.dev, "{\"description\":\"d\",\"metadata\":{\"a\":\"1\",\"b\":\"2\"}}", "/v1/environments/%s", id), 200);
    assert_int_equal(POST(w.dev, "{\"description\":\"\",\"metadata\":{\"a\":\"\",\"c\":\"3\"}}", "/v1/environments/%s", id), 200);
    assert_true(js_is_null(w.last, "description"));
    assert_string_equal(str("metadata.b"), "2");
    assert_null(js_at(w.last, "metadata.a"));
    assert_int_equal(POST(w.dev, "{\"name\":\"plain\"}", "/v1/environments/%s", id), 409);
    for (int i = 0; i < 2; i++)
        assert_int_equal(POST(w.dev, NULL, "/v1/environments/%s/archive", id), 200);
    assert_int_equal(POST(w.dev, "{\"name\":\"n\"}", "/v1/environments/%s", id), 400);
    assert_string_equal(str("error.details.error_code"), "environment_archived");
    assert_int_equal(POST(w.user, path("{\"agent\":\"x\",\"environment_id\":\"%s\"}", id), "/v1/sessions"), 400);
    assert_int_equal(DELETE(w.dev, "/v1/environments/%s", id), 200);
    assert_string_equal(str("type"), "environment_deleted");
    assert_int_equal(GET(w.user, "/v1/environments/%s", id), 404);
    assert_int_equal(DELETE(w.dev, "/v1/environments/%s", id), 404);
    /* without the beta header */
    const char *headers[] = { "x-api-key: ", NULL };
    char key[TOKEN_MAX + 16];
    snprintf(key, sizeof key, "x-api-key: %s", w.dev);
    headers[0] = key;
    forget();
    w.req = fake_request(HTTP_POST, "/v1/environments", headers, "{\"name\":\"local\",\"config\":{\"type\":\"self_hosted\"}}");
    api_request(w.api, w.req);
    assert_int_equal(answer(), 200);
    forget();
    w.req = fake_request(HTTP_GET, "/v1/agents", headers, NULL);
    api_request(w.api, w.req);
    assert_int_equal(answer(), 404);
}

static void test_sessions(void **state)
{
    (void)state;
    char *env = make_env("e"), *agent = make_agent(), *ids[7];
    assert_int_equal(POST(w.user, path("{\"agent\":\"%s\",\"environment_id\":\"%s\",\"resources\":[{\"type\":\"file\",\"file_id\":\"f\"}]}", agent, env), "/v1/sessions"), 400);
    assert_non_null(strstr(str("error.message"), "is a self-hosted environment. `resources` are not supported"));
    assert_int_equal(POST(w.user, path("{\"agent\":\"%s\",\"environment_id\":\"%s\",\"vault_ids\":[\"v\"]}", agent, env), "/v1/sessions"), 404);
    assert_int_equal(POST(w.user, path("{\"agent\":\"nobody\",\"environment_id\":\"%s\"}", env), "/v1/sessions"), 404);
    assert_int_equal(POST(w.user, path("{\"agent\":\"%s\",\"environment_id\":\"nowhere\"}", agent), "/v1/sessions"), 404);
    assert_int_equal(POST(w.user, path("{\"agent\":{\"type\":\"agent_with_overrides\",\"id\":\"%s\",\"model\":null},\"environment_id\":\"%s\"}", agent, env), "/v1/sessions"), 400);
    assert_string_equal(str("error.details.error_code"), "agent_model_required");
    assert_int_equal(POST(w.user, path("{\"agent\":{\"type\":\"agent_with_overrides\",\"id\":\"%s\",\"system\":\"over\",\"tools\":[],\"model\":{\"id\":\"m4\",\"effort\":\"low\"}},"
                                       "\"environment_id\":\"%s\",\"metadata\":{\"k\":\"v\"},\"title\":\"t\"}", agent, env), "/v1/sessions"), 200);
    assert_string_equal(str("agent.system"), "over");
    assert_string_equal(str("agent.model.id"), "m4");
    assert_string_equal(str("agent.model.effort.type"), "high");
    assert_string_equal(str("agent.id"), agent);
    assert_int_equal(json_array_size(js_at(w.last, "agent.tools")), 0);
    assert_null(js_at(w.last, "agent.metadata"));
    char *first = keep("id");
    /* update: only what changed is told */
    assert_int_equal(POST(w.dev, "{\"title\":\"t\",\"metadata\":{\"k\":null,\"n\":\"1\"},\"agent\":{\"tools\":[{\"type\":\"agent_toolset_20260401\"}]}}", "/v1/sessions/%s", first), 200);
    assert_null(updated.title);
    assert_string_equal(updated.metadata, "{\"n\":\"1\"}");
    assert_non_null(strstr(updated.agent, "agent_toolset_20260401"));
    assert_null(strstr(updated.changed, "\"title\""));
    assert_int_equal(POST(w.dev, "{\"title\":null}", "/v1/sessions/%s", first), 200);
    assert_string_equal(updated.title, "");
    assert_string_equal(updated.changed, "{\"title\":null}");
    assert_int_equal(POST(w.dev, "{\"vault_ids\":[]}", "/v1/sessions/%s", first), 400);
    assert_int_equal(POST(w.dev, NULL, "/v1/sessions/%s/archive", first), 400);
    /* pages, both ways */
    char *other = make_agent();
    for (int i = 0; i < 7; i++)
        ids[6 - i] = make_session(other, env, false);
    static const char *const orders[] = { "desc", "asc" };
    for (int o = 0; o < 2; o++) {
        const char *page = "";
        int at = 0;
        for (int i = 0; i < 3; i++) {
            assert_int_equal(GET(w.user, "/v1/sessions?agent_id=%s&limit=3&order=%s%s%s", other, orders[o], *page ? "&page=" : "", page), 200);
            for (size_t k = 0; k < json_array_size(json_object_get(w.last, "data")); k++, at++)
                assert_string_equal(str(path("data.%zu.id", k)), ids[o ? 6 - at : at]);
            page = keep("next_page");
            assert_int_equal(js_is_null(w.last, "prev_page"), i == 0);
        }
        assert_int_equal(at, 7);
        page = keep("prev_page");
        assert_int_equal(GET(w.user, "/v1/sessions?agent_id=%s&limit=3&order=%s&page=%s", other, orders[o], page), 200);
        assert_string_equal(str("data.0.id"), ids[o ? 3 : 3]);
        assert_false(js_is_null(w.last, "prev_page") || js_is_null(w.last, "next_page"));
        assert_int_equal(GET(w.user, "/v1/sessions?agent_id=%s&limit=3&order=%s&page=%s", other, orders[o], keep("prev_page")), 200);
        assert_string_equal(str("data.2.id"), ids[o ? 4 : 2]);
        assert_true(js_is_null(w.last, "prev_page"));
        assert_int_equal(GET(w.user, "/v1/sessions?order=%s&page=%s", orders[!o], page), 400);
        assert_int_equal(GET(w.user, "/v1/sessions?order=%s&created_at[gt]=2100-01-01T00:00:00Z&page=%s", orders[o], page), 400);
    }
    assert_int_equal(GET(w.user, "/v1/sessions?agent_version=1"), 400);
    assert_int_equal(GET(w.user, "/v1/sessions?deployment_id=d"), 200);
    assert_int_equal(json_array_size(json_object_get(w.last, "data")), 0);
    assert_int_equal(GET(w.user, "/v1/sessions/%s/resources", ids[0]), 200);
    /* threads */
    assert_int_equal(GET(w.user, "/v1/sessions/%s/threads", ids[0]), 200);
    char *thread = keep("data.0.id");
    assert_int_equal(GET(w.user, "/v1/sessions/%s/threads?statuses[]=running", ids[0]), 200);
    assert_int_equal(json_array_size(json_object_get(w.last, "data")), 0);
    assert_int_equal(GET(w.user, "/v1/sessions/%s/threads/%s", ids[0], thread), 200);
    assert_true(js_is_null(w.last, "parent_thread_id"));
    assert_int_equal(GET(w.user, "/v1/sessions/%s/threads/%s/events", ids[0], thread), 200);
    assert_int_equal(GET(w.user, "/v1/sessions/%s/threads/%s", ids[1], thread), 404);
    assert_int_equal(POST(w.dev, NULL, "/v1/sessions/%s/threads/%s/archive", ids[0], thread), 400);
    assert_int_equal(DELETE(w.dev, "/v1/sessions/%s", ids[0]), 200);
    assert_string_equal(str("type"), "session_deleted");
    assert_int_equal(GET(w.user, "/v1/sessions/%s", ids[0]), 404);
    assert_int_equal(DELETE(w.dev, "/v1/environments/%s", env), 409);
}

static void append(const char *sid, int i)
{
    struct err e = { 0 };
    char id[24], body[128];
    snprintf(id, sizeof id, "sevt_%d", i);
    snprintf(body, sizeof body, "{\"id\":\"%s\",\"type\":\"agent.message\",\"n\":%d}", id, i);
    struct store_event_in in = { .id = id, .type = i % 2 ? "agent.message" : "agent.thinking", .body = body, .queued = i == 249 };
    struct store_step s = { .session_id = sid, .expect_seq = -1, .events = &in, .n_events = 1, .needs_worker = -1, .now_ms = clock_now_ms() };
    assert_int_equal(w.store->ops->step(w.store, &s, &e), RC_OK);
}

static void test_event_lists(void **state)
{
    (void)state;
    char *sid = make_session(make_agent(), make_env("e"), false);
    for (int i = 0; i < 250; i++)            /* over two chunks of a page */
        append(sid, i);
    assert_int_equal(GET(w.user, "/v1/sessions/%s/events", sid), 200);
    assert_int_equal(json_array_size(json_object_get(w.last, "data")), 250);
    for (int i = 0; i < 250; i++)
        assert_int_equal(js_int(w.last, path("data.%d.n", i), -1), i);
    assert_true(js_is_null(w.last, "next_page") && js_is_null(w.last, "data.249.processed_at") && js_str(w.last, "data.0.processed_at"));
    static const struct { int limit; const char *order; } t[] = { { 1, "asc" }, { 99, "asc" }, { 100, "desc" }, { 101, "asc" }, { 125, "desc" }, { 250, "asc" }, { 1000, "desc" } };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        int at = 0;
        const char *page = NULL;
        for (int turns = 0; turns < 251; turns++) {
            assert_int_equal(GET(w.user, "/v1/sessions/%s/events?limit=%d&order=%s%s%s", sid, t[i].limit, t[i].order, page ? "&page=" : "", page ? page : ""), 200);
            size_t n = json_array_size(json_object_get(w.last, "data"));
            assert_true(n <= (size_t)t[i].limit);
            for (size_t k = 0; k < n; k++, at++)
                assert_int_equal(js_int(w.last, path("data.%zu.n", k), -1), t[i].order[0] == 'a' ? at : 249 - at);
            if (js_is_null(w.last, "next_page"))
                break;
            page = keep("next_page");
        }
        assert_int_equal(at, 250);
    }
    assert_int_equal(GET(w.user, "/v1/sessions/%s/events?types=agent.thinking&types[]=user.message", sid), 200);
    assert_int_equal(json_array_size(json_object_get(w.last, "data")), 125);
    assert_int_equal(GET(w.user, "/v1/sessions/%s/events?created_at[gt]=2100-01-01T00:00:00Z", sid), 200);
    assert_int_equal(json_array_size(json_object_get(w.last, "data")), 0);
    /* send */
    const char *msg = "{\"events\":[{\"type\":\"user.message\",\"id\":\"forged\",\"content\":[{\"type\":\"text\",\"text\":\"x\"}]}]}";
    assert_int_equal(POST(w.user, msg, "/v1/sessions/%s/events", sid), 200);
    assert_string_equal(sent.events, "[{\"type\":\"user.message\",\"content\":[{\"type\":\"text\",\"text\":\"x\"}]}]");
    assert_false(sent.from_worker);
    assert_int_equal(POST(w.user, "{\"events\":[]}", "/v1/sessions/%s/events", sid), 400);
    assert_int_equal(POST(w.user, msg, "/v1/sessions/sesn_none/events"), 404);
    assert_int_equal(GET(w.user, "/v1/sessions/%s/events/stream?event_deltas[]=nonsense", sid), 400);
}

static void test_work(void **state)
{
    (void)state;
    char *env = make_env("e"), *far = make_env("far"), *agent = make_agent();
    assert_int_equal(POST(w.admin, "{}", "/outwork/v1/environments/%s/keys", env), 200);
    char *key = keep("key"), *key_id = keep("id");
    assert_int_equal(POST(w.admin, "{}", "/outwork/v1/environments/%s/keys", far), 200);
    char *far_key = keep("key");
    assert_int_equal(GET(key, "/v1/environments/%s/work/poll", env), 200);
    assert_string_equal(w.req->answer, "null");
    assert_string_equal(w.req->content_type, "application/json");
    assert_non_null(strstr(w.req->headers, "outwork-poll: held"));
    assert_int_equal(GET(w.admin, "/v1/environments/%s/work/poll", env), 403);
    assert_int_equal(GET(far_key, "/v1/environments/%s/work/poll", env), 404);
    int64_t t0 = clock_mono_ms();
    assert_int_equal(GET(key, "/v1/environments/%s/work/poll?block_ms=120", env), 200);
    assert_true(clock_mono_ms() - t0 >= 100);
    assert_string_equal(w.req->answer, "null");
    /* a held poll is woken by the item */
    send_request(key, HTTP_GET, path("/v1/environments/%s/work/poll?block_ms=999", env), NULL, "Anthropic-Worker-ID: w1");
    for (int i = 0; i < 20; i++)
        (void)ev_run_once(w.ev, 2);
    struct http_req *held = TAKE(w.req);
    t0 = clock_mono_ms();
    char *sid = make_session(agent, env, true);
    forget();
    w.req = held;
    assert_int_equal(answer(), 200);
    assert_true(clock_mono_ms() - t0 < 500);
    assert_string_equal(str("data.id"), sid);
    assert_string_equal(str("state"), "queued");
    char *item = keep("id");
    struct err e = { 0 };
    AUTO_PTR(secret) token = NULL;
    assert_int_equal(auth_work_secret_decode(str("secret"), &token, &e), RC_OK);
    const char *tok = secret_text(token);
    /* lease */
    assert_int_equal(POST(far_key, NULL, "/v1/environments/%s/work/%s/ack", far, item), 404);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(POST(i ? tok : key, NULL, "/v1/environments/%s/work/%s/ack", env, item), 200);
        assert_string_equal(str("state"), "starting");
        assert_true(js_is_null(w.last, "secret"));
    }
    assert_int_equal(POST(tok, NULL, "/v1/environments/%s/work/work_other/ack", env), 404);
    assert_int_equal(POST(tok, NULL, "/v1/environments/%s/work/%s/heartbeat?expected_last_heartbeat=NO_HEARTBEAT&desired_ttl_seconds=1", env, item), 200);
    assert_int_equal(js_int(w.last, "ttl_seconds", 0), 10);
    assert_string_equal(str("state"), "active");
    char *beat = keep("last_heartbeat");
    assert_int_equal(POST(tok, NULL, "/v1/environments/%s/work/%s/heartbeat?expected_last_heartbeat=%s&desired_ttl_seconds=9999", env, item, beat), 200);
    assert_int_equal(js_int(w.last, "ttl_seconds", 0), 300);
    assert_int_equal(POST(tok, NULL, "/v1/environments/%s/work/%s/heartbeat?expected_last_heartbeat=2020-01-01T00:00:00.000Z", env, item), 412);
    assert_string_equal(str("error.details.error_code"), "heartbeat_precondition_failed");
    assert_string_equal(str("error.details.current_state.state"), "active");
    /* what the token reaches */
    assert_int_equal(GET(tok, "/v1/sessions/%s", sid), 200);
    assert_int_equal(GET(key, "/v1/sessions/%s/events", sid), 200);
    assert_int_equal(GET(far_key, "/v1/sessions/%s", sid), 404);
    char *other = make_session(agent, env, false);
    assert_int_equal(GET(tok, "/v1/sessions/%s", other), 404);
    assert_int_equal(GET(key, "/v1/sessions/%s", other), 200);
    assert_int_equal(GET(tok, "/v1/agents"), 403);
    assert_int_equal(DELETE(key, "/v1/sessions/%s", sid), 403);
    assert_int_equal(POST(tok, "{\"events\":[{\"type\":\"user.tool_result\",\"tool_use_id\":\"t\"}]}", "/v1/sessions/%s/events", sid), 200);
    assert_true(sent.from_worker);
    assert_int_equal(POST(tok, "{\"events\":[{\"type\":\"user.tool_confirmation\",\"tool_use_id\":\"t\",\"result\":\"allow\"}]}", "/v1/sessions/%s/events", sid), 403);
    /* metadata, lists, stats */
    assert_int_equal(POST(w.dev, "{\"metadata\":{\"a\":\"1\",\"b\":\"\"}}", "/v1/environments/%s/work/%s", env, item), 200);
    assert_int_equal(POST(w.dev, "{\"metadata\":{\"a\":null}}", "/v1/environments/%s/work/%s", env, item), 200);
    assert_int_equal(json_object_size(json_object_get(w.last, "metadata")), 1);
    assert_int_equal(GET(key, "/v1/environments/%s/work", env), 200);
    assert_string_equal(str("data.0.id"), item);
    assert_int_equal(GET(w.user, "/v1/environments/%s/work/stats", env), 200);
    assert_int_equal(js_int(w.last, "workers_polling", 0), 1);
    assert_int_equal(GET(w.user, "/v1/environments/env_none/work/stats"), 404);
    /* stop */
    assert_int_equal(POST(tok, NULL, "/v1/environments/%s/work/%s/stop", env, item), 204);
    assert_int_equal(w.req->answer_n, 0);
    assert_int_equal(POST(tok, "{}", "/v1/environments/%s/work/%s/stop", env, item), 409);
    assert_int_equal(POST(tok, "{\"force\":true}", "/v1/environments/%s/work/%s/stop", env, item), 204);
    assert_int_equal(POST(key, "{\"force\":true}", "/v1/environments/%s/work/%s/stop", env, item), 409);
    assert_non_null(strstr(w.req->headers, "x-should-retry: false"));
    /* revocation acts on the next call */
    assert_int_equal(DELETE(w.admin, "/outwork/v1/environments/%s/keys/%s", far, key_id), 404);
    assert_int_equal(DELETE(w.admin, "/outwork/v1/environments/%s/keys/%s", env, key_id), 200);
    assert_int_equal(GET(key, "/v1/environments/%s/work/poll", env), 401);
}

static void test_keys_and_roles(void **state)
{
    (void)state;
    assert_int_equal(POST(w.admin, "{\"name\":\"n\",\"role\":\"developer\"}", "/outwork/v1/keys"), 200);
    char *id = keep("id"), *key = keep("key");
    assert_int_equal(GET(key, "/v1/agents"), 200);
    assert_int_equal(GET(w.admin, "/outwork/v1/keys/%s", id), 200);
    assert_null(json_object_get(w.last, "key"));
    assert_int_equal(GET(w.admin, "/outwork/v1/keys"), 200);
    assert_null(strstr(w.req->answer, key));
    assert_int_equal(POST(w.admin, "{\"role\":\"king\"}", "/outwork/v1/keys"), 400);
    assert_int_equal(POST(w.admin, "{}", "/outwork/v1/keys"), 400);
    assert_int_equal(GET(w.dev, "/outwork/v1/keys"), 403);
    assert_int_equal(POST(w.dev, "{\"role\":\"admin\"}", "/outwork/v1/keys"), 403);
    assert_int_equal(DELETE(w.admin, "/outwork/v1/keys/%s", id), 200);
    assert_int_equal(GET(key, "/v1/agents"), 401);
    assert_string_equal(str("error.type"), "authentication_error");
    assert_null(strstr(w.req->headers, "anthropic-organization-id"));
    assert_int_equal(POST(w.user, "{\"name\":\"a\",\"model\":\"m1\"}", "/v1/agents"), 403);
    assert_int_equal(POST(w.user, "{\"name\":\"a\"}", "/v1/environments"), 403);
    assert_int_equal(GET(NULL, "/v1/agents"), 401);
    char both[TOKEN_MAX + 16];
    snprintf(both, sizeof both, "x-api-key: %s", w.admin);
    send_request(w.admin, HTTP_GET, "/v1/agents", NULL, both);
    assert_int_equal(answer(), 401);
}

static void test_the_rest(void **state)
{
    (void)state;
    assert_int_equal(GET(w.user, "/v1/models?limit=2"), 200);
    assert_string_equal(str("last_id"), "m3");
    assert_true(js_bool(w.last, "has_more", false));
    assert_int_equal(GET(w.user, "/v1/models?limit=2&after_id=m3"), 200);
    assert_string_equal(str("first_id"), "m4");
    assert_false(js_bool(w.last, "has_more", true));
    assert_int_equal(GET(w.user, "/v1/models?limit=1&before_id=m4"), 200);
    assert_string_equal(str("first_id"), "m3");
    assert_int_equal(GET(w.user, "/v1/models?lifecycle[]=retired"), 200);
    assert_string_equal(str("first_id"), "m2");
    assert_int_equal(GET(w.user, "/v1/models/m4"), 200);
    assert_int_equal(GET(w.user, "/v1/models/none"), 404);
    assert_int_equal(GET(NULL, "/healthz"), 200);
    assert_int_equal(GET(NULL, "/readyz"), 200);
    assert_int_equal(GET(NULL, "/metrics"), 200);
    assert_non_null(strstr(w.req->answer, "http_requests_total"));
    assert_int_equal(GET(NULL, "/v1/files"), 501);
    assert_string_equal(str("error.type"), "api_error");
    assert_non_null(strstr(str("error.message"), "beta_files_list"));
    assert_non_null(strstr(w.req->headers, "x-should-retry: false"));
    assert_int_equal(GET(w.user, "/v1/nothing"), 404);
    assert_int_equal(ask(w.user, HTTP_PUT, "/v1/agents", NULL), 405);
    assert_int_equal(GET(w.user, "/v1/agents/%%zz"), 400);
    send_request(w.dev, HTTP_POST, "/v1/environments", "{\"name\":\"z\"}", "content-encoding: gzip");
    assert_int_equal(answer(), 400);
    assert_string_equal(str("error.details.error_code"), "request_body_encoding_unsupported");
    api_draining(w.api);
    assert_int_equal(GET(NULL, "/readyz"), 503);
    struct buf b;
    buf_init(&b, 4096);
    api_refused(w.api, 413, "too large", &b);
    assert_non_null(strstr(buf_data(&b), "\"request_id\":null"));
    buf_done(&b);
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_agents), CASE(test_agent_refusals), CASE(test_environments), CASE(test_sessions), CASE(test_event_lists), CASE(test_work), CASE(test_keys_and_roles),
        CASE(test_the_rest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
