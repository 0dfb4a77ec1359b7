/* stream.c - Messages API streaming (SSE) to one model_result. Content blocks are kept verbatim: thinking blocks must be
 * handed back byte for byte (service.md 4.1). */
#include "server/model/stream.h"

#include <string.h>

#include "base/str.h"
#include "http/sse.h"

struct block {
    json_t *obj;                 /* as given by content_block_start, completed at content_block_stop */
    struct buf text, sig;        /* text_delta | thinking_delta | input_json_delta | compaction_delta; signature_delta */
    bool has_text, has_sig, closed, null_text;
};
struct msg_stream {
    struct sse_decoder *sse;
    void (*on_delta)(void *ctx, const struct model_delta *d);
    void *ctx;
    struct block *blocks;
    size_t n, cap, bytes;
    json_t *content, *stop_details;
    char *model, *id, *stop_reason, *error_type, *error_msg;
    struct model_usage usage;
    int64_t iter_context;        /* from usage.iterations: what the last one read and wrote */
    bool started, stopped, cut_input;
    struct err *e;               /* only inside msg_stream_feed */
};

struct msg_stream *msg_stream_new(void (*on_delta)(void *ctx, const struct model_delta *d), void *ctx)
{
    struct msg_stream *s = xcalloc(1, sizeof *s);
    s->sse = sse_decoder_new(SSE_EVENT_MAX);
    s->on_delta = on_delta;
    s->ctx = ctx;
    return s;
}

void msg_stream_free(struct msg_stream *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n; i++) {
        json_decref(s->blocks[i].obj);
        buf_done(&s->blocks[i].text);
        buf_done(&s->blocks[i].sig);
    }
    free(s->blocks);
    json_decref(s->content);
    json_decref(s->stop_details);
    free(s->model);
    free(s->id);
    free(s->stop_reason);
    free(s->error_type);
    free(s->error_msg);
    sse_decoder_free(s->sse);
    free(s);
}

static void set_text(char **field, const char *text)
{
    free(*field);
    *field = str_dup(text ? text : "");
}

static void read_counts(const json_t *u, struct model_usage *ret)
{
    ret->input = js_int(u, "input_tokens", ret->input);
    ret->output = js_int(u, "output_tokens", ret->output);
    ret->cache_read = js_int(u, "cache_read_input_tokens", ret->cache_read);
    int64_t all = js_int(u, "cache_creation_input_tokens", ret->cache_write_5m + ret->cache_write_1h);
    int64_t hour = js_int(u, "cache_creation.ephemeral_1h_input_tokens", ret->cache_write_1h);
    ret->cache_write_1h = hour < all ? hour : all;
    ret->cache_write_5m = all - ret->cache_write_1h;
}

static void read_usage(struct msg_stream *s, const json_t *u)
{
    if (!json_is_object(u))
        return;
    read_counts(u, &s->usage);
    json_t *iters = js_at(u, "iterations");
    if (!json_is_array(iters) || json_array_size(iters) == 0)
        return;
    /* The cost of a compaction stands in the iterations only: the sum of them is what is billed (service.md 4.4). */
    struct model_usage sum = { 0 }, one = { 0 };
    size_t i;
    json_t *it;
    json_array_foreach(iters, i, it) {
        one = (struct model_usage){ 0 };
        read_counts(it, &one);
        sum.input += one.input;
        sum.output += one.output;
        sum.cache_read += one.cache_read;
        sum.cache_write_5m += one.cache_write_5m;
        sum.cache_write_1h += one.cache_write_1h;
    }
    s->usage = sum;
    s->iter_context = one.input + one.output + one.cache_read + one.cache_write_5m + one.cache_write_1h;
}

static void tell(struct msg_stream *s, struct model_delta d)
{
    if (s->on_delta)
        s->on_delta(s->ctx, &d);
}

