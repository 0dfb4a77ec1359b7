#include "server/loop/tools.h"

#include <string.h>

#include "base/str.h"
#include "server/mcp/names.h"

#define TOOLSET "agent_toolset_20260401"

/* The tools that the worker runs (api.md 2.1, worker.md 5). web_search and web_fetch are not offered: they would run on this side. */
static const struct { const char *name, *description, *schema; } builtin[] = {
    { "bash",
      "Runs a command in a persistent bash shell inside the session's sandbox and returns its output (standard output and standard error together). "
      "Working directory, variables and background jobs survive from call to call. There is no standard input and no terminal: use flags that make "
      "programs non-interactive. Output over about 100,000 characters is cut, keeping the end. A command that runs longer than its time limit is "
      "killed and the shell starts anew. Prefer the read, write, edit, glob and grep tools for files.",
      "{\"type\":\"object\",\"properties\":{"
      "\"command\":{\"type\":\"string\",\"description\":\"The shell command to run.\"},"
      "\"restart\":{\"type\":\"boolean\",\"description\":\"Start a fresh shell first. Use it when the shell hangs or was killed.\"},"
      "\"timeout_ms\":{\"type\":\"integer\",\"description\":\"Time limit in milliseconds. Default 120000.\"}}}" },
    { "read",
      "Reads a text file of the workspace, or an image or PDF. Paths are relative to the working directory. For large files read a part with view_range.",
      "{\"type\":\"object\",\"properties\":{"
      "\"file_path\":{\"type\":\"string\",\"description\":\"Path of the file.\"},"
      "\"view_range\":{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"minItems\":2,\"maxItems\":2,\"description\":"
      "\"First and last line to show, counted from 1; a last line of -1 means the end of the file.\"}},\"required\":[\"file_path\"]}" },
    { "write",
      "Writes a file, replacing what was there. Missing directories are made. To change part of a file use edit.",
      "{\"type\":\"object\",\"properties\":{"
      "\"file_path\":{\"type\":\"string\",\"description\":\"Path of the file.\"},"
      "\"content\":{\"type\":\"string\",\"description\":\"The whole new content.\"}},\"required\":[\"file_path\",\"content\"]}" },
    { "edit",
      "Replaces text in a file. old_string must occur exactly once, unless replace_all is set; include enough context to make it unique.",
      "{\"type\":\"object\",\"properties\":{"
      "\"file_path\":{\"type\":\"string\",\"description\":\"Path of the file.\"},"
      "\"old_string\":{\"type\":\"string\",\"description\":\"The text to replace, exactly as it stands in the file.\"},"
      "\"new_string\":{\"type\":\"string\",\"description\":\"The text to put in its place.\"},"
      "\"replace_all\":{\"type\":\"boolean\",\"description\":\"Replace every occurrence.\"}},\"required\":[\"file_path\",\"old_string\",\"new_string\"]}" },
    { "glob",
      "Finds files by name pattern, newest first, at most 200. ** matches any number of directories.",
      "{\"type\":\"object\",\"properties\":{"
      "\"pattern\":{\"type\":\"string\",\"description\":\"Pattern such as **/*.c, relative to path.\"},"
      "\"path\":{\"type\":\"string\",\"description\":\"Directory to search. Default: the working directory.\"}},\"required\":[\"pattern\"]}" },
    { "grep",
      "Searches file contents for a regular expression and returns lines as file:line:text.",
      "{\"type\":\"object\",\"properties\":{"
      "\"pattern\":{\"type\":\"string\",\"description\":\"Regular expression.\"},"
      "\"path\":{\"type\":\"string\",\"description\":\"File or directory to search. Default: the working directory.\"}},\"required\":[\"pattern\"]}" },
};

static enum tool_policy policy_of(const json_t *policy, enum tool_policy dflt)
{
    const char *t = js_str(policy, "type");
    if (!t)
        return dflt;
    return str_eq(t, "always_allow") ? POLICY_ALLOW : str_eq(t, "auto") ? POLICY_AUTO : POLICY_ASK;      /* unknown kinds ask: fail closed */
}

