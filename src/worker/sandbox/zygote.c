/* zygote.c - the process that makes sandboxes: small, single-threaded, forked before the worker has grown. It lives in the mount namespace that is the
 * sandbox root; each request is a clone of itself that locks itself up and becomes PID 1. It answers only its worker, and ends everything with it. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "base/random.h"
#include "base/secret.h"
#include "base/str.h"
#include "proc/proc.h"
#include "worker/sandbox/internal.h"

#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif
#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif
#define REAP_AT_END_MS 5000

struct kid { pid_t pid; uint32_t seq; struct cg_box box; };
struct making {
    struct kid kid;
    int pair[2], ctl[2];     /* [0] ours, [1] the child's */
    int workspace, pidfd, procfd;
};
struct zygote {
    const struct sbx_policy *p; struct sbx_plan pl; const struct sbx_payload *payload;
    struct sbx_mounts m; struct sbx_filter filter;
    int sock, sigfd, payload_fd;
    struct making spare; bool spare_failed; uint32_t n_made;
    struct kid kids[SBX_LIVE_MAX]; size_t n_kids;
};
struct clone3_args { uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup; };

int sbx_payload_memfd(const struct sbx_payload *pay, int *ret_fd, struct err *e)
{
    *ret_fd = -1;
    if (!pay->bytes)
        return RC_OK;
    int fd0 = memfd_create("outwork-inside", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);
    if (fd0 < 0 && errno == EINVAL)         /* before Linux 6.3 */
        fd0 = memfd_create("outwork-inside", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    AUTO_CLOSE int fd = fd0;
    if (fd < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "memfd_create");
    TRY(fd_write_all(fd, pay->bytes, pay->n, e));
    /* Executable but readable by nobody: the kernel then makes PID 1 non-dumpable, so that its memory, environment, descriptors and /proc/1/exe are closed to
     * the programs beside it, although they have its uid. */
    if (fchmod(fd, 0111) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "seal the sandbox's program");
    *ret_fd = TAKE_FD(fd);
    return RC_OK;
}

/* The worker's environment may have held credentials, and this process keeps the page: /proc/<zygote>/environ must show nothing. */
static void forget_environment(void)
{
    extern char **environ;
    for (char **v = environ; v && *v; v++)
        wipe(*v, strlen(*v));
    static char *none[1];
    environ = none;
}

_Noreturn static void end(struct zygote *z);

static void answer(struct zygote *z, struct zy_ans *a, const int *fds, size_t n)
{
    if (fds_send(z->sock, a, sizeof *a, fds, n) < 0)
        end(z);         /* the worker is gone */
}

static void failed(struct zygote *z, uint32_t seq, int rc, const struct err *e)
{
    struct zy_ans a = { .type = ZA_FAILED, .seq = seq, .rc = rc, .sys_errno = e->sys_errno };
    str_copy(a.text, sizeof a.text, e->msg);
    answer(z, &a, NULL, 0);
}

/* ---- one sandbox ---- */

static void making_end(struct zygote *z, struct making *k, bool kill_it)
{
    int *fds[] = { &k->pair[0], &k->pair[1], &k->ctl[0], &k->ctl[1], &k->workspace, &k->pidfd, &k->procfd };
    for (size_t i = 0; i < COUNT_OF(fds); i++)
        if (*fds[i] >= 0)
            close(*fds[i]);
    if (!kill_it)
        return;
    if (k->kid.pid > 0) {
        (void)kill(k->kid.pid, SIGKILL);
        while (waitpid(k->kid.pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    cg_box_remove(&z->pl.cg, &k->kid.box);
}

/* A host uid that no session of any worker on this state_dir has: a file named after it is the claim. */
static int take_uid(struct zygote *z, uid_t *ret, struct err *e)
{
    uint32_t start = random_u32_below(z->p->uid_count);
    for (uint32_t i = 0; i < z->p->uid_count; i++) {
        uint32_t uid = z->p->uid_base + (start + i) % z->p->uid_count;
        char name[32];
        (void)snprintf(name, sizeof name, "uids/%u", uid);
        int fd = openat(z->m.state_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd >= 0) {
            close(fd);
            *ret = uid;
            return RC_OK;
        }
        if (errno != EEXIST)
            return err_sys(e, RC_IO, errno, "take a host uid");
    }
    return err_set(e, RC_LIMIT, "all %u host uids are taken by sessions: forget old sessions, or raise uid_count", z->p->uid_count);
}

/* The session's directory, as it must be: never a link, owned by the session's uid, which it keeps for as long as the session lives. */
static int workspace_prepare(struct zygote *z, const struct zy_req *q, uid_t *ret_uid, struct err *e)
{
    char path[SBX_DIR_MAX + 16];
    (void)snprintf(path, sizeof path, "%s/workspace", q->dir);
    bool root = z->pl.mode == SBX_MODE_ROOT;
    if (q->create) {
        uid_t uid = z->pl.uid;
        if (root)
            TRY(take_uid(z, &uid, e));
        if ((mkdirat(z->m.state_fd, q->dir, 0700) < 0 && errno != EEXIST) || mkdirat(z->m.state_fd, path, 0700) < 0)
            return err_sys(e, RC_IO, errno, "make %s in the state directory", path);
        if (root && fchownat(z->m.state_fd, path, uid, uid, AT_SYMLINK_NOFOLLOW) < 0)
            return err_sys(e, RC_IO, errno, "give %s to uid %u", path, uid);
    }
    struct stat st;
    if (fstatat(z->m.state_fd, path, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(st.st_mode))
        return err_set(e, RC_NOT_FOUND, "%s is not a directory in the state directory", path);
    if (root ? st.st_uid < z->p->uid_base || st.st_uid - z->p->uid_base >= z->p->uid_count : st.st_uid != z->pl.uid)
        return err_set(e, RC_PRECONDITION, "%s belongs to uid %u, which is not a uid of sandboxes here (another user's worker, or a changed uid_base?)", path, st.st_uid);
    *ret_uid = st.st_uid;
    return RC_OK;
}

static int spawn(struct zygote *z, uint32_t n, struct making *k, struct err *e)
{
    int cgfd = cg_box_clone_fd(&z->pl.cg, &k->kid.box);
    struct clone3_args ca = { .flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_PIDFD,
                              .pidfd = (uint64_t)(uintptr_t)&k->pidfd, .exit_signal = SIGCHLD };
    if (z->p->net == SBX_NET_NONE)
        ca.flags |= CLONE_NEWNET;
    if (cgfd >= 0) {
        ca.flags |= CLONE_INTO_CGROUP;
        ca.cgroup = (uint64_t)cgfd;
    }
    pid_t pid = (pid_t)syscall(SYS_clone3, &ca, sizeof ca);
    if (pid < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "new namespaces (user.max_*_namespaces, or a container's seccomp or AppArmor profile?)");
    if (pid == 0) {
        const struct child_args a = { .p = z->p, .pl = &z->pl, .m = &z->m, .filter = &z->filter, .payload = z->payload, .box = &k->kid.box, .payload_fd = z->payload_fd,
                                      .ctl_fd = k->ctl[1], .sync_fd = k->pair[1], .seq = n };
        child_main(&a);
    }
    k->kid.pid = pid;
    return RC_OK;
}

/* Waits for the exec: the child's end closes then. Text before that is why it failed. */
static int exec_done(int fd, struct err *e)
{
    struct pollfd p = { fd, POLLIN, 0 };
    int n;
    do
        n = poll(&p, 1, SBX_START_MS);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return err_set(e, RC_TIMEOUT, "the new sandbox did not start within %d ms", SBX_START_MS);
    char msg[ERR_MSG_MAX];
    ssize_t got = read(fd, msg, sizeof msg - 1);
    if (got <= 0)
        return RC_OK;
    msg[got] = 0;
    return err_set(e, RC_UNSUPPORTED, "%s", msg);
}

static int tell(const struct making *k, char c, int fd, struct err *e)
{
    int rc = fds_send(k->pair[0], &c, 1, &fd, fd >= 0 ? 1 : 0);
    return rc < 0 ? err_set(e, rc, "the new sandbox died") : RC_OK;
}

static void making_init(struct making *k)
{
    *k = (struct making){ .pair = { -1, -1 }, .ctl = { -1, -1 }, .workspace = -1, .pidfd = -1, .procfd = -1 };
    for (size_t i = 0; i < CG_CTL_MAX_; i++)
        k->kid.box.fd[i] = -1;
}

/* A half-made sandbox: its namespaces and groups exist, its session is not known. One is always kept, made while nothing else is to be done: network
 * namespace and cgroups are the dear parts, and so they are off the path of a request. */
static int prepare(struct zygote *z, struct making *k, struct err *e)
{
    uint32_t n = ++z->n_made;
    TRY(cg_box_make(&z->pl.cg, n, &z->p->limits, &k->kid.box, e));
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, k->pair) < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, k->ctl) < 0)
        return err_sys(e, RC_IO, errno, "socketpair");
    TRY(spawn(z, n, k, e));
    close(TAKE_FD(k->pair[1]));
    close(TAKE_FD(k->ctl[1]));
    return RC_OK;
}

static int make(struct zygote *z, const struct zy_req *q, struct making *k, struct err *e)
{
    if (z->n_kids >= SBX_LIVE_MAX)
        return err_set(e, RC_LIMIT, "%u sandboxes are running already", SBX_LIVE_MAX);
    uid_t uid = z->pl.mode == SBX_MODE_ROOT ? z->p->uid_base : z->pl.uid;
    if (q->dir[0]) {                        /* "" is the probe's trial: a workspace in memory */
        TRY(workspace_prepare(z, q, &uid, e));
        TRY(mounts_workspace(&z->m, q->dir, &k->workspace, e));
    }
    if (k->kid.pid <= 0)
        TRY(prepare(z, k, e));
    if (z->pl.mode == SBX_MODE_ROOT)
        TRY(userns_map_pid(z->m.proc_fd, k->kid.pid, uid, uid, e));
    (void)tell(k, CHILD_GO, k->workspace, NULL);      /* when it died meanwhile, its text says more */
    TRY(exec_done(k->pair[0], e));
    char path[64];
    (void)snprintf(path, sizeof path, "%d/root/proc", k->kid.pid);      /* before anything of the agent's runs in there */
    k->procfd = openat(z->m.proc_fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return RC_OK;
}

static void on_make(struct zygote *z, const struct zy_req *q)
{
    struct making k = z->spare;
    making_init(&z->spare);
    k.kid.seq = q->seq;
    struct err e = { 0 };
    int rc = memchr(q->dir, 0, sizeof q->dir) ? make(z, q, &k, &e) : err_set(&e, RC_INVALID, "directory name");
    if (rc < 0) {
        making_end(z, &k, true);
        failed(z, q->seq, rc, &e);
        return;
    }
    z->kids[z->n_kids++] = k.kid;
    struct zy_ans a = { .type = ZA_MADE, .seq = q->seq, .pid = k.kid.pid };
    const int fds[] = { k.ctl[0], k.pidfd, k.procfd };
    answer(z, &a, fds, k.procfd >= 0 ? 3 : 2);
    making_end(z, &k, false);
}

static void refill_spare(struct zygote *z)
{
    struct err e = { 0 };
    if (z->spare.kid.pid <= 0 && prepare(z, &z->spare, &e) < 0) {      /* the next request tries again, and tells */
        making_end(z, &z->spare, true);
        making_init(&z->spare);
        z->spare_failed = true;
    }
}

/* ---- children that ended ---- */

static void on_exit_of(struct zygote *z, pid_t pid, int status, bool report)
{
    if (pid == z->spare.kid.pid) {
        z->spare.kid.pid = 0;
        making_end(z, &z->spare, true);
        making_init(&z->spare);
        z->spare_failed = true;         /* not again and again on its own */
        return;
    }
    for (size_t i = 0; i < z->n_kids; i++) {
        struct kid *k = &z->kids[i];
        if (k->pid != pid)
            continue;
        struct zy_ans a = { .type = ZA_EXIT, .seq = k->seq, .pid = pid, .status = status, .oom_kills = cg_box_oom_kills(&z->pl.cg, &k->box) };
        struct cg_box box = k->box;
        *k = z->kids[--z->n_kids];
        bool worker_gone = report && fds_send(z->sock, &a, sizeof a, NULL, 0) < 0;
        /* PID 1 is reaped after all others of its namespace: the groups are empty. Removing them takes the kernel up to a millisecond, so it is told first. */
        cg_box_remove(&z->pl.cg, &box);
        if (worker_gone)
            end(z);
        return;
    }
}

static void reap(struct zygote *z, bool report)
{
    int status = 0;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        on_exit_of(z, pid, status, report);
}

static void drain_signals(struct zygote *z)
{
    struct signalfd_siginfo si;
    while (read(z->sigfd, &si, sizeof si) > 0)
        ;
}

_Noreturn static void end(struct zygote *z)
{
    for (size_t i = 0; i < z->n_kids; i++) {
        cg_box_kill(&z->pl.cg, &z->kids[i].box);
        (void)kill(z->kids[i].pid, SIGKILL);
    }
    making_end(z, &z->spare, true);
    making_init(&z->spare);
    for (int ms = 0; z->n_kids && ms < REAP_AT_END_MS; ms += 10) {
        reap(z, false);
        if (z->n_kids) {
            struct pollfd p = { z->sigfd, POLLIN, 0 };
            (void)poll(&p, 1, 10);
            drain_signals(z);
        }
    }
    cg_remove(&z->pl.cg);       /* the worker may have been killed */
    _exit(0);
}

/* ---- start ---- */

static int set_up_process(struct zygote *z, struct err *e)
{
    sigset_t all, chld;
    proc_default_signals();
    sigfillset(&all);
    (void)sigprocmask(SIG_SETMASK, &all, NULL);
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    z->sigfd = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
    if (z->sigfd < 0)
        return err_sys(e, RC_IO, errno, "signalfd");
    (void)setsid();         /* not hit by the terminal's signals: the worker decides when it ends */
    (void)prctl(PR_SET_NAME, "outwork-zygote", 0, 0, 0);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0)
        return err_sys(e, RC_IO, errno, "/dev/null");
    if (null > 2)
        close(null);
    return RC_OK;
}

/* Everything that the worker had open is none of the zygote's business. Its own are moved up first. */
static int keep_only(int *a, int *b, struct err *e)
{
    int x = fcntl(*a, F_DUPFD_CLOEXEC, 64), y = fcntl(*b, F_DUPFD_CLOEXEC, 64);
    if (x < 0 || y < 0)
        return err_sys(e, RC_IO, errno, "descriptor");
    unsigned lo = (unsigned)(x < y ? x : y), hi = (unsigned)(x < y ? y : x);
    if (syscall(SYS_close_range, 3u, lo - 1, 0u) < 0 || (hi > lo + 1 && syscall(SYS_close_range, lo + 1, hi - 1, 0u) < 0) || syscall(SYS_close_range, hi + 1, ~0u, 0u) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "close_range (Linux 5.9 or later is needed)");
    *a = x;
    *b = y;
    return RC_OK;
}

static int set_up(struct zygote *z, const struct zygote_args *za, struct err *e)
{
    int warden = za->warden_sock;
    z->p = za->p;
    z->pl = *za->pl;
    z->payload = za->payload;
    TRY(keep_only(&z->sock, &warden, e));
    TRY(set_up_process(z, e));
    forget_environment();
    TRY(sbx_payload_memfd(za->payload, &z->payload_fd, e));
    TRY(cg_reopen(&z->pl.cg, e));
    struct rlimit nofile;
    if (getrlimit(RLIMIT_NOFILE, &nofile) == 0) {       /* some descriptors per sandbox; the warden walks deep trees */
        nofile.rlim_cur = nofile.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &nofile);
    }
    TRY(userns_enter(&z->pl, e));
    TRY(mounts_enter(z->p, &z->m, e));
    if (warden >= 0) {
        pid_t pid = fork();     /* in the host's mounts, with the rights over the sandboxes' files that this process has */
        if (pid < 0)
            return err_sys(e, RC_IO, errno, "fork");
        if (pid == 0) {
            close(z->sock);
            warden_run(warden, z->m.state_fd);
        }
        close(warden);
    }
    TRY(mounts_build(z->p, &z->m, e));
    if (z->pl.seccomp) {
        const struct sbx_filter_opts o = { .no_affinity = z->pl.cpu == LIM_AFFINITY, .no_hidden_memory = z->pl.mem == LIM_WATCHDOG };
        TRY(filter_compile(&o, &z->filter, e));
    }
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    return RC_OK;
}

_Noreturn void zygote_run(const struct zygote_args *za)
{
    static struct zygote zy;
    struct zygote *z = &zy;
    z->sock = za->sock;
    z->sigfd = z->payload_fd = -1;
    making_init(&z->spare);
    struct err e = { 0 };
    int rc = set_up(z, za, &e);
    if (rc < 0) {
        failed(z, 0, rc, &e);
        _exit(1);
    }
    struct zy_ans ready = { .type = ZA_READY };
    answer(z, &ready, NULL, 0);
    for (;;) {
        struct pollfd p[2] = { { z->sock, POLLIN, 0 }, { z->sigfd, POLLIN, 0 } };
        bool want = z->spare.kid.pid <= 0 && !z->spare_failed;
        int n_ready = poll(p, 2, want ? 0 : -1);
        if (n_ready < 0 && errno != EINTR)
            end(z);
        if (n_ready == 0 && want)
            refill_spare(z);
        if (n_ready <= 0)
            continue;
        if (p[1].revents) {
            drain_signals(z);
            reap(z, true);
        }
        if (!p[0].revents)
            continue;
        struct zy_req q;
        int fds[FDS_MAX];
        ssize_t n = fds_recv(z->sock, &q, sizeof q, fds, MSG_DONTWAIT);
        if (n == RC_AGAIN)
            continue;
        if (n <= 0 || q.type != ZQ_MAKE)      /* the worker ended, or is no longer itself */
            end(z);
        z->spare_failed = false;
        on_make(z, &q);
    }
}
