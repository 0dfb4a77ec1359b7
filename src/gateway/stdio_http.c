/* gateway/stdio_http.c - what a request to a stdio upstream asks for: the server's side of MCP streamable HTTP (tunnels.md 4.6). */
#include <stdio.h>
#include <string.h>

#include "base/base64.h"
#include "base/str.h"
#include "crypto/crypto.h"
#include "gateway/stdio_internal.h"
#include "http/url.h"
#include "log/log.h"

#define META_VERSION "io.modelcontextprotocol/protocolVersion"

static struct sproc *find_session(struct stdio_upstream *u, const char *session)
{
    size_t n = strlen(session);
    list_foreach(p, &u->procs, struct sproc, link)
        if (p->session[0] && !p->ending && strlen(p->session) == n && crypto_equal(p->session, session, n))
            return p;
    return NULL;
}

static void attach(struct upstream_call *c, struct sproc *p)
{
    list_del(&c->link);
    list_add_tail(&p->calls, &c->link);
    c->proc = p;
    sproc_touch(p);
}

/* The session that the request names; NULL when it was answered instead. */
static struct sproc *session_of(struct upstream_call *c, const char *raw_id)
{
    if (!c->session[0]) {
        scall_answer(c, 400, RPC_INVALID_REQUEST, raw_id, "Bad Request: no Mcp-Session-Id header. A client begins with initialize.");
        return NULL;
    }
    struct sproc *p = find_session(c->up, c->session);
    if (!p)
        scall_answer(c, 404, RPC_NO_SESSION, raw_id, "Session not found. It has ended; initialize again.");
    return p;
}

/* ---- GET, DELETE ---- */

static void get(struct upstream_call *c)
{
    struct sproc *p = session_of(c, NULL);
    if (!p)
        return;
    if (!c->sse_ok) {
        scall_answer(c, 406, RPC_INVALID_REQUEST, NULL, "Not Acceptable: the client must accept text/event-stream");
        return;
    }
    if (p->get) {
        scall_answer(c, 409, RPC_INVALID_REQUEST, NULL, "Conflict: the session has an event stream open already");
        return;
    }
    attach(c, p);
    p->get = c;
    scall_stream_begin(c);
    char *at = buf_data(&p->backlog), *end = at + buf_len(&p->backlog);
    while (at < end && p->get == c) {
        char *nl = memchr(at, '\n', (size_t)(end - at));
        scall_message(c, at, (size_t)(nl - at), false);
        at = nl + 1;
    }
    buf_clear(&p->backlog);
}

static void delete_session(struct upstream_call *c)
{
    struct sproc *p = session_of(c, NULL);
    if (!p)
        return;
    sproc_end(p, "the client has ended the session");
    scall_reply_empty(c, 200);
}

/* ---- POST: the messages ---- */

static struct pending *expect(struct sproc *p, struct upstream_call *c, const struct rpc *m, const char *id, const char *token)
{
    struct pending *q = xcalloc(1, sizeof *q);
    q->proc = p;
    q->call = c;
    q->is_init = slice_eq(m->method, "initialize");
    q->is_discover = slice_eq(m->method, "server/discover");
    (void)str_copy(q->id, sizeof q->id, id);
    (void)str_copy(q->token, sizeof q->token, token);
    q->raw_id = str_ndup(m->id.p, m->id.n);
    list_add_tail(&p->pending, &q->link);
    p->n_pending++;
    c->n_pending++;
    return q;
}

static void progress_token(const struct rpc *m, char out[RPC_ID_MAX])
{
    struct slice meta, token;
    if (!rpc_member(m->params, "_meta", &meta) || !rpc_member(meta, "progressToken", &token) || !rpc_key(token, out))
        out[0] = '\0';
}

/* The process does not take the message. */
static void not_sent(struct upstream_call *c, int rc, const char *raw_id)
{
    if (rc == RC_LIMIT)
        scall_answer(c, 503, RPC_SERVER_BUSY, raw_id, "The MCP server does not read its input fast enough; try again later");
    else
        scall_answer(c, 404, RPC_NO_SESSION, raw_id, "Session not found. Its process is ending; initialize again.");
}

static void on_cancel_grace(struct ev_timer *t)
{
    struct pending *q = container_of(t, struct pending, cancel);
    struct upstream_call *c = q->call;
    if (!c)
        return;
    struct buf b;
    buf_init(&b, RPC_TEXT_MAX + KIB);
    stdio_error_text(&b, q->raw_id, RPC_CANCELLED, "Request cancelled");
    q->call = NULL;                              /* an answer that comes after all belongs to nobody */
    scall_message(c, buf_data(&b), buf_len(&b), --c->n_pending == 0);
    buf_done(&b);
}

