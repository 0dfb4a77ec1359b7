/* http/url.h - absolute http and https URLs as the client takes them, and the NO_PROXY rule. Pure. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "base/str.h"

#define URL_HOST_MAX 256                 /* with NUL; RFC 1035 allows 253 */
#define URL_MAX (16 * KIB)

struct http_url {
    bool tls;
    char host[URL_HOST_MAX];             /* lower case, without brackets */
    bool ipv6;                           /* a literal: brackets belong around it in Host and CONNECT */
    uint16_t port;
    struct slice target;                 /* "/path?query"; "/" when the URL has none. Points into the text parsed */
    struct slice userinfo;               /* proxies only; empty otherwise */
};
/* RC_INVALID with the reason: other schemes, no host, bad port, control characters, spaces, a fragment; user info unless `userinfo_ok`. */
MUST_CHECK int http_url_parse(const char *s, bool userinfo_ok, struct http_url *ret, struct err *e);
/* "host", "host:port", "[v6]:port": the port only when it is not the scheme's own. `always_port`: as CONNECT wants it. */
void http_url_authority(const struct http_url *u, bool always_port, char out[URL_HOST_MAX + 10]);
/* `list` as in NO_PROXY: comma or space separated "*", "example.com" (and everything under it), ".example.com", "10.0.0.0/8", "::1", each with
 * an optional ":port". NULL matches nothing. */
bool http_no_proxy(const char *list, const char *host, uint16_t port);
