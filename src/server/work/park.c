#include "server/work/park.h"

#include <stdatomic.h>
#include <string.h>

#include "base/str.h"

#define PARK_BUCKETS 256        /* by environment; a collision costs a spurious retry */

struct park {
    struct ev *ev;
    struct jobs *jobs;
    struct list bucket[PARK_BUCKETS];
    _Atomic uint64_t mark[PARK_BUCKETS];
    _Atomic int64_t waiting;
    bool draining;
};

static unsigned bucket_of(const char *s)
{
    uint32_t h = 2166136261u;
    for (; *s; s++)
        h = (h ^ (uint8_t)*s) * 16777619u;
    return h % PARK_BUCKETS;
}

int park_new(struct ev *ev, struct jobs *jobs, struct park **ret, struct err *e)
{
    (void)e;
    struct park *p = xcalloc(1, sizeof *p);
    p->ev = ev;
    p->jobs = jobs;
    for (size_t i = 0; i < PARK_BUCKETS; i++)
        list_init(&p->bucket[i]);
    *ret = p;
    return RC_OK;
}

void park_free(struct park *p)
{
    if (!p)
        return;
    park_drain(p);
    free(p);
}

uint64_t park_mark(struct park *p, const char *env_id)
{
    return atomic_load(&p->mark[bucket_of(env_id)]);
}

size_t park_waiting(const struct park *p)
{
    return (size_t)atomic_load(&p->waiting);
}

static void unlink_parked(struct parked *x)
{
    ev_timer_stop(&x->timer);
    list_del(&x->node);
    atomic_fetch_sub(&x->park->waiting, 1);
}

static void on_timer(struct ev_timer *t)
{
    struct parked *x = container_of(t, struct parked, timer);
    unlink_parked(x);
    x->give_up(x);
}

static void try_again(struct parked *x, bool woken)
{
    x->woken = woken;
    if (jobs_add(x->park->jobs, x->retry, x) != RC_OK)
        x->give_up(x);          /* overloaded: an empty answer makes the worker come back at its own pace */
}

static void add_on_loop(void *arg)
{
    struct parked *x = arg;
    struct park *p = x->park;
    unsigned b = bucket_of(x->env_id);
    int64_t left = x->until_mono_ms - ev_now_ms(p->ev);
    if (p->draining || left <= 0 || atomic_load(&p->waiting) >= PARK_MAX) {
        x->give_up(x);
        return;
    }
    /* Counted first, compared second; park_note() does it the other way round: one of the two sees the other. */
    atomic_fetch_add(&p->waiting, 1);
    list_add_tail(&p->bucket[b], &x->node);
    ev_timer_set(p->ev, &x->timer, left, on_timer);
    if (atomic_load(&p->mark[b]) != x->mark) {
        unlink_parked(x);
        try_again(x, false);
    }
}

void park_add(struct park *p, struct parked *x)
{
    x->park = p;
    x->woken = false;
    list_init(&x->node);
    ev_post(p->ev, add_on_loop, x);
}

struct wake { struct park *park; char env_id[]; };

static void wake_on_loop(void *arg)
{
    struct wake *w = arg;
    list_foreach(x, &w->park->bucket[bucket_of(w->env_id)], struct parked, node) {
        if (!str_eq(x->env_id, w->env_id))
            continue;
        unlink_parked(x);
        try_again(x, true);
        break;
    }
    free(w);
}

void park_pass(struct park *p, const char *env_id)
{
    if (atomic_load(&p->waiting) == 0)
        return;
    size_t n = strlen(env_id) + 1;
    struct wake *w = xcalloc(1, sizeof *w + n);
    w->park = p;
    memcpy(w->env_id, env_id, n);
    ev_post(p->ev, wake_on_loop, w);
}

void park_note(struct park *p, const char *env_id)
{
    atomic_fetch_add(&p->mark[bucket_of(env_id)], 1);
    park_pass(p, env_id);
}

void park_drain(struct park *p)
{
    p->draining = true;
    for (size_t i = 0; i < PARK_BUCKETS; i++)
        list_foreach(x, &p->bucket[i], struct parked, node) {
            unlink_parked(x);
            x->give_up(x);
        }
}
