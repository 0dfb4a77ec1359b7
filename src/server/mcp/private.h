/* server/mcp/private.h - shared by the files of the client: mcp.c (the whole, sessions' life), handshake.c (revisions, tools), exchange.c (one HTTP
 * request with its way there), call.c (tools/call). ev thread only. */
#pragma once

#include "base/list.h"
#include "server/mcp/fold.h"
#include "server/mcp/guard.h"
#include "server/mcp/mcp.h"

#define MCP_TOOLS_MAX 500                /* of one server */
#define MCP_PAGES_MAX 100                /* of tools/list */
#define MCP_TOOLS_BYTES_MAX (2 * MIB)    /* of all of a server's definitions as JSON */
#define MCP_SESSION_ID_MAX 512
#define MCP_VERSION_MAX 16
#define MCP_CONNECT_MS 10000             /* until a connection stands */
#define MCP_STEP_MS 30000                /* one request of the handshake or of listing */
#define MCP_FAREWELL_MS 5000             /* DELETE and notifications, for which nobody waits */
#define MCP_LINGER_MS 1000               /* a stream that has given its answer may end by itself, so that its connection is kept */
#define MCP_RESUMES_MAX 5                /* a broken stream is taken up again so often in a row without a new event */
#define MCP_RESUME_MS 500                /* how long it waits first, when the server has not said ("retry") */
#define MCP_RESUME_MOST_MS 60000         /* and at most, whatever the server says */
#define MCP_ROUNDS_MAX 10                /* a call is made again so often because the server wants its state back */
#define MCP_WHY_MAX 600

#define MCP_STATELESS "2026-07-28"       /* the newest revision, without sessions */
#define MCP_HANDSHAKE "2025-11-25"       /* the newest with initialize */
#define MCP_OLDEST "2024-11-05"          /* of the transport with two endpoints */

struct mcp {
    struct mcp_conf c;
    struct fetch *fetch;
    struct guard *guard;
    struct list sessions;
    size_t edge;                         /* the edge that worked last */
};

enum era { ERA_STATELESS, ERA_SESSION, ERA_TWO_ENDPOINTS };

/* ---- exchange.c: one HTTP request ---- */
enum reply_kind {
    REPLY_RESULT,                        /* body: "result" */
    REPLY_ERROR,                         /* body: JSON-RPC "error" */
    REPLY_HTTP,                          /* an answer without our JSON-RPC message: `status` */
    REPLY_FAILED,                        /* outcome, why */
};
struct reply {
    enum reply_kind kind;
    int status;
    json_t *body;                        /* borrowed */
    enum mcp_outcome outcome;
    const char *why;
    bool sent;                           /* the request may have been seen by the server */
    bool timed_out;
    const char *session_id;              /* header of the answer; "" none */
};
struct exchange;
struct exchange_conf {
    const char *http_method;             /* "POST", "GET", "DELETE" */
    const char *url;                     /* NULL: the session's */
    const char *method, *name;           /* of the JSON-RPC message, or NULL; for headers of the stateless revision */
    char *take_body;                     /* freed by the exchange */
    char *const *headers; size_t n_headers;      /* further ones, copied */
    int64_t id;                          /* of the JSON-RPC request; 0: no answer is expected */
    int64_t timeout_ms;                  /* all of it; 0: none */
    bool stream;                         /* GET of the transport with two endpoints: stays open */
    /* Once, from the loop; the exchange is over then and frees itself. NULL: nobody waits. */
    void (*cb)(void *ctx, const struct reply *r);
    void (*on_endpoint)(void *ctx, const char *path);
    void *ctx;
};
struct exchange *exchange_start(struct mcp_session *s, const struct exchange_conf *c);
/* One that has failed already: for a caller that must hear it from the loop. */
struct exchange *exchange_failed(struct mcp_session *s, void (*cb)(void *ctx, const struct reply *r), void *ctx, enum mcp_outcome o, const char *why);
void exchange_cancel(struct exchange *x);            /* no callback after; NULL is fine */
void exchange_cancel_all(struct mcp_session *s, bool waited_only);     /* waited_only: of which somebody wants the answer */
bool exchange_sent(const struct exchange *x);        /* something may have reached the server */
/* A message that came on the other stream (transport with two endpoints). */
void exchange_answer(struct mcp_session *s, const struct fold_message *m);
void exchange_stream_gone(struct mcp_session *s, const char *why);

/* ---- reach.c ---- */
#define REACH_WAYS_MAX 8
/* The ways that a route gives, in the order to try them: strings borrowed from the route, the configuration and `ca` (the route's, with NUL; or NULL). */
size_t reach_ways(const struct mcp *m, const struct guard_route *r, const char *ca, size_t first_edge, struct fetch_via ways[REACH_WAYS_MAX]);

/* ---- handshake.c ---- */
/* Makes the session ready to be used: revision and, where there is one, session id. Again after the server has forgotten it. */
void handshake_start(struct mcp_session *s, void (*cb)(struct mcp_session *s, enum mcp_outcome o, const char *why));
void handshake_tools(struct mcp_session *s, void (*cb)(struct mcp_session *s, enum mcp_outcome o, const char *why));

/* ---- mcp.c ---- */
struct mcp_session {
    struct mcp *m;
    struct list node;
    char *name, *url;
    char **vault_ids; size_t n_vaults;
    struct secret *bearer;               /* given, or found in a vault */
    bool given_bearer, bearer_known;     /* known: looked up, and there may be none */
    enum era era;
    char version[MCP_VERSION_MAX];       /* "" until one is agreed on */
    char session_id[MCP_SESSION_ID_MAX];
    char *endpoint;                      /* where messages are posted; ERA_TWO_ENDPOINTS */
    struct exchange *step, *stream;      /* of the handshake; the GET stream */
    int64_t last_id;
    bool redirected, dying, asked_twice; /* asked_twice: server/discover */
    unsigned generation;                 /* counts handshakes */
    json_t *tools, *seen_cursors;
    size_t tools_bytes, pages;
    void (*ready_cb)(struct mcp_session *s, enum mcp_outcome o, const char *why);
    void (*tools_cb)(struct mcp_session *s, enum mcp_outcome o, const char *why);
    void (*cb)(void *ctx, struct mcp_session *s, enum mcp_outcome o, const char *why);
    void *ctx;
    struct list exchanges, calls, waiting;           /* waiting: calls for the handshake that runs anew */
    bool renewing;
    struct ev_timer timer;               /* the farewell */
};
char *mcp_message(struct mcp_session *s, const char *method, json_t *take_params, int64_t id);    /* malloc'd text; id 0: a notification */
int64_t mcp_next_id(struct mcp_session *s);
void mcp_notify(struct mcp_session *s, const char *method, json_t *take_params);     /* nobody waits for it */
/* What a reply that is no result says, in words. */
void mcp_reply_text(const struct mcp_session *s, const struct reply *r, char out[MCP_WHY_MAX]);

/* ---- call.c ---- */
void call_waiting_go(struct mcp_session *s, enum mcp_outcome o, const char *why);    /* the new handshake is done */
void call_free_all(struct mcp_session *s);
