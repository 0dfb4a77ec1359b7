/* handshake.c - finds out which revision a server speaks, newest first, and lists its tools.
 *   server/discover (2026-07-28)  -> known: ready. Anything but an outage: initialize.
 *   initialize (2025-11-25)       -> its answer names the revision. 400, 404 and 405 without a word of JSON-RPC: the transport of 2024-11-05.
 *   GET, event "endpoint"         -> initialize posted there, its answer on the stream. */
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "log/log.h"
#include "server/mcp/params.h"
#include "server/mcp/private.h"

#define UNSUPPORTED_VERSION (-32022)

static const char *const revisions[] = { "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05" };

static void start_initialize(struct mcp_session *s);
static void start_stream(struct mcp_session *s);

static void ready(struct mcp_session *s, enum mcp_outcome o, const char *why)
{
    void (*cb)(struct mcp_session *, enum mcp_outcome, const char *) = s->ready_cb;
    s->ready_cb = NULL;
    if (cb)
        cb(s, o, why);
}

static void failed(struct mcp_session *s, const struct reply *r)
{
    char why[MCP_WHY_MAX];
    mcp_reply_text(s, r, why);
    ready(s, r->kind == REPLY_FAILED ? r->outcome : MCP_CONNECT_FAILED, why);
}

static void step(struct mcp_session *s, const char *method, json_t *take_params, void (*cb)(void *ctx, const struct reply *r))
{
    int64_t id = mcp_next_id(s);
    struct exchange_conf c = { .http_method = "POST", .url = s->endpoint, .method = method, .take_body = mcp_message(s, method, take_params, id), .id = id,
                               .timeout_ms = MCP_STEP_MS, .cb = cb, .ctx = s };
    s->step = exchange_start(s, &c);
}

/* ---- 2026-07-28 ---- */
static bool in_list(const json_t *list, const char *version)
{
    size_t i;
    json_t *v;
    json_array_foreach(list, i, v)
        if (json_is_string(v) && str_eq(json_string_value(v), version))
            return true;
    return false;
}

static bool any_with_handshake(const json_t *list)
{
    for (size_t i = 0; i < COUNT_OF(revisions); i++)
        if (in_list(list, revisions[i]))
            return true;
    return json_array_size(list) == 0;
}

static void on_discover(void *ctx, const struct reply *r)
{
    struct mcp_session *s = ctx;
    s->step = NULL;
    if (r->kind == REPLY_RESULT && in_list(json_object_get(r->body, "supportedVersions"), MCP_STATELESS)) {
        ready(s, MCP_OK, "");
        return;
    }
    if (r->kind == REPLY_FAILED && !(r->sent && r->timed_out)) {     /* an outage says nothing about revisions */
        failed(s, r);
        return;
    }
    bool unsupported = r->kind == REPLY_ERROR && js_int(r->body, "code", 0) == UNSUPPORTED_VERSION;
    if (unsupported && in_list(js_at(r->body, "data.supported"), MCP_STATELESS) && !s->asked_twice) {
        s->asked_twice = true;                           /* it contradicts itself, as one of several that are being replaced may */
        step(s, "server/discover", NULL, on_discover);
        return;
    }
    if (unsupported && !any_with_handshake(js_at(r->body, "data.supported"))) {
        ready(s, MCP_CONNECT_FAILED, "the server speaks no revision of MCP that this client knows");
        return;
    }
    start_initialize(s);
}

/* ---- 2025 and before ---- */
static json_t *client_info(void)
{
    json_t *o = json_object();
    js_set_str(o, "name", "outwork");
    js_set_str(o, "version", OUTWORK_VERSION);
    return o;
}

/* Waited for: nothing else may overtake it. What the server says to it does not matter. */
static void on_initialized(void *ctx, const struct reply *r)
{
    struct mcp_session *s = ctx;
    s->step = NULL;
    if (r->kind == REPLY_FAILED)
        failed(s, r);
    else
        ready(s, MCP_OK, "");
}

static void on_initialize(void *ctx, const struct reply *r)
{
    struct mcp_session *s = ctx;
    s->step = NULL;
    bool gone = r->kind == REPLY_HTTP && (r->status == 400 || r->status == 404 || r->status == 405 || r->status == 406 || r->status == 415);
    if (gone && s->era == ERA_SESSION) {
        start_stream(s);
        return;
    }
    if (r->kind != REPLY_RESULT) {
        failed(s, r);
        return;
    }
    const char *version = js_str(r->body, "protocolVersion");
    for (size_t i = 0; version && i < COUNT_OF(revisions); i++) {
        if (!str_eq(revisions[i], version))
            continue;
        (void)str_copy(s->version, sizeof s->version, version);
        if (s->era == ERA_SESSION)
            (void)str_copy(s->session_id, sizeof s->session_id, r->session_id);
        struct exchange_conf c = { .http_method = "POST", .url = s->endpoint, .take_body = mcp_message(s, "notifications/initialized", NULL, 0),
                                   .timeout_ms = MCP_STEP_MS, .cb = on_initialized, .ctx = s };
        s->step = exchange_start(s, &c);
        return;
    }
    char why[MCP_WHY_MAX];
    (void)snprintf(why, sizeof why, "the server speaks revision '%.40s' of MCP, which this client does not know", version ? version : "");
    ready(s, MCP_CONNECT_FAILED, why);
}

static void post_initialize(struct mcp_session *s)
{
    json_t *p = json_object();
    js_set_str(p, "protocolVersion", s->era == ERA_TWO_ENDPOINTS ? MCP_OLDEST : MCP_HANDSHAKE);
    js_set(p, "capabilities", json_object());
    js_set(p, "clientInfo", client_info());
    step(s, "initialize", p, on_initialize);
}

