/* worker/dispatch.c - see dispatch.h */
#include "worker/dispatch.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/list.h"
#include "base/random.h"
#include "base/str.h"
#include "log/log.h"
#include "worker/record.h"
#include "worker/status.h"

#define CONTENT_MAX (2 * (size_t)INSIDE_RES_MAX)    /* one result as JSON: base64 of an image, or escaped text */
#define POST_MS 60000
#define INTERRUPT_GRACE_MS 3000        /* after an interrupt; then the sandbox is killed */
#define NOTE_MAX 512

struct call {
    struct list link;                  /* in queue or results, or alone as d->running */
    struct dispatch *d;
    char *id, *name;
    json_t *event;
    bool interrupted;                  /* answered without running */
    char why[NOTE_MAX];                /* who interrupted it, or "" */
    struct inside_req req;
    int64_t begun_us;
    struct buf body;                   /* the POST, once it has run */
    struct api_call *post;
    struct backoff backoff;
    struct ev_timer retry;
    int64_t first_post_ms;
};

struct dispatch {
    struct dispatch_conf c;
    char *path;
    struct list queue, results;
    struct call *running;
    size_t kept_bytes;
    bool open, draining;
    struct ev_timer turn;              /* begins the next call outside the callback that ended the last one */
    struct ev_timer grace, drain;
    void (*drained)(void *);
    void *drained_ctx;
};

static void run_next(struct dispatch *d);
static void post(struct call *c);

static void call_free(struct call *c)
{
    list_del(&c->link);
    api_cancel(c->post);
    ev_timer_stop(&c->retry);
    c->d->kept_bytes -= buf_len(&c->body);
    buf_done(&c->body);
    json_decref(c->event);
    free(c->id);
    free(c->name);
    free(c);
}

static bool empty(const struct dispatch *d)
{
    return !d->running && list_empty(&d->queue) && list_empty(&d->results);
}

static void on_turn(struct ev_timer *t)
{
    struct dispatch *d = container_of(t, struct dispatch, turn);
    if (d->draining && d->drained && empty(d)) {
        void (*done)(void *) = TAKE(d->drained);
        ev_timer_stop(&d->drain);
        done(d->drained_ctx);          /* may free `d` */
        return;
    }
    run_next(d);
}

static void next_turn(struct dispatch *d)
{
    ev_timer_set(d->c.w->ev, &d->turn, 0, on_turn);
}

/* ---- posting ---- */

static void settled(struct call *c)
{
    struct dispatch *d = c->d;
    AUTO_FREE char *id = TAKE(c->id);
    call_free(c);
    next_turn(d);
    d->c.finished(d->c.ctx, id);
}

static void on_retry(struct ev_timer *t)
{
    post(container_of(t, struct call, retry));
}

static void on_posted(void *ctx, const struct api_answer *a)
{
    struct call *c = ctx;
    struct dispatch *d = c->d;
    c->post = NULL;
    status_result(d->c.w->status, a->outcome == API_OK);
    if (a->outcome == API_OK) {
        settled(c);
        return;
    }
    if (a->outcome == API_FATAL) {     /* e.g. interrupted or archived meanwhile: nobody wants it, and it never runs again */
        log_warn("result.refused", "session=%s tool_use=%s why=%s", d->c.session_id, c->id, a->why);
        settled(c);
        return;
    }
    int64_t in = backoff_next(&c->backoff, random_unit()), spent = ev_now_ms(d->c.w->ev) - c->first_post_ms;
    if (a->retry_after_ms > in)
        in = a->retry_after_ms;
    bool go_on = spent + in <= d->c.window_ms(d->c.ctx);
    log_warn("result.retry", "session=%s tool_use=%s why=%s in_ms=%lld", d->c.session_id, c->id, a->why, (long long)(go_on ? in : -1));
    if (go_on)
        ev_timer_set(d->c.w->ev, &c->retry, in, on_retry);
}                                      /* else kept, until dispatch_repost() */

static void post(struct call *c)
{
    struct dispatch *d = c->d;
    struct api_req r = { .method = "POST", .path = d->path, .cred = d->c.cred, .body = buf_data(&c->body), .body_n = buf_len(&c->body),
                         .timeout_ms = POST_MS, .raw = true, .done = on_posted, .ctx = c };
    c->post = api_start(&d->c.w->api, &r);
}

static void begin_post(struct call *c)
{
    struct dispatch *d = c->d;
    list_add_tail(&d->results, &c->link);
    d->kept_bytes += buf_len(&c->body);
    c->backoff = backoff_result;
    c->first_post_ms = ev_now_ms(d->c.w->ev);
    post(c);
}

void dispatch_repost(struct dispatch *d)
{
    list_foreach(c, &d->results, struct call, link)
        if (!c->post && !ev_timer_armed(&c->retry)) {
            backoff_reset(&c->backoff);
            c->first_post_ms = ev_now_ms(d->c.w->ev);
            post(c);
        }
}

