/* gateway/egress.c - see egress.h. The CONNECT itself is http/client_conn.c's, which takes only the head of the proxy's answer off the socket. */
#include "gateway/egress.h"

#include <stdio.h>
#include <string.h>

#include "base/secret.h"
#include "base/str.h"
#include "http/client_conn.h"

#define TIMEOUT_DEFAULT_MS 15000

struct egress_dial {
    struct ev *ev;
    struct net_connect *direct;
    struct hconn *conn;
    struct hconn_route route;
    struct ev_timer timer;           /* the whole time-out; 0: tells `failure` */
    struct err failure;
    char name[URL_HOST_MAX + 10];
    void (*cb)(void *ctx, int fd, const struct err *e);
    void *ctx;
};

static bool uses_proxy(const struct egress_conf *c, const char *host, uint16_t port)
{
    return c && c->proxy && *c->proxy && !http_no_proxy(c->no_proxy, host, port);
}

static int parse_proxy(const char *text, struct http_url *ret, struct err *e)
{
    TRY(http_url_parse(text, true, ret, e) < 0 ? err_wrap(e, RC_INVALID, "proxy") : RC_OK);
    if (ret->tls)
        return err_set(e, RC_UNSUPPORTED, "proxy: only http:// proxies are spoken to; an https:// one is not supported");
    return RC_OK;
}

int egress_check(const struct egress_conf *c, struct err *e)
{
    struct http_url u;
    return c->proxy && *c->proxy ? parse_proxy(c->proxy, &u, e) : RC_OK;
}

void egress_describe(const struct egress_conf *c, const char *host, uint16_t port, char out[EGRESS_TEXT])
{
    struct http_url u;
    char a[URL_HOST_MAX + 10];
    if (!uses_proxy(c, host, port) || parse_proxy(c->proxy, &u, NULL) < 0) {
        (void)str_copy(out, EGRESS_TEXT, "direct");
        return;
    }
    http_url_authority(&u, true, a);
    (void)snprintf(out, EGRESS_TEXT, "http://%s", a);
}

static void release(struct egress_dial *d)
{
    ev_timer_stop(&d->timer);
    net_connect_cancel(d->direct);
    hconn_free(d->conn);
    if (d->route.proxy_auth)
        wipe(d->route.proxy_auth, strlen(d->route.proxy_auth));
    free(d->route.proxy_auth);
    free(d);
}

static void finish(struct egress_dial *d, int fd, const struct err *e)
{
    void (*cb)(void *, int, const struct err *) = d->cb;
    void *ctx = d->ctx;
    struct err copy = e ? *e : (struct err){ 0 };
    release(d);
    cb(ctx, fd, fd >= 0 ? NULL : &copy);
}

static void on_direct(void *ctx, int fd, const struct err *e)
{
    struct egress_dial *d = ctx;
    d->direct = NULL;
    finish(d, fd, e);
}

static void on_tunnel(struct hconn *c, int rc, const struct err *e)
{
    struct egress_dial *d = c->owner;
    if (rc < 0) {
        struct err mine = *e;
        (void)err_wrap(&mine, rc, "reach %s through the proxy", d->name);
        finish(d, -1, &mine);
        return;
    }
    ev_io_stop(&c->io);
    int fd = TAKE_FD(c->fd);
    finish(d, fd, NULL);
}

static void on_tunnel_io(struct hconn *c, unsigned got)     /* never: the connection is taken apart when it opens */
{
    (void)c, (void)got;
}

static void on_timeout(struct ev_timer *t)
{
    struct egress_dial *d = container_of(t, struct egress_dial, timer);
    struct err e = d->failure;
    if (e.rc == RC_OK)
        (void)err_set(&e, RC_TIMEOUT, d->conn ? "reach %s through the proxy: no answer in time" : "connect to %s: no answer in time", d->name);
    finish(d, -1, &e);
}

struct egress_dial *egress_dial(struct ev *ev, const struct egress_conf *c, const char *host, uint16_t port, int64_t timeout_ms,
                                void (*cb)(void *ctx, int fd, const struct err *e), void *ctx)
{
    struct egress_dial *d = xcalloc(1, sizeof *d);
    d->ev = ev;
    d->cb = cb;
    d->ctx = ctx;
    size_t n = strlen(host);
    if (n > 2 && host[0] == '[' && host[n - 1] == ']') {
        host++;
        n -= 2;
    }
    int64_t ms = timeout_ms > 0 ? timeout_ms : TIMEOUT_DEFAULT_MS;
    int rc = RC_OK;
    struct http_url *u = &d->route.url;
    if (n == 0 || n >= sizeof u->host) {
        rc = err_set(&d->failure, RC_INVALID, "dial: the host name is %s", n ? "too long" : "empty");
    } else {
        memcpy(u->host, host, n);
        u->ipv6 = strchr(u->host, ':') != NULL;
        u->port = port;
        http_url_authority(u, true, d->name);
        for (size_t i = 0; i < n && rc == RC_OK; i++)       /* it goes into the CONNECT line */
            if ((unsigned char)u->host[i] <= ' ' || (unsigned char)u->host[i] >= 127 || strchr("/?#@\\", u->host[i]))
                rc = err_set(&d->failure, RC_INVALID, "dial: the host name has a character that is not allowed");
    }
    bool proxied = rc == RC_OK && uses_proxy(c, u->host, port);
    if (proxied)
        rc = parse_proxy(c->proxy, &d->route.proxy, &d->failure);
    ev_timer_set(ev, &d->timer, rc < 0 ? 0 : ms, on_timeout);
    if (rc < 0)
        return d;
    if (!proxied) {
        d->direct = net_connect_start(ev, u->host, port, ms, on_direct, d);
        return d;
    }
    d->route.via_proxy = d->route.bare = true;
    d->route.proxy_auth = hconn_proxy_authorization(&d->route.proxy);
    d->conn = hconn_open(ev, &d->route, NULL, ms, d, on_tunnel, on_tunnel_io);
    return d;
}

void egress_cancel(struct egress_dial *d)
{
    if (d)
        release(d);
}
