/* tests/tunnel/accept.c - the smallest gateway: dials an edge, upgrades, and connects each stream to a TCP port on loopback. It ends no TLS, so that tests see
 * the bytes as they cross. Usage: tunnel-accept EDGE_PORT CA_FILE CONNECTOR CONNECTIONS TO_PORT [refuse=STATUS] [silent] ; the token is in TUNNEL_TOKEN.
 * Prints one line an event: "up I", "refused I STATUS RETRY_AFTER", "goaway I", "end I WHY", "open AUTHORITY CLIENT FORWARDED", "closed N STREAMS". Ends when all
 * connections have ended. `silent`: streams are taken and never answered. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/list.h"
#include "base/secret.h"
#include "base/str.h"
#include "http/parse.h"
#include "net/net.h"
#include "tls/tls.h"
#include "tunnel/link.h"
#include "tunnel/proto.h"
#include "tunnel/relay.h"

static struct { struct ev *ev; struct tls_ctx *tls; struct link_budget budget; const char *connector; uint16_t port, to; int64_t left, n_streams, refuse; bool silent; } t;

struct conn { int index, fd; struct tls *tls; struct ev_io io; struct buf in, out; struct link *link; bool up; };
struct pipe { struct link_stream *s; struct net_connect *connect; struct relay *relay; };

static void gone(struct conn *c, const char *why)
{
    printf("end %d %s\n", c->index, why);
    ev_io_stop(&c->io);
    if (c->link)
        link_free(TAKE(c->link));
    if (--t.left == 0)
        ev_stop(t.ev);
}

/* ---- one stream ---- */

static void pipe_free(struct pipe *p)
{
    net_connect_cancel(TAKE(p->connect));
    relay_free(p->relay);
    link_stream_free(p->s);
    free(p);
    printf("closed %lld\n", (long long)--t.n_streams);
}

static void on_stream_close(void *ctx, struct link_stream *s, const struct err *why) { (void)s, (void)why; pipe_free(ctx); }
static const struct link_stream_ops waiting_ops = { .on_close = on_stream_close };
static void on_relay_done(void *ctx, const struct relay_result *r) { (void)r; pipe_free(ctx); }

static void on_target(void *ctx, int fd, const struct err *e)
{
    struct pipe *p = ctx;
    struct err why;
    p->connect = NULL;
    const struct relay_end target = { .fd = fd }, stream = { .stream = p->s };
    link_reply(p->s, fd < 0 ? 502 : 200);
    if (fd >= 0 && relay_new(t.ev, &stream, &target, on_relay_done, p, &p->relay, &why) == RC_OK) {
        p->s = NULL;
        return;
    }
    fprintf(stderr, "%s\n", fd < 0 ? e->msg : why.msg);
    if (fd >= 0)
        (void)close(fd);
    pipe_free(p);
}

static void on_open(void *ctx, struct link *l, struct link_stream *s, const struct link_open *o)
{
    (void)ctx, (void)l;
    printf("open %s %s %d\n", o->authority, o->client, o->forwarded);
    if (t.refuse) {
        link_reply(s, (int)t.refuse);
        return;
    }
    struct pipe *p = xcalloc(1, sizeof *p);
    p->s = s;
    t.n_streams++;
    link_stream_attach(s, &waiting_ops, p);
    if (!t.silent)
        p->connect = net_connect_start(t.ev, "127.0.0.1", t.to, 10000, on_target, p);
}

/* ---- one connection ---- */

static void on_ready(void *ctx, struct link *l) { (void)l; printf("up %d\n", ((struct conn *)ctx)->index); }
static void on_goaway(void *ctx, struct link *l) { (void)l; printf("goaway %d\n", ((struct conn *)ctx)->index); }
static void on_end(void *ctx, struct link *l, const struct err *why) { (void)l; gone(ctx, why->msg); }

