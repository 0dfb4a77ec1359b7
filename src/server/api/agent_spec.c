/* server/api/agent_spec.c - agents from their request form to the resolved one that answers show (api.md 2). */
#include <string.h>

#include "server/api/call.h"
#include "server/mcp/names.h"

/* Default effort and speed of a model that names none (resolved forms always carry both). */
#define EFFORT_DEFAULT "high"
#define SPEED_DEFAULT "standard"

static json_t *typed_object(const char *type)
{
    json_t *o = json_object();
    js_set_str(o, "type", type);
    return o;
}

json_t *agent_blank(void)
{
    json_t *a = json_object();
    js_set_str(a, "name", "");
    js_set(a, "description", json_null());
    js_set(a, "model", json_null());
    js_set(a, "system", json_null());
    js_set(a, "tools", json_array());
    js_set(a, "mcp_servers", json_array());
    js_set(a, "skills", json_array());
    js_set(a, "multiagent", json_null());
    js_set(a, "execution_identity", typed_object("service_account"));
    js_set(a, "metadata", json_object());
    return a;
}

json_t *agent_snapshot(const struct store_agent *a)
{
    AUTO_JS body = parse_stored(a->body);
    json_t *out = json_object();
    js_set_str(out, "id", a->id);
    js_set_str(out, "type", "agent");
    js_set_int(out, "version", a->version);
    const char *key;
    json_t *v;
    json_object_foreach(body, key, v)
        if (strcmp(key, "metadata") != 0)
            js_set(out, key, json_incref(v));
    return out;
}

/* ---- model ---- */
static const char *effort_word(const json_t *m)
{
    const char *word = js_str(m, "effort");
    return word ? word : js_str(m, "effort.type");
}

static int model_resolve_spec(struct call *c, const json_t *old, json_t *in, bool override, json_t **ret)
{
    if (json_is_null(in))
        return call_fail_code(c, RC_INVALID, "agent_model_required", "agent_model_required: a model cannot be cleared");
    const char *id = json_is_string(in) ? json_string_value(in) : js_str(in, "id");
    if (!id || !id[0])
        return call_fail(c, RC_INVALID, "model: minimum string length is 1");
    if (js_str(in, "inference_geo"))
        return call_fail(c, RC_INVALID, "model.inference_geo: not served; requests go to the provider that this server is configured with");
    const struct model_provider *provider;
    void *self;
    struct model_caps caps;
    int rc = model_resolve(c->api->conf.models, id, &provider, &self, &caps);
    if (rc == RC_NOT_FOUND)
        return call_fail(c, RC_INVALID, "model: no provider of this server serves '%.100s'", id);
    if (rc < 0)
        return call_fail(c, rc, "model: cannot be looked up");
    /* An override's effort is ignored; an omitted one keeps the stored level of the same model (api.md 2, 4). */
    const char *effort = override ? NULL : effort_word(in);
    if (!effort && !override && str_eq(js_str(old, "model.id"), id))
        effort = js_str(old, "model.effort.type");
    const char *speed = js_str(in, "speed");
    json_t *m = json_object();
    js_set_str(m, "id", id);
    js_set(m, "effort", typed_object(effort ? effort : EFFORT_DEFAULT));
    js_set_str(m, "speed", speed ? speed : SPEED_DEFAULT);
    *ret = m;
    return RC_OK;
}

/* ---- tools ---- */
static const char *const builtin_names[] = { "bash", "read", "write", "edit", "glob", "grep", "web_fetch", "web_search" };

static json_t *config_base(json_t *in, const json_t *base)
{
    json_t *out = json_object(), *policy = json_object_get(in, "permission_policy");
    js_set_bool(out, "enabled", js_bool(in, "enabled", js_bool(base, "enabled", true)));
    if (!json_is_object(policy))
        policy = json_object_get(base, "permission_policy");
    js_set(out, "permission_policy", policy ? json_incref(policy) : typed_object("always_allow"));
    return out;
}

/* "all" and {"type":"all"} mean the same; answers show the object, for each source. */
static json_t *url_sources(json_t *in)
{
    static const char *const names[] = { "user_input", "client_tool_results", "server_tool_results" };
    if (!json_is_object(in))
        return json_null();
    json_t *out = json_object();
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        json_t *v = json_object_get(in, names[i]);
        js_set(out, names[i], json_is_object(v) ? json_incref(v) : typed_object(json_is_string(v) ? json_string_value(v) : "all"));
    }
    return out;
}

static int builtin_config(struct call *c, size_t tool, json_t *in, const json_t *base, json_t **ret)
{
    const char *name = js_str(in, "name"), *key;
    json_t *v;
    if (json_object_get(in, "allowed_domains") && json_object_get(in, "blocked_domains"))
        return call_fail(c, RC_INVALID, "tools.%zu.configs: %s takes allowed_domains or blocked_domains, not both", tool, name);
    json_t *out = config_base(in, base);
    if (str_prefix(name, "web_") && js_bool(out, "enabled", true)) {      /* they would run on this side */
        json_decref(out);
        return call_fail(c, RC_INVALID, "tools.%zu.configs: '%s' is not served yet by this server; leave it out or set enabled to false", tool, name);
    }
    js_set_str(out, "name", name);
    js_set_str(out, "type", name);
    json_object_foreach(in, key, v)
        if (!json_object_get(out, key) && strcmp(key, "url_sources") != 0)
            js_set(out, key, json_incref(v));
    if (str_eq(name, "web_fetch"))
        js_set(out, "url_sources", url_sources(json_object_get(in, "url_sources")));
    *ret = out;
    return RC_OK;
}

