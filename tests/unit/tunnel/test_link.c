#include "tunnel/pair.h"

static void test_data(void **st)
{
    (void)st;
    struct pair p;
    pair_start(&p);
    p.answer = 3000000;
    p.answer_shut = true;
    struct app *x = app_open(&p, 2000000, true);
    UNTIL(&p, x->eof && p.n_in == 1 && p.in[0].eof);
    assert_int_equal(x->status, 200);
    assert_int_equal(x->replies, 1);
    assert_int_equal(x->got, 3000000);
    assert_int_equal(p.in[0].got, 2000000);
    assert_string_equal(p.in[0].authority, "docs.tnl.example:443");
    assert_string_equal(p.in[0].client, "192.0.2.7");
    assert_false(p.in[0].forwarded);
    UNTIL(&p, link_streams(p.o.l) == 0 && link_streams(p.a.l) == 0);
    assert_int_equal(x->closes + p.in[0].closes, 0);                /* a good end is no close */
    assert_int_equal(link_queued(p.o.l), 0);
    assert_true(link_rtt_us(p.o.l) > 0);
    pair_stop(&p);
    assert_int_equal(x->closes + p.in[0].closes, 0);
}

/* Many streams at once, small and large, each with its own end. */
static void test_many(void **st)
{
    (void)st;
    struct pair p;
    pair_start(&p);
    p.answer = 70000;
    p.answer_shut = true;
    for (size_t i = 0; i < APPS; i++)
        app_open(&p, i * 9973, true);
    for (size_t i = 0; i < APPS; i++) {
        UNTIL(&p, p.out[i].eof && p.in[i].eof);
        assert_int_equal(p.out[i].got, 70000);
        assert_int_equal(p.in[i].got, i * 9973);
    }
    UNTIL(&p, link_streams(p.o.l) == 0);
    pair_stop(&p);
}

static void test_half_close(void **st)
{
    (void)st;
    struct pair p;
    pair_start(&p);
    struct app *x = app_open(&p, 10, true);
    UNTIL(&p, p.n_in == 1 && p.in[0].eof);
    assert_false(x->eof);
    p.in[0].to_send = 500000;                                       /* the other side goes on for long */
    app_pump(&p.in[0]);
    UNTIL(&p, x->got == 500000);
    assert_false(x->eof);
    p.in[0].shut_after = true;
    app_pump(&p.in[0]);
    UNTIL(&p, x->eof);
    assert_int_equal(link_write(x->s, "x", 1), 0);                  /* after the end nothing is taken */
    assert_int_equal(x->closes + p.in[0].closes, 0);
    pair_stop(&p);
}

static void test_reset(void **st)
{
    (void)st;
    struct pair p;
    pair_start(&p);
    for (int i = 0; i < 2; i++) {
        struct app *x = app_open(&p, 1000, false);
        UNTIL(&p, p.in[i].got == 1000 && x->status == 200);
        struct app *gone = i ? x : &p.in[i], *told = i ? &p.in[i] : x;
        app_free(gone);
        UNTIL(&p, told->closed);
        assert_int_equal(told->why.rc, RC_CLOSED);
        assert_non_null(strstr(told->why.msg, "reset"));
        assert_int_equal(link_write(told->s, "x", 1), 0);
        assert_int_equal(link_peek(told->s).n, 0);
        assert_false(link_eof(told->s));                            /* an end that is a reset is no end of the data */
        app_free(told);
        UNTIL(&p, link_streams(p.o.l) == 0 && link_streams(p.a.l) == 0);
    }
    pair_stop(&p);
}

/* An owner that has ended its side may leave: what it wrote arrives all the same, and the other end is told that nobody reads. */
static void test_leave_after_end(void **st)
{
    (void)st;
    struct pair p;
    pair_start(&p);
    struct app *x = app_open(&p, 0, false);
    UNTIL(&p, p.n_in == 1 && x->status == 200);
    x->stalled = true;
    struct app *y = &p.in[0];
    y->to_send = 60000;
    y->shut_after = true;
    app_pump(y);
    assert_int_equal(y->sent, 60000);
    app_free(y);
    UNTIL(&p, link_streams(p.a.l) == 0);
    x->stalled = false;
    UNTIL(&p, (app_read(x), x->got == 60000));
    assert_true(x->eof);
    UNTIL(&p, x->closed);
    assert_int_equal(x->why.rc, RC_CLOSED);
    pair_stop(&p);
}

