/* gateway/policy.c - see policy.h */
#include "gateway/policy.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "json/js.h"

#define ERROR_INTERNAL (-32603)          /* JSON-RPC's "internal error": the one that every MCP client shows to its model instead of guessing at it */

struct rules { char **rule; size_t n; };
struct tool_policy { struct rules allow, deny; };

/* Iterative, with one point to come back to: linear for one star, at worst n * m. */
bool tool_match(const char *rule, const char *name)
{
    const char *star = NULL, *back = NULL;
    while (*name) {
        if (*rule == '*') {
            star = rule++;
            back = name;
        } else if (*rule == '?' || *rule == *name) {
            rule++;
            name++;
        } else if (star) {
            rule = star + 1;
            name = ++back;
        } else {
            return false;
        }
    }
    while (*rule == '*')
        rule++;
    return !*rule;
}

static int rules_new(struct rules *r, const char *kind, const char *const *v, size_t n, struct err *e)
{
    r->rule = xcalloc(n, sizeof *r->rule);
    for (size_t i = 0; i < n; i++) {
        if (!v[i] || !*v[i] || strlen(v[i]) > POLICY_RULE_MAX)
            return err_set(e, RC_INVALID, "a rule of tools.%s has 1 to %d bytes", kind, POLICY_RULE_MAX);
        for (size_t k = 0; k < i; k++)
            if (str_eq(v[i], v[k]))
                return err_set(e, RC_INVALID, "tools.%s has '%s' twice", kind, v[i]);
        r->rule[r->n++] = str_dup(v[i]);
    }
    return RC_OK;
}

static void rules_done(struct rules *r)
{
    for (size_t i = 0; i < r->n; i++)
        free(r->rule[i]);
    free(r->rule);
}

int tool_policy_new(const char *const *allow, size_t n_allow, const char *const *deny, size_t n_deny, struct tool_policy **ret, struct err *e)
{
    struct tool_policy *p = xcalloc(1, sizeof *p);
    int rc = rules_new(&p->allow, "allow", allow, n_allow, e);
    if (rc == RC_OK)
        rc = rules_new(&p->deny, "deny", deny, n_deny, e);
    if (rc < 0) {
        tool_policy_free(p);
        return rc;
    }
    *ret = p;
    return RC_OK;
}

void tool_policy_free(struct tool_policy *p)
{
    if (!p)
        return;
    rules_done(&p->allow);
    rules_done(&p->deny);
    free(p);
}

static const char *match(const struct rules *r, const char *name)
{
    for (size_t i = 0; i < r->n; i++)
        if (tool_match(r->rule[i], name))
            return r->rule[i];
    return NULL;
}

const char *tool_policy_refuses(const struct tool_policy *p, const struct mcp_call *c, char why[256])
{
    if (c->unclear) {
        (void)snprintf(why, 256, "the message can be read in more than one way (a name twice, in other letter case, or too long)");
        return why;
    }
    if (!c->is_call || !str_eq(c->method, "tools/call"))
        return NULL;
    const char *deny = match(&p->deny, c->name);
    if (deny)
        (void)snprintf(why, 256, "rule tools.deny \"%.128s\"", deny);
    else if (p->allow.n && !match(&p->allow, c->name))
        (void)snprintf(why, 256, "no rule of tools.allow matches it");
    else
        return NULL;
    return why;
}

int tool_policy_answer(struct buf *out, const char *id, const char *route, const char *tool, const char *why)
{
    char text[ERR_MSG_MAX];
    if (tool && *tool)
        (void)snprintf(text, sizeof text, "Tool '%.128s' is refused by the tool policy of gateway route '%.64s': %s. Do not retry.", tool, route, why);
    else
        (void)snprintf(text, sizeof text, "The request is refused by the tool policy of gateway route '%.64s': %s. Do not retry.", route, why);
    (void)buf_printf(out, "{\"jsonrpc\":\"2.0\",\"id\":%s,\"error\":{\"code\":%d,\"message\":", *id ? id : "null", ERROR_INTERNAL);
    (void)js_write_string(out, text, strlen(text));
    (void)buf_puts(out, ",\"data\":{\"source\":\"outwork-gateway\",\"policy\":");
    (void)js_write_string(out, route, strlen(route));
    (void)buf_puts(out, ",\"retry\":false}}}");
    return buf_ok(out) ? RC_OK : RC_LIMIT;
}
