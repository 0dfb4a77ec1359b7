/* tls/cert_check.c - the rules for certificates of a tunnel (tunnels.md 3.2). Each refusal names the rule that is broken and what to do, since the reader
 * is somebody who has just made the certificate with another tool. */
#include "tls/cert.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <time.h>

#include "base/base64.h"
#include "base/clock.h"
#include "base/str.h"

#define CERT_CHAIN_PEM_MAX (64 * KIB)        /* a leaf's file may hold its authority too, or a key */
#define CERT_ANCHORS_MAX 16                  /* authorities that a leaf is compared with */
#define RSA_BITS_MIN 2048
#define NAME_TEXT_MAX 128
#define BEGIN_CERT "-----BEGIN CERTIFICATE-----"
#define END_CERT "-----END CERTIFICATE-----"

static void free_x509(X509 **x) { X509_free(*x); }
#define AUTO_X509 __attribute__((cleanup(free_x509))) X509 *

/* ---- PEM ---- */
static const char *find(const char *p, size_t n, const char *word)
{
    return n ? memmem(p, n, word, strlen(word)) : NULL;
}

static bool is_blank(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != ' ' && p[i] != '\t' && p[i] != '\r' && p[i] != '\n')
            return false;
    return true;
}

struct block { const char *p; size_t n; const char *after; };     /* base64 between the lines; what follows the END line */

/* The first certificate of [p, p + n). RC_NOT_FOUND: none begins there. */
static int next_block(const char *p, size_t n, struct block *ret, struct err *e)
{
    const char *begin = find(p, n, BEGIN_CERT);
    if (!begin)
        return RC_NOT_FOUND;
    const char *body = begin + sizeof BEGIN_CERT - 1, *end = find(body, n - (size_t)(body - p), END_CERT);
    if (!end)
        return err_set(e, RC_INVALID, "the certificate is cut: the line " END_CERT " is missing");
    *ret = (struct block){ body, (size_t)(end - body), end + sizeof END_CERT - 1 };
    return RC_OK;
}

static int decode(const struct block *b, struct buf *der, struct err *e)
{
    struct buf text;
    buf_init(&text, b->n + 1);
    for (size_t i = 0; i < b->n; i++)
        if (!is_blank(&b->p[i], 1))
            (void)buf_putc(&text, b->p[i]);
    int rc = buf_ok(&text) ? base64_decode(der, buf_data(&text), buf_len(&text)) : RC_NOMEM;
    buf_done(&text);
    return rc < 0 ? err_set(e, rc, "the text between the BEGIN and END lines is no base64: it was changed on its way") : RC_OK;
}

static int parse(const struct block *b, X509 **ret, struct err *e)
{
    struct buf der;
    buf_init(&der, CERT_CHAIN_PEM_MAX);
    int rc = decode(b, &der, e);
    if (rc < 0) {
        buf_done(&der);
        return rc;
    }
    const unsigned char *p = (const unsigned char *)buf_data(&der), *end = p + buf_len(&der);
    X509 *x = d2i_X509(NULL, &p, (long)buf_len(&der));
    size_t left = (size_t)(end - p);
    buf_done(&der);
    ERR_clear_error();
    if (!x)
        return err_set(e, RC_INVALID, "the PEM block holds no X.509 certificate");
    if (left) {
        X509_free(x);
        return err_set(e, RC_INVALID, "%zu bytes follow the certificate inside its PEM block; export the certificate again", left);
    }
    *ret = x;
    return RC_OK;
}

/* What somebody sent who sent no certificate. */
static int no_certificate(const char *p, size_t n, struct err *e)
{
    if (find(p, n, "-----BEGIN CERTIFICATE REQUEST-----") || find(p, n, "-----BEGIN NEW CERTIFICATE REQUEST-----"))
        return err_set(e, RC_INVALID, "this is a certificate signing request; send the certificate that was made from it");
    if (find(p, n, "-----BEGIN TRUSTED CERTIFICATE-----"))
        return err_set(e, RC_INVALID, "this is OpenSSL's own TRUSTED CERTIFICATE form; write it again without -trustout");
    if (find(p, n, "-----BEGIN PKCS7-----"))
        return err_set(e, RC_INVALID, "this is a PKCS #7 bundle; take the one certificate out of it (openssl pkcs7 -print_certs)");
    if ((unsigned char)p[0] == 0x30)
        return err_set(e, RC_INVALID, "this looks like a DER file; convert it to PEM (openssl x509 -inform der -in FILE)");
    return err_set(e, RC_INVALID, "no line " BEGIN_CERT " was found; send the certificate in PEM form");
}

