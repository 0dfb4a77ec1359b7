/* server/events/hub.h - fan-out of a session's log to its SSE subscribers. Loop thread, except where said.
 * The store is the queue: each subscriber has a position in the log, one job per (session, wake) reads what is new and renders it once for
 * all. A reader that cannot keep up falls behind in the log instead of filling memory; it is disconnected after HUB_SLOW_MS. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "ev/ev.h"
#include "ev/jobs.h"
#include "http/server.h"
#include "server/loop/loop.h"
#include "store/store.h"

#define HUB_PING_MS 15000            /* keep-alive when nothing else was sent */
#define HUB_SOFT_BYTES (256 * KIB)   /* queued for a reader: over it no previews and no further reading for it */
#define HUB_SLOW_MS 30000            /* over HUB_SOFT_BYTES for this long: disconnected */
#define HUB_BATCH_BYTES (1 * MIB)    /* rendered per read; a single larger event goes alone */
#define HUB_FRAME_MAX (48 * MIB)     /* an event is at most a request body (32 MiB) plus its envelope */
#define HUB_SUBS_MAX 20000           /* streams open at once */

struct hub;
struct hub_conf { struct ev *ev; struct jobs *jobs; struct store *store; };
MUST_CHECK int hub_new(const struct hub_conf *c, struct hub **ret, struct err *e);
void hub_free(struct hub *h);        /* after the HTTP server and the jobs are gone */

enum { HUB_DELTA_MESSAGE = 1, HUB_DELTA_THINKING = 2 };
/* Any thread. Takes `req` over: registers the subscriber, then answers with the stream. `after_seq`: position to send from.
 * `headers`: further complete header lines. `ended`: nothing more can come; the stream ends when the log is read. RC_LIMIT over HUB_SUBS_MAX
 * (then the request is still the caller's). */
MUST_CHECK int hub_subscribe(struct hub *h, struct http_req *req, const char *session_id, int64_t after_seq, unsigned deltas, bool ended, const char *headers);
void hub_note(struct hub *h, const char *session_id);
void hub_preview(struct hub *h, const struct loop_preview *p);
size_t hub_subscribers(const struct hub *h);
