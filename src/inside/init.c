/* inside/init.c - PID 1 of a sandbox: serves the worker's requests (proto.h) on descriptor 3, in order, one at a time; reaps whatever is left to it.
 * A request that breaks the protocol ends the program, and with it the sandbox. */
#include "inside/init.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define REAP_WAIT_MS 2000

static struct {
    char   in[INSIDE_IN_BYTES];
    size_t in_n;
    bool   greeted;
    pid_t  waited_pid;           /* see loop_watch_pid() */
    int    waited_status;
    bool   waited_gone;
    char  *env[INSIDE_ENV_MAX + 4];     /* its texts stay in the body of HELLO */
} in;
static volatile sig_atomic_t child_signal;
static sigset_t mask_waiting;

static void on_child(int sig)
{
    (void)sig;
    child_signal = 1;
}

int64_t loop_now_ms(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void loop_reap(void)
{
    int status = 0;
    pid_t pid;
    child_signal = 0;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == in.waited_pid) {
            in.waited_gone = true;
            in.waited_status = status;
        }
        shell_child_gone(pid, status);
    }
}

void loop_watch_pid(pid_t pid)
{
    in.waited_pid = pid;
    in.waited_gone = false;
}

int loop_wait_pid(pid_t pid)
{
    int64_t until = loop_now_ms() + REAP_WAIT_MS;
    if (in.waited_pid != pid)
        loop_watch_pid(pid);
    for (loop_reap(); !in.waited_gone && loop_now_ms() < until; loop_reap()) {
        struct timespec left = { .tv_nsec = 100 * 1000000 };
        (void)ppoll(NULL, 0, &left, &mask_waiting);
    }
    in.waited_pid = 0;
    return in.waited_gone ? in.waited_status : -1;
}

/* The header at the front of what has been read; a broken one ends us. */
static bool peek_header(struct inside_req *h)
{
    if (in.in_n < sizeof *h)
        return false;
    memcpy(h, in.in, sizeof *h);
    if (h->magic != INSIDE_MAGIC || h->body_bytes > INSIDE_REQ_MAX)
        _exit(2);
    return true;
}

static void drop_input(size_t n)
{
    in.in_n -= n;
    memmove(in.in, in.in + n, in.in_n);
}

static bool take_interrupt(void)
{
    struct inside_req h;
    if (!peek_header(&h) || h.op != INSIDE_INTERRUPT)
        return false;
    if (h.body_bytes)
        _exit(2);
    drop_input(sizeof h);
    return true;
}

static void read_socket(void)
{
    ssize_t got = recv(INSIDE_SOCK, in.in + in.in_n, sizeof in.in - in.in_n, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
        _exit(0);               /* the worker is gone */
    if (got > 0)
        in.in_n += (size_t)got;
}

unsigned loop_turn(int extra_fd, int64_t deadline_ms)
{
    struct inside_req h;
    struct pollfd p[4] = { { .fd = INSIDE_SOCK, .events = POLLIN }, { .fd = -1, .events = POLLIN }, { .fd = -1, .events = POLLIN },
                           { .fd = extra_fd, .events = POLLIN } };
    unsigned woke = 0;
    shell_fds(&p[1].fd, &p[2].fd);
    if (in.greeted && deadline_ms >= 0 && peek_header(&h) && h.op != INSIDE_INTERRUPT)
        p[0].events = 0;        /* the next request waits; what is behind it cannot be an interrupt of this one */
    struct timespec left = { 0 }, *timeout = NULL;
    if (deadline_ms >= 0) {
        int64_t ms = deadline_ms - loop_now_ms();
        if (ms > 0)
            left = (struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };
        else
            woke |= WAKE_TIMEOUT;
        timeout = &left;
    }
    int n = ppoll(p, 4, timeout, &mask_waiting);
    if (child_signal || n > 0)          /* a ppoll() that has something to say at once gives a pending signal back undelivered */
        loop_reap();
    if (n <= 0)
        return woke;
    if (p[2].revents) {
        shell_read_output();
        woke |= WAKE_OUT;
    }
    if (p[1].revents)
        woke |= WAKE_CTL;
    if (p[3].revents)
        woke |= WAKE_EXTRA;
    if (p[0].revents && !p[0].events)
        _exit(0);
    if (p[0].revents) {
        read_socket();
        woke |= WAKE_SOCK;
        while (deadline_ms >= 0 && take_interrupt())
            woke |= WAKE_INTERRUPT;
    }
    return woke;
}

static void send_all(const struct inside_req *h, struct answer *a)
{
    if (!a->mem && !answer_room(a, 0))
        _exit(3);
    struct inside_res res = { .magic = INSIDE_MAGIC, .op = h->op, .id = h->id, .flags = a->flags, .kind = a->kind,
                              .exit_status = a->exit_status, .body_bytes = a->n };
    memcpy(a->mem, &res, sizeof res);
    const char *p = a->mem;
    size_t n = sizeof res + a->n;
    while (n > 0) {
        ssize_t put = send(INSIDE_SOCK, p, n, MSG_NOSIGNAL);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && errno == EAGAIN) {       /* the worker's end may have made the socket non-blocking */
            struct pollfd w = { .fd = INSIDE_SOCK, .events = POLLOUT };
            (void)poll(&w, 1, -1);
            continue;
        }
        if (put <= 0)
            _exit(0);
        p += put;
        n -= (size_t)put;
    }
}

