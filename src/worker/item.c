/* worker/item.c - see item.h */
#include "worker/item.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/random.h"
#include "base/str.h"
#include "log/log.h"
#include "worker/box.h"
#include "worker/creds.h"
#include "worker/dispatch.h"
#include "worker/record.h"
#include "worker/release.h"
#include "worker/session.h"
#include "worker/skills.h"
#include "worker/status.h"

#define ACK_MS 15000
#define GET_SESSION_MS 30000
#define GET_SESSION_TRIES 6
#define SKILLS_REMOVE_MS 5000

enum item_state { ITEM_ACKING, ITEM_SERVING, ITEM_DRAINING, ITEM_REMOVING, ITEM_RELEASING };

struct item {
    struct list link;
    struct worker *w;
    char *work_id, *session_id;
    struct secret *token;              /* NULL: the environment key serves */
    enum item_state state;
    bool held, have_session, skills_done, lost;
    enum item_outcome outcome;
    struct api_call *call;             /* ack, then session get */
    struct backoff backoff;
    int tries;
    struct lease *lease;
    struct box *box;
    struct dispatch *dispatch;
    struct session *session;
    struct skills *skills;
    struct ev_timer timer;             /* retry of the session get; then the bound of the removal */
    int64_t begun_ms;
    char why[200];
};

static void get_session(struct item *it);
static void wind_up(struct item *it, bool failed, const char *why);
static void serve(struct item *it);

static const struct secret *cred_of(const struct item *it)
{
    return it->token ? it->token : it->w->env_key;
}

static void record_session(struct item *it, const char *change)
{
    json_t *f = json_object();
    js_set_str(f, "session", it->session_id);
    js_set_str(f, "work", it->work_id);
    js_set_str(f, "change", change);
    if (it->why[0])
        js_set_str(f, "why", it->why);
    record_add(it->w->record, "session", f);
}

/* ---- the end ---- */

/* Marks when the session was last served: --keep-sessions counts from here. */
static void touch_state(struct item *it)
{
    AUTO_FREE char *dir = str_printf("%s/sessions/%s", it->w->set.state_dir, it->session_id);
    if (utimensat(AT_FDCWD, dir, NULL, AT_SYMLINK_NOFOLLOW) < 0 && errno != ENOENT)
        log_debug("session.touch", "session=%s errno=%d", it->session_id, errno);
}

/* The sandbox last: the others may have a request in it. */
static void drop_parts(struct item *it)
{
    session_free(TAKE(it->session));
    skills_free(TAKE(it->skills));
    dispatch_free(TAKE(it->dispatch));
    box_free(TAKE(it->box));
}

static void item_free(struct item *it)
{
    struct worker *w = it->w;
    enum item_outcome outcome = it->outcome;
    api_cancel(it->call);
    ev_timer_stop(&it->timer);
    drop_parts(it);
    lease_free(it->lease);
    list_del(&it->link);
    w->n_items--;
    status_sessions(w->status, w->n_items);
    secret_free(it->token);
    free(it->work_id);
    free(it->session_id);
    free(it);
    worker_item_gone(w, outcome);
}

static void on_released(void *ctx)
{
    item_free(ctx);
}

static void release(struct item *it)
{
    it->state = ITEM_RELEASING;
    ev_timer_stop(&it->timer);
    drop_parts(it);
    if (it->session_id)
        touch_state(it);
    lease_free(TAKE(it->lease));       /* after everything that must not lose the lease */
    record_session(it, "end");
    log_info("session.end", "session=%s work=%s why=%s ms=%lld", it->session_id, it->work_id, it->why,
             (long long)(ev_now_ms(it->w->ev) - it->begun_ms));
    if (it->lost)
        item_free(it);                 /* another worker's item now: it must not be stopped */
    else
        work_release(it->w, it->work_id, cred_of(it), true, on_released, it);
}

static void on_removed(void *ctx)
{
    release(ctx);
}

static void on_remove_timeout(struct ev_timer *t)
{
    release(container_of(t, struct item, timer));
}

static void on_drained(void *ctx)
{
    struct item *it = ctx;
    it->state = ITEM_REMOVING;
    if (!it->skills) {
        release(it);
        return;
    }
    ev_timer_set(it->w->ev, &it->timer, SKILLS_REMOVE_MS, on_remove_timeout);
    skills_remove(it->skills, on_removed, it);
}

/* In a turn of its own, since the callers stand inside the parts that are ended here. */
static void on_wind_up(struct ev_timer *t)
{
    struct item *it = container_of(t, struct item, timer);
    session_free(TAKE(it->session));
    if (it->lost || !it->dispatch || !it->held)
        release(it);
    else
        dispatch_drain(it->dispatch, it->why, ITEM_DRAIN_MS, on_drained, it);
}

