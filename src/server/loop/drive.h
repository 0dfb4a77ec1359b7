/* server/loop/drive.h - the driver's own structures: drive.c (runners, steps), drive_model.c (requests), inbox.c (what comes in). */
#pragma once

#include <pthread.h>

#include "base/list.h"
#include "server/loop/decide.h"
#include "server/loop/loop.h"
#include "server/loop/prompt.h"
#include "server/loop/snapshot.h"
#include "server/loop/step.h"

#define CACHE_SLOTS 512              /* folded states that are kept; each a few KiB */
#define SCAN_MAX 10000000            /* log rows of one session */
#define STEP_EFFECTS_MAX 32          /* effects joined in one step */
#define COMMIT_TRIES_MAX 50          /* a step whose log moved meanwhile is built anew so often */
#define LOOP_ARENA_MAX (512 * MIB)

/* One model request: made on a job thread, run on the ev thread, its outcome handled on a job thread again. */
struct request {
    struct runner *r;
    const struct model_provider *provider;
    void *self;
    struct model_call *call;         /* ev thread */
    struct prompt_out prompt;
    bool compact;
    char span_id[ID_MAX], message_id[ID_MAX], thinking_id[ID_MAX];
    char session_id[ID_MAX], thread_id[ID_MAX], agent_id[ID_MAX], env_id[ID_MAX];
    char *model;
    int text_index;                  /* of previews: text blocks begun, minus one */
    /* the outcome */
    bool done;
    enum model_outcome outcome;
    int64_t retry_after_ms;
    char stop_reason[64], error_type[96], message[ERR_MSG_MAX];
    json_t *content, *stop_details;
    struct model_usage usage;
};

/* A session that this process drives now. Found by id under the loop's mutex; its other fields belong to the job that is busy with it. */
struct runner {
    struct loop *l;
    struct list node;
    char id[ID_MAX];
    bool busy, dirty;                /* under the mutex: a job runs or waits; something happened since it looked */
    bool leased, lost;
    int64_t epoch;
    struct desk *desk;                 /* MCP servers; NULL: none was needed yet */
    struct request *req;             /* in flight, or finished and not handled (req->done) */
    int64_t wait_until_ms;           /* monotonic: end of a retry delay; 0 none */
    struct ev_timer timer;           /* ev thread */
    bool timer_due;
};

struct cache_slot { char id[ID_MAX]; struct turn_state st; };
struct loop {
    struct loop_conf c;
    pthread_mutex_t lock;
    struct list runners; size_t n_runners;
    bool draining, stopped;
    pthread_mutex_t cache_lock;
    struct cache_slot cache[CACHE_SLOTS];
    struct ev_timer renew, drain;
    int64_t drain_until_ms;
    void (*drained)(void *ctx); void *drained_ctx;
    bool renewing;
};

/* The state of a session's log now. *ret is initialised by the callee; end it with turn_state_done(). */
MUST_CHECK int loop_state(struct loop *l, const char *session_id, struct turn_state *ret, struct err *e);
void loop_state_keep(struct loop *l, const char *session_id, const struct turn_state *st);

/* ---- drive_model.c ---- */
/* Builds the request that stands open in `st` and starts it. RC_LIMIT, RC_TOO_LARGE, RC_INVALID, RC_NOT_FOUND: it could not be made. */
MUST_CHECK int request_start(struct runner *r, const struct snapshot *snap, const struct turn_state *st, const char *span_id, struct err *e);
void request_cancel(struct runner *r);                   /* any thread; the outcome is MODEL_CANCELLED unless it was there already */
void request_free(struct request *q);
/* Puts the outcome into the step: events, records, and for errors what is to follow. *ret_wait_ms: a delay before the next try, 0 none. */
void request_finish(struct runner *r, struct request *q, const struct snapshot *snap, const struct model_caps *caps, struct step *s, int64_t *ret_wait_ms);
int64_t loop_compact_at(const struct loop *l, const struct model_caps *caps);
void runner_finished(struct runner *r);                  /* drive.c: the request has an outcome (any thread) */
