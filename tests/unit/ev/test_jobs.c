#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "ev/jobs.h"

static atomic_int ran;
static int order[200];
static sem_t gate, entered;

static void count(void *arg) { order[atomic_fetch_add(&ran, 1)] = (int)(intptr_t)arg; }
static void block(void *arg)
{
    (void)arg;
    sem_post(&entered);
    sem_wait(&gate);
}

static void test_bounds(void **st)
{
    (void)st;
    struct err e;
    struct jobs *j = NULL;
    assert_int_equal(jobs_new(0, 1, &j, &e), RC_INVALID);
    assert_int_equal(jobs_new(257, 1, &j, &e), RC_INVALID);
    assert_null(j);
    jobs_free(NULL);
}

static void test_fifo_and_limit(void **st)
{
    (void)st;
    struct err e;
    struct jobs *j;
    sem_init(&gate, 0, 0);
    sem_init(&entered, 0, 0);
    assert_int_equal(jobs_new(1, 3, &j, &e), RC_OK);
    jobs_add_always(j, block, NULL);
    sem_wait(&entered);
    ran = 0;
    for (intptr_t i = 0; i < 3; i++)
        assert_int_equal(jobs_add(j, count, (void *)i), RC_OK);
    assert_int_equal(jobs_waiting(j), 3);
    assert_int_equal(jobs_add(j, count, NULL), RC_LIMIT);
    for (intptr_t i = 3; i < 150; i++)          /* over the first ring */
        jobs_add_always(j, count, (void *)i);
    assert_int_equal(jobs_waiting(j), 150);
    sem_post(&gate);
    jobs_free(j);                               /* finishes what is queued */
    assert_int_equal(ran, 150);
    for (int i = 0; i < 150; i++)
        assert_int_equal(order[i], i);
}

static void test_no_queue(void **st)
{
    (void)st;
    struct err e;
    struct jobs *j;
    assert_int_equal(jobs_new(2, 0, &j, &e), RC_OK);
    int64_t end = clock_mono_ms() + 2000;       /* the threads must be idle first */
    while (jobs_add(j, block, NULL) == RC_LIMIT && clock_mono_ms() < end)
        usleep(1000);
    while (jobs_add(j, block, NULL) == RC_LIMIT && clock_mono_ms() < end)
        usleep(1000);
    sem_wait(&entered);
    sem_wait(&entered);                         /* both run at once */
    assert_int_equal(jobs_add(j, count, NULL), RC_LIMIT);
    sem_post(&gate);
    sem_post(&gate);
    jobs_free(j);
}

static struct jobs *shared;
static void *adder(void *arg)
{
    for (int i = 0; i < 2000; i++)
        jobs_add_always(shared, (void (*)(void *))arg, NULL);
    return NULL;
}
static void plus(void *arg) { (void)arg; atomic_fetch_add(&ran, 1); }

static void test_many(void **st)
{
    (void)st;
    struct err e;
    assert_int_equal(jobs_new(4, SIZE_MAX, &shared, &e), RC_OK);
    ran = 0;
    pthread_t th[3];
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&th[i], NULL, adder, (void *)plus), 0);
    for (int i = 0; i < 3; i++)
        pthread_join(th[i], NULL);
    jobs_free(shared);
    assert_int_equal(ran, 6000);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_bounds), cmocka_unit_test(test_fifo_and_limit), cmocka_unit_test(test_no_queue), cmocka_unit_test(test_many),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
