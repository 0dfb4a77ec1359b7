#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <openssl/pem.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>
#include <string.h>

#include "base/clock.h"
#include "tls/cert.h"

#define DAY_MS ((int64_t)86400000)

static struct buf ca, ca_key;
static int64_t now;

static X509 *read_cert(struct buf *b)
{
    BIO *bio = BIO_new_mem_buf(buf_data(b), (int)buf_len(b));
    X509 *x = PEM_read_bio_X509(bio, NULL, NULL, NULL);
    BIO_free(bio);
    assert_non_null(x);
    return x;
}

/* What `openssl verify -x509_strict -purpose P -verify_hostname H -attime T` does; X509_V_OK or the reason. */
static int verify(X509 *leaf, X509 *root, int purpose, const char *host, const char *ip, int64_t at_ms)
{
    X509_STORE *store = X509_STORE_new();
    assert_int_equal(X509_STORE_add_cert(store, root), 1);
    X509_STORE_CTX *c = X509_STORE_CTX_new();
    assert_int_equal(X509_STORE_CTX_init(c, store, leaf, NULL), 1);
    X509_VERIFY_PARAM *p = X509_STORE_CTX_get0_param(c);
    X509_VERIFY_PARAM_set_flags(p, X509_V_FLAG_X509_STRICT | X509_V_FLAG_CHECK_SS_SIGNATURE);
    X509_VERIFY_PARAM_set_time(p, (time_t)(at_ms / 1000));
    X509_VERIFY_PARAM_set_hostflags(p, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
    if (purpose)
        X509_VERIFY_PARAM_set_purpose(p, purpose);
    if (host)
        X509_VERIFY_PARAM_set1_host(p, host, 0);
    if (ip)
        X509_VERIFY_PARAM_set1_ip_asc(p, ip);
    int r = X509_verify_cert(c) == 1 ? X509_V_OK : X509_STORE_CTX_get_error(c);
    X509_STORE_CTX_free(c);
    X509_STORE_free(store);
    return r;
}

static void make_leaf(const struct cert_spec *s, X509 **ret, EVP_PKEY **ret_key)
{
    struct buf cert, key;
    struct err e = { 0 };
    buf_init(&cert, CERT_PEM_MAX);
    buf_init(&key, CERT_PEM_MAX);
    int rc = cert_make_leaf(s, buf_data(&ca), buf_data(&ca_key), &cert, &key, &e);
    if (rc != RC_OK)
        fail_msg("leaf: %s", e.msg);
    *ret = read_cert(&cert);
    if (ret_key) {
        BIO *bio = BIO_new_mem_buf(buf_data(&key), -1);
        *ret_key = PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL);
        BIO_free(bio);
        assert_non_null(*ret_key);
    }
    buf_done(&cert);
    buf_wipe(&key);
}

static void test_ca(void **st)
{
    (void)st;
    X509 *x = read_cert(&ca);
    int crit = -1;
    BASIC_CONSTRAINTS *bc = X509_get_ext_d2i(x, NID_basic_constraints, &crit, NULL);
    assert_non_null(bc);
    assert_true(bc->ca);
    assert_int_equal(crit, 1);
    BASIC_CONSTRAINTS_free(bc);
    assert_int_equal(X509_get_key_usage(x), X509v3_KU_KEY_CERT_SIGN | X509v3_KU_CRL_SIGN);
    assert_non_null(X509_get0_subject_key_id(x));
    assert_int_equal(X509_check_ca(x), 1);
    assert_int_equal(verify(x, x, 0, NULL, NULL, now), X509_V_OK);
    assert_int_equal(EVP_PKEY_get_bits(X509_get0_pubkey(x)), 256);
    assert_true(ASN1_INTEGER_get(X509_get0_serialNumber(x)) != 0);
    assert_true(buf_len(&ca) < CERT_PEM_MAX);
    X509_free(x);
}

static void test_leaf(void **st)
{
    (void)st;
    const char *dns[] = { "*.abc.tunnel.example", "abc.tunnel.example" }, *ip[] = { "127.0.0.1", "::1" };
    struct cert_spec s = { .common_name = "abc.tunnel.example", .dns = dns, .n_dns = 2, .ip = ip, .n_ip = 2, .now_ms = now, .valid_ms = 90 * DAY_MS };
    X509 *root = read_cert(&ca), *x;
    EVP_PKEY *key;
    make_leaf(&s, &x, &key);
    assert_int_equal(X509_check_private_key(x, key), 1);
    assert_int_equal(ASN1_OCTET_STRING_cmp(X509_get0_authority_key_id(x), X509_get0_subject_key_id(root)), 0);
    const struct { int purpose; const char *host, *ip; int64_t at; int want; } t[] = {
        { X509_PURPOSE_SSL_SERVER, "wiki.abc.tunnel.example", NULL, now, X509_V_OK },
        { X509_PURPOSE_SSL_SERVER, "abc.tunnel.example", NULL, now, X509_V_OK },
        { X509_PURPOSE_SSL_SERVER, NULL, "127.0.0.1", now, X509_V_OK },
        { X509_PURPOSE_SSL_SERVER, NULL, "::1", now, X509_V_OK },
        { X509_PURPOSE_SSL_SERVER, NULL, "::2", now, X509_V_ERR_IP_ADDRESS_MISMATCH },
        { X509_PURPOSE_SSL_SERVER, "a.b.abc.tunnel.example", NULL, now, X509_V_ERR_HOSTNAME_MISMATCH },
        { X509_PURPOSE_SSL_SERVER, "wiki.abd.tunnel.example", NULL, now, X509_V_ERR_HOSTNAME_MISMATCH },
        { X509_PURPOSE_SSL_CLIENT, NULL, NULL, now, X509_V_ERR_INVALID_PURPOSE },
        { X509_PURPOSE_SSL_SERVER, NULL, NULL, now + 91 * DAY_MS, X509_V_ERR_CERT_HAS_EXPIRED },
        { X509_PURPOSE_SSL_SERVER, NULL, NULL, now - DAY_MS, X509_V_ERR_CERT_NOT_YET_VALID },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        int r = verify(x, root, t[i].purpose, t[i].host, t[i].ip, t[i].at);
        if (r != t[i].want)
            fail_msg("row %zu: %s", i, X509_verify_cert_error_string(r));
    }
    X509_free(x);
    EVP_PKEY_free(key);
    s.client = true;
    make_leaf(&s, &x, NULL);
    assert_int_equal(verify(x, root, X509_PURPOSE_SSL_CLIENT, NULL, NULL, now), X509_V_OK);
    assert_int_equal(verify(x, root, X509_PURPOSE_SSL_SERVER, NULL, NULL, now), X509_V_ERR_INVALID_PURPOSE);
    X509_free(x);
    X509_free(root);
}

