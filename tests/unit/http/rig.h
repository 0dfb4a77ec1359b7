/* A server and its clients in one process and one thread: the test turns the loop while it waits. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/fd.h"
#include "http/server.h"

static struct ev *rig_ev;
static struct http_server *rig_server;
static struct net_addr rig_addr;
static struct http_server_conf rig_conf;

struct client { int fd; struct buf got; bool closed; };

static void on_request(void *ctx, struct http_req *r);  /* by the test */

static void rig_refused(void *ctx, int status, const char *why, struct buf *body)
{
    (void)ctx;
    buf_printf(body, "{\"status\":%d,\"why\":\"%s\"}", status, why);
}

/* `change` edits the configuration first. */
static void rig_start(void (*change)(struct http_server_conf *c))
{
    struct err e;
    struct net_addr a;
    int fd = -1;
    assert_int_equal(ev_new(&rig_ev, &e), RC_OK);
    assert_int_equal(net_addr_parse("127.0.0.1:0", &a, &e), RC_OK);
    assert_int_equal(net_listen(&a, &fd, &rig_addr, &e), RC_OK);
    rig_conf = (struct http_server_conf){ .limits = http_limits_default, .on_request = on_request, .on_refused = rig_refused };
    if (change)
        change(&rig_conf);
    assert_int_equal(http_server_new(rig_ev, &rig_conf, fd, &rig_server, &e), RC_OK);
}

static void turn(int ms)
{
    int64_t end = clock_mono_ms() + ms;
    do {
        ev_run_once(rig_ev, ms > 5 ? 5 : ms);
    } while (clock_mono_ms() < end);
}

static void rig_stop(void)
{
    http_server_free(rig_server);
    rig_server = NULL;
    turn(5);        /* posts that hold references */
    ev_free(rig_ev);
}

static void client_open(struct client *c)
{
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    c->closed = false;
    buf_init(&c->got, 64 * MIB);
    assert_int_equal(connect(c->fd, (struct sockaddr *)&rig_addr.ss, rig_addr.len), 0);
    assert_int_equal(fd_nonblock(c->fd), RC_OK);
}

static void client_close(struct client *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    buf_done(&c->got);
}

/* A reset instead of a clean end. */
static void client_reset(struct client *c)
{
    struct linger l = { 1, 0 };
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
    client_close(c);
}

static void client_send_n(struct client *c, const char *p, size_t n)
{
    int64_t end = clock_mono_ms() + 10000;
    while (n && clock_mono_ms() < end) {
        ssize_t w = send(c->fd, p, n, MSG_NOSIGNAL);
        if (w > 0) {
            p += w;
            n -= (size_t)w;
        } else if (errno != EAGAIN) {
            return;     /* the server may have refused and closed */
        }
        ev_run_once(rig_ev, w > 0 ? 0 : 1);
    }
}

static void client_send(struct client *c, const char *s) { client_send_n(c, s, strlen(s)); }

/* Takes what is there now; true when something came. */
static bool client_recv(struct client *c)
{
    static char b[65536];
    ssize_t n = c->closed ? -1 : recv(c->fd, b, sizeof b, 0);
    if (n > 0)
        buf_put(&c->got, b, (size_t)n);
    if (n == 0 || (n < 0 && !c->closed && errno != EAGAIN))
        c->closed = true;
    return n > 0;
}

static bool client_wait(struct client *c, const char *needle)
{
    int64_t end = clock_mono_ms() + 10000;
    while (!strstr(buf_data(&c->got), needle) && !c->closed && clock_mono_ms() < end) {
        ev_run_once(rig_ev, 2);
        while (client_recv(c)) {
        }
    }
    return strstr(buf_data(&c->got), needle) != NULL;
}

static bool client_wait_close(struct client *c)
{
    int64_t end = clock_mono_ms() + 10000;
    while (!c->closed && clock_mono_ms() < end) {
        ev_run_once(rig_ev, 2);
        while (client_recv(c)) {
        }
    }
    return c->closed;
}

static int count(const char *hay, const char *needle)
{
    int n = 0;
    for (const char *p = hay; (p = strstr(p, needle)); p += strlen(needle))
        n++;
    return n;
}

#define EXPECT(c, text) do { if (!client_wait(c, text)) fail_msg("no \"%s\" in \"%.600s\"", text, buf_data(&(c)->got)); } while (0)
#define SAYS(c, text) do { if (!strstr(buf_data(&(c)->got), text)) fail_msg("no \"%s\" in \"%.600s\"", text, buf_data(&(c)->got)); } while (0)
