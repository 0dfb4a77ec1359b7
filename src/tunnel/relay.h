/* tunnel/relay.h - moves bytes both ways between a stream of a link and another end, until both directions have ended or one breaks. Ends cross as they are:
 * a half-close as a half-close, a reset or cut at once as a reset. Bytes are held in the stream's queues only; a relay that moves nothing holds none.
 * Loop thread only. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "ev/ev.h"
#include "tls/tls.h"
#include "tunnel/link.h"

struct relay;

struct relay_end {                       /* a stream; or a connected, non-blocking socket, with established TLS over it or plain */
    struct link_stream *stream;
    int fd;
    struct tls *tls;
    const char *early; size_t early_n;   /* of a socket: what was read from it already. Copied */
};
struct relay_result {
    uint64_t a_to_b, b_to_a;             /* bytes delivered */
    bool clean;                          /* both directions came to their end */
    struct err why;                      /* RC_OK when clean; else what broke, RC_CLOSED for a reset by either end */
};

#define RELAY_EARLY_MAX (32 * KIB)

/* At least one end is a stream. On RC_OK takes both ends over (streams get new owners, so events that wait are not lost). `on_done`: once, when both ends are
 * closed, never inside this call; then relay_free(). RC_INVALID, RC_TOO_LARGE (early), RC_NOMEM, RC_IO. */
MUST_CHECK int relay_new(struct ev *ev, const struct relay_end *a, const struct relay_end *b, void (*on_done)(void *ctx, const struct relay_result *res), void *ctx,
                         struct relay **ret, struct err *e);
void relay_free(struct relay *r);        /* resets both ends when they are not done; no callback. NULL is fine */
int64_t relay_moved_ms(const struct relay *r);       /* ev_now_ms() of the last byte that moved, at first of relay_new() */
void relay_bytes(const struct relay *r, uint64_t *ret_a_to_b, uint64_t *ret_b_to_a);
