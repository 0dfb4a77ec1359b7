/* exchange.c - one HTTP request to an MCP server: guard, credential, the way there (addresses or edges in turn), answer. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/str.h"
#include "log/log.h"
#include "server/mcp/params.h"
#include "server/mcp/private.h"
#include "tunnel/proto.h"

#define HEADERS_MAX (12 + PARAMS_MAX)
#define ANSWER_MAX (1 * MIB)             /* a buffered answer: one that is an error */
#define AUTH_TEXT_MAX 300

struct exchange {
    struct mcp_session *s;
    struct list node;
    struct exchange_conf c;
    char *url, *method, *name, *body, *headers[HEADERS_MAX], *extra[PARAMS_MAX];
    size_t n_headers, n_extra;
    struct guard_check *check;
    struct guard_route route;
    char *ca;
    struct vault_lookup *lookup;
    struct fetch_call *fetch;
    struct ev_timer total, turn;         /* turn: delivers, resumes */
    size_t way, n_ways, first_edge;
    bool refreshed, any_sent, answered, ended, resuming, talk;
    int resumes;
    int64_t retry_ms;                    /* -1: the server has not said */
    struct fold fold;
    char event_id[FOLD_EVENT_ID_MAX];
    char session_id[MCP_SESSION_ID_MAX], location[1024], auth[AUTH_TEXT_MAX];
    /* the reply */
    struct reply reply;
    json_t *reply_body;
    char why[MCP_WHY_MAX];
};

static void send_request(struct exchange *x);
static void look_route(struct exchange *x);

static void exchange_free(struct exchange *x)
{
    list_del(&x->node);
    guard_cancel(x->check);
    vault_cancel(x->lookup);
    fetch_cancel(x->fetch);
    ev_timer_stop(&x->total);
    ev_timer_stop(&x->turn);
    fold_done(&x->fold);
    for (size_t i = 0; i < x->n_headers; i++)
        free(x->headers[i]);
    for (size_t i = 0; i < x->n_extra; i++)
        free(x->extra[i]);
    json_decref(x->reply_body);
    free(x->url);
    free(x->method);
    free(x->name);
    free(x->body);
    free(x->ca);
    free(x);
}

void exchange_cancel(struct exchange *x)
{
    if (x)
        exchange_free(x);
}

void exchange_cancel_all(struct mcp_session *s, bool waited_only)
{
    list_foreach(x, &s->exchanges, struct exchange, node)
        if (!waited_only || x->c.cb)
            exchange_free(x);
}

bool exchange_sent(const struct exchange *x) { return x->any_sent || (x->fetch && fetch_sent(x->fetch)); }

/* ---- the reply ---- */
static void on_linger(struct ev_timer *t) { exchange_free(container_of(t, struct exchange, turn)); }

static void on_deliver(struct ev_timer *t)
{
    struct exchange *x = container_of(t, struct exchange, turn);
    void (*cb)(void *, const struct reply *) = x->c.cb;
    void *ctx = x->c.ctx;
    struct reply r = x->reply;
    json_t *body = json_incref(x->reply_body);
    char why[MCP_WHY_MAX], session_id[MCP_SESSION_ID_MAX];
    (void)str_copy(why, sizeof why, x->why);
    (void)str_copy(session_id, sizeof session_id, x->session_id);
    r.body = body;
    r.why = why;
    r.session_id = session_id;
    x->c.cb = NULL;
    if (x->fetch && !x->ended)
        ev_timer_set(x->s->m->c.ev, &x->turn, MCP_LINGER_MS, on_linger);
    else
        exchange_free(x);
    if (cb)
        cb(ctx, &r);
    json_decref(body);
}

static void reply_now(struct exchange *x)
{
    if (x->answered)
        return;
    x->answered = true;
    x->reply.sent = exchange_sent(x);
    ev_timer_stop(&x->total);
    ev_timer_set(x->s->m->c.ev, &x->turn, 0, on_deliver);
}

static void fail(struct exchange *x, enum mcp_outcome o, const char *why)
{
    if (x->answered)
        return;
    x->reply.kind = REPLY_FAILED;
    x->reply.outcome = o;
    (void)str_copy(x->why, sizeof x->why, why);
    reply_now(x);
}

static void on_total(struct ev_timer *t)
{
    struct exchange *x = container_of(t, struct exchange, total);
    char why[96];
    (void)snprintf(why, sizeof why, "no answer within %lld s", (long long)(x->c.timeout_ms / 1000));
    x->reply.timed_out = true;
    x->any_sent = exchange_sent(x);
    fetch_cancel(x->fetch);
    x->fetch = NULL;
    fail(x, MCP_CONNECT_FAILED, why);
}

