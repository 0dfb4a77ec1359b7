/* One HTTP request to a URL that a client named: the guard says how, the ways are tried in turn while nothing was sent. */
#include <string.h>
#include <strings.h>

#include "server/vault/private.h"

#define HEAD_KEPT (8 * KIB)

struct vcall {
    struct vault *v;
    struct list node;
    struct vcall_conf c;
    void *check;
    struct fetch_call *fetch;
    struct fetch_via ways[WAYS_MAX];
    char *texts[WAYS_MAX][7];            /* what the ways point to */
    size_t n_ways, way;
    int status;
    struct buf head, body;
    bool stream, enough;                 /* an event stream; its first event is there */
};

static void try_way(struct vcall *c);

static void vcall_free(struct vcall *c)
{
    list_del(&c->node);
    if (c->check)
        c->v->c.reach.cancel(c->check);
    fetch_cancel(c->fetch);
    for (size_t i = 0; i < c->n_ways; i++)
        for (size_t k = 0; k < COUNT_OF(c->texts[i]); k++)
            free(c->texts[i][k]);
    buf_done(&c->head);
    buf_wipe(&c->body);
    free(c);
}

void vcall_cancel(struct vcall *c)
{
    if (c)
        vcall_free(c);
}

static void finish(struct vcall *c, int rc, bool refused, const char *body, size_t body_n, const struct err *e)
{
    struct vcall_result r = {
        .rc = rc, .refused = refused, .status = c->status, .head = { buf_data(&c->head), buf_len(&c->head) }, .body = body ? body : "", .body_n = body ? body_n : 0, .e = e,
    };
    c->c.cb(c->c.ctx, &r);
    vcall_free(c);
}

static void on_head(void *ctx, int status, struct slice lines)
{
    struct vcall *c = ctx;
    c->status = status;
    buf_clear(&c->head);
    (void)buf_put(&c->head, lines.p, lines.n < HEAD_KEPT ? lines.n : HEAD_KEPT);
    struct slice type = fetch_header(lines, "content-type");
    c->stream = type.p && type.n >= 17 && strncasecmp(type.p, "text/event-stream", 17) == 0;
}

static int on_data(void *ctx, int status, const char *p, size_t n)
{
    struct vcall *c = ctx;
    (void)status;
    if (buf_put(&c->body, p, n) < 0)
        return RC_TOO_LARGE;
    c->enough = c->stream && (memmem(buf_data(&c->body), buf_len(&c->body), "\n\n", 2) || memmem(buf_data(&c->body), buf_len(&c->body), "\r\n\r\n", 4));
    return c->enough ? RC_CLOSED : RC_OK;
}

static void on_done(void *ctx, int rc, int status, int64_t retry_after_ms, const char *request_id, const struct buf *body, const struct err *e)
{
    struct vcall *c = ctx;
    bool sent = fetch_sent(c->fetch);
    (void)retry_after_ms, (void)request_id;
    c->fetch = NULL;
    if (rc != RC_OK && !c->enough && !sent && ++c->way < c->n_ways) {
        try_way(c);
        return;
    }
    c->status = status ? status : c->status;
    struct buf got = body ? *body : (struct buf){ 0 };       /* for reading: buf_data() takes no constant buffer */
    bool ok = rc == RC_OK || c->enough;
    bool streamed = c->c.one_event && c->status >= 200 && c->status < 300;
    finish(c, ok ? RC_OK : rc, false, streamed ? buf_data(&c->body) : buf_data(&got), streamed ? buf_len(&c->body) : buf_len(&got), e);
}

static void try_way(struct vcall *c)
{
    struct fetch_request r = {
        .via = &c->ways[c->way], .method = c->c.method, .url = c->c.url, .headers = c->c.headers, .n_headers = c->c.n_headers,
        .secret_header = c->c.secret ? "authorization" : NULL, .secret_prefix = c->c.secret_prefix, .secret = c->c.secret, .body = c->c.body, .body_n = c->c.body_n,
        .connect_ms = CONNECT_MS, .total_ms = c->c.total_ms, .body_max = c->c.body_max, .on_head = on_head, .on_data = c->c.one_event ? on_data : NULL,
        .on_done = on_done, .ctx = c,
    };
    c->fetch = fetch_start(c->v->c.fetch, &r);
}

static void keep_way(struct vcall *c, const struct fetch_via *from)
{
    size_t i = c->n_ways++;
    char **t = c->texts[i];
    t[0] = str_dup(from->proxy);
    t[1] = str_dup(from->proxy_ca_file);
    t[2] = str_dup(from->proxy_cert_file);
    t[3] = str_dup(from->proxy_key_file);
    t[4] = str_dup(from->proxy_note);
    t[5] = from->ca_pem ? str_ndup(from->ca_pem, from->ca_pem_n) : NULL;
    t[6] = str_dup(from->address);
    c->ways[i] = *from;
    c->ways[i].proxy = t[0];
    c->ways[i].proxy_ca_file = t[1];
    c->ways[i].proxy_cert_file = t[2];
    c->ways[i].proxy_key_file = t[3];
    c->ways[i].proxy_note = t[4];
    c->ways[i].ca_pem = t[5];
    c->ways[i].address = t[6];
}

static void on_reach(void *ctx, int rc, const struct fetch_via *ways, size_t n, const struct err *e)
{
    struct vcall *c = ctx;
    c->check = NULL;
    if (rc < 0) {
        finish(c, rc, rc == RC_DENIED || rc == RC_INVALID, NULL, 0, e);
        return;
    }
    for (size_t i = 0; i < n && i < WAYS_MAX; i++)
        keep_way(c, &ways[i]);
    try_way(c);
}

struct vcall *vcall_start(struct vault *v, const struct vcall_conf *conf)
{
    struct vcall *c = xcalloc(1, sizeof *c);
    c->v = v;
    c->c = *conf;
    buf_init(&c->head, HEAD_KEPT + 1);
    buf_init(&c->body, conf->body_max);
    list_add_tail(&v->calls, &c->node);
    c->check = v->c.reach.start(v->c.reach.ctx, conf->url, on_reach, c);
    return c;
}

void vcall_free_all(struct vault *v)
{
    list_foreach(c, &v->calls, struct vcall, node)
        vcall_free(c);
}
