/* Flow control: readers that stop, windows and their budget, fairness, and peers that break the rules. */
#include "tunnel/pair.h"

/* Eight readers stop; the other streams go on as if these were not there, and what the stopped ones hold stays within their windows. */
static void test_stalled_readers(void **st)
{
    (void)st;
    for (int at_opener = 0; at_opener < 2; at_opener++) {
        struct pair p;
        pair_start(&p);
        p.answer = at_opener ? GIB : 0;
        p.in_stalled = !at_opener;
        struct app *stalled[8];
        for (int i = 0; i < 8; i++) {
            stalled[i] = app_open(&p, at_opener ? 0 : GIB, false);
            stalled[i]->stalled = at_opener;
        }
        UNTIL(&p, p.n_in == 8);
        struct app *reader[8], *writer[8];
        for (int i = 0; i < 8; i++) {
            reader[i] = at_opener ? stalled[i] : &p.in[i];
            writer[i] = at_opener ? &p.in[i] : stalled[i];
        }
        for (int i = 0; i < 8; i++)
            UNTIL(&p, reader[i]->s->in.n == LINK_WINDOW_MIN && writer[i]->s->out.n == LINK_SEND_MAX);
        p.answer = 300000;
        p.answer_shut = true;
        p.in_stalled = false;
        for (int i = 0; i < 40; i++) {                              /* far more than all windows of the link together */
            struct app *x = app_open(&p, 300000, true);
            UNTIL(&p, x->eof);
            assert_int_equal(x->got, 300000);
        }
        for (int i = 0; i < 8; i++) {
            assert_int_equal(reader[i]->s->in.n, LINK_WINDOW_MIN);  /* not a byte over what it was promised */
            assert_int_equal(writer[i]->s->out.n, LINK_SEND_MAX);
        }
        assert_int_equal(p.budget.used, 0);
        for (int i = 0; i < 8; i++) {                               /* they can go on */
            uint64_t before = reader[i]->got;
            reader[i]->stalled = false;
            app_read(reader[i]);
            UNTIL(&p, reader[i]->got >= before + 3 * LINK_WINDOW_MIN);
            reader[i]->stalled = true;
        }
        pair_stop(&p);
    }
}

/* A fast stream's window grows under the budget and the maximum, never above; all is given back. The round-trip time is made long, so that the measured
 * product is large. */
static void test_windows_grow(void **st)
{
    (void)st;
    static const uint64_t budgets[] = { 64 * MIB, 1 * MIB, 0 };
    for (size_t k = 0; k < COUNT_OF(budgets); k++) {
        struct pair p;
        pair_start(&p);
        p.budget.max = budgets[k];
        p.answer = 0;
        struct app *x = app_open(&p, GIB, false);
        UNTIL(&p, p.n_in == 1);
        struct link *l = p.a.l;
        uint32_t widest = 0;
        uint64_t most = 0;
        for (int64_t end = clock_mono_ms() + DEADLINE_MS; clock_mono_ms() < end && p.in[0].got < 64 * MIB;) {
            l->rtt_us = 500000;
            l->rtt_at_us = clock_mono_us();
            ev_run_once(p.ev, 20);
            widest = p.in[0].s->window > widest ? p.in[0].s->window : widest;
            most = p.budget.used > most ? p.budget.used : most;
        }
        assert_true(p.in[0].got >= 64 * MIB);
        assert_true(most <= budgets[k]);
        assert_int_equal(widest, k == 0 ? LINK_WINDOW_MAX : LINK_WINDOW_MIN + budgets[k]);
        p.in[0].stalled = true;                                     /* what it may hold now is its window, and it is held to it */
        UNTIL(&p, x->s->out.n == LINK_SEND_MAX && nghttp2_session_get_stream_remote_window_size(p.o.l->h2, x->s->id) == 0 && link_queued(p.o.l) == LINK_SEND_MAX);
        for (int i = 0; i < 20; i++)
            ev_run_once(p.ev, 2);
        assert_true(p.in[0].s->in.n > 0 && p.in[0].s->in.n <= widest);
        assert_int_equal(l->n_grown, k < 2);
        app_free(x);
        UNTIL(&p, p.in[0].closed);
        app_free(&p.in[0]);
        assert_int_equal(p.budget.used, 0);
        assert_int_equal(l->n_grown, 0);
        pair_stop(&p);
    }
}

