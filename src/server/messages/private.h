/* server/messages/private.h - what the files of this folder share. Loop thread, except request.c and history.c, which are pure. */
#pragma once

#include "base/list.h"
#include "base/str.h"
#include "server/messages/messages.h"
#include "server/messages/tools.h"

#define HEADERS_MAX 8                        /* of the client's headers that go along to the provider */
#define LINES_MAX (16 * KIB)                 /* header lines of one answer */
#define SERVERS_MAX 20                       /* MCP servers of one request */
#define REWRITTEN_MAX (96 * MIB)             /* a request as the provider gets it, with the rounds so far */

/* ---- down.c: the answer to our client, whatever it becomes ---- */
struct down;
struct down_events {
    void (*on_gone)(void *ctx);              /* the client hung up; call down_drop() in it or later */
    void (*on_room)(void *ctx);              /* after down_write() said true: write again */
    void *ctx;
};
struct down *down_new(const struct messages_request *r);
/* RC_CLOSED: the client has gone already. */
MUST_CHECK int down_watch(struct down *d, const struct down_events *ev);
/* Begins a streamed answer. `lines`: further header lines, or NULL. */
void down_stream(struct down *d, int status, const char *content_type, const char *lines);
bool down_streaming(const struct down *d);
/* True: enough is queued, wait for on_room. What is written after the client has gone is lost. */
bool down_write(struct down *d, const void *p, size_t n);
const char *down_request_id(const struct down *d);
/* The ends; `d` is gone after each. */
void down_end(struct down *d);               /* of a stream */
void down_answer(struct down *d, int status, const char *content_type, const char *lines, struct buf *body);
void down_refuse(struct down *d, int rc, const char *error_type, const struct err *e);      /* before a stream */
void down_drop(struct down *d);              /* nobody is there any more */

/* ---- provider.c: what is said of a provider's answer ---- */
/* Header lines of the provider's answer that the client gets: rate limits, retry advice; its request id under another name. */
void provider_lines(struct slice lines, struct buf *out);
/* The body of an answer that is no success, in the official envelope with our request id. Returns the status for the client. */
int provider_error(int status, struct slice body, const char *request_id, struct buf *out);
/* The official envelope; and the status that goes with a type of error, 500 for an unknown one. */
void provider_envelope(struct buf *out, const char *type, const char *message, const char *request_id);
int provider_status(const char *type);
/* A transport failure as a result code and type for the client. */
int provider_failure(int rc, const struct err *why, const char **ret_type, struct err *e);
/* `event: error` for a stream that cannot go on. */
void provider_error_event(struct buf *out, const char *type, const char *message, const char *request_id);

/* ---- exchange: one request ---- */
enum beta { BETA_MCP_2025_04 = 1, BETA_MCP_2025_11 = 2, BETA_MCP_2026_09 = 4 };

struct server {                              /* an entry of mcp_servers with the toolset that refers to it */
    char *name, *url;
    struct secret *token;                    /* or NULL */
    json_t *toolset;                         /* as given, or made from tool_configuration */
    json_t *pinned;                          /* the tools to use without asking the server, or NULL */
};
struct part { struct slice raw; const struct server *server; };      /* an entry of `tools`: as it came, or (raw.p NULL) the toolset of a server */

struct request {                             /* request.c: what was asked */
    bool count, stream, beta_query;          /* beta_query: the URL said ?beta=true */
    char *model;
    struct buf body;                         /* as it came */
    char *headers[HEADERS_MAX];              /* for the provider */
    size_t n_headers;
    const char *path;
    /* request_mcp.c, when `rewrite`: the provider gets another text than came. Slices point into `body`. */
    bool rewrite, has_tools;
    unsigned betas;
    struct server servers[SERVERS_MAX];
    size_t n_servers;
    struct part *parts;
    size_t n_parts;
    struct buf rest, history;                /* members that stay as they are; the items of the translated messages */
};
void request_done(struct request *q);
/* Reads `q->body`. RC_INVALID. */
MUST_CHECK int request_read(struct request *q, struct err *e);
/* The part of it that has to do with MCP; any of the members may be empty. Sets `rewrite` when there is anything to do. */
MUST_CHECK int request_read_mcp(struct request *q, struct slice servers, struct slice tools, struct slice messages, struct err *e);
/* The request for the provider: the definitions of `defs` (by server, comma-separated) in the places of their toolsets, `more` (comma-separated messages) after
 * the messages. RC_TOO_LARGE. */
MUST_CHECK int request_write(const struct request *q, const struct buf *defs, const struct buf *more, bool stream, struct buf *out, struct err *e);
/* RC_INVALID: a tool of the client's has the name of one of `t`. */
MUST_CHECK int request_names(const struct request *q, const struct tools *t, struct err *e);
/* Takes over what a provider may see of the client's head. RC_INVALID: too long. */
MUST_CHECK int request_headers(struct request *q, const struct http_head *h, struct slice query, struct err *e);

struct exchange {
    struct messages *m;
    struct list link;
    struct request q;
    size_t bytes;                            /* counted against MESSAGES_BYTES_MAX */
    const struct model_provider *p;
    void *self;
    struct down *down;
    struct model_raw *raw;
    void *more;                              /* of relay.c or rounds.c */
    void (*cancel)(struct exchange *x);      /* ends it, into nothing */
};
struct messages { struct messages_conf conf; struct list running; size_t n, bytes; };
void messages_exchange_free(struct exchange *x);      /* `down` must have ended */

/* ---- relay.c: a request passed through ---- */
void messages_relay_start(struct exchange *x);

/* ---- rounds.c: a request with MCP servers ---- */
void messages_rounds_start(struct exchange *x);
