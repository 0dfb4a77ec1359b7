/* gateway/ws.c - see ws.h. A connection is: the upgrade request (or a TLS byte), then a carrier of the front, then maybe a moment of lingering in which
 * what the front wrote last still goes out. */
#include "gateway/ws.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/base64.h"
#include "base/buf.h"
#include "base/list.h"
#include "base/secret.h"
#include "base/str.h"
#include "crypto/crypto.h"
#include "gateway/ws_frame.h"
#include "http/parse.h"
#include "log/log.h"
#include "metrics/metrics.h"

#define TLS_HANDSHAKE 0x16               /* first byte of a TLS connection: a handshake record */
#define READ_MAX (16 * KIB)              /* taken off the socket at once: at least HTTP_HEAD_MAX / 2 */
#define FRAME_MAX (64 * KIB)             /* payload of a frame that we send */
#define OUT_MAX (FRAME_MAX + 8 * KIB)    /* the rest of one frame, and control frames behind it */
#define PEER_MAX NET_ADDR_TEXT
#define LINGER_MS 3000
#define ACCEPT_ROUNDS 64
#define ACCEPT_PAUSE_MS 200              /* after accept() failed for want of descriptors */
#define WS_GUID "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"     /* RFC 6455 1.3 */

METRIC_DEFINE(ws_metric_conns, METRIC_GAUGE, "outwork_gateway_ws_connections", "Connections from cloudflared that are open now.");
METRIC_DEFINE(ws_metric_refused, METRIC_COUNTER, "outwork_gateway_ws_refused_total", "Connections on the cloudflared port that were no upgrade and no TLS.");

struct ws_listener {
    struct ev *ev;
    struct front *front;
    int fd;
    struct net_addr addr;
    struct ev_io io;
    struct ev_timer pause;
    size_t conns_max, n_conns;
    int64_t head_ms;
    bool stopped;
    struct list conns;
};

enum phase { PHASE_HEAD, PHASE_CARRIER, PHASE_LINGER };

struct conn {
    struct carrier carrier;
    struct list link;
    struct ws_listener *l;               /* NULL: the listener is gone */
    struct ev *ev;
    int fd;
    struct ev_io io;
    struct ev_timer timer;               /* head; kick of the front; linger */
    enum phase phase;
    int64_t since_ms;                    /* when this phase began */
    bool raw, want_read, want_write, front_waits, closing, got_close, hup, in_callback, dead, cut;
    struct ws_in in;
    struct buf head;                     /* the request while it is incomplete */
    uint8_t mem[READ_MAX];
    size_t at, end;                      /* unread bytes in mem */
    const uint8_t *data; size_t data_n;  /* payload among them, unmasked, not yet taken */
    struct buf out;
    struct err why;
    char peer[PEER_MAX];
};

static void on_io(struct ev_io *io, unsigned got);

/* ---- life ---- */

static void accept_again(struct ws_listener *l)
{
    if (!l->stopped && !ev_timer_armed(&l->pause))
        ev_io_want(&l->io, EV_READ);
}

static void destroy(struct conn *c)
{
    ev_io_stop(&c->io);
    ev_timer_stop(&c->timer);
    (void)close(c->fd);
    list_del(&c->link);
    buf_wipe(&c->head);
    buf_wipe(&c->out);
    metric_add(&ws_metric_conns, -1);
    if (c->l) {
        if (c->l->n_conns-- >= c->l->conns_max)
            ev_timer_stop(&c->l->pause);         /* which waited for room */
        accept_again(c->l);
    }
    wipe(c->mem, sizeof c->mem);
    free(c);
}

static void settle(struct conn *c)
{
    if (!c->hup)
        ev_io_want(&c->io, (c->want_read ? EV_READ : 0) | (c->want_write ? EV_WRITE : 0));
}

/* RC_OK: all is out; RC_AGAIN; RC_CLOSED. */
static int flush(struct conn *c)
{
    while (buf_len(&c->out)) {
        ssize_t n = send(c->fd, buf_data(&c->out), buf_len(&c->out), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            buf_consume(&c->out, (size_t)n);
        } else if (n < 0 && errno == EAGAIN) {
            c->want_write = true;
            settle(c);
            return RC_AGAIN;
        } else if (errno != EINTR) {
            return RC_CLOSED;
        }
    }
    if (c->want_write) {
        c->want_write = false;
        settle(c);
    }
    return RC_OK;
}

