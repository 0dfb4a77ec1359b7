/* A small edge for tests of the gateway: takes gateways on one TLS listener and clients on a plain TCP listener, where the server name of a client's ClientHello
 * chooses the authority (SNI passthrough). It obeys its standard input, one command a line:
 *     echo         an echo through every link, answered on standard output when it came back      goaway     drains the oldest link
 *     mute / talk  no more (again) periodic echoes           cut        closes every link at once           refuse N     answers upgrades with status N (0: takes them)
 * Usage: mini_edge CERT KEY; prints "gateways PORT" and "clients PORT", then a line for each event. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/list.h"
#include "base/str.h"
#include "ev/ev.h"
#include "http/parse.h"
#include "net/net.h"
#include "tunnel/hello.h"
#include "tunnel/link.h"
#include "tunnel/proto.h"

#define ECHO_EVERY_MS 1000

struct gw { struct list node; int fd; struct tls *tls; struct ev_io io; struct buf in, out; struct link *link; char token[PROTO_TOKEN_MAX + 1]; bool draining; };
struct cl { int fd; struct ev_io io; struct buf in; bool eof, shut; struct link_stream *s; };

static struct ev *ev;
static struct tls_ctx *ctx;
static struct list gws;
static struct link_budget budget = { .max = 256 * MIB };
static int refuse;
static bool mute;
static struct ev_timer echo_timer;
static size_t next_gw;

static void say(const char *text)
{
    (void)puts(text);
    (void)fflush(stdout);
}

/* ---- clients ---- */

static void cl_free(struct cl *c)
{
    ev_io_stop(&c->io);
    (void)close(c->fd);
    if (c->s)
        link_stream_free(c->s);
    buf_done(&c->in);
    free(c);
}

static void cl_settle(struct cl *c)
{
    ev_io_want(&c->io, (buf_len(&c->in) < 32 * KIB && !c->eof ? EV_READ : 0) | (c->s && link_peek(c->s).n ? EV_WRITE : 0));
}

static void cl_to_link(struct cl *c)
{
    while (c->s && buf_len(&c->in)) {
        size_t n = link_write(c->s, buf_data(&c->in), buf_len(&c->in));
        if (!n)
            break;
        buf_consume(&c->in, n);
    }
    if (c->s && c->eof && !buf_len(&c->in) && !c->shut) {
        c->shut = true;
        link_shutdown(c->s);
    }
}

/* False: freed. */
static bool cl_from_link(struct cl *c)
{
    for (;;) {
        struct slice p = link_peek(c->s);
        if (!p.n)
            break;
        ssize_t n = send(c->fd, p.p, p.n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN) {
            cl_free(c);
            return false;
        }
        if (n < 0)
            return true;
        link_consume(c->s, (size_t)n);
    }
    if (link_eof(c->s)) {
        (void)shutdown(c->fd, SHUT_WR);
        if (c->eof) {
            cl_free(c);
            return false;
        }
    }
    return true;
}

static void s_reply(void *x, struct link_stream *s, int status) { (void)x, (void)s, (void)status; }
static void s_readable(void *x, struct link_stream *s)
{
    (void)s;
    struct cl *c = x;
    if (cl_from_link(c))
        cl_settle(c);
}
static void s_writable(void *x, struct link_stream *s)
{
    (void)s;
    cl_to_link(x);
    cl_settle(x);
}
static void s_close(void *x, struct link_stream *s, const struct err *why)
{
    (void)s, (void)why;
    struct linger hard = { 1, 0 };
    struct cl *c = x;
    (void)setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    cl_free(c);
}
static const struct link_stream_ops s_ops = { s_reply, s_readable, s_writable, s_close };

static struct link *pick(void)
{
    size_t n = 0, i = 0;
    list_foreach(g, &gws, struct gw, node)
        n += g->link && link_usable(g->link) && !g->draining;
    if (!n)
        return NULL;
    size_t want = next_gw++ % n;
    list_foreach(g, &gws, struct gw, node)
        if (g->link && link_usable(g->link) && !g->draining && i++ == want)
            return g->link;
    return NULL;
}

