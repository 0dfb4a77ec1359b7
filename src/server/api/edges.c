/* server/api/edges.c - the control API of edges (tunnel/proto.h): may this token connect, where is this host served, who is connected where. Nothing is
 * cached here or promised to an edge for longer than one answer, so that a revoked token or a removed certificate acts on the next question. */
#include <string.h>

#include "crypto/crypto.h"
#include "http/parse.h"
#include "server/api/call.h"

#define CONNECTORS_MAX 10000             /* of one edge, in one heartbeat */
#define CONNECTIONS_MAX 1000000
#define EDGE_ID_MAX 47
#define ADDRESS_MAX 261                  /* host name, colon, port */
#define VERSION_MAX 64
#define HOST_MAX 253                     /* RFC 1035 */
#define QUERY_VALUE_MAX 300

/* ---- texts from an edge ---- */
static bool is_id(const char *s, size_t max)
{
    size_t n = s ? strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.") : 0;
    return n > 0 && n <= max && s[n] == '\0';
}

static bool is_printable(const char *s, size_t max)
{
    size_t n = 0;
    if (!s)
        return false;
    for (; s[n]; n++)
        if ((unsigned char)s[n] < 0x21 || (unsigned char)s[n] > 0x7e)
            return false;
    return n > 0 && n <= max;
}

static int hex_decode(const char *s, uint8_t out[SHA256_BYTES])
{
    if (!s || strlen(s) != 2 * SHA256_BYTES || strspn(s, "0123456789abcdefABCDEF") != 2 * SHA256_BYTES)
        return RC_INVALID;
    for (size_t i = 0; i < 2 * SHA256_BYTES; i++) {
        unsigned v = (unsigned)(s[i] <= '9' ? s[i] - '0' : (s[i] | 0x20) - 'a' + 10);
        out[i / 2] = (uint8_t)(i % 2 ? out[i / 2] | v : v << 4);
    }
    return RC_OK;
}

/* One query parameter; NULL: absent. These paths are not in the API document, so no schema reads their queries. */
static const char *query_value(struct call *c, const char *name)
{
    struct slice left = http_req_query(c->req);
    size_t name_n = strlen(name);
    while (left.n) {
        const char *amp = memchr(left.p, '&', left.n);
        size_t n = amp ? (size_t)(amp - left.p) : left.n;
        if (n > name_n && memcmp(left.p, name, name_n) == 0 && left.p[name_n] == '=') {
            char value[QUERY_VALUE_MAX];
            if (http_pct_decode((struct slice){ left.p + name_n + 1, n - name_n - 1 }, true, value, sizeof value) != RC_OK)
                return NULL;
            return arena_strdup(c->arena, value);
        }
        left.p += n + (amp != NULL);
        left.n -= n + (amp != NULL);
    }
    return NULL;
}

static int64_t since_ms(const struct call *c)
{
    return c->now_ms - EDGE_TTL_MS;
}

/* ---- authenticate ---- */
/* The holder of a token that was good until its tunnel was archived is told so: its gateway need not try again. */
int edges_authenticate(struct call *c)
{
    const char *id = js_str(c->body, "tunnel_id");
    uint8_t hash[SHA256_BYTES];
    struct store_tunnel t;
    struct store_tunnel_token k = { .id = "" };
    if (!is_id(id, ID_MAX) || hex_decode(js_str(c->body, "token_sha256"), hash) != RC_OK)
        return call_fail(c, RC_INVALID, "body: expected tunnel_id and token_sha256 (64 hex digits)");
    int rc = c->store->ops->tunnel->token_find(c->store, c->arena, id, hash, c->now_ms, &k, &c->e);
    if (rc == RC_NOT_FOUND)
        return call_fail_code(c, RC_UNAUTHORIZED, "token_refused", "The tunnel token is not valid: it was rotated, or belongs to no tunnel of this server.");
    if (rc < 0 && rc != RC_INVALID)
        return rc;
    TRY(c->store->ops->tunnel->get(c->store, c->arena, id, &t, &c->e));
    json_t *j = json_object();
    js_set_str(j, "tunnel_id", t.id);
    js_set_str(j, "domain", t.domain);
    js_set_str(j, "token_id", k.id);
    js_set_str(j, "workspace_id", t.workspace_id);
    js_set_str(j, "state", tunnel_state(&t));
    return call_json(c, j);
}

