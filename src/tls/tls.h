/* tls/tls.h - TLS over non-blocking descriptors (OpenSSL 3; TLS 1.2 at least, 1.3 preferred). Loop thread only. */
#pragma once

#include "base/attr.h"
#include "base/err.h"

struct tls_ctx;      /* configuration shared by connections */
struct tls;          /* one connection */

struct tls_conf {
    const char *cert_file, *key_file;    /* server, or client certificate; NULL none */
    const char *ca_file;                 /* client: trust these instead of the system's; server: ask for client certificates of these */
    const char *alpn;                    /* protocols in order of preference, "h2,http/1.1"; NULL: "http/1.1" */
    bool tls13_only;                     /* tunnels (architecture section 5); else TLS 1.2 at least */
    bool system_cas;                     /* client: trust the system's authorities beside ca_file */
};
MUST_CHECK int tls_ctx_server(const struct tls_conf *c, struct tls_ctx **ret, struct err *e);
MUST_CHECK int tls_ctx_client(const struct tls_conf *c, struct tls_ctx **ret, struct err *e);
void tls_ctx_free(struct tls_ctx *c);
/* Of the context's own certificate; false when it has none. */
bool tls_ctx_validity(const struct tls_ctx *c, int64_t *ret_not_before_ms, int64_t *ret_not_after_ms);
bool tls_ctx_covers(const struct tls_ctx *c, const char *host);      /* does one of its names match? */
MUST_CHECK int tls_ctx_leaf(const struct tls_ctx *c, int64_t now_ms, struct err *e);     /* cert_check_leaf_alone() */

/* `fd` is borrowed. Client: verifies the certificate chain and `host` (name or IP literal). */
MUST_CHECK int tls_accept(struct tls_ctx *c, int fd, struct tls **ret, struct err *e);
MUST_CHECK int tls_connect(struct tls_ctx *c, int fd, const char *host, struct tls **ret, struct err *e);
void tls_free(struct tls *t);

/* The same over any byte pipe instead of a descriptor (the inner TLS of a tunnel). The callbacks give RC_OK with *ret_n > 0, RC_AGAIN, RC_CLOSED (clean
 * end of input) or another negative code. `io` is copied; its ctx must outlive the connection. *ret_want of the calls below says what the pipe must do. */
struct tls_io {
    int (*read)(void *ctx, void *p, size_t n, size_t *ret_n);
    int (*write)(void *ctx, const void *p, size_t n, size_t *ret_n);
    void *ctx;
};
MUST_CHECK int tls_accept_io(struct tls_ctx *c, const struct tls_io *io, struct tls **ret, struct err *e);
MUST_CHECK int tls_connect_io(struct tls_ctx *c, const struct tls_io *io, const char *host, struct tls **ret, struct err *e);

/* After the handshake; borrowed from the connection, NULL or false when there is none. */
const char *tls_sni(const struct tls *t);            /* server: the name asked for */
const char *tls_alpn(const struct tls *t, char out[32]);
const char *tls_group(const struct tls *t);          /* key exchange, "X25519MLKEM768" where both ends have it */
bool tls_peer_sha256(const struct tls *t, uint8_t out[32]);      /* of the peer's certificate */
/* RC_OK and *ret_n > 0, RC_AGAIN (then *ret_want is EV_READ or EV_WRITE), RC_CLOSED at the peer's clean end, RC_PROTO / RC_IO with text. */
MUST_CHECK int tls_handshake(struct tls *t, unsigned *ret_want, struct err *e);
MUST_CHECK int tls_read(struct tls *t, void *p, size_t n, size_t *ret_n, unsigned *ret_want, struct err *e);
MUST_CHECK int tls_write(struct tls *t, const void *p, size_t n, size_t *ret_n, unsigned *ret_want, struct err *e);
/* Ends our side (close_notify); bytes may still come. RC_OK, RC_AGAIN, or a failure. */
MUST_CHECK int tls_shutdown(struct tls *t, unsigned *ret_want, struct err *e);
/* For an established connection over a descriptor that carries much: records are collected and leave together, and several are taken by one read. From then on
 * tls_write() only collects (RC_AGAIN when TLS_BATCH_BYTES wait), tls_flush() sends (RC_AGAIN: once more when the descriptor is writable), and after tls_read()
 * gave RC_AGAIN it gives nothing more until tls_readable() said that the loop saw bytes. RC_NOMEM. */
#define TLS_BATCH_BYTES ((size_t)96 * 1024)
MUST_CHECK int tls_batch(struct tls *t, struct err *e);
MUST_CHECK int tls_flush(struct tls *t, struct err *e);
void tls_readable(struct tls *t);
void tls_cut(struct tls *t);             /* tls_free() will send no close_notify: the peer shall see a cut, not an end */
