/* gateway/upstream_http.c - one request to an http upstream: sending it, reading the answer, and doing it again elsewhere when that is safe.
 *
 * Sent again on another connection only when nothing of an answer came and either nothing was sent at all (the connection could not be made, or a kept one
 * broke at the first write), or the request is idempotent, has no body and went out on a kept connection. A tools/call is never sent twice.
 *
 * Lifetimes: the exchange may end a call inside any call that we make into it, so a call that is at work counts `busy` and is put away at the end. */
#include "gateway/upstream_http.h"

#include <string.h>

#include "base/str.h"
#include "gateway/upstream_internal.h"
#include "log/log.h"

#define SCRATCH (64 * KIB)               /* one read */
#define READ_TURN (256 * KIB)            /* bytes of one answer before others are looked at */
#define SEND_NOW (16 * KIB)              /* of a request's body that are not held back for more */
#define CHUNK_ROOM 32                    /* size line and line ends of a chunk */
#define SPARE_MAX 256
#define KEPT_OUT_MAX (4 * KIB)           /* memory of a spare call's buffer */

enum framing { BODY_NONE, BODY_LENGTH, BODY_CHUNKED, BODY_CLOSE };

struct upstream_call {
    struct upstream_call *next;          /* in the list of spare ones */
    struct uhttp *u;
    struct exchange *x;
    struct target *t;
    struct uconn *c;
    unsigned busy, tries;
    bool over;                           /* the exchange is done with us */
    /* the request */
    struct buf out;
    size_t head_n;                       /* of `out`, while nothing was sent */
    bool has_body, chunked_out, body_done, blocked, sent_any, write_broken;
    struct ev_timer kick;                /* later in this turn: send what was put, or read on */
    /* the answer */
    struct buf in;                       /* what the client has no room for yet, or a part of a head */
    size_t seen, payload;                /* payload: bytes at the front of `in` that are decoded already */
    bool replied, stalled, keep;
    int64_t keep_ms, left;
    enum framing framing;
    struct http_chunked chunked;
};

static char scratch[SCRATCH];            /* the loop thread's */
static struct http_head answer;
static struct buf lines;

static void send_out(struct upstream_call *c);
static void read_answer(struct upstream_call *c);
static void failed(struct upstream_call *c, int status, const struct err *e);

/* ---- life ---- */

static struct upstream_call *call_new(struct uhttp *u, struct exchange *x)
{
    struct upstream_call *c = u->spare;
    if (c) {
        u->spare = c->next;
        u->n_spare--;
        struct buf out = c->out;         /* its memory is worth keeping */
        *c = (struct upstream_call){ .out = out };
    } else {
        c = xcalloc(1, sizeof *c);
        buf_init(&c->out, HEADERS_OUT_MAX + UPSTREAM_OUT_MAX);
    }
    buf_init(&c->in, UPSTREAM_IN_MAX);
    c->u = u;
    c->x = x;
    return c;
}

static void call_put(struct upstream_call *c)
{
    struct uhttp *u = c->u;
    ev_timer_stop(&c->kick);
    buf_done(&c->in);
    if (u->n_spare == SPARE_MAX) {
        buf_wipe(&c->out);
        free(c);
        return;
    }
    if (c->out.cap > KEPT_OUT_MAX)
        buf_wipe(&c->out);
    if (c->out.mem)
        wipe(c->out.mem, c->out.cap);    /* it held a client's credentials and may hold one of ours */
    buf_clear(&c->out);
    c->next = u->spare;
    u->spare = c;
    u->n_spare++;
}

void calls_free(struct uhttp *u)
{
    while (u->spare) {
        struct upstream_call *c = u->spare;
        u->spare = c->next;
        buf_done(&c->out);
        free(c);
    }
}

static void leave(struct upstream_call *c)
{
    if (--c->busy == 0 && c->over)
        call_put(c);
}

static void drop_conn(struct upstream_call *c)
{
    uconn_free(c->c);
    c->c = NULL;
}

/* What the connection is watched for follows from the state. */
static void settle(struct upstream_call *c)
{
    if (c->over || !c->c || c->c->state != UCONN_READY)
        return;
    uconn_want(c->c, !c->stalled, buf_len(&c->out) && !c->write_broken && (c->sent_any || c->body_done || !c->has_body));
}

