/* tunnel/link.c - the life of a link and its turns on the loop: read what came, tell the owners, write what is ready - in this order, once a turn, so that
 * everything the owners write in a turn leaves in one piece. Functions that owners call only note what is to be done (link_arm). */
#include "tunnel/link.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "log/log.h"
#include "tunnel/link_internal.h"
#include "tunnel/proto.h"

static void run(struct link *l, bool read);

static void on_turn(struct ev_timer *t)
{
    run(container_of(t, struct link, turn), false);
}

void link_arm(struct link *l)
{
    if (!l->busy && !l->ended && !ev_timer_armed(&l->turn))
        ev_timer_set(l->ev, &l->turn, 0, on_turn);
}

void link_fail(struct link *l, int rc, const char *fmt, ...)
{
    if (l->failed)
        return;
    char text[ERR_MSG_MAX];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    l->failed = true;
    (void)err_set(&l->why, rc, "%s", text);
    link_arm(l);
}

/* ---- the pipe below ---- */

static int pipe_read(struct link *l, void *p, size_t n, size_t *ret_n, struct err *e)
{
    unsigned want;
    return l->tls ? tls_read(l->tls, p, n, ret_n, &want, e) : l->pipe.read(l->pipe.ctx, p, n, ret_n);
}

static int pipe_write(struct link *l, const void *p, size_t n, size_t *ret_n, struct err *e)
{
    unsigned want;
    return l->tls ? tls_write(l->tls, p, n, ret_n, &want, e) : l->pipe.write(l->pipe.ctx, p, n, ret_n);
}

static void feed(struct link *l, const char *p, size_t n)
{
    ssize_t r = nghttp2_session_mem_recv(l->h2, (const uint8_t *)p, n);
    l->fatal = r < 0;
    if (r < 0)
        link_fail(l, r == NGHTTP2_ERR_NOMEM ? RC_NOMEM : RC_PROTO, "the peer broke HTTP/2: %s", nghttp2_strerror((int)r));
}

static void receive(struct link *l)
{
    static _Thread_local char scratch[16 * 1024];      /* one TLS record */
    l->more = true;
    for (size_t done = 0; done < LINK_TURN_BYTES && !l->failed;) {
        size_t n = 0;
        struct err e = { 0 };
        int rc = pipe_read(l, scratch, sizeof scratch, &n, &e);
        if (rc == RC_AGAIN) {
            l->more = false;
            return;
        }
        if (rc == RC_CLOSED && (l->goaway_sent || l->goaway_got) && l->n_h2 == 0)
            link_fail(l, RC_CLOSED, "the link was drained");
        else if (rc == RC_CLOSED)
            link_fail(l, RC_CLOSED, "the peer ended the link with %zu streams open", l->n_streams);
        else if (rc < 0)
            link_fail(l, rc, "the link failed: %s", e.msg[0] ? e.msg : rc_text(rc));
        if (rc < 0)
            return;
        l->heard_ms = ev_now_ms(l->ev);
        feed(l, scratch, n);
        done += n;
    }
}

/* Frames into the buffer until it is full or there are no more. nghttp2 gives control frames first and takes the streams by the bytes they have had, so
 * that a small message goes before bulk. */
static bool fill(struct link *l)
{
    while (buf_len(&l->out) < LINK_OUT_FILL) {
        const uint8_t *p = NULL;
        ssize_t n = nghttp2_session_mem_send(l->h2, &p);
        if (n == 0)
            break;
        if (n < 0 || buf_put(&l->out, p, (size_t)n) < 0) {
            link_fail(l, RC_NOMEM, "the link cannot make frames: %s", n < 0 ? nghttp2_strerror((int)n) : "no memory");
            return false;
        }
    }
    return true;
}

static void flush(struct link *l)
{
    if (l->blocked)
        return;
    for (size_t done = 0;;) {
        if (buf_len(&l->out) < LINK_OUT_FILL / 4 && !fill(l))
            return;
        if (buf_len(&l->out) == 0)
            break;
        size_t n = 0;
        struct err e = { 0 };
        int rc = done < LINK_TURN_BYTES ? pipe_write(l, buf_data(&l->out), buf_len(&l->out), &n, &e) : RC_AGAIN;
        if (rc == RC_AGAIN) {
            l->blocked = true;
            break;
        }
        if (rc < 0) {
            link_fail(l, rc, "the link failed: %s", e.msg[0] ? e.msg : rc_text(rc));
            return;
        }
        buf_consume(&l->out, n);
        done += n;
    }
    if (buf_len(&l->out) == 0)
        buf_done(&l->out);
    struct err e = { 0 };
    int rc = l->tls ? tls_flush(l->tls, &e) : RC_OK;
    if (rc < 0 && rc != RC_AGAIN) {
        link_fail(l, rc, "the link failed: %s", e.msg);
        return;
    }
    l->blocked = l->blocked || rc == RC_AGAIN;
    ev_io_want(&l->io, EV_READ | (l->blocked ? EV_WRITE : 0));
}