/* ---- results ---- */

static void head_of_result(struct call *c, size_t content_bytes)
{
    buf_init(&c->body, CONTENT_MAX + 4 * KIB);
    (void)buf_reserve(&c->body, content_bytes + strlen(c->id) + 256);
    buf_puts(&c->body, "{\"events\":[{\"type\":\"user.tool_result\",\"tool_use_id\":");
    js_write_string(&c->body, c->id, strlen(c->id));
    buf_puts(&c->body, ",\"content\":");
}

/* `content` is a JSON array with at least one block; `notes` become text blocks in front of it. */
static void build_result(struct call *c, struct buf *content, bool is_error, const char *const notes[], size_t n_notes)
{
    head_of_result(c, buf_len(content));
    buf_putc(&c->body, '[');
    for (size_t i = 0; i < n_notes; i++) {
        buf_puts(&c->body, "{\"type\":\"text\",\"text\":");
        js_write_string(&c->body, notes[i], strlen(notes[i]));
        buf_puts(&c->body, "},");
    }
    buf_put(&c->body, buf_data(content) + 1, buf_len(content) - 1);
    buf_printf(&c->body, ",\"is_error\":%s}]}", is_error ? "true" : "false");
}

static void error_result(struct call *c, const char *text)
{
    struct buf content;
    buf_init(&content, CONTENT_MAX);
    tool_error_content(&content, text, strlen(text));
    build_result(c, &content, true, NULL, 0);
    buf_done(&content);
}

static void record_call(struct call *c, const struct inside_res *h, size_t out_bytes, bool is_error, const char *problem)
{
    struct dispatch *d = c->d;
    json_t *f = json_object();
    js_set_str(f, "session", d->c.session_id);
    js_set_str(f, "work", d->c.work_id);
    js_set_str(f, "tool_use", c->id);
    js_set_str(f, "tool", c->name);
    json_t *asked = tool_audit(c->name, js_at(c->event, "input"));
    if (asked)
        js_set(f, "asked", asked);
    if (h && h->op == INSIDE_BASH)
        js_set_int(f, "exit", h->exit_status);
    js_set_int(f, "bytes", (int64_t)out_bytes);
    js_set_int(f, "ms", c->begun_us ? (clock_mono_us() - c->begun_us) / 1000 : 0);
    js_set_bool(f, "error", is_error);
    if (h && (h->flags & INSIDE_TIMED_OUT))
        js_set_bool(f, "timed_out", true);
    if (h && (h->flags & INSIDE_TRUNCATED))
        js_set_bool(f, "truncated", true);
    if (h && (h->flags & INSIDE_DENIED))
        js_set_bool(f, "denied", true);
    if (problem && *problem)
        js_set_str(f, "problem", problem);
    record_add(d->c.w->record, "tool", f);
    if (c->begun_us)
        status_call(d->c.w->status, clock_mono_us() - c->begun_us, is_error);
}

static void end_without_running(struct call *c, const char *why)
{
    char text[NOTE_MAX];
    (void)snprintf(text, sizeof text, "%s: not run: %.400s", c->name, why);
    record_call(c, NULL, 0, true, text);
    error_result(c, text);
    begin_post(c);
}

static void take_answer(struct call *c, const struct inside_res *h, const char *body, size_t n, const char *restarted)
{
    struct buf content;
    bool is_error = false;
    char fresh[NOTE_MAX], cut[NOTE_MAX];
    const char *notes[2];
    size_t n_notes = 0;
    if (restarted) {
        (void)snprintf(fresh, sizeof fresh, "[the sandbox was restarted before this call, because the one before ended: %.300s; files in /workspace "
                       "are kept, running processes and shell variables are gone]", restarted);
        notes[n_notes++] = fresh;
    }
    if (c->why[0]) {
        (void)snprintf(cut, sizeof cut, "[%.300s]", c->why);
        notes[n_notes++] = cut;
    }
    buf_init(&content, CONTENT_MAX);
    int rc = tool_result(c->name, &c->req, h, body, n, &content, &is_error);
    if (rc < 0 || buf_len(&content) < 2) {
        char text[NOTE_MAX];
        (void)snprintf(text, sizeof text, "%s: the sandbox's answer could not be used: %s", c->name, rc_text(rc < 0 ? rc : RC_PROTO));
        buf_clear(&content);
        tool_error_content(&content, text, strlen(text));
        is_error = true;
    }
    is_error = is_error || c->why[0];
    record_call(c, h, n, is_error, c->why);
    build_result(c, &content, is_error, notes, n_notes);
    buf_done(&content);
}

