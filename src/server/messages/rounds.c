/* rounds.c - a request with MCP servers: connects, offers their tools to the model, and makes the model's calls until it needs nothing more from them. The client
 * sees one answer. A failure to connect fails the request, a failing call is a result that says so (tunnels.md 6.1). */
#include <string.h>

#include "log/log.h"
#include "server/messages/join.h"
#include "server/messages/private.h"

#define ROUNDS_MAX 32                        /* requests to the provider for one answer; then stop_reason pause_turn, and the client may go on */
#define ROUNDS_MS ((int64_t)30 * 60 * 1000)  /* no new round after this; likewise */
#define ERROR_TYPE_MAX 64
#define PING_MS 15000                        /* to the client while tools run */
#define RETRIES_MAX 3                        /* of a further round that the provider refuses for a moment: tools have run for this answer already */
#define RETRY_MIN_MS 500
#define RETRY_MAX_MS 30000
#define BODY_TEXT_MAX (64 * KIB)             /* of an error that a provider sends in a later round */

enum link_state { LINK_NONE, LINK_CONNECTING, LINK_UP, LINK_FAILED };
struct link {                                /* to one MCP server */
    struct rounds *y;
    const struct server *server;
    enum link_state state;
    struct mcp_session *session;
    char *why;                               /* LINK_FAILED */
    struct buf defs;                         /* definitions of its tools for the model */
};
struct run {                                 /* one call of the current round */
    struct rounds *y;
    struct link *link;
    struct mcp_call *call;
    bool waiting, done, is_error;            /* waiting: for the connection */
    json_t *content;
};
struct rounds {
    struct exchange *x;
    struct link links[SERVERS_MAX];
    size_t pending;                          /* connections or calls that this step waits for */
    struct tools tools;
    struct join *join;
    struct buf more, body, lines, out;       /* messages of the rounds so far; the request that runs; header lines; bytes for the client */
    struct join_round round;
    struct run runs[JOIN_CALLS_MAX];
    struct ev_timer timer;                   /* ping while tools run; the wait before a retry */
    int64_t started_ms, retry_after_ms;
    int n, retries;
    struct err bad;                          /* join_feed() has given up */
    bool ended;
};

static void round_start(struct rounds *y);
static void connect_link(struct link *l);

static struct ev *loop_of(const struct rounds *y) { return y->x->m->conf.ev; }

/* Lets everything go but the exchange and `down`. */
static void rounds_free(struct rounds *y)
{
    struct exchange *x = y->x;
    struct model_raw *raw = TAKE(x->raw);
    if (raw)
        x->p->raw_cancel(raw);
    ev_timer_stop(&y->timer);
    for (size_t i = 0; i < JOIN_CALLS_MAX; i++) {
        mcp_call_cancel(y->runs[i].call);
        json_decref(y->runs[i].content);
    }
    for (size_t i = 0; i < x->q.n_servers; i++) {
        mcp_session_free(y->links[i].session);
        free(y->links[i].why);
        buf_done(&y->links[i].defs);
    }
    join_free(y->join);
    tools_done(&y->tools);
    buf_done(&y->more);
    buf_done(&y->body);
    buf_done(&y->lines);
    buf_done(&y->out);
    free(y);
    x->more = NULL;
}

static void cancel(struct exchange *x)
{
    rounds_free(x->more);
    down_drop(x->down);
    messages_exchange_free(x);
}

static void on_gone(void *ctx) { cancel(((struct rounds *)ctx)->x); }

static void on_room(void *ctx)
{
    struct rounds *y = ctx;
    if (y->x->raw)
        y->x->p->raw_hold(y->x->raw, false);
}

/* What has been written goes to the client; true: that is enough for now. */
static bool flush(struct rounds *y)
{
    bool full = buf_len(&y->out) && down_streaming(y->x->down) && down_write(y->x->down, buf_data(&y->out), buf_len(&y->out));
    buf_clear(&y->out);
    return full;
}

/* ---- the ends ---- */

static void fail(struct rounds *y, int rc, const char *type, const struct err *e)
{
    struct exchange *x = y->x;
    struct err copy = *e;
    char kind[ERROR_TYPE_MAX];               /* `type` may be of what rounds_free() frees */
    (void)str_copy(kind, sizeof kind, type ? type : "");
    log_info("messages.failed", "request_id=%s round=%d why=%s", down_request_id(x->down), y->n, copy.msg);
    if (down_streaming(x->down)) {
        buf_clear(&y->out);
        provider_error_event(&y->out, type ? kind : "api_error", copy.msg, down_request_id(x->down));
        (void)flush(y);
        rounds_free(y);
        down_end(x->down);
    } else {
        rounds_free(y);
        down_refuse(x->down, rc, type ? kind : NULL, &copy);
    }
    messages_exchange_free(x);
}