static int block_start(struct msg_stream *s, const json_t *ev)
{
    json_t *obj = js_at(ev, "content_block");
    if (js_int(ev, "index", -1) != (int64_t)s->n || !js_str(obj, "type"))
        return err_set(s->e, RC_PROTO, "content_block_start out of order");
    if (s->n == STREAM_BLOCKS_MAX)
        return err_set(s->e, RC_TOO_LARGE, "more than %d content blocks", STREAM_BLOCKS_MAX);
    if (s->n == s->cap) {
        s->cap = s->cap ? s->cap * 2 : 8;
        s->blocks = xrealloc(s->blocks, s->cap, sizeof *s->blocks);
    }
    struct block *b = &s->blocks[s->n];
    memset(b, 0, sizeof *b);
    b->obj = json_copy(obj);
    buf_init(&b->text, STREAM_BYTES_MAX);
    buf_init(&b->sig, STREAM_BYTES_MAX);
    int index = (int)s->n++;
    const char *type = js_str(obj, "type");
    if (str_eq(type, "thinking") || str_eq(type, "redacted_thinking"))
        tell(s, (struct model_delta){ .kind = DELTA_THINKING_START, .index = index });
    else if (str_eq(type, "text"))
        tell(s, (struct model_delta){ .kind = DELTA_TEXT_START, .index = index });
    return RC_OK;
}

static int add_text(struct msg_stream *s, struct buf *b, bool *flag, const json_t *delta, const char *key)
{
    const json_t *v = json_object_get(delta, key);
    if (!json_is_string(v))
        return json_is_null(v) ? RC_OK : err_set(s->e, RC_PROTO, "content_block_delta without \"%s\"", key);
    size_t n = json_string_length(v);
    *flag = true;
    s->bytes += n;
    if (s->bytes > STREAM_BYTES_MAX || buf_put(b, json_string_value(v), n) < 0)
        return err_set(s->e, RC_TOO_LARGE, "response over %zu bytes", STREAM_BYTES_MAX);
    return RC_OK;
}

static int block_delta(struct msg_stream *s, const json_t *ev)
{
    int64_t index = js_int(ev, "index", -1);
    const json_t *delta = js_at(ev, "delta");
    const char *type = js_str(delta, "type");
    if (index < 0 || index >= (int64_t)s->n || !type || s->blocks[index].closed)
        return err_set(s->e, RC_PROTO, "content_block_delta for a block that is not open");
    struct block *b = &s->blocks[index];
    if (str_eq(type, "text_delta")) {
        TRY(add_text(s, &b->text, &b->has_text, delta, "text"));
        const json_t *v = json_object_get(delta, "text");
        tell(s, (struct model_delta){ .kind = DELTA_TEXT, .index = (int)index, .text = json_string_value(v), .n = json_string_length(v) });
        return RC_OK;
    }
    if (str_eq(type, "input_json_delta"))
        return add_text(s, &b->text, &b->has_text, delta, "partial_json");
    if (str_eq(type, "thinking_delta"))
        return add_text(s, &b->text, &b->has_text, delta, "thinking");
    if (str_eq(type, "signature_delta"))
        return add_text(s, &b->sig, &b->has_sig, delta, "signature");
    if (str_eq(type, "compaction_delta")) {
        b->null_text = json_is_null(json_object_get(delta, "content"));
        json_t *enc = json_object_get(delta, "encrypted_content");
        if (enc)
            js_set(b->obj, "encrypted_content", json_incref(enc));
        return b->null_text ? RC_OK : add_text(s, &b->text, &b->has_text, delta, "content");
    }
    if (str_eq(type, "citations_delta") && js_at(delta, "citation")) {
        json_t *list = json_object_get(b->obj, "citations");
        if (!json_is_array(list)) {
            list = json_array();
            js_set(b->obj, "citations", list);
        }
        js_push(list, json_incref(js_at(delta, "citation")));
    }
    return RC_OK;        /* kinds that later API versions add are skipped */
}

