/* tunnel/relay.c - one pump for all pairs of ends. A kind of end is a row of functions: a stream gives its bytes in place and lends room for new ones, a
 * socket reads into such room and writes from such bytes, so nothing is copied in between. */
#include "tunnel/relay.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/str.h"

#define READ_FIRST (4 * KIB)        /* a read of a socket asks for so much, */
#define READ_MOST (64 * KIB)        /* and for more as long as it comes */
#define SOURCE_END 1                /* peek and read: no bytes will come any more */

struct end;
struct end_kind {
    /* As a source, one of the two: bytes in place, or a read into memory. RC_OK, RC_AGAIN, SOURCE_END, or broken. */
    int (*peek)(struct end *x, struct slice *ret, struct err *e);
    void (*taken)(struct end *x, size_t n);
    int (*read)(struct end *x, void *p, size_t n, size_t *ret_n, struct err *e);
    /* As a sink. */
    int (*write)(struct end *x, const void *p, size_t n, size_t *ret_n, struct err *e);
    char *(*reserve)(struct end *x, size_t max, size_t *ret_n);
    void (*commit)(struct end *x, size_t n);
    int (*shut)(struct end *x, struct err *e);      /* no more bytes will be written */
    void (*close)(struct end *x, bool reset);
};

struct end {
    const struct end_kind *kind;
    struct relay *relay;
    struct link_stream *stream;
    struct tls *tls;
    struct ev_io io;
    int fd;
    bool wrote_short;                   /* of a socket: it takes no more for now */
    bool drained;                       /* of a socket: nothing to read until the loop says so */
    bool dead;                          /* of a socket: hung up, the loop watches it no longer */
};

/* What flows from `from` to `to`. */
struct flow { struct end *from, *to; uint64_t bytes; size_t ask; bool eof, over; };

struct relay {
    struct ev *ev;
    struct end a, b;
    struct flow ab, ba;
    struct buf early;                   /* of the one socket */
    struct ev_timer turn;
    void (*on_done)(void *ctx, const struct relay_result *res);
    void *ctx;
    int64_t moved_ms;
    bool busy, done, gone;
};

/* ---- streams ---- */

static int stream_peek(struct end *x, struct slice *ret, struct err *e)
{
    (void)e;
    *ret = link_peek(x->stream);
    return ret->n ? RC_OK : link_eof(x->stream) ? SOURCE_END : RC_AGAIN;
}

static void stream_taken(struct end *x, size_t n)
{
    link_consume(x->stream, n);
}

static int stream_write(struct end *x, const void *p, size_t n, size_t *ret_n, struct err *e)
{
    (void)e;
    *ret_n = link_write(x->stream, p, n);
    return *ret_n ? RC_OK : RC_AGAIN;
}

static char *stream_reserve(struct end *x, size_t max, size_t *ret_n)
{
    return link_write_reserve(x->stream, max, ret_n);
}

static void stream_commit(struct end *x, size_t n)
{
    link_write_commit(x->stream, n);
}

static int stream_shut(struct end *x, struct err *e)
{
    (void)e;
    link_shutdown(x->stream);
    return RC_OK;
}

static void stream_close(struct end *x, bool reset)
{
    if (reset)
        link_stream_reset(x->stream);
    else
        link_stream_free(x->stream);
    x->stream = NULL;
}

static const struct end_kind stream_kind = {
    .peek = stream_peek, .taken = stream_taken, .write = stream_write, .reserve = stream_reserve, .commit = stream_commit, .shut = stream_shut, .close = stream_close,
};

/* ---- sockets ---- */

static int sock_read(struct end *x, void *p, size_t n, size_t *ret_n, struct err *e)
{
    unsigned want;
    if (x->drained)
        return RC_AGAIN;
    if (x->tls) {
        int rc = tls_read(x->tls, p, n, ret_n, &want, e);
        x->drained = rc == RC_AGAIN && want == EV_READ && !x->dead;
        return rc == RC_CLOSED ? SOURCE_END : rc;
    }
    ssize_t r;
    while ((r = recv(x->fd, p, n, 0)) < 0 && errno == EINTR) {
    }
    if (r == 0)
        return SOURCE_END;
    x->drained = r < (ssize_t)n && !x->dead;
    if (r < 0)
        return errno == EAGAIN ? RC_AGAIN : errno == ECONNRESET ? err_set(e, RC_CLOSED, "the client reset the connection") : err_sys(e, RC_IO, errno, "read");
    *ret_n = (size_t)r;
    return RC_OK;
}

static int sock_write(struct end *x, const void *p, size_t n, size_t *ret_n, struct err *e)
{
    unsigned want;
    if (x->tls)
        return tls_write(x->tls, p, n, ret_n, &want, e);
    ssize_t r;
    while ((r = send(x->fd, p, n, MSG_NOSIGNAL)) < 0 && errno == EINTR) {
    }
    if (r < 0)
        return errno == EAGAIN ? RC_AGAIN : errno == ECONNRESET || errno == EPIPE ? err_set(e, RC_CLOSED, "the client reset the connection") : err_sys(e, RC_IO, errno, "write");
    *ret_n = (size_t)r;
    return RC_OK;
}

