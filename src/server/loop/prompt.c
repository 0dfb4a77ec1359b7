#include "server/loop/prompt.h"

#include <string.h>

#include "base/str.h"
#include "base/utf8.h"
#include "server/loop/tools.h"

#define RECORD_MAX (64 * MIB)
#define MIN_OUTPUT_TOKENS 1024

enum item_kind { ITEM_USER, ITEM_SYSTEM, ITEM_ASSISTANT, ITEM_SUMMARY };
struct item {
    int64_t pos;                     /* where the model saw it: the consumption, not the arrival */
    enum item_kind kind;
    json_t *content;                 /* owned */
    json_t *calls;                   /* ITEM_ASSISTANT: [{id, event}], owned */
    size_t size;
};
struct work {
    const struct prompt_in *in;
    struct item *items; size_t n;
    json_t *results;                 /* call event id -> result body */
    json_t *dropped;                 /* ids of flushed events */
    bool files;                      /* a file source occurs */
    size_t clip;                     /* bytes of tool results; 0: all */
};

static int parse_row(const struct store_event *r, json_t **ret, struct err *e)
{
    if (js_parse(r->body, strlen(r->body), RECORD_MAX, ret, e) < 0)
        return err_wrap(e, RC_INVALID, "log position %lld (%s)", (long long)r->seq, r->type);
    return RC_OK;
}

static void add_item(struct work *w, int64_t pos, enum item_kind kind, json_t *take_content, json_t *take_calls, size_t size)
{
    w->items[w->n++] = (struct item){ .pos = pos, .kind = kind, .content = take_content, .calls = take_calls, .size = size };
}

/* Content blocks that the Messages API takes: empty texts are refused there. */
static json_t *usable(struct work *w, const json_t *content)
{
    json_t *a = json_array(), *b;
    if (json_is_string(content)) {
        if (json_string_length(content) == 0)
            return a;
        b = json_object();
        js_set_str(b, "type", "text");
        js_set(b, "text", json_incref((json_t *)(uintptr_t)content));
        js_push(a, b);
        return a;
    }
    size_t i;
    json_array_foreach(content, i, b) {
        if (str_eq(js_str(b, "type"), "text") && (!js_str(b, "text") || !js_str(b, "text")[0]))
            continue;
        w->files |= str_eq(js_str(b, "source.type"), "file");
        js_push(a, json_copy(b));
    }
    return a;
}

static int take_private(struct work *w, const struct store_event *r, struct err *e)
{
    const struct turn_state *st = w->in->st;
    bool assistant = str_eq(r->type, "turn.assistant"), note = str_eq(r->type, "turn.note"), flush = str_eq(r->type, "turn.flush");
    bool compaction = str_eq(r->type, "turn.compaction");
    if (!assistant && !note && !flush && !compaction)
        return RC_OK;
    AUTO_JS b = NULL;
    TRY(parse_row(r, &b, e));
    if (flush) {
        size_t i;
        json_t *id;
        json_array_foreach(js_at(b, "ids"), i, id)
            if (json_is_string(id))
                js_set(w->dropped, json_string_value(id), json_true());
    } else if (note && r->seq > st->base_seq && js_str(b, "text")) {
        json_t *t = json_pack("[{s:s,s:s}]", "type", "text", "text", js_str(b, "text"));
        add_item(w, r->seq, ITEM_USER, t, NULL, strlen(r->body));
    } else if (compaction && js_int(b, "cut_seq", 0) - 1 == st->base_seq && js_str(b, "summary")) {
        add_item(w, st->base_seq, ITEM_SUMMARY, compact_summary_content(js_str(b, "summary")), NULL, strlen(r->body));
    } else if (assistant && r->seq > st->base_seq && !js_bool(b, "skip", false)) {
        json_t *content = js_at(b, "content");
        if (json_array_size(content) > 0)
            add_item(w, r->seq, ITEM_ASSISTANT, json_incref(content), json_incref(js_at(b, "calls")), strlen(r->body));
    }
    return RC_OK;
}

