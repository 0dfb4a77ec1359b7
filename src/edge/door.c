/* edge/door.c - see door.h */
#include "edge/door.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/socket.h>

#include "base/random.h"
#include "base/secret.h"
#include "base/str.h"
#include "log/log.h"

#define SCRATCH (16 * KIB)
#define ACCEPT_PAUSE_MS 100         /* after running out of descriptors or memory */
#define OUT_MAX (8 * KIB)           /* an answer of ours */
#define KEEPALIVE_IDLE_S 30         /* a client that vanished without a word is noticed within about a minute */
#define KEEPALIVE_STEP_S 10
#define KEEPALIVE_TRIES 3
#define RETRY_AFTER_MIN_S 1
#define RETRY_AFTER_SPREAD_S 5      /* many clients that were refused together come back apart */

enum { GUEST_HANDSHAKE = 1, GUEST_INPUT, GUEST_HELD, GUEST_ANSWER, GUEST_LAST_WORD, GUEST_LINGER };

struct door {
    struct door_conf c;
    struct sources *sources;            /* of this listener alone: what one is full of does not close another */
    int fd;
    char address[NET_ADDR_TEXT];
    struct ev_io io;
    struct ev_timer pause, turns;
    struct list guests, young, waiting; /* young: the fresh ones, oldest first; waiting: guests whose handshake can go on */
    size_t conns, fresh, n_guests;
    bool starved;                       /* out of descriptors or memory */
};

static void on_guest(struct ev_io *io, unsigned got);
static void on_late(struct ev_timer *t);

const char *door_address(const struct door *d) { return d->address; }
void *door_ctx(const struct door *d) { return d->c.ctx; }
size_t door_guests(const struct door *d) { return d ? d->n_guests : 0; }

/* ---- accepting ---- */

static bool room(const struct door *d)
{
    return d->conns < d->c.conns_max && d->fresh < d->c.fresh_max;
}

static void reopen(struct door *d)
{
    if (d->io.ev && !d->starved && room(d)) {
        ev_timer_stop(&d->pause);
        ev_io_want(&d->io, EV_READ);
    }
}

static void no_longer_fresh(struct guest *g)
{
    if (!g->fresh)
        return;
    g->fresh = false;
    list_del(&g->young);
    source_known(g->source);
    g->door->fresh--;
    metric_add(&stat_handshakes_open, -1);
    reopen(g->door);
}

static void leave(struct door *d, struct source *s)
{
    source_leave(s, false);
    d->conns--;
    metric_add(&stat_sources_open, -1);
    reopen(d);
}

void seat_done(struct seat *s)
{
    if (s->door)
        leave(s->door, s->source);
    *s = (struct seat){ 0 };
}

/* Everything but the descriptor and TLS. */
static void forget(struct guest *g)
{
    ev_io_stop(&g->io);
    ev_timer_stop(&g->timer);
    list_del(&g->node);
    list_del(&g->turn);
    buf_wipe(&g->in);
    buf_done(&g->out);
    g->door->n_guests--;
    free(g);
}

static void close_guest(struct guest *g)
{
    no_longer_fresh(g);
    tls_free(g->tls);
    (void)close(g->fd);
    leave(g->door, g->source);
    forget(g);
}

static void set_options(int fd)
{
    int one = 1, idle = KEEPALIVE_IDLE_S, step = KEEPALIVE_STEP_S, tries = KEEPALIVE_TRIES;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);     /* refused by Unix sockets, which need none of these */
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &step, sizeof step);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &tries, sizeof tries);
}

static void refuse_source(struct door *d, int fd, const struct net_addr *peer, enum refusal why)
{
    char text[NET_ADDR_TEXT];
    net_addr_format(peer, text);
    stats_refused(why);
    log_debug("edge.refused", "door=%s peer=%s why=%s", d->c.name, text, refusals[why].text);
    (void)close(fd);
}

