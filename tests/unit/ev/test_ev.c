#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "ev/ev.h"

static struct ev *loop;

static int setup(void **st)
{
    (void)st;
    struct err e;
    return ev_new(&loop, &e);
}

static int teardown(void **st)
{
    (void)st;
    ev_free(loop);
    return 0;
}

struct watched { struct ev_io io; unsigned got; int calls; struct watched *stop_other; bool want_none; };

static void on_io(struct ev_io *io, unsigned got)
{
    struct watched *w = container_of(io, struct watched, io);
    w->got = got;
    w->calls++;
    if (w->stop_other) {
        ev_io_stop(&w->stop_other->io);
        memset(w->stop_other, 0xA5, sizeof w->stop_other->io);     /* as if freed */
        w->stop_other->io.ev = NULL;
    }
    if (w->want_none)
        ev_io_want(io, 0);
}

static void pair(int fds[2])
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
}

static void test_io(void **st)
{
    (void)st;
    int f[2];
    pair(f);
    struct watched w = { 0 };
    ev_io_stop(&w.io);                          /* harmless when not started */
    assert_int_equal(ev_io_start(loop, &w.io, f[0], EV_READ, on_io), RC_OK);
    assert_int_equal(ev_io_start(loop, &w.io, f[0], EV_READ, on_io), RC_CONFLICT);
    ev_run_once(loop, 0);
    assert_int_equal(w.calls, 0);
    assert_int_equal(write(f[1], "x", 1), 1);
    ev_run_once(loop, 100);
    ev_run_once(loop, 100);                     /* level-triggered: again while unread */
    assert_int_equal(w.calls, 2);
    assert_int_equal(w.got, EV_READ);
    ev_io_want(&w.io, EV_WRITE);
    ev_run_once(loop, 100);
    assert_int_equal(w.got, EV_WRITE);
    ev_io_want(&w.io, 0);
    ev_run_once(loop, 0);
    assert_int_equal(w.calls, 3);
    close(f[1]);
    ev_run_once(loop, 100);                     /* hang-up comes though nothing is wanted */
    assert_int_equal(w.got, EV_HUP);
    ev_io_stop(&w.io);
    ev_run_once(loop, 0);
    assert_int_equal(w.calls, 4);
    close(f[0]);
    struct watched bad = { 0 };
    assert_int_equal(ev_io_start(loop, &bad.io, -1, EV_READ, on_io), RC_IO);
    assert_null(bad.io.ev);
}

static void test_stop_in_same_turn(void **st)
{
    (void)st;
    int a[2], b[2];
    pair(a);
    pair(b);
    struct watched x = { 0 }, y = { 0 };
    x.stop_other = &y;
    y.stop_other = &x;
    assert_int_equal(ev_io_start(loop, &x.io, a[0], EV_READ, on_io), RC_OK);
    assert_int_equal(ev_io_start(loop, &y.io, b[0], EV_READ, on_io), RC_OK);
    assert_int_equal(write(a[1], "x", 1) + write(b[1], "x", 1), 2);
    ev_run_once(loop, 100);                     /* both are ready; whoever is first ends the other */
    assert_int_equal(x.calls + y.calls, 1);
    struct watched *left = x.calls ? &x : &y;
    left->stop_other = NULL;
    /* The freed slot is used again at once: the stale generation must not reach the new owner. */
    struct watched z = { 0 };
    assert_int_equal(ev_io_start(loop, &z.io, x.calls ? b[0] : a[0], 0, on_io), RC_OK);
    ev_run_once(loop, 0);
    assert_int_equal(z.calls, 0);
    ev_io_stop(&left->io);
    ev_io_stop(&z.io);
    for (int i = 0; i < 2; i++) {
        close(a[i]);
        close(b[i]);
    }
}

static void test_want_is_checked_at_delivery(void **st)
{
    (void)st;
    int f[2];
    pair(f);
    struct watched w = { .want_none = true };
    assert_int_equal(ev_io_start(loop, &w.io, f[0], EV_READ | EV_WRITE, on_io), RC_OK);
    ev_run_once(loop, 100);
    ev_run_once(loop, 0);
    assert_int_equal(w.calls, 1);
    ev_io_stop(&w.io);
    close(f[0]);
    close(f[1]);
}

static int order[64], n_order;
struct tm_ { struct ev_timer t; int id; bool again; };

