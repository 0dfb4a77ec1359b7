/* Who drives a session. The row outlives the lease, so that its epoch only grows and a stale owner can never write. */
#include "base/str.h"
#include "store/sqlite/sqlite.h"

struct lease_arg { const char *session_id, *owner; int64_t now_ms, until_ms, epoch; };

static int claim_tx(struct tx *t, void *arg, struct err *e)
{
    struct lease_arg *l = arg;
    int64_t sn, epoch;
    {
        AUTO_ROW r = { 0 };
        TRY(db_query(t->db, &r, NULL, e,
                     "SELECT s.sn, coalesce(l.epoch, 0), l.owner IS NOT NULL AND l.owner <> ?2 AND l.until_ms > ?3"
                     " FROM sessions s LEFT JOIN leases l ON l.sn = s.sn WHERE s.id = ?1", "ssi", l->session_id, l->owner, l->now_ms));
        int rc = row_next(&r, e);
        if (rc <= 0)
            return rc < 0 ? rc : err_set(e, RC_NOT_FOUND, "no session '%s'", l->session_id);
        sn = row_int(&r);
        epoch = row_int(&r);
        if (row_int(&r))
            return err_set(e, RC_CONFLICT, "session '%s' is held by another process", l->session_id);
    }
    l->epoch = epoch + 1;
    return db_run(t->db, e, "INSERT INTO leases(sn, owner, epoch, until_ms) VALUES(?1, ?2, ?3, ?4)"
                  " ON CONFLICT(sn) DO UPDATE SET owner = ?2, epoch = ?3, until_ms = ?4", "isii", sn, l->owner, l->epoch, l->until_ms);
}

int sqlite_lease_claim(struct store *st, const char *session_id, const char *owner, int64_t now_ms, int64_t until_ms, int64_t *ret_epoch, struct err *e)
{
    struct lease_arg l = { session_id, owner, now_ms, until_ms, 0 };
    TRY(writer_run(sqlite_of(st), claim_tx, &l, e));
    *ret_epoch = l.epoch;
    return RC_OK;
}

static int renew_tx(struct tx *t, void *arg, struct err *e)
{
    const struct lease_arg *l = arg;
    TRY(db_run(t->db, e, "UPDATE leases SET until_ms = ? WHERE sn = (SELECT sn FROM sessions WHERE id = ?) AND owner = ? AND epoch = ?", "issi", l->until_ms,
               l->session_id, l->owner, l->epoch));
    return db_changes(t->db) ? RC_OK : err_set(e, RC_PRECONDITION, "the lease of session '%s' is lost", l->session_id);
}

int sqlite_lease_renew(struct store *st, const char *session_id, const char *owner, int64_t epoch, int64_t until_ms, struct err *e)
{
    struct lease_arg l = { session_id, owner, 0, until_ms, epoch };
    return writer_run(sqlite_of(st), renew_tx, &l, e);
}

static int release_tx(struct tx *t, void *arg, struct err *e)
{
    const struct lease_arg *l = arg;
    return db_run(t->db, e, "UPDATE leases SET owner = NULL WHERE sn = (SELECT sn FROM sessions WHERE id = ?) AND owner = ? AND epoch = ?", "ssi",
                  l->session_id, l->owner, l->epoch);
}

/* A lease that is not ours any more needs no release: RC_OK. */
int sqlite_lease_release(struct store *st, const char *session_id, const char *owner, int64_t epoch, struct err *e)
{
    struct lease_arg l = { session_id, owner, 0, 0, epoch };
    return writer_run(sqlite_of(st), release_tx, &l, e);
}

static int clear_tx(struct tx *t, void *arg, struct err *e)
{
    (void)arg;
    return db_run(t->db, e, "UPDATE leases SET owner = NULL WHERE owner IS NOT NULL", "");
}

int sqlite_lease_clear(struct store *st, struct err *e)
{
    return writer_run(sqlite_of(st), clear_tx, NULL, e);
}

struct orphan { int64_t sn; const char *id; };

static void read_orphan(struct row *r, void *ret, const void *ctx)
{
    struct orphan *o = ret;
    (void)ctx;
    o->sn = row_int(r);
    o->id = row_text(r);
}

/* After a full page the next call goes on behind it: sessions that only wait for a worker must not hide those behind them. */
int sqlite_lease_orphans(struct store *st, struct arena *a, int64_t now_ms, int limit, const char ***ret_ids, size_t *ret_n, struct err *e)
{
    struct sqlite_store *s = sqlite_of(st);
    AUTO_READER rd = { 0 };
    TRY(reader_take(s, &rd, e));
    pthread_mutex_lock(&s->lock);
    int64_t after = s->orphan_sn, last = 0;
    pthread_mutex_unlock(&s->lock);
    limit = page_limit(limit);
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e,
                 "SELECT s.sn, s.id FROM (SELECT sn FROM runs UNION SELECT sn FROM events WHERE processed_seq = 0) c"
                 " CROSS JOIN sessions s ON s.sn = c.sn LEFT JOIN leases l ON l.sn = c.sn"
                 " WHERE c.sn > ?1 AND s.archived_ms IS NULL AND s.terminated_ms IS NULL AND (l.owner IS NULL OR l.until_ms <= ?2)"
                 " ORDER BY c.sn LIMIT ?3", "iid", after, now_ms, limit));
    struct orphan *rows;
    size_t n;
    TRY(rows_read(&r, read_orphan, NULL, sizeof *rows, &rows, &n, e));
    const char **ids = arena_alloc(a, (n + 1) * sizeof *ids);
    if (!ids)
        return err_set(e, RC_LIMIT, "too many sessions for this request");
    for (size_t i = 0; i < n; i++)
        ids[i] = rows[i].id;
    last = n ? rows[n - 1].sn : 0;
    pthread_mutex_lock(&s->lock);
    s->orphan_sn = n == (size_t)limit ? last : 0;
    pthread_mutex_unlock(&s->lock);
    *ret_ids = ids;
    *ret_n = n;
    return RC_OK;
}
