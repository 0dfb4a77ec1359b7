/* server.c - the product's side: what server/server.c wires together, with the store behind a wrapper that lets an operation fail, or end the server
 * before or after its commit. A server that is being killed finds every operation refused, so nothing that it still does can reach the store. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/str.h"
#include "sim.h"

#define RECOVER_MS 5000              /* as server/server.c */
#define EXPIRE_MAX_MS 1000
#define EXPIRE_MIN_MS 50

const char *sim_env_id = "env_sim";
struct sim_server sim_server;

static struct {
    struct store wrapped;
    struct store *real;
    char path[256];
    struct jobs *jobs;
    struct model_registry *models;
    struct ev_timer recover, expire;
    int64_t expire_in_ms;
    uint64_t writes, lives;
    int kill_in;                     /* store operations until the end; -1: none is planned */
    bool dead;
} v = { .kill_in = -1 };

uint64_t server_writes(void) { return v.writes; }
struct store *server_truth(void) { return v.real; }
bool server_dying(void) { return v.dead; }

/* ---- the wrapper ---- */
enum fate { GOES_WELL, NOT_DONE, DONE_BUT_DEAD };

static enum fate fate(void)
{
    if (v.dead)
        return NOT_DONE;
    if (v.kill_in >= 0 && v.kill_in-- == 0) {
        bool after = sim_chance(500);
        sim_trace("server: killed %s an operation", after ? "after" : "before");
        if (!after)
            v.dead = true;
        return after ? DONE_BUT_DEAD : NOT_DONE;
    }
    return sim_faults() && sim_chance(3) ? NOT_DONE : GOES_WELL;
}

#define REFUSED(e) err_set(e, v.dead ? RC_IO : sim_chance(500) ? RC_AGAIN : RC_IO, "the disk does not answer")
/* An operation of the store; `w`: it may change a log or a lease, so the rules are looked at again. */
#define OP(w, e, call)                                   \
    enum fate f = fate();                                \
    if (f == NOT_DONE)                                   \
        return REFUSED(e);                               \
    int rc = v.real->ops->call;                          \
    v.writes += w;                                       \
    if (f == DONE_BUT_DEAD) {                            \
        v.dead = true;                                   \
        return err_set(e, RC_IO, "nobody is left to hear"); \
    }                                                    \
    return rc

static int w_session_create(struct store *st, const struct store_session *in, struct store_step *first, struct err *e) { (void)st; OP(1, e, session_create(v.real, in, first, e)); }
static int w_session_get(struct store *st, struct arena *a, const char *id, struct store_session *r, struct err *e) { (void)st; OP(0, e, session_get(v.real, a, id, r, e)); }
static int w_session_archive(struct store *st, struct store_step *s, struct err *e) { (void)st; OP(1, e, session_archive(v.real, s, e)); }
static int w_step(struct store *st, struct store_step *s, struct err *e) { (void)st; OP(1, e, step(v.real, s, e)); }
static int w_list(struct store *st, struct arena *a, const char *id, const struct store_event_filter *fl, struct store_event **r, size_t *n, struct err *e) { (void)st; OP(0, e, event_list(v.real, a, id, fl, r, n, e)); }
static int w_scan(struct store *st, struct arena *a, const char *id, int64_t seq, int limit, bool pub, struct store_event **r, size_t *n, struct err *e) { (void)st; OP(0, e, event_scan(v.real, a, id, seq, limit, pub, r, n, e)); }
static int w_claim(struct store *st, const char *id, const char *own, int64_t now, int64_t until, int64_t *ep, struct err *e) { (void)st; OP(1, e, lease_claim(v.real, id, own, now, until, ep, e)); }
static int w_renew(struct store *st, const char *id, const char *own, int64_t ep, int64_t until, struct err *e) { (void)st; OP(1, e, lease_renew(v.real, id, own, ep, until, e)); }
static int w_release(struct store *st, const char *id, const char *own, int64_t ep, struct err *e) { (void)st; OP(1, e, lease_release(v.real, id, own, ep, e)); }
static int w_orphans(struct store *st, struct arena *a, int64_t now, int limit, const char ***ids, size_t *n, struct err *e) { (void)st; OP(0, e, lease_orphans(v.real, a, now, limit, ids, n, e)); }
static int w_poll(struct store *st, struct arena *a, const char *env, const char *wid, int64_t now, int64_t rec, const uint8_t h[32], int64_t exp, struct store_work *r, struct err *e) { (void)st; OP(0, e, work_poll(v.real, a, env, wid, now, rec, h, exp, r, e)); }
static int w_ack(struct store *st, struct arena *a, const char *env, const char *id, int64_t now, int64_t ttl, struct store_work *r, struct err *e) { (void)st; OP(1, e, work_ack(v.real, a, env, id, now, ttl, r, e)); }
static int w_beat(struct store *st, const char *env, const char *id, const char *exp, int64_t now, int64_t ttl, int64_t gr, struct store_heartbeat *r, struct err *e) { (void)st; OP(1, e, work_heartbeat(v.real, env, id, exp, now, ttl, gr, r, e)); }
static int w_stop(struct store *st, const char *env, const char *id, bool force, int64_t now, struct err *e) { (void)st; OP(1, e, work_stop(v.real, env, id, force, now, e)); }
static int w_expire(struct store *st, int64_t now, int64_t *next, struct err *e) { (void)st; OP(0, e, work_expire(v.real, now, next, e)); }