static void wind_up(struct item *it, bool failed, const char *why)
{
    if (it->state >= ITEM_DRAINING)
        return;
    it->state = ITEM_DRAINING;
    if (failed)
        it->outcome = ITEM_FAILED;
    (void)str_copy(it->why, sizeof it->why, why);
    api_cancel(TAKE(it->call));
    ev_timer_set(it->w->ev, &it->timer, 0, on_wind_up);
}

/* ---- lease ---- */

static void maybe_open(struct item *it)
{
    if (it->held && it->skills_done && it->state == ITEM_SERVING)
        dispatch_open(it->dispatch);
}

static void on_lease(void *ctx, enum lease_news n, const char *why)
{
    struct item *it = ctx;
    switch (n) {
    case LEASE_HELD:
        it->held = true;
        maybe_open(it);
        return;
    case LEASE_STOP:
        wind_up(it, false, "the service asked for the end");
        return;
    case LEASE_LOST:
        it->lost = true;
        break;
    case LEASE_REFUSED:
        break;
    }
    /* Nothing more may be posted, so nothing more runs. What already winds up is cut short. */
    it->held = false;
    drop_parts(it);
    if (it->state < ITEM_DRAINING)
        wind_up(it, true, why);
    else
        ev_timer_set(it->w->ev, &it->timer, 0, on_remove_timeout);
}

/* ---- session ---- */

static int64_t op_window_ms(void *ctx)
{
    struct item *it = ctx;
    return lease_window_ms(it->lease);
}

static bool op_answered(void *ctx, const char *id)
{
    struct item *it = ctx;
    return it->session && session_answered(it->session, id);
}

static void op_finished(void *ctx, const char *id)
{
    struct item *it = ctx;
    if (it->session)
        session_finished(it->session, id);
}

static void on_session_end(void *ctx, enum session_end how, const char *why)
{
    struct item *it = ctx;
    wind_up(it, how == SESSION_REFUSED || how == SESSION_BROKEN, why);
}

static void on_skills(void *ctx)
{
    struct item *it = ctx;
    it->skills_done = true;
    maybe_open(it);
}

static void warn_memory(struct item *it, const json_t *session)
{
    size_t i;
    json_t *r;
    json_array_foreach(js_at(session, "resources"), i, r) {
        if (!str_eq(js_str(r, "type"), "memory_store"))
            continue;
        log_warn("session.memory", "session=%s why=%s", it->session_id, "memory stores are not mounted by this worker");
        return;
    }
}

static void on_get_retry(struct ev_timer *t)
{
    get_session(container_of(t, struct item, timer));
}

static void on_session(void *ctx, const struct api_answer *a)
{
    struct item *it = ctx;
    it->call = NULL;
    if (a->outcome == API_OK && a->json) {
        it->have_session = true;
        warn_memory(it, a->json);
        struct skills_conf c = { .w = it->w, .box = it->box, .session_id = it->session_id, .cred = cred_of(it),
                                 .fallback = it->token ? it->w->env_key : NULL, .done = on_skills, .ctx = it };
        it->skills = skills_start(&c, js_at(a->json, "agent.skills"));
        if (!it->skills)
            on_skills(it);
        return;
    }
    if (a->outcome == API_FATAL || ++it->tries >= GET_SESSION_TRIES) {
        log_warn("session.get_failed", "session=%s why=%s", it->session_id, a->why);
        wind_up(it, true, "the session could not be read");
        return;
    }
    int64_t in = backoff_next(&it->backoff, random_unit());
    ev_timer_set(it->w->ev, &it->timer, a->retry_after_ms > in ? a->retry_after_ms : in, on_get_retry);
}

static void get_session(struct item *it)
{
    char path[API_PATH_MAX];
    (void)snprintf(path, sizeof path, "/v1/sessions/%s?beta=true", it->session_id);
    struct api_req r = { .method = "GET", .path = path, .cred = cred_of(it), .timeout_ms = GET_SESSION_MS, .body_max = 8 * MIB, .done = on_session, .ctx = it };
    it->call = api_start(&it->w->api, &r);
}

