#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "net/net.h"

static void test_addr(void **st)
{
    (void)st;
    static const struct { const char *in; int rc; const char *out; } t[] = {
        { "127.0.0.1:8400", RC_OK, "127.0.0.1:8400" }, { "[::1]:8400", RC_OK, "[::1]:8400" }, { ":8400", RC_OK, "[::]:8400" }, { "0.0.0.0:0", RC_OK, "0.0.0.0:0" },
        { "[::ffff:10.0.0.1]:1", RC_OK, "10.0.0.1:1" }, { "unix:/run/x.sock", RC_OK, "unix:/run/x.sock" }, { "127.0.0.1:65535", RC_OK, "127.0.0.1:65535" },
        { "127.0.0.1:65536", RC_INVALID, NULL }, { "127.0.0.1", RC_INVALID, NULL }, { "127.0.0.1:", RC_INVALID, NULL }, { "127.0.0.1:-1", RC_INVALID, NULL },
        { "::1:8400", RC_INVALID, NULL }, { "[::1]", RC_INVALID, NULL }, { "[]:1", RC_INVALID, NULL }, { "[127.0.0.1]:1", RC_INVALID, NULL },
        { "localhost:80", RC_INVALID, NULL }, { "", RC_INVALID, NULL }, { "unix:", RC_INVALID, NULL }, { "127.0.0.1.:1", RC_INVALID, NULL }, { "a:1x", RC_INVALID, NULL },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct net_addr a = { 0 };
        struct err e;
        char text[NET_ADDR_TEXT] = "";
        int rc = net_addr_parse(t[i].in, &a, &e);
        if (rc == RC_OK)
            net_addr_format(&a, text);
        if (rc != t[i].rc || (t[i].out && strcmp(text, t[i].out) != 0))
            fail_msg("row %zu \"%s\": %d %s", i, t[i].in, rc, text);
    }
    char longer[140];
    struct net_addr a;
    snprintf(longer, sizeof longer, "unix:/%0*d", 106, 1);
    assert_int_equal(net_addr_parse(longer, &a, NULL), RC_OK);
    char text[NET_ADDR_TEXT];
    net_addr_format(&a, text);
    assert_int_equal(strlen(text), NET_ADDR_TEXT - 1);      /* cut, not overrun */
    snprintf(longer, sizeof longer, "unix:/%0*d", 107, 1);
    assert_int_equal(net_addr_parse(longer, &a, NULL), RC_INVALID);
    net_addr_format(&(struct net_addr){ 0 }, text);
    assert_string_equal(text, "?");
}

static int result_fd, results;
static struct err result_err;
static void on_connect(void *ctx, int fd, const struct err *e)
{
    assert_ptr_equal(ctx, &results);
    result_fd = fd;
    result_err = e ? *e : (struct err){ 0 };
    results++;
}

static void wait_result(struct ev *ev, int n)
{
    int64_t end = clock_mono_ms() + 15000;
    while (results < n && clock_mono_ms() < end)
        ev_run_once(ev, 100);
    assert_int_equal(results, n);
}

static uint16_t port_of(const struct net_addr *a)
{
    return ntohs(a->ss.ss_family == AF_INET6 ? ((const struct sockaddr_in6 *)&a->ss)->sin6_port : ((const struct sockaddr_in *)&a->ss)->sin_port);
}

static void test_listen_connect(void **st)
{
    (void)st;
    struct ev *ev;
    struct err e;
    struct net_addr a, bound;
    int l = -1;
    assert_int_equal(ev_new(&ev, &e), RC_OK);
    assert_int_equal(net_addr_parse("127.0.0.1:0", &a, &e), RC_OK);
    assert_int_equal(net_listen(&a, &l, &bound, &e), RC_OK);
    uint16_t port = port_of(&bound);
    assert_true(port > 0);
    assert_true(fcntl(l, F_GETFL) & O_NONBLOCK && fcntl(l, F_GETFD) & FD_CLOEXEC);
    int l2 = -1;
    assert_int_equal(net_listen(&bound, &l2, NULL, &e), RC_IO);     /* taken */
    assert_non_null(strstr(e.msg, "127.0.0.1:"));
    assert_int_equal(l2, -1);

    results = 0;
    assert_non_null(net_connect_start(ev, "127.0.0.1", port, 5000, on_connect, &results));
    assert_int_equal(results, 0);
    wait_result(ev, 1);
    assert_true(result_fd >= 0);
    int one = 0;
    socklen_t n = sizeof one;
    assert_int_equal(getsockopt(result_fd, IPPROTO_TCP, TCP_NODELAY, &one, &n), 0);
    assert_true(one && fcntl(result_fd, F_GETFL) & O_NONBLOCK && fcntl(result_fd, F_GETFD) & FD_CLOEXEC);
    close(result_fd);

    assert_non_null(net_connect_start(ev, "localhost", port, 5000, on_connect, &results));      /* by name: maybe ::1 first, which refuses */
    wait_result(ev, 2);
    assert_true(result_fd >= 0);
    close(result_fd);

    close(l);
    assert_non_null(net_connect_start(ev, "127.0.0.1", port, 5000, on_connect, &results));
    wait_result(ev, 3);
    assert_int_equal(result_fd, -1);
    assert_int_equal(result_err.rc, RC_IO);
    assert_non_null(strstr(result_err.msg, "127.0.0.1"));

    assert_non_null(net_connect_start(ev, "no-such-host.invalid", port, 9000, on_connect, &results));
    wait_result(ev, 4);
    assert_int_equal(result_fd, -1);
    assert_non_null(strstr(result_err.msg, "no-such-host.invalid"));
    assert_non_null(net_connect_start(ev, "", port, 5000, on_connect, &results));
    wait_result(ev, 5);
    assert_int_equal(result_fd, -1);

    net_connect_cancel(net_connect_start(ev, "127.0.0.1", port, 5000, on_connect, &results));
    struct net_connect *c = net_connect_start(ev, "localhost", port, 5000, on_connect, &results);
    ev_run_once(ev, 0);
    net_connect_cancel(c);
    net_connect_cancel(NULL);
    for (int i = 0; i < 10; i++)
        ev_run_once(ev, 10);
    assert_int_equal(results, 5);
    ev_free(ev);
}

