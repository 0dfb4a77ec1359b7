#include "server/loop/reduce.h"

#include <string.h>

#include "base/str.h"
#include "json/js.h"

#define RECORD_MAX (64 * MIB)        /* a private record: a model response with its envelope */

static const char *const kind_names[] = { [CALL_WORKER] = "worker", [CALL_CUSTOM] = "custom", [CALL_NONE] = "none", [CALL_MCP] = "mcp" };
static const char *const perm_names[] = { [PERM_ALLOW] = "allow", [PERM_ASK] = "ask", [PERM_DENY] = "deny" };
static const struct { const char *name; enum turn_stop stop; } stops[] = {
    { "end_turn", STOP_END }, { "stop_sequence", STOP_END }, { "tool_use", STOP_TOOL_USE }, { "max_tokens", STOP_MAX_TOKENS },
    { "pause_turn", STOP_PAUSE }, { "refusal", STOP_REFUSAL }, { "model_context_window_exceeded", STOP_CONTEXT }, { "compaction", STOP_COMPACTION },
};

const char *call_kind_name(enum call_kind k) { return k < CALL_KIND_MAX_ ? kind_names[k] : "none"; }
const char *call_perm_name(enum call_perm p) { return p < PERM_MAX_ ? perm_names[p] : "deny"; }

enum turn_stop turn_stop_parse(const char *s)
{
    for (size_t i = 0; i < COUNT_OF(stops); i++)
        if (str_eq(s, stops[i].name))
            return stops[i].stop;
    return STOP_END;
}

static int name_index(const char *const *names, size_t n, const char *s)
{
    for (size_t i = 0; i < n; i++)
        if (str_eq(names[i], s))
            return (int)i;
    return -1;
}

void turn_state_init(struct turn_state *st)
{
    memset(st, 0, sizeof *st);
    st->running_since_ms = -1;
}

void turn_state_done(struct turn_state *st)
{
    free(st->inputs);
    free(st->calls);
    turn_state_init(st);
}

static void *dup_items(const void *p, size_t n, size_t size)
{
    if (n == 0)
        return NULL;
    void *ret = xcalloc(n, size);
    memcpy(ret, p, n * size);
    return ret;
}

void turn_state_copy(struct turn_state *dst, const struct turn_state *src)
{
    struct turn_state old = *dst;
    *dst = *src;
    dst->inputs = dup_items(src->inputs, src->n_inputs, sizeof *src->inputs);
    dst->calls = dup_items(src->calls, src->n_calls, sizeof *src->calls);
    dst->cap_inputs = src->n_inputs;
    dst->cap_calls = src->n_calls;
    free(old.inputs);
    free(old.calls);
}

struct turn_call *turn_call_find(struct turn_state *st, const char *id)
{
    for (size_t i = 0; i < st->n_calls; i++)
        if (str_eq(st->calls[i].id, id))
            return &st->calls[i];
    return NULL;
}

size_t turn_open_calls(const struct turn_state *st)
{
    size_t n = 0;
    for (size_t i = 0; i < st->n_calls; i++)
        n += !st->calls[i].answered;
    return n;
}

bool turn_call_allowed(const struct turn_call *c)
{
    return c->perm == PERM_ALLOW || (c->perm == PERM_ASK && c->verdict == VERDICT_ALLOW);
}

size_t turn_worker_calls(const struct turn_state *st)
{
    size_t n = 0;
    for (size_t i = 0; i < st->n_calls; i++)
        n += !st->calls[i].answered && st->calls[i].kind == CALL_WORKER && turn_call_allowed(&st->calls[i]);
    return n;
}

size_t turn_mcp_calls(const struct turn_state *st, bool started)
{
    size_t n = 0;
    for (size_t i = 0; i < st->n_calls; i++)
        n += !st->calls[i].answered && st->calls[i].kind == CALL_MCP && turn_call_allowed(&st->calls[i]) && st->calls[i].started == started;
    return n;
}

bool turn_has_input(const struct turn_state *st, enum input_kind kind)
{
    for (size_t i = 0; i < st->n_inputs; i++)
        if (st->inputs[i].kind == kind)
            return true;
    return false;
}

static void input_remove(struct turn_state *st, const char *id)
{
    for (size_t i = 0; i < st->n_inputs; i++) {
        if (!str_eq(st->inputs[i].id, id))
            continue;
        memmove(&st->inputs[i], &st->inputs[i + 1], (st->n_inputs - i - 1) * sizeof *st->inputs);
        st->n_inputs--;
        return;
    }
}

