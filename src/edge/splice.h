/* edge/splice.h - a stream that another edge handed over, relayed to a gateway's link here. Loop thread only. */
#pragma once

#include "edge/ctx.h"

/* In the on_open of a peer's link: takes the stream over. */
void splice_start(struct edge *e, struct link_stream *s, const struct link_open *o);
void splices_end(struct edge *e);