static void test_refuse(void **st)
{
    (void)st;
    struct pair p;
    pair_start(&p);
    static const int say[] = { 502, 404, -1 };
    for (size_t i = 0; i < COUNT_OF(say); i++) {
        p.reply = say[i];
        struct app *x = app_open(&p, 100, false);
        UNTIL(&p, x->closed);
        assert_int_equal(x->status, say[i] > 0 ? say[i] : 0);
        assert_int_equal(x->why.rc, RC_CLOSED);
        assert_non_null(strstr(x->why.msg, "refused"));
        if (say[i] > 0)
            assert_int_equal(p.in[i].closes, 0);
        app_free(x);
        UNTIL(&p, link_streams(p.o.l) == 0 && link_streams(p.a.l) == 0);
    }
    assert_int_equal(p.o.ends + p.a.ends, 0);
    pair_stop(&p);
}

/* An answer may come much later, and the end without one is a refusal. */
static void test_late_reply(void **st)
{
    (void)st;
    struct pair p;
    pair_start(&p);
    p.reply = 0;
    struct app *x = app_open(&p, 5000, false), *y = app_open(&p, 0, false);
    UNTIL(&p, p.in[0].got == 5000 && p.n_in == 2);
    assert_int_equal(x->replies, 0);
    link_reply(p.in[0].s, 200);
    link_reply(p.in[0].s, 500);                                     /* the first answer counts */
    app_free(&p.in[1]);
    UNTIL(&p, x->status == 200 && y->closed);
    assert_int_equal(y->status, 0);
    assert_non_null(strstr(y->why.msg, "refused"));
    assert_int_equal(x->closes, 0);
    pair_stop(&p);
}

static void test_authorities(void **st)
{
    (void)st;
    static const struct { const char *in, *out; } t[] = {
        { "a.example:443", "a.example:443" }, { "A.Example:443", "a.example:443" }, { "x_y-1.example:65535", "x_y-1.example:65535" }, { "127.0.0.1:80", "127.0.0.1:80" },
        { "a.example", NULL }, { "a.example:", NULL }, { ":443", NULL }, { "a.example:0", NULL }, { "a.example:65536", NULL }, { "a.example:0443", NULL }, { "a..b:1", NULL },
        { ".a:1", NULL }, { "a.:1", NULL }, { "a b:1", NULL }, { "a/b:1", NULL }, { "a@b:1", NULL }, { "[::1]:443", NULL }, { "a:1:2", NULL }, { "*.a:1", NULL },
    };
    struct pair p;
    pair_start(&p);
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct err e = { 0 };
        struct app x = { .seed_in = 2, .seed_out = 1 };
        size_t before = p.n_in;
        const struct link_open o = { .authority = t[i].in, .client = "x y", .forwarded = true };
        int rc = link_stream_open(p.o.l, &o, &app_ops, &x, &x.s, &e);
        if (rc == RC_OK)
            UNTIL(&p, x.status || x.closed);
        bool taken = p.n_in > before && strcmp(p.in[before % APPS].authority, t[i].out ? t[i].out : "") == 0 && x.status == 200;
        if (taken != (t[i].out != NULL) || rc != (t[i].out ? RC_OK : RC_INVALID))
            fail_msg("row %zu: \"%s\" rc %d status %d", i, t[i].in, rc, x.status);
        if (taken) {
            assert_true(p.in[before % APPS].forwarded);
            assert_string_equal(p.in[before % APPS].client, "");    /* no address */
        }
        app_free(&x);
    }
    char big[400];
    memset(big, 'a', sizeof big);
    str_copy(big + 390, 10, ":443");
    struct err e;
    struct link_stream *s;
    const struct link_open o = { .authority = big };
    assert_int_equal(link_stream_open(p.o.l, &o, &app_ops, NULL, &s, &e), RC_INVALID);
    pair_stop(&p);
}

