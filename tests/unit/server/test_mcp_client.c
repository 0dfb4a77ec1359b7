/* The MCP client against a scripted server on the same loop, with a vault of the test's own: credentials, sessions, streams, pages, cancelling. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "http/server.h"
#include "server/mcp/mcp.h"

static struct ev *ev;
static struct http_server *srv;
static struct net_addr addr;
static struct mcp *mcp;
static struct jobs *jobs;
static char url[128], origin[100], allowed[NET_ADDR_TEXT];
static const char *allow_list[1];

/* ---- the vault ---- */
struct vault { int unused; };
struct vault_lookup { struct ev_timer timer; void (*cb)(void *, int, const struct vault_found *, const struct err *); void *ctx; bool force; };
static struct vault the_vault;
static const char *token, *fresh_token;          /* now; after a forced refresh (NULL: it fails) */
static int lookups, forced;

static void vault_say(struct ev_timer *t)
{
    struct vault_lookup *l = container_of(t, struct vault_lookup, timer);
    struct vault_lookup copy = *l;
    struct vault_found f = { .bearer = NULL };
    struct err e = { 0 };
    free(l);
    if (copy.force && !fresh_token) {
        err_set(&e, RC_UNAUTHORIZED, "the refresh token is used up");
        copy.cb(copy.ctx, RC_UNAUTHORIZED, NULL, &e);
        return;
    }
    if (copy.force)
        token = fresh_token;
    AUTO_PTR(secret) s = token ? secret_new(token, strlen(token)) : NULL;
    f.bearer = s;
    copy.cb(copy.ctx, RC_OK, &f, NULL);
}

struct vault_lookup *vault_find(struct vault *v, const char *const *ids, size_t n, const char *for_url, bool force,
                                void (*cb)(void *ctx, int rc, const struct vault_found *f, const struct err *e), void *ctx)
{
    struct vault_lookup *l = xcalloc(1, sizeof *l);
    assert_ptr_equal(v, &the_vault);
    assert_int_equal(n, 1);
    assert_string_equal(ids[0], "vlt_1");
    assert_true(str_prefix(for_url, origin));
    l->cb = cb, l->ctx = ctx, l->force = force;
    lookups++, forced += force;
    ev_timer_set(ev, &l->timer, 1, vault_say);
    return l;
}

void vault_cancel(struct vault_lookup *l)
{
    if (!l)
        return;
    ev_timer_stop(&l->timer);
    free(l);
}

/* ---- the server ---- */
enum script { NEWEST, SESSIONS, SESSIONS_JSON, BEARER, FORBIDDEN, BROKEN, RESUMED, ASKING, PAGES, LOOPING, MANY, MOVED, MOVED_AWAY, FORGETFUL, SILENT, NONSENSE, INPUT, STATE, STATE_FOR_EVER, NO_TOOLS, FUTURE };
static enum script script;
static int n_requests, n_calls, n_initialize, n_deleted, n_cancelled, n_ping, n_refused, n_resumed, n_unauthorized;
static char last_session[64], last_version[32], last_name[128], last_param[128];

static void say(struct http_req *r, int status, const char *type, const char *headers, const char *fmt, ...) PRINTF_LIKE(5, 6);
static void say(struct http_req *r, int status, const char *type, const char *headers, const char *fmt, ...)
{
    struct buf b;
    va_list ap;
    char text[8192];
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    buf_init(&b, MIB);
    (void)buf_puts(&b, text);
    struct http_reply a = { .status = status, .content_type = type, .headers = headers, .body = &b };
    http_reply(r, &a);
    buf_done(&b);
}

static void header(const struct http_head *h, const char *name, char *out, size_t cap)
{
    const struct slice *v = http_find(h, name);
    (void)snprintf(out, cap, "%.*s", v ? (int)v->n : 0, v ? v->p : "");
}

static void result(struct http_req *r, int64_t id, const char *headers, const char *body)
{
    if (script == SESSIONS)
        say(r, 200, "text/event-stream", headers, ": hello\n\nevent: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{}}\n\n"
                                                  "data: {\"jsonrpc\":\"2.0\",\"id\":%lld,\"result\":%s}\n\n", (long long)id, body);
    else
        say(r, 200, "application/json", headers, "{\"jsonrpc\":\"2.0\",\"id\":%lld,\"result\":%s}", (long long)id, body);
}

