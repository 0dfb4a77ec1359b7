/* edge/splice.h - a stream that another edge hands over: a gateway's link here takes it, or nobody. Loop thread only. */
#pragma once

#include "edge/ctx.h"

/* In the on_open of a peer's link: takes the stream over. */
void splice_start(struct edge *e, struct link_stream *s, const struct link_open *o);
void splices_end(struct edge *e);        /* those that wait for their gateway */
