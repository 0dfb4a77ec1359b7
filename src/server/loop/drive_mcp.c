#include "server/loop/drive_mcp.h"

#include <string.h>

#include "base/str.h"
#include "log/log.h"
#include "metrics/metrics.h"
#include "server/mcp/mcp.h"

#define SERVERS_MAX 64               /* of one agent; the API takes fewer */
#define VAULTS_MAX 64

METRIC_DEFINE(metric_calls, METRIC_COUNTER, "mcp_calls_total", "Calls of MCP servers' tools that got an outcome.");
METRIC_DEFINE(metric_call_errors, METRIC_COUNTER, "mcp_call_errors_total", "Calls of MCP servers' tools that could not be made or got no answer.");
METRIC_DEFINE(metric_connect_errors, METRIC_COUNTER, "mcp_connect_errors_total", "MCP servers that could not be reached when their tools were asked for.");

struct server {
    struct desk *h;
    char *name, *url;
    /* ev thread */
    struct mcp_session *session;     /* connected, or being connected */
    bool connected, for_list;
    struct list waiting;             /* calls until it is connected */
    /* the listing: written before desk.left becomes 0 */
    bool asked;                      /* by the job: this one takes part */
    enum mcp_outcome outcome;
    char why[ERR_MSG_MAX];
    json_t *tools;
};

struct call {
    struct server *sv;
    struct list node;                /* in desk.calls; the job's */
    struct list wait;                /* in server.waiting; the ev thread's */
    char id[ID_MAX];
    char *tool;
    json_t *input;
    struct mcp_call *running;        /* ev thread */
    bool done;                       /* released by the ev thread: what follows is set */
    bool put;                        /* the job's: it is in the step that is being committed */
    enum mcp_outcome outcome;
    bool is_error;
    json_t *content;
    char why[ERR_MSG_MAX];
};

struct desk {
    struct runner *r;
    struct loop *l;
    struct server *servers; size_t n;
    char **vault_ids; size_t n_vaults;
    struct list calls;               /* the job's, until desk_drop() */
    size_t left;                     /* of the listing; ev thread */
    bool listing, listed;            /* the job's; released by the ev thread */
    bool put;
};

/* ---- ev thread ---- */
static void call_free(struct call *c)
{
    list_del(&c->node);
    list_del(&c->wait);
    free(c->tool);
    json_decref(c->input);
    json_decref(c->content);
    free(c);
}

void desk_free(struct desk *h)
{
    if (!h)
        return;
    list_foreach(c, &h->calls, struct call, node) {
        mcp_call_cancel(c->running);
        call_free(c);
    }
    for (size_t i = 0; i < h->n; i++) {
        struct server *sv = &h->servers[i];
        mcp_session_free(sv->session);
        json_decref(sv->tools);
        free(sv->name);
        free(sv->url);
    }
    for (size_t i = 0; i < h->n_vaults; i++)
        free(h->vault_ids[i]);
    free(h->vault_ids);
    free(h->servers);
    free(h);
}

static void free_on_ev(void *arg) { desk_free(arg); }

static void call_done(struct call *c, enum mcp_outcome o, bool is_error, json_t *take_content, const char *why)
{
    struct runner *r = c->sv->h->r;
    c->running = NULL;
    list_del(&c->wait);
    c->outcome = o;
    c->is_error = is_error;
    c->content = take_content;
    (void)str_copy(c->why, sizeof c->why, why ? why : "");
    metric_add(&metric_calls, 1);
    if (o != MCP_OK)
        metric_add(&metric_call_errors, 1);
    __atomic_store_n(&c->done, true, __ATOMIC_RELEASE);
    runner_finished(r);
}

static void on_call(void *ctx, const struct mcp_result *res)
{
    call_done(ctx, res->outcome, res->is_error, res->content ? json_incref(res->content) : NULL, res->why);
}

static void list_done(struct server *sv, enum mcp_outcome o, const char *why)
{
    struct desk *h = sv->h;
    sv->for_list = false;
    sv->outcome = o;
    (void)str_copy(sv->why, sizeof sv->why, why ? why : "");
    if (o != MCP_OK)
        metric_add(&metric_connect_errors, 1);
    if (--h->left > 0)
        return;
    __atomic_store_n(&h->listed, true, __ATOMIC_RELEASE);
    runner_finished(h->r);
}

static void start_call(struct call *c)
{
    c->running = mcp_call_start(c->sv->session, c->tool, c->input, c->sv->h->l->c.mcp_timeout_ms, on_call, c);
}

static void on_connect(void *ctx, struct mcp_session *s, enum mcp_outcome o, const char *why)
{
    struct server *sv = ctx;
    struct list waiting;
    sv->session = s;
    sv->connected = s != NULL;
    list_init(&waiting);
    while (!list_empty(&sv->waiting)) {
        struct call *c = list_first(&sv->waiting, struct call, wait);
        list_del(&c->wait);
        list_add_tail(&waiting, &c->wait);
    }
    while (!list_empty(&waiting)) {
        struct call *c = list_first(&waiting, struct call, wait);
        list_del(&c->wait);
        if (s)
            start_call(c);
        else
            call_done(c, o, true, NULL, why);
    }
    if (sv->for_list) {
        sv->tools = s ? json_deep_copy(mcp_tools(s)) : NULL;
        list_done(sv, o, why);
    }
}

