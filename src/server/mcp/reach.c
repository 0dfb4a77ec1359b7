/* reach.c - from what the guard says to the ways that libcurl goes. */
#include <string.h>

#include "base/str.h"
#include "server/mcp/private.h"
#include "tunnel/proto.h"

size_t reach_ways(const struct mcp *m, const struct guard_route *r, const char *ca, size_t first_edge, struct fetch_via ways[REACH_WAYS_MAX])
{
    const struct mcp_conf *c = &m->c;
    size_t n = 0;
    if (r->kind == GUARD_TUNNEL) {
        for (; n < c->n_edges && n < REACH_WAYS_MAX; n++)                    /* the one that worked last comes first */
            ways[n] = (struct fetch_via){ .proxy = c->edges[(first_edge + n) % c->n_edges], .proxy_ca_file = c->edge_ca_file, .proxy_cert_file = c->edge_cert_file,
                                          .proxy_key_file = c->edge_key_file, .proxy_note = PROTO_H_ERROR, .ca_pem = ca, .ca_pem_n = strlen(ca) };
        return n;
    }
    for (; n < r->n_addresses && n < REACH_WAYS_MAX; n++)
        ways[n] = (struct fetch_via){ .proxy = "", .address = r->addresses[n] };
    if (n == 0)
        ways[n++] = (struct fetch_via){ .proxy = c->proxy };
    return n;
}
