/* What a sandbox promises, tried from both sides. --as root|user; --attack, --misuse, --evil name the programs that run inside. */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/str.h"
#include "drive.h"

static const char *as = "";
struct program { char *data; size_t n; };
static struct program attack, misuse, evil;
static struct drive d;
static char death[ERR_MSG_MAX];
static bool dead;

static void on_death(void *ctx, const char *why)
{
    (void)ctx;
    dead = true;
    (void)str_copy(death, sizeof death, why);
}

static int start(void **state)
{
    (void)state;
    drive_init(&d);
    dead = false;
    death[0] = 0;
    return 0;
}

static int stop(void **state)
{
    (void)state;
    drive_stop(&d);
    return 0;
}

static void begin(size_t warm, const struct sbx_payload *payload)
{
    struct err e = { 0 };
    if (drive_start(&d, warm, payload, &e) < 0)
        fail_msg("%s", e.msg);
}

static struct sbx *claim(const char *id)
{
    struct err e = { 0 };
    struct sbx *s = NULL;
    if (drive_claim(&d, id, &s, &e) < 0)
        fail_msg("claim %s: %s", id, e.msg);
    sbx_on_death(s, on_death, NULL);
    return s;
}

static int bash(struct sbx *s, const char *cmd, char *out, size_t cap)
{
    struct drive_answer a;
    drive_bash(&d, s, cmd, 15000, &a);
    (void)str_copy(out, cap, a.rc == RC_OK ? a.body : a.e.msg);
    int rc = a.rc == RC_OK ? a.h.exit_status : a.rc;
    drive_answer_done(&a);
    return rc;
}

/* The shell has forked it; it may not have begun yet. */
static pid_t find_soon(const struct sbx *s, const char *text)
{
    pid_t pid = 0;
    for (int i = 0; i < 100 && !pid; i++) {
        pid = drive_find(s, text);
        if (!pid)
            (void)usleep(10000);
    }
    return pid;
}

static void put_misuse(struct sbx *s)
{
    assert_int_equal(drive_put(&d, s, "/workspace/misuse", misuse.data, misuse.n, 0755), RC_OK);
}

/* ---- */

static int listener(int *ret_port)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t n = sizeof a;
    int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s, (void *)&a, sizeof a), 0);
    assert_int_equal(listen(s, 4), 0);
    assert_int_equal(getsockname(s, (void *)&a, &n), 0);
    *ret_port = ntohs(a.sin_port);
    return s;
}

static int abstract_listener(const char *name)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    (void)str_copy(a.sun_path + 1, sizeof a.sun_path - 1, name);
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s, (void *)&a, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name))), 0);
    assert_int_equal(listen(s, 4), 0);
    return s;
}

static void run_attack(size_t warm)
{
    int port = 0;
    AUTO_CLOSE __attribute__((unused)) int l = listener(&port);      /* open while it lives */
    char name[40], canary[200], cmd[800];
    (void)snprintf(name, sizeof name, "outwork-test-%d", getpid());
    AUTO_CLOSE __attribute__((unused)) int u = abstract_listener(name);
    (void)snprintf(canary, sizeof canary, "%s.canary", d.state);
    FILE *f = fopen(canary, "w");
    (void)fputs("secret", f);
    (void)fclose(f);
    setenv("ANTHROPIC_ENVIRONMENT_KEY", "sk-canary", 1);
    begin(warm, NULL);
    if (warm)
        drive_wait_warm(&d, warm);
    struct sbx *other = claim("sesn_other"), *s = claim("sesn_attack");
    char out[65536];
    assert_int_equal(bash(other, "echo secret > /workspace/mine", out, sizeof out), 0);
    assert_int_equal(drive_put(&d, s, "/workspace/attack", attack.data, attack.n, 0755), RC_OK);
    (void)snprintf(cmd, sizeof cmd, "./attack pid=%d port=%d abstract=%s state=%s canary=%s kind=%s", getpid(), port, name, d.state, canary, as);
    int rc = bash(s, cmd, out, sizeof out);
    (void)unlink(canary);
    char *next = NULL;
    for (char *p = strtok_r(out, "\n", &next); p; p = strtok_r(NULL, "\n", &next))
        if (strncmp(p, "PASS", 4) != 0)
            print_message("%s\n", p);
    assert_int_equal(rc, 0);
    assert_int_equal(bash(s, "echo still here", out, sizeof out), 0);      /* it tried to kill PID 1, too */
    assert_non_null(strstr(out, "still here"));
    assert_false(dead);
}

