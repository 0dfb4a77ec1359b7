/* edge/control.c - see control.h */
#include "edge/control.h"

#include <string.h>

#include "base/list.h"
#include "base/str.h"
#include "edge/stats.h"
#include "http/client.h"
#include "log/log.h"

#define BEAT_FIRST_MS 10000          /* a third of the ttl, until the server has named it */
#define BEAT_TTL_MS 30000
#define BEAT_DEBOUNCE_MS 200         /* a gateway's connections come together: one heartbeat tells of all */
#define BEAT_RETRY_MS 1000           /* after a failed one; doubles up to a third of the ttl */
#define BEAT_TTL_MIN_MS 3000
#define BEAT_TTL_MAX_MS 600000
#define POOL_IDLE_MAX 64

struct control {
    struct control_conf c;
    struct http_client *http;
    struct list waiting, running;    /* control_auth */
    struct list asks;
    size_t n_running;
    struct ev_timer start_auth, beat_timer;
    struct http_call *beat;
    bool beat_again, reachable, told, refused;
    int fails;
    int64_t ttl_ms, ok_at_ms;        /* ok_at_ms 0: never */
};

struct control_auth {
    struct list node;
    struct control *c;
    struct http_call *call;
    char *body;
    void (*done)(void *ctx, int rc, const struct control_tunnel *t);
    void *ctx;
};

struct ask { struct list node; struct http_call *call; struct control *c; void (*done)(void *ctx, int rc, const struct control_route *r); void *ctx; };

/* ---- texts ---- */

