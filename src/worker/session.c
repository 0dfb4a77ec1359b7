/* worker/session.c - see session.h */
#include "worker/session.h"

#include <malloc.h>
#include <stdio.h>
#include <string.h>

#include "base/list.h"
#include "base/random.h"
#include "base/str.h"
#include "http/sse.h"
#include "log/log.h"
#include "worker/backoff.h"

#define STREAM_HEAD_MS 30000
#define STREAM_STALL_MS 120000         /* services send pings far more often; opening anew only costs a listing */
#define LIST_MS 60000
#define LIST_LIMIT_FIRST 1000
#define PAGE_MAX 1024                  /* bytes of a cursor */
#define WHY_MAX 300
#define TRIM_OVER (4 * MIB)            /* a history page over this gives its memory back to the system */

struct ahead { struct list link; json_t *event; };

struct session {
    struct session_conf c;
    struct route *route;
    struct http_call *stream;
    struct sse_decoder *sse;
    bool connected;
    bool listing;                      /* live events wait in `ahead` */
    struct list ahead;
    size_t n_ahead, ahead_bytes;
    struct api_call *list_call;
    char page[PAGE_MAX];
    int list_limit, n_pages;
    bool trim;
    struct backoff backoff, list_backoff;
    struct ev_timer reconnect, relist, idle, end;
    uint64_t idle_epoch;
    enum session_end how;
    char why[WHY_MAX];
};

static void open_stream(struct session *s);
static void list_page(struct session *s);

/* ---- the end ---- */

static void on_end(struct ev_timer *t)
{
    struct session *s = container_of(t, struct session, end);
    s->c.ended(s->c.ctx, s->how, s->why);
}

static void end(struct session *s, enum session_end how, const char *why)
{
    if (ev_timer_armed(&s->end))
        return;
    s->how = how;
    (void)str_copy(s->why, sizeof s->why, why);
    ev_timer_stop(&s->idle);
    ev_timer_set(s->c.w->ev, &s->end, 0, on_end);
}

static void on_idle(struct ev_timer *t)
{
    end(container_of(t, struct session, idle), SESSION_IDLE, "idle at the end of a turn");
}

/* After anything that may change it. A fresh window starts whenever the route says so. */
static void check_idle(struct session *s)
{
    uint64_t epoch = 0;
    bool idle = route_idle(s->route, &epoch);
    if (!idle || s->c.w->set.max_idle <= 0) {
        ev_timer_stop(&s->idle);
    } else if (!ev_timer_armed(&s->idle) || epoch != s->idle_epoch) {
        s->idle_epoch = epoch;
        ev_timer_set(s->c.w->ev, &s->idle, s->c.w->set.max_idle, on_idle);
    }
}

static int take_live(struct session *s, const json_t *ev)
{
    struct err e;
    int rc = route_live(s->route, ev, &e);
    if (rc < 0) {
        log_error("session.limit", "session=%s why=%s", s->c.session_id, e.msg);
        end(s, SESSION_BROKEN, e.msg);
    } else if (route_ended(s->route)) {
        end(s, SESSION_ENDED, "the session is over");
    }
    return rc;
}

/* ---- what the route decides ---- */

static bool op_known(void *ctx, const char *name)
{
    (void)ctx;
    return tool_known(name);
}

static void op_dispatch(void *ctx, const char *id, const char *name, const json_t *event, bool interrupted)
{
    struct session *s = ctx;
    dispatch_add(s->c.dispatch, id, name, event, interrupted);
}

static void op_interrupt(void *ctx)
{
    struct session *s = ctx;
    log_info("session.interrupt", "session=%s", s->c.session_id);
    dispatch_interrupt(s->c.dispatch, "interrupted by the user");
}

static void op_note(void *ctx, const char *what, const char *id, const char *name)
{
    struct session *s = ctx;
    log_info("call.skipped", "session=%s why=%s tool_use=%s tool=%s", s->c.session_id, what, id, name);
}

static const struct route_ops route_ops = { .known = op_known, .dispatch = op_dispatch, .interrupt = op_interrupt, .note = op_note };

/* ---- history ---- */

static void drop_ahead(struct session *s)
{
    list_foreach(a, &s->ahead, struct ahead, link) {
        list_del(&a->link);
        json_decref(a->event);
        free(a);
    }
    s->n_ahead = s->ahead_bytes = 0;
}