/* ---- telling the owners ---- */

static void open_stream(struct link *l, struct link_stream *s)
{
    struct open_info *o = s->open;
    s->open = NULL;
    if (!s->h2_open) {
        free(o);
        return;
    }
    if (!o->connect || o->bad) {
        link_reply(s, 400);
    } else if (str_eq(o->authority, PROTO_ECHO)) {
        if (l->n_echo >= LINK_ECHOES_MAX) {
            link_reply(s, 503);
        } else {
            s->echo = true;
            l->n_echo++;
            stream_uncount(s);
            link_reply(s, 200);
        }
    } else {
        const struct link_open info = { .authority = o->authority, .client = o->client, .forwarded = o->forwarded };
        l->ops->on_open(l->ctx, l, s, &info);
        if (!s->owned)
            stream_rst(s, NGHTTP2_REFUSED_STREAM);
    }
    free(o);
}

static void say_closed(struct link_stream *s, const struct err *why)
{
    if (s->closed_said || !s->owned)
        return;
    s->closed_said = true;
    if (s->ops && s->ops->on_close)
        s->ops->on_close(s->ctx, s, why);
}

static void say_reset(struct link_stream *s)
{
    struct err why;
    if (s->replied && s->status && s->status != 200)
        (void)err_set(&why, RC_CLOSED, "the other end refused the stream with status %u", s->status);
    else if (s->soft)
        (void)err_set(&why, RC_CLOSED, "the other end has closed the stream");
    else
        (void)err_set(&why, RC_CLOSED, s->error_code == NGHTTP2_REFUSED_STREAM ? "the other end refused the stream" : "the other end reset the stream (%s)",
                      nghttp2_http2_strerror(s->error_code));
    say_closed(s, &why);
}

/* Each event, as long as the stream has an owner. A reset stream is told about its reply and its end only. */
static void tell(struct link *l, struct link_stream *s)
{
    unsigned ev = s->events;
    s->events = 0;
    s->refs++;
    if (ev & SEV_OPEN)
        open_stream(l, s);
    if (s->echo && !l->gone) {
        echo_answer(s);
    } else {
        const struct link_stream_ops *ops = s->ops;
        if (ev & SEV_REPLY && s->owned && !s->closed_said && ops && ops->on_reply)
            ops->on_reply(s->ctx, s, s->status);
        if (ev & SEV_REPLY && s->owned && s->status != 200 && !l->gone) {
            stream_rst(s, NGHTTP2_CANCEL);
            stream_drop(s);
            s->reset = true;
            ev |= SEV_CLOSE;
        }
        ops = s->ops;
        if (ev & SEV_READABLE && (s->soft || !(ev & SEV_CLOSE)) && s->owned && !s->closed_said && ops && ops->on_readable)
            ops->on_readable(s->ctx, s);
        ops = s->ops;
        if (ev & SEV_WRITABLE && !(ev & SEV_CLOSE) && s->owned && !s->closed_said && !s->reset && ops && ops->on_writable)
            ops->on_writable(s->ctx, s);
        if (ev & SEV_CLOSE && !(s->soft && s->in.n > 0))
            say_reset(s);
    }
    stream_unref(s);
}

static void deliver(struct link *l)
{
    if (l->ready_due && !l->failed) {
        l->ready_due = false;
        l->ready_said = true;
        if (l->ops->on_ready)
            l->ops->on_ready(l->ctx, l);
    }
    struct list now;        /* what the owners cause from here on waits for the next turn */
    list_init(&now);
    while (!l->gone && !list_empty(&l->ready)) {
        struct list *n = l->ready.next;
        list_del(n);
        list_add_tail(&now, n);
    }
    while (!list_empty(&now)) {
        struct link_stream *s = list_first(&now, struct link_stream, ready);
        list_del(&s->ready);
        tell(l, s);
    }
    if (l->goaway_due && !l->gone) {
        l->goaway_due = false;
        if (l->ops->on_goaway)
            l->ops->on_goaway(l->ctx, l);
    }
}