static void test_serials_differ(void **st)
{
    (void)st;
    struct cert_spec s = { .common_name = "a", .now_ms = now, .valid_ms = DAY_MS };
    X509 *a, *b;
    make_leaf(&s, &a, NULL);
    make_leaf(&s, &b, NULL);
    assert_int_not_equal(ASN1_INTEGER_cmp(X509_get0_serialNumber(a), X509_get0_serialNumber(b)), 0);
    assert_int_equal(X509_get_ext_by_NID(a, NID_subject_alt_name, -1), -1);
    X509_free(a);
    X509_free(b);
}

static void test_refusals(void **st)
{
    (void)st;
    struct buf ca2, key2, out, out_key;
    struct err e = { 0 };
    buf_init(&ca2, CERT_PEM_MAX);
    buf_init(&key2, CERT_PEM_MAX);
    struct cert_spec good = { .common_name = "x", .now_ms = now, .valid_ms = DAY_MS };
    assert_int_equal(cert_make_ca(&good, &ca2, &key2, &e), RC_OK);
    char longest[66];
    memset(longest, 'a', sizeof longest - 1);
    longest[65] = '\0';
    const char *comma[] = { "a.example,DNS:b.example" }, *empty[] = { "" }, *name[] = { "localhost" };
    const struct { struct cert_spec s; const char *cert, *key; const char *say; } t[] = {
        { { .common_name = NULL, .now_ms = now, .valid_ms = DAY_MS }, buf_data(&ca), buf_data(&ca_key), "common name" },
        { { .common_name = longest, .now_ms = now, .valid_ms = DAY_MS }, buf_data(&ca), buf_data(&ca_key), "common name" },
        { { .common_name = "x", .now_ms = now, .valid_ms = 0 }, buf_data(&ca), buf_data(&ca_key), "second" },
        { { .common_name = "x", .now_ms = now, .valid_ms = INT64_MAX }, buf_data(&ca), buf_data(&ca_key), "second" },
        { { .common_name = "x", .now_ms = now, .valid_ms = DAY_MS, .dns = comma, .n_dns = 1 }, buf_data(&ca), buf_data(&ca_key), "host name" },
        { { .common_name = "x", .now_ms = now, .valid_ms = DAY_MS, .dns = empty, .n_dns = 1 }, buf_data(&ca), buf_data(&ca_key), "host name" },
        { { .common_name = "x", .now_ms = now, .valid_ms = DAY_MS, .ip = name, .n_ip = 1 }, buf_data(&ca), buf_data(&ca_key), "numeric" },
        { good, buf_data(&ca), buf_data(&key2), "does not belong" },
        { good, "rubbish", buf_data(&ca_key), "certificate" },
        { good, buf_data(&ca), "rubbish", "key" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        buf_init(&out, CERT_PEM_MAX);
        buf_init(&out_key, CERT_PEM_MAX);
        e.msg[0] = '\0';
        int rc = cert_make_leaf(&t[i].s, t[i].cert, t[i].key, &out, &out_key, &e);
        if (rc != RC_INVALID || !strstr(e.msg, t[i].say) || buf_len(&out) || buf_len(&out_key))
            fail_msg("row %zu: rc %d \"%s\"", i, rc, e.msg);
        buf_done(&out);
        buf_done(&out_key);
    }
    buf_done(&ca2);
    buf_wipe(&key2);
}

static int setup(void **st)
{
    (void)st;
    struct err e = { 0 };
    now = clock_now_ms();
    buf_init(&ca, CERT_PEM_MAX);
    buf_init(&ca_key, CERT_PEM_MAX);
    struct cert_spec s = { .common_name = "Outwork tunnel CA", .now_ms = now, .valid_ms = 5 * 365 * DAY_MS };
    return cert_make_ca(&s, &ca, &ca_key, &e);
}

static int teardown(void **st)
{
    (void)st;
    buf_done(&ca);
    buf_wipe(&ca_key);
    return 0;
}

int main(void)
{
    const struct CMUnitTest t[] = { cmocka_unit_test(test_ca), cmocka_unit_test(test_leaf), cmocka_unit_test(test_serials_differ), cmocka_unit_test(test_refusals) };
    return cmocka_run_group_tests(t, setup, teardown);
}
