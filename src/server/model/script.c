/* script.c - the pure part of the script provider: which scripted turn answers a Messages API request.
 * Decides from the request's messages alone, so that a restart changes nothing. Format: docs/script-provider.md. */
#include "server/model/provider.h"

#include <string.h>

#include "base/str.h"

#define SCRIPT_SCENARIOS_MAX 1000
#define SUBST_MAX 2000               /* characters of a result or user text that ${...} puts in */
#define TEXT_MAX (4 * MIB)

struct view {                        /* what a script may look at */
    struct buf user, results;        /* text of the last user message that has text; text of the last tool results */
    bool has_results, result_error;
    int64_t step;                    /* assistant messages since that user message */
    size_t n_messages, bytes;
};

static void add_text(struct buf *b, const json_t *content)
{
    if (json_is_string(content)) {
        (void)buf_puts(b, json_string_value(content));
        return;
    }
    size_t i;
    json_t *bl;
    json_array_foreach(content, i, bl) {
        const char *text = str_eq(js_str(bl, "type"), "text") ? js_str(bl, "text") : NULL;
        if (!text)
            continue;
        if (buf_len(b))
            (void)buf_putc(b, '\n');
        (void)buf_puts(b, text);
    }
}

static bool has_text(const json_t *content)
{
    if (json_is_string(content))
        return true;
    size_t i;
    json_t *bl;
    json_array_foreach(content, i, bl)
        if (str_eq(js_str(bl, "type"), "text"))
            return true;
    return false;
}

static void view_init(struct view *v, const json_t *messages)
{
    memset(v, 0, sizeof *v);
    buf_init(&v->user, TEXT_MAX);
    buf_init(&v->results, TEXT_MAX);
    size_t n = v->n_messages = json_array_size(messages), from = n;
    for (size_t i = n; i-- > 0;) {
        const json_t *m = json_array_get(messages, i);
        if (str_eq(js_str(m, "role"), "user") && has_text(js_at(m, "content"))) {
            add_text(&v->user, js_at(m, "content"));
            from = i;
            break;
        }
    }
    for (size_t i = from; i < n; i++)
        if (str_eq(js_str(json_array_get(messages, i), "role"), "assistant"))
            v->step++;
    const json_t *last = n ? js_at(json_array_get(messages, n - 1), "content") : NULL;
    size_t i;
    json_t *bl;
    if (json_is_array(last)) {
        json_array_foreach(last, i, bl) {
            if (!str_eq(js_str(bl, "type"), "tool_result"))
                continue;
            v->has_results = true;
            v->result_error |= js_bool(bl, "is_error", false);
            add_text(&v->results, js_at(bl, "content"));
        }
    }
}

static void view_done(struct view *v)
{
    buf_done(&v->user);
    buf_done(&v->results);
}

static bool when_holds(const json_t *when, struct view *v)
{
    const char *user = js_str(when, "user"), *result = js_str(when, "result");
    if (user && !strstr(buf_data(&v->user), user))
        return false;
    if (result && !strstr(buf_data(&v->results), result))
        return false;
    if (js_at(when, "result_error") && js_bool(when, "result_error", false) != (v->has_results && v->result_error))
        return false;
    if (js_at(when, "has_results") && js_bool(when, "has_results", false) != v->has_results)
        return false;
    return true;
}

static const json_t *pick_turn(const json_t *script, struct view *v)
{
    size_t i;
    json_t *sc;
    json_array_foreach(js_at(script, "scenarios"), i, sc) {
        if (!when_holds(js_at(sc, "when"), v))
            continue;
        const json_t *turns = js_at(sc, "turns");
        int64_t n = (int64_t)json_array_size(turns), k = v->step;
        if (k >= n && js_bool(sc, "loop", false))
            k %= n;
        if (k >= n)
            return NULL;
        const json_t *t = json_array_get(turns, (size_t)k);
        if (!json_is_array(t))
            return when_holds(js_at(t, "when"), v) ? t : NULL;
        size_t a;
        json_t *alt;
        json_array_foreach(t, a, alt)
            if (when_holds(js_at(alt, "when"), v))
                return alt;
        return NULL;
    }
    return NULL;
}

/* ${result} and ${user} inside scripted texts. */
static json_t *subst(const char *s, struct view *v)
{
    struct buf b;
    buf_init(&b, TEXT_MAX);
    for (const char *p = s; *p;) {
        struct buf *src = str_prefix(p, "${result}") ? &v->results : str_prefix(p, "${user}") ? &v->user : NULL;
        if (!src) {
            (void)buf_putc(&b, *p++);
            continue;
        }
        size_t n = buf_len(src);
        (void)buf_put(&b, buf_data(src), n < SUBST_MAX ? n : SUBST_MAX);
        p += src == &v->results ? strlen("${result}") : strlen("${user}");
    }
    json_t *ret = js_string(buf_data(&b), buf_len(&b));
    buf_done(&b);
    return ret;
}

static json_t *subst_tree(const json_t *j, struct view *v)
{
    if (json_is_string(j))
        return subst(json_string_value(j), v);
    json_t *ret, *item;
    if (json_is_array(j)) {
        ret = json_array();
        size_t i;
        json_array_foreach(j, i, item)
            js_push(ret, subst_tree(item, v));
        return ret;
    }
    if (json_is_object(j)) {
        ret = json_object();
        const char *key;
        json_object_foreach((json_t *)(uintptr_t)j, key, item)
            js_set(ret, key, subst_tree(item, v));
        return ret;
    }
    return json_deep_copy(j);
}

