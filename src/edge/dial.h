/* edge/dial.h - a stream for a host: on a gateway's link here, else on a link to an edge that has one. Tries further links as long as none has answered; bytes of
 * the client go out only after that, so nothing is ever sent twice. Loop thread only. */
#pragma once

#include "edge/ctx.h"

#define DIAL_LINKS_MAX 3                 /* gateway links tried */

struct dial_conf {
    const char *host;                    /* host_valid() */
    uint16_t port;
    const char *client;
    bool forwarded;                      /* it came from another edge: it does not leave this one */
    /* Once, never inside dial_start(): a stream whose other end has answered 200 (the callee attaches itself at once), or NULL and why not. */
    void (*done)(void *ctx, struct link_stream *s, enum refusal why);
    void *ctx;
};
struct dial;
struct dial *dial_start(struct edge *e, const struct dial_conf *c);
void dial_cancel(struct dial *d);        /* NULL is fine */
