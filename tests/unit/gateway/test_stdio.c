#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/str.h"
#include "gateway/stdio_upstream.h"
#include "log/log.h"

/* ---- the front, as the upstream sees it ---- */

struct exchange {
    struct http_head head;
    struct upstream_call *call;
    char session[100];
    int status, failed;                  /* failed: by exchange_fail() */
    int64_t length;
    struct buf headers, body;
    size_t room;                         /* bytes that exchange_write() still takes */
    bool ended, has_body;
};

const struct http_head *exchange_head(const struct exchange *x) { return &x->head; }
const char *exchange_host(const struct exchange *x) { (void)x; return "docs.abc.tunnel.example"; }
bool exchange_has_body(const struct exchange *x) { return x->has_body; }
void exchange_want_body(struct exchange *x) { (void)x; }

void exchange_reply(struct exchange *x, int status, const char *headers, size_t n, int64_t length)
{
    assert_int_equal(x->status, 0);
    x->status = status;
    x->length = length;
    (void)buf_put(&x->headers, headers, n);
}

size_t exchange_write(struct exchange *x, const void *p, size_t n)
{
    assert_true(x->status && !x->ended && !x->failed);
    n = n < x->room ? n : x->room;
    x->room -= n;
    (void)buf_put(&x->body, p, n);
    return n;
}

void exchange_end(struct exchange *x)
{
    assert_true(x->status && !x->ended && !x->failed);
    assert_true(x->length < 0 || (size_t)x->length == buf_len(&x->body));
    x->ended = true;
}

void exchange_fail(struct exchange *x, int status, const struct err *why)
{
    assert_true(!x->ended && !x->failed && why->msg[0]);
    x->failed = status;
}

/* ---- the server: a program that does what the method says ---- */

static const char server[] =
    "import sys, os, json, time, signal\n"
    "def out(m): sys.stdout.write((m if isinstance(m, str) else json.dumps(m)) + '\\n'); sys.stdout.flush()\n"
    "held = []\n"
    "for line in sys.stdin:\n"
    "    m = json.loads(line); k = m.get('method'); i = m.get('id'); p = m.get('params') or {}\n"
    "    r = lambda v: out({'jsonrpc': '2.0', 'id': i, 'result': v})\n"
    "    if k == 'initialize': r({'protocolVersion': '2025-11-25'})\n"
    "    elif k == 'refuse' or (k == 'server/discover' and os.environ.get('OLD')): out({'jsonrpc': '2.0', 'id': i, 'error': {'code': -32601, 'message': 'no'}})\n"
    "    elif k == 'echo': r({'line': line.rstrip('\\n')})\n"
    "    elif k == 'pid': r(os.getpid())\n"
    "    elif k == 'env': r(dict(os.environ))\n"
    "    elif k == 'hold': held.append(i)\n"
    "    elif k == 'release': [out({'jsonrpc': '2.0', 'id': h, 'result': 'held'}) for h in reversed(held)]; held.clear(); r('ok')\n"
    "    elif k == 'progress': out({'jsonrpc': '2.0', 'method': 'notifications/progress', 'params': {'progressToken': p['_meta']['progressToken'], 'progress': 1}}); r('done')\n"
    "    elif k == 'ask': out({'jsonrpc': '2.0', 'id': 'srv-1', 'method': 'roots/list'}); held.append(i)\n"
    "    elif k == 'tell': out({'jsonrpc': '2.0', 'method': 'notifications/tools/list_changed'}); r('told')\n"
    "    elif k == 'later': out('\\n'.join(json.dumps(x) for x in [{'jsonrpc': '2.0', 'id': i, 'result': 'ok'}] + [{'method': 'notifications/later', 'params': {'n': n}} for n in p['n']]))\n"
    "    elif k == 'rubbish': out('hello world'); out('{\"jsonrpc\":\"2.0\",\"id\":99999,\"result\":1}'); print('to the log', file=sys.stderr); r('ok')\n"
    "    elif k == 'big': r('x' * p['n'])\n"
    "    elif k == 'flood': [out({'jsonrpc': '2.0', 'method': 'notifications/message', 'params': {'d': 'y' * 1000, 'n': n}}) for n in range(p['n'])]; r('flooded')\n"
    "    elif k == 'deaf': r('ok'); time.sleep(3600)\n"
    "    elif k == 'stubborn': signal.signal(signal.SIGTERM, signal.SIG_IGN); r('ok'); os.close(0); time.sleep(3600)\n"
    "    elif k == 'exit': sys.exit(7)\n"
    "    elif k == 'last_words': r('bye'); os._exit(0)\n"
    "    elif k is None and i == 'srv-1': out({'jsonrpc': '2.0', 'id': held.pop(), 'result': {'got': m['result']}})\n";

