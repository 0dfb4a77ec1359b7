/* server/api/health.c - for load balancers and scrapers; no credential. */
#include "metrics/metrics.h"
#include "server/api/call.h"

METRIC_DEFINE(metric_running, METRIC_GAUGE, "outwork_sessions_running", "Sessions that this process drives now");
METRIC_DEFINE(metric_jobs, METRIC_GAUGE, "outwork_jobs_waiting", "Jobs waiting for a thread");
METRIC_DEFINE(metric_parked, METRIC_GAUGE, "outwork_polls_parked", "Long polls that wait for work");

int health_live(struct call *c)
{
    buf_puts(&c->out, "{\"status\":\"ok\"}");
    return RC_OK;
}

int health_ready(struct call *c)
{
    const char *why = NULL;
    if (atomic_load(&c->api->draining))
        why = "draining";
    else if (c->store->ops->ping(c->store, &c->e) != RC_OK)
        why = "store";
    if (!why) {
        buf_puts(&c->out, "{\"status\":\"ready\"}");
        return RC_OK;
    }
    c->status = 503;
    buf_printf(&c->out, "{\"status\":\"not ready\",\"reason\":\"%s\"}", why);
    return RC_OK;
}

int health_metrics(struct call *c)
{
    metric_set(&metric_running, (int64_t)loop_running(c->api->conf.loop));
    metric_set(&metric_jobs, (int64_t)jobs_waiting(c->api->conf.jobs));
    metric_set(&metric_parked, (int64_t)park_waiting(c->api->conf.park));
    c->content_type = "text/plain; version=0.0.4; charset=utf-8";
    TRY(metrics_write(&c->out));
    return tunnels_metrics(c, &c->out);
}
