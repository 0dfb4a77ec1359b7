/* store/sqlite/db.h - one SQLite connection: prepared statements cached by their text, typed binding, row reading, result codes.
 * A connection and its rows are used by one thread at a time. */
#pragma once

#include <sqlite3.h>

#include "base/arena.h"
#include "base/attr.h"
#include "base/err.h"

#define DB_STMT_MAX 192          /* cached statements per connection; beyond it the least recently used one is finalised */
#define DB_BUSY_MS 5000          /* how long a statement waits for another process's lock */

struct db;

enum db_mode { DB_WRITER, DB_READER };
MUST_CHECK int db_open(const char *path, enum db_mode mode, struct db **ret, struct err *e);
void db_close(struct db *db);    /* NULL is fine */
sqlite3 *db_handle(struct db *db);

/* A running statement. `sql` must be text that lives until row_end() (it is copied into the cache).
 * `fmt` has one letter per parameter: s text (NULL: NULL), i int64_t, t time in int64_t (-1: NULL), d int, h hash (32 bytes), v struct db_vals *,
 * b bytes: const void * (NULL: NULL), size_t. Text and bytes are borrowed until row_end(). */
struct row {
    struct db *db;
    sqlite3_stmt *st;
    struct arena *a;             /* where row_text() copies to */
    int col;
    size_t slot;                 /* in the cache, from 1; 0: not cached */
    bool nomem;
};
#define AUTO_ROW __attribute__((cleanup(row_end))) struct row
MUST_CHECK int db_query(struct db *db, struct row *ret, struct arena *a, struct err *e, const char *sql, const char *fmt, ...);
/* 1: a row stands ready; 0: no more; negative: failed. */
MUST_CHECK int row_next(struct row *r, struct err *e);
void row_end(struct row *r);     /* also after a failed db_query() on a zeroed row */

/* Columns, from left to right. */
const char *row_text(struct row *r);         /* in the arena; NULL for NULL */
const char *row_text_or(struct row *r, const char *dflt);
const void *row_blob(struct row *r, size_t *ret_n);           /* in the arena; NULL for NULL */
bool        row_copy(struct row *r, char *dst, size_t cap);   /* false when NULL (then "") or cut */
int64_t     row_int(struct row *r);
int64_t     row_time(struct row *r);         /* NULL: -1 */
void        row_skip(struct row *r, int n);
/* RC_LIMIT when the arena refused a column. */
MUST_CHECK int row_ok(const struct row *r, struct err *e);

/* Runs a statement to its end. RC_CONFLICT: a unique constraint; RC_AGAIN: busy; RC_IO. */
MUST_CHECK int db_run(struct db *db, struct err *e, const char *sql, const char *fmt, ...);
int64_t db_changes(struct db *db);
int64_t db_last_rowid(struct db *db);
/* First column of the first row; RC_NOT_FOUND (with no text in `e`) when there is none. */
MUST_CHECK int db_int(struct db *db, int64_t *ret, struct err *e, const char *sql, const char *fmt, ...);
/* Several statements without parameters. */
MUST_CHECK int db_script(struct db *db, const char *sql, struct err *e);

void db_rollback(struct db *db);           /* whatever came before; nothing to do about a failure */

/* A statement put together from parts, for lists with filters. */
#define QUERY_SQL_MAX 4096
#define QUERY_VALS_MAX 96
struct db_vals {
    size_t n;
    struct { char kind; int64_t i; const char *s; } v[QUERY_VALS_MAX];
};
struct query { char sql[QUERY_SQL_MAX]; size_t n; bool cut; struct db_vals vals; };
/* Appends text and the values for its parameters (s, i, d as above). */
void query_add(struct query *q, const char *sql, const char *fmt, ...);
MUST_CHECK int query_run(struct db *db, struct row *ret, struct arena *a, struct err *e, const struct query *q);

int db_fail(struct db *db, struct err *e, const char *what);      /* the connection's last error as a result code */
