#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/str.h"
#include "gateway/ws.h"
#include "gateway/ws_frame.h"

/* A front that takes one carrier, keeps what it reads, and writes what the test gives it. */
struct front {
    struct carrier *c;
    struct buf got, send;
    bool hold, ended, cut, free_on_read;         /* hold: reads nothing */
    int accepted;
    struct err why;
};

static void front_write(struct front *f)
{
    while (f->c && buf_len(&f->send)) {
        size_t n = 0;
        int rc = f->c->ops->write(f->c, buf_data(&f->send), buf_len(&f->send), &n);
        if (rc < 0) {
            assert_int_equal(rc, RC_AGAIN);
            return;
        }
        assert_true(n > 0);
        buf_consume(&f->send, n);
    }
}

static void front_read(void *ctx)
{
    struct front *f = ctx;
    char b[1000];
    size_t n;
    int rc = RC_OK;
    if (f->free_on_read) {
        f->c->ops->free(f->c);
        f->c = NULL;
        return;
    }
    while (!f->hold && (rc = f->c->ops->read(f->c, b, sizeof b, &n)) == RC_OK)
        assert_int_equal(buf_put(&f->got, b, n), RC_OK);
    if (rc == RC_CLOSED)
        f->ended = true;
}

static void front_writable(void *ctx) { front_write(ctx); }

static void front_close(void *ctx, const struct err *why)
{
    struct front *f = ctx;
    assert_false(f->cut);
    f->cut = true;
    f->why = *why;
}

void front_accept(struct front *f, struct carrier *take)
{
    f->c = take;
    f->accepted++;
    take->ctx = f;
    take->on_readable = front_read;
    take->on_writable = front_writable;
    take->on_close = front_close;
}

struct fixture { struct ev *ev; struct ws_listener *l; struct front f; int fd; };

static void begin(struct fixture *x, const struct ws_conf *conf)
{
    struct net_addr a;
    struct err e;
    *x = (struct fixture){ .fd = -1 };
    buf_init(&x->f.got, 64 * MIB);
    buf_init(&x->f.send, 64 * MIB);
    assert_int_equal(ev_new(&x->ev, &e), RC_OK);
    assert_int_equal(net_addr_parse("127.0.0.1:0", &a, &e), RC_OK);
    assert_int_equal(ws_listen(x->ev, &a, conf, &x->f, &x->l, &e), RC_OK);
}

static int dial(struct fixture *x)
{
    const struct net_addr *a = ws_addr(x->l);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&a->ss, a->len), 0);
    return fd;
}

static void end(struct fixture *x)
{
    if (x->f.c)
        x->f.c->ops->free(x->f.c);
    if (x->fd >= 0)
        close(x->fd);
    ws_free(x->l);
    ev_free(x->ev);
    buf_done(&x->f.got);
    buf_done(&x->f.send);
}

static void turn(struct fixture *x) { ev_run_once(x->ev, 5); }
#define UNTIL(x, condition) do { for (int i_ = 0; i_ < 4000 && !(condition); i_++) turn(x); assert_true(condition); } while (0)

static void put(int fd, const void *p, size_t n) { assert_int_equal(send(fd, p, n, MSG_NOSIGNAL), n); }
static void puts_(int fd, const char *s) { put(fd, s, strlen(s)); }

/* Reads until `want` occurs in what came (or the end); the loop turns meanwhile. */
static size_t take(struct fixture *x, char *out, size_t cap, const char *want)
{
    size_t n = 0;
    out[0] = '\0';
    for (int i = 0; i < 4000 && !(want && strstr(out, want)); i++) {
        turn(x);
        ssize_t r = recv(x->fd, out + n, cap - 1 - n, MSG_DONTWAIT);
        if (r == 0)
            return n;
        if (r > 0)
            out[n += (size_t)r] = '\0';
    }
    assert_true(want && strstr(out, want));
    return n;
}

static const char upgrade[] = "GET /any/path?x=1 HTTP/1.1\r\nHost: localhost:8080\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
                              "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nCf-Connecting-Ip: 203.0.113.9\r\n\r\n";

