#include "server/mcp/fold.h"

#include <string.h>

#include "base/str.h"

void fold_init(struct fold *f, bool sse, const struct fold_ops *ops, void *ctx)
{
    memset(f, 0, sizeof *f);
    f->sse = sse;
    f->retry_ms = -1;
    f->ops = ops;
    f->ctx = ctx;
    if (sse)
        f->decoder = sse_decoder_new(FOLD_MESSAGE_MAX);
    buf_init(&f->body, FOLD_MESSAGE_MAX);
}

void fold_done(struct fold *f)
{
    if (f->decoder)
        sse_decoder_free(f->decoder);
    buf_done(&f->body);
    memset(f, 0, sizeof *f);
}

/* We number our requests; some servers send the number back as a text. */
static int64_t id_of(const json_t *id)
{
    int64_t n;
    if (json_is_integer(id))
        return json_integer_value(id);
    if (json_is_string(id) && str_to_i64(json_string_value(id), 0, INT64_MAX, &n) == RC_OK)
        return n;
    return -1;
}

static void one(struct fold *f, const json_t *o)
{
    const json_t *id = json_object_get(o, "id"), *result = json_object_get(o, "result"), *error = json_object_get(o, "error");
    struct fold_message m = { .id = -1, .method = js_str(o, "method") };
    if (m.method) {
        bool asks = json_is_string(id) || json_is_integer(id);
        m.kind = asks ? FOLD_REQUEST : FOLD_NOTICE;
        m.raw_id = asks ? id : NULL;
        m.body = json_object_get(o, "params");
    } else if (json_is_object(result) || json_is_object(error)) {
        m.kind = json_is_object(result) ? FOLD_RESULT : FOLD_ERROR;
        m.body = json_is_object(result) ? result : error;
        m.id = id_of(id);
    } else {
        return;
    }
    f->ops->on_message(f->ctx, &m);
}

static int text(struct fold *f, const char *p, size_t n)
{
    AUTO_JS j = NULL;
    size_t i;
    json_t *o;
    if (js_parse(p, n, FOLD_MESSAGE_MAX, &j, f->e) < 0)
        return err_wrap(f->e, RC_PROTO, "the server's message is not usable JSON");
    if (json_is_object(j)) {
        one(f, j);
        return RC_OK;
    }
    if (!json_is_array(j) || json_array_size(j) > FOLD_BATCH_MAX)
        return err_set(f->e, RC_PROTO, "the server's message is neither an object nor a short batch");
    json_array_foreach(j, i, o)
        one(f, o);
    return RC_OK;
}

static int on_event(void *ctx, const struct sse_event *ev)
{
    struct fold *f = ctx;
    if (ev->id && ev->id[0] && !str_copy(f->event_id, sizeof f->event_id, ev->id))
        f->event_id[0] = '\0';               /* too long to be sent back */
    if (str_eq(ev->event, "endpoint")) {
        AUTO_FREE char *path = str_ndup(ev->data, ev->data_n);
        if (f->ops->on_endpoint)
            f->ops->on_endpoint(f->ctx, path);
        return RC_OK;
    }
    if ((ev->event && ev->event[0] && !str_eq(ev->event, "message")) || ev->data_n == 0)
        return RC_OK;
    return text(f, ev->data, ev->data_n);
}

int fold_feed(struct fold *f, const char *p, size_t n, struct err *e)
{
    f->e = e;
    if (!f->sse)
        return buf_put(&f->body, p, n) < 0 ? err_set(e, RC_TOO_LARGE, "the server's answer is larger than %zu bytes", FOLD_MESSAGE_MAX) : RC_OK;
    int rc = sse_feed(f->decoder, p, n, on_event, f);
    f->retry_ms = sse_retry_ms(f->decoder);
    return rc == RC_TOO_LARGE ? err_set(e, rc, "an event of the server is larger than %zu bytes", FOLD_MESSAGE_MAX) : rc;
}

int fold_end(struct fold *f, struct err *e)
{
    f->e = e;
    return f->sse || buf_len(&f->body) == 0 ? RC_OK : text(f, buf_data(&f->body), buf_len(&f->body));
}
