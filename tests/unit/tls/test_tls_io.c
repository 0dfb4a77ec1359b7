#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <openssl/ssl.h>
#include <signal.h>
#include <string.h>

#include "base/str.h"
#include "tls/certs.h"
#include "tls/tls.h"

static struct test_cert good, client_cert;

/* One direction of a pipe in memory, with little room, so that every call meets RC_AGAIN now and then. */
struct lane { char b[8000]; size_t cap, at, n; bool closed; int fail; };
struct ends { struct lane *in, *out; };

static int pipe_read(void *ctx, void *p, size_t n, size_t *ret_n)
{
    struct lane *l = ((struct ends *)ctx)->in;
    if (l->fail)
        return l->fail;
    if (!l->n)
        return l->closed ? RC_CLOSED : RC_AGAIN;
    n = n < l->n ? n : l->n;
    memcpy(p, l->b + l->at, n);
    l->at += n;
    l->n -= n;
    *ret_n = n;
    return RC_OK;
}

static int pipe_write(void *ctx, const void *p, size_t n, size_t *ret_n)
{
    struct lane *l = ((struct ends *)ctx)->out;
    if (l->fail)
        return l->fail;
    memmove(l->b, l->b + l->at, l->n);
    l->at = 0;
    n = n < l->cap - l->n ? n : l->cap - l->n;
    if (!n)
        return RC_AGAIN;
    memcpy(l->b + l->n, p, n);
    l->n += n;
    *ret_n = n;
    return RC_OK;
}

struct pair { struct tls_ctx *sc, *cc; struct tls *s, *c; struct lane up, down; struct ends se, ce; };

static void open_pair(struct pair *p, const struct tls_conf *server, const struct tls_conf *client, const char *host)
{
    struct err e;
    memset(p, 0, sizeof *p);
    p->up.cap = p->down.cap = client->cert_file ? sizeof p->up.b : 700;     /* session tickets with a client's certificate wait for nobody's read */
    p->se = (struct ends){ &p->up, &p->down };
    p->ce = (struct ends){ &p->down, &p->up };
    assert_int_equal(tls_ctx_server(server, &p->sc, &e), RC_OK);
    assert_int_equal(tls_ctx_client(client, &p->cc, &e), RC_OK);
    struct tls_io sio = { pipe_read, pipe_write, &p->se }, cio = { pipe_read, pipe_write, &p->ce };
    assert_int_equal(tls_accept_io(p->sc, &sio, &p->s, &e), RC_OK);
    assert_int_equal(tls_connect_io(p->cc, &cio, host, &p->c, &e), RC_OK);
}

static void close_pair(struct pair *p)
{
    tls_free(p->s);
    tls_free(p->c);
    tls_ctx_free(p->sc);
    tls_ctx_free(p->cc);
}

static int shake(struct pair *p, struct err *e)
{
    int a = RC_AGAIN, b = RC_AGAIN;
    unsigned want = 0;
    for (int i = 0; i < 200 && (a == RC_AGAIN || b == RC_AGAIN); i++) {
        if (b == RC_AGAIN && (b = tls_handshake(p->c, &want, e)) < 0 && b != RC_AGAIN)
            return b;
        if (a == RC_AGAIN && (a = tls_handshake(p->s, &want, e)) < 0 && a != RC_AGAIN)
            return a;
    }
    return a < 0 ? a : b;
}

static void test_pipe(void **st)
{
    (void)st;
    struct pair p;
    struct err e = { 0 };
    struct tls_conf s = { .cert_file = good.cert, .key_file = good.key, .tls13_only = true }, c = { .ca_file = good.cert, .tls13_only = true };
    open_pair(&p, &s, &c, "localhost");
    assert_int_equal(shake(&p, &e), RC_OK);
    assert_string_equal(tls_sni(p.s), "localhost");
    assert_non_null(tls_group(p.s));
    assert_string_equal(tls_group(p.s), tls_group(p.c));
    char alpn[32];
    assert_string_equal(tls_alpn(p.s, alpn), "http/1.1");
    static char out[200000], in[200000];
    for (size_t i = 0; i < sizeof out; i++)
        out[i] = (char)(i * 13 >> 3);
    size_t w = 0, r = 0, n = 0;
    unsigned want = 0;
    bool full = false;
    while (r < sizeof in) {
        int rc = RC_OK;
        while (w < sizeof out && (rc = tls_write(p.c, out + w, sizeof out - w, &n, &want, &e)) == RC_OK)
            w += n;
        if (w < sizeof out) {
            assert_int_equal(rc, RC_AGAIN);
            assert_int_equal(want, 2);
            full = true;
        }
        while (r < sizeof in && (rc = tls_read(p.s, in + r, sizeof in - r, &n, &want, &e)) == RC_OK)
            r += n;
        assert_true(rc == RC_AGAIN || r == sizeof in);
    }
    assert_true(full);
    assert_memory_equal(in, out, sizeof in);
    assert_int_equal(tls_read(p.c, in, 1, &n, &want, &e), RC_AGAIN);
    assert_int_equal(want, 1);
    p.down.closed = true;                                                   /* an end without close_notify is a cut */
    assert_int_equal(tls_read(p.c, in, 1, &n, &want, &e), RC_IO);
    p.up.fail = RC_TIMEOUT;                                                 /* a failure below keeps its code */
    assert_int_equal(tls_read(p.s, in, 1, &n, &want, &e), RC_TIMEOUT);
    assert_non_null(strstr(e.msg, "below"));
    close_pair(&p);
    open_pair(&p, &s, &c, "localhost");
    assert_int_equal(shake(&p, &e), RC_OK);
    tls_free(p.c);                                                          /* close_notify crosses the pipe */
    p.c = NULL;
    assert_int_equal(tls_read(p.s, in, 1, &n, &want, &e), RC_CLOSED);
    close_pair(&p);
}

