#include "server/mcp/mcp.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "log/log.h"
#include "server/mcp/private.h"

#define USER_AGENT "outwork/" OUTWORK_VERSION

int64_t mcp_next_id(struct mcp_session *s) { return ++s->last_id; }

char *mcp_message(struct mcp_session *s, const char *method, json_t *take_params, int64_t id)
{
    json_t *o = json_object(), *params = take_params;
    if (s->era == ERA_STATELESS) {
        json_t *meta = json_object(), *info = json_object();
        js_set_str(info, "name", "outwork");
        js_set_str(info, "version", OUTWORK_VERSION);
        js_set_str(meta, "io.modelcontextprotocol/protocolVersion", MCP_STATELESS);
        js_set(meta, "io.modelcontextprotocol/clientInfo", info);
        js_set(meta, "io.modelcontextprotocol/clientCapabilities", json_object());
        if (!params)
            params = json_object();
        js_set(params, "_meta", meta);
    }
    js_set_str(o, "jsonrpc", "2.0");
    if (id)
        js_set_int(o, "id", id);
    js_set_str(o, "method", method);
    if (params)
        js_set(o, "params", params);
    char *text = js_text(o);
    json_decref(o);
    return text;
}

void mcp_notify(struct mcp_session *s, const char *method, json_t *take_params)
{
    struct exchange_conf c = { .http_method = "POST", .url = s->endpoint, .method = method, .take_body = mcp_message(s, method, take_params, 0), .timeout_ms = MCP_FAREWELL_MS };
    (void)exchange_start(s, &c);
}

void mcp_reply_text(const struct mcp_session *s, const struct reply *r, char out[MCP_WHY_MAX])
{
    (void)s;
    const char *why = r->why ? r->why : "", *msg;
    switch (r->kind) {
    case REPLY_RESULT: (void)str_copy(out, MCP_WHY_MAX, "the server's answer is not what the protocol says"); break;
    case REPLY_ERROR:
        msg = js_str(r->body, "message");
        (void)snprintf(out, MCP_WHY_MAX, "the server answered with an error (%lld): %.400s", (long long)js_int(r->body, "code", 0), msg ? msg : "");
        break;
    case REPLY_HTTP:
        if (r->status >= 200 && r->status < 300)
            (void)snprintf(out, MCP_WHY_MAX, "the server ended its answer (status %d) without a result", r->status);
        else
            (void)snprintf(out, MCP_WHY_MAX, "the server answered with HTTP status %d%s%s", r->status, why[0] ? ": " : "", why);
        break;
    case REPLY_FAILED: (void)str_copy(out, MCP_WHY_MAX, why); break;
    }
}

/* ---- sessions ---- */
static void session_gone(struct mcp_session *s)
{
    list_del(&s->node);
    ev_timer_stop(&s->timer);
    call_free_all(s);
    exchange_cancel_all(s, false);
    for (size_t i = 0; i < s->n_vaults; i++)
        free(s->vault_ids[i]);
    free(s->vault_ids);
    free(s->name);
    free(s->url);
    free(s->endpoint);
    secret_free(s->bearer);
    json_decref(s->tools);
    json_decref(s->seen_cursors);
    free(s);
}

static void connected(struct mcp_session *s, enum mcp_outcome o, const char *why)
{
    void (*cb)(void *, struct mcp_session *, enum mcp_outcome, const char *) = s->cb;
    void *ctx = s->ctx;
    char text[MCP_WHY_MAX];
    (void)str_copy(text, sizeof text, why);
    s->cb = NULL;
    if (o == MCP_OK) {
        log_debug("mcp.connected", "server=%s revision=%s tools=%zu", s->name, s->version, json_array_size(s->tools));
        cb(ctx, s, MCP_OK, "");
        return;
    }
    log_info("mcp.connect_failed", "server=%s outcome=%d why=%s", s->name, (int)o, text);
    mcp_session_free(s);
    cb(ctx, NULL, o, text);
}

