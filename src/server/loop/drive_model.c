/* drive_model.c - a model request: made from the log, run on the ev thread, its outcome put into a step. */
#include <string.h>

#include "base/clock.h"
#include "base/random.h"
#include "base/str.h"
#include "log/log.h"
#include "metrics/metrics.h"
#include "server/loop/drive.h"
#include "server/loop/tools.h"

METRIC_DEFINE(metric_requests, METRIC_COUNTER, "model_requests_total", "Model requests that got an outcome.");
METRIC_DEFINE(metric_errors, METRIC_COUNTER, "model_request_errors_total", "Model requests that failed.");

/* ---- ev thread ---- */
static void preview(struct request *q, const struct loop_preview *p)
{
    if (q->r->l->c.on_preview)
        q->r->l->c.on_preview(q->r->l->c.ctx, p);
}

static void on_delta(void *ctx, const struct model_delta *d)
{
    struct request *q = ctx;
    struct loop_preview p = { .session_id = q->session_id, .thread_id = q->thread_id };
    if (q->compact)
        return;                                  /* a summary is not for the client */
    if (d->kind == DELTA_THINKING_START) {
        if (q->thinking_id[0])
            return;
        id_new("sevt", q->thinking_id);
        p.event_id = q->thinking_id, p.type = "agent.thinking", p.start = true;
        preview(q, &p);
        return;
    }
    p.event_id = q->message_id, p.type = "agent.message";
    if (!q->message_id[0]) {
        id_new("sevt", q->message_id);
        p.start = true;
        q->text_index = -1;
        preview(q, &p);
        p.start = false;
    }
    if (d->kind == DELTA_TEXT_START) {
        q->text_index++;
        return;
    }
    p.index = q->text_index < 0 ? 0 : q->text_index, p.text = d->text, p.n = d->n;
    preview(q, &p);
}

static void finish(struct request *q)
{
    struct runner *r = q->r;
    __atomic_store_n(&q->done, true, __ATOMIC_RELEASE);
    runner_finished(r);
}

static void on_done(void *ctx, const struct model_result *m)
{
    struct request *q = ctx;
    q->call = NULL;
    q->outcome = m->outcome;
    q->retry_after_ms = m->retry_after_ms;
    q->usage = m->usage;
    (void)str_copy(q->stop_reason, sizeof q->stop_reason, m->stop_reason ? m->stop_reason : "");
    (void)str_copy(q->error_type, sizeof q->error_type, m->error_type ? m->error_type : "");
    (void)str_copy(q->message, sizeof q->message, m->message ? m->message : "");
    q->content = m->content ? json_incref(m->content) : NULL;
    q->stop_details = m->stop_details ? json_incref(m->stop_details) : NULL;
    finish(q);
}

static void start_on_ev(void *arg)
{
    struct request *q = arg;
    struct model_request m = { .model = q->model, .body = buf_data(&q->prompt.body), .body_n = buf_len(&q->prompt.body), .session_id = q->session_id,
                               .agent_id = q->agent_id, .environment_id = q->env_id, .beta = q->prompt.beta[0] ? q->prompt.beta : NULL,
                               .on_delta = on_delta, .on_done = on_done, .ctx = q };
    q->call = q->provider->start(q->self, &m);
}

static void cancel_on_ev(void *arg)
{
    struct request *q = arg;
    if (!q->call)
        return;                                  /* its outcome came first */
    q->provider->cancel(q->call);
    q->call = NULL;
    q->outcome = MODEL_CANCELLED;
    finish(q);
}

/* The posted cancellation runs before anything frees the request: an outcome is handled by a job that frees it, so a request whose
 * cancellation is under way is marked and freed on the ev thread. */
static void free_on_ev(void *arg)
{
    struct request *q = arg;
    buf_done(&q->prompt.body);
    json_decref(q->content);
    json_decref(q->stop_details);
    free(q->model);
    free(q);
}

void request_cancel(struct runner *r)
{
    if (r->req)
        ev_post(r->l->c.ev, cancel_on_ev, r->req);
}

void request_free(struct request *q)
{
    if (q && q->r->l->stopped)
        free_on_ev(q);
    else if (q)
        ev_post(q->r->l->c.ev, free_on_ev, q);
}

