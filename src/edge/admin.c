/* edge/admin.c - see admin.h */
#include "edge/admin.h"

#include "base/str.h"
#include "edge/gateways.h"
#include "edge/pass.h"
#include "http/server.h"

#define METRICS_MAX (256 * KIB)
#define CONNS_MAX 64

struct admin { struct edge *e; struct http_server *server; char address[NET_ADDR_TEXT]; };

static void reply(struct http_req *r, int status, const char *why)
{
    struct buf b;
    buf_init(&b, 4 * KIB);
    buf_printf(&b, "%s\n", why);
    struct http_reply a = { .status = status, .content_type = "text/plain; charset=utf-8", .body = &b };
    http_reply(r, &a);
    buf_done(&b);
}

/* Ready: new gateways can be let in. Those that are connected go on also without the server. */
static void readyz(struct admin *a, struct http_req *r)
{
    const char *why = NULL;
    if (a->e->draining)
        reply(r, 503, "draining");
    else if (!control_reachable(a->e->control, &why))
        reply(r, 503, why);
    else
        reply(r, 200, "ready");
}

static void on_request(void *ctx, struct http_req *r)
{
    struct admin *a = ctx;
    struct slice path = http_req_path(r);
    if (http_req_head(r)->method != HTTP_GET) {
        reply(r, 405, "only GET");
    } else if (slice_eq(path, "/healthz")) {
        reply(r, 200, "ok");
    } else if (slice_eq(path, "/readyz")) {
        readyz(a, r);
    } else if (slice_eq(path, "/metrics")) {
        struct buf b;
        buf_init(&b, METRICS_MAX);
        passes_count(a->e);
        metric_set(&stat_streams, (int64_t)gateways_streams(a->e->gateways));
        (void)metrics_write(&b);
        struct http_reply m = { .status = 200, .content_type = "text/plain; version=0.0.4", .body = &b };
        http_reply(r, &m);
        buf_done(&b);
    } else {
        reply(r, 404, "only /healthz, /readyz and /metrics");
    }
}

int edge_admin_new(struct edge *e, struct admin **ret, struct err *err)
{
    if (!e->set.admin_listen)
        return RC_OK;
    struct admin *a = xcalloc(1, sizeof *a);
    struct net_addr want, bound;
    struct http_server_conf c = { .limits = http_limits_default, .on_request = on_request, .ctx = a };
    c.limits.conns_max = CONNS_MAX;
    c.limits.body_max = 4 * KIB;
    c.limits.bodies_max = CONNS_MAX * 4 * KIB;
    a->e = e;
    int fd = -1;
    int rc = net_addr_parse(e->set.admin_listen, &want, err);
    if (rc == RC_OK)
        rc = net_listen(&want, &fd, &bound, err);
    if (rc == RC_OK && (rc = http_server_new(e->ev, &c, fd, &a->server, err)) < 0)
        (void)close(fd);
    if (rc < 0) {
        free(a);
        return err_wrap(err, rc, "admin.listen");
    }
    net_addr_format(&bound, a->address);
    *ret = a;
    return RC_OK;
}

const char *admin_address(const struct admin *a)
{
    return a ? a->address : "";
}

void edge_admin_free(struct admin *a)
{
    if (!a)
        return;
    http_server_free(a->server);
    free(a);
}
