/* gateway/front_internal.h - shared by front.c (connections), front_req.c (requests in) and front_reply.c (answers out). Loop thread only.
 *
 * Lifetimes: a connection is closed at once, but its memory stays until the outermost inner_leave(); after anything that may call out, look at c->dead and at
 * x->ended. An exchange whose answer has ended is put away in inner_leave(), so that an upstream may end it inside any call that we make into it. */
#pragma once

#include "base/list.h"
#include "gateway/front.h"

#define FRONT_SCRATCH (16 * KIB)         /* one TLS record */
#define FRONT_READ_TURN (256 * KIB)      /* read from one connection before others are looked at */
#define FRONT_FLUSH_AT (16 * KIB)        /* a full record: sent before the end of the turn */
#define FRONT_CHUNK_ROOM 32
#define FRONT_SPARE_MAX 512

enum inner_state {
    INNER_HANDSHAKE,
    INNER_IDLE,                          /* no byte of a request yet */
    INNER_HEAD,                          /* a part of a head is in c->in */
    INNER_BUSY,                          /* c->x */
    INNER_LINGER,                        /* our side has ended */
};

struct served { unsigned refs; struct tls_ctx *tls; };       /* a leaf; connections hold it, since its settings are looked at in handshakes */

struct inner {
    struct list node, dirty;             /* dirty: in front->dirty while c->out holds bytes of this turn */
    struct front *f;
    struct carrier *carrier;
    struct served *served;
    struct tls *tls;
    enum inner_state state;
    unsigned busy;
    bool dead, close_after, processing, more;    /* more: the carrier or OpenSSL may hold bytes that nobody will tell about */
    struct buf in, out;                  /* without memory while idle */
    size_t seen;
    struct exchange *x;
    struct ev_timer timer, kick;
    int64_t deadline_ms, timer_at_ms;    /* INT64_MAX: none */
};

struct exchange {
    struct exchange *next;               /* in the list of spare ones */
    struct inner *c;
    struct http_head head;
    struct buf head_mem;
    char host[ROUTE_NAME_MAX + 1];
    struct route *route;
    struct upstream_call *call;          /* NULL: answered here, or not started yet */
    int64_t started_us;
    /* request body */
    bool has_body, body_ended, blocked;  /* blocked: the upstream takes no more now */
    int64_t body_left;
    struct http_chunked chunked;
    size_t payload;                      /* bytes at the front of c->in that are decoded already */
    uint64_t bytes_in, bytes_out;
    /* answer */
    bool replied, chunked_out, no_body, wants_resume, ended;
    int status;
    /* audit and policy */
    bool scanning, holding, pouring, mismatch;      /* pouring: what was held is on its way upstream */
    struct buf hold;
    struct mcp_scan scan;
    enum mcp_result scanned;
    struct mcp_call *calls; size_t n_calls;      /* of a batch */
    const char *refused;
    char why[256];
};

struct front {
    struct ev *ev;
    struct front_limits limits;
    struct trail *trail;
    struct served *served;
    struct route_table *routes;
    struct list conns, dirty;
    size_t n_conns, n_requests, held;
    bool draining;
    void (*drained)(void *ctx); void *drained_ctx;
    struct ev_timer drained_timer, flush;
    struct exchange *spare; size_t n_spare;
    struct http_head head;
    char scratch[FRONT_SCRATCH];
};

/* front.c */
void inner_enter(struct inner *c);
void inner_leave(struct inner *c);
void inner_close(struct inner *c);       /* at once; cancels the request */
void inner_deadline(struct inner *c, int64_t in_ms);     /* < 0: none */
void inner_flush(struct inner *c);       /* writes what the carrier takes */
void inner_dirty(struct inner *c);       /* flush at the end of the turn */
void inner_kick(struct inner *c);        /* look at it again later in this turn */

/* front_req.c */
size_t inner_process(struct inner *c, const char *p, size_t n);      /* consumes what it can; look at c->dead after */
void exchange_put(struct exchange *x);   /* writes the audit line, counts, and puts it away */

/* front_reply.c */
void exchange_local(struct exchange *x, int status, const char *type, const char *headers, const void *body, size_t n);      /* an answer of our own, whole */
void exchange_text(struct exchange *x, int status, const char *text);
