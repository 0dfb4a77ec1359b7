/* edge/relay.c - see relay.h. A window of the stream is given back when the client's socket has taken the bytes; reading from the client stops while the
 * stream takes no more: nothing piles up here. The client's bytes are read straight into the stream's queue. */
#include "edge/relay.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/str.h"
#include "log/log.h"

#define PIECE (16 * KIB)                 /* one TLS record */

struct relay {
    struct list node;
    struct edge *e;
    struct seat seat;
    int fd;
    struct tls *tls;
    struct ev_io io;
    struct ev_timer kick, half;
    struct link_stream *s;               /* NULL: only the client's end is awaited */
    struct buf early;                    /* came from the client before the stream was there */
    const char *pre;                     /* rest of what goes to the client first; static text */
    unsigned rd_want, wr_want;           /* EV_*: what reading and writing wait for; 0: not for the socket */
    bool up_end, up_shut, down_end;      /* the client has ended; the stream knows; the stream has ended and the client knows */
    uint64_t up, down;
    int64_t started_ms;
    char *host;
    char client[NET_ADDR_TEXT];
};

/* ---- the end ---- */

static void relay_free(struct relay *r)
{
    ev_io_stop(&r->io);
    ev_timer_stop(&r->kick);
    ev_timer_stop(&r->half);
    link_stream_free(r->s);
    tls_free(r->tls);
    if (r->fd >= 0)
        (void)close(r->fd);
    seat_done(&r->seat);
    list_del(&r->node);
    r->e->n_relays--;
    metric_add(&stat_relays, -1);
    buf_done(&r->early);
    free(r->host);
    free(r);
}

static void say_end(const struct relay *r, const char *why)
{
    log_debug("edge.relay_end", "host=%s client=%s to_gateway=%llu to_client=%llu seconds=%lld why=%s", r->host, r->client, (unsigned long long)r->up,
              (unsigned long long)r->down, (long long)((ev_now_ms(r->e->ev) - r->started_ms) / 1000), why);
}

