/* edge/ranges.h - source address ranges of listeners: "10.0.0.0/8", "2001:db8::/32", "192.0.2.7". Pure. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "net/net.h"

struct range { uint8_t addr[16]; uint8_t bits; };     /* IPv4 as ::ffff:a.b.c.d, bits counted from there: 96..128 */
struct ranges { struct range *v; size_t n; };

#define RANGES_MAX 1024
/* RC_INVALID names the wrong one. `ret` is zero or holds what ranges_done() frees. */
MUST_CHECK int ranges_parse(char *const *text, size_t n, struct ranges *ret, struct err *e);
void ranges_done(struct ranges *r);
bool ranges_have(const struct ranges *r, const struct net_addr *a);      /* no range at all: false; a Unix socket: false */
/* The 16 bytes of an address as above; false for another family. */
bool range_key(const struct net_addr *a, uint8_t out[16]);