static void test_attack_fresh(void **state) { (void)state; run_attack(0); }
static void test_attack_warm(void **state) { (void)state; run_attack(2); }

static void status_of(pid_t pid, const char *key, char *out, size_t cap)
{
    char path[64];
    size_t n = 0;
    AUTO_FREE char *text = NULL;
    (void)snprintf(path, sizeof path, "/proc/%d/status", pid);
    assert_int_equal(fd_read_file(AT_FDCWD, path, 65536, &text, &n, NULL), RC_OK);
    char *p = strstr(text, key);
    assert_non_null(p);
    p += strlen(key);
    p[strcspn(p, "\n")] = 0;
    (void)str_copy(out, cap, p + strspn(p, "\t "));
}

static void test_seen_from_host(void **state)
{
    (void)state;
    begin(1, NULL);
    drive_wait_warm(&d, 1);
    struct sbx *a = claim("sesn_a"), *b = claim("sesn_b");
    char v[200], w[200];
    char out[300];
    assert_int_equal(bash(a, "sleep 77 & echo ok", out, sizeof out), 0);
    pid_t shell = find_soon(a, "sleep");
    assert_true(shell > 0);
    pid_t pids[] = { sbx_pid(a), sbx_pid(b), shell };
    for (size_t i = 0; i < COUNT_OF(pids); i++) {
        status_of(pids[i], "\nUid:", v, sizeof v);
        unsigned long uid = strtoul(v, NULL, 10);
        assert_true(uid != 0);
        if (geteuid() == 0)
            assert_true(uid >= SBX_UID_BASE_DEFAULT && uid < SBX_UID_BASE_DEFAULT + SBX_UID_COUNT_DEFAULT);
        else
            assert_int_equal(uid, geteuid());
        status_of(pids[i], "\nGroups:", v, sizeof v);
        if (geteuid() == 0)
            assert_string_equal(v, "");
        static const char *const zero[] = { "\nCapInh:", "\nCapPrm:", "\nCapEff:", "\nCapBnd:", "\nCapAmb:" };
        for (size_t k = 0; k < COUNT_OF(zero); k++) {
            status_of(pids[i], zero[k], v, sizeof v);
            assert_string_equal(v, "0000000000000000");
        }
        status_of(pids[i], "\nNoNewPrivs:", v, sizeof v);
        assert_string_equal(v, "1");
        status_of(pids[i], "\nSeccomp:", v, sizeof v);
        assert_string_equal(v, "2");
        static const char *const ns[] = { "user", "mnt", "pid", "net", "ipc", "uts", "cgroup" };
        for (size_t k = 0; k < COUNT_OF(ns) && geteuid() == 0; k++) {
            char p1[64], p2[64];
            (void)snprintf(p1, sizeof p1, "/proc/%d/ns/%s", pids[i], ns[k]);
            (void)snprintf(p2, sizeof p2, "/proc/self/ns/%s", ns[k]);
            struct stat s1, s2;
            assert_int_equal(stat(p1, &s1), 0);
            assert_int_equal(stat(p2, &s2), 0);
            assert_true(s1.st_ino != s2.st_ino);
        }
    }
    if (geteuid() == 0) {       /* one uid per session */
        status_of(sbx_pid(a), "\nUid:", v, sizeof v);
        status_of(sbx_pid(b), "\nUid:", w, sizeof w);
        assert_string_not_equal(v, w);
    }
    /* PID 1's environment and descriptors */
    char path[64];
    AUTO_FREE char *env = NULL;
    size_t n = 9;
    (void)snprintf(path, sizeof path, "/proc/%d/environ", sbx_pid(a));
    if (geteuid() == 0) {
        assert_int_equal(fd_read_file(AT_FDCWD, path, 65536, &env, &n, NULL), RC_OK);
        assert_int_equal(n, 0);
    }
}

