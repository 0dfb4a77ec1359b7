/* Vaults of the SQLite back end: store/vaults.h. Secrets arrive sealed; this file never sees one. */
#include <string.h>

#include "store/sqlite/sqlite.h"

#define VAULT_COLS "v.id, v.body, v.created_ms, v.updated_ms, v.archived_ms"
/* `sealed` last: lists leave it out. */
#define CREDENTIAL_COLS "c.id, c.vault_id, c.kind, c.match, c.body, c.created_ms, c.updated_ms, c.archived_ms"

static int no_vault(struct err *e, const char *id) { return err_set(e, RC_NOT_FOUND, "no vault '%s'", id); }
static int no_credential(struct err *e, const char *id) { return err_set(e, RC_NOT_FOUND, "no credential '%s'", id); }

static struct store_vault vault_row(struct row *r)
{
    struct store_vault v = { 0 };
    v.id = row_text(r);
    v.body = row_text(r);
    v.created_ms = row_int(r);
    v.updated_ms = row_int(r);
    v.archived_ms = row_time(r);
    return v;
}

static void read_vault(struct row *r, void *ret, const void *ctx)
{
    (void)ctx;
    *(struct store_vault *)ret = vault_row(r);
}

static struct store_credential credential_row(struct row *r, bool with_sealed)
{
    struct store_credential c = { 0 };
    c.id = row_text(r);
    c.vault_id = row_text(r);
    c.kind = row_text(r);
    c.match = row_text(r);
    c.body = row_text(r);
    c.created_ms = row_int(r);
    c.updated_ms = row_int(r);
    c.archived_ms = row_time(r);
    if (with_sealed)
        c.sealed = row_blob(r, &c.sealed_n);
    return c;
}

static void read_credential(struct row *r, void *ret, const void *with_sealed) { *(struct store_credential *)ret = credential_row(r, with_sealed != NULL); }

/* updated_ms and archived_ms of a row; `sql` selects them by one id. RC_NOT_FOUND without text. */
static int times_of(struct tx *t, const char *sql, const char *id, int64_t *ret_updated, int64_t *ret_archived, struct err *e)
{
    AUTO_ROW r = { 0 };
    TRY(db_query(t->db, &r, NULL, e, sql, "s", id));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : RC_NOT_FOUND;
    *ret_updated = row_int(&r);
    *ret_archived = row_time(&r);
    return RC_OK;
}

/* Strictly later, since it is what `expect` compares. */
static int64_t later(int64_t now_ms, int64_t updated_ms) { return now_ms > updated_ms ? now_ms : updated_ms + 1; }

/* ---- vaults ---- */
static int create_tx(struct tx *t, void *arg, struct err *e)
{
    const struct store_vault *v = arg;
    return db_run(t->db, e, "INSERT INTO vaults(id, created_ms, updated_ms, body) VALUES(?, ?, ?, ?)", "siis", v->id, v->created_ms, v->created_ms, v->body);
}

static int vault_create(struct store *st, const struct store_vault *v, struct err *e)
{
    struct store_vault in = *v;
    return writer_run(sqlite_of(st), create_tx, &in, e);
}

static int vault_get(struct store *st, struct arena *a, const char *id, struct store_vault *ret, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, "SELECT " VAULT_COLS " FROM vaults v WHERE v.id = ?", "s", id));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : no_vault(e, id);
    struct store_vault v = vault_row(&r);
    TRY(row_ok(&r, e));
    *ret = v;
    return RC_OK;
}

static int vault_list(struct store *st, struct arena *a, const struct store_page *p, struct store_vault **ret, size_t *ret_n, struct err *e)
{
    struct query q = { 0 };
    query_add(&q, "SELECT " VAULT_COLS " FROM vaults v WHERE 1", "");
    page_live(&q, p, "v");
    return rows_page(st, a, &q, p, "v", read_vault, NULL, sizeof **ret, ret, ret_n, e);
}

struct change { const char *vault_id, *id, *body; const void *sealed; size_t sealed_n; int64_t expect_ms, now_ms; };

static int update_tx(struct tx *t, void *arg, struct err *e)
{
    const struct change *u = arg;
    int64_t updated, archived;
    int rc = times_of(t, "SELECT updated_ms, archived_ms FROM vaults WHERE id = ?", u->id, &updated, &archived, e);
    if (rc < 0)
        return rc == RC_NOT_FOUND ? no_vault(e, u->id) : rc;
    if (archived >= 0)
        return err_set(e, RC_INVALID, "vault '%s' is archived", u->id);
    if (u->expect_ms >= 0 && updated != u->expect_ms)
        return err_set(e, RC_CONFLICT, "vault '%s' was changed meanwhile", u->id);
    return db_run(t->db, e, "UPDATE vaults SET body = ?, updated_ms = ? WHERE id = ?", "sis", u->body, later(u->now_ms, updated), u->id);
}