/* A provider's own answer that is no success, of the first round or not streamed: it is the client's. */
static void fail_provider(struct rounds *y, int status, const struct buf *body)
{
    struct exchange *x = y->x;
    struct buf out, *b = (struct buf *)(uintptr_t)body, lines = y->lines;
    buf_init(&y->lines, 0);
    buf_init(&out, SIZE_MAX);
    int told = provider_error(status, (struct slice){ buf_data(b), buf_len(b) }, down_request_id(x->down), &out);
    if (told != status)
        log_warn("messages.provider", "request_id=%s status=%d", down_request_id(x->down), status);
    rounds_free(y);
    down_answer(x->down, told, "application/json", buf_data(&lines), &out);
    buf_done(&out);
    buf_done(&lines);
    messages_exchange_free(x);
}

static void finish(struct rounds *y, const char *stop_reason)
{
    struct exchange *x = y->x;
    struct err e = { 0 };
    int rc = join_finish(y->join, stop_reason, &y->out, &e);
    if (rc < 0) {
        fail(y, rc, "api_error", &e);
        return;
    }
    log_debug("messages.rounds", "request_id=%s rounds=%d", down_request_id(x->down), y->n);
    if (x->q.stream) {
        (void)flush(y);
        rounds_free(y);
        down_end(x->down);
    } else {
        struct buf out = y->out, lines = y->lines;
        buf_init(&y->out, 0);
        buf_init(&y->lines, 0);
        rounds_free(y);
        down_answer(x->down, 200, "application/json", buf_data(&lines), &out);
        buf_done(&out);
        buf_done(&lines);
    }
    messages_exchange_free(x);
}

/* ---- calls ---- */

static json_t *words(const char *text)
{
    json_t *list = json_array(), *b = json_object();
    js_set_str(b, "type", "text");
    js_set_str(b, "text", text);
    js_push(list, b);
    return list;
}

/* The round as two more messages: what the model said, and what its tools answered. */
static void remember(struct rounds *y)
{
    AUTO_JS results = json_array();
    AUTO_FREE char *said = js_text(y->round.content), *got = NULL;
    for (size_t i = 0; i < y->round.n; i++) {
        json_t *b = json_object();
        js_set_str(b, "type", "tool_result");
        js_set_str(b, "tool_use_id", y->round.calls[i].id);
        if (json_array_size(y->runs[i].content))
            js_set(b, "content", json_incref(y->runs[i].content));
        js_set_bool(b, "is_error", y->runs[i].is_error);     /* said also when false, as the history will say it */
        js_push(results, b);
    }
    got = js_text(results);
    (void)buf_printf(&y->more, "%s{\"role\":\"assistant\",\"content\":", buf_len(&y->more) ? "," : "");
    (void)buf_puts(&y->more, said);
    (void)buf_puts(&y->more, "},{\"role\":\"user\",\"content\":");
    (void)buf_puts(&y->more, got);
    (void)buf_putc(&y->more, '}');
}

static void calls_done(struct rounds *y)
{
    ev_timer_stop(&y->timer);
    for (size_t i = 0; i < y->round.n; i++)
        join_result(y->join, &y->round.calls[i], y->runs[i].is_error, y->runs[i].content, &y->out);
    (void)flush(y);
    if (!y->round.run || y->round.client_tools) {
        finish(y, NULL);         /* the client's own tools are next, or the turn was cut */
        return;
    }
    remember(y);
    for (size_t i = 0; i < y->round.n; i++) {
        json_decref(y->runs[i].content);
        y->runs[i] = (struct run){ 0 };
    }
    if (y->n >= ROUNDS_MAX || ev_now_ms(loop_of(y)) - y->started_ms > ROUNDS_MS) {
        finish(y, "pause_turn");
        return;
    }
    round_start(y);
}

static void run_done(struct run *r, bool is_error, json_t *take_content)
{
    r->done = true;
    r->waiting = false;
    r->call = NULL;
    r->is_error = is_error;
    r->content = take_content;
    r->y->pending--;
}

