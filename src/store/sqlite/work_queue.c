/* The queue's inner moves, inside a transaction: queue, offer again, end, expire. Invariant (unique index): one live item per session. */
#include "base/str.h"
#include "store/sqlite/sqlite.h"

#define OFFER_DELAY_MAX_MS 60000
#define EXPIRE_BATCH 200                 /* lapsed leases per transaction */

_Static_assert(WORK_QUEUED == 0 && WORK_STARTING == 1 && WORK_ACTIVE == 2 && WORK_STOPPING == 3 && WORK_STOPPED == 4, "the SQL spells these numbers");

/* 0, 1 s, 2 s, 4 s ... 60 s: an item whose workers fail again and again must not spin. Any event in between starts over. */
static int64_t offer_delay_ms(int64_t offers)
{
    if (offers <= 0)
        return 0;
    return offers > 6 ? OFFER_DELAY_MAX_MS : (int64_t)1000 << (offers - 1);
}

static int enqueue(struct tx *t, const char *session_id, const char *env_id, int64_t now_ms, int64_t delay_ms, struct err *e)
{
    char id[ID_MAX];
    id_new("work", id);
    TRY(db_run(t->db, e, "INSERT INTO work(id, env_id, session_id, state, metadata, created_ms, queued_ms, claim_ms, handed)"
               " VALUES(?1, ?2, ?3, 0, '{}', ?4, ?4, ?5, 0)", "sssii", id, env_id, session_id, now_ms, now_ms + delay_ms));
    if (delay_ms == 0)
        tx_note(t, STORE_NOTE_WORK, env_id);
    return RC_OK;
}

struct need { int64_t sn, offers; bool needs; char session_id[ID_MAX], env_id[ID_MAX]; };

/* RC_NOT_FOUND: the session is gone. `needs` is false for one that has ended. */
static int need_load(struct tx *t, const char *session_id, struct need *ret, struct err *e)
{
    AUTO_ROW r = { 0 };
    TRY(db_query(t->db, &r, NULL, e,
                 "SELECT s.sn, t.offers, t.needs_worker AND s.archived_ms IS NULL AND s.terminated_ms IS NULL, s.id, s.env_id"
                 " FROM sessions s JOIN session_state t ON t.sn = s.sn WHERE s.id = ?", "s", session_id));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : RC_NOT_FOUND;
    *ret = (struct need){ .sn = row_int(&r) };
    ret->offers = row_int(&r);
    ret->needs = row_int(&r);
    (void)row_copy(&r, ret->session_id, sizeof ret->session_id);
    (void)row_copy(&r, ret->env_id, sizeof ret->env_id);
    return RC_OK;
}

static int count_offer(struct tx *t, int64_t sn, struct err *e)
{
    return db_run(t->db, e, "UPDATE session_state SET offers = offers + 1 WHERE sn = ?", "i", sn);
}

int work_ensure(struct tx *t, int64_t sn, int64_t now_ms, struct err *e)
{
    char session_id[ID_MAX], env_id[ID_MAX];
    int64_t live;
    {
        AUTO_ROW r = { 0 };
        TRY(db_query(t->db, &r, NULL, e, "SELECT s.id, s.env_id, EXISTS(SELECT 1 FROM work w WHERE w.session_id = s.id AND w.state <> 4) FROM sessions s WHERE s.sn = ?",
                     "i", sn));
        int rc = row_next(&r, e);
        if (rc <= 0)
            return rc < 0 ? rc : err_set(e, RC_NOT_FOUND, "no session");
        (void)row_copy(&r, session_id, sizeof session_id);
        (void)row_copy(&r, env_id, sizeof env_id);
        live = row_int(&r);
    }
    if (!live)
        return enqueue(t, session_id, env_id, now_ms, 0, e);
    /* One that waits for its back-off becomes claimable; a reservation (handed > 0) is left to its worker. */
    TRY(db_run(t->db, e, "UPDATE work SET claim_ms = ?1 WHERE session_id = ?2 AND state <> 4 AND state = 0 AND handed = 0 AND claim_ms > ?1", "is", now_ms, session_id));
    if (db_changes(t->db))
        tx_note(t, STORE_NOTE_WORK, env_id);
    return RC_OK;
}

/* Marks an item stopped, nothing else. */
static int mark_stopped(struct tx *t, const char *work_id, int64_t now_ms, struct err *e)
{
    return db_run(t->db, e, "UPDATE work SET state = 4, stopped_ms = ?1, stop_requested_ms = coalesce(stop_requested_ms, ?1), lease_ms = NULL WHERE id = ?2", "is", now_ms,
                  work_id);
}

