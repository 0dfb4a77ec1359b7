/* The guard's look-ups: names and tunnels, on threads of its own, as a slow name server must not hold up the API. */
#include "server/mcp/guard.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <strings.h>

#include "base/buf.h"
#include "base/list.h"
#include "base/str.h"

#define QUEUE_MAX 1000
#define CERTIFICATES_MAX 16
#define CA_TEXT_MAX (64 * KIB)

struct guard { struct guard_conf c; struct jobs *jobs; struct list checks; };
struct guard_check {
    struct guard *g;
    struct list node;
    bool cancelled;                      /* ev thread; freed when the job has reported */
    void (*cb)(void *ctx, int rc, const struct guard_route *r, const struct err *e);
    void *ctx;
    char *url;
    int rc;                              /* the job's, until it has reported */
    struct guard_route route;
    struct buf ca;
    struct err e;
};

static void check_free(struct guard_check *c)
{
    list_del(&c->node);
    buf_done(&c->ca);
    free(c->url);
    free(c);
}

static void check_done(void *arg)
{
    struct guard_check *c = arg;
    if (!c->cancelled) {
        c->cancelled = true;             /* a guard_cancel() in the callback has nothing left to do */
        c->cb(c->ctx, c->rc, c->rc == RC_OK ? &c->route : NULL, &c->e);
    }
    check_free(c);
}

/* ---- on a job thread ---- */
static int look_tunnel(struct guard_check *c, const struct http_url *u, const char *domain)
{
    const struct guard_conf *gc = &c->g->c;
    AUTO_PTR(arena) a = arena_new(16 * KIB, MIB);
    struct store_tunnel t;
    struct store_tunnel_certificate *certs = NULL;
    size_t n = 0, active = 0;
    if (!a)
        return err_set(&c->e, RC_NOMEM, "tunnel of %s", u->host);
    if (!gc->store->ops->tunnel || !gc->store->ops->tunnel->find_domain)
        return err_set(&c->e, RC_UNSUPPORTED, "this store keeps no tunnels");
    int rc = gc->store->ops->tunnel->find_domain(gc->store, a, domain, &t, &c->e);
    /* A tunnel of somebody else is not told apart from none. */
    if (rc == RC_NOT_FOUND || (rc == RC_OK && !str_eq(t.workspace_id, gc->workspace_id)))
        return err_set(&c->e, RC_DENIED, "no tunnel of this workspace has the domain '%s'", domain);
    TRY(rc);
    if (t.archived_ms >= 0)
        return err_set(&c->e, RC_DENIED, "the tunnel of '%s' is archived", domain);
    struct store_page p = STORE_PAGE_INIT;
    p.limit = CERTIFICATES_MAX;
    TRY(gc->store->ops->tunnel->certificate_list(gc->store, a, t.id, &p, &certs, &n, &c->e));
    for (size_t i = 0; i < n; i++) {
        if (certs[i].archived_ms >= 0)
            continue;
        active++;
        (void)buf_puts(&c->ca, certs[i].pem);
        (void)buf_puts(&c->ca, "\n");
    }
    if (active == 0)
        return err_set(&c->e, RC_DENIED, "the tunnel of '%s' has no certificate authority registered, so nothing is sent through it", domain);
    if (!buf_ok(&c->ca))
        return err_set(&c->e, RC_LIMIT, "the authorities of the tunnel of '%s' are too large", domain);
    c->route.ca_pem = buf_data(&c->ca);
    c->route.ca_n = buf_len(&c->ca);
    return RC_OK;
}

