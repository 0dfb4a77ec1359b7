#include "http/rig.h"

static struct http_req *held[64];
static int n_held;
static struct http_req *delayed;

static void reply_text(struct http_req *r, const char *text)
{
    struct buf b;
    buf_init(&b, 1 * MIB);
    buf_puts(&b, text);
    struct http_reply a = { .status = 200, .content_type = "text/plain", .headers = "x-extra: 1\r\n", .body = &b };
    http_reply(r, &a);
    assert_int_equal(buf_len(&b), 0);
}

static void echo(struct http_req *r)
{
    struct buf b;
    struct slice p = http_req_path(r), q = http_req_query(r), d = http_req_body(r);
    buf_init(&b, 64 * MIB);
    buf_printf(&b, "[%s %.*s ? %.*s ", http_method_name(http_req_head(r)->method), (int)p.n, p.p, (int)q.n, q.p);
    buf_put(&b, d.p, d.n);
    buf_puts(&b, "]");
    http_reply(r, &(struct http_reply){ .status = 200, .body = &b });
}

static void *answer_later(void *arg)
{
    usleep(20000);
    struct http_req *r = arg;
    char *mine = arena_strdup(http_req_arena(r), "from a thread");
    reply_text(r, mine);
    return NULL;
}

static pthread_t threads[64];
static int n_threads;

static void on_request(void *ctx, struct http_req *r)
{
    (void)ctx;
    struct slice p = http_req_path(r);
    if (slice_eq(p, "/hold")) {
        held[n_held++] = r;
    } else if (slice_eq(p, "/thread")) {
        assert_int_equal(pthread_create(&threads[n_threads++], NULL, answer_later, r), 0);
    } else if (slice_eq(p, "/delayed")) {
        delayed = r;
    } else if (slice_eq(p, "/none")) {
        http_reply(r, &(struct http_reply){ .status = 204 });
    } else if (slice_eq(p, "/close")) {
        http_reply(r, &(struct http_reply){ .status = 200, .close = true });
    } else if (slice_eq(p, "/cut")) {
        struct buf b;
        buf_init(&b, 4);
        buf_puts(&b, "too long for it");
        http_reply(r, &(struct http_reply){ .status = 200, .body = &b });
    } else if (slice_eq(p, "/big")) {
        struct buf b;
        buf_init(&b, 64 * MIB);
        for (int i = 0; i < 200000; i++)
            buf_printf(&b, "%019d\n", i);
        http_reply(r, &(struct http_reply){ .status = 200, .body = &b });
    } else {
        echo(r);
    }
}

static void join_threads(void)
{
    while (n_threads)
        pthread_join(threads[--n_threads], NULL);
}

#define GET(path) "GET " path " HTTP/1.1\r\nhost: a\r\n\r\n"

static void test_simple(void **st)
{
    (void)st;
    struct client c;
    rig_start(NULL);
    client_open(&c);
    client_send(&c, GET("/a/b?x=1&y=%20"));
    EXPECT(&c, "[GET /a/b ? x=1&y=%20 ]");
    SAYS(&c, "HTTP/1.1 200 OK\r\n");
    SAYS(&c, "content-length: 23\r\n");
    SAYS(&c, "\r\ndate: ");
    SAYS(&c, " GMT\r\n");
    assert_null(strstr(buf_data(&c.got), "server:"));
    assert_null(strstr(buf_data(&c.got), "connection:"));
    buf_clear(&c.got);
    client_send(&c, "POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello");     /* the same connection */
    EXPECT(&c, "[POST /p ?  hello]");
    buf_clear(&c.got);
    client_send(&c, "\r\n" GET("http://h:1/abs?q"));
    EXPECT(&c, "[GET /abs ? q ]");
    buf_clear(&c.got);
    client_send(&c, GET("http://h?q") "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n");
    EXPECT(&c, "[OPTIONS * ?  ]");
    SAYS(&c, "[GET / ? q ]");
    buf_clear(&c.got);
    client_send(&c, GET("/none"));
    EXPECT(&c, "HTTP/1.1 204 No Content\r\n");
    turn(10);
    client_recv(&c);
    assert_null(strstr(buf_data(&c.got), "content-length"));
    buf_clear(&c.got);
    client_send(&c, GET("/cut"));
    EXPECT(&c, "HTTP/1.1 500");
    SAYS(&c, "content-length: 0\r\n");
    buf_clear(&c.got);
    client_send(&c, "HEAD /h HTTP/1.1\r\nhost: a\r\n\r\n" GET("/after"));
    EXPECT(&c, "/after");
    SAYS(&c, "content-length: 13\r\n");
    assert_null(strstr(buf_data(&c.got), "HEAD"));
    assert_int_equal(http_server_conns(rig_server), 1);
    client_close(&c);
    turn(20);
    assert_int_equal(http_server_conns(rig_server), 0);
    rig_stop();
}