struct fixture { struct ev *ev; struct stdio_upstream *u; };

static void begin_with(struct fixture *f, struct stdio_conf c)
{
    static char *argv[] = { "/usr/bin/python3", "-uc", (char *)server, NULL };
    struct err e = { 0 };
    c.route = "docs";
    c.argv = argv;
    assert_int_equal(ev_new(&f->ev, &e), RC_OK);
    if (stdio_new(f->ev, &c, &f->u, &e) < 0)
        fail_msg("%s", e.msg);
}

static void begin(struct fixture *f) { begin_with(f, (struct stdio_conf){ 0 }); }

static void end(struct fixture *f)
{
    stdio_free(f->u);
    ev_free(f->ev);
}

static void turn(struct fixture *f) { ev_run_once(f->ev, 5); }
#define UNTIL(f, condition) do { for (int i_ = 0; i_ < 12000 && !(condition); i_++) turn(f); assert_true(condition); } while (0)
static bool over(const struct exchange *x) { return x->ended || x->failed; }

/* ---- requests ---- */

#define H(n, v) { { n, sizeof(n) - 1 }, { v, sizeof(v) - 1 } }

static void header(struct exchange *x, const char *name, const char *value)
{
    x->head.headers[x->head.n_headers++] = (struct http_header){ slice_of(name), slice_of(value) };
}

static struct exchange *prepare(enum http_method m, const char *session, const char *version)
{
    struct exchange *x = calloc(1, sizeof *x);
    x->head.method = m;
    x->head.target = SLICE("/mcp");
    x->room = SIZE_MAX / 2;
    buf_init(&x->headers, 64 * KIB);
    buf_init(&x->body, 64 * MIB);
    if (session)
        header(x, "Mcp-Session-Id", session);
    if (version)
        header(x, "MCP-Protocol-Version", version);
    return x;
}

static void go(struct fixture *f, struct exchange *x, const char *body)
{
    x->has_body = body != NULL;
    x->call = stdio_upstream_ops.start(f->u, x);
    assert_non_null(x->call);
    assert_false(over(x));                                       /* never inside start() */
    if (!body)
        return;
    size_t n = strlen(body);
    for (size_t at = 0; at < n;) {                               /* in odd pieces */
        size_t piece = n - at < 1000 ? n - at : 1000;
        at += stdio_upstream_ops.body(x->call, body + at, piece);
    }
    stdio_upstream_ops.body_end(x->call);
}

static struct exchange *start_post(struct fixture *f, const char *session, const char *body)
{
    struct exchange *x = prepare(HTTP_POST, session, NULL);
    header(x, "Content-Type", "application/json; charset=utf-8");
    header(x, "Accept", "application/json, text/event-stream");
    go(f, x, body);
    return x;
}

static void done(struct exchange *x)
{
    buf_done(&x->headers);
    buf_done(&x->body);
    free(x);
}

static struct exchange *post(struct fixture *f, const char *session, const char *body)
{
    struct exchange *x = start_post(f, session, body);
    UNTIL(f, over(x));
    return x;
}

