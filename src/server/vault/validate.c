/* validate.c - a live check of one mcp_oauth credential. The MCP server is asked as a client begins: initialize, then tools/list; a server that knows only the
 * stateless revision is asked for its tools at once. What matters here is whether the token is taken, so an error of the protocol counts as an answer. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "server/vault/private.h"

#define REVISION "2025-11-25"
#define REVISION_STATELESS "2026-07-28"
#define SESSION_ID_MAX 512
#define VERSION_MAX 32

enum step { STEP_INITIALIZE, STEP_INITIALIZED, STEP_TOOLS, STEP_STATELESS };
struct validation {
    struct vault *v;
    struct list node;
    struct refresh_wait wait;
    char vault_id[ID_MAX], id[ID_MAX];
    void (*cb)(void *ctx, int rc, const struct vault_validation *r, const struct err *e);
    void *ctx;
    bool over;                           /* answered; the job still has to report */
    bool looking;                        /* the job runs */
    /* the job's, until it has reported */
    int rc;
    struct err e;
    struct cred *cred;
    /* ev thread */
    enum step step;
    struct vcall *call;
    char session_header[SESSION_ID_MAX + 24], version_header[VERSION_MAX + 32];
    const char *headers[6]; size_t n_headers;
    char *body;
    bool refreshed;                      /* tried */
    const char *refresh;
    struct note refresh_note, probe_note;
};
/* Ends the server's session; nobody waits for it. */
struct farewell { char *url, *session_header, *version_header; const char *headers[2]; struct secret *bearer; };

static void ask(struct validation *x, enum step s);

static void validation_free(struct validation *x)
{
    list_del(&x->node);
    x->v->n_validations--;
    refresh_leave(&x->wait);
    vcall_cancel(x->call);
    note_done(&x->refresh_note);
    note_done(&x->probe_note);
    cred_free(x->cred);
    free(x->body);
    free(x);
}

/* ---- the end ---- */
static void on_farewell(void *ctx, const struct vcall_result *r)
{
    struct farewell *f = ctx;
    (void)r;
    free(f->url);
    free(f->session_header);
    free(f->version_header);
    secret_free(f->bearer);
    free(f);
}

static void say_farewell(struct validation *x)
{
    if (!x->session_header[0] || x->v->draining)
        return;
    struct farewell *f = xcalloc(1, sizeof *f);
    f->url = str_dup(x->cred->url);
    f->session_header = str_dup(x->session_header);
    f->version_header = str_dup(x->version_header);
    f->headers[0] = f->session_header;
    f->headers[1] = f->version_header;
    f->bearer = secret_dup(x->cred->secrets.token);
    struct vcall_conf c = { .method = "DELETE", .url = f->url, .headers = f->headers, .n_headers = 2, .secret_prefix = "Bearer ", .secret = f->bearer,
                            .total_ms = CONNECT_MS, .body_max = KIB, .cb = on_farewell, .ctx = f };
    (void)vcall_start(x->v, &c);
}

static void give(struct validation *x, int rc, const struct vault_validation *r)
{
    void (*cb)(void *, int, const struct vault_validation *, const struct err *) = x->cb;
    x->over = true;
    cb(x->ctx, rc, r, &x->e);
    if (!x->looking)
        validation_free(x);
}

static struct vault_answer answer_of(const struct note *n)
{
    return (struct vault_answer){ n->status, n->content_type, n->body ? n->body : "", n->truncated };
}

static void verdict(struct validation *x, enum vault_verdict v, const char *probe)
{
    struct vault_answer refresh = answer_of(&x->refresh_note), probed = answer_of(&x->probe_note);
    struct vault_validation r = {
        .verdict = v, .has_refresh_token = x->cred->secrets.refresh_token != NULL, .refresh = x->refresh, .refresh_answer = x->refresh_note.status ? &refresh : NULL,
        .probe = probe, .probe_answer = probe && x->probe_note.status ? &probed : NULL,
    };
    say_farewell(x);
    give(x, RC_OK, &r);
}

