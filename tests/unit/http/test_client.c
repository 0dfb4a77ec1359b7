#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/str.h"
#include "http/client.h"
#include "http/peer.h"
#include "tls/certs.h"

#define OK_ANSWER "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

static struct ev *ev;

/* What came of a call. */
struct got {
    int dones, rc, status, heads;
    char body[256]; size_t body_n;
    char stream[256]; size_t stream_n;
    char err[ERR_MSG_MAX], header_x[64];
    int data_rc;                             /* returned by on_data */
    struct http_call *call;                  /* cancelled from inside when cancel_at is reached */
    enum { NEVER, IN_HEAD, IN_DATA, IN_DONE } cancel_at;
};

static void on_done(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    struct got *g = ctx;
    g->dones++;
    g->rc = rc;
    if (rc == RC_OK) {
        g->status = r->status;
        g->body_n = buf_len(r->body);
        memcpy(g->body, buf_data(r->body), g->body_n < sizeof g->body - 1 ? g->body_n : sizeof g->body - 1);
        const struct slice *x = http_find(r->head, "x-test");
        if (x)
            (void)snprintf(g->header_x, sizeof g->header_x, "%.*s", (int)x->n, x->p);
    } else {
        assert_non_null(e);
        assert_int_equal(e->rc, rc);
        (void)str_copy(g->err, sizeof g->err, e->msg);
    }
    if (g->cancel_at == IN_DONE)
        http_call_cancel(g->call);
}

static void on_head(void *ctx, const struct http_head *h)
{
    struct got *g = ctx;
    g->heads++;
    g->status = h->status;
    if (g->cancel_at == IN_HEAD)
        http_call_cancel(g->call);
}

static int on_data(void *ctx, const char *p, size_t n)
{
    struct got *g = ctx;
    assert_true(n > 0);
    if (g->stream_n + n < sizeof g->stream)
        memcpy(g->stream + g->stream_n, p, n);
    g->stream_n += n;
    if (g->cancel_at == IN_DATA)
        http_call_cancel(g->call);
    return g->data_rc;
}

static void run_until(int *flag, int want, int max_ms)
{
    int64_t end = ev_now_ms(ev) + max_ms;
    while (*flag < want && ev_now_ms(ev) < end)
        ev_run_once(ev, 20);
}

static void turns(int ms)
{
    int zero = 0;
    run_until(&zero, 1, ms);
}

static struct http_client *client(const struct http_client_conf *c)
{
    struct http_client *cl = NULL;
    struct err e;
    static const struct http_client_conf none;
    assert_int_equal(http_client_new(ev, c ? c : &none, &cl, &e), RC_OK);
    return cl;
}

static void start(struct http_client *cl, struct got *g, const char *url, const struct http_request *like)
{
    struct http_request r = like ? *like : (struct http_request){ 0 };
    r.method = r.method ? r.method : "GET";
    r.url = url;
    r.on_done = on_done;
    r.ctx = g;
    g->call = http_call_start(cl, &r);
    assert_non_null(g->call);
    assert_int_equal(g->dones, 0);           /* never from inside */
}

static void call(struct http_client *cl, struct got *g, const char *url, const struct http_request *like)
{
    start(cl, g, url, like);
    run_until(&g->dones, 1, 5000);
    assert_int_equal(g->dones, 1);
}

static char *url_of(const struct peer *p, const char *scheme, const char *path)
{
    static char s[256];
    (void)snprintf(s, sizeof s, "%s://127.0.0.1:%u%s", scheme, p->port, path);
    return s;
}

/* ---- answers, table-driven: each on a fresh connection, whole and byte by byte ---- */