static void error(struct http_req *r, int status, int64_t id, int code, const char *text)
{
    say(r, status, "application/json", NULL, "{\"jsonrpc\":\"2.0\",\"id\":%lld,\"error\":{\"code\":%d,\"message\":\"%s\"}}", (long long)id, code, text);
}

static void on_list(struct http_req *r, int64_t id, const json_t *m)
{
    const char *cursor = js_str(m, "params.cursor");
    if (script == PAGES && !cursor) {
        result(r, id, NULL, "{\"tools\":[{\"name\":\"a\"},{\"name\":\"a\",\"title\":\"again\"}],\"nextCursor\":\"p2\"}");
    } else if (script == PAGES) {
        assert_string_equal(cursor, "p2");
        result(r, id, NULL, "{\"tools\":[{\"name\":\"b\"},{\"title\":\"nameless\"}]}");
    } else if (script == LOOPING) {
        result(r, id, NULL, "{\"tools\":[{\"name\":\"a\"}],\"nextCursor\":\"same\"}");
    } else if (script == MANY) {
        static char text[8000];
        size_t n = (size_t)snprintf(text, sizeof text, "{\"nextCursor\":\"%d\",\"tools\":[", n_requests);
        for (int i = 0; i < 100; i++)
            n += (size_t)snprintf(text + n, sizeof text - n, "%s{\"name\":\"t%d_%d\"}", i ? "," : "", n_requests, i);
        (void)snprintf(text + n, sizeof text - n, "]}");
        result(r, id, NULL, text);
    } else if (script == NO_TOOLS) {
        error(r, 200, id, -32601, "no tools here");
    } else {
        result(r, id, NULL, "{\"tools\":[{\"name\":\"t\",\"inputSchema\":{\"type\":\"object\",\"properties\":{\"region\":{\"type\":\"string\",\"x-mcp-header\":\"Region\"}}}}]}");
    }
}

static char states[64];              /* of the calls, one after another; "-" none */

static void on_call(struct http_req *r, int64_t id)
{
    static const char ok[] = "{\"content\":[{\"type\":\"text\",\"text\":\"done\"}]}";
    n_calls++;
    if (script == RESUMED)
        say(r, 200, "text/event-stream", NULL, "retry: 900\nid: ev-1\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\"id\":%lld}}\n\n", (long long)id);
    else if (script == BROKEN)
        say(r, 200, "text/event-stream", NULL, ": nothing more\n\n");
    else if (script == ASKING)
        say(r, 200, "text/event-stream", NULL, "data: {\"jsonrpc\":\"2.0\",\"id\":\"s1\",\"method\":\"ping\"}\n\n"
            "data: {\"jsonrpc\":\"2.0\",\"id\":9,\"method\":\"sampling/createMessage\",\"params\":{}}\n\ndata: {\"jsonrpc\":\"2.0\",\"id\":%lld,\"result\":%s}\n\n", (long long)id, ok);
    else if (script == FORGETFUL && n_calls == 1)
        error(r, 404, -1, -32600, "Session not found");
    else if (script == NONSENSE)
        say(r, 200, "application/json", NULL, "<html>");
    else if (script == INPUT)
        result(r, id, NULL, "{\"resultType\":\"input_required\",\"inputRequests\":{}}");
    else if (script == STATE_FOR_EVER || (script == STATE && n_calls < 3))
        result(r, id, NULL, n_calls == 1 ? "{\"resultType\":\"input_required\",\"requestState\":\"s-1\"}" : "{\"resultType\":\"input_required\",\"requestState\":\"s-2\"}");
    else
        result(r, id, NULL, ok);
}

static struct http_req *held;        /* SILENT */

