/* server/loop/tools.h - the tools of an agent: what the model is told, who runs a call, under which permission. Pure. */
#pragma once

#include "json/js.h"
#include "server/loop/reduce.h"

enum tool_policy { POLICY_ALLOW, POLICY_ASK, POLICY_AUTO, POLICY_NONE };     /* NONE: custom tools and calls that are refused */
struct tool_use_rule { enum call_kind kind; enum call_perm perm; enum tool_policy policy; };

/* `agent`: the session's resolved agent. Unknown and disabled tools give { CALL_NONE, PERM_DENY, POLICY_NONE }. */
struct tool_use_rule tools_rule(const json_t *agent, const char *name);
/* New array of Messages API tool definitions in a fixed order. */
json_t *tools_define(const json_t *agent);
bool tools_any_worker(const json_t *agent);      /* an enabled tool is run by the worker */
