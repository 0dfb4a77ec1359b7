/* proc.c - fork and exec with the exec's failure reported through a close-on-exec pipe. */
#include "proc/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define REPORT_FD 3      /* where the child keeps the report pipe while everything above is closed */

static _Noreturn void child_fail(int fd, int err)
{
    ssize_t n = write(fd, &err, sizeof err);
    _exit(n == (ssize_t)sizeof err ? 127 : 126);
}

/* The three standard descriptors, from copies above REPORT_FD so that none is overwritten before it was used. */
static int child_fds(const struct proc_spec *s, int *report)
{
    int want[3] = { s->fd_in, s->fd_out, s->fd_err }, copy[3];
    for (int i = 0; i < 3; i++) {
        copy[i] = want[i] >= 0 ? fcntl(want[i], F_DUPFD_CLOEXEC, REPORT_FD + 4) : open("/dev/null", O_RDWR | O_CLOEXEC);
        if (copy[i] >= 0 && copy[i] <= REPORT_FD)
            copy[i] = fcntl(copy[i], F_DUPFD_CLOEXEC, REPORT_FD + 4);
        if (copy[i] < 0)
            return errno;
    }
    int r = fcntl(*report, F_DUPFD_CLOEXEC, REPORT_FD + 4);
    if (r < 0)
        return errno;
    for (int i = 0; i < 3; i++)
        if (dup2(copy[i], i) < 0)
            return errno;
    if (dup3(r, REPORT_FD, O_CLOEXEC) < 0)
        return errno;
    *report = REPORT_FD;
    (void)syscall(SYS_close_range, REPORT_FD + 1, ~0u, 0);
    return 0;
}

static _Noreturn void child_run(const struct proc_spec *s, int report, char *const *envp)
{
    sigset_t none;
    sigemptyset(&none);
    for (int i = 1; i < 65; i++)
        (void)signal(i, SIG_DFL);
    int err = child_fds(s, &report);
    if (err)
        child_fail(report, err);
    if (s->new_group && setpgid(0, 0) < 0)
        child_fail(report, errno);
    if (s->cwd && chdir(s->cwd) < 0)
        child_fail(report, errno);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    execve(s->path, s->argv, envp);
    child_fail(report, errno);
}

int proc_spawn(const struct proc_spec *s, pid_t *ret_pid, int *ret_pidfd, struct err *e)
{
    int p[2], err = 0;
    sigset_t all, old;
    if (pipe2(p, O_CLOEXEC) < 0)
        return err_sys(e, RC_IO, errno, "start %s: pipe", s->path);
    sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);      /* no handler of ours may run in the child */
    pid_t pid = fork();
    if (pid == 0)
        child_run(s, p[1], s->envp ? s->envp : environ);
    int fork_errno = errno;
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    close(p[1]);
    if (pid < 0) {
        close(p[0]);
        return err_sys(e, RC_IO, fork_errno, "start %s: fork", s->path);
    }
    if (s->new_group)
        (void)setpgid(pid, pid);                         /* both sides: whoever is first */
    ssize_t n;
    do
        n = read(p[0], &err, sizeof err);
    while (n < 0 && errno == EINTR);
    close(p[0]);
    if (n == (ssize_t)sizeof err) {
        (void)waitpid(pid, NULL, 0);
        int rc = err == ENOENT || err == ENOTDIR ? RC_NOT_FOUND : err == EACCES || err == EPERM ? RC_DENIED : RC_IO;
        return err_sys(e, rc, err, "start %s", s->path);
    }
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0) {
        err = errno;
        (void)kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
        return err_sys(e, RC_IO, err, "start %s: pidfd", s->path);
    }
    *ret_pid = pid;
    *ret_pidfd = pidfd;
    return RC_OK;
}

void proc_kill_group(pid_t leader, int signo)
{
    if (leader > 1)
        (void)kill(-leader, signo);
}
