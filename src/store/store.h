/* store/store.h - the durable state of the control plane behind domain operations (architecture: "Store behind domain operations").
 * A `struct store` is thread-safe. Every operation is atomic and durable when it returns RC_OK (fsync'd; group-committed by the backend).
 * Rows are allocated in the caller's arena and borrowed from it. Times: int64_t ms since the epoch, -1 = unset. JSON is text.
 * Results beyond those named at an operation: RC_IO (database), RC_LIMIT (arena), RC_AGAIN (busy; try again). */
#pragma once

#include "base/arena.h"
#include "base/attr.h"
#include "base/err.h"
#include "store/tunnels.h"
#include "store/vaults.h"

#define STORE_LIST_MAX 1000

struct store;

/* What changed, told on a backend thread after the commit and before the operation returns: must be quick and thread-safe. A missed note costs latency, never data. */
enum store_note {
    STORE_NOTE_EVENTS,       /* id = session: its log grew (or the session was deleted) */
    STORE_NOTE_RUN,          /* id = session: the agent loop has something to look at */
    STORE_NOTE_WORK,         /* id = environment: an item became claimable */
};
typedef void (*store_note_fn)(void *ctx, enum store_note note, const char *id);

/* Keyset page. Lists are ordered by (created_ms, id), newest first unless `asc`. `after_*` is the last row of the previous page in that order
 * (after_id NULL: from the start). `backward`: rows *before* that position, still returned in list order. */
struct store_page {
    int limit; bool asc, backward;
    int64_t after_ms; const char *after_id;
    bool include_archived;
    int64_t gt_ms, gte_ms, lt_ms, lte_ms;      /* created_at filters, -1 none */
};
#define STORE_PAGE_INIT { .limit = 20, .gt_ms = -1, .gte_ms = -1, .lt_ms = -1, .lte_ms = -1 }

/* ---- credentials ---- */
enum key_kind { KEY_API, KEY_ENVIRONMENT, KEY_EDGE };
enum key_role { ROLE_NONE, ROLE_USER, ROLE_DEVELOPER, ROLE_ADMIN };      /* API keys; ordered */
struct store_key {
    const char *id, *name, *env_id, *hint;      /* env_id: environment keys; hint: last 4 characters of the key */
    enum key_kind kind; enum key_role role;
    int64_t created_ms, revoked_ms, last_used_ms;
};
/* A work item's sessions token: what its holder may touch. */
struct store_token { const char *work_id, *session_id, *env_id; int64_t expires_ms; };

/* ---- agents, environments ---- */
struct store_agent { const char *id, *name, *body; int64_t version, created_ms, updated_ms, archived_ms; };   /* body: API object without id, version, times */
struct store_environment { const char *id, *name, *body; int64_t created_ms, updated_ms, archived_ms; };      /* body: API object without id, times */

/* ---- sessions and their log ---- */
enum session_status { SESSION_IDLE, SESSION_RUNNING, SESSION_RESCHEDULING, SESSION_TERMINATED, SESSION_STATUS_MAX_ };
const char *session_status_name(enum session_status s);                     /* "idle" "running" "rescheduling" "terminated" */
int session_status_parse(const char *s, enum session_status *ret);          /* RC_INVALID */

struct store_usage { int64_t input, output, cache_read, cache_write_5m, cache_write_1h, requests; };
struct store_session {
    const char *id, *thread_id, *env_id, *agent_id, *title;      /* title may be NULL */
    int64_t agent_version;
    const char *agent;           /* resolved agent snapshot (API object) */
    const char *metadata;        /* JSON object */
    const char *extra;           /* JSON object: resources, vault_ids, outcome list ... */
    int64_t created_ms, updated_ms, archived_ms, terminated_ms;
    /* derived, on reads: */
    enum session_status status;  /* from the run row and terminated_ms */
    const char *stop_reason;     /* JSON of the last idle's stop_reason, or NULL */
    int64_t last_seq; int64_t active_ms, running_since_ms;       /* active: closed runs; running_since -1 when none */
    struct store_usage usage;
};
struct store_session_filter {
    const char *agent_id; int64_t agent_version;     /* NULL / 0: any */
    unsigned statuses;                               /* bit per enum session_status; 0: any */
};

