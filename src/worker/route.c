/* worker/route.c - see route.h */
#include "worker/route.h"

#include <string.h>

#include "base/list.h"
#include "base/str.h"
#include "crypto/crypto.h"

#define KEY_BYTES 16                     /* of a SHA-256: ids come from a peer, and a collision would swallow a call */
#define FIRST_SLOTS 64

enum {
    ID_USED = 1, ID_SEEN = 2,            /* its call (or interrupt) has been taken in */
    ID_ANSWERED = 4, ID_ALLOWED = 8, ID_DENIED = 16,
    ID_RUNNING = 32,                     /* dispatched, route_finished() not yet called */
};

/* A call without result: met in the listing that is going on, or held for a confirmation. */
struct pending {
    struct list link;
    json_t *event;
    bool listed_again;                   /* held, and met in the listing that is going on */
    bool stale, interrupted;
};
struct id_slot { uint8_t key[KEY_BYTES]; uint8_t flags; struct pending *pending; };

struct route {
    const struct route_ops *ops;
    void *ctx;
    struct id_slot *slots;
    size_t cap, used;
    struct list listed, held;
    size_t n_listed, n_held, n_running;
    bool armed, ended, last_end_turn;
    uint64_t epoch;
};

/* ---- the table of ids ---- */

static void key_of(const char *id, uint8_t key[KEY_BYTES])
{
    uint8_t h[SHA256_BYTES];
    sha256(id, strlen(id), h);
    memcpy(key, h, KEY_BYTES);
}

static struct id_slot *probe(struct id_slot *slots, size_t cap, const uint8_t key[KEY_BYTES])
{
    uint64_t h;
    memcpy(&h, key, sizeof h);
    size_t i = (size_t)h & (cap - 1);
    while ((slots[i].flags & ID_USED) && memcmp(slots[i].key, key, KEY_BYTES) != 0)
        i = (i + 1) & (cap - 1);
    return &slots[i];
}

static const struct id_slot *look(const struct route *r, const char *id)
{
    uint8_t key[KEY_BYTES];
    key_of(id, key);
    struct id_slot *s = probe(r->slots, r->cap, key);
    return s->flags ? s : NULL;
}

static struct id_slot *slot_of(struct route *r, const char *id)
{
    uint8_t key[KEY_BYTES];
    key_of(id, key);
    struct id_slot *s = probe(r->slots, r->cap, key);
    if (s->flags & ID_USED)
        return s;
    if (r->used >= ROUTE_IDS_MAX)
        return NULL;
    if (r->used * 4 >= r->cap * 3) {
        struct id_slot *bigger = xcalloc(r->cap * 2, sizeof *bigger);
        for (size_t i = 0; i < r->cap; i++)
            if (r->slots[i].flags & ID_USED)
                *probe(bigger, r->cap * 2, r->slots[i].key) = r->slots[i];
        free(r->slots);
        r->slots = bigger;
        r->cap *= 2;
        s = probe(r->slots, r->cap, key);
    }
    memcpy(s->key, key, KEY_BYTES);
    s->flags = ID_USED;
    r->used++;
    return s;
}

/* ---- pending calls ---- */

static void pending_free(struct pending *p)
{
    list_del(&p->link);
    json_decref(p->event);
    free(p);
}

static const char *id_of(const json_t *ev, const char *key)
{
    const char *id = js_str(ev, key);
    return id && *id && strlen(id) <= ROUTE_ID_MAX ? id : NULL;
}

static void note(struct route *r, const char *what, const json_t *ev)
{
    if (r->ops->note)
        r->ops->note(r->ctx, what, js_str(ev, "id"), js_str(ev, "name"));
}

static bool our_call(const struct route *r, const json_t *ev)
{
    const char *name = js_str(ev, "name");
    /* A custom tool belongs to the application's back end even when it bears the name of one of ours (worker.md 4.4). */
    return name && str_eq(js_str(ev, "type"), "agent.tool_use") && r->ops->known(r->ctx, name);
}