static void take_message(struct exchange *x, const struct fold_message *m)
{
    if (x->answered || !x->c.id || m->id != x->c.id)
        return;
    x->reply.kind = m->kind == FOLD_RESULT ? REPLY_RESULT : REPLY_ERROR;
    x->reply_body = json_incref((json_t *)(uintptr_t)m->body);
    reply_now(x);
}

/* What the server asks of us: it may know that we live; everything else is not offered (no capabilities were declared). */
static void answer_request(struct mcp_session *s, const struct fold_message *m)
{
    json_t *o = json_object();
    js_set_str(o, "jsonrpc", "2.0");
    js_set(o, "id", json_incref((json_t *)(uintptr_t)m->raw_id));
    if (str_eq(m->method, "ping")) {
        js_set(o, "result", json_object());
    } else {
        json_t *er = json_object();
        js_set_int(er, "code", -32601);
        js_set_str(er, "message", "this client does not serve requests of that kind");
        js_set(o, "error", er);
    }
    struct exchange_conf c = { .http_method = "POST", .url = s->endpoint, .take_body = js_text(o), .timeout_ms = MCP_FAREWELL_MS };
    json_decref(o);
    (void)exchange_start(s, &c);
}

static void on_message(void *ctx, const struct fold_message *m)
{
    struct exchange *x = ctx;
    if (m->kind == FOLD_REQUEST && x->s->era != ERA_STATELESS && !x->s->dying)
        answer_request(x->s, m);
    else if (x->c.stream)
        exchange_answer(x->s, m);
    else
        take_message(x, m);
}

static void on_endpoint(void *ctx, const char *path)
{
    struct exchange *x = ctx;
    if (x->c.stream && x->c.on_endpoint)
        x->c.on_endpoint(x->c.ctx, path);
}

static const struct fold_ops fold_ops = { .on_message = on_message, .on_endpoint = on_endpoint };

void exchange_answer(struct mcp_session *s, const struct fold_message *m)
{
    list_foreach(x, &s->exchanges, struct exchange, node)
        take_message(x, m);
}

void exchange_stream_gone(struct mcp_session *s, const char *why)
{
    list_foreach(x, &s->exchanges, struct exchange, node)
        if (!x->c.stream && x->c.id)
            fail(x, MCP_CONNECT_FAILED, why);
}

/* ---- what libcurl brings ---- */
static void copy_header(struct slice lines, const char *name, char *out, size_t cap)
{
    struct slice v = fetch_header(lines, name);
    size_t n = v.p && v.n < cap ? v.n : 0;
    for (size_t i = 0; i < n; i++) {
        if (v.p[i] < 0x20 || v.p[i] > 0x7e) {
            n = 0;
            break;
        }
    }
    memcpy(out, n ? v.p : "", n);
    out[n] = '\0';
}

static void on_head(void *ctx, int status, struct slice lines)
{
    struct exchange *x = ctx;
    char type[128];
    (void)status;
    if (x->route.kind == GUARD_TUNNEL)
        x->s->m->edge = x->first_edge + x->way;
    copy_header(lines, "content-type", type, sizeof type);
    copy_header(lines, "mcp-session-id", x->session_id, sizeof x->session_id);
    copy_header(lines, "location", x->location, sizeof x->location);
    copy_header(lines, "www-authenticate", x->auth, sizeof x->auth);
    fold_done(&x->fold);
    fold_init(&x->fold, strncasecmp(type, "text/event-stream", 17) == 0, &fold_ops, x);
    /* Where no answer is expected here, a body is small talk ("Accepted"). */
    x->talk = status == 202 || (!x->c.stream && (!x->c.id || (x->s->era == ERA_TWO_ENDPOINTS && !x->fold.sse)));
}

static int on_data(void *ctx, int status, const char *p, size_t n)
{
    struct exchange *x = ctx;
    struct err e = { 0 };
    (void)status;
    if (x->talk)
        return RC_OK;
    int rc = fold_feed(&x->fold, p, n, &e);
    if (x->fold.event_id[0] && !str_eq(x->event_id, x->fold.event_id)) {
        (void)str_copy(x->event_id, sizeof x->event_id, x->fold.event_id);
        x->resumes = 0;
    }
    if (x->fold.retry_ms >= 0)
        x->retry_ms = x->fold.retry_ms;
    if (rc < 0)
        fail(x, MCP_CONNECT_FAILED, e.msg);
    return rc;
}