/* 4xx says that the credential is at fault, but for those that say "later". */
static enum vault_verdict by_status(int status)
{
    return status >= 400 && status < 500 && status != 408 && status != 425 && status != 429 ? VAULT_INVALID : VAULT_UNKNOWN;
}

/* ---- refresh ---- */
static const char *step_method(enum step s)
{
    return s == STEP_INITIALIZE ? "initialize" : s == STEP_INITIALIZED ? "notifications/initialized" : "tools/list";
}

static void on_refreshed(struct refresh_wait *w, const struct refresh_result *r)
{
    struct validation *x = container_of(w, struct validation, wait);
    const char *probe = step_method(x->step);
    if (r->end == REFRESH_SUCCEEDED) {
        x->refresh = "succeeded";
        secret_free(x->cred->secrets.token);
        x->cred->secrets.token = secret_dup(r->bearer);
        x->session_header[0] = '\0';
        ask(x, STEP_INITIALIZE);
        return;
    }
    if (r->end == REFRESH_REFUSED || r->end == REFRESH_BROKEN) {
        x->e = *r->e;
        give(x, r->end == REFRESH_REFUSED || r->rc == RC_UNAUTHORIZED ? RC_INVALID : r->rc, NULL);
        return;
    }
    x->refresh = r->end == REFRESH_FAILED ? "failed" : "connect_error";
    if (r->note) {
        x->refresh_note = *r->note;
        x->refresh_note.body = str_dup(r->note->body);
    }
    /* A 2xx answer without a token is the provider's fault, not the grant's. */
    verdict(x, r->note && r->end == REFRESH_FAILED ? by_status(r->note->status) : VAULT_UNKNOWN, probe);
}

static void unauthorized(struct validation *x)
{
    if (x->refreshed) {
        verdict(x, VAULT_INVALID, step_method(x->step));
        return;
    }
    x->refreshed = true;
    if (!cred_can_refresh(x->cred)) {
        x->refresh = "no_refresh_token";
        verdict(x, VAULT_INVALID, step_method(x->step));
        return;
    }
    struct cred *again = xcalloc(1, sizeof *again);      /* what refresh_join() looks at before it reads the row itself */
    (void)str_copy(again->vault_id, ID_MAX, x->vault_id);
    (void)str_copy(again->id, ID_MAX, x->id);
    again->updated_ms = x->cred->updated_ms;
    again->secrets.token = secret_dup(x->cred->secrets.token);
    refresh_join(x->v, again, true, &x->wait);
}

/* ---- the probe ---- */
/* The JSON-RPC message in a body, or in the first event of a stream. */
static json_t *message_of(const char *p, size_t n)
{
    json_t *j = NULL;
    struct buf data;
    if (js_parse(p, n, PROBE_ANSWER_MAX, &j, NULL) == RC_OK)
        return j;
    buf_init(&data, PROBE_ANSWER_MAX);
    for (const char *end = p + n; p < end;) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        size_t len = (size_t)((nl ? nl : end) - p);
        struct slice line = { p, len && p[len - 1] == '\r' ? len - 1 : len };
        p = nl ? nl + 1 : end;
        if (line.n == 0 && buf_len(&data))
            break;
        if (line.n > 5 && memcmp(line.p, "data:", 5) == 0)
            (void)buf_put(&data, line.p + 5, line.n - 5);
    }
    if (buf_ok(&data) && js_parse(buf_data(&data), buf_len(&data), PROBE_ANSWER_MAX, &j, NULL) < 0)
        j = NULL;
    buf_done(&data);
    return j;
}

static bool header_safe(const char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s <= ' ' || (unsigned char)*s >= 127)
            return false;
    return true;
}

