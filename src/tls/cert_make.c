/* tls/cert_make.c - makes the authority and the leaf of a tunnel (tunnels.md 3.2): what is made here passes the checks of cert_check.c. */
#include "tls/cert.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <time.h>

#include "base/random.h"

#define CERT_SERIAL_BYTES 16                 /* RFC 5280 4.1.2.2: positive, at most 20 octets */
#define CERT_BACKDATE_S 300                  /* the other end's clock may be behind ours */
#define CERT_NAME_MAX 64                     /* ub-common-name of RFC 5280 */
#define CERT_ALT_NAMES_MAX 64

#define DEFINE_OSSL(type) \
    static void free_##type(type **p) { type##_free(*p); }
DEFINE_OSSL(X509)
DEFINE_OSSL(EVP_PKEY)
DEFINE_OSSL(BIO)
DEFINE_OSSL(GENERAL_NAMES)
#define AUTO_OSSL(type) __attribute__((cleanup(free_##type))) type *

/* Puts the newest OpenSSL error behind the text. */
static int ossl_err(struct err *e, int rc, const char *what)
{
    unsigned long code = ERR_peek_last_error();
    const char *why = code ? ERR_reason_error_string(code) : NULL;
    ERR_clear_error();
    return why ? err_set(e, rc, "%s: %s", what, why) : err_set(e, rc, "%s", what);
}

static int add_ext(X509 *cert, X509 *issuer, int nid, const char *value, struct err *e)
{
    X509V3_CTX c;
    X509V3_set_ctx_nodb(&c);
    X509V3_set_ctx(&c, issuer, cert, NULL, NULL, 0);
    X509_EXTENSION *x = X509V3_EXT_conf_nid(NULL, &c, nid, value);
    int ok = x && X509_add_ext(cert, x, -1);
    X509_EXTENSION_free(x);
    return ok ? RC_OK : ossl_err(e, RC_IO, OBJ_nid2sn(nid));
}

