/* gateway/stdio_proc.c - the child processes of a stdio upstream: start, lines in and out, log output, ending (MCP "stdio" transport: end of input, then
 * SIGTERM, then SIGKILL, each to the whole group). */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "base/secret.h"
#include "base/str.h"
#include "base/utf8.h"
#include "crypto/crypto.h"
#include "gateway/stdio_internal.h"
#include "log/log.h"
#include "proc/proc.h"

#define READ_CHUNK (64 * KIB)
#define READ_ROUNDS 4                        /* chunks taken from one process before others get their turn */
#define READ_ROUNDS_LAST 32                  /* after its end: more than a pipe holds */
#define STREAM_CLOSED_MS 500                 /* a process that has closed a stream is usually about to end by itself, with a status worth telling */

METRIC_DEFINE(stdio_metric_procs, METRIC_GAUGE, "outwork_gateway_stdio_processes", "Child processes of stdio routes that run now.");
METRIC_DEFINE(stdio_metric_started, METRIC_COUNTER, "outwork_gateway_stdio_started_total", "Child processes of stdio routes started.");
METRIC_DEFINE(stdio_metric_dropped, METRIC_COUNTER, "outwork_gateway_stdio_dropped_total", "Messages of stdio servers that reached no client.");

static void close_fd(struct ev_io *io, int *fd)
{
    ev_io_stop(io);
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

static void proc_free(struct sproc *p)
{
    close_fd(&p->io_in, &p->fd_in);
    close_fd(&p->io_out, &p->fd_out);
    close_fd(&p->io_err, &p->fd_err);
    ev_timer_stop(&p->idle);
    ev_timer_stop(&p->kill);
    ev_timer_stop(&p->resume);
    buf_wipe(&p->in);
    buf_wipe(&p->out);
    buf_wipe(&p->backlog);
    buf_done(&p->err);
    wipe(p->session, sizeof p->session);
    list_del(&p->link);
    p->up->n_procs--;
    metric_add(&stdio_metric_procs, -1);
    free(p);
}

/* ---- log output ---- */

static void log_line(struct sproc *p, const char *line, size_t n)
{
    int64_t now = ev_now_ms(p->up->ev) / 1000;
    if (now != p->err_second) {
        if (p->err_dropped)
            log_warn("stdio.stderr_dropped", "route=%s session=%s lines=%u", p->up->route, p->tag, p->err_dropped);
        p->err_second = now;
        p->err_lines = p->err_dropped = 0;
    }
    if (++p->err_lines > STDIO_STDERR_LINES_S) {
        p->err_dropped++;
        return;
    }
    if (n && line[n - 1] == '\r')
        n--;
    struct buf clean;
    buf_init(&clean, 4 * STDIO_STDERR_LINE_MAX);
    (void)utf8_sanitize(&clean, line, n);
    log_info("stdio.stderr", "route=%s session=%s pid=%d line=%s", p->up->route, p->tag, (int)p->pid, buf_data(&clean));
    buf_done(&clean);
}

static void err_lines(struct sproc *p, bool all)
{
    while (buf_len(&p->err)) {
        char *at = buf_data(&p->err), *nl = memchr(at, '\n', buf_len(&p->err));
        size_t n = nl ? (size_t)(nl - at) : buf_len(&p->err);
        if (!nl && !all && buf_room(&p->err))
            return;
        log_line(p, at, n);
        buf_consume(&p->err, n + (nl ? 1 : 0));
    }
}

static void on_stderr(struct ev_io *io, unsigned got)
{
    (void)got;
    struct sproc *p = container_of(io, struct sproc, io_err);
    char tmp[STDIO_STDERR_LINE_MAX];
    size_t room = buf_room(&p->err);
    ssize_t n = read(p->fd_err, tmp, room < sizeof tmp ? room : sizeof tmp);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0)
        (void)buf_put(&p->err, tmp, (size_t)n);
    err_lines(p, n <= 0);
    if (n <= 0)
        close_fd(&p->io_err, &p->fd_err);
}

/* ---- messages from the process ---- */