/* What the answer to initialize fixes for the requests after it. */
static void take_session(struct validation *x, const struct vcall_result *r)
{
    AUTO_JS j = message_of(r->body, r->body_n);
    const char *version = js_str(j, "result.protocolVersion");
    struct slice id = fetch_header(r->head, "mcp-session-id");
    (void)snprintf(x->version_header, sizeof x->version_header, "mcp-protocol-version: %s", version && strlen(version) < VERSION_MAX && header_safe(version) ? version : REVISION);
    x->session_header[0] = '\0';
    if (id.p && id.n && id.n < SESSION_ID_MAX)
        (void)snprintf(x->session_header, sizeof x->session_header, "mcp-session-id: %.*s", (int)id.n, id.p);
    if (!header_safe(x->session_header + (x->session_header[0] ? 16 : 0)))
        x->session_header[0] = '\0';
}

static void keep_note(struct validation *x, const struct vcall_result *r)
{
    char type[128] = "";
    struct slice ct = fetch_header(r->head, "content-type");
    const struct vault_secrets *s = &x->cred->secrets;
    const struct secret *hide[] = { s->token, s->refresh_token, s->client_secret };
    if (ct.p && ct.n < sizeof type)
        memcpy(type, ct.p, ct.n);
    note_set(&x->probe_note, r->status, type, r->body, r->body_n, hide, COUNT_OF(hide));
}

/* Answers with which a server of the stateless revision, or of none, meets a handshake that it does not know. */
static bool knows_no_handshake(int status) { return status == 400 || status == 404 || status == 405 || status == 406 || status == 415 || status == 422 || status == 501; }

static void on_answer(void *ctx, const struct vcall_result *r)
{
    struct validation *x = ctx;
    x->call = NULL;
    if (r->refused) {
        (void)err_set(&x->e, RC_INVALID, "the MCP server may not be called: %s", r->e ? r->e->msg : "");
        give(x, RC_INVALID, NULL);
        return;
    }
    bool ok = r->rc == RC_OK && r->status >= 200 && r->status < 300;
    if (x->step == STEP_INITIALIZED) {       /* a notification: whatever came, the next request tells */
        ask(x, STEP_TOOLS);
        return;
    }
    if (!ok && x->step == STEP_STATELESS && r->status != 401) {
        verdict(x, by_status(x->probe_note.status), "initialize");      /* the first answer stays the one that is shown */
        return;
    }
    if (!ok) {
        note_done(&x->probe_note);
        if (r->rc == RC_OK)
            keep_note(x, r);
    }
    if (r->rc != RC_OK)
        verdict(x, VAULT_UNKNOWN, step_method(x->step));
    else if (r->status == 401)
        unauthorized(x);
    else if (!ok && x->step == STEP_INITIALIZE && knows_no_handshake(r->status))
        ask(x, STEP_STATELESS);
    else if (!ok)
        verdict(x, by_status(r->status), step_method(x->step));
    else if (x->step == STEP_INITIALIZE) {
        take_session(x, r);
        ask(x, STEP_INITIALIZED);
    } else {
        verdict(x, VAULT_VALID, NULL);
    }
}

static char *message(enum step s)
{
    AUTO_JS o = json_object();
    json_t *params = json_object(), *info = json_object();
    js_set_str(info, "name", "outwork");
    js_set_str(info, "version", OUTWORK_VERSION);
    js_set_str(o, "jsonrpc", "2.0");
    if (s != STEP_INITIALIZED)
        js_set_int(o, "id", s == STEP_INITIALIZE ? 1 : 2);
    js_set_str(o, "method", step_method(s));
    if (s == STEP_INITIALIZE) {
        js_set_str(params, "protocolVersion", REVISION);
        js_set(params, "capabilities", json_object());
        js_set(params, "clientInfo", info);
        js_set(o, "params", params);
    } else if (s == STEP_STATELESS) {
        json_t *meta = json_object();
        js_set_str(meta, "io.modelcontextprotocol/protocolVersion", REVISION_STATELESS);
        js_set(meta, "io.modelcontextprotocol/clientInfo", info);
        js_set(meta, "io.modelcontextprotocol/clientCapabilities", json_object());
        js_set(params, "_meta", meta);
        js_set(o, "params", params);
    } else {
        json_decref(params);
        json_decref(info);
    }
    return js_text(o);
}

