/* The writer thread: takes every closure that waits, runs them in one transaction, each in a savepoint of its own, and commits once.
 * So a hundred concurrent writers cost one fsync, and a closure never sees another's half-done work. */
#include <semaphore.h>
#include <string.h>

#include "base/list.h"
#include "base/str.h"
#include "store/sqlite/sqlite.h"

#define NOTE_DEDUP 16            /* how far back an equal note is looked for */

struct closure {
    struct list node;
    tx_fn fn;
    void *arg;
    struct err *e;
    int rc;
    bool posted;                 /* nobody waits: the writer frees it and its argument */
    sem_t done;
};
struct note { enum store_note note; char id[ID_MAX]; };
struct writer {
    struct sqlite_store *s;
    struct db *db;
    pthread_t thread;
    pthread_mutex_t lock;        /* guards queue, stop */
    pthread_cond_t more;
    struct list queue;
    bool stop;
    struct note *notes;          /* writer thread only, as what follows */
    size_t n_notes, cap_notes;
    int wal_pages;
    _Atomic int64_t commits, closures, batch_max;
};

void tx_note(struct tx *t, enum store_note note, const char *id)
{
    struct writer *w = t->s->writer;
    for (size_t i = w->n_notes, k = 0; i-- > 0 && k < NOTE_DEDUP; k++)
        if (w->notes[i].note == note && str_eq(w->notes[i].id, id))
            return;
    if (w->n_notes == w->cap_notes) {
        w->cap_notes = w->cap_notes ? 2 * w->cap_notes : 64;
        w->notes = xrealloc(w->notes, w->cap_notes, sizeof *w->notes);
    }
    struct note *n = &w->notes[w->n_notes++];
    n->note = note;
    (void)str_copy(n->id, sizeof n->id, id);
}

static bool in_transaction(struct writer *w) { return !sqlite3_get_autocommit(db_handle(w->db)); }

/* One closure inside the open transaction. `guard`: roll it back alone when it fails. */
static int run_one(struct writer *w, struct closure *c, bool guard)
{
    struct tx t = { .db = w->db, .s = w->s };
    struct err none = { 0 }, *e = c->e ? c->e : &none;
    size_t notes = w->n_notes;
    if (guard)
        TRY(db_run(w->db, e, "SAVEPOINT closure", ""));
    int rc = c->fn(&t, c->arg, e);
    if (rc < 0) {
        /* Notes deduplicated against an earlier closure stay valid: only what this one added goes. */
        w->n_notes = notes;
        if (guard && in_transaction(w) && db_run(w->db, NULL, "ROLLBACK TO closure", "") < 0)
            db_rollback(w->db);
    }
    if (guard && in_transaction(w) && db_run(w->db, NULL, "RELEASE closure", "") < 0)
        db_rollback(w->db);
    return rc < 0 ? rc : RC_OK;
}

static void fail_all(struct closure **batch, size_t n, const struct err *why, bool also_failed)
{
    for (size_t i = 0; i < n; i++)
        if (batch[i]->rc == RC_OK || also_failed) {
            batch[i]->rc = why->rc;
            if (batch[i]->e)
                *batch[i]->e = *why;
        }
}

static int begin(struct writer *w, struct err *e)
{
    int rc = RC_AGAIN;
    for (int i = 0; i < WRITER_BUSY_TRIES && rc == RC_AGAIN; i++)
        rc = db_run(w->db, e, "BEGIN IMMEDIATE", "");
    return rc;
}

static void run_batch(struct writer *w, struct closure **batch, size_t n)
{
    struct err e = { 0 };
    size_t good = 0;
    w->n_notes = 0;
    if (begin(w, &e) < 0) {
        fail_all(batch, n, &e, true);
        return;
    }
    for (size_t i = 0; i < n && in_transaction(w); i++) {
        batch[i]->rc = run_one(w, batch[i], n > 1);
        good += batch[i]->rc == RC_OK;
    }
    if (!in_transaction(w)) {        /* a full disk or an I/O error ends the transaction of all */
        (void)err_set(&e, RC_IO, "the database gave the transaction up; nothing was written");
        fail_all(batch, n, &e, false);
        w->n_notes = 0;
        return;
    }
    int rc = RC_AGAIN;
    for (int i = 0; i < WRITER_BUSY_TRIES && rc == RC_AGAIN && good > 0; i++)
        rc = db_run(w->db, &e, "COMMIT", "");
    if (rc < 0) {
        db_rollback(w->db);
        w->n_notes = 0;
        if (good > 0)
            fail_all(batch, n, &e, false);
        return;
    }
    w->commits++;
}

