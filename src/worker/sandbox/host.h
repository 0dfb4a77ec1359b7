/* worker/sandbox/host.h - state of the worker's side, shared by host.c (pool, claims, deaths) and link.c (the processes and their messages). */
#pragma once

#include <sys/wait.h>

#include "worker/sandbox/internal.h"

struct sbx_claim {
    struct list node;            /* in host->claims */
    struct sbx_host *h;
    char id[SBX_ID_MAX];
    void (*cb)(void *, int, struct sbx *, const struct err *); void *ctx;
    struct sbx *s;               /* being made for it, or given to it */
    struct sbx *after;           /* the session's dying sandbox, which must be gone first */
    bool wants_pool, posted;
    struct err e;
};

struct sbx_host {
    struct ev *ev;
    struct sbx_policy *p; struct sbx_plan plan;
    size_t warm;
    pid_t zygote;
    int zsock, wsock, state_fd, pool_fd;         /* pool_fd: our directory under pool/, locked */
    struct ev_io zio, wio;
    struct ev_timer refill_timer, watch_timer;
    char pool[48];
    struct list all, claims, posts;
    uint32_t seq; unsigned failures;
    bool drain_posted, stopped;
    bool failed, no_hello;                       /* no_hello: a test payload that does not speak the protocol */
    char why[ERR_MSG_MAX];
};

/* host.c, called by link.c */
void host_on_made(struct sbx *s, pid_t pid, int fds[FDS_MAX]);
void host_on_failed(struct sbx *s, int rc, const char *text);
void host_on_exit(struct sbx *s, int status, uint32_t oom_kills);
void host_run_posts(struct sbx_host *h);
void host_fail(struct sbx_host *h, const char *why);
void host_on_refill(struct ev_timer *t);
/* link.c, called by host.c */
void host_send_makes(struct sbx_host *h);
void host_watch_all(struct ev_timer *t);
void host_unwatch(struct sbx_host *h, struct sbx *s);
bool host_trash(struct sbx_host *h, const char *dir);
