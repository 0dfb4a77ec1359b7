/* http/client.c - see client.h. A call is: request bytes built once, a connection (kept or new), an answer parsed as it comes.
 * On a kept connection the request leaves by one send() inside http_call_start(); nothing waits for a turn of the loop. */
#include "http/client.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "http/client_pool.h"

#define CALL_MS_DEFAULT 60000
#define BODY_MAX_DEFAULT (32 * MIB)
#define REQUEST_MAX (64 * MIB)           /* our own bytes: head and body of one request */
#define READ_CHUNK (16 * KIB)
#define READ_ROUNDS_MAX 64               /* chunks taken for one call before others get their turn */

enum call_state { CALL_OPENING, CALL_HEAD, CALL_BODY, CALL_FAILED };
enum body_kind { BODY_NONE, BODY_LENGTH, BODY_CHUNKED, BODY_UNTIL_CLOSE };
enum fed { FED_MORE, FED_GONE };         /* FED_GONE: the call has ended and its memory is gone */

struct http_call {
    struct list link;
    struct http_client *cl;
    struct origin *origin;
    struct hconn *conn;
    enum call_state state;
    struct buf req;                      /* kept whole until the first byte of the answer, for the one resend */
    size_t sent;
    bool is_head, resent, write_dead, answered, in_callback, cancelled, streaming, excess;
    struct buf in;                       /* the head; http_head points into it */
    size_t in_seen;
    struct http_head *head;
    enum body_kind kind;
    uint64_t left;
    struct http_chunked chunked;
    struct buf body;
    struct ev_timer timer, resume;
    int64_t timeout_ms, stall_ms, last_ms;
    struct err *failure;                 /* CALL_FAILED: told from the timer, never from inside http_call_start() */
    void (*on_head)(void *, const struct http_head *);
    int  (*on_data)(void *, const char *, size_t);
    void (*on_done)(void *, int, const struct http_response *, const struct err *);
    void *ctx;
};

static void on_conn_open(struct hconn *c, int rc, const struct err *e);
static void on_conn_io(struct hconn *c, unsigned got);

/* ---- end of a call ---- */

static void call_free(struct http_call *c)
{
    ev_timer_stop(&c->timer);
    ev_timer_stop(&c->resume);
    list_del(&c->link);
    hconn_free(c->conn);
    buf_wipe(&c->req);
    buf_done(&c->in);
    buf_done(&c->body);
    free(c->head);
    free(c->failure);
    free(c);
}

static void finish(struct http_call *c, int rc, const struct err *e)
{
    struct http_client *cl = c->cl;
    struct hconn *conn = TAKE(c->conn);
    bool keep = rc == RC_OK && conn && c->head && c->head->keep_alive && !c->excess && !c->write_dead &&
                c->kind != BODY_UNTIL_CLOSE && c->sent == buf_len(&c->req);
    if (keep)
        pool_keep(cl, c->origin, conn);      /* before on_done, which may start the next call on it */
    else
        hconn_free(conn);
    ev_timer_stop(&c->timer);
    ev_timer_stop(&c->resume);
    list_del(&c->link);
    struct http_response r = { .status = c->head ? c->head->status : 0, .head = c->head, .body = &c->body };
    c->in_callback = true;               /* a cancel from inside only marks it */
    if (rc == RC_OK)
        c->on_done(c->ctx, RC_OK, &r, NULL);
    else
        c->on_done(c->ctx, rc, NULL, e);
    call_free(c);
}

static enum fed fail(struct http_call *c, int rc, struct err *e)
{
    e->rc = rc;
    finish(c, rc, e);
    return FED_GONE;
}

static void on_failure_timer(struct ev_timer *t)
{
    struct http_call *c = container_of(t, struct http_call, timer);
    struct err e = *c->failure;
    finish(c, e.rc, &e);
}

static void fail_later(struct http_call *c, const struct err *e)
{
    c->state = CALL_FAILED;
    c->failure = xcalloc(1, sizeof *e);
    *c->failure = *e;
    ev_timer_set(c->cl->ev, &c->timer, 0, on_failure_timer);
}