/* A line is over the limit: it is skipped, and the request that it would have answered is failed where that can be told. */
static void line_too_long(struct sproc *p)
{
    struct rpc m;
    bool syntax;
    const char *why;
    char key[RPC_ID_MAX];
    log_warn("stdio.line_too_long", "route=%s session=%s limit=%zu", p->up->route, p->tag, p->up->line_max);
    metric_add(&stdio_metric_dropped, 1);
    (void)!rpc_parse(buf_data(&p->out), buf_len(&p->out), &m, &syntax, &why);
    struct pending *q = m.id.n && !m.method.n && rpc_key(m.id, key) ? stdio_pending_find(p, key) : NULL;
    if (!q && p->n_pending == 1)
        q = list_first(&p->pending, struct pending, link);
    struct upstream_call *c = q ? q->call : NULL;
    buf_clear(&p->out);
    p->out_seen = 0;
    p->out_skip = true;
    if (!c)
        return;
    struct buf text;
    buf_init(&text, 2 * KIB);
    stdio_error_text(&text, q->raw_id, RPC_INTERNAL, "the MCP server's answer is larger than the gateway takes");
    stdio_pending_free(q);
    c->n_pending--;
    scall_message(c, buf_data(&text), buf_len(&text), c->n_pending == 0);
    buf_done(&text);
}

/* Hands over the whole lines that are there, unless a client must catch up first. */
static void lines(struct sproc *p)
{
    while (!p->paused) {
        char *at = buf_data(&p->out);
        size_t len = buf_len(&p->out);
        char *nl = len > p->out_seen ? memchr(at + p->out_seen, '\n', len - p->out_seen) : NULL;
        if (!nl) {
            p->out_seen = len;
            if (p->out_skip) {
                buf_clear(&p->out);
                p->out_seen = 0;
            } else if (len > p->up->line_max) {
                line_too_long(p);
                continue;
            }
            return;
        }
        size_t n = (size_t)(nl - at);
        if (p->out_skip)
            p->out_skip = false;
        else if (n)
            stdio_message(p, at, n);
        buf_consume(&p->out, n + 1);
        p->out_seen = 0;
    }
}

/* Reads what is there; false at the end of the output. `all`: the process has ended, what it wrote before is in the pipe. */
static bool take_output(struct sproc *p, bool all)
{
    for (int i = 0; i < (all ? READ_ROUNDS_LAST : READ_ROUNDS) && p->fd_out >= 0 && !p->paused; i++) {
        char *to = buf_reserve(&p->out, READ_CHUNK);
        if (!to)
            return false;
        ssize_t n = read(p->fd_out, to, READ_CHUNK);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        if (n == 0)
            return false;
        buf_commit(&p->out, (size_t)n);
        sproc_touch(p);
        lines(p);
    }
    return true;
}

static void on_stream_closed(struct ev_timer *t)
{
    struct sproc *p = container_of(t, struct sproc, kill);
    sproc_end(p, p->fd_out < 0 ? "it has closed its output" : "it has closed its input");
}

static void stream_closed(struct sproc *p)
{
    if (!p->ending && !p->exited)
        ev_timer_set(p->up->ev, &p->kill, STREAM_CLOSED_MS, on_stream_closed);
}

static void on_stdout(struct ev_io *io, unsigned got)
{
    struct sproc *p = container_of(io, struct sproc, io_out);
    if (p->paused) {
        if (got & EV_HUP) {                  /* reported whether wanted or not; looked at again when the client has caught up */
            ev_io_stop(io);
            p->reading = false;
        }
        return;
    }
    if (!take_output(p, false)) {
        close_fd(&p->io_out, &p->fd_out);
        stream_closed(p);
    } else if (p->paused) {
        ev_io_want(io, 0);
    }
}

static bool caught_up(const struct sproc *p)
{
    for (struct list *l = p->calls.next; l != &p->calls; l = l->next)
        if (list_entry(l, struct upstream_call, link) != p->get && buf_len(&list_entry(l, struct upstream_call, link)->out) > STDIO_STREAM_HIGH)
            return false;
    return true;
}

static void on_resume(struct ev_timer *t)
{
    struct sproc *p = container_of(t, struct sproc, resume);
    if (!p->paused || !caught_up(p))
        return;
    p->paused = false;
    lines(p);
    if (p->paused || p->fd_out < 0)
        return;
    if (p->reading)
        ev_io_want(&p->io_out, EV_READ);
    else
        p->reading = ev_io_start(p->up->ev, &p->io_out, p->fd_out, EV_READ, on_stdout) == RC_OK;
}

void sproc_resume_reading(struct sproc *p)
{
    if (p->paused && !ev_timer_armed(&p->resume))
        ev_timer_set(p->up->ev, &p->resume, 0, on_resume);       /* not from inside a caller that walks our lists */
}