static void on_result(void *ctx, const struct mcp_result *m)
{
    struct run *r = ctx;
    struct rounds *y = r->y;
    bool ok = m->outcome == MCP_OK;
    run_done(r, !ok || m->is_error, ok && m->content ? json_deep_copy(m->content) : words(m->why && m->why[0] ? m->why : "The call failed."));
    if (y->pending == 0)
        calls_done(y);
}

static void run_call(struct rounds *y, struct run *r)
{
    const struct join_call *c = &y->round.calls[r - y->runs];
    r->waiting = false;
    r->call = mcp_call_start(r->link->session, c->tool->name, c->input, y->x->m->conf.mcp_timeout_ms, on_result, r);
}

static void on_ping(struct ev_timer *t)
{
    struct rounds *y = container_of(t, struct rounds, timer);
    static const char ping[] = "event: ping\ndata: {\"type\":\"ping\"}\n\n";
    ev_timer_set(loop_of(y), &y->timer, PING_MS, on_ping);
    if (down_streaming(y->x->down))
        (void)down_write(y->x->down, ping, sizeof ping - 1);
}

static void on_settled(struct ev_timer *t)
{
    calls_done(container_of(t, struct rounds, timer));
}

static void run_start(struct rounds *y, size_t i)
{
    struct run *r = &y->runs[i];
    const struct tool *t = y->round.calls[i].tool;
    *r = (struct run){ .y = y };
    y->pending++;
    for (size_t k = 0; k < y->x->q.n_servers; k++)
        if (y->links[k].server->name == t->server)
            r->link = &y->links[k];
    if (!y->round.run) {
        run_done(r, true, words("The call was not made: the answer ended before."));
    } else if (!t->enabled) {
        run_done(r, true, words("This tool is not enabled."));
    } else if (r->link->state == LINK_FAILED) {
        run_done(r, true, words(r->link->why));
    } else if (r->link->state == LINK_UP) {
        run_call(y, r);
    } else {
        r->waiting = true;       /* its tools were known without asking it */
        if (r->link->state == LINK_NONE)
            connect_link(r->link);
    }
}

static void calls_start(struct rounds *y)
{
    for (size_t i = 0; i < y->round.n; i++)
        run_start(y, i);
    if (y->pending == 0)
        ev_timer_set(loop_of(y), &y->timer, 0, on_settled);
    else
        ev_timer_set(loop_of(y), &y->timer, PING_MS, on_ping);
}

/* ---- a round ---- */

static void on_head(void *ctx, int status, struct slice lines)
{
    struct rounds *y = ctx;
    struct slice ms = fetch_header(lines, "retry-after-ms"), s = fetch_header(lines, "retry-after");
    y->retry_after_ms = -1;
    if (ms.p && slice_to_i64(ms, 0, INT32_MAX, &y->retry_after_ms) < 0)
        y->retry_after_ms = -1;
    else if (!ms.p && s.p && slice_to_i64(s, 0, INT32_MAX, &y->retry_after_ms) == RC_OK)
        y->retry_after_ms *= 1000;
    if (down_streaming(y->x->down))
        return;
    buf_clear(&y->lines);
    provider_lines(lines, &y->lines);
    if (status >= 200 && status <= 299 && y->x->q.stream)
        down_stream(y->x->down, 200, "text/event-stream; charset=utf-8", buf_data(&y->lines));
}

static void on_data(void *ctx, const char *p, size_t n)
{
    struct rounds *y = ctx;
    if (y->bad.rc == RC_OK && join_feed(y->join, p, n, &y->out, &y->bad) < 0)
        return;                  /* the rest is read and dropped; on_done tells it */
    if (flush(y))
        y->x->p->raw_hold(y->x->raw, true);
}

static void on_retry(struct ev_timer *t)
{
    round_start(container_of(t, struct rounds, timer));
}

/* A later round that was refused for a moment, before anything of it reached the client. */
static bool retry(struct rounds *y, int rc, int status)
{
    bool passing = rc < 0 ? status == 0 : status == 429 || status == 408 || status >= 500;
    int64_t wait = y->retry_after_ms >= 0 && rc == RC_OK ? y->retry_after_ms : RETRY_MIN_MS << y->retries;
    if (y->n < 2 || !passing || y->retries == RETRIES_MAX || wait > RETRY_MAX_MS)
        return false;
    y->retries++;
    y->n--;
    ev_timer_set(loop_of(y), &y->timer, wait, on_retry);
    return true;
}