static size_t count(const char *p, size_t n, const char *word)
{
    size_t k = 0;
    for (const char *at = p, *end = p + n; (at = find(at, (size_t)(end - at), word)); at += strlen(word))
        k++;
    return k;
}

/* Exactly one certificate and nothing else. */
static int single(const char *pem, size_t n, X509 **ret, struct err *e)
{
    struct block b;
    if (!pem || is_blank(pem, n))
        return err_set(e, RC_INVALID, "it is empty; send one certificate in PEM form");
    if (n > CERT_PEM_MAX)
        return err_set(e, RC_INVALID, "it has %zu bytes, more than the %lld allowed; send the one certificate without a chain or text", n, (long long)CERT_PEM_MAX);
    if (find(pem, n, "PRIVATE KEY-----"))
        return err_set(e, RC_INVALID, "it holds a private key. Send only the certificate; that key has now left its place and should be replaced");
    if (memchr(pem, '\0', n) && (unsigned char)pem[0] != 0x30)
        return err_set(e, RC_INVALID, "it holds a NUL byte; send the certificate in PEM form");
    int rc = next_block(pem, n, &b, e);
    if (rc < 0)
        return rc == RC_NOT_FOUND ? no_certificate(pem, n, e) : rc;
    size_t k = count(pem, n, BEGIN_CERT);
    if (k > 1)
        return err_set(e, RC_INVALID, "it holds %zu certificates; send exactly one, the authority that signs your gateway's certificate", k);
    if (!is_blank(pem, (size_t)(b.p - pem) - (sizeof BEGIN_CERT - 1)))
        return err_set(e, RC_INVALID, "there is text before the certificate; send only the lines from BEGIN to END CERTIFICATE");
    if (!is_blank(b.after, (size_t)(pem + n - b.after)))
        return err_set(e, RC_INVALID, "there is text after the certificate; send only the lines from BEGIN to END CERTIFICATE");
    return parse(&b, ret, e);
}

/* ---- what authority and leaf share ---- */
static int time_ms(const ASN1_TIME *t, int64_t *ret)
{
    struct tm tm;
    if (!t || ASN1_TIME_to_tm(t, &tm) != 1)
        return RC_INVALID;
    *ret = (int64_t)timegm(&tm) * 1000;
    return RC_OK;
}

static int check_times(X509 *x, int64_t now_ms, struct cert_info *info, struct err *e)
{
    char text[RFC3339_MAX];
    if (time_ms(X509_get0_notBefore(x), &info->not_before_ms) < 0 || time_ms(X509_get0_notAfter(x), &info->not_after_ms) < 0)
        return err_set(e, RC_INVALID, "its period of validity cannot be read");
    if (now_ms < info->not_before_ms) {
        rfc3339_format(info->not_before_ms, text);
        return err_set(e, RC_INVALID, "it is not valid before %s; check the clock of the machine that made it", text);
    }
    if (now_ms > info->not_after_ms) {
        rfc3339_format(info->not_after_ms, text);
        return err_set(e, RC_INVALID, "it expired at %s; make a new one", text);
    }
    return RC_OK;
}

