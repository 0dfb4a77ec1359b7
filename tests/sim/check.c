/* check.c - what must hold, whatever happens. Reads each session's log from the store itself and keeps a copy: what was written once must stay as it is. */
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "server/events/frames.h"
#include "sim.h"

#define ARENA_MAX (64 * MIB)
#define SCAN_MAX 100000
#define PIECE_BYTES 600              /* of the log, as a reader of a stream is given it */

struct sim_session sim_session[SIM_SESSIONS_MAX];
size_t sim_n_sessions;

static struct { char work_id[ID_MAX]; int worker; int64_t until_ms; } hold[SIM_SESSIONS_MAX];
static char open_request[SIM_SESSIONS_MAX][ID_MAX];

struct pos { int64_t at; size_t i; bool stamp; };

void check_reset(void)
{
    memset(sim_session, 0, sizeof sim_session);
    memset(hold, 0, sizeof hold);
    memset(open_request, 0, sizeof open_request);
    sim_n_sessions = 0;
}

struct sim_session *sim_session_find(const char *id)
{
    for (size_t i = 0; i < sim_n_sessions; i++)
        if (str_eq(sim_session[i].id, id))
            return &sim_session[i];
    return NULL;
}

static uint64_t hash_of(const struct store_event *v)
{
    uint64_t h = 14695981039346656037u;
    for (const char *part[] = { v->type, v->body }, **p = part; p < part + 2; p++)
        for (const char *c = *p; *c; c++)
            h = (h ^ (uint8_t)*c) * 1099511628211u;
    return h;
}

static enum sim_kind kind_of(const char *type)
{
    if (str_eq(type, "agent.tool_use"))
        return K_CALL;
    if (str_eq(type, "agent.custom_tool_use"))
        return K_CALL_CUSTOM;
    if (str_eq(type, "user.tool_result") || str_eq(type, "user.custom_tool_result") || str_eq(type, "agent.tool_result"))
        return K_RESULT;
    return str_eq(type, "user.tool_confirmation") ? K_CONFIRM : K_OTHER;
}

static struct sim_event *find(struct sim_session *s, const char *id)
{
    for (size_t i = 0; id[0] && i < s->n; i++)
        if (str_eq(s->ev[i].id, id))
            return &s->ev[i];
    return NULL;
}

static bool queued_kind(const char *type) { return str_eq(type, "user.message") || str_eq(type, "user.interrupt"); }

/* ---- the rules of the log ---- */
static void rule_result(struct sim_session *s, const struct sim_event *v, const json_t *body)
{
    struct sim_event *c = find(s, v->ref);
    char want[32];
    if (!c || (c->kind != K_CALL && c->kind != K_CALL_CUSTOM))
        sim_fail("%s: %s answers '%s', which is no call", s->id, v->type, v->ref);
    if (c->answered)
        sim_fail("%s: the call %s has two results", s->id, c->id);
    c->answered = true;
    if (js_bool(body, "is_error", false))        /* the server's own: denied, interrupted, no such tool */
        return;
    if (str_eq(v->type, "user.tool_result") && (c->kind != K_CALL || (c->ask && !c->allowed)))
        sim_fail("%s: a worker's result for %s, which it may not run", s->id, c->id);
    (void)snprintf(want, sizeof want, "ran %ld", c->number);
    const char *text = js_str(body, "content.0.text");
    if (!str_eq(text, want))
        sim_fail("%s: the result of %s says '%s', not '%s'", s->id, c->id, text ? text : "", want);
}

static void rule_confirm(struct sim_session *s, const struct sim_event *v, const json_t *body)
{
    struct sim_event *c = find(s, v->ref);
    if (!c || !c->ask || c->allowed || c->denied || c->answered)
        sim_fail("%s: a confirmation for '%s', which needs none", s->id, v->ref);
    c->allowed = str_eq(js_str(body, "result"), "allow");
    c->denied = !c->allowed;
}