static void on_resume(struct ev_timer *t)
{
    struct exchange *x = container_of(t, struct exchange, turn);
    x->ended = false;
    x->resuming = true;
    look_route(x);
}

/* A stream that broke before its answer is taken up where it was (2025 revisions: a disconnect cancels nothing). */
static bool may_resume(const struct exchange *x)
{
    return x->s->era == ERA_SESSION && x->c.id && x->fold.sse && x->event_id[0] && x->resumes < MCP_RESUMES_MAX && !x->s->dying;
}

/* An answer that is no success may still be JSON-RPC. */
static void read_error(struct exchange *x, int status, const struct buf *body)
{
    struct fold f;
    struct err e = { 0 };
    fold_init(&f, false, &fold_ops, x);
    if (x->c.id && body && buf_len(body) && fold_feed(&f, buf_data((struct buf *)(uintptr_t)body), buf_len(body), &e) == RC_OK)
        (void)!fold_end(&f, &e);
    fold_done(&f);
    if (x->answered) {
        x->reply.status = status;
        return;
    }
    x->reply.kind = REPLY_HTTP;
    x->reply.status = status;
    if (body && buf_len(body)) {
        struct slice first = { buf_data((struct buf *)(uintptr_t)body), buf_len(body) < 200 ? buf_len(body) : 200 };
        AUTO_JS s = js_string(first.p, first.n);     /* sanitised */
        (void)snprintf(x->why, sizeof x->why, "%s", json_string_value(s));
        for (char *p = x->why; *p; p++)
            if ((unsigned char)*p < 0x20)
                *p = ' ';
    }
    reply_now(x);
}

/* ---- the way there ---- */
static bool next_way(struct exchange *x)
{
    if (x->way + 1 >= x->n_ways)
        return false;
    x->way++;
    send_request(x);
    return true;
}

static const struct { const char *code, *text; } edge_words[] = {
    { PROTO_E_UNKNOWN_TUNNEL, "the edge knows no such tunnel" },
    { PROTO_E_NO_CERTIFICATE, "the tunnel has no certificate authority registered" },
    { PROTO_E_NO_CONNECTOR, "no gateway of the tunnel is connected" },
    { PROTO_E_CONNECTOR_FAILED, "the tunnel's gateway refused the connection or went away" },
    { PROTO_E_BUSY, "the edge is at its limit; try again later" },
};

static void connect_failed(struct exchange *x, const struct err *e)
{
    char why[MCP_WHY_MAX];
    int status = fetch_proxy_status(x->fetch);
    const char *note = fetch_proxy_note(x->fetch);
    (void)snprintf(why, sizeof why, "%s", e->msg);
    if (status >= 300 && x->route.kind == GUARD_TUNNEL) {
        (void)snprintf(why, sizeof why, "the edge refused the connection with status %d", status);
        for (size_t i = 0; i < COUNT_OF(edge_words); i++)
            if (str_eq(edge_words[i].code, note))
                (void)snprintf(why, sizeof why, "%s", edge_words[i].text);
        if (str_eq(note, PROTO_E_NO_CERTIFICATE) || str_eq(note, PROTO_E_UNKNOWN_TUNNEL)) {
            fail(x, MCP_REFUSED, why);       /* another edge would say the same */
            return;
        }
    } else if (status >= 300) {
        (void)snprintf(why, sizeof why, "the proxy refused the connection with status %d", status);
    }
    if (!next_way(x))
        fail(x, MCP_CONNECT_FAILED, why);
}

static void force_refresh(struct exchange *x);

static void unauthorized(struct exchange *x)
{
    char why[MCP_WHY_MAX];
    struct mcp_session *s = x->s;
    bool vaults = s->m->c.vault && s->n_vaults && !s->given_bearer;
    if (vaults && s->bearer && !x->refreshed) {
        x->refreshed = true;
        force_refresh(x);
        return;
    }
    (void)snprintf(why, sizeof why, "%s%s%s", s->bearer ? "the server refused the credential" :
                   vaults ? "the server asks for authorization, and no credential of the session's vaults has its URL" : "the server asks for authorization",
                   x->auth[0] ? ": " : "", x->auth);
    fail(x, MCP_AUTH_FAILED, why);
}