static int take_public(struct work *w, const struct store_event *r, struct err *e)
{
    bool message = str_eq(r->type, "user.message"), sys = str_eq(r->type, "system.message");
    bool result = r->ref && (str_eq(r->type, "user.tool_result") || str_eq(r->type, "user.custom_tool_result") || str_eq(r->type, "agent.tool_result") ||
                             str_eq(r->type, "agent.mcp_tool_result"));
    if (!message && !sys && !result)
        return RC_OK;
    if (!result && (r->processed_seq == 0 || r->processed_seq <= w->in->st->base_seq))
        return RC_OK;
    AUTO_JS b = NULL;
    TRY(parse_row(r, &b, e));
    if (result) {
        js_set(w->results, r->ref, json_incref(b));
        return RC_OK;
    }
    json_t *c = usable(w, js_at(b, "content"));
    js_set(b, "content", c);
    if (json_array_size(c) > 0)
        add_item(w, r->processed_seq, sys ? ITEM_SYSTEM : ITEM_USER, json_incref(c), json_pack("s", r->id), strlen(r->body));
    return RC_OK;
}

static int by_pos(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    return x->pos < y->pos ? -1 : x->pos > y->pos;
}

static int collect(struct work *w, struct err *e)
{
    w->items = xcalloc(w->in->n_rows + 1, sizeof *w->items);
    for (size_t i = 0; i < w->in->n_rows; i++) {
        const struct store_event *r = &w->in->rows[i];
        TRY(r->is_private ? take_private(w, r, e) : take_public(w, r, e));
    }
    size_t k = 0;
    for (size_t i = 0; i < w->n; i++) {          /* flushed inputs never reached the model */
        struct item *it = &w->items[i];
        if (json_is_string(it->calls) && json_object_get(w->dropped, json_string_value(it->calls))) {
            json_decref(it->content);
            json_decref(it->calls);
            continue;
        }
        w->items[k++] = *it;
    }
    w->n = k;
    qsort(w->items, w->n, sizeof *w->items, by_pos);
    return RC_OK;
}

static json_t *clipped(const json_t *content, size_t clip)
{
    json_t *a = json_array(), *b;
    size_t i;
    json_array_foreach(content, i, b) {
        const char *text = js_str(b, "text");
        json_t *c = text ? json_copy(b) : json_pack("{s:s,s:s}", "type", "text", "text", "[left out]");
        if (text && strlen(text) > clip) {
            size_t n = utf8_valid_prefix(text, clip);
            char *cut = str_printf("%.*s\n[cut]", (int)n, text);
            js_set_str(c, "text", cut);
            free(cut);
        }
        js_push(a, c);
    }
    return a;
}

static json_t *result_block(struct work *w, const json_t *call)
{
    json_t *r = json_object(), *body = json_object_get(w->results, js_str(call, "event")), *content;
    js_set_str(r, "type", "tool_result");
    js_set_str(r, "tool_use_id", js_str(call, "id"));
    content = usable(w, js_at(body, "content"));
    if (json_array_size(content) == 0)
        js_push(content, json_pack("{s:s,s:s}", "type", "text", "text", body ? "(no output)" : "The result of this call is not known."));
    if (w->clip) {
        json_t *c = clipped(content, w->clip);
        json_decref(content);
        content = c;
    }
    js_set(r, "content", content);
    if (!body || js_bool(body, "is_error", false))
        js_set_bool(r, "is_error", true);
    return r;
}

static json_t *message(json_t *messages, const char *role)
{
    size_t n = json_array_size(messages);
    json_t *last = n ? json_array_get(messages, n - 1) : NULL;
    if (last && str_eq(js_str(last, "role"), role))
        return json_object_get(last, "content");         /* neighbours of one role are one message */
    json_t *m = json_object(), *c = json_array();
    js_set_str(m, "role", role);
    js_set(m, "content", c);
    js_push(messages, m);
    return c;
}

static void push_copy(json_t *into, const json_t *content)
{
    size_t i;
    json_t *b;
    json_array_foreach(content, i, b)
        js_push(into, json_copy(b));
}

