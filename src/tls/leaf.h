/* tls/leaf.h - the rules of tunnels.md 3.2 for the certificate of a tunnel's gateway, added to a client that somebody else drives (libcurl). Any thread. */
#pragma once

#include "base/attr.h"
#include "base/rc.h"

/* `ssl_ctx`: an SSL_CTX of the same libssl, whose trust store holds exactly the tunnel's authorities. Connections made from it then demand, besides what
 * they verify anyway (time, names, purpose, signature): signed by an authority directly, a DNS subject alternative name, an authority key identifier. */
MUST_CHECK int tls_leaf_rules(void *ssl_ctx);
