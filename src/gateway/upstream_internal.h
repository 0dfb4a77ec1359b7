/* gateway/upstream_internal.h - shared by upstream_{http,conn,pool}.c. Loop thread only. */
#pragma once

#include "base/list.h"
#include "gateway/sticky.h"
#include "gateway/upstream_http.h"
#include "http/url.h"
#include "net/net.h"

struct target {                          /* one server */
    struct uhttp *u;
    char *shown;                         /* as configured */
    char host[URL_HOST_MAX + 8];         /* for net_connect: name, address, or "unix:/path" */
    char authority[URL_HOST_MAX + 10];   /* Host header when it is the upstream's */
    uint16_t port;
    bool tls;
    struct list idle; size_t n_idle;     /* used last first */
    unsigned failures; int64_t down_until_ms;
};

struct uhttp {
    struct env *env;
    char *route;
    bool host_upstream;
    const struct header_rules *rules;
    struct target *target; size_t n, next;
    struct sticky *sticky;               /* NULL with one server */
    struct ev_timer sweep;
    struct upstream_call *spare;         /* calls that wait to be used again */
    size_t n_spare;
};

enum uconn_state { UCONN_DIAL, UCONN_TLS, UCONN_READY };
struct uconn {
    struct list link;                    /* in target->idle */
    struct target *t;
    struct upstream_call *call;          /* NULL while idle */
    struct net_connect *dial;
    int fd;
    struct tls *tls;
    struct ev_io io;
    struct ev_timer timer;               /* connecting */
    enum uconn_state state;
    bool kept, watched;                  /* kept: carried a whole exchange before; watched: in epoll */
    unsigned rd_want, wr_want;
    int64_t idle_until_ms;
};

/* upstream_conn.c */
struct uconn *uconn_open(struct target *t, struct upstream_call *call);      /* call_opened() or call_open_failed() comes later */
void uconn_free(struct uconn *c);
MUST_CHECK int uconn_read(struct uconn *c, void *p, size_t n, size_t *ret_n, struct err *e);
MUST_CHECK int uconn_write(struct uconn *c, const void *p, size_t n, size_t *ret_n, struct err *e);
void uconn_want(struct uconn *c, bool rd, bool wr);      /* neither: it is not watched at all, so that a hang-up waits, too */

/* upstream_pool.c */
struct target *upool_pick(struct uhttp *u, const struct slice *session, const struct target *not_this);
void upool_good(struct target *t);
void upool_bad(struct target *t);
struct uconn *upool_take(struct target *t);
void upool_keep(struct uconn *c, int64_t at_most_ms);     /* at_most_ms < 0: the setting alone counts */

/* upstream_http.c */
void calls_free(struct uhttp *u);
void call_opened(struct upstream_call *c);
void call_open_failed(struct upstream_call *c, const struct err *e);
void call_io(struct upstream_call *c, unsigned got);
