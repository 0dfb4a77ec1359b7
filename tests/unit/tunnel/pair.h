/* Two ends of a link in one process: over TLS on loopback, or over pipes in memory. And an application on streams that sends a pattern and checks one. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/str.h"
#include "tls/certs.h"
#include "tunnel/link_internal.h"

#define DEADLINE_MS 120000      /* only so that a broken test ends */
#define APPS 64

/* A byte of a stream's pattern: depends on the place and on who sends. */
static inline unsigned char pattern(uint64_t at, unsigned seed) { return (unsigned char)((at * 2654435761u >> 7) + seed + (at >> 13)); }

struct app {
    struct link_stream *s;
    struct pair *pair;
    unsigned seed_in, seed_out;
    uint64_t got, sent, to_send;
    bool stalled, shut_after, shut_done, eof, closed, reply_auto, readable_seen;
    int status, closes, replies;
    struct err why;
    char authority[300], client[64];
    bool forwarded;
};

struct side { struct link *l; bool ready, goaway; int ends; struct err why; bool free_in_end; };

struct pair {
    struct ev *ev;
    struct side o, a;                           /* opener, acceptor */
    struct app in[APPS], out[APPS];             /* the acceptor's streams as they come; the opener's */
    size_t n_in, n_out;
    int reply;                                  /* what the acceptor answers; 0 nothing, -1 does not attach */
    uint64_t answer;                            /* bytes the acceptor sends on each stream */
    bool answer_shut, in_stalled, own_ev;
    struct link_budget budget;
    struct tls_ctx *sc, *cc;
};

static struct test_cert pair_cert;
static void app_pump(struct app *x);

static void app_reply(void *ctx, struct link_stream *s, int status)
{
    struct app *x = ctx;
    assert_ptr_equal(x->s, s);
    x->status = status;
    x->replies++;
}

static void app_read(struct app *x)
{
    struct slice in;
    while (x->s && !x->stalled && (in = link_peek(x->s)).n > 0) {
        for (size_t i = 0; i < in.n; i++)
            if ((unsigned char)in.p[i] != pattern(x->got + i, x->seed_in))
                fail_msg("byte %llu is wrong", (unsigned long long)(x->got + i));
        x->got += in.n;
        link_consume(x->s, in.n);
    }
    if (x->s && link_eof(x->s))
        x->eof = true;
}

static void app_readable(void *ctx, struct link_stream *s)
{
    struct app *x = ctx;
    assert_ptr_equal(x->s, s);
    assert_false(x->closed);
    x->readable_seen = true;
    app_read(x);
}

static void app_pump(struct app *x)
{
    while (x->s && x->sent < x->to_send) {
        unsigned char b[5000];
        size_t n = x->to_send - x->sent < sizeof b ? (size_t)(x->to_send - x->sent) : sizeof b;
        for (size_t i = 0; i < n; i++)
            b[i] = pattern(x->sent + i, x->seed_out);
        size_t took = 0;
        if (x->sent % 2) {
            took = link_write(x->s, b, n);
        } else {
            char *p = link_write_reserve(x->s, n, &took);
            if (p) {
                memcpy(p, b, took);
                link_write_commit(x->s, took);
            }
        }
        x->sent += took;
        if (took == 0)
            return;
    }
    if (x->s && x->shut_after && !x->shut_done && x->sent == x->to_send) {
        x->shut_done = true;
        link_shutdown(x->s);
    }
}

static void app_writable(void *ctx, struct link_stream *s)
{
    struct app *x = ctx;
    assert_ptr_equal(x->s, s);
    assert_false(x->closed);
    app_pump(x);
}

static void app_close(void *ctx, struct link_stream *s, const struct err *why)
{
    struct app *x = ctx;
    assert_ptr_equal(x->s, s);
    x->closed = true;
    x->closes++;
    x->why = *why;
}

static const struct link_stream_ops app_ops = { app_reply, app_readable, app_writable, app_close };

static void app_free(struct app *x)
{
    link_stream_free(x->s);
    x->s = NULL;
}

static void pair_ready(void *ctx, struct link *l)
{
    struct side *s = ctx;
    assert_ptr_equal(s->l, l);
    s->ready = true;
}

static void pair_open(void *ctx, struct link *l, struct link_stream *s, const struct link_open *o)
{
    struct pair *p = container_of((struct side *)ctx, struct pair, a);
    (void)l;
    if (p->reply < 0)
        return;
    struct app *x = &p->in[p->n_in++ % APPS];
    if (x->s)
        app_free(x);
    *x = (struct app){ .s = s, .pair = p, .seed_in = 1, .seed_out = 2, .to_send = p->answer, .shut_after = p->answer_shut, .forwarded = o->forwarded, .stalled = p->in_stalled };
    str_copy(x->authority, sizeof x->authority, o->authority);
    str_copy(x->client, sizeof x->client, o->client);
    link_stream_attach(s, &app_ops, x);
    if (p->reply)
        link_reply(s, p->reply);
    app_pump(x);
}

static void pair_goaway(void *ctx, struct link *l)
{
    struct side *s = ctx;
    assert_ptr_equal(s->l, l);
    s->goaway = true;
}

