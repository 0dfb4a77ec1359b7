/* ev/ev.h - the event loop: one thread, epoll, timers, signals, child processes, and a thread-safe post().
 * Everything here is called on the loop's thread, except ev_post() and ev_stop(). Callbacks never run inside the call that
 * registered them. After ev_x_stop() returns, that callback will not run again (also not for events already collected). */
#pragma once

#include <sys/types.h>

#include "base/attr.h"
#include "base/err.h"

struct ev;

MUST_CHECK int ev_new(struct ev **ret, struct err *e);
void ev_free(struct ev *ev);
void ev_run(struct ev *ev);                 /* until ev_stop() */
bool ev_run_once(struct ev *ev, int timeout_ms);   /* one turn, for tests; false when stopped */
void ev_stop(struct ev *ev);                /* thread-safe */
int64_t ev_now_ms(struct ev *ev);           /* monotonic, cached per turn */

#define EV_READ 1u
#define EV_WRITE 2u
#define EV_HUP 4u                           /* always reported: error or hang-up */

/* Caller's storage, embedded in the caller's struct; zero it before first use. */
struct ev_io {
    int fd; unsigned want;
    void (*cb)(struct ev_io *io, unsigned got);
    struct ev *ev; uint64_t gen_;           /* private */
};
MUST_CHECK int ev_io_start(struct ev *ev, struct ev_io *io, int fd, unsigned want, void (*cb)(struct ev_io *, unsigned));
void ev_io_want(struct ev_io *io, unsigned want);   /* 0 keeps only EV_HUP */
void ev_io_stop(struct ev_io *io);                  /* before close(); harmless when not started */

struct ev_timer {
    void (*cb)(struct ev_timer *t);
    int64_t due_ms; size_t pos_; struct ev *ev;     /* private; pos_ 0 = not armed */
};
void ev_timer_set(struct ev *ev, struct ev_timer *t, int64_t in_ms, void (*cb)(struct ev_timer *));   /* re-arms when armed */
void ev_timer_stop(struct ev_timer *t);
bool ev_timer_armed(const struct ev_timer *t);

/* Signals by signalfd; blocks `signo` for the whole process, so call before threads are made. */
MUST_CHECK int ev_signal(struct ev *ev, int signo, void (*cb)(void *ctx, int signo), void *ctx, struct err *e);

/* Child exit by pidfd. The child is reaped by the loop; `status` as from waitpid(). */
struct ev_child { void (*cb)(struct ev_child *c, int status); pid_t pid; struct ev_io io; };
MUST_CHECK int ev_child_start(struct ev *ev, struct ev_child *c, pid_t pid, void (*cb)(struct ev_child *, int));
void ev_child_stop(struct ev_child *c);     /* forgets it (the caller reaps) */

/* Thread-safe: `fn(arg)` runs on the loop's thread in a later turn, in the order of posting. Never fails (aborts without memory). */
void ev_post(struct ev *ev, void (*fn)(void *arg), void *arg);
