/* gateway/carrier_link.h - a stream of a link as a carrier. */
#pragma once

#include "gateway/carrier.h"
#include "tunnel/link.h"

/* Attaches `s` (in on_open) and accepts it; the front takes the rest. */
void carrier_link_accept(struct front *f, struct link_stream *s, const struct link_open *o);