/* A server need not answer a cancelled request, but its exchange must end. */
static void note_cancelled(struct sproc *p, const struct rpc *m)
{
    struct slice id;
    char key[RPC_ID_MAX];
    if (m->kind != RPC_NOTIFICATION || !slice_eq(m->method, "notifications/cancelled") || !rpc_member(m->params, "requestId", &id) || !rpc_key(id, key))
        return;
    struct pending *q = stdio_pending_find(p, key);
    if (q && q->call)
        ev_timer_set(p->up->ev, &q->cancel, STDIO_CANCEL_GRACE_MS, on_cancel_grace);
}

struct post { struct rpc m[RPC_BATCH_MAX]; char *raw_id; size_t n, n_requests; };

static const char *raw_id_of(struct post *b)
{
    for (size_t i = 0; i < b->n && b->n == 1; i++)
        if (b->m[i].kind == RPC_REQUEST && !b->raw_id)
            b->raw_id = str_ndup(b->m[i].id.p, b->m[i].id.n);
    return b->raw_id;
}

/* Hands the messages to a session's process. */
static void deliver(struct upstream_call *c, struct sproc *p, struct post *b)
{
    char ids[RPC_BATCH_MAX][RPC_ID_MAX], token[RPC_ID_MAX];
    if (p->n_pending + b->n_requests > STDIO_PENDING_MAX) {
        scall_answer(c, 503, RPC_SERVER_BUSY, raw_id_of(b), "The session has too many requests out");
        return;
    }
    for (size_t i = 0; i < b->n; i++) {
        if (b->m[i].kind != RPC_REQUEST)
            continue;
        bool twice = !rpc_key(b->m[i].id, ids[i]) || stdio_pending_find(p, ids[i]);
        for (size_t k = 0; k < i; k++)
            twice |= b->m[k].kind == RPC_REQUEST && strcmp(ids[k], ids[i]) == 0;
        if (twice) {
            scall_answer(c, 400, RPC_INVALID_REQUEST, raw_id_of(b), "Bad Request: a request with this id is out already");
            return;
        }
    }
    if (b->n_requests) {
        attach(c, p);
        c->show_session = !c->stateless;
    }
    for (size_t i = 0; i < b->n; i++) {
        int rc = sproc_send(p, b->m[i].text.p, b->m[i].text.n);
        if (rc < 0) {
            not_sent(c, rc, raw_id_of(b));
            return;
        }
        if (b->m[i].kind == RPC_REQUEST) {
            progress_token(&b->m[i], token);
            (void)expect(p, c, &b->m[i], ids[i], token);
        } else {
            note_cancelled(p, &b->m[i]);
        }
    }
    if (b->n_requests == 0) {
        scall_reply_empty(c, 202);
        return;
    }
    scall_body_done(c);
    scall_wait(c);
}

static struct sproc *start_process(struct upstream_call *c, bool stateless, const char *raw_id)
{
    struct stdio_upstream *u = c->up;
    struct sproc *p = NULL;
    struct err e = { 0 };
    if (u->stopping || u->n_procs >= u->procs_max) {
        log_warn("stdio.full", "route=%s processes=%zu", u->route, u->n_procs);
        scall_answer(c, 503, RPC_SERVER_BUSY, raw_id, u->stopping ? "The gateway is stopping" : "All %zu processes of this route are in use; try again later",
                    u->procs_max);
        return NULL;
    }
    if (sproc_start(u, stateless, &p, &e) < 0) {
        log_error("stdio.not_started", "route=%s program=%s why=%s", u->route, u->path, e.msg);
        scall_answer(c, 502, RPC_INTERNAL, raw_id, "The MCP server cannot be started; the gateway's log says why");
        return NULL;
    }
    return p;
}

/* ---- POST without sessions (2026-07-28) ---- */

/* `text` is what the header must say (maybe as =?base64?...?=). */
static bool header_says(const struct http_head *h, const char *name, const char *text)
{
    static const char head[] = "=?base64?", tail[] = "?=";
    const struct slice *v = http_find(h, name);
    size_t hn = sizeof head - 1, tn = sizeof tail - 1;
    if (!v)
        return false;
    if (v->n < hn + tn || memcmp(v->p, head, hn) != 0 || memcmp(v->p + v->n - tn, tail, tn) != 0)
        return slice_eq(*v, text);
    struct buf b;
    buf_init(&b, RPC_TEXT_MAX);
    bool same = base64_decode(&b, v->p + hn, v->n - hn - tn) == RC_OK && slice_eq((struct slice){ buf_data(&b), buf_len(&b) }, text);
    buf_done(&b);
    return same;
}

