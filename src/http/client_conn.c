/* http/client_conn.c - see client_conn.h */
#include "http/client_conn.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/base64.h"
#include "base/secret.h"
#include "base/str.h"
#include "http/parse.h"

#define PROXY_CREDENTIALS_MAX 512

static void on_event(struct ev_io *io, unsigned got);

static void opened(struct hconn *c, int rc, const struct err *e)
{
    ev_timer_stop(&c->timer);
    if (rc == RC_OK) {
        c->state = HCONN_READY;
        buf_wipe(&c->hello);
        ev_io_want(&c->io, EV_READ);
    } else {
        ev_io_stop(&c->io);
    }
    c->on_open(c, rc, e);            /* may free `c` */
}

static void open_failed(struct hconn *c, int rc, struct err *e)
{
    e->rc = rc;
    opened(c, rc, e);
}

static void on_timeout(struct ev_timer *t)
{
    struct hconn *c = container_of(t, struct hconn, timer);
    struct err e;
    (void)err_set(&e, RC_TIMEOUT, "%s did not finish in %lld ms", c->state == HCONN_TLS ? "the TLS handshake" : "the proxy's CONNECT",
                  (long long)c->connect_ms);
    open_failed(c, RC_TIMEOUT, &e);
}

static void tls_go(struct hconn *c)
{
    struct err e;
    unsigned want = 0;
    int rc = RC_OK;
    if (!c->tls)
        rc = tls_connect(c->tls_ctx, c->fd, c->route->url.host, &c->tls, &e);
    if (rc == RC_OK)
        rc = tls_handshake(c->tls, &want, &e);
    if (rc == RC_AGAIN) {
        ev_io_want(&c->io, want);
    } else if (rc == RC_OK) {
        opened(c, RC_OK, NULL);
    } else {
        (void)err_wrap(&e, rc, "TLS with %s", c->route->url.host);
        open_failed(c, rc, &e);
    }
}

static void next_layer(struct hconn *c)
{
    if (!c->route->url.tls || c->route->bare) {
        opened(c, RC_OK, NULL);
        return;
    }
    c->state = HCONN_TLS;
    tls_go(c);
}

/* RC_AGAIN: the answer is not whole yet. */
static int proxy_answer(struct hconn *c, struct err *e)
{
    char tmp[1024];
    ssize_t n = recv(c->fd, tmp, sizeof tmp, MSG_DONTWAIT | MSG_PEEK);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return RC_AGAIN;
    if (n <= 0)
        return err_set(e, RC_CLOSED, "the proxy %s closed the connection during CONNECT", c->route->proxy.host);
    size_t before = buf_len(&c->hello);
    if (buf_put(&c->hello, tmp, (size_t)n) < 0)
        return err_set(e, RC_PROTO, "the proxy's answer to CONNECT is too large");
    struct http_head h;
    size_t used = 0;
    const char *why = "";
    int rc = http_parse_response(buf_data(&c->hello), buf_len(&c->hello), before, &h, &used, &why);
    /* Only the head's own bytes are taken off the socket: what follows belongs to TLS. */
    size_t take = rc == RC_OK ? used - before : (size_t)n;
    if (recv(c->fd, tmp, take, MSG_DONTWAIT) != (ssize_t)take)
        return err_set(e, RC_IO, "read the proxy's answer");
    if (rc == RC_AGAIN)
        return RC_AGAIN;
    if (rc < 0)
        return err_set(e, RC_PROTO, "the proxy's answer to CONNECT is malformed: %s", why);
    if (h.status / 100 != 2)
        return err_set(e, RC_CLOSED, "the proxy %s refused CONNECT: HTTP %d%s", c->route->proxy.host, h.status,
                       h.status != 407 ? "" : c->route->proxy_auth ? " (the user name or password is wrong)" : " (it wants a user name and password)");
    return RC_OK;
}

static void proxy_go(struct hconn *c)
{
    struct err e;
    int rc = RC_OK;
    if (!c->hello_sent) {
        ssize_t n = send(c->fd, buf_data(&c->hello), buf_len(&c->hello), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            rc = err_sys(&e, RC_IO, errno, "send CONNECT to the proxy %s", c->route->proxy.host);
            open_failed(c, rc, &e);
            return;
        }
        if (n > 0)
            buf_consume(&c->hello, (size_t)n);
        if (buf_len(&c->hello)) {
            ev_io_want(&c->io, EV_WRITE);
            return;
        }
        c->hello_sent = true;
        buf_wipe(&c->hello);
        buf_init(&c->hello, PROXY_REPLY_MAX);
        ev_io_want(&c->io, EV_READ);
        return;
    }
    rc = proxy_answer(c, &e);
    if (rc == RC_AGAIN)
        return;
    if (rc < 0) {
        open_failed(c, rc, &e);
        return;
    }
    next_layer(c);
}

