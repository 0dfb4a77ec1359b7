/* Sandbox start, side by side with bubblewrap in the same run: a fresh sandbox with all layers that runs /bin/true; the claim of a warm one until its
 * program runs; a command in a running session. Medians, and the ratio to bwrap with the same mounts. Prints lines
 * "row | ours | reference | ratio | goal". Arguments: rounds (default 60), "root" or "user" (default: whoever runs it). */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/str.h"
#include "worker/sandbox/internal.h"

#define ROUNDS_MAX 2000
#define NOBODY 65534

static struct ev *ev;
static char state[] = "/tmp/outwork-bench-XXXXXX";
static struct sbx_policy policy;

static int cmp(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

static double at(int64_t *v, size_t n, double q)
{
    qsort(v, n, sizeof *v, cmp);
    return (double)v[(size_t)((double)(n - 1) * q)];
}

static void die(const char *what, const char *why)
{
    (void)fprintf(stderr, "sbx_bench: %s: %s\n", what, why);
    exit(1);
}

/* ---- the reference ---- */

static int64_t run_once(char *const argv[])
{
    int64_t t0 = clock_mono_us();
    pid_t pid = vfork();
    if (pid == 0) {
        (void)execv(argv[0], argv);
        _exit(127);
    }
    int status = 0;
    if (pid < 0 || waitpid(pid, &status, 0) < 0 || status != 0)
        die(argv[0], "did not run");
    return clock_mono_us() - t0;
}

static char bwrap_work[64];
static char *const bwrap[] = { "/usr/bin/bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox", "--uid", "1000", "--gid", "1000",
                               "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/sbin", "/sbin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64",
                               "--ro-bind", "/etc/alternatives", "/etc/alternatives", "--ro-bind", "/etc/ssl/certs", "/etc/ssl/certs", "--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache",
                               "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/dev/shm", "--bind", bwrap_work, "/workspace", "--chdir", "/workspace", "/bin/true", NULL };
static char *const bare[] = { "/bin/true", NULL };

/* ---- ours ---- */

struct wait { bool done; struct sbx *s; int rc; };

static void on_claim(void *ctx, int rc, struct sbx *s, const struct err *e)
{
    struct wait *w = ctx;
    if (rc < 0)
        die("claim", e->msg);
    w->s = s;
    w->done = true;
}

static void on_death(void *ctx, const char *why)
{
    (void)why;
    ((struct wait *)ctx)->done = true;
}

static void on_call(void *ctx, int rc, const struct inside_res *h, const char *body, size_t n, const struct err *e)
{
    (void)h, (void)body, (void)n;
    if (rc < 0)
        die("call", e->msg);
    ((struct wait *)ctx)->done = true;
}

static void turn(struct wait *w)
{
    while (!w->done)
        (void)ev_run_once(ev, 1000);
    w->done = false;
}

static void claim(struct sbx_host *h, const char *id, struct wait *w)
{
    *w = (struct wait){ 0 };
    sbx_claim(h, id, on_claim, w);
    turn(w);
}

static struct sbx_host *start(size_t warm, const struct sbx_payload *p)
{
    struct err e = { 0 };
    struct sbx_host *h = NULL;
    int rc = p ? sbx_host_start_with(ev, &policy, warm, p, &h, &e) : sbx_host_start(ev, &policy, warm, &h, &e);
    if (rc < 0)
        die("start", e.msg);
    return h;
}

static void wait_warm(struct sbx_host *h, size_t n)
{
    while (sbx_host_ready(h) < n)
        (void)ev_run_once(ev, 5);
}

/* A program that is over before its claim was told ends as a failed claim. */
static void on_fresh(void *ctx, int rc, struct sbx *s, const struct err *e)
{
    struct wait *w = ctx;
    if (rc < 0 && !strstr(e->msg, "ended with status 0"))
        die("claim", e->msg);
    w->s = rc < 0 ? NULL : s;
    w->done = true;
}

/* /bin/true as PID 1 of a sandbox with every layer: made, run, reaped, told. The session exists, as bwrap's directory does. */
static void fresh(struct sbx_host *h, int64_t *v, size_t i)
{
    struct wait w = { 0 };
    int64_t t0 = clock_mono_us();
    sbx_claim(h, "sesn_bench", on_fresh, &w);
    turn(&w);
    if (w.s) {
        sbx_on_death(w.s, on_death, &w);
        turn(&w);
    }
    v[i] = clock_mono_us() - t0;
    if (w.s)
        sbx_close(w.s);
    (void)ev_run_once(ev, 0);
}

static void print_row(const char *name, double us, double ref, const char *goal)
{
    printf("%s | %.0f us | %.0f us | %.3f | %s\n", name, us, ref, us / ref, goal);
}

int main(int argc, char **argv)
{
    int64_t rounds = 60;
    for (int i = 1; i < argc; i++) {
        if (str_eq(argv[i], "user") && geteuid() == 0) {
            if (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)
                die("user", strerror(errno));
        } else if (!str_eq(argv[i], "root") && !str_eq(argv[i], "user") && str_to_i64(argv[i], 5, ROUNDS_MAX, &rounds) < 0) {
            die(argv[i], "rounds are 5 to 2000");
        }
    }
    size_t n = (size_t)rounds;
    struct err e = { 0 };
    if (!mkdtemp(state) || ev_new(&ev, &e) < 0)
        die("start", e.msg);
    (void)snprintf(bwrap_work, sizeof bwrap_work, "%s", state);
    policy = (struct sbx_policy){ .limits = sbx_limits_default, .state_dir = state };
    int64_t *v[6];
    for (size_t i = 0; i < COUNT_OF(v); i++)
        v[i] = xcalloc(n, sizeof **v);

    const struct sbx_payload just_true = { .path = "/bin/true" };
    struct sbx_host *h = start(0, &just_true);
    bool have = access(bwrap[0], X_OK) == 0;
    for (size_t i = 0; i < n; i++) {            /* candidates alternate, so that the machine's mood hits all */
        v[0][i] = run_once(bare);
        v[1][i] = have ? run_once(bwrap) : 0;
        fresh(h, v[2], i);
    }
    sbx_host_stop(h);
    (void)ev_run_once(ev, 0);

    h = start(4, NULL);
    static const char cmd[] = "true";
    struct inside_req q = { .op = INSIDE_BASH }, ping = { .op = INSIDE_PING };
    for (size_t i = 0; i < n; i++) {
        char id[32];
        struct wait w;
        (void)snprintf(id, sizeof id, "sesn_%zu", i);
        wait_warm(h, 4);
        int64_t t0 = clock_mono_us();
        claim(h, id, &w);
        sbx_call(w.s, &ping, NULL, 0, on_call, &w);
        turn(&w);
        v[3][i] = clock_mono_us() - t0;
        sbx_call(w.s, &q, cmd, sizeof cmd, on_call, &w);
        turn(&w);
        t0 = clock_mono_us();
        sbx_call(w.s, &q, cmd, sizeof cmd, on_call, &w);
        turn(&w);
        v[4][i] = clock_mono_us() - t0;
        sbx_close(w.s);
        if (sbx_forget(h, id, &e) < 0)
            die("forget", e.msg);
        (void)ev_run_once(ev, 0);
        /* the same, with the first command in place of the answer of PID 1 */
        (void)snprintf(id, sizeof id, "sesn_b%zu", i);
        wait_warm(h, 4);
        t0 = clock_mono_us();
        claim(h, id, &w);
        sbx_call(w.s, &q, cmd, sizeof cmd, on_call, &w);
        turn(&w);
        v[5][i] = clock_mono_us() - t0;
        sbx_close(w.s);
        (void)ev_run_once(ev, 0);
    }
    sbx_host_stop(h);
    (void)ev_run_once(ev, 0);
    if (fd_remove_tree(AT_FDCWD, state, &e) < 0)
        (void)fprintf(stderr, "sbx_bench: %s stays: %s\n", state, e.msg);

    double ref = have ? at(v[1], n, 0.5) : 0;
    if (!have)
        (void)fprintf(stderr, "sbx_bench: no bwrap here: ratios are to a bare /bin/true\n");
    ref = have ? ref : at(v[0], n, 0.5);
    const char *against = have ? "bwrap" : "bare exec";
    char name[120];
    (void)snprintf(name, sizeof name, "fresh sandbox + /bin/true, vs %s with the same mounts", against);
    print_row(name, at(v[2], n, 0.5), ref, "<= 0.5");
    (void)snprintf(name, sizeof name, "claim of a warm sandbox until its program answers, vs %s", against);
    print_row(name, at(v[3], n, 0.5), ref, "<= 0.06");
    (void)snprintf(name, sizeof name, "claim of a warm sandbox and its first bash command, vs %s", against);
    print_row(name, at(v[5], n, 0.5), ref, "-");
    (void)snprintf(name, sizeof name, "bash command in a running session, vs bare exec");
    print_row(name, at(v[4], n, 0.5), at(v[0], n, 0.5), "-");
    return 0;
}
