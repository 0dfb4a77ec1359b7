/* gateway/stats.c - see stats.h */
#include "gateway/stats.h"

#include "base/str.h"
#include "metrics/metrics.h"

enum { C1, C2, C3, C4, C5, GONE, IN, OUT, N_ROWS };
static const char *const class_name[] = { "1xx", "2xx", "3xx", "4xx", "5xx", "none" };
struct route_stats { struct route_stats *next; char *route; struct metric m[N_ROWS]; };

static struct route_stats *all;
static size_t n_all;

static struct route_stats *make(const char *route)
{
    struct route_stats *s = xcalloc(1, sizeof *s);
    s->route = str_dup(route);
    for (size_t i = 0; i < N_ROWS; i++) {
        s->m[i].kind = METRIC_COUNTER;
        if (i <= GONE) {
            s->m[i].name = "gateway_requests_total";
            s->m[i].help = "Requests by route and class of the answer's status; none: the client left before an answer.";
            s->m[i].label = str_printf("route=\"%s\",class=\"%s\"", route, class_name[i]);
        } else {
            s->m[i].name = i == IN ? "gateway_request_body_bytes_total" : "gateway_response_body_bytes_total";
            s->m[i].help = i == IN ? "Bytes of request bodies." : "Bytes of answer bodies.";
            s->m[i].label = str_printf("route=\"%s\"", route);
        }
    }
    s->next = all;
    all = s;
    n_all++;
    return s;
}

struct route_stats *route_stats_of(const char *route)
{
    for (struct route_stats *s = all; s; s = s->next)
        if (str_eq(s->route, route))
            return s;
    return n_all < STATS_ROUTES_MAX || str_eq(route, "other") ? make(route) : route_stats_of("other");
}

void route_stats_request(struct route_stats *s, int status, uint64_t in, uint64_t out)
{
    int c = status / 100;
    metric_add(&s->m[c >= 1 && c <= 5 ? C1 + c - 1 : GONE], 1);
    if (in)
        metric_add(&s->m[IN], (int64_t)in);
    if (out)
        metric_add(&s->m[OUT], (int64_t)out);
}