static void test_close_and_versions(void **st)
{
    (void)st;
    static const struct { const char *in; bool closes; const char *says; } t[] = {
        { "GET / HTTP/1.0\r\n\r\n", true, "connection: close\r\n" }, { "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", false, "connection: keep-alive\r\n" },
        { "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", true, "connection: close\r\n" }, { GET("/close"), true, "connection: close\r\n" },
        { GET("/"), false, "200 OK" }, { GET("/close") GET("/never"), true, "200 OK" },
    };
    rig_start(NULL);
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct client c;
        client_open(&c);
        client_send(&c, t[i].in);
        EXPECT(&c, t[i].says);
        EXPECT(&c, "\r\n\r\n");
        if (t[i].closes)
            assert_true(client_wait_close(&c));
        else
            turn(30), client_recv(&c), assert_false(c.closed);
        assert_null(strstr(buf_data(&c.got), "never"));
        client_close(&c);
        turn(20);
        assert_int_equal(http_server_conns(rig_server), 0);
    }
    rig_stop();
}

static void test_bytewise(void **st)
{
    (void)st;
    static const char in[] = "POST /one HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nabcd"
                             "POST /two HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nefg\r\n1\r\nh\r\n0\r\nT: t\r\n\r\n" GET("/three");
    rig_start(NULL);
    for (size_t step = 1; step < sizeof in; step = step < 4 ? step + 1 : step * 3) {
        struct client c;
        client_open(&c);
        for (size_t at = 0; at < sizeof in - 1; at += step) {
            client_send_n(&c, in + at, sizeof in - 1 - at < step ? sizeof in - 1 - at : step);
            ev_run_once(rig_ev, 1);
        }
        EXPECT(&c, "[GET /three ?  ]");
        SAYS(&c, "[POST /one ?  abcd]");
        SAYS(&c, "[POST /two ?  efgh]");
        client_close(&c);
    }
    rig_stop();
}

static void test_pipelining(void **st)
{
    (void)st;
    struct client c;
    rig_start(NULL);
    client_open(&c);
    n_held = 0;
    client_send(&c, GET("/hold") GET("/second") GET("/thread") GET("/third") GET("/hold"));
    turn(30);
    client_recv(&c);
    assert_int_equal(n_held, 1);                    /* one at a time */
    assert_int_equal(buf_len(&c.got), 0);
    reply_text(held[0], "first");
    EXPECT(&c, "[GET /third ?  ]");
    const char *g = buf_data(&c.got);
    assert_true(strstr(g, "first") < strstr(g, "/second") && strstr(g, "/second") < strstr(g, "from a thread") && strstr(g, "from a thread") < strstr(g, "/third"));
    turn(10);
    assert_int_equal(n_held, 2);
    reply_text(held[1], "fifth");
    EXPECT(&c, "fifth");
    join_threads();
    client_close(&c);

    client_open(&c);                                /* very many, written without waiting */
    struct buf many;
    buf_init(&many, 16 * MIB);
    for (int i = 0; i < 5000; i++)
        buf_printf(&many, "GET /n%d HTTP/1.1\r\nhost: a\r\n\r\n", i);
    client_send_n(&c, buf_data(&many), buf_len(&many));
    EXPECT(&c, "/n4999 ");
    assert_int_equal(count(buf_data(&c.got), "HTTP/1.1 200"), 5000);
    buf_done(&many);
    client_close(&c);
    rig_stop();
}

