/* tls/leaf.h - the rules of tunnels.md 3.2 for the certificate of a tunnel's gateway, added to a client that somebody else drives (libcurl). Any thread. */
#pragma once

#include "base/attr.h"
#include "base/err.h"

/* `ssl_ctx`: an SSL_CTX of the same libssl, whose trust store holds exactly the tunnel's authorities. Connections made from it then demand, besides what
 * they verify anyway (time, names, purpose, signature): signed by an authority directly, a DNS subject alternative name, and all that cert_check_leaf_alone() asks. A
 * certificate that is refused fills `why`, which must outlive the handshakes; libcurl has no words for it inside a tunnel. */
MUST_CHECK int tls_leaf_rules(void *ssl_ctx, struct err *why);
/* Whether connections of this SSL_CTX are TLS 1.3 or nothing. */
bool tls_only_13(void *ssl_ctx);
