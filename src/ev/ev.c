/* ev/ev.c - epoll (level-triggered), timers in a binary heap, and the queue of ev_post().
 *
 * The kernel never holds a pointer to a caller's struct: an epoll event carries a slot number and the slot's generation. ev_io_stop() changes
 * the generation, so that an event which was collected before is recognised as stale, also when the caller has freed the struct. */
#include "ev/ev.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "base/clock.h"
#include "base/str.h"
#include "ev/ev_internal.h"

#define EV_EVENTS_PER_TURN 128  /* I/O events taken from the kernel at once */
#define EV_POSTS_PER_TURN 512   /* posts run before I/O is looked at again */
#define EV_SLEEP_MAX_MS 60000   /* upper end of one wait; only bounds arithmetic */
#define WAKE_ID UINT64_MAX

struct slot { struct ev_io *io; uint32_t gen, next_free; };     /* next_free: index + 1, 0 ends the list */
struct heap_item { int64_t due_ms; uint64_t seq; struct ev_timer *t; };
struct post { void (*fn)(void *); void *arg; };
struct post_queue { struct post *v; size_t n, cap; };

struct ev {
    int epfd, wakefd;
    int64_t now_ms;
    atomic_bool stopped;

    struct slot *slots;
    size_t n_slots;
    uint32_t free_slot;

    struct heap_item *heap;     /* [1..n_heap] */
    size_t n_heap, cap_heap;
    uint64_t timer_seq;

    pthread_mutex_t lock;       /* guards the four below */
    struct post_queue in;
    bool asleep, woken;
    struct post_queue run;      /* loop thread only: being run, from `run_at` */
    size_t run_at;

    struct ev_signals *signals;
};

/* ---- timers ---- */

static bool item_before(const struct heap_item *a, const struct heap_item *b)
{
    return a->due_ms != b->due_ms ? a->due_ms < b->due_ms : a->seq < b->seq;
}

static void heap_place(struct ev *ev, size_t i, struct heap_item it)
{
    ev->heap[i] = it;
    it.t->pos_ = i;
}

static void heap_up(struct ev *ev, size_t i, struct heap_item it)
{
    for (; i > 1 && item_before(&it, &ev->heap[i / 2]); i /= 2)
        heap_place(ev, i, ev->heap[i / 2]);
    heap_place(ev, i, it);
}

static void heap_down(struct ev *ev, size_t i, struct heap_item it)
{
    for (size_t c; (c = 2 * i) <= ev->n_heap; i = c) {
        if (c < ev->n_heap && item_before(&ev->heap[c + 1], &ev->heap[c]))
            c++;
        if (!item_before(&ev->heap[c], &it))
            break;
        heap_place(ev, i, ev->heap[c]);
    }
    heap_place(ev, i, it);
}

static void heap_fix(struct ev *ev, size_t i, struct heap_item it)
{
    if (i > 1 && item_before(&it, &ev->heap[i / 2]))
        heap_up(ev, i, it);
    else
        heap_down(ev, i, it);
}

void ev_timer_set(struct ev *ev, struct ev_timer *t, int64_t in_ms, void (*cb)(struct ev_timer *))
{
    /* One more than asked, since the clock is cut to whole milliseconds: a timer may be late, never early. */
    int64_t due = in_ms <= 0 ? ev->now_ms : clock_mono_ms() + (in_ms < INT64_MAX / 4 ? in_ms : INT64_MAX / 4) + 1;
    t->cb = cb;
    t->due_ms = due;
    t->ev = ev;
    struct heap_item it = { due, ++ev->timer_seq, t };
    if (t->pos_) {
        heap_fix(ev, t->pos_, it);
        return;
    }
    if (ev->n_heap + 2 > ev->cap_heap) {
        ev->cap_heap = ev->cap_heap ? ev->cap_heap * 2 : 64;
        ev->heap = xrealloc(ev->heap, ev->cap_heap, sizeof *ev->heap);
    }
    heap_up(ev, ++ev->n_heap, it);
}

void ev_timer_stop(struct ev_timer *t)
{
    size_t i = t->pos_;
    if (!i)
        return;
    struct ev *ev = t->ev;
    struct heap_item last = ev->heap[ev->n_heap--];
    t->pos_ = 0;
    if (last.t != t)
        heap_fix(ev, i, last);
}

bool ev_timer_armed(const struct ev_timer *t)
{
    return t->pos_ != 0;
}

