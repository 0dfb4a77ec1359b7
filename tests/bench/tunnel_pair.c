/* The transport of our tunnels alone, as a pair that carries TCP like the peers of make bench do: links and relays, with no inner TLS, no routing by name and
 * no gateway behind. What the edge and the gateway add is measured with the real programs; this says what the transport itself costs beside other transports.
 *
 * Usage: tunnel_pair front CERT KEY N        prints "PORT LINK_PORT", takes N links there, then clients on PORT; then prints "ready"
 *        tunnel_pair back LINK_PORT CA TO_PORT N      dials N links and connects each stream to TO_PORT */
#include <arpa/inet.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#include "base/fd.h"
#include "base/str.h"
#include "net/net.h"
#include "tls/tls.h"
#include "tunnel/link.h"
#include "tunnel/relay.h"

#define LINKS_MAX 16

static struct { struct ev *ev; struct link_budget budget; struct link *links[LINKS_MAX]; size_t n, ready; struct ev_io clients; uint16_t to; } P = { .budget.max = 256 * MIB };

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "tunnel_pair: %s\n", what);
    exit(1);
}

struct pipe { struct relay *relay; struct link_stream *s; struct net_connect *connect; };

static void pipe_free(struct pipe *p)
{
    net_connect_cancel(p->connect);
    relay_free(p->relay);
    link_stream_free(p->s);
    free(p);
}

static void on_done(void *ctx, const struct relay_result *r) { (void)r; pipe_free(ctx); }

static void join(struct pipe *p, struct link_stream *s, int fd)
{
    const struct relay_end stream = { .stream = s }, sock = { .fd = fd };
    struct err e;
    p->s = NULL;
    if (relay_new(P.ev, &sock, &stream, on_done, p, &p->relay, &e) < 0)
        die(e.msg);
}

/* ---- front ---- */

static void on_client(struct ev_io *io, unsigned got)
{
    (void)got;
    static const struct link_open o = { .authority = "bench:443", .client = "127.0.0.1" };
    static const struct link_stream_ops none;
    for (int fd; (fd = accept4(io->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        struct link *best = P.links[0];
        for (size_t i = 1; i < P.n; i++) {
            size_t q = link_queued(P.links[i]), b = link_queued(best);
            if (q < b || (q == b && link_streams(P.links[i]) < link_streams(best)))
                best = P.links[i];
        }
        struct pipe *p = xcalloc(1, sizeof *p);
        struct link_stream *s;
        struct err e;
        if (link_stream_open(best, &o, &none, p, &s, &e) < 0)
            die(e.msg);
        join(p, s, fd);
    }
}

/* ---- back ---- */

static void on_target(void *ctx, int fd, const struct err *e)
{
    struct pipe *p = ctx;
    p->connect = NULL;
    if (fd < 0)
        die(e->msg);
    link_reply(p->s, 200);
    join(p, p->s, fd);
}

static void on_waiting_close(void *ctx, struct link_stream *s, const struct err *why) { (void)s, (void)why; pipe_free(ctx); }

static void on_open(void *ctx, struct link *l, struct link_stream *s, const struct link_open *o)
{
    (void)ctx, (void)l, (void)o;
    static const struct link_stream_ops waiting = { .on_close = on_waiting_close };
    struct pipe *p = xcalloc(1, sizeof *p);
    p->s = s;
    link_stream_attach(s, &waiting, p);
    p->connect = net_connect_start(P.ev, "127.0.0.1", P.to, 10000, on_target, p);
}

/* ---- both ---- */

static void on_ready(void *ctx, struct link *l)
{
    (void)ctx, (void)l;
    if (++P.ready < P.n || P.to)
        return;
    if (ev_io_start(P.ev, &P.clients, P.clients.fd, EV_READ, on_client) < 0)
        die("clients");
    puts("ready");
    fflush(stdout);
}

static void on_end(void *ctx, struct link *l, const struct err *why) { (void)ctx, (void)l; die(why->msg); }

static const struct link_ops ops = { .on_ready = on_ready, .on_open = on_open, .on_end = on_end };

static void link_up(enum link_role role, int fd, struct tls *t)
{
    struct err e;
    unsigned want = 0;
    for (int rc; (rc = tls_handshake(t, &want, &e)) != RC_OK;) {
        struct pollfd f = { .fd = fd, .events = want == EV_WRITE ? POLLOUT : POLLIN };
        if (rc != RC_AGAIN || poll(&f, 1, 10000) != 1)
            die("TLS handshake");
    }
    if (link_new(P.ev, role, &P.budget, fd, t, NULL, 0, &ops, NULL, &P.links[P.n++], &e) < 0)
        die(e.msg);
}

static int listen_any(int *ret_port)
{
    struct net_addr a, bound;
    struct err e;
    int fd;
    if (net_addr_parse("127.0.0.1:0", &a, &e) < 0 || net_listen(&a, &fd, &bound, &e) < 0)
        die(e.msg);
    *ret_port = ntohs(((struct sockaddr_in *)&bound.ss)->sin_port);
    return fd;
}

int main(int argc, char **argv)
{
    (void)signal(SIGPIPE, SIG_IGN);
    (void)mallopt(M_ARENA_MAX, 1);      /* as the edge has it */
    (void)mallopt(M_MMAP_THRESHOLD, 1024 * 1024);
    (void)mallopt(M_TRIM_THRESHOLD, 4 * 1024 * 1024);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct err e;
    bool front = argc == 5 && str_eq(argv[1], "front"), back = argc == 6 && str_eq(argv[1], "back");
    int64_t n, to = 0, at = 0;
    if ((!front && !back) || str_to_i64(argv[argc - 1], 1, LINKS_MAX, &n) < 0
        || (back && (str_to_i64(argv[2], 1, 65535, &at) < 0 || str_to_i64(argv[4], 1, 65535, &to) < 0)))
        die("usage: front CERT KEY LINKS | back LINK_PORT CA TO_PORT LINKS");
    struct tls_conf server = { .cert_file = argv[2], .key_file = argv[3], .tls13_only = true }, client = { .ca_file = argv[3], .tls13_only = true };
    struct tls_ctx *ctx;
    if (ev_new(&P.ev, &e) < 0 || (front ? tls_ctx_server(&server, &ctx, &e) : tls_ctx_client(&client, &ctx, &e)) < 0)
        die(e.msg);
    P.to = (uint16_t)to;
    int links = -1, port = 0, link_port = 0;
    if (front) {
        P.clients.fd = listen_any(&port);
        links = listen_any(&link_port);
        printf("%d %d\n", port, link_port);
        fflush(stdout);
    }
    for (int64_t i = 0; i < n; i++) {
        struct tls *t;
        struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)at), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        struct pollfd f = { .fd = links, .events = POLLIN };
        if (front && poll(&f, 1, 30000) != 1)
            die("no links came");
        int fd = front ? accept4(links, NULL, NULL, SOCK_CLOEXEC) : socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || (back && connect(fd, (struct sockaddr *)&a, sizeof a) < 0) || fd_nonblock(fd) < 0)
            die("connect");
        if ((front ? tls_accept(ctx, fd, &t, &e) : tls_connect(ctx, fd, "127.0.0.1", &t, &e)) < 0)
            die(e.msg);
        link_up(front ? LINK_OPENER : LINK_ACCEPTOR, fd, t);
    }
    ev_run(P.ev);
    return 0;
}
