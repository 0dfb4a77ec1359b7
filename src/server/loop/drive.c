/* drive.c - performs what decide() says: one job per session at a time, one transaction per step, everything under the session's lease. */
#include "server/loop/drive.h"

#include <string.h>

#include "base/clock.h"
#include "base/random.h"
#include "base/str.h"
#include "log/log.h"
#include "server/loop/drive_mcp.h"
#include "server/loop/tools.h"

#define LEASE_MS 30000
#define RETRY_BUDGET_MS 300000
#define RETRY_BASE_MS 500
#define RETRY_MAX_MS 30000
#define RECOVERIES_MAX 5
#define MCP_TIMEOUT_MS 300000
#define ORPHANS_MAX 1000
#define DRAIN_STEP_MS 20
#define COMPACT_RESERVE 8192

static void runner_job(void *arg);

/* ---- states ---- */
static struct cache_slot *slot_of(struct loop *l, const char *id)
{
    uint64_t h = 1469598103934665603u;
    for (const char *p = id; *p; p++)
        h = (h ^ (unsigned char)*p) * 1099511628211u;
    return &l->cache[h % CACHE_SLOTS];
}

void loop_state_keep(struct loop *l, const char *session_id, const struct turn_state *st)
{
    struct cache_slot *c = slot_of(l, session_id);
    pthread_mutex_lock(&l->cache_lock);
    if (!str_eq(c->id, session_id) || c->st.last_seq < st->last_seq) {
        turn_state_copy(&c->st, st);
        (void)str_copy(c->id, sizeof c->id, session_id);
    }
    pthread_mutex_unlock(&l->cache_lock);
}

int loop_state(struct loop *l, const char *session_id, struct turn_state *ret, struct err *e)
{
    struct cache_slot *c = slot_of(l, session_id);
    turn_state_init(ret);
    pthread_mutex_lock(&l->cache_lock);
    if (str_eq(c->id, session_id))
        turn_state_copy(ret, &c->st);
    pthread_mutex_unlock(&l->cache_lock);
    AUTO_PTR(arena) a = arena_new(64 * KIB, LOOP_ARENA_MAX);
    if (!a)
        return err_set(e, RC_NOMEM, "log of %s", session_id);
    struct store_event *rows = NULL;
    size_t n = 0;
    int rc = l->c.store->ops->event_scan(l->c.store, a, session_id, ret->last_seq, SCAN_MAX, false, &rows, &n, e);
    if (rc == RC_OK)
        rc = reduce_rows(ret, rows, n, e);
    if (rc < 0) {
        turn_state_done(ret);
        return rc;
    }
    if (n)
        loop_state_keep(l, session_id, ret);
    return RC_OK;
}

int64_t loop_compact_at(const struct loop *l, const struct model_caps *caps)
{
    if (l->c.compact_at_tokens > 0)
        return l->c.compact_at_tokens;
    int64_t out = caps->max_output_tokens < caps->context_tokens / 4 ? caps->max_output_tokens : caps->context_tokens / 4;
    int64_t at = caps->context_tokens - out - COMPACT_RESERVE;
    return at > 0 ? at : caps->context_tokens / 2;
}

/* ---- runners ---- */
static struct runner *find(struct loop *l, const char *id)
{
    list_foreach(r, &l->runners, struct runner, node) {
        if (str_eq(r->id, id))
            return r;
    }
    return NULL;
}

static void enqueue(struct runner *r)       /* under the mutex */
{
    r->dirty = true;
    if (r->busy)
        return;
    r->busy = true;
    jobs_add_always(r->l->c.jobs, runner_job, r);
}

void loop_wake(struct loop *l, const char *session_id)
{
    pthread_mutex_lock(&l->lock);
    struct runner *r = find(l, session_id);
    if (!r && !l->draining && !l->stopped) {
        r = xcalloc(1, sizeof *r);
        r->l = l;
        (void)str_copy(r->id, sizeof r->id, session_id);
        list_add_tail(&l->runners, &r->node);
        l->n_runners++;
    }
    if (r && !l->stopped)
        enqueue(r);
    pthread_mutex_unlock(&l->lock);
}

