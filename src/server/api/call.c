/* server/api/call.c - the life of one request: credentials, shapes, handler, answer. */
#include "server/api/call.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "crypto/crypto.h"
#include "log/log.h"
#include "metrics/metrics.h"

#define HEADERS_MAX (4 * KIB)        /* our own header lines of one answer */

METRIC_DEFINE(metric_seconds, METRIC_HISTOGRAM, "outwork_http_request_seconds", "Time from request to answer, without streams and held polls");
METRIC_DEFINE_LABEL(metric_2xx, METRIC_COUNTER, "outwork_http_requests_total", "class=\"2xx\"", "Answers by status class");
METRIC_DEFINE_LABEL(metric_4xx, METRIC_COUNTER, "outwork_http_requests_total", "class=\"4xx\"", "Answers by status class");
METRIC_DEFINE_LABEL(metric_5xx, METRIC_COUNTER, "outwork_http_requests_total", "class=\"5xx\"", "Answers by status class");

struct slice call_header(const struct call *c, const char *name)
{
    const struct http_head *h = http_req_head(c->req);
    for (size_t i = 0; i < h->n_headers; i++)
        if (slice_eq_nocase(h->headers[i].name, name))
            return h->headers[i].value;
    return (struct slice){ NULL, 0 };
}

bool call_is_worker(const struct call *c)
{
    return c->who.kind == WHO_ENVIRONMENT || c->who.kind == WHO_SESSION;
}

