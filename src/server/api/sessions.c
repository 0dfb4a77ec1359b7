/* server/api/sessions.c - sessions (api.md 4). Status changes are built by the loop's inbox, never here. */
#include <string.h>

#include "server/loop/tools.h"
#include "server/api/call.h"

#define LIMIT_DEFAULT 20

static int answer(struct call *c)
{
    struct store_session s;
    TRY(call_session(c, &s));
    view_session(&c->out, &s, c->now_ms);
    return RC_OK;
}

/* ---- list ---- */
static int filter_read(struct call *c, struct store_session_filter *f)
{
    size_t i;
    json_t *v;
    f->agent_id = js_str(c->query, "agent_id");
    f->agent_version = js_int(c->query, "agent_version", 0);
    if (f->agent_version && !f->agent_id)
        return call_fail(c, RC_INVALID, "agent_version: only together with agent_id");
    json_array_foreach(json_object_get(c->query, "statuses"), i, v) {
        enum session_status st;
        if (session_status_parse(json_string_value(v), &st) != RC_OK)
            return call_fail(c, RC_INVALID, "statuses.%zu: not a session status", i);
        f->statuses |= 1u << st;
    }
    return RC_OK;
}

int sessions_list(struct call *c)
{
    struct page p;
    struct store_session_filter f = { 0 };
    struct store_session *rows = NULL;
    size_t n = 0, first = 0;
    TRY(filter_read(c, &f));
    TRY(page_read(c, CURSOR_SESSIONS, "", str_eq(js_str(c->query, "order"), "asc"), LIMIT_DEFAULT, &p));
    /* No session of this server comes from a deployment or has a memory store: such a filter matches none. */
    if (!js_str(c->query, "deployment_id") && !js_str(c->query, "memory_store_id"))
        TRY(c->store->ops->session_list(c->store, c->arena, &p.st, &f, &rows, &n, &c->e));
    bool more = page_cut(&p, n, &first, &n);
    buf_puts(&c->out, "{\"data\":[");
    for (size_t i = 0; i < n; i++) {
        if (i)
            buf_putc(&c->out, ',');
        view_session(&c->out, &rows[first + i], c->now_ms);
    }
    struct page_key a = { 0, NULL }, z = a;
    if (n) {
        a = (struct page_key){ rows[first].created_ms, rows[first].id };
        z = (struct page_key){ rows[first + n - 1].created_ms, rows[first + n - 1].id };
    }
    page_end(&p, &c->out, more, true, a, z);
    return RC_OK;
}

/* ---- create ---- */
static int refuse_unserved(struct call *c, const char *env_id)
{
    if (json_array_size(json_object_get(c->body, "resources")) > 0)
        return call_fail(c, RC_INVALID, "Environment %.60s is a self-hosted environment. `resources` are not supported with self-hosted environments.", env_id);
    if (json_is_object(json_object_get(c->body, "budget")))
        return call_fail(c, RC_INVALID, "budget: not served yet by this server");
    return RC_OK;
}

/* The agent that the body names, with overrides applied, as the session keeps it. */
static int resolve_agent(struct call *c, struct store_agent *a, json_t **ret)
{
    json_t *in = json_object_get(c->body, "agent");
    const char *id = json_is_string(in) ? json_string_value(in) : js_str(in, "id");
    int64_t version = js_int(in, "version", 0);
    int rc = c->store->ops->agent_get(c->store, c->arena, id, version, a, &c->e);
    if (rc == RC_NOT_FOUND)
        return call_fail(c, rc, version ? "agent: '%.60s' does not exist, or has no such version" : "agent: '%.60s' not found", id);
    if (rc < 0)
        return rc;
    if (a->archived_ms >= 0)
        return call_fail(c, RC_INVALID, "agent: '%.60s' is archived", id);
    AUTO_JS snapshot = agent_snapshot(a);
    if (str_eq(js_str(in, "type"), "agent_with_overrides")) {
        AUTO_JS over = json_copy(in);
        static const char *const not_overrides[] = { "id", "type", "version" };
        for (size_t i = 0; i < COUNT_OF(not_overrides); i++)
            (void)json_object_del(over, not_overrides[i]);
        TRY(agent_apply(c, snapshot, over, true));
    }
    *ret = TAKE(snapshot);
    return RC_OK;
}

static int check_environment(struct call *c, const char *id)
{
    struct store_environment v;
    int rc = c->store->ops->environment_get(c->store, c->arena, id, &v, &c->e);
    if (rc == RC_NOT_FOUND)
        return call_fail(c, rc, "environment_id: '%.60s' not found", id);
    if (rc == RC_OK && v.archived_ms >= 0)
        return call_fail_code(c, RC_INVALID, "environment_archived", "environment_id: '%.60s' is archived", id);
    return rc;
}

/* What a session keeps beside its own columns. */
static char *extra_text(struct call *c)
{
    json_t *ids = json_object_get(c->body, "vault_ids");
    AUTO_JS extra = json_object();
    if (json_array_size(ids) > 0)
        js_set(extra, "vault_ids", json_incref(ids));
    return js_text(extra);
}

