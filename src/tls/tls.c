/* tls/tls.c - OpenSSL over non-blocking descriptors and pipes. The error queue is emptied before each call and read right after it, so that one
 * connection's error never shows up in another. */
#include "tls/tls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "base/buf.h"
#include "base/str.h"
#include "ev/ev.h"
#include "tls/bio.h"
#include "tls/cert.h"

#define ALPN_MAX 64             /* bytes of the whole list as it goes over the wire */
#define BATCH_READ ((size_t)66 * 1024)        /* four full records */
#define ALPN_DEFAULT "http/1.1"

/* Key exchange of tunnels. Hybrid post-quantum first where the OpenSSL at run time has it: the first form (3.5) sends both key shares at once and so
 * saves a round trip with peers that know only X25519; the second is for providers that add the group to an older one. */
static const char *const groups_tunnel[] = { "*X25519MLKEM768:*X25519:P-256:P-384", "X25519MLKEM768:X25519:P-256:P-384", "X25519:P-256:P-384" };

struct tls_ctx { SSL_CTX *ssl; unsigned char alpn[ALPN_MAX]; unsigned alpn_n; };
struct batch { int fd, sys; bool drained; struct buf out; };     /* sys: errno of what failed */
struct tls { SSL *ssl; struct tls_pipe pipe; struct batch *batch; };

/* Puts the newest OpenSSL error behind the text. */
static int ssl_err(struct err *e, int rc, const char *what)
{
    unsigned long code = ERR_peek_last_error();
    const char *lib = code ? ERR_reason_error_string(code) : NULL;
    ERR_clear_error();
    return lib ? err_set(e, rc, "%s: %s", what, lib) : err_set(e, rc, "%s", what);
}

static int load_pair(SSL_CTX *s, const struct tls_conf *c, struct err *e)
{
    if (!c->cert_file && !c->key_file)
        return RC_OK;
    if (!c->cert_file || !c->key_file)
        return err_set(e, RC_INVALID, "a certificate and its key must be given together");
    if (SSL_CTX_use_certificate_chain_file(s, c->cert_file) != 1) {
        (void)ssl_err(e, RC_INVALID, c->cert_file);
        return err_wrap(e, RC_INVALID, "load the certificate");
    }
    if (SSL_CTX_use_PrivateKey_file(s, c->key_file, SSL_FILETYPE_PEM) != 1) {
        (void)ssl_err(e, RC_INVALID, c->key_file);
        return err_wrap(e, RC_INVALID, "load the private key");
    }
    if (SSL_CTX_check_private_key(s) != 1)
        return ssl_err(e, RC_INVALID, "the key does not belong to the certificate");
    return RC_OK;
}

static int no_password(char *buf, int size, int rw, void *u)   /* never ask on the terminal */
{
    (void)buf, (void)size, (void)rw, (void)u;
    return -1;
}

/* "h2,http/1.1" in the form of the wire: each name behind its length. */
static int parse_alpn(struct tls_ctx *x, const char *list, struct err *e)
{
    for (const char *at = list ? list : ALPN_DEFAULT;;) {
        size_t n = strcspn(at, ",");
        if (n == 0 || n > 255 || x->alpn_n + 1 + n > sizeof x->alpn)
            return err_set(e, RC_INVALID, "the list of TLS protocols (ALPN) is malformed or too long");
        x->alpn[x->alpn_n] = (unsigned char)n;
        memcpy(x->alpn + x->alpn_n + 1, at, n);
        x->alpn_n += (unsigned)n + 1;
        if (!at[n])
            return RC_OK;
        at += n + 1;
    }
}