void runner_finished(struct runner *r)
{
    pthread_mutex_lock(&r->l->lock);
    if (r->l->stopped)
        r->busy = true;      /* nobody runs it any more */
    else
        enqueue(r);
    pthread_mutex_unlock(&r->l->lock);
}

/* ev thread */
static void on_retry_timer(struct ev_timer *t)
{
    struct runner *r = container_of(t, struct runner, timer);
    pthread_mutex_lock(&r->l->lock);
    r->timer_due = true;
    enqueue(r);
    pthread_mutex_unlock(&r->l->lock);
}

static void arm_timer(void *arg)
{
    struct runner *r = arg;
    int64_t in = r->wait_until_ms - clock_mono_ms();
    ev_timer_set(r->l->c.ev, &r->timer, in > 0 ? in : 0, on_retry_timer);
}

static void free_runner(void *arg)          /* ev thread: the timer is its own */
{
    struct runner *r = arg;
    ev_timer_stop(&r->timer);
    request_free(r->req);
    desk_free(r->desk);
    free(r);
}

/* ---- steps ---- */
static void put_note(struct step *s, enum note_kind kind)
{
    json_t *b = json_object();
    js_set_str(b, "kind", kind == NOTE_CUT ? "cut" : "continue");
    js_set_str(b, "text", kind == NOTE_CUT ? "Your last response was cut off by the output limit in the middle of a tool call, so the call was not made. Make it again, with less in one call."
                                           : "Please continue.");
    step_add_private(s, "turn.note", b);
}

static void do_interrupt(struct step *s)
{
    bool open = s->st.run != TURN_IDLE || turn_open_calls(&s->st) > 0;
    step_close_calls(s, "Tool execution was interrupted before completion. Please retry.");
    for (size_t i = 0; i < s->st.n_inputs;) {
        if (s->st.inputs[i].kind == INPUT_INTERRUPT) {
            char id[ID_MAX];
            memcpy(id, s->st.inputs[i].id, sizeof id);
            step_stamp(s, id, INPUT_INTERRUPT);      /* takes it out of the queue */
        } else {
            i++;
        }
    }
    if (open)
        step_idle_why(s, "end_turn");
}

static void open_request(struct step *s, bool compact, char span_id[ID_MAX])
{
    step_running(s);
    while (!compact && s->st.n_inputs > 0 && s->rc == RC_OK) {
        struct turn_input in = s->st.inputs[0];
        step_stamp(s, in.id, in.kind);
    }
    step_request_start(s, compact, span_id);
}

static void do_recover(struct step *s)
{
    char id[ID_MAX];
    memcpy(id, s->st.request_id, sizeof id);
    step_request_end(s, id, true, NULL);
    step_add_private(s, "turn.recovery", json_object());
    step_rescheduled(s);
}

static void do_end(struct step *s, bool refusal)
{
    if (!refusal) {
        step_idle_why(s, "end_turn");
        return;
    }
    json_t *r = json_object(), *details = NULL;
    struct err e;
    js_set_str(r, "type", "refusal");
    if (s->st.stop_details[0] && js_parse(s->st.stop_details, strlen(s->st.stop_details), JS_BODY_MAX, &details, &e) < 0)
        details = NULL;
    step_idle(s, r, details);
}

static void do_fail(struct step *s, const struct effect *ef)
{
    char type[64], msg[ERR_MSG_MAX];
    (void)str_copy(type, sizeof type, ef->error_type);
    (void)str_copy(msg, sizeof msg, ef->message);
    step_running(s);
    step_error(s, type, msg, "exhausted");
    step_flush_queued(s);
    step_idle_why(s, "retries_exhausted");
}

/* Written before the calls are made: after a crash it is known that they may have been. */
static void put_calls(struct step *s)
{
    json_t *ids = json_array(), *b = json_object();
    for (size_t i = 0; i < s->st.n_calls; i++) {
        const struct turn_call *c = &s->st.calls[i];
        if (c->kind == CALL_MCP && !c->answered && !c->started && turn_call_allowed(c))
            js_push(ids, json_string(c->id));
    }
    js_set(b, "ids", ids);
    step_running(s);
    step_add_private(s, "turn.call", b);
}

