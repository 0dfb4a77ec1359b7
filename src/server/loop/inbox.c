/* inbox.c - what clients and workers send: checked against the session's state, appended in one step (api.md 5, worker.md 4.3). */
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "server/loop/drive.h"
#include "wire/event.h"

#define INBOX_TRIES_MAX 50           /* the log moved while a request was checked: so often it is checked anew */
#define INBOX_EVENTS_MAX 1000

struct inbox {
    struct loop *l;
    struct snapshot snap;
    struct step s;
    bool from_worker, answered;
    size_t index;                    /* of the event that is looked at */
    struct buf *data;
    struct err *e;
};

static int refuse(struct inbox *b, const char *why)
{
    return err_set(b->e, RC_INVALID, "events.%zu: %s", b->index, why);
}

static void show(struct inbox *b, const char *body, int64_t processed_ms)
{
    if (buf_len(b->data) > 1)
        buf_putc(b->data, ',');
    (void)event_render(b->data, body, strlen(body), processed_ms);
}

/* Adds a new event with the fields named, as it came in, and shows it. */
static void append(struct inbox *b, const json_t *in, const char *const *fields, size_t n, bool queued, bool result, const char *ref)
{
    json_t *o = event_new(NULL, js_str(in, "type"));
    for (size_t i = 0; i < n; i++) {
        json_t *v = json_object_get(in, fields[i]);
        if (v && !json_is_null(v))
            js_set(o, fields[i], json_incref(v));
    }
    AUTO_FREE char *text = js_text(o);
    if (result)
        step_add_result(&b->s, o, ref);
    else if (queued)
        step_add_queued(&b->s, o);
    else
        step_add(&b->s, o, ref);
    show(b, text, queued ? -1 : b->s.now_ms);
}

static int check_content(struct inbox *b, const json_t *content, bool may_be_empty)
{
    size_t i;
    json_t *v;
    if (!may_be_empty && json_array_size(content) == 0)
        return refuse(b, "content: at least one block is needed");
    json_array_foreach(content, i, v) {
        if (str_eq(js_str(v, "type"), "redacted"))
            return err_set(b->e, RC_INVALID, "events.%zu.content.%zu: a 'redacted' block is output only", b->index, i);
        if (str_eq(js_str(v, "type"), "text") && (!js_str(v, "text") || !js_str(v, "text")[0]))
            return err_set(b->e, RC_INVALID, "events.%zu.content.%zu.text: minimum string length is 1", b->index, i);
    }
    return RC_OK;
}

static int on_message(struct inbox *b, const json_t *in, bool sys)
{
    static const char *const fields[] = { "content" };
    struct model_caps caps = { .mid_system = false };
    const struct model_provider *p;
    void *self;
    if (sys && (model_resolve(b->l->c.models, b->snap.model, &p, &self, &caps) < 0 || !caps.mid_system))
        return refuse(b, "model_does_not_support_mid_conversation_system: this model takes no system messages inside a conversation");
    if (b->s.st.run == TURN_IDLE && turn_open_calls(&b->s.st) > 0)
        return refuse(b, "the session waits for answers to its open tool calls (stop_reason requires_action); answer or interrupt them first");
    if (b->s.st.n_inputs >= TURN_INPUTS_MAX)
        return refuse(b, "too many events are queued");
    TRY(check_content(b, json_object_get(in, "content"), false));
    append(b, in, fields, COUNT_OF(fields), true, false, NULL);
    b->s.wake = true;
    return RC_OK;
}

static int on_interrupt(struct inbox *b, const json_t *in)
{
    static const char *const fields[] = { "session_thread_id" };
    const char *thread = js_str(in, "session_thread_id");
    if (thread && !str_eq(thread, b->snap.s.thread_id))
        return refuse(b, "session_thread_id: no such thread in this session");
    append(b, in, fields, COUNT_OF(fields), true, false, NULL);
    b->s.wake = true;
    return RC_OK;
}

static int on_confirmation(struct inbox *b, const json_t *in)
{
    static const char *const fields[] = { "tool_use_id", "result", "deny_message" };
    const char *id = js_str(in, "tool_use_id"), *msg = js_str(in, "deny_message");
    struct turn_call *c = id ? turn_call_find(&b->s.st, id) : NULL;
    bool allow = str_eq(js_str(in, "result"), "allow");
    if (!c)
        return refuse(b, "tool_use_id: no such call waits in this session");
    if (c->kind == CALL_CUSTOM || c->perm != PERM_ASK)
        return refuse(b, "tool_use_id: this call needs no confirmation: its evaluated_permission is not \"ask\"");
    if (c->answered || c->verdict != VERDICT_NONE)
        return refuse(b, "tool_use_id: this call was confirmed or answered already");
    if (allow && msg)
        return refuse(b, "deny_message: only with result \"deny\"");
    append(b, in, fields, COUNT_OF(fields), false, false, id);
    if (allow && c->kind == CALL_MCP)
        b->s.wake = true;                        /* it is made here, as soon as it may be */
    if (!allow) {
        char *text = str_printf("The user rejected this call%s%s", msg && msg[0] ? ": " : ".", msg ? msg : "");
        step_deny_result(&b->s, id, text);
        free(text);
        b->answered = true;
    }
    return RC_OK;
}

