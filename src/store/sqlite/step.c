/* One atomic step of a session: fencing, the log, run rows, usage, the work queue. Everything else that changes a session goes through here. */
#include <string.h>

#include "base/str.h"
#include "store/sqlite/events.h"
#include "store/sqlite/sqlite.h"

#define LEASE_OWNER_MAX 128
#define QUEUED_ORD ((int64_t)1 << 48)    /* as in store_event_ord() */

/* What a step needs to know of its session. */
struct head {
    int64_t sn, last_seq, active_ms, since_ms, epoch;
    bool archived, terminated, has_run, has_owner;
    char owner[LEASE_OWNER_MAX];
};

static int head_load(struct db *db, const char *id, struct head *ret, struct err *e)
{
    AUTO_ROW r = { 0 };
    TRY(db_query(db, &r, NULL, e,
                 "SELECT s.sn, s.archived_ms IS NOT NULL, s.terminated_ms IS NOT NULL, t.last_seq, t.active_ms, r.sn IS NOT NULL, r.since_ms,"
                 " l.epoch, l.owner FROM sessions s JOIN session_state t ON t.sn = s.sn LEFT JOIN runs r ON r.sn = s.sn"
                 " LEFT JOIN leases l ON l.sn = s.sn WHERE s.id = ?", "s", id));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : err_set(e, RC_NOT_FOUND, "no session '%s'", id ? id : "");
    struct head h = { .sn = row_int(&r) };
    h.archived = row_int(&r);
    h.terminated = row_int(&r);
    h.last_seq = row_int(&r);
    h.active_ms = row_int(&r);
    h.has_run = row_int(&r);
    h.since_ms = row_time(&r);
    h.epoch = row_int(&r);
    h.has_owner = row_copy(&r, h.owner, sizeof h.owner);
    *ret = h;
    return RC_OK;
}

static int head_check(const struct head *h, const struct store_step *s, struct err *e)
{
    if (h->archived)
        return err_set(e, RC_INVALID, "session '%s' is archived", s->session_id);
    bool starts = s->run == RUN_START || s->run == RUN_RESCHEDULE || s->run == RUN_RESUME;
    if (h->terminated && starts)
        return err_set(e, RC_INVALID, "session '%s' is terminated", s->session_id);
    if (s->owner && (!h->has_owner || h->epoch != s->epoch || !str_eq(h->owner, s->owner)))
        return err_set(e, RC_PRECONDITION, "the lease of session '%s' is lost", s->session_id);
    if (s->expect_seq >= 0 && s->expect_seq != h->last_seq)
        return err_set(e, RC_CONFLICT, "log moved: session '%s' is at %lld, not %lld", s->session_id, (long long)h->last_seq, (long long)s->expect_seq);
    if (h->last_seq + (int64_t)s->n_events > EVENT_SEQ_MAX)
        return err_set(e, RC_LIMIT, "the log of session '%s' is full", s->session_id);
    return RC_OK;
}

/* Consumes a queued event at `seq`. A dropped one becomes private: gone from the public list, still a record for reduce(). */
static int stamp(struct tx *t, const struct head *h, const struct store_step *s, const struct store_event_in *in, int64_t seq, struct err *e)
{
    int64_t k, done;
    {
        AUTO_ROW r = { 0 };
        TRY(db_query(t->db, &r, NULL, e, "SELECT k, processed_seq FROM events WHERE id = ? AND sn = ?", "si", in->stamp_id, h->sn));
        int rc = row_next(&r, e);
        if (rc <= 0)
            return rc < 0 ? rc : err_set(e, RC_NOT_FOUND, "no event '%s' in session '%s'", in->stamp_id, s->session_id);
        k = row_int(&r);
        done = row_int(&r);
    }
    if (done)
        return err_set(e, RC_CONFLICT, "event '%s' was consumed already", in->stamp_id);
    return db_run(t->db, e, "UPDATE events SET processed_seq = ?1, processed_ms = ?2, ord = ?1, is_private = max(is_private, ?3) WHERE k = ?4", "iidi", seq,
                  s->now_ms, (int)in->drop_queued, k);
}

/* Which of the two unique rules was broken. */
static int explain_conflict(struct tx *t, const struct head *h, const struct store_event_in *in, struct err *e)
{
    int64_t twice = 0;
    if (in->is_result)
        TRY(db_int(t->db, &twice, e, "SELECT EXISTS(SELECT 1 FROM events WHERE sn = ? AND ref = ? AND is_result = 1)", "is", h->sn, in->ref));
    return twice ? err_set(e, RC_CONFLICT, "duplicate result") : err_set(e, RC_CONFLICT, "event '%s' exists already", in->id ? in->id : "");
}

static int append(struct tx *t, const struct head *h, const struct store_step *s, const struct store_event_in *in, int64_t seq, struct err *e)
{
    if (!in->type || !in->body || (!in->id && !in->is_private) || (in->is_result && !in->ref))
        return err_set(e, RC_INVALID, "an event needs type and body, a public one an id, a result the id that it answers");
    int64_t processed = in->queued ? 0 : seq;
    int rc = db_run(t->db, e,
                    "INSERT INTO events(k, sn, processed_seq, ord, is_private, is_result, created_ms, processed_ms, type, id, ref, thread_id, body)"
                    " VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", "iiiidditsssss",
                    EVENT_KEY(h->sn, seq), h->sn, processed, in->queued ? seq + QUEUED_ORD : seq, (int)in->is_private, (int)in->is_result, s->now_ms,
                    in->queued ? (int64_t)-1 : s->now_ms, in->type, in->id, in->ref, in->thread_id, in->body);
    return rc == RC_CONFLICT ? explain_conflict(t, h, in, e) : rc;
}