/* While a request waits, the server reads only so far ahead. */
static void test_read_ahead_is_bounded(void **st)
{
    (void)st;
    struct client c;
    rig_start(NULL);
    client_open(&c);
    n_held = 0;
    client_send(&c, GET("/hold"));
    turn(10);
    size_t sent = 0;
    int small = 32 * 1024;
    setsockopt(c.fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    for (int idle = 0; idle < 50;) {
        static const char req[] = GET("/ahead");
        ssize_t n = send(c.fd, req + sent % (sizeof req - 1), sizeof req - 1 - sent % (sizeof req - 1), MSG_NOSIGNAL);
        if (n > 0) {
            sent += (size_t)n;
            idle = 0;
        } else {
            idle++;
            ev_run_once(rig_ev, 1);
        }
        assert_true(sent < 64 * MIB);               /* the socket buffers fill up: nobody reads */
    }
    size_t whole = sent / (sizeof(GET("/ahead")) - 1);
    reply_text(held[0], "first");
    int64_t end = clock_mono_ms() + 60000;
    size_t answers = 0;
    while (answers < whole && clock_mono_ms() < end) {
        ev_run_once(rig_ev, 1);
        client_recv(&c);
        for (const char *g = buf_data(&c.got); buf_len(&c.got); g = buf_data(&c.got)) {
            answers += g[0] == '[';                 /* one in each body */
            buf_consume(&c.got, 1);
        }
    }
    assert_int_equal(answers, whole);
    client_close(&c);
    rig_stop();
}

static int64_t limit_ten(void *ctx, const struct http_head *h)
{
    (void)ctx;
    return h->method == HTTP_PUT ? -1 : h->method == HTTP_PATCH ? 0 : 10;
}
static void small_limits(struct http_server_conf *c)
{
    c->limits.body_max = 20;
    c->body_limit = limit_ten;
}

static void test_refusals(void **st)
{
    (void)st;
    static char huge[HTTP_HEAD_MAX + 1000], target[HTTP_TARGET_MAX + 200], headers[3000];
    memset(huge, 'a', sizeof huge - 1);
    memcpy(huge, "GET / HTTP/1.1\r\nx: ", 19);
    memset(target, 'a', sizeof target - 1);
    memcpy(target, "GET /", 5);
    memcpy(target + sizeof target - 30, " HTTP/1.1\r\nhost: a\r\n\r\n", 23);
    strcat(headers, "GET / HTTP/1.1\r\nhost: a\r\n");
    for (int i = 0; i < HTTP_HEADERS_MAX; i++)
        strcat(headers, "x: y\r\n");
    strcat(headers, "\r\n");
#define P(m, n, body) m " / HTTP/1.1\r\nhost: a\r\ncontent-length: " n "\r\n\r\n" body
#define CH(body) "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" body
    const struct { const char *in; int status; } t[] = {
        { "GET / HTTP/1.1\r\n\r\n", 400 }, { "nonsense\r\n\r\n", 400 }, { "GET / HTTP/2.0\r\n\r\n", 400 }, { GET("bad"), 400 }, { huge, 431 }, { target, 431 }, { headers, 431 },
        { "FROB / HTTP/1.1\r\nhost: a\r\n\r\n", 501 }, { "CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n", 501 },
        { P("POST", "10", "0123456789"), 200 }, { P("POST", "11", "01234567890"), 413 }, { P("POST", "99999999999", "01234567890"), 413 }, { P("PUT", "20", "01234567890123456789"), 200 },
        { P("PUT", "21", ""), 413 }, { P("PATCH", "0", ""), 200 }, { P("PATCH", "1", "x"), 413 },
        { CH("a\r\n0123456789\r\n0\r\n\r\n"), 200 }, { CH("b\r\n01234567890\r\n0\r\n\r\n"), 413 }, { CH("5\r\n01234\r\n5\r\n56789\r\n1\r\nx"), 413 }, { CH("5 \r\n"), 400 },
        { CH("5\r\n01234X"), 400 }, { "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\nabc", 400 },
    };
    rig_start(small_limits);
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct client c;
        char want[64];
        client_open(&c);
        client_send(&c, t[i].in);
        snprintf(want, sizeof want, "HTTP/1.1 %d ", t[i].status);
        if (!client_wait(&c, want) || !client_wait(&c, "\r\n\r\n"))
            fail_msg("row %zu: %.100s -> %.200s", i, t[i].in, buf_data(&c.got));
        if (t[i].status != 200) {
            SAYS(&c, "connection: close\r\n");
            SAYS(&c, "content-type: application/json\r\n");
            SAYS(&c, "\"why\":");
            assert_true(client_wait_close(&c));
            assert_int_equal(count(buf_data(&c.got), "HTTP/1.1 "), 1);
        }
        client_close(&c);
    }
    turn(30);
    assert_int_equal(http_server_conns(rig_server), 0);
    rig_stop();
}