/* Everything that can go at once does: heartbeat, session, stream, sandbox. Calls wait for the first heartbeat and the skills. */
static void serve(struct item *it)
{
    struct worker *w = it->w;
    it->state = ITEM_SERVING;
    it->backoff = backoff_stream;
    it->lease = lease_start(w, it->work_id, cred_of(it), on_lease, it);
    it->box = box_new(w, it->session_id);
    box_open(it->box);
    get_session(it);
    struct dispatch_conf dc = { .w = w, .box = it->box, .session_id = it->session_id, .work_id = it->work_id, .cred = cred_of(it),
                                .window_ms = op_window_ms, .answered = op_answered, .finished = op_finished, .ctx = it };
    it->dispatch = dispatch_new(&dc);
    struct session_conf sc = { .w = w, .session_id = it->session_id, .cred = cred_of(it), .dispatch = it->dispatch, .ended = on_session_end, .ctx = it };
    it->session = session_start(&sc);
    record_session(it, "begin");
    log_info("session.begin", "session=%s work=%s", it->session_id, it->work_id);
}

static struct item *item_new(struct worker *w, const char *work_id, const char *session_id, struct secret *token)
{
    struct item *it = xcalloc(1, sizeof *it);
    it->w = w;
    it->work_id = str_dup(work_id);
    it->session_id = str_dup(session_id);
    it->token = token;
    it->begun_ms = ev_now_ms(w->ev);
    list_add_tail(&w->items, &it->link);
    w->n_items++;
    status_sessions(w->status, w->n_items);
    return it;
}

void item_serve(struct worker *w, const char *work_id, const char *session_id, struct secret *token)
{
    serve(item_new(w, work_id, session_id, token));
}

/* ---- claim ---- */

static void on_ack(void *ctx, const struct api_answer *a)
{
    struct item *it = ctx;
    it->call = NULL;
    if (it->state != ITEM_ACKING)
        return;
    if (a->outcome == API_OK) {
        if (it->session_id) {
            serve(it);
        } else {
            it->state = ITEM_DRAINING;
            log_info("work.no_session", "work=%s", it->work_id);
            release(it);
        }
        return;
    }
    log_warn("work.ack_failed", "work=%s why=%s", it->work_id, a->why);
    it->state = ITEM_DRAINING;
    it->outcome = ITEM_NOT_CLAIMED;
    it->lost = a->outcome == API_RETRY;        /* it comes back to some poll by itself; only a final refusal is worth a stop */
    (void)str_copy(it->why, sizeof it->why, "it could not be acknowledged");
    release(it);
}

bool item_id_ok(const char *id)
{
    size_t n = id ? strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") : 0;
    return n && n <= 90 && id[n] == 0;         /* a directory name of the sandbox's state, and part of URLs */
}

int item_claimed(struct worker *w, const json_t *work, struct err *e)
{
    const char *id = js_str(work, "id"), *type = js_str(work, "data.type"), *session = js_str(work, "data.id"), *text = js_str(work, "secret");
    if (!item_id_ok(id))
        return err_set(e, RC_INVALID, "a work item without a usable id");
    bool is_session = str_eq(type, "session");
    if (is_session && !item_id_ok(session))
        return err_set(e, RC_INVALID, "work item %s without a usable session id", id);
    if (is_session && items_serve_session(w, session))
        return err_set(e, RC_CONFLICT, "work item %s names session %s, which is served here already", id, session);
    struct secret *token = NULL;
    struct err why;
    if (text && creds_decode(text, strlen(text), &token, &why) < 0)
        log_warn("work.secret", "work=%s why=%s use=%s", id, why.msg, "the environment key");
    struct item *it = item_new(w, id, is_session ? session : NULL, token);
    if (!is_session)
        (void)str_copy(it->why, sizeof it->why, "no session to serve");
    log_info("work.claimed", "work=%s type=%s session=%s", id, type, session);
    char path[API_PATH_MAX];
    (void)snprintf(path, sizeof path, "/v1/environments/%s/work/%s/ack?beta=true", w->set.environment_id, id);
    struct api_req r = { .method = "POST", .path = path, .cred = w->env_key, .timeout_ms = ACK_MS, .raw = true, .done = on_ack, .ctx = it };
    it->call = api_start(&w->api, &r);
    return RC_OK;
}

/* ---- all items ---- */

void items_stop(struct worker *w, const char *why)
{
    list_foreach(it, &w->items, struct item, link) {
        if (it->state == ITEM_ACKING)
            it->lost = true;           /* not ours yet: it returns to the queue by itself */
        wind_up(it, false, why);
    }
}

bool items_overdue(const struct worker *w)
{
    list_foreach(it, &w->items, struct item, link)
        if (it->lease && lease_overdue(it->lease))
            return true;
    return false;
}

bool items_serve_session(const struct worker *w, const char *session_id)
{
    list_foreach(it, &w->items, struct item, link)
        if (it->state < ITEM_RELEASING && str_eq(it->session_id, session_id))
            return true;
    return false;
}