/* ---- heartbeat ---- */
static int take_connector(struct call *c, const json_t *j, size_t i, struct store_connector *ret)
{
    struct store_connector k = {
        .id = js_str(j, "id"), .tunnel_id = js_str(j, "tunnel_id"), .token_id = js_str(j, "token_id"), .version = js_str(j, "version"),
        .remote_address = js_str(j, "remote_address"), .connections = js_int(j, "connections", -1), .connected_ms = c->now_ms, .seen_ms = c->now_ms,
    };
    const char *at = js_str(j, "connected_at");
    if (!is_printable(k.id, ADDRESS_MAX) || !is_id(k.tunnel_id, ID_MAX) || !is_id(k.token_id, ID_MAX))
        return call_fail(c, RC_INVALID, "connectors.%zu: expected id, tunnel_id and token_id", i);
    k.version = is_printable(k.version, VERSION_MAX) ? k.version : "unknown";
    k.remote_address = is_printable(k.remote_address, ADDRESS_MAX) ? k.remote_address : "unknown";
    if (k.connections < 0 || k.connections > CONNECTIONS_MAX)
        return call_fail(c, RC_INVALID, "connectors.%zu.connections: expected a number from 0 to %d", i, CONNECTIONS_MAX);
    if (at && rfc3339_parse(at, &k.connected_ms) != RC_OK)
        return call_fail(c, RC_INVALID, "connectors.%zu.connected_at: expected an RFC 3339 time", i);
    *ret = k;
    return RC_OK;
}

/* The state of each tunnel that the edge named; one that does not exist is as good as archived: its connections are to be cut. */
static int put_states(struct call *c, const struct store_connector *k, size_t n, json_t *list)
{
    AUTO_JS done = json_object();
    for (size_t i = 0; i < n; i++) {
        struct store_tunnel t;
        if (json_object_get(done, k[i].tunnel_id))
            continue;
        int rc = c->store->ops->tunnel->get(c->store, c->arena, k[i].tunnel_id, &t, &c->e);
        if (rc < 0 && rc != RC_NOT_FOUND)
            return rc;
        json_t *row = json_object();
        js_set_str(row, "id", k[i].tunnel_id);
        js_set_str(row, "state", rc == RC_OK ? tunnel_state(&t) : "archived");
        js_push(list, row);
        js_set_bool(done, k[i].tunnel_id, true);
    }
    return RC_OK;
}

int edges_heartbeat(struct call *c)
{
    struct store_edge d = { .id = c->param[0], .key_id = c->who.key_id, .address = js_str(c->body, "address"), .version = js_str(c->body, "version"), .draining = js_bool(c->body, "draining", false),
                            .seen_ms = c->now_ms };
    json_t *list = json_object_get(c->body, "connectors");
    size_t n = json_array_size(list);
    if (!is_id(d.id, EDGE_ID_MAX))
        return call_fail(c, RC_INVALID, "edge_id: expected 1 to %d letters, digits, '_', '-' or '.'", EDGE_ID_MAX);
    if (!is_printable(d.address, ADDRESS_MAX) || !strrchr(d.address, ':'))
        return call_fail(c, RC_INVALID, "address: expected host:port of the listener for other edges");
    if (!is_printable(d.version, VERSION_MAX) || (list && !json_is_array(list)) || n > CONNECTORS_MAX)
        return call_fail(c, RC_INVALID, "body: expected version and at most %d connectors", CONNECTORS_MAX);
    struct store_connector *k = arena_alloc(c->arena, (n ? n : 1) * sizeof *k);
    if (!k)
        return call_fail(c, RC_NOMEM, "out of memory");
    for (size_t i = 0; i < n; i++)
        TRY(take_connector(c, json_array_get(list, i), i, &k[i]));
    TRY(c->store->ops->tunnel->edge_seen(c->store, &d, since_ms(c), k, n, &c->e));
    AUTO_JS states = json_array();
    TRY(put_states(c, k, n, states));
    json_t *j = json_object();
    js_set_int(j, "ttl_seconds", EDGE_TTL_MS / 1000);
    js_set(j, "tunnels", TAKE(states));
    return call_json(c, j);
}

