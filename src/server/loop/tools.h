/* server/loop/tools.h - the tools of an agent: what the model is told, who runs a call, under which permission. Pure. */
#pragma once

#include "json/js.h"
#include "server/loop/reduce.h"

enum tool_policy { POLICY_ALLOW, POLICY_ASK, POLICY_AUTO, POLICY_NONE };     /* NONE: custom tools and calls that are refused */
struct tool_use_rule {
    enum call_kind kind; enum call_perm perm; enum tool_policy policy;
    const char *server, *tool;       /* of an MCP server, also when disabled; borrowed from `mcp`. Else NULL */
    bool read_only;
};

/* `agent`: the session's resolved agent. `mcp`: what its MCP servers offer, [{"name","url","tools":[...]}] as in the record turn.tools; may be NULL.
 * Unknown and disabled tools give { CALL_NONE, PERM_DENY, POLICY_NONE }. */
struct tool_use_rule tools_rule(const json_t *agent, const json_t *mcp, const char *name);
/* New array of Messages API tool definitions in a fixed order: built-in ones, custom ones, then MCP servers in the order of their toolsets. */
json_t *tools_define(const json_t *agent, const json_t *mcp);
bool tools_any_mcp(const json_t *agent);         /* a toolset of an MCP server, with something in it that may be enabled */
bool tools_any_worker(const json_t *agent);      /* an enabled tool is run by the worker */