static int look_name(struct guard_check *c, const struct http_url *u)
{
    struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG }, *list = NULL;
    struct in6_addr literal;
    const char *why = "unknown";
    if (inet_pton(AF_INET, u->host, &literal) == 1 || inet_pton(AF_INET6, u->host, &literal) == 1)
        hints.ai_flags = AI_NUMERICHOST;
    int rc = getaddrinfo(u->host, NULL, &hints, &list);
    if (rc != 0)
        return err_set(&c->e, rc == EAI_AGAIN || rc == EAI_SYSTEM ? RC_IO : RC_NOT_FOUND, "the host '%s' cannot be looked up: %s", u->host, gai_strerror(rc));
    for (struct addrinfo *i = list; i && c->route.n_addresses < GUARD_ADDRESSES_MAX; i = i->ai_next) {
        char *text = c->route.addresses[c->route.n_addresses];
        if (c->route.kind == GUARD_PUBLIC && !guard_address_public(i->ai_addr, &why))
            continue;
        if (getnameinfo(i->ai_addr, i->ai_addrlen, text, GUARD_ADDRESS_MAX, NULL, 0, NI_NUMERICHOST) == 0 && !strchr(text, '%'))
            c->route.n_addresses++;
    }
    freeaddrinfo(list);
    if (c->route.n_addresses)
        return RC_OK;
    return err_set(&c->e, RC_DENIED, "the host '%s' has no public address: what it resolves to is %s", u->host, why);
}

static int look(struct guard_check *c)
{
    struct http_url u;
    const char *domain = NULL, *why;
    TRY(guard_classify(&c->g->c.rules, c->url, &u, &c->route.kind, &domain, &c->e));
    if (c->route.kind == GUARD_TUNNEL)
        return look_tunnel(c, &u, domain);
    if (c->route.kind == GUARD_PUBLIC && c->g->c.proxied) {
        /* The proxy looks names up and dials; an address that stands in the URL is still looked at. */
        struct sockaddr_in in = { .sin_family = AF_INET };
        struct sockaddr_in6 in6 = { .sin6_family = AF_INET6 };
        if ((inet_pton(AF_INET, u.host, &in.sin_addr) == 1 && !guard_address_public((struct sockaddr *)&in, &why)) ||
            (inet_pton(AF_INET6, u.host, &in6.sin6_addr) == 1 && !guard_address_public((struct sockaddr *)&in6, &why)))
            return err_set(&c->e, RC_DENIED, "the address '%s' is not public: it is %s", u.host, why);
        return RC_OK;
    }
    return look_name(c, &u);
}

static void check_job(void *arg)
{
    struct guard_check *c = arg;
    c->rc = look(c);
    ev_post(c->g->c.ev, check_done, c);
}

/* ---- ev thread ---- */
int guard_new(const struct guard_conf *c, struct guard **ret, struct err *e)
{
    struct guard *g = xcalloc(1, sizeof *g);
    g->c = *c;
    list_init(&g->checks);
    int rc = jobs_new(GUARD_THREADS, QUEUE_MAX, &g->jobs, e);
    if (rc < 0) {
        free(g);
        return rc;
    }
    *ret = g;
    return RC_OK;
}

void guard_free(struct guard *g)
{
    if (!g)
        return;
    jobs_free(g->jobs);
    list_foreach(c, &g->checks, struct guard_check, node) {          /* each has reported; its post, should it still run, frees it */
        c->cancelled = true;
        list_del(&c->node);
    }
    free(g);
}

struct guard_check *guard_start(struct guard *g, const char *url, void (*cb)(void *ctx, int rc, const struct guard_route *r, const struct err *e), void *ctx)
{
    struct guard_check *c = xcalloc(1, sizeof *c);
    c->g = g;
    c->cb = cb;
    c->ctx = ctx;
    c->url = str_dup(url);
    buf_init(&c->ca, CA_TEXT_MAX);
    list_add_tail(&g->checks, &c->node);
    if (jobs_add(g->jobs, check_job, c) < 0) {
        c->rc = err_set(&c->e, RC_LIMIT, "too many MCP servers are being looked up");
        ev_post(g->c.ev, check_done, c);
    }
    return c;
}

void guard_cancel(struct guard_check *c)
{
    if (c)
        c->cancelled = true;
}
