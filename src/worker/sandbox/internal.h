/* worker/sandbox/internal.h - shared by the files of this folder and by their tests only.
 *
 * Processes: the worker (host.c, call.c: the loop thread) forks one zygote (zygote.c), which forks the warden (warden.c: disk and memory watchdog, removal
 * of trees) and makes the sandboxes (child.c becomes PID 1 of each). Nothing here is reachable from inside a sandbox but descriptor 3 of its PID 1. */
#pragma once

#include <sys/types.h>

#include "base/list.h"
#include "worker/sandbox/sandbox.h"

#define SBX_INSIDE_UID 1000u             /* "agent" inside; also the gid */
#define SBX_WARM_MAX 64u
#define SBX_LIVE_MAX 4096u               /* sandboxes of one worker */
#define SBX_RO_PATHS_MAX 64u
#define SBX_ENV_MAX 256u
#define SBX_ID_MAX 96u                   /* session id: [A-Za-z0-9_-], a path component of ours */
#define SBX_DIR_MAX 128u                 /* "sessions/<id>", "pool/<worker>/<name>" */
#define SBX_UID_BASE_DEFAULT 1879048192u
#define SBX_UID_COUNT_DEFAULT 65536u
#define SBX_UID_COUNT_MAX (1u << 20)
#define SBX_START_MS 10000               /* zygote ready; also a new sandbox's first answer */
#define SBX_CALL_SLACK_MS 5000           /* beyond limits.call_ms before the sandbox is killed */

/* The program that becomes PID 1. `bytes`: goes into a sealed memfd. Tests may name a `path` inside the sandbox instead. */
struct sbx_payload { const void *bytes; size_t n; const char *path; };

enum sbx_mode { SBX_MODE_ROOT = 1, SBX_MODE_USER };     /* root: a host uid per session; user: the worker's own uid */
enum lim_how { LIM_OFF = 0, LIM_CGROUP2, LIM_CGROUP1, LIM_RLIMIT, LIM_WATCHDOG, LIM_AFFINITY };

/* ---- cgroup.c ---- */
enum cg_ctl { CG_MEMORY, CG_PIDS, CG_CPU, CG_CTL_MAX_ };
struct cg_hier { int version, fd; unsigned ctls; char path[512]; };    /* fd: our directory; ctls: bits 1 << enum cg_ctl */
struct cg { struct cg_hier h[CG_CTL_MAX_]; size_t n; char why[256]; };   /* why: reason when something is missing */
struct cg_box { int fd[CG_CTL_MAX_]; char name[32]; };
void cg_open(struct cg *c);                                            /* finds usable hierarchies and makes "outwork-<pid>" in each */
MUST_CHECK int cg_reopen(struct cg *c, struct err *e);                 /* in another process: its own descriptors */
void cg_close(struct cg *c);                                           /* closes them */
void cg_remove(struct cg *c);                                          /* and removes what cg_open() made, once it is empty */
int  cg_has(const struct cg *c, enum cg_ctl ctl);                      /* 0, 1 or 2 */
MUST_CHECK int cg_box_make(const struct cg *c, uint32_t seq, const struct sbx_limits *l, struct cg_box *b, struct err *e);
int  cg_box_clone_fd(const struct cg *c, const struct cg_box *b);      /* v2 directory for CLONE_INTO_CGROUP, or -1 */
MUST_CHECK int cg_box_enter(const struct cg *c, const struct cg_box *b, struct err *e);      /* the caller itself; v2 was done by CLONE_INTO_CGROUP */
uint32_t cg_box_oom_kills(const struct cg *c, const struct cg_box *b);
void cg_box_kill(const struct cg *c, const struct cg_box *b);          /* cgroup.kill where it exists */
void cg_box_remove(const struct cg *c, struct cg_box *b);
bool cg_mountinfo_find(const char *mountinfo, int version, const char *controller, char *ret_mount, size_t mount_cap, char *ret_root, size_t root_cap);
bool cg_selfpath_find(const char *proc_cgroup, int version, const char *controller, char *ret, size_t cap);

/* ---- what is enforced, and how: made once by plan_make() (probe.c) before the fork ---- */
struct sbx_plan {
    enum sbx_mode mode;
    uid_t uid; gid_t gid;                /* the worker's own */
    int landlock_abi;                    /* 0: the kernel has none (and the operator allowed it) */
    bool seccomp, memfd_exec;
    enum lim_how mem, pids, cpu;
    struct cg cg;
};
MUST_CHECK int plan_make(const struct sbx_policy *p, struct sbx_plan *ret, struct err *e);    /* makes the cgroup; end with cg_remove() */
MUST_CHECK int policy_copy(const struct sbx_policy *p, struct sbx_policy **ret, struct err *e);    /* checks it, too */
void policy_free(struct sbx_policy *p);
/* No host path may be shown that would undo the sandbox. */
MUST_CHECK int policy_check_ro_path(const char *path, struct err *e);