/* A tool of the toolset as resolved: default_config, then the entry of `configs` with its name. */
static bool set_lookup_dflt(const json_t *set, const char *name, enum tool_policy dflt, enum tool_policy *ret)
{
    bool enabled = js_bool(set, "default_config.enabled", true);
    enum tool_policy p = policy_of(js_at(set, "default_config.permission_policy"), dflt);
    size_t i;
    json_t *c;
    json_array_foreach(js_at(set, "configs"), i, c) {
        if (!str_eq(js_str(c, "name"), name))
            continue;
        enabled = js_bool(c, "enabled", enabled);
        p = policy_of(js_at(c, "permission_policy"), p);
    }
    *ret = p;
    return enabled;
}

static bool set_lookup(const json_t *set, const char *name, enum tool_policy *ret) { return set_lookup_dflt(set, name, POLICY_ALLOW, ret); }

static const json_t *toolset(const json_t *agent)
{
    size_t i;
    json_t *t;
    json_array_foreach(js_at(agent, "tools"), i, t)
        if (str_eq(js_str(t, "type"), TOOLSET))
            return t;
    return NULL;
}

/* ---- MCP servers ---- */
static const char *declared_url(const json_t *agent, const char *server)
{
    size_t i;
    json_t *s;
    json_array_foreach(js_at(agent, "mcp_servers"), i, s)
        if (str_eq(js_str(s, "name"), server))
            return js_str(s, "url");
    return NULL;
}

/* What the server of this toolset offers: only when it is still the server that was asked. */
static const json_t *offered(const json_t *agent, const json_t *mcp, const json_t *set)
{
    size_t i;
    json_t *s;
    const char *name = js_str(set, "mcp_server_name"), *url = name ? declared_url(agent, name) : NULL;
    json_array_foreach(mcp, i, s)
        if (url && str_eq(js_str(s, "name"), name) && str_eq(js_str(s, "url"), url))
            return js_at(s, "tools");
    return NULL;
}

static bool is_mcp_set(const json_t *t) { return str_eq(js_str(t, "type"), "mcp_toolset") && js_str(t, "mcp_server_name"); }

bool tools_any_mcp(const json_t *agent)
{
    size_t i, k;
    json_t *t, *c;
    json_array_foreach(js_at(agent, "tools"), i, t) {
        bool any = js_bool(t, "default_config.enabled", true);
        json_array_foreach(js_at(t, "configs"), k, c)
            any |= js_bool(c, "enabled", false);
        if (is_mcp_set(t) && any)
            return true;
    }
    return false;
}

static struct tool_use_rule mcp_rule(const json_t *agent, const json_t *mcp, const char *name)
{
    struct tool_use_rule r = { CALL_NONE, PERM_DENY, POLICY_NONE, NULL, NULL, false };
    size_t i, k;
    json_t *set, *t;
    char own[MCP_NAME_MAX];
    json_array_foreach(js_at(agent, "tools"), i, set) {
        if (!is_mcp_set(set))
            continue;
        json_array_foreach(offered(agent, mcp, set), k, t) {
            enum tool_policy p;
            const char *server = js_str(set, "mcp_server_name"), *tool = js_str(t, "name");
            if (!tool)
                continue;
            mcp_tool_name(server, tool, own);
            if (!str_eq(own, name))
                continue;
            r.server = server;
            r.tool = tool;
            r.read_only = js_bool(t, "annotations.readOnlyHint", false);
            if (set_lookup_dflt(set, tool, POLICY_ASK, &p)) {
                r.kind = CALL_MCP;
                r.perm = p == POLICY_ALLOW ? PERM_ALLOW : PERM_ASK;
                r.policy = p;
            }
            return r;
        }
    }
    return r;
}

static bool has_name(const json_t *defs, const char *name)
{
    size_t i;
    json_t *o;
    json_array_foreach(defs, i, o)
        if (str_eq(js_str(o, "name"), name))
            return true;
    return false;
}

