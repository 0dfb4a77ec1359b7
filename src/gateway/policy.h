/* gateway/policy.h - which tools of a route may be called, by name with * and ?: a tool that a deny rule matches is refused; when there are allow rules, so is
 * one that none of them matches. Immutable; pure. */
#pragma once

#include "base/attr.h"
#include "base/buf.h"
#include "base/err.h"
#include "gateway/mcp.h"

#define POLICY_RULE_MAX 128              /* bytes of one rule */
#define POLICY_REFUSAL_MAX (64 * KIB)

struct tool_policy;
/* RC_INVALID: a rule that is empty, too long, or given twice. */
MUST_CHECK int tool_policy_new(const char *const *allow, size_t n_allow, const char *const *deny, size_t n_deny, struct tool_policy **ret, struct err *e);
void tool_policy_free(struct tool_policy *p);
/* NULL: allowed. Else why not, one sentence in `why`. A call that could not be read clearly is refused. */
const char *tool_policy_refuses(const struct tool_policy *p, const struct mcp_call *c, char why[256]);
bool tool_match(const char *rule, const char *name);     /* * any text, ? one character (byte) */

/* The answer: a JSON-RPC error with the request's id (null when it has none). `route` and `why` say which policy refused. */
int tool_policy_answer(struct buf *out, const char *id, const char *route, const char *tool, const char *why);