struct answer { const char *method, *bytes; int rc, status; const char *body; bool reused; };
static const struct answer answers[] = {
    { "GET", OK_ANSWER, RC_OK, 200, "ok", true },
    { "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", RC_OK, 200, "", true },
    { "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", RC_OK, 200, "ok", true },
    { "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\nx: y\r\n\r\n", RC_OK, 200, "ok", true },
    { "GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" OK_ANSWER, RC_OK, 200, "ok", true },
    { "GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", RC_OK, 200, "ok", false },
    { "GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", RC_OK, 200, "ok", false },
    { "GET", "HTTP/1.1 200 OK\r\n\r\nto the end", RC_OK, 200, "to the end", false },
    { "GET", "HTTP/1.1 204 No Content\r\n\r\n", RC_OK, 204, "", true },
    { "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", RC_OK, 304, "", true },
    { "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", RC_OK, 200, "", true },
    { "GET", "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone", RC_OK, 404, "gone", true },
    { "GET", "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", RC_OK, 500, "", true },
    { "GET", OK_ANSWER "more", RC_OK, 200, "ok", false },
    { "GET", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", RC_CLOSED, 0, NULL, false },
    { "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", RC_CLOSED, 0, NULL, false },
    { "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", RC_PROTO, 0, NULL, false },
    { "GET", "HTTP/1.1 200 OK\r\nContent-", RC_CLOSED, 0, NULL, false },
    { "GET", "nonsense\r\n\r\n", RC_PROTO, 0, NULL, false },
    { "GET", "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", RC_PROTO, 0, NULL, false },
    { "GET", "", RC_CLOSED, 0, NULL, false },
};
static const struct answer *now;
static bool bytewise;

static void serve_answer(struct peer *p, int fd, int no)
{
    struct peer_io io = { .fd = fd };
    (void)no;
    while (peer_request(p, &io)) {
        const char *b = now->bytes;
        if (!bytewise)
            peer_say(&io, b);
        for (; bytewise && *b; b++) {
            peer_write(&io, b, 1);
            usleep(300);
        }
        bool ends = !now->reused;
        if (ends)
            return;
    }
}

static void test_answers(void **state)
{
    (void)state;
    for (int pass = 0; pass < 2; pass++) {
        bytewise = pass;
        for (size_t i = 0; i < COUNT_OF(answers); i++) {
            struct peer p = { .parallel = true };
            now = &answers[i];
            peer_start(&p, serve_answer);
            struct http_client *cl = client(NULL);
            struct http_request like = { .method = now->method };
            int rounds = now->rc == RC_OK ? 2 : 1;
            for (int k = 0; k < rounds; k++) {
                struct got g = { 0 };
                call(cl, &g, url_of(&p, "http", "/x"), &like);
                if (bytewise)
                    turns(15);           /* what comes after an answer must spoil the connection, not the next answer */
                if (g.rc != now->rc || g.status != now->status || (now->body && !str_eq(g.body, now->body)))
                    fail_msg("answer %zu pass %d round %d: rc %s status %d body '%s' err '%s'", i, pass, k, rc_name(g.rc), g.status, g.body, g.err);
            }
            int want = now->rc == RC_OK && !now->reused ? 2 : 1;
            assert_int_equal(p.conns, want);
            http_client_free(cl);
            peer_stop(&p);
        }
    }
}

/* ---- what is sent ---- */

static void serve_ok(struct peer *p, int fd, int no)
{
    struct peer_io io = { .fd = fd };
    (void)no;
    while (peer_request(p, &io))
        peer_say(&io, "HTTP/1.1 200 OK\r\nX-Test: yes\r\nContent-Length: 2\r\n\r\nok");
}

static void test_request(void **state)
{
    (void)state;
    struct peer p = { .parallel = true };
    peer_start(&p, serve_ok);
    struct http_client_conf conf = { .user_agent = "tester/1" };
    struct http_client *cl = client(&conf);
    struct secret *key = secret_new("sk-1", 4);
    struct got a = { 0 }, b = { 0 }, c = { 0 };
    call(cl, &a, url_of(&p, "http", "/a?b=c"), NULL);
    struct http_request post = { .method = "POST", .bearer = key, .headers = "content-type: text/x\r\nx-a: b\r\n", .body = "hello", .body_n = 5 };
    call(cl, &b, url_of(&p, "http", "/p"), &post);
    struct http_request empty = { .method = "POST" };
    call(cl, &c, url_of(&p, "http", ""), &empty);
    assert_string_equal(a.header_x, "yes");
    char want[512];
    (void)snprintf(want, sizeof want, "GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nUser-Agent: tester/1\r\n\r\n", p.port);
    assert_string_equal(p.seen[0], want);
    (void)snprintf(want, sizeof want, "POST /p HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nUser-Agent: tester/1\r\nAuthorization: Bearer sk-1\r\n"
                   "content-type: text/x\r\nx-a: b\r\nContent-Length: 5\r\n\r\nhello", p.port);
    assert_string_equal(p.seen[1], want);
    (void)snprintf(want, sizeof want, "POST / HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nUser-Agent: tester/1\r\nContent-Length: 0\r\n\r\n", p.port);
    assert_string_equal(p.seen[2], want);
    assert_int_equal(p.conns, 1);
    secret_free(key);
    http_client_free(cl);
    peer_stop(&p);
}

/* On a kept connection the request has left when http_call_start() returns: no turn of the loop is needed. */
static void test_warm_send(void **state)
{
    (void)state;
    struct peer p = { .parallel = true };
    peer_start(&p, serve_ok);
    struct http_client *cl = client(NULL);
    struct got a = { 0 }, b = { 0 };
    call(cl, &a, url_of(&p, "http", "/1"), NULL);
    start(cl, &b, url_of(&p, "http", "/2"), NULL);
    for (int i = 0; i < 200 && p.requests < 2; i++)
        usleep(10000);
    assert_int_equal(p.requests, 2);
    run_until(&b.dones, 1, 5000);
    assert_int_equal(b.status, 200);
    http_client_free(cl);
    peer_stop(&p);
}

static void test_big_bodies(void **state)
{
    (void)state;
    struct peer p = { .parallel = true };
    peer_start(&p, serve_ok);
    struct http_client *cl = client(NULL);
    size_t n = 8 * MIB;
    char *body = malloc(n);
    memset(body, 'b', n);
    struct got g = { 0 };
    struct http_request r = { .method = "POST", .body = body, .body_n = n };
    call(cl, &g, url_of(&p, "http", "/"), &r);
    assert_int_equal(g.status, 200);
    assert_int_equal(strlen(strstr(p.seen[0], "\r\n\r\n") + 4), n);
    free(body);
    http_client_free(cl);
    peer_stop(&p);
}

/* ---- resending ---- */

static int closes;                           /* connections, from the first, that close instead of answering their last request */
static const char *last_words;

static void serve_closing(struct peer *p, int fd, int no)
{
    struct peer_io io = { .fd = fd };
    if (no == 0 && peer_request(p, &io))
        peer_say(&io, OK_ANSWER);
    if (!peer_request(p, &io))
        return;
    if (no < closes)
        peer_say(&io, last_words);
    else
        peer_say(&io, OK_ANSWER);
}

static void test_resend(void **state)
{
    (void)state;
    static const struct { int closes; const char *words; int rc, requests, conns; } rows[] = {
        { 0, "", RC_OK, 2, 1 },                  /* nothing closes */
        { 1, "", RC_OK, 3, 2 },                  /* the kept one closes: sent again, unseen by the caller */
        { 2, "", RC_CLOSED, 3, 2 },              /* the fresh one closes too: not a third time */
        { 1, "HTTP/1.1 2", RC_CLOSED, 2, 1 },    /* some answer came: the request may have acted */
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct peer p = { .parallel = true };
        closes = rows[i].closes;
        last_words = rows[i].words;
        peer_start(&p, serve_closing);
        struct http_client *cl = client(NULL);
        struct got a = { 0 }, b = { 0 };
        struct http_request post = { .method = "POST", .body = "x", .body_n = 1 };
        call(cl, &a, url_of(&p, "http", "/"), NULL);
        assert_int_equal(a.rc, RC_OK);
        call(cl, &b, url_of(&p, "http", "/"), &post);
        assert_int_equal(b.rc, rows[i].rc);
        assert_int_equal(p.requests, rows[i].requests);
        assert_int_equal(p.conns, rows[i].conns);
        http_client_free(cl);
        peer_stop(&p);
    }
}

static void serve_once(struct peer *p, int fd, int no)
{
    struct peer_io io = { .fd = fd };
    (void)no;
    if (peer_request(p, &io))
        peer_say(&io, OK_ANSWER);
}

/* The peer closes a kept connection while nobody uses it: the next call dials at once and sends once. */
static void test_idle_close(void **state)
{
    (void)state;
    struct peer p = { .parallel = true };
    peer_start(&p, serve_once);
    struct http_client *cl = client(NULL);
    for (int i = 0; i < 3; i++) {
        struct got g = { 0 };
        call(cl, &g, url_of(&p, "http", "/"), NULL);
        assert_int_equal(g.rc, RC_OK);
        turns(50);
    }
    assert_int_equal(p.requests, 3);
    assert_int_equal(p.conns, 3);
    http_client_free(cl);
    peer_stop(&p);
}

static void test_pool_limits(void **state)
{
    (void)state;
    struct peer p = { .parallel = true };
    peer_start(&p, serve_ok);
    struct http_client_conf conf = { .idle_max = 2, .idle_ms = 150 };
    struct http_client *cl = client(&conf);
    struct got g[4] = { 0 };
    for (int i = 0; i < 4; i++)
        start(cl, &g[i], url_of(&p, "http", "/"), NULL);
    for (int i = 0; i < 4; i++)
        run_until(&g[i].dones, 1, 5000);
    assert_int_equal(p.conns, 4);            /* at once: four connections, two are kept */
    struct got h[3] = { 0 };
    for (int i = 0; i < 3; i++)
        start(cl, &h[i], url_of(&p, "http", "/"), NULL);
    for (int i = 0; i < 3; i++)
        run_until(&h[i].dones, 1, 5000);
    assert_int_equal(p.conns, 5);
    turns(400);                              /* older than idle_ms: dropped */
    struct got k = { 0 };
    call(cl, &k, url_of(&p, "http", "/"), NULL);
    assert_int_equal(p.conns, 6);
    http_client_free(cl);
    peer_stop(&p);
}

/* ---- limits and times ---- */

static void serve_silent(struct peer *p, int fd, int no)
{
    struct peer_io io = { .fd = fd };
    char b[8];
    (void)no;
    if (peer_request(p, &io))
        while (peer_read(&io, b, sizeof b) > 0)
            ;
}

static void serve_stream_then_silent(struct peer *p, int fd, int no)
{
    struct peer_io io = { .fd = fd };
    char b[8];
    (void)no;
    if (!peer_request(p, &io))
        return;
    peer_say(&io, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
    usleep(120000);
    peer_say(&io, "6\r\nsecond\r\n");
    while (peer_read(&io, b, sizeof b) > 0)
        ;
}

static void test_times(void **state)
{
    (void)state;
    struct peer p = { .parallel = true };
    peer_start(&p, serve_silent);
    struct http_client *cl = client(NULL);
    struct got g = { 0 };
    struct http_request r = { .timeout_ms = 80 };
    call(cl, &g, url_of(&p, "http", "/"), &r);
    assert_int_equal(g.rc, RC_TIMEOUT);
    struct got h = { 0 };
    r.on_data = on_data;
    call(cl, &h, url_of(&p, "http", "/"), &r);
    assert_int_equal(h.rc, RC_TIMEOUT);
    peer_stop(&p);
    peer_start(&p, serve_stream_then_silent);
    struct got s = { 0 };
    struct http_request t = { .timeout_ms = 1000, .stall_ms = 200, .on_head = on_head, .on_data = on_data };
    int64_t from = ev_now_ms(ev);
    call(cl, &s, url_of(&p, "http", "/"), &t);
    assert_int_equal(s.rc, RC_TIMEOUT);
    assert_string_equal(s.stream, "firstsecond");
    assert_true(ev_now_ms(ev) - from >= 300);      /* the silence counts from the last byte */
    http_client_free(cl);
    peer_stop(&p);
}

static void test_body_max(void **state)
{
    (void)state;
    static const struct { size_t max; int rc; } rows[] = { { 1, RC_TOO_LARGE }, { 2, RC_OK }, { 3, RC_OK } };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct peer p = { .parallel = true };
        peer_start(&p, serve_ok);
        struct http_client *cl = client(NULL);
        struct got g = { 0 };
        struct http_request r = { .body_max = rows[i].max };
        call(cl, &g, url_of(&p, "http", "/"), &r);
        assert_int_equal(g.rc, rows[i].rc);
        http_client_free(cl);
        peer_stop(&p);
    }
}

static void test_refused(void **state)
{
    (void)state;
    static const char *const bad[] = { "", "ftp://x/", "http://", "http://x:0/", "http://x:70000/", "http://a b/", "http://u:p@h/", "http://h/#f", "https:/x",
                                       "http://[::1/", "http://[zz]/", "http://h?x", "http://h\r\nx: y/" };
    struct http_client *cl = client(NULL);
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        struct got g = { 0 };
        call(cl, &g, bad[i], NULL);
        assert_int_equal(g.rc, RC_INVALID);
        assert_true(g.err[0] != 0);
    }
    struct peer p = { 0 };
    peer_start(&p, serve_ok);
    peer_stop(&p);
    struct got g = { 0 };
    call(cl, &g, url_of(&p, "http", "/"), NULL);     /* nobody listens there now */
    assert_true(g.rc == RC_IO || g.rc == RC_CLOSED);
    http_client_free(cl);
}