static void on_post(struct http_req *r, const struct http_head *h)
{
    struct slice body = http_req_body(r);
    AUTO_JS m = NULL;
    struct err e;
    assert_int_equal(js_parse(body.p, body.n, MIB, &m, &e), RC_OK);
    const char *method = js_str(m, "method");
    int64_t id = js_int(m, "id", -1);
    char version[32];
    header(h, "mcp-protocol-version", version, sizeof version);
    if (!method) {                               /* our answers to what it asked */
        n_ping += js_at(m, "result") != NULL;
        n_refused += js_int(m, "error.code", 0) == -32601;
        say(r, 202, NULL, NULL, "%s", "");
        return;
    }
    if (str_eq(method, "server/discover")) {
        assert_string_equal(version, "2026-07-28");
        assert_string_equal(js_at(m, "params._meta") ? json_string_value(json_object_get(js_at(m, "params._meta"), "io.modelcontextprotocol/protocolVersion")) : "", "2026-07-28");
        if (script == NEWEST || script == INPUT || script == STATE || script == STATE_FOR_EVER)
            result(r, id, NULL, "{\"supportedVersions\":[\"2026-07-28\"],\"resultType\":\"complete\"}");
        else if (script == FUTURE)
            say(r, 400, "application/json", NULL, "{\"id\":%lld,\"error\":{\"code\":-32022,\"message\":\"x\",\"data\":{\"supported\":[\"2031-01-01\"]}}}", (long long)id);
        else
            error(r, 404, id, -32601, "Method not found");
        return;
    }
    (void)str_copy(last_version, sizeof last_version, version);
    header(h, "mcp-session-id", last_session, sizeof last_session);
    header(h, "mcp-name", last_name, sizeof last_name);
    header(h, "mcp-param-region", last_param, sizeof last_param);
    if (str_eq(method, "initialize")) {
        char line[64];
        assert_string_equal(version, "");
        assert_string_equal(js_str(m, "params.protocolVersion"), "2025-11-25");
        (void)snprintf(line, sizeof line, "mcp-session-id: s-%d\r\n", ++n_initialize);
        result(r, id, line, "{\"protocolVersion\":\"2025-06-18\",\"capabilities\":{}}");
    } else if (str_eq(method, "notifications/cancelled")) {
        n_cancelled++;
        say(r, 202, NULL, NULL, "%s", "");
    } else if (id < 0) {
        say(r, 202, "text/plain", NULL, "Accepted");
    } else if (str_eq(method, "tools/list")) {
        on_list(r, id, m);
    } else if (script == SILENT) {
        n_calls++;
        held = r;
    } else {
        const char *state = js_str(m, "params.requestState");
        size_t n = strlen(states);
        (void)snprintf(states + n, sizeof states - n, "%s ", state ? state : "-");
        on_call(r, id);
    }
}

static void on_request(void *ctx, struct http_req *r)
{
    (void)ctx;
    const struct http_head *h = http_req_head(r);
    struct slice path = http_req_path(r);
    char auth[128], last[64];
    n_requests++;
    header(h, "authorization", auth, sizeof auth);
    header(h, "last-event-id", last, sizeof last);
    if ((script == BEARER && !str_eq(auth, "Bearer good"))) {
        n_unauthorized++;
        say(r, 401, NULL, "www-authenticate: Bearer error=\"invalid_token\"\r\n", "%s", "");
    } else if (script == FORBIDDEN) {
        say(r, 403, NULL, "www-authenticate: Bearer error=\"insufficient_scope\"\r\n", "%s", "");
    } else if (script == MOVED && !slice_eq(path, "/mcp/")) {
        say(r, 307, NULL, "location: /mcp/\r\n", "%s", "");
    } else if (script == MOVED_AWAY) {
        say(r, 307, NULL, "location: http://127.0.0.2:1/mcp\r\n", "%s", "");
    } else if (h->method == HTTP_DELETE) {
        n_deleted++;
        say(r, 204, NULL, NULL, "%s", "");
    } else if (h->method == HTTP_GET) {
        n_resumed++;
        assert_string_equal(last, "ev-1");
        say(r, 200, "text/event-stream", NULL, "id: ev-2\ndata: {\"jsonrpc\":\"2.0\",\"id\":%d,\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"resumed\"}]}}\n\n", 4);
    } else {
        on_post(r, h);
    }
}

static int setup(void **state)
{
    (void)state;
    struct err e;
    struct net_addr a;
    int fd = -1;
    (void)signal(SIGPIPE, SIG_IGN);
    n_requests = n_calls = n_initialize = n_deleted = n_cancelled = n_ping = n_refused = n_resumed = n_unauthorized = lookups = forced = 0;
    token = fresh_token = NULL;
    held = NULL;
    assert_int_equal(ev_new(&ev, &e), RC_OK);
    assert_int_equal(net_addr_parse("127.0.0.1:0", &a, &e), RC_OK);
    assert_int_equal(net_listen(&a, &fd, &addr, &e), RC_OK);
    struct http_server_conf hc = { .limits = http_limits_default, .on_request = on_request };
    assert_int_equal(http_server_new(ev, &hc, fd, &srv, &e), RC_OK);
    net_addr_format(&addr, allowed);
    (void)snprintf(origin, sizeof origin, "http://%s", allowed);
    (void)snprintf(url, sizeof url, "%s/mcp", origin);
    allow_list[0] = allowed;
    struct mcp_conf c = { .ev = ev, .jobs = jobs, .vault = &the_vault, .workspace_id = "w", .private_ok = allow_list, .n_private_ok = 1 };
    assert_int_equal(mcp_new(&c, &mcp, &e), RC_OK);
    return 0;
}