/* Calls that a process made which is gone. What changes nothing is made again; for the rest only the truth is left (service.md 3.6). */
static void recover_calls(struct step *s)
{
    json_t *again = json_array();
    for (size_t i = 0; i < s->st.n_calls; i++) {
        struct turn_call c = s->st.calls[i];
        if (c.kind != CALL_MCP || c.answered || !c.started)
            continue;
        if (c.read_only && c.starts < MCP_STARTS_MAX)
            js_push(again, json_string(c.id));
        else
            step_deny_result(s, c.id, "The server was restarted while this call was running. Whether it was carried out is not known: "
                                      "check before you make it again.");
    }
    if (json_array_size(again) > 0) {
        json_t *b = json_object();
        js_set(b, "ids", again);
        step_add_private(s, "turn.recall", b);
    } else {
        json_decref(again);
    }
}

struct outcome { enum effect_kind last; bool interrupted; char span_id[ID_MAX]; };

/* Asks decide() again after each effect, until something must happen outside of the log. */
static struct outcome fill_step(struct runner *r, struct step *s, const struct model_caps *caps, bool in_flight, bool mcp)
{
    struct outcome o = { .last = EFFECT_NONE };
    struct facts f = { .in_flight = in_flight, .mcp = mcp, .listing = desk_listing(r), .calls_in_flight = desk_calling(r), .waiting = r->wait_until_ms > clock_mono_ms(), .own_compaction = caps->compaction,
                       .compact_at = loop_compact_at(r->l, caps), .recoveries_max = r->l->c.recoveries_max };
    pthread_mutex_lock(&r->l->lock);
    f.draining = r->l->draining;
    pthread_mutex_unlock(&r->l->lock);
    for (int i = 0; i < STEP_EFFECTS_MAX && s->rc == RC_OK; i++) {
        struct effect ef = decide(&s->st, &f);
        o.last = ef.kind;
        switch (ef.kind) {
        case EFFECT_RECOVER: do_recover(s); break;
        case EFFECT_INTERRUPT:
            do_interrupt(s);
            o.interrupted = true;
            f.listing = f.calls_in_flight = false;
            break;
        case EFFECT_RECOVER_MCP: recover_calls(s); break;
        case EFFECT_NOTE: put_note(s, ef.note); break;
        case EFFECT_BLOCK: step_blocked(s); break;
        case EFFECT_END: do_end(s, ef.refusal); break;
        case EFFECT_FAIL: do_fail(s, &ef); break;
        case EFFECT_LIST_TOOLS:
            step_running(s);
            return o;
        case EFFECT_CALL_MCP:
            put_calls(s);
            return o;
        case EFFECT_CALL_MODEL:
        case EFFECT_COMPACT:
            open_request(s, ef.kind == EFFECT_COMPACT, o.span_id);
            return o;
        case EFFECT_NONE:
        case EFFECT_WAIT:
        case EFFECT_YIELD:
        case EFFECT_CANCEL:
        case EFFECT_KIND_MAX_:
            return o;
        }
    }
    return o;
}

/* The request could not even be made: told like an error of the model. */
static int fail_request(struct runner *r, const struct snapshot *snap, const char *span_id, const struct err *why, struct err *e)
{
    struct turn_state st;
    struct step s;
    TRY(loop_state(r->l, r->id, &st, e));
    int rc = step_init(&s, &st, r->id, snap->s.thread_id, snap->agent_name, clock_now_ms());
    turn_state_done(&st);
    step_request_end(&s, span_id, true, NULL);
    json_t *b = json_object();
    js_set_str(b, "type", why->rc == RC_LIMIT ? "compaction_limit_reached_error" : "model_request_failed_error");
    js_set_str(b, "message", why->msg);
    step_add_private(&s, "turn.failure", b);
    rc = step_commit(&s, r->l->c.store, r->l->c.owner, r->epoch, e);
    step_done(&s);
    return rc;
}

static int take_lease(struct runner *r, struct err *e)
{
    if (r->leased)
        return RC_OK;
    int64_t now = clock_now_ms();
    TRY(r->l->c.store->ops->lease_claim(r->l->c.store, r->id, r->l->c.owner, now, now + r->l->c.lease_ms, &r->epoch, e));
    r->leased = true;
    return RC_OK;
}