static int vault_update(struct store *st, const char *id, int64_t expect_updated_ms, const char *body, int64_t now_ms, struct err *e)
{
    struct change u = { .id = id, .body = body, .expect_ms = expect_updated_ms, .now_ms = now_ms };
    return writer_run(sqlite_of(st), update_tx, &u, e);
}

static int archive_tx(struct tx *t, void *arg, struct err *e)
{
    const struct change *u = arg;
    TRY(db_run(t->db, e, "UPDATE vaults SET updated_ms = iif(archived_ms IS NULL, max(updated_ms + 1, ?1), updated_ms),"
               " archived_ms = coalesce(archived_ms, ?1) WHERE id = ?2", "is", u->now_ms, u->id));
    if (!db_changes(t->db))
        return no_vault(e, u->id);
    return db_run(t->db, e, "UPDATE credentials SET sealed = NULL, archived_ms = ?1, updated_ms = max(updated_ms + 1, ?1) WHERE vault_id = ?2 AND archived_ms IS NULL",
                  "is", u->now_ms, u->id);
}

static int vault_archive(struct store *st, const char *id, int64_t now_ms, struct err *e)
{
    struct change u = { .id = id, .now_ms = now_ms };
    return writer_run(sqlite_of(st), archive_tx, &u, e);
}

static int remove_tx(struct tx *t, void *arg, struct err *e)
{
    const char *id = *(const char **)arg;
    TRY(db_run(t->db, e, "DELETE FROM vaults WHERE id = ?", "s", id));      /* its credentials go with it */
    return db_changes(t->db) ? RC_OK : no_vault(e, id);
}

static int vault_remove(struct store *st, const char *id, struct err *e) { return writer_run(sqlite_of(st), remove_tx, &id, e); }

/* ---- credentials ---- */
struct creation { const struct store_credential *c; int64_t max; };

static int credential_create_tx(struct tx *t, void *arg, struct err *e)
{
    const struct creation *in = arg;
    const struct store_credential *c = in->c;
    int64_t updated, archived, active = 0;
    int rc = times_of(t, "SELECT updated_ms, archived_ms FROM vaults WHERE id = ?", c->vault_id, &updated, &archived, e);
    if (rc < 0)
        return rc == RC_NOT_FOUND ? no_vault(e, c->vault_id) : rc;
    if (archived >= 0)
        return err_set(e, RC_INVALID, "vault '%s' is archived", c->vault_id);
    TRY(db_int(t->db, &active, e, "SELECT count(*) FROM credentials WHERE vault_id = ? AND archived_ms IS NULL", "s", c->vault_id));
    if (active >= in->max)
        return err_set(e, RC_LIMIT, "vault '%s' has %lld active credentials already", c->vault_id, (long long)active);
    rc = db_run(t->db, e, "INSERT INTO credentials(id, vault_id, kind, match, created_ms, updated_ms, body, sealed) VALUES(?, ?, ?, ?, ?, ?, ?, ?)", "ssssiisb",
                c->id, c->vault_id, c->kind, c->match, c->created_ms, c->created_ms, c->body, c->sealed, c->sealed_n);
    return rc == RC_CONFLICT ? err_set(e, rc, "vault '%s' has an active credential for '%s' already", c->vault_id, c->match) : rc;
}

static int credential_create(struct store *st, const struct store_credential *c, int64_t max, struct err *e)
{
    struct creation in = { c, max };
    return writer_run(sqlite_of(st), credential_create_tx, &in, e);
}

static int one_credential(struct store *st, struct arena *a, const char *sql, const char *vault_id, const char *key, struct store_credential *ret, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, sql, "ss", vault_id, key));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : no_credential(e, key);
    struct store_credential c = credential_row(&r, true);
    TRY(row_ok(&r, e));
    *ret = c;
    return RC_OK;
}

static int credential_get(struct store *st, struct arena *a, const char *vault_id, const char *id, struct store_credential *ret, struct err *e)
{
    return one_credential(st, a, "SELECT " CREDENTIAL_COLS ", c.sealed FROM credentials c WHERE c.vault_id = ? AND c.id = ?", vault_id, id, ret, e);
}

static int credential_find(struct store *st, struct arena *a, const char *vault_id, const char *match, struct store_credential *ret, struct err *e)
{
    /* The expression is the index's (credentials_active), so that the look-up uses it. */
    return one_credential(st, a, "SELECT " CREDENTIAL_COLS ", c.sealed FROM credentials c WHERE c.vault_id = ? AND (c.kind = 'environment_variable') = 0"
                          " AND c.match = ? AND c.archived_ms IS NULL", vault_id, match, ret, e);
}

static int credential_list(struct store *st, struct arena *a, const char *vault_id, const struct store_page *p, struct store_credential **ret, size_t *ret_n, struct err *e)
{
    struct query q = { 0 };
    query_add(&q, "SELECT " CREDENTIAL_COLS " FROM credentials c WHERE c.vault_id = ?", "s", vault_id);
    page_live(&q, p, "c");
    return rows_page(st, a, &q, p, "c", read_credential, NULL, sizeof **ret, ret, ret_n, e);
}