static void on_answer(struct conn *c)
{
    static const struct link_ops ops = { .on_ready = on_ready, .on_open = on_open, .on_goaway = on_goaway, .on_end = on_end };
    struct http_head h;
    struct err e;
    const char *why = "";
    size_t used = 0;
    int rc = http_parse_response(buf_data(&c->in), buf_len(&c->in), 0, &h, &used, &why);
    if (rc == RC_AGAIN)
        return;
    if (rc < 0 || h.status != 101) {
        const struct slice *r = rc == RC_OK ? http_find(&h, "retry-after") : NULL;
        printf("refused %d %d %.*s\n", c->index, rc == RC_OK ? h.status : 0, r ? (int)r->n : 1, r ? r->p : "-");
        gone(c, "refused");
        return;
    }
    ev_io_stop(&c->io);
    buf_consume(&c->in, used);
    if (link_new(t.ev, LINK_ACCEPTOR, &t.budget, c->fd, c->tls, buf_data(&c->in), buf_len(&c->in), &ops, c, &c->link, &e) < 0)
        gone(c, e.msg);
}

static void on_conn(struct ev_io *io, unsigned got)
{
    (void)got;
    struct conn *c = container_of(io, struct conn, io);
    unsigned want = EV_READ;
    struct err e;
    int rc = c->up ? RC_OK : tls_handshake(c->tls, &want, &e);
    c->up = c->up || rc == RC_OK;
    while (rc == RC_OK && buf_len(&c->out)) {
        size_t n = 0;
        rc = tls_write(c->tls, buf_data(&c->out), buf_len(&c->out), &n, &want, &e);
        if (rc == RC_OK)
            buf_consume(&c->out, n);
    }
    while (rc == RC_OK && !c->link && c->io.ev) {
        char part[4096];
        size_t n = 0;
        rc = tls_read(c->tls, part, sizeof part, &n, &want, &e);
        if (rc == RC_OK) {
            (void)buf_put(&c->in, part, n);
            on_answer(c);
        }
    }
    if (rc == RC_AGAIN)
        ev_io_want(io, want);
    else if (rc < 0 && c->io.ev)
        gone(c, e.msg);
}

static void on_connected(void *ctx, int fd, const struct err *why)
{
    struct conn *c = ctx;
    struct err e;
    c->fd = fd;
    if (fd < 0)
        gone(c, why->msg);
    else if (tls_connect(t.tls, fd, "127.0.0.1", &c->tls, &e) < 0 || ev_io_start(t.ev, &c->io, fd, EV_WRITE, on_conn) < 0)
        gone(c, e.msg);
}

static void conn_start(int index, int count, const struct secret *token)
{
    struct conn *c = xcalloc(1, sizeof *c);
    c->index = index;
    buf_init(&c->in, 65536);
    buf_init(&c->out, 8192);
    buf_printf(&c->out, "GET " PROTO_PATH " HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: " PROTO_UPGRADE_TUNNEL "\r\n" PROTO_H_CONNECTOR ": %s\r\n"
               PROTO_H_CONNECTION ": %d/%d\r\nUser-Agent: tunnel-accept/1\r\n", t.connector, index, count);
    if (token)
        buf_printf(&c->out, "Authorization: Bearer %s\r\n", secret_text(token));
    buf_puts(&c->out, "\r\n");
    net_connect_start(t.ev, "127.0.0.1", t.port, 10000, on_connected, c);
}

int main(int argc, char **argv)
{
    int64_t port, to, count;
    struct err e;
    if (argc < 6 || str_to_i64(argv[1], 1, 65535, &port) < 0 || str_to_i64(argv[4], 1, 10000, &count) < 0 || str_to_i64(argv[5], 1, 65535, &to) < 0)
        return 2;
    for (int i = 6; i < argc; i++) {
        t.silent = t.silent || str_eq(argv[i], "silent");
        if (str_prefix(argv[i], "refuse=") && str_to_i64(argv[i] + 7, 100, 599, &t.refuse) < 0)
            return 2;
    }
    struct tls_conf tc = { .ca_file = argv[2], .tls13_only = true };
    (void)signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    t.connector = argv[3];
    t.port = (uint16_t)port;
    t.to = (uint16_t)to;
    t.left = count;
    t.budget.max = 64 * MIB;
    if (ev_new(&t.ev, &e) < 0 || tls_ctx_client(&tc, &t.tls, &e) < 0) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    struct secret *token = secret_take_env("TUNNEL_TOKEN");
    for (int i = 0; i < (int)count; i++)
        conn_start(i, (int)count, token);
    ev_run(t.ev);
    return 0;
}