static void push_text(json_t *content, const char *text, struct view *v)
{
    json_t *b = json_object();
    js_set_str(b, "type", "text");
    js_set(b, "text", subst(text, v));
    js_push(content, b);
}

static json_t *turn_content(const json_t *turn, struct view *v, bool *ret_tools)
{
    json_t *content = js_at(turn, "content") ? subst_tree(js_at(turn, "content"), v) : json_array();
    const char *thinking = js_str(turn, "thinking"), *text = js_str(turn, "text");
    if (thinking) {
        json_t *b = json_object();
        js_set_str(b, "type", "thinking");
        js_set(b, "thinking", subst(thinking, v));
        js_set_str(b, "signature", "script");
        js_push(content, b);
    }
    if (text)
        push_text(content, text, v);
    size_t i;
    json_t *b;
    json_array_foreach(js_at(turn, "tool_use"), i, b) {
        json_t *u = json_object();
        js_set_str(u, "type", "tool_use");
        js_set(u, "input", js_at(b, "input") ? subst_tree(js_at(b, "input"), v) : json_object());
        js_set_str(u, "name", js_str(b, "name"));
        js_push(content, u);
    }
    json_array_foreach(content, i, b) {
        if (!str_eq(js_str(b, "type"), "tool_use"))
            continue;
        *ret_tools = true;
        if (!js_str(b, "id")) {
            char *id = str_printf("toolu_script_%zu_%zu", v->n_messages, i);
            js_set_str(b, "id", id);
            free(id);
        }
    }
    return content;
}

int model_script_answer(const json_t *script, const json_t *request, json_t **ret, struct err *e)
{
    const json_t *messages = js_at(request, "messages");
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return err_set(e, RC_INVALID, "messages: at least one message is required");
    struct view v;
    view_init(&v, messages);
    const json_t *turn = pick_turn(script, &v);
    json_t *o = json_object(), *content;
    bool tools = false;
    if (turn) {
        content = turn_content(turn, &v, &tools);
    } else {
        content = json_array();
        push_text(content, js_str(script, "default") ? js_str(script, "default") : "OK.", &v);
    }
    js_set(o, "content", content);
    const char *stop = js_str(turn, "stop_reason");
    js_set_str(o, "stop_reason", stop ? stop : tools ? "tool_use" : "end_turn");
    if (js_at(turn, "stop_details"))
        js_set(o, "stop_details", json_deep_copy(js_at(turn, "stop_details")));
    if (js_at(turn, "usage"))
        js_set(o, "usage", json_deep_copy(js_at(turn, "usage")));
    js_set_int(o, "delay_ms", js_int(turn, "delay_ms", js_int(script, "delay_ms", 0)));
    js_set_int(o, "chunk_ms", js_int(turn, "chunk_ms", js_int(script, "chunk_ms", 0)));
    if (js_at(turn, "error"))
        js_set(o, "error", json_deep_copy(js_at(turn, "error")));
    view_done(&v);
    *ret = o;
    return RC_OK;
}

static int check_turn(const json_t *t, size_t sc, size_t k, struct err *e)
{
    if (!json_is_object(t))
        return err_set(e, RC_INVALID, "scenarios.%zu.turns.%zu: must be an object or an array of objects", sc, k);
    const json_t *c = js_at(t, "content"), *u = js_at(t, "tool_use");
    size_t i;
    json_t *b;
    if ((c && !json_is_array(c)) || (u && !json_is_array(u)))
        return err_set(e, RC_INVALID, "scenarios.%zu.turns.%zu: content and tool_use must be arrays", sc, k);
    json_array_foreach(c, i, b)
        if (!js_str(b, "type"))
            return err_set(e, RC_INVALID, "scenarios.%zu.turns.%zu.content.%zu: needs a type", sc, k, i);
    json_array_foreach(u, i, b)
        if (!js_str(b, "name") || (js_at(b, "input") && !json_is_object(js_at(b, "input"))))
            return err_set(e, RC_INVALID, "scenarios.%zu.turns.%zu.tool_use.%zu: needs a name and an object as input", sc, k, i);
    if (js_at(t, "error") && js_int(t, "error.status", -1) < 0)
        return err_set(e, RC_INVALID, "scenarios.%zu.turns.%zu.error: needs a status", sc, k);
    return RC_OK;
}

int model_script_check(const json_t *script, struct err *e)
{
    const json_t *list = js_at(script, "scenarios");
    if (!json_is_array(list) || json_array_size(list) > SCRIPT_SCENARIOS_MAX)
        return err_set(e, RC_INVALID, "script: \"scenarios\" must be an array of at most %d", SCRIPT_SCENARIOS_MAX);
    size_t i, k, a;
    json_t *sc, *t, *alt;
    json_array_foreach(list, i, sc) {
        if (!json_is_array(js_at(sc, "turns")) || json_array_size(js_at(sc, "turns")) == 0)
            return err_set(e, RC_INVALID, "scenarios.%zu.turns: must be an array with at least one turn", i);
        json_array_foreach(js_at(sc, "turns"), k, t) {
            if (!json_is_array(t)) {
                TRY(check_turn(t, i, k, e));
                continue;
            }
            json_array_foreach(t, a, alt)
                TRY(check_turn(alt, i, k, e));
        }
    }
    return RC_OK;
}
