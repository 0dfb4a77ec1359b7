/* call.c - tools/call. */
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "server/mcp/content.h"
#include "server/mcp/params.h"
#include "server/mcp/private.h"

struct mcp_call {
    struct mcp_session *s;
    struct list node;
    char *tool;
    json_t *arguments;
    int64_t id, timeout_ms, deadline_ms;
    unsigned generation, rounds;
    bool renewed;
    json_t *state;                       /* what the server wants to have back; or NULL */
    struct exchange *x;
    void (*cb)(void *ctx, const struct mcp_result *r);
    void *ctx;
};

static void call_send(struct mcp_call *c);

static void call_free(struct mcp_call *c)
{
    list_del(&c->node);
    exchange_cancel(c->x);
    free(c->tool);
    json_decref(c->arguments);
    json_decref(c->state);
    free(c);
}

void call_free_all(struct mcp_session *s)
{
    list_foreach(c, &s->calls, struct mcp_call, node)
        call_free(c);
    list_foreach(w, &s->waiting, struct mcp_call, node)
        call_free(w);
}

static void done(struct mcp_call *c, enum mcp_outcome o, bool is_error, json_t *take_content, const char *why)
{
    void (*cb)(void *, const struct mcp_result *) = c->cb;
    void *ctx = c->ctx;
    struct mcp_result r = { .outcome = o, .is_error = is_error, .content = take_content, .why = why };
    call_free(c);
    cb(ctx, &r);
    json_decref(take_content);
}

/* In the revisions with sessions a broken connection cancels nothing, so the server is told. */
static void tell_cancelled(struct mcp_call *c, const char *reason)
{
    if (c->s->era == ERA_STATELESS || c->s->dying)
        return;
    json_t *p = json_object();
    js_set_int(p, "requestId", c->id);
    js_set_str(p, "reason", reason);
    mcp_notify(c->s, "notifications/cancelled", p);
}

/* 2026-07-28: a server that wants no input, but to be asked again with what it gave (it hands the call to another of its kind, say). */
static bool ask_again(struct mcp_call *c, const json_t *body)
{
    json_t *state = json_object_get(body, "requestState");
    if (c->s->era != ERA_STATELESS || !json_is_string(state) || json_object_size(json_object_get(body, "inputRequests")) > 0 || c->rounds++ == MCP_ROUNDS_MAX)
        return false;
    json_decref(c->state);
    c->state = json_incref(state);
    call_send(c);
    return true;
}

static void take_result(struct mcp_call *c, const json_t *body)
{
    const char *type = js_str(body, "resultType");
    if (str_eq(type, "input_required")) {
        if (ask_again(c, body))
            return;
        done(c, MCP_OK, true, content_text("The tool asks for input from a person, which cannot be given here."), "");
        return;
    }
    bool is_error = js_bool(body, "isError", false);
    done(c, MCP_OK, is_error, content_map(body), "");
}

static void take_error(struct mcp_call *c, const json_t *body)
{
    const char *msg = js_str(body, "message");
    char *text = str_printf("The MCP server answered with an error (%lld): %.2000s", (long long)js_int(body, "code", 0), msg ? msg : "");
    json_t *content = content_text(text);
    free(text);
    done(c, MCP_OK, true, content, "");
}

static void renew_done(struct mcp_session *s, enum mcp_outcome o, const char *why)
{
    s->renewing = false;
    call_waiting_go(s, o, why);
}

/* The server has forgotten the session (404): it has not run the call, so it is made once more in a new one. */
static bool renew(struct mcp_call *c)
{
    struct mcp_session *s = c->s;
    if (c->renewed || s->era != ERA_SESSION || !s->session_id[0])
        return false;
    c->renewed = true;
    if (!s->renewing && c->generation != s->generation) {            /* another call has renewed it meanwhile */
        call_send(c);
        return true;
    }
    list_del(&c->node);
    list_add_tail(&s->waiting, &c->node);
    if (!s->renewing) {
        s->renewing = true;
        handshake_start(s, renew_done);
    }
    return true;
}