static void turn_reset(struct turn_state *st)
{
    st->requests = st->recoveries = st->nudges = st->cuts = st->compactions = st->retries = 0;
    st->retry_since_ms = 0;
    st->must_compact = false;
    st->fail_type[0] = st->fail_msg[0] = '\0';
}

static void consumed(struct turn_state *st, enum input_kind kind)
{
    if (kind != INPUT_MESSAGE)
        return;
    st->fresh_input = true;
    turn_reset(st);
}

static int on_input(struct turn_state *st, const struct turn_entry *en, enum input_kind kind, struct err *e)
{
    if (en->stamp) {
        input_remove(st, en->id);
        consumed(st, kind);
        return RC_OK;
    }
    if (!en->queued) {
        consumed(st, kind);
        return RC_OK;
    }
    if (st->n_inputs >= TURN_INPUTS_MAX)
        return err_set(e, RC_INVALID, "more than %d queued events", TURN_INPUTS_MAX);
    if (st->n_inputs == st->cap_inputs) {
        st->cap_inputs = st->cap_inputs ? st->cap_inputs * 2 : 4;
        st->inputs = xrealloc(st->inputs, st->cap_inputs, sizeof *st->inputs);
    }
    struct turn_input *in = &st->inputs[st->n_inputs++];
    memset(in, 0, sizeof *in);
    in->kind = kind;
    (void)str_copy(in->id, sizeof in->id, en->id);
    return RC_OK;
}

static int on_idle(struct turn_state *st, const struct turn_entry *en, const json_t *b)
{
    const char *why = js_str(b, "stop_reason.type");
    if (st->running_since_ms >= 0 && en->at_ms > st->running_since_ms)
        st->active_ms += en->at_ms - st->running_since_ms;
    st->running_since_ms = -1;
    st->run = TURN_IDLE;
    bool stop = str_eq(why, "requires_action");
    st->tools_retry = stop;
    if (!stop || st->tools_failed)
        st->tools_listed = false;
    if (stop)
        return RC_OK;
    /* The turn is over. What was open is closed; a flushed queue is gone. */
    turn_reset(st);
    st->stop = STOP_NONE;
    st->fresh_input = false;
    st->n_calls = 0;
    if (str_eq(why, "retries_exhausted"))
        st->n_inputs = 0;
    return RC_OK;
}

static void on_running(struct turn_state *st, const struct turn_entry *en)
{
    if (st->run != TURN_RUNNING && st->running_since_ms < 0)
        st->running_since_ms = en->at_ms;
    st->run = TURN_RUNNING;
}

static int read_calls(struct turn_state *st, const json_t *list, struct err *e)
{
    size_t n = json_array_size(list), i;
    if (n > TURN_CALLS_MAX)
        return err_set(e, RC_INVALID, "more than %d calls in one response", TURN_CALLS_MAX);
    if (n > st->cap_calls) {
        st->calls = xrealloc(st->calls, n, sizeof *st->calls);
        st->cap_calls = n;
    }
    st->n_calls = 0;
    json_t *o;
    json_array_foreach(list, i, o) {
        struct turn_call c = { .answered = false };
        int kind = name_index(kind_names, COUNT_OF(kind_names), js_str(o, "kind")), perm = name_index(perm_names, COUNT_OF(perm_names), js_str(o, "permission"));
        if (kind < 0 || perm < 0 || !js_str(o, "event") || !str_copy(c.id, sizeof c.id, js_str(o, "event")))
            return err_set(e, RC_INVALID, "turn.assistant: call %zu is damaged", i);
        c.kind = (enum call_kind)kind;
        c.perm = (enum call_perm)perm;
        c.read_only = js_bool(o, "read_only", false);
        st->calls[st->n_calls++] = c;
    }
    return RC_OK;
}

static void add_usage(struct turn_state *st, const json_t *u)
{
    st->usage.input += js_int(u, "input", 0);
    st->usage.output += js_int(u, "output", 0);
    st->usage.cache_read += js_int(u, "cache_read", 0);
    st->usage.cache_write_5m += js_int(u, "cache_write_5m", 0);
    st->usage.cache_write_1h += js_int(u, "cache_write_1h", 0);
    st->usage.requests++;
}