static void connect_server(struct server *sv)
{
    struct desk *h = sv->h;
    struct mcp_target t = { .name = sv->name, .url = sv->url, .vault_ids = (const char *const *)h->vault_ids, .n_vaults = h->n_vaults };
    if (!sv->session)
        sv->session = mcp_connect(h->l->c.mcp, &t, on_connect, sv);
}

static void list_on_ev(void *arg)
{
    struct desk *h = arg;
    h->left = 1;                         /* this function itself, so that the end comes once */
    for (size_t i = 0; i < h->n; i++) {
        struct server *sv = &h->servers[i];
        if (!sv->asked)
            continue;
        h->left++;
        json_decref(sv->tools);
        sv->tools = NULL;
        sv->for_list = true;
        if (sv->connected) {             /* asked anew, in a new session */
            mcp_session_free(sv->session);
            sv->session = NULL;
            sv->connected = false;
        }
        connect_server(sv);
    }
    if (--h->left > 0)
        return;
    __atomic_store_n(&h->listed, true, __ATOMIC_RELEASE);
    runner_finished(h->r);
}

static void call_on_ev(void *arg)
{
    struct call *c = arg;
    if (c->sv->connected) {
        start_call(c);
        return;
    }
    list_add_tail(&c->sv->waiting, &c->wait);
    connect_server(c->sv);
}

/* ---- job threads ---- */
static struct desk *desk_make(struct runner *r, const struct snapshot *snap)
{
    struct desk *h = xcalloc(1, sizeof *h);
    AUTO_JS extra = NULL;
    struct err e;
    size_t i;
    json_t *s;
    h->r = r;
    h->l = r->l;
    list_init(&h->calls);
    h->servers = xcalloc(SERVERS_MAX, sizeof *h->servers);
    json_array_foreach(js_at(snap->agent, "mcp_servers"), i, s) {
        if (h->n == SERVERS_MAX || !js_str(s, "name") || !js_str(s, "url"))
            continue;
        struct server *sv = &h->servers[h->n++];
        sv->h = h;
        sv->name = str_dup(js_str(s, "name"));
        sv->url = str_dup(js_str(s, "url"));
        list_init(&sv->waiting);
    }
    h->vault_ids = xcalloc(VAULTS_MAX, sizeof *h->vault_ids);
    if (snap->s.extra && js_parse(snap->s.extra, strlen(snap->s.extra), JS_BODY_MAX, &extra, &e) == RC_OK) {
        json_array_foreach(json_object_get(extra, "vault_ids"), i, s)
            if (json_is_string(s) && h->n_vaults < VAULTS_MAX)
                h->vault_ids[h->n_vaults++] = str_dup(json_string_value(s));
    }
    return h;
}

/* The servers that a toolset uses are asked. */
static bool in_use(const json_t *agent, const char *name)
{
    size_t i;
    json_t *t;
    json_array_foreach(js_at(agent, "tools"), i, t)
        if (str_eq(js_str(t, "type"), "mcp_toolset") && str_eq(js_str(t, "mcp_server_name"), name))
            return true;
    return false;
}

/* What the record in force says of a server, or NULL. */
static const json_t *entry_of(const json_t *servers, const struct server *sv)
{
    size_t i;
    json_t *o;
    json_array_foreach(servers, i, o)
        if (str_eq(js_str(o, "name"), sv->name) && str_eq(js_str(o, "url"), sv->url))
            return o;
    return NULL;
}

void desk_list(struct runner *r, const struct snapshot *snap, const struct turn_state *st)
{
    if (!r->desk)
        r->desk = desk_make(r, snap);
    struct desk *h = r->desk;
    for (size_t i = 0; i < h->n; i++)
        h->servers[i].asked = in_use(snap->agent, h->servers[i].name) && (!st->tools_retry || !entry_of(snap->mcp, &h->servers[i]));
    h->listing = true;
    h->listed = false;
    ev_post(h->l->c.ev, list_on_ev, h);
}

static bool in_hub(const struct desk *h, const char *id)
{
    struct desk *m = (struct desk *)(uintptr_t)h;
    list_foreach(c, &m->calls, struct call, node) {
        if (str_eq(c->id, id))
            return true;
    }
    return false;
}

static struct server *server_of(struct desk *h, const char *name)
{
    for (size_t i = 0; i < h->n; i++)
        if (str_eq(h->servers[i].name, name))
            return &h->servers[i];
    return NULL;
}

static const json_t *by_text(const json_t *list, const char *key, const char *value)
{
    size_t i;
    json_t *o;
    json_array_foreach(list, i, o)
        if (str_eq(js_str(o, key), value))
            return o;
    return NULL;
}