static void on_ready(struct mcp_session *s, enum mcp_outcome o, const char *why)
{
    if (o == MCP_OK)
        handshake_tools(s, connected);
    else
        connected(s, o, why);
}

struct mcp_session *mcp_connect(struct mcp *m, const struct mcp_target *t,
                                void (*cb)(void *ctx, struct mcp_session *s, enum mcp_outcome o, const char *why), void *ctx)
{
    struct mcp_session *s = xcalloc(1, sizeof *s);
    s->m = m;
    s->name = str_dup(t->name);
    s->url = str_dup(t->url);
    s->n_vaults = t->n_vaults;
    s->vault_ids = xcalloc(t->n_vaults + 1, sizeof *s->vault_ids);
    for (size_t i = 0; i < t->n_vaults; i++)
        s->vault_ids[i] = str_dup(t->vault_ids[i]);
    s->bearer = t->bearer ? secret_dup(t->bearer) : NULL;
    s->given_bearer = t->bearer != NULL;
    s->cb = cb;
    s->ctx = ctx;
    list_init(&s->exchanges);
    list_init(&s->calls);
    list_init(&s->waiting);
    list_add_tail(&m->sessions, &s->node);
    handshake_start(s, on_ready);
    return s;
}

const json_t *mcp_tools(const struct mcp_session *s) { return s->tools; }

static void on_farewell(struct ev_timer *t) { session_gone(container_of(t, struct mcp_session, timer)); }

static void on_deleted(void *ctx, const struct reply *r)
{
    (void)r;                             /* 405: the server lets nobody end its sessions */
    session_gone(ctx);
}

void mcp_session_free(struct mcp_session *s)
{
    if (!s || s->dying)
        return;
    s->dying = true;
    s->cb = NULL;
    s->ready_cb = s->tools_cb = NULL;
    call_free_all(s);
    exchange_cancel_all(s, true);
    s->step = s->stream = NULL;
    if (s->era == ERA_SESSION && s->session_id[0]) {
        struct exchange_conf c = { .http_method = "DELETE", .timeout_ms = MCP_FAREWELL_MS, .cb = on_deleted, .ctx = s };
        (void)exchange_start(s, &c);
    } else {                             /* what nobody waits for (a cancellation) may still go out */
        ev_timer_set(s->m->c.ev, &s->timer, list_empty(&s->exchanges) ? 0 : MCP_FAREWELL_MS, on_farewell);
    }
}

/* ---- the whole ---- */
int mcp_new(const struct mcp_conf *c, struct mcp **ret, struct err *e)
{
    struct mcp *m = xcalloc(1, sizeof *m);
    struct fetch_conf fc = { .ca_file = c->ca_file, .proxy = c->proxy ? c->proxy : "", .user_agent = USER_AGENT };
    struct guard_conf gc = {
        .ev = c->ev, .store = c->store, .workspace_id = c->workspace_id, .proxied = c->proxy && c->proxy[0],
        .rules = { .tunnel_domain = c->tunnel_domain, .allow = c->allow, .n_allow = c->n_allow, .private_ok = c->private_ok, .n_private_ok = c->n_private_ok },
    };
    m->c = *c;
    list_init(&m->sessions);
    int rc = fetch_new(c->ev, &fc, &m->fetch, e);
    if (rc == RC_OK)
        rc = guard_new(&gc, &m->guard, e);
    if (rc < 0) {
        mcp_free(m);
        return rc;
    }
    *ret = m;
    return RC_OK;
}

void mcp_use_vault(struct mcp *m, struct vault *v)
{
    if (!v)
        list_foreach(s, &m->sessions, struct mcp_session, node)
            session_gone(s);
    m->c.vault = v;
}

void mcp_free(struct mcp *m)
{
    if (!m)
        return;
    mcp_use_vault(m, NULL);
    guard_free(m->guard);
    if (m->fetch)
        fetch_free(m->fetch);
    free(m);
}