/* ---- messages to the process ---- */

static void flush_input(struct sproc *p)
{
    while (p->fd_in >= 0 && buf_len(&p->in)) {
        ssize_t n = write(p->fd_in, buf_data(&p->in), buf_len(&p->in));
        if (n > 0) {
            buf_consume(&p->in, (size_t)n);
        } else if (n < 0 && errno == EAGAIN) {
            ev_io_want(&p->io_in, EV_WRITE);
            return;
        } else if (n == 0 || errno != EINTR) {
            close_fd(&p->io_in, &p->fd_in);
            stream_closed(p);
            return;
        }
    }
    if (p->fd_in < 0)
        return;
    ev_io_want(&p->io_in, 0);
    if (p->ending)
        close_fd(&p->io_in, &p->fd_in);
}

static void on_stdin(struct ev_io *io, unsigned got)
{
    struct sproc *p = container_of(io, struct sproc, io_in);
    if (got & EV_HUP) {
        close_fd(&p->io_in, &p->fd_in);
        stream_closed(p);
    } else {
        flush_input(p);
    }
}

int sproc_send(struct sproc *p, const char *text, size_t n)
{
    if (p->ending || p->fd_in < 0)
        return RC_CLOSED;
    if (buf_len(&p->in) && buf_len(&p->in) + n > STDIO_INPUT_MAX)
        return RC_LIMIT;
    char *to = buf_reserve(&p->in, n + 1);
    if (!to)
        return RC_LIMIT;
    for (size_t i = 0; i < n; i++)               /* outside of strings, where JSON allows no line end, they are white space */
        to[i] = text[i] == '\n' || text[i] == '\r' ? ' ' : text[i];
    to[n] = '\n';
    buf_commit(&p->in, n + 1);
    sproc_touch(p);
    flush_input(p);
    return RC_OK;
}

/* ---- life ---- */

static void on_ended(struct ev_child *ch, int status)
{
    struct sproc *p = container_of(ch, struct sproc, child);
    char words[80];
    if (WIFEXITED(status))
        (void)snprintf(words, sizeof words, "the MCP server process ended with exit status %d", WEXITSTATUS(status));
    else
        (void)snprintf(words, sizeof words, "the MCP server process was ended by signal %d", WTERMSIG(status));
    bool expected = p->ending;
    proc_kill_group(p->pid, SIGKILL);            /* what it has left behind in its group */
    p->pid = 0;
    p->exited = true;                            /* from here on nothing pauses */
    p->paused = false;
    lines(p);
    if (p->fd_out >= 0)
        (void)take_output(p, true);
    if (p->fd_err >= 0)
        on_stderr(&p->io_err, EV_READ);
    log_event(expected ? LOG_INFO : LOG_WARN, "stdio.ended", "route=%s session=%s why=%s how=%s", p->up->route, p->tag,
              expected ? p->why : "by itself", words);
    stdio_proc_gone(p, words);
    proc_free(p);
}

static void on_kill(struct ev_timer *t)
{
    struct sproc *p = container_of(t, struct sproc, kill);
    if (p->kill_step++ == 0) {
        proc_kill_group(p->pid, SIGTERM);
        ev_timer_set(p->up->ev, t, STDIO_KILL_MS, on_kill);
    } else {
        log_warn("stdio.killed", "route=%s session=%s", p->up->route, p->tag);
        proc_kill_group(p->pid, SIGKILL);
    }
}

void sproc_end(struct sproc *p, const char *why)
{
    if (p->ending || p->exited)
        return;
    p->ending = true;
    p->why = why;
    ev_timer_stop(&p->idle);
    stdio_proc_gone(p, why);
    flush_input(p);                              /* closes it when nothing waits */
    ev_timer_set(p->up->ev, &p->kill, STDIO_TERM_MS, on_kill);
}

void sproc_term(struct sproc *p)
{
    p->ending = true;
    stdio_proc_gone(p, "the gateway is stopping");
    ev_child_stop(&p->child);
    close_fd(&p->io_in, &p->fd_in);
    proc_kill_group(p->pid, SIGTERM);
}

bool sproc_reap(struct sproc *p)
{
    if (p->pid > 0 && waitpid(p->pid, NULL, WNOHANG) == p->pid) {
        proc_kill_group(p->pid, SIGKILL);
        p->pid = 0;
    }
    return p->pid <= 0;
}

