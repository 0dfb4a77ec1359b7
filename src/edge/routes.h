/* edge/routes.h - which other edge has a gateway of a tunnel: the server is asked, answers are kept for a moment (a miss shorter than a hit), questions about
 * one tunnel go together. Loop thread only. */
#pragma once

#include "edge/ctx.h"

#define ROUTES_MAX 1024                  /* tunnels kept; the one that was looked at longest ago goes first */
#define ROUTE_HIT_MS 2000
#define ROUTE_MISS_MS 1000
#define ROUTE_ASKING_MAX 256             /* tunnels asked about at once */

struct routes *routes_new(struct edge *e);
void routes_free(struct routes *r);

struct route_wait { struct list node; void (*done)(struct route_wait *w, int rc, const struct control_route *r); };
/* RC_OK with *ret (borrowed for the moment), RC_NOT_FOUND: no such tunnel; RC_AGAIN: w->done says it later, unless list_del(&w->node) comes first; RC_LIMIT. */
MUST_CHECK int routes_get(struct routes *r, const char *host, struct route_wait *w, const struct control_route **ret);
void routes_forget(struct routes *r, const char *host);      /* what was said has turned out wrong */
