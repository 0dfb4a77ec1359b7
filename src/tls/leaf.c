#include "tls/leaf.h"

#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <pthread.h>

#include "base/clock.h"
#include "tls/cert.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int why_index = -1;           /* of the place for `why` in an SSL_CTX */

static void make_index(void) { why_index = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, NULL); }

static bool has_dns_name(X509 *leaf)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(leaf, NID_subject_alt_name, NULL, NULL);
    bool found = false;
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++)
        found |= sk_GENERAL_NAME_value(names, i)->type == GEN_DNS;
    GENERAL_NAMES_free(names);
    return found;
}

static void refuse(X509_STORE_CTX *store, const char *text)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct err *why = ssl ? SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), why_index) : NULL;
    if (why)
        (void)err_set(why, RC_PROTO, "the certificate of the tunnel's gateway is refused: %s", text);
}

/* OpenSSL asks for each certificate of the chain, the leaf last, and after each thing that it does not like. The rules come first: their words say what to do. */
static int on_verify(int ok, X509_STORE_CTX *store)
{
    X509 *leaf = X509_STORE_CTX_get0_cert(store);
    struct err e = { 0 };
    if (ok && X509_STORE_CTX_get_error_depth(store) != 0)
        return 1;
    int code = ok ? X509_V_ERR_APPLICATION_VERIFICATION : X509_STORE_CTX_get_error(store);
    bool foreign = code == X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY || code == X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE ||
                   code == X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN || code == X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT || code == X509_V_ERR_CERT_CHAIN_TOO_LONG;
    if (foreign)
        refuse(store, "it is not signed directly by an authority that is registered on the tunnel");
    else if (!leaf || cert_check_leaf_alone(leaf, clock_now_ms(), &e) < 0)
        refuse(store, leaf ? e.msg : "there is none");
    else if (!has_dns_name(leaf))
        refuse(store, "its SubjectAltName holds no DNS name");
    else if (!ok)
        refuse(store, X509_verify_cert_error_string(code));
    else
        return 1;
    X509_STORE_CTX_set_error(store, code);
    return 0;
}

bool tls_only_13(void *ssl_ctx) { return SSL_CTX_get_min_proto_version((SSL_CTX *)ssl_ctx) == TLS1_3_VERSION; }

int tls_leaf_rules(void *ssl_ctx, struct err *why)
{
    SSL_CTX *ctx = ssl_ctx;
    (void)pthread_once(&once, make_index);
    if (why_index < 0 || SSL_CTX_set_ex_data(ctx, why_index, why) != 1)
        return RC_NOMEM;
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, on_verify);
    SSL_CTX_set_verify_depth(ctx, 0);       /* certificates between the leaf and an authority */
    return RC_OK;
}