int work_end(struct tx *t, const char *work_id, int64_t now_ms, struct err *e)
{
    char session_id[ID_MAX];
    {
        AUTO_ROW r = { 0 };
        TRY(db_query(t->db, &r, NULL, e, "SELECT session_id FROM work WHERE id = ?", "s", work_id));
        int rc = row_next(&r, e);
        if (rc <= 0)
            return rc < 0 ? rc : err_set(e, RC_NOT_FOUND, "no work item '%s'", work_id);
        (void)row_copy(&r, session_id, sizeof session_id);
    }
    TRY(mark_stopped(t, work_id, now_ms, e));
    struct need n;
    int rc = need_load(t, session_id, &n, e);
    if (rc < 0 || !n.needs)
        return rc == RC_NOT_FOUND ? RC_OK : rc;
    TRY(count_offer(t, n.sn, e));
    return enqueue(t, n.session_id, n.env_id, now_ms, offer_delay_ms(n.offers), e);
}

int work_end_session(struct tx *t, int64_t sn, bool only_unheld, int64_t now_ms, struct err *e)
{
    char id[ID_MAX];
    int64_t state;
    {
        AUTO_ROW r = { 0 };
        TRY(db_query(t->db, &r, NULL, e, "SELECT w.id, w.state FROM sessions s JOIN work w ON w.session_id = s.id WHERE s.sn = ? AND w.state <> 4", "i", sn));
        int rc = row_next(&r, e);
        if (rc <= 0)
            return rc;
        (void)row_copy(&r, id, sizeof id);
        state = row_int(&r);
    }
    if (!only_unheld || state == WORK_QUEUED)
        return mark_stopped(t, id, now_ms, e);
    if (state == WORK_STOPPING)
        return RC_OK;
    return db_run(t->db, e, "UPDATE work SET state = 3, stop_requested_ms = ? WHERE id = ?", "is", now_ms, id);
}

/* ---- leases of workers that went silent ---- */

struct lapsed { char id[ID_MAX], session_id[ID_MAX]; int64_t state; };
struct expire { int64_t now_ms; bool prune; struct sighting *seen; size_t n_seen; };

/* The same item goes back to the queue, as new: whoever held it finds another heartbeat value and gives up (worker.md 2.4). */
static int requeue(struct tx *t, const struct lapsed *l, int64_t now_ms, struct err *e)
{
    struct need n;
    int rc = need_load(t, l->session_id, &n, e);
    if (rc == RC_NOT_FOUND || (rc == RC_OK && !n.needs))
        return mark_stopped(t, l->id, now_ms, e);
    TRY(rc);
    int64_t delay = offer_delay_ms(n.offers);
    TRY(count_offer(t, n.sn, e));
    TRY(db_run(t->db, e, "UPDATE work SET state = 0, queued_ms = ?1, claim_ms = ?2, handed = 0, acknowledged_ms = NULL, started_ms = NULL, heartbeat_ms = NULL,"
               " previous_ms = NULL, replaced_ms = NULL, lease_ms = NULL WHERE id = ?3", "iis", now_ms, now_ms + delay, l->id));
    if (delay == 0)
        tx_note(t, STORE_NOTE_WORK, n.env_id);
    return RC_OK;
}

static int expire_leases(struct tx *t, int64_t now_ms, struct err *e)
{
    struct lapsed *l = xcalloc(EXPIRE_BATCH, sizeof *l);
    size_t n = 0;
    struct row r = { 0 };
    int rc = db_query(t->db, &r, NULL, e, "SELECT id, session_id, state FROM work WHERE state IN (1, 2, 3) AND lease_ms <= ? ORDER BY lease_ms LIMIT ?", "id", now_ms,
                      EXPIRE_BATCH);
    while (rc >= 0 && n < EXPIRE_BATCH && (rc = row_next(&r, e)) > 0) {
        (void)row_copy(&r, l[n].id, sizeof l[n].id);
        (void)row_copy(&r, l[n].session_id, sizeof l[n].session_id);
        l[n++].state = row_int(&r);
    }
    row_end(&r);
    for (size_t i = 0; i < n && rc >= 0; i++)
        rc = l[i].state == WORK_STOPPING ? work_end(t, l[i].id, now_ms, e) : requeue(t, &l[i], now_ms, e);
    free(l);
    return rc < 0 ? rc : RC_OK;
}