static void on_timer(struct ev_timer *t)
{
    struct http_call *c = container_of(t, struct http_call, timer);
    struct err e;
    if (c->state == CALL_BODY && c->streaming) {                 /* silence, measured from the last byte */
        int64_t left = c->last_ms + c->stall_ms - ev_now_ms(c->cl->ev);
        if (left > 0) {
            ev_timer_set(c->cl->ev, t, left, on_timer);
            return;
        }
        (void)err_set(&e, RC_TIMEOUT, "nothing came from %s for %lld ms", c->origin->route.url.host, (long long)c->stall_ms);
    } else {
        (void)err_set(&e, RC_TIMEOUT, "no whole answer from %s in %lld ms", c->origin->route.url.host, (long long)c->timeout_ms);
    }
    (void)fail(c, RC_TIMEOUT, &e);
}

/* ---- answer ---- */

static enum fed deliver(struct http_call *c, const char *p, size_t n)
{
    struct err e;
    if (n == 0)
        return FED_MORE;
    if (!c->streaming) {
        if (buf_put(&c->body, p, n) == RC_OK)
            return FED_MORE;
        (void)err_set(&e, RC_TOO_LARGE, "the answer of %s is over %zu bytes", c->origin->route.url.host, c->body.max);
        return fail(c, RC_TOO_LARGE, &e);
    }
    c->last_ms = ev_now_ms(c->cl->ev);
    c->in_callback = true;
    int rc = c->on_data(c->ctx, p, n);
    c->in_callback = false;
    if (c->cancelled) {
        call_free(c);
        return FED_GONE;
    }
    if (rc < 0) {
        (void)err_set(&e, rc, "the reader ended the stream");
        return fail(c, rc, &e);
    }
    return FED_MORE;
}

static enum fed done(struct http_call *c)
{
    finish(c, RC_OK, NULL);
    return FED_GONE;
}

static enum fed feed_body(struct http_call *c, const char *p, size_t n)
{
    struct err e;
    switch (c->kind) {
    case BODY_NONE:
        c->excess = n > 0;
        return done(c);
    case BODY_UNTIL_CLOSE:
        return deliver(c, p, n);
    case BODY_LENGTH: {
        size_t take = n < c->left ? n : (size_t)c->left;
        if (deliver(c, p, take) == FED_GONE)
            return FED_GONE;
        c->left -= take;
        c->excess = n > take;
        return c->left ? FED_MORE : done(c);
    }
    case BODY_CHUNKED:
        break;
    }
    while (n) {
        size_t used = 0;
        struct slice data = { NULL, 0 };
        int rc = http_chunked_step(&c->chunked, p, n, &used, &data);
        if (rc < 0 && rc != RC_CLOSED) {
            (void)err_set(&e, RC_PROTO, "%s sent a malformed chunked body", c->origin->route.url.host);
            return fail(c, RC_PROTO, &e);
        }
        if (data.n && deliver(c, data.p, data.n) == FED_GONE)
            return FED_GONE;
        p += used;
        n -= used;
        if (rc == RC_CLOSED) {
            c->excess = n > 0;
            return done(c);
        }
    }
    return FED_MORE;
}

/* The head is whole: chooses how the body ends and tells a streaming caller. */
static enum fed head_done(struct http_call *c)
{
    const struct http_head *h = c->head;
    c->state = CALL_BODY;
    c->answered = true;
    if (c->is_head || h->status == 204 || h->status == 304)
        c->kind = BODY_NONE;
    else if (h->chunked)
        c->kind = BODY_CHUNKED;
    else if (h->content_length >= 0)
        c->kind = h->content_length ? BODY_LENGTH : BODY_NONE;
    else
        c->kind = BODY_UNTIL_CLOSE;
    c->left = h->content_length > 0 ? (uint64_t)h->content_length : 0;
    c->streaming = c->on_data && h->status / 100 == 2;
    if (!c->streaming)
        return FED_MORE;
    c->last_ms = ev_now_ms(c->cl->ev);
    ev_timer_stop(&c->timer);
    if (c->stall_ms > 0)
        ev_timer_set(c->cl->ev, &c->timer, c->stall_ms, on_timer);
    if (!c->on_head)
        return FED_MORE;
    c->in_callback = true;
    c->on_head(c->ctx, h);
    c->in_callback = false;
    if (!c->cancelled)
        return FED_MORE;
    call_free(c);
    return FED_GONE;
}

