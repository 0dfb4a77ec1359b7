/* worker/route.h - which tool call is ours to run, when, and when a session is idle (worker.md 4.4). Pure: events in, decisions out by callback;
 * it knows no time, network or sandbox.
 *
 * One run: route_history_begin(), each listed event oldest first, route_history_end() (or _abort()), then live events; again at each reconnect.
 * A call is dispatched at most once in the life of a `struct route`, whatever is listed or streamed again. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "json/js.h"

#define ROUTE_IDS_MAX (256 * 1024)      /* calls, results and interrupts of one session that are remembered, 40 bytes each */
#define ROUTE_PENDING_MAX 4096          /* calls without a result at one time */
#define ROUTE_ID_MAX 256                /* bytes of an event id; opaque otherwise */

struct route_ops {
    bool (*known)(void *ctx, const char *name);                       /* a tool of ours */
    /* Run it and post a result; then route_finished(). `interrupted`: the user interrupted before it ran; answer it with an error, do not run it.
     * `event` is borrowed. */
    void (*dispatch)(void *ctx, const char *id, const char *name, const json_t *event, bool interrupted);
    void (*interrupt)(void *ctx);                                     /* stop what runs and what waits */
    void (*note)(void *ctx, const char *what, const char *id, const char *name);   /* "held", "denied", "foreign", "stale": for the log */
};
struct route;
struct route *route_new(const struct route_ops *ops, void *ctx);
void route_free(struct route *r);

void route_history_begin(struct route *r);
MUST_CHECK int route_history_event(struct route *r, const json_t *ev, struct err *e);    /* RC_LIMIT: over a limit above; the run must end */
MUST_CHECK int route_history_end(struct route *r, struct err *e);
void route_history_abort(struct route *r);                            /* the listing failed: what it brought is forgotten */
MUST_CHECK int route_live(struct route *r, const json_t *ev, struct err *e);

bool route_answered(const struct route *r, const char *id);           /* someone has answered it meanwhile */
void route_finished(struct route *r, const char *id);                 /* its result is posted, or will never be */
bool route_ended(const struct route *r);                              /* the session is terminated or deleted */
/* The session said end_turn and nothing is held or running. *ret_epoch changes whenever a fresh idle window starts. */
bool route_idle(const struct route *r, uint64_t *ret_epoch);
size_t route_outstanding(const struct route *r);                      /* held and running calls */