/* One record of a session's log. Public records (id set) are API events; private ones (is_private) feed the agent loop only.
 * A queued user event is emitted twice: at `seq` with processed_at null, and at `processed_seq` when it was consumed. For all others the two are equal.
 * `body` is the event's JSON object WITHOUT processed_at; event_render() (wire/) adds it. */
struct store_event {
    const char *id, *type, *body, *ref, *thread_id;   /* ref: id of the tool use that this answers or confirms; NULL else */
    int64_t seq, processed_seq;                       /* 0: still queued */
    int64_t created_ms, processed_ms;
    bool is_private;
};
/* A write to the log: an append, or (stamp_id set) the consumption of a queued event. */
struct store_event_in {
    const char *stamp_id;        /* consume this queued event now; everything else ignored */
    const char *id, *type, *body, *ref;
    bool is_private, queued;     /* queued: processed_at stays null until stamped */
    bool is_result;              /* (session, ref) unique among results: a second one fails the step with RC_CONFLICT and e->msg "duplicate result" */
    bool drop_queued;            /* with stamp_id: the queued event is flushed unconsumed: removed from the public list (event_scan still gives it, private) */
    const char *thread_id;       /* NULL: the session's own thread */
};
enum store_run { RUN_KEEP, RUN_START, RUN_RESCHEDULE, RUN_RESUME, RUN_END, RUN_TERMINATE };
/* One atomic step of a session (architecture: "The event log is the truth"). Run changes are total: whatever the state was, after START and RESUME
 * the session is running, after RESCHEDULE rescheduling, after END idle (only running time is active time). On a terminated session START,
 * RESUME and RESCHEDULE are RC_INVALID; TERMINATE ends an unheld work item and asks the worker of a held one to stop. */
struct store_step {
    const char *session_id;
    int64_t expect_seq;          /* -1 any; else RC_CONFLICT ("log moved") unless last_seq equals it */
    const char *owner; int64_t epoch;        /* owner NULL: unfenced (API writes); else RC_PRECONDITION when the lease is not (owner, epoch) */
    const struct store_event_in *events; size_t n_events;    /* in order; consecutive seq */
    enum store_run run;          /* RUN_START inserts the run row, RUN_END removes it and gives the lease back, RUN_TERMINATE also ends the session */
    const char *stop_reason;     /* with RUN_END: JSON; also without a run change when re-idling (RUN_KEEP): replaces it when not NULL */
    struct store_usage usage_add;
    int needs_worker;            /* -1 keep, 0/1: calls for a worker are open. While 1, a stopped or lapsed item is re-offered */
    bool ensure_work;            /* enqueue a work item unless a live one exists (one live item per session, always) */
    bool wake;                   /* emit STORE_NOTE_RUN */
    const char *title, *metadata, *agent;    /* replace when not NULL (session update) */
    int64_t now_ms;
    int64_t ret_first_seq, ret_last_seq;     /* out: seq of events[0] and of the last; without events first is last + 1 */
};
struct store_event_filter {
    const char *thread_id;                   /* NULL any */
    const char *const *types; size_t n_types;
    int64_t gt_ms, gte_ms, lt_ms, lte_ms;    /* against processed_ms (queued ones: created_ms); -1 none */
    bool desc; int64_t after_ord; bool has_after;   /* position: the `ord` of the previous page's last row */
    int limit;
};
/* Order of the public list: consumed events by processed_seq, queued ones last by seq. */
static inline int64_t store_event_ord(const struct store_event *ev)
{
    return ev->processed_seq ? ev->processed_seq : ev->seq + ((int64_t)1 << 48);
}

/* ---- work queue (worker.md 2) ---- */
enum work_state { WORK_QUEUED, WORK_STARTING, WORK_ACTIVE, WORK_STOPPING, WORK_STOPPED, WORK_STATE_MAX_ };
const char *work_state_name(enum work_state s);
struct store_work {
    const char *id, *env_id, *session_id, *metadata, *data_type;     /* data_type "session" */
    enum work_state state;
    int64_t created_ms, acknowledged_ms, started_ms, heartbeat_ms, stop_requested_ms, stopped_ms;
};
struct store_heartbeat {         /* answer of work_heartbeat; on RC_PRECONDITION it describes the current state */
    int64_t last_ms; enum work_state state; bool extended; int64_t ttl_ms;
};
struct store_work_stats { int64_t depth, pending, oldest_queued_ms, workers_polling; };

