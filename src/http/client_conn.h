/* http/client_conn.h - one connection of the client: TCP, through a proxy if asked, TLS if asked. Private to http/client*.c
 * and to gateway/egress.c, which takes the descriptor out after CONNECT. */
#pragma once

#include "base/buf.h"
#include "base/list.h"
#include "ev/ev.h"
#include "http/url.h"
#include "net/net.h"
#include "tls/tls.h"

#define PROXY_REPLY_MAX (8 * KIB)

enum hconn_state { HCONN_TCP, HCONN_PROXY, HCONN_TLS, HCONN_READY };

/* Where a connection goes; shared by all connections of one origin. */
struct hconn_route {
    struct http_url url;             /* target not used */
    bool via_proxy;
    bool bare;                       /* the TCP connection only: CONNECT also for a plain url, and no TLS by us */
    struct http_url proxy;
    char *proxy_auth;                /* value of Proxy-Authorization, or NULL; wiped when freed */
};

struct hconn {
    struct list link;                /* in the origin's idle list, or alone */
    struct ev *ev;
    const struct hconn_route *route;
    struct tls_ctx *tls_ctx;
    struct net_connect *dial;
    int fd;
    struct tls *tls;
    struct ev_io io;
    enum hconn_state state;
    struct buf hello;                /* CONNECT request while sending, then the proxy's answer */
    bool hello_sent;
    bool kept;                       /* carried a whole exchange before this one */
    int64_t idle_since;
    int64_t connect_ms;
    struct ev_timer timer;           /* proxy and TLS handshakes */
    /* While opening: once, RC_OK or the failure (then the owner calls hconn_free). After that on_io for every readiness. */
    void (*on_open)(struct hconn *c, int rc, const struct err *e);
    void (*on_io)(struct hconn *c, unsigned got);
    void *owner;                     /* the call that uses it; NULL while idle */
    void *client;
};

struct hconn *hconn_open(struct ev *ev, const struct hconn_route *r, struct tls_ctx *tls, int64_t connect_ms, void *owner,
                         void (*on_open)(struct hconn *, int, const struct err *), void (*on_io)(struct hconn *, unsigned));
void hconn_free(struct hconn *c);
/* Value of Proxy-Authorization for the user info of a proxy's URL, malloc'd (wipe it); NULL: none, or not decodable. */
char *hconn_proxy_authorization(const struct http_url *proxy);
/* One attempt. RC_OK with *ret_n > 0, RC_AGAIN (*ret_want says on what), RC_CLOSED, RC_IO, RC_PROTO. */
MUST_CHECK int hconn_read(struct hconn *c, void *p, size_t n, size_t *ret_n, unsigned *ret_want, struct err *e);
MUST_CHECK int hconn_write(struct hconn *c, const void *p, size_t n, size_t *ret_n, unsigned *ret_want, struct err *e);
