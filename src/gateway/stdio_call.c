/* gateway/stdio_call.c - one HTTP exchange of a stdio upstream: the body that comes in, the answer that goes out as JSON or as an event stream. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/secret.h"
#include "base/str.h"
#include "gateway/stdio_internal.h"
#include "http/sse.h"
#include "log/log.h"

#define CALL_WORDS_MAX 320
#define HEADERS_MAX 320

static const char *find_header(const struct http_head *h, const char *name, char *out, size_t cap)
{
    const struct slice *v = http_find(h, name);
    if (!v || v->n >= cap)
        return v ? NULL : "";
    memcpy(out, v->p, v->n);
    out[v->n] = '\0';
    return out;
}

/* Does an Accept header take `type`? No header takes everything (RFC 9110 12.5.1). A q of 0 is rare enough to be read as a yes. */
static bool accepts(const struct http_head *h, const char *type)
{
    bool any = false;
    size_t n = strlen(type), major = (size_t)(strchr(type, '/') - type);
    for (size_t i = 0; i < h->n_headers; i++) {
        if (!slice_eq_nocase(h->headers[i].name, "accept"))
            continue;
        any = true;
        struct slice v = h->headers[i].value;
        while (v.n) {
            const char *comma = memchr(v.p, ',', v.n);
            size_t len = comma ? (size_t)(comma - v.p) : v.n;
            const char *semi = memchr(v.p, ';', len);
            struct slice one = slice_trim((struct slice){ v.p, semi ? (size_t)(semi - v.p) : len });
            if (slice_eq(one, "*/*") || (one.n == n && strncasecmp(one.p, type, n) == 0) ||
                (one.n == major + 2 && strncasecmp(one.p, type, major + 1) == 0 && one.p[one.n - 1] == '*'))
                return true;
            v = comma ? (struct slice){ comma + 1, v.n - len - 1 } : (struct slice){ NULL, 0 };
        }
    }
    return !any;
}

/* "2025-11-25": ten characters, digits and two dashes. */
static bool version_ok(const char *v)
{
    if (strlen(v) != 10)
        return false;
    for (int i = 0; i < 10; i++)
        if (i == 4 || i == 7 ? v[i] != '-' : v[i] < '0' || v[i] > '9')
            return false;
    return true;
}

static void on_next(struct ev_timer *t)
{
    stdio_dispatch(container_of(t, struct upstream_call, timer));
}

struct upstream_call *scall_start(void *upstream, struct exchange *x)
{
    struct stdio_upstream *u = upstream;
    const struct http_head *h = exchange_head(x);
    struct upstream_call *c = xcalloc(1, sizeof *c);
    c->up = u;
    c->x = x;
    c->kind = h->method == HTTP_POST ? CALL_POST : h->method == HTTP_GET ? CALL_GET : h->method == HTTP_DELETE ? CALL_DELETE : CALL_OTHER;
    c->json_ok = accepts(h, "application/json");
    c->sse_ok = accepts(h, "text/event-stream");
    buf_init(&c->body, u->line_max);
    buf_init(&c->out, 2 * u->line_max + 2 * STDIO_STREAM_HIGH);
    list_add_tail(&u->calls, &c->link);
    if (!find_header(h, "mcp-session-id", c->session, sizeof c->session))
        (void)str_copy(c->session, sizeof c->session, "?");      /* longer than any of ours: of no session */
    const char *v = find_header(h, "mcp-protocol-version", c->version, sizeof c->version);
    if (!v || (*v && !version_ok(v)))
        c->refuse_status = 400;
    c->stateless = !c->refuse_status && strcmp(c->version, STDIO_STATELESS_SINCE) >= 0;
    if (!exchange_has_body(x))
        ev_timer_set(u->ev, &c->timer, 0, on_next);      /* also when the front gives no body_end() */
    return c;
}

/* ---- the body ---- */

void scall_body_done(struct upstream_call *c)
{
    c->up->bodies -= buf_len(&c->body);
    buf_wipe(&c->body);
    buf_init(&c->body, c->up->line_max);
}