int desk_call(struct runner *r, const struct snapshot *snap, const struct turn_state *st, struct err *e)
{
    AUTO_JS record = NULL;
    if (!r->desk)
        r->desk = desk_make(r, snap);
    struct desk *h = r->desk;
    for (size_t i = 0; i < st->n_calls; i++) {
        const struct turn_call *tc = &st->calls[i];
        if (tc->kind != CALL_MCP || tc->answered || !tc->started || in_hub(h, tc->id))
            continue;
        if (!record)
            TRY(snapshot_record(h->l->c.store, r->id, st->assistant_seq, &record, e));
        const json_t *call = by_text(js_at(record, "calls"), "event", tc->id);
        const json_t *block = by_text(js_at(record, "content"), "id", js_str(call, "id"));
        struct server *sv = server_of(h, js_str(call, "server"));
        struct call *c = xcalloc(1, sizeof *c);
        list_init(&c->wait);
        c->sv = sv ? sv : &h->servers[0];
        (void)str_copy(c->id, sizeof c->id, tc->id);
        c->tool = str_dup(js_str(call, "tool") ? js_str(call, "tool") : "");
        json_t *input = json_object_get(block, "input");
        c->input = json_is_object(input) ? json_incref(input) : json_object();
        list_add_tail(&h->calls, &c->node);
        if (sv) {
            ev_post(h->l->c.ev, call_on_ev, c);
            continue;
        }
        c->outcome = MCP_REFUSED;            /* the agent was changed meanwhile */
        c->is_error = true;
        (void)str_copy(c->why, sizeof c->why, "the agent no longer has this MCP server");
        c->done = true;
        runner_finished(r);
    }
    return RC_OK;
}

static bool is_done(const struct call *c) { return __atomic_load_n(&c->done, __ATOMIC_ACQUIRE); }
static bool is_listed(const struct desk *h) { return h->listing && __atomic_load_n(&h->listed, __ATOMIC_ACQUIRE); }

bool desk_listing(const struct runner *r) { return r->desk && r->desk->listing && !r->desk->put; }

bool desk_calling(const struct runner *r)
{
    if (!r->desk)
        return false;
    list_foreach(c, &r->desk->calls, struct call, node) {
        if (!c->put)
            return true;
    }
    return false;
}

static void put_tools(struct desk *h, const struct snapshot *snap, struct step *s)
{
    json_t *servers = json_array(), *b = json_object();
    bool failed = false;
    for (size_t i = 0; i < h->n; i++) {
        struct server *sv = &h->servers[i];
        if (!in_use(snap->agent, sv->name))
            continue;
        const json_t *old = entry_of(snap->mcp, sv);
        if (!sv->asked && old) {             /* a retry of others */
            js_push(servers, json_incref((json_t *)(uintptr_t)old));
        } else if (sv->asked && sv->outcome == MCP_OK) {
            json_t *o = json_object();
            js_set_str(o, "name", sv->name);
            js_set_str(o, "url", sv->url);
            js_set(o, "tools", json_is_array(sv->tools) ? json_incref(sv->tools) : json_array());
            js_push(servers, o);
        } else if (sv->asked) {
            failed = true;
            step_mcp_error(s, sv->outcome == MCP_AUTH_FAILED, sv->name, sv->why);
        }
    }
    if (snap->mcp && json_equal(servers, snap->mcp)) {
        js_set_bool(b, "same", true);
        json_decref(servers);
    } else {
        js_set(b, "servers", servers);
    }
    js_set_bool(b, "failed", failed);
    step_add_private(s, "turn.tools", b);
}

static void put_result(struct call *c, struct step *s)
{
    const struct turn_call *tc = turn_call_find(&s->st, c->id);
    if (!tc || tc->answered)
        return;
    if (c->outcome == MCP_AUTH_FAILED)
        step_mcp_error(s, true, c->sv->name, c->why);
    if (c->outcome == MCP_OK) {
        step_mcp_result(s, c->id, c->content ? json_incref(c->content) : json_array(), c->is_error);
        return;
    }
    char *text = str_printf("The MCP server '%s' could not do this: %s", c->sv->name, c->why);
    json_t *t = json_object(), *a = json_array();
    js_set_str(t, "type", "text");
    js_set_str(t, "text", text);
    js_push(a, t);
    step_mcp_result(s, c->id, a, true);
    free(text);
}

void desk_put(struct runner *r, const struct snapshot *snap, struct step *s)
{
    struct desk *h = r->desk;
    if (!h)
        return;
    h->put = is_listed(h);
    if (h->put && s->st.run != TURN_IDLE && !s->st.tools_listed)
        put_tools(h, snap, s);
    list_foreach(c, &h->calls, struct call, node) {
        c->put = is_done(c);
        if (c->put)
            put_result(c, s);
    }
}

void desk_taken(struct runner *r)
{
    struct desk *h = r->desk;
    if (!h)
        return;
    if (h->put)
        h->listing = h->listed = h->put = false;
    list_foreach(c, &h->calls, struct call, node)
        if (c->put)
            call_free(c);
}

void desk_drop(struct runner *r)
{
    if (r->desk)
        ev_post(r->l->c.ev, free_on_ev, r->desk);
    r->desk = NULL;
}