static void expect(struct exchange *x, int status, const char *in_body)
{
    if (x->status != status || x->failed || (in_body && !strstr(buf_data(&x->body), in_body)))
        fail_msg("status %d failed %d body %s", x->status, x->failed, buf_data(&x->body));
    done(x);
}

static void session_of(const struct exchange *x, char out[100])
{
    const char *at = strstr(buf_data((struct buf *)&x->headers), "mcp-session-id: ");
    assert_non_null(at);
    size_t n = strcspn(at + 16, "\r");
    assert_true(n >= 32 && n < 100);
    memcpy(out, at + 16, n);
    out[n] = '\0';
}

#define INIT "{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"initialize\",\"params\":{\"protocolVersion\":\"2025-11-25\"}}"

static void open_session(struct fixture *f, char session[100])
{
    struct exchange *x = post(f, NULL, INIT);
    assert_non_null(strstr(buf_data(&x->headers), "content-type: application/json\r\n"));
    session_of(x, session);
    expect(x, 200, "2025-11-25");
    expect(post(f, session, "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}"), 202, NULL);
}

static struct exchange *start_get(struct fixture *f, const char *session)
{
    struct exchange *x = prepare(HTTP_GET, session, NULL);
    header(x, "Accept", "text/event-stream");
    go(f, x, NULL);
    UNTIL(f, x->status || x->failed);
    return x;
}

static void test_session(void **st)
{
    (void)st;
    struct fixture f;
    char a[100], b[100];
    begin(&f);
    open_session(&f, a);
    open_session(&f, b);
    assert_int_equal(stdio_procs(f.u), 2);
    struct exchange *pa = post(&f, a, "{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"method\":\"pid\"}"), *pb = post(&f, b, "{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"method\":\"pid\"}");
    assert_string_not_equal(buf_data(&pa->body), buf_data(&pb->body));       /* a process each */
    expect(pa, 200, "\"id\": \"x\"");
    expect(pb, 200, NULL);
    /* A body over several lines is one line to the process, otherwise untouched. */
    expect(post(&f, a, "{\n \"jsonrpc\": \"2.0\",\r\n \"id\": 18446744073709551617, \"method\": \"echo\", \"params\": {\"a\": 1.00}\n}"), 200,
           "\\\"jsonrpc\\\": \\\"2.0\\\",   \\\"id\\\": 18446744073709551617,");
    expect(post(&f, a, "{\"jsonrpc\":\"2.0\",\"id\":18446744073709551617,\"method\":\"echo\",\"params\":{\"a\":1.00}}"), 200, "1.00");
    struct exchange *del = prepare(HTTP_DELETE, a, NULL);
    go(&f, del, NULL);
    UNTIL(&f, over(del));
    expect(del, 200, NULL);
    expect(post(&f, a, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pid\"}"), 404, "Session not found");
    UNTIL(&f, stdio_procs(f.u) == 1);
    expect(post(&f, b, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pid\"}"), 200, NULL);
    end(&f);
}

static void test_concurrent(void **st)
{
    (void)st;
    struct fixture f;
    char s[100];
    begin(&f);
    open_session(&f, s);
    struct exchange *h1 = start_post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"hold\"}"), *h2 = start_post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":\"1\",\"method\":\"hold\"}");
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":1.0,\"method\":\"pid\"}"), 200, NULL);
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pid\"}"), 400, "out already");
    assert_false(over(h1) || over(h2));
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"release\"}"), 200, "ok");
    UNTIL(&f, over(h1) && over(h2));
    expect(h1, 200, "\"id\": 1,");                               /* a number and a string are two ids */
    expect(h2, 200, "\"id\": \"1\"");
    end(&f);
}