static void test_comes_back(void **state)
{
    (void)state;
    begin(1, NULL);
    drive_wait_warm(&d, 1);
    struct sbx *s = claim("sesn_back");
    char out[1000], path[300];
    assert_int_equal(bash(s, "pwd; echo kept > f; id -u; chmod 700 f", out, sizeof out), 0);
    assert_string_equal(out, "/workspace\n1000");
    (void)snprintf(path, sizeof path, "%s/sessions/sesn_back/workspace", d.state);
    struct stat before, after;
    assert_int_equal(lstat(path, &before), 0);
    sbx_close(s);
    s = claim("sesn_back");     /* waits for the end of the first */
    assert_int_equal(bash(s, "cat f && stat -c %U f && echo more >> f", out, sizeof out), 0);
    assert_string_equal(out, "kept\nagent");
    assert_int_equal(lstat(path, &after), 0);
    assert_int_equal(before.st_uid, after.st_uid);
    assert_int_equal(before.st_ino, after.st_ino);
}

static void test_claims(void **state)
{
    (void)state;
    begin(0, NULL);
    struct err e = { 0 };
    struct sbx *x = NULL;
    static const char *const bad[] = { "", "..", ".", "a/b", "../x", "a b", "x\n", "sesn_0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789" };
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_int_equal(drive_claim(&d, bad[i], &x, &e), RC_INVALID);
    struct sbx *s = claim("sesn_1");
    assert_int_equal(drive_claim(&d, "sesn_1", &x, &e), RC_CONFLICT);
    assert_int_equal(sbx_forget(d.host, "sesn_1", &e), RC_CONFLICT);
    /* another worker on the same state directory */
    struct sbx_host *h1 = d.host, *h2 = NULL;
    assert_int_equal(sbx_host_start(d.ev, &d.policy, 0, &h2, &e), RC_OK);
    d.host = h2;
    assert_int_equal(drive_claim(&d, "sesn_1", &x, &e), RC_CONFLICT);
    assert_int_equal(sbx_forget(h2, "sesn_1", &e), RC_CONFLICT);
    struct sbx *t = claim("sesn_2");
    assert_true(sbx_pid(t) > 0);
    sbx_host_stop(h2);
    d.host = h1;
    char out[100];
    assert_int_equal(bash(s, "echo alive", out, sizeof out), 0);
    /* a workspace of another user is refused, not taken over */
    if (geteuid() == 0) {
        char path[300];
        (void)snprintf(path, sizeof path, "%s/sessions/sesn_foreign", d.state);
        assert_int_equal(mkdir(path, 0700), 0);
        (void)snprintf(path, sizeof path, "%s/sessions/sesn_foreign/workspace", d.state);
        assert_int_equal(mkdir(path, 0700), 0);
        assert_int_equal(drive_claim(&d, "sesn_foreign", &x, &e), RC_PRECONDITION);
    }
    char path[300];
    (void)snprintf(path, sizeof path, "%s/sessions/sesn_link", d.state);
    assert_int_equal(symlink("/tmp", path), 0);
    assert_true(drive_claim(&d, "sesn_link", &x, &e) < 0);
}

static bool wait_gone(const char *path)
{
    struct stat st;
    for (int i = 0; i < 500; i++) {
        if (lstat(path, &st) < 0)
            return true;
        (void)ev_run_once(d.ev, 20);
    }
    return false;
}

static int count_in(const char *sub)
{
    char path[300];
    (void)snprintf(path, sizeof path, "%s/%s", d.state, sub);
    int n = 0;
    DIR *dir = opendir(path);
    for (struct dirent *de; dir && (de = readdir(dir));)
        n += de->d_name[0] != '.';
    if (dir)
        closedir(dir);
    return n;
}

