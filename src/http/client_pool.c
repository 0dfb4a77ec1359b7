/* http/client_pool.c - see client_pool.h; also makes and ends the client itself. */
#include "http/client_pool.h"

#include <string.h>

#include "base/str.h"

#define IDLE_MAX_DEFAULT 8
#define IDLE_MS_DEFAULT 60000
#define CONNECT_MS_DEFAULT 10000

int http_client_new(struct ev *ev, const struct http_client_conf *c, struct http_client **ret, struct err *e)
{
    const char *const proxies[] = { c->http_proxy, c->https_proxy };
    for (size_t i = 0; i < COUNT_OF(proxies); i++) {
        struct http_url u;
        if (!proxies[i] || !*proxies[i])
            continue;
        int rc = http_url_parse(proxies[i], true, &u, e);
        if (rc < 0)
            return err_wrap(e, rc, "proxy");
        if (u.tls)
            return err_set(e, RC_UNSUPPORTED, "proxy: only http:// proxies are spoken to; an https:// one is not supported");
    }
    struct http_client *cl = xcalloc(1, sizeof *cl);
    cl->ev = ev;
    cl->ca_file = str_dup(c->ca_file);
    cl->http_proxy = c->http_proxy && *c->http_proxy ? str_dup(c->http_proxy) : NULL;
    cl->https_proxy = c->https_proxy && *c->https_proxy ? str_dup(c->https_proxy) : NULL;
    cl->no_proxy = str_dup(c->no_proxy);
    cl->user_agent = str_dup(c->user_agent ? c->user_agent : "outwork/" OUTWORK_VERSION);
    cl->idle_max = c->idle_max ? c->idle_max : IDLE_MAX_DEFAULT;
    cl->idle_ms = c->idle_ms ? c->idle_ms : IDLE_MS_DEFAULT;
    cl->connect_ms = c->connect_ms ? c->connect_ms : CONNECT_MS_DEFAULT;
    list_init(&cl->origins);
    list_init(&cl->calls);
    *ret = cl;
    return RC_OK;
}

static void origin_free(struct origin *o)
{
    list_foreach(c, &o->idle, struct hconn, link)
        hconn_free(c);
    if (o->route.proxy_auth)
        wipe(o->route.proxy_auth, strlen(o->route.proxy_auth));
    free(o->route.proxy_auth);
    free(o);
}

static void free_text(char *s)
{
    if (s)
        wipe(s, strlen(s));              /* a proxy URL holds a password */
    free(s);
}

void http_client_free(struct http_client *cl)
{
    if (!cl)
        return;
    calls_cancel(cl);
    list_foreach(o, &cl->origins, struct origin, link)
        origin_free(o);
    ev_timer_stop(&cl->sweep);
    tls_ctx_free(cl->tls);
    free_text(cl->ca_file);
    free_text(cl->http_proxy);
    free_text(cl->https_proxy);
    free_text(cl->no_proxy);
    free_text(cl->user_agent);
    free(cl);
}

static void drop_idle(struct origin *o, struct hconn *c)
{
    o->n_idle--;
    hconn_free(c);
}

static void on_sweep(struct ev_timer *t)
{
    struct http_client *cl = container_of(t, struct http_client, sweep);
    int64_t now = ev_now_ms(cl->ev), next = -1;
    list_foreach(o, &cl->origins, struct origin, link)
        list_foreach(c, &o->idle, struct hconn, link) {
            int64_t left = c->idle_since + cl->idle_ms - now;
            if (left <= 0)
                drop_idle(o, c);
            else if (next < 0 || left < next)
                next = left;
        }
    if (next >= 0)
        ev_timer_set(cl->ev, &cl->sweep, next, on_sweep);
}

void pool_keep(struct http_client *cl, struct origin *o, struct hconn *c)
{
    c->owner = NULL;
    c->kept = true;
    c->idle_since = ev_now_ms(cl->ev);
    if (o->n_idle >= cl->idle_max)
        drop_idle(o, list_entry(o->idle.prev, struct hconn, link));      /* the oldest */
    list_add_head(&o->idle, &c->link);
    o->n_idle++;
    if (!ev_timer_armed(&cl->sweep))
        ev_timer_set(cl->ev, &cl->sweep, cl->idle_ms, on_sweep);
}

/* False when a kept connection has ended or holds bytes nobody asked for; a TLS session ticket is neither. */
static bool usable(struct hconn *c)
{
    char tmp[64];
    size_t n = 0;
    unsigned want = 0;
    struct err e;
    return hconn_read(c, tmp, sizeof tmp, &n, &want, &e) == RC_AGAIN;
}

void pool_idle_io(struct hconn *c)
{
    struct http_client *cl = c->client;
    if (usable(c))
        return;
    list_foreach(o, &cl->origins, struct origin, link)
        if (&o->route == c->route)
            drop_idle(o, c);
}

struct origin *pool_origin(struct http_client *cl, const struct http_url *u)
{
    list_foreach(o, &cl->origins, struct origin, link) {
        const struct http_url *ou = &o->route.url;
        if (ou->tls == u->tls && ou->port == u->port && strcmp(ou->host, u->host) == 0)
            return o;
    }
    struct origin *o = xcalloc(1, sizeof *o);
    list_init(&o->idle);
    o->route.url = *u;
    o->route.url.target = SLICE("/");
    const char *proxy = u->tls ? cl->https_proxy : cl->http_proxy;
    struct err e;
    if (proxy && !http_no_proxy(cl->no_proxy, u->host, u->port) && http_url_parse(proxy, true, &o->route.proxy, &e) == RC_OK) {
        o->route.via_proxy = true;
        o->route.proxy_auth = hconn_proxy_authorization(&o->route.proxy);
    }
    list_add_tail(&cl->origins, &o->link);
    return o;
}

/* Looks before it hands one out (one system call): bytes that lie there already must never be taken for the answer to the next request. */
struct hconn *pool_take(struct origin *o)
{
    while (!list_empty(&o->idle)) {
        struct hconn *c = list_first(&o->idle, struct hconn, link);
        if (usable(c)) {
            list_del(&c->link);
            o->n_idle--;
            return c;
        }
        drop_idle(o, c);
    }
    return NULL;
}
