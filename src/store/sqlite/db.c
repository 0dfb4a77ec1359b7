/* Connections: opening, statement cache, binding, reading. */
#include "store/sqlite/db.h"

#include <stdarg.h>
#include <string.h>

#include "base/str.h"

struct db_slot { char *sql; uint64_t hash, used; sqlite3_stmt *st; bool busy; };
struct db {
    sqlite3 *h;
    uint64_t tick;
    size_t n;
    struct db_slot slot[DB_STMT_MAX];
};

int db_fail(struct db *db, struct err *e, const char *what)
{
    int code = sqlite3_extended_errcode(db->h);
    const char *text = sqlite3_errmsg(db->h);
    switch (code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return err_set(e, RC_AGAIN, "%s: the database is busy", what);
    case SQLITE_CONSTRAINT:
        if (code == SQLITE_CONSTRAINT_UNIQUE || code == SQLITE_CONSTRAINT_PRIMARYKEY)
            return err_set(e, RC_CONFLICT, "%s: exists already", what);
        return err_set(e, RC_IO, "%s: %s", what, text);
    case SQLITE_NOMEM:
        return err_set(e, RC_NOMEM, "%s: out of memory", what);
    case SQLITE_NOTADB:
        return err_set(e, RC_INVALID, "%s: the file is not a database", what);
    case SQLITE_TOOBIG:
        return err_set(e, RC_TOO_LARGE, "%s: the value is too large", what);
    default:
        return err_set(e, RC_IO, "%s: %s (sqlite %d)", what, text, code);
    }
}

/* WAL with FULL: a commit is on the disk when COMMIT returns. Checkpoints are the writer's business, after it has woken its callers. */
static const char writer_pragmas[] = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA wal_autocheckpoint=0;"
                                     "PRAGMA cache_size=-16384; PRAGMA temp_store=MEMORY; PRAGMA trusted_schema=OFF;";
static const char reader_pragmas[] = "PRAGMA query_only=ON; PRAGMA cache_size=-4096; PRAGMA temp_store=MEMORY; PRAGMA trusted_schema=OFF;"
                                     "PRAGMA wal_autocheckpoint=0;";

/* Some file systems cannot share memory: SQLite then stays in another mode without a word, and readers would block the writer. */
static int check_wal(struct db *db, struct err *e)
{
    char mode[16];
    AUTO_ROW r = { 0 };
    TRY(db_query(db, &r, NULL, e, "PRAGMA journal_mode", ""));
    TRY(row_next(&r, e));
    if (!row_copy(&r, mode, sizeof mode) || !str_eq(mode, "wal"))
        return err_set(e, RC_UNSUPPORTED, "this file system cannot hold a write-ahead log (journal mode is '%s')", mode);
    return RC_OK;
}

int db_open(const char *path, enum db_mode mode, struct db **ret, struct err *e)
{
    struct db *db = xcalloc(1, sizeof *db);
    /* Readers open read-write too: a WAL reader must be able to make the shared-memory file; query_only keeps it from writing. */
    int rc = sqlite3_open_v2(path, &db->h, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK) {
        rc = err_set(e, RC_IO, "open database '%s': %s", path, db->h ? sqlite3_errmsg(db->h) : "out of memory");
        db_close(db);
        return rc;
    }
    sqlite3_extended_result_codes(db->h, 1);
    sqlite3_busy_timeout(db->h, DB_BUSY_MS);
    rc = db_script(db, mode == DB_WRITER ? writer_pragmas : reader_pragmas, e);
    if (rc == RC_OK && mode == DB_WRITER)
        rc = check_wal(db, e);
    if (rc < 0) {
        db_close(db);
        return err_wrap(e, rc, "open database '%s'", path);
    }
    *ret = db;
    return RC_OK;
}

void db_close(struct db *db)
{
    if (!db)
        return;
    for (size_t i = 0; i < db->n; i++) {
        sqlite3_finalize(db->slot[i].st);
        free(db->slot[i].sql);
    }
    sqlite3_close(db->h);
    free(db);
}

sqlite3 *db_handle(struct db *db) { return db->h; }
int64_t db_changes(struct db *db) { return sqlite3_changes64(db->h); }
int64_t db_last_rowid(struct db *db) { return sqlite3_last_insert_rowid(db->h); }

static uint64_t hash_text(const char *s)
{
    uint64_t h = 0xcbf29ce484222325u;       /* FNV-1a */
    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    return h;
}