static void welcome(struct door *d, int fd, const struct net_addr *peer)
{
    if (d->c.allow && !ranges_have(d->c.allow, peer)) {
        refuse_source(d, fd, peer, REFUSE_SOURCE);
        return;
    }
    struct source *src = source_enter(d->sources, peer);
    if (src->conns > d->c.per_source || src->fresh > d->c.fresh_per_source) {
        source_leave(src, true);
        refuse_source(d, fd, peer, REFUSE_SOURCE_LIMIT);
        return;
    }
    struct guest *g = xcalloc(1, sizeof *g);
    g->door = d;
    g->fd = fd;
    g->peer = *peer;
    g->source = src;
    g->fresh = true;
    g->state = d->c.tls ? GUEST_HANDSHAKE : GUEST_INPUT;
    net_addr_format(peer, g->peer_text);
    buf_init(&g->in, d->c.in_max);
    buf_init(&g->out, OUT_MAX);
    g->since_ms = ev_now_ms(d->c.ev);
    list_init(&g->turn);
    list_add_tail(&d->young, &g->young);
    list_add_tail(&d->guests, &g->node);
    d->n_guests++;
    d->conns++;
    d->fresh++;
    metric_add(&stat_handshakes_open, 1);
    metric_add(&stat_sources_open, 1);
    set_options(fd);
    if ((d->c.tls && tls_accept(*d->c.tls, fd, &g->tls, NULL) < 0) || ev_io_start(d->c.ev, &g->io, fd, EV_READ, on_guest) < 0) {
        close_guest(g);
        return;
    }
    ev_timer_set(d->c.ev, &g->timer, d->c.head_ms, on_late);
}

static void on_accept_again(struct ev_timer *t)
{
    struct door *d = container_of(t, struct door, pause);
    d->starved = false;
    ev_io_want(&d->io, EV_READ);
}

static void pause_accept(struct door *d)
{
    ev_io_want(&d->io, 0);              /* the next ones wait in the backlog */
    ev_timer_set(d->c.ev, &d->pause, ACCEPT_PAUSE_MS, on_accept_again);
}

/* Connections that say nothing must not keep others out: somebody who holds all places has to come anew for each of them all the time. One whose handshake
 * waits for its turn here is not to blame. */
static bool make_room(struct door *d)
{
    if (d->conns >= d->c.conns_max)
        return false;
    list_foreach (g, &d->young, struct guest, young) {
        if (ev_now_ms(d->c.ev) - g->since_ms < DOOR_PATIENCE_MS)
            return false;
        if (list_empty(&g->turn)) {
            stats_refused(REFUSE_SLOW);
            close_guest(g);
            return true;
        }
    }
    return false;
}

static bool concerns_one(int err)      /* accept(2): errors of the connection, not of the listener */
{
    return err == ECONNABORTED || err == EINTR || err == EPROTO || err == ENETDOWN || err == ENOPROTOOPT || err == EHOSTDOWN || err == ENONET ||
           err == EHOSTUNREACH || err == EOPNOTSUPP || err == ENETUNREACH || err == EPERM;
}

static void on_accept(struct ev_io *io, unsigned got)
{
    (void)got;
    struct door *d = container_of(io, struct door, io);
    for (int i = 0; i < DOOR_ACCEPT_TURN; i++) {
        bool full = !room(d);
        if (full && i > 0)
            return;                     /* whether another one waits is told by the loop: no room is made for nobody */
        if (full && !make_room(d)) {
            pause_accept(d);
            return;
        }
        struct net_addr peer = { .len = sizeof peer.ss };
        int fd = accept4(d->fd, (struct sockaddr *)&peer.ss, &peer.len, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            welcome(d, fd, &peer);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            return;
        } else if (!concerns_one(errno)) {
            d->starved = true;
            pause_accept(d);
            return;
        }
    }
}

int door_new(const struct door_conf *c, struct door **ret, struct err *e)
{
    struct net_addr want, bound;
    struct door *d = xcalloc(1, sizeof *d);
    d->c = *c;
    list_init(&d->guests);
    list_init(&d->waiting);
    list_init(&d->young);
    int rc = net_addr_parse(c->listen, &want, e);
    if (rc == RC_OK)
        rc = net_listen(&want, &d->fd, &bound, e);
    if (rc < 0) {
        free(d);
        return err_wrap(e, rc, "%s.listen", c->name);
    }
    d->sources = sources_new();
    net_addr_format(&bound, d->address);
    if (ev_io_start(c->ev, &d->io, d->fd, EV_READ, on_accept) < 0) {
        (void)close(d->fd);
        sources_free(d->sources);
        free(d);
        return err_set(e, RC_NOMEM, "%s.listen: register with the event loop", c->name);
    }
    *ret = d;
    return RC_OK;
}

void door_close(struct door *d)
{
    if (!d || !d->io.ev)
        return;
    ev_io_stop(&d->io);
    ev_timer_stop(&d->pause);
    (void)close(d->fd);
}

void door_free(struct door *d)
{
    if (!d)
        return;
    door_close(d);
    list_foreach (g, &d->guests, struct guest, node)
        close_guest(g);
    ev_timer_stop(&d->turns);
    sources_free(d->sources);
    free(d);
}

/* ---- a guest's way ---- */

