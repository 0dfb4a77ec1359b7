/* worker/status.c - see status.h */
#include "worker/status.h"

#include <string.h>

#include "base/str.h"
#include "http/server.h"
#include "metrics/metrics.h"
#include "net/net.h"
#include "worker/ctx.h"
#include "worker/item.h"
#include "worker/poll.h"

#define METRICS_MAX (256 * KIB)

static METRIC_DEFINE_LABEL(polls_ok, METRIC_COUNTER, "outwork_worker_polls_total", "result=\"ok\"", "Answers to work polls.");
static METRIC_DEFINE_LABEL(polls_failed, METRIC_COUNTER, "outwork_worker_polls_total", "result=\"failed\"", "Answers to work polls.");
static METRIC_DEFINE(heartbeats, METRIC_COUNTER, "outwork_worker_heartbeats_total", "Heartbeats that were accepted.");
static METRIC_DEFINE(sessions, METRIC_GAUGE, "outwork_worker_sessions", "Work items being served.");
static METRIC_DEFINE(call_time, METRIC_HISTOGRAM, "outwork_worker_call_seconds", "Time of tool calls in the sandbox.");
static METRIC_DEFINE(call_errors, METRIC_COUNTER, "outwork_worker_call_errors_total", "Tool calls that ended with an error.");
static METRIC_DEFINE_LABEL(posts_ok, METRIC_COUNTER, "outwork_worker_result_posts_total", "result=\"ok\"", "Attempts to post a tool result.");
static METRIC_DEFINE_LABEL(posts_failed, METRIC_COUNTER, "outwork_worker_result_posts_total", "result=\"failed\"", "Attempts to post a tool result.");

struct status {
    struct worker *w;
    struct http_server *server;
};

static void reply(struct http_req *r, int code, const char *type, const char *text)
{
    struct buf b;
    buf_init(&b, METRICS_MAX);
    buf_puts(&b, text);
    struct http_reply a = { .status = code, .content_type = type, .body = &b };
    http_reply(r, &a);
    buf_done(&b);
}

static void healthz(struct status *s, struct http_req *r)
{
    const struct worker *w = s->w;
    if (w->stopping)
        reply(r, 503, "text/plain", "stopping\n");
    else if (w->poller && poller_overdue(w->poller))
        reply(r, 503, "text/plain", "polling makes no progress\n");
    else if (items_overdue(w))
        reply(r, 503, "text/plain", "a heartbeat is overdue\n");
    else
        reply(r, 200, "text/plain", "ok\n");
}

static void on_request(void *ctx, struct http_req *r)
{
    struct status *s = ctx;
    struct slice path = http_req_path(r);
    if (http_req_head(r)->method != HTTP_GET) {
        reply(r, 405, "text/plain", "only GET\n");
    } else if (slice_eq(path, "/healthz")) {
        healthz(s, r);
    } else if (slice_eq(path, "/metrics")) {
        struct buf b;
        buf_init(&b, METRICS_MAX);
        (void)metrics_write(&b);
        struct http_reply a = { .status = 200, .content_type = "text/plain; version=0.0.4", .body = &b };
        http_reply(r, &a);
        buf_done(&b);
    } else {
        reply(r, 404, "text/plain", "only /healthz and /metrics\n");
    }
}

int status_start(struct worker *w, struct status **ret, struct err *e)
{
    struct status *s = xcalloc(1, sizeof *s);
    s->w = w;
    if (w->set.health_listen) {
        struct net_addr a, bound;
        struct http_server_conf c = { .limits = http_limits_default, .on_request = on_request, .ctx = s };
        c.limits.conns_max = 64;
        c.limits.body_max = 0;
        c.limits.bodies_max = 64 * KIB;
        int fd = -1;
        int rc = net_addr_parse(w->set.health_listen, &a, e);
        if (rc == RC_OK)
            rc = net_listen(&a, &fd, &bound, e);
        if (rc == RC_OK)
            rc = http_server_new(w->ev, &c, fd, &s->server, e);
        if (rc < 0) {
            free(s);
            return err_wrap(e, rc, "health-listen");
        }
    }
    *ret = s;
    return RC_OK;
}

void status_free(struct status *s)
{
    if (!s)
        return;
    if (s->server)
        http_server_free(s->server);
    free(s);
}

void status_poll(struct status *s, bool answered)
{
    (void)s;
    metric_add(answered ? &polls_ok : &polls_failed, 1);
}

void status_heartbeat(struct status *s)
{
    (void)s;
    metric_add(&heartbeats, 1);
}

void status_sessions(struct status *s, size_t n)
{
    (void)s;
    metric_set(&sessions, (int64_t)n);
}

void status_call(struct status *s, int64_t us, bool is_error)
{
    (void)s;
    metric_observe_us(&call_time, us);
    if (is_error)
        metric_add(&call_errors, 1);
}

void status_result(struct status *s, bool posted)
{
    (void)s;
    metric_add(posted ? &posts_ok : &posts_failed, 1);
}
