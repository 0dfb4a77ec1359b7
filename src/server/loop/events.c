/* events.c - the public events that the loop emits, with exactly the fields of api/openapi.json. */
#include <string.h>

#include "base/str.h"
#include "server/loop/step.h"

json_t *event_new(char ret_id[ID_MAX], const char *type)
{
    char id[ID_MAX];
    id_new("sevt", id);
    json_t *o = json_object();
    js_set_str(o, "id", id);
    js_set_str(o, "type", type);
    if (ret_id)
        (void)str_copy(ret_id, ID_MAX, id);
    return o;
}

/* An event of the thread's status: names the thread and its agent. */
static json_t *thread_event(struct step *s, const char *type)
{
    json_t *o = event_new(NULL, type);
    js_set_str(o, "session_thread_id", s->thread_id);
    js_set_str(o, "agent_name", s->agent_name);
    return o;
}

void step_running(struct step *s)
{
    if (s->st.run != TURN_RUNNING)
        step_add(s, event_new(NULL, "session.status_running"), NULL);
    if (!s->st.thread_running)
        step_add(s, thread_event(s, "session.thread_status_running"), NULL);
}

void step_rescheduled(struct step *s)
{
    if (s->st.run == TURN_RESCHEDULING)
        return;
    step_add(s, thread_event(s, "session.thread_status_rescheduled"), NULL);
    step_add(s, event_new(NULL, "session.status_rescheduled"), NULL);
}

static json_t *usage_object(struct step *s)
{
    const struct turn_state *st = &s->st;
    int64_t active = st->active_ms + (st->running_since_ms >= 0 && s->now_ms > st->running_since_ms ? s->now_ms - st->running_since_ms : 0);
    json_t *cc = json_object(), *u = json_object();
    js_set_int(cc, "ephemeral_1h_input_tokens", st->usage.cache_write_1h);
    js_set_int(cc, "ephemeral_5m_input_tokens", st->usage.cache_write_5m);
    js_set(u, "active_seconds", json_real((double)active / 1000.0));
    js_set(u, "cache_creation", cc);
    js_set_int(u, "cache_read_input_tokens", st->usage.cache_read);
    js_set_int(u, "input_tokens", st->usage.input);
    js_set_int(u, "output_tokens", st->usage.output);
    return u;
}

void step_idle(struct step *s, json_t *take_reason, json_t *take_details)
{
    json_t *details = take_details ? take_details : json_null();
    json_t *t = thread_event(s, "session.thread_status_idle");
    js_set(t, "stop_reason", json_incref(take_reason));
    js_set(t, "stop_details", json_incref(details));
    step_add(s, t, NULL);
    json_t *u = event_new(NULL, "session.usage");
    js_set(u, "usage", usage_object(s));
    js_set(u, "budget", json_null());
    step_add(s, u, NULL);
    AUTO_FREE char *reason = js_text(take_reason);
    s->stop_reason = arena_strdup(s->arena, reason);
    json_t *i = event_new(NULL, "session.status_idle");
    js_set(i, "stop_reason", take_reason);
    js_set(i, "stop_details", details);
    step_add(s, i, NULL);
}

void step_idle_why(struct step *s, const char *type)
{
    json_t *r = json_object();
    js_set_str(r, "type", type);
    step_idle(s, r, NULL);
}

void step_blocked(struct step *s)
{
    json_t *ids = json_array(), *r = json_object();
    for (size_t i = 0; i < s->st.n_calls; i++)
        if (!s->st.calls[i].answered)
            js_push(ids, json_string(s->st.calls[i].id));
    js_set_str(r, "type", "requires_action");
    js_set(r, "event_ids", ids);
    step_idle(s, r, NULL);
}

void step_error(struct step *s, const char *type, const char *message, const char *retry_status)
{
    json_t *rs = json_object(), *er = json_object(), *o = event_new(NULL, "session.error");
    js_set_str(rs, "type", retry_status);
    js_set_str(er, "type", type);
    js_set_str(er, "message", message && message[0] ? message : type);
    js_set(er, "retry_status", rs);
    js_set(o, "error", er);
    step_add(s, o, NULL);
}

