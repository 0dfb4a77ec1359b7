/* Load on a running server, from outside: how long an event takes from its processed_at to a reader of the stream, and a work item from its created_at
 * to a waiting poll. Usage: server_bench SESSIONS SECONDS; environment: BENCH_URL, BENCH_KEY, BENCH_AGENT, BENCH_ENV, BENCH_ENV_KEY.
 * Times have the resolution of the API's timestamps (1 ms), so each figure is at most 1 ms too long. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/str.h"
#include "http/client.h"
#include "http/sse.h"
#include "json/js.h"

#define SAMPLES_MAX 4000000
#define POLLS 100
#define BETA "anthropic-beta: managed-agents-2026-04-01\r\ncontent-type: application/json\r\n"

struct session { char id[64]; struct sse_decoder *sse; };

static struct {
    struct ev *ev;
    struct http_client *http;
    struct secret *key, *env_key;
    const char *url, *agent, *env;
    int n, seconds, started;
    struct session *s;
    double *ms;
    size_t n_ms, polls;
    int64_t begin_ms;
    struct ev_timer end, next;
    bool polling, waiting;
} b;

static double wall_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static void die(const char *what, const char *why)
{
    fprintf(stderr, "server_bench: %s: %s\n", what, why ? why : "");
    exit(1);
}

static void call(const char *method, const char *path, const char *body, const struct secret *who, void (*done)(void *, int, const struct http_response *, const struct err *), void *ctx)
{
    char *url = str_printf("%s%s", b.url, path);
    struct http_request r = { .method = method, .url = url, .headers = BETA, .bearer = who, .body = body, .body_n = body ? strlen(body) : 0, .on_done = done, .ctx = ctx };
    (void)http_call_start(b.http, &r);
    free(url);
}

static void sample(double ms)
{
    if (b.n_ms < SAMPLES_MAX)
        b.ms[b.n_ms++] = ms;
}

static int compare(const void *x, const void *y)
{
    double p = *(const double *)x, q = *(const double *)y;
    return p < q ? -1 : p > q;
}

static void ignore(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    (void)ctx;
    if (rc < 0 || r->status >= 300)
        die("request", rc < 0 ? e->msg : buf_data(r->body));
}

/* ---- part 2: a waiting poll ---- */
static void poll_once(void);

static void report_polls(void)
{
    qsort(b.ms, b.n_ms, sizeof *b.ms, compare);
    double p99 = b.ms[b.n_ms * 99 / 100];
    printf("work item enqueued to claimed by a waiting poll, p99 | %.1f ms | 5 ms | %.3fx | <= 1\n", p99, p99 / 5);
    ev_stop(b.ev);
}

static void on_poll(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    (void)ctx;
    AUTO_JS j = NULL;
    struct err pe = { 0 };
    double now = wall_ms();
    if (rc < 0 || r->status != 200)
        die("poll", rc < 0 ? e->msg : buf_data(r->body));
    int64_t created;
    if (js_parse(buf_data(r->body), buf_len(r->body), JS_BODY_MAX, &j, &pe) == RC_OK && js_str(j, "id") && rfc3339_parse(js_str(j, "created_at"), &created) == RC_OK) {
        sample(now - (double)created);
        char path[256];
        snprintf(path, sizeof path, "/v1/environments/%s/work/%s/ack", b.env, js_str(j, "id"));
        call("POST", path, NULL, b.env_key, ignore, NULL);
        if (b.n_ms == POLLS) {
            report_polls();
            return;
        }
        b.waiting = false;
    }
    poll_once();
}

static void on_enqueue(struct ev_timer *t)
{
    (void)t;
    char body[512];
    snprintf(body, sizeof body, "{\"agent\":\"%s\",\"environment_id\":\"%s\",\"initial_events\":[{\"type\":\"user.message\",\"content\":[{\"type\":\"text\",\"text\":\"x\"}]}]}", b.agent, b.env);
    call("POST", "/v1/sessions", body, b.key, ignore, NULL);
}

static void poll_once(void)
{
    char path[256];
    snprintf(path, sizeof path, "/v1/environments/%s/work/poll?block_ms=999", b.env);
    call("GET", path, NULL, b.env_key, on_poll, NULL);
    if (!b.waiting) {
        b.waiting = true;
        ev_timer_set(b.ev, &b.next, 15, on_enqueue);
    }
}

/* Items of part 1 are in the way: take them all first. */
static void on_drain(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    (void)ctx;
    AUTO_JS j = NULL;
    struct err pe = { 0 };
    if (rc < 0 || r->status != 200)
        die("poll", rc < 0 ? e->msg : buf_data(r->body));
    char path[256];
    if (js_parse(buf_data(r->body), buf_len(r->body), JS_BODY_MAX, &j, &pe) == RC_OK && js_str(j, "id")) {
        snprintf(path, sizeof path, "/v1/environments/%s/work/%s/ack", b.env, js_str(j, "id"));
        call("POST", path, NULL, b.env_key, ignore, NULL);
        snprintf(path, sizeof path, "/v1/environments/%s/work/poll", b.env);
        call("GET", path, NULL, b.env_key, on_drain, NULL);
        return;
    }
    b.n_ms = 0;
    poll_once();
}

