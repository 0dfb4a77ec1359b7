/* edge/host.h - host names as clients ask for them. Pure. */
#pragma once

#include "base/attr.h"
#include "base/str.h"

#define HOST_MAX 254                 /* with NUL */
/* "Name.Example:443" of a CONNECT: the host in lower case and the port. RC_INVALID: no host name (an address is none), no port. */
MUST_CHECK int host_parse(struct slice authority, char ret[HOST_MAX], uint16_t *ret_port);
/* Lower-case letters, digits, dashes, underscores; labels of 1 to 63; at most 253 altogether; not a number at the end (that is an address). */
bool host_valid(const char *host);
/* The domain of the tunnel that a host belongs to: what stands behind the first label (tunnels.md 4.2: one label, `a.b.<domain>` is not of <domain>).
 * NULL: there is nothing behind it. */
const char *host_domain(const char *host);