static enum fed feed_head(struct http_call *c, const char *p, size_t n)
{
    struct err e;
    const char *why = "";
    if (buf_put(&c->in, p, n) < 0) {
        (void)err_set(&e, RC_PROTO, "the answer's head from %s is too large", c->origin->route.url.host);
        return fail(c, RC_PROTO, &e);
    }
    if (!c->head)
        c->head = xcalloc(1, sizeof *c->head);
    for (;;) {
        size_t used = 0, len = buf_len(&c->in);
        int rc = http_parse_response(buf_data(&c->in), len, c->in_seen, c->head, &used, &why);
        c->in_seen = len;
        if (rc == RC_AGAIN)
            return FED_MORE;
        if (rc < 0 || c->head->status == 101) {
            (void)err_set(&e, RC_PROTO, "malformed answer from %s: %s", c->origin->route.url.host, rc < 0 ? why : "101 not asked for");
            return fail(c, RC_PROTO, &e);
        }
        if (c->head->status / 100 == 1) {        /* 100, 103: not the answer yet */
            buf_consume(&c->in, used);
            c->in_seen = 0;
            continue;
        }
        if (head_done(c) == FED_GONE)
            return FED_GONE;
        return len > used || c->kind == BODY_NONE ? feed_body(c, buf_data(&c->in) + used, len - used) : FED_MORE;
    }
}

/* ---- connection events ---- */

static void call_connect(struct http_call *c);

static enum fed on_closed(struct http_call *c, int rc, struct err *e)
{
    bool untouched = c->state == CALL_HEAD && buf_len(&c->in) == 0;
    if (untouched && c->conn->kept && !c->resent) {
        hconn_free(TAKE(c->conn));
        c->resent = true;
        c->sent = 0;
        c->write_dead = false;
        call_connect(c);
        return FED_GONE;                 /* not gone, but this connection is */
    }
    if (c->state == CALL_BODY && c->kind == BODY_UNTIL_CLOSE && rc == RC_CLOSED)
        return done(c);
    return fail(c, rc, e);
}

static void send_some(struct http_call *c)
{
    unsigned want = 0;
    struct err e;
    while (!c->write_dead && c->sent < buf_len(&c->req)) {
        size_t n = 0;
        int rc = hconn_write(c->conn, buf_data(&c->req) + c->sent, buf_len(&c->req) - c->sent, &n, &want, &e);
        if (rc == RC_AGAIN)
            break;
        if (rc < 0)
            c->write_dead = true;        /* reading tells whether an answer came first; the hang-up is reported anyway */
        else
            c->sent += n;
    }
    unsigned io = EV_READ | (c->sent < buf_len(&c->req) && !c->write_dead ? EV_WRITE | want : 0);
    if (c->conn->io.want != io)
        ev_io_want(&c->conn->io, io);
}

static void on_resume(struct ev_timer *t)
{
    struct http_call *c = container_of(t, struct http_call, resume);
    if (c->conn)
        on_conn_io(c->conn, EV_READ);
}

static void read_some(struct http_call *c)
{
    char tmp[READ_CHUNK];
    struct hconn *conn = c->conn;
    for (int round = 0; round < READ_ROUNDS_MAX; round++) {
        size_t n = 0;
        unsigned want = 0;
        struct err e;
        int rc = hconn_read(conn, tmp, sizeof tmp, &n, &want, &e);
        if (rc == RC_AGAIN) {
            if ((want & EV_WRITE) && !(conn->io.want & EV_WRITE))
                ev_io_want(&conn->io, EV_READ | EV_WRITE);
            return;
        }
        if (rc < 0) {
            (void)on_closed(c, rc, &e);
            return;
        }
        enum fed f = c->state == CALL_HEAD ? feed_head(c, tmp, n) : feed_body(c, tmp, n);
        if (f == FED_GONE)
            return;
        if (!conn->tls && n < sizeof tmp)
            return;                      /* level-triggered: more will be reported */
    }
    if (conn->tls)                       /* bytes may wait inside TLS, where the kernel does not see them */
        ev_timer_set(c->cl->ev, &c->resume, 0, on_resume);
}

static void on_conn_io(struct hconn *conn, unsigned got)
{
    struct http_call *c = conn->owner;
    (void)got;
    if (!c) {
        pool_idle_io(conn);
        return;
    }
    if (c->sent < buf_len(&c->req) || (conn->io.want & EV_WRITE))
        send_some(c);
    read_some(c);
}

static void on_conn_open(struct hconn *conn, int rc, const struct err *e)
{
    struct http_call *c = conn->owner;
    if (rc < 0) {
        struct err mine = *e;
        (void)fail(c, rc, &mine);
        return;
    }
    c->state = CALL_HEAD;
    send_some(c);
}