static void gone(struct guest *g)
{
    if (g->on_gone)
        g->on_gone(g);
    close_guest(g);
}

/* The end of our side; what the client still sends is thrown away until it closes, so that no reset overtakes the answer. */
static void linger(struct guest *g)
{
    tls_free(g->tls);
    g->tls = NULL;
    g->state = GUEST_LINGER;
    (void)shutdown(g->fd, SHUT_WR);
    ev_io_want(&g->io, EV_READ);
    ev_timer_set(g->door->c.ev, &g->timer, DOOR_LINGER_MS, on_late);
}

static void on_late(struct ev_timer *t)
{
    struct guest *g = container_of(t, struct guest, timer);
    if (g->state == GUEST_INPUT && buf_len(&g->in) && g->door->c.tls) {
        guest_refuse(g, REFUSE_SLOW, NULL);
        return;
    }
    if (g->state == GUEST_INPUT || g->state == GUEST_HANDSHAKE)
        stats_refused(REFUSE_SLOW);
    gone(g);
}

static void flush(struct guest *g)
{
    while (buf_len(&g->out)) {
        size_t n = 0;
        unsigned want = EV_WRITE;
        int rc;
        if (g->tls) {
            rc = tls_write(g->tls, buf_data(&g->out), buf_len(&g->out), &n, &want, NULL);
        } else {
            ssize_t w = send(g->fd, buf_data(&g->out), buf_len(&g->out), MSG_NOSIGNAL);
            rc = w > 0 ? RC_OK : w < 0 && (errno == EAGAIN || errno == EINTR) ? RC_AGAIN : RC_IO;
            n = w > 0 ? (size_t)w : 0;
        }
        if (rc == RC_AGAIN) {
            ev_io_want(&g->io, want);
            return;
        }
        if (rc < 0) {
            gone(g);
            return;
        }
        buf_consume(&g->out, n);
    }
    if (g->state == GUEST_ANSWER)
        g->then(g);
    else
        linger(g);
}

/* Answers go out in a later turn: nothing ends inside a call of the one who answers. */
static void on_flush(struct ev_timer *t)
{
    struct guest *g = container_of(t, struct guest, timer);
    ev_timer_set(g->door->c.ev, &g->timer, g->door->c.head_ms, on_late);
    flush(g);
}

static void say(struct guest *g, int state, const char *text, size_t n)
{
    no_longer_fresh(g);
    list_del(&g->turn);
    g->state = state;
    (void)buf_put(&g->out, text, n);
    ev_io_want(&g->io, 0);
    ev_timer_set(g->door->c.ev, &g->timer, 0, on_flush);
}

void guest_hold(struct guest *g, void (*on_gone)(struct guest *g), void *ctx)
{
    no_longer_fresh(g);
    g->state = GUEST_HELD;
    g->on_gone = on_gone;
    g->ctx = ctx;
    ev_timer_stop(&g->timer);
    ev_io_want(&g->io, 0);
}

void guest_answer(struct guest *g, const char *text, size_t n, void (*then)(struct guest *g))
{
    g->then = then;
    say(g, GUEST_ANSWER, text, n);
}

void guest_end(struct guest *g, const char *text, size_t n)
{
    g->on_gone = NULL;
    say(g, GUEST_LAST_WORD, text, n);
}

void guest_drop(struct guest *g)
{
    close_guest(g);
}

void guest_refuse(struct guest *g, enum refusal why, const char *detail)
{
    const struct refusal_row *r = &refusals[why];
    struct buf b;
    char retry[48] = "", body[512];
    stats_refused(why);
    log_debug("edge.refused", "door=%s peer=%s why=%s", g->door->c.name, g->peer_text, detail ? detail : r->text);
    if (r->retry)
        (void)snprintf(retry, sizeof retry, "Retry-After: %u\r\n", RETRY_AFTER_MIN_S + random_u32_below(RETRY_AFTER_SPREAD_S));
    int n = snprintf(body, sizeof body, "%s\n", detail ? detail : r->text);
    buf_init(&b, OUT_MAX);
    buf_printf(&b, "HTTP/1.1 %d %s\r\n" PROTO_H_ERROR ": %s\r\n%s%sContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", r->status,
               r->reason, r->code, retry, why == REFUSE_BAD_METHOD ? "Allow: CONNECT\r\n" : "", n < (int)sizeof body ? n : (int)sizeof body - 1, body);
    guest_end(g, buf_data(&b), buf_len(&b));
    buf_done(&b);
}

struct guest_gift guest_take(struct guest *g)
{
    no_longer_fresh(g);
    struct guest_gift gift = { .fd = g->fd, .tls = g->tls, .early = g->in, .seat = { g->door, g->source } };
    buf_init(&g->in, 0);                /* its memory went along */
    forget(g);
    return gift;
}

