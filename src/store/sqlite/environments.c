/* Environments: names are unique among those that are not archived. */
#include "store/sqlite/sqlite.h"

#define ENVIRONMENT_COLS "n.id, n.name, n.body, n.created_ms, n.updated_ms, n.archived_ms"

static struct store_environment environment_row(struct row *r)
{
    struct store_environment n = { 0 };
    n.id = row_text(r);
    n.name = row_text(r);
    n.body = row_text(r);
    n.created_ms = row_int(r);
    n.updated_ms = row_int(r);
    n.archived_ms = row_time(r);
    return n;
}

static void read_environment(struct row *r, void *ret, const void *ctx)
{
    (void)ctx;
    *(struct store_environment *)ret = environment_row(r);
}

static int no_environment(struct err *e, const char *id) { return err_set(e, RC_NOT_FOUND, "no environment '%s'", id); }

static int name_taken(struct err *e, const char *name) { return err_set(e, RC_CONFLICT, "an environment named '%s' exists already", name); }

static int environment_create_tx(struct tx *t, void *arg, struct err *e)
{
    const struct store_environment *n = arg;
    int rc = db_run(t->db, e, "INSERT INTO environments(id, name, body, created_ms, updated_ms) VALUES(?, ?, ?, ?, ?)", "sssii", n->id, n->name, n->body,
                    n->created_ms, n->created_ms);
    return rc == RC_CONFLICT ? name_taken(e, n->name) : rc;
}

int sqlite_environment_create(struct store *st, const struct store_environment *in, struct err *e)
{
    if (!in->id || !in->name || !in->body)
        return err_set(e, RC_INVALID, "an environment needs id, name and body");
    struct store_environment n = *in;
    return writer_run(sqlite_of(st), environment_create_tx, &n, e);
}

int sqlite_environment_get(struct store *st, struct arena *a, const char *id, struct store_environment *ret, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, "SELECT " ENVIRONMENT_COLS " FROM environments n WHERE n.id = ?", "s", id));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : no_environment(e, id);
    struct store_environment n = environment_row(&r);
    TRY(row_ok(&r, e));
    *ret = n;
    return RC_OK;
}

struct environment_update { const char *id, *name, *body; int64_t expect_ms, now_ms; };

static int environment_update_tx(struct tx *t, void *arg, struct err *e)
{
    const struct environment_update *u = arg;
    int64_t updated;
    {
        AUTO_ROW r = { 0 };
        TRY(db_query(t->db, &r, NULL, e, "SELECT updated_ms, archived_ms FROM environments WHERE id = ?", "s", u->id));
        int rc = row_next(&r, e);
        if (rc <= 0)
            return rc < 0 ? rc : no_environment(e, u->id);
        updated = row_int(&r);
        if (row_time(&r) >= 0)
            return err_set(e, RC_INVALID, "environment '%s' is archived", u->id);
    }
    if (u->expect_ms >= 0 && updated != u->expect_ms)
        return err_set(e, RC_CONFLICT, "environment '%s' was changed meanwhile", u->id);
    int64_t now = u->now_ms > updated ? u->now_ms : updated + 1;      /* strictly later, since it is what `expect` compares */
    int rc = db_run(t->db, e, "UPDATE environments SET name = ?, body = ?, updated_ms = ? WHERE id = ?", "ssis", u->name, u->body, now, u->id);
    return rc == RC_CONFLICT ? name_taken(e, u->name) : rc;
}

int sqlite_environment_update(struct store *st, const char *id, int64_t expect_updated_ms, const char *name, const char *body, int64_t now_ms, struct err *e)
{
    struct environment_update u = { id, name, body, expect_updated_ms, now_ms };
    return writer_run(sqlite_of(st), environment_update_tx, &u, e);
}

static int environment_archive_tx(struct tx *t, void *arg, struct err *e)
{
    const struct environment_update *u = arg;
    TRY(db_run(t->db, e, "UPDATE environments SET updated_ms = iif(archived_ms IS NULL, max(updated_ms, ?1), updated_ms),"
               " archived_ms = coalesce(archived_ms, ?1) WHERE id = ?2", "is", u->now_ms, u->id));
    return db_changes(t->db) ? RC_OK : no_environment(e, u->id);
}

int sqlite_environment_archive(struct store *st, const char *id, int64_t now_ms, struct err *e)
{
    struct environment_update u = { .id = id, .now_ms = now_ms };
    return writer_run(sqlite_of(st), environment_archive_tx, &u, e);
}

static int environment_delete_tx(struct tx *t, void *arg, struct err *e)
{
    const char *id = *(const char **)arg;
    int64_t used;
    TRY(db_int(t->db, &used, e, "SELECT EXISTS(SELECT 1 FROM sessions WHERE env_id = ?)", "s", id));
    if (used)
        return err_set(e, RC_CONFLICT, "environment '%s' is used by sessions", id);
    TRY(db_run(t->db, e, "DELETE FROM environments WHERE id = ?", "s", id));      /* keys, work and tokens go with it */
    return db_changes(t->db) ? RC_OK : no_environment(e, id);
}

int sqlite_environment_delete(struct store *st, const char *id, struct err *e)
{
    return writer_run(sqlite_of(st), environment_delete_tx, &id, e);
}

int sqlite_environment_list(struct store *st, struct arena *a, const struct store_page *p, struct store_environment **ret, size_t *ret_n, struct err *e)
{
    struct query q = { 0 };
    query_add(&q, "SELECT " ENVIRONMENT_COLS " FROM environments n WHERE 1", "");
    page_live(&q, p, "n");
    return rows_page(st, a, &q, p, "n", read_environment, NULL, sizeof **ret, ret, ret_n, e);
}