static size_t body(struct upstream_call *c, const void *p, size_t n)
{
    if (c->refuse_status || c->dispatched)
        return n;                            /* dropped: the answer is being made */
    if (n > buf_room(&c->body))
        c->refuse_status = 413;
    else if (c->up->bodies + n > STDIO_BODIES_MAX || buf_put(&c->body, p, n) < 0)
        c->refuse_status = 503;
    else
        c->up->bodies += n;
    if (c->refuse_status)
        ev_timer_set(c->up->ev, &c->timer, 0, on_next);
    return n;
}

static void body_end(struct upstream_call *c)
{
    if (c->dispatched)
        return;
    c->body_whole = true;
    ev_timer_stop(&c->timer);
    stdio_dispatch(c);
}

/* ---- the end of a call ---- */

void scall_free(struct upstream_call *c)
{
    struct sproc *p = c->proc;
    ev_timer_stop(&c->timer);
    scall_body_done(c);
    list_del(&c->link);
    if (p) {
        if (p->get == c)
            p->get = NULL;
        list_foreach(q, &p->pending, struct pending, link)
            if (q->call == c)
                q->call = NULL;
        sproc_touch(p);
    }
    buf_wipe(&c->out);
    wipe(c->session, sizeof c->session);
    free(c);
    if (p)
        sproc_resume_reading(p);
}

/* In the revision without sessions a closed answer is how a request is cancelled; before it is no cancellation at all (tunnels.md 4.6). */
static void tell_cancelled(struct upstream_call *c)
{
    struct sproc *p = c->proc;
    if (!p || !p->stateless || p->ending)
        return;
    list_foreach(q, &p->pending, struct pending, link) {
        if (q->call != c)
            continue;
        struct buf b;
        buf_init(&b, RPC_TEXT_MAX + KIB);
        buf_printf(&b, "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/cancelled\",\"params\":{\"requestId\":%s,\"reason\":\"the client is gone\"}}", q->raw_id);
        if (buf_ok(&b))
            (void)!sproc_send(p, buf_data(&b), buf_len(&b));
        buf_done(&b);
    }
}

void scall_abort(struct upstream_call *c, int status, const char *why)
{
    struct err e;
    struct exchange *x = TAKE(c->x);
    tell_cancelled(c);
    scall_free(c);
    (void)err_set(&e, RC_CLOSED, "%s", why);
    exchange_fail(x, status, &e);
}

static void cancel(struct upstream_call *c)
{
    c->x = NULL;
    tell_cancelled(c);
    scall_free(c);
}

/* ---- answers ---- */

void scall_flush(struct upstream_call *c)
{
    while (buf_len(&c->out)) {
        size_t n = exchange_write(c->x, buf_data(&c->out), buf_len(&c->out));
        if (n == 0)
            return;
        buf_consume(&c->out, n);
    }
    if (c->ending) {
        struct exchange *x = TAKE(c->x);
        scall_free(c);
        exchange_end(x);
        return;
    }
    if (c->proc)
        sproc_resume_reading(c->proc);
}

static void resume(struct upstream_call *c)
{
    if (c->replied)
        scall_flush(c);
}

static void reply_head(struct upstream_call *c, int status, const char *type, const char *more, int64_t length)
{
    struct buf h;
    buf_init(&h, HEADERS_MAX + TOKEN_MAX);
    if (type)
        buf_printf(&h, "content-type: %s\r\n", type);
    buf_puts(&h, more);
    if (c->show_session && c->proc && c->proc->session[0])
        buf_printf(&h, "mcp-session-id: %s\r\n", c->proc->session);
    c->replied = true;
    ev_timer_stop(&c->timer);
    exchange_reply(c->x, status, buf_data(&h), buf_len(&h), length);
    buf_wipe(&h);
}

void scall_reply_empty(struct upstream_call *c, int status)
{
    reply_head(c, status, NULL, "", 0);
    c->ending = true;
    scall_flush(c);
}

