/* server/loop/loop.h - the agent loop: drives every session that has something to do (architecture section 3).
 * reduce.c folds the log into a turn_state, decide.c maps it to the next effect, drive.c performs it. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "ev/ev.h"
#include "ev/jobs.h"
#include "json/js.h"
#include "server/mcp/mcp.h"
#include "server/model/model.h"
#include "store/store.h"

struct loop;

/* A live preview of text that is being generated; not stored (api.md 6, "Deltas"). */
struct loop_preview {
    const char *session_id, *thread_id, *event_id, *type;   /* type "agent.message" or "agent.thinking" */
    bool start;                                             /* event_start; else event_delta */
    int index; const char *text; size_t n;
};
struct loop_conf {
    struct ev *ev; struct jobs *jobs; struct store *store; struct model_registry *models;
    void (*on_preview)(void *ctx, const struct loop_preview *p);   /* loop (ev) thread */
    void *ctx;
    const char *owner;                   /* this process's lease name */
    struct mcp *mcp;                     /* NULL: agents' MCP servers are not called */
    int64_t mcp_timeout_ms;              /* of one tool call; default 5 min */
    int64_t lease_ms;                    /* default 30 s when 0; renewed at a third */
    int64_t retry_budget_ms;             /* wall time of retries per model request before `exhausted`; default 5 min */
    int64_t retry_base_ms, retry_max_ms; /* back-off: default 500 ms doubling to 30 s, full jitter */
    int recoveries_max;                  /* crash recoveries per turn before it is given up (service.md 3.6); default 5 */
    int64_t compact_at_tokens;           /* 0: the model's window minus a reserve */
};
MUST_CHECK int loop_new(const struct loop_conf *c, struct loop **ret, struct err *e);
void loop_wake(struct loop *l, const char *session_id);      /* thread-safe, cheap, idempotent: look at this session soon */
MUST_CHECK int loop_recover(struct loop *l, struct err *e);  /* job thread or start-up: wakes orphans; called at start and every few seconds */
/* Stops claiming; lets model requests finish for at most grace_ms; then gives leases back and calls cb on the ev thread. */
void loop_drain(struct loop *l, int64_t grace_ms, void (*cb)(void *ctx), void *ctx);
void loop_free(struct loop *l);
size_t loop_running(const struct loop *l);                   /* sessions held now */

/* ---- what comes in: server/loop/inbox.c. Job threads. ---- */
/* Checks `events` (array of already shape-validated event objects) against the session's state and appends them in one step.
 * *ret_data: array text of the stored events as the API shows them. from_worker: sent with an environment key or sessions token.
 * RC_INVALID with the API's message (ask without allow, unknown tool id, archived, requires_action ...), RC_DENIED (user.tool_result by an API key),
 * RC_NOT_FOUND. A repeated tool result for an answered call is answered with the stored one and stores nothing. */
MUST_CHECK int inbox_send(struct loop *l, const char *session_id, json_t *events, bool from_worker, struct buf *ret_data, struct err *e);
/* For POST /v1/sessions: turns initial_events (may be NULL or empty) into the first step (arena-allocated), or leaves *ret_step NULL. */
MUST_CHECK int inbox_initial(struct arena *a, const char *session_id, const char *thread_id, json_t *initial_events, struct store_step **ret_step, struct err *e);
/* Common shapes used by session update and archive, so that the API never builds status events itself. */
MUST_CHECK int inbox_archive(struct loop *l, const char *session_id, struct err *e);
MUST_CHECK int inbox_update(struct loop *l, const char *session_id, const char *title, const char *metadata, const char *agent, json_t *changed, struct err *e);