static int sock_shut(struct end *x, struct err *e)
{
    unsigned want;
    if (x->tls)
        TRY(tls_shutdown(x->tls, &want, e));
    (void)shutdown(x->fd, SHUT_WR);     /* a peer that is gone shows in the next read */
    return RC_OK;
}

static void sock_close(struct end *x, bool reset)
{
    ev_io_stop(&x->io);
    if (reset) {
        const struct linger now = { .l_onoff = 1 };
        (void)setsockopt(x->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);      /* the other side sees a reset, not an end */
        if (x->tls)
            tls_cut(x->tls);
    }
    tls_free(x->tls);
    (void)close(x->fd);
    x->tls = NULL;
    x->fd = -1;
}

static const struct end_kind sock_kind = { .read = sock_read, .write = sock_write, .shut = sock_shut, .close = sock_close };

/* ---- the pump ---- */

/* Closes both ends and tells; the relay may be gone then, but for a pump that is under way. */
static void finish(struct relay *r, bool clean, bool reset, const struct err *why)
{
    if (r->done)
        return;
    r->done = true;
    ev_timer_stop(&r->turn);
    r->a.kind->close(&r->a, reset);
    r->b.kind->close(&r->b, reset);
    buf_done(&r->early);
    struct relay_result res = { .a_to_b = r->ab.bytes, .b_to_a = r->ba.bytes, .clean = clean };
    if (!clean)
        res.why = *why;
    bool outer = r->busy;
    r->busy = true;
    r->on_done(r->ctx, &res);
    r->busy = outer;
    if (!outer && r->gone)
        free(r);
}

static void moved(struct relay *r, struct flow *f, size_t n)
{
    f->bytes += n;
    r->moved_ms = ev_now_ms(r->ev);
}

/* What had been read from the socket before. */
static int move_early(struct relay *r, struct flow *f, struct err *e)
{
    while (buf_len(&r->early) > 0) {
        size_t n;
        TRY(f->to->kind->write(f->to, buf_data(&r->early), buf_len(&r->early), &n, e));
        buf_consume(&r->early, n);
        moved(r, f, n);
    }
    buf_done(&r->early);
    return RC_OK;
}

/* From bytes in place. RC_AGAIN: either end has to be waited for. */
static int move_placed(struct relay *r, struct flow *f, struct err *e)
{
    for (;;) {
        struct slice s;
        size_t n;
        int rc = f->from->kind->peek(f->from, &s, e);
        if (rc != RC_OK)
            return rc;
        rc = f->to->kind->write(f->to, s.p, s.n, &n, e);
        f->to->wrote_short = rc == RC_AGAIN;
        if (rc < 0)
            return rc;
        f->from->kind->taken(f->from, n);
        moved(r, f, n);
    }
}

/* By reads into room that the other end lends. */
static int move_read(struct relay *r, struct flow *f, struct err *e)
{
    if (buf_len(&r->early) > 0)
        TRY(move_early(r, f, e));
    for (;;) {
        if (f->from->drained && link_write_room(f->to->stream) > 0)
            return RC_AGAIN;            /* without room the stream has to be asked, so that it tells when there is some */
        size_t room = 0, n = 0;
        char *p = f->to->kind->reserve(f->to, f->ask, &room);
        if (!p)
            return RC_AGAIN;
        int rc = f->from->kind->read(f->from, p, room, &n, e);
        f->to->kind->commit(f->to, rc == RC_OK ? n : 0);
        if (rc != RC_OK)
            return rc;
        moved(r, f, n);
        if (n == f->ask)
            f->ask = f->ask < READ_MOST ? f->ask * 2 : READ_MOST;
        else if (n == room)
            continue;                   /* up to the end of the ring */
        else if (n < f->ask / 2)
            f->ask = READ_FIRST;
    }
}

/* RC_AGAIN: it goes on later; RC_OK: this direction is over; else broken. */
static int move(struct relay *r, struct flow *f, struct err *e)
{
    if (f->over)
        return RC_OK;
    if (!f->eof) {
        int rc = f->from->kind->peek ? move_placed(r, f, e) : move_read(r, f, e);
        if (rc != SOURCE_END)
            return rc;
        f->eof = true;
    }
    int rc = f->to->kind->shut(f->to, e);
    f->to->wrote_short = rc == RC_AGAIN;
    if (rc == RC_OK)
        f->over = true;
    return rc;
}

static void set_want(struct end *x, const struct flow *out)
{
    if (!x->io.ev)
        return;
    /* Bytes that this end has for a sink that is full are not asked for: the sink says when it has room. */
    bool room = !out->eof && (!out->to->stream || link_write_room(out->to->stream) > 0);
    ev_io_want(&x->io, (room ? EV_READ : 0) | (x->wrote_short ? EV_WRITE : 0));
}

