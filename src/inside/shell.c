/* inside/shell.c - the persistent bash (worker.md 5).
 *
 * bash reads its script, one short line per call, from a pipe (its descriptor 0); the command's text lies in a memory file (250), so that its length and
 * its syntax are no matter; the exit status comes back on a pipe of its own (251), so that nothing in the output can be taken for the end. The command
 * runs as a brace group without these descriptors, its output going to a pipe (252) that outlives shells: what runs on in the background can
 * always write, and what it writes between two calls is in front of the next call's output. */
#include "inside/clean.h"
#include "inside/init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define BASH_PATH "/bin/bash"
#define PIPE_BYTES (256 * 1024)
#define TURN_BYTES (4u * 1024 * 1024)          /* output taken per turn of the loop */
#define CTL_LINE_MAX 64
#define TEXT_KEEP_BYTES (64 * 1024)            /* a longer command is cut away again before the next */
#define SCRIPT_FD "250"
#define CTL_FD "251"
#define OUT_FD "252"

/* set +eu: both would end the shell at the next failure; they last for the call that sets them. `read` fails when the variable is made readonly. */
static const char prologue[] =
    "_ow='builtin set +eu;IFS= builtin read -r -d \"\" -u " SCRIPT_FD " _owc&&{ builtin eval \"$_owc\"\n"
    "} </dev/null >&" OUT_FD " 2>&1 " SCRIPT_FD "<&- " CTL_FD ">&- " OUT_FD ">&-;>&" CTL_FD " builtin printf \"%d %d\\n\" \"$?\"';readonly _ow\n";

enum end { END_NONE, END_DONE, END_DIED, END_TIMEOUT, END_INTERRUPT };

static struct {
    char *const *envp;
    int    out_r, out_w;        /* for the life of the sandbox */
    char  *ring;                /* the last ring_bytes of output */
    size_t ring_bytes;
    uint64_t written, taken;    /* counts since the start: put into the ring; handed out */
    pid_t  pid;                 /* 0: no shell */
    int    script_w, ctl_r, text;
    size_t text_n;
    uint64_t seq;
    char   ctl[CTL_LINE_MAX];
    size_t ctl_n;
    bool   gone;                /* ended by itself; `status` says how */
    int    status;              /* wait status */
    const char *note;           /* for the next call: why it has a new shell */
} sh = { .out_r = -1, .out_w = -1, .script_w = -1, .ctl_r = -1, .text = -1 };

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static int ring_size(size_t keep)
{
    size_t want = 256u * 1024;
    while (want < 2 * keep + 4096)      /* twice: escape sequences and overwritten lines fall away later */
        want *= 2;
    if (want <= sh.ring_bytes)
        return 0;
    char *ring = malloc(want);
    if (!ring)
        return -ENOMEM;
    uint64_t from = sh.written > sh.ring_bytes ? sh.written - sh.ring_bytes : 0;
    for (uint64_t i = from; i < sh.written; i++)        /* places differ, so one by one; only when a larger limit first comes */
        ring[i & (want - 1)] = sh.ring[i & (sh.ring_bytes - 1)];
    free(sh.ring);
    sh.ring = ring;
    sh.ring_bytes = want;
    return 0;
}

int shell_init(char *const *envp)
{
    int out[2];
    sh.envp = envp;
    if (pipe2(out, O_CLOEXEC) < 0)
        return -errno;
    sh.out_r = out[0];
    sh.out_w = out[1];
    (void)fcntl(sh.out_w, F_SETPIPE_SZ, PIPE_BYTES);    /* speed only */
    if (fcntl(sh.out_r, F_SETFL, O_NONBLOCK) < 0)
        return -errno;
    return ring_size(INSIDE_OUTPUT_DEFAULT);
}

void shell_fds(int *ret_ctl, int *ret_out)
{
    *ret_ctl = sh.ctl_r;
    *ret_out = sh.out_r;
}

/* At most `max` bytes of what is in the pipe now. */
static void take_output(size_t max)
{
    while (max > 0) {
        size_t at = (size_t)(sh.written & (sh.ring_bytes - 1)), room = sh.ring_bytes - at;
        ssize_t got = read(sh.out_r, sh.ring + at, room < max ? room : max);
        if (got <= 0)
            return;
        sh.written += (uint64_t)got;
        max -= (size_t)got;
    }
}

void shell_read_output(void) { take_output(TURN_BYTES); }

/* All that the command wrote is in the pipe when its end is known; what others write meanwhile is bounded by what is there at this moment. */
static void take_rest(void)
{
    int n = 0;
    if (ioctl(sh.out_r, FIONREAD, &n) == 0 && n > 0)
        take_output((size_t)n);
}

static void forget_shell(void)
{
    close_fd(&sh.script_w);
    close_fd(&sh.ctl_r);
    close_fd(&sh.text);
    sh.pid = 0;
    sh.gone = false;
    sh.ctl_n = 0;
}