static void start_initialize(struct mcp_session *s)
{
    s->era = ERA_SESSION;
    s->version[0] = s->session_id[0] = '\0';             /* the version's header begins after this request */
    post_initialize(s);
}

/* ---- 2024-11-05 ---- */
static void on_stream_end(void *ctx, const struct reply *r)
{
    struct mcp_session *s = ctx;
    char why[MCP_WHY_MAX];
    s->stream = NULL;
    mcp_reply_text(s, r, why);
    exchange_stream_gone(s, why);
    if (!s->ready_cb)
        return;
    exchange_cancel(s->step);
    s->step = NULL;
    failed(s, r);
}

static void on_endpoint(void *ctx, const char *path)
{
    struct mcp_session *s = ctx;
    struct http_url base, to;
    struct err e;
    if (s->endpoint || http_url_parse(s->url, false, &base, &e) < 0)
        return;
    char origin[URL_HOST_MAX + 10];
    http_url_authority(&base, false, origin);
    AUTO_FREE char *url = path[0] == '/' && path[1] != '/' ? str_printf("%s://%s%s", base.tls ? "https" : "http", origin, path) : str_dup(path);
    if (http_url_parse(url, false, &to, &e) < 0 || to.tls != base.tls || to.port != base.port || !str_eq(to.host, base.host)) {
        exchange_cancel(s->stream);
        s->stream = NULL;
        ready(s, MCP_CONNECT_FAILED, "the server names an endpoint outside of its own origin");
        return;
    }
    s->endpoint = TAKE(url);
    post_initialize(s);
}

static void start_stream(struct mcp_session *s)
{
    s->era = ERA_TWO_ENDPOINTS;
    struct exchange_conf c = { .http_method = "GET", .stream = true, .cb = on_stream_end, .on_endpoint = on_endpoint, .ctx = s };
    s->stream = exchange_start(s, &c);
}

void handshake_start(struct mcp_session *s, void (*cb)(struct mcp_session *s, enum mcp_outcome o, const char *why))
{
    bool again = s->generation++ > 0;
    s->ready_cb = cb;
    exchange_cancel(s->stream);
    s->stream = NULL;
    free(s->endpoint);
    s->endpoint = NULL;
    if (again && s->era != ERA_STATELESS) {
        start_initialize(s);
        return;
    }
    s->era = ERA_STATELESS;
    (void)str_copy(s->version, sizeof s->version, MCP_STATELESS);
    step(s, "server/discover", NULL, on_discover);
}

/* ---- tools ---- */
static void tools_done(struct mcp_session *s, enum mcp_outcome o, const char *why)
{
    void (*cb)(struct mcp_session *, enum mcp_outcome, const char *) = s->tools_cb;
    json_decref(s->seen_cursors);
    s->seen_cursors = NULL;
    s->tools_cb = NULL;
    cb(s, o, why);
}

static void on_tools(void *ctx, const struct reply *r);

static void list_page(struct mcp_session *s, const char *cursor)
{
    json_t *p = json_object();
    if (cursor)
        js_set_str(p, "cursor", cursor);
    s->pages++;
    step(s, "tools/list", p, on_tools);
}

static bool take_tool(struct mcp_session *s, json_t *t)
{
    const char *name = js_str(t, "name");
    AUTO_FREE char *text = js_text(t);
    size_t i, n = strlen(text);
    json_t *o;
    struct err e = { 0 };
    if (name && s->era == ERA_STATELESS && params_check(json_object_get(t, "inputSchema"), &e) < 0) {
        log_warn("mcp.tool_refused", "server=%s tool=%s why=x-mcp-header: %s", s->name, name, e.msg);
        return true;
    }
    if (!name || !name[0] || json_array_size(s->tools) >= MCP_TOOLS_MAX || n > MCP_TOOLS_BYTES_MAX - s->tools_bytes)
        return false;
    json_array_foreach(s->tools, i, o)
        if (str_eq(js_str(o, "name"), name))
            return true;                                 /* said twice: the first counts */
    s->tools_bytes += n;
    js_push(s->tools, json_incref(t));
    return true;
}

static void on_tools(void *ctx, const struct reply *r)
{
    struct mcp_session *s = ctx;
    s->step = NULL;
    if (r->kind == REPLY_ERROR && js_int(r->body, "code", 0) == -32601) {        /* it has no tools at all */
        tools_done(s, MCP_OK, "");
        return;
    }
    if (r->kind != REPLY_RESULT) {
        char why[MCP_WHY_MAX];
        mcp_reply_text(s, r, why);
        tools_done(s, r->kind == REPLY_FAILED ? r->outcome : MCP_CONNECT_FAILED, why);
        return;
    }
    size_t i, dropped = 0;
    json_t *t;
    json_array_foreach(json_object_get(r->body, "tools"), i, t)
        dropped += !take_tool(s, t);
    if (dropped)
        log_warn("mcp.tools_dropped", "server=%s dropped=%zu limit=%d bytes=%zu", s->name, dropped, MCP_TOOLS_MAX, MCP_TOOLS_BYTES_MAX);
    const char *cursor = js_str(r->body, "nextCursor");
    if (cursor && cursor[0] && !dropped && s->pages < MCP_PAGES_MAX && !in_list(s->seen_cursors, cursor)) {
        js_push(s->seen_cursors, json_string(cursor));
        list_page(s, cursor);
        return;
    }
    tools_done(s, MCP_OK, "");
}

void handshake_tools(struct mcp_session *s, void (*cb)(struct mcp_session *s, enum mcp_outcome o, const char *why))
{
    s->tools_cb = cb;
    json_decref(s->tools);
    s->tools = json_array();
    s->seen_cursors = json_array();
    s->tools_bytes = s->pages = 0;
    list_page(s, NULL);
}