static void test_forget(void **state)
{
    (void)state;
    begin(0, NULL);
    struct sbx *s = claim("sesn_f");
    char out[1000], canary[200], cmd[600];
    (void)snprintf(canary, sizeof canary, "%s.canary", d.state);
    FILE *f = fopen(canary, "w");
    (void)fclose(f);
    put_misuse(s);
    (void)snprintf(cmd, sizeof cmd, "ln -s %s l; ln -s / r; mkdir p && chmod 000 p; ./misuse dirs 300; touch 'a b' \"$(printf 'x\\ny')\"", canary);
    assert_int_equal(bash(s, cmd, out, sizeof out), 0);
    sbx_close(s);
    struct err e = { 0 };
    assert_int_equal(sbx_forget(d.host, "sesn_f", &e), RC_OK);
    char path[300];
    (void)snprintf(path, sizeof path, "%s/sessions/sesn_f", d.state);
    assert_true(wait_gone(path));
    for (int i = 0; i < 500 && (count_in("trash") || count_in("uids")); i++)
        (void)ev_run_once(d.ev, 20);
    assert_int_equal(count_in("trash"), 0);
    assert_int_equal(count_in("uids"), 0);
    assert_int_equal(access(canary, F_OK), 0);
    (void)unlink(canary);
    assert_int_equal(sbx_forget(d.host, "sesn_never", &e), RC_OK);
    assert_int_equal(sbx_forget(d.host, "../x", &e), RC_INVALID);
}

/* ---- limits ---- */

static void test_memory(void **state)
{
    (void)state;
    d.policy.limits.memory_bytes = 128 * MIB;
    begin(0, NULL);
    /* (Of memory that no process maps, the kernel first kills the shell: that call ends by its timeout at the latest.)
     * By a cgroup the hog alone dies; by the watchdog the sandbox, or the request for memory is refused. Never may all of it be had. */
    static const char *const how[] = { "./misuse hog 400", "./misuse shared 400", "./misuse hogs 60 8", "./misuse memfd 400" };
    for (size_t i = 0; i < COUNT_OF(how); i++) {
        struct sbx *s = claim("sesn_mem");
        char out[2000];
        dead = false;
        put_misuse(s);
        int rc = bash(s, how[i], out, sizeof out);
        print_message("%s: %d, %s%s%s\n", how[i], rc, dead ? "dead: " : "", dead ? death : out, dead ? "\n" : "");
        if (dead)
            assert_string_equal(death, "memory limit of 128MiB reached");
        else
            assert_true(rc != 0 || strstr(out, "refused") || strstr(how[i], "hogs"));
        assert_null(strstr(out, "took 400"));
        sbx_close(s);
    }
}

static void test_processes(void **state)
{
    (void)state;
    d.policy.limits.pids = 64;
    begin(0, NULL);
    struct sbx *s = claim("sesn_fork"), *t = claim("sesn_calm");
    char out[1000];
    put_misuse(s);
    (void)bash(s, "./misuse fork 1000", out, sizeof out);
    int64_t n = -1;
    char *end = strstr(out, " children");
    assert_non_null(end);
    *end = 0;
    assert_int_equal(str_to_i64(out, 0, 10000, &n), 0);
    assert_in_range(n, 20, 64);
    (void)bash(s, ":(){ :|:& };: 2>/dev/null; sleep 1; echo bounded", out, sizeof out);
    assert_int_equal(bash(t, "for i in $(seq 20); do true & done; wait; echo fine", out, sizeof out), 0);   /* the other session's limit is its own */
    assert_non_null(strstr(out, "fine"));
    int64_t t0 = clock_mono_ms();
    int pidfd = s->pidfd;
    struct sbx *again;
    (void)pidfd;
    sbx_close(s);
    again = claim("sesn_fork");     /* returns when the bomb is gone */
    print_message("the bomb was gone and a new sandbox there after %lld ms\n", (long long)(clock_mono_ms() - t0));
    assert_int_equal(bash(again, "echo ok", out, sizeof out), 0);
}

