#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "crypto/crypto.h"

struct sha256 { EVP_MD_CTX *md; };

/* libcrypto's digests fail only without memory or with a broken installation: nothing that a caller could handle. */
static void must(bool ok)
{
    if (!ok)
        abort();
}

void sha256(const void *p, size_t n, uint8_t out[SHA256_BYTES])
{
    must(EVP_Digest(p, n, out, NULL, EVP_sha256(), NULL) == 1);
}

void sha1(const void *p, size_t n, uint8_t out[SHA1_BYTES])
{
    must(EVP_Digest(p, n, out, NULL, EVP_sha1(), NULL) == 1);
}

void sha256_hex(const void *p, size_t n, char out[SHA256_HEX])
{
    uint8_t raw[SHA256_BYTES];
    sha256(p, n, raw);
    hex_encode(raw, sizeof raw, out);
}

struct sha256 *sha256_new(void)
{
    struct sha256 *h = malloc(sizeof *h);
    must(h != NULL);
    h->md = EVP_MD_CTX_new();
    must(h->md && EVP_DigestInit_ex(h->md, EVP_sha256(), NULL) == 1);
    return h;
}

void sha256_add(struct sha256 *h, const void *p, size_t n) { must(EVP_DigestUpdate(h->md, p, n) == 1); }

void sha256_end(struct sha256 *h, uint8_t out[SHA256_BYTES])
{
    must(EVP_DigestFinal_ex(h->md, out, NULL) == 1);
    EVP_MD_CTX_free(h->md);
    free(h);
}

void hmac_sha256(const void *key, size_t key_n, const void *p, size_t n, uint8_t out[SHA256_BYTES])
{
    must(key_n <= INT32_MAX && HMAC(EVP_sha256(), key_n ? key : "", (int)key_n, p, n, out, NULL) != NULL);
}

bool crypto_equal(const void *a, const void *b, size_t n) { return CRYPTO_memcmp(a, b, n) == 0; }

void hex_encode(const void *p, size_t n, char *out)
{
    static const char digit[] = "0123456789abcdef";
    const uint8_t *b = p;
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digit[b[i] >> 4];
        out[2 * i + 1] = digit[b[i] & 15];
    }
    out[2 * n] = '\0';
}