static void on_linger_end(struct ev_timer *t)
{
    destroy(container_of(t, struct conn, timer));
}

/* Nobody reads from the connection any more. What is queued goes out, then our side ends; closing at once could destroy it on its way (a reset). */
static void linger(struct conn *c)
{
    c->phase = PHASE_LINGER;
    c->since_ms = ev_now_ms(c->ev);
    c->want_read = true;
    int rc = c->hup || c->cut ? RC_CLOSED : flush(c);
    if (!c->l || rc == RC_CLOSED || (rc == RC_OK && shutdown(c->fd, SHUT_WR) < 0)) {     /* without a listener the program is about to end */
        destroy(c);
        return;
    }
    settle(c);
    ev_timer_set(c->ev, &c->timer, LINGER_MS, on_linger_end);
}

static void linger_io(struct conn *c, unsigned got)
{
    char drop[4096];
    ssize_t n = 1;
    if (got & EV_READ)
        while ((n = recv(c->fd, drop, sizeof drop, MSG_DONTWAIT)) > 0)
            ;
    bool ended = (got & EV_HUP) || n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
    int rc = ended ? RC_CLOSED : buf_len(&c->out) ? flush(c) : RC_AGAIN;
    if (rc == RC_CLOSED || (rc == RC_OK && shutdown(c->fd, SHUT_WR) < 0))
        destroy(c);
}

/* ---- the carrier ---- */

/* Runs a callback of the front, which may free the carrier inside. False: it did. */
static bool tell(struct conn *c, void (*fn)(void *ctx))
{
    c->in_callback = true;
    if (fn)
        fn(c->carrier.ctx);
    c->in_callback = false;
    if (!c->dead)
        return true;
    linger(c);
    return false;
}

static void tell_cut(struct conn *c)
{
    if (c->cut)
        return;
    c->cut = true;
    c->want_read = c->want_write = false;
    settle(c);
    c->in_callback = true;
    if (c->carrier.on_close)
        c->carrier.on_close(c->carrier.ctx, &c->why);
    c->in_callback = false;
    if (c->dead)
        linger(c);
}

static void on_cut(struct ev_timer *t)
{
    tell_cut(container_of(t, struct conn, timer));
}

/* It cannot go on; the front is told in a later turn, never inside its own call. */
static void fail(struct conn *c, int rc, int sys_errno, const char *what)
{
    if (sys_errno)
        (void)err_sys(&c->why, rc, sys_errno, "connection from cloudflared: %s", what);
    else
        (void)err_set(&c->why, rc, "connection from cloudflared: %s", what);
    ev_timer_set(c->ev, &c->timer, 0, on_cut);
}

static void put_control(struct conn *c, enum ws_op op, const uint8_t *p, size_t n)
{
    uint8_t h[WS_HEAD_MAX];
    size_t hn = ws_head(op, n, h);
    if (c->closing || buf_room(&c->out) < hn + n)    /* RFC 6455 5.5.3: not every ping needs its pong */
        return;
    (void)buf_put(&c->out, h, hn);
    (void)buf_put(&c->out, p, n);
    c->closing = op == WS_CLOSE;
    if (flush(c) == RC_CLOSED)
        fail(c, RC_CLOSED, EPIPE, "write");
}

/* Fills `mem` from the socket. RC_OK with bytes, RC_AGAIN, RC_CLOSED at the end. */
static int fill(struct conn *c)
{
    for (;;) {
        ssize_t n = recv(c->fd, c->mem, sizeof c->mem, MSG_DONTWAIT);
        if (n > 0) {
            c->at = 0;
            c->end = (size_t)n;
            return RC_OK;
        }
        if (n == 0)
            return RC_CLOSED;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN) {
            fail(c, RC_CLOSED, errno, "read");
            return RC_AGAIN;
        }
        c->want_read = true;
        settle(c);
        return RC_AGAIN;
    }
}

