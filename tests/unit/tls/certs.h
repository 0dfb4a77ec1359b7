/* Certificates for tests, made when the test runs: a self-signed one for "localhost" and 127.0.0.1 (also usable as a CA), and others. */
#pragma once

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct test_cert { char dir[64], cert[96], key[96]; };

static inline int test_cert_ext(X509 *x, int nid, const char *value)
{
    X509V3_CTX c;
    X509V3_set_ctx_nodb(&c);
    X509V3_set_ctx(&c, x, x, NULL, NULL, 0);
    X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, &c, nid, value);
    int ok = ext && X509_add_ext(x, ext, -1);
    X509_EXTENSION_free(ext);
    return ok;
}

/* `names` as in "DNS:localhost,IP:127.0.0.1". */
static inline void test_cert_make(struct test_cert *t, const char *names, long days)
{
    snprintf(t->dir, sizeof t->dir, "/tmp/ow-cert-XXXXXX");
    if (!mkdtemp(t->dir))
        abort();
    snprintf(t->cert, sizeof t->cert, "%s/cert.pem", t->dir);
    snprintf(t->key, sizeof t->key, "%s/key.pem", t->dir);
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = X509_new();
    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), 1);
    X509_gmtime_adj(X509_getm_notBefore(x), -86400 * 10);
    X509_gmtime_adj(X509_getm_notAfter(x), 86400 * days);
    X509_set_pubkey(x, key);
    X509_NAME *n = X509_get_subject_name(x);
    X509_NAME_add_entry_by_txt(n, "CN", MBSTRING_ASC, (const unsigned char *)"test", -1, -1, 0);
    X509_set_issuer_name(x, n);
    if (!test_cert_ext(x, NID_basic_constraints, "critical,CA:TRUE") || !test_cert_ext(x, NID_subject_alt_name, names) || !X509_sign(x, key, EVP_sha256()))
        abort();
    FILE *f = fopen(t->cert, "w");
    PEM_write_X509(f, x);
    fclose(f);
    f = fopen(t->key, "w");
    PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL);
    fclose(f);
    X509_free(x);
    EVP_PKEY_free(key);
}

static inline void test_cert_remove(struct test_cert *t)
{
    (void)unlink(t->cert);
    (void)unlink(t->key);
    (void)rmdir(t->dir);
}
