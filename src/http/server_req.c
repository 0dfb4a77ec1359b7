/* http/server_req.c - from bytes to requests: head, body, the hand-over to the application. */
#include <string.h>

#include "http/server_internal.h"

#define REQ_FIRST_BLOCK(head) (2 * (sizeof(struct http_req) + (head)) + 1 * KIB)    /* the arena puts what is over half a block elsewhere */

/* Path and query of the target; the authority of an absolute form is skipped (RFC 9112 3.2.2). */
static void split_target(struct http_req *r)
{
    struct slice t = r->head.target;
    if (t.n && t.p[0] != '/' && t.p[0] != '*') {
        const char *at = memmem(t.p, t.n, "://", 3);
        size_t i = at ? (size_t)(at - t.p) + 3 : t.n;
        while (i < t.n && t.p[i] != '/' && t.p[i] != '?')
            i++;
        t = (struct slice){ t.p + i, t.n - i };
    }
    const char *q = t.n ? memchr(t.p, '?', t.n) : NULL;
    r->path = (struct slice){ t.p, q ? (size_t)(q - t.p) : t.n };
    if (r->path.n == 0)
        r->path = SLICE("/");
    r->query = q ? (struct slice){ q + 1, (size_t)(t.p + t.n - q) - 1 } : (struct slice){ "", 0 };
}

static struct slice moved(struct slice s, const char *from, size_t n, const char *to)
{
    return s.p >= from && s.p <= from + n ? (struct slice){ to + (s.p - from), s.n } : s;     /* else a static "" */
}

/* A request of its own memory: the head's slices move from the connection's bytes to a copy. */
static struct http_req *req_new(struct conn *c, const struct http_head *h, const char *p, size_t n)
{
    struct arena *a = arena_new(REQ_FIRST_BLOCK(n), HTTP_REQ_ARENA_MAX);
    struct http_req *r = a ? arena_alloc(a, sizeof *r) : NULL;
    char *copy = r ? arena_strndup(a, p, n) : NULL;
    if (!copy) {
        arena_free(a);
        return NULL;
    }
    memset(r, 0, offsetof(struct http_req, head));
    memset(&r->path, 0, sizeof *r - offsetof(struct http_req, path));
    r->s = c->s;
    r->s->refs++;
    r->conn = c;
    r->arena = a;
    r->peer = c->peer;
    r->head.method = h->method;
    r->head.target = moved(h->target, p, n, copy);
    r->head.status = 0;
    r->head.reason = (struct slice){ "", 0 };
    r->head.minor = h->minor;
    r->head.n_headers = h->n_headers;
    r->head.chunked = h->chunked;
    r->head.keep_alive = h->keep_alive;
    r->head.expect_continue = h->expect_continue;
    r->head.upgrade = h->upgrade;
    r->head.content_length = h->content_length;
    for (size_t i = 0; i < h->n_headers; i++) {
        r->head.headers[i].name = moved(h->headers[i].name, p, n, copy);
        r->head.headers[i].value = moved(h->headers[i].value, p, n, copy);
    }
    split_target(r);
    return r;
}

static void hand_over(struct conn *c)
{
    c->state = CONN_HANDLING;
    conn_deadline(c, -1);
    c->s->conf.on_request(c->s->conf.ctx, c->req);      /* may answer at once: c->req, even c, may be gone */
}

void conn_body_end_if_whole(struct conn *c)
{
    if (c->req->body_left == 0)
        hand_over(c);
}

/* Accounts for memory and restarts the body's timer after each HTTP_BODY_STEP. */
void conn_body_progress(struct conn *c, size_t n)
{
    struct http_req *r = c->req;
    r->body_charged += n;
    c->s->bodies += n;
    metric_add(&http_metric_bodies, (int64_t)n);
    if (c->s->bodies > c->s->conf.limits.bodies_max) {
        conn_refuse(c, 503, "too many request bodies are in memory");
        return;
    }
    r->body_step -= (int64_t)n;
    if (r->body_step <= 0) {
        r->body_step = (int64_t)HTTP_BODY_STEP;
        conn_deadline(c, c->s->conf.limits.body_ms);
    }
}

static void send_continue(struct conn *c)
{
    static const char text[] = "HTTP/1.1 100 Continue\r\n\r\n";
    buf_init(&c->out, HTTP_REPLY_HEAD_MAX);
    (void)buf_put(&c->out, text, sizeof text - 1);
    conn_flush(c);
}