static void test_disk(void **state)
{
    (void)state;
    d.policy.limits.disk_bytes = 48 * MIB;
    d.policy.limits.tmp_bytes = 16 * MIB;
    begin(0, NULL);
    char out[4000];
    struct sbx *s = claim("sesn_disk");
    put_misuse(s);
    assert_int_equal(bash(s, "./misuse tmp 64", out, sizeof out), 3);
    assert_non_null(strstr(out, "No space left"));
    assert_int_equal(bash(s, "./misuse tmp 64 /dev/shm; rm -f /tmp/f* /dev/shm/f*", out, sizeof out), 0);
    assert_non_null(strstr(out, "No space left"));
    assert_int_equal(bash(s, "./misuse big 200", out, sizeof out), 3);
    assert_non_null(strstr(out, "File too large"));
    assert_false(dead);
    static const char *const how[] = { "./misuse fill 200", "./misuse hidden 80" };
    for (size_t i = 0; i < COUNT_OF(how); i++) {
        int64_t t0 = clock_mono_ms();
        dead = false;
        assert_true(bash(s, how[i], out, sizeof out) < 0);
        assert_true(dead);
        print_message("%s: %s after %lld ms\n", how[i], death, (long long)(clock_mono_ms() - t0));
        assert_string_equal(death, "disk limit of 48MiB reached");
        sbx_close(s);
        dead = false;
        s = claim("sesn_disk");     /* comes back although too large, to make room */
        assert_int_equal(bash(s, "rm -f f*; sleep 1.5; echo room", out, sizeof out), 0);
        assert_false(dead);
    }
}

static void test_cpu(void **state)
{
    (void)state;
    d.policy.limits.cpu_percent = 100;
    begin(0, NULL);
    struct sbx *s = claim("sesn_cpu");
    char out[1000];
    assert_int_equal(bash(s, "TIMEFORMAT='%U'; time { for i in 1 2 3; do ( end=$((SECONDS+3)); while [ $SECONDS -lt $end ]; do :; done ) & done; wait; }", out, sizeof out), 0);
    double used = strtod(out, NULL);
    print_message("3 busy loops of 3 s at 100%%: %.2f s of processor\n", used);
    assert_true(used > 0.5 && used < 4.2);
}

/* ---- calls ---- */

static void on_any(void *ctx, int rc, const struct inside_res *h, const char *body, size_t n, const struct err *e)
{
    (void)h, (void)body, (void)n, (void)e;
    *(int *)ctx = rc;
}

static void test_interrupt(void **state)
{
    (void)state;
    begin(0, NULL);
    struct sbx *s = claim("sesn_int");
    struct inside_req q = { .op = INSIDE_BASH, .timeout_ms = 60000 };
    int rc = 77, rc2 = 77;
    static const char slow[] = "echo begun; sleep 60; echo never", quick[] = "true";
    sbx_call(s, &q, slow, sizeof slow, on_any, &rc);
    sbx_call(s, &q, quick, sizeof quick, on_any, &rc2);
    int64_t t0 = clock_mono_ms();
    while (clock_mono_ms() - t0 < 300)
        (void)ev_run_once(d.ev, 20);
    assert_int_equal(rc, 77);
    sbx_interrupt(s);
    while ((rc == 77 || rc2 == 77) && clock_mono_ms() - t0 < 20000)
        (void)ev_run_once(d.ev, 20);
    assert_int_equal(rc, RC_OK);
    assert_int_equal(rc2, RC_OK);
    assert_true(clock_mono_ms() - t0 < 5000);
}

static void test_killed_from_outside(void **state)
{
    (void)state;
    begin(0, NULL);
    struct sbx *s = claim("sesn_kill");
    struct inside_req q = { .op = INSIDE_BASH };
    int rc = 77, rc2 = 77;
    sbx_call(s, &q, "sleep 60", 9, on_any, &rc);
    sbx_call(s, &q, "sleep 60", 9, on_any, &rc2);
    (void)ev_run_once(d.ev, 50);
    assert_int_equal(kill(sbx_pid(s), SIGKILL), 0);
    assert_true(drive_turn_until(&d, &dead, 5000));
    assert_int_equal(rc, RC_CLOSED);
    assert_int_equal(rc2, RC_CLOSED);
    assert_string_equal(death, "its first process was killed by signal 9");
    rc = 77;
    sbx_call(s, &q, "true", 5, on_any, &rc);
    (void)ev_run_once(d.ev, 50);
    assert_int_equal(rc, RC_CLOSED);
    sbx_close(s);
    /* closing with calls under way ends each of them once */
    s = claim("sesn_kill");
    rc = rc2 = 77;
    sbx_call(s, &q, "sleep 60", 9, on_any, &rc);
    sbx_call(s, &q, "sleep 60", 9, on_any, &rc2);
    sbx_close(s);
    assert_int_equal(rc, RC_CLOSED);
    assert_int_equal(rc2, RC_CLOSED);
}

