/* worker/release.c - see release.h */
#include "worker/release.h"

#include <stdio.h>

#include "base/random.h"
#include "base/str.h"
#include "log/log.h"
#include "worker/record.h"

#define TRY_MS 4000

struct release {
    struct worker *w;
    char *work_id;
    struct secret *cred;
    bool force;
    struct backoff backoff;
    struct ev_timer timer;
    int64_t until_ms;
    void (*done)(void *);
    void *ctx;
};

static void send_stop(struct release *r);

static void finish(struct release *r, const char *change, const char *why)
{
    json_t *f = json_object();
    js_set_str(f, "work", r->work_id);
    js_set_str(f, "change", change);
    if (*why)
        js_set_str(f, "why", why);
    record_add(r->w->record, "lease", f);
    void (*done)(void *) = r->done;
    void *ctx = r->ctx;
    secret_free(r->cred);
    free(r->work_id);
    free(r);
    done(ctx);
}

static void on_timer(struct ev_timer *t)
{
    send_stop(container_of(t, struct release, timer));
}

static void on_answer(void *ctx, const struct api_answer *a)
{
    struct release *r = ctx;
    if (a->outcome == API_OK || a->status == 409) {
        finish(r, "released", "");
        return;
    }
    int64_t in = backoff_next(&r->backoff, random_unit());
    if (a->outcome == API_RETRY && ev_now_ms(r->w->ev) + in < r->until_ms) {
        ev_timer_set(r->w->ev, &r->timer, in, on_timer);
        return;
    }
    log_warn("work.stop_failed", "work=%s why=%s", r->work_id, a->why);
    finish(r, "not released", a->why);
}

static void send_stop(struct release *r)
{
    char path[API_PATH_MAX];
    const char *body = r->force ? "{\"force\":true}" : "{}";
    (void)snprintf(path, sizeof path, "/v1/environments/%s/work/%s/stop?beta=true", r->w->set.environment_id, r->work_id);
    struct api_req q = { .method = "POST", .path = path, .cred = r->cred, .body = body, .body_n = r->force ? 14 : 2, .timeout_ms = TRY_MS,
                         .raw = true, .done = on_answer, .ctx = r };
    (void)api_start(&r->w->api, &q);
}

void work_release(struct worker *w, const char *work_id, const struct secret *cred, bool force, void (*done)(void *), void *ctx)
{
    struct release *r = xcalloc(1, sizeof *r);
    *r = (struct release){ .w = w, .work_id = str_dup(work_id), .cred = cred ? secret_dup(cred) : NULL, .force = force,
                           .backoff = backoff_stream, .until_ms = ev_now_ms(w->ev) + RELEASE_MS, .done = done, .ctx = ctx };
    send_stop(r);
}