/* ---- route ---- */
/* "Route.Abc.tunnel.example.com:443" without port and final dot, in lower case. RC_INVALID: no host name. */
static int take_host(const char *text, char out[HOST_MAX + 1])
{
    size_t n = text ? strcspn(text, ":") : 0;
    if (n && text[n - 1] == '.')
        n--;
    if (n == 0 || n > HOST_MAX)
        return RC_INVALID;
    for (size_t i = 0; i < n; i++) {
        char ch = text[i];
        out[i] = ch >= 'A' && ch <= 'Z' ? (char)(ch | 0x20) : ch;
    }
    out[n] = '\0';
    return strspn(out, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == n ? RC_OK : RC_INVALID;
}

/* The tunnel whose domain is the host itself or ends it at a dot. Found by name, not by the present tunnel.domain: older tunnels keep theirs. */
static int tunnel_of_host(struct call *c, const char *host, struct store_tunnel *ret)
{
    int rc = RC_NOT_FOUND;
    for (const char *p = host; rc == RC_NOT_FOUND && p && strchr(p, '.'); p = strchr(p, '.') ? strchr(p, '.') + 1 : NULL)
        rc = c->store->ops->tunnel->find_domain(c->store, c->arena, p, ret, &c->e);
    return rc == RC_NOT_FOUND ? call_fail(c, rc, "No tunnel serves the host '%.120s'.", host) : rc;
}

int edges_route(struct call *c)
{
    char host[HOST_MAX + 1];
    const char *from = query_value(c, "from");
    struct store_tunnel t;
    struct store_edge *d = NULL;
    size_t n = 0;
    if (take_host(query_value(c, "host"), host) != RC_OK)
        return call_fail(c, RC_INVALID, "host: expected a host name");
    TRY(tunnel_of_host(c, host, &t));
    if (t.archived_ms < 0)
        TRY(c->store->ops->tunnel->edge_for(c->store, c->arena, t.id, since_ms(c), &d, &n, &c->e));
    json_t *j = json_object(), *edges = json_array();
    js_set_str(j, "tunnel_id", t.id);
    js_set_str(j, "domain", t.domain);
    js_set_str(j, "state", tunnel_state(&t));
    for (size_t i = 0; i < n; i++) {
        if (str_eq(d[i].id, from))       /* it knows its own connections better */
            continue;
        json_t *row = json_object();
        js_set_str(row, "id", d[i].id);
        js_set_str(row, "address", d[i].address);
        js_push(edges, row);
    }
    js_set(j, "edges", edges);
    return call_json(c, j);
}

/* ---- for operators ---- */
int edges_list(struct call *c)
{
    struct store_edge *d;
    size_t n;
    TRY(c->store->ops->tunnel->edge_list(c->store, c->arena, &d, &n, &c->e));
    json_t *j = json_object(), *data = json_array();
    for (size_t i = 0; i < n; i++) {
        json_t *row = json_object();
        js_set_str(row, "id", d[i].id);
        js_set_str(row, "type", "edge");
        js_set_str(row, "address", d[i].address);
        js_set_str(row, "version", d[i].version);
        js_set_bool(row, "draining", d[i].draining);
        js_set_bool(row, "alive", d[i].seen_ms >= since_ms(c));
        js_set_time(row, "last_seen_at", d[i].seen_ms);
        js_push(data, row);
    }
    js_set(j, "data", data);
    js_set(j, "next_page", json_null());
    return call_json(c, j);
}
