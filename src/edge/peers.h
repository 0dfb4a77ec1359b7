/* edge/peers.h - other edges: links to them, opened when a stream needs one and closed when idle, and the listener on which they hand streams over. A stream
 * that came from an edge is served by a gateway here or not at all. Loop thread only. */
#pragma once

#include "edge/ctx.h"

#define PEERS_MAX 256                    /* edges that links lead to */
#define PEER_CONNECT_MS 5000             /* until a link to an edge is ready */
#define PEER_IDLE_MS 60000               /* a link without streams is closed after this */
#define PEER_REST_MS 1000                /* after a failure nobody tries that edge again for so long */

struct peers *peers_new(struct edge *e);
void peers_free(struct peers *p);
void peers_input(struct guest *g);       /* of the door */
void peers_drain(struct peers *p);

struct peer_wait { struct list node; void (*done)(struct peer_wait *w, struct link *l); };
/* RC_OK with a usable link; RC_AGAIN: w->done says it later (NULL: no way to that edge), unless list_del(&w->node) comes first; RC_CLOSED: no way. */
MUST_CHECK int peers_get(struct peers *p, const char *address, struct peer_wait *w, struct link **ret);
