/* gateway/front_req.c - bytes of a connection into requests: which host, which route, what the policy says, and the body piece by piece to the upstream. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "gateway/front_internal.h"
#include "log/log.h"
#include "metrics/metrics.h"

#define HEAD_MEM_KEPT (4 * KIB)          /* of a spare exchange */

#define REFUSALS(X) X(malformed) X(misdirected) X(no_route) X(busy) X(upgrade) X(policy) X(audit)
#define X(name) static METRIC_DEFINE_LABEL(m_##name, METRIC_COUNTER, "gateway_refusals_total", "reason=\"" #name "\"", "What the gateway refused, by reason.");
REFUSALS(X)
#undef X
static METRIC_DEFINE(m_requests, METRIC_GAUGE, "gateway_requests", "Requests in flight, open streams included.");

/* ---- exchanges ---- */

static struct exchange *exchange_new(struct inner *c)
{
    struct front *f = c->f;
    struct exchange *x = f->spare;
    if (x) {
        f->spare = x->next;
        f->n_spare--;
    } else {
        x = xcalloc(1, sizeof *x);
        buf_init(&x->head_mem, HTTP_HEAD_MAX);
    }
    struct buf mem = x->head_mem;
    memset((char *)x + offsetof(struct exchange, host), 0, sizeof *x - offsetof(struct exchange, host));      /* not the head, which is large and written whole */
    x->head_mem = mem;
    x->c = c;
    x->started_us = clock_mono_us();
    metric_set(&m_requests, (int64_t)++f->n_requests);
    return x;
}

/* Mcp-Method and Mcp-Name count only where servers must compare them with the body, and then only when they agree with it (tunnels.md 4.6). */
static bool headers_disagree(const struct exchange *x, const struct mcp_call *call)
{
    const struct slice *v = http_find(&x->head, "mcp-protocol-version"), *m = http_find(&x->head, "mcp-method"), *n = http_find(&x->head, "mcp-name");
    char version[MCP_VERSION_MAX + 1] = "";
    if (v && v->n <= MCP_VERSION_MAX)
        memcpy(version, v->p, v->n);
    if (!mcp_mirrors(*version ? version : call->version))
        return false;
    return (m && !mcp_header_agrees(m->p, m->n, call->method)) || (n && *call->name && !mcp_header_agrees(n->p, n->n, call->name));
}

static void audit(struct exchange *x)
{
    struct front *f = x->c->f;
    char version[MCP_VERSION_MAX + 1] = "", session[TRAIL_SESSION_HEX] = "";
    const struct slice *v = http_find(&x->head, "mcp-protocol-version"), *id = http_find(&x->head, "mcp-session-id");
    if (v && v->n <= MCP_VERSION_MAX)
        memcpy(version, v->p, v->n);
    if (id)
        trail_session_hash(id->p, id->n, session);
    struct trail_line l = {
        .route = x->route->name, .http_method = http_method_name(x->head.method), .version = version, .session = session,
        .client = x->c->carrier ? x->c->carrier->ops->peer(x->c->carrier) : "", .refused = x->refused, .header_mismatch = x->mismatch,
        .status = x->replied ? x->status : 0, .bytes_in = x->bytes_in, .bytes_out = x->bytes_out, .duration_us = clock_mono_us() - x->started_us,
    };
    bool batch = mcp_is_batch(&x->scan);
    if (x->scanning && !x->body_ended && !x->refused)
        l.unparsed = "the client left before the end of its body";
    else if (x->scanning && x->scanned == MCP_UNPARSED)
        l.unparsed = mcp_why(&x->scan);
    if (l.unparsed || !x->scanning || x->scanned != MCP_RPC || (batch && !x->n_calls)) {
        trail_add(f->trail, &l);
        return;
    }
    l.batch = batch ? x->n_calls : 0;
    for (size_t i = 0; i < (batch ? x->n_calls : 1); i++) {
        l.call = batch ? &x->calls[i] : &x->scan.call;
        if (!*version)
            l.version = l.call->version;
        trail_add(f->trail, &l);
    }
}