static void test_protocol(void **state)
{
    (void)state;
    static const struct { const char *sin, *why; int rc; } t[] = {
        { "fine", NULL, RC_OK }, { "slow", NULL, RC_OK },
        { "huge", "protocol violation: an answer of 18446744073709551615 bytes", RC_PROTO }, { "large", "protocol violation: an answer of", RC_PROTO },
        { "magic", "protocol violation: an answer without its mark", RC_PROTO }, { "id", "protocol violation: answer", RC_PROTO }, { "op", "protocol violation: answer", RC_PROTO },
        { "flags", "protocol violation: unknown flags", RC_PROTO }, { "kind", "protocol violation: unknown flags", RC_PROTO },
        { "exit", "its first process ended with status 7", RC_CLOSED }, { "half", "its first process ended", RC_CLOSED }, { "mute", "a call took longer than 300ms", RC_TIMEOUT },
        { "twice", "protocol violation: bytes that nobody asked for", RC_OK },
    };
    d.policy.limits.call_ms = 300;
    const struct sbx_payload p = { .bytes = evil.data, .n = evil.n };
    begin(0, &p);
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct sbx *s = claim("sesn_evil");
        struct drive_answer a;
        dead = false;
        drive_bash(&d, s, t[i].sin, 0, &a);
        if (a.rc != t[i].rc)
            fail_msg("%s: rc %d (%s)", t[i].sin, a.rc, a.e.msg);
        drive_answer_done(&a);
        if (t[i].why) {
            assert_true(drive_turn_until(&d, &dead, 5000));
            if (strncmp(death, t[i].why, strlen(t[i].why)) != 0)
                fail_msg("%s: %s", t[i].sin, death);
        }
        sbx_close(s);
    }
}

static void test_large_bodies(void **state)
{
    (void)state;
    begin(0, NULL);
    struct sbx *s = claim("sesn_large");
    size_t n = 24 * MIB;
    char *data = malloc(n), out[200];
    for (size_t i = 0; i < n; i++)
        data[i] = "abcdefghijklmnopqrstuvwxyz012345"[(i * 7 + i / 4096) % 32];
    assert_int_equal(drive_put(&d, s, "/workspace/large.txt", data, n, 0644), RC_OK);
    struct inside_req q = { .op = INSIDE_READ, .limit0 = 32 * MIB };
    struct drive_answer a;
    drive_call(&d, s, &q, "/workspace/large.txt", sizeof "/workspace/large.txt", &a);
    assert_int_equal(a.rc, RC_OK);
    assert_int_equal(a.n, n);
    assert_memory_equal(a.body, data, n);
    drive_answer_done(&a);
    assert_int_equal(bash(s, "stat -c %s large.txt", out, sizeof out), 0);
    struct inside_req w = { .op = INSIDE_WRITE };
    int rc = 77;
    char *too = calloc(1, (size_t)INSIDE_REQ_MAX + 1);
    sbx_call(s, &w, too, (size_t)INSIDE_REQ_MAX + 1, on_any, &rc);
    free(too);
    (void)ev_run_once(d.ev, 50);
    assert_int_equal(rc, RC_TOO_LARGE);
    free(data);
}

/* ---- ends ---- */

static bool process_gone(pid_t pid)
{
    for (int i = 0; i < 400; i++) {
        char path[64], *text = NULL;
        size_t n = 0;
        (void)snprintf(path, sizeof path, "/proc/%d/stat", pid);
        if (fd_read_file(AT_FDCWD, path, 4096, &text, &n, NULL) < 0)
            return true;
        bool zombie = strstr(text, ") Z ") != NULL;
        free(text);
        if (zombie)
            return true;
        (void)usleep(10000);
    }
    return false;
}

