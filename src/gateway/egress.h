/* gateway/egress.h - TCP connections that leave the customer's network: direct, or through an HTTP proxy by CONNECT. Loop thread only. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "ev/ev.h"

struct egress_conf {
    const char *proxy;           /* "http://[user:pass@]host:port" (--proxy, HTTPS_PROXY); NULL or "": none */
    const char *no_proxy;        /* as NO_PROXY: hosts reached directly; NULL: none */
};
/* RC_INVALID / RC_UNSUPPORTED with words for a proxy URL that cannot be used. For the start of a program. */
MUST_CHECK int egress_check(const struct egress_conf *c, struct err *e);
/* The proxy without its credentials for a log line ("http://proxy.example:3128"), or "direct" for a host that needs none. */
#define EGRESS_TEXT 280
void egress_describe(const struct egress_conf *c, const char *host, uint16_t port, char out[EGRESS_TEXT]);

/* Dials host:port (name, IPv4, IPv6 with or without brackets). `cb` comes exactly once, never inside this call, unless egress_cancel() was called before:
 * fd >= 0, owned by it, connected to host:port end to end with not a byte read from it; or -1 with words that name the proxy when it was the proxy's
 * doing (RC_IO, RC_CLOSED: refused, RC_TIMEOUT, RC_PROTO, RC_INVALID). `timeout_ms` covers name lookup, TCP and CONNECT together. `c` is borrowed for
 * the call only. A host name is sent to the proxy unresolved, since networks that need a proxy often have no outside DNS. */
struct egress_dial;
struct egress_dial *egress_dial(struct ev *ev, const struct egress_conf *c, const char *host, uint16_t port, int64_t timeout_ms,
                                void (*cb)(void *ctx, int fd, const struct err *e), void *ctx);
void egress_cancel(struct egress_dial *d);       /* no callback after; NULL is fine */
