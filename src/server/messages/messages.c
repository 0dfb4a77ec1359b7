/* messages.c - the door: reads a request, finds its provider, lets it run within the limits. */
#include "server/messages/messages.h"

#include <string.h>

#include "metrics/metrics.h"
#include "server/messages/private.h"

METRIC_DEFINE(metric_messages_running, METRIC_GAUGE, "outwork_messages_running", "Messages requests that run");
METRIC_DEFINE(metric_messages_total, METRIC_COUNTER, "outwork_messages_total", "Messages requests passed to a provider");

int messages_new(const struct messages_conf *c, struct messages **ret, struct err *e)
{
    (void)e;
    struct messages *m = xcalloc(1, sizeof *m);
    m->conf = *c;
    list_init(&m->running);
    *ret = m;
    return RC_OK;
}

void messages_free(struct messages *m)
{
    if (!m)
        return;
    list_foreach(x, &m->running, struct exchange, link)
        x->cancel(x);
    free(m);
}

size_t messages_running(const struct messages *m) { return m->n; }

void messages_exchange_free(struct exchange *x)
{
    if (!list_empty(&x->link)) {
        list_del(&x->link);
        x->m->n--;
        x->m->bytes -= x->bytes;
        metric_add(&metric_messages_running, -1);
    }
    request_done(&x->q);
    free(x);
}

/* Loop thread. */
static void begin(void *arg)
{
    struct exchange *x = arg;
    struct messages *m = x->m;
    if (m->n >= MESSAGES_MAX || m->bytes + x->bytes > MESSAGES_BYTES_MAX) {
        struct err e;
        int rc = err_set(&e, RC_AGAIN, "Too many Messages requests are running; try again.");
        down_refuse(x->down, rc, NULL, &e);
        messages_exchange_free(x);
        return;
    }
    list_add_tail(&m->running, &x->link);
    m->n++;
    m->bytes += x->bytes;
    metric_add(&metric_messages_running, 1);
    metric_add(&metric_messages_total, 1);
    if (x->q.n_servers)
        messages_rounds_start(x);
    else
        messages_relay_start(x);
}

/* Nothing of MCP is left to be done but another text: the rest is a request passed through. */
static int rewrite(struct request *q, struct err *e)
{
    struct buf none, out;
    buf_init(&none, 0);
    buf_init(&out, REWRITTEN_MAX);
    int rc = request_write(q, NULL, &none, q->stream, &out, e);
    if (rc < 0) {
        buf_done(&out);
        return rc;
    }
    buf_done(&q->body);
    q->body = out;
    return RC_OK;
}

static int prepare(struct exchange *x, const struct messages_request *r, const char **ret_error_type, struct err *e)
{
    struct model_caps caps;
    TRY(request_headers(&x->q, http_req_head(r->req), http_req_query(r->req), e));
    TRY(request_read(&x->q, e));
    int rc = model_resolve(x->m->conf.models, x->q.model, &x->p, &x->self, &caps);
    if (rc == RC_NOT_FOUND)
        return err_set(e, rc, "model: %.100s", x->q.model);
    TRY(rc);
    *ret_error_type = NULL;
    if (x->q.n_servers && !x->m->conf.mcp)
        return err_set(e, RC_INVALID, "mcp_servers: this server is not set up to call MCP servers.");
    if (x->q.rewrite && !x->q.n_servers)
        TRY(rewrite(&x->q, e));
    return x->p->raw_start ? RC_OK : err_set(e, RC_UNSUPPORTED, "The model provider '%s' takes no Messages requests.", x->p->name);
}

int messages_start(struct messages *m, const struct messages_request *r, const char **ret_error_type, struct err *e)
{
    struct exchange *x = xcalloc(1, sizeof *x);
    x->m = m;
    x->q.count = r->count;
    list_init(&x->link);
    http_req_take_body(r->req, &x->q.body);
    x->bytes = buf_len(&x->q.body);
    int rc = prepare(x, r, ret_error_type, e);
    if (rc < 0) {
        messages_exchange_free(x);
        return rc;
    }
    x->down = down_new(r);
    ev_post(m->conf.ev, begin, x);
    return RC_OK;
}