static bool finished(const struct runner *r) { return r->req && __atomic_load_n(&r->req->done, __ATOMIC_ACQUIRE); }

/* Something came in while the step was written: its state is read anew. */
static int reload(struct runner *r, struct step *s, struct err *e)
{
    struct turn_state now;
    TRY(loop_state(r->l, r->id, &now, e));
    turn_state_copy(&s->st, &now);
    turn_state_done(&now);
    return RC_OK;
}

/* One step. *ret_again: look again at once. */
static int run_once(struct runner *r, bool *ret_again, struct err *e)
{
    struct loop *l = r->l;
    struct snapshot snap = { 0 };
    struct turn_state st;
    struct step s;
    struct model_caps caps = { .context_tokens = 200000, .max_output_tokens = 8192 };
    const struct model_provider *p;
    void *self;
    int64_t wait_ms = 0;
    *ret_again = false;
    TRY(take_lease(r, e));
    TRY(snapshot_load(l->c.store, r->id, &snap, e));
    int rc = loop_state(l, r->id, &st, e);
    if (rc < 0) {
        snapshot_done(&snap);
        return rc;
    }
    (void)!model_resolve(l->c.models, snap.model, &p, &self, &caps);      /* an unknown model fails when the request is made */
    rc = snapshot_tools(l->c.store, &snap, st.tools_seq, e);
    if (rc < 0) {
        turn_state_done(&st);
        snapshot_done(&snap);
        return rc;
    }
    bool said = turn_has_input(&st, INPUT_MESSAGE);
    rc = step_init(&s, &st, r->id, snap.s.thread_id, snap.agent_name, clock_now_ms());
    turn_state_done(&st);
    bool take = finished(r);
    int64_t tools_seq = s.st.tools_seq;
    if (rc == RC_OK && take)
        request_finish(r, r->req, &snap, &caps, &s, &wait_ms);
    if (rc == RC_OK)
        desk_put(r, &snap, &s);
    if (wait_ms > 0)
        r->wait_until_ms = clock_mono_ms() + wait_ms;
    struct outcome o = fill_step(r, &s, &caps, r->req && !take, l->c.mcp && tools_any_mcp(snap.agent));
    if ((o.last == EFFECT_CALL_MODEL || o.last == EFFECT_LIST_TOOLS) && s.from == TURN_IDLE && said)      /* a new turn: a worker may get ready while the model thinks */
        s.ensure_work = tools_any_worker(snap.agent);
    rc = step_commit(&s, l->c.store, l->c.owner, r->epoch, e);
    if (rc == RC_OK) {
        if (!s.stale)
            loop_state_keep(l, r->id, &s.st);
        if (take) {
            request_free(r->req);
            r->req = NULL;
        }
        if (o.interrupted)
            desk_drop(r);
        else
            desk_taken(r);
        if (o.last == EFFECT_CANCEL)
            request_cancel(r);
        if (o.last == EFFECT_WAIT && r->wait_until_ms > clock_mono_ms() && !r->req)
            ev_post(l->c.ev, arm_timer, r);
        bool request = o.last == EFFECT_CALL_MODEL || o.last == EFFECT_COMPACT;
        if (s.stale && (request || o.last == EFFECT_CALL_MCP || o.last == EFFECT_LIST_TOOLS))
            rc = reload(r, &s, e);
        if (rc == RC_OK && o.last == EFFECT_LIST_TOOLS)
            desk_list(r, &snap, &s.st);
        if (rc == RC_OK && o.last == EFFECT_CALL_MCP)
            rc = desk_call(r, &snap, &s.st, e);
        if (request) {
            struct err why = { 0 };
            r->wait_until_ms = 0;
            if (rc == RC_OK && s.st.tools_seq != tools_seq) {        /* listed in this very step */
                json_decref(TAKE(snap.mcp));
                rc = snapshot_tools(l->c.store, &snap, s.st.tools_seq, e);
            }
            if (rc == RC_OK && request_start(r, &snap, &s.st, o.span_id, &why) < 0) {
                rc = fail_request(r, &snap, o.span_id, &why, e);
                *ret_again = true;
            }
        }
    }
    step_done(&s);
    snapshot_done(&snap);
    return rc;
}