static void test_streams(void **st)
{
    (void)st;
    struct fixture f;
    char s[100];
    begin(&f);
    open_session(&f, s);
    struct exchange *x = post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"progress\",\"params\":{\"_meta\":{\"progressToken\":\"t\"}}}");
    assert_non_null(strstr(buf_data(&x->headers), "text/event-stream"));
    assert_true(x->length < 0 && str_prefix(buf_data(&x->body), "event: message\ndata: {\"jsonrpc\": \"2.0\", \"method\": \"notifications/progress\""));
    assert_true(str_suffix(buf_data(&x->body), "\"result\": \"done\"}\n\n"));
    done(x);
    /* A request of the server on the stream of the only request that is out; its answer in a POST of its own. */
    x = start_post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ask\"}");
    UNTIL(&f, strstr(buf_data(&x->body), "roots/list"));
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":\"srv-1\",\"result\":{\"roots\":[]}}"), 202, NULL);
    UNTIL(&f, over(x));
    expect(x, 200, "{\"got\": {\"roots\": []}}");
    /* With nobody waiting a message is kept for the GET stream, in order. */
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":11,\"method\":\"later\",\"params\":{\"n\":[1,2,3]}}"), 200, "ok");
    struct exchange *g = start_get(&f, s);
    UNTIL(&f, strstr(buf_data(&g->body), "\"n\": 3"));
    const char *one = strstr(buf_data(&g->body), "\"n\": 1"), *two = strstr(buf_data(&g->body), "\"n\": 2");
    assert_true(one && two && one < two);
    expect(start_get(&f, s), 409, "open already");
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":21,\"method\":\"later\",\"params\":{\"n\":[9]}}"), 200, NULL);
    UNTIL(&f, strstr(buf_data(&g->body), "\"n\": 9"));
    stdio_upstream_ops.cancel(g->call);
    done(g);
    g = start_get(&f, s);                                        /* the place is free again */
    struct exchange *del = prepare(HTTP_DELETE, s, NULL);
    go(&f, del, NULL);
    UNTIL(&f, over(del) && over(g));                             /* the stream ends with its session */
    assert_int_equal(g->failed, 0);
    done(g);
    done(del);
    end(&f);
}

static void test_crash(void **st)
{
    (void)st;
    struct fixture f;
    char s[100];
    begin(&f);
    open_session(&f, s);
    struct exchange *h = start_post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":\"held\",\"method\":\"hold\"}"), *g = start_get(&f, s);
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":5,\"method\":\"exit\"}"), 200, "exit status 7");
    UNTIL(&f, over(h) && over(g));
    expect(h, 200, "{\"jsonrpc\":\"2.0\",\"id\":\"held\",\"error\":{\"code\":-32603,");
    expect(g, 200, NULL);
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":6,\"method\":\"pid\"}"), 404, NULL);
    assert_int_equal(stdio_procs(f.u), 0);
    open_session(&f, s);                                         /* a fresh process */
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"last_words\"}"), 200, "bye");     /* written just before the end */
    UNTIL(&f, stdio_procs(f.u) == 0);
    end(&f);
}

