/* Streams, draining, TLS, addresses that are Unix sockets. */
#include "http/rig.h"
#include "http/sse.h"
#include "tls/certs.h"

static struct http_stream *live;
static int starts, closes, drains;
static bool end_in_start, end_in_close, end_in_drain, with_drain, write_in_start;
static size_t queue_max;
static struct http_req *held;
static struct test_cert cert;

static void on_start(void *ctx, struct http_stream *s)
{
    assert_ptr_equal(ctx, &starts);
    starts++;
    live = s;
    if (write_in_start)
        (void)http_stream_write(s, "data: hi\n\n", 10);
    if (end_in_start) {
        http_stream_end(s);
        live = NULL;
    }
}

static void on_close(void *ctx, struct http_stream *s)
{
    assert_ptr_equal(ctx, &starts);
    assert_ptr_equal(s, live);
    closes++;
    assert_int_equal(http_stream_write(s, "x", 1), RC_CLOSED);
    assert_int_equal(http_stream_queued(s), 0);
    if (end_in_close) {
        http_stream_end(s);
        live = NULL;
    }
}

static void on_drain(void *ctx, struct http_stream *s)
{
    (void)ctx;
    drains++;
    if (end_in_drain) {
        (void)http_stream_write(s, ": bye\n\n", 7);
        http_stream_end(s);
        live = NULL;
    }
}

static int rooms;
static bool end_in_room;

static void on_room(void *ctx, struct http_stream *s)
{
    assert_ptr_equal(ctx, &starts);
    assert_ptr_equal(s, live);
    rooms++;
    assert_true(http_stream_queued(s) <= 1000);
    if (end_in_room) {
        http_stream_end(s);
        live = NULL;
    }
}

static void start_stream(struct http_req *r)
{
    char type[] = "text/event-stream", lines[] = "cache-control: no-store\r\n";
    struct http_stream_conf c = {
        .status = 200, .content_type = type, .headers = lines, .queue_max = queue_max, .on_start = on_start, .on_close = on_close,
        .on_drain = with_drain ? on_drain : NULL, .on_room = on_room, .room_below = 1000, .ctx = &starts,
    };
    http_stream_start(r, &c);
    memset(type, 'X', sizeof type - 1);             /* borrowed only for the call */
    memset(lines, 'X', sizeof lines - 1);
}

static void *start_in_thread(void *arg)
{
    start_stream(arg);
    return NULL;
}

static pthread_t thread;

static void on_request(void *ctx, struct http_req *r)
{
    (void)ctx;
    struct slice p = http_req_path(r);
    if (slice_eq(p, "/stream")) {
        start_stream(r);
    } else if (slice_eq(p, "/stream-thread")) {
        assert_int_equal(pthread_create(&thread, NULL, start_in_thread, r), 0);
    } else if (slice_eq(p, "/hold")) {
        held = r;
    } else {
        struct buf b;
        struct slice d = http_req_body(r);
        buf_init(&b, 64 * MIB);
        buf_puts(&b, "ok ");
        buf_put(&b, d.p, d.n);
        http_reply(r, &(struct http_reply){ .status = 200, .body = &b });
    }
}

static void reset(void)
{
    live = NULL;
    held = NULL;
    starts = closes = drains = 0;
    end_in_start = end_in_close = end_in_drain = with_drain = write_in_start = false;
    queue_max = 256 * KIB;
}

#define GET(path) "GET " path " HTTP/1.1\r\nhost: a\r\n\r\n"

