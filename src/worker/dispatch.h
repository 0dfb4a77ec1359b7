/* worker/dispatch.h - the tool calls of one session: run one after another in its sandbox, results posted as they come and kept until they are
 * (worker.md 4.4). A call runs at most once: what is retried is the posting. Loop thread only. */
#pragma once

#include "base/attr.h"
#include "json/js.h"
#include "worker/box.h"
#include "worker/ctx.h"

#define DISPATCH_KEPT_MAX (64 * MIB)   /* results waiting to be posted; over it no further call is begun */

struct dispatch;
struct dispatch_conf {
    struct worker *w;
    struct box *box;                   /* borrowed */
    const char *session_id, *work_id;  /* borrowed */
    const struct secret *cred;         /* borrowed */
    int64_t (*window_ms)(void *ctx);   /* how long posting is retried without a pause: the lease's TTL */
    bool (*answered)(void *ctx, const char *id);     /* by someone else, meanwhile */
    void (*finished)(void *ctx, const char *id);     /* posted, or given up for good. May begin the end of the session. */
    void *ctx;
};
struct dispatch *dispatch_new(const struct dispatch_conf *c);
void dispatch_free(struct dispatch *d);               /* forgets everything, posts nothing; NULL is fine */

void dispatch_open(struct dispatch *d);               /* until then calls only queue (lease held, skills in place) */
/* `event` is kept by reference. `interrupted`: answer with an error, do not run. */
void dispatch_add(struct dispatch *d, const char *id, const char *name, const json_t *event, bool interrupted);
/* What waits is answered "not run: <why>"; what runs is interrupted and its answer says so. */
void dispatch_interrupt(struct dispatch *d, const char *why);
void dispatch_repost(struct dispatch *d);             /* kept results get a new window: after a reconnect */
/* Interrupts, then posts what there is; `done` when nothing is left or after `max_ms`. No further call is accepted. */
void dispatch_drain(struct dispatch *d, const char *why, int64_t max_ms, void (*done)(void *ctx), void *ctx);
