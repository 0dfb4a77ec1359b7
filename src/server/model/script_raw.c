/* script_raw.c - the script's answers in the Messages API's own form, streamed and not, for POST /v1/messages without a network. */
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "http/sse.h"
#include "server/model/provider.h"

#define RAW_MAX (64 * MIB)               /* one rendered answer: a script file is smaller */
#define RAW_FRAMES_MAX 100000
#define CUT_STATUS 0                     /* injected "status": 0 means that the connection breaks */

struct frame { size_t end; bool text; };
struct script_raw_frames { struct frame *at; size_t n, cap; };

struct model_raw {
    struct script *self;
    struct model_raw_request req;
    struct ev_timer timer;
    json_t *answer;
    struct buf out;                      /* a body, or SSE frames one after another */
    struct script_raw_frames frames;
    size_t next, sent;                   /* frame to send; bytes sent */
    int status;
    bool head_told, held, cut;
    struct err err;
};

static void call_free(struct model_raw *c)
{
    ev_timer_stop(&c->timer);
    json_decref(c->answer);
    buf_done(&c->out);
    free(c->frames.at);
    free(c);
}

static void put_error(struct model_raw *c, int status, const char *type, const char *message)
{
    AUTO_JS root = json_object();
    json_t *in = json_object();
    js_set_str(root, "type", "error");
    js_set_str(in, "type", type);
    js_set_str(in, "message", message);
    js_set(root, "error", in);
    js_set_str(root, "request_id", "req_script");
    c->status = status;
    if (js_write(root, &c->out) < 0)
        buf_clear(&c->out);
}

/* ---- rendering ---- */

static json_t *usage_object(const struct model_usage *u, bool begin)
{
    json_t *o = json_object();
    js_set_int(o, "input_tokens", u->input);
    js_set_int(o, "cache_creation_input_tokens", u->cache_write_5m);
    js_set_int(o, "cache_read_input_tokens", u->cache_read);
    js_set_int(o, "output_tokens", begin ? 1 : u->output);
    return o;
}

static json_t *message_object(struct model_raw *c, const json_t *request, const struct model_usage *u, bool begin)
{
    json_t *m = json_object();
    AUTO_FREE char *id = str_printf("msg_script_%zu", json_array_size(js_at(request, "messages")));
    js_set_str(m, "id", id);
    js_set_str(m, "type", "message");
    js_set_str(m, "role", "assistant");
    js_set_str(m, "model", js_str(request, "model"));
    js_set(m, "content", begin ? json_array() : json_incref(js_at(c->answer, "content")));
    js_set_str(m, "stop_reason", begin ? NULL : js_str(c->answer, "stop_reason"));
    js_set_str(m, "stop_sequence", NULL);
    if (!begin && js_at(c->answer, "stop_details"))
        js_set(m, "stop_details", json_incref(js_at(c->answer, "stop_details")));
    js_set(m, "usage", usage_object(u, begin));
    return m;
}

static void put_frame(struct model_raw *c, json_t *take_event, bool text)
{
    AUTO_JS event = take_event;
    AUTO_FREE char *data = js_text(event);
    (void)sse_write(&c->out, NULL, js_str(event, "type"), data, strlen(data));
    if (c->frames.n == c->frames.cap) {
        c->frames.cap = c->frames.cap ? c->frames.cap * 2 : 64;
        c->frames.at = xrealloc(c->frames.at, c->frames.cap, sizeof *c->frames.at);
    }
    c->frames.at[c->frames.n++] = (struct frame){ .end = buf_len(&c->out), .text = text };
}

static json_t *event(const char *type, int64_t index)
{
    json_t *o = json_object();
    js_set_str(o, "type", type);
    if (index >= 0)
        js_set_int(o, "index", index);
    return o;
}

static void put_delta(struct model_raw *c, int64_t index, const char *type, const char *key, const char *text, size_t n)
{
    json_t *o = event("content_block_delta", index), *d = json_object();
    js_set_str(d, "type", type);
    js_set_strn(d, key, text, n);
    js_set(o, "delta", d);
    put_frame(c, o, str_eq(type, "text_delta"));
}

