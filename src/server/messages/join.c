/* join.c - see join.h. */
#include "server/messages/join.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "http/sse.h"
#include "json/span.h"
#include "server/model/stream.h"

struct join {
    const struct tools *tools;
    bool stream, begun, stopped, failed;     /* begun: message_start is out; stopped: this round's message_stop came; failed: an error event came */
    bool over;                               /* join_round() was called: the next byte begins a new round */
    struct sse_decoder *sse;
    struct msg_stream *assembly;             /* this round, as the provider will want it back */
    json_t *listings;
    int64_t base, next;                      /* index in the answer of this round's block 0; of the next new block */
    json_t *message, *content;               /* of the first message_start; the client's content (not streamed) */
    json_t *tail, *delta;                    /* members of the last message_delta: beside, and inside "delta" */
    json_t *usage, *round;                   /* of the rounds that are over; of this one */
    struct buf *out;
    struct err *e;
    char *error_type, *error_message;
};

struct join *join_new(const struct tools *tools, bool stream)
{
    struct join *j = xcalloc(1, sizeof *j);
    j->tools = tools;
    j->stream = stream;
    j->sse = sse_decoder_new(SSE_EVENT_MAX);
    j->assembly = msg_stream_new(NULL, NULL);
    j->listings = json_array();
    j->content = json_array();
    j->tail = json_object();
    j->delta = json_object();
    j->usage = json_object();
    j->round = json_object();
    return j;
}

void join_free(struct join *j)
{
    if (!j)
        return;
    sse_decoder_free(j->sse);
    msg_stream_free(j->assembly);
    json_decref(j->listings);
    json_decref(j->message);
    json_decref(j->content);
    json_decref(j->tail);
    json_decref(j->delta);
    json_decref(j->usage);
    json_decref(j->round);
    free(j->error_type);
    free(j->error_message);
    free(j);
}

bool join_begun(const struct join *j) { return j->begun; }

void join_listing(struct join *j, json_t *take_block)
{
    js_push(j->listings, take_block);
}

/* ---- writing ---- */

/* A data line has no line breaks; inside JSON they can only stand between tokens. */
static void put_event(struct join *j, const char *event, struct slice data)
{
    if (!j->stream)
        return;
    if (!memchr(data.p, '\n', data.n) && !memchr(data.p, '\r', data.n)) {
        (void)sse_write(j->out, NULL, event, data.p, data.n);
        return;
    }
    char *flat = str_ndup(data.p, data.n);
    for (size_t i = 0; i < data.n; i++)
        if (flat[i] == '\n' || flat[i] == '\r')
            flat[i] = ' ';
    (void)sse_write(j->out, NULL, event, flat, data.n);
    free(flat);
}

static void put_json(struct join *j, json_t *event)
{
    if (!j->stream)
        return;
    AUTO_FREE char *text = js_text(event);
    (void)sse_write(j->out, NULL, js_str(event, "type"), text, strlen(text));
}

/* A whole block of ours: it starts complete and stops. */
static void put_block(struct join *j, json_t *block)
{
    if (!j->stream) {
        js_push(j->content, json_incref(block));
    } else {
        AUTO_JS start = json_object();
        AUTO_JS stop = json_object();
        js_set_str(start, "type", "content_block_start");
        js_set_int(start, "index", j->next);
        js_set(start, "content_block", json_incref(block));
        put_json(j, start);
        js_set_str(stop, "type", "content_block_stop");
        js_set_int(stop, "index", j->next);
        put_json(j, stop);
    }
    j->next++;
}

/* ---- usage ---- */

static bool is_count(const json_t *v) { return json_is_integer(v) || json_is_real(v); }

