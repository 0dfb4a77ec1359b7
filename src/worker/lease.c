/* worker/lease.c - see lease.h */
#include "worker/lease.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "http/parse.h"
#include "log/log.h"
#include "worker/record.h"
#include "worker/status.h"

#define HEARTBEAT_TEXT_MAX 200           /* last_heartbeat is opaque; a service that sends more is refused */

struct lease {
    struct worker *w;
    char *work_id;
    const struct secret *cred;
    void (*news)(void *, enum lease_news, const char *);
    void *ctx;
    struct api_call *call;
    struct ev_timer timer;
    char last[HEARTBEAT_TEXT_MAX];       /* "" before the first */
    int64_t interval_ms, ttl_ms, last_ok_ms, sent_ms;
    bool ttl_known, held;
};

static void beat(struct lease *l);

int64_t lease_interval_ms(int64_t ttl_ms)
{
    int64_t half = ttl_ms / 2;
    return half < LEASE_INTERVAL_MIN_MS ? LEASE_INTERVAL_MIN_MS : half > LEASE_INTERVAL_MAX_MS ? LEASE_INTERVAL_MAX_MS : half;
}

static void tell(struct lease *l, enum lease_news n, const char *why)
{
    static const char *const names[] = { [LEASE_HELD] = "held", [LEASE_STOP] = "stop", [LEASE_LOST] = "lost", [LEASE_REFUSED] = "refused" };
    json_t *f = json_object();
    js_set_str(f, "work", l->work_id);
    js_set_str(f, "change", names[n]);
    if (*why)
        js_set_str(f, "why", why);
    record_add(l->w->record, "lease", f);
    if (n != LEASE_HELD)
        ev_timer_stop(&l->timer);
    l->news(l->ctx, n, why);             /* may free `l` */
}

static void on_timer(struct ev_timer *t)
{
    beat(container_of(t, struct lease, timer));
}

/* Beats keep their rhythm from the moment they are sent, however long the answer took. */
static void next_beat(struct lease *l)
{
    int64_t in = l->sent_ms + l->interval_ms - ev_now_ms(l->w->ev);
    ev_timer_set(l->w->ev, &l->timer, in > LEASE_INTERVAL_MIN_MS ? in : LEASE_INTERVAL_MIN_MS, on_timer);
}

static void accepted(struct lease *l, const struct api_answer *a)
{
    const char *state = js_str(a->json, "state"), *last = js_str(a->json, "last_heartbeat");
    int64_t ttl = js_int(a->json, "ttl_seconds", 0);
    bool first = !l->held;
    l->held = true;
    l->last_ok_ms = ev_now_ms(l->w->ev);
    status_heartbeat(l->w->status);
    if (last && !str_copy(l->last, sizeof l->last, last)) {
        tell(l, LEASE_REFUSED, "the service's last_heartbeat is too long");
        return;
    }
    if (ttl > 0 && ttl < INT32_MAX) {
        l->ttl_ms = ttl * 1000;
        l->ttl_known = true;
        l->interval_ms = lease_interval_ms(l->ttl_ms);
    }
    if (str_eq(state, "stopping") || str_eq(state, "stopped") || !js_bool(a->json, "lease_extended", true)) {
        if (first)
            log_warn("lease.stopped_at_once", "work=%s state=%s hint=%s", l->work_id, state,
                     "the item was ended before it began; a script started with --on-work must not return before the session is done, "
                     "unless --on-work-owns-stop is given");
        tell(l, LEASE_STOP, "the service asked for it");
        return;
    }
    next_beat(l);
    if (first)
        tell(l, LEASE_HELD, "");
}

static void on_answer(void *ctx, const struct api_answer *a)
{
    struct lease *l = ctx;
    l->call = NULL;
    if (a->outcome == API_OK && a->json && json_is_object(a->json)) {
        accepted(l, a);
        return;
    }
    if (a->status == 412) {
        log_warn("lease.lost", "work=%s why=%s state=%s", l->work_id, a->why, js_str(a->json, "error.details.current_state.state"));
        tell(l, LEASE_LOST, "another worker holds the item, or it was queued again");
        return;
    }
    if (a->outcome == API_FATAL) {
        log_warn("lease.refused", "work=%s why=%s", l->work_id, a->why);
        tell(l, LEASE_REFUSED, a->why);
        return;
    }
    int64_t silent = ev_now_ms(l->w->ev) - l->last_ok_ms;
    log_warn("lease.retry", "work=%s why=%s silent_ms=%lld", l->work_id, a->why, (long long)silent);
    if (silent > l->ttl_ms) {
        tell(l, LEASE_LOST, "no heartbeat was accepted for longer than the lease lasts");
        return;
    }
    next_beat(l);
}

static void encode_component(char *out, size_t cap, const char *s)
{
    size_t n = 0;
    for (; *s && n + 4 < cap; s++) {
        unsigned char c = (unsigned char)*s;
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
        n += (size_t)snprintf(out + n, cap - n, plain ? "%c" : "%%%02X", c);
    }
    out[n] = 0;
}

static void beat(struct lease *l)
{
    char expected[3 * HEARTBEAT_TEXT_MAX + 4], path[API_PATH_MAX];
    encode_component(expected, sizeof expected, l->last[0] ? l->last : "NO_HEARTBEAT");
    (void)snprintf(path, sizeof path, "/v1/environments/%s/work/%s/heartbeat?beta=true&expected_last_heartbeat=%s", l->w->set.environment_id,
                   l->work_id, expected);
    l->sent_ms = ev_now_ms(l->w->ev);
    struct api_req r = { .method = "POST", .path = path, .cred = l->cred, .timeout_ms = l->interval_ms, .done = on_answer, .ctx = l };
    l->call = api_start(&l->w->api, &r);
}

struct lease *lease_start(struct worker *w, const char *work_id, const struct secret *cred,
                          void (*news)(void *, enum lease_news, const char *), void *ctx)
{
    struct lease *l = xcalloc(1, sizeof *l);
    *l = (struct lease){ .w = w, .work_id = str_dup(work_id), .cred = cred, .news = news, .ctx = ctx, .interval_ms = LEASE_INTERVAL_MAX_MS,
                         .ttl_ms = LEASE_TTL_ASSUMED_MS, .last_ok_ms = ev_now_ms(w->ev) };
    beat(l);
    return l;
}

void lease_free(struct lease *l)
{
    if (!l)
        return;
    api_cancel(l->call);
    ev_timer_stop(&l->timer);
    free(l->work_id);
    free(l);
}

int64_t lease_window_ms(const struct lease *l)
{
    return l && l->ttl_known ? l->ttl_ms : LEASE_WINDOW_DEFAULT_MS;
}

bool lease_overdue(const struct lease *l)
{
    return ev_now_ms(l->w->ev) - l->last_ok_ms > 2 * l->interval_ms + LEASE_INTERVAL_MIN_MS;
}