static void test_stream(void **st)
{
    (void)st;
    struct client c;
    reset();
    rig_start(NULL);
    client_open(&c);
    client_send(&c, GET("/stream"));
    EXPECT(&c, "\r\n\r\n");                         /* the head comes at once */
    SAYS(&c, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\ntransfer-encoding: chunked\r\n");
    SAYS(&c, "connection: close\r\n");
    assert_non_null(live);
    assert_int_equal(http_stream_write(live, "data: 1\n\n", 9), RC_OK);
    assert_int_equal(http_stream_write(live, "", 0), RC_OK);
    assert_int_equal(http_stream_write(live, "data: two\n\n", 11), RC_OK);
    assert_true(http_stream_queued(live) > 20);
    EXPECT(&c, "9\r\ndata: 1\n\n\r\nb\r\ndata: two\n\n\r\n");
    assert_int_equal(http_stream_queued(live), 0);
    client_send(&c, GET("/ignored"));               /* a stream is the last answer of its connection */
    (void)http_stream_write(live, "x", 1);
    http_stream_end(live);
    assert_true(client_wait_close(&c));
    SAYS(&c, "1\r\nx\r\n0\r\n\r\n");
    assert_int_equal(count(buf_data(&c.got), "HTTP/1.1"), 1);
    assert_int_equal(closes, 0);
    client_close(&c);
    rig_stop();
}

static void test_stream_variants(void **st)
{
    (void)st;
    struct client c;
    reset();
    rig_start(NULL);
    client_open(&c);                                /* HTTP/1.0: no chunks, the end is the end */
    client_send(&c, "GET /stream HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
    EXPECT(&c, "\r\n\r\n");
    assert_null(strstr(buf_data(&c.got), "chunked"));
    (void)http_stream_write(live, "abc", 3);
    http_stream_end(live);
    assert_true(client_wait_close(&c));
    SAYS(&c, "\r\n\r\nabc");
    client_close(&c);

    reset();                                        /* started by a thread, written and ended inside on_start */
    end_in_start = write_in_start = true;
    client_open(&c);
    client_send(&c, GET("/stream-thread"));
    assert_true(client_wait_close(&c));
    SAYS(&c, "a\r\ndata: hi\n\n\r\n0\r\n\r\n");
    pthread_join(thread, NULL);
    client_close(&c);

    reset();                                        /* HEAD: the head only; the stream is closed from the start */
    end_in_close = true;
    client_open(&c);
    client_send(&c, "HEAD /stream HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_true(client_wait_close(&c));
    SAYS(&c, "text/event-stream");
    assert_int_equal(starts, 1);
    assert_int_equal(closes, 1);
    client_close(&c);

    reset();                                        /* the client is gone before the stream starts */
    end_in_close = true;
    client_open(&c);
    client_send(&c, GET("/hold"));
    turn(10);
    client_reset(&c);
    turn(10);
    start_stream(held);
    turn(10);
    assert_int_equal(starts, 1);
    assert_int_equal(closes, 1);

    reset();                                        /* the same, ended in on_start: no on_close */
    end_in_start = true;
    client_open(&c);
    client_send(&c, GET("/hold"));
    turn(10);
    client_reset(&c);
    turn(10);
    start_stream(held);
    turn(10);
    assert_int_equal(starts, 1);
    assert_int_equal(closes, 0);
    rig_stop();
}

static void test_stream_hang_up(void **st)
{
    (void)st;
    struct client c;
    rig_start(NULL);
    for (int how = 0; how < 3; how++) {
        reset();
        end_in_close = how != 1;
        client_open(&c);
        client_send(&c, GET("/stream"));
        EXPECT(&c, "\r\n\r\n");
        if (how == 0)
            client_close(&c);
        else
            client_reset(&c);
        if (how == 2)
            for (int i = 0; live && i < 100; i++) {
                (void)http_stream_write(live, "data: 1\n\n", 9);
                turn(1);
            }
        turn(20);
        assert_int_equal(closes, 1);
        if (how == 1)
            http_stream_end(live);                  /* ended later than on_close */
        assert_int_equal(http_server_conns(rig_server), 0);
    }
    rig_stop();
}

static void short_write(struct http_server_conf *c) { c->limits.write_ms = 150; }

static void test_back_pressure(void **st)
{
    (void)st;
    struct client c;
    static char chunk[10000];
    reset();
    end_in_close = true;
    queue_max = 100000;
    rig_start(short_write);
    client_open(&c);
    int small = 8192;
    setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    client_send(&c, GET("/stream"));
    EXPECT(&c, "\r\n\r\n");
    memset(chunk, 'c', sizeof chunk);
    static char large[100001];
    assert_int_equal(http_stream_write(live, large, sizeof large), RC_LIMIT);      /* never fits */
    size_t taken = 0;
    int rc = RC_OK;
    for (int i = 0; i < 5000 && rc == RC_OK; i++)
        if ((rc = http_stream_write(live, chunk, sizeof chunk)) == RC_OK)
            taken += sizeof chunk;
    assert_int_equal(rc, RC_LIMIT);
    assert_true(taken >= 100000 && http_stream_queued(live) <= queue_max && http_stream_queued(live) > 80000);
    size_t before = http_stream_queued(live);
    assert_int_equal(http_stream_write(live, chunk, sizeof chunk), RC_LIMIT);
    assert_int_equal(http_stream_queued(live), before);                             /* nothing was taken */
    for (int i = 0; i < 400 && closes == 0; i++)
        turn(5);                                    /* nobody reads: cut after write_ms */
    assert_int_equal(closes, 1);
    client_close(&c);

    reset();                                        /* a reader that comes back gets every byte in order */
    end_in_close = true;
    client_open(&c);
    client_send(&c, GET("/stream"));
    EXPECT(&c, "\r\n\r\n");
    size_t n = 0;
    for (int i = 0; i < 3000; i++) {
        char line[64];
        int k = snprintf(line, sizeof line, "data: %040d\n\n", i);
        while (http_stream_write(live, line, (size_t)k) == RC_LIMIT) {
            ev_run_once(rig_ev, 1);
            client_recv(&c);
        }
        n += (size_t)k;
    }
    http_stream_end(live);
    assert_true(client_wait_close(&c));
    struct http_chunked dec = { 0 };
    const char *p = strstr(buf_data(&c.got), "\r\n\r\n") + 4;
    size_t left = buf_len(&c.got) - (size_t)(p - buf_data(&c.got)), got = 0;
    int dr = RC_OK, seq = 0;
    while (dr == RC_OK && left) {
        size_t used;
        struct slice d;
        char want[64];
        dr = http_chunked_step(&dec, p, left, &used, &d);
        if (d.n) {
            snprintf(want, sizeof want, "data: %040d\n\n", seq++);
            assert_true(slice_eq(d, want));
        }
        got += d.n;
        p += used;
        left -= used;
    }
    assert_int_equal(dr, RC_CLOSED);
    assert_int_equal(got, n);
    client_close(&c);
    rig_stop();
}

static int drained;
static void on_drained(void *ctx) { drained += ctx == &drained; }

static void wait_drained(int ms)
{
    int64_t end = clock_mono_ms() + ms;
    while (!drained && clock_mono_ms() < end)
        ev_run_once(rig_ev, 2);
}

/* on_room comes once for each time that the queue was over its mark, never inside a write, and may end the stream. */
static void test_room(void **st)
{
    (void)st;
    static char block[64 * KIB];
    struct client c;
    memset(block, 'r', sizeof block);
    for (int round = 0; round < 2; round++) {
        reset();
        rooms = 0;
        end_in_room = round == 1;
        rig_start(NULL);
        client_open(&c);
        client_send(&c, GET("/stream"));
        EXPECT(&c, "\r\n\r\n");
        assert_int_equal(http_stream_write(live, "small", 5), RC_OK);
        turn(10);
        assert_int_equal(rooms, 0);
        int rc = RC_OK, before = 0;
        for (int k = 0; k < 2 && live; k++) {
            while ((rc = http_stream_write(live, block, sizeof block)) == RC_OK) {
            }
            assert_int_equal(rooms, before);
            assert_int_equal(rc, RC_LIMIT);
            for (int64_t end = clock_mono_ms() + 10000; rooms == before && clock_mono_ms() < end;) {
                (void)client_recv(&c);
                ev_run_once(rig_ev, 1);
            }
            before = rooms;
        }
        assert_int_equal(rooms, round == 0 ? 2 : 1);
        if (live)
            http_stream_end(live);
        assert_true(client_wait_close(&c));
        client_close(&c);
        rig_stop();
    }
    end_in_room = false;
}

static void test_drain(void **st)
{
    (void)st;
    struct client idle, busy, part, stream;
    reset();
    drained = 0;
    with_drain = end_in_drain = true;
    rig_start(NULL);
    client_open(&idle);
    client_send(&idle, GET("/x"));
    EXPECT(&idle, "ok ");
    client_open(&busy);
    client_send(&busy, GET("/hold"));
    client_open(&part);
    client_send(&part, "GET /part HTTP/1.1\r\n");
    client_open(&stream);
    client_send(&stream, GET("/stream"));
    EXPECT(&stream, "\r\n\r\n");
    http_server_drain(rig_server, 5000, on_drained, &drained);
    assert_true(client_wait_close(&idle));
    assert_true(client_wait_close(&stream));
    SAYS(&stream, ": bye\n\n\r\n0\r\n\r\n");
    assert_int_equal(drains, 1);
    assert_int_equal(closes, 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);        /* no new ones */
    assert_int_equal(connect(fd, (struct sockaddr *)&rig_addr.ss, rig_addr.len), -1);
    close(fd);
    turn(20);
    assert_int_equal(drained, 0);
    client_send(&part, "host: a\r\n\r\n");
    EXPECT(&part, "ok ");
    SAYS(&part, "connection: close\r\n");
    assert_true(client_wait_close(&part));
    struct buf b;
    buf_init(&b, 100);
    buf_puts(&b, "finished");
    http_reply(held, &(struct http_reply){ .status = 200, .body = &b });
    EXPECT(&busy, "finished");
    assert_true(client_wait_close(&busy));
    client_close(&busy);
    client_close(&idle);
    client_close(&part);
    client_close(&stream);
    wait_drained(3000);
    assert_int_equal(drained, 1);
    turn(20);
    assert_int_equal(drained, 1);
    rig_stop();
}

static void test_drain_grace(void **st)
{
    (void)st;
    struct client busy, stream;
    reset();
    drained = 0;
    end_in_close = true;
    rig_start(NULL);
    client_open(&busy);
    client_send(&busy, GET("/hold"));
    client_open(&stream);
    client_send(&stream, GET("/stream"));           /* without on_drain: until the grace is over */
    EXPECT(&stream, "\r\n\r\n");
    turn(10);
    int64_t t0 = clock_mono_ms();
    http_server_drain(rig_server, 100, on_drained, &drained);
    http_server_drain(rig_server, 1, on_drained, &drained);         /* a second call changes nothing */
    wait_drained(3000);
    assert_true(drained == 1 && clock_mono_ms() - t0 >= 100);
    assert_true(client_wait_close(&stream));
    SAYS(&stream, ": the server is going away\n\n\r\n0\r\n\r\n");
    assert_int_equal(closes, 1);
    assert_true(client_wait_close(&busy));
    assert_true(http_req_gone(held));
    http_reply(held, &(struct http_reply){ .status = 200 });
    client_close(&busy);
    client_close(&stream);
    rig_stop();

    reset();                                        /* nothing to wait for; the callback frees the server's owner's things later */
    drained = 0;
    rig_start(NULL);
    http_server_drain(rig_server, 1000, on_drained, &drained);
    assert_int_equal(drained, 0);
    wait_drained(500);
    assert_int_equal(drained, 1);
    rig_stop();

    reset();                                        /* a server that is freed tells its streams */
    rig_start(NULL);
    client_open(&stream);
    client_send(&stream, GET("/stream"));
    EXPECT(&stream, "\r\n\r\n");
    rig_stop();
    assert_int_equal(closes, 1);
    http_stream_end(live);
    client_close(&stream);
}

/* ---- TLS ---- */

static void with_tls(struct http_server_conf *c)
{
    struct err e;
    struct tls_conf t = { .cert_file = cert.cert, .key_file = cert.key };
    assert_int_equal(tls_ctx_server(&t, &c->tls, &e), RC_OK);
    c->limits.head_ms = 300;
}

struct tls_client { struct client raw; struct tls_ctx *ctx; struct tls *tls; struct buf got; bool closed; };

static void tls_client_open(struct tls_client *t)
{
    struct err e;
    struct tls_conf c = { .ca_file = cert.cert };
    unsigned want;
    client_open(&t->raw);
    buf_init(&t->got, 64 * MIB);
    t->closed = false;
    assert_int_equal(tls_ctx_client(&c, &t->ctx, &e), RC_OK);
    assert_int_equal(tls_connect(t->ctx, t->raw.fd, "127.0.0.1", &t->tls, &e), RC_OK);
    int rc = RC_AGAIN;
    for (int i = 0; i < 1000 && rc == RC_AGAIN; i++) {
        rc = tls_handshake(t->tls, &want, &e);
        ev_run_once(rig_ev, 1);
    }
    assert_int_equal(rc, RC_OK);
}

static void tls_pump(struct tls_client *t)
{
    static char b[65536];
    size_t n;
    unsigned want;
    int rc;
    ev_run_once(rig_ev, 1);
    while ((rc = tls_read(t->tls, b, sizeof b, &n, &want, NULL)) == RC_OK)
        buf_put(&t->got, b, n);
    t->closed = t->closed || rc == RC_CLOSED;
}

static void tls_send(struct tls_client *t, const char *p, size_t n)
{
    while (n) {
        size_t k = 0;
        unsigned want;
        int rc = tls_write(t->tls, p, n, &k, &want, NULL);
        assert_true(rc == RC_OK || rc == RC_AGAIN);
        if (rc == RC_OK) {
            p += k;
            n -= k;
        }
        tls_pump(t);
    }
}

static bool tls_wait(struct tls_client *t, const char *needle)
{
    int64_t end = clock_mono_ms() + 10000;
    while (clock_mono_ms() < end && !(buf_len(&t->got) && memmem(buf_data(&t->got), buf_len(&t->got), needle, strlen(needle))))
        tls_pump(t);
    return memmem(buf_data(&t->got), buf_len(&t->got), needle, strlen(needle)) != NULL;
}

static void tls_client_close(struct tls_client *t)
{
    tls_free(t->tls);
    tls_ctx_free(t->ctx);
    client_close(&t->raw);
    buf_done(&t->got);
}

static void test_tls(void **st)
{
    (void)st;
    struct tls_client t;
    reset();
    rig_start(with_tls);
    tls_client_open(&t);
    tls_send(&t, GET("/a"), sizeof(GET("/a")) - 1);
    assert_true(tls_wait(&t, "ok "));
    buf_clear(&t.got);
    static char body[3000001];                      /* larger than every buffer, both ways */
    memset(body, 'z', sizeof body - 1);
    memcpy(body + sizeof body - 6, "END!!", 5);
    char head[128];
    snprintf(head, sizeof head, "POST /e HTTP/1.1\r\nhost: a\r\ncontent-length: %zu\r\n\r\n", sizeof body - 1);
    tls_send(&t, head, strlen(head));
    tls_send(&t, body, sizeof body - 1);
    assert_true(tls_wait(&t, "END!!"));
    assert_true(buf_len(&t.got) > sizeof body);
    buf_clear(&t.got);
    struct buf many;                                /* pipelined, so that bytes wait inside OpenSSL */
    buf_init(&many, 1 * MIB);
    for (int i = 0; i < 300; i++)
        buf_puts(&many, GET("/p"));
    buf_puts(&many, GET("/hold") GET("/p"));
    tls_send(&t, buf_data(&many), buf_len(&many));
    int64_t end = clock_mono_ms() + 5000;
    while (!held && clock_mono_ms() < end)
        tls_pump(&t);
    assert_non_null(held);
    buf_clear(&t.got);
    http_reply(held, &(struct http_reply){ .status = 200, .headers = "x-held: 1\r\n" });
    assert_true(tls_wait(&t, "x-held"));
    assert_true(tls_wait(&t, "ok "));
    buf_done(&many);
    buf_clear(&t.got);
    tls_send(&t, GET("/stream"), sizeof(GET("/stream")) - 1);
    assert_true(tls_wait(&t, "\r\n\r\n"));
    (void)http_stream_write(live, "data: 1\n\n", 9);
    assert_true(tls_wait(&t, "data: 1\n\n"));
    http_stream_end(live);
    end = clock_mono_ms() + 3000;
    while (!t.closed && clock_mono_ms() < end)
        tls_pump(&t);
    assert_true(t.closed);                          /* by close_notify, not by a cut */
    tls_client_close(&t);
    struct client plain;                            /* no TLS at all; nothing at all */
    client_open(&plain);
    client_send(&plain, GET("/x"));
    assert_true(client_wait_close(&plain));
    client_close(&plain);
    client_open(&plain);
    assert_true(client_wait_close(&plain));
    client_close(&plain);
    struct tls_ctx *ctx = rig_conf.tls;
    rig_stop();
    tls_ctx_free(ctx);
}

static int setup(void **st)
{
    (void)st;
    (void)signal(SIGPIPE, SIG_IGN);
    test_cert_make(&cert, "DNS:localhost,IP:127.0.0.1", 2);
    return 0;
}

static int teardown(void **st)
{
    (void)st;
    test_cert_remove(&cert);
    return 0;
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_stream), cmocka_unit_test(test_stream_variants), cmocka_unit_test(test_stream_hang_up), cmocka_unit_test(test_back_pressure), cmocka_unit_test(test_room),
        cmocka_unit_test(test_drain), cmocka_unit_test(test_drain_grace), cmocka_unit_test(test_tls),
    };
    return cmocka_run_group_tests(t, setup, teardown);
}