/* Numbers add up, lists are joined, objects go on inside; of everything else the later word counts, unless it is null. */
static void add_usage(json_t *sum, json_t *more)
{
    const char *key;
    json_t *v;
    json_object_foreach(more, key, v) {
        json_t *old = json_object_get(sum, key);
        if (json_is_integer(old) && json_is_integer(v)) {
            int64_t total;
            if (__builtin_add_overflow(json_integer_value(old), json_integer_value(v), &total))
                total = INT64_MAX;
            js_set_int(sum, key, total);
        } else if (is_count(old) && is_count(v)) {
            js_set(sum, key, json_real(json_number_value(old) + json_number_value(v)));
        } else if (json_is_array(old) && json_is_array(v)) {
            (void)json_array_extend(old, v);
        } else if (json_is_object(old) && json_is_object(v)) {
            add_usage(old, v);
        } else if (!old || !json_is_null(v)) {
            js_set(sum, key, json_deep_copy(v));
        }
    }
}

/* Within a round a later event says the total anew. */
static void overlay(json_t *into, const json_t *more)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)more, key, v)
        if (!json_is_null(v) || !json_object_get(into, key))
            js_set(into, key, json_deep_copy(v));
}

/* ---- events of the provider ---- */

static int on_start(struct join *j, const json_t *ev, struct slice data)
{
    const json_t *usage = js_at(ev, "message.usage");
    overlay(j->round, usage);
    if (j->begun)
        return RC_OK;
    if (!json_is_object(js_at(ev, "message")))
        return err_set(j->e, RC_PROTO, "message_start without a message");
    j->begun = true;
    j->message = json_deep_copy(js_at(ev, "message"));
    put_event(j, "message_start", data);
    size_t i;
    json_t *b;
    json_array_foreach(j->listings, i, b)
        put_block(j, b);
    j->base = j->next;
    return RC_OK;
}

/* `data` with its top-level index moved by j->base; everything else stays as it is. */
static int put_moved(struct join *j, const char *event, struct slice data, int64_t index)
{
    struct slice at;
    struct buf b;
    if (j->base == 0) {
        put_event(j, event, data);
        return RC_OK;
    }
    TRY(span_member(data, "index", &at, j->e));
    buf_init(&b, SSE_EVENT_MAX + 32);
    (void)buf_put(&b, data.p, (size_t)(at.p - data.p));
    (void)buf_printf(&b, "%lld", (long long)(index + j->base));
    (void)buf_put(&b, at.p + at.n, data.n - (size_t)(at.p - data.p) - at.n);
    put_event(j, event, (struct slice){ buf_data(&b), buf_len(&b) });
    buf_done(&b);
    return RC_OK;
}

static json_t *use_block(const struct tool *t, const char *client_id, json_t *take_input)
{
    json_t *b = json_object();
    js_set_str(b, "type", "mcp_tool_use");
    js_set_str(b, "id", client_id);
    js_set_str(b, "name", t->name);
    js_set_str(b, "server_name", t->server);
    js_set(b, "input", take_input);
    return b;
}

static int on_block(struct join *j, const json_t *ev, struct slice data, int64_t index)
{
    const json_t *b = js_at(ev, "content_block");
    char id[CALL_ID_MAX];
    if (j->base + index >= JOIN_BLOCKS_MAX)
        return err_set(j->e, RC_TOO_LARGE, "more than %d content blocks", JOIN_BLOCKS_MAX);
    j->next = j->base + index + 1 > j->next ? j->base + index + 1 : j->next;
    const struct tool *t = str_eq(js_str(b, "type"), "tool_use") && js_str(b, "name") ? tools_find(j->tools, js_str(b, "name")) : NULL;
    if (!t)
        return put_moved(j, "content_block_start", data, index);
    if (!js_str(b, "id") || call_id_out(js_str(b, "id"), id) < 0)
        return err_set(j->e, RC_PROTO, "a call with an id that cannot be used");
    AUTO_JS o = json_object();
    js_set_str(o, "type", "content_block_start");
    js_set_int(o, "index", index + j->base);
    js_set(o, "content_block", use_block(t, id, json_is_object(js_at(b, "input")) ? json_incref(js_at(b, "input")) : json_object()));
    put_json(j, o);
    return RC_OK;
}

