/* The other end of a worker: plays the API of one environment with one session, sends tool calls one after another on the event stream and
 * measures, per call, the time from writing the call to having the posted result. Any worker can be measured: it only speaks the API.
 *
 * Usage: wire_bench CALLS WARMUP TOOL INPUT_JSON < /dev/null; prints "listening PORT" first, then one JSON line of figures, then exits.
 * Environment: WIRE_SESSIONS (default 1): so many sessions at once, each with CALLS calls; latency is over all, "per_second" is the total rate.
 * WIRE_FIRST: a bash command that each session runs before anything is measured. WIRE_EXPECT: text that every measured result must hold, so that nobody is
 * measured at refusing the work; a result without it ends the program with status 3. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/str.h"
#include "http/server.h"
#include "http/sse.h"
#include "json/js.h"

#define SESSIONS_MAX 256

struct session {
    int index;
    struct http_stream *stream;
    struct buf frame;
    int64_t sent_us, calls;
    bool offered, prepared;
};

static struct {
    struct ev *ev;
    struct http_server *http;
    const char *tool, *input, *first, *expect;
    int64_t calls, warmup, n_sessions, done, *us, n_us;
    int64_t started_us, enqueued_us, first_result_us;
    struct session s[SESSIONS_MAX];
} b;

static int64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static void reply(struct http_req *r, int status, const char *text)
{
    struct buf body;
    buf_init(&body, MIB);
    buf_puts(&body, text);
    struct http_reply a = { .status = status, .content_type = "application/json", .headers = "outwork-poll: held\r\n", .body = &body };
    http_reply(r, &a);
}

static int compare(const void *x, const void *y)
{
    int64_t a = *(const int64_t *)x, c = *(const int64_t *)y;
    return a < c ? -1 : a > c;
}

static void finish(void)
{
    qsort(b.us, (size_t)b.n_us, sizeof *b.us, compare);
    int64_t sum = 0;
    for (int64_t i = 0; i < b.n_us; i++)
        sum += b.us[i];
    double seconds = (double)(now_us() - b.started_us) / 1e6;
    printf("{\"calls\": %" PRId64 ", \"median_us\": %" PRId64 ", \"p99_us\": %" PRId64 ", \"mean_us\": %" PRId64 ", \"per_second\": %.0f, \"offer_to_first_result_us\": %" PRId64 "}\n",
           b.n_us, b.us[b.n_us / 2], b.us[b.n_us * 99 / 100], sum / b.n_us, (double)b.n_us / seconds, b.first_result_us - b.enqueued_us);
    fflush(stdout);
    ev_stop(b.ev);
}

static void send_call(struct session *s)
{
    bool first = b.first && !s->prepared;
    char *data = str_printf("{\"id\":\"sevt_%d_%" PRId64 "%s\",\"type\":\"agent.tool_use\",\"name\":\"%s\",\"input\":%s,\"evaluated_permission\":\"allow\","
                            "\"processed_at\":\"2026-01-01T00:00:00.000Z\"}", s->index, s->calls, first ? "f" : "", first ? "bash" : b.tool, first ? b.first : b.input);
    buf_clear(&s->frame);
    (void)sse_write(&s->frame, NULL, "agent.tool_use", data, strlen(data));
    free(data);
    s->sent_us = now_us();
    (void)http_stream_write(s->stream, buf_data(&s->frame), buf_len(&s->frame));
}

static void on_start(void *ctx, struct http_stream *st)
{
    struct session *s = ctx;
    s->stream = st;
    send_call(s);
}

static void on_close(void *ctx, struct http_stream *st)
{
    struct session *s = ctx;
    s->stream = NULL;
    http_stream_end(st);
}

static void on_result(struct session *s, struct http_req *r)
{
    int64_t us = now_us() - s->sent_us;
    struct slice body = http_req_body(r);
    if (!b.first_result_us)
        b.first_result_us = now_us();
    bool measured = s->prepared || !b.first;
    if (measured && b.expect && !memmem(body.p, body.n, b.expect, strlen(b.expect))) {
        fprintf(stderr, "a result without '%s': %.*s\n", b.expect, (int)(body.n < 2000 ? body.n : 2000), body.p);
        exit(3);
    }
    s->prepared = true;
    reply(r, 200, "{\"data\":[]}");
    s->calls += measured;
    if (s->calls > b.warmup) {
        if (!b.started_us)
            b.started_us = now_us();
        b.us[b.n_us++] = us;
    }
    if (s->calls == b.warmup + b.calls) {
        if (++b.done == b.n_sessions)
            finish();
        return;
    }
    if (s->stream)
        send_call(s);
}

static void work_item(struct session *s, const char *state, char *out, size_t cap)
{
    snprintf(out, cap, "{\"id\":\"work_%d\",\"type\":\"work\",\"environment_id\":\"env_bench\",\"data\":{\"type\":\"session\",\"id\":\"sesn_%d\"},\"state\":\"%s\",\"metadata\":{},"
             "\"secret\":null,\"created_at\":\"2026-01-01T00:00:00Z\",\"acknowledged_at\":null,\"started_at\":null,\"latest_heartbeat_at\":null,\"stop_requested_at\":null,\"stopped_at\":null}",
             s->index, s->index, state);
}

static void on_poll(struct http_req *r)
{
    for (int i = 0; i < b.n_sessions; i++) {
        if (b.s[i].offered)
            continue;
        char item[1024];
        b.s[i].offered = true;
        if (!b.enqueued_us)
            b.enqueued_us = now_us();
        work_item(&b.s[i], "queued", item, sizeof item);
        reply(r, 200, item);
        return;
    }
    reply(r, 200, "null");
}

static struct session *session_of(const char *path, const char *mark)
{
    const char *p = strstr(path, mark);
    long i = p ? strtol(p + strlen(mark), NULL, 10) : -1;
    return i >= 0 && i < b.n_sessions ? &b.s[i] : NULL;
}

static void on_request(void *ctx, struct http_req *r)
{
    (void)ctx;
    char path[512], text[2048];
    struct slice p = http_req_path(r);
    snprintf(path, sizeof path, "%.*s", (int)p.n, p.p);
    bool post = http_req_head(r)->method == HTTP_POST;
    struct session *s = session_of(path, "/sesn_"), *w = session_of(path, "/work_");
    if (str_suffix(path, "/work/poll")) {
        on_poll(r);
    } else if (w && str_suffix(path, "/ack")) {
        work_item(w, "starting", text, sizeof text);
        reply(r, 200, text);
    } else if (w && str_suffix(path, "/heartbeat")) {
        char at[RFC3339_MAX];
        rfc3339_format(clock_now_ms(), at);
        snprintf(text, sizeof text, "{\"type\":\"work_heartbeat\",\"last_heartbeat\":\"%s\",\"lease_extended\":true,\"state\":\"active\",\"ttl_seconds\":60}", at);
        reply(r, 200, text);
    } else if (w && str_suffix(path, "/stop")) {
        struct http_reply a = { .status = 204 };
        http_reply(r, &a);
    } else if (s && str_suffix(path, "/events/stream")) {
        struct http_stream_conf c = { .status = 200, .content_type = "text/event-stream", .queue_max = MIB, .on_start = on_start, .on_close = on_close, .ctx = s };
        http_stream_start(r, &c);
    } else if (s && str_suffix(path, "/events") && post) {
        on_result(s, r);
    } else if (s && str_suffix(path, "/events")) {
        reply(r, 200, "{\"data\":[],\"next_page\":null}");
    } else if (s) {
        snprintf(text, sizeof text, "{\"id\":\"sesn_%d\",\"type\":\"session\",\"status\":\"running\",\"environment_id\":\"env_bench\",\"agent\":{\"id\":\"agent_bench\",\"type\":\"agent\",\"version\":1,"
                 "\"name\":\"b\",\"model\":{\"id\":\"m\"},\"skills\":[],\"tools\":[],\"mcp_servers\":[]},\"resources\":[],\"metadata\":{},\"vault_ids\":[],"
                 "\"created_at\":\"2026-01-01T00:00:00Z\",\"updated_at\":\"2026-01-01T00:00:00Z\",\"archived_at\":null,\"title\":null}", s->index);
        reply(r, 200, text);
    } else {
        reply(r, 404, "{\"type\":\"error\",\"error\":{\"type\":\"not_found_error\",\"message\":\"no such path\"}}");
    }
}

int main(int argc, char **argv)
{
    struct err e = { 0 };
    struct net_addr addr, bound;
    char text[NET_ADDR_TEXT];
    int fd;
    if (argc != 5) {
        fprintf(stderr, "usage: wire_bench CALLS WARMUP TOOL INPUT_JSON\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    const char *n = getenv("WIRE_SESSIONS");
    json_t *command = getenv("WIRE_FIRST") ? json_pack("{s:s}", "command", getenv("WIRE_FIRST")) : NULL;
    b.first = command ? js_text(command) : NULL;
    b.expect = getenv("WIRE_EXPECT");
    b.calls = strtol(argv[1], NULL, 10), b.warmup = strtol(argv[2], NULL, 10), b.tool = argv[3], b.input = argv[4];
    b.n_sessions = n ? strtol(n, NULL, 10) : 1;
    if (b.n_sessions < 1 || b.n_sessions > SESSIONS_MAX)
        return 2;
    b.us = xcalloc((size_t)(b.calls * b.n_sessions), sizeof *b.us);
    for (int i = 0; i < b.n_sessions; i++) {
        b.s[i].index = i;
        buf_init(&b.s[i].frame, MIB);
    }
    struct http_server_conf conf = { .limits = http_limits_default, .on_request = on_request };
    if (ev_new(&b.ev, &e) < 0 || net_addr_parse("127.0.0.1:0", &addr, &e) < 0 || net_listen(&addr, &fd, &bound, &e) < 0 ||
        http_server_new(b.ev, &conf, fd, &b.http, &e) < 0) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    net_addr_format(&bound, text);
    printf("listening %s\n", strrchr(text, ':') + 1);
    fflush(stdout);
    ev_run(b.ev);
    return 0;
}
