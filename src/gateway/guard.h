/* gateway/guard.h - which addresses the gateway dials for its routes (tunnels.md 4.3): RFC 1918 and ULA by default; `upstream.allowed_ips` replaces that.
 * Loopback, link-local, metadata, multicast and unspecified addresses are opened only by an entry that lies inside such a range: 0.0.0.0/0 does not open
 * them. An IPv4-mapped IPv6 address counts as its IPv4 address. Immutable after ip_guard_new(); any thread. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "conf/conf.h"
#include "net/net.h"

struct ip_guard;
/* `allowed`: CIDRs or single addresses, IPv4 or IPv6; empty: the default ranges. RC_INVALID names the entry. `off`: everything is allowed. */
MUST_CHECK int ip_guard_new(const struct conf_list *allowed, bool off, struct ip_guard **ret, struct err *e);
void ip_guard_free(struct ip_guard *g);
DEFINE_AUTO(ip_guard);
/* RC_OK, or RC_DENIED with "IP validation failed: <ip> is not a private address". */
int ip_guard_check(const struct ip_guard *g, const struct net_addr *a, struct err *e);
