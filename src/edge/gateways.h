/* edge/gateways.h - the tunnels that have a gateway here, and their links. Loop thread only. */
#pragma once

#include "edge/ctx.h"

#define CONNECTOR_ID_MAX 65              /* with NUL */
#define CONNECTOR_VERSION_MAX 65

struct gateways *gateways_new(struct edge *e);
void gateways_free(struct gateways *g);
void gateways_input(struct guest *g);                /* of the door */
void gateways_drain(struct gateways *g);             /* GOAWAY to all */
size_t gateways_links(const struct gateways *g);
size_t gateways_streams(const struct gateways *g);           /* of all links, health checks included */
size_t gateways_tunnels(const struct gateways *g);
void gateways_state(struct gateways *g, const char *tunnel_id, enum tunnel_state s);       /* as the server says: archived cuts */
json_t *gateways_connectors(const struct gateways *g);       /* for the heartbeat; new reference */

/* Opens a stream for a host on the best link that is not among `tried` (numbers of links): the fewest bytes waiting, then the fewest streams.
 * RC_OK; RC_NOT_FOUND: no such tunnel or no (further) usable link here; RC_LIMIT: the tunnel's streams; RC_PRECONDITION: it has no certificate; RC_DENIED: archived. */
MUST_CHECK int gateways_open(struct gateways *g, const char *host, const struct link_open *o, const uint64_t *tried, size_t n_tried, const struct link_stream_ops *ops,
                             void *ctx, struct link_stream **ret, uint64_t *ret_number);
