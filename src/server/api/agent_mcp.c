/* server/api/agent_mcp.c - the MCP servers of an agent and their toolsets (api.md 2). */
#include <string.h>

#include "base/utf8.h"
#include "http/url.h"
#include "server/api/call.h"

#define SERVERS_MAX 20
#define SERVER_URL_MAX 2048
#define TOOLS_MAX 256                /* over all toolsets of an agent */

int agent_servers_resolve(struct call *c, json_t *in, json_t **ret)
{
    AUTO_JS out = json_array();
    AUTO_JS seen = json_object();
    size_t i;
    json_t *v;
    if (json_array_size(in) > SERVERS_MAX)
        return call_fail(c, RC_INVALID, "mcp_servers: at most %d servers", SERVERS_MAX);
    json_array_foreach(in, i, v) {
        const char *name = js_str(v, "name"), *url = js_str(v, "url");
        struct http_url u;
        struct err e;
        if (!name || !name[0] || utf8_count(name, strlen(name)) > 255)
            return call_fail(c, RC_INVALID, "mcp_servers.%zu.name: 1 to 255 characters", i);
        if (json_object_get(seen, name))
            return call_fail(c, RC_INVALID, "mcp_servers.%zu.name: '%.60s' is used twice", i, name);
        js_set(seen, name, json_true());
        if (!url || strlen(url) > SERVER_URL_MAX)
            return call_fail(c, RC_INVALID, "mcp_servers.%zu.url: at most %d characters", i, SERVER_URL_MAX);
        if (http_url_parse(url, false, &u, &e) < 0)
            return call_fail(c, RC_INVALID, "mcp_servers.%zu.url: %s", i, e.msg);
        json_t *o = json_object();
        js_set_str(o, "name", name);
        js_set_str(o, "type", "url");
        js_set_str(o, "url", url);
        js_push(out, o);
    }
    *ret = TAKE(out);
    return RC_OK;
}

static json_t *config(json_t *in, const json_t *base)
{
    json_t *out = json_object(), *policy = json_object_get(in, "permission_policy");
    js_set_bool(out, "enabled", js_bool(in, "enabled", js_bool(base, "enabled", true)));
    if (!json_is_object(policy))
        policy = json_object_get(base, "permission_policy");
    js_set(out, "permission_policy", json_is_object(policy) ? json_incref(policy) : json_pack("{s:s}", "type", "always_ask"));
    return out;
}

int agent_mcp_toolset_resolve(struct call *c, size_t tool, json_t *in, json_t **ret)
{
    AUTO_JS out = json_object();
    AUTO_JS seen = json_object();
    json_t *base = config(json_object_get(in, "default_config"), NULL), *list = json_array(), *v;
    js_set(out, "configs", list);
    js_set(out, "default_config", base);
    js_set_str(out, "mcp_server_name", js_str(in, "mcp_server_name"));
    js_set_str(out, "type", "mcp_toolset");
    size_t i;
    json_array_foreach(json_object_get(in, "configs"), i, v) {
        const char *name = js_str(v, "name");
        if (!name || !name[0] || utf8_count(name, strlen(name)) > 128)
            return call_fail(c, RC_INVALID, "tools.%zu.configs.%zu.name: 1 to 128 characters", tool, i);
        if (json_object_get(seen, name))
            return call_fail(c, RC_INVALID, "tools.%zu.configs.%zu.name: '%.60s' is configured twice", tool, i, name);
        js_set(seen, name, json_true());
        json_t *o = config(v, base);
        js_set_str(o, "name", name);
        js_push(list, o);
    }
    *ret = TAKE(out);
    return RC_OK;
}

/* Each server has exactly one toolset, each toolset a server. */
int agent_mcp_check(struct call *c, const json_t *agent)
{
    AUTO_JS used = json_object();
    AUTO_JS declared = json_object();
    const json_t *servers = json_object_get(agent, "mcp_servers"), *tools = json_object_get(agent, "tools");
    size_t i, n = 0;
    json_t *v;
    json_array_foreach(servers, i, v)
        js_set(declared, js_str(v, "name"), json_true());
    json_array_foreach(tools, i, v) {
        const char *name = js_str(v, "mcp_server_name");
        n += str_eq(js_str(v, "type"), "custom") ? 1 : json_array_size(json_object_get(v, "configs"));
        if (!name)
            continue;
        if (!json_object_get(declared, name))
            return call_fail(c, RC_INVALID, "tools.%zu.mcp_server_name: no entry of mcp_servers has the name '%.60s'", i, name);
        if (json_object_get(used, name))
            return call_fail(c, RC_INVALID, "tools.%zu.mcp_server_name: '%.60s' has a toolset already", i, name);
        js_set(used, name, json_true());
    }
    json_array_foreach(servers, i, v)
        if (!json_object_get(used, js_str(v, "name")))
            return call_fail(c, RC_INVALID, "mcp_servers.%zu: no mcp_toolset of tools uses '%.60s'", i, js_str(v, "name"));
    if (n > TOOLS_MAX)
        return call_fail(c, RC_INVALID, "tools: at most %d tools over all toolsets", TOOLS_MAX);
    return RC_OK;
}
