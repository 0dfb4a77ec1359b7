/* http/sse.h - server-sent events: frame encoder and incremental decoder (WHATWG "event stream"). */
#pragma once

#include "base/attr.h"
#include "base/buf.h"
#include "base/str.h"

#define SSE_EVENT_MAX (40 * MIB)     /* one frame taken from a peer */

/* "id: <id>\nevent: <name>\ndata: <json>\n\n"; id may be NULL. `data` must be one line. */
int sse_write(struct buf *out, const char *id, const char *event, const char *data, size_t n);

struct sse_event { const char *event; const char *id; const char *data; size_t data_n; };   /* event "" when none; borrowed */
struct sse_decoder;
struct sse_decoder *sse_decoder_new(size_t event_max);
void sse_decoder_free(struct sse_decoder *d);
/* The last valid "retry" of the stream: how long its reader is to wait before it connects again, in ms; -1: none. */
int64_t sse_retry_ms(const struct sse_decoder *d);
/* Feeds bytes; `cb` runs for each complete frame that has data. RC_OK; RC_TOO_LARGE: a frame over event_max (the stream must be dropped);
 * or the negative code that cb returned (feeding stops). LF, CRLF and CR end lines; a leading BOM and comments are skipped. */
MUST_CHECK int sse_feed(struct sse_decoder *d, const char *p, size_t n, int (*cb)(void *ctx, const struct sse_event *ev), void *ctx);