static void test_alpn(void **st)
{
    (void)st;
    static const struct { const char *server, *client, *got; } t[] = {
        { NULL, NULL, "http/1.1" }, { "h2,http/1.1", "http/1.1,h2", "h2" }, { "h2,http/1.1", NULL, "http/1.1" }, { "h2", "http/1.1", NULL }, { "a", "a", "a" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct pair p;
        struct err e = { 0 };
        struct tls_conf s = { .cert_file = good.cert, .key_file = good.key, .alpn = t[i].server }, c = { .ca_file = good.cert, .alpn = t[i].client };
        open_pair(&p, &s, &c, "127.0.0.1");
        assert_int_equal(shake(&p, &e), RC_OK);
        char a[32], b[32];
        const char *x = tls_alpn(p.s, a), *y = tls_alpn(p.c, b);
        if (!str_eq(x, t[i].got) || !str_eq(y, t[i].got))
            fail_msg("row %zu: %s %s", i, x ? x : "none", y ? y : "none");
        assert_null(tls_sni(p.s));                                          /* an address is no name */
        close_pair(&p);
    }
    static const char *const bad[] = { "", ",", "h2,", ",h2", "h2,,http/1.1", "0123456789012345678901234567890123456789012345678901234567890123" };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        struct tls_ctx *x = NULL;
        struct err e = { 0 };
        struct tls_conf c = { .ca_file = good.cert, .alpn = bad[i] };
        assert_int_equal(tls_ctx_client(&c, &x, &e), RC_INVALID);
        assert_null(x);
    }
}

/* A context for tunnels refuses TLS 1.2; others speak it. Shown with an OpenSSL client that has no more than 1.2. */
static void test_versions(void **st)
{
    (void)st;
    for (int only = 0; only < 2; only++) {
        struct pair p;
        struct err e = { 0 };
        struct tls_conf s = { .cert_file = good.cert, .key_file = good.key, .tls13_only = only }, c = { .ca_file = good.cert };
        open_pair(&p, &s, &c, "localhost");
        SSL_CTX *old = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_max_proto_version(old, TLS1_2_VERSION);
        SSL *ssl = SSL_new(old);
        BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
        SSL_set_bio(ssl, in, out);
        SSL_set_connect_state(ssl);
        int done = 0, rc = RC_AGAIN;
        unsigned want;
        for (int i = 0; i < 200 && rc == RC_AGAIN; i++) {
            char b[300];
            int n;
            done = SSL_do_handshake(ssl);
            while ((n = BIO_read(out, b, p.up.cap - p.up.n < sizeof b ? (int)(p.up.cap - p.up.n) : (int)sizeof b)) > 0) {
                size_t put;
                assert_int_equal(pipe_write(&p.ce, b, (size_t)n, &put), RC_OK);
            }
            rc = tls_handshake(p.s, &want, &e);
            size_t got;
            while (pipe_read(&p.ce, b, sizeof b, &got) == RC_OK)
                BIO_write(in, b, (int)got);
        }
        (void)done;
        assert_int_equal(rc, only ? RC_PROTO : RC_OK);
        SSL_free(ssl);
        SSL_CTX_free(old);
        close_pair(&p);
    }
}

static void test_peer(void **st)
{
    (void)st;
    struct pair p;
    struct err e = { 0 };
    struct tls_conf s = { .cert_file = good.cert, .key_file = good.key, .ca_file = client_cert.cert };
    struct tls_conf c = { .ca_file = good.cert, .cert_file = client_cert.cert, .key_file = client_cert.key };
    open_pair(&p, &s, &c, "localhost");
    assert_int_equal(shake(&p, &e), RC_OK);
    uint8_t of_server[32], of_client[32], want[32];
    assert_true(tls_peer_sha256(p.c, of_server));
    assert_true(tls_peer_sha256(p.s, of_client));
    assert_memory_not_equal(of_server, of_client, 32);
    FILE *f = fopen(client_cert.cert, "r");
    X509 *x = PEM_read_X509(f, NULL, NULL, NULL);
    fclose(f);
    unsigned n = 32;
    assert_int_equal(X509_digest(x, EVP_sha256(), want, &n), 1);
    X509_free(x);
    assert_memory_equal(of_client, want, 32);
    close_pair(&p);
    s.ca_file = NULL;
    open_pair(&p, &s, &c, "localhost");
    assert_int_equal(shake(&p, &e), RC_OK);
    assert_false(tls_peer_sha256(p.s, of_client));                          /* none was asked for */
    close_pair(&p);
}

static int setup(void **st)
{
    (void)st;
    (void)signal(SIGPIPE, SIG_IGN);
    test_cert_make(&good, "DNS:localhost,IP:127.0.0.1", 2);
    test_cert_make(&client_cert, "DNS:client", 2);
    return 0;
}

static int teardown(void **st)
{
    (void)st;
    test_cert_remove(&good);
    test_cert_remove(&client_cert);
    return 0;
}

int main(void)
{
    const struct CMUnitTest t[] = { cmocka_unit_test(test_pipe), cmocka_unit_test(test_alpn), cmocka_unit_test(test_versions), cmocka_unit_test(test_peer) };
    return cmocka_run_group_tests(t, setup, teardown);
}