/* A result for a call that has one: the stored one is shown, nothing is stored. */
static int show_stored(struct inbox *b, const char *id, const char *type)
{
    struct store_event *rows = NULL;
    size_t n = 0;
    const char *types[] = { type };
    struct store_event_filter f = { .types = types, .n_types = 1, .gt_ms = -1, .gte_ms = -1, .lt_ms = -1, .lte_ms = -1, .limit = STORE_LIST_MAX, .desc = true };
    for (;;) {
        TRY(b->l->c.store->ops->event_list(b->l->c.store, b->snap.arena, b->snap.s.id, &f, &rows, &n, b->e));
        for (size_t i = 0; i < n; i++) {
            if (str_eq(rows[i].ref, id)) {
                show(b, rows[i].body, rows[i].processed_ms);
                return RC_OK;
            }
        }
        if (n < STORE_LIST_MAX)
            return refuse(b, "no such tool call waits for a result in this session");
        f.has_after = true;
        f.after_ord = store_event_ord(&rows[n - 1]);
    }
}

static int on_result(struct inbox *b, const json_t *in, bool custom)
{
    static const char *const tool_fields[] = { "tool_use_id", "content", "is_error" }, *const custom_fields[] = { "custom_tool_use_id", "content", "is_error" };
    const char *id = js_str(in, custom ? "custom_tool_use_id" : "tool_use_id");
    if (!custom && !b->from_worker)
        return err_set(b->e, RC_DENIED, "events.%zu: user.tool_result may only be sent with environment credentials (an environment key or a work item's token)", b->index);
    TRY(check_content(b, json_object_get(in, "content"), true));
    struct turn_call *c = id ? turn_call_find(&b->s.st, id) : NULL;
    if (!c || c->answered)
        return show_stored(b, id ? id : "", js_str(in, "type"));
    if (c->kind != (custom ? CALL_CUSTOM : CALL_WORKER))
        return refuse(b, custom ? "custom_tool_use_id: this call is not of a custom tool; it is answered by user.tool_result"
                                : "tool_use_id: this call is of a custom tool; it is answered by user.custom_tool_result");
    if (c->kind == CALL_WORKER && c->perm == PERM_ASK && c->verdict != VERDICT_ALLOW)
        return err_set(b->e, RC_INVALID, "events.%zu: the tool use '%s' has evaluated_permission \"ask\" and no user.tool_confirmation with result \"allow\" has been posted for it", b->index, id);
    append(b, in, custom ? custom_fields : tool_fields, 3, false, true, id);
    b->answered = true;
    return RC_OK;
}

static int on_event(struct inbox *b, const json_t *in)
{
    const char *t = js_str(in, "type");
    if (str_eq(t, "user.message"))
        return on_message(b, in, false);
    if (str_eq(t, "system.message"))
        return on_message(b, in, true);
    if (str_eq(t, "user.interrupt"))
        return on_interrupt(b, in);
    if (str_eq(t, "user.tool_confirmation"))
        return on_confirmation(b, in);
    if (str_eq(t, "user.tool_result"))
        return on_result(b, in, false);
    if (str_eq(t, "user.custom_tool_result"))
        return on_result(b, in, true);
    return err_set(b->e, RC_INVALID, "events.%zu.type: '%s' is not served by this server or may not be sent", b->index, t ? t : "");
}

static int begin(struct inbox *b, const char *session_id, struct err *e)
{
    struct turn_state st;
    TRY(snapshot_load(b->l->c.store, session_id, &b->snap, e));
    if (b->snap.s.archived_ms >= 0 || b->snap.s.terminated_ms >= 0)
        return err_set(e, RC_INVALID, "Cannot send events to archived session %s", session_id);
    TRY(loop_state(b->l, session_id, &st, e));
    int rc = step_init(&b->s, &st, session_id, b->snap.s.thread_id, b->snap.agent_name, clock_now_ms());
    turn_state_done(&st);
    return rc;
}

static void end(struct inbox *b)
{
    if (b->s.arena)
        step_done(&b->s);
    snapshot_done(&b->snap);
}

/* The last answer to a session that waited, or the permission for a call that is made here: the turn goes on. It runs from this very commit, so that a run
 * row stands for what the loop has to do next: were the process to end before the loop looks, the session would be found again (lease_orphans()). */
static bool loop_goes_on(const struct inbox *b)
{
    const struct turn_state *st = &b->s.st;
    bool answered = b->answered && turn_open_calls(st) == 0;
    return st->run == TURN_IDLE && !turn_has_input(st, INPUT_INTERRUPT) && (answered || turn_mcp_calls(st, false) > 0);
}

