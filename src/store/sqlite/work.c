/* The worker's side of the queue: poll, acknowledge, heartbeat, stop (worker.md 2.3, 2.4). */
#include "base/clock.h"
#include "base/str.h"
#include "store/sqlite/sqlite.h"
#include "store/sqlite/work.h"

struct store_work work_row(struct row *r)
{
    struct store_work w = { .data_type = "session" };
    w.id = row_text(r);
    w.env_id = row_text(r);
    w.session_id = row_text(r);
    w.metadata = row_text(r);
    w.state = (enum work_state)row_int(r);
    w.created_ms = row_int(r);
    w.acknowledged_ms = row_time(r);
    w.started_ms = row_time(r);
    w.heartbeat_ms = row_time(r);
    w.stop_requested_ms = row_time(r);
    w.stopped_ms = row_time(r);
    return w;
}

int work_read(struct db *db, struct arena *a, const char *env_id, const char *id, struct store_work *ret, struct err *e)
{
    AUTO_ROW r = { 0 };
    TRY(db_query(db, &r, a, e, "SELECT " WORK_COLS " FROM work w WHERE w.id = ? AND w.env_id = ?", "ss", id, env_id));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : err_set(e, RC_NOT_FOUND, "no work item '%s' in environment '%s'", id, env_id);
    struct store_work w = work_row(&r);
    TRY(row_ok(&r, e));
    *ret = w;
    return RC_OK;
}

/* ---- poll ---- */

/* The order of the join is forced: the queue's partial index first, then each item's session. */
#define CLAIMABLE                                                                                                                    \
    " FROM work w CROSS JOIN sessions s ON s.id = w.session_id WHERE w.env_id = ?1 AND w.state = 0 AND w.claim_ms <= ?2" \
    " AND s.archived_ms IS NULL AND s.terminated_ms IS NULL ORDER BY w.wn LIMIT 1"

struct poll {
    struct arena *a;
    const char *env_id;
    int64_t now_ms, reclaim_ms, expires_ms;
    const uint8_t *hash;
    struct store_work work;
};

static int poll_tx(struct tx *t, void *arg, struct err *e)
{
    struct poll *p = arg;
    {
        AUTO_ROW r = { 0 };
        TRY(db_query(t->db, &r, p->a, e, "SELECT " WORK_COLS CLAIMABLE, "si", p->env_id, p->now_ms));
        int rc = row_next(&r, e);
        if (rc <= 0)
            return rc < 0 ? rc : err_set(e, RC_NOT_FOUND, "the queue is empty");
        p->work = work_row(&r);
        TRY(row_ok(&r, e));
    }
    TRY(db_run(t->db, e, "UPDATE work SET claim_ms = ?, handed = handed + 1 WHERE id = ?", "is", p->now_ms + p->reclaim_ms, p->work.id));
    return db_run(t->db, e, "INSERT INTO tokens(hash, work_id, expires_ms) VALUES(?, ?, ?)", "hsi", p->hash, p->work.id, p->expires_ms);
}

/* An empty poll, by far the most frequent call, reads one index and writes nothing. */
int sqlite_work_poll(struct store *st, struct arena *a, const char *env_id, const char *worker_id, int64_t now_ms, int64_t reclaim_ms,
                     const uint8_t token_hash[32], int64_t token_expires_ms, struct store_work *ret, struct err *e)
{
    struct sqlite_store *s = sqlite_of(st);
    if (worker_id && *worker_id)
        sightings_note(s->sightings, env_id, worker_id, now_ms);
    {
        AUTO_READER rd = { 0 };
        int64_t one;
        TRY(reader_take(s, &rd, e));
        int rc = db_int(rd.db, &one, e, "SELECT 1" CLAIMABLE, "si", env_id, now_ms);
        if (rc < 0)
            return rc == RC_NOT_FOUND ? err_set(e, rc, "the queue is empty") : rc;
    }
    struct poll p = { a, env_id, now_ms, reclaim_ms, token_expires_ms, token_hash, { 0 } };
    TRY(writer_run(s, poll_tx, &p, e));
    *ret = p.work;
    return RC_OK;
}

/* ---- acknowledge ---- */

struct call {
    struct arena *a;
    const char *env_id, *id, *expected;
    int64_t now_ms, ttl_ms, grace_ms;
    bool force;
    struct store_work work;
    struct store_heartbeat beat;
};

static int ack_tx(struct tx *t, void *arg, struct err *e)
{
    struct call *c = arg;
    TRY(db_run(t->db, e, "UPDATE work SET state = 1, acknowledged_ms = ?1, lease_ms = ?2 WHERE id = ?3 AND env_id = ?4 AND state = 0", "iiss", c->now_ms,
               c->now_ms + c->ttl_ms, c->id, c->env_id));
    TRY(work_read(t->db, c->a, c->env_id, c->id, &c->work, e));
    return c->work.state == WORK_STOPPED ? err_set(e, RC_CONFLICT, "work item '%s' is stopped", c->id) : RC_OK;
}

int sqlite_work_ack(struct store *st, struct arena *a, const char *env_id, const char *id, int64_t now_ms, int64_t ttl_ms, struct store_work *ret, struct err *e)
{
    struct call c = { .a = a, .env_id = env_id, .id = id, .now_ms = now_ms, .ttl_ms = ttl_ms };
    TRY(writer_run(sqlite_of(st), ack_tx, &c, e));
    *ret = c.work;
    return RC_OK;
}

