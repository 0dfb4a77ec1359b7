/* The parts of the guard that look nothing up. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/str.h"
#include "server/mcp/guard.h"

static const struct { uint32_t net; int bits; const char *what; } v4[] = {
    { 0x00000000, 8, "of this network" },      { 0x0a000000, 8, "private" },          { 0x64400000, 10, "of a carrier's NAT" }, { 0x7f000000, 8, "loopback" },
    { 0xa9fe0000, 16, "link-local (where clouds serve metadata)" },                   { 0xac100000, 12, "private" },
    { 0xc0000000, 24, "reserved" },            { 0xc0000200, 24, "of documentation" }, { 0xc0586300, 24, "a 6to4 relay" },       { 0xc0a80000, 16, "private" },
    { 0xc6120000, 15, "of benchmarks" },       { 0xc6336400, 24, "of documentation" }, { 0xcb007100, 24, "of documentation" },  { 0xe0000000, 4, "multicast" },
    { 0xf0000000, 4, "reserved" },
    { 0xa83f8110, 32, "a cloud's metadata service" },      /* 168.63.129.16, public by its number */
};

static bool v4_public(uint32_t a, const char **ret_why)
{
    for (size_t i = 0; i < COUNT_OF(v4); i++) {
        uint32_t mask = 0xffffffffu << (32 - v4[i].bits);
        if ((a & mask) == v4[i].net) {
            *ret_why = v4[i].what;
            return false;
        }
    }
    return true;
}

static uint32_t be32(const uint8_t *p) { return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]; }

static bool v6_public(const uint8_t *p, const char **ret_why)
{
    static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff }, nat64[12] = { 0x00, 0x64, 0xff, 0x9b };
    if (memcmp(p, mapped, sizeof mapped) == 0 || memcmp(p, nat64, sizeof nat64) == 0)
        return v4_public(be32(p + 12), ret_why);
    if (p[0] == 0x20 && p[1] == 0x02)                        /* 6to4 */
        return v4_public(be32(p + 2), ret_why);
    const char *why = NULL;
    if ((p[0] & 0xe0) != 0x20)                               /* only 2000::/3 is given out */
        why = p[0] == 0xff ? "multicast" : (p[0] & 0xfe) == 0xfc ? "private" : p[0] == 0xfe && (p[1] & 0xc0) == 0x80 ? "link-local"
            : p[0] == 0xfe && (p[1] & 0xc0) == 0xc0 ? "private" : be32(p) == 0 && be32(p + 4) == 0 && be32(p + 8) == 0 && be32(p + 12) == 1 ? "loopback" : "reserved";
    else if (p[0] == 0x20 && p[1] == 0x01 && (p[2] & 0xfe) == 0)         /* 2001::/23: Teredo, ORCHID, benchmarks */
        why = p[2] == 0 && p[3] == 0 ? "of Teredo" : "reserved";
    else if (be32(p) == 0x20010db8 || (be32(p) & 0xfffff000) == 0x3fff0000)
        why = "of documentation";
    if (why)
        *ret_why = why;
    return !why;
}

bool guard_address_public(const struct sockaddr *a, const char **ret_why)
{
    if (a->sa_family == AF_INET) {
        struct sockaddr_in in;
        memcpy(&in, a, sizeof in);
        return v4_public(ntohl(in.sin_addr.s_addr), ret_why);
    }
    if (a->sa_family == AF_INET6) {
        struct sockaddr_in6 in;
        memcpy(&in, a, sizeof in);
        return v6_public(in.sin6_addr.s6_addr, ret_why);
    }
    *ret_why = "of no known family";
    return false;
}

/* `host` lies below `domain`. */
static bool below(const char *host, const char *domain)
{
    size_t h = strlen(host), d = strlen(domain);
    return d > 0 && h > d + 1 && host[h - d - 1] == '.' && strcasecmp(host + h - d, domain) == 0;
}

bool guard_host_matches(const char *const *list, size_t n, const char *host)
{
    for (size_t i = 0; i < n; i++) {
        if (str_eq(list[i], "*") || strcasecmp(list[i], host) == 0)
            return true;
        if (str_prefix(list[i], "*.") && below(host, list[i] + 2))
            return true;
    }
    return false;
}

bool guard_is_private_ok(const char *const *list, size_t n, const struct http_url *u)
{
    char own[URL_HOST_MAX + 10];
    http_url_authority(u, true, own);
    for (size_t i = 0; i < n; i++)
        if (strcasecmp(list[i], own) == 0)
            return true;
    return false;
}

int guard_classify(const struct guard_rules *r, const char *url, struct http_url *u, enum guard_kind *ret, const char **ret_domain, struct err *e)
{
    TRY(http_url_parse(url, false, u, e));
    size_t n = strlen(u->host);
    if (n == 0 || u->host[n - 1] == '.')                     /* another spelling of a name, which no list would know */
        return err_set(e, RC_INVALID, "the host name '%s' ends in a dot", u->host);
    if (r->tunnel_domain && r->tunnel_domain[0] && (strcasecmp(u->host, r->tunnel_domain) == 0 || below(u->host, r->tunnel_domain))) {
        if (!u->tls || u->port != 443)
            return err_set(e, RC_DENIED, "tunnels are reached by https on port 443 only");
        const char *dot = strchr(u->host, '.');
        if (!dot || !below(dot + 1, r->tunnel_domain))
            return err_set(e, RC_DENIED, "'%s' names no route of a tunnel: <route>.<tunnel domain> is needed", u->host);
        *ret = GUARD_TUNNEL;
        *ret_domain = dot + 1;
        return RC_OK;
    }
    if (guard_is_private_ok(r->private_ok, r->n_private_ok, u)) {
        *ret = GUARD_PRIVATE;
        return RC_OK;
    }
    if (!u->tls)
        return err_set(e, RC_DENIED, "the URL must begin with https:// (or its host and port stand in mcp.private-ok)");
    if (r->n_allow == 0)
        return err_set(e, RC_DENIED, "this server calls no public MCP servers: the setting mcp.allow is empty; add '%s' to it, or reach the server through a tunnel", u->host);
    if (!guard_host_matches(r->allow, r->n_allow, u->host))
        return err_set(e, RC_DENIED, "the host '%s' is not in the setting mcp.allow of this server", u->host);
    *ret = GUARD_PUBLIC;
    return RC_OK;
}
