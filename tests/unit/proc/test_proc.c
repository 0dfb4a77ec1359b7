#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "proc/proc.h"

static int run(char *const *argv, char *const *envp, char *out, size_t cap)
{
    int p[2], pidfd, status;
    pid_t pid;
    struct err e = { 0 };
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    struct proc_spec s = { .path = argv[0], .argv = argv, .envp = envp, .fd_in = -1, .fd_out = p[1], .fd_err = p[1] };
    assert_int_equal(proc_spawn(&s, &pid, &pidfd, &e), RC_OK);
    close(p[1]);
    size_t n = 0;
    for (ssize_t k; n < cap - 1 && (k = read(p[0], out + n, cap - 1 - n)) > 0;)
        n += (size_t)k;
    out[n] = 0;
    close(p[0]);
    close(pidfd);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void only_three_descriptors_and_the_given_environment(void **st)
{
    (void)st;
    char out[4096];
    int extra = open("/dev/null", O_RDONLY);      /* not close-on-exec: must be closed all the same */
    char *argv[] = { "/bin/sh", "-c", "ls /proc/self/fd | wc -l; env | grep -v ^PWD= | grep -v ^_= | grep -v ^SHLVL=; exit 7", NULL };
    char *envp[] = { "ONLY=this", "PATH=/usr/bin:/bin", NULL };
    int status = run(argv, envp, out, sizeof out);
    close(extra);
    assert_int_equal(WEXITSTATUS(status), 7);
    assert_int_equal(strncmp(out, "4\n", 2), 0);  /* 0, 1, 2 and the one ls reads with */
    assert_non_null(strstr(out, "ONLY=this"));
    assert_null(strstr(out, "HOME="));
}

static void a_failed_exec_is_the_calls_own_error(void **st)
{
    (void)st;
    char *argv[] = { "/nowhere/program", NULL };
    struct err e = { 0 };
    pid_t pid = -7;
    int pidfd = -7;
    struct proc_spec s = { .path = argv[0], .argv = argv, .fd_in = -1, .fd_out = -1, .fd_err = -1 };
    assert_int_equal(proc_spawn(&s, &pid, &pidfd, &e), RC_NOT_FOUND);
    assert_non_null(strstr(e.msg, "/nowhere/program"));
    assert_int_equal(pid, -7);
    s.path = "/etc/passwd";
    assert_int_equal(proc_spawn(&s, &pid, &pidfd, &e), RC_DENIED);
    s.path = "/bin/true";
    s.cwd = "/nowhere";
    assert_int_equal(proc_spawn(&s, &pid, &pidfd, &e), RC_NOT_FOUND);
}

static void a_group_is_killed_whole(void **st)
{
    (void)st;
    char *argv[] = { "/bin/sh", "-c", "sleep 100 & sleep 100", NULL };
    struct err e = { 0 };
    pid_t pid;
    int pidfd, status;
    struct proc_spec s = { .path = argv[0], .argv = argv, .fd_in = -1, .fd_out = -1, .fd_err = -1, .new_group = true };
    assert_int_equal(proc_spawn(&s, &pid, &pidfd, &e), RC_OK);
    assert_int_equal(getpgid(pid), pid);
    proc_kill_group(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(WTERMSIG(status), SIGKILL);
    close(pidfd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_three_descriptors_and_the_given_environment),
        cmocka_unit_test(a_failed_exec_is_the_calls_own_error),
        cmocka_unit_test(a_group_is_killed_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
