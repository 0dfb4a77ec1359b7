/* worker/poll.c - see poll.h */
#include "worker/poll.h"

#include <stdio.h>

#include "base/random.h"
#include "base/str.h"
#include "log/log.h"
#include "worker/item.h"
#include "worker/onwork.h"
#include "worker/status.h"

#define BLOCK_MS 999                   /* the longest the service takes */
#define POLL_MS 30000
#define PAUSE_MIN_MS 1000              /* after an empty poll, unless the service holds polls and wakes them */
#define PAUSE_MAX_MS 3000
#define EMPTY_REMINDER_MS 300000
#define OVERDUE_MS 90000               /* longer than the longest backoff */
#define HELD_FAST_MS 100               /* a "held" poll that comes back sooner was not held: pause all the same */

struct poller {
    struct worker *w;
    struct api_call *call;
    struct ev_timer timer;
    struct backoff backoff, claim_backoff;
    bool stopped;
    int64_t sent_ms, answered_ms, reminded_ms;
};

static void ask(struct poller *p);

static void on_timer(struct ev_timer *t)
{
    ask(container_of(t, struct poller, timer));
}

static bool room(const struct poller *p)
{
    const struct worker *w = p->w;
    return w->onwork ? !onwork_busy(w->onwork) : w->n_items < (size_t)w->set.max_sessions;
}

static void again_in(struct poller *p, int64_t ms)
{
    if (!p->stopped && room(p))
        ev_timer_set(p->w->ev, &p->timer, ms, on_timer);
}

static void took_nothing(struct poller *p, const struct api_answer *a)
{
    int64_t now = ev_now_ms(p->w->ev);
    if (!p->reminded_ms || now - p->reminded_ms > EMPTY_REMINDER_MS) {
        p->reminded_ms = now;
        log_info("poll.empty", "environment=%s sessions=%zu", p->w->set.environment_id, p->w->n_items);
    }
    const struct slice *held = http_find(a->head, "outwork-poll");
    if (held && slice_eq(*held, "held") && now - p->sent_ms >= HELD_FAST_MS)
        again_in(p, 0);
    else
        again_in(p, PAUSE_MIN_MS + random_u32_below(PAUSE_MAX_MS - PAUSE_MIN_MS));
}

static void took_item(struct poller *p, const json_t *work)
{
    struct err e;
    int rc = p->w->onwork ? onwork_claimed(p->w->onwork, work, &e) : item_claimed(p->w, work, &e);
    if (rc < 0) {
        log_warn("poll.bad_item", "why=%s", e.msg);
        again_in(p, backoff_next(&p->claim_backoff, random_unit()));
    } else {
        again_in(p, 0);
    }
}

static void on_answer(void *ctx, const struct api_answer *a)
{
    struct poller *p = ctx;
    p->call = NULL;
    status_poll(p->w->status, a->outcome == API_OK);
    if (a->outcome == API_OK) {
        p->answered_ms = ev_now_ms(p->w->ev);
        backoff_reset(&p->backoff);
        const char *id = js_str(a->json, "id");
        if (id && *id)
            took_item(p, a->json);
        else
            took_nothing(p, a);
        return;
    }
    if (a->outcome == API_FATAL) {
        bool refused = a->status == 401 || a->status == 403;
        log_error("poll.refused", "environment=%s why=%s", p->w->set.environment_id, a->why);
        worker_stop(p->w, refused ? EXIT_REFUSED : EXIT_FAIL,
                    refused ? "the service refused the environment key" : "the service refused to be polled");
        return;
    }
    int64_t in = backoff_next(&p->backoff, random_unit());
    if (a->retry_after_ms > in)
        in = a->retry_after_ms;
    log_warn("poll.retry", "why=%s in_ms=%lld", a->why, (long long)in);
    again_in(p, in);
}

static void ask(struct poller *p)
{
    char path[API_PATH_MAX], headers[256];
    if (p->stopped || p->call || !room(p))
        return;
    (void)snprintf(path, sizeof path, "/v1/environments/%s/work/poll?beta=true&block_ms=%d", p->w->set.environment_id, BLOCK_MS);
    (void)snprintf(headers, sizeof headers, "Anthropic-Worker-ID: %s\r\n", p->w->set.worker_id);
    struct api_req r = { .method = "GET", .path = path, .cred = p->w->env_key, .headers = headers, .timeout_ms = POLL_MS, .wipe = true,
                         .done = on_answer, .ctx = p };
    p->sent_ms = ev_now_ms(p->w->ev);
    p->call = api_start(&p->w->api, &r);
}

struct poller *poller_start(struct worker *w)
{
    struct poller *p = xcalloc(1, sizeof *p);
    p->w = w;
    p->backoff = backoff_poll;
    p->claim_backoff = backoff_poll;
    p->answered_ms = ev_now_ms(w->ev);
    ask(p);
    return p;
}

void poller_stop(struct poller *p)
{
    p->stopped = true;
    ev_timer_stop(&p->timer);
    api_cancel(TAKE(p->call));
}

void poller_free(struct poller *p)
{
    if (!p)
        return;
    poller_stop(p);
    free(p);
}

void poller_resume(struct poller *p, bool not_claimed)
{
    if (!not_claimed)
        backoff_reset(&p->claim_backoff);
    if (p->stopped || p->call)
        return;
    if (not_claimed)
        again_in(p, backoff_next(&p->claim_backoff, random_unit()));
    else if (!ev_timer_armed(&p->timer))
        again_in(p, 0);
}

bool poller_overdue(const struct poller *p)
{
    return !p->stopped && room(p) && ev_now_ms(p->w->ev) - p->answered_ms > OVERDUE_MS;
}