static int apply_events(struct tx *t, const struct head *h, const struct store_step *s, bool *ret_public, struct err *e)
{
    int64_t seq = h->last_seq;
    for (size_t i = 0; i < s->n_events; i++) {
        const struct store_event_in *in = &s->events[i];
        seq++;
        if (in->stamp_id)
            TRY(stamp(t, h, s, in, seq, e));
        else
            TRY(append(t, h, s, in, seq, e));
        *ret_public |= in->stamp_id || !in->is_private;
    }
    return RC_OK;
}

/* Run rows exist while the session is running or rescheduling; only running time counts as active. Every row of the switch holds whatever the
 * state before was, so that the derived status is always what the step's own events say. */
static int apply_run(struct tx *t, struct head *h, const struct store_step *s, struct err *e)
{
    if (s->run == RUN_KEEP)
        return RC_OK;
    bool goes_on = (s->run == RUN_START || s->run == RUN_RESUME) && h->has_run && h->since_ms >= 0;
    if (goes_on)
        return RC_OK;
    if (h->since_ms >= 0 && s->now_ms > h->since_ms)
        h->active_ms += s->now_ms - h->since_ms;
    switch (s->run) {
    case RUN_KEEP:
        break;
    case RUN_START:
    case RUN_RESUME:
        return db_run(t->db, e, "INSERT OR REPLACE INTO runs(sn, rescheduling, since_ms) VALUES(?, 0, ?)", "ii", h->sn, s->now_ms);
    case RUN_RESCHEDULE:
        return db_run(t->db, e, "INSERT OR REPLACE INTO runs(sn, rescheduling, since_ms) VALUES(?, 1, NULL)", "i", h->sn);
    case RUN_TERMINATE:
        TRY(db_run(t->db, e, "UPDATE sessions SET terminated_ms = coalesce(terminated_ms, ?) WHERE sn = ?", "ii", s->now_ms, h->sn));
        __attribute__((fallthrough));
    case RUN_END:
        TRY(db_run(t->db, e, "DELETE FROM runs WHERE sn = ?", "i", h->sn));
        return db_run(t->db, e, "UPDATE leases SET owner = NULL WHERE sn = ?", "i", h->sn);
    }
    return RC_OK;
}

static int apply_state(struct tx *t, const struct head *h, const struct store_step *s, struct err *e)
{
    const struct store_usage *u = &s->usage_add;
    int needs = s->run == RUN_TERMINATE ? 0 : s->needs_worker;
    TRY(db_run(t->db, e,
               "UPDATE session_state SET last_seq = ?2, updated_ms = max(updated_ms, ?3), active_ms = ?4, stop_reason = coalesce(?5, stop_reason),"
               " needs_worker = iif(?6 < 0, needs_worker, ?6), offers = iif(?7, 0, offers), input = input + ?8, output = output + ?9,"
               " cache_read = cache_read + ?10, cache_write_5m = cache_write_5m + ?11, cache_write_1h = cache_write_1h + ?12,"
               " requests = requests + ?13 WHERE sn = ?1",
               "iiiisddiiiiii", h->sn, h->last_seq + (int64_t)s->n_events, s->now_ms, h->active_ms, s->stop_reason, needs, (int)(s->n_events > 0),
               u->input, u->output, u->cache_read, u->cache_write_5m, u->cache_write_1h, u->requests));
    if (!s->title && !s->metadata && !s->agent)
        return RC_OK;
    return db_run(t->db, e, "UPDATE sessions SET title = coalesce(?, title), metadata = coalesce(?, metadata), agent = coalesce(?, agent) WHERE sn = ?", "sssi",
                  s->title, s->metadata, s->agent, h->sn);
}

int step_apply(struct tx *t, struct store_step *s, struct err *e)
{
    struct head h;
    bool is_public = false;
    TRY(head_load(t->db, s->session_id, &h, e));
    TRY(head_check(&h, s, e));
    TRY(apply_events(t, &h, s, &is_public, e));
    TRY(apply_run(t, &h, s, e));
    TRY(apply_state(t, &h, s, e));
    if (s->run == RUN_TERMINATE)
        TRY(work_end_session(t, h.sn, true, s->now_ms, e));
    else if (s->ensure_work && !h.terminated)
        TRY(work_ensure(t, h.sn, s->now_ms, e));
    if (is_public)
        tx_note(t, STORE_NOTE_EVENTS, s->session_id);
    if (s->wake)
        tx_note(t, STORE_NOTE_RUN, s->session_id);
    s->ret_first_seq = h.last_seq + 1;
    s->ret_last_seq = h.last_seq + (int64_t)s->n_events;
    return RC_OK;
}

static int step_tx(struct tx *t, void *arg, struct err *e) { return step_apply(t, arg, e); }

int sqlite_step(struct store *st, struct store_step *s, struct err *e)
{
    return writer_run(sqlite_of(st), step_tx, s, e);
}