/* The next request, with its body in memory of its own. */
static void take_request(struct request *r)
{
    memset(r, 0, sizeof *r);
    while (!peek_header(&r->h))
        (void)loop_turn(-1, -1);
    r->n = (size_t)r->h.body_bytes;
    r->body = malloc(r->n + 1);
    if (!r->body)
        _exit(3);
    drop_input(sizeof r->h);
    size_t have = in.in_n < r->n ? in.in_n : r->n;
    memcpy(r->body, in.in, have);
    drop_input(have);
    while (have < r->n) {
        ssize_t got = recv(INSIDE_SOCK, r->body + have, r->n - have, MSG_WAITALL);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN) {
            struct pollfd w = { .fd = INSIDE_SOCK, .events = POLLIN };
            (void)poll(&w, 1, -1);
            continue;
        }
        if (got <= 0)
            _exit(0);
        have += (size_t)got;
    }
    r->body[r->n] = 0;
}

static bool env_is_ours(const char *s) { return strncmp(s, "PS1=", 4) == 0 || strncmp(s, "PS2=", 4) == 0 || strncmp(s, "TERM=", 5) == 0; }

/* The environment stays in the request's body, which is then never freed. */
static void tool_hello(struct request *r, struct answer *a)
{
    static char ps1[] = "PS1=", ps2[] = "PS2=", term[] = "TERM=dumb";
    const char *cwd = request_string(r), *var;
    size_t n = 0;
    if (in.greeted)
        _exit(2);
    while ((var = request_string(r))) {
        if (env_is_ours(var) || !strchr(var, '='))
            continue;
        if (n == INSIDE_ENV_MAX)
            _exit(2);
        in.env[n++] = r->body + (var - r->body);
    }
    in.env[n++] = ps1;
    in.env[n++] = ps2;
    in.env[n++] = term;
    in.env[n] = NULL;
    int rc = roots_init(cwd);
    if (rc == 0)
        rc = shell_init(in.env);
    if (rc < 0)
        answer_error(a, 0, "hello: %s: %s", cwd, path_errno_text(-rc));
    else
        in.greeted = true;
    r->body = NULL;
}

static void tool_ping(struct request *r, struct answer *a)
{
    (void)r;
    (void)a;
}

static const struct { uint32_t op; unsigned strings; void (*run)(struct request *, struct answer *); } ops[] = {
    { INSIDE_HELLO, 1, tool_hello }, { INSIDE_BASH, 1, tool_bash }, { INSIDE_READ, 1, tool_read },     { INSIDE_WRITE, 1, tool_write },
    { INSIDE_EDIT, 1, tool_edit },   { INSIDE_GLOB, 2, tool_glob }, { INSIDE_GREP, 2, tool_grep },     { INSIDE_PUT, 1, tool_put },
    { INSIDE_PING, 0, tool_ping },   { INSIDE_REMOVE, 1, tool_remove },
};

static void serve(struct request *r, struct answer *a)
{
    if (r->h.op == INSIDE_INTERRUPT)    /* came too late: nothing runs */
        return;
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        if (ops[i].op != r->h.op)
            continue;
        for (unsigned k = 0; k < ops[i].strings; k++)
            if (!request_string(r))
                _exit(2);
        r->next = 0;
        if (!in.greeted && r->h.op != INSIDE_HELLO && r->h.op != INSIDE_PING)
            _exit(2);
        answer_clear(a);
        ops[i].run(r, a);
        if (a->over)
            answer_error(a, 0, "the answer is too large");
        send_all(&r->h, a);
        if (r->h.op == INSIDE_HELLO && in.greeted)
            shell_prestart();
        return;
    }
    _exit(2);
}

static void setup(void)
{
    struct sigaction ign = { .sa_handler = SIG_IGN }, chld = { .sa_handler = on_child };
    sigset_t block;
    int fd;
    do {                        /* 0 to 2 must not become the number of something of ours */
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    } while (fd >= 0 && fd <= 2);
    if (fd > 2)
        close(fd);
    (void)fcntl(INSIDE_SOCK, F_SETFD, FD_CLOEXEC);
    (void)prctl(PR_SET_DUMPABLE, 0);                    /* same uid as the commands: they must not read or trace us */
    if (getpid() != 1)
        (void)prctl(PR_SET_CHILD_SUBREAPER, 1);
    (void)umask(022);
    (void)sigaction(SIGPIPE, &ign, NULL);
    (void)sigaction(SIGCHLD, &chld, NULL);
    sigemptyset(&block);
    sigaddset(&block, SIGCHLD);
    (void)sigprocmask(SIG_BLOCK, &block, &mask_waiting);
    sigdelset(&mask_waiting, SIGCHLD);
}

int main(void)
{
    struct answer a = { 0 };
    setup();
    for (;;) {
        struct request r;
        take_request(&r);
        serve(&r, &a);
        free(r.body);
    }
}