struct store_ops {
    const char *name;                                                     /* "sqlite" */
    void (*close)(struct store *st);
    void (*on_note)(struct store *st, store_note_fn fn, void *ctx);       /* one listener; set before use */
    int  (*ping)(struct store *st, struct err *e);                        /* readable and schema current: for /readyz */

    /* keys: `hash` is SHA-256 of the credential text, 32 bytes */
    int (*key_create)(struct store *st, const struct store_key *k, const uint8_t hash[32], struct err *e);   /* RC_NOT_FOUND: env_id unknown */
    int (*key_find)(struct store *st, struct arena *a, const uint8_t hash[32], struct store_key *ret, struct err *e);   /* RC_NOT_FOUND also when revoked */
    int (*key_list)(struct store *st, struct arena *a, enum key_kind kind, const char *env_id, struct store_key **ret, size_t *ret_n, struct err *e);
    int (*key_revoke)(struct store *st, const char *id, int64_t now_ms, struct err *e);                      /* RC_NOT_FOUND; again: RC_OK */
    int (*token_find)(struct store *st, struct arena *a, const uint8_t hash[32], int64_t now_ms, struct store_token *ret, struct err *e);   /* RC_NOT_FOUND */

    int (*agent_create)(struct store *st, const struct store_agent *in, struct err *e);
    int (*agent_get)(struct store *st, struct arena *a, const char *id, int64_t version, struct store_agent *ret, struct err *e);   /* version 0: latest */
    /* Adds version expect+1. RC_CONFLICT when the latest is not `expect`; RC_INVALID when archived. */
    int (*agent_update)(struct store *st, const char *id, int64_t expect, const char *name, const char *body, int64_t now_ms, struct err *e);
    int (*agent_archive)(struct store *st, const char *id, int64_t now_ms, struct err *e);                   /* again: RC_OK, first time kept */
    int (*agent_list)(struct store *st, struct arena *a, const struct store_page *p, struct store_agent **ret, size_t *ret_n, struct err *e);
    int (*agent_versions)(struct store *st, struct arena *a, const char *id, int limit, int64_t before_version, struct store_agent **ret, size_t *ret_n, struct err *e);

    int (*environment_create)(struct store *st, const struct store_environment *in, struct err *e);          /* RC_CONFLICT: name in use by an unarchived one */
    int (*environment_get)(struct store *st, struct arena *a, const char *id, struct store_environment *ret, struct err *e);
    int (*environment_update)(struct store *st, const char *id, int64_t expect_updated_ms, const char *name, const char *body, int64_t now_ms, struct err *e);   /* RC_CONFLICT: name, or moved on */
    int (*environment_archive)(struct store *st, const char *id, int64_t now_ms, struct err *e);
    int (*environment_delete)(struct store *st, const char *id, struct err *e);                              /* RC_CONFLICT: sessions use it */
    int (*environment_list)(struct store *st, struct arena *a, const struct store_page *p, struct store_environment **ret, size_t *ret_n, struct err *e);

    /* `first` (may be NULL) is applied in the same transaction: initial events, RUN_START, ensure_work. RC_NOT_FOUND: environment;
     * RC_INVALID: environment or agent archived; RC_CONFLICT: id. */
    int (*session_create)(struct store *st, const struct store_session *in, struct store_step *first, struct err *e);
    int (*session_get)(struct store *st, struct arena *a, const char *id, struct store_session *ret, struct err *e);
    int (*session_list)(struct store *st, struct arena *a, const struct store_page *p, const struct store_session_filter *f, struct store_session **ret, size_t *ret_n, struct err *e);
    int (*session_archive)(struct store *st, struct store_step *last, struct err *e);       /* step with RUN_TERMINATE; RC_INVALID while running; live work is stopped; again: RC_OK, nothing appended */
    int (*session_delete)(struct store *st, const char *id, struct err *e);                 /* RC_INVALID while running; removes everything of it, stops live work */

