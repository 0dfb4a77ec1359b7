/* child.c - from clone3() to the exec of PID 1: the steps in the order in which rights are still there for them. Runs in a copy of the zygote; everything that
 * fails ends the process, and its text goes to the zygote. The mounts come from mount.c, the end of privilege from limits.c. */
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/str.h"
#include "proc/proc.h"
#include "worker/sandbox/internal.h"

#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2u
#endif
#define FD_SAFE 32         /* above every number that the child hands on */
#define OOM_SCORE "500"    /* the kernel takes a sandbox before the worker */

static int lo_up(struct err *e)
{
    AUTO_CLOSE int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq r;
    memset(&r, 0, sizeof r);
    str_copy(r.ifr_name, sizeof r.ifr_name, "lo");
    r.ifr_flags = IFF_UP | IFF_RUNNING;
    if (s < 0 || ioctl(s, SIOCSIFFLAGS, &r) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "bring the loopback interface up");
    return RC_OK;
}

/* One step of the zygote's; ret_fd takes the descriptor that came with it, or -1. */
static int wait_for(int sync_fd, char want, int *ret_fd, struct err *e)
{
    char c = 0;
    int fds[FDS_MAX];
    ssize_t n = fds_recv(sync_fd, &c, 1, fds, 0);
    *ret_fd = fds[0];
    return n == 1 && c == want ? RC_OK : err_set(e, RC_CLOSED, "the zygote went away");
}

static int set_oom_score(int proc_mfd)
{
    (void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);       /* else its own /proc/self belongs to root; nobody else is in this pid namespace yet */
    AUTO_CLOSE int fd = openat(proc_mfd, "self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    return fd >= 0 && write(fd, OOM_SCORE, strlen(OOM_SCORE)) > 0 ? RC_OK : RC_IO;
}

/* Needs the maps: as an ordinary user they are known from the start, as root they come with the session. */
static int as_agent(const struct child_args *a, int proc_mfd, struct err *e)
{
    TRY(userns_become_agent(e));
    (void)set_oom_score(proc_mfd);          /* a worker that is itself first in line keeps it: nothing is lost */
    return mounts_child(a->p, a->m, proc_mfd, e);
}

/* Descriptors 0-2 are /dev/null, 3 the socket; the program and the zygote's channel close at exec; nothing else is left. */
static int arrange_fds(const struct child_args *a, int *ret_payload, int *ret_sync, struct err *e)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int hi[4] = { null, a->ctl_fd, a->payload_fd, a->sync_fd };
    for (size_t i = 0; i < COUNT_OF(hi); i++) {
        if (hi[i] < 0 && i == 2)
            continue;
        hi[i] = fcntl(hi[i], F_DUPFD_CLOEXEC, FD_SAFE);
        if (hi[i] < 0)
            return err_sys(e, RC_IO, errno, "descriptor");
    }
    if (dup2(hi[0], 0) < 0 || dup2(hi[0], 1) < 0 || dup2(hi[0], 2) < 0 || dup2(hi[1], 3) < 0 || dup3(hi[3], 5, O_CLOEXEC) < 0 ||
        (hi[2] >= 0 && dup3(hi[2], 4, O_CLOEXEC) < 0))
        return err_sys(e, RC_IO, errno, "descriptor");
    if (hi[2] < 0)
        close(4);
    if (syscall(SYS_close_range, 6u, ~0u, 0u) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "close_range");
    *ret_payload = hi[2] >= 0 ? 4 : -1;
    *ret_sync = 5;
    return RC_OK;
}

/* Before the session is known. */
static int prepare(const struct child_args *a, int *ret_proc, struct err *e)
{
    TRY(mounts_proc(ret_proc, e));
    TRY(cg_box_enter(&a->pl->cg, a->box, e));
    if (unshare(CLONE_NEWCGROUP) < 0)       /* its groups become the root of what it can see */
        return err_sys(e, RC_UNSUPPORTED, errno, "cgroup namespace");
    if (sethostname("sandbox", 7) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "sethostname");
    if (a->p->net == SBX_NET_NONE)
        TRY(lo_up(e));
    (void)syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL, 0, 0, 0);      /* the worker's keys stay behind */
    if (setsid() < 0 && errno != EPERM)
        return err_sys(e, RC_IO, errno, "setsid");
    umask(022);
    TRY(limits_apply(&a->p->limits, a->pl, a->seq, e));
    TRY(caps_bound(e));
    proc_default_signals();
    if (a->pl->mode == SBX_MODE_USER) {
        TRY(userns_map_self(*ret_proc, a->pl->uid, a->pl->gid, e));
        TRY(as_agent(a, *ret_proc, e));
    }
    return RC_OK;
}

static int finish(const struct child_args *a, int proc, int workspace, int *payload, int *sync, struct err *e)
{
    if (a->pl->mode == SBX_MODE_ROOT)
        TRY(as_agent(a, proc, e));
    TRY(mounts_child_workspace(a->p, workspace, e));
    if (chdir("/workspace") < 0)
        return err_sys(e, RC_IO, errno, "enter /workspace");
    TRY(arrange_fds(a, payload, sync, e));
    TRY(caps_drop_all(e));
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)      /* changes of identity clear it */
        return err_sys(e, RC_IO, errno, "parent death signal");
    if (a->pl->landlock_abi)
        TRY(landlock_apply(a->pl->landlock_abi, e));
    if (a->pl->seccomp)
        TRY(filter_load(a->filter, e));
    return RC_OK;
}

static int setup(const struct child_args *a, int *payload, int *sync, struct err *e)
{
    int proc = -1, workspace = -1;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    TRY(prepare(a, &proc, e));
    TRY(wait_for(a->sync_fd, CHILD_GO, &workspace, e));
    return finish(a, proc, workspace, payload, sync, e);
}

_Noreturn void child_main(const struct child_args *a)
{
    struct err e = { 0 };
    int payload = -1, sync = a->sync_fd;
    if (setup(a, &payload, &sync, &e) == RC_OK) {
        char *const env[] = { NULL };       /* nothing of the worker's environment; the shell's comes with HELLO */
        char name[] = "outwork-inside";
        if (payload >= 0) {
            char *const argv[] = { name, NULL };
            (void)syscall(SYS_execveat, payload, "", argv, env, AT_EMPTY_PATH);
        } else {
            char *const argv[] = { (char *)(uintptr_t)a->payload->path, NULL };
            (void)execve(argv[0], argv, env);
        }
        err_sys(&e, RC_UNSUPPORTED, errno, "exec the sandbox's first program");
    }
    (void)!write(sync, e.msg, strlen(e.msg));
    _exit(127);
}
