/* The pool of read-only connections. The one used last is taken first: its page cache is warm. */
#include "store/sqlite/sqlite.h"

struct readers {
    pthread_mutex_t lock;
    pthread_cond_t given;
    struct db *idle[READERS_MAX];
    size_t n_idle, n_open;
};

struct readers *readers_new(void)
{
    struct readers *p = calloc(1, sizeof *p);
    if (!p)
        abort();
    (void)pthread_mutex_init(&p->lock, NULL);
    (void)pthread_cond_init(&p->given, NULL);
    return p;
}

void readers_free(struct readers *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n_idle; i++)
        db_close(p->idle[i]);
    (void)pthread_mutex_destroy(&p->lock);
    (void)pthread_cond_destroy(&p->given);
    free(p);
}

int reader_take(struct sqlite_store *s, struct reader *ret, struct err *e)
{
    struct readers *p = s->readers;
    struct db *db = NULL;
    pthread_mutex_lock(&p->lock);
    while (p->n_idle == 0 && p->n_open == READERS_MAX)
        pthread_cond_wait(&p->given, &p->lock);
    if (p->n_idle > 0)
        db = p->idle[--p->n_idle];
    else
        p->n_open++;
    pthread_mutex_unlock(&p->lock);
    if (!db) {
        int rc = db_open(s->path, DB_READER, &db, e);
        if (rc < 0) {
            pthread_mutex_lock(&p->lock);
            p->n_open--;
            pthread_cond_signal(&p->given);
            pthread_mutex_unlock(&p->lock);
            return rc;
        }
    }
    *ret = (struct reader){ .s = s, .db = db };
    return RC_OK;
}

int reader_snapshot(struct reader *r, struct err *e) { return db_run(r->db, e, "BEGIN", ""); }

void reader_give(struct reader *r)
{
    if (!r->db)
        return;
    struct readers *p = r->s->readers;
    db_rollback(r->db);
    pthread_mutex_lock(&p->lock);
    p->idle[p->n_idle++] = r->db;
    pthread_cond_signal(&p->given);
    pthread_mutex_unlock(&p->lock);
    r->db = NULL;
}