static void test_rubbish(void **st)
{
    (void)st;
    struct fixture f;
    char s[100];
    begin(&f);
    open_session(&f, s);
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"rubbish\"}"), 200, "ok");
    static const struct { const char *body; int status; const char *say; } t[] = {
        { "{", 400, "-32700" }, { "[1,", 400, "-32700" }, { "[]", 400, "-32600" }, { "{\"id\":1}", 400, "-32600" }, { "\"x\"", 400, "-32600" },
        { "{\"jsonrpc\":\"2.0\",\"id\":null,\"method\":\"pid\"}", 400, "null" }, { "{\"id\":1,\"id\":2,\"method\":\"a\"}", 400, "twice" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++)
        expect(post(&f, s, t[i].body), t[i].status, t[i].say);
    expect(post(&f, NULL, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pid\"}"), 400, "Mcp-Session-Id");
    expect(post(&f, "unknown", "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pid\"}"), 404, "-32001");
    expect(post(&f, "unknown", INIT), 404, NULL);
    const struct { enum http_method m; const char *name, *value; int status; } h[] = {
        { HTTP_POST, "Content-Type", "text/plain", 415 }, { HTTP_POST, "Accept", "text/html", 406 }, { HTTP_POST, "Origin", "https://evil.example", 403 },
        { HTTP_POST, "MCP-Protocol-Version", "banana", 400 }, { HTTP_PUT, "X", "y", 405 }, { HTTP_GET, "Accept", "application/json", 406 },
    };
    for (size_t i = 0; i < COUNT_OF(h); i++) {
        struct exchange *x = prepare(h[i].m, s, NULL);
        header(x, h[i].name, h[i].value);
        if (strcmp(h[i].name, "Content-Type") != 0)
            header(x, "Content-Type", "application/json");
        go(&f, x, h[i].m == HTTP_GET ? NULL : "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pid\"}");
        UNTIL(&f, over(x));
        if (x->status != h[i].status)
            fail_msg("row %zu: %d %s", i, x->status, buf_data(&x->body));
        done(x);
    }
    struct exchange *x = prepare(HTTP_POST, s, NULL);            /* our own origin; no Accept */
    header(x, "Origin", "https://docs.abc.tunnel.example");
    header(x, "Content-Type", "application/json");
    go(&f, x, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pid\"}");
    UNTIL(&f, over(x));
    expect(x, 200, NULL);
    end(&f);
}

static void test_batch(void **st)
{
    (void)st;
    struct fixture f;
    char s[100];
    begin(&f);
    open_session(&f, s);
    struct exchange *x = post(&f, s, "[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pid\"},{\"jsonrpc\":\"2.0\",\"method\":\"n\"},{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"pid\"}]");
    assert_non_null(strstr(buf_data(&x->body), "\"id\": 1"));
    expect(x, 200, "\"id\": 2");
    expect(post(&f, s, "[{\"jsonrpc\":\"2.0\",\"method\":\"a\"},{\"jsonrpc\":\"2.0\",\"method\":\"b\"}]"), 202, NULL);
    expect(post(&f, s, "[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pid\"},{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pid\"}]"), 400, "out already");
    expect(post(&f, s, "[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pid\"}]"), 200, NULL);
    end(&f);
}

static void test_limits(void **st)
{
    (void)st;
    struct fixture f;
    char s[100], t[100];
    begin_with(&f, (struct stdio_conf){ .procs_max = 2, .line_max = 100000 });
    open_session(&f, s);
    open_session(&f, t);
    struct exchange *x = post(&f, NULL, INIT);
    assert_non_null(strstr(buf_data(&x->headers), "retry-after"));
    expect(x, 503, "All 2 processes");
    char *body = malloc(200000);
    size_t n = (size_t)sprintf(body, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pid\",\"params\":{\"a\":\"");
    memset(body + n, 'a', 100001);
    strcpy(body + n + 100001, "\"}}");
    expect(post(&f, s, body), 413, "100000");
    free(body);
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"big\",\"params\":{\"n\":99900}}"), 200, "xxxx");
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"big\",\"params\":{\"n\":300000}}"), 200, "larger than");
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":4,\"method\":\"pid\"}"), 200, NULL);     /* and it goes on */
    end(&f);
}

static void test_slow_client(void **st)
{
    (void)st;
    struct fixture f;
    char s[100];
    begin(&f);
    open_session(&f, s);
    struct exchange *x = prepare(HTTP_POST, s, NULL);
    header(x, "Content-Type", "application/json");
    x->room = 5000;                                              /* the client takes this much and then stops */
    go(&f, x, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"flood\",\"params\":{\"n\":5000}}");
    UNTIL(&f, x->room == 0);
    for (int i = 0; i < 100; i++)
        turn(&f);
    assert_false(over(x));
    for (int i = 0; i < 100000 && !over(x); i++) {
        x->room += 100000;
        stdio_upstream_ops.resume(x->call);
        turn(&f);
    }
    assert_true(x->ended);
    size_t n = 0;
    for (const char *p = buf_data(&x->body); (p = strstr(p, "data: ")) != NULL; p++)
        n++;
    assert_int_equal(n, 5001);                                   /* nothing was lost */
    done(x);
    end(&f);
}

