#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/str.h"
#include "gateway/egress.h"
#include "net/net.h"

/* A proxy that answers every CONNECT with `answer` and keeps what it was asked. */
struct fake {
    struct ev *ev;
    int fd, peer;
    struct ev_io listen, io;
    char url[64], asked[2048];
    size_t n;
    const char *answer;
    uint16_t port;
};

static void fake_readable(struct ev_io *io, unsigned got)
{
    (void)got;
    struct fake *f = container_of(io, struct fake, io);
    ssize_t n = recv(f->peer, f->asked + f->n, sizeof f->asked - 1 - f->n, MSG_DONTWAIT);
    if (n <= 0) {
        ev_io_stop(io);
        return;
    }
    f->n += (size_t)n;
    if (strstr(f->asked, "\r\n\r\n") && f->answer) {
        assert_int_equal(send(f->peer, f->answer, strlen(f->answer), MSG_NOSIGNAL), strlen(f->answer));
        f->answer = NULL;
    }
}

static void fake_accept(struct ev_io *io, unsigned got)
{
    (void)got;
    struct fake *f = container_of(io, struct fake, listen);
    f->peer = accept4(f->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    assert_true(f->peer >= 0);
    assert_int_equal(ev_io_start(f->ev, &f->io, f->peer, EV_READ, fake_readable), RC_OK);
}

static void fake_start(struct fake *f, struct ev *ev, const char *userinfo, const char *answer)
{
    struct net_addr a, bound;
    struct err e;
    *f = (struct fake){ .ev = ev, .peer = -1, .answer = answer };
    assert_int_equal(net_addr_parse("127.0.0.1:0", &a, &e), RC_OK);
    assert_int_equal(net_listen(&a, &f->fd, &bound, &e), RC_OK);
    f->port = ntohs(((struct sockaddr_in *)&bound.ss)->sin_port);
    snprintf(f->url, sizeof f->url, "http://%s127.0.0.1:%u", userinfo, f->port);
    assert_int_equal(ev_io_start(ev, &f->listen, f->fd, EV_READ, fake_accept), RC_OK);
}

static void fake_stop(struct fake *f)
{
    ev_io_stop(&f->listen);
    ev_io_stop(&f->io);
    close(f->fd);
    if (f->peer >= 0)
        close(f->peer);
}

struct outcome { int calls, fd; struct err e; };

static void on_dial(void *ctx, int fd, const struct err *e)
{
    struct outcome *o = ctx;
    o->calls++;
    o->fd = fd;
    if (e)
        o->e = *e;
}

static struct outcome dial(struct ev *ev, const struct egress_conf *c, const char *host, uint16_t port, int64_t ms)
{
    struct outcome o = { .fd = -1 };
    (void)egress_dial(ev, c, host, port, ms, on_dial, &o);
    assert_int_equal(o.calls, 0);               /* never inside the call */
    for (int i = 0; i < 20000 && o.calls == 0; i++)
        ev_run_once(ev, 10);
    assert_int_equal(o.calls, 1);
    return o;
}

static void test_connect(void **st)
{
    struct ev *ev = *st;
    struct fake f;
    fake_start(&f, ev, "user:p%40ss@", "HTTP/1.1 200 Connection established\r\nX: y\r\n\r\nearly bytes");
    struct egress_conf c = { .proxy = f.url };
    struct outcome o = dial(ev, &c, "edge.example", 7443, 5000);
    assert_true(o.fd >= 0);
    assert_non_null(strstr(f.asked, "CONNECT edge.example:7443 HTTP/1.1\r\n"));
    assert_non_null(strstr(f.asked, "Host: edge.example:7443\r\n"));
    assert_non_null(strstr(f.asked, "Proxy-Authorization: Basic dXNlcjpwQHNz\r\n"));
    char b[32];
    ssize_t n = recv(o.fd, b, sizeof b, 0);     /* what follows the head is still in the socket */
    assert_int_equal(n, 11);
    assert_memory_equal(b, "early bytes", 11);
    close(o.fd);
    fake_stop(&f);
}

static void test_ipv6_literal(void **st)
{
    struct ev *ev = *st;
    struct fake f;
    fake_start(&f, ev, "", "HTTP/1.1 200 OK\r\n\r\n");
    struct egress_conf c = { .proxy = f.url };
    struct outcome o = dial(ev, &c, "[fd00::7]", 443, 5000);
    assert_true(o.fd >= 0);
    assert_non_null(strstr(f.asked, "CONNECT [fd00::7]:443 HTTP/1.1\r\n"));
    assert_null(strstr(f.asked, "Proxy-Authorization"));
    close(o.fd);
    fake_stop(&f);
}

static void test_refusals(void **st)
{
    struct ev *ev = *st;
    const struct { const char *user, *answer; int rc; const char *say; } t[] = {
        { "", "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n", RC_CLOSED, "wants a user name" },
        { "u:p@", "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n", RC_CLOSED, "password is wrong" },
        { "", "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", RC_CLOSED, "HTTP 403" },
        { "", "SSH-2.0-OpenSSH_9.2\r\n\r\n", RC_PROTO, "malformed" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct fake f;
        fake_start(&f, ev, t[i].user, t[i].answer);
        struct egress_conf c = { .proxy = f.url };
        struct outcome o = dial(ev, &c, "edge.example", 443, 5000);
        if (o.fd >= 0 || o.e.rc != t[i].rc || !strstr(o.e.msg, t[i].say) || !strstr(o.e.msg, "edge.example:443"))
            fail_msg("row %zu: fd %d rc %d \"%s\"", i, o.fd, o.e.rc, o.e.msg);
        fake_stop(&f);
    }
    struct fake f;
    fake_start(&f, ev, "", NULL);
    struct egress_conf c = { .proxy = f.url };
    struct outcome o = dial(ev, &c, "edge.example", 443, 100);      /* the proxy never answers */
    assert_int_equal(o.e.rc, RC_TIMEOUT);
    fake_stop(&f);
    o = dial(ev, &c, "edge.example", 443, 5000);                    /* nobody listens there now */
    assert_int_equal(o.fd, -1);
    assert_int_equal(o.e.rc, RC_IO);
}

static void test_bad_input(void **st)
{
    struct ev *ev = *st;
    char longest[300];
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    const struct { const char *proxy, *host; int rc; } t[] = {
        { "http://127.0.0.1:1", "", RC_INVALID }, { "http://127.0.0.1:1", longest, RC_INVALID }, { "http://127.0.0.1:1", "a\r\nX: y", RC_INVALID },
        { "http://127.0.0.1:1", "a b", RC_INVALID }, { "socks5://127.0.0.1:1", "edge.example", RC_INVALID }, { "https://127.0.0.1:1", "edge.example", RC_UNSUPPORTED },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct egress_conf c = { .proxy = t[i].proxy };
        struct outcome o = dial(ev, &c, t[i].host, 443, 5000);
        if (o.fd >= 0 || o.e.rc != t[i].rc)
            fail_msg("row %zu: rc %d \"%s\"", i, o.e.rc, o.e.msg);
    }
    struct err e;
    assert_int_equal(egress_check(&(struct egress_conf){ .proxy = "http://u:p@proxy:3128" }, &e), RC_OK);
    assert_int_equal(egress_check(&(struct egress_conf){ 0 }, &e), RC_OK);
    assert_int_equal(egress_check(&(struct egress_conf){ .proxy = "proxy:3128" }, &e), RC_INVALID);
    assert_int_equal(egress_check(&(struct egress_conf){ .proxy = "https://proxy:3128" }, &e), RC_UNSUPPORTED);
}

static void test_direct(void **st)
{
    struct ev *ev = *st;
    struct fake f;
    fake_start(&f, ev, "", NULL);
    struct egress_conf none = { 0 }, bypass = { .proxy = "http://u:p@127.0.0.1:1", .no_proxy = "127.0.0.0/8" };
    const struct egress_conf *const c[] = { &none, &bypass, NULL };
    for (size_t i = 0; i < COUNT_OF(c); i++) {
        struct outcome o = dial(ev, c[i], "127.0.0.1", f.port, 5000);
        assert_true(o.fd >= 0);
        close(o.fd);
    }
    char text[EGRESS_TEXT];
    egress_describe(&bypass, "127.0.0.1", 1, text);
    assert_string_equal(text, "direct");
    egress_describe(&bypass, "edge.example", 1, text);
    assert_string_equal(text, "http://127.0.0.1:1");                /* no credentials */
    fake_stop(&f);
}

static void test_cancel(void **st)
{
    struct ev *ev = *st;
    struct fake f;
    fake_start(&f, ev, "", NULL);
    struct egress_conf via = { .proxy = f.url }, none = { 0 };
    struct outcome o = { .fd = -1 };
    struct egress_dial *d = egress_dial(ev, &via, "edge.example", 443, 60000, on_dial, &o);
    for (int i = 0; i < 20000 && f.n == 0; i++)
        ev_run_once(ev, 10);
    assert_true(f.n > 0);
    egress_cancel(d);                                               /* in the middle of CONNECT */
    egress_cancel(egress_dial(ev, &none, "127.0.0.1", f.port, 60000, on_dial, &o));
    egress_cancel(egress_dial(ev, &via, "", 443, 60000, on_dial, &o));
    egress_cancel(NULL);
    for (int i = 0; i < 3; i++)
        ev_run_once(ev, 0);
    assert_int_equal(o.calls, 0);
    fake_stop(&f);
}

static int setup(void **st)
{
    struct err e;
    (void)signal(SIGPIPE, SIG_IGN);
    return ev_new((struct ev **)st, &e);
}

static int teardown(void **st)
{
    ev_free(*st);
    return 0;
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_connect), cmocka_unit_test(test_ipv6_literal), cmocka_unit_test(test_refusals), cmocka_unit_test(test_bad_input),
        cmocka_unit_test(test_direct), cmocka_unit_test(test_cancel),
    };
    return cmocka_run_group_tests(t, setup, teardown);
}