/* Something broke on one side: the other one must see that it was no orderly end. */
static void break_off(struct relay *r, const char *why)
{
    static const struct linger reset = { .l_onoff = 1, .l_linger = 0 };
    say_end(r, why);
    (void)setsockopt(r->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    relay_free(r);
}

static void on_half(struct ev_timer *t)
{
    struct relay *r = container_of(t, struct relay, half);
    if (!r->s)
        relay_free(r);
    else
        break_off(r, "one side has ended, the other one is silent");
}

static void progress(struct relay *r)
{
    if (r->up_end || r->down_end)
        ev_timer_set(r->e->ev, &r->half, RELAY_HALF_MS, on_half);
}

/* ---- client to stream ---- */

static int receive(struct relay *r, char *p, size_t n, size_t *ret_n, struct err *e)
{
    unsigned want = EV_READ;
    if (r->tls) {
        int rc = tls_read(r->tls, p, n, ret_n, &want, e);
        r->rd_want = rc == RC_AGAIN ? want : EV_READ;
        return rc;
    }
    ssize_t got = recv(r->fd, p, n, 0);
    r->rd_want = EV_READ;
    if (got > 0) {
        *ret_n = (size_t)got;
        return RC_OK;
    }
    return got == 0 ? RC_CLOSED : errno == EAGAIN || errno == EINTR ? RC_AGAIN : err_sys(e, RC_IO, errno, "read from the client");
}

static void on_kick(struct ev_timer *t);

static void kick(struct relay *r)
{
    if (!ev_timer_armed(&r->kick))
        ev_timer_set(r->e->ev, &r->kick, 0, on_kick);
}

/* False: `r` is gone. */
static bool pull(struct relay *r)
{
    for (size_t done = 0; !r->up_end && r->s;) {
        size_t room = 0, n = 0;
        struct err e;
        if (done >= RELAY_TURN) {
            kick(r);                     /* what is left may lie in the TLS layer, where the loop does not see it */
            break;
        }
        if (buf_len(&r->early)) {
            n = link_write(r->s, buf_data(&r->early), buf_len(&r->early));
            buf_consume(&r->early, n);
            r->up += n;
            if (buf_len(&r->early)) {
                r->rd_want = 0;
                break;
            }
            buf_done(&r->early);
        }
        char *to = link_write_reserve(r->s, PIECE, &room);
        if (!to) {
            r->rd_want = 0;              /* on_writable goes on */
            break;
        }
        int rc = receive(r, to, room, &n, &e);
        link_write_commit(r->s, rc == RC_OK ? n : 0);
        if (rc == RC_AGAIN)
            break;
        if (rc == RC_CLOSED) {
            r->up_end = true;
            r->rd_want = 0;
        } else if (rc < 0) {
            break_off(r, e.msg);
            return false;
        }
        done += n;
        r->up += n;
        metric_add(&stat_bytes_up, (int64_t)n);
        progress(r);
    }
    if (r->up_end && !r->up_shut) {
        r->up_shut = true;
        link_shutdown(r->s);
    }
    return true;
}

/* ---- stream to client ---- */

static int send_some(struct relay *r, const char *p, size_t n, size_t *ret_n, struct err *e)
{
    unsigned want = EV_WRITE;
    r->wr_want = 0;
    if (r->tls) {
        int rc = tls_write(r->tls, p, n, ret_n, &want, e);
        r->wr_want = rc == RC_AGAIN ? want : 0;
        return rc;
    }
    ssize_t w = send(r->fd, p, n, MSG_NOSIGNAL);
    if (w > 0) {
        *ret_n = (size_t)w;
        return RC_OK;
    }
    if (errno != EAGAIN && errno != EINTR)
        return err_sys(e, RC_IO, errno, "write to the client");
    r->wr_want = EV_WRITE;
    return RC_AGAIN;
}

static void half_close(struct relay *r);

/* False: `r` is gone. */
static bool push(struct relay *r)
{
    size_t done = 0, n = 0;
    while (r->s) {
        struct err e;
        struct slice p = r->pre ? slice_of(r->pre) : link_peek(r->s);
        if (p.n == 0)
            break;
        if (done >= RELAY_TURN) {
            kick(r);
            return true;
        }
        int rc = send_some(r, p.p, p.n < PIECE ? p.n : PIECE, &n, &e);
        if (rc == RC_AGAIN)
            return true;
        if (rc < 0) {
            break_off(r, e.msg);
            return false;
        }
        done += n;
        if (r->pre) {
            r->pre = n < p.n ? r->pre + n : NULL;
            continue;
        }
        link_consume(r->s, n);
        r->down += n;
        metric_add(&stat_bytes_down, (int64_t)n);
        progress(r);
    }
    if (r->s && !r->down_end && link_eof(r->s)) {
        r->down_end = true;
        half_close(r);
    }
    return true;
}

/* The stream has ended and the client has everything. Plain TCP carries the half-close on; a TLS session is at its end with it, and whatever the client
 * still sends is thrown away until it closes, so that no reset overtakes the last bytes. */
static void half_close(struct relay *r)
{
    if (r->tls) {
        say_end(r, "the gateway has ended the stream");
        tls_free(TAKE(r->tls));
        link_stream_free(TAKE(r->s));
        ev_timer_set(r->e->ev, &r->half, DOOR_LINGER_MS, on_half);
    } else {
        progress(r);
    }
    (void)shutdown(r->fd, SHUT_WR);
    r->rd_want = EV_READ;
}

/* ---- turns ---- */

/* After the end of a TLS session: reads until the client has closed. False: gone. */
static bool wait_for_end(struct relay *r)
{
    char waste[4096];
    ssize_t n = recv(r->fd, waste, sizeof waste, 0);
    if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
        return true;
    relay_free(r);
    return false;
}

static void settle(struct relay *r)
{
    if (r->s && r->up_end && r->down_end) {
        say_end(r, "both ends have finished");
        relay_free(r);
        return;
    }
    ev_io_want(&r->io, r->s ? r->rd_want | r->wr_want : EV_READ);
}

static void turn(struct relay *r)
{
    if (!r->s ? wait_for_end(r) : push(r) && pull(r))
        settle(r);
}

static void on_kick(struct ev_timer *t)
{
    turn(container_of(t, struct relay, kick));
}

static void on_io(struct ev_io *io, unsigned got)
{
    struct relay *r = container_of(io, struct relay, io);
    /* A reset, or both directions closed: if nobody waits to read, nobody would ever see it. */
    if (got & EV_HUP && !(got & EV_READ) && r->s) {
        break_off(r, "the client has gone");
        return;
    }
    turn(r);
}

static void on_stream(void *ctx, struct link_stream *s)
{
    (void)s;
    turn(ctx);
}

static void on_close(void *ctx, struct link_stream *s, const struct err *why)
{
    (void)s;
    break_off(ctx, why->msg);
}

void relay_start(struct edge *e, struct guest_gift *gift, struct link_stream *s, const char *host, const char *client, const char *pre)
{
    static const struct link_stream_ops ops = { .on_readable = on_stream, .on_writable = on_stream, .on_close = on_close };
    struct relay *r = xcalloc(1, sizeof *r);
    r->e = e;
    r->fd = gift->fd;
    r->tls = gift->tls;
    r->seat = gift->seat;
    r->early = gift->early;
    r->s = s;
    r->pre = pre;
    r->rd_want = EV_READ;
    r->started_ms = ev_now_ms(e->ev);
    r->host = str_dup(host);
    (void)str_copy(r->client, sizeof r->client, client);
    list_add_tail(&e->relays, &r->node);
    e->n_relays++;
    metric_add(&stat_relays, 1);
    metric_add(&stat_relays_total, 1);
    link_stream_attach(s, &ops, r);
    if (ev_io_start(e->ev, &r->io, r->fd, EV_READ, on_io) < 0) {
        break_off(r, "register with the event loop");
        return;
    }
    kick(r);
}

void relays_end(struct edge *e)
{
    list_foreach (r, &e->relays, struct relay, node)
        break_off(r, "the edge is shutting down");
}
