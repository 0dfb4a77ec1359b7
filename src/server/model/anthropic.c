/* anthropic.c - the Messages API of any base URL, streamed. */
#include "server/model/provider.h"
#include "server/model/stream.h"

#include <string.h>

#include "base/str.h"

#define ANTHROPIC_URL "https://api.anthropic.com"
#define ERROR_TEXT_MAX (64 * KIB)
#define HEADERS_MAX 8

struct model_call {
    struct anthropic *self;
    struct model_request req;
    struct msg_stream *stream;
    struct fetch_call *fetch;
    struct buf body, text;
    struct err err;
};

static void call_free(struct model_call *c)
{
    msg_stream_free(c->stream);
    buf_done(&c->body);
    buf_done(&c->text);
    free(c);
}

static int on_data(void *ctx, int status, const char *p, size_t n)
{
    struct model_call *c = ctx;
    (void)status;
    return msg_stream_feed(c->stream, p, n, &c->err);
}

static void on_done(void *ctx, int rc, int status, int64_t retry_after_ms, const char *request_id, const struct buf *body, const struct err *e)
{
    struct model_call *c = ctx;
    struct model_result r;
    if (rc == RC_OK && status >= 200 && status < 300) {
        msg_stream_result(c->stream, c->err.rc ? c->err.rc : RC_OK, &c->err, &r);
    } else if (rc == RC_OK && status >= 300) {
        static const char none[] = "";
        msg_error_result(status, retry_after_ms, body ? buf_data((struct buf *)(uintptr_t)body) : none, body ? buf_len(body) : 0, &c->text, &r);
    } else if (c->stream && c->err.rc) {
        msg_stream_result(c->stream, c->err.rc, &c->err, &r);
    } else {
        r = (struct model_result){ .outcome = MODEL_OVERLOADED, .retry_after_ms = -1, .http_status = status, .error_type = "connection_error",
                                   .message = e && e->msg[0] ? e->msg : rc_text(rc) };
    }
    r.request_id = request_id;
    c->req.on_done(c->req.ctx, &r);
    call_free(c);
}

/* The request with "stream":true put first: the caller's text is one JSON object and is not parsed again. */
static void stream_body(struct model_call *c)
{
    buf_init(&c->body, c->req.body_n + 32);
    (void)buf_puts(&c->body, "{\"stream\":true,");
    (void)buf_put(&c->body, c->req.body + 1, c->req.body_n - 1);
}

static struct model_call *start(void *ctx, const struct model_request *r)
{
    struct anthropic *self = ctx;
    struct model_call *c = xcalloc(1, sizeof *c);
    c->self = self;
    c->req = *r;
    c->stream = msg_stream_new(r->on_delta, r->ctx);
    buf_init(&c->text, ERROR_TEXT_MAX);
    stream_body(c);
    char *url = str_printf("%s/v1/messages", self->url);
    char *own[HEADERS_MAX] = { NULL };
    const char *h[HEADERS_MAX];
    size_t n = 0, n_own = 0;
    h[n++] = "content-type: application/json";
    h[n++] = "accept: text/event-stream";
    h[n++] = "anthropic-version: " ANTHROPIC_VERSION;
    if (r->beta && r->beta[0])
        h[n++] = own[n_own++] = str_printf("anthropic-beta: %s", r->beta);
    if (self->hosted && r->session_id)
        h[n++] = own[n_own++] = str_printf("anthropic-managed-agents-session-id: %s", r->session_id);
    if (self->hosted && r->agent_id)
        h[n++] = own[n_own++] = str_printf("anthropic-managed-agents-agent-id: %s", r->agent_id);
    if (self->hosted && r->environment_id)
        h[n++] = own[n_own++] = str_printf("anthropic-managed-agents-environment-id: %s", r->environment_id);
    struct fetch_request f = {
        .method = "POST", .url = url, .headers = h, .n_headers = n, .secret_header = self->key ? "x-api-key" : NULL, .secret_prefix = "",
        .secret = self->key, .body = buf_data(&c->body), .body_n = buf_len(&c->body), .connect_ms = ANTHROPIC_CONNECT_MS, .first_byte_ms = ANTHROPIC_FIRST_BYTE_MS,
        .stall_ms = ANTHROPIC_STALL_MS, .total_ms = ANTHROPIC_TOTAL_MS, .on_data = on_data, .on_done = on_done, .ctx = c,
    };
    c->fetch = fetch_start(self->fetch, &f);
    for (size_t i = 0; i < n_own; i++)
        free(own[i]);
    free(url);
    return c;
}

static void cancel(struct model_call *c)
{
    fetch_cancel(c->fetch);
    call_free(c);
}

static int caps(void *ctx, const char *model, struct model_caps *ret)
{
    struct anthropic *self = ctx;
    (void)model_table_caps(self->table, model, ret);
    return RC_OK;
}

static int list(void *ctx, json_t *into_array)
{
    struct anthropic *self = ctx;
    model_table_list(self->table, into_array);
    return RC_OK;
}

static void anthropic_free(void *ctx)
{
    struct anthropic *self = ctx;
    secret_free(self->key);
    free(self->url);
    free(self);
}

static const struct model_provider provider = { .name = "anthropic", .start = start, .cancel = cancel, .caps = caps, .list = list, .free = anthropic_free,
                                                 .raw_start = anthropic_raw_start, .raw_hold = anthropic_raw_hold, .raw_cancel = anthropic_raw_cancel };

int model_anthropic_new(struct fetch *fetch, const struct model_table *t, const struct model_conf *c, const struct model_provider **ret,
                        void **ret_self, struct err *e)
{
    const char *url = c->url && c->url[0] ? c->url : ANTHROPIC_URL;
    if (!str_prefix(url, "https://") && !str_prefix(url, "http://"))
        return err_set(e, RC_INVALID, "model URL \"%s\": must begin with https:// or http://", url);
    struct secret *key = NULL;
    if (c->key_file)
        TRY(secret_read_file(c->key_file, &key, e));
    else if (c->key)
        key = secret_dup(c->key);
    bool hosted = str_eq(url, ANTHROPIC_URL) || str_eq(url, ANTHROPIC_URL "/");
    if (hosted && !key)
        return err_set(e, RC_INVALID, "the model API needs a key: set ANTHROPIC_API_KEY or the key file");
    struct anthropic *self = xcalloc(1, sizeof *self);
    size_t n = strlen(url);
    while (n > 0 && url[n - 1] == '/')
        n--;
    self->url = str_ndup(url, n);
    self->hosted = hosted;
    self->key = key;
    self->fetch = fetch;
    self->table = t;
    *ret = &provider;
    *ret_self = self;
    return RC_OK;
}
