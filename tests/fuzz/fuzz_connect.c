/* What a client of the edge may send first: a request head, and the authority of a CONNECT in it. Properties: an accepted host is lower case, valid by its own
 * rule, the text of the authority but for its case, and the domain it belongs to is a part of it; source ranges that parse contain their own address. */
#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edge/host.h"
#include "edge/ranges.h"
#include "http/parse.h"

#define REQUIRE(c) do { if (!(c)) { fprintf(stderr, "property broken: %s (line %d)\n", #c, __LINE__); abort(); } } while (0)

static void try_authority(struct slice a)
{
    char host[HOST_MAX];
    uint16_t port = 0;
    if (host_parse(a, host, &port) != RC_OK)
        return;
    size_t n = strlen(host);
    REQUIRE(host_valid(host) && port > 0 && n > 0 && n < a.n && a.p[n] == ':');
    for (size_t i = 0; i < n; i++)
        REQUIRE(host[i] == (char)tolower((unsigned char)a.p[i]) && !isupper((unsigned char)host[i]));
    const char *domain = host_domain(host);
    REQUIRE(!domain || (domain > host && domain[-1] == '.' && *domain && !memchr(host, '.', (size_t)(domain - 1 - host))));
    char again[HOST_MAX + 8], second[HOST_MAX];
    uint16_t port2 = 0;
    snprintf(again, sizeof again, "%s:%u", host, port);
    REQUIRE(host_parse(slice_of(again), second, &port2) == RC_OK && strcmp(host, second) == 0 && port == port2);
}

static void try_range(const char *p, size_t n)
{
    char *text = str_ndup(p, n);
    struct ranges r = { 0 };
    if (ranges_parse(&text, 1, &r, NULL) == RC_OK) {
        struct net_addr a;
        char bare[128];
        size_t host = strcspn(text, "/");
        snprintf(bare, sizeof bare, strchr(text, ':') ? "[%.*s]:1" : "%.*s:1", (int)host, text);
        REQUIRE(net_addr_parse(bare, &a, NULL) == RC_OK && ranges_have(&r, &a));
        ranges_done(&r);
    }
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len)
{
    struct http_head h;
    size_t used = 0;
    const char *why = NULL;
    const char *p = (const char *)in;
    if (len > 65536)
        return 0;
    if (http_parse_request(p, len, 0, &h, &used, &why) == RC_OK && h.method == HTTP_CONNECT)
        try_authority(h.target);
    try_authority((struct slice){ p, len });
    if (len < 64)
        try_range(p, len);
    return 0;
}