/* A window that is no longer needed shrinks, and the budget comes back as the peer uses up what it was promised. */
static void test_windows_shrink(void **st)
{
    (void)st;
    struct pair p;
    pair_start(&p);
    struct app *x = app_open(&p, 8 * MIB, false);
    UNTIL(&p, p.n_in == 1);
    struct link *l = p.a.l;
    while (p.in[0].got < 8 * MIB) {
        l->rtt_us = 500000;
        l->rtt_at_us = clock_mono_us();
        ev_run_once(p.ev, 20);
    }
    uint64_t grown = p.budget.used;
    assert_true(grown > 0);
    p.in[0].s->mark_us = 1;                                         /* long ago */
    for (int i = 0; i < 3; i++)
        window_tick(l);
    assert_int_equal(p.in[0].s->window, LINK_WINDOW_MIN);
    assert_int_equal(p.budget.used, grown);                         /* still promised */
    x->to_send += grown + 5 * MIB;
    app_pump(x);
    UNTIL(&p, p.in[0].got == x->to_send);
    p.in[0].stalled = true;
    assert_true(p.budget.used < grown || p.in[0].s->window > LINK_WINDOW_MIN);
    pair_stop(&p);
}

/* While one stream sends without end, a small message on another one does not wait for it: it overtakes what is queued. */
static void test_small_overtakes(void **st)
{
    (void)st;
    struct pair p;
    pair_start(&p);
    struct app *bulk = app_open(&p, UINT64_MAX / 2, false);
    UNTIL(&p, p.n_in == 1 && p.in[0].got > 4 * MIB);
    for (int i = 0; i < 50; i++) {
        struct app *x = app_open(&p, 100, true);
        uint64_t sent = bulk->sent, read = p.in[0].got;
        UNTIL(&p, p.in[p.n_in - 1].got == 100 && p.n_in == (size_t)i + 2);
        /* what was in the socket, the kernel and the buffers of this turn; not what the stream could send meanwhile */
        assert_true(bulk->sent - sent <= 16 * MIB && p.in[0].got - read <= 16 * MIB);
        app_free(x);
    }
    pair_stop(&p);
}

/* All bulk streams get their share. */
static void test_fair(void **st)
{
    (void)st;
    struct pair p;
    pair_start(&p);
    p.budget.max = 0;
    for (int i = 0; i < 6; i++)
        app_open(&p, GIB, false);
    UNTIL(&p, p.n_in == 6 && p.in[0].got > 16 * MIB);
    for (int i = 0; i < 6; i++)
        assert_true(p.in[i].got > 8 * MIB && p.in[i].got < 32 * MIB);
    pair_stop(&p);
}

static struct link_stream *held[LINK_STREAMS_MAX + 10];
static size_t n_held;
static void hold_open(void *ctx, struct link *l, struct link_stream *s, const struct link_open *o)
{
    (void)ctx, (void)l, (void)o;
    static const struct link_stream_ops none = { 0 };
    link_stream_attach(s, &none, NULL);
    held[n_held++] = s;
}

static void test_stream_limit(void **st)
{
    (void)st;
    struct pair p;
    pair_start(&p);
    static const struct link_ops ops = { pair_ready, hold_open, pair_goaway, pair_end };
    p.a.l->ops = &ops;
    struct link_stream **s = calloc(LINK_STREAMS_MAX, sizeof *s);
    const struct link_open o = { .authority = "a.example:443" };
    static const struct link_stream_ops none = { 0 };
    struct err e;
    for (size_t i = 0; i < LINK_STREAMS_MAX; i++) {
        assert_int_equal(link_stream_open(p.o.l, &o, &none, NULL, &s[i], &e), RC_OK);
        if (i % 500 == 0)
            ev_run_once(p.ev, 0);
    }
    struct link_stream *more = NULL;
    assert_int_equal(link_stream_open(p.o.l, &o, &none, NULL, &more, &e), RC_LIMIT);
    assert_int_equal(link_streams(p.o.l), LINK_STREAMS_MAX);
    link_stream_free(s[0]);
    UNTIL(&p, link_streams(p.o.l) == LINK_STREAMS_MAX - 1);
    assert_int_equal(link_stream_open(p.o.l, &o, &none, NULL, &s[0], &e), RC_OK);
    for (size_t i = 0; i < LINK_STREAMS_MAX; i++)
        link_stream_free(s[i]);
    UNTIL(&p, link_streams(p.o.l) == 0 && link_streams(p.a.l) == 0);
    assert_int_equal(p.o.ends + p.a.ends, 0);
    assert_true(n_held >= LINK_STREAMS_MAX);                        /* the last one may have been given up before it left */
    for (size_t i = 0; i < n_held; i++)
        link_stream_free(held[i]);
    free(s);
    pair_stop(&p);
}