static void on_kick(struct ev_timer *t)
{
    struct upstream_call *c = container_of(t, struct upstream_call, kick);
    c->busy++;
    if (c->c && c->c->state == UCONN_READY) {
        if (buf_len(&c->out))
            send_out(c);
        if (!c->over && c->c && !c->stalled)
            read_answer(c);
    }
    settle(c);
    leave(c);
}

static void kick(struct upstream_call *c)
{
    if (!ev_timer_armed(&c->kick))
        ev_timer_set(c->u->env->ev, &c->kick, 0, on_kick);
}

/* ---- the beginning, and again ---- */

static const struct slice *session_of(const struct http_head *h) { return http_find(h, "mcp-session-id"); }

static int put_head(struct upstream_call *c, struct buf *out)
{
    const struct http_head *h = exchange_head(c->x);
    return headers_request(out, h, h->target, exchange_host(c->x), c->u->host_upstream ? c->t->authority : NULL, c->u->rules);
}

static void connect_to(struct upstream_call *c, struct target *t)
{
    c->t = t;
    c->tries++;
    c->c = upool_take(t);
    if (c->c)
        c->c->call = c;
    else
        c->c = uconn_open(t, c);
}

static struct upstream_call *start(void *upstream, struct exchange *x)
{
    struct uhttp *u = upstream;
    struct upstream_call *c = call_new(u, x);
    const struct http_head *h = exchange_head(x);
    c->has_body = exchange_has_body(x);
    c->chunked_out = h->chunked;
    c->body_done = !c->has_body;
    struct target *t = upool_pick(u, u->sticky ? session_of(h) : NULL, NULL);
    connect_to(c, t);
    if (put_head(c, &c->out) < 0)
        c->write_broken = true;          /* cannot be: HEADERS_OUT_MAX covers it; the timer reports it */
    c->head_n = buf_len(&c->out);
    if (!c->has_body && !c->write_broken && c->c->state == UCONN_READY) {
        size_t n = 0;
        if (uconn_write(c->c, buf_data(&c->out), buf_len(&c->out), &n, NULL) == RC_OK) {
            c->sent_any = true;
            buf_consume(&c->out, n);
        }
    }
    if (c->write_broken || (!c->has_body && c->c->state == UCONN_READY && buf_len(&c->out)))
        kick(c);                         /* not here: a failure must not come inside this call */
    return c;
}

/* The head anew (it may name the server), then what of the body was not sent yet. */
static bool rebuild(struct upstream_call *c)
{
    struct buf out;
    buf_init(&out, HEADERS_OUT_MAX + UPSTREAM_OUT_MAX);
    bool ok = put_head(c, &out) == RC_OK;
    size_t head_n = buf_len(&out);
    if (!c->sent_any)
        ok = ok && buf_put(&out, buf_data(&c->out) + c->head_n, buf_len(&c->out) - c->head_n) == RC_OK;
    buf_wipe(&c->out);
    c->out = out;
    c->head_n = head_n;
    c->sent_any = c->write_broken = false;
    return ok;
}

static bool idempotent(enum http_method m)
{
    return m == HTTP_GET || m == HTTP_HEAD || m == HTTP_OPTIONS || m == HTTP_PUT || m == HTTP_DELETE;
}

/* The connection is lost before anything of an answer came. True when the request is on its way again. */
static bool again(struct upstream_call *c, bool unreachable)
{
    bool kept = c->c && c->c->kept, safe = !c->sent_any || (kept && !c->has_body && idempotent(exchange_head(c->x)->method));
    if (c->replied || buf_len(&c->in) || !safe || c->tries > c->u->n || (unreachable && c->u->n == 1))
        return false;
    struct target *old = c->t, *t = unreachable ? upool_pick(c->u, NULL, old) : old;
    log_debug("gateway.again", "route=%s upstream=%s", c->u->route, t->shown);
    drop_conn(c);
    c->t = t;
    if (!rebuild(c))
        return false;
    c->tries++;
    c->c = uconn_open(t, c);             /* a fresh one: what closed one kept connection has closed the others */
    return true;
}

static void end_failed(struct upstream_call *c, int status, const struct err *e)
{
    struct exchange *x = c->x;
    if (c->c)
        drop_conn(c);
    c->over = true;
    exchange_fail(x, status, e);
}