/* The head is complete: is the request welcome, and does a body follow? `more`: bytes of it are here already. */
static void req_begin(struct conn *c, const struct http_head *h, const char *p, size_t n, bool more)
{
    struct http_server *s = c->s;
    struct http_req *r = req_new(c, h, p, n);
    if (!r) {
        conn_refuse(c, 503, "out of memory");
        return;
    }
    c->req = r;
    c->first = false;
    metric_add(&http_metric_requests, 1);
    if (h->method == HTTP_CONNECT) {
        conn_refuse(c, 501, "CONNECT is not served");
        return;
    }
    int64_t limit = s->conf.body_limit ? s->conf.body_limit(s->conf.ctx, &r->head) : -1;
    r->body_limit = limit >= 0 ? (size_t)limit : s->conf.limits.body_max;
    buf_init(&r->body, r->body_limit);
    bool has_body = h->chunked || h->content_length > 0;
    if (!has_body) {
        hand_over(c);
        return;
    }
    if (h->content_length > 0 && (uint64_t)h->content_length > r->body_limit) {
        conn_refuse(c, 413, "the request body is too large");
        return;
    }
    if (s->bodies >= s->conf.limits.bodies_max) {
        conn_refuse(c, 503, "too many request bodies are in memory");
        return;
    }
    r->body_left = h->chunked ? -1 : h->content_length;
    r->body_step = (int64_t)HTTP_BODY_STEP;
    c->state = CONN_BODY;
    conn_deadline(c, s->conf.limits.body_ms);
    if (h->expect_continue && !more)
        send_continue(c);
}

static size_t take_head(struct conn *c, const char *p, size_t n)
{
    struct http_server *s = c->s;
    size_t used = 0;
    const char *why = "";
    int rc = http_parse_request(p, n, c->seen, &s->head, &used, &why);
    if (rc == RC_AGAIN) {
        c->seen = n;
        if (c->state == CONN_IDLE) {
            c->state = CONN_HEAD;
            conn_deadline(c, s->conf.limits.head_ms);       /* from the first byte on; more bytes do not extend it */
        }
        return 0;
    }
    c->seen = 0;
    if (rc == RC_OK)
        req_begin(c, &s->head, p, used, n > used);
    else
        conn_refuse(c, rc == RC_TOO_LARGE ? 431 : rc == RC_UNSUPPORTED ? 501 : 400, why);
    return rc == RC_OK ? used : n;
}

/* Returns how many bytes of the body were taken; 0 only when n is 0 or the request was refused. */
static size_t take_body(struct conn *c, const char *p, size_t n)
{
    struct http_req *r = c->req;
    if (!r->head.chunked) {
        size_t take = (uint64_t)r->body_left < n ? (size_t)r->body_left : n;
        if (buf_put(&r->body, p, take) < 0) {
            conn_refuse(c, 503, "out of memory");
            return n;
        }
        r->body_left -= (int64_t)take;
        conn_body_progress(c, take);
        if (!c->dead && c->state == CONN_BODY)
            conn_body_end_if_whole(c);
        return take;
    }
    struct slice d;
    size_t used = 0;
    int rc = http_chunked_step(&r->chunked, p, n, &used, &d);
    if (rc == RC_INVALID) {
        conn_refuse(c, 400, "the chunked body is malformed");
        return n;
    }
    int put = d.n ? buf_put(&r->body, d.p, d.n) : RC_OK;
    if (put < 0) {
        conn_refuse(c, put == RC_LIMIT ? 413 : 503, put == RC_LIMIT ? "the request body is too large" : "out of memory");
        return n;
    }
    if (d.n)
        conn_body_progress(c, d.n);
    if (rc == RC_CLOSED && !c->dead && c->state == CONN_BODY)
        hand_over(c);
    return used;
}

size_t conn_process(struct conn *c, const char *p, size_t n)
{
    size_t at = 0;
    if (c->processing)
        return 0;
    c->processing = true;
    while (!c->dead && !c->close_after && at < n) {
        if (c->state == CONN_BODY) {
            at += take_body(c, p + at, n - at);
        } else if (c->state == CONN_IDLE || c->state == CONN_HEAD) {
            if (c->state == CONN_IDLE && !c->first && n - at >= 2 && p[at] == '\r' && p[at + 1] == '\n') {
                at += 2;                    /* some clients end a body with one empty line too many (RFC 9112 2.2) */
                continue;
            }
            size_t used = take_head(c, p + at, n - at);
            if (used == 0)
                break;
            at += used;
        } else {
            break;
        }
    }
    c->processing = false;
    return at;
}