/* The first header that does not say the same as the body; NULL: all agree. */
static const char *mismatch(struct upstream_call *c, const struct rpc *m)
{
    const struct http_head *h = exchange_head(c->x);
    struct slice v, meta;
    char text[RPC_TEXT_MAX];
    if (!rpc_member(m->params, "_meta", &meta) || !rpc_member(meta, META_VERSION, &v) || !rpc_string(v, text, sizeof text) || !str_eq(text, c->version))
        return "MCP-Protocol-Version";
    AUTO_FREE char *method = str_ndup(m->method.p, m->method.n);
    if (!header_says(h, "mcp-method", method))
        return "Mcp-Method";
    const char *named = str_eq(method, "tools/call") || str_eq(method, "prompts/get") ? "name" : str_eq(method, "resources/read") ? "uri" : NULL;
    if (named && (!rpc_member(m->params, named, &v) || !rpc_string(v, text, sizeof text) || !header_says(h, "mcp-name", text)))
        return "Mcp-Name";
    return NULL;
}

/* Could an answer or progress of this process be taken for that of the new request? */
static bool collides(struct sproc *p, const char *id, const char *token)
{
    list_foreach(q, &p->pending, struct pending, link)
        if (strcmp(q->id, id) == 0 || (*token && strcmp(q->token, token) == 0))
            return true;
    return p->n_pending >= STDIO_PENDING_MAX;
}

static bool has_clients(const struct sproc *p)
{
    return !list_empty(&p->calls);
}

static void post_stateless(struct upstream_call *c, struct post *b)
{
    struct rpc *m = &b->m[0];
    const char *raw = raw_id_of(b);
    if (b->n != 1 || c->batch || m->kind == RPC_RESPONSE) {
        scall_answer(c, 400, RPC_INVALID_REQUEST, NULL, "Body must be a single JSON-RPC request or notification object");
        return;
    }
    if (m->kind == RPC_NOTIFICATION) {           /* the revision has none for a server to act on, and the process is not this client's alone */
        scall_reply_empty(c, 202);
        return;
    }
    const char *header = mismatch(c, m);
    if (header) {
        scall_answer(c, 400, RPC_HEADER_MISMATCH, raw, "Header mismatch: %s does not say what the body says", header);
        return;
    }
    if (c->up->legacy && slice_eq(m->method, "server/discover")) {
        scall_answer(c, 404, RPC_METHOD_NOT_FOUND, raw, "Method not found: server/discover. The server speaks earlier protocol revisions; initialize a session.");
        return;
    }
    char id[RPC_ID_MAX], token[RPC_ID_MAX];
    (void)rpc_key(m->id, id);
    progress_token(m, token);
    struct sproc *use = NULL, *spent = NULL;
    list_foreach(p, &c->up->procs, struct sproc, link) {
        if (!p->stateless || p->ending)
            continue;
        if (!collides(p, id, token)) {
            use = p;
            break;
        }
        if (!has_clients(p))
            spent = p;
    }
    if (!use && spent && c->up->n_procs >= c->up->procs_max)     /* only answers that nobody waits for keep it: make room for the next request */
        sproc_end(spent, "replaced");
    if (!use)
        use = start_process(c, true, raw);
    if (use)
        deliver(c, use, b);
}

/* ---- POST ---- */

/* Reads the body's messages; false when the call was answered. */
static bool read_messages(struct upstream_call *c, struct post *b)
{
    const char *p = buf_data(&c->body), *why = "";
    size_t n = buf_len(&c->body), n_items = 1;
    struct slice items[RPC_BATCH_MAX] = { { p, n } };
    bool syntax = true;
    c->batch = rpc_is_batch(p, n);
    if (c->batch) {
        int rc = rpc_items(p, n, items, &n_items);
        if (rc < 0 || n_items == 0) {
            scall_answer(c, 400, rc == RC_INVALID ? RPC_PARSE_ERROR : RPC_INVALID_REQUEST, NULL, rc == RC_INVALID ? "Parse error" : "Bad Request: a batch of 1 to %d messages", RPC_BATCH_MAX);
            return false;
        }
    }
    for (size_t i = 0; i < n_items; i++, b->n++) {
        if (rpc_parse(items[i].p, items[i].n, &b->m[i], &syntax, &why) < 0) {
            scall_answer(c, 400, syntax ? RPC_PARSE_ERROR : RPC_INVALID_REQUEST, NULL, "%s: %s", syntax ? "Parse error" : "Invalid Request", why);
            return false;
        }
        b->n_requests += b->m[i].kind == RPC_REQUEST;
    }
    return true;
}