/* Goes on to the next payload in `mem`. RC_OK: c->data; RC_AGAIN: mem is used up, or it failed; RC_CLOSED: a close frame. */
static int next_data(struct conn *c)
{
    while (c->at < c->end) {
        struct ws_item item;
        size_t used = 0;
        const char *why = "";
        if (ws_step(&c->in, c->mem + c->at, c->end - c->at, &used, &item, &why) < 0) {
            static const uint8_t protocol_error[2] = { 1002 >> 8, 1002 & 0xff };
            c->at = c->end;
            c->got_close = true;
            put_control(c, WS_CLOSE, protocol_error, sizeof protocol_error);
            fail(c, RC_PROTO, 0, why);
            return RC_AGAIN;
        }
        c->at += used;
        switch (item.kind) {
        case WS_ITEM_DATA:
            c->data = item.p;
            c->data_n = item.n;
            return RC_OK;
        case WS_ITEM_PING:
            put_control(c, WS_PONG, item.p, item.n);
            break;
        case WS_ITEM_CLOSE:
            c->got_close = true;
            put_control(c, WS_CLOSE, item.p, item.n < 2 ? 0 : 2);
            return RC_CLOSED;
        case WS_ITEM_PONG:
        case WS_ITEM_NONE:
            break;
        }
    }
    return RC_AGAIN;
}

static int carrier_read(struct carrier *carrier, void *p, size_t n, size_t *ret_n)
{
    struct conn *c = container_of(carrier, struct conn, carrier);
    while (c->data_n == 0) {
        if (c->cut || c->why.rc)
            return RC_AGAIN;             /* on_close is coming, or has come */
        if (c->got_close)
            return RC_CLOSED;
        if (c->at == c->end) {
            int rc = fill(c);
            if (rc < 0)
                return rc;
        }
        if (c->raw) {
            c->data = c->mem + c->at;
            c->data_n = c->end - c->at;
            c->at = c->end;
        } else if (next_data(c) == RC_CLOSED) {
            return RC_CLOSED;
        }
    }
    size_t take = n < c->data_n ? n : c->data_n;
    memcpy(p, c->data, take);
    c->data += take;
    c->data_n -= take;
    *ret_n = take;
    return RC_OK;
}

static int carrier_write(struct carrier *carrier, const void *p, size_t n, size_t *ret_n)
{
    struct conn *c = container_of(carrier, struct conn, carrier);
    if (c->cut || c->closing || c->why.rc)
        return RC_CLOSED;
    int rc = flush(c);                   /* the rest of the frame before */
    if (rc < 0) {
        c->front_waits = rc == RC_AGAIN;
        return rc;
    }
    uint8_t h[WS_HEAD_MAX];
    n = n < FRAME_MAX ? n : FRAME_MAX;
    size_t hn = c->raw ? 0 : ws_head(WS_BINARY, n, h);
    struct iovec iov[2] = { { h, hn }, { (void *)(uintptr_t)p, n } };
    struct msghdr m = { .msg_iov = iov, .msg_iovlen = 2 };
    ssize_t sent;
    do
        sent = sendmsg(c->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && errno != EAGAIN)
        return RC_CLOSED;
    if (sent <= 0) {
        c->front_waits = c->want_write = true;
        settle(c);
        return RC_AGAIN;
    }
    size_t done = (size_t)sent;
    if (c->raw) {
        *ret_n = done;
        return RC_OK;
    }
    /* A frame's head has been given: its payload is owed, so the rest is ours now. */
    if (done < hn)
        (void)buf_put(&c->out, h + done, hn - done);
    size_t payload = done > hn ? done - hn : 0;
    (void)buf_put(&c->out, (const char *)p + payload, n - payload);
    if (buf_len(&c->out)) {
        c->want_write = true;
        settle(c);
    }
    *ret_n = n;
    return RC_OK;
}

static void carrier_shutdown(struct carrier *carrier)
{
    struct conn *c = container_of(carrier, struct conn, carrier);
    static const uint8_t normal[2] = { 1000 >> 8, 1000 & 0xff };
    if (c->cut)
        return;
    if (c->raw) {
        c->closing = true;
        (void)shutdown(c->fd, SHUT_WR);
    } else {
        put_control(c, WS_CLOSE, normal, sizeof normal);
    }
}