/* A free slot: a new one, or the least recently used one that no row holds. */
static struct db_slot *slot_for_new(struct db *db)
{
    if (db->n < DB_STMT_MAX)
        return &db->slot[db->n++];
    struct db_slot *old = NULL;
    for (size_t i = 0; i < db->n; i++)
        if (!db->slot[i].busy && (!old || db->slot[i].used < old->used))
            old = &db->slot[i];
    if (old) {
        sqlite3_finalize(old->st);
        free(old->sql);
        *old = (struct db_slot){ 0 };
    }
    return old;
}

static int prepare(struct db *db, const char *sql, struct row *ret, struct err *e)
{
    uint64_t h = hash_text(sql);
    for (size_t i = 0; i < db->n; i++) {
        struct db_slot *s = &db->slot[i];
        if (s->st && s->hash == h && !s->busy && str_eq(s->sql, sql)) {
            s->busy = true;
            s->used = ++db->tick;
            *ret = (struct row){ .db = db, .st = s->st, .slot = i + 1 };
            return RC_OK;
        }
    }
    sqlite3_stmt *st = NULL;
    if (sqlite3_prepare_v3(db->h, sql, -1, SQLITE_PREPARE_PERSISTENT, &st, NULL) != SQLITE_OK)
        return db_fail(db, e, "prepare statement");
    struct db_slot *s = slot_for_new(db);
    if (s)
        *s = (struct db_slot){ .sql = str_dup(sql), .hash = h, .used = ++db->tick, .st = st, .busy = true };
    *ret = (struct row){ .db = db, .st = st, .slot = s ? (size_t)(s - db->slot) + 1 : 0 };
    return RC_OK;
}

void row_end(struct row *r)
{
    if (!r->st)
        return;
    if (!r->slot) {
        sqlite3_finalize(r->st);
    } else {
        (void)sqlite3_reset(r->st);
        (void)sqlite3_clear_bindings(r->st);
        r->db->slot[r->slot - 1].busy = false;
    }
    r->st = NULL;
}

static int bind_int(sqlite3_stmt *st, int i, int64_t v) { return sqlite3_bind_int64(st, i, v); }

static int bind_text(sqlite3_stmt *st, int i, const char *s)
{
    return s ? sqlite3_bind_text64(st, i, s, strlen(s), SQLITE_STATIC, SQLITE_UTF8) : sqlite3_bind_null(st, i);
}

static int bind_vals(sqlite3_stmt *st, const struct db_vals *v)
{
    int rc = SQLITE_OK;
    for (size_t i = 0; i < v->n && rc == SQLITE_OK; i++)
        rc = v->v[i].kind == 's' ? bind_text(st, (int)i + 1, v->v[i].s) : bind_int(st, (int)i + 1, v->v[i].i);
    return rc;
}

static int bind_args(sqlite3_stmt *st, const char *fmt, va_list ap)
{
    int rc = SQLITE_OK;
    for (int i = 1; *fmt && rc == SQLITE_OK; fmt++, i++) {
        switch (*fmt) {
        case 's':
            rc = bind_text(st, i, va_arg(ap, const char *));
            break;
        case 'd':
            rc = bind_int(st, i, va_arg(ap, int));
            break;
        case 't': {
            int64_t t = va_arg(ap, int64_t);
            rc = t < 0 ? sqlite3_bind_null(st, i) : bind_int(st, i, t);
            break;
        }
        case 'h':
            rc = sqlite3_bind_blob(st, i, va_arg(ap, const uint8_t *), 32, SQLITE_STATIC);
            break;
        case 'b': {
            const void *p = va_arg(ap, const void *);
            size_t n = va_arg(ap, size_t);
            rc = p ? sqlite3_bind_blob64(st, i, p, n, SQLITE_STATIC) : sqlite3_bind_null(st, i);
            break;
        }
        case 'v':
            rc = bind_vals(st, va_arg(ap, const struct db_vals *));
            break;
        default:
            rc = bind_int(st, i, va_arg(ap, int64_t));
            break;
        }
    }
    return rc;
}

static int query_va(struct db *db, struct row *ret, struct arena *a, struct err *e, const char *sql, const char *fmt, va_list ap)
{
    row_end(ret);
    TRY(prepare(db, sql, ret, e));
    ret->a = a;
    if (bind_args(ret->st, fmt, ap) != SQLITE_OK) {
        int rc = db_fail(db, e, "bind");
        row_end(ret);
        return rc;
    }
    return RC_OK;
}

int db_query(struct db *db, struct row *ret, struct arena *a, struct err *e, const char *sql, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int rc = query_va(db, ret, a, e, sql, fmt, ap);
    va_end(ap);
    return rc;
}

