/* tools.c - see tools.h. */
#include "server/messages/tools.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"

#define OURS "mcptoolu_"
#define THEIRS "toolu_"
#define OTHER "mcptoolu_x-"                  /* followed by an id of the provider's that does not begin as THEIRS does */

void tools_done(struct tools *t)
{
    for (size_t i = 0; i < t->n; i++)
        free(t->at[i].name);
    free(t->at);
    *t = (struct tools){ 0 };
}

const struct tool *tools_find(const struct tools *t, const char *mapped)
{
    for (size_t i = 0; i < t->n; i++)
        if (str_eq(t->at[i].mapped, mapped))
            return &t->at[i];
    return NULL;
}

static bool setting(const json_t *toolset, const char *tool, const char *key, bool dflt)
{
    const json_t *own = json_object_get(json_object_get(toolset, "configs"), tool);
    return js_bool(own, key, js_bool(json_object_get(toolset, "default_config"), key, dflt));
}

/* The definition that the model gets: a client tool under the mapped name. */
static int put_definition(const struct tool *x, const json_t *tool, bool deferred, const json_t *cache, struct buf *out)
{
    AUTO_JS d = json_object();
    json_t *schema = json_object_get(tool, "input_schema");
    if (!schema)
        schema = json_object_get(tool, "inputSchema");
    js_set_str(d, "name", x->mapped);
    if (js_str(tool, "description"))
        js_set_str(d, "description", js_str(tool, "description"));
    if (json_is_object(schema)) {
        js_set(d, "input_schema", json_incref(schema));
    } else {
        schema = json_object();
        js_set_str(schema, "type", "object");
        js_set(d, "input_schema", schema);
    }
    if (deferred)
        js_set_bool(d, "defer_loading", true);
    if (cache)
        js_set(d, "cache_control", json_incref((json_t *)(uintptr_t)cache));
    return js_write(d, out);
}

static int add(struct tools *t, const char *server, const json_t *toolset, const json_t *tool, struct err *e)
{
    const char *name = json_string_value(json_object_get(tool, "name"));
    if (!name || !name[0])
        return err_set(e, RC_INVALID, "MCP server '%.100s': lists a tool without a name", server);
    if (t->n == TOOLS_MAX)
        return err_set(e, RC_LIMIT, "more than %d tools of MCP servers", TOOLS_MAX);
    if (t->n == t->cap) {
        t->cap = t->cap ? t->cap * 2 : 16;
        t->at = xrealloc(t->at, t->cap, sizeof *t->at);
    }
    struct tool *x = &t->at[t->n];
    mcp_tool_name(server, name, x->mapped);
    if (tools_find(t, x->mapped))
        return err_set(e, RC_INVALID, "MCP server '%.100s': two tools are named '%.100s'", server, name);
    x->name = str_dup(name);
    x->server = server;
    x->enabled = setting(toolset, name, "enabled", true);
    t->n++;
    return RC_OK;
}

int tools_add(struct tools *t, const char *server, const json_t *toolset, const json_t *listing, struct buf *out, bool *first, struct err *e)
{
    const json_t *cache = json_object_get(toolset, "cache_control");
    size_t i, last = SIZE_MAX, n = json_array_size(listing);
    for (i = n; i-- > 0 && last == SIZE_MAX;) {
        const char *name = json_string_value(json_object_get(json_array_get(listing, i), "name"));
        if (name && setting(toolset, name, "enabled", true))
            last = i;                        /* carries the toolset's cache breakpoint */
    }
    for (i = 0; i < n; i++) {
        const json_t *tool = json_array_get(listing, i);
        TRY(add(t, server, toolset, tool, e));
        const struct tool *x = &t->at[t->n - 1];
        if (!x->enabled)
            continue;
        if (!*first)
            (void)buf_putc(out, ',');
        *first = false;
        if (put_definition(x, tool, setting(toolset, x->name, "defer_loading", false), i == last && json_is_object(cache) ? cache : NULL, out) < 0 || !buf_ok(out))
            return err_set(e, RC_LIMIT, "the tools of MCP servers are larger than %zu bytes", TOOLS_BYTES_MAX);
    }
    return RC_OK;
}

const char *tools_unknown(const json_t *toolset, const json_t *listing, void **iter)
{
    json_t *configs = json_object_get(toolset, "configs"), *tool;
    for (*iter = *iter ? json_object_iter_next(configs, *iter) : json_object_iter(configs); *iter; *iter = json_object_iter_next(configs, *iter)) {
        const char *key = json_object_iter_key(*iter);
        bool known = false;
        size_t i;
        json_array_foreach(listing, i, tool)
            known = known || str_eq(json_string_value(json_object_get(tool, "name")), key);
        if (!known)
            return key;
    }
    return NULL;
}

json_t *tools_listing_block(const char *server, const json_t *listing)
{
    json_t *b = json_object(), *list = json_array(), *tool;
    size_t i;
    js_set_str(b, "type", "mcp_tool_listing");
    js_set_str(b, "mcp_server_name", server);
    json_array_foreach(listing, i, tool) {
        json_t *o = json_object(), *schema = json_object_get(tool, "input_schema");
        if (!schema)
            schema = json_object_get(tool, "inputSchema");
        js_set_str(o, "name", js_str(tool, "name"));
        if (js_str(tool, "description"))
            js_set_str(o, "description", js_str(tool, "description"));
        js_set(o, "input_schema", json_is_object(schema) ? json_incref(schema) : json_object());
        js_push(list, o);
    }
    js_set(b, "tools", list);
    return b;
}

static int copy_id(const char *prefix, const char *rest, char out[CALL_ID_MAX])
{
    static const char legal[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    if (!rest[0] || rest[strspn(rest, legal)])
        return RC_INVALID;
    int n = snprintf(out, CALL_ID_MAX, "%s%s", prefix, rest);
    return n > 0 && n < CALL_ID_MAX ? RC_OK : RC_INVALID;
}

int call_id_out(const char *id, char out[CALL_ID_MAX])
{
    if (str_prefix(id, THEIRS) && !str_prefix(id + strlen(THEIRS), "x-"))
        return copy_id(OURS, id + strlen(THEIRS), out);
    return copy_id(OTHER, id, out);
}

int call_id_in(const char *id, char out[CALL_ID_MAX])
{
    if (str_prefix(id, OTHER))
        return copy_id("", id + strlen(OTHER), out);
    if (str_prefix(id, OURS))
        return copy_id(THEIRS, id + strlen(OURS), out);
    return copy_id("", id, out);             /* of another service's making */
}
