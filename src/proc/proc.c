/* proc/proc.c - fork and exec. Between fork() and execve() the child calls only async-signal-safe functions, since other threads may have held
 * locks; a failure travels back as two ints through a pipe that execve() closes. */
#include "proc/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

extern char **environ;

enum step { STEP_NULL, STEP_DESCRIPTORS, STEP_GROUP, STEP_CWD, STEP_EXEC };
struct failure { int step, err; };

static const char *step_name(int step)
{
    static const char *const names[] = { "open /dev/null", "place the descriptors", "make a process group", "change to the working directory", "execute" };
    return step >= 0 && (size_t)step < COUNT_OF(names) ? names[step] : "start";
}

static _Noreturn void child_fail(int report, int step)
{
    struct failure f = { step, errno };
    ssize_t n = write(report, &f, sizeof f);        /* at most PIPE_BUF: whole or not at all */
    (void)n;
    _exit(127);
}

/* As the kernel takes it: a handler of 0 is SIG_DFL, and the mask is its second member or its last, empty either way. */
struct kernel_action { unsigned long word[3]; uint64_t mask; };

void proc_default_signals(void)
{
    static const struct kernel_action dfl;
    for (int i = 1; i < NSIG; i++)
        (void)syscall(SYS_rt_sigaction, i, &dfl, NULL, (size_t)((NSIG - 1) / 8));      /* refused for SIGKILL and SIGSTOP: fine */
    uint64_t none = 0;
    (void)syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none);
}

/* The three descriptors are first moved above 2, so that no dup2() runs over one that is still needed; dup2() then drops close-on-exec. */
static void child_descriptors(const struct proc_spec *s, int *report)
{
    int want[3] = { s->fd_in, s->fd_out, s->fd_err };
    int high = fcntl(*report, F_DUPFD_CLOEXEC, 3);
    if (high < 0)
        child_fail(*report, STEP_DESCRIPTORS);
    *report = high;
    for (int i = 0; i < 3; i++) {
        int fd = want[i];
        if (fd < 0 && (fd = open("/dev/null", i == 0 ? O_RDONLY | O_CLOEXEC : O_WRONLY | O_CLOEXEC)) < 0)
            child_fail(*report, STEP_NULL);
        if ((want[i] = fcntl(fd, F_DUPFD_CLOEXEC, 3)) < 0)
            child_fail(*report, STEP_DESCRIPTORS);
    }
    for (int i = 0; i < 3; i++)
        if (dup2(want[i], i) < 0)
            child_fail(*report, STEP_DESCRIPTORS);
    if (close_range(3, ~0u, CLOSE_RANGE_CLOEXEC) < 0)
        child_fail(*report, STEP_DESCRIPTORS);
}

static _Noreturn void child_main(const struct proc_spec *s, int report)
{
    child_descriptors(s, &report);
    if (s->new_group && setpgid(0, 0) < 0)
        child_fail(report, STEP_GROUP);
    if (s->cwd && chdir(s->cwd) < 0)
        child_fail(report, STEP_CWD);
    proc_default_signals();
    execve(s->path, s->argv, s->envp ? s->envp : environ);
    child_fail(report, STEP_EXEC);
}

static int failure_rc(int err)
{
    switch (err) {
    case ENOENT:
    case ENOTDIR:
        return RC_NOT_FOUND;
    case EACCES:
    case EPERM:
    case ENOEXEC:
    case ELOOP:
        return RC_DENIED;
    case E2BIG:
    case ENAMETOOLONG:
        return RC_INVALID;
    case ENOMEM:
        return RC_NOMEM;
    default:
        return RC_IO;
    }
}

static pid_t reap(pid_t pid)
{
    pid_t r;
    while ((r = waitpid(pid, NULL, 0)) < 0 && errno == EINTR) {
    }
    return r;
}

int proc_spawn(const struct proc_spec *s, pid_t *ret_pid, int *ret_pidfd, struct err *e)
{
    int p[2];
    if (pipe2(p, O_CLOEXEC) < 0)
        return err_sys(e, RC_IO, errno, "pipe for starting %s", s->path);
    AUTO_CLOSE int from = p[0], to = p[1];
    /* All signals wait meanwhile: a handler of ours must not run in the child. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pid_t pid = fork();
    if (pid == 0)
        child_main(s, to);
    int fork_errno = errno;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (pid < 0)
        return err_sys(e, fork_errno == ENOMEM ? RC_NOMEM : RC_IO, fork_errno, "fork for %s", s->path);
    if (s->new_group)
        (void)setpgid(pid, pid);                    /* both sides do it, so that it holds for both from here on */
    (void)close(TAKE_FD(to));
    struct failure f;
    ssize_t n;
    do {
        n = read(from, &f, sizeof f);
    } while (n < 0 && errno == EINTR);
    if (n == (ssize_t)sizeof f) {
        (void)reap(pid);
        const char *what = f.step == STEP_CWD ? s->cwd : f.step == STEP_EXEC ? s->path : "";
        return err_sys(e, failure_rc(f.err), f.err, "start %s: %s %s", s->path, step_name(f.step), what);
    }
    int pidfd = ret_pidfd ? pidfd_open(pid, 0) : -1;
    if (ret_pidfd && pidfd < 0) {
        int err = errno;
        (void)kill(pid, SIGKILL);
        (void)reap(pid);
        return err_sys(e, RC_IO, err, "pidfd of %s", s->path);
    }
    if (ret_pidfd)
        *ret_pidfd = pidfd;
    *ret_pid = pid;
    return RC_OK;
}

void proc_kill_group(pid_t leader, int signo)
{
    if (leader > 1)         /* 0, 1 and -1 would mean our own group, everybody's init, everybody */
        (void)kill(-leader, signo);
}
