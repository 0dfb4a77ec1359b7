/* server/api/keys.c - credentials (our own API, /outwork/v1). The text of a key is in the answer to its creation and nowhere else. */
#include <string.h>

#include "server/api/call.h"

#define KEY_NAME_MAX 200

static int no_key(struct call *c, const char *id)
{
    return call_fail(c, RC_NOT_FOUND, "Key '%.60s' not found.", id);
}

static int body_name(struct call *c, const char **ret)
{
    json_t *v = json_object_get(c->body, "name");
    if (v && !json_is_null(v) && !json_is_string(v))
        return call_fail(c, RC_INVALID, "name: expected a string");
    *ret = json_is_string(v) ? json_string_value(v) : "";
    return strlen(*ret) > KEY_NAME_MAX ? call_fail(c, RC_INVALID, "name: longer than %d bytes", KEY_NAME_MAX) : RC_OK;
}

static int list(struct call *c, enum key_kind kind, const char *env_id)
{
    struct store_key *rows;
    size_t n;
    TRY(c->store->ops->key_list(c->store, c->arena, kind, env_id, &rows, &n, &c->e));
    buf_puts(&c->out, "{\"data\":[");
    for (size_t i = 0; i < n; i++) {
        if (i)
            buf_putc(&c->out, ',');
        view_key(&c->out, &rows[i], NULL);
    }
    buf_puts(&c->out, "],\"next_page\":null}");
    return RC_OK;
}

static int find(struct call *c, enum key_kind kind, const char *env_id, const char *id, struct store_key *ret)
{
    struct store_key *rows;
    size_t n;
    TRY(c->store->ops->key_list(c->store, c->arena, kind, env_id, &rows, &n, &c->e));
    for (size_t i = 0; i < n; i++)
        if (str_eq(rows[i].id, id)) {
            *ret = rows[i];
            return RC_OK;
        }
    return no_key(c, id);
}

static int revoke_key(struct call *c, enum key_kind kind, const char *env_id, const char *id)
{
    struct store_key k;
    TRY(find(c, kind, env_id, id, &k));
    if (str_eq(c->who.key_id, id))
        return call_fail(c, RC_INVALID, "Key '%.60s' makes this call; revoke it with another one.", id);
    TRY(c->store->ops->key_revoke(c->store, id, c->now_ms, &c->e));
    static const char *const types[] = { [KEY_API] = "api_key_deleted", [KEY_ENVIRONMENT] = "environment_key_deleted", [KEY_EDGE] = "edge_key_deleted" };
    view_deleted(&c->out, id, types[kind]);
    return RC_OK;
}

static int answer_new(struct call *c, enum key_kind kind, const char *env_id, const char *id, char text[TOKEN_MAX])
{
    struct store_key k;
    int rc = find(c, kind, env_id, id, &k);
    if (rc == RC_OK)
        view_key(&c->out, &k, text);
    wipe(text, TOKEN_MAX);
    return rc;
}

int keys_list(struct call *c)
{
    return list(c, KEY_API, NULL);
}

int keys_create(struct call *c)
{
    char text[TOKEN_MAX], id[ID_MAX];
    const char *name;
    enum key_role role;
    TRY(body_name(c, &name));
    if (!js_str(c->body, "role") || auth_role_parse(js_str(c->body, "role"), &role) != RC_OK)
        return call_fail(c, RC_INVALID, "role: expected one of 'admin', 'developer', 'user'");
    TRY(auth_api_key_create(c->store, role, name, text, id, &c->e));
    return answer_new(c, KEY_API, NULL, id, text);
}

int keys_get(struct call *c)
{
    struct store_key k;
    TRY(find(c, KEY_API, NULL, c->param[0], &k));
    view_key(&c->out, &k, NULL);
    return RC_OK;
}

int keys_revoke(struct call *c)
{
    return revoke_key(c, KEY_API, NULL, c->param[0]);
}

int env_keys_list(struct call *c)
{
    struct store_environment v;
    TRY(call_environment(c, &v));
    return list(c, KEY_ENVIRONMENT, v.id);
}

int env_keys_create(struct call *c)
{
    char text[TOKEN_MAX], id[ID_MAX];
    const char *name;
    struct store_environment v;
    TRY(call_environment(c, &v));
    TRY(body_name(c, &name));
    if (v.archived_ms >= 0)
        return call_fail_code(c, RC_INVALID, "environment_archived", "Environment '%.60s' is archived.", v.id);
    TRY(auth_environment_key_create(c->store, v.id, name, text, id, &c->e));
    return answer_new(c, KEY_ENVIRONMENT, v.id, id, text);
}

int env_keys_revoke(struct call *c)
{
    struct store_environment v;
    TRY(call_environment(c, &v));
    return revoke_key(c, KEY_ENVIRONMENT, v.id, c->param[1]);
}

int edge_keys_list(struct call *c)
{
    return list(c, KEY_EDGE, NULL);
}

int edge_keys_create(struct call *c)
{
    char text[TOKEN_MAX], id[ID_MAX];
    const char *name;
    TRY(body_name(c, &name));
    TRY(auth_edge_key_create(c->store, name, text, id, &c->e));
    return answer_new(c, KEY_EDGE, NULL, id, text);
}

int edge_keys_get(struct call *c)
{
    struct store_key k;
    TRY(find(c, KEY_EDGE, NULL, c->param[0], &k));
    view_key(&c->out, &k, NULL);
    return RC_OK;
}

int edge_keys_revoke(struct call *c)
{
    return revoke_key(c, KEY_EDGE, NULL, c->param[0]);
}