static int block_stop(struct msg_stream *s, struct block *b)
{
    const char *type = js_str(b->obj, "type");
    b->closed = true;
    if (b->has_text && str_eq(type, "text"))
        js_set_strn(b->obj, "text", buf_data(&b->text), buf_len(&b->text));
    else if (b->has_text && str_eq(type, "thinking"))
        js_set_strn(b->obj, "thinking", buf_data(&b->text), buf_len(&b->text));
    else if (str_eq(type, "compaction")) {
        if (b->has_text)
            js_set_strn(b->obj, "content", buf_data(&b->text), buf_len(&b->text));
        else if (b->null_text)
            js_set_str(b->obj, "content", NULL);
    } else if (b->has_text && (str_eq(type, "tool_use") || str_eq(type, "server_tool_use") || str_eq(type, "mcp_tool_use"))) {
        json_t *input = NULL;
        if (js_parse(buf_data(&b->text), buf_len(&b->text), STREAM_BYTES_MAX, &input, NULL) < 0) {
            s->cut_input = true;         /* only max_tokens may leave it so; judged at the end */
            input = json_object();
        }
        js_set(b->obj, "input", input);
    }
    if (b->has_sig)
        js_set_strn(b->obj, "signature", buf_data(&b->sig), buf_len(&b->sig));
    buf_done(&b->text);
    buf_done(&b->sig);
    return RC_OK;
}

static int on_json(struct msg_stream *s, const json_t *ev)
{
    const char *type = js_str(ev, "type");
    if (!type)
        return err_set(s->e, RC_PROTO, "stream event without a type");
    if (str_eq(type, "ping"))
        return RC_OK;
    if (str_eq(type, "error")) {
        set_text(&s->error_type, js_str(ev, "error.type") ? js_str(ev, "error.type") : "api_error");
        const char *msg = js_str(ev, "error.message");
        set_text(&s->error_msg, msg && *msg ? msg : "the model API reported an error without words");
        return RC_OK;
    }
    if (str_eq(type, "message_start")) {
        if (s->started)
            return err_set(s->e, RC_PROTO, "two message_start events");
        s->started = true;
        set_text(&s->model, js_str(ev, "message.model"));
        set_text(&s->id, js_str(ev, "message.id"));
        read_usage(s, js_at(ev, "message.usage"));
        return RC_OK;
    }
    if (!s->started)
        return err_set(s->e, RC_PROTO, "\"%.40s\" before message_start", type);
    if (str_eq(type, "content_block_start"))
        return block_start(s, ev);
    if (str_eq(type, "content_block_delta"))
        return block_delta(s, ev);
    if (str_eq(type, "content_block_stop")) {
        int64_t index = js_int(ev, "index", -1);
        if (index < 0 || index >= (int64_t)s->n || s->blocks[index].closed)
            return err_set(s->e, RC_PROTO, "content_block_stop for a block that is not open");
        return block_stop(s, &s->blocks[index]);
    }
    if (str_eq(type, "message_delta")) {
        if (js_str(ev, "delta.stop_reason"))
            set_text(&s->stop_reason, js_str(ev, "delta.stop_reason"));
        if (json_is_object(js_at(ev, "delta.stop_details"))) {
            json_decref(s->stop_details);
            s->stop_details = json_incref(js_at(ev, "delta.stop_details"));
        }
        read_usage(s, js_at(ev, "usage"));
    } else if (str_eq(type, "message_stop")) {
        s->stopped = true;
    }
    return RC_OK;
}

static int on_event(void *ctx, const struct sse_event *ev)
{
    struct msg_stream *s = ctx;
    if (s->stopped || s->error_type)
        return RC_OK;
    AUTO_JS j = NULL;
    if (js_parse(ev->data, ev->data_n, SSE_EVENT_MAX, &j, s->e) < 0)
        return RC_PROTO;
    return on_json(s, j);
}

int msg_stream_feed(struct msg_stream *s, const char *p, size_t n, struct err *e)
{
    struct err local = { 0 };
    s->e = e ? e : &local;
    int rc = sse_feed(s->sse, p, n, on_event, s);
    s->e = NULL;
    return rc;
}