static void failed(struct upstream_call *c, int status, const struct err *e)
{
    if (again(c, false))
        return;
    log_info("gateway.upstream_failed", "route=%s upstream=%s why=%s", c->u->route, c->t->shown, e->msg);
    struct err said;
    (void)err_set(&said, e->rc, c->replied ? "the upstream ended in the middle of its answer" : "the upstream ended the connection without an answer");
    end_failed(c, status, &said);
}

void call_open_failed(struct upstream_call *c, const struct err *e)
{
    struct err said;
    int rc = e->rc;
    c->busy++;
    upool_bad(c->t);
    log_warn(rc == RC_DENIED ? "gateway.upstream_refused" : "gateway.upstream_unreachable", "route=%s upstream=%s why=%s", c->u->route, c->t->shown, e->msg);
    (void)err_set(&said, rc, rc == RC_DENIED  ? "the upstream's address is refused by the gateway's address rules (upstream.allowed_ips)"
                             : rc == RC_TIMEOUT ? "the upstream did not answer in time"
                                                : "the upstream cannot be reached");
    if (!again(c, true))
        end_failed(c, rc == RC_TIMEOUT ? 504 : 502, &said);
    leave(c);
}

void call_opened(struct upstream_call *c)
{
    c->busy++;
    upool_good(c->t);
    if (c->body_done || buf_len(&c->out) > c->head_n)
        send_out(c);
    settle(c);
    leave(c);
}

/* ---- sending ---- */

static void send_out(struct upstream_call *c)
{
    struct err e = { 0 };
    if (c->write_broken && !c->sent_any) {
        (void)err_set(&e, RC_LIMIT, "the request's head is too large");
        end_failed(c, 431, &e);
        return;
    }
    while (buf_len(&c->out) && !c->write_broken) {
        size_t n = 0;
        int rc = uconn_write(c->c, buf_data(&c->out), buf_len(&c->out), &n, &e);
        if (rc == RC_AGAIN)
            break;
        if (rc < 0 && !c->sent_any && c->c->kept) {      /* it was closed while it waited for work: nothing has been sent */
            e.rc = rc;
            failed(c, 502, &e);
            return;
        }
        if (rc < 0) {                    /* an answer may lie there nonetheless: reading decides */
            c->write_broken = true;
            buf_clear(&c->out);
            break;
        }
        c->sent_any = true;
        buf_consume(&c->out, n);
    }
    if (c->blocked && buf_len(&c->out) < UPSTREAM_OUT_MAX / 2) {
        c->blocked = false;
        exchange_want_body(c->x);
    }
}

static size_t body(struct upstream_call *c, const void *p, size_t n)
{
    if (c->write_broken)
        return n;                        /* nobody reads it any more; the answer is still awaited */
    size_t waits = buf_len(&c->out), room = waits + CHUNK_ROOM < UPSTREAM_OUT_MAX ? UPSTREAM_OUT_MAX - waits - CHUNK_ROOM : 0;
    size_t take = n < room ? n : room;
    if (take) {
        if (c->chunked_out)
            (void)buf_printf(&c->out, "%zx\r\n", take);
        (void)buf_put(&c->out, p, take);
        if (c->chunked_out)
            (void)buf_puts(&c->out, "\r\n");
        kick(c);
    }
    if (take < n)
        c->blocked = true;
    if (buf_len(&c->out) >= SEND_NOW && c->c && c->c->state == UCONN_READY) {
        c->busy++;
        bool was = c->blocked;
        c->blocked = false;              /* the caller is told by what we return, not by a call back into it */
        send_out(c);
        c->blocked = was;
        if (was && !c->over)
            kick(c);                     /* if there is room now, it is said from there */
        settle(c);
        leave(c);
    }
    return take;
}

static void body_end(struct upstream_call *c)
{
    c->busy++;
    c->body_done = true;
    ev_timer_stop(&c->kick);
    if (c->chunked_out && !c->write_broken)
        (void)buf_puts(&c->out, "0\r\n\r\n");
    if (c->c && c->c->state == UCONN_READY)
        send_out(c);
    settle(c);
    leave(c);
}

/* ---- the answer ---- */