/* Takes every stream off the link. Those that ended in good order keep their bytes; the others are told. */
static void part_streams(struct link *l, const struct err *why)
{
    while (!list_empty(&l->all)) {
        struct link_stream *s = list_first(&l->all, struct link_stream, all);
        bool cut = s->h2_open || s->soft || s->events & (SEV_READABLE | SEV_CLOSE);
        s->refs++;
        list_del(&s->all);
        list_del(&s->ready);
        window_give_back(s);
        stream_h2_closed(s);
        if (cut)
            stream_drop(s);
        s->events = 0;
        s->link = NULL;
        if (cut)
            say_closed(s, why);
        stream_unref(s);
    }
}

/* The link has failed: a last word to the peer where it broke the rules, then everybody is told. */
static void finish(struct link *l)
{
    ev_io_stop(&l->io);
    ev_timer_stop(&l->tick);
    ev_timer_stop(&l->turn);
    l->ended = true;
    if (l->why.rc == RC_PROTO && !l->fatal && !l->blocked && nghttp2_session_terminate_session(l->h2, NGHTTP2_PROTOCOL_ERROR) == 0) {
        const uint8_t *p;
        for (ssize_t n; buf_len(&l->out) < LINK_OUT_FILL && (n = nghttp2_session_mem_send(l->h2, &p)) > 0;)
            (void)buf_put(&l->out, p, (size_t)n);
        struct err e;
        for (size_t n; buf_len(&l->out) > 0 && pipe_write(l, buf_data(&l->out), buf_len(&l->out), &n, &e) == RC_OK;)
            buf_consume(&l->out, n);
        if (l->tls && tls_flush(l->tls, &e) < 0)
            log_debug("link.last_word", "reason=%s", "the socket takes no more");
    }
    log_debug("link.end", "as=%s rc=%s streams=%zu reason=%s", l->role == LINK_OPENER ? "opener" : "acceptor", rc_name(l->why.rc), l->n_streams, l->why.msg);
    part_streams(l, &l->why);
    if (!l->gone)
        l->ops->on_end(l->ctx, l, &l->why);
}

static void run(struct link *l, bool read)
{
    l->busy++;
    ev_timer_stop(&l->turn);
    if (!l->failed && buf_len(&l->early) > 0) {
        feed(l, buf_data(&l->early), buf_len(&l->early));
        buf_done(&l->early);
    }
    if ((read || l->more) && !l->failed)
        receive(l);
    deliver(l);
    if (!l->gone && !l->failed)
        flush(l);
    if (!l->gone && !l->failed && l->goaway_got && l->n_h2 == 0 && buf_len(&l->out) == 0 && list_empty(&l->ready) && !l->more)
        link_fail(l, RC_CLOSED, "the link was drained");
    if (!l->gone && l->failed && !l->ended) {
        deliver(l);         /* what came before the end */
        if (!l->gone)
            finish(l);
    }
    l->busy--;
    if (l->busy)
        return;
    if (l->gone)
        free(l);
    else if (!l->ended && (l->more || !list_empty(&l->ready) || l->failed))
        link_arm(l);
}

void link_poke(struct link *l)
{
    l->blocked = false;
    run(l, true);
}

static void on_io(struct ev_io *io, unsigned got)
{
    struct link *l = container_of(io, struct link, io);
    l->blocked = l->blocked && !(got & (EV_WRITE | EV_HUP));
    if (got & (EV_READ | EV_HUP))
        tls_readable(l->tls);
    run(l, got & (EV_READ | EV_HUP));
}

/* ---- liveness ---- */

static void tick_set(struct link *l);

static void on_tick(struct ev_timer *t)
{
    struct link *l = container_of(t, struct link, tick);
    l->busy++;
    if (l->tls)
        tls_readable(l->tls);
    if (!l->failed)
        receive(l);         /* the process may have been stopped for a while: first what lies in the socket */
    int64_t now = ev_now_ms(l->ev);
    if (!l->failed && now - l->heard_ms >= l->dead_ms)
        link_fail(l, RC_TIMEOUT, "nothing was heard from the peer for %d ms", (int)(now - l->heard_ms));
    if (!l->failed && !l->ready_said && !l->ready_due && now - l->made_ms >= l->dead_ms)
        link_fail(l, RC_TIMEOUT, "the peer did not begin HTTP/2 within %d ms", (int)(now - l->made_ms));
    if (!l->failed && now - l->pinged_ms >= l->ping_ms) {
        link_h2_ping(l);
        l->pinged_ms = now;
        window_tick(l);
    }
    if (!l->failed)
        tick_set(l);
    l->busy--;
    run(l, false);
}

static void tick_set(struct link *l)
{
    int64_t now = ev_now_ms(l->ev), ping = l->pinged_ms + l->ping_ms - now, dead = l->heard_ms + l->dead_ms - now;
    int64_t in = ping < dead ? ping : dead;
    ev_timer_set(l->ev, &l->tick, in > 1 ? in : 1, on_tick);
}

