/* server/messages/messages.h - POST /v1/messages and /v1/messages/count_tokens: this server as a gateway to the configured model provider, with the MCP servers
 * of a request called by us (tunnels.md 6.1, api.md 15). docs/messages.md says what a client sees.
 *
 * Threads: messages_start() on a job thread (it reads and checks the request); everything else on the loop thread, callbacks too. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "ev/ev.h"
#include "http/server.h"
#include "server/mcp/mcp.h"
#include "server/model/model.h"

#define MESSAGES_MAX 4096                    /* requests at once; over it 503 with retry-after */
#define MESSAGES_BYTES_MAX (512 * MIB)       /* request bodies held by them all */
#define MESSAGES_QUEUE_MARK (256 * KIB)      /* queued for a slow reader: over it the provider is not read */

struct messages;
struct messages_conf {
    struct ev *ev;
    struct model_registry *models;
    struct mcp *mcp;                         /* NULL: requests with mcp_servers are refused */
    int64_t mcp_timeout_ms;                  /* one call of a tool */
};
MUST_CHECK int messages_new(const struct messages_conf *c, struct messages **ret, struct err *e);
void messages_free(struct messages *m);      /* after the HTTP server: what still runs is cancelled and answered into nothing */
size_t messages_running(const struct messages *m);

/* An answer that is not streamed. */
struct messages_answer {
    int rc;                                  /* < 0: refused, `e` says why and `error_type` (or NULL) overrides the type of the code */
    const struct err *e;
    const char *error_type;
    /* rc RC_OK: */
    int status;
    const char *content_type, *headers;      /* headers: complete lines, or NULL; borrowed */
    struct buf *body;                        /* to be moved out */
};
struct messages_request {
    struct http_req *req;                    /* its body is taken out */
    bool count;                              /* count_tokens */
    const char *request_id;                  /* ours; borrowed until a callback */
    const char *headers;                     /* further header lines of a streamed answer; borrowed likewise */
    void (*answer)(void *ctx, const struct messages_answer *a);      /* the request is to be answered with this ... */
    void (*streamed)(void *ctx);             /* ... or has been answered by a stream. One of the two, once */
    void *ctx;
};
/* RC_OK: taken over. Otherwise refused, `req` is still the caller's: RC_INVALID, RC_NOT_FOUND (model), RC_UNSUPPORTED; *ret_error_type as in the answer. */
MUST_CHECK int messages_start(struct messages *m, const struct messages_request *r, const char **ret_error_type, struct err *e);
