/* The directory of edges: who is there, and which gateways are connected where. Each edge replaces what it said before; a connector that it no longer
 * names stays with 0 connections for a day, so that an operator sees when it was there last. */
#include "store/sqlite/sqlite.h"

#define CONNECTOR_KEEP_MS INT64_C(86400000)
#define EDGE_COLS "d.id, d.key_id, d.address, d.version, d.draining, d.seen_ms"

static struct store_edge edge_row(struct row *r)
{
    struct store_edge d = { 0 };
    d.id = row_text(r);
    d.key_id = row_text(r);
    d.address = row_text(r);
    d.version = row_text(r);
    d.draining = row_int(r) != 0;
    d.seen_ms = row_int(r);
    return d;
}

static void read_edge(struct row *r, void *ret, const void *ctx)
{
    (void)ctx;
    *(struct store_edge *)ret = edge_row(r);
}

struct seen { const struct store_edge *d; int64_t since_ms; const struct store_connector *c; size_t n; };

static int edge_seen_tx(struct tx *t, void *arg, struct err *e)
{
    const struct seen *s = arg;
    const struct store_edge *d = s->d;
    TRY(db_run(t->db, e, "INSERT INTO edges(id, key_id, address, version, draining, seen_ms) VALUES(?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT(id) DO UPDATE"
               " SET key_id = excluded.key_id, address = excluded.address, version = excluded.version, draining = excluded.draining, seen_ms = excluded.seen_ms"
               " WHERE edges.key_id = ?2 OR edges.seen_ms < ?7 OR NOT EXISTS(SELECT 1 FROM keys k WHERE k.id = edges.key_id AND k.revoked_ms IS NULL)",
               "ssssdii", d->id, d->key_id, d->address, d->version, (int)d->draining, d->seen_ms, s->since_ms));
    if (db_changes(t->db) == 0)
        return err_set(e, RC_CONFLICT, "edge '%s' is there with another edge key", d->id);
    TRY(db_run(t->db, e, "UPDATE connectors SET connections = 0 WHERE edge_id = ? AND connections > 0", "s", d->id));
    /* One of an unknown tunnel is passed over: it must not keep the others from being seen. */
    for (size_t i = 0; i < s->n; i++) {
        const struct store_connector *c = &s->c[i];
        TRY(db_run(t->db, e, "INSERT INTO connectors(edge_id, id, tunnel_id, token_id, version, remote_address, connections, connected_ms, seen_ms)"
                   " SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9 FROM tunnels WHERE id = ?3 ON CONFLICT(edge_id, id, tunnel_id) DO UPDATE SET token_id = excluded.token_id,"
                   " version = excluded.version, remote_address = excluded.remote_address, connections = excluded.connections, connected_ms = excluded.connected_ms,"
                   " seen_ms = excluded.seen_ms", "ssssssiii", d->id, c->id, c->tunnel_id, c->token_id, c->version, c->remote_address, c->connections, c->connected_ms, d->seen_ms));
    }
    TRY(db_run(t->db, e, "DELETE FROM connectors WHERE seen_ms < ?", "i", d->seen_ms - CONNECTOR_KEEP_MS));
    return db_run(t->db, e, "DELETE FROM edges WHERE seen_ms < ?", "i", d->seen_ms - CONNECTOR_KEEP_MS);
}

int sqlite_edge_seen(struct store *st, const struct store_edge *d, int64_t since_ms, const struct store_connector *c, size_t n, struct err *e)
{
    if (!d->id || !d->key_id || !d->address || !d->version)
        return err_set(e, RC_INVALID, "an edge needs id, key, address and version");
    for (size_t i = 0; i < n; i++)
        if (!c[i].id || !c[i].tunnel_id || !c[i].token_id || !c[i].version || !c[i].remote_address)
            return err_set(e, RC_INVALID, "a connector needs id, tunnel, token, version and address");
    struct seen s = { d, since_ms, c, n };
    return writer_run(sqlite_of(st), edge_seen_tx, &s, e);
}

int sqlite_edge_for(struct store *st, struct arena *a, const char *tunnel_id, int64_t since_ms, struct store_edge **ret, size_t *ret_n, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, "SELECT " EDGE_COLS " FROM connectors c JOIN edges d ON d.id = c.edge_id WHERE c.tunnel_id = ?1 AND c.connections > 0 AND d.seen_ms >= ?2"
                 " GROUP BY d.id ORDER BY d.draining, sum(c.connections) DESC, d.id LIMIT ?3", "sid", tunnel_id, since_ms, STORE_LIST_MAX));
    return rows_read(&r, read_edge, NULL, sizeof **ret, ret, ret_n, e);
}

int sqlite_edge_list(struct store *st, struct arena *a, struct store_edge **ret, size_t *ret_n, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, "SELECT " EDGE_COLS " FROM edges d ORDER BY d.id LIMIT ?", "d", STORE_LIST_MAX));
    return rows_read(&r, read_edge, NULL, sizeof **ret, ret, ret_n, e);
}

static void read_connector(struct row *r, void *ret, const void *ctx)
{
    struct store_connector *c = ret;
    (void)ctx;
    *c = (struct store_connector){ 0 };
    c->id = row_text(r);
    c->edge_id = row_text(r);
    c->tunnel_id = row_text(r);
    c->token_id = row_text(r);
    c->version = row_text(r);
    c->remote_address = row_text(r);
    c->connections = row_int(r);
    c->connected_ms = row_int(r);
    c->seen_ms = row_int(r);
}

int sqlite_connector_list(struct store *st, struct arena *a, const char *tunnel_id, struct store_connector **ret, size_t *ret_n, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, "SELECT id, edge_id, tunnel_id, token_id, version, remote_address, connections, connected_ms, seen_ms FROM connectors"
                 " WHERE tunnel_id = ? ORDER BY seen_ms DESC, id, edge_id LIMIT ?", "sd", tunnel_id, STORE_LIST_MAX));
    return rows_read(&r, read_connector, NULL, sizeof **ret, ret, ret_n, e);
}