static int credential_times(struct tx *t, const struct change *u, int64_t *ret_updated, int64_t *ret_archived, struct err *e)
{
    AUTO_ROW r = { 0 };
    TRY(db_query(t->db, &r, NULL, e, "SELECT updated_ms, archived_ms FROM credentials WHERE vault_id = ? AND id = ?", "ss", u->vault_id, u->id));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : no_credential(e, u->id);
    *ret_updated = row_int(&r);
    *ret_archived = row_time(&r);
    return RC_OK;
}

static int credential_update_tx(struct tx *t, void *arg, struct err *e)
{
    const struct change *u = arg;
    int64_t updated, archived;
    TRY(credential_times(t, u, &updated, &archived, e));
    if (archived >= 0)
        return err_set(e, RC_INVALID, "credential '%s' is archived", u->id);
    if (u->expect_ms >= 0 && updated != u->expect_ms)
        return err_set(e, RC_CONFLICT, "credential '%s' was changed meanwhile", u->id);
    return db_run(t->db, e, "UPDATE credentials SET body = ?, sealed = coalesce(?, sealed), updated_ms = ? WHERE id = ?", "sbis", u->body, u->sealed, u->sealed_n,
                  later(u->now_ms, updated), u->id);
}

static int credential_update(struct store *st, const char *vault_id, const char *id, int64_t expect_updated_ms, const char *body, const void *sealed, size_t sealed_n,
                             int64_t now_ms, struct err *e)
{
    struct change u = { vault_id, id, body, sealed, sealed_n, expect_updated_ms, now_ms };
    return writer_run(sqlite_of(st), credential_update_tx, &u, e);
}

static int credential_archive_tx(struct tx *t, void *arg, struct err *e)
{
    const struct change *u = arg;
    int64_t updated, archived;
    TRY(credential_times(t, u, &updated, &archived, e));
    if (archived >= 0)
        return RC_OK;
    return db_run(t->db, e, "UPDATE credentials SET sealed = NULL, archived_ms = ?, updated_ms = ? WHERE id = ?", "iis", u->now_ms, later(u->now_ms, updated), u->id);
}

static int credential_archive(struct store *st, const char *vault_id, const char *id, int64_t now_ms, struct err *e)
{
    struct change u = { .vault_id = vault_id, .id = id, .now_ms = now_ms };
    return writer_run(sqlite_of(st), credential_archive_tx, &u, e);
}

static int credential_remove_tx(struct tx *t, void *arg, struct err *e)
{
    const struct change *u = arg;
    TRY(db_run(t->db, e, "DELETE FROM credentials WHERE vault_id = ? AND id = ?", "ss", u->vault_id, u->id));
    return db_changes(t->db) ? RC_OK : no_credential(e, u->id);
}

static int credential_remove(struct store *st, const char *vault_id, const char *id, struct err *e)
{
    struct change u = { .vault_id = vault_id, .id = id };
    return writer_run(sqlite_of(st), credential_remove_tx, &u, e);
}

/* ---- re-wrapping ---- */
static int sealed_scan(struct store *st, struct arena *a, const char *after_id, int limit, struct store_credential **ret, size_t *ret_n, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, "SELECT " CREDENTIAL_COLS ", c.sealed FROM credentials c WHERE c.id > ? AND c.sealed IS NOT NULL ORDER BY c.id LIMIT ?", "sd",
                 after_id ? after_id : "", page_limit(limit)));
    return rows_read(&r, read_credential, "sealed", sizeof **ret, ret, ret_n, e);
}

struct replacement { const char *id; const void *old, *fresh; size_t old_n, fresh_n; };

/* updated_ms stays: nothing that a client sees has changed. */
static int sealed_replace_tx(struct tx *t, void *arg, struct err *e)
{
    const struct replacement *x = arg;
    TRY(db_run(t->db, e, "UPDATE credentials SET sealed = ? WHERE id = ? AND sealed = ?", "bsb", x->fresh, x->fresh_n, x->id, x->old, x->old_n));
    return db_changes(t->db) ? RC_OK : err_set(e, RC_CONFLICT, "credential '%s' was changed meanwhile", x->id);
}

static int sealed_replace(struct store *st, const char *id, const void *old, size_t old_n, const void *fresh, size_t fresh_n, struct err *e)
{
    struct replacement x = { id, old, fresh, old_n, fresh_n };
    return writer_run(sqlite_of(st), sealed_replace_tx, &x, e);
}

const struct store_vault_ops sqlite_vault_ops = {
    .create = vault_create, .get = vault_get, .list = vault_list, .update = vault_update, .archive = vault_archive, .remove = vault_remove,
    .credential_create = credential_create, .credential_get = credential_get, .credential_find = credential_find, .credential_list = credential_list,
    .credential_update = credential_update, .credential_archive = credential_archive, .credential_remove = credential_remove,
    .sealed_scan = sealed_scan, .sealed_replace = sealed_replace,
};