static void test_goaway(void **st)
{
    (void)st;
    for (int by_opener = 0; by_opener < 2; by_opener++) {
        struct pair p;
        pair_start(&p);
        struct app *x = app_open(&p, 1000, false), *late = NULL;
        UNTIL(&p, p.in[0].got == 1000);
        link_goaway(by_opener ? p.o.l : p.a.l);
        if (!by_opener)
            late = app_open(&p, 10, true);                          /* sent before the opener heard of it: still taken */
        UNTIL(&p, by_opener ? p.a.goaway : p.o.goaway);
        assert_false(link_usable(p.o.l));
        struct err e;
        struct link_stream *s;
        const struct link_open o = { .authority = "a.example:443" };
        assert_int_equal(link_stream_open(p.o.l, &o, &app_ops, NULL, &s, &e), RC_CLOSED);
        p.in[0].to_send = 400000;                                   /* what is open goes on */
        p.in[0].shut_after = true;
        app_pump(&p.in[0]);
        UNTIL(&p, x->eof);
        assert_int_equal(x->got, 400000);
        if (late) {
            UNTIL(&p, p.in[1].eof);
            p.in[1].shut_after = true;
            app_pump(&p.in[1]);
        }
        assert_int_equal(p.o.ends + p.a.ends, 0);
        x->shut_after = true;
        app_pump(x);
        struct side *first = by_opener ? &p.a : &p.o, *second = by_opener ? &p.o : &p.a;
        UNTIL(&p, first->ends);
        assert_int_equal(first->why.rc, RC_CLOSED);
        assert_non_null(strstr(first->why.msg, "drained"));
        link_free(first->l);
        first->l = NULL;
        UNTIL(&p, second->ends);
        assert_non_null(strstr(second->why.msg, "drained"));
        pair_stop(&p);
        assert_int_equal(p.o.ends, 1);
        assert_int_equal(p.a.ends, 1);
    }
}

static void test_death(void **st)
{
    (void)st;
    struct pair p;
    pair_start(&p);
    struct app *x = app_open(&p, 1000, false);
    UNTIL(&p, p.in[0].got == 1000 && x->status == 200);
    link_free(p.a.l);                                               /* its streams are told before it returns */
    p.a.l = NULL;
    assert_true(p.in[0].closed);
    assert_int_equal(link_write(p.in[0].s, "x", 1), 0);
    assert_null(link_stream_link(p.in[0].s));
    link_shutdown(p.in[0].s);
    link_consume(p.in[0].s, 0);
    UNTIL(&p, p.o.ends);
    assert_int_equal(p.o.why.rc, RC_CLOSED);
    assert_non_null(strstr(p.o.why.msg, "1 streams open"));
    assert_int_equal(x->closes, 1);
    assert_false(link_usable(p.o.l));
    pair_stop(&p);
    assert_int_equal(p.o.ends, 1);
    assert_int_equal(p.a.ends, 0);                                  /* who frees it needs not be told */
    assert_int_equal(x->closes, 1);
}

/* A peer that falls silent: its end is not read any more. Short times stand for the real ones. */
static void test_silence(void **st)
{
    (void)st;
    struct pair p;
    pair_start(&p);
    struct app *x = app_open(&p, 0, false);
    UNTIL(&p, x->status == 200);
    ev_io_stop(&p.a.l->io);
    ev_timer_stop(&p.a.l->tick);
    p.o.l->ping_ms = 20;
    p.o.l->dead_ms = 80;
    p.o.l->pinged_ms = 0;
    ev_timer_set(p.ev, &p.o.l->tick, 1, p.o.l->tick.cb);
    UNTIL(&p, p.o.ends);
    assert_int_equal(p.o.why.rc, RC_TIMEOUT);
    assert_true(x->closed);
    pair_stop(&p);
}

/* Pings keep a quiet link alive far beyond the time of silence, and give round-trip times. */
static void test_quiet(void **st)
{
    (void)st;
    struct pair p;
    pair_start(&p);
    for (int i = 0; i < 2; i++) {
        struct link *l = i ? p.a.l : p.o.l;
        l->ping_ms = 5;
        l->dead_ms = 2000;
        l->pinged_ms = 0;
        ev_timer_set(p.ev, &l->tick, 1, l->tick.cb);
    }
    int64_t from = ev_now_ms(p.ev);
    UNTIL(&p, link_heard_ms(p.o.l) >= from + 100 && link_heard_ms(p.a.l) >= from + 100);
    assert_int_equal(p.o.ends + p.a.ends, 0);
    assert_true(link_rtt_us(p.a.l) > 0 && link_rtt_us(p.o.l) > 0);
    pair_stop(&p);
}

struct echoes { int ok, failed; int64_t rtt; };
static void echoed(void *ctx, bool ok, int64_t rtt)
{
    struct echoes *x = ctx;
    x->ok += ok;
    x->failed += !ok;
    x->rtt = rtt;
}