static int check_key(X509 *x, struct err *e)
{
    EVP_PKEY *key = X509_get0_pubkey(x);
    char curve[64];
    size_t n = 0;
    if (!key)
        return err_set(e, RC_INVALID, "its public key cannot be read; use RSA with at least %d bits, or ECDSA on P-256, P-384 or P-521", RSA_BITS_MIN);
    if (EVP_PKEY_is_a(key, "RSA") || EVP_PKEY_is_a(key, "RSA-PSS")) {
        int bits = EVP_PKEY_get_bits(key);
        return bits >= RSA_BITS_MIN ? RC_OK : err_set(e, RC_INVALID, "its RSA key has %d bits; at least %d are needed", bits, RSA_BITS_MIN);
    }
    if (!EVP_PKEY_is_a(key, "EC"))
        return err_set(e, RC_INVALID, "its key is of the type %s; use RSA with at least %d bits, or ECDSA on P-256, P-384 or P-521", EVP_PKEY_get0_type_name(key), RSA_BITS_MIN);
    if (EVP_PKEY_get_group_name(key, curve, sizeof curve, &n) != 1)
        return err_set(e, RC_INVALID, "its ECDSA key spells out the curve instead of naming it; use P-256, P-384 or P-521");
    if (str_eq(curve, "prime256v1") || str_eq(curve, "P-256") || str_eq(curve, "secp384r1") || str_eq(curve, "P-384") || str_eq(curve, "secp521r1") || str_eq(curve, "P-521"))
        return RC_OK;
    return err_set(e, RC_INVALID, "its ECDSA key is on the curve %s; use P-256, P-384 or P-521", curve);
}

static int check_digest(X509 *x, struct err *e)
{
    int md = NID_undef, pk = NID_undef;
    uint32_t flags = 0;
    ERR_clear_error();
    int ok = X509_get_signature_info(x, &md, &pk, NULL, &flags);
    ERR_clear_error();
    if (ok != 1)
        return err_set(e, RC_INVALID, "its signature is of an unknown kind; sign with RSA or ECDSA and SHA-256 or better");
    switch (md) {
    case NID_sha256: case NID_sha384: case NID_sha512: case NID_sha512_256: case NID_sha3_256: case NID_sha3_384: case NID_sha3_512: return RC_OK;
    case NID_undef: return err_set(e, RC_INVALID, "it is signed with %s; sign with RSA or ECDSA and SHA-256 or better", OBJ_nid2sn(pk));
    default: return err_set(e, RC_INVALID, "it is signed with the digest %s; SHA-256 or better is needed", OBJ_nid2sn(md));
    }
}