/* ---- job threads ---- */
int request_start(struct runner *r, const struct snapshot *snap, const struct turn_state *st, const char *span_id, struct err *e)
{
    struct loop *l = r->l;
    struct model_caps caps;
    const struct model_provider *p;
    void *self;
    if (model_resolve(l->c.models, snap->model, &p, &self, &caps) < 0)
        return err_set(e, RC_NOT_FOUND, "no provider of this server serves the model '%s'", snap->model ? snap->model : "");
    AUTO_PTR(arena) a = arena_new(64 * KIB, LOOP_ARENA_MAX);
    if (!a)
        return err_set(e, RC_NOMEM, "prompt");
    struct store_event *rows = NULL;
    size_t n = 0;
    TRY(l->c.store->ops->event_scan(l->c.store, a, r->id, st->base_seq, SCAN_MAX, false, &rows, &n, e));
    struct request *q = xcalloc(1, sizeof *q);
    struct prompt_in in = { .snap = snap, .caps = &caps, .st = st, .rows = rows, .n_rows = n, .compact_at = loop_compact_at(l, &caps),
                            .compact = st->request_compacts, .attempt = st->retries + 1 };
    int rc = prompt_build(&in, &q->prompt, e);
    if (rc < 0) {
        free(q);
        return rc;
    }
    q->r = r;
    q->provider = p;
    q->self = self;
    q->compact = st->request_compacts;
    q->model = str_dup(snap->model);
    (void)str_copy(q->span_id, sizeof q->span_id, span_id);
    (void)str_copy(q->session_id, sizeof q->session_id, r->id);
    (void)str_copy(q->thread_id, sizeof q->thread_id, snap->s.thread_id);
    (void)str_copy(q->agent_id, sizeof q->agent_id, snap->s.agent_id);
    (void)str_copy(q->env_id, sizeof q->env_id, snap->s.env_id);
    r->req = q;
    ev_post(l->c.ev, start_on_ev, q);
    return RC_OK;
}

static struct store_usage usage_of(const struct request *q)
{
    return (struct store_usage){ .input = q->usage.input, .output = q->usage.output, .cache_read = q->usage.cache_read,
                                 .cache_write_5m = q->usage.cache_write_5m, .cache_write_1h = q->usage.cache_write_1h, .requests = 1 };
}

static json_t *usage_json(const struct store_usage *u)
{
    json_t *o = json_object();
    js_set_int(o, "input", u->input);
    js_set_int(o, "output", u->output);
    js_set_int(o, "cache_read", u->cache_read);
    js_set_int(o, "cache_write_5m", u->cache_write_5m);
    js_set_int(o, "cache_write_1h", u->cache_write_1h);
    return o;
}

/* What of a response may stand in the prompt: everything but calls that must not be made. */
static json_t *without_calls(json_t *content)
{
    json_t *a = json_array(), *b;
    size_t i;
    bool text = false;
    json_array_foreach(content, i, b) {
        if (str_eq(js_str(b, "type"), "tool_use"))
            continue;
        text |= str_eq(js_str(b, "type"), "text") && js_str(b, "text") && js_str(b, "text")[0];
        js_push(a, json_incref(b));
    }
    if (!text)
        json_array_clear(a);                     /* thinking alone is no message */
    return a;
}

struct parts { json_t *calls, *texts; bool thinking, has_calls, compacted; };

static void read_parts(const struct snapshot *snap, json_t *content, struct parts *p)
{
    size_t i;
    json_t *b;
    p->calls = json_array();
    p->texts = json_array();
    json_array_foreach(content, i, b) {
        const char *type = js_str(b, "type");
        if (str_eq(type, "thinking") || str_eq(type, "redacted_thinking")) {
            p->thinking = true;
        } else if (str_eq(type, "compaction")) {
            p->compacted |= js_str(b, "content") != NULL;
        } else if (str_eq(type, "text") && js_str(b, "text") && js_str(b, "text")[0]) {
            json_t *t = json_object();
            js_set_str(t, "type", "text");
            js_set(t, "text", json_incref(json_object_get(b, "text")));
            js_push(p->texts, t);
        } else if (str_eq(type, "tool_use")) {
            struct tool_use_rule rule = tools_rule(snap->agent, snap->mcp, js_str(b, "name"));
            char id[ID_MAX];
            json_t *c = json_object();
            id_new("sevt", id);
            js_set_str(c, "id", js_str(b, "id"));
            js_set_str(c, "event", id);
            js_set_str(c, "kind", call_kind_name(rule.kind));
            js_set_str(c, "permission", call_perm_name(rule.perm));
            if (rule.kind == CALL_MCP) {
                js_set_str(c, "server", rule.server);
                js_set_str(c, "tool", rule.tool);
                js_set_bool(c, "read_only", rule.read_only);
            }
            js_push(p->calls, c);
            p->has_calls = true;
        }
    }
}

