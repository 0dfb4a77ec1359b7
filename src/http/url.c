/* http/url.c - see url.h */
#include "http/url.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#define HTTP_PORT 80
#define HTTPS_PORT 443

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

static bool host_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
}

static int take_host(struct slice in, bool bracketed, struct http_url *u, struct err *e)
{
    if (in.n == 0 || in.n >= URL_HOST_MAX)
        return err_set(e, RC_INVALID, "the URL has %s host name", in.n ? "too long a" : "no");
    for (size_t i = 0; i < in.n; i++)
        u->host[i] = lower(in.p[i]);
    u->host[in.n] = 0;
    u->ipv6 = bracketed;
    if (bracketed) {
        struct in6_addr a;
        return inet_pton(AF_INET6, u->host, &a) == 1 ? RC_OK : err_set(e, RC_INVALID, "[%s] is no IPv6 address", u->host);
    }
    for (size_t i = 0; i < in.n; i++)
        if (!host_char(u->host[i]))
            return err_set(e, RC_INVALID, "the URL's host name has a character that is not allowed");
    return RC_OK;
}

static int take_authority(struct slice a, bool userinfo_ok, struct http_url *u, struct err *e)
{
    const char *at = memrchr(a.p, '@', a.n);
    if (at) {
        if (!userinfo_ok)
            return err_set(e, RC_INVALID, "the URL must not hold a user name or password");
        u->userinfo = (struct slice){ a.p, (size_t)(at - a.p) };
        a = (struct slice){ at + 1, a.n - u->userinfo.n - 1 };
    }
    struct slice host = a, port = { NULL, 0 };
    bool bracketed = a.n && a.p[0] == '[';
    if (bracketed) {
        const char *end = memchr(a.p, ']', a.n);
        if (!end)
            return err_set(e, RC_INVALID, "the URL's host begins with [ but has no ]");
        host = (struct slice){ a.p + 1, (size_t)(end - a.p) - 1 };
        size_t rest = a.n - host.n - 2;
        if (rest && end[1] != ':')
            return err_set(e, RC_INVALID, "unexpected text after ] in the URL");
        if (rest)
            port = (struct slice){ end + 2, rest - 1 };
    } else {
        const char *colon = memchr(a.p, ':', a.n);
        if (colon) {
            host.n = (size_t)(colon - a.p);
            port = (struct slice){ colon + 1, a.n - host.n - 1 };
        }
    }
    if (port.p) {
        int64_t v = 0;
        if (slice_to_i64(port, 1, 65535, &v) < 0)
            return err_set(e, RC_INVALID, "the URL's port must be a number from 1 to 65535");
        u->port = (uint16_t)v;
    }
    return take_host(host, bracketed, u, e);
}

int http_url_parse(const char *s, bool userinfo_ok, struct http_url *ret, struct err *e)
{
    struct http_url u = { 0 };
    size_t n = s ? strlen(s) : 0;
    if (n == 0 || n > URL_MAX)
        return err_set(e, RC_INVALID, "the URL is %s", n ? "too long" : "empty");
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] <= ' ' || (unsigned char)s[i] == 127 || s[i] == '#')
            return err_set(e, RC_INVALID, "the URL holds a space, a control character or a fragment");
    if (strncasecmp(s, "https://", 8) == 0)
        u.tls = true;
    else if (strncasecmp(s, "http://", 7) != 0)
        return err_set(e, RC_INVALID, "the URL must begin with http:// or https://");
    const char *a = s + (u.tls ? 8 : 7);
    size_t an = strcspn(a, "/?");
    u.port = u.tls ? HTTPS_PORT : HTTP_PORT;
    TRY(take_authority((struct slice){ a, an }, userinfo_ok, &u, e));
    u.target = a[an] == 0 ? SLICE("/") : slice_of(a + an);
    if (u.target.p[0] == '?')
        return err_set(e, RC_INVALID, "the URL needs a / before the ?");
    *ret = u;
    return RC_OK;
}

void http_url_authority(const struct http_url *u, bool always_port, char out[URL_HOST_MAX + 10])
{
    const char *l = u->ipv6 ? "[" : "", *r = u->ipv6 ? "]" : "";
    if (always_port || u->port != (u->tls ? HTTPS_PORT : HTTP_PORT))
        (void)snprintf(out, URL_HOST_MAX + 10, "%s%s%s:%u", l, u->host, r, u->port);
    else
        (void)snprintf(out, URL_HOST_MAX + 10, "%s%s%s", l, u->host, r);
}

/* `net` "10.0.0.0/8" or "fd00::/8" against the literal `host`. */
static bool cidr_matches(const char *net, size_t net_n, const char *host)
{
    char addr[INET6_ADDRSTRLEN + 1];
    const char *slash = memchr(net, '/', net_n);
    size_t n = slash ? (size_t)(slash - net) : net_n;
    if (n >= sizeof addr)
        return false;
    memcpy(addr, net, n);
    addr[n] = 0;
    int family = memchr(addr, ':', n) ? AF_INET6 : AF_INET;
    uint8_t a[16], b[16];
    int64_t bits = family == AF_INET ? 32 : 128;
    if (inet_pton(family, addr, a) != 1 || inet_pton(family, host, b) != 1)
        return false;
    if (slash && slice_to_i64((struct slice){ slash + 1, net_n - n - 1 }, 0, bits, &bits) < 0)
        return false;
    size_t whole = (size_t)bits / 8;
    if (memcmp(a, b, whole) != 0)
        return false;
    unsigned rest = (unsigned)bits % 8;
    return rest == 0 || ((a[whole] ^ b[whole]) >> (8 - rest)) == 0;
}

static bool entry_matches(struct slice it, const char *host, uint16_t port)
{
    if (it.n == 1 && it.p[0] == '*')
        return true;
    if (it.n && it.p[0] == '[') {                                    /* "[::1]" or "[::1]:443" */
        const char *end = memchr(it.p, ']', it.n);
        if (!end)
            return false;
        size_t rest = it.n - (size_t)(end - it.p) - 1;
        int64_t want = port;
        if (rest && (end[1] != ':' || slice_to_i64((struct slice){ end + 2, rest - 1 }, 1, 65535, &want) < 0))
            return false;
        return want == port && cidr_matches(it.p + 1, (size_t)(end - it.p) - 1, host);
    }
    const char *colon = memchr(it.p, ':', it.n);
    if (colon && !memchr(colon + 1, ':', it.n - (size_t)(colon - it.p) - 1)) {   /* one colon: a port, not IPv6 */
        int64_t want = 0;
        if (slice_to_i64((struct slice){ colon + 1, it.n - (size_t)(colon - it.p) - 1 }, 1, 65535, &want) < 0 || want != port)
            return false;
        it.n = (size_t)(colon - it.p);
    }
    if (cidr_matches(it.p, it.n, host))
        return true;
    while (it.n && it.p[0] == '.')
        it = (struct slice){ it.p + 1, it.n - 1 };
    size_t hn = strlen(host);
    if (it.n == 0 || hn < it.n || strncasecmp(host + hn - it.n, it.p, it.n) != 0)
        return false;
    return hn == it.n || host[hn - it.n - 1] == '.';
}

bool http_no_proxy(const char *list, const char *host, uint16_t port)
{
    for (const char *p = list; p && *p;) {
        size_t n = strcspn(p, ", \t");
        if (n && entry_matches((struct slice){ p, n }, host, port))
            return true;
        p += n;
        p += strspn(p, ", \t");
    }
    return false;
}