static void ask(struct validation *x, enum step s)
{
    x->step = s;
    free(x->body);
    x->body = message(s);
    x->n_headers = 0;
    x->headers[x->n_headers++] = "content-type: application/json";
    x->headers[x->n_headers++] = "accept: application/json, text/event-stream";
    if (s == STEP_STATELESS) {
        x->headers[x->n_headers++] = "mcp-protocol-version: " REVISION_STATELESS;
        x->headers[x->n_headers++] = "mcp-method: tools/list";
    } else if (s != STEP_INITIALIZE) {
        x->headers[x->n_headers++] = x->version_header;
        if (x->session_header[0])
            x->headers[x->n_headers++] = x->session_header;
    }
    struct vcall_conf c = {
        .method = "POST", .url = x->cred->url, .headers = x->headers, .n_headers = x->n_headers, .secret_prefix = "Bearer ", .secret = x->cred->secrets.token,
        .body = x->body, .body_n = strlen(x->body), .total_ms = PROBE_TOTAL_MS, .body_max = PROBE_ANSWER_MAX, .one_event = true, .cb = on_answer, .ctx = x,
    };
    x->call = vcall_start(x->v, &c);
}

/* ---- the start ---- */
static void looked(void *arg)
{
    struct validation *x = arg;
    x->looking = false;
    if (x->over)
        validation_free(x);
    else if (x->rc < 0)
        give(x, x->rc, NULL);
    else if (!x->cred->oauth)
        give(x, err_set(&x->e, RC_INVALID, "only credentials of the type mcp_oauth can be validated"), NULL);
    else if (x->cred->archived)
        give(x, err_set(&x->e, RC_INVALID, "credential '%s' is archived", x->id), NULL);
    else
        ask(x, STEP_INITIALIZE);
}

static void look_job(void *arg)
{
    struct validation *x = arg;
    x->rc = cred_load(x->v, x->vault_id, x->id, NULL, &x->cred, &x->e);
    ev_post(x->v->c.ev, looked, x);
}

void vault_validate(struct vault *v, const char *vault_id, const char *credential_id,
                    void (*cb)(void *ctx, int rc, const struct vault_validation *r, const struct err *e), void *ctx)
{
    struct validation *x = xcalloc(1, sizeof *x);
    x->v = v;
    x->cb = cb;
    x->ctx = ctx;
    x->looking = true;
    (void)str_copy(x->vault_id, ID_MAX, vault_id);
    (void)str_copy(x->id, ID_MAX, credential_id);
    list_init(&x->wait.node);
    x->wait.cb = on_refreshed;
    list_add_tail(&v->validations, &x->node);
    int rc = ++v->n_validations > VALIDATIONS_MAX ? err_set(&x->e, RC_LIMIT, "%d credentials are being validated already", VALIDATIONS_MAX)
           : v->draining ? err_set(&x->e, RC_CLOSED, "this server is stopping")
           : jobs_add(v->c.jobs, look_job, x) < 0 ? err_set(&x->e, RC_LIMIT, "too much waits for the database") : RC_OK;
    if (rc < 0) {        /* otherwise the job has `x`, and may have its own answer there by now */
        x->rc = rc;
        ev_post(v->c.ev, looked, x);
    }
}

void validate_end_all(struct vault *v, bool loop_ended)
{
    list_foreach(x, &v->validations, struct validation, node) {
        x->looking = x->looking && !loop_ended;
        if (!x->over)
            give(x, err_set(&x->e, RC_CLOSED, "this server is stopping"), NULL);
        else if (!x->looking)
            validation_free(x);
    }
}