int call_fail(struct call *c, int rc, const char *fmt, ...)
{
    char text[ERR_MSG_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return err_set(&c->e, rc, "%s", text);
}

int call_fail_code(struct call *c, int rc, const char *code, const char *fmt, ...)
{
    char text[ERR_MSG_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    c->error_code = code;
    return err_set(&c->e, rc, "%s", text);
}

int call_json(struct call *c, json_t *take)
{
    int rc = js_write(take, &c->out);
    json_decref(take);
    return rc == RC_OK ? RC_OK : call_fail(c, rc, "the answer is too large");
}

static pthread_mutex_t *lock_of(struct call *c, const char *id)
{
    uint32_t h = 2166136261u;
    for (; *id; id++)
        h = (h ^ (uint8_t)*id) * 16777619u;
    return &c->api->locks[h % API_LOCKS];
}

void call_lock(struct call *c, const char *id)
{
    pthread_mutex_lock(lock_of(c, id));
}

void call_unlock(struct call *c, const char *id)
{
    pthread_mutex_unlock(lock_of(c, id));
}

/* ---- answering ---- */
/* Only words of the API document's closed ErrorType list (413 and 501 have none of their own there). */
static const char *error_type(int status)
{
    switch (status) {
    case 401: return "authentication_error";
    case 402: return "billing_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 409: return "conflict_error";
    case 429: return "rate_limit_error";
    case 500: case 501: case 502: return "api_error";
    case 503: case 529: return "overloaded_error";
    case 504: return "timeout_error";
    default: return status >= 500 ? "api_error" : "invalid_request_error";
    }
}

static void error_body(struct buf *out, int status, const char *type, const char *message, const char *code, json_t *details, const char *request_id)
{
    AUTO_JS root = json_object();
    json_t *err = json_object();
    js_set_str(root, "type", "error");
    js_set_str(err, "type", type ? type : error_type(status));
    js_set_str(err, "message", message);
    if (code) {
        details = details ? details : json_object();
        js_set_str(details, "error_code", code);
    }
    if (details)
        js_set(err, "details", details);
    js_set(root, "error", err);
    if (request_id)
        js_set_str(root, "request_id", request_id);
    else
        js_set(root, "request_id", json_null());
    if (js_write(root, out) < 0)
        buf_clear(out);
}

void api_refused(void *ctx, int status, const char *why, struct buf *body)
{
    (void)ctx;
    error_body(body, status, NULL, why, NULL, NULL, NULL);
}

static void render_failure(struct call *c, int rc)
{
    c->status = c->error_status ? c->error_status : rc_http(rc);
    if (c->status >= 500 && rc != RC_UNSUPPORTED)
        log_err(LOG_WARN, "api.failed", &c->e);
    buf_clear(&c->out);
    bool ours = c->status == 500;        /* texts of the store are for the log, not for the caller */
    error_body(&c->out, c->status, c->error_type, ours ? "Internal server error" : c->e.msg[0] ? c->e.msg : rc_text(rc), c->error_code,
               TAKE(c->error_details), c->request_id);
    c->content_type = "application/json";
    if (c->status == 429 || c->status == 503)
        buf_puts(&c->headers, "retry-after: 1\r\n");
    if (c->no_retry || rc == RC_UNSUPPORTED)
        buf_puts(&c->headers, "x-should-retry: false\r\n");
}

void call_free(struct call *c)
{
    if (!c)
        return;
    json_decref(c->query);
    json_decref(c->body);
    json_decref(c->error_details);
    buf_done(&c->out);
    buf_done(&c->headers);
    arena_free(c->arena);
    free(c);
}

void call_finish(struct call *c, int rc)
{
    if (rc < 0)
        render_failure(c, rc);
    buf_printf(&c->headers, "request-id: %s\r\n", c->request_id);
    if (c->who.kind != WHO_NOBODY)
        buf_puts(&c->headers, c->api->base_headers);
    metric_add(c->status >= 500 ? &metric_5xx : c->status >= 400 ? &metric_4xx : &metric_2xx, 1);
    metric_observe_us(&metric_seconds, clock_mono_us() - c->start_us);
    log_debug("http.answer", "request_id=%s status=%d path=%s", c->request_id, c->status, c->route ? c->route->path : "");
    struct http_reply a = {
        .status = c->status, .content_type = buf_len(&c->out) ? c->content_type : NULL, .headers = buf_data(&c->headers), .body = &c->out,
    };
    http_reply(c->req, &a);
    call_free(c);
}

/* ---- before the handler ---- */
static int who_may(struct call *c)
{
    const struct route *r = c->route;
    if (r->flags & WHO_ANYONE)
        return RC_OK;
    int rc = auth_check(c->store, c->arena, call_header(c, "authorization"), call_header(c, "x-api-key"), c->now_ms, &c->who, &c->e);
    if (rc == RC_UNAUTHORIZED && r->flags & WHO_EDGE_KEY)       /* told apart from a refused tunnel token, which is also a 401 */
        return call_fail_code(c, rc, "edge_key_refused", "This path needs a valid edge key as bearer token (`outwork edge-key create`).");
    if (rc < 0)
        return rc;
    switch (c->who.kind) {
    case WHO_API_KEY:
        if (r->role == ROLE_NONE)
            return call_fail(c, RC_DENIED, r->flags & WHO_EDGE_KEY ? "This operation is for edges: use an edge key."
                                                                   : "This operation is for workers: use the environment key or the work item's token.");
        if (c->who.role < r->role)
            return call_fail(c, RC_DENIED, "This API key has the role '%s'; this operation needs '%s'.", auth_role_name(c->who.role), auth_role_name(r->role));
        return RC_OK;
    case WHO_ENVIRONMENT:
        return r->flags & WHO_ENV_KEY ? RC_OK : call_fail(c, RC_DENIED, "An environment key may not do this.");
    case WHO_SESSION:
        return r->flags & WHO_SES_TOKEN ? RC_OK : call_fail(c, RC_DENIED, "A work item's token may not do this.");
    case WHO_EDGE:
        return r->flags & WHO_EDGE_KEY ? RC_OK : call_fail(c, RC_DENIED, "An edge key may not do this.");
    case WHO_NOBODY: break;
    }
    return call_fail(c, RC_UNAUTHORIZED, "No valid credential.");
}

/* What a row's BETA_ flag asks for: a value that begins so, or the older name. Values that we do not know are ignored (docs/decisions/0010, 0016). */
static const struct { unsigned flag; const char *family, *older, *example; } betas[] = {
    { BETA_AGENTS, "managed-agents-", "environments-2026-03-01", "managed-agents-2026-04-01" },
    { BETA_TUNNELS, "mcp-tunnels-", NULL, "mcp-tunnels-2026-06-22" },
    { BETA_ORG_TUNNELS, "mcp-tunnels-", NULL, "mcp-tunnels-2026-05-19" },
};

static bool beta_given(const struct call *c, const char *family, const char *older)
{
    const struct http_head *h = http_req_head(c->req);
    size_t family_n = strlen(family);
    for (size_t i = 0; i < h->n_headers; i++) {
        if (!slice_eq_nocase(h->headers[i].name, "anthropic-beta"))
            continue;
        struct slice left = h->headers[i].value;
        while (left.n) {
            const char *comma = memchr(left.p, ',', left.n);
            size_t n = comma ? (size_t)(comma - left.p) : left.n;
            struct slice v = slice_trim((struct slice){ left.p, n });
            if ((older && slice_eq(v, older)) || (v.n > family_n && memcmp(v.p, family, family_n) == 0))
                return true;
            left.p += n + (comma != NULL);
            left.n -= n + (comma != NULL);
        }
    }
    return false;
}

static int check_beta(struct call *c)
{
    for (size_t i = 0; i < COUNT_OF(betas); i++)
        if (c->route->flags & betas[i].flag && !beta_given(c, betas[i].family, betas[i].older))
            return call_fail(c, RC_NOT_FOUND, "Not found. This path needs the header 'anthropic-beta: %s'.", betas[i].example);
    return RC_OK;
}

static int take_query(struct call *c)
{
    const struct schema_op *op = c->route->op ? schema_op_find(c->route->op) : NULL;
    return shape_query(op ? op->query : 0, http_req_query(c->req), &c->query, &c->e);
}

static int take_body(struct call *c)
{
    struct slice raw = http_req_body(c->req), coding = call_header(c, "content-encoding");
    const struct schema_op *op = c->route->op ? schema_op_find(c->route->op) : NULL;
    if (coding.p && coding.n && !slice_eq_nocase(coding, "identity"))
        return call_fail_code(c, RC_INVALID, "request_body_encoding_unsupported", "content-encoding '%.*s' is not supported", (int)(coding.n > 40 ? 40 : coding.n), coding.p);
    if (c->route->flags & RAW_BODY || c->route->body_max == 0 || slice_trim(raw).n == 0) {
        c->body = json_object();
    } else {
        int rc = js_parse(raw.p, raw.n, c->route->body_max, &c->body, &c->e);
        if (rc < 0)
            return c->route->flags & SECRET_BODY ? call_fail(c, rc, "body: invalid JSON, or too large") : rc;
        if (!json_is_object(c->body))
            return call_fail(c, RC_INVALID, "body: expected an object");
    }
    if (!op || !op->body)
        return RC_OK;
    TRY(shape_check(op->body, c->body, &c->e));
    json_t *pruned = shape_prune(op->body, c->body);
    json_decref(c->body);
    c->body = pruned;
    return RC_OK;
}

static int prepare(struct call *c)
{
    TRY(who_may(c));
    TRY(check_beta(c));
    TRY(take_query(c));
    return take_body(c);
}

void call_run(void *arg)
{
    struct call *c = arg;
    int rc = prepare(c);
    if (rc == RC_OK)
        rc = c->route->handler(c);
    if (rc != CALL_TAKEN)
        call_finish(c, rc);
}