static void put_pieces(struct model_raw *c, int64_t index, const char *type, const char *key, const char *text)
{
    for (size_t left = strlen(text), n; left && c->frames.n < RAW_FRAMES_MAX; text += n, left -= n) {
        n = c->frames.n == RAW_FRAMES_MAX - 1 ? left : script_chunk(text, left);
        put_delta(c, index, type, key, text, n);
    }
}

static void put_block(struct model_raw *c, int64_t index, const json_t *block)
{
    const char *type = js_str(block, "type");
    json_t *o = event("content_block_start", index), *start = json_copy((json_t *)(uintptr_t)block);
    bool text = str_eq(type, "text"), thinking = str_eq(type, "thinking"), tool = str_eq(type, "tool_use");
    if (text)
        js_set_str(start, "text", "");
    if (thinking) {
        js_set_str(start, "thinking", "");
        js_set_str(start, "signature", "");
    }
    if (tool)
        js_set(start, "input", json_object());
    js_set(o, "content_block", start);
    put_frame(c, o, false);
    if (text && js_str(block, "text"))
        put_pieces(c, index, "text_delta", "text", js_str(block, "text"));
    if (thinking && js_str(block, "thinking"))
        put_pieces(c, index, "thinking_delta", "thinking", js_str(block, "thinking"));
    if (thinking && js_str(block, "signature"))
        put_delta(c, index, "signature_delta", "signature", js_str(block, "signature"), strlen(js_str(block, "signature")));
    if (tool && js_at(block, "input")) {
        AUTO_FREE char *input = js_text(js_at(block, "input"));
        put_pieces(c, index, "input_json_delta", "partial_json", input);
    }
    put_frame(c, event("content_block_stop", index), false);
}

static void render_stream(struct model_raw *c, const json_t *request, const struct model_usage *u)
{
    json_t *o = event("message_start", -1), *d, *block;
    size_t i;
    js_set(o, "message", message_object(c, request, u, true));
    put_frame(c, o, false);
    json_array_foreach(js_at(c->answer, "content"), i, block)
        put_block(c, (int64_t)i, block);
    o = event("message_delta", -1);
    d = json_object();
    js_set_str(d, "stop_reason", js_str(c->answer, "stop_reason"));
    js_set_str(d, "stop_sequence", NULL);
    if (js_at(c->answer, "stop_details"))
        js_set(d, "stop_details", json_incref(js_at(c->answer, "stop_details")));
    js_set(o, "delta", d);
    js_set(o, "usage", usage_object(u, false));
    put_frame(c, o, false);
    put_frame(c, event("message_stop", -1), false);
}

/* An error after `after` pieces of text: the frames behind it are cut off, and an `error` event takes their place. */
static void cut_stream(struct model_raw *c, int status, const char *type, const char *message, int64_t after)
{
    size_t keep = 0;
    for (int64_t seen = 0; keep < c->frames.n && seen < after; keep++)
        seen += c->frames.at[keep].text;
    buf_truncate(&c->out, keep ? c->frames.at[keep - 1].end : 0);
    c->frames.n = keep;
    if (status == CUT_STATUS) {
        c->cut = true;
        return;
    }
    json_t *o = event("error", -1), *in = json_object();
    js_set_str(in, "type", type);
    js_set_str(in, "message", message);
    js_set(o, "error", in);
    put_frame(c, o, false);
}