static void dispatch(struct route *r, struct id_slot *s, const json_t *ev, bool interrupted)
{
    if (!our_call(r, ev)) {              /* another client answers it: post nothing, ever */
        note(r, "foreign", ev);
        return;
    }
    s->flags |= ID_RUNNING;
    r->n_running++;
    r->ops->dispatch(r->ctx, js_str(ev, "id"), js_str(ev, "name"), ev, interrupted);
}

static int hold(struct route *r, struct id_slot *s, const json_t *ev, struct err *e)
{
    if (r->n_held >= ROUTE_PENDING_MAX)
        return err_set(e, RC_LIMIT, "more than %d tool calls wait for a confirmation", ROUTE_PENDING_MAX);
    struct pending *p = xcalloc(1, sizeof *p);
    p->event = json_incref((json_t *)(uintptr_t)ev);
    list_add_tail(&r->held, &p->link);
    r->n_held++;
    s->pending = p;
    note(r, "held", ev);
    return RC_OK;
}

/* The table of worker.md 4.4, "Route". */
static int route_call(struct route *r, struct id_slot *s, const json_t *ev, bool interrupted, struct err *e)
{
    const char *perm = js_str(ev, "evaluated_permission");
    bool absent = !js_at(ev, "evaluated_permission") || js_is_null(ev, "evaluated_permission");
    if (str_eq(perm, "deny") || (s->flags & ID_DENIED)) {        /* the server resolves a denied call itself */
        s->flags |= ID_ANSWERED;
        note(r, "denied", ev);
        return RC_OK;
    }
    if (absent || str_eq(perm, "allow") || (s->flags & ID_ALLOWED)) {
        dispatch(r, s, ev, interrupted);
        return RC_OK;
    }
    if (!our_call(r, ev)) {
        note(r, "foreign", ev);
        return RC_OK;
    }
    return hold(r, s, ev, e);            /* "ask", and any value we do not know: fail closed */
}

/* An interrupt and then the end of the turn: nobody will confirm the held calls any more. */
static void mark_interrupted(struct route *r, bool listing)
{
    list_foreach(p, &r->listed, struct pending, link)
        p->interrupted = true;
    list_foreach(h, &r->held, struct pending, link)
        h->interrupted = !listing || h->listed_again;
}

static void mark_stale(struct route *r)
{
    list_foreach(p, &r->listed, struct pending, link)
        p->stale = true;                 /* the turn is over: nobody waits for what it left open */
    list_foreach(h, &r->held, struct pending, link)
        h->stale = h->interrupted;
}

static void unhold(struct route *r, struct id_slot *s)
{
    pending_free(TAKE(s->pending));
    r->n_held--;
    if (r->armed)
        r->epoch++;                      /* a full window starts when the last hindrance is gone */
}

/* ---- events ---- */

static int take_answer(struct route *r, const char *id, struct err *e)
{
    if (!id)
        return RC_OK;
    struct id_slot *s = slot_of(r, id);
    if (!s)
        return err_set(e, RC_LIMIT, "the session has more than %d tool calls", ROUTE_IDS_MAX);
    s->flags |= ID_ANSWERED;
    return RC_OK;
}

static int take_verdict(struct route *r, const json_t *ev, struct err *e)
{
    const char *id = id_of(ev, "tool_use_id");
    if (!id)
        return RC_OK;
    struct id_slot *s = slot_of(r, id);
    if (!s)
        return err_set(e, RC_LIMIT, "the session has more than %d tool calls", ROUTE_IDS_MAX);
    if (!(s->flags & (ID_ANSWERED | ID_ALLOWED | ID_DENIED)))    /* the first one counts; anything but "allow" denies */
        s->flags |= str_eq(js_str(ev, "result"), "allow") ? ID_ALLOWED : ID_DENIED;
    return RC_OK;
}

static bool is_call(const char *type)
{
    return str_eq(type, "agent.tool_use") || str_eq(type, "agent.custom_tool_use");
}

static bool is_end(const char *type)
{
    return str_eq(type, "session.status_terminated") || str_eq(type, "session.deleted");
}

static bool is_end_turn(const json_t *ev, const char *type)
{
    return str_eq(type, "session.status_idle") && str_eq(js_str(ev, "stop_reason.type"), "end_turn");
}