void exchange_put(struct exchange *x)
{
    struct front *f = x->c->f;
    if (x->route) {
        if (f->trail)
            audit(x);
        route_stats_request(x->route->stats, x->replied ? x->status : 0, x->bytes_in, x->bytes_out);
        log_debug("gateway.request_ended", "host=%s route=%s status=%d bytes_in=%llu bytes_out=%llu", x->host, x->route->name, x->replied ? x->status : 0,
                  (unsigned long long)x->bytes_in, (unsigned long long)x->bytes_out);
        route_unref(x->route);
    }
    f->held -= x->hold.mem ? x->hold.cap : 0;
    buf_done(&x->hold);
    free(x->calls);
    x->calls = NULL;
    metric_set(&m_requests, (int64_t)--f->n_requests);
    if (f->n_spare == FRONT_SPARE_MAX) {
        buf_wipe(&x->head_mem);
        free(x);
        return;
    }
    if (x->head_mem.cap > HEAD_MEM_KEPT)
        buf_wipe(&x->head_mem);
    buf_clear(&x->head_mem);
    x->next = f->spare;
    f->spare = x;
    f->n_spare++;
}

/* ---- whose request is it ---- */

/* "Name", "name:443", "name." -> lower-case name; false when it does not fit or is no name. */
static bool host_name(struct slice v, char out[ROUTE_NAME_MAX + 1])
{
    const char *colon = memchr(v.p, ':', v.n);
    size_t n = colon ? (size_t)(colon - v.p) : v.n;
    for (size_t i = n + 1; i < v.n; i++)
        if (v.p[i] < '0' || v.p[i] > '9')
            return false;
    if (n && v.p[n - 1] == '.')
        n--;
    if (n == 0 || n > ROUTE_NAME_MAX)
        return false;
    for (size_t i = 0; i < n; i++)
        out[i] = v.p[i] >= 'A' && v.p[i] <= 'Z' ? (char)(v.p[i] | 0x20) : v.p[i];
    out[n] = '\0';
    return true;
}

/* Fills x->host from the target's absolute form and Host, which must agree; turns the target into origin form. */
static bool find_host(struct exchange *x)
{
    struct http_head *h = &x->head;
    const struct slice *host = http_find(h, "host");
    char given[ROUTE_NAME_MAX + 1] = "";
    if (host && !host_name(*host, x->host))
        return false;
    if (!h->target.n || h->target.p[0] == '/' || h->target.p[0] == '*')
        return host != NULL;
    const char *authority = (const char *)memmem(h->target.p, h->target.n, "://", 3) + 3;
    size_t left = h->target.n - (size_t)(authority - h->target.p), n = 0;
    while (n < left && authority[n] != '/' && authority[n] != '?')
        n++;
    if (!host_name((struct slice){ authority, n }, given) || (host && !str_eq(given, x->host)))
        return false;
    (void)str_copy(x->host, sizeof x->host, given);
    struct slice rest = { authority + n, left - n };
    if (rest.n == 0) {
        h->target = SLICE("/");
        return true;
    }
    if (rest.p[0] == '?') {              /* "http://host?q" asks for "/?q": the byte in front belongs to the host, which is copied */
        char *slash = (char *)(uintptr_t)rest.p - 1;
        *slash = '/';
        rest = (struct slice){ slash, rest.n + 1 };
    }
    h->target = rest;
    return true;
}

static bool sni_agrees(const struct inner *c, const char *host)
{
    const char *sni = tls_sni(c->tls);
    char name[ROUTE_NAME_MAX + 1];
    return sni && host_name(slice_of(sni), name) && str_eq(name, host);
}

/* ---- starting ---- */

static void refuse(struct exchange *x, struct metric *m, int status, const char *text)
{
    metric_add(m, 1);
    log_info("gateway.refused", "client=%s host=%s status=%d why=%s", x->c->carrier->ops->peer(x->c->carrier), x->host, status, text);
    if (status == 503)
        exchange_local(x, status, "text/plain; charset=utf-8", "retry-after: 1\r\n", text, strlen(text));
    else
        exchange_text(x, status, text);
}

static void start_upstream(struct exchange *x)
{
    x->call = x->route->ops->start(x->route->upstream, x);
}

static void on_call(void *ctx, const struct mcp_call *call)
{
    struct exchange *x = ctx;
    x->mismatch |= call->is_call && headers_disagree(x, call);
    if (!mcp_is_batch(&x->scan))
        return;
    if (!x->calls)
        x->calls = xcalloc(MCP_BATCH_MAX, sizeof *x->calls);
    x->calls[x->n_calls++] = *call;
}