static bool cl_open(struct cl *c)
{
    char name[HELLO_NAME_MAX], authority[HELLO_NAME_MAX + 8];
    int rc = hello_name((const uint8_t *)buf_data(&c->in), buf_len(&c->in), name);
    if (rc == RC_AGAIN)
        return true;
    struct link *l = rc == RC_OK ? pick() : NULL;
    (void)snprintf(authority, sizeof authority, "%s:443", rc == RC_OK ? name : "");
    struct link_open o = { .authority = authority, .client = "198.51.100.7" };
    if (!l || link_stream_open(l, &o, &s_ops, c, &c->s, NULL) < 0) {
        say("no link");
        cl_free(c);
        return false;
    }
    return true;
}

static void on_client(struct ev_io *io, unsigned got)
{
    struct cl *c = container_of(io, struct cl, io);
    char tmp[16384];
    if (got & (EV_READ | EV_HUP) && !c->eof) {
        ssize_t n = recv(c->fd, tmp, sizeof tmp, MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN) {
            cl_free(c);
            return;
        }
        if (n > 0)
            (void)buf_put(&c->in, tmp, (size_t)n);
        c->eof = n == 0;
        if (!c->s && (c->eof || !cl_open(c))) {
            if (c->eof)
                cl_free(c);
            return;
        }
        cl_to_link(c);
    } else if (got & EV_HUP) {
        cl_free(c);
        return;
    }
    if (c->s && (got & EV_WRITE) && !cl_from_link(c))
        return;
    cl_settle(c);
}