/* Only within the origin: elsewhere the guard and the credential have not been asked about. */
static bool redirect(struct exchange *x, int status)
{
    struct http_url old, fresh;
    struct err e;
    AUTO_FREE char *to = NULL;
    if ((status != 307 && status != 308) || x->s->redirected || x->c.url || !x->location[0] || http_url_parse(x->url, false, &old, &e) < 0)
        return false;
    char origin[URL_HOST_MAX + 10];
    http_url_authority(&old, false, origin);
    to = x->location[0] == '/' && x->location[1] != '/' ? str_printf("%s://%s%s", old.tls ? "https" : "http", origin, x->location) : str_dup(x->location);
    if (http_url_parse(to, false, &fresh, &e) < 0 || fresh.tls != old.tls || fresh.port != old.port || !str_eq(fresh.host, old.host))
        return false;
    x->s->redirected = true;
    free(x->s->url);
    x->s->url = str_dup(to);
    free(x->url);
    x->url = TAKE(to);
    return true;
}

static void on_done(void *ctx, int rc, int status, int64_t retry_after_ms, const char *request_id, const struct buf *body, const struct err *e)
{
    struct exchange *x = ctx;
    (void)retry_after_ms, (void)request_id;
    bool sent = fetch_sent(x->fetch);
    x->ended = true;
    if (rc != RC_OK && !sent && !x->answered) {
        connect_failed(x, e);
        if (x->ended)
            x->fetch = NULL;
        return;
    }
    x->fetch = NULL;
    x->any_sent |= sent;
    if (x->answered) {
        if (!x->c.cb)
            exchange_free(x);                /* it lingered, or nobody waited */
        return;
    }
    if (x->c.stream && (rc != RC_OK || (status >= 200 && status < 300))) {
        fail(x, MCP_CONNECT_FAILED, rc == RC_OK ? "the server ended its event stream" : e->msg);
        return;
    }
    if (rc == RC_OK && status >= 200 && status < 300) {
        struct err pe = { 0 };
        if (fold_end(&x->fold, &pe) < 0) {
            fail(x, MCP_CONNECT_FAILED, pe.msg);
            return;
        }
        if (x->answered)
            return;
    }
    if ((rc != RC_OK || (status >= 200 && status < 300)) && may_resume(x)) {
        x->resumes++;
        int64_t wait = x->retry_ms < 0 ? MCP_RESUME_MS : x->retry_ms < MCP_RESUME_MOST_MS ? x->retry_ms : MCP_RESUME_MOST_MS;
        ev_timer_set(x->s->m->c.ev, &x->turn, wait, on_resume);
        return;
    }
    if (rc != RC_OK) {
        fail(x, MCP_CONNECT_FAILED, e->msg);
    } else if (status == 401) {
        unauthorized(x);
    } else if (status == 403 && x->auth[0]) {
        char why[MCP_WHY_MAX];
        (void)snprintf(why, sizeof why, "the credential does not suffice: %s", x->auth);
        fail(x, MCP_AUTH_FAILED, why);
    } else if (redirect(x, status)) {
        look_route(x);
    } else if (status < 200 || status >= 300) {
        read_error(x, status, body);
    } else if (x->c.id && x->s->era == ERA_TWO_ENDPOINTS && x->s->stream) {
        /* accepted; the answer comes on the other stream */
    } else {
        x->reply.kind = REPLY_HTTP;
        x->reply.status = status;
        reply_now(x);
    }
}

static void add(struct exchange *x, char *take)
{
    if (x->n_headers < HEADERS_MAX)
        x->headers[x->n_headers++] = take;
    else
        free(take);
}

static void make_headers(struct exchange *x)
{
    const struct mcp_session *s = x->s;
    bool get = str_eq(x->c.http_method, "GET") || x->resuming;
    for (size_t i = 0; i < x->n_headers; i++)
        free(x->headers[i]);
    x->n_headers = 0;
    add(x, str_dup(get ? "accept: text/event-stream" : "accept: application/json, text/event-stream"));
    if (x->body && !x->resuming)
        add(x, str_dup("content-type: application/json"));
    if (s->version[0])
        add(x, str_printf("mcp-protocol-version: %s", s->version));
    if (s->session_id[0] && s->era == ERA_SESSION)
        add(x, str_printf("mcp-session-id: %s", s->session_id));
    if (x->resuming)
        add(x, str_printf("last-event-id: %s", x->event_id));
    if (s->era == ERA_STATELESS && x->method)
        add(x, str_printf("mcp-method: %s", x->method));
    if (s->era == ERA_STATELESS && x->name)
        add(x, str_printf("mcp-name: %s", x->name));
    for (size_t i = 0; i < x->n_extra; i++)
        add(x, str_dup(x->extra[i]));
}