static int fingerprint(X509 *x, struct cert_info *info, struct err *e)
{
    unsigned char md[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    if (X509_digest(x, EVP_sha256(), md, &n) != 1 || n != 32)
        return err_set(e, RC_NOMEM, "fingerprint of a certificate");
    for (unsigned i = 0; i < n; i++) {
        info->fingerprint[2 * i] = "0123456789abcdef"[md[i] >> 4];
        info->fingerprint[2 * i + 1] = "0123456789abcdef"[md[i] & 15];
    }
    info->fingerprint[64] = '\0';
    return RC_OK;
}

static int check_common(X509 *x, int64_t now_ms, struct cert_info *info, struct err *e)
{
    if (X509_get_version(x) != X509_VERSION_3)
        return err_set(e, RC_INVALID, "it is an X.509 version %ld certificate; version 3 is needed, with its extensions", X509_get_version(x) + 1);
    TRY(check_key(x, e));
    TRY(check_digest(x, e));
    TRY(check_times(x, now_ms, info, e));
    return fingerprint(x, info, e);
}

/* An extension that occurs at most once. *ret_there is false without one. */
static int extension(X509 *x, int nid, const char *name, bool *ret_there, bool *ret_critical, struct err *e)
{
    int at = X509_get_ext_by_NID(x, nid, -1);
    if (at >= 0 && X509_get_ext_by_NID(x, nid, at) >= 0)
        return err_set(e, RC_INVALID, "the extension %s occurs twice", name);
    *ret_there = at >= 0;
    *ret_critical = at >= 0 && X509_EXTENSION_get_critical(X509_get_ext(x, at));
    return RC_OK;
}

/* Reading the flags makes OpenSSL decode every extension that it knows. */
static int check_extensions(X509 *x, struct err *e)
{
    uint32_t flags = X509_get_extension_flags(x);
    ERR_clear_error();
    if (flags & EXFLAG_INVALID)
        return err_set(e, RC_INVALID, "its extensions are malformed or contradict each other; make it again");
    if (flags & EXFLAG_CRITICAL)
        return err_set(e, RC_INVALID, "it has a critical extension that nobody here understands; make it without");
    return RC_OK;
}

/* ---- the authority ---- */
static int check_basic(X509 *x, struct err *e)
{
    bool there, critical;
    TRY(extension(x, NID_basic_constraints, "BasicConstraints", &there, &critical, e));
    if (!there)
        return err_set(e, RC_INVALID, "it is no authority: the extension BasicConstraints is missing; it must be critical and say CA:TRUE");
    BASIC_CONSTRAINTS *bc = X509_get_ext_d2i(x, NID_basic_constraints, NULL, NULL);
    bool ca = bc && bc->ca;
    BASIC_CONSTRAINTS_free(bc);
    ERR_clear_error();
    if (!ca)
        return err_set(e, RC_INVALID, "it is no authority: BasicConstraints says CA:FALSE; register the certificate that signs your gateway's, not the gateway's own");
    return critical ? RC_OK : err_set(e, RC_INVALID, "its extension BasicConstraints is not critical; it must be (basicConstraints = critical, CA:TRUE)");
}

static int check_ca_extensions(X509 *x, struct err *e)
{
    bool there, critical;
    TRY(check_basic(x, e));
    TRY(extension(x, NID_subject_key_identifier, "SubjectKeyIdentifier", &there, &critical, e));
    if (!there)
        return err_set(e, RC_INVALID, "its extension SubjectKeyIdentifier is missing (subjectKeyIdentifier = hash)");
    TRY(extension(x, NID_key_usage, "KeyUsage", &there, &critical, e));
    if (!there)
        return err_set(e, RC_INVALID, "its extension KeyUsage is missing; it must include keyCertSign (keyUsage = critical, keyCertSign, cRLSign)");
    TRY(check_extensions(x, e));
    if (!(X509_get_key_usage(x) & KU_KEY_CERT_SIGN))
        return err_set(e, RC_INVALID, "its extension KeyUsage does not include keyCertSign; an authority must be allowed to sign certificates");
    const ASN1_OCTET_STRING *ski = X509_get0_subject_key_id(x);
    return ski && ASN1_STRING_length(ski) > 0 ? RC_OK : err_set(e, RC_INVALID, "its SubjectKeyIdentifier is empty (subjectKeyIdentifier = hash)");
}

/* Also of an authority that another one issued: then its signature cannot be checked here, and need not be, since it is trusted by being registered. */
static int check_self_signature(X509 *x, struct err *e)
{
    if (X509_NAME_cmp(X509_get_subject_name(x), X509_get_issuer_name(x)) != 0)
        return RC_OK;
    const ASN1_OCTET_STRING *ski = X509_get0_subject_key_id(x), *aki = X509_get0_authority_key_id(x);
    if (ski && aki && ASN1_OCTET_STRING_cmp(ski, aki) != 0)
        return RC_OK;                        /* the same name, but another key of it signed */
    int ok = X509_verify(x, X509_get0_pubkey(x));
    ERR_clear_error();
    return ok == 1 ? RC_OK : err_set(e, RC_INVALID, "its own signature does not verify: the certificate is damaged");
}

int cert_check_ca(const char *pem, size_t n, int64_t now_ms, struct cert_info *ret, struct err *e)
{
    AUTO_X509 x = NULL;
    struct cert_info info = { 0 };
    TRY(single(pem, n, &x, e));
    TRY(check_common(x, now_ms, &info, e));
    TRY(check_ca_extensions(x, e));
    TRY(check_self_signature(x, e));
    *ret = info;
    return RC_OK;
}

/* ---- the leaf ---- */
static const char *name_text(const X509_NAME *name, char out[NAME_TEXT_MAX])
{
    BIO *b = BIO_new(BIO_s_mem());
    char *p = NULL;
    long n = b && X509_NAME_print_ex(b, name, 0, XN_FLAG_RFC2253) >= 0 ? BIO_get_mem_data(b, &p) : 0;
    size_t k = n <= 0 ? 0 : (size_t)n < NAME_TEXT_MAX ? (size_t)n : NAME_TEXT_MAX - 1;
    if (k)
        memcpy(out, p, k);
    out[k] = '\0';
    BIO_free(b);
    return out;
}

static int check_leaf_extensions(X509 *x, struct err *e)
{
    bool there, critical;
    TRY(extension(x, NID_basic_constraints, "BasicConstraints", &there, &critical, e));
    TRY(extension(x, NID_authority_key_identifier, "AuthorityKeyIdentifier", &there, &critical, e));
    if (!there)
        return err_set(e, RC_INVALID, "its extension AuthorityKeyIdentifier is missing (authorityKeyIdentifier = keyid:always)");
    TRY(extension(x, NID_subject_alt_name, "SubjectAltName", &there, &critical, e));
    if (!there)
        return err_set(e, RC_INVALID, "its extension SubjectAltName is missing; the common name is not looked at");
    TRY(check_extensions(x, e));
    if (X509_get_extension_flags(x) & EXFLAG_CA)
        return err_set(e, RC_INVALID, "it is an authority (CA:TRUE); a gateway needs a certificate of its own, signed by the authority");
    if (X509_get_key_usage(x) != UINT32_MAX && !(X509_get_key_usage(x) & KU_DIGITAL_SIGNATURE))
        return err_set(e, RC_INVALID, "its extension KeyUsage does not include digitalSignature, which TLS 1.3 needs");
    if (X509_get_extended_key_usage(x) != UINT32_MAX && !(X509_get_extended_key_usage(x) & XKU_SSL_SERVER))
        return err_set(e, RC_INVALID, "its extension ExtendedKeyUsage does not include serverAuth");
    return RC_OK;
}

/* Does this DNS name cover a host one label below `domain`? A wildcard stands for exactly one whole label. */
static bool covers(const char *name, size_t n, const char *domain)
{
    const char *dot = memchr(name, '.', n);
    if (!dot || dot == name)
        return false;
    struct slice rest = { dot + 1, n - (size_t)(dot + 1 - name) };
    size_t label = (size_t)(dot - name);
    return slice_eq_nocase(rest, domain) && ((label == 1 && name[0] == '*') || !memchr(name, '*', label));
}

static int check_names(X509 *x, const char *domain, struct err *e)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(x, NID_subject_alt_name, NULL, NULL);
    bool found = false;
    for (int i = 0; i < sk_GENERAL_NAME_num(names) && !found; i++) {
        const GENERAL_NAME *g = sk_GENERAL_NAME_value(names, i);
        if (g->type == GEN_DNS)
            found = covers((const char *)ASN1_STRING_get0_data(g->d.dNSName), (size_t)ASN1_STRING_length(g->d.dNSName), domain);
    }
    GENERAL_NAMES_free(names);
    ERR_clear_error();
    return found ? RC_OK
                 : err_set(e, RC_INVALID, "no DNS name of its SubjectAltName covers a host directly below %s; use *.%s, which stands for exactly one label", domain, domain);
}

