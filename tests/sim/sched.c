/* sched.c - one thread, one clock, one source of chance: decides what happens next. Takes the place of ev/jobs.c. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>

#include "base/clock.h"
#include "base/str.h"
#include "ev/jobs.h"
#include "sim.h"

#define START_MS INT64_C(1775000000000)
#define DUE_MAX 4096
#define FAULT_MS 120000              /* virtual time during which things go wrong */
#define STEP_MAX 400000

struct due { int64_t at_ms; void (*fn)(void *); void *arg; };
struct job { void (*fn)(void *); void *arg; };
struct jobs { struct job *v; size_t n, cap; };

static struct {
    struct sim_conf c;
    uint64_t rng, ids, hash, steps;
    int64_t now_us;
    struct due due[DUE_MAX]; size_t n_due;
    struct jobs jobs;
} s;

/* ---- chance: splitmix64; ids have a stream of their own, so that a changed schedule does not change them more than it must ---- */
static uint64_t mix(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint64_t sim_rand(void) { return mix(&s.rng); }
uint32_t sim_below(uint32_t n) { return (uint32_t)(sim_rand() % n); }
bool sim_chance(uint32_t per_mille) { return sim_below(1000) < per_mille; }

/* In place of the C library's: random_bytes() draws from the seed. */
ssize_t getrandom(void *p, size_t n, unsigned flags);
ssize_t getrandom(void *p, size_t n, unsigned flags)
{
    (void)flags;
    unsigned char *at = p;
    for (size_t i = 0; i < n; i++)
        at[i] = (unsigned char)mix(&s.ids);
    return (ssize_t)n;
}

/* ---- time ---- */
static int64_t wall(void) { return START_MS + s.now_us / 1000; }
static int64_t mono(void) { return s.now_us; }
int64_t sim_now_ms(void) { return s.now_us / 1000; }
bool sim_faults(void) { return sim_now_ms() < FAULT_MS; }

void sim_after(int64_t ms, void (*fn)(void *arg), void *arg)
{
    if (s.n_due == DUE_MAX)
        sim_fail("more than %d things wait", DUE_MAX);
    s.due[s.n_due++] = (struct due){ sim_now_ms() + ms, fn, arg };
}

/* ---- what a reader of a failure sees ---- */
void sim_trace(const char *fmt, ...)
{
    char line[512];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    for (const char *p = line; *p; p++)
        s.hash = (s.hash ^ (uint8_t)*p) * 1099511628211u;
    if (s.c.trace)
        printf("%9.3f %s\n", (double)s.now_us / 1e6, line);
}

_Noreturn void sim_fail(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)fflush(stdout);
    (void)fprintf(stderr, "seed %llu, step %llu, at %.3f s: ", (unsigned long long)s.c.seed, (unsigned long long)s.steps, (double)s.now_us / 1e6);
    (void)vfprintf(stderr, fmt, ap);
    (void)fprintf(stderr, "\nagain, with every step: sim --trace %llu\n", (unsigned long long)s.c.seed);
    va_end(ap);
    exit(1);
}

/* ---- jobs: as ev/jobs.h, but the scheduler runs them ---- */
int jobs_new(size_t threads, size_t queue_max, struct jobs **ret, struct err *e)
{
    (void)threads, (void)queue_max, (void)e;
    *ret = &s.jobs;
    return RC_OK;
}

void jobs_add_always(struct jobs *j, void (*fn)(void *arg), void *arg)
{
    if (j->n == j->cap) {
        j->cap = j->cap ? 2 * j->cap : 64;
        j->v = xrealloc(j->v, j->cap, sizeof *j->v);
    }
    j->v[j->n++] = (struct job){ fn, arg };
}

void jobs_add_first(struct jobs *j, void (*fn)(void *arg), void *arg) { jobs_add_always(j, fn, arg); }

int jobs_add(struct jobs *j, void (*fn)(void *arg), void *arg)
{
    jobs_add_always(j, fn, arg);
    return RC_OK;
}

