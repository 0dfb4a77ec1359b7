/* ev/ev_proc.c - signals by signalfd and child processes by pidfd. */
#include <errno.h>
#include <signal.h>
#include <sys/pidfd.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#include "base/str.h"
#include "ev/ev.h"
#include "ev/ev_internal.h"

#define SIGNAL_MAX 65   /* NSIG of Linux */

struct ev_signals {
    struct ev_io io;
    int fd;
    sigset_t set;
    struct { void (*cb)(void *ctx, int signo); void *ctx; } rows[SIGNAL_MAX];
};

static void on_signalfd(struct ev_io *io, unsigned got)
{
    (void)got;
    struct ev_signals *s = container_of(io, struct ev_signals, io);
    struct signalfd_siginfo si;
    /* One per turn: the callback may free the loop's users; level-triggered, so the next one is not lost. */
    if (read(s->fd, &si, sizeof si) != (ssize_t)sizeof si)
        return;
    if (si.ssi_signo < SIGNAL_MAX && s->rows[si.ssi_signo].cb)
        s->rows[si.ssi_signo].cb(s->rows[si.ssi_signo].ctx, (int)si.ssi_signo);
}

int ev_signal(struct ev *ev, int signo, void (*cb)(void *ctx, int signo), void *ctx, struct err *e)
{
    if (signo < 1 || signo >= SIGNAL_MAX)
        return err_set(e, RC_INVALID, "no signal has the number %d", signo);
    struct ev_signals **place = ev_signals_place(ev);
    if (!*place) {
        struct ev_signals *n = xcalloc(1, sizeof *n);
        sigemptyset(&n->set);
        n->fd = -1;
        *place = n;
    }
    struct ev_signals *s = *place;
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, signo);
    sigaddset(&s->set, signo);
    if (pthread_sigmask(SIG_BLOCK, &one, NULL) != 0)
        return err_set(e, RC_IO, "block signal %d", signo);
    int fd = signalfd(s->fd, &s->set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0)
        return err_sys(e, RC_IO, errno, "signalfd for signal %d", signo);
    if (s->fd < 0) {
        s->fd = fd;
        if (ev_io_start(ev, &s->io, fd, EV_READ, on_signalfd) < 0)
            return err_set(e, RC_IO, "watch the signalfd");
    }
    s->rows[signo].cb = cb;
    s->rows[signo].ctx = ctx;
    return RC_OK;
}

void ev_signals_free(struct ev_signals *s)
{
    if (!s)
        return;
    ev_io_stop(&s->io);
    if (s->fd >= 0)
        (void)close(s->fd);
    free(s);
}

static void on_pidfd(struct ev_io *io, unsigned got)
{
    (void)got;
    struct ev_child *c = container_of(io, struct ev_child, io);
    int status = 0;
    pid_t r;
    do {
        r = waitpid(c->pid, &status, WNOHANG);
    } while (r < 0 && errno == EINTR);
    if (r == 0)
        return;                 /* not yet */
    if (r < 0)
        status = 0;             /* someone else reaped it: its status is lost, its end is not */
    ev_child_stop(c);
    c->cb(c, status);
}

int ev_child_start(struct ev *ev, struct ev_child *c, pid_t pid, void (*cb)(struct ev_child *, int))
{
    int fd = pidfd_open(pid, 0);        /* always close-on-exec */
    if (fd < 0)
        return errno == ESRCH ? RC_NOT_FOUND : RC_IO;
    c->pid = pid;
    c->cb = cb;
    int rc = ev_io_start(ev, &c->io, fd, EV_READ, on_pidfd);
    if (rc < 0)
        (void)close(fd);
    return rc;
}

void ev_child_stop(struct ev_child *c)
{
    if (!c->io.ev)
        return;
    ev_io_stop(&c->io);
    (void)close(c->io.fd);
    c->io.fd = -1;
}