/* ---- streaming ---- */

static void serve_stream(struct peer *p, int fd, int no)
{
    struct peer_io io = { .fd = fd };
    (void)no;
    if (!peer_request(p, &io))
        return;
    peer_say(&io, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
    usleep(30000);
    peer_say(&io, "3\r\ntwo\r\n0\r\n\r\n");
    (void)peer_request(p, &io);
}

static void serve_refusal(struct peer *p, int fd, int no)
{
    struct peer_io io = { .fd = fd };
    (void)no;
    while (peer_request(p, &io))
        peer_say(&io, "HTTP/1.1 403 No\r\nContent-Length: 3\r\n\r\nwhy");
}

static const struct http_request streaming = { .on_head = on_head, .on_data = on_data };

static void test_streaming(void **state)
{
    (void)state;
    struct peer p = { .parallel = true };
    struct http_client *cl = client(NULL);
    struct got g = { 0 }, refused = { 0 }, ended = { .data_rc = RC_LIMIT };
    peer_start(&p, serve_stream);
    call(cl, &g, url_of(&p, "http", "/"), &streaming);
    assert_int_equal(g.rc, RC_OK);
    assert_int_equal(g.heads, 1);
    assert_string_equal(g.stream, "onetwo");
    assert_int_equal(g.body_n, 0);
    peer_stop(&p);
    turns(20);
    peer_start(&p, serve_stream);
    call(cl, &ended, url_of(&p, "http", "/"), &streaming);
    assert_int_equal(ended.rc, RC_LIMIT);
    assert_string_equal(ended.stream, "one");
    peer_stop(&p);
    peer_start(&p, serve_refusal);
    call(cl, &refused, url_of(&p, "http", "/"), &streaming);     /* not 2xx: told whole, at the end */
    assert_int_equal(refused.rc, RC_OK);
    assert_int_equal(refused.status, 403);
    assert_int_equal(refused.heads, 0);
    assert_int_equal(refused.stream_n, 0);
    assert_string_equal(refused.body, "why");
    http_client_free(cl);
    peer_stop(&p);
}

static void test_cancel(void **state)
{
    (void)state;
    struct peer p = { .parallel = true };
    struct http_client *cl = client(NULL);
    peer_start(&p, serve_stream);
    struct got at_once = { 0 }, in_head = { .cancel_at = IN_HEAD }, in_data = { .cancel_at = IN_DATA }, in_done = { .cancel_at = IN_DONE };
    start(cl, &at_once, url_of(&p, "http", "/"), NULL);
    http_call_cancel(at_once.call);
    struct got bad = { 0 };
    start(cl, &bad, "nonsense", NULL);
    http_call_cancel(bad.call);
    start(cl, &in_head, url_of(&p, "http", "/"), &streaming);
    start(cl, &in_data, url_of(&p, "http", "/"), &streaming);
    start(cl, &in_done, url_of(&p, "http", "/"), &streaming);
    turns(300);
    assert_int_equal(at_once.dones + bad.dones + in_head.dones + in_data.dones, 0);
    assert_int_equal(in_head.heads, 1);
    assert_int_equal(in_head.stream_n, 0);
    assert_string_equal(in_data.stream, "one");
    assert_int_equal(in_done.dones, 1);
    struct got running = { 0 }, opening = { 0 };
    start(cl, &running, url_of(&p, "http", "/"), &streaming);
    turns(20);
    start(cl, &opening, url_of(&p, "http", "/"), &streaming);
    http_client_free(cl);                    /* ends them without a word */
    turns(50);
    assert_int_equal(running.dones + opening.dones, 0);
    http_call_cancel(NULL);
    http_client_free(NULL);
    peer_stop(&p);
}

/* A server may refuse a large body before it has all of it, answer and close. */
static void serve_early(struct peer *p, int fd, int no)
{
    struct peer_io io = { .fd = fd };
    char b[1024];
    (void)no;
    (void)p;
    if (peer_read(&io, b, sizeof b) > 0)
        peer_say(&io, "HTTP/1.1 413 Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig");
    usleep(100000);
}

static void test_early_answer(void **state)
{
    (void)state;
    struct peer p = { .parallel = true };
    peer_start(&p, serve_early);
    struct http_client *cl = client(NULL);
    size_t n = 16 * MIB;
    char *body = calloc(1, n);
    struct got g = { 0 };
    struct http_request r = { .method = "POST", .body = body, .body_n = n };
    call(cl, &g, url_of(&p, "http", "/"), &r);
    assert_int_equal(g.rc, RC_OK);
    assert_int_equal(g.status, 413);
    free(body);
    http_client_free(cl);
    peer_stop(&p);
}

/* ---- TLS and proxies ---- */

static struct test_cert cert;

static SSL_CTX *server_ctx(void)
{
    SSL_CTX *c = SSL_CTX_new(TLS_server_method());
    if (SSL_CTX_use_certificate_file(c, cert.cert, SSL_FILETYPE_PEM) != 1 || SSL_CTX_use_PrivateKey_file(c, cert.key, SSL_FILETYPE_PEM) != 1)
        abort();
    return c;
}

static void serve_tls_on(struct peer *p, int fd)
{
    struct peer_io io = { .fd = fd, .ssl = SSL_new(p->ctx) };
    SSL_set_fd(io.ssl, fd);
    if (SSL_accept(io.ssl) == 1)
        while (peer_request(p, &io))
            peer_say(&io, OK_ANSWER);
    SSL_free(io.ssl);
}

static void serve_tls(struct peer *p, int fd, int no)
{
    (void)no;
    serve_tls_on(p, fd);
}

/* A proxy that is also the origin: answers CONNECT, then speaks TLS itself; anything else is answered directly. */
static int connect_status = 200;

static void serve_proxy(struct peer *p, int fd, int no)
{
    struct peer_io io = { .fd = fd };
    char s[128];
    (void)no;
    if (!peer_request(p, &io))
        return;
    if (strncmp(p->seen[p->requests - 1], "CONNECT ", 8) != 0) {
        do
            peer_say(&io, OK_ANSWER);
        while (peer_request(p, &io));
        return;
    }
    (void)snprintf(s, sizeof s, "HTTP/1.1 %d Said\r\n\r\n", connect_status);
    peer_say(&io, s);
    if (connect_status == 200)
        serve_tls_on(p, fd);
}

static void test_tls(void **state)
{
    (void)state;
    struct peer p = { .ctx = server_ctx(), .parallel = true };
    peer_start(&p, serve_tls);
    struct http_client_conf conf = { .ca_file = cert.cert };
    struct http_client *good = client(&conf), *bad = client(NULL);
    for (int i = 0; i < 3; i++) {
        struct got g = { 0 };
        call(good, &g, url_of(&p, "https", "/"), NULL);
        assert_int_equal(g.rc, RC_OK);
        assert_string_equal(g.body, "ok");
        turns(20);                           /* session tickets arrive while idle: they must not cost the connection */
    }
    assert_int_equal(p.conns, 1);
    struct got g = { 0 };
    call(bad, &g, url_of(&p, "https", "/"), NULL);       /* the system does not know this authority */
    assert_true(g.rc < 0 && g.rc != RC_TIMEOUT);
    assert_int_equal(p.requests, 3);
    size_t n = 4 * MIB;
    char *body = malloc(n);
    memset(body, 'x', n);
    struct got big = { 0 };
    struct http_request r = { .method = "POST", .body = body, .body_n = n };
    call(good, &big, url_of(&p, "https", "/"), &r);
    assert_int_equal(big.status, 200);
    free(body);
    http_client_free(good);
    http_client_free(bad);
    peer_stop(&p);
    SSL_CTX_free(p.ctx);
}

static void test_proxy(void **state)
{
    (void)state;
    struct peer p = { .ctx = server_ctx(), .parallel = true };
    char proxy[128], want[300];
    peer_start(&p, serve_proxy);
    (void)snprintf(proxy, sizeof proxy, "http://us%%65r:pw@127.0.0.1:%u", p.port);
    struct http_client_conf conf = { .ca_file = cert.cert, .http_proxy = proxy, .https_proxy = proxy, .no_proxy = "direct.test" };
    struct http_client *cl = client(&conf);
    struct got plain = { 0 }, tls = { 0 }, again = { 0 }, refused = { 0 }, direct = { 0 };
    call(cl, &plain, "http://origin.test/x?y", NULL);
    assert_int_equal(plain.rc, RC_OK);
    assert_non_null(strstr(p.seen[0], "GET http://origin.test/x?y HTTP/1.1\r\nHost: origin.test\r\n"));
    assert_non_null(strstr(p.seen[0], "Proxy-Authorization: Basic dXNlcjpwdw==\r\n"));
    call(cl, &tls, "https://localhost/z", NULL);
    assert_int_equal(tls.rc, RC_OK);
    assert_non_null(strstr(p.seen[1], "CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\nProxy-Authorization: Basic dXNlcjpwdw==\r\n"));
    assert_non_null(strstr(p.seen[2], "GET /z HTTP/1.1\r\nHost: localhost\r\n"));
    assert_null(strstr(p.seen[2], "Proxy-Authorization"));
    call(cl, &again, "https://localhost/z", NULL);       /* the same tunnel */
    assert_int_equal(p.conns, 2);
    connect_status = 407;
    call(cl, &refused, "https://other.test/", NULL);
    assert_int_equal(refused.rc, RC_CLOSED);
    assert_non_null(strstr(refused.err, "407"));
    connect_status = 200;
    int before = p.requests;
    struct http_request quick = { .timeout_ms = 2000 };
    call(cl, &direct, "http://direct.test:1/", &quick);  /* no proxy: fails by itself, and the proxy hears nothing */
    assert_true(direct.rc < 0);
    assert_int_equal(p.requests, before);
    http_client_free(cl);
    struct http_client *none = NULL;
    struct err e;
    (void)snprintf(want, sizeof want, "https://127.0.0.1:%u", p.port);
    struct http_client_conf wrong = { .https_proxy = want };
    assert_int_equal(http_client_new(ev, &wrong, &none, &e), RC_UNSUPPORTED);
    wrong.https_proxy = "proxy:3128";
    assert_int_equal(http_client_new(ev, &wrong, &none, &e), RC_INVALID);
    peer_stop(&p);
    SSL_CTX_free(p.ctx);
}

static int setup(void **state)
{
    struct err e;
    (void)state;
    test_cert_make(&cert, "DNS:localhost,IP:127.0.0.1", 10);
    return ev_new(&ev, &e);
}

static int teardown(void **state)
{
    (void)state;
    ev_free(ev);
    test_cert_remove(&cert);
    return 0;
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_answers), cmocka_unit_test(test_request), cmocka_unit_test(test_warm_send), cmocka_unit_test(test_big_bodies),
        cmocka_unit_test(test_resend), cmocka_unit_test(test_idle_close), cmocka_unit_test(test_pool_limits), cmocka_unit_test(test_times),
        cmocka_unit_test(test_body_max), cmocka_unit_test(test_refused), cmocka_unit_test(test_streaming), cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_early_answer), cmocka_unit_test(test_tls), cmocka_unit_test(test_proxy),
    };
    return cmocka_run_group_tests(t, setup, teardown);
}