void scall_answer(struct upstream_call *c, int status, int code, const char *raw_id, const char *fmt, ...)
{
    char words[CALL_WORDS_MAX];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(words, sizeof words, fmt, ap);
    va_end(ap);
    buf_clear(&c->out);
    stdio_error_text(&c->out, raw_id, code, words);
    log_debug("stdio.refused", "route=%s status=%d why=%s", c->up->route, status, words);
    const char *more = status == 405 ? c->stateless ? "allow: POST\r\n" : "allow: GET, POST, DELETE\r\n" : status == 503 ? "retry-after: 2\r\n" : "";
    reply_head(c, status, "application/json", more, (int64_t)buf_len(&c->out));
    c->ending = true;
    scall_flush(c);
}

static void on_keepalive(struct ev_timer *t)
{
    struct upstream_call *c = container_of(t, struct upstream_call, timer);
    if (buf_len(&c->out) == 0)
        (void)buf_puts(&c->out, ": keep-alive\n\n");
    scall_wait(c);
    scall_flush(c);
}

static void on_patience(struct ev_timer *t)
{
    struct upstream_call *c = container_of(t, struct upstream_call, timer);
    scall_stream_begin(c);
}

void scall_wait(struct upstream_call *c)
{
    if (c->sse)
        ev_timer_set(c->up->ev, &c->timer, STDIO_KEEPALIVE_MS, on_keepalive);
    else if (c->sse_ok && !c->replied)
        ev_timer_set(c->up->ev, &c->timer, STDIO_PATIENCE_MS, on_patience);
}

void scall_stream_begin(struct upstream_call *c)
{
    c->sse = true;
    reply_head(c, 200, "text/event-stream", "cache-control: no-cache, no-transform\r\nx-accel-buffering: no\r\n", -1);
    scall_wait(c);
}

/* What the stateless revision wants for an error that is the first thing to be said (MCP 2026-07-28, streamable HTTP). */
static int status_of(const struct upstream_call *c, const char *text, size_t n)
{
    struct rpc m;
    bool syntax;
    const char *why;
    struct slice code;
    int64_t v = 0;
    if (!c->stateless || rpc_parse(text, n, &m, &syntax, &why) < 0 || !rpc_member(m.error, "code", &code) || slice_to_i64(code, INT32_MIN, INT32_MAX, &v) < 0)
        return 200;
    if (v == RPC_METHOD_NOT_FOUND)
        return 404;
    return v == RPC_PARSE_ERROR || v == RPC_INVALID_REQUEST || v == -32602 || (v <= RPC_HEADER_MISMATCH && v >= -32022) ? 400 : 200;
}

void scall_message(struct upstream_call *c, const char *text, size_t n, bool final)
{
    int rc = RC_OK;
    struct sproc *p = c->proc;
    if (!c->replied && final && !c->batch && (c->json_ok || !c->sse_ok)) {
        rc = buf_put(&c->out, text, n);
        if (rc == RC_OK)
            reply_head(c, status_of(c, text, n), "application/json", "", (int64_t)n);
    } else {
        if (!c->replied)
            scall_stream_begin(c);
        rc = sse_write(&c->out, NULL, "message", text, n);
        if (rc == RC_OK && !final)
            scall_wait(c);
    }
    if (rc < 0) {
        scall_abort(c, 502, "the answer of the MCP server does not fit into the gateway's buffer");
        return;
    }
    if (final) {
        c->ending = true;
        ev_timer_stop(&c->timer);
    } else if (p && c->kind == CALL_POST && buf_len(&c->out) > STDIO_STREAM_HIGH) {
        /* the front may have room */
        scall_flush(c);
        if (buf_len(&c->out) <= STDIO_STREAM_HIGH || p->exited)
            return;
        if (p->stateless) {
            log_warn("stdio.slow_client", "route=%s waiting=%zu", c->up->route, buf_len(&c->out));
            scall_abort(c, 503, "the client does not read its event stream");
        } else {
            p->paused = true;                /* the client holds up only its own session */
        }
        return;
    }
    scall_flush(c);
}

const struct upstream_ops stdio_upstream_ops = {
    .name = "stdio", .start = scall_start, .body = body, .body_end = body_end, .resume = resume, .cancel = cancel,
};