static size_t open_calls(const struct sim_session *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++)
        n += (s->ev[i].kind == K_CALL || s->ev[i].kind == K_CALL_CUSTOM) && !s->ev[i].answered;
    return n;
}

static void rule_status(struct sim_session *s, const struct sim_event *v, const json_t *body)
{
    const char *to = v->type + strlen("session.status_"), *stop = js_str(body, "stop_reason.type");
    if (str_eq(s->status, "terminated"))
        sim_fail("%s: %s after the end", s->id, v->type);
    if (str_eq(to, "running") && str_eq(s->status, "running"))
        sim_fail("%s: begins to run twice", s->id);
    (void)str_copy(s->status, sizeof s->status, to);
    (void)str_copy(s->stop, sizeof s->stop, stop ? stop : "");
    if (str_eq(to, "idle") && str_eq(s->stop, "requires_action") != (open_calls(s) > 0))
        sim_fail("%s: idle (%s) with %zu open calls", s->id, s->stop, open_calls(s));
    if (str_eq(to, "idle") && open_request[s - sim_session][0])
        sim_fail("%s: idle with an open model request", s->id);
}

static void rule_span(struct sim_session *s, const struct sim_event *v, const json_t *body)
{
    char *open = open_request[s - sim_session];
    if (str_eq(v->type, "span.model_request_start")) {
        if (open[0])
            sim_fail("%s: two model requests at once", s->id);
        (void)str_copy(open, ID_MAX, v->id);
    } else {
        if (!str_eq(js_str(body, "model_request_start_id"), open))
            sim_fail("%s: the end of a model request that is not open", s->id);
        open[0] = 0;
    }
}

static void rules(struct sim_session *s, struct sim_event *v, bool stamp, const char *text)
{
    struct err e;
    AUTO_JS body = NULL;
    if (js_parse(text, strlen(text), JS_BODY_MAX, &body, &e) < 0)
        sim_fail("%s: position %lld: %s", s->id, (long long)v->seq, e.msg);
    sim_trace("log: %s %lld %s%s", s->id + strlen(s->id) - 4, (long long)(stamp ? v->processed_seq : v->seq), v->type, stamp ? " (consumed)" : v->is_private ? "" : v->processed_seq ? "" : " (queued)");
    if (stamp)
        return;
    switch (v->kind) {
    case K_CALL:
    case K_CALL_CUSTOM:
        v->ask = str_eq(js_str(body, "evaluated_permission"), "ask");
        v->number = (long)js_int(body, "input.n", -1);
        break;
    case K_RESULT: rule_result(s, v, body); break;
    case K_CONFIRM: rule_confirm(s, v, body); break;
    case K_OTHER: break;
    }
    if (str_prefix(v->type, "session.status_"))
        rule_status(s, v, body);
    else if (str_prefix(v->type, "span.model_request_"))
        rule_span(s, v, body);
    else if (queued_kind(v->type) && v->processed_seq == v->seq)
        sim_fail("%s: %s was never queued", s->id, v->type);
}

/* ---- reading ---- */
static struct arena *arena(void)
{
    struct arena *a = arena_new(64 * KIB, ARENA_MAX);
    if (!a)
        sim_fail("no memory");
    return a;
}

static struct store_event *scan(struct arena *a, const struct sim_session *s, int64_t after, size_t *ret_n)
{
    struct store_event *rows = NULL;
    struct err e = { 0 };
    if (server_truth()->ops->event_scan(server_truth(), a, s->id, after, SCAN_MAX, false, &rows, ret_n, &e) < 0)
        sim_fail("%s: %s", s->id, e.msg);
    return rows;
}

