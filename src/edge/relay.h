/* edge/relay.h - a client's connection and a stream: bytes of both directions, unread and unchanged. Loop thread only. */
#pragma once

#include "edge/ctx.h"

#define RELAY_TURN (256 * KIB)           /* bytes of one direction before other connections have their turn */
#define RELAY_HALF_MS 300000             /* one side has ended and the other says nothing for so long: it is over */

/* Takes the connection and the answered stream over. `pre`: what the client gets before the first byte of the stream, or NULL. Ends by itself. */
void relay_start(struct edge *e, struct guest_gift *gift, struct link_stream *s, const char *host, const char *client, const char *pre);
void relays_end(struct edge *e);         /* all, at once */