static void on_delta(struct join *j, const json_t *ev)
{
    const char *key;
    json_t *v;
    overlay(j->round, js_at(ev, "usage"));
    json_object_foreach((json_t *)(uintptr_t)ev, key, v)
        if (!str_eq(key, "type") && !str_eq(key, "delta") && !str_eq(key, "usage"))
            js_set(j->tail, key, json_incref(v));
    json_object_foreach(js_at(ev, "delta"), key, v)
        js_set(j->delta, key, json_incref(v));
}

static void on_error(struct join *j, const json_t *ev, struct slice data)
{
    const char *type = js_str(ev, "error.type"), *message = js_str(ev, "error.message");
    j->failed = true;
    j->error_type = str_dup(type ? type : "api_error");
    j->error_message = str_dup(message ? message : "The model provider reported an error.");
    put_event(j, "error", data);
}

static int on_event(void *ctx, const struct sse_event *s)
{
    struct join *j = ctx;
    struct slice data = { s->data, s->data_n };
    AUTO_JS ev = NULL;
    if (j->stopped || j->failed)
        return RC_OK;
    if (js_parse(data.p, data.n, SSE_EVENT_MAX, &ev, j->e) < 0)
        return err_wrap(j->e, RC_PROTO, "an event of the provider");
    const char *type = js_str(ev, "type");
    if (!type)
        return err_set(j->e, RC_PROTO, "an event of the provider without a type");
    if (str_eq(type, "message_start"))
        return on_start(j, ev, data);
    if (str_eq(type, "error")) {
        on_error(j, ev, data);
        return RC_OK;
    }
    if (str_eq(type, "ping")) {
        if (j->begun)
            put_event(j, type, data);
        return RC_OK;
    }
    if (!j->begun)
        return err_set(j->e, RC_PROTO, "\"%.40s\" before message_start", type);
    if (str_eq(type, "message_delta")) {
        on_delta(j, ev);
        return RC_OK;
    }
    if (str_eq(type, "message_stop")) {
        j->stopped = true;
        return RC_OK;
    }
    json_t *at = json_object_get(ev, "index");
    int64_t index = json_is_integer(at) ? json_integer_value(at) : -1;
    if (index < 0 || index >= JOIN_BLOCKS_MAX) {
        if (at || str_prefix(type, "content_block_"))
            return err_set(j->e, RC_PROTO, "\"%.40s\" without a usable index", type);
        put_event(j, type, data);            /* a kind that later API versions add */
        return RC_OK;
    }
    return str_eq(type, "content_block_start") ? on_block(j, ev, data, index) : put_moved(j, type, data, index);
}

/* Before the first byte of a further round. */
static void next_round(struct join *j)
{
    if (!j->over)
        return;
    j->over = j->stopped = false;
    sse_decoder_free(j->sse);
    msg_stream_free(j->assembly);
    j->sse = sse_decoder_new(SSE_EVENT_MAX);
    j->assembly = msg_stream_new(NULL, NULL);
}

int join_feed(struct join *j, const char *p, size_t n, struct buf *out, struct err *e)
{
    next_round(j);
    j->out = out;
    j->e = e;
    int rc = sse_feed(j->sse, p, n, on_event, j);
    if (rc == RC_OK)
        rc = msg_stream_feed(j->assembly, p, n, e);
    if (rc == RC_OK && !buf_ok(out))
        rc = err_set(e, RC_TOO_LARGE, "an event of the answer is too large");
    j->out = NULL;
    j->e = NULL;
    return rc;
}

/* ---- between the rounds ---- */

/* Not streamed: the round's blocks as the client sees them. */
static void collect(struct join *j, const json_t *content)
{
    size_t i;
    json_t *b;
    char id[CALL_ID_MAX];
    json_array_foreach(content, i, b) {
        const struct tool *t = str_eq(js_str(b, "type"), "tool_use") && js_str(b, "name") ? tools_find(j->tools, js_str(b, "name")) : NULL;
        if (t && call_id_out(js_str(b, "id"), id) == RC_OK)
            js_push(j->content, use_block(t, id, json_incref(js_at(b, "input"))));
        else
            js_push(j->content, json_incref(b));
    }
}