static void send_request(struct exchange *x)
{
    struct mcp_session *s = x->s;
    struct fetch_via via[REACH_WAYS_MAX];
    x->n_ways = reach_ways(s->m, &x->route, x->ca, x->first_edge, via);
    x->ended = false;
    make_headers(x);
    struct fetch_request r = {
        .via = &via[x->way], .method = x->resuming ? "GET" : x->c.http_method, .url = x->url, .headers = (const char *const *)x->headers, .n_headers = x->n_headers,
        .secret_header = s->bearer ? "authorization" : NULL, .secret_prefix = "Bearer ", .secret = s->bearer, .body = x->resuming ? NULL : x->body,
        .body_n = x->body && !x->resuming ? strlen(x->body) : 0, .connect_ms = MCP_CONNECT_MS, .body_max = ANSWER_MAX, .on_head = on_head, .on_data = on_data,
        .on_done = on_done, .ctx = x,
    };
    x->fetch = fetch_start(s->m->fetch, &r);
}

/* ---- before it ---- */
static void on_vault(void *ctx, int rc, const struct vault_found *f, const struct err *e)
{
    struct exchange *x = ctx;
    x->lookup = NULL;
    if (rc < 0) {
        fail(x, MCP_AUTH_FAILED, e && e->msg[0] ? e->msg : "the credential could not be refreshed");
        return;
    }
    secret_free(x->s->bearer);
    x->s->bearer = f->bearer ? secret_dup(f->bearer) : NULL;
    x->s->bearer_known = true;
    send_request(x);
}

static void look_credential(struct exchange *x, bool force)
{
    struct mcp_session *s = x->s;
    /* Asked again for each request that has an answer, as tokens expire within a session; for the others what is known will do. */
    if (!s->m->c.vault || s->n_vaults == 0 || s->given_bearer || (!x->c.id && s->bearer_known && !force)) {
        send_request(x);
        return;
    }
    x->lookup = vault_find(s->m->c.vault, (const char *const *)s->vault_ids, s->n_vaults, s->url, force, on_vault, x);
}

static void force_refresh(struct exchange *x) { look_credential(x, true); }

static void on_route(void *ctx, int rc, const struct guard_route *r, const struct err *e)
{
    struct exchange *x = ctx;
    x->check = NULL;
    if (rc < 0) {
        fail(x, rc == RC_DENIED || rc == RC_INVALID ? MCP_REFUSED : MCP_CONNECT_FAILED, e->msg);
        return;
    }
    x->route = *r;
    free(x->ca);
    x->ca = r->ca_n ? str_ndup(r->ca_pem, r->ca_n) : NULL;
    x->route.ca_pem = NULL;
    if (r->kind == GUARD_TUNNEL && x->s->m->c.n_edges == 0) {
        fail(x, MCP_REFUSED, "this server has no edge configured (setting tunnel.edge), so it cannot reach tunnels");
        return;
    }
    x->way = 0;
    x->first_edge = x->s->m->edge;
    look_credential(x, false);
}

static void look_route(struct exchange *x)
{
    x->check = guard_start(x->s->m->guard, x->url, on_route, x);
}

struct exchange *exchange_start(struct mcp_session *s, const struct exchange_conf *c)
{
    struct exchange *x = xcalloc(1, sizeof *x);
    x->s = s;
    x->c = *c;
    x->retry_ms = -1;
    x->url = str_dup(c->url ? c->url : s->url);
    x->method = str_dup(c->method);
    x->name = str_dup(c->name);
    x->body = c->take_body;
    for (size_t i = 0; i < c->n_headers && i < PARAMS_MAX; i++)
        x->extra[x->n_extra++] = str_dup(c->headers[i]);
    list_add_tail(&s->exchanges, &x->node);
    if (c->timeout_ms > 0)
        ev_timer_set(s->m->c.ev, &x->total, c->timeout_ms, on_total);
    look_route(x);
    return x;
}

struct exchange *exchange_failed(struct mcp_session *s, void (*cb)(void *ctx, const struct reply *r), void *ctx, enum mcp_outcome o, const char *why)
{
    struct exchange *x = xcalloc(1, sizeof *x);
    x->s = s;
    x->c = (struct exchange_conf){ .cb = cb, .ctx = ctx };
    list_add_tail(&s->exchanges, &x->node);
    fail(x, o, why);
    return x;
}
