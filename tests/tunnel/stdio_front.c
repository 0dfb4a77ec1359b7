/* A plain HTTP front for one stdio upstream, so that the upstream can be tried with real clients without a tunnel around it.
 * Usage: stdio_front PROGRAM [ARG...]; prints "port N". Variables FRONT_PROCS, FRONT_IDLE_MS, FRONT_LINE_MAX; the child's own are given as CHILD_NAME=VALUE. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "gateway/stdio_upstream.h"
#include "http/server.h"
#include "log/log.h"

extern char **environ;

struct exchange {
    struct http_req *r;
    struct http_stream *s;
    struct upstream_call *call;
    struct buf wait;                 /* before the stream stands; the body of an answer with a length */
    char *headers, host[256];
    int status;
    bool stream, ended, gone;
};

static struct stdio_upstream *up;

static void x_free(struct exchange *x)
{
    buf_done(&x->wait);
    free(x->headers);
    free(x);
}

const struct http_head *exchange_head(const struct exchange *x) { return http_req_head(x->r); }
const char *exchange_host(const struct exchange *x) { return x->host; }
bool exchange_has_body(const struct exchange *x) { return http_req_body(x->r).n > 0; }
void exchange_want_body(struct exchange *x) { (void)x; }

static void on_start(void *ctx, struct http_stream *s)
{
    struct exchange *x = ctx;
    x->s = s;
    if (buf_len(&x->wait))
        (void)http_stream_write(s, buf_data(&x->wait), buf_len(&x->wait));
    if (x->ended) {
        http_stream_end(s);
        x_free(x);
    }
}

static void on_close(void *ctx, struct http_stream *s)
{
    struct exchange *x = ctx;
    http_stream_end(s);
    if (!x->ended)
        stdio_upstream_ops.cancel(x->call);
    x_free(x);
}

void exchange_reply(struct exchange *x, int status, const char *headers, size_t n, int64_t length)
{
    x->status = status;
    x->headers = str_ndup(headers, n);
    x->stream = length < 0;
    if (!x->stream)
        return;
    struct http_stream_conf c = { .status = status, .headers = x->headers, .queue_max = 64 * MIB, .on_start = on_start, .on_close = on_close, .ctx = x };
    http_stream_start(x->r, &c);
}

size_t exchange_write(struct exchange *x, const void *p, size_t n)
{
    if (x->s)
        return http_stream_write(x->s, p, n) == RC_OK ? n : 0;
    return buf_put(&x->wait, p, n) == RC_OK ? n : 0;
}

void exchange_end(struct exchange *x)
{
    x->ended = true;
    if (!x->stream) {
        struct http_reply a = { .status = x->status, .headers = x->headers, .body = &x->wait };
        http_reply(x->r, &a);
        x_free(x);
    } else if (x->s) {
        http_stream_end(x->s);
        x_free(x);
    }
}

void exchange_fail(struct exchange *x, int status, const struct err *why)
{
    fprintf(stderr, "failed: %d %s\n", status, why->msg);
    x->ended = true;
    if (x->s) {
        http_stream_end(x->s);
        x_free(x);
    } else if (!x->stream) {
        struct http_reply a = { .status = status, .close = true };
        http_reply(x->r, &a);
        x_free(x);
    }
}

static void on_request(void *ctx, struct http_req *r)
{
    (void)ctx;
    struct exchange *x = xcalloc(1, sizeof *x);
    x->r = r;
    buf_init(&x->wait, 64 * MIB);
    const struct slice *h = http_find(http_req_head(r), "host");
    if (h) {
        size_t n = h->n;
        const char *colon = memchr(h->p, ':', n);
        AUTO_FREE char *t = str_ndup(h->p, colon ? (size_t)(colon - h->p) : n);
        (void)str_copy(x->host, sizeof x->host, t);
    }
    struct upstream_call *c = x->call = stdio_upstream_ops.start(up, x);
    struct slice b = http_req_body(r);
    for (size_t at = 0; at < b.n;) {
        size_t n = b.n - at < 16384 ? b.n - at : 16384;
        at += stdio_upstream_ops.body(c, b.p + at, n);
    }
    stdio_upstream_ops.body_end(c);
}

static void on_signal(void *ctx, int signo)
{
    (void)signo;
    ev_stop(ctx);
}

int main(int argc, char **argv)
{
    struct ev *ev = NULL;
    struct err e = { 0 };
    struct net_addr a, bound;
    struct http_server *s = NULL;
    char *env[64];
    size_t n_env = 0;
    int fd = -1;
    int64_t procs = 0, idle = 0, line = 0;
    if (argc < 2)
        return 2;
    signal(SIGPIPE, SIG_IGN);
    log_setup(LOG_DEBUG, LOG_TEXT, "front");
    for (char **v = environ; *v && n_env < 63; v++) {
        if (str_prefix(*v, "CHILD_"))
            env[n_env++] = *v + 6;
        else if (str_prefix(*v, "FRONT_PROCS="))
            (void)!str_to_i64(*v + 12, 1, 1000, &procs);
        else if (str_prefix(*v, "FRONT_IDLE_MS="))
            (void)!str_to_i64(*v + 14, 1, INT32_MAX, &idle);
        else if (str_prefix(*v, "FRONT_LINE_MAX="))
            (void)!str_to_i64(*v + 15, 1, INT32_MAX, &line);
    }
    env[n_env] = NULL;
    struct stdio_conf c = { .route = "test", .argv = argv + 1, .env = env, .procs_max = (size_t)procs, .line_max = (size_t)line, .idle_ms = idle };
    struct http_server_conf hc = { .on_request = on_request };
    if (ev_new(&ev, &e) < 0 || ev_signal(ev, SIGTERM, on_signal, ev, &e) < 0 || stdio_new(ev, &c, &up, &e) < 0 || net_addr_parse("127.0.0.1:0", &a, &e) < 0 ||
        net_listen(&a, &fd, &bound, &e) < 0 || http_server_new(ev, &hc, fd, &s, &e) < 0) {
        fprintf(stderr, "stdio_front: %s\n", e.msg);
        return 1;
    }
    printf("port %u\n", ntohs(((struct sockaddr_in *)&bound.ss)->sin_port));
    fflush(stdout);
    ev_run(ev);
    stdio_free(up);
    http_server_free(s);
    ev_free(ev);
    return 0;
}
