/* The rules for certificates of a tunnel, each broken alone. Certificates are made here with OpenSSL directly, so that they can be wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509v3.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "tls/cert.h"

#define DAY INT64_C(86400)
#define NOW INT64_C(1800000000)          /* seconds */
#define NOW_MS (NOW * 1000)
#define DOMAIN "a1b2c3d4.tunnel.example.com"

/* How one certificate is made. NULL: as a good one. "": the extension is left out. */
struct how {
    const char *key;                     /* "RSA-1024", or a curve's name, or "ED25519" */
    const EVP_MD *(*md)(void);
    const char *basic, *usage, *ski, *aki, *san, *eku, *extra, *subject;
    long version;                        /* 0: 3 */
    int64_t from, until;                 /* days from NOW, 0: the usual */
    bool damaged, twice;
};
struct cert { X509 *x; EVP_PKEY *key; };

static EVP_PKEY *make_key(const char *kind)
{
    EVP_PKEY *k = strncmp(kind, "RSA-", 4) == 0  ? EVP_RSA_gen((unsigned)strtol(kind + 4, NULL, 10))
                : strcmp(kind, "ED25519") == 0   ? EVP_PKEY_Q_keygen(NULL, NULL, "ED25519")
                : strcmp(kind, "DSA") == 0       ? NULL
                                                 : EVP_EC_gen(kind);
    assert_non_null(k);
    return k;
}

static void ext(X509 *x, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX c;
    if (!value[0])
        return;
    X509V3_set_ctx_nodb(&c);
    X509V3_set_ctx(&c, issuer, x, NULL, NULL, 0);
    X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, &c, nid, value);
    if (!e)
        fail_msg("%s = %s", OBJ_nid2sn(nid), value);
    assert_int_equal(X509_add_ext(x, e, -1), 1);
    X509_EXTENSION_free(e);
}

static const char *or(const char *s, const char *dflt) { return s ? s : dflt; }

/* issuer NULL: an authority that signs itself; else a leaf, unless `as_ca`. */
static struct cert make(const struct how *h, const struct cert *issuer, bool as_ca)
{
    bool ca = !issuer || as_ca;
    struct cert c = { X509_new(), make_key(or(h->key, "P-256")) };
    const struct cert *by = issuer ? issuer : &c;
    X509_set_version(c.x, h->version ? h->version - 1 : X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(c.x), 7);
    ASN1_TIME_set(X509_getm_notBefore(c.x), (time_t)(NOW + (h->from ? h->from : -1) * DAY));
    ASN1_TIME_set(X509_getm_notAfter(c.x), (time_t)(NOW + (h->until ? h->until : 90) * DAY));
    X509_set_pubkey(c.x, c.key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(c.x), "CN", MBSTRING_UTF8, (const unsigned char *)or(h->subject, ca ? "authority" : "leaf"), -1, -1, 0);
    X509_set_issuer_name(c.x, X509_get_subject_name(by->x));
    if (h->version != 1) {
        ext(c.x, by->x, NID_basic_constraints, or(h->basic, ca ? "critical,CA:TRUE" : "critical,CA:FALSE"));
        ext(c.x, by->x, NID_key_usage, or(h->usage, ca ? "critical,keyCertSign" : "critical,digitalSignature"));
        ext(c.x, by->x, NID_subject_key_identifier, or(h->ski, "hash"));
        ext(c.x, by->x, NID_authority_key_identifier, or(h->aki, issuer ? "keyid:always" : ""));
        ext(c.x, by->x, NID_subject_alt_name, or(h->san, ca ? "" : "DNS:*." DOMAIN));
        ext(c.x, by->x, NID_ext_key_usage, or(h->eku, ca ? "" : "serverAuth"));
        if (h->extra)
            ext(c.x, by->x, NID_name_constraints, h->extra);
        if (h->twice)
            ext(c.x, by->x, NID_subject_key_identifier, "00:11");
    }
    bool pure = EVP_PKEY_is_a(by->key, "ED25519");
    assert_true(X509_sign(c.x, by->key, pure ? NULL : h->md ? h->md() : EVP_sha256()) > 0);
    if (h->damaged) {
        const ASN1_BIT_STRING *sig;
        X509_get0_signature(&sig, NULL, c.x);
        ((ASN1_BIT_STRING *)(uintptr_t)sig)->data[20] ^= 1;
    }
    return c;
}

static void drop(struct cert *c)
{
    X509_free(c->x);
    EVP_PKEY_free(c->key);
}