static void proxy_begin(struct hconn *c)
{
    char host[URL_HOST_MAX + 10];
    http_url_authority(&c->route->url, true, host);
    c->state = HCONN_PROXY;
    buf_printf(&c->hello, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", host, host);
    if (c->route->proxy_auth)
        buf_printf(&c->hello, "Proxy-Authorization: %s\r\n", c->route->proxy_auth);
    buf_puts(&c->hello, "\r\n");
    proxy_go(c);
}

static void on_event(struct ev_io *io, unsigned got)
{
    struct hconn *c = container_of(io, struct hconn, io);
    switch (c->state) {
    case HCONN_PROXY:
        proxy_go(c);
        break;
    case HCONN_TLS:
        tls_go(c);
        break;
    case HCONN_READY:
        c->on_io(c, got);
        break;
    case HCONN_TCP:
        break;
    }
}

static void on_dialled(void *ctx, int fd, const struct err *e)
{
    struct hconn *c = ctx;
    c->dial = NULL;
    if (fd < 0) {
        c->on_open(c, e->rc < 0 ? e->rc : RC_IO, e);
        return;
    }
    c->fd = fd;
    if (ev_io_start(c->ev, &c->io, fd, EV_READ, on_event) < 0) {
        struct err mine;
        (void)err_set(&mine, RC_IO, "cannot watch the connection");
        c->on_open(c, RC_IO, &mine);
        return;
    }
    ev_timer_set(c->ev, &c->timer, c->connect_ms, on_timeout);
    if (c->route->via_proxy && (c->route->url.tls || c->route->bare))
        proxy_begin(c);
    else
        next_layer(c);
}

struct hconn *hconn_open(struct ev *ev, const struct hconn_route *r, struct tls_ctx *tls, int64_t connect_ms, void *owner,
                         void (*on_open)(struct hconn *, int, const struct err *), void (*on_io)(struct hconn *, unsigned))
{
    struct hconn *c = xcalloc(1, sizeof *c);
    *c = (struct hconn){ .ev = ev, .route = r, .tls_ctx = tls, .fd = -1, .connect_ms = connect_ms, .owner = owner,
                         .on_open = on_open, .on_io = on_io };
    list_init(&c->link);
    buf_init(&c->hello, PROXY_REPLY_MAX);
    const struct http_url *to = r->via_proxy ? &r->proxy : &r->url;
    c->dial = net_connect_start(ev, to->host, to->port, connect_ms, on_dialled, c);
    return c;
}

void hconn_free(struct hconn *c)
{
    if (!c)
        return;
    if (c->dial)
        net_connect_cancel(c->dial);
    ev_timer_stop(&c->timer);
    ev_io_stop(&c->io);
    list_del(&c->link);
    tls_free(c->tls);
    if (c->fd >= 0)
        (void)close(c->fd);
    buf_wipe(&c->hello);
    free(c);
}

int hconn_read(struct hconn *c, void *p, size_t n, size_t *ret_n, unsigned *ret_want, struct err *e)
{
    if (c->tls)
        return tls_read(c->tls, p, n, ret_n, ret_want, e);
    for (;;) {
        ssize_t got = recv(c->fd, p, n, MSG_DONTWAIT);
        if (got > 0) {
            *ret_n = (size_t)got;
            return RC_OK;
        }
        if (got == 0)
            return err_set(e, RC_CLOSED, "%s closed the connection", c->route->url.host);
        if (errno == EINTR)
            continue;
        *ret_want = EV_READ;
        if (errno == EAGAIN)
            return RC_AGAIN;
        return err_sys(e, errno == ECONNRESET ? RC_CLOSED : RC_IO, errno, "read from %s", c->route->url.host);
    }
}

int hconn_write(struct hconn *c, const void *p, size_t n, size_t *ret_n, unsigned *ret_want, struct err *e)
{
    if (c->tls)
        return tls_write(c->tls, p, n, ret_n, ret_want, e);
    for (;;) {
        ssize_t put = send(c->fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put >= 0) {
            *ret_n = (size_t)put;
            return RC_OK;
        }
        if (errno == EINTR)
            continue;
        *ret_want = EV_WRITE;
        if (errno == EAGAIN)
            return RC_AGAIN;
        return err_sys(e, errno == EPIPE || errno == ECONNRESET ? RC_CLOSED : RC_IO, errno, "send to %s", c->route->url.host);
    }
}

char *hconn_proxy_authorization(const struct http_url *proxy)
{
    char plain[PROXY_CREDENTIALS_MAX];
    if (proxy->userinfo.n == 0 || http_pct_decode(proxy->userinfo, false, plain, sizeof plain) < 0)
        return NULL;
    struct buf b;
    buf_init(&b, 2 * PROXY_CREDENTIALS_MAX);
    buf_puts(&b, "Basic ");
    char *ret = NULL;
    if (base64_encode(&b, plain, strlen(plain)) == RC_OK && buf_ok(&b))
        ret = str_ndup(buf_data(&b), buf_len(&b));
    wipe(plain, sizeof plain);
    buf_wipe(&b);
    return ret;
}