static void fail_status(struct rounds *y, int status, const struct buf *body)
{
    if (!down_streaming(y->x->down)) {
        fail_provider(y, status, body);
        return;
    }
    struct buf *b = (struct buf *)(uintptr_t)body;
    struct err e;
    AUTO_JS j = NULL;
    const char *type = "api_error";
    if (status != 401 && buf_len(b) <= BODY_TEXT_MAX && js_parse(buf_data(b), buf_len(b), BODY_TEXT_MAX, &j, NULL) == RC_OK && js_str(j, "error.message")) {
        type = js_str(j, "error.type") ? js_str(j, "error.type") : type;
        (void)err_set(&e, RC_PROTO, "%s", js_str(j, "error.message"));
    } else {
        (void)err_set(&e, RC_PROTO, "The model provider answered with status %d.", status);
    }
    fail(y, RC_PROTO, type, &e);
}

/* The provider's stream ended with an error event. A streamed answer has had it; for one that is not streamed it is the answer. */
static void fail_event(struct rounds *y)
{
    struct exchange *x = y->x;
    if (!down_streaming(x->down)) {
        struct buf body;
        buf_init(&body, BODY_TEXT_MAX);
        provider_envelope(&body, y->round.error_type, y->round.error_message, down_request_id(x->down));
        fail_provider(y, provider_status(y->round.error_type), &body);
        buf_done(&body);
        return;
    }
    (void)flush(y);
    rounds_free(y);
    down_end(x->down);
    messages_exchange_free(x);
}

static void round_done(struct rounds *y, int rc, const struct err *why)
{
    struct err e = { 0 };
    const char *type;
    if (y->bad.rc < 0) {
        rc = y->bad.rc;
        why = &y->bad;
    }
    if (join_round(y->join, rc, why, &y->round, &e) < 0) {
        struct err told;
        rc = provider_failure(e.rc, &e, &type, &told);
        fail(y, rc, type, &told);
    } else if (y->round.error_type) {
        fail_event(y);
    } else if (y->round.n == 0) {
        finish(y, NULL);
    } else {
        y->retries = 0;
        calls_start(y);
    }
}

static void on_done(void *ctx, int rc, int status, const struct buf *body, const struct err *e)
{
    struct rounds *y = ctx;
    y->x->raw = NULL;
    if (rc == RC_OK && status >= 200 && status <= 299) {
        round_done(y, RC_OK, NULL);
    } else if (retry(y, rc, status)) {
        log_info("messages.retry", "request_id=%s round=%d status=%d", down_request_id(y->x->down), y->n + 1, status);
    } else if (rc == RC_OK) {
        fail_status(y, status, body);
    } else if (status >= 200 && status <= 299) {
        round_done(y, rc, e);    /* broke off in the middle */
    } else {
        const char *type;
        struct err why;
        rc = provider_failure(rc, e, &type, &why);
        fail(y, rc, type, &why);
    }
}

static void round_start(struct rounds *y)
{
    struct exchange *x = y->x;
    struct buf defs[SERVERS_MAX];
    struct err e = { 0 };
    for (size_t i = 0; i < x->q.n_servers; i++)
        defs[i] = y->links[i].defs;          /* borrowed */
    y->n++;
    buf_clear(&y->body);
    int rc = request_write(&x->q, defs, &y->more, true, &y->body, &e);
    if (rc < 0) {
        fail(y, rc, NULL, &e);
        return;
    }
    struct model_raw_request r = {
        .path = x->q.path, .headers = (const char *const *)x->q.headers, .n_headers = x->q.n_headers, .body = buf_data(&y->body), .body_n = buf_len(&y->body),
        .stream = true, .on_head = on_head, .on_data = on_data, .on_done = on_done, .ctx = y,
    };
    x->raw = x->p->raw_start(x->self, &r);
}

/* ---- connecting ---- */

static const json_t *listing_of(const struct link *l)
{
    return l->server->pinned ? l->server->pinned : mcp_tools(l->session);
}

static int offer(struct rounds *y, struct err *e)
{
    for (size_t i = 0; i < y->x->q.n_servers; i++) {
        struct link *l = &y->links[i];
        const json_t *listing = listing_of(l);
        bool first = true;
        void *iter = NULL;
        buf_init(&l->defs, TOOLS_BYTES_MAX);
        TRY(tools_add(&y->tools, l->server->name, l->server->toolset, listing, &l->defs, &first, e));
        for (const char *name; (name = tools_unknown(l->server->toolset, listing, &iter));)
            log_warn("messages.unknown_tool", "request_id=%s server=%s tool=%s", down_request_id(y->x->down), l->server->name, name);
        if (y->x->q.betas & BETA_MCP_2026_09 && !l->server->pinned)
            join_listing(y->join, tools_listing_block(l->server->name, listing));
    }
    return request_names(&y->x->q, &y->tools, e);
}