static enum model_outcome outcome_of_type(const char *type)
{
    if (str_eq(type, "rate_limit_error"))
        return MODEL_BILLING;            /* inside a stream there is no retry-after */
    if (str_eq(type, "billing_error"))
        return MODEL_BILLING;
    if (str_eq(type, "request_too_large"))
        return MODEL_TOO_LARGE;
    if (str_eq(type, "invalid_request_error") || str_eq(type, "authentication_error") || str_eq(type, "permission_error") ||
        str_eq(type, "not_found_error"))
        return MODEL_FATAL;
    return MODEL_OVERLOADED;
}

void msg_stream_result(struct msg_stream *s, int rc, const struct err *e, struct model_result *ret)
{
    *ret = (struct model_result){ .outcome = MODEL_OVERLOADED, .http_status = 200, .retry_after_ms = -1, .model = s->model, .usage = s->usage };
    if (s->error_type) {
        ret->outcome = outcome_of_type(s->error_type);
        ret->error_type = s->error_type;
        ret->message = s->error_msg;
        if (str_eq(s->error_type, "rate_limit_error"))
            ret->http_status = 429;
        return;
    }
    bool whole = rc == RC_OK && s->stopped && s->stop_reason;
    bool cut_ok = s->stop_reason && (str_eq(s->stop_reason, "max_tokens") || str_eq(s->stop_reason, "model_context_window_exceeded") ||
                                     str_eq(s->stop_reason, "refusal"));
    if (!whole || (s->cut_input && !cut_ok)) {
        ret->error_type = "api_error";
        ret->message = rc != RC_OK && e && e->msg[0] ? e->msg : "the response stream ended before the message was complete";
        return;
    }
    if (!s->content) {
        s->content = json_array();
        for (size_t i = 0; i < s->n; i++) {
            if (!s->blocks[i].closed)
                (void)block_stop(s, &s->blocks[i]);
            js_push(s->content, json_incref(s->blocks[i].obj));
        }
    }
    ret->outcome = MODEL_OK;
    ret->stop_reason = s->stop_reason;
    ret->stop_details = s->stop_details;
    ret->content = s->content;
    const struct model_usage *u = &s->usage;
    ret->context_tokens = s->iter_context ? s->iter_context : u->input + u->output + u->cache_read + u->cache_write_5m + u->cache_write_1h;
}

void msg_error_result(int status, int64_t retry_after_ms, const char *body, size_t n, struct buf *text, struct model_result *ret)
{
    AUTO_JS j = NULL;
    if (js_parse(body, n, JS_BODY_MAX, &j, NULL) < 0)
        j = NULL;
    const char *type = j ? js_str(j, "error.type") : NULL, *msg = j ? js_str(j, "error.message") : NULL;
    buf_clear(text);
    (void)buf_puts(text, type ? type : "");
    (void)buf_putc(text, '\0');
    size_t at = buf_len(text);
    if (msg && *msg)
        (void)buf_puts(text, msg);
    else
        (void)buf_printf(text, "the model API answered with status %d", status);
    *ret = (struct model_result){ .http_status = status, .retry_after_ms = retry_after_ms };
    ret->error_type = type ? buf_data(text) : NULL;
    ret->message = buf_data(text) + at;
    if (status == 429)
        ret->outcome = retry_after_ms >= 0 ? MODEL_RETRY_AFTER : MODEL_BILLING;
    else if (status == 402 || str_eq(type, "billing_error"))
        ret->outcome = MODEL_BILLING;
    else if (status == 413 || (status == 400 && msg && (strstr(msg, "prompt is too long") || strstr(msg, "exceed context limit"))))
        ret->outcome = MODEL_TOO_LARGE;
    else if (status >= 500 || status == 408 || status == 409 || status < 300)
        ret->outcome = MODEL_OVERLOADED;
    else
        ret->outcome = MODEL_FATAL;
}