/* ---- heartbeat ---- */

struct beats { enum work_state state; int64_t last_ms, previous_ms, replaced_ms, lease_ms, handed; };

static int beats_load(struct tx *t, const struct call *c, struct beats *ret, struct err *e)
{
    AUTO_ROW r = { 0 };
    TRY(db_query(t->db, &r, NULL, e, "SELECT state, heartbeat_ms, previous_ms, replaced_ms, lease_ms, handed FROM work WHERE id = ? AND env_id = ?", "ss", c->id,
                 c->env_id));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : err_set(e, RC_NOT_FOUND, "no work item '%s' in environment '%s'", c->id, c->env_id);
    *ret = (struct beats){ .state = (enum work_state)row_int(&r) };
    ret->last_ms = row_time(&r);
    ret->previous_ms = row_time(&r);
    ret->replaced_ms = row_time(&r);
    ret->lease_ms = row_time(&r);
    ret->handed = row_int(&r);
    return RC_OK;
}

/* Text against text: clients echo what they were given byte for byte. No beat yet is spelled NO_HEARTBEAT. */
static bool names_beat(const char *expected, int64_t ms)
{
    char text[RFC3339_MAX];
    if (ms < 0)
        return str_eq(expected, "NO_HEARTBEAT");
    rfc3339_format(ms, text);
    return str_eq(expected, text);
}

/* A client that lost our answer repeats its call with the value before. Not so the first beat of an item that was handed out twice: there the
 * second NO_HEARTBEAT is another worker, and exactly one may win. */
static bool is_repeat(const struct call *c, const struct beats *b)
{
    if (b->last_ms < 0 || c->now_ms - b->replaced_ms > c->grace_ms)
        return false;
    if (b->previous_ms < 0 && b->handed > 1)
        return false;
    return names_beat(c->expected, b->previous_ms);
}

static int heartbeat_tx(struct tx *t, void *arg, struct err *e)
{
    struct call *c = arg;
    struct beats b;
    TRY(beats_load(t, c, &b, e));
    int64_t left = b.lease_ms > c->now_ms ? b.lease_ms - c->now_ms : 0;
    c->beat = (struct store_heartbeat){ .last_ms = b.last_ms, .state = b.state, .extended = false, .ttl_ms = left };
    if (b.state == WORK_STOPPING || b.state == WORK_STOPPED) {
        if (b.last_ms < 0)
            c->beat.last_ms = c->now_ms;
        return RC_OK;
    }
    if (b.state == WORK_QUEUED)
        return err_set(e, RC_PRECONDITION, "work item '%s' is not held: it was never acknowledged, or its lease lapsed", c->id);
    if (c->expected && !names_beat(c->expected, b.last_ms)) {
        if (!is_repeat(c, &b))
            return err_set(e, RC_PRECONDITION, "the last heartbeat of work item '%s' is another one", c->id);
        c->beat.extended = true;
        return RC_OK;
    }
    int64_t now = c->now_ms > b.last_ms ? c->now_ms : b.last_ms + 1;       /* each beat has a text of its own */
    TRY(db_run(t->db, e, "UPDATE work SET state = 2, started_ms = coalesce(started_ms, ?1), previous_ms = heartbeat_ms, replaced_ms = ?2, heartbeat_ms = ?1,"
               " lease_ms = ?3 WHERE id = ?4", "iiis", now, c->now_ms, c->now_ms + c->ttl_ms, c->id));
    c->beat = (struct store_heartbeat){ .last_ms = now, .state = WORK_ACTIVE, .extended = true, .ttl_ms = c->ttl_ms };
    return RC_OK;
}

int sqlite_work_heartbeat(struct store *st, const char *env_id, const char *id, const char *expected, int64_t now_ms, int64_t ttl_ms, int64_t grace_ms, struct store_heartbeat *ret, struct err *e)
{
    struct call c = { .env_id = env_id, .id = id, .expected = expected, .now_ms = now_ms, .ttl_ms = ttl_ms, .grace_ms = grace_ms };
    int rc = writer_run(sqlite_of(st), heartbeat_tx, &c, e);
    if (rc == RC_OK || rc == RC_PRECONDITION)
        *ret = c.beat;
    return rc;
}

/* ---- stop ---- */

static int stop_tx(struct tx *t, void *arg, struct err *e)
{
    const struct call *c = arg;
    struct beats b;
    TRY(beats_load(t, c, &b, e));
    if (b.state == WORK_STOPPED || (b.state == WORK_STOPPING && !c->force))
        return err_set(e, RC_CONFLICT, "work item '%s' is %s already", c->id, work_state_name(b.state));
    if (c->force || b.state == WORK_QUEUED)      /* nobody holds a queued one, so nobody could confirm */
        return work_end(t, c->id, c->now_ms, e);
    return db_run(t->db, e, "UPDATE work SET state = 3, stop_requested_ms = ? WHERE id = ?", "is", c->now_ms, c->id);
}

int sqlite_work_stop(struct store *st, const char *env_id, const char *id, bool force, int64_t now_ms, struct err *e)
{
    struct call c = { .env_id = env_id, .id = id, .force = force, .now_ms = now_ms };
    return writer_run(sqlite_of(st), stop_tx, &c, e);
}
