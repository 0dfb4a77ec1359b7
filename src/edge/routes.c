/* edge/routes.c - see routes.h */
#include "edge/routes.h"

#include "base/str.h"
#include "edge/host.h"
#include "edge/table.h"

struct routes { struct edge *e; struct table table; struct list lru; size_t n_asking; };

struct entry {
    struct table_node by_domain;
    struct list node, waits;             /* node: newest first */
    struct routes *r;
    bool asking;
    int rc;
    int64_t until_ms;                    /* of ev_now_ms(); 0: nothing is known */
    struct control_route route;
    char domain[HOST_MAX];
};

static void entry_free(struct entry *n)
{
    table_del(&n->r->table, &n->by_domain);
    list_del(&n->node);
    free(n);
}

static void make_room(struct routes *r)
{
    if (r->table.n < ROUTES_MAX)
        return;
    for (struct list *i = r->lru.prev; i != &r->lru; i = i->prev) {
        struct entry *n = list_entry(i, struct entry, node);
        if (!n->asking) {
            entry_free(n);
            return;
        }
    }
}

static void on_answer(void *ctx, int rc, const struct control_route *route)
{
    struct entry *n = ctx;
    struct routes *r = n->r;
    n->asking = false;
    r->n_asking--;
    n->rc = rc;
    n->route = *route;
    bool hit = rc == RC_OK && route->n > 0 && route->state == TUNNEL_ACTIVE;
    n->until_ms = ev_now_ms(r->e->ev) + (hit ? ROUTE_HIT_MS : ROUTE_MISS_MS);
    if (rc != RC_OK && rc != RC_NOT_FOUND)
        n->until_ms = 0;                 /* the next one asks again */
    while (!list_empty(&n->waits)) {
        struct route_wait *w = list_first(&n->waits, struct route_wait, node);
        list_del(&w->node);
        w->done(w, rc, &n->route);
    }
}

int routes_get(struct routes *r, const char *host, struct route_wait *w, const struct control_route **ret)
{
    const char *domain = host_domain(host);
    if (!domain)
        return RC_NOT_FOUND;
    struct table_node *found = table_find(&r->table, domain);
    struct entry *n = found ? container_of(found, struct entry, by_domain) : NULL;
    if (n && !n->asking && n->until_ms > ev_now_ms(r->e->ev)) {
        if (n->rc == RC_OK)
            *ret = &n->route;
        return n->rc;
    }
    if (!n || !n->asking) {
        if (r->n_asking >= ROUTE_ASKING_MAX)
            return RC_LIMIT;
        if (!n) {
            make_room(r);
            n = xcalloc(1, sizeof *n);
            n->r = r;
            list_init(&n->waits);
            list_init(&n->node);
            (void)str_copy(n->domain, sizeof n->domain, domain);
            table_add(&r->table, &n->by_domain, n->domain);
        }
        n->asking = true;
        r->n_asking++;
        control_route(r->e->control, host, on_answer, n);
    }
    list_del(&n->node);
    list_add_head(&r->lru, &n->node);
    list_add_tail(&n->waits, &w->node);
    return RC_AGAIN;
}

void routes_forget(struct routes *r, const char *host)
{
    const char *domain = host_domain(host);
    struct table_node *found = domain ? table_find(&r->table, domain) : NULL;
    if (found)
        container_of(found, struct entry, by_domain)->until_ms = 0;
}

struct routes *routes_new(struct edge *e)
{
    struct routes *r = xcalloc(1, sizeof *r);
    r->e = e;
    table_init(&r->table);
    list_init(&r->lru);
    return r;
}

void routes_free(struct routes *r)
{
    if (!r)
        return;
    list_foreach (n, &r->lru, struct entry, node)
        entry_free(n);
    table_done(&r->table);
    free(r);
}