/* Owners free streams and links from inside every callback. */
static int free_what, free_in;
static struct pair *free_pair;
static void free_now(struct app *x)
{
    if (free_what == 0)
        app_free(x);
    else if (free_what == 1) {
        link_free(free_pair->o.l);
        free_pair->o.l = NULL;
    } else {
        link_free(free_pair->a.l);
        free_pair->a.l = NULL;
    }
}
static void free_reply(void *ctx, struct link_stream *s, int status) { (void)s, (void)status; if (free_in == 0) free_now(ctx); }
static void free_readable(void *ctx, struct link_stream *s) { (void)s; if (free_in == 1) free_now(ctx); }
static void free_writable(void *ctx, struct link_stream *s) { (void)s; if (free_in == 2) free_now(ctx); }
static void free_close(void *ctx, struct link_stream *s, const struct err *why)
{
    (void)s, (void)why;
    ((struct app *)ctx)->closed = true;
    if (free_in == 3)
        free_now(ctx);
}

static void test_free_inside(void **st)
{
    (void)st;
    static const struct link_stream_ops ops = { free_reply, free_readable, free_writable, free_close };
    for (free_in = 0; free_in < 4; free_in++)
        for (free_what = 0; free_what < 3; free_what++) {
            struct pair p;
            struct err e;
            pair_start(&p);
            free_pair = &p;
            p.o.free_in_end = p.a.free_in_end = true;
            p.answer = 100000;
            struct app x[3] = { 0 };
            const struct link_open o = { .authority = "a.example:443" };
            for (int i = 0; i < 3; i++) {
                assert_int_equal(link_stream_open(p.o.l, &o, &ops, &x[i], &x[i].s, &e), RC_OK);
                static char block[LINK_SEND_MAX + 1];
                size_t all = 0;
                for (size_t k = 0; k < sizeof block; k++)
                    block[k] = (char)pattern(k, 1);
                all = link_write(x[i].s, block, sizeof block);
                assert_int_equal(all, LINK_SEND_MAX);
            }
            if (free_in == 3) {
                UNTIL(&p, p.n_in == 3);
                for (int i = 0; i < 3; i++)
                    app_free(&p.in[i]);
            }
            if (free_what == 0)
                UNTIL(&p, !x[0].s && !x[1].s && !x[2].s);
            else
                UNTIL(&p, !p.o.l && !p.a.l);
            for (int i = 0; i < 3; i++)
                app_free(&x[i]);
            pair_stop(&p);
        }
}

/* A raw HTTP/2 peer in front of an acceptor or an opener: bytes as a broken or hostile one would send. */
struct raw { struct buf to, from; };
static int raw_read(void *ctx, void *p, size_t n, size_t *ret_n)
{
    struct raw *r = ctx;
    if (buf_len(&r->to) == 0)
        return RC_AGAIN;
    *ret_n = n < buf_len(&r->to) ? n : buf_len(&r->to);
    memcpy(p, buf_data(&r->to), *ret_n);
    buf_consume(&r->to, *ret_n);
    return RC_OK;
}
static int raw_write(void *ctx, const void *p, size_t n, size_t *ret_n)
{
    struct raw *r = ctx;
    *ret_n = n;
    return buf_put(&r->from, p, n) == RC_OK ? RC_OK : RC_AGAIN;
}

static void frame(struct buf *b, unsigned type, unsigned flags, uint32_t id, const void *p, size_t n)
{
    const uint8_t head[9] = { (uint8_t)(n >> 16), (uint8_t)(n >> 8), (uint8_t)n, (uint8_t)type, (uint8_t)flags, (uint8_t)(id >> 24), (uint8_t)(id >> 16), (uint8_t)(id >> 8), (uint8_t)id };
    buf_put(b, head, 9);
    buf_put(b, p, n);
}

/* HPACK: literal without indexing, new name. */
static size_t literal(uint8_t *p, const char *name, const char *value)
{
    size_t n = 0;
    p[n++] = 0;
    p[n++] = (uint8_t)strlen(name);
    memcpy(p + n, name, strlen(name)), n += strlen(name);
    p[n++] = (uint8_t)strlen(value);
    memcpy(p + n, value, strlen(value)), n += strlen(value);
    return n;
}

