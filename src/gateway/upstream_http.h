/* gateway/upstream_http.h - the http kind of upstream: one or more servers of a route (http, https, unix:), connections kept for the next request.
 * Requests go round robin; those of an MCP session to where the session was made; a server that cannot be reached is left out for a while.
 * Loop thread only. */
#pragma once

#include "gateway/env.h"
#include "gateway/exchange.h"
#include "gateway/headers.h"

#define UPSTREAM_OUT_MAX (64 * KIB)      /* of a request's body that wait for the upstream's socket */
#define UPSTREAM_IN_MAX (HTTP_HEAD_MAX + 64 * KIB)   /* of an answer that wait for the client, or for the end of the head */
#define UPSTREAM_DOWN_MIN_MS 1000        /* how long an unreachable server is left out, doubling ... */
#define UPSTREAM_DOWN_MAX_MS 30000       /* ... up to this */

struct uhttp;
extern const struct upstream_ops uhttp_ops;
/* `urls`: "http://host:port", "https://host:port", "unix:/path"; RC_INVALID "invalid upstream (must be scheme://host:port)". `rules` is borrowed for the life of it,
 * `route` (a name for logs) is copied. `host_upstream`: send the upstream's own name as Host instead of the client's. */
MUST_CHECK int uhttp_new(struct env *env, const char *route, const char *const *urls, size_t n, bool host_upstream, const struct header_rules *rules,
                         struct uhttp **ret, struct err *e);
void uhttp_free(void *u);                /* no call may be open */
