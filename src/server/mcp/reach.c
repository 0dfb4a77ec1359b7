/* reach.c - from what the guard says to the ways that libcurl goes. */
#include <string.h>

#include "base/str.h"
#include "server/mcp/private.h"
#include "tunnel/proto.h"

size_t reach_ways(const struct mcp *m, const struct guard_route *r, const char *ca, size_t first_edge, struct fetch_via ways[REACH_WAYS_MAX])
{
    const struct mcp_conf *c = &m->c;
    size_t n = 0;
    if (r->kind == GUARD_TUNNEL) {
        for (; n < c->n_edges && n < REACH_WAYS_MAX; n++)                    /* the one that worked last comes first */
            ways[n] = (struct fetch_via){ .proxy = c->edges[(first_edge + n) % c->n_edges], .proxy_ca_file = c->edge_ca_file, .proxy_cert_file = c->edge_cert_file,
                                          .proxy_key_file = c->edge_key_file, .proxy_note = PROTO_H_ERROR, .ca_pem = ca, .ca_pem_n = strlen(ca) };
        return n;
    }
    for (; n < r->n_addresses && n < REACH_WAYS_MAX; n++)
        ways[n] = (struct fetch_via){ .proxy = "", .address = r->addresses[n] };
    if (n == 0)
        ways[n++] = (struct fetch_via){ .proxy = c->proxy };
    return n;
}

/* ---- for the vaults ---- */
struct reach {
    struct mcp *m;
    struct guard_check *check;
    void (*cb)(void *cb_ctx, int rc, const struct fetch_via *ways, size_t n, const struct err *e);
    void *cb_ctx;
};

static void on_route(void *ctx, int rc, const struct guard_route *r, const struct err *e)
{
    struct reach *x = ctx;
    struct reach copy = *x;
    struct fetch_via ways[REACH_WAYS_MAX];
    struct err own;
    free(x);
    if (rc < 0) {
        copy.cb(copy.cb_ctx, rc, NULL, 0, e);
        return;
    }
    AUTO_FREE char *ca = r->ca_n ? str_ndup(r->ca_pem, r->ca_n) : NULL;
    size_t n = reach_ways(copy.m, r, ca, copy.m->edge, ways);
    if (n == 0)
        copy.cb(copy.cb_ctx, err_set(&own, RC_DENIED, "this server has no edge configured (setting tunnel.edge), so it cannot reach tunnels"), NULL, 0, &own);
    else
        copy.cb(copy.cb_ctx, RC_OK, ways, n, NULL);
}

static void *reach_start(void *ctx, const char *url, void (*cb)(void *cb_ctx, int rc, const struct fetch_via *ways, size_t n, const struct err *e), void *cb_ctx)
{
    struct reach *x = xcalloc(1, sizeof *x);
    *x = (struct reach){ .m = ctx, .cb = cb, .cb_ctx = cb_ctx };
    x->check = guard_start(x->m->guard, url, on_route, x);
    return x;
}

static void reach_cancel(void *check)
{
    struct reach *x = check;
    if (!x)
        return;
    guard_cancel(x->check);
    free(x);
}

struct vault_reach mcp_reach(struct mcp *m) { return (struct vault_reach){ .start = reach_start, .cancel = reach_cancel, .ctx = m }; }
struct fetch *mcp_fetch(struct mcp *m) { return m->fetch; }
