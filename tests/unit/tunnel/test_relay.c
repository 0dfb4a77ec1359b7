#include "tunnel/pair.h"

#include <errno.h>

#include "tunnel/relay.h"

/* A client's socket, its relay into the opener's link, and the application behind the acceptor. */
struct client {
    struct pair *p;
    int fd;                                 /* the client's end */
    struct tls *tls, *outer;                /* TLS to the relay; its server side until the relay has it */
    struct tls_ctx *sc, *cc;
    struct relay *r;
    struct relay_result res;
    int done;
    bool free_in_done;
    uint64_t got, sent;
    bool eof;
    int error;
};

static void on_done(void *ctx, const struct relay_result *res)
{
    struct client *c = ctx;
    c->done++;
    c->res = *res;
    if (c->free_in_done) {
        relay_free(c->r);
        c->r = NULL;
    }
}

static void client_start(struct client *c, struct pair *p, bool tls, const char *early)
{
    struct err e = { 0 };
    int fd[2];
    memset(c, 0, sizeof *c);
    c->p = p;
    tcp_pair(fd);
    c->fd = fd[0];
    if (tls) {
        struct tls_conf s = { .cert_file = pair_cert.cert, .key_file = pair_cert.key }, cl = { .ca_file = pair_cert.cert };
        assert_int_equal(tls_ctx_server(&s, &c->sc, &e), RC_OK);
        assert_int_equal(tls_ctx_client(&cl, &c->cc, &e), RC_OK);
        assert_int_equal(tls_connect(c->cc, fd[0], "localhost", &c->tls, &e), RC_OK);
        assert_int_equal(tls_accept(c->sc, fd[1], &c->outer, &e), RC_OK);
        int a = RC_AGAIN, b = RC_AGAIN;
        unsigned want;
        while (a == RC_AGAIN || b == RC_AGAIN) {
            a = a == RC_AGAIN ? tls_handshake(c->tls, &want, &e) : a;
            b = b == RC_AGAIN ? tls_handshake(c->outer, &want, &e) : b;
        }
        assert_int_equal(a | b, RC_OK);
    }
    struct app *x = app_open(p, 0, false);
    const struct relay_end sock = { .fd = fd[1], .tls = c->outer, .early = early, .early_n = early ? strlen(early) : 0 }, stream = { .stream = x->s };
    x->s = NULL;
    assert_int_equal(relay_new(p->ev, &sock, &stream, on_done, c, &c->r, &e), RC_OK);
}

/* Sends as much of the pattern as goes, up to `to`. */
static void client_send(struct client *c, uint64_t to)
{
    while (c->sent < to) {
        unsigned char b[8192];
        size_t n = to - c->sent < sizeof b ? (size_t)(to - c->sent) : sizeof b;
        for (size_t i = 0; i < n; i++)
            b[i] = pattern(c->sent + i, 1);
        size_t w = 0;
        unsigned want;
        struct err e;
        if (c->tls) {
            if (tls_write(c->tls, b, n, &w, &want, &e) != RC_OK)
                return;
        } else {
            ssize_t r = send(c->fd, b, n, MSG_NOSIGNAL);
            if (r < 0)
                return;
            w = (size_t)r;
        }
        c->sent += w;
    }
}

static void client_read(struct client *c)
{
    for (;;) {
        unsigned char b[8192];
        size_t n = 0;
        unsigned want;
        struct err e;
        if (c->tls) {
            int rc = tls_read(c->tls, b, sizeof b, &n, &want, &e);
            c->eof = c->eof || rc == RC_CLOSED;
            if (rc != RC_OK && rc != RC_AGAIN && rc != RC_CLOSED)
                c->error = rc;
            if (rc != RC_OK)
                return;
        } else {
            ssize_t r = recv(c->fd, b, sizeof b, 0);
            c->eof = c->eof || r == 0;
            if (r < 0 && errno != EAGAIN)
                c->error = errno;
            if (r <= 0)
                return;
            n = (size_t)r;
        }
        for (size_t i = 0; i < n; i++)
            if (b[i] != pattern(c->got + i, 2))
                fail_msg("byte %llu is wrong", (unsigned long long)(c->got + i));
        c->got += n;
    }
}

static void client_stop(struct client *c)
{
    relay_free(c->r);
    tls_free(c->tls);
    if (c->fd >= 0)
        close(c->fd);
    tls_ctx_free(c->sc);
    tls_ctx_free(c->cc);
}