static void define_mcp(json_t *a, const json_t *agent, const json_t *mcp, const json_t *set)
{
    size_t k;
    json_t *t;
    char own[MCP_NAME_MAX];
    json_array_foreach(offered(agent, mcp, set), k, t) {
        enum tool_policy p;
        const char *tool = js_str(t, "name"), *about = js_str(t, "description");
        json_t *schema = json_object_get(t, "inputSchema");
        if (!tool || !set_lookup_dflt(set, tool, POLICY_ASK, &p))
            continue;
        mcp_tool_name(js_str(set, "mcp_server_name"), tool, own);
        if (has_name(a, own))
            continue;
        json_t *o = json_object(), *in = json_is_object(schema) ? json_copy(schema) : json_object();
        if (!str_eq(js_str(in, "type"), "object"))
            js_set_str(in, "type", "object");
        js_set_str(o, "name", own);
        if (about && about[0])
            js_set_str(o, "description", about);
        js_set(o, "input_schema", in);
        js_push(a, o);
    }
}

struct tool_use_rule tools_rule(const json_t *agent, const json_t *mcp, const char *name)
{
    const struct tool_use_rule none = { CALL_NONE, PERM_DENY, POLICY_NONE, NULL, NULL, false };
    const json_t *set = toolset(agent);
    enum tool_policy p;
    for (size_t i = 0; set && name && i < COUNT_OF(builtin); i++) {
        if (!str_eq(builtin[i].name, name))
            continue;
        if (!set_lookup(set, name, &p))
            return none;
        /* auto: we have no judge, so a person is one (the "undecided" branch of api.md 2.2). */
        return (struct tool_use_rule){ .kind = CALL_WORKER, .perm = p == POLICY_ALLOW ? PERM_ALLOW : PERM_ASK, .policy = p };
    }
    size_t i;
    json_t *t;
    json_array_foreach(js_at(agent, "tools"), i, t)
        if (str_eq(js_str(t, "type"), "custom") && str_eq(js_str(t, "name"), name))
            return (struct tool_use_rule){ .kind = CALL_CUSTOM, .perm = PERM_ALLOW, .policy = POLICY_NONE };
    return name ? mcp_rule(agent, mcp, name) : none;
}

bool tools_any_worker(const json_t *agent)
{
    const json_t *set = toolset(agent);
    enum tool_policy p;
    for (size_t i = 0; set && i < COUNT_OF(builtin); i++)
        if (set_lookup(set, builtin[i].name, &p))
            return true;
    return false;
}

json_t *tools_define(const json_t *agent, const json_t *mcp)
{
    json_t *a = json_array();
    const json_t *set = toolset(agent);
    enum tool_policy p;
    for (size_t i = 0; set && i < COUNT_OF(builtin); i++) {
        json_t *schema = NULL, *o;
        if (!set_lookup(set, builtin[i].name, &p))
            continue;
        if (js_parse(builtin[i].schema, strlen(builtin[i].schema), 64 * KIB, &schema, NULL) < 0)
            abort();         /* a constant of this file; the unit test walks all of them */
        o = json_object();
        js_set_str(o, "name", builtin[i].name);
        js_set_str(o, "description", builtin[i].description);
        js_set(o, "input_schema", schema);
        js_push(a, o);
    }
    size_t i;
    json_t *t;
    json_array_foreach(js_at(agent, "tools"), i, t) {
        if (!str_eq(js_str(t, "type"), "custom") || !js_str(t, "name"))
            continue;
        json_t *o = json_object(), *schema = js_at(t, "input_schema");
        js_set_str(o, "name", js_str(t, "name"));
        if (js_str(t, "description"))
            js_set_str(o, "description", js_str(t, "description"));
        js_set(o, "input_schema", json_is_object(schema) ? json_incref(schema) : json_pack("{s:s}", "type", "object"));
        js_push(a, o);
    }
    json_array_foreach(js_at(agent, "tools"), i, t)
        if (is_mcp_set(t))
            define_mcp(a, agent, mcp, t);
    return a;
}