/* Nothing under way: the session needs no memory and no lease here. Under the mutex; true: `r` is gone. */
static bool let_go(struct runner *r)
{
    if (r->req || desk_listing(r) || desk_calling(r) || (r->wait_until_ms > clock_mono_ms() && !r->l->draining))
        return false;
    list_del(&r->node);
    r->l->n_runners--;
    return true;
}

static void runner_job(void *arg)
{
    struct runner *r = arg;
    struct loop *l = r->l;
    int tries = 0;
    for (;;) {
        struct err e = { 0 };
        bool again = false;
        pthread_mutex_lock(&l->lock);
        r->dirty = false;
        bool stopped = l->stopped;
        pthread_mutex_unlock(&l->lock);
        if (stopped)
            return;
        int rc = run_once(r, &again, &e);
        if (rc == RC_CONFLICT && r->leased && ++tries < COMMIT_TRIES_MAX)
            continue;                                       /* the log moved while the step was built */
        if (rc == RC_PRECONDITION || rc == RC_NOT_FOUND || rc == RC_CONFLICT) {
            r->lost = rc != RC_CONFLICT || !r->leased;      /* another owner has it, or the session is deleted */
            if (r->lost)
                desk_drop(r);
            if (r->req && !finished(r)) {
                request_cancel(r);
                r->wait_until_ms = 0;
            } else if (r->req) {
                request_free(r->req);
                r->req = NULL;
            }
        } else if (rc < 0) {
            log_err(LOG_ERROR, "loop.step", &e);
            r->wait_until_ms = clock_mono_ms() + RETRY_BASE_MS * 4;
            ev_post(l->c.ev, arm_timer, r);
        } else if (again) {
            continue;
        }
        tries = 0;
        pthread_mutex_lock(&l->lock);
        if (r->dirty && !r->lost) {
            pthread_mutex_unlock(&l->lock);
            continue;
        }
        bool gone = let_go(r);
        if (!gone)
            r->busy = false;
        pthread_mutex_unlock(&l->lock);
        if (gone) {
            if (r->leased && !r->lost && l->c.store->ops->lease_release(l->c.store, r->id, l->c.owner, r->epoch, &e) < 0 && e.rc != RC_PRECONDITION && e.rc != RC_NOT_FOUND)
                log_err(LOG_DEBUG, "loop.release", &e);
            bool relook = r->dirty;
            char id[ID_MAX];
            memcpy(id, r->id, sizeof id);
            ev_post(l->c.ev, free_runner, r);
            if (relook)
                loop_wake(l, id);
        }
        return;
    }
}

/* ---- leases ---- */
static void on_renew(struct ev_timer *t);

static void renew_done(void *arg)
{
    struct loop *l = arg;
    l->renewing = false;
    if (!l->stopped)
        ev_timer_set(l->c.ev, &l->renew, l->c.lease_ms / 3, on_renew);
}

static void renew_job(void *arg)
{
    struct loop *l = arg;
    struct held { char id[ID_MAX]; int64_t epoch; } *held;
    size_t n = 0;
    pthread_mutex_lock(&l->lock);
    held = xcalloc(l->n_runners + 1, sizeof *held);
    list_foreach(r, &l->runners, struct runner, node) {
        if (r->leased && (r->req || r->desk || r->wait_until_ms)) {
            memcpy(held[n].id, r->id, ID_MAX);
            held[n++].epoch = r->epoch;
        }
    }
    pthread_mutex_unlock(&l->lock);
    for (size_t i = 0; i < n; i++) {
        struct err e = { 0 };
        if (l->c.store->ops->lease_renew(l->c.store, held[i].id, l->c.owner, held[i].epoch, clock_now_ms() + l->c.lease_ms, &e) < 0)
            loop_wake(l, held[i].id);        /* lost: its next step finds out */
    }
    free(held);
    ev_post(l->c.ev, renew_done, l);
}

static void on_renew(struct ev_timer *t)
{
    struct loop *l = container_of(t, struct loop, renew);
    l->renewing = true;
    jobs_add_always(l->c.jobs, renew_job, l);
}