static void test_both_ways(void **st)
{
    (void)st;
    for (int tls = 0; tls < 2; tls++) {
        struct pair p;
        struct client c;
        pair_start(&p);
        p.answer = 1500000;
        p.answer_shut = true;
        client_start(&c, &p, tls, NULL);
        c.free_in_done = tls;
        UNTIL(&p, (client_send(&c, 1000000), client_read(&c), c.eof && p.n_in && p.in[0].got == 1000000));
        assert_int_equal(c.got, 1500000);
        assert_int_equal(c.done, 0);                                /* one direction is still open */
        assert_false(p.in[0].eof);
        client_send(&c, 1000100);                                   /* and works */
        UNTIL(&p, p.in[0].got == 1000100);
        unsigned want;
        struct err e;
        if (tls)
            assert_int_equal(tls_shutdown(c.tls, &want, &e), RC_OK);
        else
            shutdown(c.fd, SHUT_WR);
        UNTIL(&p, c.done && p.in[0].eof);
        assert_true(c.res.clean);
        assert_int_equal(c.res.a_to_b, 1000100);
        assert_int_equal(c.res.b_to_a, 1500000);
        assert_int_equal(p.in[0].closes, 0);
        assert_int_equal(c.error, 0);
        client_stop(&c);
        pair_stop(&p);
        assert_int_equal(c.done, 1);
    }
}

/* The client ends first: its end crosses, the answer comes later. */
static void test_client_ends_first(void **st)
{
    (void)st;
    struct pair p;
    struct client c;
    pair_start(&p);
    client_start(&c, &p, false, NULL);
    client_send(&c, 10);
    shutdown(c.fd, SHUT_WR);
    UNTIL(&p, p.n_in && p.in[0].eof);
    assert_int_equal(c.done, 0);
    p.in[0].to_send = 200000;
    p.in[0].shut_after = true;
    app_pump(&p.in[0]);
    UNTIL(&p, (client_read(&c), c.eof && c.done));
    assert_int_equal(c.got, 200000);
    assert_true(c.res.clean);
    client_stop(&c);
    pair_stop(&p);
}

static void test_resets(void **st)
{
    (void)st;
    for (int i = 0; i < 6; i++) {
        bool tls = i % 2;
        struct pair p;
        struct client c;
        pair_start(&p);
        client_start(&c, &p, tls, NULL);
        client_send(&c, 1000);
        UNTIL(&p, p.n_in && p.in[0].got == 1000);
        if (i < 2) {                                                /* the application resets: the client sees no end */
            app_free(&p.in[0]);
            UNTIL(&p, (client_read(&c), c.done && c.error));
            assert_false(c.eof);
        } else if (i < 4) {                                         /* the client is cut off */
            const struct linger now = { .l_onoff = 1 };
            setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
            close(c.fd);
            c.fd = -1;
            if (c.tls)
                tls_cut(c.tls);
            UNTIL(&p, c.done && p.in[0].closed);
        } else {                                                    /* the owner of the relay gives up */
            relay_free(c.r);
            c.r = NULL;
            UNTIL(&p, (client_read(&c), c.error && p.in[0].closed));
            assert_int_equal(c.done, 0);
        }
        if (c.done) {
            assert_false(c.res.clean);
            assert_int_equal(c.res.a_to_b, 1000);
            assert_true(c.res.why.msg[0]);
        }
        client_stop(&c);
        pair_stop(&p);
    }
}

/* TLS that is cut without close_notify is no end of the client's bytes. */
static void test_truncated(void **st)
{
    (void)st;
    struct pair p;
    struct client c;
    pair_start(&p);
    client_start(&c, &p, true, NULL);
    client_send(&c, 1000);
    UNTIL(&p, p.n_in && p.in[0].got == 1000);
    tls_cut(c.tls);
    shutdown(c.fd, SHUT_WR);
    UNTIL(&p, c.done && p.in[0].closed);
    assert_false(p.in[0].eof);
    client_stop(&c);
    pair_stop(&p);
}