/* ---- userns.c ---- */
MUST_CHECK int userns_detect(const struct sbx_policy *p, struct sbx_plan *pl, struct err *e);
MUST_CHECK int userns_enter(const struct sbx_plan *pl, struct err *e);                       /* zygote, as an ordinary user */
MUST_CHECK int userns_map_pid(int procfd, pid_t pid, uid_t host_uid, gid_t host_gid, struct err *e);  /* root: from the zygote */
MUST_CHECK int userns_map_self(int procfd, uid_t host_uid, gid_t host_gid, struct err *e);   /* user: from the child itself */
MUST_CHECK int userns_become_agent(struct err *e);
/* The id outside of [id, id + count) by the text of a uid_map file; false when not wholly mapped by one line. */
bool userns_outer(const char *map, uint32_t id, uint32_t count, uint32_t *ret_outer);

/* ---- mount.c ---- */
struct sbx_mounts { int host_ns, root_ns, state_fd, proc_fd; unsigned mask_dirs, mask_files; };
MUST_CHECK int mounts_enter(const struct sbx_policy *p, struct sbx_mounts *m, struct err *e);    /* private copy of the host's mounts */
MUST_CHECK int mounts_build(const struct sbx_policy *p, struct sbx_mounts *m, struct err *e);    /* the sandbox root; ends inside it */
MUST_CHECK int mounts_workspace(const struct sbx_mounts *m, const char *dir, int *ret_fd, struct err *e);   /* detached mount of <dir>/workspace */
MUST_CHECK int mounts_proc(int *ret_fd, struct err *e);                                          /* child: detached fresh proc */
MUST_CHECK int mounts_child(const struct sbx_policy *p, const struct sbx_mounts *m, int proc_mfd, struct err *e);
MUST_CHECK int mounts_child_workspace(const struct sbx_policy *p, int workspace_mfd, struct err *e);      /* -1: in memory, for the trial run */

/* ---- seccomp.c ---- */
#define SECCOMP_PROGS 2u
struct sbx_filter { struct { unsigned short n; void *insns; } prog[SECCOMP_PROGS]; };
struct sbx_filter_opts { bool no_affinity, no_hidden_memory; };        /* for limits that are enforced without cgroups */
MUST_CHECK int filter_compile(const struct sbx_filter_opts *o, struct sbx_filter *ret, struct err *e);
void filter_done(struct sbx_filter *f);
MUST_CHECK int filter_load(const struct sbx_filter *f, struct err *e);
bool filter_supported(void);

/* ---- landlock.c ---- */
int landlock_abi(int *ret_errno);
MUST_CHECK int landlock_apply(int abi, struct err *e);

/* ---- limits.c ---- */
MUST_CHECK int limits_apply(const struct sbx_limits *l, const struct sbx_plan *pl, uint32_t seq, struct err *e);   /* in the child */
struct sbx_usage { uint64_t rss_bytes; uint32_t procs; };
bool limits_usage(int procfd, uint64_t refine_above, struct sbx_usage *ret);       /* by the sandbox's own proc */
/* Bytes of open files without a name: on the file system `disk_dev`, and in memory (memfd). */
void limits_hidden(int procfd, dev_t disk_dev, dev_t memfd_dev, uint64_t *ret_disk, uint64_t *ret_memory);
MUST_CHECK int caps_bound(struct err *e);          /* what can be given up while rights are still used */
MUST_CHECK int caps_drop_all(struct err *e);
const char *lim_how_name(enum lim_how h);

/* ---- child.c ---- */
/* The child goes as far as it can before it is known for which session it is, then waits for CHILD_GO with the workspace's detached mount. */
#define CHILD_GO 'g'
struct child_args {
    const struct sbx_policy *p; const struct sbx_plan *pl; const struct sbx_mounts *m; const struct sbx_filter *filter; const struct sbx_payload *payload;
    const struct cg_box *box;
    int payload_fd, ctl_fd, sync_fd;
    uint32_t seq;
};
_Noreturn void child_main(const struct child_args *a);

