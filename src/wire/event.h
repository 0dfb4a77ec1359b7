/* wire/event.h - how one log record is shown on the API. */
#pragma once

#include "base/attr.h"
#include "base/buf.h"
#include "base/clock.h"

/* `body` (JSON object text without processed_at) with "processed_at" added at the end: RFC 3339 or null (processed_ms < 0). Never re-encodes. */
int event_render(struct buf *out, const char *body, size_t n, int64_t processed_ms);