static struct buf pem_of(X509 *x)
{
    struct buf b;
    char *p;
    BIO *bio = BIO_new(BIO_s_mem());
    PEM_write_bio_X509(bio, x);
    long n = BIO_get_mem_data(bio, &p);
    buf_init(&b, MIB);
    buf_put(&b, p, (size_t)n);
    BIO_free(bio);
    return b;
}

static struct err e;
static struct cert_info info;

static int check_ca_text(const char *p, size_t n, int64_t now_ms)
{
    memset(&e, 0, sizeof e);
    memset(&info, 0x55, sizeof info);
    int rc = cert_check_ca(p, n, now_ms, &info, &e);
    if (rc != RC_OK)
        assert_int_equal(info.fingerprint[0], 0x55);        /* set on success only */
    return rc;
}

static int check_ca(X509 *x)
{
    struct buf b = pem_of(x);
    int rc = check_ca_text(buf_data(&b), buf_len(&b), NOW_MS);
    buf_done(&b);
    return rc;
}

static int check_leaf(X509 *leaf, X509 *ca, X509 *ca2, const char *domain, int64_t now_ms)
{
    struct buf l = pem_of(leaf), c = pem_of(ca), c2 = pem_of(ca2 ? ca2 : ca);
    buf_put(&c, buf_data(&c2), buf_len(&c2));
    memset(&e, 0, sizeof e);
    int rc = cert_check_leaf(buf_data(&l), buf_len(&l), buf_data(&c), buf_len(&c), domain, now_ms, &info, &e);
    buf_done(&l), buf_done(&c), buf_done(&c2);
    return rc;
}

static void says(size_t row, const char *word)
{
    if (!strstr(e.msg, word))
        fail_msg("row %zu: \"%s\" does not say \"%s\"", row, e.msg, word);
}

