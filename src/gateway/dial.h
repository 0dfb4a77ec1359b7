/* gateway/dial.h - keeps N connections to the edges: dials, authenticates, watches, and dials again. Loop thread only. */
#pragma once

#include "base/secret.h"
#include "ev/ev.h"
#include "gateway/front.h"
#include "tunnel/link.h"

#define DIAL_BACKOFF_MIN_MS 100          /* first wait, doubling ... */
#define DIAL_BACKOFF_MAX_MS 30000        /* ... up to this; the wait is random below it (full jitter) */
#define DIAL_GOOD_MS 60000               /* a connection that lasted this long begins anew at the first wait */
#define DIAL_REFUSED_MS 5000             /* least wait after the edge refused the token: it may be rotated, but not in a tight loop */
#define DIAL_RETRY_AFTER_MAX_MS 300000   /* of a Retry-After that is followed */
#define DIAL_STEP_MS 15000               /* for each of: connection, TLS, upgrade */
#define DIAL_ECHO_MS 25000               /* an edge that has sent no echo through the data path for this long is given up */
#define DIAL_REPLY_MAX (8 * KIB)         /* the edge's answer to the upgrade */
#define DIAL_EDGES_MAX 64

struct dial_conf {
    const char *const *edges; size_t n_edges;    /* "host:port"; may be empty: the token's endpoint */
    const char *ca_file;                 /* NULL: the system's */
    const char *token_file;              /* read for each connection; NULL: `token` */
    const struct secret *token;
    size_t connections;
    uint64_t window_budget;
    const char *proxy, *no_proxy;        /* HTTP CONNECT proxy on the way out; NULL: none */
};
struct dialler;
/* RC_INVALID: no token, no edge, an edge that is no host:port. Everything in `c` is copied. */
MUST_CHECK int dialler_new(struct ev *ev, const struct dial_conf *c, struct front *f, struct dialler **ret, struct err *e);
void dialler_drain(struct dialler *d);   /* no new connections, no new streams on those that are there */
void dialler_free(struct dialler *d);    /* at once */
size_t dialler_links(const struct dialler *d);       /* established */
size_t dialler_healthy(const struct dialler *d);     /* of them, those that echo */