/* What nobody can use any more, a batch at a time. */
static int prune(struct tx *t, int64_t now_ms, struct err *e)
{
    TRY(db_run(t->db, e, "DELETE FROM tokens WHERE hash IN (SELECT hash FROM tokens WHERE expires_ms < ? LIMIT ?)", "id", now_ms, PRUNE_BATCH));
    TRY(db_run(t->db, e, "DELETE FROM work WHERE wn IN (SELECT wn FROM work WHERE state = 4 AND stopped_ms < ? LIMIT ?)", "id", now_ms - WORK_KEEP_MS, PRUNE_BATCH));
    return db_run(t->db, e, "DELETE FROM workers WHERE seen_ms < ?", "i", now_ms - 10 * SIGHTING_WINDOW_MS);
}

static int expire_tx(struct tx *t, void *arg, struct err *e)
{
    const struct expire *x = arg;
    TRY(expire_leases(t, x->now_ms, e));
    for (size_t i = 0; i < x->n_seen; i++)      /* the environment may be gone */
        TRY(db_run(t->db, e, "INSERT INTO workers(env_id, worker_id, seen_ms) SELECT id, ?2, ?3 FROM environments WHERE id = ?1"
                   " ON CONFLICT DO UPDATE SET seen_ms = max(seen_ms, ?3)", "ssi", x->seen[i].env_id, x->seen[i].worker_id, x->seen[i].seen_ms));
    return x->prune ? prune(t, x->now_ms, e) : RC_OK;
}

/* Items whose back-off or reservation ended since the last look: nobody wrote anything then, so the note comes from here.
 * One that was claimable from the start (claim_ms = queued_ms) had its note when it was queued. */
static int note_claimable(struct sqlite_store *s, struct reader *rd, int64_t from_ms, int64_t now_ms, struct err *e)
{
    if (!s->note)
        return RC_OK;
    AUTO_ROW r = { 0 };
    char env[ID_MAX];
    int rc;
    TRY(db_query(rd->db, &r, NULL, e, "SELECT DISTINCT env_id FROM work WHERE state = 0 AND claim_ms > ? AND claim_ms <= ? AND claim_ms > queued_ms", "ii", from_ms, now_ms));
    while ((rc = row_next(&r, e)) > 0)
        if (row_copy(&r, env, sizeof env))
            s->note(s->note_ctx, STORE_NOTE_WORK, env);
    return rc;
}

/* SQL's min() of nothing is NULL: -1. */
static int min_time(struct reader *rd, int64_t *ret, struct err *e, const char *sql, int64_t after)
{
    AUTO_ROW r = { 0 };
    TRY(db_query(rd->db, &r, NULL, e, sql, "i", after));
    TRY(row_next(&r, e));
    *ret = row_time(&r);
    return RC_OK;
}

#define NEXT_LEASE "SELECT min(lease_ms) FROM work WHERE state IN (1, 2, 3) AND lease_ms > ?"
#define NEXT_CLAIM "SELECT min(claim_ms) FROM work WHERE state = 0 AND claim_ms > ?"

int sqlite_work_expire(struct store *st, int64_t now_ms, int64_t *ret_next_ms, struct err *e)
{
    struct sqlite_store *s = sqlite_of(st);
    struct expire x = { .now_ms = now_ms };
    int64_t lease, claim, from;
    AUTO_READER rd = { 0 };
    TRY(reader_take(s, &rd, e));
    TRY(min_time(&rd, &lease, e, NEXT_LEASE, -1));
    pthread_mutex_lock(&s->lock);
    from = s->expired_ms;
    s->expired_ms = now_ms;
    x.prune = now_ms - s->pruned_ms >= PRUNE_EVERY_MS || now_ms < s->pruned_ms;
    if (x.prune)
        s->pruned_ms = now_ms;
    bool flush = now_ms - s->flushed_ms >= SIGHTING_FLUSH_MS || now_ms < s->flushed_ms;
    if (flush)
        s->flushed_ms = now_ms;
    pthread_mutex_unlock(&s->lock);
    if (flush)
        x.seen = sightings_dirty(s->sightings, &x.n_seen);
    int rc = RC_OK;
    if ((lease >= 0 && lease <= now_ms) || x.prune || x.n_seen)
        rc = writer_run(s, expire_tx, &x, e);
    free(x.seen);
    TRY(rc);
    TRY(note_claimable(s, &rd, from, now_ms, e));
    TRY(min_time(&rd, &lease, e, NEXT_LEASE, -1));
    TRY(min_time(&rd, &claim, e, NEXT_CLAIM, now_ms));
    *ret_next_ms = lease < 0 || (claim >= 0 && claim < lease) ? claim : lease;
    return RC_OK;
}