static int send_once(struct inbox *b, const char *session_id, json_t *events, struct err *e)
{
    TRY(begin(b, session_id, e));
    buf_clear(b->data);
    buf_putc(b->data, '[');
    json_t *in;
    json_array_foreach(events, b->index, in)
        TRY(on_event(b, in));
    buf_putc(b->data, ']');
    if (!buf_ok(b->data))
        return err_set(e, RC_TOO_LARGE, "the events are too large");
    if (b->answered && b->s.st.run == TURN_IDLE && turn_open_calls(&b->s.st) > 0 && turn_mcp_calls(&b->s.st, false) == 0)
        step_blocked(&b->s);                     /* some are answered: idle again with the rest */
    b->s.wake |= b->answered && turn_open_calls(&b->s.st) == 0;
    if (loop_goes_on(b))
        step_running(&b->s);
    TRY(step_commit(&b->s, b->l->c.store, NULL, 0, e));
    if (!b->s.stale)
        loop_state_keep(b->l, session_id, &b->s.st);
    return RC_OK;
}

int inbox_send(struct loop *l, const char *session_id, json_t *events, bool from_worker, struct buf *ret_data, struct err *e)
{
    if (json_array_size(events) == 0 || json_array_size(events) > INBOX_EVENTS_MAX)
        return err_set(e, RC_INVALID, "events: from 1 to %d events are taken", INBOX_EVENTS_MAX);
    int rc = RC_CONFLICT;
    for (int i = 0; i < INBOX_TRIES_MAX && rc == RC_CONFLICT; i++) {
        struct inbox b = { .l = l, .from_worker = from_worker, .data = ret_data, .e = e };
        rc = send_once(&b, session_id, events, e);
        end(&b);
    }
    return rc;
}

static void free_step(void *p)
{
    step_done(p);
}

int inbox_initial(struct arena *a, const char *session_id, const char *thread_id, json_t *initial_events, struct store_step **ret_step, struct err *e)
{
    *ret_step = NULL;
    if (json_array_size(initial_events) == 0)
        return RC_OK;
    struct turn_state none;
    struct step *s = arena_zalloc(a, sizeof *s);
    struct store_step *out = arena_zalloc(a, sizeof *out);
    struct buf data;
    if (!s || !out)
        return err_set(e, RC_NOMEM, "initial events");
    turn_state_init(&none);
    TRY(step_init(s, &none, session_id, thread_id, "", clock_now_ms()));
    TRY(arena_on_free(a, free_step, s));
    buf_init(&data, JS_BODY_MAX * 2);
    struct inbox b = { .data = &data, .e = e, .s = *s };
    int rc = RC_OK;
    json_t *in;
    json_array_foreach(initial_events, b.index, in) {
        static const char *const fields[] = { "content" };
        if (!str_eq(js_str(in, "type"), "user.message")) {
            rc = err_set(e, RC_INVALID, "initial_events.%zu.type: only user.message is served here", b.index);
        } else if ((rc = check_content(&b, json_object_get(in, "content"), false)) == RC_OK) {
            append(&b, in, fields, COUNT_OF(fields), true, false, NULL);
            continue;
        }
        break;
    }
    *s = b.s;
    buf_done(&data);
    if (rc < 0)
        return rc;
    step_add(s, event_new(NULL, "session.status_running"), NULL);
    s->wake = true;
    if (s->rc < 0) {
        *e = s->err;
        return s->rc;
    }
    step_export(s, out);
    *ret_step = out;
    return RC_OK;
}

int inbox_archive(struct loop *l, const char *session_id, struct err *e)
{
    int rc = RC_CONFLICT;
    for (int i = 0; i < INBOX_TRIES_MAX && rc == RC_CONFLICT; i++) {
        struct inbox b = { .l = l, .e = e };
        rc = begin(&b, session_id, e);
        if (rc == RC_OK && b.s.st.run != TURN_IDLE)
            rc = err_set(e, RC_INVALID, "session %s is running; send user.interrupt and wait until it is idle", session_id);
        if (rc == RC_OK) {
            struct store_step out;
            step_terminated(&b.s);
            step_export(&b.s, &out);
            rc = b.s.rc < 0 ? err_set(e, b.s.rc, "%s", b.s.err.msg) : l->c.store->ops->session_archive(l->c.store, &out, e);
        }
        end(&b);
    }
    return rc;
}

int inbox_update(struct loop *l, const char *session_id, const char *title, const char *metadata, const char *agent, json_t *changed, struct err *e)
{
    int rc = RC_CONFLICT;
    for (int i = 0; i < INBOX_TRIES_MAX && rc == RC_CONFLICT; i++) {
        struct inbox b = { .l = l, .e = e };
        rc = begin(&b, session_id, e);
        if (rc == RC_OK && agent && b.s.st.run != TURN_IDLE)
            rc = err_set(e, RC_INVALID, "agent: may be changed only while the session is idle");
        if (rc == RC_OK) {
            struct store_step out;
            json_t *o = event_new(NULL, "session.updated"), *v;
            const char *key;
            json_object_foreach(changed, key, v)
                js_set(o, key, json_incref(v));
            step_add(&b.s, o, NULL);
            step_export(&b.s, &out);
            out.title = title, out.metadata = metadata, out.agent = agent;
            rc = b.s.rc < 0 ? err_set(e, b.s.rc, "%s", b.s.err.msg) : l->c.store->ops->step(l->c.store, &out, e);
        }
        end(&b);
    }
    return rc;
}
