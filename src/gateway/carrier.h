/* gateway/carrier.h - where inner TLS bytes come from: a stream of a link, or a WebSocket behind cloudflared (tunnels.md 4.4). The front does not know which.
 * Loop thread only. The carrier belongs to the front from front_accept() on; callbacks never run inside a call of the front into the carrier. */
#pragma once

#include "base/attr.h"
#include "base/err.h"

struct carrier;
struct carrier_ops {
    int    (*read)(struct carrier *c, void *p, size_t n, size_t *ret_n);         /* RC_OK with *ret_n > 0; RC_AGAIN; RC_CLOSED: the peer has ended its side */
    int    (*write)(struct carrier *c, const void *p, size_t n, size_t *ret_n);  /* RC_OK with *ret_n > 0; RC_AGAIN (then on_writable comes); RC_CLOSED */
    void   (*shutdown)(struct carrier *c);                                       /* ends our side after what was written */
    void   (*free)(struct carrier *c);                                           /* closes; no callback after */
    const char *(*peer)(const struct carrier *c);                                /* the client's address as far as it is known, for logs */
};
struct carrier {
    const struct carrier_ops *ops;
    /* Set by the front. */
    void (*on_readable)(void *ctx);
    void (*on_writable)(void *ctx);
    void (*on_close)(void *ctx, const struct err *why);      /* cut: nothing more can be read or written; once */
    void *ctx;
};
struct front;
/* A new inner connection. Takes `c`. */
void front_accept(struct front *f, struct carrier *take);
