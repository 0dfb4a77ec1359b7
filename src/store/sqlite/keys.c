/* API keys, environment keys and the sessions tokens of work items. Only hashes are kept. */
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "store/sqlite/sqlite.h"

#define KEY_COLS "id, name, env_id, hint, kind, role, created_ms, revoked_ms, last_used_ms"

static struct store_key key_row(struct row *r)
{
    struct store_key k = { 0 };
    k.id = row_text(r);
    k.name = row_text(r);
    k.env_id = row_text(r);
    k.hint = row_text(r);
    k.kind = (enum key_kind)row_int(r);
    k.role = (enum key_role)row_int(r);
    k.created_ms = row_time(r);
    k.revoked_ms = row_time(r);
    k.last_used_ms = row_time(r);
    return k;
}

static void read_key(struct row *r, void *ret, const void *ctx)
{
    (void)ctx;
    *(struct store_key *)ret = key_row(r);
}

struct key_create { const struct store_key *k; const uint8_t *hash; };

static int key_create_tx(struct tx *t, void *arg, struct err *e)
{
    const struct key_create *c = arg;
    const struct store_key *k = c->k;
    if (k->env_id) {
        int64_t one;
        int rc = db_int(t->db, &one, e, "SELECT 1 FROM environments WHERE id = ?", "s", k->env_id);
        if (rc < 0)
            return rc == RC_NOT_FOUND ? err_set(e, rc, "no environment '%s'", k->env_id) : rc;
    }
    int rc = db_run(t->db, e, "INSERT INTO keys(id, kind, role, name, env_id, hint, hash, created_ms) VALUES(?, ?, ?, ?, ?, ?, ?, ?)", "sddsssht",
                    k->id, (int)k->kind, (int)k->role, k->name ? k->name : "", k->env_id, k->hint ? k->hint : "", c->hash, k->created_ms);
    return rc == RC_CONFLICT ? err_set(e, rc, "the key exists already") : rc;
}

int sqlite_key_create(struct store *st, const struct store_key *k, const uint8_t hash[32], struct err *e)
{
    if (!k->id || (k->kind == KEY_ENVIRONMENT) != (k->env_id != NULL))
        return err_set(e, RC_INVALID, "an environment key belongs to an environment, other keys to none");
    struct key_create c = { k, hash };
    return writer_run(sqlite_of(st), key_create_tx, &c, e);
}

struct key_used { char id[ID_MAX]; int64_t ms; };

static int key_used_tx(struct tx *t, void *arg, struct err *e)
{
    const struct key_used *u = arg;
    return db_run(t->db, e, "UPDATE keys SET last_used_ms = ?1 WHERE id = ?2 AND coalesce(last_used_ms, 0) < ?1", "is", u->ms, u->id);
}

/* Writes the time of use now and then, without waiting: requests must not cost an fsync each. */
static void note_used(struct sqlite_store *s, const struct store_key *k)
{
    int64_t now = clock_now_ms();
    if (k->last_used_ms >= 0 && now - k->last_used_ms < KEY_USED_EVERY_MS)
        return;
    uint32_t h = 0;
    for (const char *p = k->id; *p; p++)
        h = h * 31 + (unsigned char)*p;
    bool due;
    pthread_mutex_lock(&s->lock);
    char *slot_id = s->key_used[h % KEY_USED_SLOTS].id;
    int64_t *slot_ms = &s->key_used[h % KEY_USED_SLOTS].ms;
    due = !str_eq(slot_id, k->id) || now - *slot_ms >= KEY_USED_EVERY_MS || now < *slot_ms;
    if (due) {
        (void)str_copy(slot_id, ID_MAX, k->id);
        *slot_ms = now;
    }
    pthread_mutex_unlock(&s->lock);
    if (!due)
        return;
    struct key_used *u = xcalloc(1, sizeof *u);
    (void)str_copy(u->id, sizeof u->id, k->id);
    u->ms = now;
    writer_post(s, key_used_tx, u);
}

int sqlite_key_find(struct store *st, struct arena *a, const uint8_t hash[32], struct store_key *ret, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, "SELECT " KEY_COLS " FROM keys WHERE hash = ? AND revoked_ms IS NULL", "h", hash));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : err_set(e, RC_NOT_FOUND, "no such key");
    struct store_key k = key_row(&r);
    TRY(row_ok(&r, e));
    note_used(sqlite_of(st), &k);
    *ret = k;
    return RC_OK;
}

int sqlite_key_list(struct store *st, struct arena *a, enum key_kind kind, const char *env_id, struct store_key **ret, size_t *ret_n, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, "SELECT " KEY_COLS " FROM keys WHERE kind = ?1 AND (?2 IS NULL OR env_id = ?2)"
                 " ORDER BY created_ms DESC, id DESC LIMIT ?3", "dsd", (int)kind, env_id, STORE_LIST_MAX));
    return rows_read(&r, read_key, NULL, sizeof **ret, ret, ret_n, e);
}

struct key_revoke { const char *id; int64_t now_ms; };

static int key_revoke_tx(struct tx *t, void *arg, struct err *e)
{
    const struct key_revoke *k = arg;
    TRY(db_run(t->db, e, "UPDATE keys SET revoked_ms = coalesce(revoked_ms, ?) WHERE id = ?", "is", k->now_ms, k->id));
    return db_changes(t->db) ? RC_OK : err_set(e, RC_NOT_FOUND, "no key '%s'", k->id);
}

int sqlite_key_revoke(struct store *st, const char *id, int64_t now_ms, struct err *e)
{
    struct key_revoke k = { id, now_ms };
    return writer_run(sqlite_of(st), key_revoke_tx, &k, e);
}

/* Valid while its item lives and a little longer (a draining worker still posts results); at once dead with an archived or deleted session. */
int sqlite_token_find(struct store *st, struct arena *a, const uint8_t hash[32], int64_t now_ms, struct store_token *ret, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e,
                 "SELECT w.id, w.session_id, w.env_id, t.expires_ms FROM tokens t JOIN work w ON w.id = t.work_id"
                 " JOIN sessions s ON s.id = w.session_id"
                 " WHERE t.hash = ?1 AND t.expires_ms > ?2 AND s.archived_ms IS NULL AND (w.state <> 4 OR w.stopped_ms + ?3 > ?2)",
                 "hii", hash, now_ms, (int64_t)TOKEN_DRAIN_MS));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : err_set(e, RC_NOT_FOUND, "no such token");
    struct store_token k = { 0 };
    k.work_id = row_text(&r);
    k.session_id = row_text(&r);
    k.env_id = row_text(&r);
    k.expires_ms = row_int(&r);
    TRY(row_ok(&r, e));
    *ret = k;
    return RC_OK;
}
