/* edge/pass.h - what is being relayed (tunnel/relay.h): counted, logged when it ends. Loop thread only. */
#pragma once

#include "edge/ctx.h"
#include "tunnel/relay.h"

/* Takes both ends over: `from` is the client's side, a socket with its seat or a stream of another edge (seat empty); `to` has answered 200. Ends by itself. */
void pass_start(struct edge *e, const struct relay_end *from, struct seat *seat, struct link_stream *to, const char *host, const char *client);
void passes_end(struct edge *e);         /* all, at once */
void passes_count(struct edge *e);       /* brings the byte counters up to now: they are also asked for in the middle of a long stream */
