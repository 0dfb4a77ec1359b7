/* tunnel/link_internal.h - private to tunnel: the parts of a link. link.c has its life and the turns of the loop, link_h2.c what nghttp2 calls,
 * link_stream.c the streams' functions, link_window.c the sizes of windows, link_echo.c the health check. */
#pragma once

#include <nghttp2/nghttp2.h>

#include "base/buf.h"
#include "base/list.h"
#include "tunnel/link.h"
#include "tunnel/ring.h"

#define LINK_TURN_BYTES (256 * KIB)      /* read, and written, in one turn of the loop before others have theirs */
#define LINK_OUT_FILL (64 * KIB)         /* frames are made until so much waits for the socket */
#define LINK_OUT_MAX (LINK_OUT_FILL + 32 * KIB)
#define LINK_NOTSENT_BYTES (64 * 1024)   /* TCP_NOTSENT_LOWAT: bulk waits with us, where small frames overtake it, and not in the kernel */
#define LINK_HEADERS_MAX (8 * KIB)       /* header list of a stream, as RFC 9113 6.5.2 counts */
#define LINK_AUTHORITY_MAX 262           /* 255 characters of name, ":65535", NUL */
#define LINK_CLIENT_MAX 64
#define LINK_CONTROL_MAX 2000            /* PING, SETTINGS, PRIORITY, unknown and empty DATA frames in one LINK_PING_MS */
#define LINK_RESETS_BURST (LINK_STREAMS_MAX + 10000)    /* streams that the opener resets: all at once, and as it goes so many, */
#define LINK_RESETS_RATE 1000            /* with so many more a second */
#define LINK_ACKS_MAX 1000               /* answers to PING and SETTINGS that wait for a peer that does not read */
#define LINK_SETTINGS_MAX 32             /* entries of one SETTINGS frame */
#define LINK_CONTINUATIONS_MAX 4
#define LINK_ECHOES_MAX 8                /* health checks of a peer at once */
#define LINK_RTT_FRESH_US 1000000        /* bulk asks for a new round-trip time when the last is older */
#define LINK_LAST_ID (1 << 30)           /* stream ids run out at 2^31: the opener drains the link long before */

enum {                                   /* what waits to be told about a stream */
    SEV_OPEN = 1, SEV_REPLY = 2, SEV_READABLE = 4, SEV_WRITABLE = 8, SEV_CLOSE = 16
};

struct open_info {                       /* from the first header to on_open */
    char authority[LINK_AUTHORITY_MAX], client[LINK_CLIENT_MAX];
    bool forwarded, connect, bad;
};

struct link_stream {
    struct link *link;                   /* NULL: the link is gone */
    const struct link_stream_ops *ops;
    void *ctx;
    struct list all, ready;
    struct ring in, out;
    struct open_info *open;
    int64_t mark_us;                     /* window measurement began; bytes delivered since: `since` */
    int32_t id;
    uint32_t window, since, headers;     /* window: what it may promise, LINK_WINDOW_MIN at first */
    uint32_t excess;                     /* already taken off `window`, still promised to the peer */
    uint16_t status;
    uint8_t refs;                        /* owner, nghttp2, a delivery that is going on */
    uint8_t events;
    bool owned : 1;                      /* an owner holds it */
    bool h2_open : 1;                    /* nghttp2 has the stream and calls back with it */
    bool replied : 1, deferred : 1;      /* deferred: nghttp2 asked for bytes and there were none */
    bool shut : 1;                       /* our side ends after what is queued */
    bool local_end : 1, remote_end : 1;  /* END_STREAM was framed; has come */
    bool want_write : 1, reset : 1, closed_said : 1, echo : 1, counted : 1;
    bool soft : 1;                       /* the other end sent everything, then took no more: on_close when our owner has read it */
    uint32_t error_code;                 /* of the reset, HTTP/2 code */
};

struct link {
    struct ev *ev;
    enum link_role role;
    struct link_budget *budget;
    const struct link_ops *ops;
    void *ctx;
    struct tls *tls;                     /* or `pipe`, in tests */
    struct tls_io pipe;
    int fd;
    struct ev_io io;
    struct ev_timer turn, tick;
    nghttp2_session *h2;                 /* NULL: freed */
    struct list all, ready, echoes;
    struct buf early, out;
    size_t n_h2, n_streams, n_echo, n_grown;    /* streams that nghttp2 has; those that count as open; echoes that we answer */
    size_t out_bytes;                    /* in the send queues of all streams */
    int busy;                            /* inside run(): nothing needs to be armed, nothing may be freed */
    bool gone, failed, ended, blocked, more, fatal;     /* fatal: the session may only be deleted */
    bool settings_got, settings_acked, ready_due, ready_said, goaway_sent, goaway_got, goaway_due;
    struct err why;
    int64_t heard_ms, echoed_ms, ping_ms, dead_ms, pinged_ms, window_began_ms, made_ms;
    int64_t ping_us, rtt_us, rtt_at_us;  /* ping_us: when the outstanding PING left; 0 none */
    unsigned n_control;
    unsigned turns;                      /* shrinking windows looks at each stream now and then */
};

/* link.c */
MUST_CHECK int link_new_pipe(struct ev *ev, enum link_role role, struct link_budget *budget, const struct tls_io *pipe, const struct link_ops *ops, void *ctx,
                             struct link **ret, struct err *e);        /* over a pipe in memory, for tests: link_poke() when bytes may have come */
void link_poke(struct link *l);
void link_arm(struct link *l);                              /* run in this or the next turn */
void link_fail(struct link *l, int rc, const char *fmt, ...) PRINTF_LIKE(3, 4);      /* the first reason stays */
static inline bool link_alive(const struct link *l) { return l && l->h2 && !l->failed; }

/* link_h2.c */
MUST_CHECK int link_h2_new(struct link *l, struct err *e);
struct link_stream *stream_new(struct link *l, int32_t id);
void stream_unref(struct link_stream *s);
void stream_event(struct link_stream *s, unsigned ev);
void stream_uncount(struct link_stream *s);                 /* it is no stream of an owner of the link */
void stream_h2_closed(struct link_stream *s);               /* nghttp2 knows it no longer */
void stream_drop(struct link_stream *s);                    /* both queues */
void stream_rst(struct link_stream *s, uint32_t code);
nghttp2_data_provider stream_provider(struct link_stream *s);
void link_h2_ping(struct link *l);

/* link_stream.c: what may stand in the headers of a stream, on both ends */
bool link_authority(char out[LINK_AUTHORITY_MAX], const uint8_t *p, size_t n);
bool link_client(char out[LINK_CLIENT_MAX], const uint8_t *p, size_t n);

/* link_window.c */
void window_delivered(struct link_stream *s, size_t n);
void window_received(struct link_stream *s, size_t n);
void window_give_back(struct link_stream *s);
void window_tick(struct link *l);

/* link_echo.c */
void echo_answer(struct link_stream *s);
void echo_end_all(struct link *l);