/* A body that the policy must see is not let through in a coding that it cannot read. */
static bool coded(const struct http_head *h)
{
    const struct slice *v = http_find(h, "content-encoding");
    return v && v->n && !slice_eq_nocase(*v, "identity");
}

static void refuse_by_policy(struct exchange *x, int status, const char *why)
{
    struct buf out;
    const char *tool = str_eq(x->scan.call.method, "tools/call") ? x->scan.call.name : NULL;
    x->refused = why;
    metric_add(&m_policy, 1);
    log_info("gateway.policy", "route=%s method=%s tool=%s why=%s", x->route->name, x->scan.call.method, tool, why);
    buf_init(&out, POLICY_REFUSAL_MAX);
    bool batch = x->scanned == MCP_RPC && mcp_is_batch(&x->scan);
    if (!batch) {
        (void)tool_policy_answer(&out, x->scanned == MCP_RPC ? x->scan.call.id : "", x->route->name, tool, why);
    } else {
        (void)buf_putc(&out, '[');
        size_t answers = 0;
        for (size_t i = 0; i < x->n_calls; i++)
            if (x->calls[i].is_call && *x->calls[i].id) {
                (void)buf_puts(&out, answers++ ? "," : "");
                (void)tool_policy_answer(&out, x->calls[i].id, x->route->name, str_eq(x->calls[i].method, "tools/call") ? x->calls[i].name : NULL, why);
            }
        if (!answers)
            (void)tool_policy_answer(&out, "", x->route->name, NULL, why);
        (void)buf_putc(&out, ']');
    }
    exchange_local(x, status, "application/json", NULL, buf_data(&out), buf_len(&out));
    buf_done(&out);
}

static void begin_body(struct exchange *x)
{
    struct inner *c = x->c;
    const struct tool_policy *p = x->route->policy;
    x->has_body = x->head.chunked || x->head.content_length > 0;
    x->body_ended = !x->has_body;
    x->body_left = x->head.content_length;
    x->scanning = x->has_body && (p || c->f->trail);
    if (x->scanning)
        mcp_init(&x->scan, on_call, x);
    if (p && x->has_body) {
        if (coded(&x->head)) {
            refuse_by_policy(x, 415, "the body has a Content-Encoding, so the policy cannot read it");
            return;
        }
        if (x->head.content_length > (int64_t)FRONT_HOLD_MAX) {
            refuse_by_policy(x, 413, "the body is larger than the 4 MiB that the policy reads");
            return;
        }
        x->holding = true;
        buf_init(&x->hold, FRONT_HOLD_MAX);
    }
    if (x->has_body && x->head.expect_continue && buf_put(&c->out, "HTTP/1.1 100 Continue\r\n\r\n", 25) == RC_OK)
        inner_dirty(c);
    if (x->has_body)
        inner_deadline(c, c->f->limits.body_ms);
    else
        inner_deadline(c, -1);
    if (!x->holding)
        start_upstream(x);
}

static void begin(struct inner *c, struct exchange *x)
{
    struct front *f = c->f;
    const struct http_head *h = &x->head;
    c->x = x;
    c->state = INNER_BUSY;
    c->close_after = !h->keep_alive;
    x->has_body = h->chunked || h->content_length > 0;      /* until begin_body(): a refusal closes when a body comes */
    if (!find_host(x) || !sni_agrees(c, x->host) || !route_table_ours(f->routes, x->host)) {
        refuse(x, &m_misdirected, 421, "The TLS server name and Host must be the same name under the tunnel domain");
        return;
    }
    if (h->method == HTTP_CONNECT || h->upgrade) {
        refuse(x, &m_upgrade, 501, "Upgrades and CONNECT are not passed through the tunnel");
        return;
    }
    struct route *r = route_table_find(f->routes, x->host);
    if (!r) {
        log_warn("gateway.no_route", "host=%s why=%s", x->host, "no route for host");
        refuse(x, &m_no_route, 502, "No route configured for host");
        return;
    }
    if (f->n_requests > f->limits.requests_max) {
        refuse(x, &m_busy, 503, "The gateway has as many requests in flight as it may (limits.requests)");
        return;
    }
    if (f->trail && trail_broken(f->trail)) {
        refuse(x, &m_audit, 503, "The gateway cannot write its audit log and lets nothing pass without it");
        return;
    }
    x->route = route_ref(r);
    log_debug("gateway.request", "what=%s host=%s route=%s method=%s client=%s", "request started", x->host, r->name, http_method_name(h->method), c->carrier->ops->peer(c->carrier));
    begin_body(x);
}