static int create(struct call *c, json_t *agent, const struct store_agent *a, json_t *metadata)
{
    char id[ID_MAX], thread_id[ID_MAX];
    struct store_step *first = NULL;
    AUTO_FREE char *agent_text = js_text(agent);
    AUTO_FREE char *metadata_text = js_text(metadata);
    AUTO_FREE char *extra = extra_text(c);
    id_new("sesn", id);
    id_new("sthr", thread_id);
    TRY(inbox_initial(c->arena, id, thread_id, json_object_get(c->body, "initial_events"), &first, &c->e));
    if (first)
        first->ensure_work = tools_any_worker(agent);      /* a worker may get ready while the model thinks */
    struct store_session in = {
        .id = id, .thread_id = thread_id, .env_id = js_str(c->body, "environment_id"), .agent_id = a->id, .agent_version = a->version,
        .title = js_str(c->body, "title"), .agent = agent_text, .metadata = metadata_text, .extra = extra,
        .created_ms = c->now_ms, .updated_ms = c->now_ms, .archived_ms = -1, .terminated_ms = -1, .running_since_ms = -1,
    };
    TRY(c->store->ops->session_create(c->store, &in, first, &c->e));
    c->param[0] = arena_strdup(c->arena, id);
    return answer(c);
}

int sessions_create(struct call *c)
{
    const char *env_id = js_str(c->body, "environment_id");
    struct store_agent a;
    AUTO_JS agent = NULL;
    AUTO_JS metadata = NULL;
    AUTO_JS none = json_object();
    TRY(check_environment(c, env_id));
    TRY(refuse_unserved(c, env_id));
    TRY(vaults_check(c, json_object_get(c->body, "vault_ids")));
    TRY(metadata_patch(c, none, json_object_get(c->body, "metadata"), false, &metadata));
    TRY(resolve_agent(c, &a, &agent));
    return create(c, agent, &a, metadata);
}

int sessions_get(struct call *c)
{
    return answer(c);
}

/* ---- update ---- */
static int new_agent(struct call *c, const struct store_session *s, json_t *in, json_t **ret)
{
    AUTO_JS old = parse_stored(s->agent);
    AUTO_JS agent = json_deep_copy(old);
    if (s->status != SESSION_IDLE)
        return call_fail(c, RC_INVALID, "agent: can only be changed while the session is idle");
    TRY(agent_apply(c, agent, in, false));
    if (json_equal(old, agent))
        json_decref(TAKE(agent));
    *ret = TAKE(agent);
    return RC_OK;
}

static int update(struct call *c)
{
    struct store_session s;
    json_t *v;
    AUTO_JS changed = json_object();
    AUTO_JS agent = NULL;
    AUTO_FREE char *metadata_text = NULL, *agent_text = NULL;
    const char *title = NULL;
    TRY(call_session(c, &s));
    if (s.archived_ms >= 0 || s.status == SESSION_TERMINATED)
        return call_fail(c, RC_INVALID, "Session '%.60s' is archived and cannot be changed.", s.id);
    if (json_object_get(c->body, "vault_ids"))
        return call_fail(c, RC_INVALID, "vault_ids: cannot be changed");
    if (json_is_object(json_object_get(c->body, "budget")))
        return call_fail(c, RC_INVALID, "budget: not served yet by this server");
    if ((v = json_object_get(c->body, "title"))) {
        const char *text = json_is_string(v) ? json_string_value(v) : "";      /* null clears; stored as "" */
        if (strcmp(text, s.title ? s.title : "") != 0) {
            title = text;
            js_set(changed, "title", text[0] ? json_incref(v) : json_null());
        }
    }
    if (json_is_object(v = json_object_get(c->body, "metadata"))) {
        AUTO_JS old = parse_stored(s.metadata);
        json_t *now = NULL;
        TRY(metadata_patch(c, old, v, false, &now));
        if (!json_equal(old, now)) {
            metadata_text = js_text(now);
            js_set(changed, "metadata", json_incref(now));
        }
        json_decref(now);
    }
    if (json_is_object(v = json_object_get(c->body, "agent")))
        TRY(new_agent(c, &s, v, &agent));
    if (agent) {
        agent_text = js_text(agent);
        js_set(changed, "agent", json_incref(agent));
    }
    if (json_object_size(changed) == 0)
        return RC_OK;
    return inbox_update(c->api->conf.loop, s.id, title, metadata_text, agent_text, changed, &c->e);
}

int sessions_update(struct call *c)
{
    call_lock(c, c->param[0]);
    int rc = update(c);
    call_unlock(c, c->param[0]);
    return rc < 0 ? rc : answer(c);
}

int sessions_archive(struct call *c)
{
    struct store_session s;
    TRY(call_session(c, &s));
    if (s.archived_ms < 0)
        TRY(inbox_archive(c->api->conf.loop, s.id, &c->e));
    return answer(c);
}

int sessions_delete(struct call *c)
{
    struct store_session s;
    TRY(call_session(c, &s));
    int rc = c->store->ops->session_delete(c->store, s.id, &c->e);
    if (rc == RC_INVALID)
        return call_fail(c, rc, "Session '%.60s' is running; interrupt it first.", s.id);
    if (rc == RC_OK)
        view_deleted(&c->out, s.id, "session_deleted");
    return rc;
}

int resources_list(struct call *c)
{
    struct store_session s;
    TRY(call_session(c, &s));
    buf_puts(&c->out, "{\"data\":[],\"next_page\":null}");      /* self-hosted sessions have none */
    return RC_OK;
}