struct raw_end { struct side side; struct raw r; struct ev *ev; struct link_budget budget; size_t opened; };

static void raw_open(void *ctx, struct link *l, struct link_stream *s, const struct link_open *o)
{
    (void)l, (void)o;
    struct raw_end *x = container_of((struct side *)ctx, struct raw_end, side);
    static const struct link_stream_ops none = { 0 };
    x->opened++;
    link_stream_attach(s, &none, NULL);
    link_reply(s, 200);
    link_stream_free(s);
}
static const struct link_ops raw_ops = { pair_ready, raw_open, pair_goaway, pair_end };

static void raw_start(struct raw_end *x, enum link_role role)
{
    struct err e;
    memset(x, 0, sizeof *x);
    buf_init(&x->r.to, 64 * MIB);
    buf_init(&x->r.from, 64 * MIB);
    assert_int_equal(ev_new(&x->ev, &e), RC_OK);
    const struct tls_io io = { raw_read, raw_write, &x->r };
    assert_int_equal(link_new_pipe(x->ev, role, &x->budget, &io, &raw_ops, &x->side, &x->side.l, &e), RC_OK);
    if (role == LINK_ACCEPTOR)
        buf_puts(&x->r.to, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    frame(&x->r.to, 4, 0, 0, "", 0);
    frame(&x->r.to, 4, 1, 0, "", 0);
    link_poke(x->side.l);
    assert_true(x->side.ready);
}

static void raw_run(struct raw_end *x)
{
    for (int i = 0; i < 50 && !x->side.ends; i++) {
        link_poke(x->side.l);
        ev_run_once(x->ev, 0);
    }
}

static void raw_stop(struct raw_end *x)
{
    link_free(x->side.l);
    ev_free(x->ev);
    buf_done(&x->r.to);
    buf_done(&x->r.from);
}

static void raw_connect(struct raw_end *x, uint32_t id, const char *method, const char *authority, unsigned flags)
{
    uint8_t b[600];
    size_t n = literal(b, ":method", method);
    if (authority)
        n += literal(b + n, ":authority", authority);
    frame(&x->r.to, 1, flags | 4, id, b, n);
}

static void test_violations(void **st)
{
    (void)st;
    for (int k = 0; k < 12; k++) {
        struct raw_end x;
        raw_start(&x, k == 7 ? LINK_OPENER : LINK_ACCEPTOR);
        struct buf *b = &x.r.to;
        uint8_t h[9000];
        size_t n = 0;
        switch (k) {
        case 0: frame(b, 0, 0, 1, "data", 4); break;                                   /* a stream that was never opened */
        case 1: frame(b, 8, 0, 0, "\0\0\0\0", 4); break;                               /* a window update of nothing */
        case 2: frame(b, 1, 4, 2, "\x82", 1); break;                                   /* an even stream id */
        case 3: frame(b, 1, 4, 1, "\xff\xff\xff\xff\xff\xff", 6); break;               /* no HPACK */
        case 4:                                                                         /* 40 KB of header list on one stream */
            memset(h, 'v', sizeof h);
            for (int i = 0; i < 10; i++) {
                uint8_t part[4200];
                size_t m = 0;
                part[m++] = 0, part[m++] = 1, part[m++] = 'x', part[m++] = 0x7f, part[m++] = 0x81, part[m++] = 0x1f;   /* value of 4096 bytes */
                memcpy(part + m, h, 4096), m += 4096;
                frame(b, i ? 9 : 1, i == 9 ? 4 : 0, 1, part, m);
            }
            break;
        case 5:                                                                         /* CONTINUATION without end */
            frame(b, 1, 0, 1, "", 0);
            for (int i = 0; i < 100; i++)
                frame(b, 9, 0, 1, "", 0);
            break;
        case 6:                                                                         /* PING flood */
            for (int i = 0; i < LINK_CONTROL_MAX + 10; i++)
                frame(b, 6, 0, 0, "12345678", 8);
            break;
        case 7: frame(b, 5, 4, 1, "\0\0\0\2\x82", 5); break;                            /* a push to an opener */
        case 8:                                                                         /* SETTINGS flood */
            for (int i = 0; i < LINK_CONTROL_MAX + 10; i++)
                frame(b, 4, 0, 0, "", 0);
            break;
        case 9:                                                                         /* empty DATA flood */
            raw_connect(&x, 1, "CONNECT", "a.example:443", 0);
            for (int i = 0; i < LINK_CONTROL_MAX + 10; i++)
                frame(b, 0, 0, 1, "", 0);
            break;
        case 10:                                                                        /* Rapid Reset */
            for (uint32_t i = 0; i < LINK_RESETS_BURST + 5000; i++) {
                raw_connect(&x, 1 + 2 * i, "CONNECT", "a.example:443", 0);
                frame(b, 3, 0, 1 + 2 * i, "\0\0\0\x8", 4);
            }
            break;
        case 11:                                                                        /* more than the window of a stream */
            raw_connect(&x, 1, "CONNECT", "a.example:443", 0);
            memset(h, 0, sizeof h);
            for (n = 0; n <= LINK_WINDOW_MIN; n += 8000)
                frame(b, 0, 0, 1, h, 8000);
            break;
        }
        raw_run(&x);
        if (k == 11) {                  /* our side gave the stream up: its bytes are credited, nothing is held, the link goes on or ends */
            raw_stop(&x);
            continue;
        }
        if (x.side.ends != 1 || x.side.why.rc != RC_PROTO || !x.side.why.msg[0])
            fail_msg("case %d: ends %d rc %d \"%s\"", k, x.side.ends, x.side.why.rc, x.side.why.msg);
        raw_stop(&x);
    }
}

/* A stream's window is a wall: an owner that does not read holds at most so much, and a peer that goes on is cut off. */
static void keep_open(void *ctx, struct link *l, struct link_stream *s, const struct link_open *o)
{
    (void)l, (void)o;
    struct raw_end *x = container_of((struct side *)ctx, struct raw_end, side);
    static struct app reader;
    x->opened++;
    reader = (struct app){ .s = s, .stalled = true };
    link_stream_attach(s, &app_ops, &reader);
    link_reply(s, 200);
    x->side.goaway = false;
}

static void test_window_is_a_wall(void **st)
{
    (void)st;
    static const struct link_ops ops = { pair_ready, keep_open, pair_goaway, pair_end };
    struct raw_end x;
    raw_start(&x, LINK_ACCEPTOR);
    x.side.l->ops = &ops;
    raw_connect(&x, 1, "CONNECT", "a.example:443", 0);
    raw_run(&x);
    assert_int_equal(x.opened, 1);
    struct link_stream *s = list_first(&x.side.l->all, struct link_stream, all);
    static char block[8192];
    for (size_t n = 0; n < LINK_WINDOW_MIN; n += sizeof block)
        frame(&x.r.to, 0, 0, 1, block, sizeof block);
    raw_run(&x);
    assert_int_equal(x.side.ends, 0);
    assert_int_equal(s->in.n, LINK_WINDOW_MIN);
    frame(&x.r.to, 0, 0, 1, block, 1);
    raw_run(&x);
    assert_true(x.side.ends == 1 && x.side.why.rc == RC_PROTO);
    link_stream_free(s);
    raw_stop(&x);
}

/* Requests that are well-formed HTTP/2 but none of ours are answered, and the link goes on. */
static void test_bad_requests(void **st)
{
    (void)st;
    struct raw_end x;
    raw_start(&x, LINK_ACCEPTOR);
    raw_connect(&x, 1, "CONNECT", "a.example:0", 0);
    raw_connect(&x, 3, "CONNECT", "a..b:443", 1);
    raw_run(&x);
    assert_int_equal(x.opened, 0);
    assert_int_equal(x.side.ends, 0);
    raw_connect(&x, 5, "CONNECT", "a.example:443", 0);
    raw_run(&x);
    assert_int_equal(x.opened, 1);
    assert_int_equal(x.side.ends, 0);
    assert_int_equal(link_streams(x.side.l), 0);
    raw_stop(&x);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_stalled_readers), cmocka_unit_test(test_windows_grow), cmocka_unit_test(test_windows_shrink), cmocka_unit_test(test_small_overtakes),
        cmocka_unit_test(test_fair), cmocka_unit_test(test_stream_limit), cmocka_unit_test(test_free_inside), cmocka_unit_test(test_violations),
        cmocka_unit_test(test_window_is_a_wall), cmocka_unit_test(test_bad_requests),
    };
    return cmocka_run_group_tests(t, pair_group_setup, pair_group_teardown);
}
