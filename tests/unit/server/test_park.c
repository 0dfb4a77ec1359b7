/* Long polls: woken at once, in order, never forgotten between the look at the store and the wait. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "server/work/park.h"

struct poll { struct parked parked; _Atomic int retries, given_up; };
static struct { struct ev *ev; struct jobs *jobs; struct park *park; } w;

static int setup(void **state)
{
    (void)state;
    struct err e;
    return ev_new(&w.ev, &e) || jobs_new(2, 16, &w.jobs, &e) || park_new(w.ev, w.jobs, &w.park, &e);
}

static int teardown(void **state)
{
    (void)state;
    jobs_free(w.jobs);
    park_free(w.park);
    ev_free(w.ev);
    return 0;
}

static void on_retry(void *p) { atomic_fetch_add(&((struct poll *)p)->retries, 1); }
static void on_give_up(void *p) { atomic_fetch_add(&((struct poll *)p)->given_up, 1); }

static void park_one(struct poll *p, const char *env, int64_t ms, uint64_t mark)
{
    memset(p, 0, sizeof *p);
    p->parked = (struct parked){ .env_id = env, .mark = mark, .until_mono_ms = clock_mono_ms() + ms, .retry = on_retry, .give_up = on_give_up };
    park_add(w.park, &p->parked);
}

static void turn(int64_t ms)
{
    for (int64_t end = clock_mono_ms() + ms; clock_mono_ms() < end;)
        (void)ev_run_once(w.ev, 5);
}

static void test_time_runs_out(void **state)
{
    (void)state;
    struct poll p;
    park_one(&p, "env_a", 50, park_mark(w.park, "env_a"));
    turn(20);
    assert_int_equal(park_waiting(w.park), 1);
    assert_int_equal(p.given_up, 0);
    turn(80);
    assert_int_equal(p.given_up, 1);
    assert_int_equal(p.retries, 0);
    assert_int_equal(park_waiting(w.park), 0);
    park_one(&p, "env_a", 0, park_mark(w.park, "env_a"));      /* no time at all */
    turn(10);
    assert_int_equal(p.given_up, 1);
}

static void test_note_wakes_one_in_order(void **state)
{
    (void)state;
    struct poll p[3], other;
    for (int i = 0; i < 3; i++)
        park_one(&p[i], "env_a", 5000, park_mark(w.park, "env_a"));
    park_one(&other, "env_b", 5000, park_mark(w.park, "env_b"));
    turn(10);
    park_note(w.park, "env_a");
    turn(30);
    assert_int_equal(p[0].retries, 1);
    assert_true(p[0].parked.woken);
    assert_int_equal(p[1].retries + p[2].retries + other.retries, 0);
    park_pass(w.park, "env_a");
    turn(30);
    assert_int_equal(p[1].retries, 1);
    park_drain(w.park);
    assert_int_equal(p[2].given_up, 1);
    assert_int_equal(other.given_up, 1);
    assert_int_equal(p[0].given_up, 0);
}

/* The item came after the store was asked and before the poll was parked. */
static void test_note_in_between(void **state)
{
    (void)state;
    struct poll p;
    uint64_t mark = park_mark(w.park, "env_a");
    park_note(w.park, "env_a");
    park_one(&p, "env_a", 5000, mark);
    turn(30);
    assert_int_equal(p.retries, 1);
    assert_false(p.parked.woken);
    assert_int_equal(park_waiting(w.park), 0);
}

static void test_after_drain(void **state)
{
    (void)state;
    struct poll p;
    park_drain(w.park);
    park_one(&p, "env_a", 5000, park_mark(w.park, "env_a"));
    turn(10);
    assert_int_equal(p.given_up, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_time_runs_out, setup, teardown),
        cmocka_unit_test_setup_teardown(test_note_wakes_one_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_note_in_between, setup, teardown),
        cmocka_unit_test_setup_teardown(test_after_drain, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