static void pair_end(void *ctx, struct link *l, const struct err *why)
{
    struct side *s = ctx;
    assert_ptr_equal(s->l, l);
    s->ends++;
    s->why = *why;
    if (s->free_in_end) {
        link_free(l);
        s->l = NULL;
    }
}

static const struct link_ops pair_ops = { pair_ready, pair_open, pair_goaway, pair_end };

/* Turns of the loop until `c` holds. */
#define UNTIL(p, c)                                                                                 \
    do {                                                                                            \
        int64_t end_ = clock_mono_ms() + DEADLINE_MS;                                               \
        while (!(c)) {                                                                              \
            if (clock_mono_ms() > end_)                                                             \
                fail_msg("never: %s (opener %s, acceptor %s)", #c, (p)->o.why.msg, (p)->a.why.msg); \
            ev_run_once((p)->ev, 20);                                                               \
        }                                                                                           \
    } while (0)

static void tcp_pair(int fd[2])
{
    int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t n = sizeof a;
    assert_int_equal(bind(l, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(l, 1), 0);
    assert_int_equal(getsockname(l, (struct sockaddr *)&a, &n), 0);
    fd[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd[0], (struct sockaddr *)&a, sizeof a), 0);
    fd[1] = accept4(l, NULL, NULL, SOCK_CLOEXEC);
    assert_true(fd[1] >= 0);
    close(l);
    assert_int_equal(fd_nonblock(fd[0]), RC_OK);
    assert_int_equal(fd_nonblock(fd[1]), RC_OK);
}

/* The established TLS pair below: [0] is the client (who dialled: the acceptor of the link). */
static void tls_pair(struct pair *p, int fd[2], struct tls *t[2])
{
    struct err e = { 0 };
    struct tls_conf s = { .cert_file = pair_cert.cert, .key_file = pair_cert.key, .tls13_only = true }, c = { .ca_file = pair_cert.cert, .tls13_only = true };
    assert_int_equal(tls_ctx_server(&s, &p->sc, &e), RC_OK);
    assert_int_equal(tls_ctx_client(&c, &p->cc, &e), RC_OK);
    tcp_pair(fd);
    assert_int_equal(tls_connect(p->cc, fd[0], "localhost", &t[0], &e), RC_OK);
    assert_int_equal(tls_accept(p->sc, fd[1], &t[1], &e), RC_OK);
    int a = RC_AGAIN, b = RC_AGAIN;
    unsigned want;
    while (a == RC_AGAIN || b == RC_AGAIN) {
        if (a == RC_AGAIN)
            a = tls_handshake(t[0], &want, &e);
        if (b == RC_AGAIN)
            b = tls_handshake(t[1], &want, &e);
    }
    assert_int_equal(a, RC_OK);
    assert_int_equal(b, RC_OK);
}

/* `ev`: of another pair, or NULL. */
static void pair_start_on(struct pair *p, struct ev *ev)
{
    struct err e = { 0 };
    memset(p, 0, sizeof *p);
    p->reply = 200;
    p->budget.max = 64 * MIB;
    p->ev = ev;
    p->own_ev = !ev;
    if (!ev)
        assert_int_equal(ev_new(&p->ev, &e), RC_OK);
    int fd[2];
    struct tls *t[2];
    tls_pair(p, fd, t);
    assert_int_equal(link_new(p->ev, LINK_ACCEPTOR, &p->budget, fd[0], t[0], NULL, 0, &pair_ops, &p->a, &p->a.l, &e), RC_OK);
    assert_int_equal(link_new(p->ev, LINK_OPENER, &p->budget, fd[1], t[1], NULL, 0, &pair_ops, &p->o, &p->o.l, &e), RC_OK);
    assert_false(link_usable(p->o.l));
    UNTIL(p, p->o.ready && p->a.ready);
    assert_true(link_usable(p->o.l));
    assert_false(link_usable(p->a.l));          /* only openers open */
}

static void pair_start(struct pair *p)
{
    pair_start_on(p, NULL);
}

static void pair_stop(struct pair *p)
{
    link_free(p->o.l);
    link_free(p->a.l);
    for (size_t i = 0; i < APPS; i++) {
        app_free(&p->in[i]);
        app_free(&p->out[i]);
    }
    assert_int_equal(p->budget.used, 0);
    tls_ctx_free(p->sc);
    tls_ctx_free(p->cc);
    if (p->own_ev)
        ev_free(p->ev);
}

static struct app *app_open(struct pair *p, uint64_t to_send, bool shut)
{
    struct err e = { 0 };
    struct app *x = &p->out[p->n_out++ % APPS];
    if (x->s)
        app_free(x);
    *x = (struct app){ .pair = p, .seed_in = 2, .seed_out = 1, .to_send = to_send, .shut_after = shut };
    const struct link_open o = { .authority = "docs.tnl.example:443", .client = "192.0.2.7" };
    assert_int_equal(link_stream_open(p->o.l, &o, &app_ops, x, &x->s, &e), RC_OK);
    app_pump(x);
    return x;
}

static int pair_group_setup(void **st)
{
    (void)st;
    (void)signal(SIGPIPE, SIG_IGN);
    test_cert_make(&pair_cert, "DNS:localhost,IP:127.0.0.1", 2);
    return 0;
}

static int pair_group_teardown(void **st)
{
    (void)st;
    test_cert_remove(&pair_cert);
    return 0;
}