/* True when this interrupt was not met before: the same one is streamed again once it is processed. One without id is always new. */
static bool interrupt_is_new(struct route *r, const json_t *ev)
{
    const char *id = id_of(ev, "id");
    struct id_slot *s = id ? slot_of(r, id) : NULL;
    if (!s)
        return true;
    bool is_new = !(s->flags & ID_SEEN);
    s->flags |= ID_SEEN;
    return is_new;
}

void route_history_begin(struct route *r)
{
    route_history_abort(r);
    list_foreach(h, &r->held, struct pending, link)
        h->listed_again = false;
    r->armed = false;
    r->last_end_turn = false;
}

static int history_call(struct route *r, const json_t *ev, struct err *e)
{
    const char *id = id_of(ev, "id");
    if (!id)
        return RC_OK;
    struct id_slot *s = slot_of(r, id);
    if (!s || r->n_listed >= ROUTE_PENDING_MAX)
        return err_set(e, RC_LIMIT, "the session has more than %d tool calls, or %d without a result", ROUTE_IDS_MAX, ROUTE_PENDING_MAX);
    if (s->pending)
        s->pending->listed_again = true;
    if (s->flags & (ID_SEEN | ID_ANSWERED))
        return RC_OK;
    s->flags |= ID_SEEN;
    s->pending = xcalloc(1, sizeof *s->pending);
    s->pending->event = json_incref((json_t *)(uintptr_t)ev);
    list_add_tail(&r->listed, &s->pending->link);
    r->n_listed++;
    return RC_OK;
}

static int history_answer(struct route *r, const char *id, struct err *e)
{
    TRY(take_answer(r, id, e));
    struct id_slot *s = id ? slot_of(r, id) : NULL;
    if (!s || !s->pending)
        return RC_OK;
    list_foreach(p, &r->listed, struct pending, link)
        if (p == s->pending) {           /* keeps the list as long as what is open, not as the history */
            s->pending = NULL;
            pending_free(p);
            r->n_listed--;
            return RC_OK;
        }
    return RC_OK;                        /* a held one: resolved at the end */
}

int route_history_event(struct route *r, const json_t *ev, struct err *e)
{
    const char *type = js_str(ev, "type");
    r->last_end_turn = is_end_turn(ev, type);
    if (is_call(type))
        return history_call(r, ev, e);
    if (str_eq(type, "user.tool_result") || str_eq(type, "agent.tool_result"))
        return history_answer(r, id_of(ev, "tool_use_id"), e);
    if (str_eq(type, "user.custom_tool_result"))
        return history_answer(r, id_of(ev, "custom_tool_use_id"), e);
    if (str_eq(type, "user.tool_confirmation"))
        return take_verdict(r, ev, e);
    if (is_end(type))
        r->ended = true;
    if (str_eq(type, "user.interrupt")) {
        (void)interrupt_is_new(r, ev);
        mark_interrupted(r, true);
    }
    if (r->last_end_turn)
        mark_stale(r);
    return RC_OK;
}

static int settle_held(struct route *r, struct err *e)
{
    list_foreach(p, &r->held, struct pending, link) {
        struct id_slot *s = slot_of(r, js_str(p->event, "id"));
        bool stale = p->stale, interrupted = p->interrupted;
        if (!s || (!stale && !(s->flags & (ID_ANSWERED | ID_ALLOWED | ID_DENIED))))
            continue;
        json_t *ev = json_incref(p->event);
        unhold(r, s);
        int rc = RC_OK;
        if (stale)
            note(r, "stale", ev);
        else if (!(s->flags & ID_ANSWERED))
            rc = route_call(r, s, ev, interrupted, e);
        json_decref(ev);
        TRY(rc);
    }
    return RC_OK;
}

