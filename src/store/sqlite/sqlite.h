/* store/sqlite/sqlite.h - inside of the SQLite back end. Every write is a closure run by the one writer thread, which commits all closures
 * that wait as one transaction (group commit); reads use a pool of read-only connections. */
#pragma once

#include <pthread.h>

#include "base/random.h"
#include "store/sqlite/db.h"
#include "store/store.h"

#define WRITER_BATCH_MAX 256             /* closures in one transaction */
#define WRITER_BUSY_TRIES 6              /* times DB_BUSY_MS before the waiting closures are given RC_AGAIN */
#define WAL_PAGES_CHECKPOINT 2000        /* the writer copies the log back beyond this many pages */
#define WAL_PAGES_FORCE 50000            /* and waits for readers beyond this many, so that the log can start anew */
#define READERS_MAX 64                   /* connections of the pool; one more reader waits */
#define SIGHTINGS_MAX 4096               /* polling workers remembered */
#define SIGHTING_WINDOW_MS 30000         /* worker.md 2.1: "seen in the last 30 s" */
#define SIGHTING_FLUSH_MS 10000
#define WORKER_ID_LEN 128                /* longer worker ids are cut */
#define KEY_USED_EVERY_MS 60000          /* last_used_ms is written at most this often per key */
#define KEY_USED_SLOTS 64
#define TOKEN_DRAIN_MS 60000             /* a token outlives its stopped item by this: results of a draining worker */
#define WORK_KEEP_MS (30 * INT64_C(86400000))   /* stopped items are forgotten after this */
#define PRUNE_EVERY_MS 60000
#define PRUNE_BATCH 500                  /* rows per run, so that a prune never holds the writer for long */

struct sqlite_store;
struct writer;
struct readers;
struct sightings;

/* The transaction that a closure runs in. */
struct tx { struct db *db; struct sqlite_store *s; };
typedef int (*tx_fn)(struct tx *t, void *arg, struct err *e);

struct sqlite_store {
    struct store base;                   /* first: a struct store * is a struct sqlite_store * */
    char *path;
    struct writer *writer;
    struct readers *readers;
    struct sightings *sightings;
    store_note_fn note; void *note_ctx;
    pthread_mutex_t lock;                /* guards what follows */
    int64_t expired_ms, pruned_ms, flushed_ms, orphan_sn;
    struct { char id[ID_MAX]; int64_t ms; } key_used[KEY_USED_SLOTS];
};
static inline struct sqlite_store *sqlite_of(struct store *st) { return container_of(st, struct sqlite_store, base); }

/* ---- writer.c ---- */
MUST_CHECK int writer_new(struct sqlite_store *s, struct db *take_db, struct writer **ret, struct err *e);
void writer_free(struct writer *w);      /* runs what waits, joins; NULL is fine */
/* Runs `fn` inside a transaction and returns after the commit. A failing closure is rolled back alone. */
MUST_CHECK int writer_run(struct sqlite_store *s, tx_fn fn, void *arg, struct err *e);
/* The same without waiting, for what may be lost: `arg` is malloc'd and freed after. */
void writer_post(struct sqlite_store *s, tx_fn fn, void *take_arg);
/* From a closure: tell the listener after the commit. */
void tx_note(struct tx *t, enum store_note note, const char *id);
struct writer_stats { int64_t commits, closures, batch_max; };
void sqlite_writer_stats(struct store *st, struct writer_stats *ret);      /* for tests and metrics */

/* ---- readers.c ---- */
struct reader { struct sqlite_store *s; struct db *db; };
#define AUTO_READER __attribute__((cleanup(reader_give))) struct reader
struct readers *readers_new(void);
void readers_free(struct readers *p);
MUST_CHECK int reader_take(struct sqlite_store *s, struct reader *ret, struct err *e);
MUST_CHECK int reader_snapshot(struct reader *r, struct err *e);           /* all reads until reader_give() see one state */
void reader_give(struct reader *r);

/* ---- schema.c ---- */
MUST_CHECK int schema_migrate(struct db *db, int64_t now_ms, struct err *e);
MUST_CHECK int schema_check(struct db *db, struct err *e);