static void turn(int ms)
{
    for (int64_t end = clock_mono_ms() + ms; clock_mono_ms() < end;)
        ev_run_once(ev, 5);
}

static int teardown(void **state)
{
    (void)state;
    if (held)
        say(held, 500, NULL, NULL, "%s", "");
    mcp_free(mcp);
    turn(20);
    http_server_free(srv);
    turn(20);
    ev_free(ev);
    return 0;
}

/* ---- what comes back ---- */
static struct { bool done; struct mcp_session *s; enum mcp_outcome o; char why[700]; } conn;
static struct { int done; enum mcp_outcome o; bool is_error; char content[1000], why[700]; } got;
static bool free_in_callback;

static void on_connect(void *ctx, struct mcp_session *s, enum mcp_outcome o, const char *why)
{
    (void)ctx;
    assert_false(conn.done);
    conn.done = true, conn.s = s, conn.o = o;
    (void)str_copy(conn.why, sizeof conn.why, why);
}

static void on_result(void *ctx, const struct mcp_result *r)
{
    (void)ctx;
    AUTO_FREE char *text = r->content ? js_text(r->content) : str_dup("");
    got.done++, got.o = r->outcome, got.is_error = r->is_error;
    (void)str_copy(got.content, sizeof got.content, text);
    (void)str_copy(got.why, sizeof got.why, r->why);
    if (free_in_callback) {
        mcp_session_free(conn.s);
        conn.s = NULL;
    }
}

#define UNTIL(what) do { for (int64_t end_ = clock_mono_ms() + 20000; !(what) && clock_mono_ms() < end_;) ev_run_once(ev, 10); assert_true(what); } while (0)

static void start_connect(enum script sc, bool vault)
{
    static const char *const ids[] = { "vlt_1" };
    struct mcp_target t = { .name = "demo", .url = url, .vault_ids = ids, .n_vaults = vault ? 1 : 0 };
    script = sc;
    memset(&conn, 0, sizeof conn);
    memset(&got, 0, sizeof got);
    free_in_callback = false;
    conn.s = mcp_connect(mcp, &t, on_connect, NULL);
    assert_false(conn.done);
}

static void connect_now(enum script sc, bool vault)
{
    start_connect(sc, vault);
    UNTIL(conn.done);
}

static void call_now(const char *args)
{
    AUTO_JS a = NULL;
    struct err e;
    int before = got.done;
    assert_int_equal(js_parse(args, strlen(args), MIB, &a, &e), RC_OK);
    (void)mcp_call_start(conn.s, "t", a, 10000, on_result, NULL);
    assert_int_equal(got.done, before);
    UNTIL(got.done == before + 1);
}

#define DONE "[{\"type\":\"text\",\"text\":\"done\"}]"

static void test_revisions(void **state)
{
    (void)state;
    static const struct { enum script s; const char *version; bool session; } t[] = {
        { NEWEST, "2026-07-28", false }, { SESSIONS, "2025-06-18", true }, { SESSIONS_JSON, "2025-06-18", true },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        n_deleted = n_initialize = 0;
        connect_now(t[i].s, false);
        assert_int_equal(conn.o, MCP_OK);
        assert_int_equal(json_array_size(mcp_tools(conn.s)), 1);
        call_now("{\"region\":\"eu\\u00e4\"}");
        assert_string_equal(got.content, DONE);
        assert_string_equal(last_version, t[i].version);
        assert_string_equal(last_session, t[i].session ? "s-1" : "");
        assert_string_equal(last_name, t[i].session ? "" : "t");
        assert_string_equal(last_param, t[i].session ? "" : "=?base64?ZXXDpA==?=");
        mcp_session_free(conn.s);
        if (t[i].session)
            UNTIL(n_deleted == 1);
    }
}

