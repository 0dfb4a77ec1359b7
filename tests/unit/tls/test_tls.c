#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "tls/certs.h"
#include "tls/tls.h"

static struct test_cert good, other, old;

struct pair { struct tls_ctx *sc, *cc; struct tls *s, *c; int fd[2]; };

static void open_pair(struct pair *p, const struct test_cert *server, const char *ca, const char *host, const struct test_cert *client, const char *client_ca)
{
    struct err e;
    struct tls_conf s = { .cert_file = server->cert, .key_file = server->key, .ca_file = client_ca };
    struct tls_conf c = { .ca_file = ca, .cert_file = client ? client->cert : NULL, .key_file = client ? client->key : NULL };
    assert_int_equal(tls_ctx_server(&s, &p->sc, &e), RC_OK);
    assert_int_equal(tls_ctx_client(&c, &p->cc, &e), RC_OK);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, p->fd), 0);
    assert_int_equal(tls_accept(p->sc, p->fd[0], &p->s, &e), RC_OK);
    assert_int_equal(tls_connect(p->cc, p->fd[1], host, &p->c, &e), RC_OK);
}

static void close_pair(struct pair *p)
{
    tls_free(p->s);
    tls_free(p->c);
    tls_ctx_free(p->sc);
    tls_ctx_free(p->cc);
    for (int i = 0; i < 2; i++)
        if (p->fd[i] >= 0)
            close(p->fd[i]);
}

/* Both ends in turn; the first failure, or RC_OK. */
static int shake(struct pair *p, struct err *e)
{
    int a = RC_AGAIN, b = RC_AGAIN;
    unsigned want = 0;
    for (int i = 0; i < 50 && (a == RC_AGAIN || b == RC_AGAIN); i++) {
        if (b == RC_AGAIN) {
            b = tls_handshake(p->c, &want, e);
            if (b < 0 && b != RC_AGAIN)
                return b;
        }
        if (a == RC_AGAIN) {
            a = tls_handshake(p->s, &want, e);
            if (a < 0 && a != RC_AGAIN)
                return a;
        }
    }
    return a < 0 ? a : b;
}