static bool wants_json(const struct http_head *h)
{
    const struct slice *v = http_find(h, "content-type");
    if (!v)
        return false;
    const char *semi = memchr(v->p, ';', v->n);
    return slice_eq_nocase(slice_trim((struct slice){ v->p, semi ? (size_t)(semi - v->p) : v->n }), "application/json");
}

static bool modern_body(const struct rpc *m)
{
    struct slice meta, v;
    char text[STDIO_VERSION_MAX];
    return rpc_member(m->params, "_meta", &meta) && rpc_member(meta, META_VERSION, &v) && rpc_string(v, text, sizeof text) &&
           strcmp(text, STDIO_STATELESS_SINCE) >= 0;
}

static void post_session(struct upstream_call *c, struct post *b)
{
    bool init = false;
    const char *raw = raw_id_of(b);
    for (size_t i = 0; i < b->n; i++)
        init |= b->m[i].kind == RPC_REQUEST && slice_eq(b->m[i].method, "initialize");
    if (!c->session[0] && !init && b->n == 1 && modern_body(&b->m[0])) {
        scall_answer(c, 400, RPC_HEADER_MISMATCH, raw, "Header mismatch: MCP-Protocol-Version is missing");
        return;
    }
    struct sproc *p = init && !c->session[0] ? start_process(c, false, raw) : session_of(c, raw);
    if (p)
        deliver(c, p, b);
}

static void post(struct upstream_call *c)
{
    struct post *b = xcalloc(1, sizeof *b);
    if (!wants_json(exchange_head(c->x)))
        scall_answer(c, 415, RPC_INVALID_REQUEST, NULL, "Unsupported Media Type: content-type must be application/json");
    else if (!c->json_ok && !c->sse_ok)
        scall_answer(c, 406, RPC_INVALID_REQUEST, NULL, "Not Acceptable: the client must accept application/json and text/event-stream");
    else if (read_messages(c, b)) {
        if (c->batch && b->n_requests && !c->sse_ok)
            scall_answer(c, 406, RPC_INVALID_REQUEST, NULL, "Not Acceptable: the answers to a batch come as text/event-stream");
        else if (c->stateless)
            post_stateless(c, b);
        else
            post_session(c, b);
    }
    free(b->raw_id);
    free(b);
}

/* ---- all ---- */

/* A browser's page elsewhere must not reach the server through somebody's client (MCP transports, "Security Warning"). */
static bool origin_ok(const struct upstream_call *c)
{
    const struct slice *o = http_find(exchange_head(c->x), "origin");
    if (!o)
        return true;
    AUTO_FREE char *text = str_ndup(o->p, o->n);
    struct http_url u;
    return http_url_parse(text, false, &u, NULL) == RC_OK && str_eq(u.host, exchange_host(c->x));
}

static void refuse(struct upstream_call *c)
{
    switch (c->refuse_status) {
    case 413:
        scall_answer(c, 413, RPC_INVALID_REQUEST, NULL, "Payload Too Large: a message has at most %zu bytes", c->up->line_max);
        break;
    case 503:
        scall_answer(c, 503, RPC_SERVER_BUSY, NULL, "Too many requests are being received; try again later");
        break;
    default:
        scall_answer(c, 400, RPC_INVALID_REQUEST, NULL, "Bad Request: MCP-Protocol-Version is no protocol revision");
    }
}

void stdio_dispatch(struct upstream_call *c)
{
    if (c->dispatched)
        return;
    c->dispatched = true;
    ev_timer_stop(&c->timer);
    if (c->refuse_status)
        refuse(c);
    else if (!origin_ok(c))
        scall_answer(c, 403, RPC_INVALID_REQUEST, NULL, "Forbidden: the Origin is not this server's");
    else if (c->kind == CALL_GET && exchange_head(c->x)->target.n >= 13 && memcmp(exchange_head(c->x)->target.p, "/.well-known/", 13) == 0)
        scall_answer(c, 404, RPC_INVALID_REQUEST, NULL, "Not Found: a stdio server has no authorization metadata");
    else if (c->kind == CALL_OTHER || (c->stateless && c->kind != CALL_POST))
        scall_answer(c, 405, RPC_INVALID_REQUEST, NULL, "Method Not Allowed");
    else if (c->kind == CALL_GET)
        get(c);
    else if (c->kind == CALL_DELETE)
        delete_session(c);
    else
        post(c);
}