static void call_connect(struct http_call *c)
{
    struct http_client *cl = c->cl;
    struct err e;
    c->state = CALL_OPENING;
    if (c->origin->route.url.tls && !cl->tls) {
        struct tls_conf tc = { .ca_file = cl->ca_file };
        int rc = tls_ctx_client(&tc, &cl->tls, &e);
        if (rc < 0) {
            e.rc = rc;
            fail_later(c, &e);
            return;
        }
    }
    c->conn = hconn_open(cl->ev, &c->origin->route, cl->tls, cl->connect_ms, c, on_conn_open, on_conn_io);
    c->conn->client = cl;
}

/* ---- start ---- */

static int build_request(struct http_call *c, const struct http_request *r, const struct http_url *u, struct err *e)
{
    char host[URL_HOST_MAX + 10];
    http_url_authority(u, false, host);
    struct buf *b = &c->req;
    bool absolute = c->origin->route.via_proxy && !u->tls;
    size_t guess = 512 + u->target.n + r->body_n + (r->headers ? strlen(r->headers) : 0);
    if (!buf_reserve(b, guess))
        return err_set(e, RC_TOO_LARGE, "the request is over %zu bytes", (size_t)REQUEST_MAX);
    buf_puts(b, r->method);
    buf_puts(b, absolute ? " http://" : " ");
    if (absolute)
        buf_puts(b, host);
    buf_put(b, u->target.p, u->target.n);
    buf_printf(b, " HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\n", host, c->cl->user_agent);
    if (absolute && c->origin->route.proxy_auth)
        buf_printf(b, "Proxy-Authorization: %s\r\n", c->origin->route.proxy_auth);
    if (r->bearer) {
        buf_puts(b, "Authorization: Bearer ");
        buf_put(b, secret_text(r->bearer), secret_len(r->bearer));
        buf_puts(b, "\r\n");
    }
    if (r->headers)
        buf_puts(b, r->headers);
    if (r->body || strcmp(r->method, "POST") == 0 || strcmp(r->method, "PUT") == 0 || strcmp(r->method, "PATCH") == 0)
        buf_printf(b, "Content-Length: %zu\r\n", r->body_n);
    buf_puts(b, "\r\n");
    if (r->body_n)
        buf_put(b, r->body, r->body_n);
    return buf_ok(b) ? RC_OK : err_set(e, RC_TOO_LARGE, "the request is over %zu bytes", (size_t)REQUEST_MAX);
}

struct http_call *http_call_start(struct http_client *cl, const struct http_request *r)
{
    struct http_call *c = xcalloc(1, sizeof *c);
    *c = (struct http_call){
        .cl = cl, .is_head = strcmp(r->method, "HEAD") == 0, .stall_ms = r->stall_ms,
        .timeout_ms = r->timeout_ms > 0 ? r->timeout_ms : CALL_MS_DEFAULT,
        .on_head = r->on_head, .on_data = r->on_data, .on_done = r->on_done, .ctx = r->ctx,
    };
    buf_init(&c->req, REQUEST_MAX);
    buf_init(&c->in, HTTP_HEAD_MAX + READ_CHUNK);
    buf_init(&c->body, r->body_max ? r->body_max : BODY_MAX_DEFAULT);
    list_add_tail(&cl->calls, &c->link);

    struct http_url u;
    struct err e;
    int rc = http_url_parse(r->url, false, &u, &e);
    if (rc == RC_OK) {
        c->origin = pool_origin(cl, &u);
        rc = build_request(c, r, &u, &e);
    }
    if (rc < 0) {
        e.rc = rc;
        fail_later(c, &e);
        return c;
    }
    ev_timer_set(cl->ev, &c->timer, c->timeout_ms, on_timer);
    c->conn = pool_take(c->origin);
    if (!c->conn) {
        call_connect(c);
        return c;
    }
    c->conn->owner = c;
    c->state = CALL_HEAD;
    send_some(c);
    return c;
}

void http_call_cancel(struct http_call *c)
{
    if (!c)
        return;
    if (c->in_callback)
        c->cancelled = true;             /* freed when its callback returns */
    else
        call_free(c);
}

void calls_cancel(struct http_client *cl)
{
    list_foreach(c, &cl->calls, struct http_call, link)
        http_call_cancel(c);
}