static void finish(struct upstream_call *c)
{
    struct exchange *x = c->x;
    struct uconn *conn = TAKE(c->c);
    bool whole = c->body_done && buf_len(&c->out) == 0 && !c->write_broken;
    if (c->keep && whole && c->framing != BODY_CLOSE && buf_len(&c->in) == 0)
        upool_keep(conn, c->keep_ms);
    else
        uconn_free(conn);
    c->over = true;
    exchange_end(x);
}

static void broken(struct upstream_call *c, const char *why)
{
    struct err e;
    log_warn("gateway.upstream_invalid", "route=%s upstream=%s why=%s", c->u->route, c->t->shown, why);
    (void)err_set(&e, RC_PROTO, "the upstream's answer is malformed: %s", why);
    end_failed(c, 502, &e);
}

static void learn_session(struct upstream_call *c, const struct http_head *h)
{
    const struct slice *id = session_of(h), *asked = session_of(exchange_head(c->x));
    if (!c->u->sticky)
        return;
    if (id)
        sticky_set(c->u->sticky, *id, (size_t)(c->t - c->u->target));
    else if (asked && (h->status == 404 || exchange_head(c->x)->method == HTTP_DELETE))
        sticky_drop(c->u->sticky, *asked);
}

/* "Keep-Alive: timeout=5": not used in its last second, when the server may be closing it already. */
static int64_t keep_alive_ms(const struct http_head *h)
{
    const struct slice *v = http_find(h, "keep-alive");
    int64_t s = 0;
    for (size_t i = 0; v && i + 8 < v->n; i++) {
        if (strncasecmp(v->p + i, "timeout=", 8) != 0)
            continue;
        size_t n = 0;
        while (i + 8 + n < v->n && v->p[i + 8 + n] >= '0' && v->p[i + 8 + n] <= '9')
            n++;
        if (slice_to_i64((struct slice){ v->p + i + 8, n }, 0, 86400, &s) == RC_OK)
            return (s - 1) * 1000;
    }
    return -1;
}

static void take_head(struct upstream_call *c, const struct http_head *h)
{
    bool no_body = exchange_head(c->x)->method == HTTP_HEAD || h->status == 204 || h->status == 304;
    c->keep = h->keep_alive;
    c->keep_ms = keep_alive_ms(h);
    c->framing = no_body ? BODY_NONE : h->chunked ? BODY_CHUNKED : h->content_length >= 0 ? BODY_LENGTH : BODY_CLOSE;
    c->left = h->content_length;
    learn_session(c, h);
    if (!lines.max)
        buf_init(&lines, HEADERS_OUT_MAX);
    buf_clear(&lines);
    if (headers_response(&lines, h) < 0) {
        broken(c, "the head is too large");
        return;
    }
    c->replied = true;
    exchange_reply(c->x, h->status, buf_data(&lines), buf_len(&lines), no_body || !h->chunked ? h->content_length : -1);
    if (c->framing == BODY_NONE || (c->framing == BODY_LENGTH && c->left == 0))
        finish(c);
}

/* One answer's head out of [p, p + n): how much of it was used; 0: it is not whole yet. Interim answers are passed over: 100 was said by the gateway itself. */
static size_t head(struct upstream_call *c, const char *p, size_t n)
{
    size_t used = 0;
    const char *why = "";
    int rc = http_parse_response(p, n, c->seen, &answer, &used, &why);
    if (rc == RC_AGAIN) {
        c->seen = n;
        return 0;
    }
    c->seen = 0;
    if (rc < 0)
        broken(c, why);
    else if (answer.status == 101)
        broken(c, "it changes the protocol unasked");
    else if (answer.status >= 200)
        take_head(c, &answer);
    return used;
}

/* Decoded bytes to the client; sets `stalled` when it has no room. Returns how many it took. */
static size_t deliver(struct upstream_call *c, const char *p, size_t n)
{
    size_t k = n ? exchange_write(c->x, p, n) : 0;
    c->stalled = k < n;
    return k;
}