static void history_done(struct session *s)
{
    struct err e;
    s->listing = false;
    if (s->trim) {
        s->trim = false;
        (void)malloc_trim(0);
    }
    if (route_history_end(s->route, &e) < 0) {
        end(s, SESSION_BROKEN, e.msg);
        return;
    }
    if (route_ended(s->route)) {
        end(s, SESSION_ENDED, "the session is over");
        return;
    }
    dispatch_repost(s->c.dispatch);
    list_foreach(a, &s->ahead, struct ahead, link)
        if (take_live(s, a->event) < 0)
            break;
    drop_ahead(s);
    check_idle(s);
}

static void on_relist(struct ev_timer *t)
{
    struct session *s = container_of(t, struct session, relist);
    route_history_begin(s->route);
    s->page[0] = 0;
    s->n_pages = 0;
    list_page(s);
}

/* The stream stays; its events wait until a listing succeeds, so that no earlier call is overtaken. */
static void list_failed(struct session *s, const struct api_answer *a)
{
    route_history_abort(s->route);
    if (a->rc == RC_TOO_LARGE && s->list_limit > 1) {
        s->list_limit /= 10;
        ev_timer_set(s->c.w->ev, &s->relist, 0, on_relist);
        return;
    }
    if (a->outcome == API_FATAL) {
        end(s, SESSION_REFUSED, a->why);
        return;
    }
    int64_t in = backoff_next(&s->list_backoff, random_unit());
    if (a->retry_after_ms > in)
        in = a->retry_after_ms;
    log_warn("session.list_retry", "session=%s why=%s in_ms=%lld", s->c.session_id, a->why, (long long)in);
    ev_timer_set(s->c.w->ev, &s->relist, in, on_relist);
}

static void on_page(void *ctx, const struct api_answer *a)
{
    struct session *s = ctx;
    struct err e;
    s->list_call = NULL;
    const json_t *data = a->json ? js_at(a->json, "data") : NULL;
    if (a->outcome != API_OK || !json_is_array(data)) {
        list_failed(s, a);
        return;
    }
    s->trim = s->trim || (a->body && buf_len(a->body) > TRIM_OVER);
    size_t i;
    json_t *ev;
    json_array_foreach((json_t *)(uintptr_t)data, i, ev) {
        if (route_history_event(s->route, ev, &e) < 0) {
            log_error("session.limit", "session=%s why=%s", s->c.session_id, e.msg);
            end(s, SESSION_BROKEN, e.msg);
            return;
        }
    }
    const char *next = js_str(a->json, "next_page");
    if (!next || !*next) {
        backoff_reset(&s->list_backoff);
        history_done(s);
        return;
    }
    bool fits = str_copy(s->page, sizeof s->page, next);
    for (const char *p = s->page; *p; p++)
        fits = fits && (unsigned char)*p > ' ' && (unsigned char)*p < 127;
    if (!fits || ++s->n_pages >= SESSION_PAGES_MAX) {
        end(s, SESSION_BROKEN, fits ? "the history has too many pages" : "the history's cursor cannot be used");
        return;
    }
    list_page(s);
}

static void list_page(struct session *s)
{
    char path[API_PATH_MAX + 3 * PAGE_MAX], cursor[3 * PAGE_MAX + 8] = "";
    size_t n = 0;
    if (s->page[0])
        n = (size_t)snprintf(cursor, sizeof cursor, "&page=");
    for (const char *p = s->page; *p; p++) {
        bool plain = strchr("-._~", *p) || (*p >= '0' && *p <= '9') || (*p >= 'A' && *p <= 'Z') || (*p >= 'a' && *p <= 'z');
        n += (size_t)snprintf(cursor + n, sizeof cursor - n, plain ? "%c" : "%%%02X", (unsigned char)*p);
    }
    (void)snprintf(path, sizeof path, "/v1/sessions/%s/events?beta=true&limit=%d&order=asc%s", s->c.session_id, s->list_limit, cursor);
    struct api_req r = { .method = "GET", .path = path, .cred = s->c.cred, .timeout_ms = LIST_MS, .body_max = JS_BODY_MAX, .done = on_page, .ctx = s };
    s->list_call = api_start(&s->c.w->api, &r);
}

/* ---- stream ---- */

static void close_stream(struct session *s)
{
    http_call_cancel(TAKE(s->stream));
    sse_decoder_free(TAKE(s->sse));
    api_cancel(TAKE(s->list_call));
    ev_timer_stop(&s->relist);
    drop_ahead(s);
    route_history_abort(s->route);
    s->listing = s->connected = false;
}

static void on_reconnect(struct ev_timer *t)
{
    open_stream(container_of(t, struct session, reconnect));
}