void jobs_free(struct jobs *j) { (void)j; }
size_t jobs_waiting(const struct jobs *j) { return j->n; }

size_t sim_jobs_drop(void)
{
    size_t n = s.jobs.n;
    s.jobs.n = 0;
    return n;
}

static void run_job(void)
{
    size_t i = sim_below((uint32_t)s.jobs.n);
    struct job j = s.jobs.v[i];
    memmove(&s.jobs.v[i], &s.jobs.v[i + 1], (--s.jobs.n - i) * sizeof j);
    j.fn(j.arg);
}

/* ---- steps ---- */
static bool run_due(void)
{
    size_t n = 0, pick = 0;
    for (size_t i = 0; i < s.n_due; i++)
        if (s.due[i].at_ms <= sim_now_ms() && sim_below((uint32_t)++n) == 0)
            pick = i;
    if (!n)
        return false;
    struct due d = s.due[pick];
    s.due[pick] = s.due[--s.n_due];
    d.fn(d.arg);
    return true;
}

/* To the next thing that is due; the server's own timers are looked at every 250 ms at least. */
static void advance(void)
{
    int64_t to = sim_now_ms() + 250;
    for (size_t i = 0; i < s.n_due; i++)
        if (s.due[i].at_ms < to)
            to = s.due[i].at_ms;
    if (to > sim_now_ms())
        s.now_us = to * 1000;
    s.now_us += sim_below(900);
}

static void step(void)
{
    uint32_t what = sim_below(10);
    if (s.jobs.n && what < 5)
        run_job();
    else if (what < 7 || !run_due())
        server_turn();
    if (server_dying())
        server_kill();
    bool idle = s.jobs.n == 0;
    for (size_t i = 0; idle && i < s.n_due; i++)
        idle = s.due[i].at_ms > sim_now_ms();
    if (idle || sim_chance(100)) {
        server_turn();
        advance();
    }
}

static void faults(void *arg)
{
    (void)arg;
    if (!sim_faults())
        return;
    uint32_t what = sim_below(4);
    if (what == 0 && sim_server.up)
        server_kill_soon();
    else if (what == 1 && sim_server.up)
        server_kill();
    else
        world_kill_worker();
    sim_after(500 + sim_below(30000), faults, NULL);
}

_Noreturn static void never_rests(void)
{
    size_t i = world_unsettled();
    if (i == SIZE_MAX)
        sim_fail("all has ended, and the server is still at work");
    struct sim_session *n = &sim_session[i];
    sim_fail("%s does not come to rest: %s %s at position %lld (%s)", n->id, n->status, n->stop, (long long)n->last_seq, n->n ? n->ev[n->n - 1].type : "nothing");
}

uint64_t sim_run(const struct sim_conf *c)
{
    free(s.jobs.v);
    memset(&s, 0, sizeof s);
    s.c = *c;
    s.rng = c->seed * 2 + 1;
    s.ids = c->seed * 2 + 2;
    s.hash = 14695981039346656037u;
    clock_set_fake(wall);
    clock_set_fake_mono(mono);
    check_reset();
    sim_model_reset();
    server_first_start(c->db);
    world_start();
    sim_after(sim_below(20000), faults, NULL);
    uint64_t seen = 0;
    int64_t rest_ms = 0;
    for (;; s.steps++) {
        if (s.steps > STEP_MAX || sim_now_ms() > SIM_MS_MAX)
            never_rests();
        step();
        if (server_writes() != seen) {
            seen = server_writes();
            check_all();
            rest_ms = sim_now_ms();
        }
        if (!sim_faults() && sim_server.up && world_unsettled() == SIZE_MAX && sim_now_ms() - rest_ms > 90000)    /* longer than any lease and delay */
            break;
    }
    check_end();
    server_stop();
    while (s.n_due)
        free(s.due[--s.n_due].arg);
    sim_trace("end after %llu steps", (unsigned long long)s.steps);
    clock_set_fake(NULL);
    clock_set_fake_mono(NULL);
    return s.hash;
}