static json_t *messages_of(struct work *w, size_t from, size_t to)
{
    json_t *a = json_array();
    if (from < to && w->items[from].kind == ITEM_ASSISTANT)
        js_push(message(a, "user"), json_pack("{s:s,s:s}", "type", "text", "text", "Continue."));
    for (size_t i = from; i < to; i++) {
        const struct item *it = &w->items[i];
        if (it->kind == ITEM_SYSTEM) {
            push_copy(message(a, "system"), it->content);
            continue;
        }
        push_copy(message(a, it->kind == ITEM_ASSISTANT ? "assistant" : "user"), it->content);
        size_t k;
        json_t *call;
        if (it->kind == ITEM_ASSISTANT)
            json_array_foreach(it->calls, k, call)       /* all results of a response in one user message, first in it */
                js_push(message(a, "user"), result_block(w, call));
    }
    return a;
}

static void breakpoint(json_t *content)
{
    for (size_t i = json_array_size(content); i-- > 0;) {
        json_t *b = json_array_get(content, i);
        const char *t = js_str(b, "type");
        if (str_eq(t, "thinking") || str_eq(t, "redacted_thinking"))
            continue;
        js_set(b, "cache_control", json_pack("{s:s}", "type", "ephemeral"));
        return;
    }
}

/* service.md 4.3: one after tools and system, one after a summary, one where the previous request ended, one at the end. */
static void breakpoints(json_t *system, json_t *tools, json_t *messages, bool summary)
{
    if (json_array_size(system) > 0)
        breakpoint(system);
    else if (json_array_size(tools) > 0)
        js_set(json_array_get(tools, json_array_size(tools) - 1), "cache_control", json_pack("{s:s}", "type", "ephemeral"));
    size_t n = json_array_size(messages), prev = n;
    for (size_t i = n; i-- > 0;) {
        if (!str_eq(js_str(json_array_get(messages, i), "role"), "assistant") || i + 1 == n)
            continue;
        prev = i ? i - 1 : n;
        break;
    }
    if (summary && n > 0 && prev != 0 && n > 1)
        js_set(json_array_get(js_at(json_array_get(messages, 0), "content"), 0), "cache_control", json_pack("{s:s}", "type", "ephemeral"));
    if (prev < n)
        breakpoint(js_at(json_array_get(messages, prev), "content"));
    if (n > 0)
        breakpoint(js_at(json_array_get(messages, n - 1), "content"));
}

static void add_beta(char *beta, const char *one)
{
    size_t n = strlen(beta);
    (void)str_copy(beta + n, PROMPT_BETA_MAX - n, n ? "," : "");
    n = strlen(beta);
    (void)str_copy(beta + n, PROMPT_BETA_MAX - n, one);
}

static void options(struct work *w, json_t *o, char *beta)
{
    const struct prompt_in *in = w->in;
    const json_t *model = js_at(in->snap->agent, "model");
    const char *effort = js_str(model, "effort.type");
    if (in->caps->effort && effort) {
        json_t *oc = json_object();
        js_set_str(oc, "effort", effort);
        js_set(o, "output_config", oc);
    }
    if (in->caps->adaptive_thinking)
        js_set(o, "thinking", json_pack("{s:s}", "type", "adaptive"));
    if (str_eq(js_str(model, "speed"), "fast")) {
        js_set_str(o, "speed", "fast");
        add_beta(beta, "fast-mode-2026-02-01");
    }
    if (js_str(model, "inference_geo"))
        js_set_str(o, "inference_geo", js_str(model, "inference_geo"));
    if (w->files)
        add_beta(beta, "files-api-2025-04-14");
    if (in->caps->compaction && !in->compact && in->compact_at > 0) {
        int64_t at = in->compact_at > COMPACT_TRIGGER_MIN ? in->compact_at : COMPACT_TRIGGER_MIN;
        js_set(o, "context_management", json_pack("{s:[{s:s,s:{s:s,s:I},s:s}]}", "edits", "type", "compact_20260112", "trigger", "type", "input_tokens",
                                                  "value", (json_int_t)at, "instructions", compact_instructions));
        add_beta(beta, "compact-2026-01-12");
    }
}