static struct sim_event *take(struct sim_session *s, const struct store_event *v)
{
    if (s->n == SIM_EVENTS_MAX)
        sim_fail("%s: more than %d events", s->id, SIM_EVENTS_MAX);
    struct sim_event *mine = &s->ev[s->n++];
    *mine = (struct sim_event){ .seq = v->seq, .processed_seq = v->processed_seq, .hash = hash_of(v), .kind = kind_of(v->type), .is_private = v->is_private };
    (void)str_copy(mine->id, sizeof mine->id, v->id ? v->id : "");
    (void)str_copy(mine->ref, sizeof mine->ref, v->ref ? v->ref : "");
    (void)str_copy(mine->type, sizeof mine->type, v->type);
    return mine;
}

static int by_pos(const void *a, const void *b)
{
    const struct pos *x = a, *y = b;
    return (x->at > y->at) - (x->at < y->at);
}

/* What is new in one log: every position once, none left out; then the rules in that order. */
static void check_new(struct sim_session *s)
{
    AUTO_PTR(arena) a = arena();
    size_t n = 0, k = 0;
    struct store_event *rows = scan(a, s, s->last_seq, &n);
    struct pos *p = arena_zalloc(a, (2 * n + 1) * sizeof *p);
    for (size_t i = 0; p && i < n; i++) {
        const struct store_event *v = &rows[i];
        size_t at = s->n;
        if (v->seq > s->last_seq) {
            (void)take(s, v);
            p[k++] = (struct pos){ v->seq, at, false };
        } else {
            for (at = 0; at < s->n && s->ev[at].seq != v->seq; at++)
                ;
            if (at == s->n || s->ev[at].hash != hash_of(v) || s->ev[at].processed_seq)
                sim_fail("%s: position %lld has changed", s->id, (long long)v->seq);
            s->ev[at].processed_seq = v->processed_seq;
            s->ev[at].is_private |= v->is_private;
        }
        if (v->processed_seq && v->processed_seq != v->seq)
            p[k++] = (struct pos){ v->processed_seq, at, true };
    }
    if (k)
        qsort(p, k, sizeof *p, by_pos);
    for (size_t i = 0; i < k; i++) {
        if (p[i].at != s->last_seq + 1)
            sim_fail("%s: position %lld follows %lld", s->id, (long long)p[i].at, (long long)s->last_seq);
        s->last_seq = p[i].at;
        struct sim_event *v = &s->ev[p[i].i];
        const char *body = "{}";
        for (size_t r = 0; r < n; r++)
            if (rows[r].seq == v->seq)
                body = rows[r].body;
        rules(s, v, p[i].stamp, body);
    }
}

static void check_queue(void)
{
    AUTO_PTR(arena) a = arena();
    struct store_work *w = NULL;
    size_t n = 0, live[SIM_SESSIONS_MAX] = { 0 };
    struct err e = { 0 };
    struct store_page page = STORE_PAGE_INIT;
    page.limit = STORE_LIST_MAX;
    if (server_truth()->ops->work_list(server_truth(), a, sim_env_id, &page, &w, &n, &e) < 0)
        sim_fail("work items: %s", e.msg);
    for (size_t i = 0; i < n; i++) {
        struct sim_session *s = sim_session_find(w[i].session_id);
        if (!s || (w[i].state != WORK_STOPPED && live[s - sim_session]++))
            sim_fail("%s: two live work items", w[i].session_id);
    }
}

void check_all(void)
{
    if (!sim_server.up)
        return;
    for (size_t i = 0; i < sim_n_sessions; i++)
        check_new(&sim_session[i]);
}

void check_again(void)
{
    check_all();
    check_queue();
    for (size_t i = 0; i < sim_n_sessions; i++) {
        struct sim_session *s = &sim_session[i];
        AUTO_PTR(arena) a = arena();
        size_t n = 0;
        struct store_event *rows = scan(a, s, 0, &n);
        if (n != s->n)
            sim_fail("%s: %zu events, and %zu were there", s->id, n, s->n);
        for (size_t k = 0; k < n; k++)
            if (rows[k].seq != s->ev[k].seq || rows[k].processed_seq != s->ev[k].processed_seq || hash_of(&rows[k]) != s->ev[k].hash)
                sim_fail("%s: position %lld has changed", s->id, (long long)s->ev[k].seq);
        for (size_t k = 0; k < s->n_acked; k++)
            if (!find(s, s->acked[k].id))
                sim_fail("%s: %s was acknowledged and is lost", s->id, s->acked[k].id);
    }
}

