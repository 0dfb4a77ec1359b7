/* server/api/tunnel_status.c - what the tunnels API of the hosted service cannot say: whether a tunnel is connected, where from, and when its
 * certificates end. */
#include <string.h>

#include "server/api/call.h"

#define LIMIT_DEFAULT 20

static bool is_connected(const struct store_connector *k, int64_t now_ms)
{
    return k->connections > 0 && k->seen_ms >= now_ms - EDGE_TTL_MS;
}

struct status { int64_t connectors, connections, seen_ms, expires_ms; };

static int read_status(struct call *c, const struct store_tunnel *t, struct status *ret)
{
    struct store_connector *k;
    struct store_tunnel_certificate *crt;
    size_t n;
    struct store_page p = STORE_PAGE_INIT;
    struct status s = { .seen_ms = -1, .expires_ms = -1 };
    p.limit = STORE_LIST_MAX;
    TRY(c->store->ops->tunnel->connector_list(c->store, c->arena, t->id, &k, &n, &c->e));
    for (size_t i = 0; i < n; i++) {
        s.seen_ms = k[i].seen_ms > s.seen_ms ? k[i].seen_ms : s.seen_ms;
        if (is_connected(&k[i], c->now_ms)) {
            s.connectors++;
            s.connections += k[i].connections;
        }
    }
    TRY(c->store->ops->tunnel->certificate_list(c->store, c->arena, t->id, &p, &crt, &n, &c->e));
    for (size_t i = 0; i < n; i++)
        if (s.expires_ms < 0 || crt[i].expires_ms < s.expires_ms)
            s.expires_ms = crt[i].expires_ms;
    *ret = s;
    return RC_OK;
}

static int put_status(struct call *c, json_t *into, const struct store_tunnel *t)
{
    struct status s;
    TRY(read_status(c, t, &s));
    js_set_str(into, "id", t->id);
    js_set_str(into, "type", "tunnel_status");
    js_set_str(into, "display_name", t->display_name);
    js_set_str(into, "domain", t->domain);
    js_set_str(into, "workspace_id", t->workspace_id);
    js_set_str(into, "state", tunnel_state(t));
    js_set_int(into, "active_certificates", t->active_certificates);
    js_set_time(into, "certificates_expire_at", s.expires_ms);
    js_set_int(into, "connectors", s.connectors);
    js_set_int(into, "connections", s.connections);
    js_set_time(into, "last_seen_at", s.seen_ms);
    js_set_time(into, "created_at", t->created_ms);
    js_set_time(into, "archived_at", t->archived_ms);
    return RC_OK;
}

int tunnel_status_list(struct call *c)
{
    struct page p;
    struct store_tunnel *rows;
    size_t n, first;
    TRY(page_read(c, CURSOR_TUNNELS, "status", false, LIMIT_DEFAULT, &p));
    TRY(c->store->ops->tunnel->list(c->store, c->arena, &p.st, &rows, &n, &c->e));
    bool more = page_cut(&p, n, &first, &n);
    buf_puts(&c->out, "{\"data\":[");
    for (size_t i = 0; i < n; i++) {
        AUTO_JS row = json_object();
        TRY(put_status(c, row, &rows[first + i]));
        if (i)
            buf_putc(&c->out, ',');
        TRY(js_write(row, &c->out));
    }
    struct page_key last = n ? (struct page_key){ rows[first + n - 1].created_ms, rows[first + n - 1].id } : (struct page_key){ 0, NULL };
    page_end(&p, &c->out, more, false, last, last);
    return RC_OK;
}

int tunnel_status_get(struct call *c)
{
    struct store_tunnel t;
    TRY(call_tunnel(c, &t));
    json_t *row = json_object();
    int rc = put_status(c, row, &t);
    if (rc < 0) {
        json_decref(row);
        return rc;
    }
    return call_json(c, row);
}

int tunnel_connectors(struct call *c)
{
    struct store_tunnel t;
    struct store_connector *k;
    size_t n;
    TRY(call_tunnel(c, &t));
    TRY(c->store->ops->tunnel->connector_list(c->store, c->arena, t.id, &k, &n, &c->e));
    json_t *root = json_object(), *data = json_array();
    for (size_t i = 0; i < n; i++) {
        json_t *row = json_object();
        js_set_str(row, "id", k[i].id);
        js_set_str(row, "type", "tunnel_connector");
        js_set_str(row, "tunnel_id", k[i].tunnel_id);
        js_set_str(row, "edge_id", k[i].edge_id);
        js_set_str(row, "token_id", k[i].token_id);
        js_set_str(row, "version", k[i].version);
        js_set_str(row, "remote_address", k[i].remote_address);
        js_set_bool(row, "connected", is_connected(&k[i], c->now_ms));
        js_set_int(row, "connections", is_connected(&k[i], c->now_ms) ? k[i].connections : 0);
        js_set_time(row, "connected_at", k[i].connected_ms);
        js_set_time(row, "last_seen_at", k[i].seen_ms);
        js_push(data, row);
    }
    js_set(root, "data", data);
    js_set(root, "next_page", json_null());
    return call_json(c, root);
}

/* Read at scrape time: nothing to keep in step with the store. Ids of ours need no escape in a label. */
int tunnels_metrics(struct call *c, struct buf *out)
{
    struct store_page p = STORE_PAGE_INIT;
    struct store_tunnel *t;
    struct store_tunnel_certificate *k;
    size_t n, certs;
    p.limit = STORE_LIST_MAX;
    TRY(c->store->ops->tunnel->list(c->store, c->arena, &p, &t, &n, &c->e));
    TRY(c->store->ops->tunnel->certificates_expiring(c->store, c->arena, INT64_MAX, &k, &certs, &c->e));
    if (n)
        buf_puts(out, "# HELP outwork_tunnel_connectors Gateways that are connected to the tunnel now\n# TYPE outwork_tunnel_connectors gauge\n");
    for (size_t i = 0; i < n; i++) {
        struct status s;
        TRY(read_status(c, &t[i], &s));
        buf_printf(out, "outwork_tunnel_connectors{tunnel_id=\"%s\"} %lld\n", t[i].id, (long long)s.connectors);
    }
    if (certs)
        buf_puts(out, "# HELP outwork_tunnel_certificate_expires_timestamp_seconds When an active certificate of a tunnel ends\n"
                      "# TYPE outwork_tunnel_certificate_expires_timestamp_seconds gauge\n");
    for (size_t i = 0; i < certs; i++)
        buf_printf(out, "outwork_tunnel_certificate_expires_timestamp_seconds{tunnel_id=\"%s\",certificate_id=\"%s\"} %lld\n", k[i].tunnel_id, k[i].id,
                   (long long)(k[i].expires_ms / 1000));
    return buf_ok(out) ? RC_OK : call_fail(c, RC_LIMIT, "the answer is too large");
}
