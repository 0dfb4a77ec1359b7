/* Sessions: create, read, list, archive, delete. All other changes are steps (step.c). */
#include "base/clock.h"
#include "store/sqlite/events.h"
#include "store/sqlite/sqlite.h"

#define STATUS "CASE WHEN s.terminated_ms IS NOT NULL THEN 3 WHEN r.sn IS NULL THEN 0 WHEN r.rescheduling THEN 2 ELSE 1 END"
#define SESSION_SELECT                                                                                                       \
    "SELECT s.id, s.thread_id, s.env_id, s.agent_id, s.agent_version, s.created_ms, s.archived_ms, s.terminated_ms, " STATUS "," \
    " r.since_ms, t.updated_ms, t.stop_reason, t.last_seq, t.active_ms, t.input, t.output, t.cache_read, t.cache_write_5m,"   \
    " t.cache_write_1h, t.requests, s.title, s.metadata, s.extra, s.agent"                                                    \
    " FROM sessions s CROSS JOIN session_state t ON t.sn = s.sn LEFT JOIN runs r ON r.sn = s.sn"

_Static_assert(SESSION_IDLE == 0 && SESSION_RUNNING == 1 && SESSION_RESCHEDULING == 2 && SESSION_TERMINATED == 3, "STATUS spells these numbers");

static struct store_session session_row(struct row *r)
{
    struct store_session s = { 0 };
    s.id = row_text(r);
    s.thread_id = row_text(r);
    s.env_id = row_text(r);
    s.agent_id = row_text(r);
    s.agent_version = row_int(r);
    s.created_ms = row_int(r);
    s.archived_ms = row_time(r);
    s.terminated_ms = row_time(r);
    s.status = (enum session_status)row_int(r);
    s.running_since_ms = row_time(r);
    s.updated_ms = row_int(r);
    s.stop_reason = row_text(r);
    s.last_seq = row_int(r);
    s.active_ms = row_int(r);
    s.usage.input = row_int(r);
    s.usage.output = row_int(r);
    s.usage.cache_read = row_int(r);
    s.usage.cache_write_5m = row_int(r);
    s.usage.cache_write_1h = row_int(r);
    s.usage.requests = row_int(r);
    s.title = row_text(r);
    s.metadata = row_text(r);
    s.extra = row_text(r);
    s.agent = row_text(r);
    return s;
}

static void read_session(struct row *r, void *ret, const void *ctx)
{
    (void)ctx;
    *(struct store_session *)ret = session_row(r);
}

static int no_session(struct err *e, const char *id) { return err_set(e, RC_NOT_FOUND, "no session '%s'", id ? id : ""); }

struct session_create { const struct store_session *in; struct store_step *first; };

/* The API looked already; this is for what changed since. */
static int check_parents(struct tx *t, const struct store_session *in, struct err *e)
{
    int64_t archived;
    int rc = db_int(t->db, &archived, e, "SELECT archived_ms IS NOT NULL FROM environments WHERE id = ?", "s", in->env_id);
    if (rc < 0)
        return rc == RC_NOT_FOUND ? err_set(e, rc, "no environment '%s'", in->env_id) : rc;
    if (archived)
        return err_set(e, RC_INVALID, "environment '%s' is archived", in->env_id);
    rc = db_int(t->db, &archived, e, "SELECT archived_ms IS NOT NULL FROM agents WHERE id = ?", "s", in->agent_id);
    if (rc < 0)
        return rc == RC_NOT_FOUND ? RC_OK : rc;      /* the snapshot is what counts */
    return archived ? err_set(e, RC_INVALID, "agent '%s' is archived", in->agent_id) : RC_OK;
}

static int session_create_tx(struct tx *t, void *arg, struct err *e)
{
    const struct session_create *c = arg;
    const struct store_session *in = c->in;
    TRY(check_parents(t, in, e));
    int rc = db_run(t->db, e,
                    "INSERT INTO sessions(id, thread_id, env_id, agent_id, agent_version, created_ms, title, metadata, extra, agent)"
                    " VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", "ssssiissss", in->id, in->thread_id, in->env_id, in->agent_id, in->agent_version,
                    in->created_ms, in->title, in->metadata ? in->metadata : "{}", in->extra ? in->extra : "{}", in->agent ? in->agent : "{}");
    if (rc < 0)
        return rc == RC_CONFLICT ? err_set(e, rc, "session '%s' exists already", in->id) : rc;
    TRY(db_run(t->db, e, "INSERT INTO session_state VALUES(?, 0, ?, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0)", "ii", db_last_rowid(t->db), in->created_ms));
    if (!c->first)
        return RC_OK;
    c->first->session_id = in->id;
    return step_apply(t, c->first, e);
}