int row_next(struct row *r, struct err *e)
{
    r->col = 0;
    int rc = sqlite3_step(r->st);
    if (rc == SQLITE_ROW)
        return 1;
    if (rc == SQLITE_DONE) {
        row_end(r);
        return 0;
    }
    rc = db_fail(r->db, e, "database");
    row_end(r);
    return rc;
}

const char *row_text(struct row *r)
{
    int c = r->col++;
    const unsigned char *p = sqlite3_column_text(r->st, c);
    if (!p)
        return NULL;
    size_t n = (size_t)sqlite3_column_bytes(r->st, c);
    char *copy = r->a ? arena_strndup(r->a, (const char *)p, n) : NULL;
    r->nomem |= !copy;
    return copy;
}

const char *row_text_or(struct row *r, const char *dflt)
{
    const char *s = row_text(r);
    return s ? s : dflt;
}

const void *row_blob(struct row *r, size_t *ret_n)
{
    int c = r->col++;
    *ret_n = 0;
    if (sqlite3_column_type(r->st, c) == SQLITE_NULL)
        return NULL;
    const void *p = sqlite3_column_blob(r->st, c);
    size_t n = (size_t)sqlite3_column_bytes(r->st, c);
    void *copy = r->a ? arena_alloc(r->a, n ? n : 1) : NULL;
    r->nomem |= !copy;
    if (copy && n) {
        memcpy(copy, p, n);
        *ret_n = n;
    }
    return copy;
}

bool row_copy(struct row *r, char *dst, size_t cap)
{
    const char *p = (const char *)sqlite3_column_text(r->st, r->col++);
    dst[0] = '\0';
    return p && str_copy(dst, cap, p);
}

int64_t row_int(struct row *r) { return sqlite3_column_int64(r->st, r->col++); }

int64_t row_time(struct row *r)
{
    int c = r->col++;
    return sqlite3_column_type(r->st, c) == SQLITE_NULL ? -1 : sqlite3_column_int64(r->st, c);
}

void row_skip(struct row *r, int n) { r->col += n; }

int row_ok(const struct row *r, struct err *e)
{
    return r->nomem ? err_set(e, RC_LIMIT, "the answer is larger than the memory of this request") : RC_OK;
}

int db_run(struct db *db, struct err *e, const char *sql, const char *fmt, ...)
{
    AUTO_ROW r = { 0 };
    va_list ap;
    va_start(ap, fmt);
    int rc = query_va(db, &r, NULL, e, sql, fmt, ap);
    va_end(ap);
    TRY(rc);
    while ((rc = row_next(&r, e)) > 0)
        ;
    return rc;
}

int db_int(struct db *db, int64_t *ret, struct err *e, const char *sql, const char *fmt, ...)
{
    AUTO_ROW r = { 0 };
    va_list ap;
    va_start(ap, fmt);
    int rc = query_va(db, &r, NULL, e, sql, fmt, ap);
    va_end(ap);
    TRY(rc);
    rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : RC_NOT_FOUND;
    *ret = row_int(&r);
    return RC_OK;
}

int db_script(struct db *db, const char *sql, struct err *e)
{
    return sqlite3_exec(db->h, sql, NULL, NULL, NULL) == SQLITE_OK ? RC_OK : db_fail(db, e, "database");
}

void db_rollback(struct db *db)
{
    if (!sqlite3_get_autocommit(db->h))
        (void)sqlite3_exec(db->h, "ROLLBACK", NULL, NULL, NULL);
}

void query_add(struct query *q, const char *sql, const char *fmt, ...)
{
    size_t n = strlen(sql), room = sizeof q->sql - q->n;
    if (n >= room) {
        q->cut = true;
        return;
    }
    memcpy(q->sql + q->n, sql, n + 1);
    q->n += n;
    va_list ap;
    va_start(ap, fmt);
    for (; *fmt; fmt++) {
        if (q->vals.n == QUERY_VALS_MAX) {
            q->cut = true;
            break;
        }
        size_t i = q->vals.n++;
        q->vals.v[i].kind = *fmt == 's' ? 's' : 'i';
        if (*fmt == 's')
            q->vals.v[i].s = va_arg(ap, const char *);
        else
            q->vals.v[i].i = *fmt == 'd' ? va_arg(ap, int) : va_arg(ap, int64_t);
    }
    va_end(ap);
}

int query_run(struct db *db, struct row *ret, struct arena *a, struct err *e, const struct query *q)
{
    if (q->cut)
        return err_set(e, RC_INVALID, "too many filters in one list");
    return db_query(db, ret, a, e, q->sql, "v", &q->vals);
}