    int (*step)(struct store *st, struct store_step *s, struct err *e);                     /* RC_NOT_FOUND, RC_CONFLICT, RC_PRECONDITION, RC_INVALID (archived) */
    int (*event_list)(struct store *st, struct arena *a, const char *session_id, const struct store_event_filter *f, struct store_event **ret, size_t *ret_n, struct err *e);
    /* Everything (public and private) with seq > after or processed_seq > after, ordered by seq, at most `limit`: for reduce(). A reader that
     * pages goes on after the largest seq it was given; a row consumed beyond that comes again. */
    int (*event_scan)(struct store *st, struct arena *a, const char *session_id, int64_t after_seq, int limit, bool public_only, struct store_event **ret, size_t *ret_n, struct err *e);
    int (*event_get)(struct store *st, struct arena *a, const char *session_id, const char *event_id, struct store_event *ret, struct err *e);

    /* Lease of the session's thread for the agent loop. Free, expired or already ours: RC_OK with a new epoch; else RC_CONFLICT. */
    int (*lease_claim)(struct store *st, const char *session_id, const char *owner, int64_t now_ms, int64_t until_ms, int64_t *ret_epoch, struct err *e);
    int (*lease_renew)(struct store *st, const char *session_id, const char *owner, int64_t epoch, int64_t until_ms, struct err *e);     /* RC_PRECONDITION: lost */
    int (*lease_release)(struct store *st, const char *session_id, const char *owner, int64_t epoch, struct err *e);
    /* Sessions that have a run row or queued inputs and no unexpired lease. */
    int (*lease_orphans)(struct store *st, struct arena *a, int64_t now_ms, int limit, const char ***ret_ids, size_t *ret_n, struct err *e);
    int (*lease_clear)(struct store *st, struct err *e);        /* a single-process backend's start: leases of a dead predecessor end */

    /* Reserves the oldest claimable item for `reclaim_ms`; RC_NOT_FOUND when none. `token_hash` becomes a sessions token of that item, valid until token_expires_ms.
     * worker_id (may be NULL) is noted as polling, also when the queue is empty. */
    int (*work_poll)(struct store *st, struct arena *a, const char *env_id, const char *worker_id, int64_t now_ms, int64_t reclaim_ms,
                     const uint8_t token_hash[32], int64_t token_expires_ms, struct store_work *ret, struct err *e);
    int (*work_ack)(struct store *st, struct arena *a, const char *env_id, const char *id, int64_t now_ms, int64_t ttl_ms, struct store_work *ret, struct err *e);   /* again: RC_OK; RC_CONFLICT: stopped */
    /* `expected`: NULL = not compared; "NO_HEARTBEAT"; else the RFC 3339 text given last. The immediately preceding value is accepted too for `grace_ms` after it
     * was replaced (a retransmission; worker.md 2.4). RC_PRECONDITION on a true mismatch. */
    int (*work_heartbeat)(struct store *st, const char *env_id, const char *id, const char *expected, int64_t now_ms, int64_t ttl_ms, int64_t grace_ms, struct store_heartbeat *ret, struct err *e);
    int (*work_stop)(struct store *st, const char *env_id, const char *id, bool force, int64_t now_ms, struct err *e);        /* RC_CONFLICT: already stopping/stopped (force ends stopping) */
    int (*work_get)(struct store *st, struct arena *a, const char *env_id, const char *id, struct store_work *ret, struct err *e);
    int (*work_list)(struct store *st, struct arena *a, const char *env_id, const struct store_page *p, struct store_work **ret, size_t *ret_n, struct err *e);
    int (*work_update)(struct store *st, struct arena *a, const char *env_id, const char *id, const char *metadata, struct store_work *ret, struct err *e);
    int (*work_stats)(struct store *st, const char *env_id, int64_t now_ms, struct store_work_stats *ret, struct err *e);
    /* Re-queues items whose lease lapsed (needs_worker sessions) or stops them (others); emits STORE_NOTE_WORK. *ret_next_ms: when the next one may lapse, -1 none. */
    int (*work_expire)(struct store *st, int64_t now_ms, int64_t *ret_next_ms, struct err *e);

    const struct store_tunnel_ops *tunnel;      /* store/tunnels.h */
    const struct store_vault_ops *vault;        /* store/vaults.h */
};
struct store { const struct store_ops *ops; };

/* dsn: "sqlite:/path/to/file" or a plain path. `create` makes a missing database; otherwise RC_NOT_FOUND. */
MUST_CHECK int store_open(const char *dsn, bool create, struct store **ret, struct err *e);
void store_close(struct store *st);      /* NULL is fine */
