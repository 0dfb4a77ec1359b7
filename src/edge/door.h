/* edge/door.h - a listener and the connections on it that have not said yet what they want ("guests"). Admission is here: source ranges, connections of
 * the listener and of one source, unfinished handshakes, the time until the request is complete. Loop thread only. */
#pragma once

#include "base/buf.h"
#include "base/list.h"
#include "edge/ranges.h"
#include "edge/source.h"
#include "edge/stats.h"
#include "ev/ev.h"
#include "http/parse.h"
#include "net/net.h"
#include "tls/tls.h"

#define DOOR_ACCEPT_TURN 16              /* connections taken from one listener before others are looked at */
#define DOOR_HANDSHAKE_TURN 4            /* handshake steps (public-key work) of one listener per turn of the loop: streams come in between */
#define DOOR_PATIENCE_MS 1000            /* at the limit of unfinished handshakes, the oldest that has kept us waiting for so long makes room for the next one */
#define DOOR_LINGER_MS 2000              /* after a refusal: time for the client to read it */

struct door;
struct guest;
struct door_conf {
    struct ev *ev;
    const char *name;                    /* for logs: "gateway" */
    const char *listen;
    struct tls_ctx *const *tls;          /* where the context in force is; NULL: plain TCP */
    const struct ranges *allow;          /* NULL: any source */
    size_t conns_max, per_source, fresh_max, fresh_per_source, in_max;
    int64_t head_ms;
    void (*on_input)(struct guest *g);   /* g->in has grown; ends with one of guest_hold(), guest_answer(), guest_end(), guest_refuse(), or with nothing: more input */
    void *ctx;
};
MUST_CHECK int door_new(const struct door_conf *c, struct door **ret, struct err *e);
void door_close(struct door *d);         /* takes no new connections; NULL is fine */
void door_free(struct door *d);          /* ends its guests, too; seats taken from it must be gone. NULL is fine */
const char *door_address(const struct door *d);
void *door_ctx(const struct door *d);
size_t door_guests(const struct door *d);

struct guest {
    struct door *door;
    struct net_addr peer;
    char peer_text[NET_ADDR_TEXT];
    struct buf in;                       /* what has come; wiped in the end, since it may hold a token */
    size_t seen;                         /* of `in`: looked at by the parser */
    void *ctx;                           /* the holder's */
    /* private */
    struct list node, turn, young;
    int64_t since_ms;
    int state, fd;
    struct tls *tls;
    struct ev_io io;
    struct ev_timer timer;
    struct source *source;
    struct buf out;
    bool fresh;
    void (*on_gone)(struct guest *g);
    void (*then)(struct guest *g);
};

/* The place of a connection that has left the door, for the counts; seat_done() when the connection is closed. */
struct seat { struct door *door; struct source *source; };
void seat_done(struct seat *s);          /* harmless when empty */

/* The whole request head, when it is there (slices point into g->in; `used` bytes of it). RC_AGAIN: more is needed; RC_CLOSED: it was malformed and g is refused. */
MUST_CHECK int guest_head(struct guest *g, struct http_head *ret, size_t *ret_used);
/* The caller decides later, in its own time; reading stops. on_gone: the client left; g goes away behind it. */
void guest_hold(struct guest *g, void (*on_gone)(struct guest *g), void *ctx);
/* Sends this, then calls `then`, in which guest_take() is called. The client going away meanwhile calls the on_gone of guest_hold(). */
void guest_answer(struct guest *g, const char *text, size_t n, void (*then)(struct guest *g));
/* Hands the connection over: descriptor, TLS, what came early, the seat. `g` is gone. */
struct guest_gift { int fd; struct tls *tls; struct buf early; struct seat seat; };
struct guest_gift guest_take(struct guest *g);
void guest_end(struct guest *g, const char *text, size_t n);       /* sends this and closes; g is gone for the caller */
void guest_refuse(struct guest *g, enum refusal why, const char *detail);   /* counts it and answers as HTTP; detail NULL: the row's text */
void guest_drop(struct guest *g);        /* closes without a word */
