/* request.c - what a request asks of this server. Everything else in it is the provider's business and is not looked at. Pure. */
#include <stdio.h>
#include <string.h>

#include "json/span.h"
#include "server/messages/private.h"

#define MODEL_MAX 256                        /* characters of a model id */
#define HEADER_VALUE_MAX (8 * KIB)

/* The client's headers that the provider gets. The workspace and every credential in the head are ours and stay here. */
static const char *const forwarded[] = { "anthropic-version", "anthropic-beta", "anthropic-user-profile-id", "accept" };

void request_done(struct request *q)
{
    for (size_t i = 0; i < q->n_headers; i++)
        free(q->headers[i]);
    for (size_t i = 0; i < q->n_servers; i++) {
        free(q->servers[i].name);
        free(q->servers[i].url);
        secret_free(q->servers[i].token);
        json_decref(q->servers[i].toolset);
        json_decref(q->servers[i].pinned);
    }
    free(q->parts);
    free(q->model);
    buf_done(&q->rest);
    buf_done(&q->history);
    buf_done(&q->body);
}

/* A header that came in several lines becomes one list. */
int request_headers(struct request *q, const struct http_head *h, struct slice query, struct err *e)
{
    for (size_t k = 0; k < COUNT_OF(forwarded); k++) {
        struct buf line;
        size_t found = 0;
        buf_init(&line, HEADER_VALUE_MAX);
        (void)buf_printf(&line, "%s: ", forwarded[k]);
        for (size_t i = 0; i < h->n_headers; i++) {
            if (!slice_eq_nocase(h->headers[i].name, forwarded[k]) || h->headers[i].value.n == 0)
                continue;
            if (found++)
                (void)buf_puts(&line, ", ");
            (void)buf_put(&line, h->headers[i].value.p, h->headers[i].value.n);
        }
        if (!buf_ok(&line)) {
            buf_done(&line);
            return err_set(e, RC_INVALID, "header '%s': longer than %zu bytes", forwarded[k], HEADER_VALUE_MAX);
        }
        if (found)
            q->headers[q->n_headers++] = buf_take(&line, NULL);
        buf_done(&line);
    }
    static const char beta[] = "beta=true";
    for (struct slice left = query; left.n;) {
        const char *amp = memchr(left.p, '&', left.n);
        size_t n = amp ? (size_t)(amp - left.p) : left.n;
        q->beta_query = q->beta_query || slice_eq((struct slice){ left.p, n }, beta);
        left.p += n + (amp != NULL);
        left.n -= n + (amp != NULL);
    }
    return RC_OK;
}

static int read_model(struct request *q, struct slice value, struct err *e)
{
    struct buf text;
    if (q->model)
        return err_set(e, RC_INVALID, "model: is there twice");
    buf_init(&text, MODEL_MAX);
    int rc = span_text(value, &text);
    if (rc == RC_OK && buf_len(&text))
        q->model = buf_take(&text, NULL);
    buf_done(&text);
    return q->model ? RC_OK : err_set(e, RC_INVALID, "model: expected a string of 1 to %d characters", MODEL_MAX);
}

/* Members that decide something here; each at most once. */
enum member { MEMBER_STREAM, MEMBER_SERVERS, MEMBER_TOOLS, MEMBER_MESSAGES, MEMBER_MAX_ };
static const char *const member_names[MEMBER_MAX_] = { "stream", "mcp_servers", "tools", "messages" };

int request_read(struct request *q, struct err *e)
{
    struct span_walk w;
    struct slice key, value, got[MEMBER_MAX_] = { { NULL, 0 } };
    int rc = span_enter((struct slice){ buf_data(&q->body), buf_len(&q->body) }, '{', &w, e);
    if (rc < 0)
        return err_wrap(e, rc, "body");
    while ((rc = span_next(&w, &key, &value, e)) == RC_OK) {
        if (span_key_is(key, "model"))
            TRY(read_model(q, value, e));
        for (size_t i = 0; i < MEMBER_MAX_; i++) {
            if (!span_key_is(key, member_names[i]))
                continue;
            if (got[i].p)
                return err_set(e, RC_INVALID, "%s: is there twice", member_names[i]);
            got[i] = value;
        }
    }
    if (rc != RC_NOT_FOUND)
        return err_wrap(e, rc, "body");
    if (!q->model)
        return err_set(e, RC_INVALID, "model: Field required");
    struct slice stream = got[MEMBER_STREAM];
    if (stream.p && !memchr("tfn", span_kind(stream), 3))
        return err_set(e, RC_INVALID, "stream: expected true or false");
    q->stream = span_kind(stream) == 't' && !q->count;
    TRY(request_read_mcp(q, got[MEMBER_SERVERS], got[MEMBER_TOOLS], got[MEMBER_MESSAGES], e));
    q->path = q->count ? (q->beta_query ? "/v1/messages/count_tokens?beta=true" : "/v1/messages/count_tokens")
                       : (q->beta_query ? "/v1/messages?beta=true" : "/v1/messages");
    return RC_OK;
}
