/* gateway/admin.c - see admin.h */
#include "gateway/admin.h"

#include <stdio.h>

#include "base/buf.h"
#include "base/str.h"
#include "http/server.h"
#include "log/log.h"
#include "metrics/metrics.h"
#include "net/net.h"

#define METRICS_MAX (4 * MIB)
#define CONNS_MAX 64

struct gateway_admin { const struct gateway_admin_ops *ops; void *ctx; struct http_server *server; };

static void reply(struct http_req *r, int status, const char *text)
{
    struct buf b;
    buf_init(&b, KIB);
    (void)buf_puts(&b, text);
    struct http_reply a = { .status = status, .content_type = "text/plain; charset=utf-8", .body = &b };
    http_reply(r, &a);
    buf_done(&b);
}

static void on_request(void *ctx, struct http_req *r)
{
    struct gateway_admin *a = ctx;
    struct slice path = http_req_path(r);
    enum http_method m = http_req_head(r)->method;
    char why[256] = "", line[300];
    if (m != HTTP_GET && m != HTTP_HEAD) {
        reply(r, 405, "only GET\n");
    } else if (slice_eq(path, "/healthz")) {
        reply(r, 200, "ok\n");
    } else if (slice_eq(path, "/readyz")) {
        bool ok = a->ops->ready(a->ctx, why);
        (void)snprintf(line, sizeof line, "%s\n", ok ? "ok" : why);
        reply(r, ok ? 200 : 503, line);
    } else if (slice_eq(path, "/metrics")) {
        struct buf b;
        a->ops->refresh(a->ctx);
        buf_init(&b, METRICS_MAX);
        (void)metrics_write(&b);
        struct http_reply answer = { .status = 200, .content_type = "text/plain; version=0.0.4", .body = &b };
        http_reply(r, &answer);
        buf_done(&b);
    } else {
        reply(r, 404, "only /healthz, /readyz and /metrics\n");
    }
}

int gateway_admin_start(struct ev *ev, const char *listen, const struct gateway_admin_ops *ops, void *ctx, struct gateway_admin **ret, struct err *e)
{
    struct net_addr at, bound;
    char text[NET_ADDR_TEXT];
    int fd = -1;
    TRY(net_addr_parse(listen, &at, e));
    TRY(net_listen(&at, &fd, &bound, e));
    struct gateway_admin *a = xcalloc(1, sizeof *a);
    struct http_server_conf c = { .limits = http_limits_default, .on_request = on_request, .ctx = a };
    c.limits.conns_max = CONNS_MAX;
    a->ops = ops;
    a->ctx = ctx;
    int rc = http_server_new(ev, &c, fd, &a->server, e);
    if (rc < 0) {
        (void)close(fd);
        free(a);
        return rc;
    }
    net_addr_format(&bound, text);
    log_info("gateway.admin", "listen=%s", text);
    *ret = a;
    return RC_OK;
}

void gateway_admin_free(struct gateway_admin *a)
{
    if (!a)
        return;
    http_server_free(a->server);
    free(a);
}
