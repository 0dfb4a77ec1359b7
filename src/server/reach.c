#include "server/reach.h"

#include "base/str.h"
#include "server/mcp/guard.h"

#define WAYS_MAX 8

struct reach { struct mcp_conf c; struct guard *guard; };
struct reach_check {
    struct reach *r;
    struct guard_check *guard;
    void (*cb)(void *ctx, int rc, const struct fetch_via *ways, size_t n, const struct err *e);
    void *ctx;
};

/* A tunnel: through each edge in turn, trusting its registered authorities alone. A public host: its checked addresses in turn, or whatever the proxy finds. */
static size_t make_ways(const struct reach *r, const struct guard_route *g, struct fetch_via ways[WAYS_MAX])
{
    const struct mcp_conf *c = &r->c;
    size_t n = 0;
    if (g->kind == GUARD_TUNNEL) {
        for (; n < c->n_edges && n < WAYS_MAX; n++)
            ways[n] = (struct fetch_via){ .proxy = c->edges[n], .proxy_ca_file = c->edge_ca_file, .proxy_cert_file = c->edge_cert_file,
                                          .proxy_key_file = c->edge_key_file, .ca_pem = g->ca_pem, .ca_pem_n = g->ca_n };
        return n;
    }
    for (; n < g->n_addresses && n < WAYS_MAX; n++)
        ways[n] = (struct fetch_via){ .proxy = "", .address = g->addresses[n] };
    if (n == 0)
        ways[n++] = (struct fetch_via){ .proxy = c->proxy };
    return n;
}

static void on_route(void *ctx, int rc, const struct guard_route *g, const struct err *e)
{
    struct reach_check *x = ctx;
    struct fetch_via ways[WAYS_MAX];
    struct err none = { 0 };
    size_t n = rc == RC_OK ? make_ways(x->r, g, ways) : 0;
    if (rc == RC_OK && n == 0) {
        rc = err_set(&none, RC_DENIED, "this server has no edge configured (setting tunnel.edge), so it cannot reach tunnels");
        e = &none;
    }
    x->cb(x->ctx, rc, ways, n, e);
    free(x);
}

static void *start(void *ctx, const char *url, void (*cb)(void *cb_ctx, int rc, const struct fetch_via *ways, size_t n, const struct err *e), void *cb_ctx)
{
    struct reach_check *x = xcalloc(1, sizeof *x);
    x->r = ctx;
    x->cb = cb;
    x->ctx = cb_ctx;
    x->guard = guard_start(x->r->guard, url, on_route, x);
    return x;
}

static void cancel(void *check)
{
    struct reach_check *x = check;
    guard_cancel(x->guard);
    free(x);
}

int reach_new(const struct mcp_conf *c, struct reach **ret, struct err *e)
{
    struct reach *r = xcalloc(1, sizeof *r);
    struct guard_conf gc = {
        .ev = c->ev, .store = c->store, .workspace_id = c->workspace_id, .proxied = c->proxy && c->proxy[0],
        .rules = { .tunnel_domain = c->tunnel_domain, .allow = c->allow, .n_allow = c->n_allow, .private_ok = c->private_ok, .n_private_ok = c->n_private_ok },
    };
    r->c = *c;
    int rc = guard_new(&gc, &r->guard, e);
    if (rc < 0) {
        free(r);
        return rc;
    }
    *ret = r;
    return RC_OK;
}

void reach_free(struct reach *r)
{
    if (!r)
        return;
    guard_free(r->guard);
    free(r);
}

struct vault_reach reach_of(struct reach *r) { return (struct vault_reach){ .start = start, .cancel = cancel, .ctx = r }; }