/* A listener whose backlog is full does not answer: the time-out ends it. */
static void test_timeout(void **st)
{
    (void)st;
    struct ev *ev;
    struct err e;
    struct net_addr a, bound = { .len = sizeof bound.ss };
    assert_int_equal(ev_new(&ev, &e), RC_OK);
    assert_int_equal(net_addr_parse("127.0.0.1:0", &a, &e), RC_OK);
    int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(l, (struct sockaddr *)&a.ss, a.len), 0);
    assert_int_equal(listen(l, 0), 0);
    assert_int_equal(getsockname(l, (struct sockaddr *)&bound.ss, &bound.len), 0);
    int fill[8];
    for (int i = 0; i < 8; i++) {
        fill[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        (void)connect(fill[i], (struct sockaddr *)&bound.ss, bound.len);
    }
    results = 0;
    int64_t t0 = clock_mono_ms();
    assert_non_null(net_connect_start(ev, "127.0.0.1", port_of(&bound), 100, on_connect, &results));
    wait_result(ev, 1);
    assert_int_equal(result_fd, -1);
    assert_int_equal(result_err.rc, RC_TIMEOUT);
    assert_true(clock_mono_ms() - t0 >= 100 && clock_mono_ms() - t0 < 5000);
    for (int i = 0; i < 8; i++)
        close(fill[i]);
    close(l);
    ev_free(ev);
}

static void test_unix(void **st)
{
    (void)st;
    char path[64], text[80];
    struct net_addr a;
    struct err e;
    int l = -1, l2 = -1;
    snprintf(path, sizeof path, "/tmp/ow-net-%d.sock", (int)getpid());
    snprintf(text, sizeof text, "unix:%s", path);
    assert_int_equal(net_addr_parse(text, &a, &e), RC_OK);
    assert_int_equal(net_listen(&a, &l, NULL, &e), RC_OK);
    assert_int_equal(net_listen(&a, &l2, NULL, &e), RC_IO);     /* somebody listens: left alone */
    struct ev *ev;
    assert_int_equal(ev_new(&ev, &e), RC_OK);
    results = 0;
    assert_non_null(net_connect_start(ev, text, 0, 1000, on_connect, &results));
    wait_result(ev, 1);
    assert_true(result_fd >= 0);
    close(result_fd);
    ev_free(ev);
    close(l);
    assert_int_equal(net_listen(&a, &l, NULL, &e), RC_OK);      /* stale: replaced */
    close(l);
    unlink(path);
    int f = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    close(f);
    assert_int_equal(net_listen(&a, &l2, NULL, &e), RC_IO);     /* a file is nobody's socket */
    struct stat s;
    assert_int_equal(stat(path, &s), 0);
    unlink(path);
}

struct ask { int asked, refuse; char seen[4][NET_ADDR_TEXT]; int fd, done; struct err err; };

static int check_address(void *ctx, const struct net_addr *a, struct err *e)
{
    struct ask *k = ctx;
    if (k->asked < 4)
        net_addr_format(a, k->seen[k->asked]);
    return k->asked++ < k->refuse ? err_set(e, RC_DENIED, "not this one") : RC_OK;
}

static void on_checked(void *ctx, int fd, const struct err *e)
{
    struct ask *k = ctx;
    k->fd = fd;
    k->err = e ? *e : (struct err){ 0 };
    k->done = 1;
}

/* Each address is asked about before it is dialled; refused ones are passed over; when none is left the refusal is the result. */
static void test_check(void **st)
{
    (void)st;
    struct ev *ev = NULL;
    struct err e;
    struct net_addr a, bound;
    int listener = -1;
    char host_port[NET_ADDR_TEXT];
    assert_int_equal(ev_new(&ev, &e), RC_OK);
    assert_int_equal(net_addr_parse("127.0.0.1:0", &a, &e), RC_OK);
    assert_int_equal(net_listen(&a, &listener, &bound, &e), RC_OK);
    net_addr_format(&bound, host_port);
    uint16_t port = ntohs(((struct sockaddr_in *)&bound.ss)->sin_port);
    for (int refuse = 0; refuse <= 1; refuse++) {
        struct ask k = { .refuse = refuse ? 9 : 0 };
        struct net_connect_opts o = { .timeout_ms = 5000, .check = check_address };
        assert_non_null(net_connect_opts(ev, "127.0.0.1", port, &o, on_checked, &k));
        assert_int_equal(k.asked, 0);                       /* never inside the call */
        for (int i = 0; i < 500 && !k.done; i++)
            ev_run_once(ev, 20);
        assert_int_equal(k.asked, 1);
        assert_string_equal(k.seen[0], host_port);
        assert_int_equal(k.fd >= 0, !refuse);
        if (refuse) {
            assert_int_equal(k.err.rc, RC_DENIED);
            assert_string_equal(k.err.msg, "not this one");
        } else {
            close(k.fd);
        }
    }
    close(listener);
    ev_free(ev);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_addr), cmocka_unit_test(test_listen_connect), cmocka_unit_test(test_timeout), cmocka_unit_test(test_unix), cmocka_unit_test(test_check),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