/* One step in [p, p + n); returns how much was used. */
static size_t body_step(struct upstream_call *c, const char *p, size_t n)
{
    if (c->payload) {
        size_t k = deliver(c, p, n < c->payload ? n : c->payload);
        c->payload -= k;
        return k;
    }
    if (c->framing == BODY_CHUNKED) {
        size_t used = 0;
        struct slice data;
        int rc = http_chunked_step(&c->chunked, p, n, &used, &data);
        if (rc == RC_INVALID) {
            broken(c, "the chunked coding is wrong");
            return n;
        }
        size_t k = deliver(c, data.p, data.n);
        if (c->over)
            return n;                    /* the client has gone meanwhile */
        if (k < data.n) {                /* the rest is decoded already */
            c->payload = data.n - k;
            return (size_t)(data.p - p) + k;
        }
        if (rc == RC_CLOSED) {
            if (used < n)
                c->keep = false;         /* bytes that nobody asked for */
            finish(c);
        }
        return used;
    }
    bool counted = c->framing == BODY_LENGTH;
    size_t k = deliver(c, p, counted && (uint64_t)n > (uint64_t)c->left ? (size_t)c->left : n);
    if (!counted || c->over)
        return k;
    c->left -= (int64_t)k;
    if (c->left == 0) {
        if (k < n)
            c->keep = false;
        finish(c);
    }
    return k;
}

/* The chunk after the last byte of payload that was held back may end the body without another byte from the socket, so this runs on `in` as well. */
static size_t process(struct upstream_call *c, const char *p, size_t n)
{
    size_t at = 0;
    while (at < n && !c->over && !c->stalled) {
        size_t used = c->replied ? body_step(c, p + at, n - at) : head(c, p + at, n - at);
        if (!used && !c->replied)
            break;
        at += used;
    }
    return at;
}

static void input(struct upstream_call *c, const char *p, size_t n)
{
    if (buf_len(&c->in) == 0) {
        size_t used = process(c, p, n);
        if (!c->over && used < n && buf_put(&c->in, p + used, n - used) < 0)
            broken(c, "the head is too large");
        return;
    }
    if (buf_put(&c->in, p, n) < 0) {
        broken(c, "the head is too large");
        return;
    }
    size_t used = process(c, buf_data(&c->in), buf_len(&c->in));
    if (c->over)
        return;
    buf_consume(&c->in, used);
    if (buf_len(&c->in) == 0)
        buf_done(&c->in);
}

static void read_answer(struct upstream_call *c)
{
    for (size_t total = 0; total < READ_TURN;) {
        struct err e = { 0 };
        size_t n = 0;
        int rc = uconn_read(c->c, scratch, sizeof scratch, &n, &e);
        if (rc == RC_AGAIN)
            return;
        if (rc == RC_CLOSED && c->replied && c->framing == BODY_CLOSE && buf_len(&c->in) == 0) {
            finish(c);
            return;
        }
        if (rc < 0) {
            e.rc = rc;
            failed(c, 502, &e);
            return;
        }
        total += n;
        bool plain_end = !c->c->tls && n < sizeof scratch;
        input(c, scratch, n);
        if (c->over || !c->c || c->stalled || plain_end)
            return;
    }
    if (c->c->tls)
        kick(c);                         /* bytes may lie in OpenSSL, where epoll does not see them */
}

void call_io(struct upstream_call *c, unsigned got)
{
    struct uconn *conn = c->c;
    c->busy++;
    if ((got & (conn->wr_want | EV_HUP)) && buf_len(&c->out))
        send_out(c);
    if (!c->over && c->c == conn && (got & (conn->rd_want | EV_HUP)) && !c->stalled)
        read_answer(c);
    settle(c);
    leave(c);
}

static void resume(struct upstream_call *c)
{
    if (!c->stalled)
        return;
    c->busy++;
    c->stalled = false;
    size_t n = buf_len(&c->in);
    if (n) {
        size_t used = process(c, buf_data(&c->in), n);
        if (!c->over) {
            buf_consume(&c->in, used);
            if (buf_len(&c->in) == 0)
                buf_done(&c->in);
        }
    }
    if (!c->over && !c->stalled)
        kick(c);                         /* later: the reader has just made room, others wait as well */
    settle(c);
    leave(c);
}

static void cancel(struct upstream_call *c)
{
    c->busy++;
    if (c->c)
        drop_conn(c);
    c->over = true;
    leave(c);
}

const struct upstream_ops uhttp_ops = {
    .name = "http", .start = start, .body = body, .body_end = body_end, .resume = resume, .cancel = cancel,
};
