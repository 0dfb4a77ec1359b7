/* ev/jobs.c - a fixed pool of threads over one FIFO ring. */
#include "ev/jobs.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "base/str.h"

#define JOBS_THREADS_MAX 256

struct job { void (*fn)(void *); void *arg; };

struct jobs {
    pthread_mutex_t lock;       /* guards everything below but `waiting`, which is also read without it */
    pthread_cond_t more;
    struct job *ring;
    size_t cap, head, idle, queue_max;
    atomic_size_t waiting;
    bool stopping;
    size_t n_threads;
    pthread_t threads[];
};

static void *job_thread(void *arg)
{
    struct jobs *j = arg;
    pthread_mutex_lock(&j->lock);
    for (;;) {
        while (j->waiting == 0 && !j->stopping) {
            j->idle++;
            pthread_cond_wait(&j->more, &j->lock);
            j->idle--;
        }
        if (j->waiting == 0)
            break;
        struct job it = j->ring[j->head];
        j->head = (j->head + 1) % j->cap;
        j->waiting--;
        pthread_mutex_unlock(&j->lock);
        it.fn(it.arg);
        pthread_mutex_lock(&j->lock);
    }
    pthread_mutex_unlock(&j->lock);
    return NULL;
}

int jobs_new(size_t threads, size_t queue_max, struct jobs **ret, struct err *e)
{
    if (threads < 1 || threads > JOBS_THREADS_MAX)
        return err_set(e, RC_INVALID, "%zu job threads: 1 to %d are possible", threads, JOBS_THREADS_MAX);
    struct jobs *j = xcalloc(1, sizeof *j + threads * sizeof j->threads[0]);
    pthread_mutex_init(&j->lock, NULL);
    pthread_cond_init(&j->more, NULL);
    j->queue_max = queue_max;
    j->cap = 64;
    j->ring = xcalloc(j->cap, sizeof *j->ring);
    /* Signals belong to the loop's signalfd: no job thread may take one. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = 0;
    while (j->n_threads < threads && (err = pthread_create(&j->threads[j->n_threads], NULL, job_thread, j)) == 0)
        j->n_threads++;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (err) {
        jobs_free(j);
        return err_sys(e, RC_IO, err, "start job thread %zu of %zu", j->n_threads + 1, threads);
    }
    *ret = j;
    return RC_OK;
}

static int add(struct jobs *j, struct job it, bool always)
{
    pthread_mutex_lock(&j->lock);
    size_t n = j->waiting;
    if (!always && n >= j->idle && n - j->idle >= j->queue_max) {   /* what an idle thread takes at once does not wait */
        pthread_mutex_unlock(&j->lock);
        return RC_LIMIT;
    }
    if (n == j->cap) {
        struct job *ring = xcalloc(j->cap * 2, sizeof *ring);
        for (size_t i = 0; i < n; i++)
            ring[i] = j->ring[(j->head + i) % j->cap];
        free(j->ring);
        j->ring = ring;
        j->cap *= 2;
        j->head = 0;
    }
    j->ring[(j->head + n) % j->cap] = it;
    j->waiting = n + 1;
    bool signal = j->idle > 0;
    pthread_mutex_unlock(&j->lock);
    if (signal)
        pthread_cond_signal(&j->more);
    return RC_OK;
}

int jobs_add(struct jobs *j, void (*fn)(void *arg), void *arg)
{
    return add(j, (struct job){ fn, arg }, false);
}

void jobs_add_always(struct jobs *j, void (*fn)(void *arg), void *arg)
{
    (void)add(j, (struct job){ fn, arg }, true);
}

void jobs_free(struct jobs *j)
{
    if (!j)
        return;
    pthread_mutex_lock(&j->lock);
    j->stopping = true;
    pthread_mutex_unlock(&j->lock);
    pthread_cond_broadcast(&j->more);
    for (size_t i = 0; i < j->n_threads; i++)
        pthread_join(j->threads[i], NULL);
    pthread_cond_destroy(&j->more);
    pthread_mutex_destroy(&j->lock);
    free(j->ring);
    free(j);
}

size_t jobs_waiting(const struct jobs *j)
{
    return j->waiting;
}