static void reconnect_later(struct session *s, const char *why, int64_t at_least_ms)
{
    int64_t in = backoff_next(&s->backoff, random_unit());
    if (at_least_ms > in)
        in = at_least_ms;
    log_info("session.reconnect", "session=%s why=%s in_ms=%lld", s->c.session_id, why, (long long)in);
    ev_timer_stop(&s->idle);             /* what happens meanwhile is not seen, so it cannot count as silence */
    ev_timer_set(s->c.w->ev, &s->reconnect, in, on_reconnect);
}

static int on_event(void *ctx, const struct sse_event *ev)
{
    struct session *s = ctx;
    struct err e;
    AUTO_JS j = NULL;
    if (ev->data_n == 0 || str_eq(ev->event, "ping"))
        return RC_OK;
    if (str_eq(ev->event, "error"))
        return RC_IO;                    /* the service ends the stream with a reason: connect again */
    if (js_parse(ev->data, ev->data_n, SESSION_EVENT_MAX, &j, &e) < 0 || !json_is_object(j)) {
        log_warn("session.bad_event", "session=%s type=%s", s->c.session_id, ev->event);
        return RC_OK;
    }
    if (!js_str(j, "type"))
        js_set_str(j, "type", ev->event);
    backoff_reset(&s->backoff);
    if (!s->listing) {
        if (take_live(s, j) < 0)
            return RC_LIMIT;
        check_idle(s);
        return RC_OK;
    }
    if (s->n_ahead >= SESSION_AHEAD_MAX || s->ahead_bytes + ev->data_n > SESSION_AHEAD_BYTES_MAX)
        return RC_LIMIT;
    struct ahead *a = xcalloc(1, sizeof *a);
    a->event = json_incref(j);
    list_add_tail(&s->ahead, &a->link);
    s->n_ahead++;
    s->ahead_bytes += ev->data_n;
    return RC_OK;
}

static int on_stream_data(void *ctx, const char *p, size_t n)
{
    struct session *s = ctx;
    return sse_feed(s->sse, p, n, on_event, s);
}

static void on_stream_head(void *ctx, const struct http_head *h)
{
    struct session *s = ctx;
    (void)h;
    s->connected = true;
    s->listing = true;
    on_relist(&s->relist);
}

static void on_stream_done(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    struct session *s = ctx;
    char why[WHY_MAX];
    s->stream = NULL;
    enum api_outcome o = API_RETRY;
    int64_t wait = -1;
    if (rc == RC_OK && !s->connected) {
        o = api_outcome_of(r->status, r->head);
        wait = retry_after_ms(r->head);
        api_explain(why, sizeof why, r->status, r->body, NULL);
    } else {
        (void)str_copy(why, sizeof why, rc == RC_OK ? "the stream ended" : e->msg);
    }
    close_stream(s);
    if (o == API_FATAL)
        end(s, SESSION_REFUSED, why);
    else if (!ev_timer_armed(&s->end))
        reconnect_later(s, why, wait);
}

static void open_stream(struct session *s)
{
    char headers[API_HEADERS_MAX];
    AUTO_FREE char *url = str_printf("%s/v1/sessions/%s/events/stream?beta=true", s->c.w->api.base, s->c.session_id);
    api_headers(headers, NULL, "Accept: text/event-stream\r\n", false);
    s->sse = sse_decoder_new(SESSION_EVENT_MAX);
    struct http_request r = {
        .method = "GET", .url = url, .headers = headers, .bearer = s->c.cred, .timeout_ms = STREAM_HEAD_MS, .stall_ms = STREAM_STALL_MS,
        .body_max = 64 * KIB, .on_head = on_stream_head, .on_data = on_stream_data, .on_done = on_stream_done, .ctx = s,
    };
    s->stream = http_call_start(s->c.w->http, &r);
}

struct session *session_start(const struct session_conf *c)
{
    struct session *s = xcalloc(1, sizeof *s);
    s->c = *c;
    s->route = route_new(&route_ops, s);
    s->backoff = backoff_stream;
    s->list_backoff = backoff_stream;
    s->list_limit = LIST_LIMIT_FIRST;
    list_init(&s->ahead);
    open_stream(s);
    return s;
}

void session_free(struct session *s)
{
    if (!s)
        return;
    close_stream(s);
    ev_timer_stop(&s->reconnect);
    ev_timer_stop(&s->idle);
    ev_timer_stop(&s->end);
    route_free(s->route);
    free(s);
}

bool session_answered(const struct session *s, const char *id)
{
    return route_answered(s->route, id);
}

void session_finished(struct session *s, const char *id)
{
    route_finished(s->route, id);
    check_idle(s);
}