static void test_no_revision_in_common(void **state)
{
    (void)state;
    connect_now(FUTURE, false);
    assert_true(conn.o == MCP_CONNECT_FAILED && conn.s == NULL && n_requests == 1);
    assert_non_null(strstr(conn.why, "no revision"));
}

static void test_credentials(void **state)
{
    (void)state;
    token = "old", fresh_token = "good";
    connect_now(BEARER, true);                       /* 401, refreshed once, then good */
    assert_int_equal(conn.o, MCP_OK);
    assert_true(forced == 1 && n_unauthorized == 1);
    token = "expired again", fresh_token = "good";
    call_now("{}");                                  /* looked up anew for the call */
    assert_string_equal(got.content, DONE);
    assert_true(forced == 2 && n_unauthorized == 2 && n_calls == 1);
    mcp_session_free(conn.s);
    UNTIL(n_deleted == 1);                           /* with the credential, too */
}

static void test_credentials_that_do_not_help(void **state)
{
    (void)state;
    token = "old", fresh_token = "still bad";
    connect_now(BEARER, true);
    assert_true(conn.o == MCP_AUTH_FAILED && forced == 1 && n_unauthorized == 2);
    assert_non_null(strstr(conn.why, "refused the credential"));
    token = "old", fresh_token = NULL;
    connect_now(BEARER, true);
    assert_int_equal(conn.o, MCP_AUTH_FAILED);
    assert_string_equal(conn.why, "the refresh token is used up");
    token = NULL;
    connect_now(BEARER, true);                       /* no credential matches: tried without */
    assert_int_equal(conn.o, MCP_AUTH_FAILED);
    assert_non_null(strstr(conn.why, "no credential of the session's vaults"));
    connect_now(BEARER, false);
    assert_non_null(strstr(conn.why, "asks for authorization"));
    connect_now(FORBIDDEN, true);
    assert_int_equal(conn.o, MCP_AUTH_FAILED);
    assert_non_null(strstr(conn.why, "insufficient_scope"));
}

static void test_given_bearer(void **state)
{
    (void)state;
    AUTO_PTR(secret) s = secret_new("good", 4);
    struct mcp_target t = { .name = "demo", .url = url, .bearer = s };
    memset(&conn, 0, sizeof conn);
    script = BEARER;
    conn.s = mcp_connect(mcp, &t, on_connect, NULL);
    UNTIL(conn.done);
    assert_true(conn.o == MCP_OK && lookups == 0);
    mcp_session_free(conn.s);
}

static void test_pages(void **state)
{
    (void)state;
    connect_now(PAGES, false);
    AUTO_FREE char *text = js_text(mcp_tools(conn.s));
    assert_string_equal(text, "[{\"name\":\"a\"},{\"name\":\"b\"}]");
    mcp_session_free(conn.s);
    connect_now(LOOPING, false);
    assert_int_equal(json_array_size(mcp_tools(conn.s)), 1);
    mcp_session_free(conn.s);
    connect_now(MANY, false);
    assert_int_equal(json_array_size(mcp_tools(conn.s)), 500);
    mcp_session_free(conn.s);
    connect_now(NO_TOOLS, false);
    assert_true(conn.o == MCP_OK && json_array_size(mcp_tools(conn.s)) == 0);
    mcp_session_free(conn.s);
}

static void test_streams(void **state)
{
    (void)state;
    connect_now(RESUMED, false);                     /* the call is request 4: discover, initialize, tools/list before it */
    int64_t began = clock_mono_ms();
    call_now("{}");
    assert_string_equal(got.content, "[{\"type\":\"text\",\"text\":\"resumed\"}]");
    assert_true(clock_mono_ms() - began >= 900);     /* when the server says */
    assert_true(n_calls == 1 && n_resumed == 1);
    mcp_session_free(conn.s);
    connect_now(BROKEN, false);
    call_now("{}");
    assert_true(got.o == MCP_CONNECT_FAILED && got.content[0] == '\0');
    assert_non_null(strstr(got.why, "without a result"));
    mcp_session_free(conn.s);
    connect_now(ASKING, false);
    call_now("{}");
    assert_string_equal(got.content, DONE);
    UNTIL(n_ping == 1 && n_refused == 1);
    mcp_session_free(conn.s);
    connect_now(NONSENSE, false);
    call_now("{}");
    assert_int_equal(got.o, MCP_CONNECT_FAILED);
    mcp_session_free(conn.s);
    connect_now(INPUT, false);
    call_now("{}");
    assert_true(got.o == MCP_OK && got.is_error && strstr(got.content, "input from a person"));
    mcp_session_free(conn.s);
    connect_now(STATE, false);
    states[0] = '\0';
    n_calls = 0;
    call_now("{}");
    assert_string_equal(got.content, DONE);
    assert_string_equal(states, "- s-1 s-2 ");
    mcp_session_free(conn.s);
    connect_now(STATE_FOR_EVER, false);
    n_calls = 0;
    call_now("{}");
    assert_true(got.o == MCP_OK && got.is_error && n_calls == 11);
    mcp_session_free(conn.s);
}

