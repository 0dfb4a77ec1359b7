/* inside/spawn.c - starting a child, and ending a tree of processes. */
#include "inside/dir.h"
#include "inside/init.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PROCS_MAX 65536
#define KILL_ROUNDS_MAX 64          /* a tree that still forks after so many rounds gets everything killed */
#define KILL_ROUND_MS 1

/* In the child of vfork(): memory is shared with us, so only system calls. */
static void run_child(const struct spawn *s, volatile int *err)
{
    sigset_t none;
    struct sigaction dfl = { .sa_handler = SIG_DFL };
    sigemptyset(&none);
    (void)sigaction(SIGPIPE, &dfl, NULL);
    (void)sigaction(SIGCHLD, &dfl, NULL);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)setsid();
    for (size_t i = 0; i < s->n_fds; i++)
        if (dup2(s->fds[i].from, s->fds[i].to) < 0) {
            *err = errno;
            return;
        }
    if (s->path)
        (void)execve(s->path, s->argv, s->envp);
    else
        (void)syscall(SYS_execveat, s->exec_fd, "", s->argv, s->envp, AT_EMPTY_PATH);
    *err = errno;
}

__attribute__((noinline)) pid_t spawn_child(const struct spawn *s)
{
    volatile int err = 0;
    sigset_t all, old;
    sigfillset(&all);
    (void)sigprocmask(SIG_SETMASK, &all, &old);     /* no handler of ours may run in the child */
    pid_t pid = vfork();
    if (pid == 0) {
        run_child(s, &err);
        _exit(127);
    }
    int fork_err = errno;
    (void)sigprocmask(SIG_SETMASK, &old, NULL);
    if (pid < 0)
        return -fork_err;
    if (err) {
        (void)loop_wait_pid(pid);
        return -err;
    }
    return pid;
}

uint64_t kill_now_ticks(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * 100 + (uint64_t)t.tv_nsec / 10000000;   /* USER_HZ is 100 on every Linux we run on */
}

struct proc { pid_t pid, ppid; uint64_t start; };
struct procs { struct proc *v; size_t n, cap; };

static int by_pid(const void *a, const void *b)
{
    const struct proc *x = a, *y = b;
    return (x->pid > y->pid) - (x->pid < y->pid);
}

/* One line of /proc/<pid>/stat: state is field 3, ppid 4, starttime 22. The name in field 2 may hold anything, so from the last ')'. */
static bool parse_stat(char *line, struct proc *p)
{
    char *at = strrchr(line, ')');
    if (!at || at[1] != ' ' || at[2] == 'Z' || at[2] == 'X')
        return false;
    at += 3;
    p->ppid = (pid_t)strtol(at, &at, 10);
    for (int field = 5; field < 22; field++)
        (void)strtoll(at, &at, 10);
    p->start = strtoull(at, NULL, 10);
    return true;
}

static bool procs_read(struct procs *ps)
{
    char room[8192] __attribute__((aligned(8))), line[1024], name[32];
    const struct dirent64 *e;
    ps->n = 0;
    int dirfd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dirfd < 0)
        return false;
    struct dir d = { .fd = dirfd, .buf = room, .cap = sizeof room };
    while ((e = dir_next(&d)) && ps->n < PROCS_MAX) {
        struct proc p = { .pid = (pid_t)strtol(e->d_name, NULL, 10) };
        if (p.pid <= 0)
            continue;
        snprintf(name, sizeof name, "%d/stat", (int)p.pid);
        int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC);
        ssize_t got = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
        if (fd >= 0)
            close(fd);
        if (got <= 0)
            continue;
        line[got] = 0;
        if (!parse_stat(line, &p))
            continue;
        if (ps->n == ps->cap) {
            size_t cap = ps->cap ? 2 * ps->cap : 256;
            struct proc *v = reallocarray(ps->v, cap, sizeof *v);
            if (!v)
                break;
            ps->v = v;
            ps->cap = cap;
        }
        ps->v[ps->n++] = p;
    }
    close(dirfd);
    if (ps->n)
        qsort(ps->v, ps->n, sizeof *ps->v, by_pid);
    struct proc me = { .pid = getpid() };
    return ps->n && bsearch(&me, ps->v, ps->n, sizeof me, by_pid);     /* else it is the /proc of another pid namespace */
}

/* Whether p belongs to what is to end. What hangs on the shell or (orphaned) on us is judged by its oldest ancestor below that. */
static bool is_victim(const struct procs *ps, const struct proc *p, pid_t shell, uint64_t since)
{
    pid_t self = getpid();
    for (size_t steps = 0; steps < ps->n; steps++) {
        if (p->pid == self)
            return false;
        if (p->pid == shell)
            return true;
        if (p->ppid == shell || p->ppid == self)
            return p->start >= since;
        struct proc key = { .pid = p->ppid };
        p = bsearch(&key, ps->v, ps->n, sizeof key, by_pid);
        if (!p)                 /* not ours, or orphaned between two reads: the next round sees it again */
            return false;
    }
    return false;
}

static void kill_rounds(pid_t shell, uint64_t since)
{
    struct procs ps = { 0 };
    bool quiet = false;
    for (int round = 0; round < KILL_ROUNDS_MAX && !quiet; round++) {
        if (!procs_read(&ps))
            break;
        quiet = true;
        for (size_t i = 0; i < ps.n; i++)
            if (ps.v[i].pid != getpid() && is_victim(&ps, &ps.v[i], shell, since)) {
                (void)kill(ps.v[i].pid, SIGKILL);
                quiet = false;
            }
        loop_reap();
        if (!quiet)
            (void)poll(NULL, 0, KILL_ROUND_MS);
    }
    free(ps.v);
    if (!quiet && getpid() == 1)
        (void)kill(-1, SIGKILL);
}

void kill_command(pid_t shell, uint64_t since_ticks)
{
    if (shell > 0) {
        (void)kill(shell, SIGKILL);
        kill_rounds(shell, since_ticks);
    }
}

void kill_everything(void)
{
    if (getpid() == 1)
        (void)kill(-1, SIGKILL);
    else
        kill_rounds(-1, 0);
}
