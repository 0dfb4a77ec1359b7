/* gateway/stats.h - counters of a route, which outlive the route: a reload does not set them back. Loop thread only. */
#pragma once

#include "base/attr.h"

#define STATS_ROUTES_MAX 4096            /* names that ever had a route; those beyond share one row, "other" */

struct route_stats;
struct route_stats *route_stats_of(const char *route);       /* never NULL, never freed */
void route_stats_request(struct route_stats *s, int status, uint64_t in, uint64_t out);      /* an exchange has ended; status 0: the client left before an answer */