/* Runs what is due. A timer armed by one of these callbacks waits for the next turn, so that a chain of zero delays cannot hold the loop. */
static void run_timers(struct ev *ev)
{
    uint64_t fence = ev->timer_seq;
    while (ev->n_heap && ev->heap[1].due_ms <= ev->now_ms && ev->heap[1].seq <= fence) {
        struct ev_timer *t = ev->heap[1].t;
        ev_timer_stop(t);
        t->cb(t);
    }
}

/* ---- descriptors ---- */

static uint32_t to_epoll(unsigned want)
{
    return (want & EV_READ ? (uint32_t)EPOLLIN : 0) | (want & EV_WRITE ? (uint32_t)EPOLLOUT : 0);
}

static unsigned from_epoll(uint32_t got)
{
    return (got & EPOLLIN ? EV_READ : 0) | (got & EPOLLOUT ? EV_WRITE : 0) | (got & (EPOLLERR | EPOLLHUP) ? EV_HUP : 0);
}

static uint32_t slot_take(struct ev *ev)
{
    if (!ev->free_slot) {
        size_t n = ev->n_slots ? ev->n_slots * 2 : 64;
        ev->slots = xrealloc(ev->slots, n, sizeof *ev->slots);
        for (size_t i = n; i-- > ev->n_slots;) {
            ev->slots[i] = (struct slot){ .gen = 1, .next_free = ev->free_slot };
            ev->free_slot = (uint32_t)i + 1;
        }
        ev->n_slots = n;
    }
    uint32_t i = ev->free_slot - 1;
    ev->free_slot = ev->slots[i].next_free;
    return i;
}

static void slot_give(struct ev *ev, uint32_t i)
{
    struct slot *s = &ev->slots[i];
    s->io = NULL;
    s->gen++;
    s->next_free = ev->free_slot;
    ev->free_slot = i + 1;
}

/* gen_ = generation in the upper half, slot number in the lower one: what epoll carries. */
int ev_io_start(struct ev *ev, struct ev_io *io, int fd, unsigned want, void (*cb)(struct ev_io *, unsigned))
{
    if (io->ev)
        return RC_CONFLICT;     /* started already */
    uint32_t i = slot_take(ev);
    uint64_t id = (uint64_t)ev->slots[i].gen << 32 | i;
    struct epoll_event ee = { .events = to_epoll(want), .data.u64 = id };
    if (epoll_ctl(ev->epfd, EPOLL_CTL_ADD, fd, &ee) < 0) {
        int err = errno;
        slot_give(ev, i);
        return err == ENOMEM || err == ENOSPC ? RC_NOMEM : RC_IO;
    }
    ev->slots[i].io = io;
    *io = (struct ev_io){ .fd = fd, .want = want, .cb = cb, .ev = ev, .gen_ = id };
    return RC_OK;
}

void ev_io_want(struct ev_io *io, unsigned want)
{
    want &= EV_READ | EV_WRITE;
    if (!io->ev || io->want == want)
        return;
    io->want = want;
    struct epoll_event ee = { .events = to_epoll(want), .data.u64 = io->gen_ };
    (void)epoll_ctl(io->ev->epfd, EPOLL_CTL_MOD, io->fd, &ee);  /* cannot fail for a registered descriptor */
}

void ev_io_stop(struct ev_io *io)
{
    if (!io->ev)
        return;
    (void)epoll_ctl(io->ev->epfd, EPOLL_CTL_DEL, io->fd, NULL);
    slot_give(io->ev, (uint32_t)io->gen_);
    io->ev = NULL;
}

static void dispatch(struct ev *ev, const struct epoll_event *ee)
{
    if (ee->data.u64 == WAKE_ID)
        return;                                         /* posts run at the end of the turn */
    const struct slot *s = &ev->slots[(uint32_t)ee->data.u64];
    struct ev_io *io = s->io;
    if (!io || s->gen != (uint32_t)(ee->data.u64 >> 32))
        return;                                         /* stopped since it was collected */
    unsigned got = from_epoll(ee->events) & (io->want | EV_HUP);
    if (got)
        io->cb(io, got);
}

/* ---- posts ---- */

static void queue_push(struct post_queue *q, struct post p)
{
    if (q->n == q->cap) {
        q->cap = q->cap ? q->cap * 2 : 64;
        q->v = xrealloc(q->v, q->cap, sizeof *q->v);
    }
    q->v[q->n++] = p;
}