static void add_record(struct request *q, struct step *s, struct parts *p, enum turn_stop stop, bool cut, const struct store_usage *u)
{
    json_t *b = json_object();
    bool skip = stop == STOP_CONTEXT || stop == STOP_REFUSAL;
    bool no_calls = cut || skip;
    js_set(b, "content", no_calls ? without_calls(q->content) : json_incref(q->content));
    js_set_str(b, "stop_reason", q->stop_reason);
    js_set_bool(b, "cut", cut);
    js_set_bool(b, "empty", json_array_size(p->texts) == 0 && !p->has_calls);
    js_set_bool(b, "skip", skip);
    js_set_bool(b, "compacted", p->compacted && !skip);
    if (q->stop_details) {
        AUTO_FREE char *text = js_text(q->stop_details);
        js_set_str(b, "stop_details", text);
    }
    js_set_int(b, "context_tokens", u->input + u->output + u->cache_read + u->cache_write_5m + u->cache_write_1h);
    js_set(b, "usage", usage_json(u));
    js_set(b, "calls", no_calls ? json_array() : json_incref(p->calls));
    step_add_private(s, "turn.assistant", b);
}

static void set_evaluation(json_t *o, enum tool_policy policy)
{
    static const char *const names[] = { [POLICY_ALLOW] = "always_allow", [POLICY_ASK] = "always_ask", [POLICY_AUTO] = NULL, [POLICY_NONE] = NULL };
    json_t *v = json_object();
    if (policy == POLICY_AUTO) {
        js_set_str(v, "type", "auto");
        js_set(v, "evaluated_permission", json_pack("{s:s,s:s}", "type", "ask", "reason_code", "indeterminate"));
    } else if (names[policy]) {
        js_set_str(v, "type", names[policy]);
    } else {
        json_decref(v);
        return;
    }
    js_set(o, "evaluation", v);
}

static void add_calls(struct request *q, const struct snapshot *snap, struct step *s, struct parts *p)
{
    size_t i, k = 0;
    json_t *b;
    json_array_foreach(q->content, i, b) {
        if (!str_eq(js_str(b, "type"), "tool_use"))
            continue;
        json_t *c = json_array_get(p->calls, k++), *input = json_object_get(b, "input");
        struct tool_use_rule rule = tools_rule(snap->agent, snap->mcp, js_str(b, "name"));
        json_t *o = json_object();
        js_set_str(o, "id", js_str(c, "event"));
        js_set_str(o, "type", rule.kind == CALL_CUSTOM ? "agent.custom_tool_use" : rule.server ? "agent.mcp_tool_use" : "agent.tool_use");
        if (rule.server)
            js_set_str(o, "mcp_server_name", rule.server);
        js_set_str(o, "name", rule.server ? rule.tool : js_str(b, "name"));
        js_set(o, "input", json_is_object(input) ? json_incref(input) : json_object());
        if (rule.kind != CALL_CUSTOM) {
            js_set_str(o, "evaluated_permission", call_perm_name(rule.perm));
            set_evaluation(o, rule.policy);
        }
        step_add(s, o, NULL);
        if (rule.kind == CALL_NONE || rule.perm == PERM_DENY) {
            char *why = str_printf("There is no tool '%s' for this agent, or it is disabled. Do not call it again.", js_str(b, "name") ? js_str(b, "name") : "");
            if (rule.server)
                step_mcp_result(s, js_str(c, "event"), json_pack("[{s:s,s:s}]", "type", "text", "text", why), true);
            else
                step_deny_result(s, js_str(c, "event"), why);
            free(why);
        }
    }
}

static json_t *event_with_id(const char *id, const char *type)
{
    char own[ID_MAX];
    json_t *o = json_object();
    if (!id[0])
        id_new("sevt", own);
    js_set_str(o, "id", id[0] ? id : own);
    js_set_str(o, "type", type);
    return o;
}

static void take_response(struct request *q, const struct snapshot *snap, struct step *s)
{
    struct parts p = { 0 };
    struct store_usage u = usage_of(q);
    enum turn_stop stop = turn_stop_parse(q->stop_reason);
    read_parts(snap, q->content, &p);
    if (stop == STOP_TOOL_USE && !p.has_calls)
        stop = STOP_END;
    bool cut = stop == STOP_MAX_TOKENS && p.has_calls;
    add_record(q, s, &p, stop, cut, &u);
    if (p.compacted)
        step_add(s, event_new(NULL, "agent.thread_context_compacted"), NULL);
    if (stop != STOP_CONTEXT) {
        if (p.thinking)
            step_add(s, event_with_id(q->thinking_id, "agent.thinking"), NULL);
        if (json_array_size(p.texts) > 0) {
            json_t *m = event_with_id(q->message_id, "agent.message");
            js_set(m, "content", json_incref(p.texts));
            step_add(s, m, NULL);
        }
        if (!cut && stop != STOP_REFUSAL)
            add_calls(q, snap, s, &p);
    }
    step_request_end(s, q->span_id, false, &u);
    s->usage = u;
    json_decref(p.calls);
    json_decref(p.texts);
}