/* ---- page.c ---- */
int  page_limit(int limit);              /* into [1, STORE_LIST_MAX + 1]: callers ask for one more than they show */
/* Leaves out what is archived, unless the page shall have it: condition on <alias>.archived_ms. */
void page_live(struct query *q, const struct store_page *p, const char *alias);
/* Makes a record out of the columns of the row that stands ready. */
typedef void (*row_read_fn)(struct row *r, void *ret, const void *ctx);
/* All rows that are left, as an array of records of `size` bytes in r->a; `ret` points to the pointer that gets it (NULL when there are none). RC_LIMIT: more
 * than the arena takes. */
MUST_CHECK int rows_read(struct row *r, row_read_fn read, const void *ctx, size_t size, void *ret, size_t *ret_n, struct err *e);
/* One page of a list. `q` is a SELECT with its own conditions; the page's, on <alias>.created_ms and <alias>.id, order and limit are added here. */
MUST_CHECK int rows_page(struct store *st, struct arena *a, struct query *q, const struct store_page *p, const char *alias, row_read_fn read, const void *ctx, size_t size,
                         void *ret, size_t *ret_n, struct err *e);

/* ---- domain files ---- */
extern const struct store_ops sqlite_ops;
extern const struct store_tunnel_ops sqlite_tunnel_ops;
extern const struct store_vault_ops sqlite_vault_ops;

int sqlite_edge_seen(struct store *st, const struct store_edge *d, int64_t since_ms, const struct store_connector *c, size_t n, struct err *e);
int sqlite_edge_for(struct store *st, struct arena *a, const char *tunnel_id, int64_t since_ms, struct store_edge **ret, size_t *ret_n, struct err *e);
int sqlite_edge_list(struct store *st, struct arena *a, struct store_edge **ret, size_t *ret_n, struct err *e);
int sqlite_connector_list(struct store *st, struct arena *a, const char *tunnel_id, struct store_connector **ret, size_t *ret_n, struct err *e);

int sqlite_key_create(struct store *st, const struct store_key *k, const uint8_t hash[32], struct err *e);
int sqlite_key_find(struct store *st, struct arena *a, const uint8_t hash[32], struct store_key *ret, struct err *e);
int sqlite_key_list(struct store *st, struct arena *a, enum key_kind kind, const char *env_id, struct store_key **ret, size_t *ret_n, struct err *e);
int sqlite_key_revoke(struct store *st, const char *id, int64_t now_ms, struct err *e);
int sqlite_token_find(struct store *st, struct arena *a, const uint8_t hash[32], int64_t now_ms, struct store_token *ret, struct err *e);

int sqlite_agent_create(struct store *st, const struct store_agent *in, struct err *e);
int sqlite_agent_get(struct store *st, struct arena *a, const char *id, int64_t version, struct store_agent *ret, struct err *e);
int sqlite_agent_update(struct store *st, const char *id, int64_t expect, const char *name, const char *body, int64_t now_ms, struct err *e);
int sqlite_agent_archive(struct store *st, const char *id, int64_t now_ms, struct err *e);
int sqlite_agent_list(struct store *st, struct arena *a, const struct store_page *p, struct store_agent **ret, size_t *ret_n, struct err *e);
int sqlite_agent_versions(struct store *st, struct arena *a, const char *id, int limit, int64_t before_version, struct store_agent **ret, size_t *ret_n, struct err *e);

int sqlite_environment_create(struct store *st, const struct store_environment *in, struct err *e);
int sqlite_environment_get(struct store *st, struct arena *a, const char *id, struct store_environment *ret, struct err *e);
int sqlite_environment_update(struct store *st, const char *id, int64_t expect_updated_ms, const char *name, const char *body, int64_t now_ms, struct err *e);
int sqlite_environment_archive(struct store *st, const char *id, int64_t now_ms, struct err *e);
int sqlite_environment_delete(struct store *st, const char *id, struct err *e);
int sqlite_environment_list(struct store *st, struct arena *a, const struct store_page *p, struct store_environment **ret, size_t *ret_n, struct err *e);

int sqlite_session_create(struct store *st, const struct store_session *in, struct store_step *first, struct err *e);
int sqlite_session_get(struct store *st, struct arena *a, const char *id, struct store_session *ret, struct err *e);
int sqlite_session_list(struct store *st, struct arena *a, const struct store_page *p, const struct store_session_filter *f, struct store_session **ret, size_t *ret_n, struct err *e);
int sqlite_session_archive(struct store *st, struct store_step *last, struct err *e);
int sqlite_session_delete(struct store *st, const char *id, struct err *e);

