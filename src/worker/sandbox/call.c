/* call.c - requests to PID 1 of a sandbox and its answers, on the loop thread. Every byte that comes out is hostile: a header that is not the answer to the
 * running request, or a size over what that request may bring, ends the sandbox before memory is taken. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/dur.h"
#include "base/str.h"
#include "worker/sandbox/internal.h"

#define TURN_BYTES (1 * MIB)             /* read per turn of the loop, so that one sandbox cannot starve the rest */
#define STEP_BYTES (64 * KIB)            /* memory grows with what came, not with what was announced */
#define RES_SMALL_MAX (1 * MIB)          /* answers that carry a sentence or a few lines */
#define RES_FLAGS (INSIDE_ERROR | INSIDE_TIMED_OUT | INSIDE_TRUNCATED | INSIDE_SHELL_DIED | INSIDE_DENIED)
#define CALLS_MAX 1024u                  /* queued on one sandbox */
#define INTERRUPTS_MAX 16u

typedef void (*call_cb)(void *, int, const struct inside_res *, const char *, size_t, const struct err *);
struct sbx_callrec {
    struct list node;
    struct sbx *s;                       /* only for a call that was refused at once */
    call_cb cb; void *ctx; int rc;
    struct inside_req req;
    size_t n; char msg[];                /* header, then body: one run of bytes to write */
};

static void on_sock(struct ev_io *io, unsigned got);
static void pump(struct sbx *s);

void call_init(struct sbx *s)
{
    list_init(&s->calls);
    buf_init(&s->in_body, INSIDE_RES_MAX);
}

int call_start_io(struct sbx *s)
{
    return ev_io_start(sbx_host_ev(s->h), &s->io, s->sock, EV_READ, on_sock);
}

void call_done(struct sbx *s)
{
    ev_io_stop(&s->io);
    ev_timer_stop(&s->timer);
    buf_done(&s->in_body);
}

static void finish(struct sbx_callrec *c, int rc, const struct inside_res *h, const char *body, size_t n, const struct err *e)
{
    call_cb cb = c->cb;
    void *ctx = c->ctx;
    free(c);
    cb(ctx, rc, h, body, n, e);
}

void call_fail_all(struct sbx *s)
{
    struct err e = { 0 };
    int rc = s->kill_rc ? s->kill_rc : RC_CLOSED;
    while (s->running || !list_empty(&s->calls)) {
        struct sbx_callrec *c = s->running;
        if (c)
            s->running = NULL;
        else {
            c = list_first(&s->calls, struct sbx_callrec, node);
            list_del(&c->node);
        }
        err_set(&e, rc, "the sandbox was ended: %s", s->why[0] ? s->why : "closed");
        finish(c, rc, NULL, NULL, 0, &e);
        rc = RC_CLOSED;         /* only the call that was running can have timed out */
    }
}

/* ---- the answer ---- */

static uint64_t res_max(const struct inside_req *req)
{
    switch (req->op) {
    case INSIDE_READ: case INSIDE_GLOB: case INSIDE_GREP:
        return INSIDE_RES_MAX;
    case INSIDE_BASH:           /* cleaning may turn one bad byte into three */
        return req->limit0 < (INSIDE_RES_MAX - RES_SMALL_MAX) / 3 ? req->limit0 * 3 + RES_SMALL_MAX : INSIDE_RES_MAX;
    default:
        return RES_SMALL_MAX;
    }
}

int call_check_res(const struct inside_req *req, const struct inside_res *res, struct err *e)
{
    if (res->magic != INSIDE_MAGIC)
        return err_set(e, RC_PROTO, "an answer without its mark");
    if (res->op != req->op || res->id != req->id)
        return err_set(e, RC_PROTO, "answer %u/%u to request %u/%u", res->op, res->id, req->op, req->id);
    if ((res->flags & ~RES_FLAGS) || res->kind > INSIDE_PDF)
        return err_set(e, RC_PROTO, "unknown flags 0x%x or kind %u", res->flags, res->kind);
    if (res->body_bytes > res_max(req))
        return err_set(e, RC_PROTO, "an answer of %llu bytes where %llu are allowed", (unsigned long long)res->body_bytes, (unsigned long long)res_max(req));
    return RC_OK;
}