int sqlite_session_create(struct store *st, const struct store_session *in, struct store_step *first, struct err *e)
{
    if (!in->id || !in->thread_id || !in->env_id || !in->agent_id)
        return err_set(e, RC_INVALID, "a session needs id, thread, environment and agent");
    struct session_create c = { in, first };
    return writer_run(sqlite_of(st), session_create_tx, &c, e);
}

int sqlite_session_get(struct store *st, struct arena *a, const char *id, struct store_session *ret, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, SESSION_SELECT " WHERE s.id = ?", "s", id));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : no_session(e, id);
    struct store_session s = session_row(&r);
    TRY(row_ok(&r, e));
    *ret = s;
    return RC_OK;
}

int sqlite_session_list(struct store *st, struct arena *a, const struct store_page *p, const struct store_session_filter *f, struct store_session **ret, size_t *ret_n, struct err *e)
{
    struct query q = { 0 };
    query_add(&q, SESSION_SELECT " WHERE 1", "");
    page_live(&q, p, "s");
    if (f && f->agent_id)
        query_add(&q, " AND s.agent_id = ?", "s", f->agent_id);
    if (f && f->agent_version)
        query_add(&q, " AND s.agent_version = ?", "i", f->agent_version);
    if (f && f->statuses)
        query_add(&q, " AND (? & (1 << (" STATUS "))) <> 0", "i", (int64_t)f->statuses);
    return rows_page(st, a, &q, p, "s", read_session, NULL, sizeof **ret, ret, ret_n, e);
}

/* Finds a session that may be ended; *ret_archived: it is archived already. */
static int find_resting(struct tx *t, const char *id, int64_t *ret_sn, bool *ret_archived, struct err *e)
{
    AUTO_ROW r = { 0 };
    TRY(db_query(t->db, &r, NULL, e, "SELECT s.sn, s.archived_ms IS NOT NULL, r.sn IS NOT NULL FROM sessions s LEFT JOIN runs r ON r.sn = s.sn WHERE s.id = ?", "s", id));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : no_session(e, id);
    *ret_sn = row_int(&r);
    *ret_archived = row_int(&r);
    return row_int(&r) ? err_set(e, RC_INVALID, "session '%s' is running: interrupt it and wait until it is idle", id) : RC_OK;
}

static int session_archive_tx(struct tx *t, void *arg, struct err *e)
{
    struct store_step *last = arg;
    int64_t sn;
    bool archived;
    TRY(find_resting(t, last->session_id, &sn, &archived, e));
    if (archived)
        return RC_OK;                /* again: the first time is kept */
    last->run = RUN_TERMINATE;
    TRY(step_apply(t, last, e));
    TRY(db_run(t->db, e, "UPDATE sessions SET archived_ms = ? WHERE sn = ?", "ii", last->now_ms, sn));
    return work_end_session(t, sn, false, last->now_ms, e);
}

int sqlite_session_archive(struct store *st, struct store_step *last, struct err *e)
{
    return writer_run(sqlite_of(st), session_archive_tx, last, e);
}

struct session_delete { const char *id; int64_t now_ms; };

static int session_delete_tx(struct tx *t, void *arg, struct err *e)
{
    const struct session_delete *d = arg;
    int64_t sn;
    bool archived;
    TRY(find_resting(t, d->id, &sn, &archived, e));
    TRY(work_end_session(t, sn, false, d->now_ms, e));
    TRY(db_run(t->db, e, "DELETE FROM tokens WHERE work_id IN (SELECT id FROM work WHERE session_id = ?)", "s", d->id));
    TRY(db_run(t->db, e, "DELETE FROM events WHERE k BETWEEN ? AND ?", "ii", EVENT_KEY(sn, (int64_t)0), EVENT_KEY(sn, EVENT_SEQ_MAX)));
    TRY(db_run(t->db, e, "DELETE FROM sessions WHERE sn = ?", "i", sn));      /* state, run and lease go with it; stopped work stays to be seen */
    tx_note(t, STORE_NOTE_EVENTS, d->id);
    return RC_OK;
}

int sqlite_session_delete(struct store *st, const char *id, struct err *e)
{
    struct session_delete d = { id, clock_now_ms() };
    return writer_run(sqlite_of(st), session_delete_tx, &d, e);
}
