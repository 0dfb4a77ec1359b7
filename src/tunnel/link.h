/* tunnel/link.h - one connection of a tunnel: TLS 1.3 with HTTP/2 in it (nghttp2). Whoever dialled, the OPENER (an edge that has a client) is the HTTP/2 client
 * and opens a CONNECT stream per inner connection; the ACCEPTOR (a gateway, or the edge that holds the gateway) answers it.
 * Flow control (architecture section 5): the connection window is credited on receipt, a stream's on delivery (link_consume()), so readers that stop reading
 * hold only their own streams. A stream's window starts at 256 KiB and grows to twice the measured bandwidth-delay product under the process's budget.
 * Loop thread only. Callbacks never run inside a call into the link, except where said. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "base/str.h"
#include "ev/ev.h"
#include "tls/tls.h"

#define LINK_STREAMS_MAX 20000           /* of one link at once */
#define LINK_WINDOW_MIN (256 * KIB)
#define LINK_WINDOW_MAX (8 * MIB)
#define LINK_SEND_MAX (64 * KIB)         /* bytes of one stream that wait to be framed; link_write() takes no more */
#define LINK_PING_MS 10000
#define LINK_DEAD_MS 25000               /* nothing heard for this long */

/* Memory that the windows of all links of a process may promise beyond the minimum. */
struct link_budget { uint64_t max, used; };

enum link_role { LINK_OPENER, LINK_ACCEPTOR };
struct link;
struct link_stream;

struct link_open {                       /* what came with a stream; borrowed during the callback */
    const char *authority;               /* "host:port", lower case */
    const char *client;                  /* address of the client, or "" */
    bool forwarded;
};
struct link_ops {
    void (*on_ready)(void *ctx, struct link *l);                 /* SETTINGS of both sides are exchanged. May be NULL */
    void (*on_open)(void *ctx, struct link *l, struct link_stream *s, const struct link_open *o);   /* acceptor: attach it, then link_reply() now or later */
    void (*on_goaway)(void *ctx, struct link *l);                /* the peer drains: it takes or opens no new streams. May be NULL */
    void (*on_end)(void *ctx, struct link *l, const struct err *why);   /* once, after each stream's on_close; then link_free() */
};
/* On RC_OK takes `fd` and the established `tls` over; `early` (copied): bytes that were read beyond the upgrade's head. `budget` NULL: no window grows. */
MUST_CHECK int link_new(struct ev *ev, enum link_role role, struct link_budget *budget, int fd, struct tls *tls, const char *early, size_t early_n,
                        const struct link_ops *ops, void *ctx, struct link **ret, struct err *e);
void link_free(struct link *l);          /* at once, also inside any callback; streams get on_close before it returns. NULL is fine */
/* Drains: no new streams from the peer, those that are open go on. The end that receives this closes when its last stream is done; then on_end comes on both
 * ends with RC_CLOSED. A peer that never closes is for the caller's grace time. */
void link_goaway(struct link *l);
bool link_usable(const struct link *l);  /* new streams can be opened */
size_t link_streams(const struct link *l);
size_t link_queued(const struct link *l);            /* bytes that wait to be sent: the next stream takes the link with the fewest */
int64_t link_heard_ms(const struct link *l);         /* ev_now_ms() of the last byte received */
int64_t link_rtt_us(const struct link *l);           /* smoothed; 0 unknown */
/* Opener: sends bytes through the data path to the acceptor's end of the link and waits for them. `cb` once: within `timeout_ms`, or with false, also when the
 * link is freed before; never inside this call. Several may be under way. */
void link_echo(struct link *l, int64_t timeout_ms, void (*cb)(void *ctx, bool ok, int64_t rtt_us), void *ctx);
int64_t link_echoed_ms(const struct link *l);        /* acceptor: ev_now_ms() of the last echo it answered; 0 none */

struct link_stream_ops {
    void (*on_reply)(void *ctx, struct link_stream *s, int status);          /* opener: the acceptor's answer; not 200: on_close follows */
    void (*on_readable)(void *ctx, struct link_stream *s);                   /* bytes or the end came: link_peek() */
    void (*on_writable)(void *ctx, struct link_stream *s);                   /* after link_write() took less than it was given */
    /* Reset or the link died; once; not after link_stream_free(). With link_eof() true: all bytes were delivered, then the other end left and reads no more. */
    void (*on_close)(void *ctx, struct link_stream *s, const struct err *why);
};
/* A stream that was opened or attached has an owner, who calls link_stream_free() once: also after on_close (inside it or later), and also when the link is
 * gone. Until then every function here may be called; on a dead stream they do nothing. */

/* Opener. RC_CLOSED: not usable; RC_LIMIT; RC_INVALID: the authority is no name with a port (a client that is no address is left out). Bytes may be written before the reply; they are lost when the acceptor refuses. */
MUST_CHECK int link_stream_open(struct link *l, const struct link_open *o, const struct link_stream_ops *ops, void *ctx, struct link_stream **ret, struct err *e);
/* Acceptor: in on_open, else the stream is refused. Both ends, later: another owner; what waits (bytes, the end) is told again. */
void link_stream_attach(struct link_stream *s, const struct link_stream_ops *ops, void *ctx);
void link_reply(struct link_stream *s, int status);                  /* acceptor; other than 200 ends the stream */
struct link *link_stream_link(const struct link_stream *s);          /* NULL: gone */
struct slice link_peek(const struct link_stream *s);                 /* contiguous bytes that came; n 0: none now. More may follow after link_consume() */
void link_consume(struct link_stream *s, size_t n);                  /* delivered: gives the window back */
bool link_eof(const struct link_stream *s);                          /* the peer has ended its side and all was consumed */
size_t link_write(struct link_stream *s, const void *p, size_t n);   /* how much was taken */
/* The same without a copy: room for at most `max` bytes (fewer may be given), then link_write_commit() with how many were put there (0 is fine) before any
 * other call with this stream. NULL: no room, on_writable will follow, or the stream is dead or was shut down. */
char *link_write_reserve(struct link_stream *s, size_t max, size_t *ret_n);
void link_write_commit(struct link_stream *s, size_t n);
size_t link_write_room(const struct link_stream *s);                 /* how much link_write() would take now */
void link_shutdown(struct link_stream *s);                           /* ends our side after what was written */
/* Resets it, unless our side was ended: then what was written still leaves, and the other end is told that nobody reads. NULL is fine. */
void link_stream_free(struct link_stream *s);
void link_stream_reset(struct link_stream *s);                       /* the same, and what was written but has not left is dropped: the other end sees a reset */
