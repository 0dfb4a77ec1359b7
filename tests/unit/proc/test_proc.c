#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "ev/ev.h"
#include "proc/proc.h"

static struct proc_spec spec(const char *path, char *const *argv)
{
    return (struct proc_spec){ .path = path, .argv = argv, .fd_in = -1, .fd_out = -1, .fd_err = -1 };
}

/* Runs it with its output in a pipe; returns the exit status. */
static int run(struct proc_spec s, char *out, size_t cap)
{
    int p[2], pidfd = -1, status;
    pid_t pid = -1;
    struct err e;
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    s.fd_out = p[1];
    int rc = proc_spawn(&s, &pid, &pidfd, &e);
    if (rc < 0)
        fail_msg("%d %s", rc, e.msg);
    close(p[1]);
    size_t n = 0;
    ssize_t r;
    while (n + 1 < cap && (r = read(p[0], out + n, cap - 1 - n)) > 0)
        n += (size_t)r;
    out[n] = '\0';
    close(p[0]);
    assert_true(pidfd >= 0 && fcntl(pidfd, F_GETFD) & FD_CLOEXEC);
    struct pollfd pf = { pidfd, POLLIN, 0 };
    assert_int_equal(poll(&pf, 1, 5000), 1);
    close(pidfd);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

#define SH(script) (char *[]){ "sh", "-c", script, NULL }

static void test_output_and_status(void **st)
{
    (void)st;
    char out[4096];
    int status = run(spec("/bin/sh", SH("echo hello; exit 7")), out, sizeof out);
    assert_string_equal(out, "hello\n");
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    run(spec("/bin/sh", SH("readlink /proc/self/fd/0 /proc/self/fd/2")), out, sizeof out);
    assert_string_equal(out, "/dev/null\n/dev/null\n");
    run(spec("/bin/sh", (char *[]){ "sh", "-c", "echo \"$0|$1|$2\"", "zero", "a b", "", NULL }), out, sizeof out);
    assert_string_equal(out, "zero|a b|\n");
}

static void test_environment_and_cwd(void **st)
{
    (void)st;
    char out[4096];
    struct proc_spec s = spec("/usr/bin/env", (char *[]){ "env", NULL });
    s.envp = (char *[]){ "ONLY=this", NULL };
    run(s, out, sizeof out);
    assert_string_equal(out, "ONLY=this\n");
    setenv("OW_TEST_INHERITED", "yes", 1);
    run(spec("/bin/sh", SH("echo $OW_TEST_INHERITED")), out, sizeof out);
    assert_string_equal(out, "yes\n");
    s = spec("/bin/sh", SH("pwd"));
    s.cwd = "/usr/bin";
    run(s, out, sizeof out);
    assert_true(strcmp(out, "/usr/bin\n") == 0);
}

static void test_descriptors_are_exact(void **st)
{
    (void)st;
    char out[4096];
    int extra[5];
    for (int i = 0; i < 5; i++)
        extra[i] = open("/dev/zero", O_RDONLY);     /* without close-on-exec, on purpose */
    run(spec("/bin/sh", SH("ls -l /proc/$$/fd | grep -c zero; ls /proc/$$/fd | wc -l")), out, sizeof out);
    int n = -1;
    assert_true(strncmp(out, "0\n", 2) == 0);
    n = (int)strtol(out + 2, NULL, 10);
    assert_true(n >= 3 && n <= 4);                  /* 0, 1, 2 and at most one of the shell's own */
    for (int i = 0; i < 5; i++)
        close(extra[i]);
}

/* The given descriptors are themselves 0 to 2, crossed over. */
static void test_crossed_descriptors(void **st)
{
    (void)st;
    int p[2], q[2], status;
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    assert_int_equal(pipe2(q, O_CLOEXEC), 0);
    pid_t mid = fork();
    if (mid == 0) {
        dup2(p[1], 0);      /* stdin is a pipe for writing, and so on: sh gets 1 <- our 0, 2 <- our 0, 0 <- our 2 */
        dup2(q[0], 2);
        close(1);
        struct proc_spec s = spec("/bin/sh", SH("read x; echo out $x; echo err $x >&2"));
        s.fd_in = 2;
        s.fd_out = 0;
        s.fd_err = 0;
        pid_t pid;
        int rc = proc_spawn(&s, &pid, NULL, NULL);
        if (rc == RC_OK)
            waitpid(pid, &status, 0);
        _exit(rc == RC_OK ? 0 : 1);
    }
    close(p[1]);
    close(q[0]);
    assert_int_equal(write(q[1], "word\n", 5), 5);
    close(q[1]);
    char out[100] = "";
    size_t n = 0;
    ssize_t r;
    while (n < 99 && (r = read(p[0], out + n, 99 - n)) > 0)
        n += (size_t)r;
    assert_string_equal(out, "out word\nerr word\n");
    close(p[0]);
    assert_int_equal(waitpid(mid, &status, 0), mid);
    assert_int_equal(status, 0);
}

static void test_failures(void **st)
{
    (void)st;
    char dir[] = "/tmp/ow-proc-XXXXXX", plain[64], script[64];
    assert_non_null(mkdtemp(dir));
    snprintf(plain, sizeof plain, "%s/plain", dir);
    snprintf(script, sizeof script, "%s/script", dir);
    int fd = open(plain, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    close(fd);
    fd = open(script, O_CREAT | O_WRONLY | O_CLOEXEC, 0700);
    assert_int_equal(write(fd, "#!/no/such/interpreter\n", 23), 23);
    close(fd);
    const struct { const char *path, *cwd; int rc; const char *say; } t[] = {
        { "/no/such/program", NULL, RC_NOT_FOUND, "/no/such/program" }, { "/bin/sh/x", NULL, RC_NOT_FOUND, "execute" }, { plain, NULL, RC_DENIED, "Permission denied" },
        { dir, NULL, RC_DENIED, "execute" }, { script, NULL, RC_NOT_FOUND, "execute" }, { "/bin/sh", "/no/such/dir", RC_NOT_FOUND, "/no/such/dir" },
        { "/bin/sh", plain, RC_NOT_FOUND, "working directory" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct proc_spec s = spec(t[i].path, SH("true"));
        struct err e = { 0 };
        pid_t pid = -7;
        int pidfd = -7;
        s.cwd = t[i].cwd;
        int rc = proc_spawn(&s, &pid, &pidfd, &e);
        if (rc != t[i].rc || !strstr(e.msg, t[i].say) || pid != -7 || pidfd != -7)
            fail_msg("row %zu: %d \"%s\"", i, rc, e.msg);
        assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);       /* no zombie is left */
        assert_int_equal(errno, ECHILD);
    }
    unlink(plain);
    unlink(script);
    rmdir(dir);
}

static void test_signals_are_default(void **st)
{
    (void)st;
    char out[4096];
    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, &old);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)signal(SIGINT, SIG_IGN);
    const struct { unsigned long handler, rest[2]; uint64_t mask; } ignore = { .handler = 1 };
    for (int libc_own = 32; libc_own <= 33; libc_own++)      /* as a parent that is no libc program may leave them */
        assert_int_equal(syscall(SYS_rt_sigaction, libc_own, &ignore, NULL, (size_t)8), 0);
    run(spec("/bin/sh", SH("grep -E 'SigBlk|SigIgn' /proc/self/status")), out, sizeof out);
    assert_string_equal(out, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    sigprocmask(SIG_SETMASK, &old, NULL);
    (void)signal(SIGINT, SIG_DFL);
    sigset_t now;
    sigprocmask(SIG_SETMASK, NULL, &now);
    assert_false(sigismember(&now, SIGTERM));
}

static int ended, end_status;
static void on_end(struct ev_child *c, int status)
{
    (void)c;
    ended++;
    end_status = status;
}

static void test_group_kill(void **st)
{
    (void)st;
    struct ev *ev;
    struct err e;
    int p[2];
    pid_t pid;
    assert_int_equal(ev_new(&ev, &e), RC_OK);
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    struct proc_spec s = spec("/bin/sh", SH("sleep 1000 & sleep 1000 & echo up; wait"));
    s.fd_out = p[1];
    s.new_group = true;
    assert_int_equal(proc_spawn(&s, &pid, NULL, &e), RC_OK);
    close(p[1]);
    assert_int_equal(getpgid(pid), pid);
    char b[8];
    assert_int_equal(read(p[0], b, sizeof b), 3);
    struct ev_child c = { 0 };
    assert_int_equal(ev_child_start(ev, &c, pid, on_end), RC_OK);
    proc_kill_group(pid, SIGKILL);
    for (int i = 0; i < 500 && !ended; i++)
        ev_run_once(ev, 10);
    assert_int_equal(ended, 1);
    assert_true(WIFSIGNALED(end_status) && WTERMSIG(end_status) == SIGKILL);
    assert_int_equal(read(p[0], b, sizeof b), 0);   /* the grandchildren held the pipe: all are gone */
    close(p[0]);
    proc_kill_group(0, SIGKILL);                    /* would be ourselves, or everybody: refused */
    proc_kill_group(1, SIGKILL);
    proc_kill_group(-1, SIGKILL);
    ev_free(ev);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_output_and_status), cmocka_unit_test(test_environment_and_cwd), cmocka_unit_test(test_descriptors_are_exact),
        cmocka_unit_test(test_crossed_descriptors), cmocka_unit_test(test_failures), cmocka_unit_test(test_signals_are_default), cmocka_unit_test(test_group_kill),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