/* OpenSSL's word on the whole: name constraints of the authority, and what else a TLS client would refuse. */
static int verify(X509 *leaf, X509 *ca, int64_t now_ms, struct err *e)
{
    X509_STORE *store = X509_STORE_new();
    X509_STORE_CTX *c = X509_STORE_CTX_new();
    int rc = RC_NOMEM, why = X509_V_OK;
    if (store && c && X509_STORE_add_cert(store, ca) == 1 && X509_STORE_CTX_init(c, store, leaf, NULL) == 1) {
        X509_VERIFY_PARAM *p = X509_STORE_CTX_get0_param(c);
        X509_VERIFY_PARAM_set_flags(p, X509_V_FLAG_PARTIAL_CHAIN);
        X509_VERIFY_PARAM_set_time(p, (time_t)(now_ms / 1000));
        X509_VERIFY_PARAM_set_purpose(p, X509_PURPOSE_SSL_SERVER);
        X509_VERIFY_PARAM_set_depth(p, 0);
        rc = X509_verify_cert(c) == 1 ? RC_OK : RC_INVALID;
        why = X509_STORE_CTX_get_error(c);
    }
    X509_STORE_CTX_free(c);
    X509_STORE_free(store);
    ERR_clear_error();
    return rc == RC_INVALID ? err_set(e, rc, "it does not verify against its authority: %s", X509_verify_cert_error_string(why))
                            : rc < 0 ? err_set(e, rc, "verify a certificate") : RC_OK;
}

