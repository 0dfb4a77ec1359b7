/* edge/ranges.c - see ranges.h */
#include "edge/ranges.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

#include "base/str.h"

static const uint8_t v4_prefix[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff };

/* Bits of the host part must be zero: "10.1.2.3/8" is more likely a slip than a wish. */
static bool host_bits_clear(const struct range *r)
{
    for (unsigned i = r->bits; i < 128; i++)
        if (r->addr[i / 8] & (0x80u >> (i % 8)))
            return false;
    return true;
}

static int parse_one(const char *s, struct range *ret, struct err *e)
{
    char host[INET6_ADDRSTRLEN];
    const char *slash = strchr(s, '/');
    size_t n = slash ? (size_t)(slash - s) : strlen(s);
    struct range r = { 0 };
    int64_t bits = -1;
    if (n == 0 || n >= sizeof host)
        return err_set(e, RC_INVALID, "\"%s\" is no address range", s);
    memcpy(host, s, n);
    host[n] = '\0';
    bool v4 = inet_pton(AF_INET, host, r.addr + 12) == 1;
    if (v4)
        memcpy(r.addr, v4_prefix, sizeof v4_prefix);
    else if (inet_pton(AF_INET6, host, r.addr) != 1)
        return err_set(e, RC_INVALID, "\"%s\" is no address range: write 10.0.0.0/8, 2001:db8::/32 or one address", s);
    int64_t most = v4 ? 32 : 128;
    if (slash && str_to_i64(slash + 1, 0, most, &bits) < 0)
        return err_set(e, RC_INVALID, "\"%s\": the number behind the slash lies in 0..%lld", s, (long long)most);
    if (bits < 0)
        bits = most;
    r.bits = (uint8_t)(v4 ? bits + 96 : bits);
    if (!host_bits_clear(&r))
        return err_set(e, RC_INVALID, "\"%s\": the address has bits set behind the first %lld; name the range by its first address", s, (long long)bits);
    *ret = r;
    return RC_OK;
}

int ranges_parse(char *const *text, size_t n, struct ranges *ret, struct err *e)
{
    if (n > RANGES_MAX)
        return err_set(e, RC_INVALID, "at most %d address ranges", RANGES_MAX);
    struct ranges r = { .v = xcalloc(n ? n : 1, sizeof *r.v), .n = n };
    for (size_t i = 0; i < n; i++) {
        int rc = parse_one(text[i], &r.v[i], e);
        if (rc < 0) {
            ranges_done(&r);
            return rc;
        }
    }
    *ret = r;
    return RC_OK;
}

void ranges_done(struct ranges *r)
{
    free(r->v);
    *r = (struct ranges){ 0 };
}

bool range_key(const struct net_addr *a, uint8_t out[16])
{
    if (a->ss.ss_family == AF_INET) {
        memcpy(out, v4_prefix, sizeof v4_prefix);
        memcpy(out + 12, &((const struct sockaddr_in *)&a->ss)->sin_addr, 4);
        return true;
    }
    if (a->ss.ss_family != AF_INET6)
        return false;
    memcpy(out, &((const struct sockaddr_in6 *)&a->ss)->sin6_addr, 16);
    return true;
}

bool ranges_have(const struct ranges *r, const struct net_addr *a)
{
    uint8_t key[16];
    if (!range_key(a, key))
        return false;
    for (size_t i = 0; i < r->n; i++) {
        unsigned whole = r->v[i].bits / 8, rest = r->v[i].bits % 8;
        uint8_t mask = (uint8_t)(0xff00u >> rest);
        if (memcmp(key, r->v[i].addr, whole) == 0 && (rest == 0 || (key[whole] & mask) == (r->v[i].addr[whole] & mask)))
            return true;
    }
    return false;
}
