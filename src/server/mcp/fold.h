/* server/mcp/fold.h - what a server sends: JSON-RPC messages in a JSON body or in server-sent events. Incremental, pure; fuzzed (fuzz_mcp_client). */
#pragma once

#include "base/buf.h"
#include "base/err.h"
#include "http/sse.h"
#include "json/js.h"

#define FOLD_MESSAGE_MAX (16 * MIB)      /* one JSON-RPC message, or a JSON body */
#define FOLD_BATCH_MAX 100               /* messages of one batch (revision 2025-03-26) */
#define FOLD_EVENT_ID_MAX 1024

enum fold_kind { FOLD_RESULT, FOLD_ERROR, FOLD_REQUEST, FOLD_NOTICE };
struct fold_message {
    enum fold_kind kind;
    int64_t id;                          /* of a result or an error: ours; -1 when it is none of ours */
    const json_t *raw_id;                /* of a request: to be sent back as it is */
    const char *method;                  /* of a request or a notification */
    const json_t *body;                  /* "result" or "error" (an object), or "params" (may be NULL) */
};
struct fold_ops {
    void (*on_message)(void *ctx, const struct fold_message *m);
    void (*on_endpoint)(void *ctx, const char *path);        /* event "endpoint" of the transport of 2024-11-05; may be NULL */
};

struct fold {
    bool sse;
    struct sse_decoder *decoder;
    struct buf body;
    char event_id[FOLD_EVENT_ID_MAX];    /* of the last event that had one: where a broken stream is taken up again */
    int64_t retry_ms;                    /* what the server said last about when; -1 nothing */
    const struct fold_ops *ops;
    void *ctx;
    struct err *e;
};
void fold_init(struct fold *f, bool sse, const struct fold_ops *ops, void *ctx);
void fold_done(struct fold *f);          /* zeroed is fine */
/* RC_OK; RC_TOO_LARGE; RC_PROTO: not what the transport allows. Then nothing more may be fed. Messages that are not JSON-RPC inside valid JSON are skipped. */
MUST_CHECK int fold_feed(struct fold *f, const char *p, size_t n, struct err *e);
MUST_CHECK int fold_end(struct fold *f, struct err *e);      /* the body is whole */