static void test_gone_client(void **st)
{
    (void)st;
    struct fixture f;
    char s[100];
    begin(&f);
    open_session(&f, s);
    struct exchange *x = start_post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"hold\"}");
    turn(&f);
    stdio_upstream_ops.cancel(x->call);
    done(x);
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"release\"}"), 200, "ok");       /* the late answer reaches nobody */
    x = prepare(HTTP_POST, s, NULL);
    x->has_body = true;
    x->call = stdio_upstream_ops.start(f.u, x);
    (void)stdio_upstream_ops.body(x->call, "{\"js", 4);
    stdio_upstream_ops.cancel(x->call);                          /* in the middle of the body */
    done(x);
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"pid\"}"), 200, NULL);
    x = start_post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":4,\"method\":\"hold\"}");
    stdio_free(f.u);                                             /* the end of everything with a request out */
    assert_true(x->ended);
    expect(x, 200, "-32603");
    ev_free(f.ev);
}

static void test_idle(void **st)
{
    (void)st;
    struct fixture f;
    char s[100];
    begin_with(&f, (struct stdio_conf){ .idle_ms = 50 });
    open_session(&f, s);
    struct exchange *g = start_get(&f, s);                       /* an open stream is not idle */
    for (int i = 0; i < 60; i++)
        turn(&f);
    assert_int_equal(stdio_procs(f.u), 1);
    assert_false(over(g));
    stdio_upstream_ops.cancel(g->call);
    done(g);
    UNTIL(&f, stdio_procs(f.u) == 0);
    expect(post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pid\"}"), 404, NULL);
    end(&f);
}

static void test_stop(void **st)
{
    (void)st;
    struct fixture f;
    char s[100], t[100];
    begin(&f);
    open_session(&f, s);
    open_session(&f, t);
    expect(post(&f, t, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"deaf\"}"), 200, "ok");
    struct exchange *h = start_post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"hold\"}");
    turn(&f);
    stdio_stop(f.u);
    UNTIL(&f, over(h));
    expect(h, 200, "stopping");
    expect(post(&f, NULL, INIT), 503, "stopping");
    UNTIL(&f, stdio_procs(f.u) == 0);                            /* one by its end of input, one by SIGTERM */
    end(&f);
}

/* ---- 2026-07-28 ---- */

static struct exchange *start_modern(struct fixture *f, const char *method, const char *name, const char *body)
{
    struct exchange *x = prepare(HTTP_POST, NULL, "2026-07-28");
    header(x, "Content-Type", "application/json");
    header(x, "Accept", "application/json, text/event-stream");
    if (method)
        header(x, "Mcp-Method", method);
    if (name)
        header(x, "Mcp-Name", name);
    go(f, x, body);
    return x;
}

static struct exchange *modern(struct fixture *f, const char *method, const char *name, const char *body)
{
    struct exchange *x = start_modern(f, method, name, body);
    UNTIL(f, over(x));
    return x;
}

#define META "\"_meta\":{\"io.modelcontextprotocol/protocolVersion\":\"2026-07-28\"}"
#define MODERN(id, method) "{\"jsonrpc\":\"2.0\",\"id\":" id ",\"method\":\"" method "\",\"params\":{" META "}}"