/* ---- zygote.c: messages are whole SOCK_SEQPACKET packets ---- */
enum zy_type { ZQ_MAKE = 1, ZA_READY, ZA_MADE, ZA_FAILED, ZA_EXIT };
/* dir: "sessions/<id>" or "pool/<worker>/<name>" under state_dir; create: the zygote makes it (and takes a free host uid). "": the probe's trial run. */
struct zy_req { uint32_t type, seq, create, pad; char dir[SBX_DIR_MAX]; };
struct zy_ans { uint32_t type, seq; int32_t pid, status, rc, sys_errno; uint32_t oom_kills, pad; char text[ERR_MSG_MAX]; };
struct zygote_args { const struct sbx_policy *p; const struct sbx_plan *pl; const struct sbx_payload *payload; int sock, warden_sock; };
_Noreturn void zygote_run(const struct zygote_args *a);
MUST_CHECK int sbx_payload_memfd(const struct sbx_payload *pay, int *ret_fd, struct err *e);

/* ---- warden.c ---- */
enum wd_type { WQ_WATCH = 1, WQ_UNWATCH, WQ_SWEEP, WA_BREACH };      /* SWEEP: remove all that lies in trash/ */
enum wd_limit { WD_MEMORY = 1, WD_PIDS, WD_DISK };
struct wd_msg { uint32_t type, seq, limit, pids; uint64_t memory_bytes, disk_bytes, value; };
_Noreturn void warden_run(int sock, int state_fd);
/* With WQ_WATCH come two descriptors: the workspace directory, the sandbox's proc. */

/* ---- fds.c: one packet with descriptors ---- */
#define FDS_MAX 4u
MUST_CHECK int fds_send(int sock, const void *p, size_t n, const int *fds, size_t n_fds);
/* Bytes of the packet (0 = closed) or a negative code; RC_PROTO for another size than `n`. Descriptors that came are in fds, -1 beyond. */
MUST_CHECK ssize_t fds_recv(int sock, void *p, size_t n, int fds[FDS_MAX], int flags);

/* ---- host.c and call.c ---- */
enum sbx_state { SBX_MAKING = 1, SBX_HELLO, SBX_WARM, SBX_CLAIMED, SBX_DYING, SBX_DEAD };
struct sbx_callrec;
struct sbx {
    struct list node;                    /* in host->all */
    struct sbx_host *h;
    enum sbx_state state;
    uint32_t seq;
    pid_t pid;
    int sock, pidfd, procfd, lockfd;     /* lockfd: the session's directory, locked against other workers on this state_dir */
    bool pooled, sent, closed, watched, forget;      /* closed: the user has let go of it */
    bool deferred;                       /* its memory waits for posts that are under way */
    char dir[SBX_DIR_MAX];               /* relative to state_dir */
    struct sbx_claim *claim;             /* waiting for this one */
    /* call.c */
    struct ev_io io;
    struct ev_timer timer;
    struct list calls; struct sbx_callrec *running;
    size_t out_off; uint32_t next_id;
    unsigned interrupts; size_t intr_off; struct inside_req intr;
    struct inside_res in_head; size_t in_head_n;
    struct buf in_body; bool in_body_on;
    void (*death_cb)(void *, const char *); void *death_ctx;
    int kill_rc; char why[ERR_MSG_MAX];
    unsigned posts;
};
void sbx_kill(struct sbx *s, int rc, const char *fmt, ...) PRINTF_LIKE(3, 4);   /* reason of the first call stays */
MUST_CHECK int call_start_io(struct sbx *s);
void call_fail_all(struct sbx *s);        /* every call ends, the running one with kill_rc */
void call_init(struct sbx *s);
void call_done(struct sbx *s);            /* stops watching, frees */
void host_post(struct sbx_host *h, void (*fn)(void *), void *arg);
void sbx_unpost(struct sbx *s);           /* a posted function is done with it: may free it */
MUST_CHECK int call_check_res(const struct inside_req *req, const struct inside_res *res, struct err *e);
MUST_CHECK int sbx_host_start_with(struct ev *ev, const struct sbx_policy *p, size_t warm, const struct sbx_payload *payload, struct sbx_host **ret, struct err *e);
MUST_CHECK int sbx_probe_with(const struct sbx_policy *p, const struct sbx_payload *payload, json_t **ret_report, struct err *e);
size_t sbx_host_ready(const struct sbx_host *h);                       /* warm sandboxes waiting now */
const struct sbx_limits *sbx_host_limits(const struct sbx_host *h);
struct ev *sbx_host_ev(const struct sbx_host *h);
