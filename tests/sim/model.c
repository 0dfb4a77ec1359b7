/* model.c - a model that answers by chance, late, wrongly or not at all, and that holds each prompt against the rules of the Messages API: every call is
 * answered exactly once, in the next message, by the result that belongs to it. */
#include <stdio.h>
#include <string.h>

#include "base/list.h"
#include "base/str.h"
#include "sim.h"

#define CALLS_OPEN_MAX 64
#define TURN_ROUNDS_MAX 5            /* then the model ends its turn */

struct model_call { struct list node; struct model_request r; json_t *content; const char *stop; enum model_outcome outcome; int64_t retry_ms; bool gone; };

static struct list calls = { &calls, &calls };
static long numbers;

/* ---- the prompt ---- */
static const char *text_of(const json_t *content)
{
    return json_is_string(content) ? json_string_value(content) : js_str(content, "0.text");
}

/* "ran N" is what workers and clients answer to a call with the number N. */
static void check_result(const json_t *use, const json_t *result, const char *session)
{
    char want[32];
    const char *text = text_of(js_at(result, "content"));
    (void)snprintf(want, sizeof want, "ran %lld", (long long)js_int(use, "input.n", -1));
    if (!text)
        sim_fail("%s: a tool result without text", session);
    if (str_prefix(text, "ran ") && !str_eq(text, want))
        sim_fail("%s: the model was given '%s' for the call that asked for '%s'", session, text, want);
}

static void check_answers(const json_t *assistant, const json_t *user, const char *session)
{
    size_t i, k, uses = 0, results = 0;
    json_t *use, *b;
    json_array_foreach(js_at(assistant, "content"), i, use) {
        if (!str_eq(js_str(use, "type"), "tool_use"))
            continue;
        size_t found = 0;
        uses++;
        json_array_foreach(js_at(user, "content"), k, b)
            if (str_eq(js_str(b, "type"), "tool_result") && str_eq(js_str(b, "tool_use_id"), js_str(use, "id"))) {
                found++;
                check_result(use, b, session);
            }
        if (found != 1)
            sim_fail("%s: the prompt answers the call %s %zu times", session, js_str(use, "id"), found);
    }
    json_array_foreach(js_at(user, "content"), k, b)
        results += str_eq(js_str(b, "type"), "tool_result");
    if (results != uses)
        sim_fail("%s: the prompt has %zu results for %zu calls", session, results, uses);
}

/* Rounds of tool calls since the last text of the user. */
static int check_prompt(const json_t *body, const char *session)
{
    json_t *messages = json_object_get(body, "messages");
    size_t n = json_array_size(messages);
    int rounds = 0;
    if (!n || !str_eq(js_str(json_array_get(messages, n - 1), "role"), "user"))
        sim_fail("%s: the prompt does not end with the user", session);
    for (size_t i = 0; i < n; i++) {
        const json_t *m = json_array_get(messages, i);
        bool user = str_eq(js_str(m, "role"), "user");
        if (user != (i % 2 == 0))
            sim_fail("%s: roles do not alternate at message %zu", session, i);
        if (!user)
            check_answers(m, json_array_get(messages, i + 1), session);
        if (!user)
            rounds++;
        else if (!str_eq(js_str(m, "content.0.type"), "tool_result"))
            rounds = 0;
    }
    return rounds;
}

/* ---- the answer ---- */
static json_t *block_text(const char *t) { return json_pack("{s:s,s:s}", "type", "text", "text", t); }

static json_t *block_use(void)
{
    static const char *const names[] = { "bash", "bash", "bash", "write", "pick", "nothing" };
    char id[ID_MAX];
    id_new("toolu", id);
    const char *name = names[sim_below(COUNT_OF(names))];
    return json_pack("{s:s,s:s,s:s,s:{s:I}}", "type", "tool_use", "id", id, "name", name, "input", "n", (json_int_t)++numbers);
}