static int toolset_resolve(struct call *c, size_t tool, json_t *in, json_t **ret)
{
    AUTO_JS out = typed_object("agent_toolset_20260401");
    AUTO_JS seen = json_object();
    json_t *base = config_base(json_object_get(in, "default_config"), NULL), *list = json_array(), *v;
    js_set(out, "default_config", base);
    js_set(out, "configs", list);
    size_t i;
    json_array_foreach(json_object_get(in, "configs"), i, v) {
        json_t *resolved = NULL;
        const char *name = js_str(v, "name");
        if (json_object_get(seen, name))
            return call_fail(c, RC_INVALID, "tools.%zu.configs.%zu.name: '%s' is configured twice", tool, i, name);
        js_set(seen, name, json_true());
        TRY(builtin_config(c, tool, v, base, &resolved));
        js_push(list, resolved);
    }
    *ret = TAKE(out);
    return RC_OK;
}

static int custom_name_check(struct call *c, size_t tool, const char *name, json_t *seen)
{
    for (size_t i = 0; i < COUNT_OF(builtin_names); i++)
        if (strcmp(builtin_names[i], name) == 0)
            return call_fail(c, RC_INVALID, "tools.%zu.name: '%s' is the name of a built-in tool", tool, name);
    if (mcp_tool_name_is(name))
        return call_fail(c, RC_INVALID, "tools.%zu.name: names of the form mcp__<server>__<tool> are kept for the tools of MCP servers", tool);
    if (json_object_get(seen, name))
        return call_fail(c, RC_INVALID, "tools.%zu.name: '%s' is used twice", tool, name);
    js_set(seen, name, json_true());
    return RC_OK;
}

int agent_tools_resolve(struct call *c, json_t *in, json_t **ret)
{
    AUTO_JS out = json_array();
    AUTO_JS seen = json_object();
    bool toolset = false;
    size_t i;
    json_t *v;
    json_array_foreach(in, i, v) {
        const char *type = js_str(v, "type");
        if (str_eq(type, "agent_toolset_20260401")) {
            json_t *resolved = NULL;
            if (toolset)
                return call_fail(c, RC_INVALID, "tools.%zu: a second agent_toolset_20260401", i);
            toolset = true;
            TRY(toolset_resolve(c, i, v, &resolved));
            js_push(out, resolved);
        } else if (str_eq(type, "mcp_toolset")) {
            json_t *resolved = NULL;
            TRY(agent_mcp_toolset_resolve(c, i, v, &resolved));
            js_push(out, resolved);
        } else if (str_eq(type, "custom")) {
            TRY(custom_name_check(c, i, js_str(v, "name"), seen));
            js_push(out, json_incref(v));
        } else {
            return call_fail(c, RC_INVALID, "tools.%zu.type: '%.40s' is not served yet by this server", i, type ? type : "");
        }
    }
    *ret = TAKE(out);
    return RC_OK;
}

/* ---- all of it ---- */
static int refuse_unserved(struct call *c, json_t *in)
{
    if (json_array_size(json_object_get(in, "skills")) > 0)
        return call_fail(c, RC_INVALID, "skills: not served yet by this server; leave it out or send []");
    if (json_is_object(json_object_get(in, "multiagent")))
        return call_fail(c, RC_INVALID, "multiagent: not served yet by this server");
    const char *identity = js_str(in, "execution_identity.type");
    if (identity && strcmp(identity, "service_account") != 0)
        return call_fail(c, RC_INVALID, "execution_identity: '%.40s' is not served by this server", identity);
    return RC_OK;
}

int agent_apply(struct call *c, json_t *agent, json_t *in, bool override)
{
    TRY(refuse_unserved(c, in));
    json_t *v, *resolved = NULL;
    if ((v = json_object_get(in, "name")))
        js_set(agent, "name", json_incref(v));
    static const char *const texts[] = { "description", "system" };
    for (size_t i = 0; i < COUNT_OF(texts); i++)
        if ((v = json_object_get(in, texts[i])))
            js_set(agent, texts[i], json_string_length(v) ? json_incref(v) : json_null());
    if ((v = json_object_get(in, "model"))) {
        TRY(model_resolve_spec(c, agent, v, override, &resolved));
        js_set(agent, "model", resolved);
    }
    if ((v = json_object_get(in, "tools"))) {
        TRY(agent_tools_resolve(c, v, &resolved));
        js_set(agent, "tools", resolved);
    }
    if ((v = json_object_get(in, "mcp_servers"))) {
        TRY(agent_servers_resolve(c, v, &resolved));
        js_set(agent, "mcp_servers", resolved);
    }
    TRY(agent_mcp_check(c, agent));
    v = json_object_get(in, "metadata");
    if (json_is_object(v)) {
        TRY(metadata_patch(c, json_object_get(agent, "metadata"), v, false, &resolved));
        js_set(agent, "metadata", resolved);
    }
    return RC_OK;
}
