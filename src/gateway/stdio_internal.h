/* gateway/stdio_internal.h - shared by the files of the stdio upstream: stdio_upstream.c (life of the upstream, routing of messages), stdio_http.c (what a request
 * asks for), stdio_call.c (answers), stdio_proc.c (child processes).
 *
 *   upstream 1--n sproc (a process: one session, or one of those shared by sessionless requests) 1--n pending (a JSON-RPC request whose answer is awaited)
 *   n--1 upstream_call (an HTTP exchange). A pending without a call is one whose client is gone: it stays until the answer comes, so that the answer cannot be
 *   taken for another request's. */
#pragma once

#include "base/buf.h"
#include "base/list.h"
#include "base/random.h"
#include "gateway/rpc.h"
#include "gateway/stdio_upstream.h"
#include "metrics/metrics.h"

#define STDIO_STATELESS_SINCE "2026-07-28"
#define STDIO_BODIES_MAX (64 * MIB)          /* request bodies of one route that are being received */
#define STDIO_STREAM_HIGH (1 * MIB)          /* waiting for one client: more stops the reading of its session's process */
#define STDIO_BACKLOG_MAX (1 * MIB)          /* messages of a session that wait for a GET stream; the oldest are dropped */
#define STDIO_INPUT_MAX (1 * MIB)            /* besides one message: what waits for a process that does not read */
#define STDIO_PENDING_MAX 1024               /* requests of one process that wait for their answers */
#define STDIO_STDERR_LINE_MAX (4 * KIB)      /* longer lines of the log output are logged in pieces */
#define STDIO_STDERR_LINES_S 200             /* lines of a process that are logged in one second */
#define STDIO_PATIENCE_MS 10000              /* no answer for so long: the event stream begins, so that nobody in between takes the request for dead */
#define STDIO_KEEPALIVE_MS 25000             /* a silent event stream gets a comment */
#define STDIO_CANCEL_GRACE_MS 5000           /* after notifications/cancelled: the request is ended by us when the process has not */
#define STDIO_TERM_MS 2000                   /* after the end of input */
#define STDIO_KILL_MS 3000                   /* after SIGTERM */
#define STDIO_VERSION_MAX 11

/* JSON-RPC error codes we answer with. */
enum { RPC_PARSE_ERROR = -32700, RPC_INVALID_REQUEST = -32600, RPC_INTERNAL = -32603, RPC_SERVER_BUSY = -32000, RPC_NO_SESSION = -32001,
       RPC_HEADER_MISMATCH = -32020, RPC_CANCELLED = -32800, RPC_METHOD_NOT_FOUND = -32601 };

struct stdio_upstream {
    struct ev *ev;
    char *route, *cwd, *path;                /* path: of the program */
    char **argv, **env;
    size_t procs_max, line_max;
    int64_t idle_ms;
    struct list procs;                       /* all that have not ended */
    struct list calls;                       /* of no process (yet, or no more) */
    size_t n_procs, bodies;
    bool stopping;
    bool legacy;                             /* the program has refused server/discover: it knows no revision without sessions */
};

enum call_kind { CALL_POST, CALL_GET, CALL_DELETE, CALL_OTHER };

struct upstream_call {
    struct list link;                        /* in upstream->calls or proc->calls */
    struct stdio_upstream *up;
    struct sproc *proc;
    struct exchange *x;
    enum call_kind kind;
    char session[TOKEN_MAX], version[STDIO_VERSION_MAX];      /* headers; empty: absent */
    bool stateless, json_ok, sse_ok, body_whole, dispatched;
    struct buf body;
    size_t n_pending;                        /* requests of this exchange that wait */
    bool batch, show_session, replied, sse, ending;
    int refuse_status;                       /* decided while the body was coming */
    struct buf out;                          /* not yet taken by the front */
    struct ev_timer timer;                   /* the next step; patience; keep-alive */
};