/* ---- part 1: streams ---- */
static void on_end(struct ev_timer *t)
{
    (void)t;
    b.polling = true;
    double seconds = (double)(clock_mono_ms() - b.begin_ms) / 1e3;
    if (!b.n_ms)
        die("streams", "no event came");
    qsort(b.ms, b.n_ms, sizeof *b.ms, compare);
    double p99 = b.ms[b.n_ms * 99 / 100], p50 = b.ms[b.n_ms / 2];
    printf("append-to-SSE delivery, median, at %.0f events/s | %.1f ms | 5 ms | %.3fx | <= 1\n", (double)b.n_ms / seconds, p50, p50 / 5);
    printf("append-to-SSE delivery, p99, at %.0f events/s | %.1f ms | 5 ms | %.3fx | <= 1\n", (double)b.n_ms / seconds, p99, p99 / 5);
    fflush(stdout);
    char path[256];
    snprintf(path, sizeof path, "/v1/environments/%s/work/poll", b.env);
    call("GET", path, NULL, b.env_key, on_drain, NULL);
}

static void say(struct session *s)
{
    char path[256];
    snprintf(path, sizeof path, "/v1/sessions/%s/events", s->id);
    call("POST", path, "{\"events\":[{\"type\":\"user.message\",\"content\":[{\"type\":\"text\",\"text\":\"again\"}]}]}", b.key, ignore, NULL);
}

static int on_event(void *ctx, const struct sse_event *ev)
{
    struct session *s = ctx;
    const char *at = strstr(ev->data, "\"processed_at\":\"");
    int64_t ms;
    char text[RFC3339_MAX];
    if (b.polling)
        return RC_OK;
    if (at && snprintf(text, sizeof text, "%.24s", at + 16) == 24 && rfc3339_parse(text, &ms) == RC_OK)
        sample(wall_ms() - (double)ms);
    if (str_eq(ev->event, "session.status_idle"))
        say(s);
    return RC_OK;
}

static int on_data(void *ctx, const char *p, size_t n)
{
    struct session *s = ctx;
    return sse_feed(s->sse, p, n, on_event, s);
}

static void on_head(void *ctx, const struct http_head *h)
{
    if (h->status != 200)
        die("stream", "refused");
    say(ctx);
    if (++b.started == b.n) {
        b.begin_ms = clock_mono_ms();
        b.n_ms = 0;
        ev_timer_set(b.ev, &b.end, b.seconds * 1000, on_end);
    }
}

static void on_stream_end(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    (void)ctx, (void)r;
    die("stream ended", rc < 0 ? e->msg : "");
}

static void on_session(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    struct session *s = ctx;
    AUTO_JS j = NULL;
    struct err pe = { 0 };
    if (rc < 0 || r->status != 200 || js_parse(buf_data(r->body), buf_len(r->body), JS_BODY_MAX, &j, &pe) < 0)
        die("session", rc < 0 ? e->msg : buf_data(r->body));
    (void)str_copy(s->id, sizeof s->id, js_str(j, "id"));
    s->sse = sse_decoder_new(MIB);
    char *url = str_printf("%s/v1/sessions/%s/events/stream", b.url, s->id);
    struct http_request q = { .method = "GET", .url = url, .headers = BETA, .bearer = b.key, .on_head = on_head, .on_data = on_data, .on_done = on_stream_end, .ctx = s };
    (void)http_call_start(b.http, &q);
    free(url);
}

static const char *need(const char *name)
{
    const char *v = getenv(name);
    if (!v)
        die("environment", name);
    return v;
}

int main(int argc, char **argv)
{
    struct err e = { 0 };
    if (argc != 3) {
        fprintf(stderr, "usage: server_bench SESSIONS SECONDS\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    b.n = (int)strtol(argv[1], NULL, 10), b.seconds = (int)strtol(argv[2], NULL, 10);
    b.url = need("BENCH_URL"), b.agent = need("BENCH_AGENT"), b.env = need("BENCH_ENV");
    const char *k = need("BENCH_KEY"), *ek = need("BENCH_ENV_KEY");
    b.key = secret_new(k, strlen(k)), b.env_key = secret_new(ek, strlen(ek));
    b.s = xcalloc((size_t)b.n, sizeof *b.s);
    b.ms = xcalloc(SAMPLES_MAX, sizeof *b.ms);
    struct http_client_conf c = { .idle_max = 64 };
    if (ev_new(&b.ev, &e) < 0 || http_client_new(b.ev, &c, &b.http, &e) < 0)
        die("start", e.msg);
    char body[512];
    snprintf(body, sizeof body, "{\"agent\":\"%s\",\"environment_id\":\"%s\"}", b.agent, b.env);
    for (int i = 0; i < b.n; i++)
        call("POST", "/v1/sessions", body, b.key, on_session, &b.s[i]);
    ev_run(b.ev);
    return 0;
}
