/* gateway/upstream_pool.c - the servers of a route: making them from URLs, choosing one, and their unused connections. */
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "gateway/upstream_internal.h"

/* ---- making ---- */

static int bad_url(const char *url, const char *why, struct err *e)
{
    return err_set(e, RC_INVALID, "invalid upstream (must be scheme://host:port): '%.120s' %s", url, why);
}

static int parse_target(struct target *t, const char *url, struct err *e)
{
    struct http_url u;
    if (str_prefix(url, "unix:")) {
        struct net_addr a;
        const char *path = str_prefix(url, "unix://") ? url + 7 : url + 5;
        (void)snprintf(t->host, sizeof t->host, "unix:%s", path);
        (void)str_copy(t->authority, sizeof t->authority, "localhost");
        return *path != '/' ? bad_url(url, "has no absolute path", e) : net_addr_parse(t->host, &a, e);
    }
    size_t scheme = str_prefix(url, "http://") ? 7 : str_prefix(url, "https://") ? 8 : 0;
    if (!scheme)
        return bad_url(url, "is neither http nor https (nor unix:/path)", e);
    if (strpbrk(url + scheme, "/?#@"))
        return bad_url(url, "has a path; a path belongs into the client's URL", e);
    const char *colon = strrchr(url, ':'), *bracket = strchr(url, ']');
    if (colon < url + scheme || (bracket && colon < bracket))
        return bad_url(url, "has no port", e);
    if (http_url_parse(url, false, &u, e) < 0) {
        char said[ERR_MSG_MAX];
        (void)str_copy(said, sizeof said, e ? e->msg : "");
        return bad_url(url, said, e);
    }
    t->tls = u.tls;
    t->port = u.port;
    (void)str_copy(t->host, sizeof t->host, u.host);
    http_url_authority(&u, true, t->authority);
    return RC_OK;
}

int uhttp_new(struct env *env, const char *route, const char *const *urls, size_t n, bool host_upstream, const struct header_rules *rules,
              struct uhttp **ret, struct err *e)
{
    struct uhttp *u = xcalloc(1, sizeof *u);
    u->env = env_ref(env);
    u->route = str_dup(route);
    u->host_upstream = host_upstream;
    u->rules = rules;
    u->target = xcalloc(n, sizeof *u->target);
    int rc = RC_OK;
    for (size_t i = 0; i < n && rc == RC_OK; i++) {
        struct target *t = &u->target[u->n++];
        t->u = u;
        t->shown = str_dup(urls[i]);
        list_init(&t->idle);
        rc = parse_target(t, urls[i], e);
        if (rc == RC_OK && t->tls && !env->tls)
            rc = err_set(e, RC_INVALID, "'%.120s' is https, but nothing says whom to trust: set upstream.tls.ca_file or upstream.tls.include_system_cas", urls[i]);
    }
    if (rc < 0) {
        uhttp_free(u);
        return rc;
    }
    if (n > 1)
        u->sticky = sticky_new();
    *ret = u;
    return RC_OK;
}

void uhttp_free(void *p)
{
    struct uhttp *u = p;
    if (!u)
        return;
    ev_timer_stop(&u->sweep);
    for (size_t i = 0; i < u->n; i++) {
        list_foreach(c, &u->target[i].idle, struct uconn, link)
            uconn_free(c);
        free(u->target[i].shown);
    }
    calls_free(u);
    sticky_free(u->sticky);
    free(u->target);
    free(u->route);
    env_unref(u->env);
    free(u);
}

/* ---- choosing ---- */

static bool down(const struct target *t) { return t->down_until_ms > ev_now_ms(t->u->env->ev); }

/* Where the session lives; else the next one that is up; else, when all are down, the one that is to come back first. */
struct target *upool_pick(struct uhttp *u, const struct slice *session, const struct target *not_this)
{
    size_t i = 0;
    if (u->sticky && session && sticky_get(u->sticky, *session, &i) && &u->target[i] != not_this)
        return &u->target[i];
    struct target *best = NULL;
    for (size_t k = 0; k < u->n; k++) {
        struct target *t = &u->target[(u->next + k) % u->n];
        if (t == not_this && u->n > 1)
            continue;
        if (!down(t)) {
            best = t;
            break;
        }
        if (!best || t->down_until_ms < best->down_until_ms)
            best = t;
    }
    u->next = ((size_t)(best - u->target) + 1) % u->n;
    return best;
}

void upool_good(struct target *t)
{
    t->failures = 0;
    t->down_until_ms = 0;
}

void upool_bad(struct target *t)
{
    int64_t ms = UPSTREAM_DOWN_MIN_MS << (t->failures < 5 ? t->failures : 5);
    t->failures++;
    t->down_until_ms = ev_now_ms(t->u->env->ev) + (ms < UPSTREAM_DOWN_MAX_MS ? ms : UPSTREAM_DOWN_MAX_MS);
}

/* ---- connections ---- */

static void on_sweep(struct ev_timer *timer)
{
    struct uhttp *u = container_of(timer, struct uhttp, sweep);
    int64_t now = ev_now_ms(u->env->ev), next = -1;
    for (size_t i = 0; i < u->n; i++)
        list_foreach(c, &u->target[i].idle, struct uconn, link) {
            int64_t left = c->idle_until_ms - now;
            if (left <= 0) {
                u->target[i].n_idle--;
                uconn_free(c);
            } else if (next < 0 || left < next) {
                next = left;
            }
        }
    if (next >= 0)
        ev_timer_set(u->env->ev, &u->sweep, next, on_sweep);
}

/* Looks before it hands one out: bytes that lie there must never be taken for the answer to the next request, and a server that has closed is not asked. */
struct uconn *upool_take(struct target *t)
{
    int64_t now = ev_now_ms(t->u->env->ev);
    while (!list_empty(&t->idle)) {
        struct uconn *c = list_first(&t->idle, struct uconn, link);
        char tmp[64];
        size_t n = 0;
        list_del(&c->link);
        t->n_idle--;
        if (c->idle_until_ms > now && uconn_read(c, tmp, sizeof tmp, &n, NULL) == RC_AGAIN)
            return c;
        uconn_free(c);
    }
    return NULL;
}

void upool_keep(struct uconn *c, int64_t at_most_ms)
{
    struct target *t = c->t;
    struct env *v = t->u->env;
    int64_t ms = at_most_ms >= 0 && at_most_ms < v->idle_ms ? at_most_ms : v->idle_ms;
    c->call = NULL;
    c->kept = true;
    if (ms <= 0 || v->idle_max == 0) {
        uconn_free(c);
        return;
    }
    if (t->n_idle >= v->idle_max) {
        uconn_free(list_entry(t->idle.prev, struct uconn, link));
        t->n_idle--;
    }
    c->idle_until_ms = ev_now_ms(v->ev) + ms;
    uconn_want(c, true, false);
    if (!c->watched) {                   /* no memory to watch it */
        uconn_free(c);
        return;
    }
    list_add_head(&t->idle, &c->link);
    t->n_idle++;
    if (!ev_timer_armed(&t->u->sweep))
        ev_timer_set(v->ev, &t->u->sweep, ms, on_sweep);
}