static void pump(struct relay *r)
{
    if (r->done || r->busy)
        return;
    struct err e = { 0 };
    r->busy = true;
    int rc = move(r, &r->ab, &e);
    if (rc == RC_OK || rc == RC_AGAIN) {
        int rc2 = move(r, &r->ba, &e);
        if (rc == RC_OK || rc2 != RC_OK)
            rc = rc2;
    }
    if (rc == RC_OK)
        finish(r, true, false, NULL);
    else if (rc != RC_AGAIN)
        finish(r, false, true, &e);
    if (!r->done) {
        set_want(&r->a, &r->ab);
        set_want(&r->b, &r->ba);
    }
    r->busy = false;
    if (r->gone)
        free(r);
}

static void on_turn(struct ev_timer *t)
{
    pump(container_of(t, struct relay, turn));
}

static void on_io(struct ev_io *io, unsigned got)
{
    struct end *x = container_of(io, struct end, io);
    struct relay *r = x->relay;
    x->drained = x->drained && !(got & (EV_READ | EV_HUP));
    if (got & EV_HUP) {
        int code = 0;
        socklen_t n = sizeof code;
        (void)getsockopt(x->fd, SOL_SOCKET, SO_ERROR, &code, &n);
        if (code) {
            struct err e;
            (void)err_set(&e, RC_CLOSED, "the client reset the connection");
            finish(r, false, true, &e);
            return;
        }
        x->dead = true;                 /* both sides have ended: what is left can be read at any time, and the loop would not stop telling */
        ev_io_stop(&x->io);
    }
    pump(r);
}

static void on_stream(void *ctx, struct link_stream *s)
{
    (void)s;
    pump(((struct end *)ctx)->relay);
}

/* Reset, or the link died. After its bytes and their end were delivered it is only that the other end reads no more: the socket ends in good order. */
static void on_stream_close(void *ctx, struct link_stream *s, const struct err *why)
{
    struct end *x = ctx;
    struct relay *r = x->relay;
    const struct flow *out = x == &r->a ? &r->ab : &r->ba;
    finish(r, false, !out->eof && !link_eof(s), why);
}

static const struct link_stream_ops stream_ops = { .on_readable = on_stream, .on_writable = on_stream, .on_close = on_stream_close };

/* ---- new and free ---- */

static int start_end(struct relay *r, struct end *x, const struct relay_end *from)
{
    x->relay = r;
    x->kind = from->stream ? &stream_kind : &sock_kind;
    x->stream = from->stream;
    x->fd = -1;
    if (from->stream)
        return RC_OK;
    TRY(ev_io_start(r->ev, &x->io, from->fd, EV_READ, on_io));
    x->fd = from->fd;
    x->tls = from->tls;
    const int one = 1;
    (void)setsockopt(x->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return RC_OK;
}

int relay_new(struct ev *ev, const struct relay_end *a, const struct relay_end *b, void (*on_done)(void *ctx, const struct relay_result *res), void *ctx,
              struct relay **ret, struct err *e)
{
    const struct relay_end *sock = a->stream ? b : a;
    if (!a->stream && !b->stream)
        return err_set(e, RC_INVALID, "a relay needs a stream");
    if (!sock->stream && sock->early_n > RELAY_EARLY_MAX)
        return err_set(e, RC_TOO_LARGE, "more than %zu bytes came before the relay", RELAY_EARLY_MAX);
    struct relay *r = xcalloc(1, sizeof *r);
    *r = (struct relay){ .ev = ev, .on_done = on_done, .ctx = ctx, .moved_ms = ev_now_ms(ev) };
    r->ab = (struct flow){ .from = &r->a, .to = &r->b, .ask = READ_FIRST };
    r->ba = (struct flow){ .from = &r->b, .to = &r->a, .ask = READ_FIRST };
    buf_init(&r->early, RELAY_EARLY_MAX);
    int rc = start_end(r, &r->a, a);
    if (rc == RC_OK)
        rc = start_end(r, &r->b, b);
    if (rc == RC_OK && !sock->stream && sock->early_n)
        rc = buf_put(&r->early, sock->early, sock->early_n);
    if (rc < 0) {
        ev_io_stop(&r->a.io);
        ev_io_stop(&r->b.io);
        free(r);
        return err_set(e, rc, "a relay cannot watch its socket");
    }
    if (a->stream)
        link_stream_attach(a->stream, &stream_ops, &r->a);
    if (b->stream)
        link_stream_attach(b->stream, &stream_ops, &r->b);
    ev_timer_set(ev, &r->turn, 0, on_turn);     /* bytes may wait where no event tells of them */
    *ret = r;
    return RC_OK;
}

void relay_free(struct relay *r)
{
    if (!r || r->gone)
        return;
    r->gone = true;
    if (!r->done) {
        r->done = true;
        ev_timer_stop(&r->turn);
        r->a.kind->close(&r->a, true);
        r->b.kind->close(&r->b, true);
        buf_done(&r->early);
    }
    if (!r->busy)
        free(r);
}

int64_t relay_moved_ms(const struct relay *r) { return r->moved_ms; }

void relay_bytes(const struct relay *r, uint64_t *ret_a_to_b, uint64_t *ret_b_to_a)
{
    *ret_a_to_b = r->ab.bytes;
    *ret_b_to_a = r->ba.bytes;
}