static void open_ws(struct fixture *x)
{
    char b[2048];
    x->fd = dial(x);
    puts_(x->fd, upgrade);
    take(x, b, sizeof b, "\r\n\r\n");
    assert_non_null(strstr(b, "HTTP/1.1 101 "));
    assert_non_null(strstr(b, "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));     /* RFC 6455 1.3 */
    UNTIL(x, x->f.accepted == 1);
}

static void put_frame(int fd, unsigned first, const void *p, size_t n)
{
    uint8_t h[8] = { (uint8_t)first, (uint8_t)(0x80 | n), 1, 2, 3, 4 }, b[125];
    for (size_t i = 0; i < n; i++)
        b[i] = ((const uint8_t *)p)[i] ^ h[2 + (i & 3)];
    put(fd, h, 6);
    put(fd, b, n);
}

static void test_exchange(void **st)
{
    (void)st;
    struct fixture x;
    begin(&x, NULL);
    open_ws(&x);
    assert_string_equal(x.f.c->ops->peer(x.f.c), "203.0.113.9");
    put_frame(x.fd, 0x02, "he", 2);                              /* fragments with a ping in between; text; empty */
    put_frame(x.fd, 0x89, "are you there", 13);
    put_frame(x.fd, 0x80, "llo", 3);
    put_frame(x.fd, 0x81, " text", 5);
    put_frame(x.fd, 0x82, "", 0);
    UNTIL(&x, buf_len(&x.f.got) == 10);
    assert_memory_equal(buf_data(&x.f.got), "hello text", 10);
    char b[256];
    assert_int_equal(take(&x, b, sizeof b, "there"), 15);
    assert_memory_equal(b, "\x8a\x0d", 2);                       /* the pong */
    buf_puts(&x.f.send, "answer");
    front_write(&x.f);
    assert_int_equal(take(&x, b, sizeof b, "answer"), 8);
    assert_memory_equal(b, "\x82\x06", 2);                       /* final, binary, unmasked */
    put_frame(x.fd, 0x88, "\x03\xe8", 2);
    UNTIL(&x, x.f.ended);
    take(&x, b, sizeof b, "\x88\x02");
    assert_false(x.f.cut);
    end(&x);
}

static void test_variants(void **st)
{
    (void)st;
    static const struct { const char *request, *say; } t[] = {
        { "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\n\r\n", "101" },                                          /* no key, no Connection */
        { "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: base64, binary\r\n\r\n", "Sec-WebSocket-Protocol: binary" },
        { "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: tls, x\r\n\r\n", "Sec-WebSocket-Protocol: tls\r\n" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct fixture x;
        char b[2048];
        begin(&x, NULL);
        x.fd = dial(&x);
        puts_(x.fd, t[i].request);
        take(&x, b, sizeof b, "\r\n\r\n");
        if (!strstr(b, t[i].say))
            fail_msg("row %zu: %s", i, b);
        put(x.fd, "\x82\x02hi", 4);                              /* not masked */
        UNTIL(&x, buf_len(&x.f.got) == 2);
        end(&x);
    }
}

static void test_early_frames(void **st)
{
    (void)st;
    struct fixture x;
    char b[1024];
    begin(&x, NULL);
    x.fd = dial(&x);
    size_t n = sizeof upgrade - 1;
    memcpy(b, upgrade, n);
    memcpy(b + n, "\x82\x05" "early", 7);
    put(x.fd, b, n + 7);                                         /* in one segment with the request */
    UNTIL(&x, buf_len(&x.f.got) == 5);
    assert_memory_equal(buf_data(&x.f.got), "early", 5);
    end(&x);
}

static void test_raw_tls(void **st)
{
    (void)st;
    struct fixture x;
    char b[64];
    begin(&x, NULL);
    x.fd = dial(&x);
    put(x.fd, "\x16\x03\x01\x00\x05hello", 10);
    UNTIL(&x, buf_len(&x.f.got) == 10);
    put(x.fd, "more", 4);
    UNTIL(&x, buf_len(&x.f.got) == 14);
    buf_puts(&x.f.send, "plain answer");
    front_write(&x.f);
    assert_int_equal(take(&x, b, sizeof b, "answer"), 12);
    x.f.c->ops->shutdown(x.f.c);
    assert_int_equal(take(&x, b, sizeof b, NULL), 0);            /* end of our side */
    put(x.fd, "rest", 4);
    UNTIL(&x, buf_len(&x.f.got) == 18);
    shutdown(x.fd, SHUT_WR);
    UNTIL(&x, x.f.ended || x.f.cut);
    end(&x);
}

static void test_refusals(void **st)
{
    (void)st;
    static const struct { const char *request, *say; } t[] = {
        { "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 426 " },
        { "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n", "HTTP/1.1 426 " },
        { "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\n\r\n", "sec-websocket-version: 13" },
        { "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 400 " },
        { "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", "HTTP/1.1 400 " },
        { "SSH-2.0-x\r\n\r\n", "HTTP/1.1 400 " },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct fixture x;
        char b[2048];
        begin(&x, NULL);
        x.fd = dial(&x);
        puts_(x.fd, t[i].request);
        take(&x, b, sizeof b, NULL);
        if (!strstr(b, t[i].say))
            fail_msg("row %zu: %s", i, b);
        close(x.fd);
        x.fd = -1;
        UNTIL(&x, ws_conns(x.l) == 0);
        assert_int_equal(x.f.accepted, 0);
        end(&x);
    }
    struct fixture x;
    begin(&x, NULL);
    x.fd = dial(&x);
    puts_(x.fd, "GET / HTTP/1.1\r\nHost: a\r\n");
    static char line[1024];
    memset(line, 'a', sizeof line);
    memcpy(line, "x: ", 3);
    memcpy(line + sizeof line - 2, "\r\n", 2);
    for (int i = 0; i < 40; i++) {
        (void)!send(x.fd, line, sizeof line, MSG_NOSIGNAL);
        turn(&x);
    }
    char b[2048];
    take(&x, b, sizeof b, "431");
    end(&x);
}

static void test_slow_head(void **st)
{
    (void)st;
    struct fixture x;
    char b[1024];
    struct ws_conf c = { .head_ms = 30 };
    begin(&x, &c);
    x.fd = dial(&x);
    puts_(x.fd, "GET / HT");
    take(&x, b, sizeof b, "408");
    end(&x);
}

static void test_broken_frames(void **st)
{
    (void)st;
    struct fixture x;
    char b[64];
    begin(&x, NULL);
    open_ws(&x);
    put(x.fd, "\x82\x02hi\xc2\x00", 6);
    UNTIL(&x, x.f.cut);
    assert_int_equal(x.f.why.rc, RC_PROTO);
    assert_int_equal(buf_len(&x.f.got), 2);
    x.f.c->ops->free(x.f.c);
    x.f.c = NULL;
    take(&x, b, sizeof b, "\x88\x02\x03\xea");                   /* 1002 */
    end(&x);
}

static void test_back_pressure(void **st)
{
    (void)st;
    struct fixture x;
    begin(&x, NULL);
    open_ws(&x);
    enum { TOTAL = 8 << 20 };
    for (int i = 0; i < TOTAL / 4; i++)
        (void)buf_put(&x.f.send, &(uint32_t){ (uint32_t)i }, 4);
    front_write(&x.f);
    assert_true(buf_len(&x.f.send) > 0);                         /* the socket is full; the rest waits with the front */
    struct ws_in w = { 0 };
    static uint8_t in[100000];
    uint32_t next = 0;
    size_t got = 0, part = 0;
    uint8_t word[4];
    for (int i = 0; i < 200000 && got < TOTAL; i++) {
        turn(&x);
        ssize_t n = recv(x.fd, in, sizeof in, MSG_DONTWAIT);
        for (size_t at = 0; n > 0 && at < (size_t)n;) {
            struct ws_item item;
            size_t used;
            const char *why;
            assert_int_equal(ws_step(&w, in + at, (size_t)n - at, &used, &item, &why), RC_OK);
            at += used;
            for (size_t k = 0; k < item.n; k++) {
                word[part++] = item.p[k];
                if (part == 4) {
                    assert_memory_equal(word, &next, 4);
                    next++;
                    part = 0;
                }
            }
            got += item.n;
        }
    }
    assert_int_equal(got, TOTAL);
    /* The other way: a front that does not read fills the socket, not our memory. */
    x.f.hold = true;
    size_t sent = 0;
    static uint8_t frame[4 + 60000] = { 0x82, 0x7e, 60000 >> 8, 60000 & 255 };
    size_t at = 0;
    for (int i = 0, full = 0; full < 50 && i < 20000; i++) {
        ssize_t n = send(x.fd, frame + at, sizeof frame - at, MSG_DONTWAIT | MSG_NOSIGNAL);
        full = n < 0 ? full + 1 : 0;
        at = n > 0 ? (at + (size_t)n) % sizeof frame : at;
        sent += n > 0 ? (size_t)n : 0;
        ev_run_once(x.ev, 0);
    }
    assert_int_equal(buf_len(&x.f.got), 0);
    x.f.hold = false;
    front_read(&x.f);
    UNTIL(&x, buf_len(&x.f.got) + 70000 > sent - 4 * (sent / sizeof frame + 1));
    end(&x);
}

static void test_cut(void **st)
{
    (void)st;
    struct fixture x;
    begin(&x, NULL);
    open_ws(&x);
    x.f.hold = true;                                             /* noticed although nobody reads */
    struct linger now = { .l_onoff = 1, .l_linger = 0 };
    setsockopt(x.fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(x.fd);
    x.fd = -1;
    UNTIL(&x, x.f.cut);
    assert_int_equal(x.f.why.rc, RC_CLOSED);
    end(&x);
    begin(&x, NULL);
    open_ws(&x);
    close(x.fd);                                                 /* an end without a close frame */
    x.fd = -1;
    UNTIL(&x, x.f.ended || x.f.cut);
    end(&x);
    begin(&x, NULL);
    open_ws(&x);
    x.f.free_on_read = true;                                     /* the front lets go inside its callback */
    put_frame(x.fd, 0x82, "x", 1);
    UNTIL(&x, x.f.c == NULL);
    end(&x);
}

static void test_last_words(void **st)
{
    (void)st;
    struct fixture x;
    begin(&x, NULL);
    open_ws(&x);
    static char big[300000];
    memset(big, 'z', sizeof big);
    buf_put(&x.f.send, big, sizeof big);
    front_write(&x.f);
    size_t owed = sizeof big - buf_len(&x.f.send);
    x.f.c->ops->shutdown(x.f.c);
    x.f.c->ops->free(x.f.c);                                     /* what it has taken still goes out, then the close frame */
    x.f.c = NULL;
    char *all = malloc(400000);
    size_t n = take(&x, all, 400000, NULL);
    size_t z = 0;
    for (size_t i = 0; i < n; i++)
        z += all[i] == 'z';
    assert_int_equal(z, owed);
    assert_memory_equal(all + n - 4, "\x88\x02\x03\xe8", 4);
    free(all);
    close(x.fd);
    x.fd = -1;
    UNTIL(&x, ws_conns(x.l) == 0);
    end(&x);
}

static void test_limit(void **st)
{
    (void)st;
    struct fixture x;
    struct ws_conf c = { .conns_max = 2 };
    begin(&x, &c);
    int a = dial(&x), b = dial(&x), d = dial(&x);
    UNTIL(&x, ws_conns(x.l) == 2);
    for (int i = 0; i < 5; i++)
        turn(&x);
    assert_int_equal(ws_conns(x.l), 2);
    close(a);
    puts_(d, upgrade);
    UNTIL(&x, x.f.accepted == 1);                                /* the third one is taken when there is room */
    ws_stop_accepting(x.l);
    close(b);
    UNTIL(&x, ws_conns(x.l) == 1);
    ws_free(x.l);                                                /* the carrier is the front's and lives on */
    x.l = NULL;
    x.fd = d;
    put(d, "\x82\x02hi", 4);
    UNTIL(&x, buf_len(&x.f.got) == 2);
    end(&x);
}

static void test_silent_ones_make_room(void **st)
{
    (void)st;
    struct fixture x;
    struct ws_conf c = { .conns_max = 2 };
    begin(&x, &c);
    int a = dial(&x), b = dial(&x);
    puts_(b, "GET / HT");
    UNTIL(&x, ws_conns(x.l) == 2);
    x.fd = dial(&x);
    puts_(x.fd, upgrade);
    UNTIL(&x, x.f.accepted == 1);                                /* in the place of the oldest that never came to its end */
    assert_int_equal(ws_conns(x.l), 2);
    assert_int_equal(recv(a, &(char){ 0 }, 1, 0), 0);
    int d = dial(&x);
    UNTIL(&x, recv(b, &(char){ 0 }, 1, MSG_DONTWAIT) == 0);       /* not in the place of the one that is served */
    assert_int_equal(ws_conns(x.l), 2);
    close(a);
    close(b);
    close(d);
    put(x.fd, "\x82\x02hi", 4);
    UNTIL(&x, buf_len(&x.f.got) == 2);
    end(&x);
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_exchange), cmocka_unit_test(test_variants), cmocka_unit_test(test_early_frames), cmocka_unit_test(test_raw_tls),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_slow_head), cmocka_unit_test(test_broken_frames), cmocka_unit_test(test_back_pressure),
        cmocka_unit_test(test_cut), cmocka_unit_test(test_last_words), cmocka_unit_test(test_limit), cmocka_unit_test(test_silent_ones_make_room),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