static void carrier_free(struct carrier *carrier)
{
    struct conn *c = container_of(carrier, struct conn, carrier);
    c->dead = true;
    ev_timer_stop(&c->timer);
    if (!c->in_callback)
        linger(c);
}

static const char *carrier_peer(const struct carrier *carrier)
{
    return container_of((struct carrier *)(uintptr_t)carrier, struct conn, carrier)->peer;
}

static const struct carrier_ops ops = { carrier_read, carrier_write, carrier_shutdown, carrier_free, carrier_peer };

static void carrier_io(struct conn *c, unsigned got)
{
    if (got & EV_WRITE) {
        int rc = flush(c);
        if (rc == RC_CLOSED) {
            (void)err_set(&c->why, RC_CLOSED, "connection from cloudflared: it was cut");
            tell_cut(c);
            return;
        }
        if (rc == RC_OK && c->front_waits) {
            c->front_waits = c->want_write = false;
            settle(c);
            if (!tell(c, c->carrier.on_writable))
                return;
        }
    }
    if ((got & EV_READ) && c->want_read) {
        c->want_read = false;            /* until carrier_read() has taken all */
        settle(c);
        if (!tell(c, c->carrier.on_readable))
            return;
    }
    if ((got & EV_HUP) && !c->hup) {
        c->hup = true;
        ev_io_stop(&c->io);
        (void)err_set(&c->why, RC_CLOSED, "connection from cloudflared: the peer is gone");
        tell_cut(c);
    }
}

/* ---- the upgrade ---- */

static void on_kick(struct ev_timer *t)
{
    struct conn *c = container_of(t, struct conn, timer);
    (void)tell(c, c->carrier.on_readable);
}

static void hand_over(struct conn *c)
{
    c->phase = PHASE_CARRIER;
    ev_timer_stop(&c->timer);
    buf_wipe(&c->head);
    c->carrier.ops = &ops;
    c->want_read = c->at == c->end;
    settle(c);
    bool kick = !c->want_read;
    c->in_callback = true;
    front_accept(c->l->front, &c->carrier);
    c->in_callback = false;
    if (c->dead)
        linger(c);
    else if (kick && !ev_timer_armed(&c->timer))
        ev_timer_set(c->ev, &c->timer, 0, on_kick);
}

static void refuse(struct conn *c, int status, const char *reason, const char *why)
{
    metric_add(&ws_metric_refused, 1);
    log_info("ws.refused", "peer=%s status=%d why=%s", c->peer, status, why);
    buf_clear(&c->out);
    buf_printf(&c->out, "HTTP/1.1 %d %s\r\ncontent-type: text/plain\r\ncontent-length: %zu\r\n%sconnection: close\r\n\r\n%s\n", status, reason, strlen(why) + 1,
               status == 426 ? "upgrade: websocket\r\nsec-websocket-version: 13\r\n" : "", why);
    linger(c);
}

static bool has_token(const struct http_head *h, const char *name, const char *token)
{
    for (size_t i = 0; i < h->n_headers; i++) {
        if (!slice_eq_nocase(h->headers[i].name, name))
            continue;
        struct slice v = h->headers[i].value;
        while (v.n) {
            const char *comma = memchr(v.p, ',', v.n);
            size_t len = comma ? (size_t)(comma - v.p) : v.n;
            if (slice_eq_nocase(slice_trim((struct slice){ v.p, len }), token))
                return true;
            v = comma ? (struct slice){ comma + 1, v.n - len - 1 } : (struct slice){ NULL, 0 };
        }
    }
    return false;
}

/* The subprotocol we agree to: "binary" when offered, else the first; a client that offers one may insist on an answer. */
static struct slice choose_protocol(const struct http_head *h)
{
    const struct slice *v = http_find(h, "sec-websocket-protocol");
    if (!v)
        return (struct slice){ NULL, 0 };
    if (has_token(h, "sec-websocket-protocol", "binary"))
        return SLICE("binary");
    const char *comma = memchr(v->p, ',', v->n);
    return slice_trim((struct slice){ v->p, comma ? (size_t)(comma - v->p) : v->n });
}