static void on_tm(struct ev_timer *t)
{
    struct tm_ *m = container_of(t, struct tm_, t);
    assert_false(ev_timer_armed(t));
    if (n_order < 64)
        order[n_order++] = m->id;
    if (m->again)
        ev_timer_set(loop, t, 0, on_tm);
}

static void test_timers(void **st)
{
    (void)st;
    n_order = 0;
    struct tm_ t[8] = { 0 };
    static const int64_t in[8] = { 30, 10, 20, 10, 0, 25, 5, 15 };
    int64_t t0 = clock_mono_us();
    for (int i = 0; i < 8; i++) {
        t[i].id = i;
        ev_timer_set(loop, &t[i].t, in[i], on_tm);
    }
    assert_int_equal(n_order, 0);               /* never inside the call */
    ev_timer_stop(&t[5].t);
    ev_timer_stop(&t[5].t);
    ev_timer_set(loop, &t[6].t, 40, on_tm);     /* re-armed later */
    while (n_order < 7)
        ev_run_once(loop, 100);
    static const int want[7] = { 4, 1, 3, 7, 2, 0, 6 };
    assert_memory_equal(order, want, sizeof want);
    assert_true(clock_mono_us() - t0 >= 40000);
    assert_false(ev_timer_armed(&t[5].t));
}

static void test_timer_random(void **st)
{
    (void)st;
    enum { N = 500 };
    static struct tm_ t[N];
    unsigned seed = 7;
    int armed = 0;
    memset(t, 0, sizeof t);
    for (int k = 0; k < 5000; k++) {            /* sets, moves and stops in any order keep the heap a heap */
        seed = seed * 1103515245u + 12345u;
        struct tm_ *x = &t[(seed >> 8) % N];
        if (seed >> 30 == 0)
            ev_timer_stop(&x->t);
        else
            ev_timer_set(loop, &x->t, (seed >> 16) % 20 + 1, on_tm);
    }
    for (int i = 0; i < N; i++)
        armed += ev_timer_armed(&t[i].t);
    n_order = -100000;                          /* count only */
    int64_t end = clock_mono_ms() + 2000;
    int left = armed;
    while (left && clock_mono_ms() < end) {
        n_order = 0;
        ev_run_once(loop, 50);
        left = 0;
        for (int i = 0; i < N; i++)
            left += ev_timer_armed(&t[i].t);
    }
    assert_true(armed > 100);
    assert_int_equal(left, 0);
}

static void test_zero_timer_does_not_starve(void **st)
{
    (void)st;
    n_order = 0;
    struct tm_ a = { .id = 1, .again = true };
    ev_timer_set(loop, &a.t, 0, on_tm);
    ev_run_once(loop, 0);
    assert_int_equal(n_order, 1);
    ev_run_once(loop, 0);
    assert_int_equal(n_order, 2);
    ev_timer_stop(&a.t);
}

static int posted[5000], n_posted;
static void on_post(void *arg) { posted[n_posted++] = (int)(intptr_t)arg; }
static void on_post_again(void *arg)
{
    n_posted++;
    ev_post(loop, on_post_again, arg);
}

static void *poster(void *arg)
{
    for (intptr_t i = 0; i < 1000; i++)
        ev_post(loop, on_post, (void *)((intptr_t)arg * 1000 + i));
    return NULL;
}

static void test_post(void **st)
{
    (void)st;
    n_posted = 0;
    pthread_t th[4];
    for (intptr_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&th[i], NULL, poster, (void *)i), 0);
    int64_t end = clock_mono_ms() + 5000;
    while (n_posted < 4000 && clock_mono_ms() < end)
        ev_run_once(loop, 1000);
    for (int i = 0; i < 4; i++)
        pthread_join(th[i], NULL);
    assert_int_equal(n_posted, 4000);
    int last[4] = { -1, -1, -1, -1 };
    for (int i = 0; i < 4000; i++) {            /* order within a thread is kept */
        assert_true(posted[i] % 1000 == last[posted[i] / 1000] + 1);
        last[posted[i] / 1000]++;
    }
}

static void *late_poster(void *arg)
{
    usleep(30000);
    ev_post(loop, on_post, arg);
    return NULL;
}

static void test_post_wakes(void **st)
{
    (void)st;
    n_posted = 0;
    pthread_t th;
    assert_int_equal(pthread_create(&th, NULL, late_poster, NULL), 0);
    int64_t t0 = clock_mono_ms();
    while (!n_posted)
        ev_run_once(loop, 5000);
    assert_true(clock_mono_ms() - t0 < 3000);
    pthread_join(th, NULL);
}