static void test_zygote_dies(void **state)
{
    (void)state;
    begin(1, NULL);
    drive_wait_warm(&d, 1);
    struct sbx *s = claim("sesn_z");
    char out[100];
    assert_int_equal(bash(s, "sleep 99 & echo ok", out, sizeof out), 0);
    pid_t one = sbx_pid(s), inner = find_soon(s, "sleep"), zygote = 0;
    char v[100];
    status_of(one, "\nPPid:", v, sizeof v);
    zygote = (pid_t)strtol(v, NULL, 10);
    assert_true(inner > 1 && zygote > 1);
    assert_int_equal(kill(zygote, SIGKILL), 0);
    assert_true(drive_turn_until(&d, &dead, 5000));
    assert_true(process_gone(one));
    assert_true(process_gone(inner));
    struct err e = { 0 };
    struct sbx *x = NULL;
    assert_int_equal(drive_claim(&d, "sesn_after", &x, &e), RC_CLOSED);
}

static void test_worker_dies(void **state)
{
    (void)state;
    int p[2];
    assert_int_equal(pipe(p), 0);
    pid_t worker = fork();
    if (worker == 0) {
        begin(2, NULL);
        drive_wait_warm(&d, 2);
        struct sbx *s = claim("sesn_w");
        char out[100];
        (void)bash(s, "sleep 99 & echo ok", out, sizeof out);
        drive_wait_warm(&d, 2);
        pid_t inner[2] = { sbx_pid(s), find_soon(s, "sleep") };
        (void)!write(p[1], inner, sizeof inner);
        pause();
        _exit(0);
    }
    pid_t inner[2] = { 0, 0 };
    assert_int_equal(read(p[0], inner, sizeof inner), sizeof inner);
    assert_true(inner[0] > 1 && inner[1] > 1);
    (void)kill(worker, SIGKILL);
    (void)waitpid(worker, NULL, 0);
    assert_true(process_gone(inner[0]));
    assert_true(process_gone(inner[1]));
    close(p[0]);
    close(p[1]);
    /* what it left in the pool is swept by the next */
    assert_int_equal(count_in("pool"), 1);
    begin(0, NULL);
    for (int i = 0; i < 500 && count_in("trash"); i++)
        (void)ev_run_once(d.ev, 20);
    assert_int_equal(count_in("pool"), 1);
    assert_int_equal(count_in("trash"), 0);
    assert_int_equal(count_in("uids"), geteuid() == 0 ? 1 : 0);      /* sesn_w keeps its own */
    struct sbx *s = claim("sesn_w");
    assert_true(sbx_pid(s) > 0);
}

static void test_host_network(void **state)
{
    (void)state;
    int port = 0;
    AUTO_CLOSE __attribute__((unused)) int l = listener(&port);      /* open while it lives */
    char name[40], cmd[300], out[500];
    (void)snprintf(name, sizeof name, "outwork-net-%d", getpid());
    AUTO_CLOSE __attribute__((unused)) int u = abstract_listener(name);
    d.policy.net = SBX_NET_HOST;
    begin(0, NULL);
    struct sbx *s = claim("sesn_net");
    (void)snprintf(cmd, sizeof cmd, "exec 3<>/dev/tcp/127.0.0.1/%d && echo connected", port);
    assert_int_equal(bash(s, cmd, out, sizeof out), 0);
    assert_non_null(strstr(out, "connected"));
    s = claim("sesn_net2");
    assert_int_equal(drive_put(&d, s, "/workspace/attack", attack.data, attack.n, 0755), RC_OK);
    (void)snprintf(cmd, sizeof cmd, "./attack abstract=%s pid=%d | grep -E '^(FAIL|PASS) (abstract|vsock|packet|raw|kill_host|core_pattern)' | sort", name, getpid());
    assert_int_equal(bash(s, cmd, out, sizeof out), 0);
    assert_string_equal(out, "PASS abstract\nPASS core_pattern\nPASS kill_host\nPASS packet\nPASS raw\nPASS vsock");
}

