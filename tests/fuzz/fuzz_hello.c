/* ClientHello to server name. Properties: the answer for a part of the input is RC_AGAIN or the final one; the same message in other records has the same
 * name; a name is a lower-case host name. Input: 1 byte for the sizes, then the bytes of a client. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rc.h"
#include "tunnel/hello.h"

#define REQUIRE(c) do { if (!(c)) { fprintf(stderr, "property broken: %s (line %d)\n", #c, __LINE__); abort(); } } while (0)

static int parse(const uint8_t *p, size_t n, char name[HELLO_NAME_MAX])
{
    uint8_t *copy = malloc(n ? n : 1);
    if (n)
        memcpy(copy, p, n);
    int rc = hello_name(copy, n, name);
    free(copy);
    return rc;
}

/* The bodies of the leading handshake records in records of `size` bytes. */
static size_t again(const uint8_t *p, size_t n, size_t size, uint8_t *out, size_t cap)
{
    static uint8_t body[1 << 16];
    size_t have = 0, w = 0;
    for (size_t at = 0; at + 5 <= n && p[at] == 22;) {
        size_t len = (size_t)p[at + 3] << 8 | p[at + 4], part = len < n - at - 5 ? len : n - at - 5;
        part = part < sizeof body - have ? part : sizeof body - have;
        memcpy(body + have, p + at + 5, part);
        have += part;
        at += 5 + len;
    }
    for (size_t at = 0; at < have; at += size) {
        size_t part = have - at < size ? have - at : size;
        if (w + 5 + part > cap)
            return 0;
        const uint8_t head[5] = { 22, 3, 3, (uint8_t)(part >> 8), (uint8_t)part };
        memcpy(out + w, head, 5);
        memcpy(out + w + 5, body + at, part);
        w += 5 + part;
    }
    return w;
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len)
{
    if (len < 1 || len > 60000)
        return 0;
    const uint8_t *p = in + 1;
    size_t n = len - 1;
    char name[HELLO_NAME_MAX] = "untouched", other[HELLO_NAME_MAX];
    int rc = parse(p, n, name);
    REQUIRE(rc == RC_OK || rc == RC_AGAIN || rc == RC_INVALID || rc == RC_TOO_LARGE);
    REQUIRE(rc == RC_OK || strcmp(name, "untouched") == 0);
    for (size_t k = 0; k < n; k += in[0] % 37 + 1) {
        int part = parse(p, k, other);
        REQUIRE(part == RC_AGAIN || part == rc);
        REQUIRE(part != RC_OK || strcmp(name, other) == 0);
    }
    if (rc != RC_OK)
        return 0;
    for (const char *c = name; *c; c++)
        REQUIRE((*c >= 'a' && *c <= 'z') || (*c >= '0' && *c <= '9') || *c == '-' || *c == '_' || *c == '.');
    static uint8_t r[1 << 18];
    size_t m = again(p, n, (size_t)in[0] + 1, r, sizeof r);
    int rc2 = parse(r, m, other);
    REQUIRE(rc2 == RC_OK || rc2 == RC_TOO_LARGE);
    REQUIRE(rc2 != RC_OK || strcmp(name, other) == 0);
    return 0;
}