/* Alternative names are built by value, not through OpenSSL's "DNS:x,IP:y" text: a comma in a name must not become a second name. */
static int push_dns(GENERAL_NAMES *names, const char *dns, struct err *e)
{
    size_t n = strlen(dns);
    if (n == 0 || n > 253 || strspn(dns, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.*") != n)
        return err_set(e, RC_INVALID, "\"%s\" is no host name for a certificate", dns);
    GENERAL_NAME *g = GENERAL_NAME_new();
    ASN1_IA5STRING *s = ASN1_IA5STRING_new();
    if (!g || !s || !ASN1_STRING_set(s, dns, (int)n)) {
        GENERAL_NAME_free(g);
        ASN1_IA5STRING_free(s);
        return ossl_err(e, RC_NOMEM, "certificate name");
    }
    GENERAL_NAME_set0_value(g, GEN_DNS, s);
    if (sk_GENERAL_NAME_push(names, g) > 0)
        return RC_OK;
    GENERAL_NAME_free(g);
    return ossl_err(e, RC_NOMEM, "certificate name");
}

static int push_ip(GENERAL_NAMES *names, const char *ip, struct err *e)
{
    unsigned char raw[16];
    int n = inet_pton(AF_INET, ip, raw) == 1 ? 4 : inet_pton(AF_INET6, ip, raw) == 1 ? 16 : 0;
    if (!n)
        return err_set(e, RC_INVALID, "\"%s\" is no numeric address for a certificate", ip);
    GENERAL_NAME *g = GENERAL_NAME_new();
    ASN1_OCTET_STRING *s = ASN1_OCTET_STRING_new();
    if (!g || !s || !ASN1_OCTET_STRING_set(s, raw, n)) {
        GENERAL_NAME_free(g);
        ASN1_OCTET_STRING_free(s);
        return ossl_err(e, RC_NOMEM, "certificate address");
    }
    GENERAL_NAME_set0_value(g, GEN_IPADD, s);
    if (sk_GENERAL_NAME_push(names, g) > 0)
        return RC_OK;
    GENERAL_NAME_free(g);
    return ossl_err(e, RC_NOMEM, "certificate address");
}

static int add_alt_names(X509 *cert, const struct cert_spec *s, struct err *e)
{
    if (s->n_dns + s->n_ip == 0)
        return RC_OK;
    if (s->n_dns + s->n_ip > CERT_ALT_NAMES_MAX)
        return err_set(e, RC_INVALID, "a certificate gets at most %d names", CERT_ALT_NAMES_MAX);
    AUTO_OSSL(GENERAL_NAMES) names = GENERAL_NAMES_new();
    if (!names)
        return ossl_err(e, RC_NOMEM, "certificate names");
    for (size_t i = 0; i < s->n_dns; i++)
        TRY(push_dns(names, s->dns[i], e));
    for (size_t i = 0; i < s->n_ip; i++)
        TRY(push_ip(names, s->ip[i], e));
    return X509_add1_ext_i2d(cert, NID_subject_alt_name, names, 0, X509V3_ADD_DEFAULT) == 1 ? RC_OK : ossl_err(e, RC_IO, "subjectAltName");
}

static int set_serial(X509 *cert, struct err *e)
{
    unsigned char raw[CERT_SERIAL_BYTES];
    random_bytes(raw, sizeof raw);
    raw[0] = (unsigned char)((raw[0] & 0x7f) | 0x40);           /* positive, and always of the same length */
    BIGNUM *bn = BN_bin2bn(raw, sizeof raw, NULL);
    bool ok = bn && BN_to_ASN1_INTEGER(bn, X509_get_serialNumber(cert));
    BN_free(bn);
    return ok ? RC_OK : ossl_err(e, RC_NOMEM, "serial number");
}

static int set_name(X509 *cert, const char *cn, struct err *e)
{
    if (!cn || !*cn || strlen(cn) > CERT_NAME_MAX)
        return err_set(e, RC_INVALID, "a certificate's common name has 1 to %d characters", CERT_NAME_MAX);
    X509_NAME *n = X509_get_subject_name(cert);
    return X509_NAME_add_entry_by_NID(n, NID_commonName, MBSTRING_UTF8, (const unsigned char *)cn, -1, -1, 0) == 1 ? RC_OK
                                                                                                                : ossl_err(e, RC_INVALID, "common name");
}

static int set_times(X509 *cert, const struct cert_spec *s, struct err *e)
{
    int64_t until;
    if (s->valid_ms < 1000 || __builtin_add_overflow(s->now_ms, s->valid_ms, &until))
        return err_set(e, RC_INVALID, "a certificate must be valid for at least a second");
    time_t from = (time_t)(s->now_ms / 1000 - CERT_BACKDATE_S), to = (time_t)(until / 1000);
    if (!ASN1_TIME_set(X509_getm_notBefore(cert), from) || !ASN1_TIME_set(X509_getm_notAfter(cert), to))
        return ossl_err(e, RC_INVALID, "validity of a certificate");
    return RC_OK;
}

/* Everything but issuer, extensions and signature. */
static int begin(const struct cert_spec *s, X509 **ret_cert, EVP_PKEY **ret_key, struct err *e)
{
    ERR_clear_error();
    AUTO_OSSL(EVP_PKEY) key = EVP_EC_gen("P-256");
    AUTO_OSSL(X509) cert = X509_new();
    if (!key || !cert || !X509_set_version(cert, X509_VERSION_3) || !X509_set_pubkey(cert, key))
        return ossl_err(e, RC_NOMEM, "new certificate");
    TRY(set_serial(cert, e));
    TRY(set_times(cert, s, e));
    TRY(set_name(cert, s->common_name, e));
    *ret_cert = TAKE(cert);
    *ret_key = TAKE(key);
    return RC_OK;
}

static int bio_to_buf(BIO *b, struct buf *out, struct err *e)
{
    char *p = NULL;
    long n = BIO_get_mem_data(b, &p);
    return n > 0 && buf_put(out, p, (size_t)n) == RC_OK ? RC_OK : err_set(e, RC_NOMEM, "PEM text of a certificate");
}

static int put_pem(X509 *cert, EVP_PKEY *key, struct buf *ret_cert, struct buf *ret_key, struct err *e)
{
    AUTO_OSSL(BIO) c = BIO_new(BIO_s_mem());
    AUTO_OSSL(BIO) k = BIO_new(BIO_s_secmem());                 /* wiped when freed */
    if (!c || !k || PEM_write_bio_X509(c, cert) != 1 || PEM_write_bio_PKCS8PrivateKey(k, key, NULL, NULL, 0, NULL, NULL) != 1)
        return ossl_err(e, RC_NOMEM, "PEM text of a certificate");
    TRY(bio_to_buf(c, ret_cert, e));
    return bio_to_buf(k, ret_key, e);
}

int cert_make_ca(const struct cert_spec *s, struct buf *ret_cert, struct buf *ret_key, struct err *e)
{
    AUTO_OSSL(X509) cert = NULL;
    AUTO_OSSL(EVP_PKEY) key = NULL;
    TRY(begin(s, &cert, &key, e));
    if (!X509_set_issuer_name(cert, X509_get_subject_name(cert)))
        return ossl_err(e, RC_NOMEM, "issuer of a certificate");
    TRY(add_ext(cert, cert, NID_basic_constraints, "critical,CA:TRUE", e));
    TRY(add_ext(cert, cert, NID_key_usage, "critical,keyCertSign,cRLSign", e));
    TRY(add_ext(cert, cert, NID_subject_key_identifier, "hash", e));
    if (!X509_sign(cert, key, EVP_sha256()))
        return ossl_err(e, RC_IO, "sign a certificate");
    return put_pem(cert, key, ret_cert, ret_key, e);
}

static int no_password(char *buf, int size, int rw, void *u)   /* never ask on the terminal */
{
    (void)buf, (void)size, (void)rw, (void)u;
    return -1;
}

static int load_ca(const char *pem, const char *key_pem, X509 **ret_cert, EVP_PKEY **ret_key, struct err *e)
{
    AUTO_OSSL(BIO) c = BIO_new_mem_buf(pem, -1);
    AUTO_OSSL(BIO) k = BIO_new_mem_buf(key_pem, -1);
    if (!c || !k)
        return ossl_err(e, RC_NOMEM, "certificate authority");
    AUTO_OSSL(X509) cert = PEM_read_bio_X509(c, NULL, no_password, NULL);
    if (!cert)
        return ossl_err(e, RC_INVALID, "read the authority's certificate");
    AUTO_OSSL(EVP_PKEY) key = PEM_read_bio_PrivateKey(k, NULL, no_password, NULL);
    if (!key)
        return ossl_err(e, RC_INVALID, "read the authority's key");
    if (X509_check_private_key(cert, key) != 1)
        return ossl_err(e, RC_INVALID, "the authority's key does not belong to its certificate");
    if (!X509_get0_subject_key_id(cert))        /* the leaf must name it (tunnels.md 3.2) */
        return err_set(e, RC_INVALID, "the authority's certificate has no SubjectKeyIdentifier");
    *ret_cert = TAKE(cert);
    *ret_key = TAKE(key);
    return RC_OK;
}

int cert_make_leaf(const struct cert_spec *s, const char *ca_pem, const char *ca_key_pem, struct buf *ret_cert, struct buf *ret_key, struct err *e)
{
    AUTO_OSSL(X509) ca = NULL;
    AUTO_OSSL(EVP_PKEY) ca_key = NULL;
    AUTO_OSSL(X509) cert = NULL;
    AUTO_OSSL(EVP_PKEY) key = NULL;
    ERR_clear_error();
    TRY(load_ca(ca_pem, ca_key_pem, &ca, &ca_key, e));
    TRY(begin(s, &cert, &key, e));
    if (!X509_set_issuer_name(cert, X509_get_subject_name(ca)))
        return ossl_err(e, RC_NOMEM, "issuer of a certificate");
    TRY(add_ext(cert, ca, NID_basic_constraints, "critical,CA:FALSE", e));
    TRY(add_ext(cert, ca, NID_key_usage, "critical,digitalSignature", e));
    TRY(add_ext(cert, ca, NID_ext_key_usage, s->both ? "serverAuth,clientAuth" : s->client ? "clientAuth" : "serverAuth", e));
    TRY(add_ext(cert, ca, NID_subject_key_identifier, "hash", e));
    TRY(add_ext(cert, ca, NID_authority_key_identifier, "keyid:always", e));
    TRY(add_alt_names(cert, s, e));
    /* Ed25519 and Ed448 authorities sign without a separate digest. */
    const EVP_MD *md = EVP_PKEY_is_a(ca_key, "ED25519") || EVP_PKEY_is_a(ca_key, "ED448") ? NULL : EVP_sha256();
    if (!X509_sign(cert, ca_key, md))
        return ossl_err(e, RC_IO, "sign a certificate");
    return put_pem(cert, key, ret_cert, ret_key, e);
}
