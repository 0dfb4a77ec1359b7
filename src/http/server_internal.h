/* http/server_internal.h - what server.c, server_conn.c, server_reply.c and server_stream.c share. Loop thread only, unless said otherwise.
 *
 * Lifetimes: a connection is closed at once (conn_close) but its memory stays until the outermost conn_leave(), so that a callback which ends the
 * connection never pulls the ground from under its caller: after anything that can call out, look at c->dead. A request handed to the application
 * outlives its connection (r->conn is NULL then). Connections, requests and streams each hold a reference on the server. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "base/list.h"
#include "http/server.h"
#include "metrics/metrics.h"

#define HTTP_SCRATCH (64 * KIB)             /* one read */
#define HTTP_READ_TURN (256 * KIB)          /* bytes read from one connection before others are looked at */
#define HTTP_AHEAD_MAX (64 * KIB)           /* bytes of pipelined requests read ahead of the answer; then reading pauses */
#define HTTP_IN_MAX (HTTP_HEAD_MAX + HTTP_SCRATCH + HTTP_AHEAD_MAX)
#define HTTP_BODY_STEP (64 * KIB)           /* of body per limits.body_ms */
#define HTTP_LINGER_MS 2000                 /* after the last answer: time for the peer to read it and close */
#define HTTP_REPLY_HEAD_MAX (1 * MIB)
#define HTTP_REFUSAL_MAX (64 * KIB)
#define HTTP_REQ_ARENA_MAX (256 * MIB)
#define HTTP_STREAM_UNSENT (128 * KIB)      /* of a stream inside the kernel; what is more waits in our queue, where it is counted */
#define HTTP_TLS_RECORD (16 * KIB)

enum conn_state {
    CONN_ILLEGAL,
    CONN_HANDSHAKE,     /* TLS */
    CONN_IDLE,          /* no byte of a request yet */
    CONN_HEAD,          /* a part of a head is in c->in */
    CONN_BODY,          /* c->req has its head, the body is coming */
    CONN_HANDLING,      /* c->req is with the application */
    CONN_WRITING,       /* the answer is going out */
    CONN_STREAM,        /* c->stream feeds c->out */
    CONN_LINGER,        /* everything is sent; waiting for the peer's end */
};

struct conn {
    struct list node;
    struct http_server *s;
    struct ev_io io;
    int fd;
    enum conn_state state;
    unsigned busy;                          /* nesting of conn_enter() */
    bool dead, first, eof, close_after, processing, broken, tls_more;
    struct tls *tls;
    unsigned rd_want, wr_want;              /* EV_*: what reading and writing wait for */
    struct buf in;                          /* received, not yet consumed; mostly empty and without memory */
    size_t seen;                            /* of c->in: looked at by the head parser */
    struct buf out, body;                   /* to be sent: head or stream queue, then the body of an answer */
    struct http_req *req;
    struct http_stream *stream;
    struct ev_timer timer, kick;
    int64_t deadline_ms, timer_at_ms;       /* INT64_MAX: none */
    int64_t since_ms;                       /* since when we wait for it to ask something: its beginning, or its last answer */
    int unread;                             /* bytes in the kernel's send queue when we last looked, see conn_unread() */
    struct net_addr peer;
};

struct http_req {
    struct http_server *s;
    struct conn *conn;                      /* NULL: the client is gone */
    atomic_bool gone;
    struct arena *arena;
    struct http_head head;
    struct slice path, query;
    struct http_chunked chunked;
    int64_t body_left, body_step;           /* of content-length; bytes until the body timer starts again */
    size_t body_limit, body_charged;
    struct buf body;
    struct net_addr peer;
    /* The answer on its way to the loop thread. */
    struct buf out, reply_body;
    bool reply_close, sse;
    struct http_stream_conf stream;
    void (*on_gone)(void *ctx);
    void *gone_ctx;
};

struct http_stream {
    struct http_server *s;
    struct conn *conn;                      /* NULL: the reader is gone, or the stream was ended */
    void (*on_close)(void *ctx, struct http_stream *s);
    void (*on_drain)(void *ctx, struct http_stream *s);
    void (*on_room)(void *ctx, struct http_stream *s);
    void *ctx;
    size_t queue_max, room_below;
    bool chunked, sse, in_callback, ended, close_told;
    bool full, room_due;                    /* more than room_below is queued; it no longer is, and on_room comes with the next kick */
    struct list dirty;                      /* in s->dirty while c->out holds unflushed bytes of this turn */
};

struct http_server {
    size_t refs;
    struct ev *ev;
    struct http_server_conf conf;
    int listen_fd;
    struct ev_io listen_io;
    struct ev_timer accept_timer, drain_timer, drain_done;
    struct list conns, dirty;
    size_t n_conns, bodies;
    bool draining, closed, flush_posted, done_armed, full;
    void (*drain_cb)(void *ctx);
    void *drain_ctx;
    _Atomic pthread_t loop_thread;          /* set when a connection is accepted: before any request exists */
    int64_t date_s;
    char date[40];
    struct http_head head;                  /* scratch of the parser */
    char scratch[HTTP_SCRATCH], record[HTTP_TLS_RECORD];
};

extern struct metric http_metric_requests, http_metric_conns, http_metric_refused, http_metric_bodies;

/* server.c */
void server_unref(struct http_server *s);
void server_conn_gone(struct http_server *s);           /* one connection less: accepting or draining may go on */
void req_free(struct http_req *r);
const char *server_date(struct http_server *s);

/* server_conn.c */
void conn_new(struct http_server *s, int fd, const struct net_addr *peer);
void conn_enter(struct conn *c);
void conn_leave(struct conn *c);                        /* settles what epoll is asked for, or frees a dead one: touch nothing after */
void conn_close(struct conn *c);
void conn_deadline(struct conn *c, int64_t in_ms);      /* < 0: none */
int conn_unread(const struct conn *c);                  /* bytes sent that the peer has not acknowledged */
void conn_kick(struct conn *c);                         /* looks at the connection again in the next turn */

/* server_req.c: bytes into requests */
/* Consumes what it can of [p, p + n) while the state takes input; returns how much. Look at c->dead after. */
size_t conn_process(struct conn *c, const char *p, size_t n);
void conn_body_progress(struct conn *c, size_t n);      /* n bytes were added to the body of c->req */
void conn_body_end_if_whole(struct conn *c);

/* server_reply.c */
int conn_send(struct conn *c);                          /* writes what the socket takes, no more: RC_OK all is out, RC_AGAIN, or it is broken */
void conn_flush(struct conn *c);                        /* writes what the socket takes; ends the answer when all is out */
/* Sends an answer; both buffers are moved in. */
void conn_answer(struct conn *c, struct buf *head, struct buf *body);
void conn_refuse(struct conn *c, int status, const char *why);
void reply_head_begin(struct buf *out, int status, const char *content_type, const char *headers);
/* Date, connection, empty line. */
void reply_head_end(struct http_server *s, struct buf *out, const struct http_head *h, bool close);

/* server_stream.c */
void stream_conn_closed(struct conn *c);                /* tells c->stream, which is set */
void stream_drain(struct http_stream *st, bool last);   /* last: grace is over */
void stream_sent(struct http_stream *st);               /* the queue has become shorter */
void stream_room(struct http_stream *st);               /* tells on_room when that is due */