/* For logs only, since anybody who reaches the port can write it. */
static void note_peer(struct conn *c, const struct http_head *h)
{
    const struct slice *v = http_find(h, "cf-connecting-ip");
    if (!v)
        v = http_find(h, "x-forwarded-for");
    if (!v)
        return;
    size_t n = 0;
    while (n < v->n && n < sizeof c->peer - 1 && strchr("0123456789abcdefABCDEF.:", v->p[n]) && v->p[n])
        n++;
    if (n) {
        memcpy(c->peer, v->p, n);
        c->peer[n] = '\0';
    }
}

static void upgrade(struct conn *c, const struct http_head *h)
{
    const struct slice *key = http_find(h, "sec-websocket-key"), *version = http_find(h, "sec-websocket-version");
    note_peer(c, h);
    if (!has_token(h, "upgrade", "websocket")) {
        refuse(c, 426, "Upgrade Required", "This port takes WebSocket upgrades from cloudflared that carry TLS for MCP routes.");
        return;
    }
    if (version && !slice_eq(*version, "13")) {
        refuse(c, 426, "Upgrade Required", "Only version 13 of the WebSocket protocol is spoken here.");
        return;
    }
    if (h->content_length > 0 || h->chunked) {
        refuse(c, 400, "Bad Request", "An upgrade request has no body.");
        return;
    }
    buf_puts(&c->out, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
    if (key && key->n < 128) {               /* a relay in between may have kept it to itself */
        char text[128 + sizeof WS_GUID];
        uint8_t sum[SHA1_BYTES];
        int n = snprintf(text, sizeof text, "%.*s%s", (int)key->n, key->p, WS_GUID);
        sha1(text, (size_t)n, sum);
        buf_puts(&c->out, "Sec-WebSocket-Accept: ");
        (void)base64_encode(&c->out, sum, sizeof sum);
        buf_puts(&c->out, "\r\n");
    }
    struct slice protocol = choose_protocol(h);
    if (protocol.n && protocol.n < 256)
        buf_printf(&c->out, "Sec-WebSocket-Protocol: %.*s\r\n", (int)protocol.n, protocol.p);
    buf_puts(&c->out, "\r\n");
    if (flush(c) == RC_CLOSED) {
        destroy(c);
        return;
    }
    log_debug("ws.upgraded", "peer=%s", c->peer);
    hand_over(c);
}

static void on_head_timeout(struct ev_timer *t)
{
    struct conn *c = container_of(t, struct conn, timer);
    refuse(c, 408, "Request Timeout", "The upgrade request did not come in time.");
}

static void head_io(struct conn *c, unsigned got)
{
    int rc = fill(c);
    if (rc == RC_CLOSED || c->why.rc || ((got & EV_HUP) && rc != RC_OK)) {
        destroy(c);
        return;
    }
    if (rc < 0)
        return;
    size_t before = buf_len(&c->head);
    if (before == 0 && c->mem[0] == TLS_HANDSHAKE) {
        c->raw = true;
        hand_over(c);
        return;
    }
    struct http_head h;
    size_t used = 0;
    const char *why = "";
    if (buf_put(&c->head, c->mem, c->end) < 0) {
        refuse(c, 431, "Request Header Fields Too Large", "The request's head is too large.");
        return;
    }
    rc = http_parse_request(buf_data(&c->head), buf_len(&c->head), before, &h, &used, &why);
    if (rc == RC_AGAIN) {
        c->at = c->end = 0;
    } else if (rc < 0) {
        refuse(c, rc == RC_TOO_LARGE ? 431 : 400, "Bad Request", why);
    } else {
        c->at = c->end - (buf_len(&c->head) - used);     /* frames that came with the request */
        upgrade(c, &h);
    }
}

static void on_io(struct ev_io *io, unsigned got)
{
    struct conn *c = container_of(io, struct conn, io);
    switch (c->phase) {
    case PHASE_HEAD:    head_io(c, got); break;
    case PHASE_CARRIER: carrier_io(c, got); break;
    case PHASE_LINGER:  linger_io(c, got); break;
    }
}

/* ---- the listener ---- */

static void conn_new(struct ws_listener *l, int fd, const struct net_addr *peer)
{
    struct conn *c = xcalloc(1, sizeof *c);
    int one = 1;
    c->l = l;
    c->ev = l->ev;
    c->fd = fd;
    c->since_ms = ev_now_ms(l->ev);
    c->want_read = true;
    buf_init(&c->head, HTTP_HEAD_MAX + READ_MAX);
    buf_init(&c->out, OUT_MAX);
    net_addr_format(peer, c->peer);
    list_add_tail(&l->conns, &c->link);
    l->n_conns++;
    metric_add(&ws_metric_conns, 1);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    if (ev_io_start(l->ev, &c->io, fd, EV_READ, on_io) < 0)
        destroy(c);
    else
        ev_timer_set(l->ev, &c->timer, l->head_ms, on_head_timeout);
}

static void on_pause(struct ev_timer *t)
{
    accept_again(container_of(t, struct ws_listener, pause));
}

/* At the limit one that has asked nothing, or has had its answer and does not close, makes room: silent ones do not keep others out. Not one that came just now. */
static bool make_room(struct ws_listener *l)
{
    list_foreach(c, &l->conns, struct conn, link) {
        if (c->phase == PHASE_CARRIER || ev_now_ms(l->ev) - c->since_ms < WS_PATIENCE_MS)
            continue;
        destroy(c);
        return true;
    }
    return false;
}

static void on_accept(struct ev_io *io, unsigned got)
{
    (void)got;
    struct ws_listener *l = container_of(io, struct ws_listener, io);
    if (l->n_conns >= l->conns_max && !make_room(l)) {
        ev_io_want(io, 0);
        ev_timer_set(l->ev, &l->pause, ACCEPT_PAUSE_MS, on_pause);
        return;
    }
    for (int i = 0; i < ACCEPT_ROUNDS && l->n_conns < l->conns_max; i++) {       /* at the limit again: the loop tells whether another one waits */
        struct net_addr peer = { .len = sizeof peer.ss };
        int fd = accept4(l->fd, (struct sockaddr *)&peer.ss, &peer.len, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            conn_new(l, fd, &peer);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            log_warn("ws.accept", "errno=%d", errno);
            ev_io_want(io, 0);
            ev_timer_set(l->ev, &l->pause, ACCEPT_PAUSE_MS, on_pause);
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            return;
        }
    }
}

int ws_listen(struct ev *ev, const struct net_addr *a, const struct ws_conf *conf, struct front *f, struct ws_listener **ret, struct err *e)
{
    struct ws_listener *l = xcalloc(1, sizeof *l);
    *l = (struct ws_listener){ .ev = ev, .front = f, .fd = -1, .conns_max = conf && conf->conns_max ? conf->conns_max : WS_CONNS_MAX,
                               .head_ms = conf && conf->head_ms > 0 ? conf->head_ms : WS_HEAD_MS };
    list_init(&l->conns);
    int rc = net_listen(a, &l->fd, &l->addr, e);
    if (rc == RC_OK && ev_io_start(ev, &l->io, l->fd, EV_READ, on_accept) < 0)
        rc = err_set(e, RC_IO, "cannot watch the listener for cloudflared");
    if (rc < 0) {
        ws_free(l);
        return rc;
    }
    *ret = l;
    return RC_OK;
}

const struct net_addr *ws_addr(const struct ws_listener *l) { return &l->addr; }
size_t ws_conns(const struct ws_listener *l) { return l->n_conns; }

void ws_stop_accepting(struct ws_listener *l)
{
    l->stopped = true;
    ev_timer_stop(&l->pause);
    ev_io_stop(&l->io);
    if (l->fd >= 0)
        (void)close(l->fd);
    l->fd = -1;
}

void ws_free(struct ws_listener *l)
{
    if (!l)
        return;
    ws_stop_accepting(l);
    list_foreach(c, &l->conns, struct conn, link) {
        if (c->phase != PHASE_CARRIER) {
            destroy(c);
            continue;
        }
        c->l = NULL;
        list_del(&c->link);
    }
    free(l);
}
