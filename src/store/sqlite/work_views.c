/* The operator's side of the queue: get, list, metadata, figures. */
#include "store/sqlite/sqlite.h"
#include "store/sqlite/work.h"

int sqlite_work_get(struct store *st, struct arena *a, const char *env_id, const char *id, struct store_work *ret, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    return work_read(rd.db, a, env_id, id, ret, e);
}

static void read_work(struct row *r, void *ret, const void *ctx)
{
    (void)ctx;
    *(struct store_work *)ret = work_row(r);
}

int sqlite_work_list(struct store *st, struct arena *a, const char *env_id, const struct store_page *p, struct store_work **ret, size_t *ret_n, struct err *e)
{
    struct query q = { 0 };
    query_add(&q, "SELECT " WORK_COLS " FROM work w WHERE w.env_id = ?", "s", env_id);
    return rows_page(st, a, &q, p, "w", read_work, NULL, sizeof **ret, ret, ret_n, e);
}

struct update { struct arena *a; const char *env_id, *id, *metadata; struct store_work work; };

static int update_tx(struct tx *t, void *arg, struct err *e)
{
    struct update *u = arg;
    TRY(db_run(t->db, e, "UPDATE work SET metadata = ? WHERE id = ? AND env_id = ?", "sss", u->metadata, u->id, u->env_id));
    return work_read(t->db, u->a, u->env_id, u->id, &u->work, e);
}

int sqlite_work_update(struct store *st, struct arena *a, const char *env_id, const char *id, const char *metadata, struct store_work *ret, struct err *e)
{
    if (!metadata)
        return err_set(e, RC_INVALID, "metadata is missing");
    struct update u = { a, env_id, id, metadata, { 0 } };
    TRY(writer_run(sqlite_of(st), update_tx, &u, e));
    *ret = u.work;
    return RC_OK;
}

/* Workers seen by another process sharing the file, as far as this one has not seen them itself. */
static int workers_elsewhere(struct sqlite_store *s, struct reader *rd, const char *env_id, int64_t since_ms, int64_t *ret, struct err *e)
{
    AUTO_ROW r = { 0 };
    char id[WORKER_ID_LEN];
    int64_t n = 0;
    int rc;
    TRY(db_query(rd->db, &r, NULL, e, "SELECT worker_id FROM workers WHERE env_id = ? AND seen_ms > ?", "si", env_id, since_ms));
    while ((rc = row_next(&r, e)) > 0)
        if (row_copy(&r, id, sizeof id) && !sightings_seen(s->sightings, env_id, id, since_ms))
            n++;
    *ret = n;
    return rc;
}

/* pending: handed out, not acknowledged, still reserved; depth: all other queued ones, also those waiting for their back-off. */
int sqlite_work_stats(struct store *st, const char *env_id, int64_t now_ms, struct store_work_stats *ret, struct err *e)
{
    struct sqlite_store *s = sqlite_of(st);
    struct store_work_stats w = { 0 };
    AUTO_READER rd = { 0 };
    TRY(reader_take(s, &rd, e));
    {
        AUTO_ROW r = { 0 };
        TRY(db_query(rd.db, &r, NULL, e, "SELECT count(*), coalesce(sum(handed > 0 AND claim_ms > ?2), 0), min(queued_ms) FROM work WHERE env_id = ?1 AND state = 0", "si",
                     env_id, now_ms));
        TRY(row_next(&r, e));
        w.depth = row_int(&r);
        w.pending = row_int(&r);
        w.depth -= w.pending;
        w.oldest_queued_ms = row_time(&r);
    }
    int64_t since = now_ms - SIGHTING_WINDOW_MS, elsewhere;
    TRY(workers_elsewhere(s, &rd, env_id, since, &elsewhere, e));
    w.workers_polling = sightings_count(s->sightings, env_id, since) + elsewhere;
    *ret = w;
    return RC_OK;
}