static void complete(struct sbx *s)
{
    struct sbx_callrec *c = s->running;
    s->running = NULL;
    s->in_head_n = 0;
    s->in_body_on = false;
    s->interrupts = 0;          /* one that came too late must not end the next call; a half-written one is finished first */
    ev_timer_stop(&s->timer);
    struct inside_res h = s->in_head;
    size_t n = 0;
    AUTO_FREE char *body = buf_take(&s->in_body, &n);
    buf_init(&s->in_body, INSIDE_RES_MAX);
    s->posts++;                 /* the callback may close the sandbox */
    if (body)
        finish(c, RC_OK, &h, body, n, NULL);
    else
        finish(c, RC_NOMEM, NULL, NULL, 0, &(struct err){ .rc = RC_NOMEM, .msg = "no memory for the answer" });
    if (!s->closed && s->state != SBX_DYING && s->state != SBX_DEAD)
        pump(s);
    sbx_unpost(s);
}

/* One read; how many bytes, or <= 0: stop for this turn. */
static ssize_t take(struct sbx *s, void *p, size_t n)
{
    ssize_t got = recv(s->sock, p, n, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return -1;
    if (got <= 0)
        sbx_kill(s, RC_CLOSED, "its first process ended");
    return got;
}

static void on_readable(struct sbx *s)
{
    for (size_t left = TURN_BYTES; left > 0;) {
        if (!s->running) {
            char c;
            if (take(s, &c, 1) > 0)
                sbx_kill(s, RC_PROTO, "protocol violation: bytes that nobody asked for");
            return;
        }
        if (!s->in_body_on) {
            ssize_t got = take(s, (char *)&s->in_head + s->in_head_n, sizeof s->in_head - s->in_head_n);
            if (got <= 0)
                return;
            s->in_head_n += (size_t)got;
            if (s->in_head_n < sizeof s->in_head)
                continue;
            struct err e = { 0 };
            if (call_check_res(&s->running->req, &s->in_head, &e) < 0) {
                sbx_kill(s, RC_PROTO, "protocol violation: %s", e.msg);
                return;
            }
            s->in_body_on = true;
        }
        size_t want = (size_t)s->in_head.body_bytes - buf_len(&s->in_body);
        if (want > 0) {
            size_t step = want < STEP_BYTES ? want : STEP_BYTES;
            char *p = buf_reserve(&s->in_body, step);
            if (!p) {
                sbx_kill(s, RC_NOMEM, "no memory for an answer");
                return;
            }
            ssize_t got = take(s, p, step);
            if (got <= 0)
                return;
            buf_commit(&s->in_body, (size_t)got);
            left -= (size_t)got < left ? (size_t)got : left;
        }
        if (buf_len(&s->in_body) == s->in_head.body_bytes) {
            complete(s);        /* `s` may be gone */
            return;             /* what follows would be unasked for, and is found in the next turn */
        }
    }
}

/* ---- the request ---- */

static bool writing(const struct sbx *s)
{
    return s->running && s->out_off < s->running->n;
}

static bool put(struct sbx *s, const char *p, size_t n, size_t *off)
{
    while (*off < n) {
        ssize_t done = send(s->sock, p + *off, n - *off, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 && errno != EAGAIN)        /* reading will tell that it ended */
            return false;
        if (done <= 0)
            return false;
        *off += (size_t)done;
    }
    return true;
}

static void write_some(struct sbx *s)
{
    bool all = !(s->intr_off > 0) || put(s, (const char *)&s->intr, sizeof s->intr, &s->intr_off);
    if (all)
        s->intr_off = 0;
    if (all && writing(s))
        all = put(s, s->running->msg, s->running->n, &s->out_off);
    while (all && s->interrupts > 0) {
        s->intr = (struct inside_req){ .magic = INSIDE_MAGIC, .op = INSIDE_INTERRUPT };
        all = put(s, (const char *)&s->intr, sizeof s->intr, &s->intr_off);
        if (all || s->intr_off > 0)
            s->interrupts--;
        if (all)
            s->intr_off = 0;
    }
    ev_io_want(&s->io, EV_READ | (all ? 0 : EV_WRITE));
}

static void on_timeout(struct ev_timer *t)
{
    struct sbx *s = container_of(t, struct sbx, timer);
    char text[24];
    dur_format(sbx_host_limits(s->h)->call_ms, text);
    if (s->state == SBX_HELLO)
        sbx_kill(s, RC_TIMEOUT, "it did not become ready");
    else
        sbx_kill(s, RC_TIMEOUT, "a call took longer than %s", text);
}

static void pump(struct sbx *s)
{
    if (!s->running && !list_empty(&s->calls) && (s->state == SBX_CLAIMED || s->state == SBX_HELLO)) {
        s->running = list_first(&s->calls, struct sbx_callrec, node);
        list_del(&s->running->node);
        s->out_off = 0;
        s->in_head_n = 0;
        s->in_body_on = false;
        int64_t ms = s->state == SBX_HELLO ? SBX_START_MS : sbx_host_limits(s->h)->call_ms + SBX_CALL_SLACK_MS;
        ev_timer_set(sbx_host_ev(s->h), &s->timer, ms, on_timeout);
    }
    write_some(s);
}

static void on_sock(struct ev_io *io, unsigned got)
{
    struct sbx *s = container_of(io, struct sbx, io);
    if (s->state == SBX_DYING || s->state == SBX_DEAD)
        return;
    if (got & EV_WRITE)
        write_some(s);
    if (got & (EV_READ | EV_HUP))
        on_readable(s);
}

static void refused(void *arg)
{
    struct sbx_callrec *c = arg;
    struct sbx *s = c->s;
    struct err e = { 0 };
    int rc = err_set(&e, c->rc, c->rc == RC_CLOSED ? "the sandbox was ended: %s" : "request refused%s", c->rc == RC_CLOSED ? (s->why[0] ? s->why : "closed") : ": too large, or too many are waiting");
    finish(c, rc, NULL, NULL, 0, &e);
    sbx_unpost(s);
}

void sbx_call(struct sbx *s, const struct inside_req *req, const void *body, size_t body_n, call_cb cb, void *ctx)
{
    const struct sbx_limits *l = sbx_host_limits(s->h);
    size_t waiting = 0;
    list_foreach(c, &s->calls, struct sbx_callrec, node)
        waiting++;
    int rc = body_n > INSIDE_REQ_MAX ? RC_TOO_LARGE : waiting >= CALLS_MAX ? RC_LIMIT
           : s->closed || s->state == SBX_DYING || s->state == SBX_DEAD ? RC_CLOSED : RC_OK;
    struct sbx_callrec *c = xcalloc(1, sizeof *c + sizeof *req + (rc == RC_OK ? body_n : 0));
    c->cb = cb;
    c->ctx = ctx;
    c->s = s;
    c->rc = rc;
    if (rc < 0) {
        s->posts++;
        host_post(s->h, refused, c);
        return;
    }
    c->req = *req;
    c->req.magic = INSIDE_MAGIC;
    c->req.id = ++s->next_id;
    c->req.body_bytes = body_n;
    if (l->call_ms && (int64_t)c->req.timeout_ms > l->call_ms)
        c->req.timeout_ms = (uint32_t)l->call_ms;
    if (c->req.op == INSIDE_BASH && (c->req.limit0 == 0 || c->req.limit0 > l->output_bytes))
        c->req.limit0 = l->output_bytes;
    memcpy(c->msg, &c->req, sizeof c->req);
    if (body_n)
        memcpy(c->msg + sizeof c->req, body, body_n);
    c->n = sizeof c->req + body_n;
    list_add_tail(&s->calls, &c->node);
    if (!s->running)
        pump(s);
}

void sbx_interrupt(struct sbx *s)
{
    if (!s->running || s->state != SBX_CLAIMED || s->interrupts >= INTERRUPTS_MAX)
        return;
    s->interrupts++;
    write_some(s);
}