static void render(struct model_raw *c)
{
    const struct model_raw_request *r = &c->req;
    AUTO_JS request = NULL;
    c->status = 200;
    int rc = js_parse(r->body, r->body_n, r->body_n + 1, &request, &c->err);
    if (rc == RC_OK)
        rc = model_script_answer(c->self->doc, request, &c->answer, &c->err);
    if (rc < 0) {
        put_error(c, 400, "invalid_request_error", c->err.msg);
        return;
    }
    struct model_usage u = script_usage(c->answer, r->body_n);
    if (str_suffix(r->path, "/count_tokens")) {
        (void)buf_printf(&c->out, "{\"input_tokens\":%lld}", (long long)u.input);       /* what the answer's usage would say */
        return;
    }
    if (r->stream) {
        render_stream(c, request, &u);
    } else {
        AUTO_JS m = message_object(c, request, &u, false);
        if (js_write(m, &c->out) < 0) {
            buf_clear(&c->out);
            put_error(c, 500, "api_error", "the scripted answer is too large");
        }
    }
    const json_t *er = js_at(c->answer, "error");
    if (!er || !script_still_fails(c->self, r->body, r->body_n, NULL, js_int(er, "times", -1)))
        return;
    int status = (int)js_int(er, "status", 529);
    const char *text = js_str(er, "message") ? js_str(er, "message") : "injected by the script";
    int64_t after = js_int(er, "after_chunks", 0);
    if (r->stream && after > 0) {
        cut_stream(c, status, script_error_type(status, er), text, after);
    } else if (status == CUT_STATUS) {
        c->cut = true;
        c->status = 0;
    } else {
        buf_clear(&c->out);
        put_error(c, status, script_error_type(status, er), text);
    }
}

/* ---- sending ---- */

static void tell_head(struct model_raw *c)
{
    bool stream = c->req.stream && c->status == 200;
    int64_t retry = c->status == 200 ? -1 : js_int(c->answer, "error.retry_after_ms", -1);
    AUTO_FREE char *after = retry >= 0 ? str_printf("retry-after-ms: %lld\r\nretry-after: %lld\r\n", (long long)retry, (long long)((retry + 999) / 1000)) : NULL;
    AUTO_FREE char *lines = str_printf("content-type: %s\r\nrequest-id: req_script\r\n%s", stream ? "text/event-stream" : "application/json", after ? after : "");
    c->head_told = true;
    c->req.on_head(c->req.ctx, c->status, slice_of(lines));
}

static void done(struct model_raw *c)
{
    static const struct buf none;
    bool streamed = c->req.stream && c->status == 200;
    if (c->cut)
        (void)err_set(&c->err, RC_CLOSED, "injected: connection lost");
    c->req.on_done(c->req.ctx, c->cut ? RC_CLOSED : RC_OK, c->status, streamed || c->cut ? &none : &c->out, &c->err);
    call_free(c);
}

/* One step a turn of the loop: head, then frames (all that have no pause between them at once), then the end. */
static void tick(struct ev_timer *t)
{
    struct model_raw *c = container_of(t, struct model_raw, timer);
    if (c->held)
        return;
    if (!c->head_told && c->status) {
        ev_timer_set(c->self->ev, &c->timer, 0, tick);
        tell_head(c);
        return;
    }
    bool streamed = c->req.stream && c->status == 200;
    if (!streamed || c->next == c->frames.n) {
        done(c);
        return;
    }
    int64_t pause = js_int(c->answer, "chunk_ms", 0);
    size_t from = c->sent;
    bool text = false;
    while (c->next < c->frames.n && !(text && pause > 0)) {
        text = c->frames.at[c->next].text;
        c->sent = c->frames.at[c->next++].end;
    }
    ev_timer_set(c->self->ev, &c->timer, text && pause > 0 ? pause : 0, tick);
    c->req.on_data(c->req.ctx, buf_data(&c->out) + from, c->sent - from);
}

struct model_raw *script_raw_start(void *ctx, const struct model_raw_request *r)
{
    struct model_raw *c = xcalloc(1, sizeof *c);
    c->self = ctx;
    c->req = *r;
    c->req.headers = NULL;
    buf_init(&c->out, RAW_MAX);
    render(c);
    ev_timer_set(c->self->ev, &c->timer, js_int(c->answer, "delay_ms", 0), tick);
    return c;
}

void script_raw_hold(struct model_raw *c, bool on)
{
    bool was = c->held;
    c->held = on;
    if (was && !on)
        ev_timer_set(c->self->ev, &c->timer, 0, tick);
}

void script_raw_cancel(struct model_raw *c)
{
    call_free(c);
}