static void test_stateless(void **st)
{
    (void)st;
    struct fixture f;
    begin(&f);
    struct exchange *a = modern(&f, "pid", NULL, MODERN("1", "pid")), *b = modern(&f, "pid", NULL, MODERN("1", "pid"));
    assert_null(strstr(buf_data(&a->headers), "mcp-session-id"));
    assert_string_equal(buf_data(&a->body), buf_data(&b->body));             /* one after the other: the same process */
    expect(a, 200, NULL);
    expect(b, 200, NULL);
    assert_int_equal(stdio_procs(f.u), 1);
    a = start_modern(&f, "hold", NULL, MODERN("1", "hold"));
    b = start_modern(&f, "hold", NULL, MODERN("1", "hold"));                 /* the same id from somebody else: another process */
    UNTIL(&f, stdio_procs(f.u) == 2);
    expect(modern(&f, "pid", NULL, MODERN("2", "pid")), 200, NULL);
    assert_int_equal(stdio_procs(f.u), 2);
    expect(modern(&f, "release", NULL, MODERN("3", "release")), 200, "ok");
    UNTIL(&f, over(a));
    assert_false(over(b));
    expect(a, 200, "held");
    stdio_upstream_ops.cancel(b->call);
    done(b);
    expect(modern(&f, "refuse", NULL, MODERN("4", "refuse")), 404, "-32601");
    expect(modern(&f, "tell", NULL, MODERN("5", "tell")), 200, "told");
    expect(modern(&f, NULL, NULL, "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/cancelled\",\"params\":{\"requestId\":1}}"), 202, NULL);
    struct exchange *g = prepare(HTTP_GET, NULL, "2026-07-28");
    go(&f, g, NULL);
    UNTIL(&f, over(g));
    expect(g, 405, NULL);
    end(&f);
}

