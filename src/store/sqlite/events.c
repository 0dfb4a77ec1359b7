/* Reading a session's log. */
#include "base/str.h"
#include "store/sqlite/events.h"
#include "store/sqlite/sqlite.h"

#define EVENT_COLS "v.k & 4294967295, v.processed_seq, v.is_private, v.created_ms, v.processed_ms, v.type, v.id, v.ref, v.thread_id, v.body"

struct log { int64_t sn; const char *thread_id; };

static int log_find(struct reader *rd, struct arena *a, const char *session_id, struct log *ret, struct err *e)
{
    AUTO_ROW r = { 0 };
    TRY(db_query(rd->db, &r, a, e, "SELECT sn, thread_id FROM sessions WHERE id = ?", "s", session_id));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : err_set(e, RC_NOT_FOUND, "no session '%s'", session_id ? session_id : "");
    ret->sn = row_int(&r);
    ret->thread_id = row_text(&r);
    return row_ok(&r, e);
}

static struct store_event event_row(struct row *r, const struct log *l)
{
    struct store_event v = { 0 };
    v.seq = row_int(r);
    v.processed_seq = row_int(r);
    v.is_private = row_int(r);
    v.created_ms = row_int(r);
    v.processed_ms = row_time(r);
    v.type = row_text(r);
    v.id = row_text(r);
    v.ref = row_text(r);
    v.thread_id = row_text_or(r, l->thread_id);
    v.body = row_text(r);
    return v;
}

static void read_event(struct row *r, void *ret, const void *log) { *(struct store_event *)ret = event_row(r, log); }

static void time_filter(struct query *q, const char *cond, int64_t ms)
{
    if (ms >= 0)
        query_add(q, cond, "i", ms);
}

int sqlite_event_list(struct store *st, struct arena *a, const char *session_id, const struct store_event_filter *f, struct store_event **ret, size_t *ret_n, struct err *e)
{
    if (f->n_types > EVENT_TYPES_MAX)
        return err_set(e, RC_INVALID, "more than %d types in one filter", EVENT_TYPES_MAX);
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    struct log l;
    TRY(log_find(&rd, a, session_id, &l, e));
    struct query q = { 0 };
    query_add(&q, "SELECT " EVENT_COLS " FROM events v WHERE v.sn = ? AND v.is_private = 0", "i", l.sn);
    if (f->has_after)
        query_add(&q, f->desc ? " AND v.ord < ?" : " AND v.ord > ?", "i", f->after_ord);
    if (f->thread_id)
        query_add(&q, " AND coalesce(v.thread_id, ?) = ?", "ss", l.thread_id, f->thread_id);
    time_filter(&q, " AND coalesce(v.processed_ms, v.created_ms) > ?", f->gt_ms);
    time_filter(&q, " AND coalesce(v.processed_ms, v.created_ms) >= ?", f->gte_ms);
    time_filter(&q, " AND coalesce(v.processed_ms, v.created_ms) < ?", f->lt_ms);
    time_filter(&q, " AND coalesce(v.processed_ms, v.created_ms) <= ?", f->lte_ms);
    for (size_t i = 0; i < f->n_types; i++)
        query_add(&q, i ? ", ?" : " AND v.type IN (?", "s", f->types[i]);
    query_add(&q, f->n_types ? ")" : "", "");
    query_add(&q, f->desc ? " ORDER BY v.ord DESC LIMIT ?" : " ORDER BY v.ord LIMIT ?", "d", page_limit(f->limit));
    AUTO_ROW r = { 0 };
    TRY(query_run(rd.db, &r, a, e, &q));
    return rows_read(&r, read_event, &l, sizeof **ret, ret, ret_n, e);
}

/* Two ranges, both in key order, merged: what was appended after `after_seq`, and what was appended before but consumed after. */
#define SCAN(filter)                                                                                                        \
    "SELECT " EVENT_COLS ", v.k AS k FROM events v WHERE v.k > ?2 AND v.k <= ?3" filter                                      \
    " UNION ALL SELECT " EVENT_COLS ", v.k AS k FROM events v INDEXED BY events_late WHERE v.sn = ?1 AND v.processed_seq > ?4" \
    " AND v.processed_seq > (v.k & 4294967295) AND v.k <= ?2" filter " ORDER BY k LIMIT ?5"

int sqlite_event_scan(struct store *st, struct arena *a, const char *session_id, int64_t after_seq, int limit, bool public_only, struct store_event **ret, size_t *ret_n, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    struct log l;
    TRY(log_find(&rd, a, session_id, &l, e));
    if (after_seq < 0)
        after_seq = 0;
    if (after_seq > EVENT_SEQ_MAX)
        after_seq = EVENT_SEQ_MAX;
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, public_only ? SCAN(" AND v.is_private = 0") : SCAN(""), "iiiid", l.sn, EVENT_KEY(l.sn, after_seq), EVENT_KEY(l.sn, EVENT_SEQ_MAX),
                 after_seq, limit < 1 ? 1 : limit));       /* not cut: a short page means that there is no more */
    return rows_read(&r, read_event, &l, sizeof **ret, ret, ret_n, e);
}

int sqlite_event_get(struct store *st, struct arena *a, const char *session_id, const char *event_id, struct store_event *ret, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    struct log l;
    TRY(log_find(&rd, a, session_id, &l, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, "SELECT " EVENT_COLS " FROM events v WHERE v.id = ? AND v.sn = ? AND v.is_private = 0", "si", event_id, l.sn));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : err_set(e, RC_NOT_FOUND, "no event '%s' in session '%s'", event_id ? event_id : "", session_id);
    struct store_event v = event_row(&r, &l);
    TRY(row_ok(&r, e));
    *ret = v;
    return RC_OK;
}