static int on_assistant(struct turn_state *st, const struct turn_entry *en, const json_t *b, struct err *e)
{
    st->after_results = st->n_calls > 0;
    TRY(read_calls(st, js_at(b, "calls"), e));
    st->stop = turn_stop_parse(js_str(b, "stop_reason"));
    if (st->stop == STOP_MAX_TOKENS && !js_bool(b, "cut", false))
        st->stop = STOP_END;                     /* only text was cut: it stands as it is */
    st->empty = js_bool(b, "empty", false);
    if (!str_copy(st->stop_details, sizeof st->stop_details, js_str(b, "stop_details") ? js_str(b, "stop_details") : ""))
        st->stop_details[0] = '\0';
    st->context_tokens = js_int(b, "context_tokens", 0);
    st->fresh_input = false;
    st->assistant_seq = en->seq;
    st->retries = st->retry_since_ms = 0;
    add_usage(st, js_at(b, "usage"));
    if (!js_bool(b, "skip", false))
        st->has_history = true;
    if (js_bool(b, "compacted", false)) {        /* the model's own compaction: its block opens this response */
        st->base_seq = en->seq - 1;
        st->compactions++;
    }
    if (st->stop != STOP_CONTEXT && st->stop != STOP_COMPACTION && !st->empty && !js_bool(b, "compacted", false))
        st->compactions = 0;
    if (st->stop == STOP_CONTEXT)
        st->must_compact = true;
    if (!st->empty)
        st->nudges = 0;
    if (st->stop != STOP_MAX_TOKENS)
        st->cuts = 0;
    return RC_OK;
}

static void on_tools(struct turn_state *st, const struct turn_entry *en, const json_t *b)
{
    st->tools_listed = true;
    st->tools_retry = false;
    st->tools_failed = js_bool(b, "failed", false);
    if (!js_bool(b, "same", false))
        st->tools_seq = en->seq;
}

/* Calls of MCP servers are about to be made, or (again) may be made once more. */
static void on_calls(struct turn_state *st, const json_t *b, bool again)
{
    size_t i;
    json_t *id;
    json_array_foreach(js_at(b, "ids"), i, id) {
        struct turn_call *c = json_is_string(id) ? turn_call_find(st, json_string_value(id)) : NULL;
        if (!c)
            continue;
        c->started = !again;
        c->starts += !again;
    }
}

static int on_record(struct turn_state *st, const struct turn_entry *en, const json_t *b, struct err *e)
{
    const char *what = en->type + strlen("turn.");
    if (str_eq(what, "assistant"))
        return on_assistant(st, en, b, e);
    if (str_eq(what, "tools"))
        on_tools(st, en, b);
    if (str_eq(what, "call") || str_eq(what, "recall"))
        on_calls(st, b, str_eq(what, "recall"));
    if (str_eq(what, "request")) {
        st->request_compacts = js_bool(b, "compact", false);
    } else if (str_eq(what, "note")) {
        st->fresh_input = true;
        if (str_eq(js_str(b, "kind"), "cut"))
            st->cuts++;
        else
            st->nudges++;
    } else if (str_eq(what, "retry")) {
        st->retries = js_int(b, "attempt", st->retries + 1);
        st->retry_since_ms = js_int(b, "since_ms", 0);
        st->must_compact |= js_bool(b, "too_large", false);
    } else if (str_eq(what, "recovery")) {
        st->recoveries++;
    } else if (str_eq(what, "compaction")) {
        st->base_seq = js_int(b, "cut_seq", 1) - 1;
        st->context_tokens = 0;
        st->has_history = js_bool(b, "kept", false);
        st->must_compact = false;
        st->compactions++;
        st->retries = st->retry_since_ms = 0;
        if (st->stop == STOP_CONTEXT)
            st->fresh_input = true;              /* the truncated answer is to be given again */
        add_usage(st, js_at(b, "usage"));
    } else if (str_eq(what, "failure")) {
        (void)str_copy(st->fail_type, sizeof st->fail_type, js_str(b, "type") ? js_str(b, "type") : "unknown_error");
        (void)str_copy(st->fail_msg, sizeof st->fail_msg, js_str(b, "message") ? js_str(b, "message") : "");
    } else if (str_eq(what, "flush")) {
        size_t i;
        json_t *id;
        json_array_foreach(js_at(b, "ids"), i, id)
            if (json_is_string(id))
                input_remove(st, json_string_value(id));
    }
    return RC_OK;
}