static void test_mirrored_headers(void **st)
{
    (void)st;
    struct fixture f;
    begin(&f);
    static const char call[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"gr\\u00fc\xc3\x9f\"," META "}}";
    static const char old_meta[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pid\",\"params\":{\"_meta\":{\"io.modelcontextprotocol/protocolVersion\":\"2026-08-01\"}}}";
    const struct { const char *method, *name, *body, *say; } t[] = {
        { NULL, NULL, MODERN("1", "pid"), "Mcp-Method" }, { "other", NULL, MODERN("1", "pid"), "Mcp-Method" }, { "tools/call", NULL, call, "Mcp-Name" },
        { "tools/call", "x", call, "Mcp-Name" }, { "tools/call", "=?base64?eA==?=", call, "Mcp-Name" }, { "pid", NULL, old_meta, "MCP-Protocol-Version" },
        { "pid", NULL, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pid\"}", "MCP-Protocol-Version" },
        { "pid", NULL, "[" MODERN("1", "pid") "]", "single" }, { "pid", NULL, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":1}", "single" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++)
        expect(modern(&f, t[i].method, t[i].name, t[i].body), 400, t[i].say);
    assert_int_equal(stdio_procs(f.u), 0);
    struct exchange *x = start_modern(&f, "tools/call", "=?base64?Z3LDvMOf?=", call);      /* accepted: it is out now */
    UNTIL(&f, stdio_procs(f.u) == 1);
    assert_false(over(x));
    stdio_upstream_ops.cancel(x->call);
    done(x);
    expect(post(&f, NULL, MODERN("1", "pid")), 400, "-32020");               /* the header is missing altogether */
    end(&f);
}

static void test_old_server(void **st)
{
    (void)st;
    struct fixture f;
    char *env[] = { "OLD=1", NULL }, s[100];
    begin_with(&f, (struct stdio_conf){ .env = env });
    expect(modern(&f, "server/discover", NULL, MODERN("1", "server/discover")), 404, "-32601");
    UNTIL(&f, stdio_procs(f.u) == 0);                            /* no process is kept for nothing ... */
    expect(modern(&f, "server/discover", NULL, MODERN("1", "server/discover")), 404, "-32601");
    assert_int_equal(stdio_procs(f.u), 0);                       /* ... nor started again to hear the same */
    open_session(&f, s);
    end(&f);
}

static void test_environment(void **st)
{
    (void)st;
    struct fixture f;
    char *env[] = { "A=1", "B=x y", NULL }, s[100];
    setenv("GATEWAY_SECRET", "do-not-leak", 1);
    begin_with(&f, (struct stdio_conf){ .env = env });
    open_session(&f, s);
    struct exchange *x = post(&f, s, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"env\"}");
    assert_null(strstr(buf_data(&x->body), "do-not-leak"));
    assert_non_null(strstr(buf_data(&x->body), "\"PATH\""));
    expect(x, 200, "\"A\": \"1\", \"B\": \"x y\"");
    end(&f);
}

static void test_configuration(void **st)
{
    (void)st;
    struct ev *ev = NULL;
    struct err e;
    struct stdio_upstream *u = NULL;
    assert_int_equal(ev_new(&ev, &e), RC_OK);
    char *none[] = { NULL }, *missing[] = { "/no/such/program", NULL }, *unknown[] = { "no-such-program-anywhere", NULL }, *good[] = { "sh", "-c", "cat", NULL };
    char *bad[] = { "=x", NULL }, *bad2[] = { "secretvalue", NULL }, *path[] = { "PATH=/nowhere", NULL }, *other[] = { "A=1", NULL };
    const struct { struct stdio_conf c; int rc; } t[] = {
        { { .argv = NULL }, RC_INVALID }, { { .argv = none }, RC_INVALID }, { { .argv = missing }, RC_NOT_FOUND }, { { .argv = unknown }, RC_NOT_FOUND },
        { { .argv = good, .env = bad }, RC_INVALID }, { { .argv = good, .env = bad2 }, RC_INVALID }, { { .argv = good, .env = path }, RC_NOT_FOUND },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        int rc = stdio_new(ev, &t[i].c, &u, &e);
        if (rc != t[i].rc || strstr(e.msg, "secretvalue"))
            fail_msg("row %zu: rc %d %s", i, rc, e.msg);
    }
    struct stdio_conf c = { .route = "r", .argv = good };
    assert_int_equal(stdio_new(ev, &c, &u, &e), RC_OK);
    assert_true(stdio_same(u, &c));
    c.env = other;
    assert_false(stdio_same(u, &c));
    c.env = none;
    assert_true(stdio_same(u, &c));
    c.idle_ms = 5;
    assert_false(stdio_same(u, &c));
    stdio_free(u);
    stdio_free(NULL);
    ev_free(ev);
}

static void test_words(void **st)
{
    (void)st;
    char **w = NULL;
    struct err e;
    assert_int_equal(stdio_words("  a 'b  c' \"d \\\" e\" f\\ g '' 'h'i", &w, &e), RC_OK);
    const char *want[] = { "a", "b  c", "d \" e", "f g", "", "hi" };
    for (size_t i = 0; i < COUNT_OF(want); i++)
        assert_string_equal(w[i], want[i]);
    assert_null(w[COUNT_OF(want)]);
    free(w);
    assert_int_equal(stdio_words("   ", &w, &e), RC_INVALID);
    assert_int_equal(stdio_words("a 'b", &w, &e), RC_INVALID);
    char many[2 * STDIO_WORDS_MAX + 3] = "";
    for (int i = 0; i < STDIO_WORDS_MAX; i++)
        strcat(many, "a ");
    assert_int_equal(stdio_words(many, &w, &e), RC_OK);
    free(w);
    strcat(many, "a");
    assert_int_equal(stdio_words(many, &w, &e), RC_INVALID);
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    log_setup(LOG_ERROR, LOG_TEXT, "test");
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_session), cmocka_unit_test(test_concurrent), cmocka_unit_test(test_streams), cmocka_unit_test(test_crash), cmocka_unit_test(test_rubbish),
        cmocka_unit_test(test_batch), cmocka_unit_test(test_limits), cmocka_unit_test(test_slow_client), cmocka_unit_test(test_gone_client), cmocka_unit_test(test_idle),
        cmocka_unit_test(test_stop), cmocka_unit_test(test_stateless), cmocka_unit_test(test_mirrored_headers), cmocka_unit_test(test_old_server),
        cmocka_unit_test(test_environment), cmocka_unit_test(test_configuration), cmocka_unit_test(test_words),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
