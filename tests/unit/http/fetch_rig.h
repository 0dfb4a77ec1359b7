/* fetch against a small server in a thread: what it does is chosen by the path. Included by one test program each. */
#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/str.h"
#include "http/fetch.h"

/* ---- the server ---- */

static int listener;
static int port;
static atomic_int n_conns, n_requests, uploaded;
static _Thread_local int requests_here;

static void PRINTF_LIKE(2, 3) say(int fd, const char *fmt, ...)
{
    char text[4096];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    (void)!send(fd, text, (size_t)n, MSG_NOSIGNAL);
}

static void nap(int ms) { struct timespec t = { ms / 1000, ms % 1000 * 1000000L }; nanosleep(&t, NULL); }

static void answer(int fd, const char *status, const char *headers, const char *body)
{
    say(fd, "HTTP/1.1 %s\r\ncontent-length: %zu\r\n%s\r\n%s", status, strlen(body), headers, body);
}

/* Waits for the client to hang up. */
static bool hold(int fd)
{
    char c;
    while (recv(fd, &c, 1, 0) > 0) {
    }
    return false;
}

/* False: close the connection. */
static bool serve(int fd, const char *head, const char *path)
{
    if (str_eq(path, "/ok")) {
        answer(fd, "200 OK", "request-id: req_1\r\n", "hello");
    } else if (str_eq(path, "/echo")) {
        answer(fd, "200 OK", "", head);
    } else if (str_prefix(path, "/retry/")) {
        char h[200];
        AUTO_FREE char *v = str_dup(path + 7);
        for (char *c = v; *c; c++)
            *c = *c == '_' ? ' ' : *c;
        (void)snprintf(h, sizeof h, "Retry-After: %s\r\nx-request-id: x1\r\n", v);
        answer(fd, "429 Too Many Requests", h, "{\"slow\":1}");
    } else if (str_eq(path, "/retry-ms")) {
        answer(fd, "503 x", "retry-after-ms: 1500.7\r\nretry-after: 9\r\nrequest-id: \x01r q\x02\r\nx-request-id: other\r\n", "");
    } else if (str_eq(path, "/interim")) {
        say(fd, "HTTP/1.1 103 Early Hints\r\nrequest-id: early\r\n\r\n");
        nap(20);
        answer(fd, "200 OK", "", "late");
    } else if (str_eq(path, "/redirect")) {
        answer(fd, "302 Found", "location: /ok\r\n", "moved");
    } else if (str_eq(path, "/stream") || str_eq(path, "/stream-error")) {
        say(fd, "HTTP/1.1 %s x\r\ntransfer-encoding: chunked\r\n\r\n", str_eq(path, "/stream") ? "200" : "529");
        for (int i = 0; i < 5; i++) {
            say(fd, "5\r\npart%d\r\n", i);
            nap(3);
        }
        say(fd, "0\r\nretry-after: 5\r\n\r\n");
    } else if (str_eq(path, "/big")) {
        static char block[65536];
        memset(block, 'b', sizeof block);
        say(fd, "HTTP/1.1 200 OK\r\ncontent-length: %zu\r\n\r\n", 320 * sizeof block);
        for (int i = 0; i < 320; i++)
            for (size_t at = 0; at < sizeof block;) {
                ssize_t n = send(fd, block + at, sizeof block - at, MSG_NOSIGNAL);
                if (n <= 0)
                    return false;
                at += (size_t)n;
            }
    } else if (str_eq(path, "/short")) {
        say(fd, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789");
        return false;
    } else if (str_eq(path, "/nothing")) {
        return false;
    } else if (str_eq(path, "/silent")) {
        return hold(fd);
    } else if (str_eq(path, "/stall")) {
        say(fd, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789");
        return hold(fd);
    } else if (str_eq(path, "/drip")) {
        say(fd, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
        for (int i = 0; i < 1000; i++) {
            nap(5);
            if (send(fd, "x", 1, MSG_NOSIGNAL) < 0)
                return false;
        }
    } else if (str_eq(path, "/once")) {     /* keep-alive is promised, and then broken */
        answer(fd, "200 OK", "", "once");
        return requests_here < 1;
    } else if (str_eq(path, "/garbage")) {
        say(fd, "SSH-2.0-x\r\n\r\n");
        return false;
    } else {
        answer(fd, "404 Not Found", "", "no");
    }
    return true;
}

static bool one_request(int fd, struct buf *in)
{
    char *end = NULL, chunk[65536];
    while (!buf_len(in) || !(end = strstr(buf_data(in), "\r\n\r\n"))) {
        ssize_t n = recv(fd, chunk, sizeof chunk, 0);
        if (n <= 0)
            return false;
        (void)buf_put(in, chunk, (size_t)n);
    }
    AUTO_FREE char *head = str_ndup(buf_data(in), (size_t)(end - buf_data(in)) + 4);
    buf_consume(in, strlen(head));
    const char *length = strcasestr(head, "content-length: ");
    int64_t left = length ? strtol(length + 16, NULL, 10) : 0, total = left;
    AUTO_FREE char *body = xcalloc(1, 1000);
    if (left && left < 500) {
        while ((int64_t)buf_len(in) < left) {
            ssize_t n = recv(fd, chunk, sizeof chunk, 0);
            if (n <= 0)
                return false;
            (void)buf_put(in, chunk, (size_t)n);
        }
        memcpy(body, buf_data(in), (size_t)left);
        buf_consume(in, (size_t)left);
    } else if (left) {
        left -= (int64_t)buf_len(in);
        buf_consume(in, buf_len(in));
        while (left > 0) {
            ssize_t n = recv(fd, chunk, sizeof chunk, 0);
            if (n <= 0)
                return false;
            left -= n;
        }
    }
    atomic_store(&uploaded, (int)total);
    AUTO_FREE char *all = str_printf("%s%s", head, body);
    char *path = strchr(all, ' ') + 1;
    AUTO_FREE char *p = str_ndup(path, strcspn(path, " "));
    atomic_fetch_add(&n_requests, 1);
    return serve(fd, all, p);
}

static void *connection(void *arg)
{
    int fd = (int)(intptr_t)arg;
    struct buf in;
    buf_init(&in, 64 * MIB);
    for (requests_here = 0; one_request(fd, &in); requests_here++) {
    }
    buf_done(&in);
    close(fd);
    return NULL;
}

static void *server(void *arg)
{
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0;) {
        pthread_t t;
        atomic_fetch_add(&n_conns, 1);
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
        if (pthread_create(&t, NULL, connection, (void *)(intptr_t)fd) == 0)
            pthread_detach(t);
    }
    return arg;
}

/* ---- one call and what came of it ---- */

static struct ev *ev;
static struct fetch *fetch;

struct got {
    int rc, status, done, pieces, piece_rc, data_status;
    int64_t retry, ms, from;
    size_t streamed;
    char id[64], msg[ERR_MSG_MAX], *body;
    struct buf data;
    struct fetch_call *call, *other;
    bool cancel_self, cancel_other, chain;
};

static void on_done(void *ctx, int rc, int status, int64_t retry, const char *id, const struct buf *body, const struct err *e)
{
    struct got *g = ctx;
    g->done++;
    g->rc = rc;
    g->status = status;
    g->retry = retry;
    g->ms = clock_mono_ms() - g->from;
    (void)str_copy(g->id, sizeof g->id, id ? id : "-");
    (void)str_copy(g->msg, sizeof g->msg, e->msg);
    free(g->body);
    g->body = str_dup(buf_data((struct buf *)(uintptr_t)body));
    if (g->cancel_self)
        fetch_cancel(g->call);
    if (g->cancel_other)
        fetch_cancel(g->other);
    g->other = NULL;
}

static int on_data(void *ctx, int status, const char *p, size_t n)
{
    struct got *g = ctx;
    g->pieces++;
    g->streamed += n;
    g->data_status = status;
    if (buf_len(&g->data) < 1000)
        (void)buf_put(&g->data, p, n);
    if (g->cancel_other && g->other) {
        fetch_cancel(g->other);
        g->other = NULL;
    }
    if (g->cancel_self)
        fetch_cancel(g->call);
    return g->piece_rc;
}

static char url_text[8][300];
static const char *url(const char *path)
{
    static unsigned at;
    at = (at + 1) % 8;
    (void)snprintf(url_text[at], sizeof url_text[at], "http://127.0.0.1:%d%s", port, path);
    return url_text[at];
}

static void got_init(struct got *g)
{
    *g = (struct got){ .from = clock_mono_ms() };
    buf_init(&g->data, 64 * MIB);
}

static void got_done(struct got *g)
{
    free(g->body);
    buf_done(&g->data);
}

static void start(struct got *g, struct fetch_request r)
{
    r.on_done = on_done;
    r.ctx = g;
    g->call = fetch_start(fetch, &r);
    assert_non_null(g->call);
    assert_int_equal(g->done, 0);
}

static void wait_done(struct got *g)
{
    for (int64_t end = clock_mono_ms() + 20000; !g->done && clock_mono_ms() < end;)
        ev_run_once(ev, 50);
    assert_int_equal(g->done, 1);
}

__attribute__((unused)) static void turn(int ms)
{
    for (int64_t end = clock_mono_ms() + ms; clock_mono_ms() < end;)
        ev_run_once(ev, 5);
}

/* A whole call. */
static void get(struct got *g, struct fetch_request r)
{
    got_init(g);
    start(g, r);
    wait_done(g);
}

static int setup(void **st)
{
    (void)st;
    struct err e;
    static const char *const proxies_env[] = { "http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY" };
    for (size_t i = 0; i < COUNT_OF(proxies_env); i++)
        unsetenv(proxies_env[i]);
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t n = sizeof a;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&a, n) < 0 || listen(listener, 200) < 0 || getsockname(listener, (struct sockaddr *)&a, &n) < 0)
        return -1;
    port = ntohs(a.sin_port);
    if (ev_new(&ev, &e) < 0)
        return -1;
    pthread_t t;
    if (pthread_create(&t, NULL, server, NULL) != 0)
        return -1;
    pthread_detach(t);
    return fetch_new(ev, &(struct fetch_conf){ .user_agent = "test/1" }, &fetch, &e);
}

static int teardown(void **st)
{
    (void)st;
    fetch_free(fetch);
    ev_free(ev);
    return 0;
}