static void on_reply(void *ctx, const struct reply *r)
{
    struct mcp_call *c = ctx;
    char why[MCP_WHY_MAX], whole[MCP_WHY_MAX + 100];
    c->x = NULL;
    if (r->timed_out && r->sent)
        tell_cancelled(c, "it took too long");
    switch (r->kind) {
    case REPLY_RESULT: take_result(c, r->body); return;
    case REPLY_ERROR:
        if (r->status == 404 && renew(c))
            return;
        take_error(c, r->body);
        return;
    case REPLY_HTTP:
        if (r->status == 404 && renew(c))
            return;
        break;
    case REPLY_FAILED: break;
    }
    mcp_reply_text(c->s, r, why);
    (void)snprintf(whole, sizeof whole, "%s%s", why, r->kind == REPLY_FAILED && r->outcome == MCP_CONNECT_FAILED && r->sent ? " (whether the tool ran is not known)" : "");
    done(c, r->kind == REPLY_FAILED ? r->outcome : MCP_CONNECT_FAILED, true, NULL, whole);
}

static const json_t *schema_of(const struct mcp_session *s, const char *tool)
{
    size_t i;
    json_t *t;
    json_array_foreach(s->tools, i, t)
        if (str_eq(js_str(t, "name"), tool))
            return json_object_get(t, "inputSchema");
    return NULL;
}

static void call_send(struct mcp_call *c)
{
    struct mcp_session *s = c->s;
    struct params p = { .n = 0 };
    json_t *params = json_object();
    js_set_str(params, "name", c->tool);
    js_set(params, "arguments", json_incref(c->arguments));
    if (c->state)
        js_set(params, "requestState", json_incref(c->state));
    c->id = mcp_next_id(s);
    c->generation = s->generation;
    AUTO_FREE char *name = params_value(c->tool);
    if (s->era == ERA_STATELESS)
        params_make(&p, schema_of(s, c->tool), c->arguments);
    int64_t left = c->deadline_ms - ev_now_ms(s->m->c.ev);
    struct exchange_conf x = { .http_method = "POST", .url = s->endpoint, .method = "tools/call", .name = name, .take_body = mcp_message(s, "tools/call", params, c->id),
                               .headers = p.lines, .n_headers = p.n, .id = c->id, .timeout_ms = left > 1 ? left : 1, .cb = on_reply, .ctx = c };
    c->x = exchange_start(s, &x);
    params_done(&p);
}

void call_waiting_go(struct mcp_session *s, enum mcp_outcome o, const char *why)
{
    while (!list_empty(&s->waiting)) {
        struct mcp_call *c = list_first(&s->waiting, struct mcp_call, node);
        list_del(&c->node);
        list_add_tail(&s->calls, &c->node);
        if (o == MCP_OK)
            call_send(c);
        else
            c->x = exchange_failed(s, on_reply, c, o, why);
    }
}

struct mcp_call *mcp_call_start(struct mcp_session *s, const char *tool, const json_t *arguments, int64_t timeout_ms,
                                void (*cb)(void *ctx, const struct mcp_result *r), void *ctx)
{
    struct mcp_call *c = xcalloc(1, sizeof *c);
    c->s = s;
    c->tool = str_dup(tool);
    c->arguments = json_is_object(arguments) ? json_incref((json_t *)(uintptr_t)arguments) : json_object();
    c->timeout_ms = timeout_ms;
    c->deadline_ms = ev_now_ms(s->m->c.ev) + timeout_ms;
    c->cb = cb;
    c->ctx = ctx;
    list_add_tail(&s->calls, &c->node);
    if (s->renewing) {
        list_del(&c->node);
        list_add_tail(&s->waiting, &c->node);
    } else {
        call_send(c);
    }
    return c;
}

void mcp_call_cancel(struct mcp_call *c)
{
    if (!c)
        return;
    if (c->x && exchange_sent(c->x))
        tell_cancelled(c, "the caller gave it up");
    call_free(c);
}