static int start_with(int script_r, int ctl_w)
{
    static char *const argv[] = { (char *)(uintptr_t) "bash", (char *)(uintptr_t) "--noprofile", (char *)(uintptr_t) "--norc", NULL };
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0)
        return -errno;
    struct spawn s = { .path = BASH_PATH, .argv = argv, .envp = sh.envp, .n_fds = 6,
        .fds = { { script_r, 0 }, { null, 1 }, { null, 2 }, { sh.text, 250 }, { ctl_w, 251 }, { sh.out_w, 252 } } };
    pid_t pid = spawn_child(&s);
    close(null);
    if (pid < 0)
        return pid;
    sh.pid = pid;
    sh.gone = false;
    return write(sh.script_w, prologue, sizeof prologue - 1) == (ssize_t)sizeof prologue - 1 ? 0 : -EPIPE;
}

static int shell_start(void)
{
    int script[2], ctl[2];
    forget_shell();
    sh.text = memfd_create("command", MFD_CLOEXEC);
    if (sh.text < 0)
        return -errno;
    sh.text_n = 0;
    if (pipe2(script, O_CLOEXEC) < 0)
        return -errno;
    sh.script_w = script[1];
    if (pipe2(ctl, O_CLOEXEC) < 0) {
        close(script[0]);
        return -errno;
    }
    sh.ctl_r = ctl[0];
    int rc = fcntl(sh.ctl_r, F_SETFL, O_NONBLOCK) < 0 ? -errno : start_with(script[0], ctl[1]);
    close(script[0]);
    close(ctl[1]);
    if (rc < 0 && sh.pid == 0)
        forget_shell();
    return rc;
}

void shell_prestart(void)
{
    if (sh.pid == 0)
        (void)shell_start();    /* the first call tries again and tells */
}

void shell_child_gone(pid_t pid, int status)
{
    if (pid == sh.pid) {
        sh.gone = true;
        sh.status = status;
    }
}

static int exit_status(int status)
{
    return WIFEXITED(status) ? WEXITSTATUS(status) : WIFSIGNALED(status) ? 128 + WTERMSIG(status) : -1;
}

/* Puts the command where bash reads it and rings. */
static int send_command(const char *command)
{
    char line[64];
    size_t n = strlen(command) + 1;
    if (sh.text_n > TEXT_KEEP_BYTES && ftruncate(sh.text, 0) < 0)
        return -errno;
    for (size_t at = 0; at < n;) {
        ssize_t put = pwrite(sh.text, command + at, n - at, (off_t)at);
        if (put < 0)
            return -errno;
        at += (size_t)put;
    }
    sh.text_n = n;
    if (lseek(sh.text, 0, SEEK_SET) < 0)
        return -errno;
    int len = snprintf(line, sizeof line, "builtin eval \"$_ow\" %llu\n", (unsigned long long)++sh.seq);
    ssize_t put = write(sh.script_w, line, (size_t)len);        /* a pipe that bash has emptied: never blocks, never short */
    return put == len ? 0 : -EPIPE;
}

/* Whether the line "<status> <number of the call>" has come. Anything else on that pipe is some command's doing and is passed over. */
static bool ctl_complete(int *ret_status)
{
    for (;;) {
        char *lf = memchr(sh.ctl, '\n', sh.ctl_n);
        if (lf) {
            *lf = 0;
            char *end = NULL, *tail = NULL;
            long status = strtol(sh.ctl, &end, 10);
            unsigned long long seq = *end == ' ' ? strtoull(end + 1, &tail, 10) : 0;
            bool ours = tail && *tail == 0 && seq == sh.seq;
            size_t used = (size_t)(lf - sh.ctl) + 1;
            sh.ctl_n -= used;
            memmove(sh.ctl, lf + 1, sh.ctl_n);
            if (ours) {
                *ret_status = (int)status;
                return true;
            }
            continue;
        }
        if (sh.ctl_n == sizeof sh.ctl)
            sh.ctl_n = 0;
        ssize_t got = read(sh.ctl_r, sh.ctl + sh.ctl_n, sizeof sh.ctl - sh.ctl_n);
        if (got == 0)           /* the shell has ended, or is now the program that it was told to exec */
            close_fd(&sh.ctl_r);
        if (got <= 0)
            return false;
        sh.ctl_n += (size_t)got;
    }
}

static enum end wait_end(int64_t deadline_ms, uint64_t since_ticks, int *ret_status)
{
    for (;;) {
        unsigned woke = loop_turn(-1, deadline_ms);
        enum end end = END_NONE;
        if ((woke & WAKE_CTL) && ctl_complete(ret_status))
            return END_DONE;
        if (sh.gone) {
            if (ctl_complete(ret_status))       /* the command was done, the shell ended right after it */
                return END_DONE;
            *ret_status = exit_status(sh.status);
            return END_DIED;
        }
        if (woke & WAKE_INTERRUPT)
            end = END_INTERRUPT;
        else if (woke & WAKE_TIMEOUT)
            end = END_TIMEOUT;
        if (end != END_NONE) {
            pid_t pid = sh.pid;
            kill_command(pid, since_ticks);
            if (!sh.gone)
                (void)loop_wait_pid(pid);
            *ret_status = 128 + 9;
            return end;
        }
    }
}

