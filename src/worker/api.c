/* worker/api.c - see api.h */
#include "worker/api.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"

#define BODY_MAX_DEFAULT (1 * MIB)
#define WHY_MAX 400

struct api_call {
    struct http_call *http;
    bool raw, wipe;
    void (*done)(void *, const struct api_answer *);
    void *ctx;
};

void api_headers(char out[API_HEADERS_MAX], const char *beta, const char *more, bool json_body)
{
    (void)snprintf(out, API_HEADERS_MAX, "anthropic-version: " API_VERSION "\r\nanthropic-beta: %s\r\n%s%s", beta ? beta : API_BETA,
                   json_body ? "Content-Type: application/json\r\n" : "", more ? more : "");
}

void api_explain(char *out, size_t cap, int status, const struct buf *body, const json_t *json)
{
    AUTO_JS mine = NULL;
    if (!json && body && buf_len(body) && js_parse(body->mem + body->off, buf_len(body), JS_BODY_MAX, &mine, NULL) == RC_OK)
        json = mine;
    const char *msg = json ? js_str(json, "error.message") : NULL;
    const char *type = json ? js_str(json, "error.type") : NULL;
    (void)snprintf(out, cap, "HTTP %d%s%s%s%.300s", status, type ? " " : "", type ? type : "", msg ? ": " : "", msg ? msg : "");
}

static void on_done(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    struct api_call *c = ctx;
    char why[WHY_MAX] = "";
    AUTO_JS json = NULL;
    struct api_answer a = { .outcome = API_RETRY, .rc = rc, .retry_after_ms = -1, .why = why };
    if (rc < 0) {
        a.outcome = rc == RC_TOO_LARGE || rc == RC_INVALID ? API_FATAL : API_RETRY;
        (void)str_copy(why, sizeof why, e->msg);
    } else {
        a.status = r->status;
        a.head = r->head;
        a.body = r->body;
        a.outcome = api_outcome_of(r->status, r->head);
        a.retry_after_ms = retry_after_ms(r->head);
        struct err je = { 0 };
        int jrc = RC_OK;
        if (buf_len(r->body) && (!c->raw || a.outcome != API_OK))
            jrc = js_parse(buf_data(r->body), buf_len(r->body), JS_BODY_MAX, &json, &je);
        a.json = json;
        if (a.outcome != API_OK) {
            api_explain(why, sizeof why, r->status, NULL, json);
        } else if (jrc < 0) {            /* a proxy's page, or an answer cut short: worth another try */
            a.outcome = API_RETRY;
            (void)snprintf(why, sizeof why, "HTTP %d with a body that is not JSON: %.200s", r->status, je.msg);
        }
    }
    c->done(c->ctx, &a);
    if (c->wipe && rc == RC_OK)
        buf_wipe(r->body);
    free(c);
}

struct api_call *api_start(const struct api *a, const struct api_req *r)
{
    struct api_call *c = xcalloc(1, sizeof *c);
    *c = (struct api_call){ .raw = r->raw, .wipe = r->wipe, .done = r->done, .ctx = r->ctx };
    char headers[API_HEADERS_MAX];
    AUTO_FREE char *url = str_printf("%s%s", a->base, r->path);
    api_headers(headers, r->beta, r->headers, r->body != NULL);
    struct http_request q = {
        .method = r->method, .url = url, .headers = headers, .bearer = r->cred, .body = r->body, .body_n = r->body_n,
        .timeout_ms = r->timeout_ms, .body_max = r->body_max ? r->body_max : BODY_MAX_DEFAULT, .on_done = on_done, .ctx = c,
    };
    c->http = http_call_start(a->http, &q);
    return c;
}

void api_cancel(struct api_call *c)
{
    if (!c)
        return;
    http_call_cancel(c->http);
    free(c);
}