/* The items that the summarising request shows, and where it cuts. */
static int choose_cut(struct work *w, size_t *ret_from, size_t *ret_to, struct prompt_out *out, struct err *e)
{
    struct compact_item *ci = xcalloc(w->n + 1, sizeof *ci);
    for (size_t i = 0; i < w->n; i++) {
        ci[i] = (struct compact_item){ .size = w->items[i].size, .assistant = w->items[i].kind == ITEM_ASSISTANT };
        size_t k;
        json_t *call;
        if (ci[i].assistant)
            json_array_foreach(w->items[i].calls, k, call) {
                const json_t *r = json_object_get(w->results, js_str(call, "event"));
                AUTO_FREE char *text = r ? js_text(r) : NULL;
                ci[i].has_calls = true;
                ci[i].size += text ? strlen(text) : 0;
            }
    }
    int64_t window = w->in->caps->context_tokens;
    size_t cut = compact_cut(ci, w->n, (size_t)(window > 0 ? window / 2 : 0));       /* about an eighth of the window */
    if (cut == 0) {
        free(ci);
        return err_set(e, RC_LIMIT, "the conversation cannot be shortened any further");
    }
    out->cut_seq = w->items[cut - 1].pos + 1;
    for (size_t i = cut; i < w->n; i++)
        out->kept |= ci[i].assistant;
    *ret_to = cut;
    *ret_from = 0;
    if (w->in->attempt > 1) {                    /* what did not fit whole is tried without its older half, results clipped */
        w->clip = COMPACT_CLIP_BYTES;
        *ret_from = cut / 2;
    }
    free(ci);
    return RC_OK;
}

static int assemble(struct work *w, struct prompt_out *out, struct err *e)
{
    const struct prompt_in *in = w->in;
    size_t from = 0, to = w->n;
    if (in->compact)
        TRY(choose_cut(w, &from, &to, out, e));
    AUTO_JS o = json_object();
    json_t *system = json_array(), *tools = tools_define(in->snap->agent, in->snap->mcp), *messages = messages_of(w, from, to);
    int64_t max = in->caps->max_output_tokens > MIN_OUTPUT_TOKENS ? in->caps->max_output_tokens : MIN_OUTPUT_TOKENS;
    if (in->compact) {
        if (max > COMPACT_OUTPUT_TOKENS)
            max = COMPACT_OUTPUT_TOKENS;
        char *ask = str_printf("%s%s", compact_ask, compact_instructions);
        json_t *t = json_object();
        js_set_str(t, "type", "text");
        js_set_str(t, "text", ask);
        js_push(message(messages, "user"), t);
        free(ask);
    }
    js_set_str(o, "model", in->snap->model);
    js_set_int(o, "max_tokens", max);
    if (in->snap->system && in->snap->system[0])
        js_push(system, json_pack("{s:s,s:s}", "type", "text", "text", in->snap->system));
    breakpoints(system, tools, messages, w->n > 0 && w->items[0].kind == ITEM_SUMMARY && from == 0);
    bool any_tools = json_array_size(tools) > 0;
    if (json_array_size(system) > 0)
        js_set(o, "system", system);
    else
        json_decref(system);
    if (any_tools)
        js_set(o, "tools", tools);
    else
        json_decref(tools);
    if (any_tools && in->compact)
        js_set(o, "tool_choice", json_pack("{s:s}", "type", "none"));
    js_set(o, "messages", messages);
    options(w, o, out->beta);
    if (json_array_size(messages) == 0)
        return err_set(e, RC_INVALID, "there is no message to send to the model");
    if (js_write(o, &out->body) < 0 || !buf_ok(&out->body))
        return err_set(e, RC_TOO_LARGE, "the request to the model is larger than %zu bytes", PROMPT_MAX);
    return RC_OK;
}

int prompt_build(const struct prompt_in *in, struct prompt_out *ret, struct err *e)
{
    struct work w = { .in = in, .results = json_object(), .dropped = json_object() };
    memset(ret, 0, sizeof *ret);
    buf_init(&ret->body, PROMPT_MAX);
    int rc = collect(&w, e);
    if (rc == RC_OK)
        rc = assemble(&w, ret, e);
    for (size_t i = 0; i < w.n; i++) {
        json_decref(w.items[i].content);
        json_decref(w.items[i].calls);
    }
    free(w.items);
    json_decref(w.results);
    json_decref(w.dropped);
    if (rc < 0)
        buf_done(&ret->body);
    return rc;
}