static int set_tunnel_rules(SSL_CTX *s, struct err *e)
{
    SSL_CTX_set_min_proto_version(s, TLS1_3_VERSION);
    SSL_CTX_set_max_send_fragment(s, SSL3_RT_MAX_PLAIN_LENGTH);
    SSL_CTX_set_read_ahead(s, 1);       /* one read() for many small records instead of two for each */
    if (SSL_CTX_set_ciphersuites(s, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256") != 1)      /* the fastest first; all are sound */
        return ssl_err(e, RC_UNSUPPORTED, "cipher suites");
    for (size_t i = 0; i < COUNT_OF(groups_tunnel); i++)
        if (SSL_CTX_set1_groups_list(s, groups_tunnel[i]) == 1) {
            ERR_clear_error();          /* what the refused lists left */
            return RC_OK;
        }
    return ssl_err(e, RC_UNSUPPORTED, "key exchange groups");
}

static int ctx_new(const SSL_METHOD *m, const struct tls_conf *c, struct tls_ctx **ret, struct err *e)
{
    ERR_clear_error();
    SSL_CTX *s = SSL_CTX_new(m);
    if (!s)
        return ssl_err(e, RC_NOMEM, "TLS context");
    SSL_CTX_set_min_proto_version(s, TLS1_2_VERSION);
    SSL_CTX_set_options(s, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE);
    /* Partial writes and a moving buffer: callers write from queues. Released buffers: an idle connection costs little memory. */
    SSL_CTX_set_mode(s, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_default_passwd_cb(s, no_password);
    struct tls_ctx *x = xcalloc(1, sizeof *x);
    x->ssl = s;
    int rc = c->tls13_only ? set_tunnel_rules(s, e) : RC_OK;
    if (rc == RC_OK)
        rc = parse_alpn(x, c->alpn, e);
    if (rc == RC_OK)
        rc = load_pair(s, c, e);
    if (rc < 0) {
        tls_ctx_free(x);
        return rc;
    }
    *ret = x;
    return RC_OK;
}

static int choose_alpn(SSL *s, const unsigned char **out, unsigned char *out_n, const unsigned char *in, unsigned in_n, void *arg)
{
    (void)s;
    const struct tls_ctx *x = arg;
    unsigned char *sel;
    if (SSL_select_next_proto(&sel, out_n, x->alpn, x->alpn_n, in, in_n) != OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_NOACK;    /* no agreement: HTTP/1.1 is what we speak anyway */
    *out = sel;
    return SSL_TLSEXT_ERR_OK;
}

int tls_ctx_server(const struct tls_conf *c, struct tls_ctx **ret, struct err *e)
{
    if (!c->cert_file)
        return err_set(e, RC_INVALID, "a TLS server needs a certificate");
    struct tls_ctx *x = NULL;
    TRY(ctx_new(TLS_server_method(), c, &x, e));
    SSL_CTX_set_alpn_select_cb(x->ssl, choose_alpn, x);
    if (SSL_CTX_set_session_id_context(x->ssl, (const unsigned char *)"outwork", 7) != 1) {
        tls_ctx_free(x);
        return ssl_err(e, RC_NOMEM, "TLS session context");
    }
    if (c->ca_file) {
        STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(c->ca_file);
        if (!names || SSL_CTX_load_verify_file(x->ssl, c->ca_file) != 1) {
            sk_X509_NAME_pop_free(names, X509_NAME_free);
            tls_ctx_free(x);
            return ssl_err(e, RC_INVALID, "load the certificate authorities of clients");
        }
        SSL_CTX_set_client_CA_list(x->ssl, names);
        SSL_CTX_set_verify(x->ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    }
    *ret = x;
    return RC_OK;
}

int tls_ctx_client(const struct tls_conf *c, struct tls_ctx **ret, struct err *e)
{
    struct tls_ctx *x = NULL;
    TRY(ctx_new(TLS_client_method(), c, &x, e));
    int ok = c->ca_file ? SSL_CTX_load_verify_file(x->ssl, c->ca_file) : 1;
    if (ok == 1 && (!c->ca_file || c->system_cas))
        ok = SSL_CTX_set_default_verify_paths(x->ssl);
    if (ok != 1) {
        (void)ssl_err(e, RC_INVALID, c->ca_file ? c->ca_file : "the system's store");
        tls_ctx_free(x);
        return err_wrap(e, RC_INVALID, "load the certificate authorities");
    }
    SSL_CTX_set_verify(x->ssl, SSL_VERIFY_PEER, NULL);
    *ret = x;
    return RC_OK;
}

void tls_ctx_free(struct tls_ctx *c)
{
    if (!c)
        return;
    SSL_CTX_free(c->ssl);
    free(c);
}

static bool asn1_ms(const ASN1_TIME *t, int64_t *ret)
{
    struct tm tm = { 0 };
    if (!t || ASN1_TIME_to_tm(t, &tm) != 1)
        return false;
    *ret = (int64_t)timegm(&tm) * 1000;
    return true;
}

bool tls_ctx_validity(const struct tls_ctx *c, int64_t *ret_not_before_ms, int64_t *ret_not_after_ms)
{
    const X509 *x = SSL_CTX_get0_certificate(c->ssl);
    return x && asn1_ms(X509_get0_notBefore(x), ret_not_before_ms) && asn1_ms(X509_get0_notAfter(x), ret_not_after_ms);
}

bool tls_ctx_covers(const struct tls_ctx *c, const char *host)
{
    X509 *x = SSL_CTX_get0_certificate(c->ssl);
    bool ok = x && X509_check_host(x, host, 0, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, NULL) == 1;
    ERR_clear_error();
    return ok;
}

int tls_ctx_leaf(const struct tls_ctx *c, int64_t now_ms, struct err *e)
{
    X509 *x = SSL_CTX_get0_certificate(c->ssl);
    return x ? cert_check_leaf_alone(x, now_ms, e) : err_set(e, RC_NOT_FOUND, "there is no certificate");
}

/* Over `fd`, or over `io` when it is given. */
static int conn_new(struct tls_ctx *c, int fd, const struct tls_io *io, struct tls **ret, struct err *e)
{
    ERR_clear_error();
    struct tls *t = xcalloc(1, sizeof *t);
    t->ssl = SSL_new(c->ssl);
    bool ok = t->ssl != NULL;
    if (ok && io) {
        t->pipe.io = *io;
        BIO *b = tls_bio_new(&t->pipe);
        ok = b != NULL;
        if (ok)
            SSL_set_bio(t->ssl, b, b);
    } else if (ok) {
        ok = SSL_set_fd(t->ssl, fd) == 1;
    }
    if (!ok) {
        SSL_free(t->ssl);
        free(t);
        return ssl_err(e, RC_NOMEM, "TLS connection");
    }
    *ret = t;
    return RC_OK;
}

static int accept_any(struct tls_ctx *c, int fd, const struct tls_io *io, struct tls **ret, struct err *e)
{
    TRY(conn_new(c, fd, io, ret, e));
    SSL_set_accept_state((*ret)->ssl);
    return RC_OK;
}

int tls_accept(struct tls_ctx *c, int fd, struct tls **ret, struct err *e) { return accept_any(c, fd, NULL, ret, e); }
int tls_accept_io(struct tls_ctx *c, const struct tls_io *io, struct tls **ret, struct err *e) { return accept_any(c, -1, io, ret, e); }

static int connect_any(struct tls_ctx *c, int fd, const struct tls_io *io, const char *host, struct tls **ret, struct err *e)
{
    struct tls *t = NULL;
    TRY(conn_new(c, fd, io, &t, e));
    unsigned char ip[16];
    char bare[64];
    size_t n = strlen(host);
    if (n > 2 && n < sizeof bare && host[0] == '[' && host[n - 1] == ']') {     /* an IPv6 literal as URLs write it */
        memcpy(bare, host + 1, n - 2);
        bare[n - 2] = '\0';
        host = bare;
    }
    bool is_ip = inet_pton(AF_INET, host, ip) == 1 || inet_pton(AF_INET6, host, ip) == 1;
    X509_VERIFY_PARAM *p = SSL_get0_param(t->ssl);
    X509_VERIFY_PARAM_set_hostflags(p, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    int ok = n == 0 ? 0 : is_ip ? X509_VERIFY_PARAM_set1_ip_asc(p, host)
                                : X509_VERIFY_PARAM_set1_host(p, host, 0) == 1 && SSL_set_tlsext_host_name(t->ssl, host) == 1;
    if (ok != 1 || SSL_set_alpn_protos(t->ssl, c->alpn, c->alpn_n) != 0) {
        tls_free(t);
        return ssl_err(e, RC_INVALID, "the host name cannot be verified");
    }
    SSL_set_connect_state(t->ssl);
    *ret = t;
    return RC_OK;
}

int tls_connect(struct tls_ctx *c, int fd, const char *host, struct tls **ret, struct err *e) { return connect_any(c, fd, NULL, host, ret, e); }

int tls_connect_io(struct tls_ctx *c, const struct tls_io *io, const char *host, struct tls **ret, struct err *e)
{
    return connect_any(c, -1, io, host, ret, e);
}

const char *tls_sni(const struct tls *t)
{
    return SSL_get_servername(t->ssl, TLSEXT_NAMETYPE_host_name);
}

const char *tls_alpn(const struct tls *t, char out[32])
{
    const unsigned char *p = NULL;
    unsigned n = 0;
    SSL_get0_alpn_selected(t->ssl, &p, &n);
    if (!n || n > 31)
        return NULL;
    memcpy(out, p, n);
    out[n] = '\0';
    return out;
}

const char *tls_group(const struct tls *t)
{
    int nid = (int)SSL_get_negotiated_group(t->ssl);
    return nid ? SSL_group_to_name(t->ssl, nid) : NULL;
}

bool tls_peer_sha256(const struct tls *t, uint8_t out[32])
{
    const X509 *x = SSL_get0_peer_certificate(t->ssl);
    unsigned n = 32;
    return x && X509_digest(x, EVP_sha256(), out, &n) == 1;
}

/* ---- many records at once ---- */

static int batch_send(struct batch *b)
{
    while (buf_len(&b->out) > 0) {
        ssize_t r = send(b->fd, buf_data(&b->out), buf_len(&b->out), MSG_NOSIGNAL);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0 && errno == EAGAIN)
            return RC_AGAIN;
        if (r < 0) {
            b->sys = errno;
            return RC_IO;
        }
        buf_consume(&b->out, (size_t)r);
    }
    buf_done(&b->out);
    return RC_OK;
}

static int batch_write(void *ctx, const void *p, size_t n, size_t *ret_n)
{
    struct batch *b = ctx;
    if (buf_len(&b->out) >= TLS_BATCH_BYTES) {
        int rc = batch_send(b);
        if (rc < 0 && (rc != RC_AGAIN || buf_len(&b->out) >= TLS_BATCH_BYTES))
            return rc;
    }
    *ret_n = n;
    return buf_put(&b->out, p, n);
}

static int batch_read(void *ctx, void *p, size_t n, size_t *ret_n)
{
    struct batch *b = ctx;
    if (b->drained)
        return RC_AGAIN;
    ssize_t r;
    while ((r = recv(b->fd, p, n, 0)) < 0 && errno == EINTR) {
    }
    b->drained = r != 0 && r < (ssize_t)n;      /* less than asked for: there is no more */
    if (r < 0 && errno != EAGAIN)
        b->sys = errno;
    if (r <= 0)
        return r == 0 ? RC_CLOSED : b->sys ? RC_IO : RC_AGAIN;
    *ret_n = (size_t)r;
    return RC_OK;
}

int tls_batch(struct tls *t, struct err *e)
{
    struct batch *b = xcalloc(1, sizeof *b);
    b->fd = SSL_get_fd(t->ssl);
    buf_init(&b->out, TLS_BATCH_BYTES + 2 * SSL3_RT_MAX_PACKET_SIZE);
    t->pipe.io = (struct tls_io){ batch_read, batch_write, b };
    BIO *bio = tls_bio_new(&t->pipe);
    if (!bio) {
        free(b);
        return err_set(e, RC_NOMEM, "TLS connection");
    }
    t->batch = b;
    SSL_set_bio(t->ssl, bio, bio);
    SSL_set_default_read_buffer_len(t->ssl, BATCH_READ);
    return RC_OK;
}

int tls_flush(struct tls *t, struct err *e)
{
    int rc = t->batch ? batch_send(t->batch) : RC_OK;
    return rc == RC_IO ? err_sys(e, RC_IO, t->batch->sys, "TLS write") : rc;
}

void tls_readable(struct tls *t)
{
    if (t->batch)
        t->batch->drained = false;
}

void tls_free(struct tls *t)
{
    if (!t)
        return;
    ERR_clear_error();
    /* A clean end where it costs nothing: close_notify goes out if the socket takes it, nobody waits for the answer. */
    if (SSL_is_init_finished(t->ssl) && !(SSL_get_shutdown(t->ssl) & SSL_SENT_SHUTDOWN))
        (void)SSL_shutdown(t->ssl);
    if (t->batch) {
        (void)batch_send(t->batch);
        buf_done(&t->batch->out);
        free(t->batch);
    }
    SSL_free(t->ssl);
    ERR_clear_error();
    free(t);
}

/* Result of an SSL call that did not succeed. */
static int result(struct tls *t, int r, int sys_errno, const char *what, unsigned *ret_want, struct err *e)
{
    int err = SSL_get_error(t->ssl, r);
    if (err == SSL_ERROR_WANT_READ || err == SSL_ERROR_WANT_WRITE) {
        *ret_want = err == SSL_ERROR_WANT_READ ? EV_READ : EV_WRITE;
        return RC_AGAIN;
    }
    if (err == SSL_ERROR_ZERO_RETURN)
        return err_set(e, RC_CLOSED, "%s: the peer ended the connection", what);
    SSL_set_shutdown(t->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);       /* broken: no close_notify, no session reuse */
    if (t->pipe.rc < 0) {
        ERR_clear_error();
        return t->batch && t->batch->sys ? err_sys(e, RC_IO, t->batch->sys, "%s", what) : err_set(e, t->pipe.rc, "%s: the connection below failed", what);
    }
    if (err == SSL_ERROR_SYSCALL)
        return sys_errno ? err_sys(e, RC_IO, sys_errno, "%s", what) : err_set(e, RC_IO, "%s: the connection was cut", what);
    unsigned long code = ERR_peek_last_error();
    if (ERR_GET_REASON(code) == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
        ERR_clear_error();
        return err_set(e, RC_IO, "%s: the connection was cut", what);
    }
    long verify = SSL_get_verify_result(t->ssl);
    if (ERR_GET_REASON(code) == SSL_R_CERTIFICATE_VERIFY_FAILED && verify != X509_V_OK) {
        ERR_clear_error();
        return err_set(e, RC_PROTO, "%s: the peer's certificate is refused: %s", what, X509_verify_cert_error_string(verify));
    }
    return ssl_err(e, RC_PROTO, what);
}

int tls_handshake(struct tls *t, unsigned *ret_want, struct err *e)
{
    ERR_clear_error();
    errno = 0;
    int r = SSL_do_handshake(t->ssl);
    return r == 1 ? RC_OK : result(t, r, errno, "TLS handshake", ret_want, e);
}

int tls_read(struct tls *t, void *p, size_t n, size_t *ret_n, unsigned *ret_want, struct err *e)
{
    ERR_clear_error();
    errno = 0;
    int r = SSL_read_ex(t->ssl, p, n, ret_n);
    return r == 1 ? RC_OK : result(t, r, errno, "TLS read", ret_want, e);
}

int tls_write(struct tls *t, const void *p, size_t n, size_t *ret_n, unsigned *ret_want, struct err *e)
{
    ERR_clear_error();
    errno = 0;
    if (n == 0)
        return err_set(e, RC_INVALID, "TLS write of nothing");
    int r = SSL_write_ex(t->ssl, p, n, ret_n);
    return r == 1 ? RC_OK : result(t, r, errno, "TLS write", ret_want, e);
}

int tls_shutdown(struct tls *t, unsigned *ret_want, struct err *e)
{
    ERR_clear_error();
    errno = 0;
    if (!(SSL_get_shutdown(t->ssl) & SSL_SENT_SHUTDOWN)) {
        int r = SSL_shutdown(t->ssl);       /* 0: sent, the peer's has not come yet */
        if (r < 0)
            return result(t, r, errno, "TLS shutdown", ret_want, e);
    }
    return RC_OK;
}

void tls_cut(struct tls *t)
{
    SSL_set_shutdown(t->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
}