int sqlite_step(struct store *st, struct store_step *s, struct err *e);
int step_apply(struct tx *t, struct store_step *s, struct err *e);         /* inside a transaction */
int sqlite_event_list(struct store *st, struct arena *a, const char *session_id, const struct store_event_filter *f, struct store_event **ret, size_t *ret_n, struct err *e);
int sqlite_event_scan(struct store *st, struct arena *a, const char *session_id, int64_t after_seq, int limit, bool public_only, struct store_event **ret, size_t *ret_n, struct err *e);
int sqlite_event_get(struct store *st, struct arena *a, const char *session_id, const char *event_id, struct store_event *ret, struct err *e);

int sqlite_lease_claim(struct store *st, const char *session_id, const char *owner, int64_t now_ms, int64_t until_ms, int64_t *ret_epoch, struct err *e);
int sqlite_lease_renew(struct store *st, const char *session_id, const char *owner, int64_t epoch, int64_t until_ms, struct err *e);
int sqlite_lease_release(struct store *st, const char *session_id, const char *owner, int64_t epoch, struct err *e);
int sqlite_lease_orphans(struct store *st, struct arena *a, int64_t now_ms, int limit, const char ***ret_ids, size_t *ret_n, struct err *e);
int sqlite_lease_clear(struct store *st, struct err *e);

int sqlite_work_poll(struct store *st, struct arena *a, const char *env_id, const char *worker_id, int64_t now_ms, int64_t reclaim_ms,
                     const uint8_t token_hash[32], int64_t token_expires_ms, struct store_work *ret, struct err *e);
int sqlite_work_ack(struct store *st, struct arena *a, const char *env_id, const char *id, int64_t now_ms, int64_t ttl_ms, struct store_work *ret, struct err *e);
int sqlite_work_heartbeat(struct store *st, const char *env_id, const char *id, const char *expected, int64_t now_ms, int64_t ttl_ms, int64_t grace_ms, struct store_heartbeat *ret, struct err *e);
int sqlite_work_stop(struct store *st, const char *env_id, const char *id, bool force, int64_t now_ms, struct err *e);
int sqlite_work_get(struct store *st, struct arena *a, const char *env_id, const char *id, struct store_work *ret, struct err *e);
int sqlite_work_list(struct store *st, struct arena *a, const char *env_id, const struct store_page *p, struct store_work **ret, size_t *ret_n, struct err *e);
int sqlite_work_update(struct store *st, struct arena *a, const char *env_id, const char *id, const char *metadata, struct store_work *ret, struct err *e);
int sqlite_work_stats(struct store *st, const char *env_id, int64_t now_ms, struct store_work_stats *ret, struct err *e);
int sqlite_work_expire(struct store *st, int64_t now_ms, int64_t *ret_next_ms, struct err *e);

/* ---- work_queue.c: inside a transaction ---- */
/* A live item for the session: none yet, a new one claimable at once; a queued one becomes claimable at once. */
MUST_CHECK int work_ensure(struct tx *t, int64_t sn, int64_t now_ms, struct err *e);
/* The item ends. While the session needs a worker, a fresh one is queued after its back-off. */
MUST_CHECK int work_end(struct tx *t, const char *work_id, int64_t now_ms, struct err *e);
/* Ends the session's live item for good; `only_unheld`: one that a worker holds is asked to stop instead. */
MUST_CHECK int work_end_session(struct tx *t, int64_t sn, bool only_unheld, int64_t now_ms, struct err *e);

/* ---- sightings.c: which workers polled ---- */
struct sightings *sightings_new(void);
void sightings_free(struct sightings *g);
void sightings_note(struct sightings *g, const char *env_id, const char *worker_id, int64_t now_ms);
bool sightings_seen(struct sightings *g, const char *env_id, const char *worker_id, int64_t since_ms);
int64_t sightings_count(struct sightings *g, const char *env_id, int64_t since_ms);
/* Copies those not yet given out; malloc'd, NULL when none. */
struct sighting { char env_id[ID_MAX], worker_id[WORKER_ID_LEN]; int64_t seen_ms; };
struct sighting *sightings_dirty(struct sightings *g, size_t *ret_n);
