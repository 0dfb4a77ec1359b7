/* worker/sandbox/sandbox.h - sandboxes for agent sessions: one finished kernel sandbox per session, tool calls by message to its PID 1.
 * Refuses rather than degrades: what the kernel cannot enforce is an error that names the missing feature (sbx_probe()).
 * Loop thread only, asynchronous; the zygote and the sandboxes are other processes. */
#pragma once

#include <sys/types.h>

#include "base/attr.h"
#include "base/buf.h"
#include "base/err.h"
#include "ev/ev.h"
#include "inside/proto.h"
#include "json/js.h"

enum sbx_net { SBX_NET_NONE, SBX_NET_HOST };     /* host: shares the worker's network; must be named by the operator */
struct sbx_limits {
    uint64_t memory_bytes, disk_bytes, tmp_bytes; /* disk: /workspace; tmp: /tmp and /dev/shm each */
    uint32_t pids; uint32_t cpu_percent;          /* 100 = one core; 0 = no limit */
    int64_t  call_ms;                             /* longest single tool call, whatever it asks for */
    size_t   output_bytes;                        /* of one bash call kept (tail) */
};
extern const struct sbx_limits sbx_limits_default;      /* 2 GiB, 4 GiB, 256 MiB, 512, 200, 10 min, 100 KiB */
struct sbx_policy {
    enum sbx_net net;
    struct sbx_limits limits;
    const char *state_dir;                        /* holds sessions/<session id>/workspace; made 0700 */
    const char *const *ro_paths; size_t n_ro_paths;      /* further host directories shown read-only at the same place */
    const char *const *env; size_t n_env;         /* "NAME=value" for the tool shell, beside PATH, HOME, TERM, LANG */
    uint32_t uid_base, uid_count;                 /* root only: host uids handed to sessions, one each (default 1879048192, 65536) */
    bool weak_landlock, weak_seccomp, weak_limits;/* the operator named this weaker mode: run without that layer when the kernel lacks it */
};

/* What the kernel offers: object with one entry per layer {"name","ok","how","detail"}; RC_OK when the policy can be enforced, RC_UNSUPPORTED with the
 * missing features in `e`. Used by start, and printed by `outwork doctor`. */
MUST_CHECK int sbx_probe(const struct sbx_policy *p, json_t **ret_report, struct err *e);

struct sbx_host;         /* the zygote and the warm pool */
/* Forks the zygote: call early, while the process is small and single-threaded. `warm` finished sandboxes are kept ready. */
MUST_CHECK int sbx_host_start(struct ev *ev, const struct sbx_policy *p, size_t warm, struct sbx_host **ret, struct err *e);
void sbx_host_stop(struct sbx_host *h);          /* kills every sandbox */

struct sbx;
/* Hands a ready sandbox to the session: /workspace is state_dir/sessions/<id>/workspace (made, or kept from before). cb on the loop thread. */
void sbx_claim(struct sbx_host *h, const char *session_id, void (*cb)(void *ctx, int rc, struct sbx *s, const struct err *e), void *ctx);
pid_t sbx_pid(const struct sbx *s);              /* host pid of its PID 1 */
/* One request at a time is running; further ones queue in order. `body` is copied. cb exactly once. rc RC_OK: `h` and `body` are the answer (inside/proto.h);
 * RC_TIMEOUT: over limits.call_ms + slack, the sandbox was killed; RC_CLOSED: the sandbox died (a later claim makes a fresh one on the same workspace). */
void sbx_call(struct sbx *s, const struct inside_req *req, const void *body, size_t body_n,
              void (*cb)(void *ctx, int rc, const struct inside_res *h, const char *body, size_t n, const struct err *e), void *ctx);
void sbx_interrupt(struct sbx *s);               /* kills what the running bash call started; the call ends with what it printed so far */
void sbx_on_death(struct sbx *s, void (*cb)(void *ctx, const char *why), void *ctx);    /* limit hit, OOM, killed */
void sbx_close(struct sbx *s);                   /* kills the whole tree; the workspace stays */
/* Removes a session's state directory. */
MUST_CHECK int sbx_forget(struct sbx_host *h, const char *session_id, struct err *e);