static void on_answer(void *ctx, int rc, const struct inside_res *h, const char *body, size_t n, const char *why, const char *restarted)
{
    struct dispatch *d = ctx;
    struct call *c = TAKE(d->running);
    ev_timer_stop(&d->grace);
    if (rc == RC_OK) {
        take_answer(c, h, body, n, restarted);
    } else {
        char text[NOTE_MAX];
        if (rc == RC_CLOSED || rc == RC_TIMEOUT)
            (void)snprintf(text, sizeof text, "%s: the sandbox was killed during this call: %.300s. The next call gets a fresh one with the same "
                           "/workspace; running processes and shell variables are gone.", c->name, c->why[0] ? c->why : why);
        else
            (void)snprintf(text, sizeof text, "%s: the call could not be run: %.400s", c->name, why);
        record_call(c, NULL, 0, true, text);
        error_result(c, text);
    }
    begin_post(c);
    if (d->draining)
        next_turn(d);
    else
        run_next(d);                   /* at once: the result is on its way already */
}

/* ---- running ---- */

static void begin(struct call *c)
{
    struct dispatch *d = c->d;
    if (c->interrupted || d->draining) {
        end_without_running(c, c->why[0] ? c->why : "the user interrupted");
        return;
    }
    if (record_broken(d->c.w->record)) {
        end_without_running(c, "the worker cannot write its audit log, and runs nothing that it cannot record");
        return;
    }
    struct buf body;
    struct err e;
    buf_init(&body, INSIDE_REQ_MAX);
    c->begun_us = clock_mono_us();
    int rc = tool_request(c->name, js_at(c->event, "input"), &d->c.w->tool_limits, &c->req, &body, &e);
    if (rc == RC_OK) {
        d->running = c;
        box_call(d->c.box, &c->req, buf_data(&body), buf_len(&body), on_answer, d);
    } else {
        record_call(c, NULL, 0, true, e.msg);
        error_result(c, e.msg);
        begin_post(c);
    }
    buf_done(&body);
}

static void run_next(struct dispatch *d)
{
    while (d->open && !d->running && !list_empty(&d->queue) && d->kept_bytes < DISPATCH_KEPT_MAX) {
        struct call *c = list_first(&d->queue, struct call, link);
        list_del(&c->link);
        if (d->c.answered(d->c.ctx, c->id)) {
            settled(c);
            return;                    /* a turn is asked for; `d` may be on its way out */
        }
        begin(c);
    }
}

void dispatch_open(struct dispatch *d)
{
    d->open = true;
    run_next(d);
}

void dispatch_add(struct dispatch *d, const char *id, const char *name, const json_t *event, bool interrupted)
{
    if (d->draining)
        return;                        /* left unanswered: whoever serves the session next runs it */
    struct call *c = xcalloc(1, sizeof *c);
    list_init(&c->link);
    buf_init(&c->body, 1);
    c->d = d;
    c->id = str_dup(id);
    c->name = str_dup(name);
    c->event = json_incref((json_t *)(uintptr_t)event);
    c->interrupted = interrupted;
    list_add_tail(&d->queue, &c->link);
    run_next(d);
}

static void on_grace(struct ev_timer *t)
{
    struct dispatch *d = container_of(t, struct dispatch, grace);
    if (d->running)
        box_kill(d->c.box, "it did not stop when it was interrupted");
}

void dispatch_interrupt(struct dispatch *d, const char *why)
{
    list_foreach(q, &d->queue, struct call, link) {
        list_del(&q->link);
        end_without_running(q, why);
    }
    if (!d->running || d->running->why[0])
        return;
    (void)str_copy(d->running->why, sizeof d->running->why, why);
    box_interrupt(d->c.box);
    ev_timer_set(d->c.w->ev, &d->grace, INTERRUPT_GRACE_MS, on_grace);
}

static void on_drain_over(struct ev_timer *t)
{
    struct dispatch *d = container_of(t, struct dispatch, drain);
    void (*done)(void *) = TAKE(d->drained);
    if (done)
        done(d->drained_ctx);
}

void dispatch_drain(struct dispatch *d, const char *why, int64_t max_ms, void (*done)(void *), void *ctx)
{
    d->drained = done;
    d->drained_ctx = ctx;
    ev_timer_set(d->c.w->ev, &d->drain, max_ms, on_drain_over);
    dispatch_interrupt(d, why);
    d->draining = true;
    dispatch_repost(d);
    next_turn(d);
}

struct dispatch *dispatch_new(const struct dispatch_conf *c)
{
    struct dispatch *d = xcalloc(1, sizeof *d);
    d->c = *c;
    d->path = str_printf("/v1/sessions/%s/events?beta=true", c->session_id);
    list_init(&d->queue);
    list_init(&d->results);
    return d;
}

void dispatch_free(struct dispatch *d)
{
    if (!d)
        return;
    if (d->running)
        call_free(d->running);
    list_foreach(q, &d->queue, struct call, link)
        call_free(q);
    list_foreach(r, &d->results, struct call, link)
        call_free(r);
    ev_timer_stop(&d->turn);
    ev_timer_stop(&d->grace);
    ev_timer_stop(&d->drain);
    free(d->path);
    free(d);
}
