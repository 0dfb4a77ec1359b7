/* server/api/api.c - the door: finds the route on the loop thread and hands the call to a job. */
#include "server/api/api.h"

#include <stdio.h>
#include <string.h>

#include "server/api/call.h"

#define CALL_ARENA_FIRST (4 * KIB)
#define LABEL_MAX 63
#define DOMAIN_MAX 180               /* of 253: the rest is for the tunnel's label and the route */

static struct call *call_new(struct api *a, struct http_req *r)
{
    struct call *c = xcalloc(1, sizeof *c);
    c->api = a;
    c->store = a->conf.store;
    c->req = r;
    c->arena = arena_new(CALL_ARENA_FIRST, CALL_ARENA_MAX);
    c->now_ms = clock_now_ms();
    c->start_us = clock_mono_us();
    c->status = 200;
    c->content_type = "application/json";
    id_new("req", c->request_id);
    buf_init(&c->out, CALL_ANSWER_MAX);
    buf_init(&c->headers, HTTP_HEAD_MAX);
    return c;
}

static int take_params(struct call *c, const struct slice params[CALL_PARAMS_MAX])
{
    for (size_t i = 0; i < CALL_PARAMS_MAX && params[i].p; i++) {
        size_t cap = params[i].n + 1;
        char *text = arena_alloc(c->arena, cap);
        if (!text)
            return RC_NOMEM;
        if (http_pct_decode(params[i], false, text, cap) != RC_OK)
            return call_fail(c, RC_INVALID, "a path segment is not valid percent-encoded UTF-8");
        c->param[i] = text;
    }
    return RC_OK;
}

/* Loop thread: answers what has no handler, everything else becomes a job. */
void api_request(void *ctx, struct http_req *r)
{
    struct api *a = ctx;
    struct call *c = call_new(a, r);
    const struct http_head *h = http_req_head(r);
    struct slice params[CALL_PARAMS_MAX] = { { NULL, 0 } };
    char allow[64];
    if (!c->arena) {
        call_finish(c, call_fail(c, RC_NOMEM, "out of memory"));
        return;
    }
    int rc = route_find(h->method, http_req_path(r), &c->route, params, allow);
    if (rc != RC_OK) {
        const char *op = route_unserved(h->method, http_req_path(r));
        if (op) {
            rc = call_fail(c, RC_UNSUPPORTED, "The operation %s is not served by this server.", op);
        } else if (rc == RC_INVALID) {
            (void)call_fail(c, rc, "Method not allowed; this path takes %s.", allow);
            c->error_status = 405;
            buf_printf(&c->headers, "allow: %s\r\n", allow);
        } else {
            (void)call_fail(c, rc, "Not found.");
        }
        call_finish(c, rc);
        return;
    }
    rc = take_params(c, params);
    if (rc < 0)
        call_finish(c, rc);
    else if (jobs_add(a->conf.jobs, call_run, c) != RC_OK)
        call_finish(c, call_fail(c, RC_AGAIN, "The server is overloaded; try again."));
}

int64_t api_body_limit(void *ctx, const struct http_head *h)
{
    (void)ctx;
    const struct route *r;
    struct slice params[CALL_PARAMS_MAX] = { { NULL, 0 } }, path = h->target;
    char allow[64];
    const char *q = memchr(path.p, '?', path.n);
    if (q)
        path.n = (size_t)(q - path.p);
    if (route_find(h->method, path, &r, params, allow) != RC_OK)
        return (int64_t)ROUTE_BODY_SMALL;
    return r->body_max ? (int64_t)r->body_max : (int64_t)ROUTE_BODY_SMALL;
}

/* A parent of host names: lower case, at least one label, room for "<route>.<label>." in front of it. */
static int check_domain(const char *d, struct err *e)
{
    size_t n = d ? strlen(d) : 0, label = 0;
    for (size_t i = 0; i <= n && d; i++) {
        bool end = i == n || d[i] == '.';
        bool ok = end ? label > 0 && d[i - 1] != '-' : (d[i] >= 'a' && d[i] <= 'z') || (d[i] >= '0' && d[i] <= '9') || (d[i] == '-' && label > 0);
        label = end ? 0 : label + 1;
        if (!ok || label > LABEL_MAX || n > DOMAIN_MAX)
            return err_set(e, RC_INVALID, "tunnel.domain: '%.80s' is no host name; use lower-case labels without a dot at the end, at most %d characters", d, DOMAIN_MAX);
    }
    return RC_OK;
}

int api_new(const struct api_conf *c, struct api **ret, struct err *e)
{
    TRY(check_domain(c->tunnel_domain, e));
    struct api *a = xcalloc(1, sizeof *a);
    a->conf = *c;
    a->base_headers = str_printf("anthropic-organization-id: %s\r\nanthropic-workspace-id: %s\r\n", c->organization_id, c->workspace_id);
    for (size_t i = 0; i < API_LOCKS; i++)
        pthread_mutex_init(&a->locks[i], NULL);
    *ret = a;
    return RC_OK;
}

void api_free(struct api *a)
{
    if (!a)
        return;
    for (size_t i = 0; i < API_LOCKS; i++)
        pthread_mutex_destroy(&a->locks[i]);
    free(a->base_headers);
    free(a);
}

void api_draining(struct api *a)
{
    atomic_store(&a->draining, true);
}