static void choose(struct model_call *c, int rounds)
{
    uint32_t what = sim_faults() ? sim_below(100) : 30 + sim_below(70);
    c->content = json_array();
    c->stop = "end_turn";
    c->retry_ms = -1;
    if (what < 14) {
        static const enum model_outcome bad[] = { MODEL_OVERLOADED, MODEL_OVERLOADED, MODEL_OVERLOADED, MODEL_RETRY_AFTER, MODEL_FATAL, MODEL_BILLING };
        c->outcome = bad[sim_below(COUNT_OF(bad))];
        if (c->outcome == MODEL_RETRY_AFTER)
            c->retry_ms = sim_below(20000);
    } else if (what < 20) {
        c->stop = what < 17 ? "max_tokens" : "refusal";
        js_push(c->content, block_text("cut"));
        if (what == 14)
            js_push(c->content, block_use());
    } else if (what < 23) {
        /* nothing at all: a known artefact after tool results */
    } else if (what < 65 || rounds >= TURN_ROUNDS_MAX) {
        js_push(c->content, block_text("said"));
    } else {
        c->stop = "tool_use";
        if (sim_chance(500))
            js_push(c->content, block_text("let me see"));
        for (uint32_t n = 1 + sim_below(3); n > 0; n--)
            js_push(c->content, block_use());
    }
}

static void end_call(struct model_call *c)
{
    list_del(&c->node);
    json_decref(c->content);
    c->content = NULL;
    c->gone = true;                  /* freed when its time comes: the scheduler knows it */
}

static void answer(void *arg)
{
    struct model_call *c = arg;
    if (c->gone) {
        free(c);
        return;
    }
    struct model_request r = c->r;
    struct model_result m = { .outcome = c->outcome, .retry_after_ms = c->retry_ms, .context_tokens = 100, .usage = { .input = 10, .output = 5 } };
    json_t *content = json_incref(c->content);
    sim_trace("model: answers %s, outcome %d, %s", r.session_id, (int)c->outcome, c->stop);
    if (c->outcome == MODEL_OK) {
        m.content = content;
        m.stop_reason = c->stop;
        const char *text = js_str(json_array_get(content, 0), "text");
        struct model_delta d = { .kind = DELTA_TEXT_START }, t = { .kind = DELTA_TEXT, .text = text, .n = text ? strlen(text) : 0 };
        if (text && r.on_delta) {
            r.on_delta(r.ctx, &d);
            r.on_delta(r.ctx, &t);
        }
    } else {
        m.error_type = "simulated";
        m.message = "simulated";
    }
    end_call(c);
    free(c);
    r.on_done(r.ctx, &m);
    json_decref(content);
}

static struct model_call *start(void *self, const struct model_request *r)
{
    (void)self;
    struct err e = { 0 };
    AUTO_JS body = NULL;
    if (js_parse(r->body, r->body_n, JS_BODY_MAX, &body, &e) < 0)
        sim_fail("a prompt that is no JSON: %s", e.msg);
    struct model_call *c = xcalloc(1, sizeof *c);
    c->r = *r;
    choose(c, check_prompt(body, r->session_id));
    list_add_tail(&calls, &c->node);
    int64_t ms = 1 + sim_below(sim_faults() && sim_chance(100) ? 45000 : 2000);
    sim_trace("model: asked by %s", r->session_id);
    sim_after(ms, answer, c);
    return c;
}

static void cancel(struct model_call *c) { end_call(c); }

static int caps(void *self, const char *model, struct model_caps *ret)
{
    (void)self, (void)model;
    *ret = (struct model_caps){ .context_tokens = 200000, .max_output_tokens = 8192, .cache_min_tokens = 1024 };
    return RC_OK;
}

static int list_models(void *self, json_t *into)
{
    (void)self, (void)into;
    return RC_OK;
}

static const struct model_provider provider = { .name = "sim", .start = start, .cancel = cancel, .caps = caps, .list = list_models };

struct model_registry *sim_model_new(void)
{
    struct model_registry *m = model_registry_empty();
    model_registry_add(m, "", &provider, NULL);
    return m;
}

void sim_model_forget(void)
{
    list_foreach(c, &calls, struct model_call, node)
        end_call(c);
}

void sim_model_reset(void)
{
    numbers = 0;
    list_init(&calls);
}
