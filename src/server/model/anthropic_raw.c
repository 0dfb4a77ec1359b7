/* anthropic_raw.c - a request of a client passed through to the Messages API: its bytes, our credential. */
#include <string.h>
#include <strings.h>

#include "base/str.h"
#include "server/model/provider.h"

#define RAW_FIRST_BYTE_MS 660000     /* an answer that is not streamed begins when it is complete; official clients wait ten minutes */
#define RAW_HEADERS_MAX 16

struct model_raw {
    struct model_raw_request req;
    struct fetch_call *fetch;
};

static void on_head(void *ctx, int status, struct slice lines)
{
    struct model_raw *c = ctx;
    c->req.on_head(c->req.ctx, status, lines);
}

static int on_data(void *ctx, int status, const char *p, size_t n)
{
    struct model_raw *c = ctx;
    (void)status;
    c->req.on_data(c->req.ctx, p, n);
    return RC_OK;
}

static void on_done(void *ctx, int rc, int status, int64_t retry_after_ms, const char *request_id, const struct buf *body, const struct err *e)
{
    struct model_raw *c = ctx;
    (void)retry_after_ms, (void)request_id;         /* the caller has the head */
    c->req.on_done(c->req.ctx, rc, status, body, e);
    free(c);
}

static bool names(const char *line, const char *name)
{
    size_t n = strlen(name);
    return strncasecmp(line, name, n) == 0 && line[n] == ':';
}

struct model_raw *anthropic_raw_start(void *ctx, const struct model_raw_request *r)
{
    struct anthropic *self = ctx;
    struct model_raw *c = xcalloc(1, sizeof *c);
    const char *h[RAW_HEADERS_MAX];
    size_t n = 0;
    bool version = false;
    c->req = *r;
    c->req.headers = NULL;               /* borrowed for this call only */
    h[n++] = "content-type: application/json";
    for (size_t i = 0; i < r->n_headers && n < RAW_HEADERS_MAX - 1; i++) {
        version = version || names(r->headers[i], "anthropic-version");
        h[n++] = r->headers[i];
    }
    if (!version)
        h[n++] = "anthropic-version: " ANTHROPIC_VERSION;
    AUTO_FREE char *url = str_printf("%s%s", self->url, r->path);
    struct fetch_request f = {
        .method = "POST", .url = url, .headers = h, .n_headers = n, .secret_header = self->key ? "x-api-key" : NULL, .secret_prefix = "",
        .secret = self->key, .body = r->body, .body_n = r->body_n, .connect_ms = ANTHROPIC_CONNECT_MS,
        .first_byte_ms = r->stream ? ANTHROPIC_FIRST_BYTE_MS : RAW_FIRST_BYTE_MS, .stall_ms = ANTHROPIC_STALL_MS, .total_ms = ANTHROPIC_TOTAL_MS,
        .on_head = on_head, .on_data = r->stream ? on_data : NULL, .on_done = on_done, .ctx = c,
    };
    c->fetch = fetch_start(self->fetch, &f);
    return c;
}

void anthropic_raw_hold(struct model_raw *c, bool on)
{
    fetch_hold(c->fetch, on);
}

void anthropic_raw_cancel(struct model_raw *c)
{
    fetch_cancel(c->fetch);
    free(c);
}
