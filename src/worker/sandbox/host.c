/* host.c - the worker's side: the zygote and the warden, the warm pool, claims and deaths. Loop thread only.
 *
 * A new session takes a warm sandbox: its workspace was made under pool/ and is simply renamed to sessions/<id>; the mount inside follows the directory. A
 * session that comes back gets a sandbox made for its directory and uid. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/dur.h"
#include "base/str.h"
#include "worker/sandbox/host.h"

#define REFILL_MS 10             /* after a claim: the first call goes ahead of the next sandbox */
#define RETRY_MS 1000            /* after a failure to make one */
#define WATCH_MS 5

static void refill(struct sbx_host *h);
static void claim_begin(struct sbx_claim *c);

const struct sbx_limits *sbx_host_limits(const struct sbx_host *h) { return &h->p->limits; }
struct ev *sbx_host_ev(const struct sbx_host *h) { return h->ev; }
pid_t sbx_pid(const struct sbx *s) { return s->pid; }

size_t sbx_host_ready(const struct sbx_host *h)
{
    size_t n = 0;
    list_foreach(s, &h->all, struct sbx, node)
        n += s->state == SBX_WARM;
    return n;
}

/* ---- a sandbox's life ---- */

static struct sbx *sbx_new(struct sbx_host *h)
{
    struct sbx *s = xcalloc(1, sizeof *s);
    s->h = h;
    s->state = SBX_MAKING;
    s->seq = ++h->seq;
    s->sock = s->pidfd = s->procfd = s->lockfd = -1;
    call_init(s);
    list_add_tail(&h->all, &s->node);
    return s;
}

static void maybe_free(struct sbx *s)
{
    if (s->state != SBX_DEAD || !s->closed || s->posts)
        return;
    list_del(&s->node);
    call_done(s);
    free(s);
}

