/* server/api/environments.c - environments (api.md 3, worker.md 1). Only self-hosted ones: we run no sandboxes for others. */
#include <string.h>

#include "server/api/call.h"

#define LIMIT_DEFAULT 20
#define UPDATE_TRIES 8

static int answer(struct call *c)
{
    struct store_environment v;
    TRY(call_environment(c, &v));
    view_environment(&c->out, &v);
    return RC_OK;
}

static int name_taken(struct call *c, const char *name)
{
    c->no_retry = true;
    return call_fail(c, RC_CONFLICT, "name: an environment named '%.100s' exists already", name);
}

int environments_list(struct call *c)
{
    struct page p;
    struct store_environment *rows;
    size_t n, first;
    TRY(page_read(c, CURSOR_ENVIRONMENTS, "", false, LIMIT_DEFAULT, &p));
    TRY(c->store->ops->environment_list(c->store, c->arena, &p.st, &rows, &n, &c->e));
    bool more = page_cut(&p, n, &first, &n);
    buf_puts(&c->out, "{\"data\":[");
    for (size_t i = 0; i < n; i++) {
        if (i)
            buf_putc(&c->out, ',');
        view_environment(&c->out, &rows[first + i]);
    }
    struct page_key last = n ? (struct page_key){ rows[first + n - 1].created_ms, rows[first + n - 1].id } : (struct page_key){ 0, NULL };
    page_end(&p, &c->out, more, false, last, last);
    return RC_OK;
}

/* Shared by create and update: what of the body this server cannot mean. */
static int check_served(struct call *c, bool update)
{
    const char *type = js_str(c->body, "config.type"), *scope = js_str(c->body, "scope");
    if (str_eq(type, "cloud") && update)
        return call_fail_code(c, RC_INVALID, "invalid_config_type_change", "config.type: cannot change from 'self_hosted'");
    if (str_eq(type, "cloud"))
        return call_fail(c, RC_INVALID, "config.type: 'cloud' is not served; this server runs self-hosted environments only: send {\"type\":\"self_hosted\"}");
    if (str_eq(scope, "account"))
        return call_fail(c, RC_INVALID, "scope: 'account' is not possible here; use 'organization'");
    return RC_OK;
}

static void put_fields(json_t *env, json_t *in)
{
    json_t *v = json_object_get(in, "name");
    if (json_is_string(v))
        js_set(env, "name", json_incref(v));
    v = json_object_get(in, "description");
    if (v)
        js_set(env, "description", json_string_length(v) ? json_incref(v) : json_null());
}

int environments_create(struct call *c)
{
    AUTO_JS env = json_object();
    json_t *config = json_object(), *metadata = NULL;
    char id[ID_MAX];
    js_set_str(env, "name", "");
    js_set(env, "description", json_null());
    js_set_str(config, "type", "self_hosted");
    js_set(env, "config", config);
    js_set_str(env, "scope", "organization");
    js_set(env, "metadata", json_object());
    TRY(check_served(c, false));
    put_fields(env, c->body);
    TRY(metadata_patch(c, json_object_get(env, "metadata"), json_object_get(c->body, "metadata"), false, &metadata));
    js_set(env, "metadata", metadata);
    AUTO_FREE char *body = js_text(env);
    id_new("env", id);
    struct store_environment in = { .id = id, .name = js_str(env, "name"), .body = body, .created_ms = c->now_ms, .updated_ms = c->now_ms, .archived_ms = -1 };
    int rc = c->store->ops->environment_create(c->store, &in, &c->e);
    if (rc == RC_CONFLICT)
        return name_taken(c, in.name);
    if (rc == RC_OK)
        view_environment(&c->out, &in);
    return rc;
}

int environments_get(struct call *c)
{
    return answer(c);
}

/* One try. RC_AGAIN: somebody else changed it between our reading and writing. */
static int update_once(struct call *c)
{
    struct store_environment v, now;
    TRY(call_environment(c, &v));
    if (v.archived_ms >= 0)
        return call_fail_code(c, RC_INVALID, "environment_archived", "Environment '%.60s' is archived and cannot be changed.", v.id);
    TRY(check_served(c, true));
    AUTO_JS old = parse_stored(v.body);
    AUTO_JS env = json_deep_copy(old);
    json_t *metadata = NULL;
    put_fields(env, c->body);
    TRY(metadata_patch(c, json_object_get(env, "metadata"), json_object_get(c->body, "metadata"), true, &metadata));
    js_set(env, "metadata", metadata);
    if (json_equal(old, env))
        return RC_OK;
    AUTO_FREE char *body = js_text(env);
    int rc = c->store->ops->environment_update(c->store, v.id, v.updated_ms, js_str(env, "name"), body, c->now_ms, &c->e);
    if (rc != RC_CONFLICT)
        return rc;
    TRY(call_environment(c, &now));
    return now.updated_ms == v.updated_ms ? name_taken(c, js_str(env, "name")) : RC_AGAIN;
}

int environments_update(struct call *c)
{
    int rc = RC_AGAIN;
    call_lock(c, c->param[0]);
    for (int i = 0; rc == RC_AGAIN && i < UPDATE_TRIES; i++)
        rc = update_once(c);
    call_unlock(c, c->param[0]);
    return rc < 0 ? rc : answer(c);
}

int environments_archive(struct call *c)
{
    struct store_environment v;
    TRY(call_environment(c, &v));
    TRY(c->store->ops->environment_archive(c->store, c->param[0], c->now_ms, &c->e));
    return answer(c);
}

int environments_delete(struct call *c)
{
    struct store_environment v;
    TRY(call_environment(c, &v));
    int rc = c->store->ops->environment_delete(c->store, c->param[0], &c->e);
    if (rc == RC_CONFLICT) {
        c->no_retry = true;
        return call_fail(c, rc, "Environment '%.60s' is used by sessions; delete them first, or archive it.", v.id);
    }
    if (rc == RC_OK)
        view_deleted(&c->out, v.id, "environment_deleted");
    return rc;
}