static void test_echo(void **st)
{
    (void)st;
    struct pair p;
    struct echoes x = { 0 };
    pair_start(&p);
    assert_int_equal(link_echoed_ms(p.a.l), 0);
    for (int i = 0; i < 3; i++)
        link_echo(p.o.l, 60000, echoed, &x);
    assert_int_equal(x.ok + x.failed, 0);
    assert_int_equal(link_streams(p.o.l), 0);                       /* they are not streams of the owner */
    UNTIL(&p, x.ok == 3);
    assert_true(x.rtt > 0);
    assert_int_equal(p.n_in, 0);
    assert_true(link_echoed_ms(p.a.l) > 0);
    assert_int_equal(link_streams(p.a.l), 0);
    for (int i = 0; i < 20; i++)                                    /* more at once than are answered */
        link_echo(p.o.l, 60000, echoed, &x);
    UNTIL(&p, x.ok + x.failed == 23);
    assert_true(x.ok >= 3 + LINK_ECHOES_MAX && x.failed > 0);
    x = (struct echoes){ 0 };
    ev_io_stop(&p.a.l->io);
    link_echo(p.o.l, 10, echoed, &x);                               /* connected, but nothing moves */
    UNTIL(&p, x.failed == 1);
    link_echo(p.o.l, 60000, echoed, &x);
    link_free(p.o.l);
    p.o.l = NULL;
    assert_int_equal(x.failed, 2);
    link_echo(p.a.l, 60000, echoed, &x);                            /* the acceptor cannot: said later, or when the link goes */
    assert_int_equal(x.failed, 2);
    link_free(p.a.l);
    p.a.l = NULL;
    assert_int_equal(x.failed, 3);
    assert_int_equal(x.ok, 0);
    pair_stop(&p);
}

/* Bytes that the edge read with the head of the upgrade. */
static void test_early(void **st)
{
    (void)st;
    struct pair p;
    struct err e = { 0 };
    int fd[2];
    struct tls *t[2];
    memset(&p, 0, sizeof p);
    p.own_ev = true;
    assert_int_equal(ev_new(&p.ev, &e), RC_OK);
    tls_pair(&p, fd, t);
    p.reply = 200;
    assert_int_equal(link_new(p.ev, LINK_OPENER, NULL, fd[1], t[1], NULL, 0, &pair_ops, &p.o, &p.o.l, &e), RC_OK);
    char b[4096];
    size_t n = 0, got;
    unsigned want;
    int64_t end = clock_mono_ms() + DEADLINE_MS;
    while (n < 60 && clock_mono_ms() < end) {
        ev_run_once(p.ev, 10);
        while (n < 60 && tls_read(t[0], b + n, 60 - n, &got, &want, &e) == RC_OK)
            n += got;
    }
    assert_int_equal(n, 60);
    assert_int_equal(link_new(p.ev, LINK_ACCEPTOR, NULL, fd[0], t[0], b, n, &pair_ops, &p.a, &p.a.l, &e), RC_OK);
    UNTIL(&p, p.o.ready && p.a.ready);
    struct app *x = app_open(&p, 1000, false);
    UNTIL(&p, p.in[0].got == 1000 && x->status == 200);
    pair_stop(&p);
}

/* Another owner takes a stream over in the middle and misses nothing. */
static void test_attach(void **st)
{
    (void)st;
    struct pair p;
    pair_start(&p);
    p.answer = 9000;
    p.answer_shut = true;
    struct app *x = app_open(&p, 0, false);
    x->stalled = true;
    UNTIL(&p, x->readable_seen && link_streams(p.a.l) == 1 && link_peek(x->s).n == 9000);
    struct app y = { .s = x->s, .seed_in = 2, .seed_out = 1 };
    x->s = NULL;
    link_stream_attach(y.s, &app_ops, &y);
    assert_int_equal(y.got, 0);                                     /* never inside a call */
    UNTIL(&p, y.eof);
    assert_int_equal(y.got, 9000);
    app_free(&y);
    pair_stop(&p);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_data), cmocka_unit_test(test_many), cmocka_unit_test(test_half_close), cmocka_unit_test(test_reset), cmocka_unit_test(test_leave_after_end),
        cmocka_unit_test(test_refuse), cmocka_unit_test(test_late_reply), cmocka_unit_test(test_authorities), cmocka_unit_test(test_goaway), cmocka_unit_test(test_death),
        cmocka_unit_test(test_silence), cmocka_unit_test(test_quiet), cmocka_unit_test(test_echo), cmocka_unit_test(test_early), cmocka_unit_test(test_attach),
    };
    return cmocka_run_group_tests(t, pair_group_setup, pair_group_teardown);
}