int route_history_end(struct route *r, struct err *e)
{
    TRY(settle_held(r, e));
    list_foreach(p, &r->listed, struct pending, link) {
        struct id_slot *s = slot_of(r, js_str(p->event, "id"));
        json_t *ev = json_incref(p->event);
        bool stale = p->stale, interrupted = p->interrupted;
        s->pending = NULL;
        pending_free(p);
        r->n_listed--;
        int rc = RC_OK;
        if (stale)
            note(r, "stale", ev);
        else if (!(s->flags & ID_ANSWERED))
            rc = route_call(r, s, ev, interrupted, e);
        json_decref(ev);
        TRY(rc);
    }
    if (r->last_end_turn) {
        r->armed = true;
        r->epoch++;
    }
    return RC_OK;
}

void route_history_abort(struct route *r)
{
    list_foreach(p, &r->listed, struct pending, link) {
        struct id_slot *s = slot_of(r, js_str(p->event, "id"));
        s->flags &= (uint8_t)~ID_SEEN;
        s->pending = NULL;
        pending_free(p);
    }
    r->n_listed = 0;
}

static int live_call(struct route *r, const json_t *ev, struct err *e)
{
    const char *id = id_of(ev, "id");
    if (!id)
        return RC_OK;
    struct id_slot *s = slot_of(r, id);
    if (!s)
        return err_set(e, RC_LIMIT, "the session has more than %d tool calls", ROUTE_IDS_MAX);
    if (s->flags & ID_SEEN)
        return RC_OK;
    s->flags |= ID_SEEN;
    return s->flags & ID_ANSWERED ? RC_OK : route_call(r, s, ev, false, e);
}

int route_live(struct route *r, const json_t *ev, struct err *e)
{
    const char *type = js_str(ev, "type");
    if (!type)
        return RC_OK;
    if (!str_eq(type, "user.tool_confirmation"))         /* neutral; every other event disarms the idle clock */
        r->armed = false;
    if (is_end_turn(ev, type)) {
        r->armed = true;
        r->epoch++;
        mark_stale(r);
        return settle_held(r, e);
    }
    if (is_call(type))
        return live_call(r, ev, e);
    if (str_eq(type, "user.tool_result") || str_eq(type, "agent.tool_result")) {
        TRY(take_answer(r, id_of(ev, "tool_use_id"), e));
        return settle_held(r, e);
    }
    if (str_eq(type, "user.custom_tool_result"))
        return take_answer(r, id_of(ev, "custom_tool_use_id"), e);
    if (str_eq(type, "user.tool_confirmation")) {
        TRY(take_verdict(r, ev, e));
        return settle_held(r, e);
    }
    if (str_eq(type, "user.interrupt") && interrupt_is_new(r, ev)) {
        mark_interrupted(r, false);
        r->ops->interrupt(r->ctx);
    }
    if (is_end(type))
        r->ended = true;
    return RC_OK;
}

/* ---- questions ---- */

bool route_answered(const struct route *r, const char *id)
{
    const struct id_slot *s = look(r, id);
    return s && (s->flags & ID_ANSWERED);
}

void route_finished(struct route *r, const char *id)
{
    struct id_slot *s = slot_of(r, id);
    if (!s || !(s->flags & ID_RUNNING))
        return;
    s->flags = (uint8_t)((s->flags & ~ID_RUNNING) | ID_ANSWERED);
    r->n_running--;
    if (r->armed)
        r->epoch++;
}

bool route_ended(const struct route *r)
{
    return r->ended;
}

bool route_idle(const struct route *r, uint64_t *ret_epoch)
{
    *ret_epoch = r->epoch;
    return r->armed && r->n_held == 0 && r->n_running == 0;
}

size_t route_outstanding(const struct route *r)
{
    return r->n_held + r->n_running;
}

struct route *route_new(const struct route_ops *ops, void *ctx)
{
    struct route *r = xcalloc(1, sizeof *r);
    r->ops = ops;
    r->ctx = ctx;
    r->cap = FIRST_SLOTS;
    r->slots = xcalloc(r->cap, sizeof *r->slots);
    list_init(&r->listed);
    list_init(&r->held);
    return r;
}

void route_free(struct route *r)
{
    if (!r)
        return;
    list_foreach(p, &r->listed, struct pending, link)
        pending_free(p);
    list_foreach(h, &r->held, struct pending, link)
        pending_free(h);
    free(r->slots);
    free(r);
}