void check_acked(struct sim_session *s, const char *event_id)
{
    if (s->n_acked < SIM_EVENTS_MAX)
        (void)str_copy(s->acked[s->n_acked++].id, ID_MAX, event_id);
}

/* ---- leases of workers ---- */
void check_hold(size_t i, const char *work_id, int worker, int64_t until_ms)
{
    if (hold[i].worker && hold[i].worker != worker && hold[i].until_ms > sim_now_ms())
        sim_fail("%s: worker %d is given %s while worker %d holds %s for another %lld ms", sim_session[i].id, worker, work_id, hold[i].worker, hold[i].work_id,
                 (long long)(hold[i].until_ms - sim_now_ms()));
    hold[i].worker = worker;
    hold[i].until_ms = until_ms;
    (void)str_copy(hold[i].work_id, ID_MAX, work_id);
}

void check_hold_end(size_t i) { hold[i].worker = 0; }

/* ---- the end ---- */
/* A reader that takes the log in pieces sees each appearance once, in order: what the stream and Last-Event-ID promise. */
static void check_stream(struct sim_session *s)
{
    size_t want = 0, got = 0;
    int64_t at = 0;
    for (size_t i = 0; i < s->n; i++)
        want += s->ev[i].is_private ? 0 : s->ev[i].processed_seq == s->ev[i].seq || !s->ev[i].processed_seq ? 1 : 2;
    for (bool end = false; !end;) {
        struct frames f;
        frames_read(&f, server_truth(), s->id, at, PIECE_BYTES);
        if (f.rc < 0)
            sim_fail("%s: the stream fails at %lld", s->id, (long long)at);
        for (size_t i = 0; i < f.n; i++) {
            if (f.frame[i].pos <= at)
                sim_fail("%s: the stream goes back to %lld", s->id, (long long)f.frame[i].pos);
            at = f.frame[i].pos;
        }
        got += f.n;
        at = f.upto > at ? f.upto : at;
        end = f.at_end;
        frames_done(&f);
    }
    if (got != want)
        sim_fail("%s: the stream has %zu frames of %zu", s->id, got, want);
}

void check_end(void)
{
    if (!sim_server.up)
        server_start();
    check_again();
    struct err e = { 0 };
    for (size_t i = 0; i < sim_n_sessions; i++) {
        struct sim_session *s = &sim_session[i];
        AUTO_PTR(arena) a = arena();
        struct store_session row;
        if (server_truth()->ops->session_get(server_truth(), a, s->id, &row, &e) < 0)
            sim_fail("%s: %s", s->id, e.msg);
        if (row.status != SESSION_IDLE && row.status != SESSION_TERMINATED)
            sim_fail("%s is %s at the end, the log says %s", s->id, session_status_name(row.status), s->status);
        if (s->status[0] && !str_eq(s->status, session_status_name(row.status)))
            sim_fail("%s is %s at the end, the log says %s", s->id, session_status_name(row.status), s->status);
        if (row.status == SESSION_IDLE && open_calls(s))
            sim_fail("%s: %zu calls are open at the end", s->id, open_calls(s));
        for (size_t k = 0; k < s->n && row.status == SESSION_IDLE; k++)
            if (!s->ev[k].processed_seq)
                sim_fail("%s: %s was never consumed", s->id, s->ev[k].id);
        check_stream(s);
    }
    struct store_work_stats w;
    if (server_truth()->ops->work_stats(server_truth(), sim_env_id, 1775000000000 + sim_now_ms(), &w, &e) < 0)
        sim_fail("%s", e.msg);
    if (w.depth || w.pending)
        sim_fail("%lld work items wait at the end, %lld are handed out", (long long)w.depth, (long long)w.pending);
}