static int parse_state(const char *s, enum tunnel_state *ret)
{
    static const struct { const char *name; enum tunnel_state state; } rows[] = {
        { "active", TUNNEL_ACTIVE }, { "needs_certificate", TUNNEL_NEEDS_CERTIFICATE }, { "archived", TUNNEL_ARCHIVED },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (str_eq(s, rows[i].name)) {
            *ret = rows[i].state;
            return RC_OK;
        }
    return RC_PROTO;
}

/* The document of an answer with this status; NULL: it cannot be used. New reference. */
static json_t *document(int rc, const struct http_response *r)
{
    json_t *j = NULL;
    if (rc != RC_OK || r->status != 200 || js_parse(buf_data(r->body), buf_len(r->body), CONTROL_ANSWER_MAX, &j, NULL) < 0)
        return NULL;
    return j;
}

static struct http_call *post(struct control *c, const char *path, const char *body, void (*done)(void *, int, const struct http_response *, const struct err *), void *ctx)
{
    AUTO_FREE char *url = str_printf("%s%s", c->c.base_url, path);
    struct http_request r = {
        .method = body ? "POST" : "GET", .url = url, .headers = body ? "content-type: application/json\r\n" : NULL, .bearer = c->c.key,
        .body = body, .body_n = body ? strlen(body) : 0, .timeout_ms = CONTROL_TIMEOUT_MS, .body_max = CONTROL_ANSWER_MAX, .on_done = done, .ctx = ctx,
    };
    return http_call_start(c->http, &r);
}

/* ---- tokens ---- */

static void start_waiting(struct control *c);

static void on_start_auth(struct ev_timer *t)
{
    start_waiting(container_of(t, struct control, start_auth));
}

static void auth_free(struct control_auth *a)
{
    struct control *c = a->c;
    list_del(&a->node);
    if (a->call) {
        http_call_cancel(a->call);
        c->n_running--;
    }
    if (!list_empty(&c->waiting) && !ev_timer_armed(&c->start_auth))
        ev_timer_set(c->c.ev, &c->start_auth, 0, on_start_auth);
    free(a->body);
    free(a);
}

static int auth_result(int rc, const struct http_response *r, json_t *j, struct control_tunnel *ret)
{
    if (rc != RC_OK)
        return rc;
    if (r->status == 401 && !j)
        return RC_UNAUTHORIZED;
    *ret = (struct control_tunnel){ .tunnel_id = js_str(j, "tunnel_id"), .domain = js_str(j, "domain"), .token_id = js_str(j, "token_id") };
    bool whole = ret->tunnel_id && ret->domain && ret->token_id && *ret->domain && strlen(ret->domain) < CONTROL_DOMAIN_MAX && strlen(ret->tunnel_id) < ID_MAX &&
                 strlen(ret->token_id) < ID_MAX && parse_state(js_str(j, "state"), &ret->state) == RC_OK;
    return whole ? RC_OK : RC_PROTO;
}

/* 401 has two readings: our key, or the gateway's token. The server says which by its error code. */
static bool our_key_is_refused(const struct http_response *r)
{
    AUTO_JS j = NULL;
    if (r->status != 401 || js_parse(buf_data(r->body), buf_len(r->body), CONTROL_ANSWER_MAX, &j, NULL) < 0)
        return false;
    return str_eq(js_str(j, "error.details.error_code"), "edge_key_refused");
}

static void on_auth(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    struct control_auth *a = ctx;
    a->call = NULL;
    a->c->n_running--;
    AUTO_JS j = document(rc, r);
    struct control_tunnel t = { 0 };
    int result = rc == RC_OK && our_key_is_refused(r) ? RC_DENIED : auth_result(rc, r, j, &t);
    if (result != RC_OK && result != RC_UNAUTHORIZED)
        log_warn("edge.token_check_failed", "why=%s status=%d", e && rc < 0 ? e->msg : rc_text(result), rc == RC_OK ? r->status : 0);
    metric_add(result == RC_OK ? &stat_auth_ok : result == RC_UNAUTHORIZED ? &stat_auth_refused : &stat_auth_failed, 1);
    void (*done)(void *, int, const struct control_tunnel *) = a->done;
    void *c = a->ctx;
    auth_free(a);
    done(c, result, &t);
}

static void start_waiting(struct control *c)
{
    while (c->n_running < CONTROL_AUTH_RUNNING && !list_empty(&c->waiting)) {
        struct control_auth *a = list_first(&c->waiting, struct control_auth, node);
        list_del(&a->node);
        list_add_tail(&c->running, &a->node);
        c->n_running++;
        a->call = post(c, "/outwork/v1/edges/authenticate", a->body, on_auth, a);
    }
}

struct control_auth *control_authenticate(struct control *c, const char *tunnel_id, const char *token_sha256_hex,
                                          void (*done)(void *ctx, int rc, const struct control_tunnel *t), void *ctx)
{
    AUTO_JS j = json_object();
    js_set_str(j, "tunnel_id", tunnel_id);
    js_set_str(j, "token_sha256", token_sha256_hex);
    struct control_auth *a = xcalloc(1, sizeof *a);
    a->c = c;
    a->body = js_text(j);
    a->done = done;
    a->ctx = ctx;
    list_add_tail(&c->waiting, &a->node);
    if (!ev_timer_armed(&c->start_auth))
        ev_timer_set(c->c.ev, &c->start_auth, 0, on_start_auth);
    return a;
}

void control_auth_cancel(struct control_auth *a)
{
    if (a)
        auth_free(a);
}

/* ---- routes ---- */

static int read_route(const json_t *j, struct control_route *ret)
{
    const char *id = js_str(j, "tunnel_id"), *domain = js_str(j, "domain");
    if (!id || !domain || !str_copy(ret->tunnel_id, sizeof ret->tunnel_id, id) || !str_copy(ret->domain, sizeof ret->domain, domain) ||
        parse_state(js_str(j, "state"), &ret->state) < 0)
        return RC_PROTO;
    json_t *edges = js_at(j, "edges");
    for (size_t i = 0; i < json_array_size(edges) && ret->n < CONTROL_EDGES_MAX; i++) {
        const char *eid = js_str(json_array_get(edges, i), "id"), *address = js_str(json_array_get(edges, i), "address");
        if (eid && address && *address && str_copy(ret->edges[ret->n].id, sizeof ret->edges[0].id, eid) &&
            str_copy(ret->edges[ret->n].address, sizeof ret->edges[0].address, address))
            ret->n++;
    }
    return RC_OK;
}

static void on_route(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    struct ask *a = ctx;
    struct control_route route = { 0 };
    AUTO_JS j = document(rc, r);
    if (rc == RC_OK)
        rc = r->status == 404 ? RC_NOT_FOUND : j ? read_route(j, &route) : RC_PROTO;
    if (rc != RC_OK && rc != RC_NOT_FOUND)
        log_warn("edge.route_failed", "why=%s", e ? e->msg : rc_text(rc));
    list_del(&a->node);
    a->done(a->ctx, rc, &route);
    free(a);
}

void control_route(struct control *c, const char *host, void (*done)(void *ctx, int rc, const struct control_route *r), void *ctx)
{
    struct ask *a = xcalloc(1, sizeof *a);
    *a = (struct ask){ .c = c, .done = done, .ctx = ctx };
    list_add_tail(&c->asks, &a->node);
    AUTO_FREE char *path = str_printf("/outwork/v1/edges/route?host=%s&from=%s", host, c->c.edge_id);     /* both hold nothing that needs an escape */
    metric_add(&stat_routes_asked, 1);
    a->call = post(c, path, NULL, on_route, a);
}

/* ---- heartbeat ---- */

static void beat(struct control *c);

static void on_beat_timer(struct ev_timer *t)
{
    beat(container_of(t, struct control, beat_timer));
}

static void set_reachable(struct control *c, bool yes)
{
    if (c->told && c->reachable == yes)
        return;
    c->told = true;
    c->reachable = yes;
    c->c.on_reachable(c->c.ctx, yes);
}

static void tell_states(struct control *c, const json_t *j)
{
    json_t *list = js_at(j, "tunnels");
    for (size_t i = 0; i < json_array_size(list); i++) {
        enum tunnel_state s;
        const char *id = js_str(json_array_get(list, i), "id");
        if (id && parse_state(js_str(json_array_get(list, i), "state"), &s) == RC_OK)
            c->c.on_state(c->c.ctx, id, s);
    }
}

static int64_t beat_pause(const struct control *c)
{
    int64_t most = c->ttl_ms / 3, wait = BEAT_RETRY_MS;
    if (!c->fails)
        return most;
    for (int i = 1; i < c->fails && wait < most; i++)
        wait *= 2;
    if (wait > most)
        wait = most;
    return wait / 2 + (int64_t)(random_unit() * (double)(wait / 2));
}

static void on_beat(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    struct control *c = ctx;
    c->beat = NULL;
    AUTO_JS j = document(rc, r);
    metric_add(j ? &stat_beats : &stat_beats_failed, 1);
    if (j) {
        int64_t ttl = js_int(j, "ttl_seconds", BEAT_TTL_MS / 1000);
        c->ttl_ms = ttl < BEAT_TTL_MIN_MS / 1000 ? BEAT_TTL_MIN_MS : ttl > BEAT_TTL_MAX_MS / 1000 ? BEAT_TTL_MAX_MS : ttl * 1000;
        c->fails = 0;
        c->refused = false;
        c->ok_at_ms = ev_now_ms(c->c.ev);
        set_reachable(c, true);
        tell_states(c, j);
    } else {
        c->refused = rc == RC_OK && (r->status == 401 || r->status == 403);
        if (c->fails++ == 0)
            log_warn("edge.heartbeat_failed", "server=%s status=%d why=%s", c->c.base_url, rc == RC_OK ? r->status : 0,
                     rc < 0 && e ? e->msg : c->refused ? "the server refuses the edge key"
                     : r->status == 409 ? "another edge, with another edge key, has this id: each needs one of its own" : "the answer is of no use");
        set_reachable(c, false);
    }
    ev_timer_set(c->c.ev, &c->beat_timer, c->beat_again && j ? BEAT_DEBOUNCE_MS : beat_pause(c), on_beat_timer);
    c->beat_again = false;
}

static void beat(struct control *c)
{
    AUTO_JS j = c->c.beat(c->c.ctx);
    AUTO_FREE char *text = js_text(j);
    AUTO_FREE char *path = str_printf("/outwork/v1/edges/%s/heartbeat", c->c.edge_id);
    c->beat = post(c, path, text, on_beat, c);
}

void control_start(struct control *c)
{
    ev_timer_set(c->c.ev, &c->beat_timer, 0, on_beat_timer);
}

void control_changed(struct control *c)
{
    if (c->beat)
        c->beat_again = true;
    else if (!c->fails && c->ok_at_ms && c->beat_timer.due_ms > ev_now_ms(c->c.ev) + BEAT_DEBOUNCE_MS)
        ev_timer_set(c->c.ev, &c->beat_timer, BEAT_DEBOUNCE_MS, on_beat_timer);
}

bool control_reachable(const struct control *c, const char **ret_why)
{
    const char *why = NULL;
    if (c->refused)
        why = "the server refuses the edge key";
    else if (!c->ok_at_ms)
        why = "the server has not answered yet";
    else if (ev_now_ms(c->c.ev) - c->ok_at_ms > c->ttl_ms)
        why = "the server does not answer";
    else if (!c->reachable)
        why = "the last heartbeat failed";
    if (why)
        *ret_why = why;
    return !why;
}

/* ---- start, end ---- */

int control_new(const struct control_conf *conf, struct control **ret, struct err *e)
{
    struct control *c = xcalloc(1, sizeof *c);
    struct http_client_conf hc = { .ca_file = conf->ca_file, .idle_max = POOL_IDLE_MAX, .user_agent = "outwork-edge/" OUTWORK_VERSION };
    c->c = *conf;
    c->ttl_ms = BEAT_TTL_MS;
    list_init(&c->waiting);
    list_init(&c->running);
    list_init(&c->asks);
    int rc = http_client_new(conf->ev, &hc, &c->http, e);
    if (rc < 0) {
        free(c);
        return err_wrap(e, rc, "client of the server");
    }
    *ret = c;
    return RC_OK;
}

void control_free(struct control *c)
{
    if (!c)
        return;
    ev_timer_stop(&c->beat_timer);
    ev_timer_stop(&c->start_auth);
    list_foreach (a, &c->waiting, struct control_auth, node) {
        free(a->body);
        free(a);
    }
    list_foreach (a, &c->running, struct control_auth, node) {
        http_call_cancel(a->call);
        free(a->body);
        free(a);
    }
    list_foreach (a, &c->asks, struct ask, node) {
        http_call_cancel(a->call);
        free(a);
    }
    http_client_free(c->http);
    secret_free(c->c.key);
    free(c);
}