static int read_calls(struct join *j, const json_t *content, struct join_round *r, struct err *e)
{
    size_t i;
    json_t *b;
    json_array_foreach(content, i, b) {
        if (!str_eq(js_str(b, "type"), "tool_use"))
            continue;
        const struct tool *t = js_str(b, "name") ? tools_find(j->tools, js_str(b, "name")) : NULL;
        if (!t) {
            r->client_tools = true;
            continue;
        }
        if (r->n == JOIN_CALLS_MAX)
            return err_set(e, RC_TOO_LARGE, "more than %d MCP calls in one turn", JOIN_CALLS_MAX);
        struct join_call *c = &r->calls[r->n++];
        c->tool = t;
        c->input = js_at(b, "input");
        (void)str_copy(c->id, sizeof c->id, js_str(b, "id"));
        if (call_id_out(c->id, c->client_id) < 0)
            return err_set(e, RC_PROTO, "a call with an id that cannot be used");
    }
    return RC_OK;
}

int join_round(struct join *j, int rc, const struct err *why, struct join_round *ret, struct err *e)
{
    struct model_result m;
    memset(ret, 0, sizeof *ret);
    j->over = true;
    if (j->failed) {
        ret->error_type = j->error_type;
        ret->error_message = j->error_message;
        return RC_OK;
    }
    msg_stream_result(j->assembly, rc, why, &m);
    if (m.outcome != MODEL_OK)
        return err_set(e, rc < 0 ? rc : RC_PROTO, "%s", m.message ? m.message : "the answer is not complete");
    ret->content = m.content;
    ret->run = str_eq(m.stop_reason, "tool_use");
    TRY(read_calls(j, m.content, ret, e));
    if (!j->stream)
        collect(j, m.content);
    add_usage(j->usage, j->round);
    json_object_clear(j->round);
    return RC_OK;
}

static json_t *client_content(const json_t *content)
{
    json_t *out = json_array(), *b;
    size_t i;
    json_array_foreach(content, i, b) {
        json_t *t = json_object();
        const char *type = js_str(b, "type"), *media = js_str(b, "source.media_type");
        js_set_str(t, "type", "text");
        if (str_eq(type, "text")) {
            js_set_str(t, "text", js_str(b, "text") ? js_str(b, "text") : "");
        } else {
            AUTO_FREE char *words = str_printf("[%s%s%s: shown to the model in this turn]", type ? type : "content", media ? " " : "", media ? media : "");
            js_set_str(t, "text", words);
        }
        js_set(t, "citations", json_null());
        js_push(out, t);
    }
    return out;
}

void join_result(struct join *j, const struct join_call *c, bool is_error, const json_t *content, struct buf *out)
{
    AUTO_JS b = json_object();
    j->out = out;
    js_set_str(b, "type", "mcp_tool_result");
    js_set_str(b, "tool_use_id", c->client_id);
    js_set_bool(b, "is_error", is_error);
    js_set(b, "content", client_content(content));
    put_block(j, b);
    j->base = j->next;
    j->out = NULL;
}

int join_finish(struct join *j, const char *stop_reason, struct buf *out, struct err *e)
{
    j->out = out;
    if (stop_reason) {
        js_set_str(j->delta, "stop_reason", stop_reason);
        (void)json_object_del(j->delta, "stop_details");
    }
    if (j->stream) {
        AUTO_JS ev = json_object();
        AUTO_JS stop = json_object();
        js_set_str(ev, "type", "message_delta");
        js_set(ev, "delta", json_incref(j->delta));
        (void)json_object_update_missing(ev, j->tail);
        js_set(ev, "usage", json_incref(j->usage));
        put_json(j, ev);
        js_set_str(stop, "type", "message_stop");
        put_json(j, stop);
    } else {
        (void)json_object_update(j->message, j->tail);
        (void)json_object_update(j->message, j->delta);
        js_set(j->message, "content", json_incref(j->content));
        js_set(j->message, "usage", json_incref(j->usage));
        if (js_write(j->message, out) < 0)
            buf_clear(out), out->failed = true;
    }
    j->out = NULL;
    return buf_ok(out) ? RC_OK : err_set(e, RC_TOO_LARGE, "the answer is too large");
}