static void test_posts_do_not_starve_io(void **st)
{
    (void)st;
    int f[2];
    pair(f);
    struct watched w = { 0 };
    assert_int_equal(ev_io_start(loop, &w.io, f[0], EV_WRITE, on_io), RC_OK);
    n_posted = 0;
    for (int i = 0; i < 3000; i++)
        ev_post(loop, on_post, NULL);
    ev_run_once(loop, 0);
    assert_true(n_posted < 3000);
    ev_run_once(loop, 5000);                    /* returns at once: posts are left */
    assert_int_equal(w.calls, 2);
    while (n_posted < 3000)
        ev_run_once(loop, 0);
    n_posted = 0;
    ev_post(loop, on_post_again, NULL);         /* posts itself for ever: one per turn */
    for (int i = 0; i < 10; i++)
        ev_run_once(loop, 0);
    assert_true(n_posted <= 10);
    ev_io_stop(&w.io);
    close(f[0]);
    close(f[1]);
}

static void *stopper(void *arg)
{
    usleep(20000);
    ev_stop(arg);
    return NULL;
}

static void test_stop(void **st)
{
    (void)st;
    pthread_t th;
    assert_int_equal(pthread_create(&th, NULL, stopper, loop), 0);
    ev_run(loop);
    pthread_join(th, NULL);
    assert_false(ev_run_once(loop, 1000));
}

static int signals;
static void on_sig(void *ctx, int signo) { signals += signo == SIGUSR1 && ctx == &signals; }

static void test_signal(void **st)
{
    (void)st;
    struct err e;
    assert_int_equal(ev_signal(loop, SIGUSR1, on_sig, &signals, &e), RC_OK);
    assert_int_equal(ev_signal(loop, SIGUSR2, on_sig, &signals, &e), RC_OK);
    assert_int_equal(ev_signal(loop, 0, on_sig, NULL, &e), RC_INVALID);
    assert_int_equal(ev_signal(loop, 65, on_sig, NULL, &e), RC_INVALID);
    kill(getpid(), SIGUSR1);
    ev_run_once(loop, 1000);
    assert_int_equal(signals, 1);
    kill(getpid(), SIGUSR2);
    ev_run_once(loop, 1000);
    assert_int_equal(signals, 1);
}

static int child_status, child_calls;
static void on_child(struct ev_child *c, int status)
{
    (void)c;
    child_status = status;
    child_calls++;
}

static pid_t child(int code)
{
    pid_t p = fork();
    if (p == 0) {
        if (code < 0)
            pause();
        _exit(code);
    }
    return p;
}

static void test_child(void **st)
{
    (void)st;
    struct ev_child c = { 0 };
    pid_t p = child(7);
    assert_int_equal(ev_child_start(loop, &c, p, on_child), RC_OK);
    while (child_calls < 1)
        ev_run_once(loop, 1000);
    assert_true(WIFEXITED(child_status) && WEXITSTATUS(child_status) == 7);
    assert_int_equal(waitpid(p, NULL, 0), -1);  /* reaped */
    p = child(-1);
    assert_int_equal(ev_child_start(loop, &c, p, on_child), RC_OK);
    ev_run_once(loop, 0);
    kill(p, SIGKILL);
    while (child_calls < 2)
        ev_run_once(loop, 1000);
    assert_true(WIFSIGNALED(child_status) && WTERMSIG(child_status) == SIGKILL);
    p = child(0);
    assert_int_equal(ev_child_start(loop, &c, p, on_child), RC_OK);
    ev_child_stop(&c);
    ev_child_stop(&c);
    ev_run_once(loop, 50);
    assert_int_equal(child_calls, 2);
    assert_int_equal(waitpid(p, NULL, 0), p);   /* the caller reaps */
    assert_int_equal(ev_child_start(loop, &c, p, on_child), RC_NOT_FOUND);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest t[] = {
        T(test_io), T(test_stop_in_same_turn), T(test_want_is_checked_at_delivery), T(test_timers), T(test_timer_random),
        T(test_zero_timer_does_not_starve), T(test_post), T(test_post_wakes), T(test_posts_do_not_starve_io), T(test_stop),
        T(test_signal), T(test_child),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