static void test_handshakes(void **st)
{
    (void)st;
    const struct { const struct test_cert *server; const char *ca, *host; const struct test_cert *client; const char *client_ca; int rc; const char *say; } t[] = {
        { &good, good.cert, "localhost", NULL, NULL, RC_OK, NULL }, { &good, good.cert, "127.0.0.1", NULL, NULL, RC_OK, NULL },
        { &good, good.cert, "::1", NULL, NULL, RC_OK, NULL }, { &good, good.cert, "[::1]", NULL, NULL, RC_OK, NULL },
        { &good, good.cert, "LOCALHOST", NULL, NULL, RC_OK, NULL }, { &good, good.cert, "example.com", NULL, NULL, RC_PROTO, "ostname" },
        { &good, good.cert, "127.0.0.2", NULL, NULL, RC_PROTO, "IP address" }, { &good, other.cert, "localhost", NULL, NULL, RC_PROTO, "self-signed" },
        { &good, NULL, "localhost", NULL, NULL, RC_PROTO, "self-signed" }, { &old, old.cert, "localhost", NULL, NULL, RC_PROTO, "expired" },
        { &good, good.cert, "localhost", &other, other.cert, RC_OK, NULL }, { &good, good.cert, "localhost", NULL, other.cert, RC_PROTO, "certificate" },
        { &good, good.cert, "localhost", &good, other.cert, RC_PROTO, "" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct pair p;
        struct err e = { 0 };
        open_pair(&p, t[i].server, t[i].ca, t[i].host, t[i].client, t[i].client_ca);
        int rc = shake(&p, &e);
        if (rc != t[i].rc || (t[i].say && !strstr(e.msg, t[i].say)))
            fail_msg("row %zu: rc %d \"%s\"", i, rc, e.msg);
        close_pair(&p);
    }
}

static void test_data(void **st)
{
    (void)st;
    struct pair p;
    struct err e;
    open_pair(&p, &good, good.cert, "localhost", NULL, NULL);
    assert_int_equal(shake(&p, &e), RC_OK);
    static char out[1 << 20], in[1 << 20];
    for (size_t i = 0; i < sizeof out; i++)
        out[i] = (char)(i * 7);
    size_t w = 0, r = 0;
    bool full = false;
    while (r < sizeof in) {
        size_t n = 0;
        unsigned want = 0;
        int rc = RC_OK;
        while (w < sizeof out && (rc = tls_write(p.c, out + w, sizeof out - w, &n, &want, &e)) == RC_OK)
            w += n;
        if (w < sizeof out) {
            assert_int_equal(rc, RC_AGAIN);
            assert_int_equal(want, 2);          /* EV_WRITE: the socket is full */
            full = true;
        }
        while (r < sizeof in && (rc = tls_read(p.s, in + r, sizeof in - r < 5000 ? sizeof in - r : 5000, &n, &want, &e)) == RC_OK)
            r += n;
        assert_true(rc == RC_AGAIN || r == sizeof in);
    }
    assert_true(full);
    assert_memory_equal(in, out, sizeof in);
    size_t n = 0;
    unsigned want = 0;
    assert_int_equal(tls_read(p.c, in, 10, &n, &want, &e), RC_AGAIN);
    assert_int_equal(want, 1);
    assert_int_equal(tls_write(p.c, "", 0, &n, &want, &e), RC_INVALID);
    tls_free(p.c);
    p.c = NULL;
    assert_int_equal(tls_read(p.s, in, 10, &n, &want, &e), RC_CLOSED);      /* close_notify */
    close_pair(&p);
}

/* Both ends batched: nothing leaves before the flush, nothing is read again before the loop has seen bytes, and a full socket is waited for. */
static void test_batch(void **st)
{
    (void)st;
    struct pair p;
    struct err e = { 0 };
    open_pair(&p, &good, good.cert, "localhost", NULL, NULL);
    assert_int_equal(shake(&p, &e), RC_OK);
    assert_int_equal(tls_batch(p.s, &e), RC_OK);
    assert_int_equal(tls_batch(p.c, &e), RC_OK);
    static char out[1 << 20], in[1 << 20];
    for (size_t i = 0; i < sizeof out; i++)
        out[i] = (char)(i * 11);
    size_t w = 0, r = 0, n = 0;
    unsigned want = 0;
    int rc;
    while (tls_read(p.c, in, sizeof in, &n, &want, &e) == RC_OK)         /* what the handshake left */
        fail();
    tls_readable(p.s);
    assert_int_equal(tls_write(p.c, out, 100, &n, &want, &e), RC_OK);
    assert_int_equal(n, 100);
    assert_int_equal(tls_read(p.s, in, sizeof in, &n, &want, &e), RC_AGAIN);
    assert_int_equal(want, 1);
    assert_int_equal(tls_flush(p.c, &e), RC_OK);
    tls_readable(p.s);
    assert_int_equal(tls_read(p.s, in, sizeof in, &n, &want, &e), RC_OK);
    assert_int_equal(n, 100);
    w = r = 100;
    bool full = false;
    while (r < sizeof in) {
        while (w < sizeof out && (rc = tls_write(p.c, out + w, sizeof out - w, &n, &want, &e)) == RC_OK)
            w += n;
        rc = tls_flush(p.c, &e);
        full = full || rc == RC_AGAIN;
        assert_true(rc == RC_OK || rc == RC_AGAIN);
        tls_readable(p.s);
        while (r < sizeof in && (rc = tls_read(p.s, in + r, sizeof in - r, &n, &want, &e)) == RC_OK)
            r += n;
        assert_true(rc == RC_AGAIN || r == sizeof in);
    }
    assert_true(full);
    assert_memory_equal(in + 100, out + 100, sizeof in - 100);
    assert_int_equal(tls_shutdown(p.c, &want, &e), RC_OK);              /* the end is collected, too */
    assert_int_equal(tls_flush(p.c, &e), RC_OK);
    tls_readable(p.s);
    assert_int_equal(tls_read(p.s, in, sizeof in, &n, &want, &e), RC_CLOSED);
    close_pair(&p);
    open_pair(&p, &good, good.cert, "localhost", NULL, NULL);            /* a cut is no end, and keeps its reason */
    assert_int_equal(shake(&p, &e), RC_OK);
    assert_int_equal(tls_batch(p.s, &e), RC_OK);
    assert_int_equal(tls_read(p.c, in, sizeof in, &n, &want, &e), RC_AGAIN);        /* else what is unread makes it a reset */
    assert_int_equal(tls_write(p.s, out, 100, &n, &want, &e), RC_OK);
    close(p.fd[1]);
    p.fd[1] = -1;
    assert_int_equal(tls_read(p.s, in, sizeof in, &n, &want, &e), RC_IO);
    assert_non_null(strstr(e.msg, "cut"));
    assert_int_equal(tls_flush(p.s, &e), RC_IO);
    assert_non_null(strstr(e.msg, "TLS write"));
    close_pair(&p);
}

static void test_cut(void **st)
{
    (void)st;
    struct pair p;
    struct err e;
    open_pair(&p, &good, good.cert, "localhost", NULL, NULL);
    assert_int_equal(shake(&p, &e), RC_OK);
    char b[16];
    size_t n;
    unsigned want;
    shutdown(p.fd[1], SHUT_RDWR);
    assert_int_equal(tls_read(p.s, b, sizeof b, &n, &want, &e), RC_IO);     /* truncation is no clean end */
    assert_int_equal(tls_write(p.s, "x", 1, &n, &want, &e) == RC_OK, 0);    /* and no SIGPIPE kills us */
    close_pair(&p);
    open_pair(&p, &good, good.cert, "localhost", NULL, NULL);
    assert_int_equal(write(p.fd[1], "GET / HTTP/1.1\r\n\r\n", 18), 18);     /* plain text to a TLS server */
    assert_int_equal(tls_handshake(p.s, &want, &e), RC_PROTO);
    close_pair(&p);
}

static void test_configuration(void **st)
{
    (void)st;
    struct tls_ctx *x = NULL;
    struct err e;
    char junk[120];
    snprintf(junk, sizeof junk, "%s/junk", good.dir);
    assert_int_equal(fd_write_file_atomic(junk, "junk", 4, 0600, &e), RC_OK);
    const struct { struct tls_conf c; bool server; } t[] = {
        { { 0 }, true }, { { .cert_file = good.cert }, true }, { { .key_file = good.key }, false }, { { .cert_file = good.cert, .key_file = other.key }, true },
        { { .cert_file = "/none", .key_file = good.key }, true }, { { .cert_file = good.cert, .key_file = "/none" }, true },
        { { .cert_file = junk, .key_file = good.key }, true }, { { .ca_file = "/none" }, false }, { { .ca_file = junk }, false },
        { { .cert_file = good.cert, .key_file = good.key, .ca_file = junk }, true },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        e.msg[0] = '\0';
        int rc = t[i].server ? tls_ctx_server(&t[i].c, &x, &e) : tls_ctx_client(&t[i].c, &x, &e);
        if (rc != RC_INVALID || !e.msg[0])
            fail_msg("row %zu: rc %d", i, rc);
    }
    assert_null(x);
    tls_ctx_free(NULL);
    tls_free(NULL);
    struct tls_conf ok = { .ca_file = good.cert };
    struct tls *t1 = NULL;
    assert_int_equal(tls_ctx_client(&ok, &x, &e), RC_OK);
    assert_int_equal(tls_connect(x, 0, "", &t1, &e), RC_INVALID);           /* nothing to verify against */
    tls_ctx_free(x);
    unlink(junk);
}

static int setup(void **st)
{
    (void)st;
    (void)signal(SIGPIPE, SIG_IGN);
    test_cert_make(&good, "DNS:localhost,IP:127.0.0.1,IP:::1", 2);
    test_cert_make(&other, "DNS:localhost", 2);
    test_cert_make(&old, "DNS:localhost", -1);
    return 0;
}

static int teardown(void **st)
{
    (void)st;
    test_cert_remove(&good);
    test_cert_remove(&other);
    test_cert_remove(&old);
    return 0;
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_handshakes), cmocka_unit_test(test_data), cmocka_unit_test(test_batch), cmocka_unit_test(test_cut), cmocka_unit_test(test_configuration),
    };
    return cmocka_run_group_tests(t, setup, teardown);
}
