/* inside/grep_run.c - grep: runs the searching program that is embedded in this one, from a sealed memory file. */
#include "inside/blob.h"
#include "inside/init.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U        /* Linux 6.3: said aloud, so that vm.memfd_noexec=1 lets it pass */
#endif

#define EXIT_NONE 1             /* as in grep.h, which needs PCRE2 */
#define EXIT_PATTERN 2
#define PATTERN_MAX 65536
#define PIPE_BYTES (128 * 1024)

static int program = -1;

static int program_open(void)
{
    if (program >= 0)
        return 0;
    int fd = memfd_create("grep", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create("grep", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    for (size_t at = 0; at < inside_grep_blob_size;) {
        ssize_t put = write(fd, inside_grep_blob + at, inside_grep_blob_size - at);
        if (put <= 0) {
            int err = put < 0 ? errno : EIO;
            close(fd);
            return -err;
        }
        at += (size_t)put;
    }
    /* Nothing in the sandbox can change it after this. */
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0) {
        int err = errno;
        close(fd);
        return -err;
    }
    program = fd;
    return 0;
}

static pid_t start(const char *pattern, const char *shown, int what, int out)
{
    char bytes[24];
    snprintf(bytes, sizeof bytes, "%u", INSIDE_OUTPUT_DEFAULT);
    char *argv[] = { (char *)(uintptr_t) "grep", (char *)(uintptr_t)pattern, (char *)(uintptr_t)shown, bytes, NULL }, *envp[] = { NULL };
    struct spawn s = { .exec_fd = program, .argv = argv, .envp = envp, .n_fds = 2, .fds = { { what, 0 }, { out, 1 } } };
    return spawn_child(&s);
}

/* Takes the output until the end; returns the wait status, or -1 with an error answer when the search was ended. */
static int collect(pid_t pid, int fd, uint32_t timeout_ms, struct answer *a)
{
    int64_t deadline = loop_now_ms() + timeout_ms;
    loop_watch_pid(pid);
    for (;;) {
        unsigned woke = loop_turn(fd, deadline);
        if (woke & WAKE_EXTRA) {
            char *to = answer_room(a, PIPE_BYTES);
            ssize_t got = to ? read(fd, to, PIPE_BYTES) : 0;
            if (got > 0)
                a->n += (size_t)got;
            if (got == 0)
                return loop_wait_pid(pid);
        }
        if (woke & (WAKE_INTERRUPT | WAKE_TIMEOUT)) {
            (void)kill(pid, SIGKILL);
            (void)loop_wait_pid(pid);
            if (woke & WAKE_INTERRUPT)
                answer_error(a, 0, "grep: interrupted");
            else
                answer_error(a, INSIDE_TIMED_OUT, "grep: timed out after %u s; search a smaller directory", timeout_ms / 1000);
            return -1;
        }
    }
}

void tool_grep(struct request *r, struct answer *a)
{
    char shown[PATH_MAX];
    struct stat st;
    int out[2];
    const char *pattern = request_string(r), *path = request_string(r);
    if (strlen(pattern) > PATTERN_MAX) {
        answer_error(a, 0, "grep: invalid regex: longer than %d bytes", PATTERN_MAX);
        return;
    }
    int what = path_open(*path ? path : ".", O_RDONLY | O_NONBLOCK | O_NOCTTY, shown);
    if (what < 0) {
        path_error(a, "grep", path, -what);
        return;
    }
    if (fstat(what, &st) < 0 || !(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))) {
        close(what);
        answer_error(a, 0, "grep: %s is not a regular file", path);
        return;
    }
    int rc = program_open();
    if (rc == 0 && pipe2(out, O_CLOEXEC) < 0)
        rc = -errno;
    if (rc < 0) {
        close(what);
        answer_error(a, 0, "grep: cannot start: %s", path_errno_text(-rc));
        return;
    }
    (void)fcntl(out[1], F_SETPIPE_SZ, PIPE_BYTES);      /* so that it can end without waiting for us */
    (void)fcntl(out[0], F_SETFL, O_NONBLOCK);
    pid_t pid = start(pattern, shown, what, out[1]);
    close(what);
    close(out[1]);
    int status = pid < 0 ? -1 : collect(pid, out[0], r->h.timeout_ms ? r->h.timeout_ms : INSIDE_GREP_DEFAULT_MS, a);
    close(out[0]);
    if (pid < 0)
        answer_error(a, 0, "grep: cannot start: %s", path_errno_text(-pid));
    else if (a->flags & INSIDE_ERROR)
        return;
    else if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return;
    else if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_NONE)
        answer_puts(a, "no matches");
    else if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_PATTERN && a->n < 512) {
        char why[512];
        snprintf(why, sizeof why, "%.*s", (int)a->n, answer_body(a));
        answer_error(a, 0, "grep: invalid regex: %s", why);
    } else if (WIFSIGNALED(status))
        answer_error(a, 0, "grep: the search was ended by signal %d (limit of processor time or memory); use a simpler pattern or a smaller directory",
                     WTERMSIG(status));
    else
        answer_error(a, 0, "grep: the search failed");
}
