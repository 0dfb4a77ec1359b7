/* Certificates as somebody registers them. Properties: only RC_OK or RC_INVALID with a text; what is accepted is small, is valid at the time, has a
 * fingerprint of 64 hex digits, gives the same answer again, and no longer passes with a second copy, a key or a word behind it. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tls/cert.h"

#define REQUIRE(c) do { if (!(c)) { fprintf(stderr, "property broken: %s (line %d)\n", #c, __LINE__); abort(); } } while (0)
#define NOW INT64_C(1800000000000)       /* the corpus is valid then */
#define DOMAIN "a1b2c3d4.tunnel.example.com"

static void refuse(const uint8_t *in, size_t len, const char *tail, size_t n)
{
    struct cert_info i;
    struct err e = { 0 };
    char *p = malloc(len + n);
    memcpy(p, in, len);
    memcpy(p + len, tail, n);
    REQUIRE(cert_check_ca(p, len + n, NOW, &i, &e) == RC_INVALID);
    free(p);
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len)
{
    struct cert_info a, b;
    struct err e = { 0 };
    const char *p = (const char *)in;
    int rc = cert_check_ca(p, len, NOW, &a, &e);
    REQUIRE(rc == RC_OK || (rc == RC_INVALID && e.msg[0]));
    if (rc == RC_OK) {
        REQUIRE(len <= CERT_PEM_MAX && a.not_before_ms <= NOW && NOW <= a.not_after_ms);
        REQUIRE(strlen(a.fingerprint) == 64 && strspn(a.fingerprint, "0123456789abcdef") == 64);
        REQUIRE(cert_check_ca(p, len, NOW, &b, &e) == RC_OK && memcmp(&a, &b, sizeof a) == 0);
        REQUIRE(cert_check_ca(p, len, a.not_after_ms + 1000, &b, &e) == RC_INVALID);
        refuse(in, len, "x", 1);
        refuse(in, len, p, len);
        refuse(in, len, "-----BEGIN PRIVATE KEY-----\n", 28);
    }
    /* The corpus has leaf and authority in one text: the first is the leaf, both are offered as authorities. */
    e.msg[0] = 0;
    rc = cert_check_leaf(p, len, p, len, DOMAIN, NOW, &a, &e);
    REQUIRE(rc == RC_OK || (rc == RC_INVALID && e.msg[0]));
    REQUIRE(rc != RC_OK || cert_check_leaf(p, len, p, len, "other." DOMAIN, NOW, &b, &e) == RC_INVALID);
    return 0;
}