static void add_failure(struct step *s, const char *type, const char *message)
{
    json_t *b = json_object();
    js_set_str(b, "type", type);
    js_set_str(b, "message", message);
    step_add_private(s, "turn.failure", b);
}

/* Another try later, or the end when the time for retries is used up. */
static void add_retry(struct runner *r, struct request *q, struct step *s, const char *type, int64_t after_ms, bool too_large, int64_t *ret_wait_ms)
{
    const struct loop_conf *c = &r->l->c;
    int64_t attempt = s->st.retries + 1, now = clock_now_ms(), since = s->st.retry_since_ms ? s->st.retry_since_ms : now;
    int64_t top = c->retry_base_ms << (attempt < 16 ? attempt : 16);
    if (top > c->retry_max_ms)
        top = c->retry_max_ms;
    int64_t wait = after_ms >= 0 ? after_ms + (int64_t)(random_unit() * 100) : 1 + (int64_t)(random_unit() * (double)top);
    if (now + wait - since > c->retry_budget_ms) {
        add_failure(s, type, q->message);
        return;
    }
    step_error(s, type, q->message, "retrying");
    json_t *b = json_object();
    js_set_int(b, "attempt", attempt);
    js_set_int(b, "since_ms", since);
    js_set_bool(b, "too_large", too_large);
    step_add_private(s, "turn.retry", b);
    step_rescheduled(s);
    *ret_wait_ms = wait;
}

static void take_summary(struct runner *r, struct request *q, struct step *s, int64_t *ret_wait_ms)
{
    AUTO_FREE char *summary = compact_summary_of(q->content);
    struct store_usage u = usage_of(q);
    step_request_end(s, q->span_id, summary == NULL, &u);
    s->usage = u;
    if (!summary) {
        (void)str_copy(q->message, sizeof q->message, "the model wrote no summary of the conversation");
        if (s->st.retries + 1 < COMPACT_TRIES_MAX)
            add_retry(r, q, s, "compaction_limit_reached_error", -1, false, ret_wait_ms);
        else
            add_failure(s, "compaction_limit_reached_error", q->message);
        return;
    }
    json_t *b = json_object();
    js_set_int(b, "cut_seq", q->prompt.cut_seq);
    js_set_bool(b, "kept", q->prompt.kept);
    js_set_str(b, "summary", summary);
    js_set(b, "usage", usage_json(&u));
    step_add_private(s, "turn.compaction", b);
    step_add(s, event_new(NULL, "agent.thread_context_compacted"), NULL);
}

static void take_error(struct runner *r, struct request *q, struct step *s, int64_t *ret_wait_ms)
{
    step_request_end(s, q->span_id, true, NULL);
    metric_add(&metric_errors, 1);
    log_info("model.error", "session=%s outcome=%d type=%s message=%s", r->id, (int)q->outcome, q->error_type, q->message);
    switch (q->outcome) {
    case MODEL_RETRY_AFTER: add_retry(r, q, s, "model_rate_limited_error", q->retry_after_ms, false, ret_wait_ms); break;
    case MODEL_OVERLOADED: add_retry(r, q, s, "model_overloaded_error", q->retry_after_ms, false, ret_wait_ms); break;
    case MODEL_BILLING: add_failure(s, "billing_error", q->message); break;
    case MODEL_TOO_LARGE:
        if (q->compact ? s->st.retries + 1 < COMPACT_TRIES_MAX : s->st.has_history)
            add_retry(r, q, s, "model_request_failed_error", 0, true, ret_wait_ms);
        else
            add_failure(s, "model_request_failed_error", q->message);
        break;
    case MODEL_CANCELLED: break;
    case MODEL_OK:
    case MODEL_REFUSED:
    case MODEL_FATAL:
    case MODEL_OUTCOME_MAX_: add_failure(s, "model_request_failed_error", q->message); break;
    }
}

void request_finish(struct runner *r, struct request *q, const struct snapshot *snap, const struct model_caps *caps, struct step *s, int64_t *ret_wait_ms)
{
    (void)caps;
    metric_add(&metric_requests, 1);
    if (!str_eq(s->st.request_id, q->span_id))
        return;                                  /* the log closed it meanwhile: the outcome is nobody's */
    if (q->outcome != MODEL_OK || !json_is_array(q->content))
        take_error(r, q, s, ret_wait_ms);
    else if (q->compact)
        take_summary(r, q, s, ret_wait_ms);
    else
        take_response(q, snap, s);
}