/* Compares the leaf with one authority. RC_NOT_FOUND: it has another name or key than the issuer. */
static int check_issuer(X509 *leaf, X509 *ca, int64_t now_ms, struct err *e)
{
    const ASN1_OCTET_STRING *aki = X509_get0_authority_key_id(leaf), *ski = X509_get0_subject_key_id(ca);
    struct cert_info info;
    if (X509_NAME_cmp(X509_get_issuer_name(leaf), X509_get_subject_name(ca)) != 0)
        return RC_NOT_FOUND;
    if (!aki || !ski || ASN1_OCTET_STRING_cmp(aki, ski) != 0)
        return err_set(e, RC_NOT_FOUND, "its AuthorityKeyIdentifier is not the SubjectKeyIdentifier of the authority that it names as issuer; sign it with the registered "
                                        "authority, and use authorityKeyIdentifier = keyid:always");
    int ok = X509_verify(leaf, X509_get0_pubkey(ca));
    ERR_clear_error();
    if (ok != 1)
        return err_set(e, RC_INVALID, "its signature is not of the authority that it names as issuer: another key signed it, or it is damaged");
    int rc = check_times(ca, now_ms, &info, e);
    return rc < 0 ? err_wrap(e, rc, "its authority") : verify(leaf, ca, now_ms, e);
}

static int check_signed(X509 *leaf, const char *ca_pem, size_t ca_n, int64_t now_ms, struct err *e)
{
    struct block b;
    struct err why = { 0 };
    char name[NAME_TEXT_MAX];
    const char *p = ca_pem, *end = ca_pem + ca_n;
    int rc = RC_NOT_FOUND, n = 0;
    for (; rc == RC_NOT_FOUND && n < CERT_ANCHORS_MAX; n++, p = b.after) {
        AUTO_X509 ca = NULL;
        int got = next_block(p, (size_t)(end - p), &b, e);
        if (got == RC_NOT_FOUND)
            break;
        if (got == RC_OK)
            got = parse(&b, &ca, e);
        if (got < 0)
            return err_wrap(e, got, "the authority");
        rc = check_issuer(leaf, ca, now_ms, &why);
    }
    if (rc == RC_OK)
        return RC_OK;
    if (n == 0)
        return err_set(e, RC_INVALID, "there is no authority to compare it with");
    if (why.msg[0])
        return err_set(e, RC_INVALID, "%s", why.msg);
    return err_set(e, RC_INVALID, "it was issued by '%s', which is no registered authority; sign it directly with a registered one, intermediates are not accepted",
                   name_text(X509_get_issuer_name(leaf), name));
}

int cert_check_leaf_alone(X509 *leaf, int64_t now_ms, struct err *e)
{
    struct cert_info info;
    TRY(check_common(leaf, now_ms, &info, e));
    return check_leaf_extensions(leaf, e);
}

int cert_check_leaf(const char *pem, size_t n, const char *ca_pem, size_t ca_n, const char *domain, int64_t now_ms, struct cert_info *ret, struct err *e)
{
    AUTO_X509 x = NULL;
    struct block b;
    struct cert_info info = { 0 };
    if (!pem || is_blank(pem, n))
        return err_set(e, RC_INVALID, "it is empty; a certificate in PEM form is needed");
    if (n > CERT_CHAIN_PEM_MAX || ca_n > CERT_CHAIN_PEM_MAX)
        return err_set(e, RC_INVALID, "the file is larger than %lld bytes", (long long)CERT_CHAIN_PEM_MAX);
    int rc = next_block(pem, n, &b, e);
    if (rc < 0)
        return rc == RC_NOT_FOUND ? no_certificate(pem, n, e) : rc;
    TRY(parse(&b, &x, e));
    TRY(check_common(x, now_ms, &info, e));
    TRY(check_leaf_extensions(x, e));
    TRY(check_names(x, domain, e));
    TRY(check_signed(x, ca_pem ? ca_pem : "", ca_pem ? ca_n : 0, now_ms, e));
    *ret = info;
    return RC_OK;
}