/* count_tokens with MCP servers: the provider counts the request that it would get. */
static void count(struct rounds *y)
{
    struct exchange *x = y->x;
    struct buf defs[SERVERS_MAX], out, none;
    struct err e = { 0 };
    for (size_t i = 0; i < x->q.n_servers; i++)
        defs[i] = y->links[i].defs;
    buf_init(&none, 0);
    buf_init(&out, REWRITTEN_MAX);
    int rc = request_write(&x->q, defs, &none, false, &out, &e);
    if (rc < 0) {
        buf_done(&out);
        fail(y, rc, NULL, &e);
        return;
    }
    rounds_free(y);
    buf_done(&x->q.body);
    x->q.body = out;
    messages_relay_start(x);
}

static void all_connected(struct rounds *y)
{
    struct err e = { 0 };
    int rc = offer(y, &e);
    if (rc < 0)
        fail(y, RC_INVALID, NULL, &e);
    else if (y->x->q.count)
        count(y);
    else
        round_start(y);
}

static const char *const outcome_words[] = {
    [MCP_CONNECT_FAILED] = "Connection to MCP server '%.100s' failed: %s", [MCP_AUTH_FAILED] = "Authentication with MCP server '%.100s' failed: %s",
    [MCP_REFUSED] = "MCP server '%.100s' may not be called: %s", [MCP_CANCELLED] = "The connection to MCP server '%.100s' was given up: %s",
};

/* The link came up, or did not, when calls wait for it. */
static void release_runs(struct link *l)
{
    struct rounds *y = l->y;
    for (size_t i = 0; i < y->round.n; i++) {
        struct run *r = &y->runs[i];
        if (r->link != l || !r->waiting)
            continue;
        if (l->state == LINK_UP)
            run_call(y, r);
        else
            run_done(r, true, words(l->why));
    }
    if (y->pending == 0)
        calls_done(y);
}

static void on_connected(void *ctx, struct mcp_session *s, enum mcp_outcome o, const char *why)
{
    struct link *l = ctx;
    struct rounds *y = l->y;
    struct err e;
    l->session = s;
    l->state = o == MCP_OK ? LINK_UP : LINK_FAILED;
    if (o != MCP_OK) {
        const char *form = o < COUNT_OF(outcome_words) && outcome_words[o] ? outcome_words[o] : outcome_words[MCP_CONNECT_FAILED];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        (void)err_set(&e, RC_INVALID, form, l->server->name, why ? why : "");
#pragma GCC diagnostic pop
        l->why = str_dup(e.msg);
    }
    if (y->n > 0) {
        release_runs(l);
    } else if (o != MCP_OK) {
        fail(y, RC_INVALID, NULL, &e);
    } else if (--y->pending == 0) {
        all_connected(y);
    }
}

static void connect_link(struct link *l)
{
    struct mcp_target t = { .name = l->server->name, .url = l->server->url, .bearer = l->server->token };
    l->state = LINK_CONNECTING;
    l->session = mcp_connect(l->y->x->m->conf.mcp, &t, on_connected, l);
}

static void on_begin(struct ev_timer *t)
{
    all_connected(container_of(t, struct rounds, timer));
}

void messages_rounds_start(struct exchange *x)
{
    struct rounds *y = xcalloc(1, sizeof *y);
    struct down_events events = { .on_gone = on_gone, .on_room = on_room, .ctx = y };
    y->x = x;
    x->more = y;
    x->cancel = cancel;
    y->started_ms = ev_now_ms(loop_of(y));
    y->join = join_new(&y->tools, x->q.stream);
    buf_init(&y->more, REWRITTEN_MAX);
    buf_init(&y->body, REWRITTEN_MAX);
    buf_init(&y->lines, LINES_MAX);
    buf_init(&y->out, SIZE_MAX);
    for (size_t i = 0; i < x->q.n_servers; i++)
        y->links[i] = (struct link){ .y = y, .server = &x->q.servers[i] };
    if (down_watch(x->down, &events) != RC_OK) {
        cancel(x);
        return;
    }
    for (size_t i = 0; i < x->q.n_servers; i++) {
        if (y->links[i].server->pinned)
            continue;
        y->pending++;
        connect_link(&y->links[i]);
    }
    if (y->pending == 0)
        ev_timer_set(loop_of(y), &y->timer, 0, on_begin);
}