static void test_redirects(void **state)
{
    (void)state;
    connect_now(MOVED, false);
    assert_int_equal(conn.o, MCP_OK);
    call_now("{}");
    assert_string_equal(got.content, DONE);
    mcp_session_free(conn.s);
    connect_now(MOVED_AWAY, false);
    assert_int_equal(conn.o, MCP_CONNECT_FAILED);
    assert_non_null(strstr(conn.why, "307"));
}

static void test_forgotten_session(void **state)
{
    (void)state;
    connect_now(FORGETFUL, false);
    (void)mcp_call_start(conn.s, "t", NULL, 10000, on_result, NULL);
    UNTIL(got.done == 1);
    assert_string_equal(got.content, DONE);
    assert_true(n_initialize == 2 && n_calls == 2);
    assert_string_equal(last_session, "s-2");
    mcp_session_free(conn.s);
}

static void test_cancelling(void **state)
{
    (void)state;
    connect_now(SILENT, false);
    struct mcp_call *c = mcp_call_start(conn.s, "t", NULL, 10000, on_result, NULL);
    UNTIL(n_calls == 1);
    mcp_call_cancel(c);
    UNTIL(n_cancelled == 1);
    c = mcp_call_start(conn.s, "t", NULL, 10000, on_result, NULL);
    mcp_call_cancel(c);                              /* before anything was sent: nobody is told */
    turn(50);
    assert_true(n_cancelled == 1 && n_calls == 1 && got.done == 0);
    say(held, 500, NULL, NULL, "%s", "");
    held = NULL;
    (void)mcp_call_start(conn.s, "t", NULL, 200, on_result, NULL);
    UNTIL(got.done == 1);
    assert_int_equal(got.o, MCP_CONNECT_FAILED);
    assert_non_null(strstr(got.why, "whether the tool ran is not known"));
    UNTIL(n_cancelled == 2);
    (void)mcp_call_start(conn.s, "t", NULL, 10000, on_result, NULL);
    mcp_session_free(conn.s);                        /* with a call under way */
    turn(50);
    assert_int_equal(got.done, 1);
}

static void test_freeing_anywhere(void **state)
{
    (void)state;
    connect_now(SESSIONS, false);
    free_in_callback = true;
    (void)mcp_call_start(conn.s, "t", NULL, 10000, on_result, NULL);
    UNTIL(got.done == 1);
    for (int i = 0; i < 40; i++) {                   /* while it connects, at many a moment */
        token = "good";
        start_connect(i % 2 ? SESSIONS : BEARER, true);
        for (int k = 0; k < i; k++)
            ev_run_once(ev, 1);
        if (!conn.done || conn.s)
            mcp_session_free(conn.s);
        bool was = conn.done;
        turn(3);
        assert_int_equal(conn.done, was);
    }
}

static void test_refused_before_any_dial(void **state)
{
    (void)state;
    struct mcp_target t = { .name = "demo", .url = "http://127.0.0.1:1/mcp" };
    memset(&conn, 0, sizeof conn);
    (void)mcp_connect(mcp, &t, on_connect, NULL);
    UNTIL(conn.done);
    assert_int_equal(conn.o, MCP_REFUSED);
    assert_true(n_requests == 0 && lookups == 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_revisions), T(test_no_revision_in_common), T(test_credentials), T(test_credentials_that_do_not_help), T(test_given_bearer), T(test_pages),
        T(test_streams), T(test_redirects), T(test_forgotten_session), T(test_cancelling), T(test_freeing_anywhere), T(test_refused_before_any_dial),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