/* The head lies in bytes that will be overwritten: it is copied, and its slices follow. */
static void move_head(struct exchange *x, const struct http_head *from, const char *p, size_t n)
{
    struct http_head *h = &x->head;
    (void)buf_put(&x->head_mem, p, n);
    const char *to = buf_data(&x->head_mem);
    memcpy(h, from, offsetof(struct http_head, headers));
    memcpy(h->headers, from->headers, from->n_headers * sizeof h->headers[0]);
    memcpy(&h->n_headers, &from->n_headers, sizeof *h - offsetof(struct http_head, n_headers));
    h->target.p = to + (from->target.p - p);
    for (size_t i = 0; i < h->n_headers; i++) {
        h->headers[i].name.p = to + (from->headers[i].name.p - p);
        h->headers[i].value.p = to + (from->headers[i].value.p - p);
    }
}

/* A head that is none: answered and the connection ends, for what follows cannot be told apart. */
static void malformed(struct inner *c, int rc, const char *why)
{
    struct exchange *x = exchange_new(c);
    memset(&x->head, 0, sizeof x->head);
    x->head.minor = 1;
    c->x = x;
    c->state = INNER_BUSY;
    c->close_after = true;
    x->body_ended = true;
    refuse(x, &m_malformed, rc == RC_TOO_LARGE ? 431 : rc == RC_UNSUPPORTED ? 501 : 400, why);
}

static size_t take_head(struct inner *c, const char *p, size_t n)
{
    struct http_head *h = &c->f->head;
    size_t used = 0;
    const char *why = "";
    int rc = http_parse_request(p, n, c->seen, h, &used, &why);
    if (rc == RC_AGAIN) {
        if (c->state == INNER_IDLE)
            inner_deadline(c, c->f->limits.head_ms);
        c->state = INNER_HEAD;
        c->seen = n;
        return 0;
    }
    c->seen = 0;
    if (rc < 0) {
        malformed(c, rc, why);
        return n;
    }
    struct exchange *x = exchange_new(c);
    move_head(x, h, p, used);
    begin(c, x);
    return used;
}

/* ---- bodies ---- */

/* All of the body is here and read: the policy decides, then it goes upstream from where it is held. */
static void release_held(struct exchange *x)
{
    const char *why = NULL;
    x->holding = false;
    if (x->scanned == MCP_UNPARSED) {
        (void)snprintf(x->why, sizeof x->why, "the body cannot be read as JSON-RPC (%s)", mcp_why(&x->scan));
        why = x->why;
    } else if (x->scanned == MCP_RPC && x->mismatch) {
        why = "Mcp-Method or Mcp-Name say something else than the body";
    } else if (x->scanned == MCP_RPC) {
        for (size_t i = 0; i < (mcp_is_batch(&x->scan) ? x->n_calls : 1) && !why; i++)
            why = tool_policy_refuses(x->route->policy, mcp_is_batch(&x->scan) ? &x->calls[i] : &x->scan.call, x->why);
    }
    if (why) {
        refuse_by_policy(x, 200, why);
        return;
    }
    x->body_ended = false;               /* for the upstream it begins now */
    x->pouring = true;
    start_upstream(x);
}

static void body_whole(struct exchange *x)
{
    x->body_ended = true;
    inner_deadline(x->c, -1);
    if (x->scanning)
        x->scanned = mcp_finish(&x->scan);
    if (x->holding) {
        release_held(x);
        return;
    }
    if (x->call && !x->ended)
        x->route->ops->body_end(x->call);
}

