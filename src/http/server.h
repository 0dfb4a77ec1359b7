/* http/server.h - HTTP/1.1 server on the event loop: keep-alive, pipelining (answers in order), chunked both ways, optional TLS, limits
 * on every dimension, slow-client time-outs, graceful drain. It knows nothing of routes: it hands over whole requests.
 *
 * Threads: everything on the loop's thread except http_reply() and http_stream_*(), which say so. A request may be answered from any
 * thread, once. */
#pragma once

#include "base/arena.h"
#include "base/attr.h"
#include "base/buf.h"
#include "ev/ev.h"
#include "http/parse.h"
#include "net/net.h"
#include "tls/tls.h"

#define HTTP_PATIENCE_MS 1000

struct http_server;
struct http_req;

struct http_limits {
    size_t  conns_max;              /* accepted at once; the next ones wait in the backlog, where one that asks nothing makes room after HTTP_PATIENCE_MS */
    size_t  body_max;               /* bytes of one request body */
    size_t  bodies_max;             /* bytes of all bodies in memory; over it new ones get 503 + retry-after */
    int64_t head_ms, body_ms, idle_ms, write_ms;   /* time to send a head, per 64 KiB of body, between requests, without write progress */
};
extern const struct http_limits http_limits_default;   /* 4096, 32 MiB, 256 MiB, 10 s, 30 s, 75 s, 60 s */

struct http_server_conf {
    struct http_limits limits;
    struct tls_ctx *tls;            /* NULL: plain */
    /* Whole request received (head and body). The callee owns `r` until http_reply() or http_stream_start(). Loop thread. */
    void (*on_request)(void *ctx, struct http_req *r);
    /* Body limit for this request, asked when the head is complete, or -1 for limits.body_max. May be NULL. */
    int64_t (*body_limit)(void *ctx, const struct http_head *h);
    /* The server itself refuses a request (malformed, too large, too slow): fills the body of the answer, which is JSON. May be NULL. */
    void (*on_refused)(void *ctx, int status, const char *why, struct buf *body);
    void *ctx;
};
/* Takes `listen_fd` over on RC_OK. Limits that are 0 take their defaults. */
MUST_CHECK int http_server_new(struct ev *ev, const struct http_server_conf *c, int listen_fd, struct http_server **ret, struct err *e);
/* Stops accepting, closes idle connections, lets requests and streams finish for at most `grace_ms` (a stream's on_drain is called at once; one
 * without is ended with a last comment when the time is over), then calls cb. */
void http_server_drain(struct http_server *s, int64_t grace_ms, void (*cb)(void *ctx), void *ctx);
/* Closes everything at once. Requests that are still out may be answered later, while the loop runs; streams get on_close. */
void http_server_free(struct http_server *s);
size_t http_server_conns(const struct http_server *s);

/* Request: all borrowed until the answer. */
const struct http_head *http_req_head(const struct http_req *r);
struct slice  http_req_path(const struct http_req *r);      /* raw, up to '?' */
struct slice  http_req_query(const struct http_req *r);     /* raw, after '?' */
struct slice  http_req_body(const struct http_req *r);
struct arena *http_req_arena(struct http_req *r);           /* lives as long as the request */
const struct net_addr *http_req_peer(const struct http_req *r);
bool http_req_gone(const struct http_req *r);               /* the client hung up; thread-safe, advisory */
/* Loop thread. `cb` runs once there when the client hangs up before the answer (it may answer, into nothing). RC_CLOSED: it has hung up already, and `cb`
 * will not run. cb NULL: no longer. */
int  http_req_watch(struct http_req *r, void (*cb)(void *ctx), void *ctx);
/* Moves the body out; it stays valid after the answer, and http_req_body() is empty from now on. It counts against bodies_max until the answer. */
void http_req_take_body(struct http_req *r, struct buf *ret);

struct http_reply {
    int status;
    const char *content_type;            /* NULL: none */
    const char *headers;                 /* further complete lines "name: value\r\n...", or NULL */
    struct buf *body;                    /* moved in (emptied); NULL or empty: content-length: 0 (nothing for 204) */
    bool close;                          /* end the connection after this answer */
};
void http_reply(struct http_req *r, const struct http_reply *a);   /* thread-safe; `r` is gone after */

/* A streaming answer (SSE). http_stream_start() sends status and headers at once (thread-safe; `r` is gone after) and gives a stream handle.
 * The handle is used on the LOOP THREAD only from then on and must be ended by http_stream_end() exactly once, also after on_close. */
struct http_stream;
struct http_stream_conf {
    int status; const char *content_type, *headers;
    size_t queue_max;                                    /* bytes that may wait for a slow reader */
    void (*on_start)(void *ctx, struct http_stream *s);  /* loop thread: the stream is live */
    void (*on_close)(void *ctx, struct http_stream *s);  /* loop thread: reader gone or too slow; call http_stream_end() in it or later */
    void (*on_drain)(void *ctx, struct http_stream *s);  /* server is draining: end it soon. May be NULL (then ended after grace) */
    /* Back-pressure: after a write left more than room_below queued, on_room says once that no more than that waits. May be NULL. */
    void (*on_room)(void *ctx, struct http_stream *s);
    size_t room_below;
    void *ctx;
};
void http_stream_start(struct http_req *r, const struct http_stream_conf *c);
/* RC_OK; RC_LIMIT: queue_max would be exceeded, nothing was taken (caller sheds or ends); RC_CLOSED. */
int    http_stream_write(struct http_stream *s, const void *p, size_t n);
size_t http_stream_queued(const struct http_stream *s);
void   http_stream_end(struct http_stream *s);           /* flushes what is queued, ends the chunked body; keep-alive is off for streams */
