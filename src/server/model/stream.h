/* server/model/stream.h - puts a streamed Messages API response together. Pure: bytes in, result out. Internal to server/model. */
#pragma once

#include "server/model/model.h"

#define STREAM_BLOCKS_MAX 1024               /* content blocks of one response */
#define STREAM_BYTES_MAX (32 * MIB)          /* all text of one response */

struct msg_stream;
struct msg_stream *msg_stream_new(void (*on_delta)(void *ctx, const struct model_delta *d), void *ctx);
void msg_stream_free(struct msg_stream *s);
/* RC_OK; RC_PROTO, RC_TOO_LARGE: give the request up. After an `error` event or message_stop nothing more is taken. */
MUST_CHECK int msg_stream_feed(struct msg_stream *s, const char *p, size_t n, struct err *e);
/* The outcome once the body has ended (`rc`, `e`: how the transport ended). *ret borrows from `s`. */
void msg_stream_result(struct msg_stream *s, int rc, const struct err *e, struct model_result *ret);
/* A non-2xx answer as an outcome (service.md 3.5, "Provider errors"). `text` keeps what *ret borrows. */
void msg_error_result(int status, int64_t retry_after_ms, const char *body, size_t n, struct buf *text, struct model_result *ret);