/* Decoded bytes; returns how many were taken. */
static size_t body_piece(struct exchange *x, const char *p, size_t n)
{
    struct front *f = x->c->f;
    size_t took = n;
    if (x->ended)
        return n;                        /* answered already: the rest of the body is nobody's */
    if (x->holding) {
        size_t before = x->hold.mem ? x->hold.cap : 0;
        bool crowded = f->held + n > FRONT_HELD_MAX;
        int rc = crowded ? RC_LIMIT : buf_put(&x->hold, p, n);
        f->held += (x->hold.mem ? x->hold.cap : 0) - before;
        if (rc < 0) {
            refuse_by_policy(x, crowded ? 503 : 413, crowded ? "too many bodies wait for the policy; try later" : "the body is larger than the 4 MiB that the policy reads");
            return n;
        }
    } else {
        took = x->call ? x->route->ops->body(x->call, p, n) : n;
        x->blocked = took < n && !x->ended;
    }
    x->bytes_in += took;
    if (x->scanning && took)
        mcp_feed(&x->scan, p, took);
    return took;
}

/* What was held goes on; true when all of it has gone. The scanner has seen it. */
static bool pour_held(struct exchange *x)
{
    while (buf_len(&x->hold) && x->call && !x->ended) {
        size_t took = x->route->ops->body(x->call, buf_data(&x->hold), buf_len(&x->hold));
        x->blocked = took < buf_len(&x->hold) && !x->ended;
        buf_consume(&x->hold, took);
        if (x->blocked)
            return false;
    }
    x->pouring = false;
    x->body_ended = true;
    if (x->call && !x->ended)
        x->route->ops->body_end(x->call);
    return true;
}

static size_t body_step(struct exchange *x, const char *p, size_t n)
{
    size_t took = 0;
    if (x->payload) {
        took = body_piece(x, p, n < x->payload ? n : x->payload);
        x->payload -= took;
    } else if (x->head.chunked) {
        struct slice data;
        size_t used = 0;
        int rc = http_chunked_step(&x->chunked, p, n, &used, &data);
        if (rc == RC_INVALID) {
            inner_close(x->c);           /* cuts the upstream, too: half a body must not be taken for a whole one */
            return n;
        }
        took = data.n ? body_piece(x, data.p, data.n) : 0;
        if (took < data.n) {
            x->payload = data.n - took;
            return (size_t)(data.p - p) + took;
        }
        if (rc == RC_CLOSED && !x->ended)
            body_whole(x);
        return used;
    } else {
        took = body_piece(x, p, (uint64_t)n > (uint64_t)x->body_left ? (size_t)x->body_left : n);
        x->body_left -= (int64_t)took;
        if (x->body_left == 0 && !x->ended)
            body_whole(x);
    }
    return took;
}

size_t inner_process(struct inner *c, const char *p, size_t n)
{
    size_t at = 0;
    inner_enter(c);
    while (!c->dead && at < n) {
        struct exchange *x = c->x;
        if (!x) {
            if (c->close_after)
                at = n;                  /* nothing after the last answer is looked at */
            if (buf_len(&c->out))
                break;
            size_t used = at < n ? take_head(c, p + at, n - at) : 0;
            if (!used)
                break;
            at += used;
        } else if (x->body_ended || x->ended || x->pouring) {
            break;
        } else {
            at += body_step(x, p + at, n - at);
            if (c->dead)
                break;
            if (c->x == x && !x->body_ended && !x->ended && !x->pouring)
                inner_deadline(c, x->blocked ? -1 : c->f->limits.body_ms);
            if (x->blocked)
                break;
        }
    }
    if (!c->dead && c->x && c->x->pouring && !c->x->blocked)
        (void)pour_held(c->x);
    if (!c->dead && c->x && c->x->ended && c->x->has_body && !c->x->body_ended)
        at = n;                          /* the connection ends after the answer */
    inner_leave(c);
    return at;
}

/* (front) there is room upstream again */
void exchange_want_body(struct exchange *x)
{
    if (!x->blocked)
        return;
    x->blocked = false;
    inner_enter(x->c);
    struct inner *c = x->c;
    if (x->pouring)
        (void)pour_held(x);
    if (!c->dead && c->x == x && !x->ended)
        inner_kick(c);
    inner_leave(c);
}

const struct http_head *exchange_head(const struct exchange *x) { return &x->head; }
const char *exchange_host(const struct exchange *x) { return x->host; }
bool exchange_has_body(const struct exchange *x) { return x->has_body; }
