/* gateway/routes.h - host name to route. A table never changes once made; a reload makes a new one, in which a route whose configuration is the same is the
 * very same object as before, with its connections, sessions and processes. Routes are reference counted: an exchange holds the one it goes through.
 * Loop thread only. */
#pragma once

#include "gateway/env.h"
#include "gateway/exchange.h"
#include "gateway/headers.h"
#include "gateway/policy.h"
#include "gateway/stats.h"

#define ROUTE_UPSTREAMS_MAX 32
#define ROUTE_NAME_MAX 253

struct route {
    unsigned refs;
    char *name;                          /* "docs", or a whole host name */
    char *text;                          /* canonical form of its configuration */
    struct env *env;
    const struct upstream_ops *ops; void *upstream; void (*upstream_free)(void *upstream);
    char *leads_to;                      /* for people: "http://10.0.0.5:8080, http://10.0.0.6:8080" */
    struct tool_policy *policy;               /* NULL: every tool */
    struct header_rules headers;
    struct route_stats *stats;
};
struct route *route_ref(struct route *r);
void route_unref(struct route *r);       /* NULL is fine */

struct route_table;
/* From the settings. `old` may be NULL. RC_INVALID with "file:line: routes.<name>: ...", and the hosted service's words where it has some (tunnels.md 7.2). */
MUST_CHECK int route_table_new(struct env *env, const struct gateway_settings *s, const struct route_table *old, struct route_table **ret, struct err *e);
void route_table_free(struct route_table *t);
/* `host` in lower case, without port: an exact name first, then what is left of ".<tunnel domain>". NULL: none. Borrowed. */
struct route *route_table_find(const struct route_table *t, const char *host);
/* Does the host lie under the tunnel's domain (or is it a route's whole name)? Others are not for us. */
bool route_table_ours(const struct route_table *t, const char *host);
size_t route_table_count(const struct route_table *t);
const struct route *route_table_at(const struct route_table *t, size_t i);     /* in order of names */

/* route_conf.c: one route from its part of the file. */
MUST_CHECK int route_make(struct env *env, const struct conf_tree *t, const struct conf_node *x, const char *name, const char *text, struct route **ret, struct err *e);
int route_text(const struct conf_node *x, struct buf *out);          /* the canonical form; files that it names are stamped */