static int with_body(struct turn_state *st, const struct turn_entry *en, struct err *e)
{
    AUTO_JS b = NULL;
    size_t n = en->body ? strlen(en->body) : 0;
    if (js_parse(en->body, n, RECORD_MAX, &b, e) < 0)
        return err_wrap(e, RC_INVALID, "log position %lld (%s)", (long long)en->seq, en->type);
    if (str_eq(en->type, "session.status_idle"))
        return on_idle(st, en, b);
    if (str_eq(en->type, "user.tool_confirmation")) {
        struct turn_call *c = turn_call_find(st, en->ref);
        if (c)
            c->verdict = str_eq(js_str(b, "result"), "allow") ? VERDICT_ALLOW : VERDICT_DENY;
        return RC_OK;
    }
    return on_record(st, en, b, e);
}

static bool is_result(const char *type)
{
    return str_eq(type, "user.tool_result") || str_eq(type, "user.custom_tool_result") || str_eq(type, "agent.tool_result") ||
           str_eq(type, "agent.mcp_tool_result");
}

int reduce_entry(struct turn_state *st, const struct turn_entry *en, struct err *e)
{
    if (en->seq <= st->last_seq)
        return RC_OK;
    const char *t = en->type;
    int rc = RC_OK;
    if (str_eq(t, "user.message")) {
        rc = on_input(st, en, INPUT_MESSAGE, e);
    } else if (str_eq(t, "system.message")) {
        rc = on_input(st, en, INPUT_SYSTEM, e);
    } else if (str_eq(t, "user.interrupt")) {
        rc = on_input(st, en, INPUT_INTERRUPT, e);
    } else if (is_result(t)) {
        struct turn_call *c = turn_call_find(st, en->ref);
        if (c)
            c->answered = true;
    } else if (str_eq(t, "session.status_running")) {
        on_running(st, en);
    } else if (str_eq(t, "session.thread_status_running")) {
        st->thread_running = true;
    } else if (str_eq(t, "session.thread_status_idle") || str_eq(t, "session.thread_status_rescheduled")) {
        st->thread_running = false;
    } else if (str_eq(t, "session.status_rescheduled")) {
        st->run = TURN_RESCHEDULING;
    } else if (str_eq(t, "session.status_terminated")) {
        st->run = TURN_TERMINATED;
        if (st->running_since_ms >= 0 && en->at_ms > st->running_since_ms)
            st->active_ms += en->at_ms - st->running_since_ms;
        st->running_since_ms = -1;
    } else if (str_eq(t, "span.model_request_start")) {
        (void)str_copy(st->request_id, sizeof st->request_id, en->id);
        st->request_compacts = false;
        st->requests++;
    } else if (str_eq(t, "session.updated")) {
        st->tools_listed = st->tools_retry = false;      /* other servers, perhaps */
    } else if (str_eq(t, "span.model_request_end")) {
        st->request_id[0] = '\0';
    } else if (str_eq(t, "session.status_idle") || str_eq(t, "user.tool_confirmation") || str_prefix(t, "turn.")) {
        rc = with_body(st, en, e);
    }
    if (rc == RC_OK)
        st->last_seq = en->seq;
    return rc;
}

struct position { int64_t seq; const struct store_event *row; bool stamp; };

static int by_seq(const void *a, const void *b)
{
    const struct position *x = a, *y = b;
    return x->seq < y->seq ? -1 : x->seq > y->seq;
}

int reduce_rows(struct turn_state *st, const struct store_event *rows, size_t n, struct err *e)
{
    struct position *p = xcalloc(2 * n + 1, sizeof *p);
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        if (rows[i].seq > st->last_seq)
            p[k++] = (struct position){ rows[i].seq, &rows[i], false };
        if (rows[i].processed_seq != rows[i].seq && rows[i].processed_seq > st->last_seq)
            p[k++] = (struct position){ rows[i].processed_seq, &rows[i], true };
    }
    qsort(p, k, sizeof *p, by_seq);
    int rc = RC_OK;
    for (size_t i = 0; i < k && rc == RC_OK; i++) {
        const struct store_event *r = p[i].row;
        struct turn_entry en = { .seq = p[i].seq, .stamp = p[i].stamp, .queued = r->processed_seq != r->seq, .id = r->id, .type = r->type,
                                 .body = r->body, .ref = r->ref, .at_ms = p[i].stamp ? r->processed_ms : r->created_ms };
        rc = reduce_entry(st, &en, e);
    }
    free(p);
    return rc;
}