static void wake(struct ev *ev)
{
    uint64_t one = 1;
    while (write(ev->wakefd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

void ev_post(struct ev *ev, void (*fn)(void *arg), void *arg)
{
    pthread_mutex_lock(&ev->lock);
    queue_push(&ev->in, (struct post){ fn, arg });
    bool need = ev->asleep && !ev->woken;
    ev->woken = ev->woken || need;
    pthread_mutex_unlock(&ev->lock);
    if (need)
        wake(ev);
}

/* Runs at most EV_POSTS_PER_TURN posts that were there when it began. */
static void run_posts(struct ev *ev)
{
    if (ev->run_at == ev->run.n) {
        pthread_mutex_lock(&ev->lock);
        struct post_queue q = ev->in;
        ev->in = ev->run;       /* swap: the arrays are used again */
        ev->in.n = 0;
        pthread_mutex_unlock(&ev->lock);
        ev->run = q;
        ev->run_at = 0;
    }
    for (size_t i = 0; i < EV_POSTS_PER_TURN && ev->run_at < ev->run.n; i++) {
        struct post p = ev->run.v[ev->run_at++];
        p.fn(p.arg);
    }
}

/* ---- the loop ---- */

int ev_new(struct ev **ret, struct err *e)
{
    (void)signal(SIGPIPE, SIG_IGN);     /* a peer that hangs up is an error code, never the end of the process */
    struct ev *ev = xcalloc(1, sizeof *ev);
    pthread_mutex_init(&ev->lock, NULL);
    ev->now_ms = clock_mono_ms();
    ev->epfd = epoll_create1(EPOLL_CLOEXEC);
    ev->wakefd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    /* Edge-triggered: each write wakes once, and nobody has to read the counter (2^64 wake-ups are out of reach). */
    struct epoll_event ee = { .events = EPOLLIN | EPOLLET, .data.u64 = WAKE_ID };
    if (ev->epfd < 0 || ev->wakefd < 0 || epoll_ctl(ev->epfd, EPOLL_CTL_ADD, ev->wakefd, &ee) < 0) {
        int rc = err_sys(e, RC_IO, errno, "event loop: epoll or eventfd");
        ev_free(ev);
        return rc;
    }
    *ret = ev;
    return RC_OK;
}

void ev_free(struct ev *ev)
{
    if (!ev)
        return;
    ev_signals_free(ev->signals);
    if (ev->wakefd >= 0)
        (void)close(ev->wakefd);
    if (ev->epfd >= 0)
        (void)close(ev->epfd);
    pthread_mutex_destroy(&ev->lock);
    free(ev->in.v);
    free(ev->run.v);
    free(ev->heap);
    free(ev->slots);
    free(ev);
}

struct ev_signals **ev_signals_place(struct ev *ev)
{
    return &ev->signals;
}

/* How long to wait: not at all when posts are left or a timer is due, else until the next timer. Declares us asleep when we may wait. */
static int sleep_begin(struct ev *ev, int timeout_ms)
{
    int64_t wait = timeout_ms < 0 ? EV_SLEEP_MAX_MS : timeout_ms;
    if (ev->n_heap && wait > 0) {
        int64_t left = ev->heap[1].due_ms - clock_mono_ms();
        wait = left < 0 ? 0 : left < wait ? left : wait;
    }
    if (ev->run_at < ev->run.n)
        wait = 0;
    pthread_mutex_lock(&ev->lock);
    if (ev->in.n > 0)
        wait = 0;
    ev->asleep = wait > 0;
    pthread_mutex_unlock(&ev->lock);
    return (int)wait;
}

static void sleep_end(struct ev *ev)
{
    pthread_mutex_lock(&ev->lock);
    ev->asleep = ev->woken = false;
    pthread_mutex_unlock(&ev->lock);
    ev->now_ms = clock_mono_ms();
}

bool ev_run_once(struct ev *ev, int timeout_ms)
{
    if (atomic_load(&ev->stopped))
        return false;
    struct epoll_event got[EV_EVENTS_PER_TURN];
    int wait = sleep_begin(ev, timeout_ms);
    int n = epoll_wait(ev->epfd, got, EV_EVENTS_PER_TURN, wait);
    if (wait > 0)
        sleep_end(ev);
    else
        ev->now_ms = clock_mono_ms();
    for (int i = 0; i < n; i++)
        dispatch(ev, &got[i]);
    run_timers(ev);
    run_posts(ev);
    return !atomic_load(&ev->stopped);
}

void ev_run(struct ev *ev)
{
    while (ev_run_once(ev, -1)) {
    }
}

void ev_stop(struct ev *ev)
{
    atomic_store(&ev->stopped, true);
    wake(ev);
}

int64_t ev_now_ms(struct ev *ev)
{
    return ev->now_ms;
}
