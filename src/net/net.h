/* net/net.h - addresses, listeners, non-blocking connect with fallback (happy eyeballs light). Loop thread only. */
#pragma once

#include <sys/socket.h>

#include "base/attr.h"
#include "base/err.h"
#include "ev/ev.h"

#define NET_ADDR_TEXT 64
struct net_addr { struct sockaddr_storage ss; socklen_t len; };

/* "127.0.0.1:8400", "[::1]:8400", ":8400" (all addresses), "unix:/path". Numeric only. */
MUST_CHECK int net_addr_parse(const char *s, struct net_addr *ret, struct err *e);
void net_addr_format(const struct net_addr *a, char out[NET_ADDR_TEXT]);

/* Listens (SO_REUSEADDR, backlog 1024, non-blocking). Port 0: the real one is in *ret_bound. */
MUST_CHECK int net_listen(const struct net_addr *a, int *ret_fd, struct net_addr *ret_bound, struct err *e);

/* Resolves (getaddrinfo on a helper thread, numeric ones at once) and connects, trying each address in turn; TCP_NODELAY set.
 * cb gets fd >= 0 (owned by it), or -1 and a filled err. Cancel before cb with net_connect_cancel(). */
struct net_connect;
struct net_connect *net_connect_start(struct ev *ev, const char *host, uint16_t port, int64_t timeout_ms,
                                      void (*cb)(void *ctx, int fd, const struct err *e), void *ctx);
/* The same with a say in which addresses are used. `check` is asked about each address just before that very address is dialled (so that the answer
 * of a name server cannot change in between); another code than RC_OK skips it, and when none is left the failure has its code and text. `host`
 * may be "unix:/path"; such an address is not checked. `rotate`: begin with the (rotate modulo n)th address of the name. */
struct net_connect_opts {
    int64_t timeout_ms;
    size_t rotate;
    int (*check)(void *ctx, const struct net_addr *a, struct err *e);    /* NULL: all are fine */
};
struct net_connect *net_connect_opts(struct ev *ev, const char *host, uint16_t port, const struct net_connect_opts *o,
                                     void (*cb)(void *ctx, int fd, const struct err *e), void *ctx);
void net_connect_cancel(struct net_connect *c);