/* A reset crosses also when both directions are full and nobody reads. */
static void test_reset_when_full(void **st)
{
    (void)st;
    for (int by_client = 0; by_client < 2; by_client++) {
        struct pair p;
        struct client c;
        pair_start(&p);
        p.in_stalled = true;
        p.answer = 100 * MIB;
        client_start(&c, &p, false, NULL);
        uint64_t before, a = 0, b = 0;
        do {                                                        /* until nothing moves any more */
            before = a + b + c.sent;
            for (int i = 0; i < 20; i++) {
                client_send(&c, 100 * MIB);
                ev_run_once(p.ev, 2);
            }
            relay_bytes(c.r, &a, &b);
        } while (before != a + b + c.sent || a == 0);
        assert_true(a > 0 && a <= LINK_WINDOW_MIN + LINK_SEND_MAX + 1);     /* the window and one queue: the rest waits with the client */
        if (by_client) {
            const struct linger now = { .l_onoff = 1 };
            setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
            close(c.fd);
            c.fd = -1;
            UNTIL(&p, c.done && p.in[0].closed);
        } else {
            app_free(&p.in[0]);
            UNTIL(&p, c.done);
            UNTIL(&p, (client_read(&c), c.error));
        }
        assert_false(c.res.clean);
        client_stop(&c);
        pair_stop(&p);
    }
}

/* What had been read from the client before goes first. */
static void test_early(void **st)
{
    (void)st;
    struct pair p;
    struct client c;
    static char early[20001];
    for (size_t i = 0; i < 20000; i++)
        early[i] = (char)(pattern(i, 1) ? pattern(i, 1) : 1);
    size_t n = 0;
    while (pattern(n, 1) && n < 20000)                              /* it ends where the text does */
        n++;
    early[n] = '\0';
    pair_start(&p);
    client_start(&c, &p, false, early);
    c.sent = n;
    client_send(&c, n + 5000);
    UNTIL(&p, p.n_in && p.in[0].got == n + 5000);
    uint64_t a, b;
    relay_bytes(c.r, &a, &b);
    assert_int_equal(a, n + 5000);
    client_stop(&c);
    pair_stop(&p);
}

/* Two links behind one another, as when an edge forwards. */
static void test_forward(void **st)
{
    (void)st;
    struct pair p, q;
    pair_start(&p);
    pair_start_on(&q, p.ev);
    p.in_stalled = true;                                            /* the relay is to have every byte */
    q.answer = 3 * MIB;
    q.answer_shut = true;
    for (int i = 0; i < 3; i++) {
        struct client c = { 0 };
        struct err e;
        struct app *x = app_open(&p, 2 * MIB, i == 0);
        UNTIL(&p, p.n_in == (size_t)i + 1 && x->status == 200);
        struct app *out = app_open(&q, 0, false);
        const struct relay_end a = { .stream = p.in[i].s }, b = { .stream = out->s };
        p.in[i].s = out->s = NULL;
        assert_int_equal(relay_new(p.ev, &a, &b, on_done, &c, &c.r, &e), RC_OK);
        struct app *y = &q.in[i];
        UNTIL(&p, q.n_in == (size_t)i + 1 && x->got == 3 * MIB && y->got == 2 * MIB && x->eof);
        if (i == 0) {
            UNTIL(&p, c.done);
            assert_true(c.res.clean);
            assert_int_equal(c.res.a_to_b, 2 * MIB);
            assert_int_equal(c.res.b_to_a, 3 * MIB);
            assert_true(y->eof);
        } else if (i == 1) {                                        /* a reset of the first crosses both links */
            app_free(x);
            UNTIL(&p, c.done && y->closed);
        } else {                                                    /* and so does the death of the second */
            link_free(q.a.l);
            q.a.l = NULL;
            UNTIL(&p, c.done && x->closed);
            assert_false(c.res.clean);
        }
        relay_free(c.r);
    }
    pair_stop(&q);
    pair_stop(&p);
}

static void test_refused(void **st)
{
    (void)st;
    struct pair p;
    struct client c;
    pair_start(&p);
    p.reply = 502;
    client_start(&c, &p, false, NULL);
    UNTIL(&p, (client_read(&c), c.done && c.error));
    assert_non_null(strstr(c.res.why.msg, "502"));
    client_stop(&c);
    struct relay *r = NULL;
    struct err e;
    const struct relay_end none = { .fd = 0 };
    assert_int_equal(relay_new(p.ev, &none, &none, on_done, &c, &r, &e), RC_INVALID);
    assert_null(r);
    pair_stop(&p);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_both_ways), cmocka_unit_test(test_client_ends_first), cmocka_unit_test(test_resets), cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_reset_when_full), cmocka_unit_test(test_early), cmocka_unit_test(test_forward), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(t, pair_group_setup, pair_group_teardown);
}