static const struct store_ops wrapped_ops = {
    .name = "sim", .session_create = w_session_create, .session_get = w_session_get, .session_archive = w_session_archive, .step = w_step, .event_list = w_list,
    .event_scan = w_scan, .lease_claim = w_claim, .lease_renew = w_renew, .lease_release = w_release, .lease_orphans = w_orphans, .work_poll = w_poll,
    .work_ack = w_ack, .work_heartbeat = w_beat, .work_stop = w_stop, .work_expire = w_expire,
};

/* On the store's writer thread, while the caller waits for it: nothing else runs. */
static void on_note(void *ctx, enum store_note note, const char *id)
{
    (void)ctx;
    if (note == STORE_NOTE_RUN && sim_server.loop && !v.dead)
        loop_wake(sim_server.loop, id);
}

/* ---- what the server does by itself ---- */
static void on_recover(struct ev_timer *t);
static void on_expire(struct ev_timer *t);

static void recover_job(void *arg)
{
    struct err e;
    (void)arg;
    (void)!loop_recover(sim_server.loop, &e);
}

static void on_recover(struct ev_timer *t)
{
    jobs_add_always(v.jobs, recover_job, NULL);
    ev_timer_set(sim_server.ev, t, RECOVER_MS, on_recover);
}

static void expire_job(void *arg)
{
    struct err e;
    int64_t next = -1, now = clock_now_ms();
    (void)arg;
    (void)sim_server.store->ops->work_expire(sim_server.store, now, &next, &e);
    int64_t in = next < 0 ? EXPIRE_MAX_MS : next - now;
    in = in < EXPIRE_MIN_MS ? EXPIRE_MIN_MS : in > EXPIRE_MAX_MS ? EXPIRE_MAX_MS : in;
    ev_timer_set(sim_server.ev, &v.expire, in, on_expire);
}

static void on_expire(struct ev_timer *t)
{
    (void)t;
    jobs_add_always(v.jobs, expire_job, NULL);
}

/* ---- life ---- */
static void must(int rc, const struct err *e, const char *what)
{
    if (rc < 0)
        sim_fail("%s: %s", what, e->msg);
}

static void wire(void)
{
    struct err e = { 0 };
    v.dead = false;
    v.kill_in = -1;
    v.wrapped.ops = &wrapped_ops;
    must(store_open(v.path, false, &v.real, &e), &e, "open the store");
    must(v.real->ops->lease_clear(v.real, &e), &e, "clear leases");
    must(ev_new(&sim_server.ev, &e), &e, "event loop");
    must(jobs_new(1, SIZE_MAX, &v.jobs, &e), &e, "jobs");
    sim_server.store = &v.wrapped;
    v.real->ops->on_note(v.real, on_note, NULL);
    v.models = sim_model_new();
    struct loop_conf c = { .ev = sim_server.ev, .jobs = v.jobs, .store = sim_server.store, .models = v.models, .owner = "sim", .retry_budget_ms = 60000 };
    must(loop_new(&c, &sim_server.loop, &e), &e, "loop");
    sim_server.up = true;
    jobs_add_always(v.jobs, recover_job, NULL);
    ev_timer_set(sim_server.ev, &v.recover, RECOVER_MS, on_recover);
    ev_timer_set(sim_server.ev, &v.expire, EXPIRE_MIN_MS, on_expire);
}

void server_first_start(const char *path)
{
    struct err e = { 0 };
    struct store *st = NULL;
    (void)str_copy(v.path, sizeof v.path, path);
    v.writes = v.lives = 0;
    must(store_open(path, false, &st, &e), &e, "open the store");
    struct store_environment env = { .id = sim_env_id, .name = "sim", .body = "{}", .created_ms = clock_now_ms(), .updated_ms = clock_now_ms(), .archived_ms = -1 };
    struct store_agent agent = { .id = "agent_sim", .name = "sim", .body = "{}", .version = 1, .created_ms = clock_now_ms(), .updated_ms = clock_now_ms(), .archived_ms = -1 };
    must(st->ops->environment_create(st, &env, &e), &e, "environment");
    must(st->ops->agent_create(st, &agent, &e), &e, "agent");
    store_close(st);
    wire();
}

void server_start(void)
{
    sim_trace("server: starts");
    v.lives++;
    wire();
    check_again();
}

static void unwire(void)
{
    sim_server.up = false;
    v.dead = true;
    for (int i = 0; i < 4; i++)      /* what was posted runs, and finds the store shut; jobs that come of it are dropped */
        (void)ev_run_once(sim_server.ev, 0);
    (void)sim_jobs_drop();
    struct loop *l = sim_server.loop;
    sim_server.loop = NULL;
    loop_free(l);
    (void)sim_jobs_drop();
    ev_timer_stop(&v.recover);
    ev_timer_stop(&v.expire);
    model_registry_free(v.models);
    sim_model_forget();
    ev_free(sim_server.ev);
    store_close(v.real);
    v.dead = false;
}

static void start_later(void *arg)
{
    (void)arg;
    server_start();
}

void server_kill(void)
{
    sim_trace("server: dead");
    unwire();
    sim_after(10 + sim_below(sim_chance(200) ? 60000 : 3000), start_later, NULL);
}

void server_kill_soon(void) { v.kill_in = (int)sim_below(40); }
void server_stop(void) { unwire(); }

void server_turn(void)
{
    if (sim_server.up)
        (void)ev_run_once(sim_server.ev, 0);
}