static void authorities(void **state)
{
    (void)state;
    static const struct { struct how h; const char *want; } t[] = {       /* want NULL: accepted */
        { { 0 }, NULL },
        { { .key = "P-384", .md = EVP_sha384 }, NULL },
        { { .key = "P-521", .md = EVP_sha512 }, NULL },
        { { .key = "RSA-2048" }, NULL },
        { { .basic = "critical,CA:TRUE,pathlen:0" }, NULL },
        { { .usage = "keyCertSign,cRLSign" }, NULL },
        { { .extra = "permitted;DNS:example.com" }, NULL },
        { { .key = "RSA-1024" }, "RSA key has 1024 bits; at least 2048" },
        { { .key = "P-192" }, "curve prime192v1; use P-256, P-384 or P-521" },
        { { .key = "secp256k1" }, "curve secp256k1; use P-256" },
        { { .key = "ED25519" }, "type ED25519; use RSA with at least 2048 bits, or ECDSA" },
        { { .md = EVP_sha1 }, "digest SHA1; SHA-256 or better" },
        { { .md = EVP_sha224 }, "digest SHA224" },
        { { .key = "RSA-2048", .md = EVP_md5 }, "digest MD5" },
        { { .version = 1 }, "version 1 certificate; version 3" },
        { { .basic = "" }, "BasicConstraints is missing" },
        { { .basic = "CA:TRUE" }, "BasicConstraints is not critical" },
        { { .basic = "critical,CA:FALSE" }, "CA:FALSE" },
        { { .ski = "" }, "SubjectKeyIdentifier is missing" },
        { { .twice = true }, "SubjectKeyIdentifier occurs twice" },
        { { .usage = "" }, "KeyUsage is missing" },
        { { .usage = "critical,digitalSignature" }, "does not include keyCertSign" },
        { { .from = -20, .until = -2 }, "it expired at 2027-01-13T08:00:00.000Z" },
        { { .from = 2 }, "not valid before 2027-01-17T08:00:00.000Z" },
        { { .damaged = true }, "own signature does not verify" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct cert c = make(&t[i].h, NULL, true);
        int rc = check_ca(c.x);
        if (rc != (t[i].want ? RC_INVALID : RC_OK))
            fail_msg("row %zu: %d %s", i, rc, e.msg);
        if (t[i].want) {
            says(i, t[i].want);
        } else {
            assert_int_equal(info.not_before_ms, (NOW - DAY) * 1000);
            assert_int_equal(info.not_after_ms, (NOW + 90 * DAY) * 1000);
        }
        drop(&c);
    }
    /* An authority that another one issued is trusted by being registered. */
    struct cert root = make(&(struct how){ .subject = "root" }, NULL, true), sub = make(&(struct how){ 0 }, &root, true);
    assert_int_equal(check_ca(sub.x), RC_OK);
    drop(&root), drop(&sub);
}

static void fingerprints(void **state)
{
    (void)state;
    struct cert c = make(&(struct how){ 0 }, NULL, true);
    unsigned char md[32];
    char hex[65];
    unsigned n;
    X509_digest(c.x, EVP_sha256(), md, &n);
    for (unsigned i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", md[i]);
    assert_int_equal(check_ca(c.x), RC_OK);
    assert_string_equal(info.fingerprint, hex);
    drop(&c);
}

/* What may stand around the certificate, and what somebody sends instead of one. */
static void texts(void **state)
{
    (void)state;
    struct cert c = make(&(struct how){ 0 }, NULL, true);
    struct buf b = pem_of(c.x), t;
    const char *pem = buf_data(&b);
    size_t n = buf_len(&b);
    static const struct { const char *before, *after, *want; } rows[] = {
        { "", "", NULL }, { "\n \r\n", "\n\n\t ", NULL },
        { "Subject: x\n", "", "text before the certificate" }, { "", "trailing", "text after the certificate" }, { "", "\0", NULL },
        { "", "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n", "private key" },
        { "-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n", "", "private key" },
        { "-----BEGIN ENCRYPTED PRIVATE KEY-----\n", "", "private key" },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        buf_init(&t, MIB);
        buf_puts(&t, rows[i].before);
        buf_put(&t, pem, n);
        buf_puts(&t, rows[i].after);
        int rc = check_ca_text(buf_data(&t), buf_len(&t), NOW_MS);
        if (rc != (rows[i].want ? RC_INVALID : RC_OK))
            fail_msg("row %zu: %d %s", i, rc, e.msg);
        if (rows[i].want)
            says(i, rows[i].want);
        buf_done(&t);
    }
    static const struct { const char *text, *want; } others[] = {
        { "", "empty" }, { "  \n", "empty" }, { "hello", "no line -----BEGIN CERTIFICATE-----" },
        { "-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----\n", "signing request" },
        { "-----BEGIN TRUSTED CERTIFICATE-----\nAA==\n-----END TRUSTED CERTIFICATE-----\n", "TRUSTED CERTIFICATE" },
        { "-----BEGIN PKCS7-----\nAA==\n-----END PKCS7-----\n", "PKCS #7" },
        { "-----BEGIN CERTIFICATE-----\nMIIB\n", "END CERTIFICATE----- is missing" },
        { "-----BEGIN CERTIFICATE-----\nMI!B\n-----END CERTIFICATE-----\n", "no base64" },
        { "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "no X.509 certificate" },
        { "-----BEGIN CERTIFICATE----------END CERTIFICATE-----\n", "no X.509 certificate" },
        { "0\x82", "DER" },
    };
    for (size_t i = 0; i < COUNT_OF(others); i++) {
        assert_int_equal(check_ca_text(others[i].text, strlen(others[i].text), NOW_MS), RC_INVALID);
        says(i, others[i].want);
    }
    assert_int_equal(check_ca_text(NULL, 0, NOW_MS), RC_INVALID);

    buf_init(&t, MIB);                                                    /* two certificates */
    buf_put(&t, pem, n), buf_put(&t, pem, n);
    assert_int_equal(check_ca_text(buf_data(&t), buf_len(&t), NOW_MS), RC_INVALID);
    says(0, "holds 2 certificates; send exactly one");
    buf_clear(&t);
    buf_put(&t, pem, n);                                                  /* exactly 8 KB is allowed, one more byte is not */
    while (buf_len(&t) < CERT_PEM_MAX)
        buf_putc(&t, '\n');
    assert_int_equal(check_ca_text(buf_data(&t), buf_len(&t), NOW_MS), RC_OK);
    buf_putc(&t, '\n');
    assert_int_equal(check_ca_text(buf_data(&t), buf_len(&t), NOW_MS), RC_INVALID);
    says(0, "8193 bytes, more than the 8192 allowed");
    buf_clear(&t);
    buf_put(&t, pem, n);
    buf_data(&t)[n / 2] = '\0';
    assert_int_equal(check_ca_text(buf_data(&t), n, NOW_MS), RC_INVALID);
    says(0, "NUL");
    for (size_t i = 0; i + 1 < n; i++)                                    /* cut anywhere: refused, never read past its end */
        assert_int_equal(check_ca_text(pem, i, NOW_MS), RC_INVALID);
    buf_done(&t);

    unsigned char *der = NULL;                                            /* a byte behind the certificate inside the block */
    int len = i2d_X509(c.x, &der);
    der = OPENSSL_realloc(der, (size_t)len + 1);
    der[len] = 0;
    BIO *bio = BIO_new(BIO_s_mem());
    char *p;
    PEM_write_bio(bio, "CERTIFICATE", "", der, len + 1);
    long k = BIO_get_mem_data(bio, &p);
    assert_int_equal(check_ca_text(p, (size_t)k, NOW_MS), RC_INVALID);
    says(0, "1 bytes follow the certificate");
    BIO_free(bio);
    OPENSSL_free(der);
    assert_int_equal(check_ca_text(pem, n, NOW_MS + 90 * DAY * 1000), RC_OK);
    assert_int_equal(check_ca_text(pem, n, NOW_MS + 90 * DAY * 1000 + 1), RC_INVALID);
    buf_done(&b);
    drop(&c);
}

static void leaves(void **state)
{
    (void)state;
    static const struct { struct how h; const char *want; } t[] = {
        { { 0 }, NULL },
        { { .key = "RSA-2048" }, NULL },
        { { .san = "DNS:docs." DOMAIN }, NULL },
        { { .san = "DNS:other.example.com,DNS:*." DOMAIN ",IP:10.0.0.1" }, NULL },
        { { .san = "DNS:*.A1B2C3D4.Tunnel.Example.COM" }, NULL },
        { { .eku = "", .usage = "", .basic = "" }, NULL },
        { { .eku = "clientAuth,serverAuth" }, NULL },
        { { .san = "DNS:a.b." DOMAIN }, "covers a host directly below " DOMAIN },
        { { .san = "DNS:*.b." DOMAIN }, "covers a host directly below" },
        { { .san = "DNS:" DOMAIN }, "covers a host directly below" },
        { { .san = "DNS:*.tunnel.example.com" }, "stands for exactly one label" },
        { { .san = "DNS:*.*." DOMAIN }, "covers a host directly below" },
        { { .san = "DNS:a*." DOMAIN }, "covers a host directly below" },
        { { .san = "DNS:*" DOMAIN }, "covers a host directly below" },
        { { .san = "DNS:*.x" DOMAIN }, "covers a host directly below" },
        { { .san = "IP:10.0.0.1" }, "covers a host directly below" },
        { { .san = "", .subject = "*." DOMAIN }, "SubjectAltName is missing; the common name is not looked at" },
        { { .aki = "" }, "AuthorityKeyIdentifier is missing" },
        { { .aki = "issuer:always" }, "is not the SubjectKeyIdentifier" },
        { { .eku = "clientAuth" }, "does not include serverAuth" },
        { { .usage = "critical,keyAgreement" }, "does not include digitalSignature" },
        { { .basic = "critical,CA:TRUE", .usage = "critical,keyCertSign,digitalSignature" }, "it is an authority (CA:TRUE)" },
        { { .key = "RSA-1024" }, "RSA key has 1024 bits" },
        { { .key = "P-192" }, "curve prime192v1" },
        { { .md = EVP_sha1 }, "digest SHA1" },
        { { .from = -20, .until = -2 }, "it expired at" },
        { { .from = 2 }, "not valid before" },
        { { .damaged = true }, "its signature is not of the authority" },
    };
    struct cert ca = make(&(struct how){ .until = 50 }, NULL, true);
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct cert l = make(&t[i].h, &ca, false);
        int rc = check_leaf(l.x, ca.x, NULL, DOMAIN, NOW_MS);
        if (rc != (t[i].want ? RC_INVALID : RC_OK))
            fail_msg("row %zu: %d %s", i, rc, e.msg);
        if (t[i].want)
            says(i, t[i].want);
        drop(&l);
    }
    drop(&ca);
}

static void issuers(void **state)
{
    (void)state;
    struct cert ca = make(&(struct how){ .until = 50 }, NULL, true), other = make(&(struct how){ .subject = "stranger" }, NULL, true);
    struct cert twin = make(&(struct how){ 0 }, NULL, true);                      /* the same name, another key */
    struct cert mid = make(&(struct how){ .subject = "middle" }, &ca, true), leaf = make(&(struct how){ 0 }, &ca, false), deep = make(&(struct how){ 0 }, &mid, false);
    assert_int_equal(check_leaf(leaf.x, ca.x, NULL, DOMAIN, NOW_MS), RC_OK);
    assert_int_equal(check_leaf(leaf.x, other.x, ca.x, DOMAIN, NOW_MS), RC_OK);   /* the second of two authorities */
    assert_int_equal(check_leaf(leaf.x, twin.x, ca.x, DOMAIN, NOW_MS), RC_OK);
    assert_int_equal(check_leaf(leaf.x, other.x, NULL, DOMAIN, NOW_MS), RC_INVALID);
    says(0, "issued by 'CN=authority', which is no registered authority");
    assert_int_equal(check_leaf(leaf.x, twin.x, NULL, DOMAIN, NOW_MS), RC_INVALID);
    says(0, "AuthorityKeyIdentifier is not the SubjectKeyIdentifier");
    assert_int_equal(check_leaf(deep.x, ca.x, NULL, DOMAIN, NOW_MS), RC_INVALID);
    says(0, "intermediates are not accepted");
    assert_int_equal(check_leaf(deep.x, ca.x, mid.x, DOMAIN, NOW_MS), RC_OK);     /* the intermediate itself is registered */
    assert_int_equal(check_leaf(leaf.x, ca.x, NULL, DOMAIN, NOW_MS + 60 * DAY * 1000), RC_INVALID);
    says(0, "its authority: it expired at");
    assert_int_equal(check_leaf(leaf.x, ca.x, NULL, "other." DOMAIN, NOW_MS), RC_INVALID);

    struct buf l = pem_of(leaf.x);
    memset(&e, 0, sizeof e);
    assert_int_equal(cert_check_leaf(buf_data(&l), buf_len(&l), "", 0, DOMAIN, NOW_MS, &info, &e), RC_INVALID);
    says(0, "no authority to compare");
    assert_int_equal(cert_check_leaf(buf_data(&l), buf_len(&l), NULL, 0, DOMAIN, NOW_MS, &info, &e), RC_INVALID);
    assert_int_equal(cert_check_leaf("", 0, "", 0, DOMAIN, NOW_MS, &info, &e), RC_INVALID);
    says(0, "empty");
    buf_done(&l);
    struct cert narrow = make(&(struct how){ .extra = "permitted;DNS:elsewhere.example", .subject = "narrow" }, NULL, true), out = make(&(struct how){ 0 }, &narrow, false);
    assert_int_equal(check_leaf(out.x, narrow.x, NULL, DOMAIN, NOW_MS), RC_INVALID);
    says(0, "permitted subtree violation");
    drop(&narrow), drop(&out), drop(&ca), drop(&other), drop(&twin), drop(&mid), drop(&leaf), drop(&deep);
}

/* What cert_make_* makes passes. */
static void ours(void **state)
{
    (void)state;
    const char *dns[] = { "*." DOMAIN };
    struct cert_spec ca = { .common_name = "ca", .now_ms = NOW_MS, .valid_ms = 5 * 365 * DAY * 1000 };
    struct cert_spec leaf = { .common_name = "leaf", .dns = dns, .n_dns = 1, .now_ms = NOW_MS, .valid_ms = 90 * DAY * 1000 };
    struct buf c, ck, l, lk;
    buf_init(&c, MIB), buf_init(&ck, MIB), buf_init(&l, MIB), buf_init(&lk, MIB);
    assert_int_equal(cert_make_ca(&ca, &c, &ck, &e), RC_OK);
    assert_int_equal(cert_make_leaf(&leaf, buf_data(&c), buf_data(&ck), &l, &lk, &e), RC_OK);
    assert_int_equal(check_ca_text(buf_data(&c), buf_len(&c), NOW_MS), RC_OK);
    assert_int_equal(cert_check_leaf(buf_data(&l), buf_len(&l), buf_data(&c), buf_len(&c), DOMAIN, NOW_MS, &info, &e), RC_OK);
    leaf.client = true;
    buf_clear(&l);
    assert_int_equal(cert_make_leaf(&leaf, buf_data(&c), buf_data(&ck), &l, &lk, &e), RC_OK);
    assert_int_equal(cert_check_leaf(buf_data(&l), buf_len(&l), buf_data(&c), buf_len(&c), DOMAIN, NOW_MS, &info, &e), RC_INVALID);
    assert_int_equal(check_ca_text(buf_data(&ck), buf_len(&ck), NOW_MS), RC_INVALID);     /* the key instead of the certificate */
    says(0, "private key");
    buf_done(&c), buf_wipe(&ck), buf_done(&l), buf_wipe(&lk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(authorities), cmocka_unit_test(fingerprints), cmocka_unit_test(texts), cmocka_unit_test(leaves), cmocka_unit_test(issuers), cmocka_unit_test(ours),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