struct pending {
    struct list link;                        /* proc->pending */
    struct sproc *proc;
    struct upstream_call *call;                      /* NULL: nobody waits any more */
    bool is_init, is_discover;
    char id[RPC_ID_MAX], token[RPC_ID_MAX];  /* canonical; token empty: none */
    char *raw_id;                            /* as the client wrote it */
    struct ev_timer cancel;
};

struct sproc {
    struct list link;
    struct stdio_upstream *up;
    char session[TOKEN_MAX];                 /* empty: shared by sessionless requests, or ended */
    char tag[9];                             /* names the session in the log: a piece of its hash */
    bool stateless, ending, exited, reading, paused;
    pid_t pid;
    struct ev_child child;
    int fd_in, fd_out, fd_err;
    struct ev_io io_in, io_out, io_err;
    struct buf in, out, err;
    size_t out_seen;                         /* bytes of `out` in which there is no line end */
    bool out_skip;                           /* inside a line that is too long */
    struct list calls, pending;
    size_t n_pending;
    struct upstream_call *get;                       /* the session's GET stream */
    struct buf backlog;                      /* lines for it */
    int64_t last_ms, err_second;
    unsigned err_lines, err_dropped;
    struct ev_timer idle, kill, resume;
    int kill_step;
    const char *why;                         /* of `ending`, for the log */
};

extern struct metric stdio_metric_procs, stdio_metric_started, stdio_metric_dropped;

/* stdio_upstream.c */
struct pending *stdio_pending_find(struct sproc *p, const char *id);
void stdio_pending_free(struct pending *q);
void stdio_message(struct sproc *p, char *line, size_t n);       /* one line of a process */
void stdio_proc_gone(struct sproc *p, const char *why);          /* no more answers: its requests get an error, its session ends */
/* "{"jsonrpc":"2.0","id":...,"error":{...}}"; raw_id NULL or empty: null */
void stdio_error_text(struct buf *out, const char *raw_id, int code, const char *message);

/* stdio_http.c */
void stdio_dispatch(struct upstream_call *c);                            /* the request is whole */

/* stdio_call.c: each may free the call; touch it no more, except after scall_message() that is not final */
void scall_answer(struct upstream_call *c, int status, int code, const char *raw_id, const char *fmt, ...) PRINTF_LIKE(5, 6);     /* code 0: no body */
void scall_reply_empty(struct upstream_call *c, int status);
void scall_message(struct upstream_call *c, const char *text, size_t n, bool final);      /* one message from the process */
void scall_stream_begin(struct upstream_call *c);
void scall_flush(struct upstream_call *c);
void scall_wait(struct upstream_call *c);                                 /* arms patience or keep-alive */
void scall_free(struct upstream_call *c);
void scall_body_done(struct upstream_call *c);                    /* its memory is given back */
void scall_abort(struct upstream_call *c, int status, const char *why);   /* exchange_fail() */
struct upstream_call *scall_start(void *upstream, struct exchange *x);

/* stdio_proc.c */
MUST_CHECK int sproc_start(struct stdio_upstream *u, bool stateless, struct sproc **ret, struct err *e);
/* Queues one message (line ends inside become spaces). RC_LIMIT: the process does not read; RC_CLOSED: it has ended. */
MUST_CHECK int sproc_send(struct sproc *p, const char *text, size_t n);
void sproc_end(struct sproc *p, const char *why);                 /* gracefully; the session is gone at once */
void sproc_resume_reading(struct sproc *p);                       /* in a later turn, when it is paused and every client has caught up */
void sproc_touch(struct sproc *p);                                /* it is in use */
void sproc_term(struct sproc *p);                                /* for stdio_free(): end of input and SIGTERM; the loop forgets the child */
bool sproc_reap(struct sproc *p);                                /* after sproc_term(): has it ended? */
void sproc_kill_now(struct sproc *p);                             /* SIGKILL, reap, free */