/* A client that sends a large body reads the refusal, not a reset. */
static void test_refusal_arrives(void **st)
{
    (void)st;
    struct client c;
    rig_start(small_limits);
    client_open(&c);
    client_send(&c, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5000000\r\n\r\n");
    static char junk[5000000];
    client_send_n(&c, junk, sizeof junk);
    assert_true(client_wait_close(&c));
    SAYS(&c, "413");
    client_close(&c);
    rig_stop();
}

static void test_expect(void **st)
{
    (void)st;
    struct client c;
    rig_start(small_limits);
    client_open(&c);
    client_send(&c, "POST /e HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
    EXPECT(&c, "HTTP/1.1 100 Continue\r\n\r\n");
    client_send(&c, "hello");
    EXPECT(&c, "[POST /e ?  hello]");
    buf_clear(&c.got);
    client_send(&c, "POST /e HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\nhello");    /* did not wait: no need to say it */
    EXPECT(&c, "[POST /e ?  hello]");
    assert_null(strstr(buf_data(&c.got), "100 Continue"));
    buf_clear(&c.got);
    client_send(&c, "POST /e HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 11\r\n\r\n");
    EXPECT(&c, "HTTP/1.1 413");
    assert_null(strstr(buf_data(&c.got), "100 Continue"));
    client_close(&c);
    rig_stop();
}

static void short_times(struct http_server_conf *c)
{
    c->limits.head_ms = 80;
    c->limits.body_ms = 80;
    c->limits.idle_ms = 120;
    c->limits.write_ms = 150;
}

static void test_slow_clients(void **st)
{
    (void)st;
    rig_start(short_times);
    struct client c[6];
    static const char *const in[5] = {
        "", "GET / HT", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc", GET("/ok"), "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc",
    };
    static const char *const says[5] = { "", "HTTP/1.1 408", "HTTP/1.1 408", "200 OK", "HTTP/1.1 408" };
    int64_t t0 = clock_mono_ms();
    for (int i = 0; i < 5; i++) {
        client_open(&c[i]);
        client_send(&c[i], in[i]);
    }
    for (int i = 0; i < 5; i++) {
        assert_true(client_wait_close(&c[i]));
        SAYS(&c[i], says[i]);
        if (!says[i][0])
            assert_int_equal(buf_len(&c[i].got), 0);
        client_close(&c[i]);
    }
    assert_true(clock_mono_ms() - t0 >= 80 && clock_mono_ms() - t0 < 3000);
    client_open(&c[0]);                             /* one byte at a time does not extend the head's time */
    static const char slow[] = "GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\n";
    t0 = clock_mono_ms();
    for (size_t i = 0; i < sizeof slow - 1 && !c[0].closed; i++) {
        client_send_n(&c[0], slow + i, 1);
        turn(10);
        client_recv(&c[0]);
    }
    assert_true(client_wait_close(&c[0]));
    SAYS(&c[0], "408");
    assert_true(clock_mono_ms() - t0 < 3000);
    client_close(&c[0]);
    rig_stop();
}

static void test_slow_reader(void **st)
{
    (void)st;
    struct client c;
    rig_start(short_times);
    client_open(&c);
    int small = 4096;
    setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    client_send(&c, GET("/big"));
    int64_t end = clock_mono_ms() + 5000;
    while (http_server_conns(rig_server) && clock_mono_ms() < end)
        ev_run_once(rig_ev, 10);                    /* reads nothing */
    assert_int_equal(http_server_conns(rig_server), 0);
    client_close(&c);
    client_open(&c);                                /* slow, but reading: stays */
    small = 128 * 1024;                             /* smaller ones run into the kernel's own delays */
    setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    client_send(&c, GET("/big"));
    size_t want = 200000 * 20, got = 0;
    char piece[40000];
    int64_t t0 = clock_mono_ms();
    while (got < want && clock_mono_ms() - t0 < 20000) {
        turn(5);                                    /* about half a second in all: several times write_ms */
        ssize_t n = recv(c.fd, piece, sizeof piece, 0);
        assert_true(n > 0 || errno == EAGAIN);
        if (n > 0) {
            got += (size_t)n;
            buf_clear(&c.got);
            buf_put(&c.got, piece, (size_t)n);
        }
    }
    turn(20);
    client_recv(&c);
    EXPECT(&c, "0000000000000199999\n");
    client_close(&c);
    rig_stop();
}

static void few(struct http_server_conf *c)
{
    c->limits.conns_max = 2;
    c->limits.bodies_max = 1000;
}

static void test_conns_max(void **st)
{
    (void)st;
    struct client c[4];
    rig_start(few);
    for (int i = 0; i < 4; i++) {
        client_open(&c[i]);
        client_send(&c[i], GET("/x"));
    }
    EXPECT(&c[0], "/x");
    EXPECT(&c[1], "/x");
    turn(30);
    assert_int_equal(http_server_conns(rig_server), 2);
    assert_false(client_recv(&c[2]));
    client_close(&c[0]);
    EXPECT(&c[2], "/x");                            /* waited in the backlog */
    client_close(&c[1]);
    EXPECT(&c[3], "/x");
    client_close(&c[2]);
    client_close(&c[3]);
    rig_stop();
}

/* Connections that say nothing, or half of something, or no more after an answer, hold all places: a client that asks is heard all the same, one that waits
 * for its answer keeps its place. */
static void test_silent_ones_make_room(void **st)
{
    (void)st;
    struct client asks, c[4];
    rig_start(few);
    n_held = 0;
    client_open(&asks);
    client_send(&asks, "POST /hold HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nb");
    client_open(&c[0]);
    client_send(&c[0], "GET /x HTTP/1.1\r\nho");
    turn(20);
    assert_int_equal(n_held, 1);
    for (int i = 1; i < 4; i++) {
        client_open(&c[i]);
        client_send(&c[i], GET("/x"));
        EXPECT(&c[i], "/x");                        /* in the place of the one before, which is idle by now or has never come to a request */
        assert_int_equal(http_server_conns(rig_server), 2);
    }
    assert_int_equal(n_held, 1);
    reply_text(held[0], "done");
    EXPECT(&asks, "done");
    client_close(&asks);
    for (int i = 0; i < 4; i++)
        client_close(&c[i]);
    turn(20);
    rig_stop();
}

static void test_bodies_max(void **st)
{
    (void)st;
    struct client c[3];
    static char body[801];
    memset(body, 'b', 800);
    rig_start(few);
    rig_stop();
    rig_start(few);
    n_held = 0;
    client_open(&c[0]);
    client_send(&c[0], "POST /hold HTTP/1.1\r\nhost: a\r\ncontent-length: 800\r\n\r\n");
    client_send(&c[0], body);
    turn(20);
    assert_int_equal(n_held, 1);
    client_open(&c[1]);
    client_send(&c[1], "POST /hold HTTP/1.1\r\nhost: a\r\ncontent-length: 800\r\n\r\n");
    client_send(&c[1], body);
    EXPECT(&c[1], "HTTP/1.1 503");
    SAYS(&c[1], "retry-after: ");
    assert_true(client_wait_close(&c[1]));
    client_close(&c[1]);
    reply_text(held[0], "done");                    /* gives its memory back */
    EXPECT(&c[0], "done");
    client_open(&c[1]);
    client_send(&c[1], "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 800\r\n\r\n");
    client_send(&c[1], body);
    EXPECT(&c[1], "bbbb");
    client_close(&c[0]);
    client_close(&c[1]);
    rig_stop();
}

static void test_hang_ups(void **st)
{
    (void)st;
    struct client c;
    rig_start(NULL);
    n_held = 0;
    client_open(&c);                                /* reset while the request is handled */
    client_send(&c, "POST /hold HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc");
    turn(10);
    assert_false(http_req_gone(held[0]));
    client_reset(&c);
    turn(20);
    assert_int_equal(http_server_conns(rig_server), 0);
    assert_true(http_req_gone(held[0]));
    assert_true(slice_eq(http_req_body(held[0]), "abc"));
    reply_text(held[0], "nobody hears it");
    client_open(&c);                                /* the same, answered by a thread */
    client_send(&c, GET("/thread"));
    turn(5);
    client_reset(&c);
    turn(5);
    join_threads();
    turn(20);
    client_open(&c);                                /* half-closed: still answered */
    client_send(&c, GET("/hold") GET("/second"));
    shutdown(c.fd, SHUT_WR);
    turn(20);
    assert_true(http_req_gone(held[1]));
    reply_text(held[1], "half");
    EXPECT(&c, "/second");
    assert_true(client_wait_close(&c));
    SAYS(&c, "half");
    client_close(&c);
    client_open(&c);                                /* in the middle of a head, of a body */
    client_send(&c, "GET /");
    client_close(&c);
    client_open(&c);
    client_send(&c, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc");
    client_reset(&c);
    client_open(&c);                                /* while a large answer is written */
    client_send(&c, GET("/big"));
    turn(5);
    client_reset(&c);
    turn(30);
    assert_int_equal(http_server_conns(rig_server), 0);
    rig_stop();
}

static void *answer_delayed(void *arg)
{
    reply_text(arg, "late");
    return NULL;
}

static int gone_calls;
static bool gone_answers;

static void on_gone(void *ctx)
{
    gone_calls++;
    if (gone_answers)
        reply_text(ctx, "into nothing");
}

static void test_watched_requests(void **st)
{
    (void)st;
    struct client c;
    struct buf body;
    rig_start(NULL);
    for (int i = 0; i < 6; i++) {                   /* reset, clean end, end that is answered from the callback; watched or no longer */
        n_held = 0;
        gone_calls = 0;
        gone_answers = i % 3 == 2;
        client_open(&c);
        client_send(&c, "POST /hold HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc");
        while (n_held == 0)
            turn(1);
        assert_int_equal(http_req_watch(held[0], on_gone, held[0]), RC_OK);
        if (i >= 3)
            assert_int_equal(http_req_watch(held[0], NULL, NULL), RC_OK);
        http_req_take_body(held[0], &body);
        assert_int_equal(http_req_body(held[0]).n, 0);
        turn(5);
        assert_int_equal(gone_calls, 0);
        if (i % 3 == 0)
            client_reset(&c);
        else
            client_close(&c);
        for (int64_t end = clock_mono_ms() + 10000; !gone_calls && i < 3 && clock_mono_ms() < end;)
            turn(1);
        turn(10);
        assert_int_equal(gone_calls, i < 3 ? 1 : 0);
        if (!gone_answers || i >= 3) {
            assert_int_equal(http_req_watch(held[0], on_gone, NULL), RC_CLOSED);
            reply_text(held[0], "nobody hears it");
        }
        assert_memory_equal(buf_data(&body), "abc", 3);
        buf_done(&body);
    }
    rig_stop();
}

static void test_free_before_answer(void **st)
{
    (void)st;
    struct client c;
    pthread_t th;
    rig_start(NULL);
    client_open(&c);
    delayed = NULL;
    client_send(&c, GET("/delayed"));
    turn(10);
    assert_non_null(delayed);
    http_server_free(rig_server);                   /* the server goes; the request lives on */
    assert_true(client_wait_close(&c));
    assert_true(http_req_gone(delayed));
    assert_int_equal(pthread_create(&th, NULL, answer_delayed, delayed), 0);
    pthread_join(th, NULL);
    turn(20);
    client_close(&c);
    ev_free(rig_ev);
}

static void test_large(void **st)
{
    (void)st;
    struct client c;
    rig_start(NULL);
    client_open(&c);
    struct buf b;
    buf_init(&b, 64 * MIB);
    buf_puts(&b, "POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 20000000\r\n\r\n");
    for (int i = 0; i < 1000000; i++)
        buf_printf(&b, "%019d\n", i);
    client_send_n(&c, buf_data(&b), buf_len(&b));
    EXPECT(&c, "0000000000000999999\n]");
    char *body = strstr(buf_data(&c.got), "?  ");
    assert_memory_equal(body + 3, strstr(buf_data(&b), "\r\n\r\n") + 4, 20000000);
    buf_done(&b);
    client_close(&c);
    rig_stop();
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_simple), cmocka_unit_test(test_close_and_versions), cmocka_unit_test(test_bytewise), cmocka_unit_test(test_pipelining),
        cmocka_unit_test(test_read_ahead_is_bounded), cmocka_unit_test(test_refusals), cmocka_unit_test(test_refusal_arrives), cmocka_unit_test(test_expect),
        cmocka_unit_test(test_slow_clients), cmocka_unit_test(test_slow_reader), cmocka_unit_test(test_conns_max), cmocka_unit_test(test_silent_ones_make_room), cmocka_unit_test(test_bodies_max),
        cmocka_unit_test(test_hang_ups), cmocka_unit_test(test_watched_requests), cmocka_unit_test(test_free_before_answer), cmocka_unit_test(test_large),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