void step_mcp_error(struct step *s, bool auth, const char *server, const char *message)
{
    json_t *rs = json_object(), *er = json_object(), *o = event_new(NULL, "session.error");
    js_set_str(rs, "type", "retrying");
    js_set_str(er, "type", auth ? "mcp_authentication_failed_error" : "mcp_connection_failed_error");
    js_set_str(er, "mcp_server_name", server);
    js_set_str(er, "message", message);
    js_set(er, "retry_status", rs);
    js_set(o, "error", er);
    step_add(s, o, NULL);
}

void step_terminated(struct step *s)
{
    step_add(s, thread_event(s, "session.thread_status_terminated"), NULL);
    step_add(s, event_new(NULL, "session.status_terminated"), NULL);
}

void step_request_start(struct step *s, bool compact, char ret_id[ID_MAX])
{
    step_add(s, event_new(ret_id, "span.model_request_start"), NULL);
    json_t *b = json_object();
    js_set_str(b, "request", ret_id);
    js_set_int(b, "attempt", s->st.retries + 1);
    js_set_bool(b, "compact", compact);
    step_add_private(s, "turn.request", b);
}

void step_request_end(struct step *s, const char *start_id, bool is_error, const struct store_usage *u)
{
    const struct store_usage none = { 0 };
    if (!u)
        u = &none;
    json_t *m = json_object(), *o = event_new(NULL, "span.model_request_end");
    js_set_int(m, "cache_creation_input_tokens", u->cache_write_5m + u->cache_write_1h);
    js_set_int(m, "cache_read_input_tokens", u->cache_read);
    js_set_int(m, "input_tokens", u->input);
    js_set_int(m, "output_tokens", u->output);
    js_set_str(o, "model_request_start_id", start_id);
    js_set_bool(o, "is_error", is_error);
    js_set(o, "model_usage", m);
    step_add(s, o, NULL);
}

static json_t *text_content(const char *text)
{
    json_t *b = json_object(), *a = json_array();
    js_set_str(b, "type", "text");
    js_set_str(b, "text", text);
    js_push(a, b);
    return a;
}

void step_mcp_result(struct step *s, const char *call_id, json_t *take_content, bool is_error)
{
    json_t *o = event_new(NULL, "agent.mcp_tool_result");
    js_set_str(o, "mcp_tool_use_id", call_id);
    js_set(o, "content", take_content);
    js_set_bool(o, "is_error", is_error);
    step_add_result(s, o, call_id);
}

void step_deny_result(struct step *s, const char *call_id, const char *text)
{
    const struct turn_call *c = turn_call_find(&s->st, call_id);
    if (c && c->kind == CALL_MCP) {
        step_mcp_result(s, call_id, text_content(text), true);
        return;
    }
    json_t *o = event_new(NULL, "agent.tool_result");
    js_set_str(o, "tool_use_id", call_id);
    js_set(o, "content", text_content(text));
    js_set_bool(o, "is_error", true);
    step_add_result(s, o, call_id);
}

void step_close_calls(struct step *s, const char *text)
{
    for (size_t i = 0; i < s->st.n_calls; i++) {
        struct turn_call c = s->st.calls[i];
        if (c.answered)
            continue;
        if (c.kind == CALL_MCP) {
            step_mcp_result(s, c.id, text_content(text), true);
            continue;
        }
        bool custom = c.kind == CALL_CUSTOM;
        /* As their executors would answer, so that every client and worker sees the call answered. */
        json_t *o = event_new(NULL, custom ? "user.custom_tool_result" : "user.tool_result");
        js_set_str(o, custom ? "custom_tool_use_id" : "tool_use_id", c.id);
        js_set(o, "content", text_content(text));
        js_set_bool(o, "is_error", true);
        step_add_result(s, o, c.id);
    }
}