/* ---- life ---- */
static void start_timers(void *arg)
{
    struct loop *l = arg;
    ev_timer_set(l->c.ev, &l->renew, l->c.lease_ms / 3, on_renew);
}

int loop_new(const struct loop_conf *c, struct loop **ret, struct err *e)
{
    (void)e;
    struct loop *l = xcalloc(1, sizeof *l);
    l->c = *c;
    l->c.lease_ms = c->lease_ms ? c->lease_ms : LEASE_MS;
    l->c.retry_budget_ms = c->retry_budget_ms ? c->retry_budget_ms : RETRY_BUDGET_MS;
    l->c.retry_base_ms = c->retry_base_ms ? c->retry_base_ms : RETRY_BASE_MS;
    l->c.retry_max_ms = c->retry_max_ms ? c->retry_max_ms : RETRY_MAX_MS;
    l->c.recoveries_max = c->recoveries_max ? c->recoveries_max : RECOVERIES_MAX;
    l->c.mcp_timeout_ms = c->mcp_timeout_ms ? c->mcp_timeout_ms : MCP_TIMEOUT_MS;
    pthread_mutex_init(&l->lock, NULL);
    pthread_mutex_init(&l->cache_lock, NULL);
    list_init(&l->runners);
    for (size_t i = 0; i < CACHE_SLOTS; i++)
        turn_state_init(&l->cache[i].st);
    ev_post(l->c.ev, start_timers, l);
    *ret = l;
    return RC_OK;
}

int loop_recover(struct loop *l, struct err *e)
{
    AUTO_PTR(arena) a = arena_new(16 * KIB, 4 * MIB);
    const char **ids = NULL;
    size_t n = 0;
    if (!a)
        return err_set(e, RC_NOMEM, "recover");
    TRY(l->c.store->ops->lease_orphans(l->c.store, a, clock_now_ms(), ORPHANS_MAX, &ids, &n, e));
    for (size_t i = 0; i < n; i++)
        loop_wake(l, ids[i]);
    return RC_OK;
}

size_t loop_running(const struct loop *l)
{
    struct loop *m = (struct loop *)(uintptr_t)l;
    pthread_mutex_lock(&m->lock);
    size_t n = m->n_runners;
    pthread_mutex_unlock(&m->lock);
    return n;
}

static void on_drain(struct ev_timer *t)
{
    struct loop *l = container_of(t, struct loop, drain);
    size_t n = loop_running(l);
    if (n && clock_mono_ms() < l->drain_until_ms) {
        pthread_mutex_lock(&l->lock);
        list_foreach(r, &l->runners, struct runner, node) {
            if (!r->req && !r->desk)
                enqueue(r);                  /* a retry delay is given up: the next owner goes on */
        }
        pthread_mutex_unlock(&l->lock);
        ev_timer_set(l->c.ev, &l->drain, DRAIN_STEP_MS, on_drain);
        return;
    }
    l->drained(l->drained_ctx);
}

void loop_drain(struct loop *l, int64_t grace_ms, void (*cb)(void *ctx), void *ctx)
{
    pthread_mutex_lock(&l->lock);
    l->draining = true;
    pthread_mutex_unlock(&l->lock);
    l->drained = cb;
    l->drained_ctx = ctx;
    l->drain_until_ms = clock_mono_ms() + grace_ms;
    ev_timer_set(l->c.ev, &l->drain, 0, on_drain);
}

/* On the ev thread, when no job runs any more. What is still open is left for the next start to recover. */
void loop_free(struct loop *l)
{
    if (!l)
        return;
    pthread_mutex_lock(&l->lock);
    l->stopped = true;
    pthread_mutex_unlock(&l->lock);
    ev_timer_stop(&l->renew);
    ev_timer_stop(&l->drain);
    list_foreach(r, &l->runners, struct runner, node) {
        list_del(&r->node);
        ev_timer_stop(&r->timer);
        if (r->req && r->req->call)
            r->req->provider->cancel(r->req->call);
        request_free(r->req);
        desk_free(r->desk);
        free(r);
    }
    for (size_t i = 0; i < CACHE_SLOTS; i++)
        turn_state_done(&l->cache[i].st);
    pthread_mutex_destroy(&l->lock);
    pthread_mutex_destroy(&l->cache_lock);
    free(l);
}