void sbx_unpost(struct sbx *s)
{
    s->posts--;
    maybe_free(s);
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void sbx_kill(struct sbx *s, int rc, const char *fmt, ...)
{
    if (s->state == SBX_DEAD)
        return;
    if (!s->kill_rc) {
        s->kill_rc = rc;
        va_list ap;
        va_start(ap, fmt);
        (void)vsnprintf(s->why, sizeof s->why, fmt, ap);
        va_end(ap);
    }
    if (s->state == SBX_MAKING && s->pidfd < 0)      /* not made yet: ended when it comes */
        return;
    s->state = SBX_DYING;
    ev_io_stop(&s->io);
    ev_timer_stop(&s->timer);
    if (s->pidfd >= 0)
        (void)pidfd_send_signal(s->pidfd, SIGKILL, NULL, 0);     /* PID 1 of its namespace: the kernel ends all others with it */
}

static void claim_end(struct sbx_claim *c, int rc, struct sbx *s, const struct err *e);

/* The zygote has reaped it: nothing of it runs any more. */
static void sbx_dead(struct sbx *s)
{
    struct sbx_host *h = s->h;
    struct err e = { 0 };
    s->state = SBX_DEAD;
    call_done(s);
    close_fd(&s->sock);
    close_fd(&s->pidfd);
    close_fd(&s->procfd);
    if (s->watched && !h->failed)
        host_unwatch(h, s);
    if (s->pooled)
        host_trash(h, s->dir);
    close_fd(&s->lockfd);
    if (s->forget)
        host_trash(h, s->dir);
    struct sbx_claim *c = s->claim;
    if (c && c->posted)         /* claim_post_run() will see the state */
        c = NULL;
    s->posts++;
    call_fail_all(s);
    if (c && c->s == s) {
        s->claim = NULL;
        c->s = NULL;
        err_set(&e, s->kill_rc ? s->kill_rc : RC_CLOSED, "start a sandbox: %s", s->why);
        claim_end(c, e.rc, NULL, &e);
        s->closed = true;
    }
    if (s->pooled)
        s->closed = true;
    if (!s->closed && s->death_cb)
        s->death_cb(s->death_ctx, s->why);
    /* A claim may be waiting for the end of this session's previous sandbox. */
    list_foreach(w, &h->claims, struct sbx_claim, node)
        if (w->after == s) {
            w->after = NULL;
            claim_begin(w);
            break;
        }
    sbx_unpost(s);
}

void sbx_on_death(struct sbx *s, void (*cb)(void *, const char *), void *ctx)
{
    s->death_cb = cb;
    s->death_ctx = ctx;
}

/* Functions that run in a later turn, or at the latest when the host is stopped: nothing posted outlives it. */
struct post { struct list node; void (*fn)(void *); void *arg; };

static void drain(void *arg)
{
    struct sbx_host *h = arg;
    h->drain_posted = false;
    host_run_posts(h);
    if (h->stopped)
        free(h);
}

void host_run_posts(struct sbx_host *h)
{
    while (!list_empty(&h->posts)) {
        struct post *p = list_first(&h->posts, struct post, node);
        list_del(&p->node);
        void (*fn)(void *) = p->fn;
        void *a = p->arg;
        free(p);
        fn(a);
    }
}

void host_post(struct sbx_host *h, void (*fn)(void *), void *arg)
{
    struct post *p = xcalloc(1, sizeof *p);
    p->fn = fn;
    p->arg = arg;
    list_add_tail(&h->posts, &p->node);
    if (!h->drain_posted)
        ev_post(h->ev, drain, h);
    h->drain_posted = true;
}

static void close_later(void *arg)
{
    sbx_unpost(arg);
}

void sbx_close(struct sbx *s)
{
    if (s->closed)
        return;
    s->closed = true;
    s->death_cb = NULL;
    s->posts++;
    sbx_kill(s, RC_CLOSED, "closed by the worker");
    call_fail_all(s);
    host_post(s->h, close_later, s);
}

/* ---- claims ---- */

static void claim_end(struct sbx_claim *c, int rc, struct sbx *s, const struct err *e)
{
    list_del(&c->node);
    void (*cb)(void *, int, struct sbx *, const struct err *) = c->cb;
    void *ctx = c->ctx;
    free(c);
    cb(ctx, rc, s, e);
}

static void claim_post_run(void *arg)
{
    struct sbx_claim *c = arg;
    struct sbx *s = c->s;
    struct err e = c->e;
    if (s) {
        s->posts--;
        s->claim = NULL;
        if (s->state == SBX_CLAIMED) {
            claim_end(c, RC_OK, s, NULL);
            return;
        }
        err_set(&e, RC_CLOSED, "the sandbox ended at once: %s", s->why);     /* in the moment between */
        s->closed = true;
        maybe_free(s);
    }
    claim_end(c, e.rc, NULL, &e);
}

static void claim_fail(struct sbx_claim *c, int rc, const char *text)
{
    c->s = NULL;
    if (text)
        err_set(&c->e, rc, "%s", text);
    c->posted = true;
    host_post(c->h, claim_post_run, c);
}

/* `s` is ready and the claim's. */
static void claim_ok(struct sbx_claim *c, struct sbx *s)
{
    struct sbx_host *h = c->h;
    s->state = SBX_CLAIMED;
    s->claim = c;
    c->s = s;
    c->posted = true;
    s->posts++;
    host_post(h, claim_post_run, c);
    if (!ev_timer_armed(&h->watch_timer))
        ev_timer_set(h->ev, &h->watch_timer, WATCH_MS, host_watch_all);
    size_t ready = sbx_host_ready(h);
    if (ready < h->warm)
        ev_timer_set(h->ev, &h->refill_timer, ready ? REFILL_MS : 0, host_on_refill);
}

static bool id_ok(const char *id)
{
    size_t n = id ? strlen(id) : 0;
    if (n == 0 || n >= SBX_ID_MAX)
        return false;
    for (size_t i = 0; i < n; i++)
        if (!((id[i] >= 'a' && id[i] <= 'z') || (id[i] >= 'A' && id[i] <= 'Z') || (id[i] >= '0' && id[i] <= '9') || id[i] == '_' || id[i] == '-'))
            return false;
    return true;
}

/* Locks sessions/<id> for this worker: another on the same state_dir must not run the same session. */
static int lock_session(struct sbx_host *h, const char *dir, int *ret_fd, struct err *e)
{
    AUTO_CLOSE int fd = openat(h->state_fd, dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, RC_IO, errno, "open %s", dir);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return err_set(e, RC_CONFLICT, "%s has a sandbox in another worker", dir);
    *ret_fd = TAKE_FD(fd);
    return RC_OK;
}

static void take_warm(struct sbx_claim *c, struct sbx *s)
{
    struct sbx_host *h = c->h;
    char dir[SBX_DIR_MAX];
    (void)snprintf(dir, sizeof dir, "sessions/%s", c->id);
    if (renameat(h->state_fd, s->dir, h->state_fd, dir) < 0) {
        err_sys(&c->e, RC_IO, errno, "give the workspace to %s", dir);
        claim_fail(c, RC_IO, NULL);
        return;                 /* it stays warm for another */
    }
    (void)str_copy(s->dir, sizeof s->dir, dir);
    s->pooled = false;
    if (lock_session(h, dir, &s->lockfd, &c->e) < 0) {
        s->closed = true;
        sbx_kill(s, RC_IO, "%s", c->e.msg);
        claim_fail(c, RC_IO, NULL);
        return;
    }
    claim_ok(c, s);
}

static struct sbx *oldest_warm(struct sbx_host *h)
{
    list_foreach(s, &h->all, struct sbx, node)
        if (s->state == SBX_WARM)
            return s;
    return NULL;
}

static void claim_begin(struct sbx_claim *c)
{
    struct sbx_host *h = c->h;
    char dir[SBX_DIR_MAX], path[SBX_DIR_MAX + 16];
    (void)snprintf(dir, sizeof dir, "sessions/%s", c->id);
    list_foreach(s, &h->all, struct sbx, node)
        if (s->state != SBX_DEAD && str_eq(s->dir, dir)) {
            if (s->closed)      /* on its way out */
                c->after = s;
            else
                claim_fail(c, RC_CONFLICT, "the session has a sandbox already");
            return;
        }
    (void)snprintf(path, sizeof path, "%s/workspace", dir);
    struct stat st;
    if (fstatat(h->state_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        int lock = -1;
        if (lock_session(h, dir, &lock, &c->e) < 0) {
            claim_fail(c, c->e.rc, NULL);
            return;
        }
        struct sbx *s = sbx_new(h);
        s->lockfd = lock;
        s->claim = c;
        c->s = s;
        (void)str_copy(s->dir, sizeof s->dir, dir);
        host_send_makes(h);
        return;
    }
    struct sbx *s = oldest_warm(h);
    if (s)
        take_warm(c, s);
    else {
        c->wants_pool = true;
        refill(h);
    }
}

void sbx_claim(struct sbx_host *h, const char *session_id, void (*cb)(void *, int, struct sbx *, const struct err *), void *ctx)
{
    struct sbx_claim *c = xcalloc(1, sizeof *c);
    *c = (struct sbx_claim){ .h = h, .cb = cb, .ctx = ctx };
    list_init(&c->node);
    list_add_tail(&h->claims, &c->node);
    if (!id_ok(session_id) || !str_copy(c->id, sizeof c->id, session_id)) {
        claim_fail(c, RC_INVALID, "a session id for a sandbox has 1 to 95 letters, digits, _ or -");
        return;
    }
    list_foreach(o, &h->claims, struct sbx_claim, node)
        if (o != c && str_eq(o->id, c->id)) {
            claim_fail(c, RC_CONFLICT, "the session is being given a sandbox already");
            return;
        }
    if (h->failed)
        claim_fail(c, RC_CLOSED, h->why);
    else
        claim_begin(c);
}

/* ---- the pool ---- */

static void refill(struct sbx_host *h)
{
    size_t have = 0, want = h->warm;
    list_foreach(c, &h->claims, struct sbx_claim, node)
        want += c->wants_pool && !c->posted;
    list_foreach(s, &h->all, struct sbx, node)
        have += s->pooled && !s->kill_rc && (s->state == SBX_MAKING || s->state == SBX_HELLO || s->state == SBX_WARM);
    for (; have < want; have++) {
        struct sbx *s = sbx_new(h);
        s->pooled = true;
        (void)snprintf(s->dir, sizeof s->dir, "%s/%u", h->pool, s->seq);
    }
    host_send_makes(h);
}

void host_on_refill(struct ev_timer *t)
{
    refill(container_of(t, struct sbx_host, refill_timer));
}

static struct sbx_claim *waiting_claim(struct sbx_host *h)
{
    list_foreach(c, &h->claims, struct sbx_claim, node)
        if (c->wants_pool && !c->posted)
            return c;
    return NULL;
}

static void on_hello(void *ctx, int rc, const struct inside_res *res, const char *body, size_t n, const struct err *e)
{
    struct sbx *s = ctx;
    (void)e;
    if (rc < 0)
        return;                 /* it is dying; sbx_dead() tells the claim */
    if (res->flags & INSIDE_ERROR) {
        sbx_kill(s, RC_IO, "not ready: %.*s", (int)(n < 200 ? n : 200), body);
        return;
    }
    struct sbx_host *h = s->h;
    h->failures = 0;
    if (!s->pooled) {
        struct sbx_claim *c = s->claim;
        claim_ok(c, s);
        return;
    }
    s->state = SBX_WARM;
    struct sbx_claim *c = waiting_claim(h);
    if (c)
        take_warm(c, s);
}

static void say_hello(struct sbx *s)
{
    static const char *const base[] = { "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/workspace", "TERM=dumb", "LANG=C.UTF-8",
                                        "USER=agent", "LOGNAME=agent", "SHELL=/bin/bash", "TMPDIR=/tmp" };
    const struct sbx_policy *p = s->h->p;
    struct buf b;
    buf_init(&b, 1 * MIB);
    buf_put(&b, "/workspace", sizeof "/workspace");
    for (size_t i = 0; i < COUNT_OF(base); i++) {
        size_t name = strcspn(base[i], "=") + 1;
        bool over = false;
        for (size_t k = 0; k < p->n_env; k++)
            over = over || strncmp(p->env[k], base[i], name) == 0;
        if (!over)
            buf_put(&b, base[i], strlen(base[i]) + 1);
    }
    for (size_t k = 0; k < p->n_env; k++)
        buf_put(&b, p->env[k], strlen(p->env[k]) + 1);
    struct inside_req q = { .op = INSIDE_HELLO };
    if (buf_ok(&b))
        sbx_call(s, &q, buf_data(&b), buf_len(&b), on_hello, s);
    else
        sbx_kill(s, RC_TOO_LARGE, "the environment of the tool shell is too large");
    buf_done(&b);
}

/* ---- what the zygote and the warden say ---- */

void host_on_made(struct sbx *s, pid_t pid, int fds[FDS_MAX])
{
    s->pid = pid;
    s->sock = TAKE_FD(fds[0]);
    s->pidfd = TAKE_FD(fds[1]);
    s->procfd = TAKE_FD(fds[2]);
    if (s->kill_rc || s->sock < 0 || s->pidfd < 0) {
        sbx_kill(s, RC_IO, "the zygote sent no descriptors");
        return;
    }
    if (call_start_io(s) < 0) {
        sbx_kill(s, RC_IO, "watch its socket");
        return;
    }
    s->state = SBX_HELLO;
    if (s->h->no_hello) {
        struct inside_res none = { 0 };
        on_hello(s, RC_OK, &none, "", 0, NULL);
    } else {
        say_hello(s);
    }
}

void host_on_failed(struct sbx *s, int rc, const char *text)
{
    struct sbx_host *h = s->h;
    s->kill_rc = rc;
    (void)str_copy(s->why, sizeof s->why, text);
    if (s->pooled) {
        h->failures++;
        struct sbx_claim *c = waiting_claim(h);
        if (c)
            claim_fail(c, rc, text);
        ev_timer_set(h->ev, &h->refill_timer, RETRY_MS, host_on_refill);
    }
    sbx_dead(s);
}

void host_on_exit(struct sbx *s, int status, uint32_t oom_kills)
{
    char size[24];
    size_format(s->h->p->limits.memory_bytes, size);
    /* Its own words say why, unless PID 1 just vanished. */
    if (!s->kill_rc || s->kill_rc == RC_CLOSED) {
        if (s->closed && s->kill_rc)
            ;
        else if (oom_kills && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
            (void)snprintf(s->why, sizeof s->why, "memory limit of %s reached", size);
        else if (WIFSIGNALED(status))
            (void)snprintf(s->why, sizeof s->why, "its first process was killed by signal %d", WTERMSIG(status));
        else
            (void)snprintf(s->why, sizeof s->why, "its first process ended with status %d", WEXITSTATUS(status));
        s->kill_rc = RC_CLOSED;
    }
    bool pooled = s->pooled;
    struct sbx_host *h = s->h;
    sbx_dead(s);
    if (pooled && !h->failed && !ev_timer_armed(&h->refill_timer))
        ev_timer_set(h->ev, &h->refill_timer, RETRY_MS, host_on_refill);
}

void host_fail(struct sbx_host *h, const char *why)
{
    if (h->failed)
        return;
    h->failed = true;
    (void)str_copy(h->why, sizeof h->why, why);
    ev_timer_stop(&h->refill_timer);
    ev_timer_stop(&h->watch_timer);
    ev_io_stop(&h->zio);
    ev_io_stop(&h->wio);
    close_fd(&h->zsock);        /* the zygote, if it lives, ends all sandboxes with itself */
    close_fd(&h->wsock);
    list_foreach(s, &h->all, struct sbx, node) {
        s->posts++;
        sbx_kill(s, RC_CLOSED, "%s", why);
    }
    for (struct list *n = h->all.next; n != &h->all;) {
        struct sbx *s = list_entry(n, struct sbx, node);
        if (s->state != SBX_DEAD)
            sbx_dead(s);
        n = s->node.next;
        sbx_unpost(s);
    }
    list_foreach(c, &h->claims, struct sbx_claim, node)
        if (!c->posted)
            claim_fail(c, RC_CLOSED, why);
}

int sbx_forget(struct sbx_host *h, const char *session_id, struct err *e)
{
    if (!id_ok(session_id))
        return err_set(e, RC_INVALID, "no session id");
    char dir[SBX_DIR_MAX];
    (void)snprintf(dir, sizeof dir, "sessions/%s", session_id);
    list_foreach(s, &h->all, struct sbx, node)
        if (s->state != SBX_DEAD && str_eq(s->dir, dir)) {
            if (!s->closed)
                return err_set(e, RC_CONFLICT, "session %s still has a sandbox", session_id);
            s->forget = true;   /* when it is dead */
            return RC_OK;
        }
    AUTO_CLOSE int lock = -1;
    if (faccessat(h->state_fd, dir, F_OK, AT_SYMLINK_NOFOLLOW) < 0)
        return RC_OK;
    TRY(lock_session(h, dir, &lock, e));
    return host_trash(h, dir) ? RC_OK : err_set(e, RC_IO, "cannot move %s away", dir);
}
