/* crypto/crypto.h - hashing and comparison over libcrypto. */
#pragma once

#include "base/attr.h"

#define SHA256_BYTES 32
#define SHA256_HEX (2 * SHA256_BYTES + 1)

struct sha256;                                          /* a running hash */
void sha256(const void *p, size_t n, uint8_t out[SHA256_BYTES]);
void sha256_hex(const void *p, size_t n, char out[SHA256_HEX]);
struct sha256 *sha256_new(void);                        /* aborts when out of memory */
void sha256_add(struct sha256 *h, const void *p, size_t n);
void sha256_end(struct sha256 *h, uint8_t out[SHA256_BYTES]);   /* frees `h` */
#define SHA1_BYTES 20
void sha1(const void *p, size_t n, uint8_t out[SHA1_BYTES]);   /* only where a protocol fixes it (RFC 6455 1.3); proves nothing about anybody */
void hmac_sha256(const void *key, size_t key_n, const void *p, size_t n, uint8_t out[SHA256_BYTES]);
bool crypto_equal(const void *a, const void *b, size_t n);      /* constant time */
void hex_encode(const void *p, size_t n, char *out);            /* 2n + NUL, lower case */