void sproc_kill_now(struct sproc *p)
{
    p->ending = true;
    stdio_proc_gone(p, "the gateway is stopping");
    ev_child_stop(&p->child);
    if (p->pid > 0) {
        proc_kill_group(p->pid, SIGKILL);
        while (waitpid(p->pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    proc_free(p);
}

static void on_idle(struct ev_timer *t)
{
    struct sproc *p = container_of(t, struct sproc, idle);
    struct stdio_upstream *u = p->up;
    int64_t left = p->last_ms + u->idle_ms - ev_now_ms(u->ev);
    if (list_empty(&p->calls) && left <= 0)
        sproc_end(p, "idle");
    else
        ev_timer_set(u->ev, t, left > 0 ? left : u->idle_ms, on_idle);
}

void sproc_touch(struct sproc *p)
{
    p->last_ms = ev_now_ms(p->up->ev);
}

/* A pipe of which the gateway keeps the end `ours` (0 reads, 1 writes), non-blocking. */
static int make_pipe(int ours, int *ret_ours, int *ret_theirs, struct err *e)
{
    int fd[2];
    if (pipe2(fd, O_CLOEXEC) < 0)
        return err_sys(e, RC_IO, errno, "pipe to an MCP server");
    *ret_ours = fd[ours];
    *ret_theirs = fd[!ours];
    return fd_nonblock(fd[ours]) == RC_OK ? RC_OK : err_set(e, RC_IO, "pipe to an MCP server");
}

int sproc_start(struct stdio_upstream *u, bool stateless, struct sproc **ret, struct err *e)
{
    AUTO_CLOSE int in = -1;
    AUTO_CLOSE int out = -1;
    AUTO_CLOSE int err = -1;
    AUTO_CLOSE int in2 = -1;
    AUTO_CLOSE int out2 = -1;
    AUTO_CLOSE int err2 = -1;
    int pidfd = -1;
    pid_t pid = 0;
    TRY(make_pipe(1, &in, &in2, e));
    TRY(make_pipe(0, &out, &out2, e));
    TRY(make_pipe(0, &err, &err2, e));
    struct proc_spec s = { .path = u->path, .argv = u->argv, .envp = u->env, .fd_in = in2, .fd_out = out2, .fd_err = err2, .cwd = u->cwd, .new_group = true };
    TRY(proc_spawn(&s, &pid, &pidfd, e));
    if (pidfd >= 0)
        (void)close(pidfd);
    struct sproc *p = xcalloc(1, sizeof *p);
    *p = (struct sproc){ .up = u, .stateless = stateless, .pid = pid, .fd_in = TAKE_FD(in), .fd_out = TAKE_FD(out), .fd_err = TAKE_FD(err), .reading = true };
    buf_init(&p->in, u->line_max + STDIO_INPUT_MAX);
    buf_init(&p->out, u->line_max + 2 * READ_CHUNK);
    buf_init(&p->err, STDIO_STDERR_LINE_MAX);
    buf_init(&p->backlog, STDIO_BACKLOG_MAX);
    list_init(&p->calls);
    list_init(&p->pending);
    list_add_tail(&u->procs, &p->link);
    u->n_procs++;
    metric_add(&stdio_metric_procs, 1);
    metric_add(&stdio_metric_started, 1);
    if (stateless) {
        (void)str_copy(p->tag, sizeof p->tag, "shared");
    } else {
        char hex[SHA256_HEX];
        token_new("", p->session);
        sha256_hex(p->session, strlen(p->session), hex);
        (void)str_copy(p->tag, sizeof p->tag, hex);
    }
    if (ev_child_start(u->ev, &p->child, pid, on_ended) < 0 || ev_io_start(u->ev, &p->io_in, p->fd_in, 0, on_stdin) < 0 ||
        ev_io_start(u->ev, &p->io_out, p->fd_out, EV_READ, on_stdout) < 0 || ev_io_start(u->ev, &p->io_err, p->fd_err, EV_READ, on_stderr) < 0) {
        sproc_kill_now(p);
        return err_set(e, RC_IO, "cannot watch the MCP server process");
    }
    sproc_touch(p);
    ev_timer_set(u->ev, &p->idle, u->idle_ms, on_idle);
    log_info("stdio.started", "route=%s session=%s pid=%d", u->route, p->tag, (int)pid);
    *ret = p;
    return RC_OK;
}
