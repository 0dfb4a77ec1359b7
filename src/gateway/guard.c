/* gateway/guard.c - see guard.h. Every address is compared as 16 bytes; IPv4 as ::ffff:a.b.c.d. */
#include "gateway/guard.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

#include "base/str.h"

#define V4_BITS 96              /* an IPv4 prefix of n bits is one of 96 + n */

struct range { uint8_t ip[16]; unsigned bits; };
struct ip_guard { bool off, own_list; struct range *range; size_t n; };

static const uint8_t v4_mapped[12] = { [10] = 0xff, [11] = 0xff };

static const char *const private_ranges[] = { "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7" };
/* Never opened by a wider entry: this host, "this network", neighbours of the link (and the metadata services there), groups, and the metadata services of
 * clouds that live inside ranges which are otherwise private or shared. */
static const char *const special_ranges[] = { "127.0.0.0/8", "::1/128", "0.0.0.0/8", "::/128", "169.254.0.0/16", "fe80::/10", "224.0.0.0/4", "ff00::/8",
                                              "255.255.255.255/32", "fd00:ec2::254/128", "fd20:ce::254/128", "100.100.100.200/32", "192.0.0.192/32" };

static int parse_range(const char *s, struct range *ret)
{
    char ip[INET6_ADDRSTRLEN];
    size_t n = strcspn(s, "/");
    int64_t bits = -1;
    struct range r = { .bits = 128 };
    if (n >= sizeof ip)
        return RC_INVALID;
    memcpy(ip, s, n);
    ip[n] = '\0';
    bool v6 = strchr(ip, ':') != NULL;
    if (s[n] && str_to_i64(s + n + 1, 0, v6 ? 128 : 32, &bits) < 0)
        return RC_INVALID;
    if (!v6)
        memcpy(r.ip, v4_mapped, sizeof v4_mapped);
    if (inet_pton(v6 ? AF_INET6 : AF_INET, ip, v6 ? r.ip : r.ip + 12) != 1)
        return RC_INVALID;
    if (bits >= 0)
        r.bits = (unsigned)bits + (v6 ? 0 : V4_BITS);
    *ret = r;
    return RC_OK;
}

static bool inside(const uint8_t ip[16], const struct range *r)
{
    size_t whole = r->bits / 8;
    unsigned rest = r->bits % 8;
    if (memcmp(ip, r->ip, whole) != 0)
        return false;
    return !rest || ((ip[whole] ^ r->ip[whole]) & (0xff00u >> rest & 0xffu)) == 0;
}

static bool in_special(const uint8_t ip[16], struct range *ret)
{
    for (size_t i = 0; i < COUNT_OF(special_ranges); i++)
        if (parse_range(special_ranges[i], ret) == RC_OK && inside(ip, ret))
            return true;
    return false;
}

int ip_guard_new(const struct conf_list *allowed, bool off, struct ip_guard **ret, struct err *e)
{
    AUTO_PTR(ip_guard) g = xcalloc(1, sizeof *g);
    g->off = off;
    g->own_list = allowed && allowed->n;
    size_t n = g->own_list ? allowed->n : COUNT_OF(private_ranges);
    g->range = xcalloc(n, sizeof *g->range);
    for (size_t i = 0; i < n; i++) {
        const char *text = g->own_list ? allowed->item[i] : private_ranges[i];
        if (parse_range(text, &g->range[i]) < 0)
            return err_set(e, RC_INVALID, "upstream.allowed_ips: '%.60s' is neither an address nor a range such as 10.1.0.0/16 or fd00::/8", text);
        g->n++;
    }
    *ret = TAKE(g);
    return RC_OK;
}

void ip_guard_free(struct ip_guard *g)
{
    if (!g)
        return;
    free(g->range);
    free(g);
}

static bool address_of(const struct net_addr *a, uint8_t ip[16])
{
    if (a->ss.ss_family == AF_INET) {
        memcpy(ip, v4_mapped, sizeof v4_mapped);
        memcpy(ip + 12, &((const struct sockaddr_in *)&a->ss)->sin_addr, 4);
        return true;
    }
    if (a->ss.ss_family != AF_INET6)
        return false;
    memcpy(ip, &((const struct sockaddr_in6 *)&a->ss)->sin6_addr, 16);
    return true;
}

static int refuse(const struct ip_guard *g, const uint8_t ip[16], struct err *e)
{
    char text[INET6_ADDRSTRLEN] = "?";
    bool v4 = memcmp(ip, v4_mapped, sizeof v4_mapped) == 0;
    (void)inet_ntop(v4 ? AF_INET : AF_INET6, v4 ? ip + 12 : ip, text, sizeof text);
    return err_set(e, RC_DENIED, "IP validation failed: %s is not %s", text, g->own_list ? "in upstream.allowed_ips" : "a private address");
}

int ip_guard_check(const struct ip_guard *g, const struct net_addr *a, struct err *e)
{
    uint8_t ip[16];
    struct range special = { .bits = 0 };
    if (g->off)
        return RC_OK;
    if (!address_of(a, ip))
        return err_set(e, RC_DENIED, "IP validation failed: this is not an IP address");
    bool is_special = in_special(ip, &special);
    for (size_t i = 0; i < g->n; i++)
        if (inside(ip, &g->range[i]) && (!is_special || (g->range[i].bits >= special.bits && inside(g->range[i].ip, &special))))
            return RC_OK;
    return refuse(g, ip, e);
}