/* ---- new and free ---- */

static int make(struct ev *ev, enum link_role role, struct link_budget *budget, const struct link_ops *ops, void *ctx, struct link **ret, struct err *e)
{
    struct link *l = xcalloc(1, sizeof *l);
    *l = (struct link){ .ev = ev, .role = role, .budget = budget, .ops = ops, .ctx = ctx, .fd = -1, .ping_ms = LINK_PING_MS, .dead_ms = LINK_DEAD_MS };
    list_init(&l->all);
    list_init(&l->ready);
    list_init(&l->echoes);
    l->heard_ms = l->window_began_ms = l->made_ms = ev_now_ms(ev);
    l->pinged_ms = l->heard_ms;
    int rc = link_h2_new(l, e);
    if (rc < 0) {
        nghttp2_session_del(l->h2);
        free(l);
        return rc;
    }
    buf_init(&l->out, LINK_OUT_MAX);
    link_h2_ping(l);        /* the first round-trip time */
    tick_set(l);
    link_arm(l);
    *ret = l;
    return RC_OK;
}

int link_new_pipe(struct ev *ev, enum link_role role, struct link_budget *budget, const struct tls_io *pipe, const struct link_ops *ops, void *ctx,
                  struct link **ret, struct err *e)
{
    TRY(make(ev, role, budget, ops, ctx, ret, e));
    (*ret)->pipe = *pipe;
    return RC_OK;
}

int link_new(struct ev *ev, enum link_role role, struct link_budget *budget, int fd, struct tls *tls, const char *early, size_t early_n,
             const struct link_ops *ops, void *ctx, struct link **ret, struct err *e)
{
    struct link *l = NULL;
    TRY(make(ev, role, budget, ops, ctx, &l, e));
    int rc = ev_io_start(ev, &l->io, fd, EV_READ, on_io);
    buf_init(&l->early, early_n);
    if (rc == RC_OK && early_n)
        rc = buf_put(&l->early, early, early_n);
    if (rc == RC_OK)
        rc = tls_batch(tls, e);
    if (rc < 0) {
        link_free(l);
        return err_set(e, rc, "the link cannot be watched");
    }
    l->fd = fd;
    l->tls = tls;
    l->more = true;         /* bytes may wait inside OpenSSL, where the loop does not see them */
    /* Failures do not matter: the pair of sockets of a test knows none of these. */
    const int one = 1, lowat = LINK_NOTSENT_BYTES, user = LINK_DEAD_MS;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &lowat, sizeof lowat);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user, sizeof user);
    *ret = l;
    return RC_OK;
}

void link_free(struct link *l)
{
    if (!l || l->gone)
        return;
    l->gone = true;
    l->busy++;              /* callbacks may look at the link */
    struct err why;
    (void)err_set(&why, RC_CLOSED, "the link was closed");
    ev_io_stop(&l->io);
    ev_timer_stop(&l->turn);
    ev_timer_stop(&l->tick);
    part_streams(l, l->failed ? &l->why : &why);
    echo_end_all(l);
    nghttp2_session_del(l->h2);
    l->h2 = NULL;
    tls_free(l->tls);
    if (l->fd >= 0)
        (void)close(l->fd);
    buf_done(&l->early);
    buf_done(&l->out);
    if (--l->busy == 0)
        free(l);
}

void link_goaway(struct link *l)
{
    if (!link_alive(l) || l->goaway_sent)
        return;
    l->goaway_sent = true;
    /* The acceptor names no last stream: what the opener had sent before it heard of this is still taken. */
    int rc = l->role == LINK_ACCEPTOR ? nghttp2_submit_shutdown_notice(l->h2) : nghttp2_submit_goaway(l->h2, NGHTTP2_FLAG_NONE, 0, NGHTTP2_NO_ERROR, NULL, 0);
    if (rc != 0)
        link_fail(l, RC_NOMEM, "the link is out of memory");
    link_arm(l);
}

bool link_usable(const struct link *l)
{
    return link_alive(l) && l->role == LINK_OPENER && l->ready_said && !l->goaway_sent && !l->goaway_got && nghttp2_session_check_request_allowed(l->h2);
}

size_t link_streams(const struct link *l) { return l->n_streams; }
size_t link_queued(const struct link *l) { return l->out_bytes + buf_len(&l->out); }
int64_t link_heard_ms(const struct link *l) { return l->heard_ms; }
int64_t link_rtt_us(const struct link *l) { return l->rtt_us; }
int64_t link_echoed_ms(const struct link *l) { return l->echoed_ms; }