static void test_ro_paths(void **state)
{
    (void)state;
    static const char *const ro[] = { "/etc/skel" };
    if (access(ro[0], R_OK) < 0)
        skip();
    d.policy.ro_paths = ro;
    d.policy.n_ro_paths = 1;
    begin(0, NULL);
    struct sbx *s = claim("sesn_ro");
    char out[500];
    assert_int_equal(bash(s, "ls -d /etc/skel && ! touch /etc/skel/x", out, sizeof out), 0);
    static const char *const bad[] = { "/", "/etc", "/proc", "/proc/1", "/tmp/x", "relative", "/opt/../etc", "/opt//x", "/opt/", "/etc/shadow", "/dev/mem", "/usr" };
    struct err e = { 0 };
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_int_equal(policy_check_ro_path(bad[i], &e), RC_INVALID);
    assert_int_equal(policy_check_ro_path("/opt/tools", &e), RC_OK);
    assert_int_equal(policy_check_ro_path("/srv/x.y", &e), RC_OK);
}

static void test_environment(void **state)
{
    (void)state;
    static const char *const env[] = { "FOO=bar baz", "LANG=C", "EMPTY=" };
    d.policy.env = env;
    d.policy.n_env = COUNT_OF(env);
    begin(1, NULL);
    drive_wait_warm(&d, 1);
    struct sbx *s = claim("sesn_env");
    char out[2000];
    assert_int_equal(bash(s, "echo \"$FOO|$LANG|${EMPTY-unset}|$HOME|$TERM\"; env | grep -c ^LANG=; env | grep -i -E 'anthropic|outwork'", out, sizeof out), 1);
    assert_non_null(strstr(out, "bar baz|C||/workspace|dumb\n1\n"));
    static const char *const bad[] = { "NOVALUE", "=x" };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        struct sbx_policy p = d.policy, *c = NULL;
        p.env = &bad[i];
        p.n_env = 1;
        struct err e = { 0 };
        assert_int_equal(policy_copy(&p, &c, &e), RC_INVALID);
    }
}

static void test_probe(void **state)
{
    (void)state;
    json_t *r = NULL;
    struct err e = { 0 };
    int rc = sbx_probe(&d.policy, &r, &e);
    if (rc < 0)
        fail_msg("%s", e.msg);
    assert_true(js_bool(r, "ok", false));
    assert_string_equal(js_str(r, "mode"), geteuid() == 0 ? "root" : "user");
    assert_true(json_array_size(js_at(r, "layers")) >= 14);
    json_decref(r);
    d.policy.limits.memory_bytes = 1;
    assert_int_equal(sbx_probe(&d.policy, &r, &e), RC_INVALID);
}

static void load(struct program *p, const char *path)
{
    struct err e = { 0 };
    if (fd_read_file(AT_FDCWD, path, 16 * MIB, &p->data, &p->n, &e) < 0) {
        (void)fprintf(stderr, "%s\n", e.msg);
        exit(1);
    }
}

#define T(f) cmocka_unit_test_setup_teardown(f, start, stop)

int main(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        if (str_eq(argv[i], "--as"))
            as = argv[i + 1];
        else if (str_eq(argv[i], "--attack"))
            load(&attack, argv[i + 1]);
        else if (str_eq(argv[i], "--misuse"))
            load(&misuse, argv[i + 1]);
        else if (str_eq(argv[i], "--evil"))
            load(&evil, argv[i + 1]);
        else if (str_eq(argv[i], "--only"))
            cmocka_set_test_filter(argv[i + 1]);
    }
    drive_become(as);
    const struct CMUnitTest tests[] = {
        T(test_probe), T(test_attack_fresh), T(test_attack_warm), T(test_seen_from_host), T(test_comes_back), T(test_claims), T(test_forget), T(test_memory),
        T(test_processes), T(test_disk), T(test_cpu), T(test_interrupt), T(test_killed_from_outside), T(test_protocol), T(test_large_bodies), T(test_zygote_dies),
        T(test_worker_dies), T(test_host_network), T(test_ro_paths), T(test_environment),
    };
    int failed = cmocka_run_group_tests_name(as, tests, NULL, NULL);
    free(attack.data);
    free(misuse.data);
    free(evil.data);
    return failed;
}