/* The output since the last call, cleaned and cut to its last `keep` bytes, behind what `a` holds. */
static void put_output(struct answer *a, size_t keep)
{
    uint64_t n = sh.written - sh.taken;
    size_t raw = 2 * keep + 4096 <= sh.ring_bytes ? 2 * keep + 4096 : sh.ring_bytes;
    bool cut = n > raw;
    if (cut)
        n = raw;
    char *text = malloc((size_t)n + 1);
    if (!text) {
        answer_puts(a, "[output lost: out of memory]");
        sh.taken = sh.written;
        return;
    }
    size_t at = (size_t)((sh.written - n) & (sh.ring_bytes - 1)), first = sh.ring_bytes - at;
    if (first > n)
        first = (size_t)n;
    memcpy(text, sh.ring + at, first);
    memcpy(text + first, sh.ring, (size_t)n - first);
    sh.taken = sh.written;
    size_t len = clean_trimmed(text, clean_output(text, (size_t)n));
    size_t from = clean_tail(text, len, keep);
    if (cut || from > 0) {
        a->flags |= INSIDE_TRUNCATED;
        answer_puts(a, "[output truncated]\n");
    }
    answer_put(a, text + from, len - from);
    free(text);
}

static void put_line(struct answer *a, size_t body_from, const char *line)
{
    if (a->n > body_from)
        answer_puts(a, "\n");
    answer_puts(a, line);
}

static void put_end(struct answer *a, enum end end, int status, uint32_t timeout_ms)
{
    char line[64] = "";
    a->exit_status = status;
    if (status != 0)
        a->flags |= INSIDE_ERROR;
    if (end == END_TIMEOUT) {
        a->flags |= INSIDE_TIMED_OUT | INSIDE_SHELL_DIED;
        if (timeout_ms % 1000 == 0)
            snprintf(line, sizeof line, "[timed out after %u s]", timeout_ms / 1000);
        else
            snprintf(line, sizeof line, "[timed out after %u.%03u s]", timeout_ms / 1000, timeout_ms % 1000);
        sh.note = "[session restarted after timeout]\n";
    } else if (end == END_INTERRUPT) {
        a->flags |= INSIDE_SHELL_DIED;
        snprintf(line, sizeof line, "[interrupted]");
        sh.note = "[session restarted after interrupt]\n";
    } else if (status != 0) {
        snprintf(line, sizeof line, "exit code: %d", status);
    }
    if (line[0])
        put_line(a, 0, line);
    if (end == END_DIED) {
        a->flags |= INSIDE_SHELL_DIED;
        put_line(a, 0, "[the shell has exited; the next command gets a new one]");
        sh.note = NULL;
    }
    if (end != END_DONE)
        forget_shell();
}

static void restart(void)
{
    kill_everything();
    if (sh.pid > 0 && !sh.gone)
        (void)loop_wait_pid(sh.pid);
    loop_reap();
    take_rest();
    sh.taken = sh.written;
    forget_shell();
    sh.note = NULL;
}

/* Ends a shell that cannot be used; its error answer. */
static void broken(struct answer *a, int err)
{
    restart();
    answer_error(a, INSIDE_SHELL_DIED, "bash: cannot run %s: %s", BASH_PATH, path_errno_text(err));
}

void tool_bash(struct request *r, struct answer *a)
{
    const char *command = request_string(r);
    size_t keep = r->h.limit0 == 0 ? INSIDE_OUTPUT_DEFAULT : r->h.limit0 > INSIDE_OUTPUT_MAX ? INSIDE_OUTPUT_MAX : (size_t)r->h.limit0;
    uint32_t timeout_ms = r->h.timeout_ms ? r->h.timeout_ms : INSIDE_BASH_DEFAULT_MS;
    if (r->h.flags & INSIDE_RESTART) {
        restart();
        if (*command == 0) {
            answer_puts(a, "bash session restarted");
            shell_prestart();
            return;
        }
    } else if (*command == 0) {
        answer_error(a, 0, "bash: command is required");
        return;
    }
    if (sh.gone) {
        forget_shell();
        sh.note = "[session restarted: the shell had exited]\n";
    }
    int rc = ring_size(keep);
    if (rc == 0 && sh.pid == 0)
        rc = shell_start();
    int64_t deadline = loop_now_ms() + timeout_ms;
    uint64_t since = kill_now_ticks();
    if (rc == 0)
        rc = send_command(command);
    if (rc < 0 && !sh.gone) {
        broken(a, -rc);
        return;
    }
    int status = -1;
    enum end end = wait_end(deadline, since, &status);
    take_rest();
    if (sh.note)
        answer_puts(a, sh.note);
    sh.note = NULL;
    size_t before = a->n;
    put_output(a, keep);
    if (before > 0 && a->n == before)
        a->n--;                 /* the note's line feed, when nothing follows */
    put_end(a, end, status, timeout_ms);
}