static void checkpoint(struct writer *w)
{
    if (w->wal_pages < WAL_PAGES_CHECKPOINT)
        return;
    int mode = w->wal_pages > WAL_PAGES_FORCE ? SQLITE_CHECKPOINT_RESTART : SQLITE_CHECKPOINT_PASSIVE;
    (void)sqlite3_wal_checkpoint_v2(db_handle(w->db), NULL, mode, NULL, NULL);      /* a failed one is tried again after the next commit */
    w->wal_pages = 0;
}

static int on_wal(void *ctx, sqlite3 *h, const char *name, int pages)
{
    (void)h, (void)name;
    ((struct writer *)ctx)->wal_pages = pages;
    return SQLITE_OK;
}

static void finish(struct closure *c)
{
    if (c->posted) {
        free(c->arg);
        free(c);
        return;
    }
    (void)sem_post(&c->done);        /* the closure lives on its caller's stack: not ours any more */
}

static void *writer_main(void *arg)
{
    struct writer *w = arg;
    struct closure *batch[WRITER_BATCH_MAX];
    for (;;) {
        size_t n = 0;
        pthread_mutex_lock(&w->lock);
        while (list_empty(&w->queue) && !w->stop)
            pthread_cond_wait(&w->more, &w->lock);
        while (n < WRITER_BATCH_MAX && !list_empty(&w->queue)) {
            batch[n] = list_first(&w->queue, struct closure, node);
            list_del(&batch[n++]->node);
        }
        pthread_mutex_unlock(&w->lock);
        if (n == 0)
            return NULL;
        run_batch(w, batch, n);
        w->closures += (int64_t)n;
        if ((int64_t)n > w->batch_max)
            w->batch_max = (int64_t)n;
        /* Listeners first: readers of a stream wait for what was written, and whoever has its answer finds the note delivered. */
        for (size_t i = 0; i < w->n_notes && w->s->note; i++)
            w->s->note(w->s->note_ctx, w->notes[i].note, w->notes[i].id);
        w->n_notes = 0;
        for (size_t i = 0; i < n; i++)
            finish(batch[i]);
        checkpoint(w);
    }
}

static void submit(struct writer *w, struct closure *c)
{
    pthread_mutex_lock(&w->lock);
    list_add_tail(&w->queue, &c->node);
    pthread_cond_signal(&w->more);
    pthread_mutex_unlock(&w->lock);
}

int writer_run(struct sqlite_store *s, tx_fn fn, void *arg, struct err *e)
{
    struct writer *w = s->writer;
    if (pthread_equal(pthread_self(), w->thread))
        return err_set(e, RC_INVALID, "a note callback must not write to the store");
    struct closure c = { .fn = fn, .arg = arg, .e = e };
    (void)sem_init(&c.done, 0, 0);
    submit(w, &c);
    while (sem_wait(&c.done) < 0)
        ;                            /* EINTR */
    (void)sem_destroy(&c.done);
    return c.rc;
}

void writer_post(struct sqlite_store *s, tx_fn fn, void *take_arg)
{
    struct closure *c = xcalloc(1, sizeof *c);
    *c = (struct closure){ .fn = fn, .arg = take_arg, .posted = true };
    submit(s->writer, c);
}

int writer_new(struct sqlite_store *s, struct db *take_db, struct writer **ret, struct err *e)
{
    struct writer *w = xcalloc(1, sizeof *w);
    w->s = s;
    w->db = take_db;
    list_init(&w->queue);
    (void)pthread_mutex_init(&w->lock, NULL);
    (void)pthread_cond_init(&w->more, NULL);
    (void)sqlite3_wal_hook(db_handle(w->db), on_wal, w);
    *ret = w;                        /* before the thread: closures find it through the store */
    int err = pthread_create(&w->thread, NULL, writer_main, w);
    if (err) {
        db_close(w->db);
        free(w);
        *ret = NULL;
        return err_sys(e, RC_NOMEM, err, "start the store's writer thread");
    }
    return RC_OK;
}

void writer_free(struct writer *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_signal(&w->more);
    pthread_mutex_unlock(&w->lock);
    (void)pthread_join(w->thread, NULL);
    db_close(w->db);
    (void)pthread_mutex_destroy(&w->lock);
    (void)pthread_cond_destroy(&w->more);
    free(w->notes);
    free(w);
}

void sqlite_writer_stats(struct store *st, struct writer_stats *ret)
{
    struct writer *w = sqlite_of(st)->writer;
    *ret = (struct writer_stats){ .commits = w->commits, .closures = w->closures, .batch_max = w->batch_max };
}