int guest_head(struct guest *g, struct http_head *ret, size_t *ret_used)
{
    const char *why = NULL;
    int rc = http_parse_request(buf_data(&g->in), buf_len(&g->in), g->seen, ret, ret_used, &why);
    g->seen = buf_len(&g->in);
    if (rc == RC_AGAIN && buf_room(&g->in))
        return RC_AGAIN;
    if (rc == RC_OK)
        return RC_OK;
    guest_refuse(g, rc == RC_UNSUPPORTED ? REFUSE_BAD_METHOD : rc == RC_AGAIN || rc == RC_TOO_LARGE ? REFUSE_TOO_LARGE : REFUSE_BAD_REQUEST, why && *why ? why : NULL);
    return RC_CLOSED;
}

/* RC_OK with bytes, RC_AGAIN, or the connection is of no more use. */
static int receive(struct guest *g, char *p, size_t n, size_t *ret_n)
{
    unsigned want = EV_READ;
    if (g->tls) {
        int rc = tls_read(g->tls, p, n, ret_n, &want, NULL);
        if (rc == RC_AGAIN)
            ev_io_want(&g->io, want);
        return rc;
    }
    ssize_t r = recv(g->fd, p, n, 0);
    if (r > 0) {
        *ret_n = (size_t)r;
        return RC_OK;
    }
    return r < 0 && (errno == EAGAIN || errno == EINTR) ? RC_AGAIN : RC_CLOSED;
}

/* What came is handed on only when all that lies ready has been read: more would wait in the TLS layer, where the loop does not see it. */
static void input(struct guest *g)
{
    static char scratch[SCRATCH];
    bool more = false;
    int rc = RC_OK;
    while (rc == RC_OK && buf_room(&g->in)) {
        size_t n = 0, room_left = buf_room(&g->in);
        rc = receive(g, scratch, room_left < sizeof scratch ? room_left : sizeof scratch, &n);
        if (rc != RC_OK)
            break;
        (void)buf_put(&g->in, scratch, n);
        wipe(scratch, n);               /* it may hold a token */
        more = true;
    }
    if (more)
        g->door->c.on_input(g);         /* an end that came behind shows at the next look */
    else if (rc != RC_AGAIN)
        gone(g);
}

static void handshake(struct guest *g)
{
    unsigned want = EV_READ;
    struct err e;
    int rc = tls_handshake(g->tls, &want, &e);
    if (rc == RC_AGAIN) {
        ev_io_want(&g->io, want);
        return;
    }
    if (rc < 0) {
        stats_refused(REFUSE_HANDSHAKE);
        log_debug("edge.handshake_failed", "door=%s peer=%s why=%s", g->door->c.name, g->peer_text, e.msg);
        linger(g);                      /* the alert that says why must arrive */
        return;
    }
    metric_add(&stat_handshakes, 1);
    g->state = GUEST_INPUT;
    ev_io_want(&g->io, EV_READ);
    input(g);
}

static void on_turn(struct ev_timer *t)
{
    struct door *d = container_of(t, struct door, turns);
    for (int i = 0; i < DOOR_HANDSHAKE_TURN && !list_empty(&d->waiting); i++) {
        struct guest *g = list_first(&d->waiting, struct guest, turn);
        list_del(&g->turn);
        handshake(g);
    }
    if (!list_empty(&d->waiting))
        ev_timer_set(d->c.ev, &d->turns, 0, on_turn);
}

static void drain_input(struct guest *g)
{
    char waste[4096];
    ssize_t n = recv(g->fd, waste, sizeof waste, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        close_guest(g);
}

static void on_guest(struct ev_io *io, unsigned got)
{
    struct guest *g = container_of(io, struct guest, io);
    struct door *d = g->door;
    if (g->state == GUEST_HANDSHAKE) {
        ev_io_want(io, 0);
        if (got == EV_HUP) {            /* nothing to read: a reset */
            gone(g);
            return;
        }
        if (list_empty(&g->turn))
            list_add_tail(&d->waiting, &g->turn);
        if (!ev_timer_armed(&d->turns))
            ev_timer_set(d->c.ev, &d->turns, 0, on_turn);
    } else if (g->state == GUEST_INPUT) {
        input(g);
    } else if (g->state == GUEST_LINGER) {
        drain_input(g);
    } else if (g->state == GUEST_HELD || got == EV_HUP) {
        gone(g);
    } else if (buf_len(&g->out)) {
        flush(g);
    }
}