static void on_client_listen(struct ev_io *io, unsigned got)
{
    (void)got;
    int fd = accept4(io->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    struct cl *c = xcalloc(1, sizeof *c);
    c->fd = fd;
    buf_init(&c->in, 128 * KIB);
    if (ev_io_start(ev, &c->io, fd, EV_READ, on_client) < 0)
        abort();
}

/* ---- gateways ---- */

static void gw_free(struct gw *g)
{
    list_del(&g->node);
    ev_io_stop(&g->io);
    if (g->link)
        link_free(g->link);
    tls_free(g->tls);
    if (g->fd >= 0)
        (void)close(g->fd);
    buf_done(&g->in);
    buf_done(&g->out);
    free(g);
}

static void on_end(void *x, struct link *l, const struct err *why)
{
    (void)l, (void)why;
    gw_free(x);
    say("link ended");
}
static void on_ready(void *x, struct link *l)
{
    (void)x, (void)l;
    say("link ready");
}
static void on_goaway(void *x, struct link *l)
{
    (void)l;
    ((struct gw *)x)->draining = true;
    say("gateway drains");
}
static const struct link_ops l_ops = { .on_ready = on_ready, .on_end = on_end, .on_goaway = on_goaway };

static void flush(struct gw *g)
{
    while (buf_len(&g->out)) {
        size_t n = 0;
        unsigned want = 0;
        if (tls_write(g->tls, buf_data(&g->out), buf_len(&g->out), &n, &want, NULL) < 0)
            return;
        buf_consume(&g->out, n);
    }
}

static void on_gateway(struct ev_io *io, unsigned got)
{
    struct gw *g = container_of(io, struct gw, io);
    struct http_head h;
    struct err e = { 0 };
    size_t n = 0, used = 0;
    unsigned want = EV_READ;
    const char *why = "";
    (void)got;
    int rc = tls_handshake(g->tls, &want, &e);
    if (rc == RC_AGAIN) {
        ev_io_want(io, want);
        return;
    }
    char *to = buf_reserve(&g->in, 4096);
    rc = rc < 0 || !to ? RC_IO : tls_read(g->tls, to, 4096, &n, &want, &e);
    if (rc == RC_AGAIN) {
        ev_io_want(io, want);
        return;
    }
    if (rc < 0) {
        say("handshake failed");
        gw_free(g);
        return;
    }
    buf_commit(&g->in, n);
    rc = http_parse_request(buf_data(&g->in), buf_len(&g->in), 0, &h, &used, &why);
    if (rc == RC_AGAIN)
        return;
    const struct slice *auth = rc == RC_OK ? http_find(&h, "authorization") : NULL;
    if (rc < 0 || !auth || auth->n > PROTO_TOKEN_MAX || refuse) {
        (void)buf_printf(&g->out, "HTTP/1.1 %d No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n", refuse ? refuse : 400);
        flush(g);
        say("refused");
        gw_free(g);
        return;
    }
    printf("token %.*s\n", (int)auth->n, auth->p);
    (void)buf_puts(&g->out, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " PROTO_UPGRADE_TUNNEL "\r\n\r\n");
    flush(g);
    ev_io_stop(&g->io);
    if (link_new(ev, LINK_OPENER, &budget, g->fd, g->tls, buf_data(&g->in) + used, buf_len(&g->in) - used, &l_ops, g, &g->link, &e) < 0) {
        gw_free(g);
        return;
    }
    g->fd = -1;
    g->tls = NULL;
}

static void on_gateway_listen(struct ev_io *io, unsigned got)
{
    (void)got;
    int fd = accept4(io->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    struct gw *g = xcalloc(1, sizeof *g);
    g->fd = fd;
    buf_init(&g->in, 64 * KIB);
    buf_init(&g->out, 4 * KIB);
    list_add_tail(&gws, &g->node);
    if (tls_accept(ctx, fd, &g->tls, NULL) < 0 || ev_io_start(ev, &g->io, fd, EV_READ, on_gateway) < 0)
        abort();
}

/* ---- commands ---- */

static void said_echo(void *x, bool ok, int64_t rtt)
{
    (void)x, (void)rtt;
    say(ok ? "echoed" : "not echoed");
}
static void quiet_echo(void *x, bool ok, int64_t rtt) { (void)x, (void)ok, (void)rtt; }

static void echo_all(void (*cb)(void *, bool, int64_t))
{
    list_foreach(g, &gws, struct gw, node)
        if (g->link)
            link_echo(g->link, 5000, cb, NULL);
}

static void on_echo_timer(struct ev_timer *t)
{
    if (!mute)
        echo_all(quiet_echo);
    ev_timer_set(ev, t, ECHO_EVERY_MS, on_echo_timer);
}

static void on_command(struct ev_io *io, unsigned got)
{
    static char line[64];
    (void)io, (void)got;
    ssize_t n = read(0, line, sizeof line - 1);
    if (n <= 0) {
        ev_stop(ev);
        return;
    }
    line[n] = '\0';
    line[strcspn(line, "\n")] = '\0';
    if (str_eq(line, "echo"))
        echo_all(said_echo);
    else if (str_eq(line, "mute") || str_eq(line, "talk"))
        mute = line[0] == 'm';
    else if (str_prefix(line, "refuse "))
        refuse = (int)strtol(line + 7, NULL, 10);
    else if (str_eq(line, "cut"))
        list_foreach(g, &gws, struct gw, node)
            gw_free(g);
    else if (str_eq(line, "goaway"))
        list_foreach(g, &gws, struct gw, node)
            if (g->link && !g->draining) {
                g->draining = true;
                link_goaway(g->link);
                break;
            }
    say("done");
}

static void listen_on(struct ev_io *io, const char *what, void (*cb)(struct ev_io *, unsigned))
{
    struct net_addr a, bound;
    char text[NET_ADDR_TEXT];
    int fd = -1;
    if (net_addr_parse("127.0.0.1:0", &a, NULL) < 0 || net_listen(&a, &fd, &bound, NULL) < 0 || ev_io_start(ev, io, fd, EV_READ, cb) < 0)
        abort();
    net_addr_format(&bound, text);
    printf("%s %s\n", what, strrchr(text, ':') + 1);
}

int main(int argc, char **argv)
{
    static struct ev_io gateways, clients, commands;
    struct err e = { 0 };
    if (argc != 3)
        return 2;
    struct tls_conf c = { .cert_file = argv[1], .key_file = argv[2], .tls13_only = true };
    signal(SIGPIPE, SIG_IGN);
    list_init(&gws);
    if (ev_new(&ev, &e) < 0 || tls_ctx_server(&c, &ctx, &e) < 0) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    listen_on(&gateways, "gateways", on_gateway_listen);
    listen_on(&clients, "clients", on_client_listen);
    if (ev_io_start(ev, &commands, 0, EV_READ, on_command) < 0)
        return 1;
    ev_timer_set(ev, &echo_timer, 100, on_echo_timer);
    say("up");
    ev_run(ev);
    return 0;
}
