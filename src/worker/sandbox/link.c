/* link.c - starting and stopping the zygote and the warden, and the messages between them and the loop. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/dur.h"
#include "base/fd.h"
#include "base/random.h"
#include "base/str.h"
#include "worker/sandbox/host.h"

#define STOP_MS 8000             /* for the zygote to end every sandbox */
#define MESSAGES_PER_TURN 64
#define WATCH_RETRY_MS 50

/* ---- to the zygote and the warden ---- */

void host_send_makes(struct sbx_host *h)
{
    if (h->failed)
        return;
    list_foreach(s, &h->all, struct sbx, node) {
        if (s->state != SBX_MAKING || s->sent)
            continue;
        struct zy_req q = { .type = ZQ_MAKE, .seq = s->seq, .create = s->pooled };
        (void)str_copy(q.dir, sizeof q.dir, s->dir);
        int rc = fds_send(h->zsock, &q, sizeof q, NULL, 0);
        if (rc == RC_AGAIN) {
            ev_io_want(&h->zio, EV_READ | EV_WRITE);
            return;
        }
        if (rc < 0)
            return;              /* the end of the socket tells more */
        s->sent = true;
    }
    ev_io_want(&h->zio, EV_READ);
}

static bool watch(struct sbx_host *h, struct sbx *s)
{
    const struct sbx_limits *l = &h->p->limits;
    struct wd_msg m = { .type = WQ_WATCH, .seq = s->seq, .disk_bytes = l->disk_bytes };
    if (h->plan.mem == LIM_WATCHDOG)
        m.memory_bytes = l->memory_bytes;
    if (h->plan.pids == LIM_WATCHDOG)
        m.pids = l->pids;
    char path[SBX_DIR_MAX + 16];
    (void)snprintf(path, sizeof path, "%s/workspace", s->dir);
    AUTO_CLOSE int dir = openat(h->state_fd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dir < 0) {
        sbx_kill(s, RC_IO, "its workspace cannot be watched: errno %d", errno);
        return true;
    }
    const int fds[] = { dir, s->procfd };
    return fds_send(h->wsock, &m, sizeof m, fds, s->procfd >= 0 ? 2 : 1) != RC_AGAIN;
}

void host_watch_all(struct ev_timer *t)
{
    struct sbx_host *h = container_of(t, struct sbx_host, watch_timer);
    list_foreach(s, &h->all, struct sbx, node)
        if (s->state == SBX_CLAIMED && !s->watched) {
            if (!watch(h, s)) {
                ev_timer_set(h->ev, t, WATCH_RETRY_MS, host_watch_all);
                return;
            }
            s->watched = true;
        }
}

/* A lost one costs little: the warden looks at an empty proc, or removes what lies there at the next sweep. */
static void tell_warden(struct sbx_host *h, const struct wd_msg *m)
{
    int rc = fds_send(h->wsock, m, sizeof *m, NULL, 0);
    (void)rc;
}

void host_unwatch(struct sbx_host *h, struct sbx *s)
{
    struct wd_msg m = { .type = WQ_UNWATCH, .seq = s->seq };
    tell_warden(h, &m);
}

/* Out of the way at once; the warden removes it in its own time. */
bool host_trash(struct sbx_host *h, const char *dir)
{
    uint64_t rnd;
    char to[32];
    random_bytes(&rnd, sizeof rnd);
    (void)snprintf(to, sizeof to, "trash/%016llx", (unsigned long long)rnd);
    if (renameat(h->state_fd, dir, h->state_fd, to) < 0)
        return errno == ENOENT;
    struct wd_msg m = { .type = WQ_SWEEP };
    if (!h->failed)
        tell_warden(h, &m);
    return true;
}

/* ---- from them ---- */

static struct sbx *by_seq(struct sbx_host *h, uint32_t seq)
{
    list_foreach(s, &h->all, struct sbx, node)
        if (s->seq == seq && s->state != SBX_DEAD)
            return s;
    return NULL;
}

static void on_answer(struct sbx_host *h, struct zy_ans *a, int fds[FDS_MAX])
{
    struct sbx *s = by_seq(h, a->seq);
    a->text[sizeof a->text - 1] = 0;
    if (s && a->type == ZA_MADE && s->state == SBX_MAKING)
        host_on_made(s, a->pid, fds);
    else if (s && a->type == ZA_FAILED && s->state == SBX_MAKING)
        host_on_failed(s, a->rc < 0 ? a->rc : RC_IO, a->text);
    else if (s && a->type == ZA_EXIT)
        host_on_exit(s, a->status, a->oom_kills);
}

static void on_zygote(struct ev_io *io, unsigned got)
{
    struct sbx_host *h = container_of(io, struct sbx_host, zio);
    if (got & EV_WRITE)
        host_send_makes(h);
    for (int i = 0; i < MESSAGES_PER_TURN && !h->failed; i++) {
        struct zy_ans a;
        int fds[FDS_MAX];
        ssize_t n = fds_recv(h->zsock, &a, sizeof a, fds, MSG_DONTWAIT);
        if (n == RC_AGAIN)
            return;
        if (n <= 0) {
            host_fail(h, "the zygote ended: restart the worker");
            return;
        }
        on_answer(h, &a, fds);
        for (size_t k = 0; k < FDS_MAX; k++)
            if (fds[k] >= 0)
                close(fds[k]);
    }
}

static void on_warden(struct ev_io *io, unsigned got)
{
    struct sbx_host *h = container_of(io, struct sbx_host, wio);
    (void)got;
    for (int i = 0; i < MESSAGES_PER_TURN && !h->failed; i++) {
        struct wd_msg m;
        int fds[FDS_MAX];
        ssize_t n = fds_recv(h->wsock, &m, sizeof m, fds, MSG_DONTWAIT);
        if (n == RC_AGAIN)
            return;
        if (n <= 0) {            /* without it the limits would not hold */
            host_fail(h, "the warden ended: restart the worker");
            return;
        }
        struct sbx *s = by_seq(h, m.seq);
        if (!s || m.type != WA_BREACH)
            continue;
        char limit[24];
        size_format(m.limit == WD_MEMORY ? h->p->limits.memory_bytes : h->p->limits.disk_bytes, limit);
        if (m.limit == WD_PIDS)
            sbx_kill(s, RC_LIMIT, "limit of %u processes reached", h->p->limits.pids);
        else
            sbx_kill(s, RC_LIMIT, "%s limit of %s reached", m.limit == WD_MEMORY ? "memory" : "disk", limit);
    }
}

/* ---- start ---- */

static int make_dirs(struct sbx_host *h, struct err *e)
{
    TRY(fd_mkdirs(h->p->state_dir, 0700, e));
    h->state_fd = open(h->p->state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct stat st;
    if (h->state_fd < 0 || fstat(h->state_fd, &st) < 0)
        return err_sys(e, RC_IO, errno, "open %s", h->p->state_dir);
    if (st.st_uid != geteuid())
        return err_set(e, RC_DENIED, "%s belongs to uid %u, not to the worker's %u", h->p->state_dir, st.st_uid, geteuid());
    if ((st.st_mode & 0077) && fchmod(h->state_fd, 0700) < 0)      /* workspaces may hold set-uid files of the sessions' uids: no other user may get there */
        return err_sys(e, RC_DENIED, errno, "close %s to other users", h->p->state_dir);
    static const char *const subs[] = { "sessions", "pool", "trash", "uids" };
    for (size_t i = 0; i < COUNT_OF(subs); i++)
        if (mkdirat(h->state_fd, subs[i], 0700) < 0 && errno != EEXIST)
            return err_sys(e, RC_IO, errno, "make %s/%s", h->p->state_dir, subs[i]);
    return RC_OK;
}

/* Pools of workers that are gone: their directory is not locked any more. */
static void sweep_pools(struct sbx_host *h)
{
    int fd = openat(h->state_fd, "pool", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    for (struct dirent *de; d && (de = readdir(d));) {
        if (de->d_name[0] == '.')
            continue;
        int p = openat(fd, de->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
        DIR *pd = p >= 0 && flock(p, LOCK_EX | LOCK_NB) == 0 ? fdopendir(p) : NULL;
        for (struct dirent *pe; pd && (pe = readdir(pd));) {
            char path[SBX_DIR_MAX];
            if (pe->d_name[0] != '.' && snprintf(path, sizeof path, "pool/%.40s/%.40s", de->d_name, pe->d_name) < (int)sizeof path)
                (void)host_trash(h, path);
        }
        if (pd)
            (void)unlinkat(fd, de->d_name, AT_REMOVEDIR);
        if (pd)
            closedir(pd);
        else if (p >= 0)
            close(p);
    }
    if (d)
        closedir(d);
}

static int make_pool(struct sbx_host *h, struct err *e)
{
    uint64_t rnd;
    random_bytes(&rnd, sizeof rnd);
    (void)snprintf(h->pool, sizeof h->pool, "pool/%016llx", (unsigned long long)rnd);
    if (mkdirat(h->state_fd, h->pool, 0700) < 0 || (h->pool_fd = openat(h->state_fd, h->pool, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0 || flock(h->pool_fd, LOCK_EX | LOCK_NB) < 0)
        return err_sys(e, RC_IO, errno, "make %s/%s", h->p->state_dir, h->pool);
    return RC_OK;
}

static int wait_ready(struct sbx_host *h, struct err *e)
{
    struct pollfd p = { h->zsock, POLLIN, 0 };
    int n;
    do
        n = poll(&p, 1, SBX_START_MS);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return err_set(e, RC_TIMEOUT, "the zygote did not answer within %d ms", SBX_START_MS);
    struct zy_ans a;
    int fds[FDS_MAX];
    if (fds_recv(h->zsock, &a, sizeof a, fds, 0) <= 0)
        return err_set(e, RC_CLOSED, "the zygote died at its start");
    a.text[sizeof a.text - 1] = 0;
    return a.type == ZA_READY ? RC_OK : err_set(e, a.rc < 0 ? a.rc : RC_IO, "sandbox: %s", a.text);
}

static int start_zygote(struct sbx_host *h, const struct sbx_payload *payload, struct err *e)
{
    int z[2], w[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, z) < 0)
        return err_sys(e, RC_IO, errno, "socketpair");
    h->zsock = z[0];
    AUTO_CLOSE int zc = z[1];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, w) < 0)
        return err_sys(e, RC_IO, errno, "socketpair");
    h->wsock = w[0];
    AUTO_CLOSE int wc = w[1];
    pid_t pid = fork();
    if (pid < 0)
        return err_sys(e, RC_IO, errno, "fork");
    if (pid == 0) {
        const struct zygote_args a = { .p = h->p, .pl = &h->plan, .payload = payload, .sock = zc, .warden_sock = wc };
        zygote_run(&a);
    }
    h->zygote = pid;
    close(TAKE_FD(zc));
    close(TAKE_FD(wc));
    TRY(wait_ready(h, e));
    if (fd_nonblock(h->zsock) < 0 || fd_nonblock(h->wsock) < 0 || ev_io_start(h->ev, &h->zio, h->zsock, EV_READ, on_zygote) < 0 ||
        ev_io_start(h->ev, &h->wio, h->wsock, EV_READ, on_warden) < 0)
        return err_set(e, RC_IO, "watch the zygote");
    return RC_OK;
}

int sbx_host_start_with(struct ev *ev, const struct sbx_policy *p, size_t warm, const struct sbx_payload *payload, struct sbx_host **ret, struct err *e)
{
    if (warm > SBX_WARM_MAX)
        return err_set(e, RC_INVALID, "%zu warm sandboxes: %u is the maximum", warm, SBX_WARM_MAX);
    if (!p->state_dir)
        return err_set(e, RC_INVALID, "sandboxes need a state directory");
    struct sbx_host *h = xcalloc(1, sizeof *h);
    h->ev = ev;
    h->warm = warm;
    h->zsock = h->wsock = h->state_fd = h->pool_fd = -1;
    h->no_hello = payload->path != NULL;
    list_init(&h->all);
    list_init(&h->claims);
    list_init(&h->posts);
    int rc = policy_copy(p, &h->p, e);
    if (rc == RC_OK)
        rc = plan_make(h->p, &h->plan, e);
    if (rc == RC_OK)
        rc = make_dirs(h, e);
    if (rc == RC_OK) {
        h->failed = true;        /* no warden yet to be told of trash */
        sweep_pools(h);
        h->failed = false;
        rc = make_pool(h, e);
    }
    if (rc == RC_OK)
        rc = start_zygote(h, payload, e);
    if (rc < 0) {
        sbx_host_stop(h);
        return rc;
    }
    struct wd_msg m = { .type = WQ_SWEEP };
    tell_warden(h, &m);
    if (warm)
        ev_timer_set(ev, &h->refill_timer, 0, host_on_refill);
    *ret = h;
    return RC_OK;
}

/* ---- stop ---- */

static void wait_zygote(struct sbx_host *h)
{
    if (h->zygote <= 0)
        return;
    for (int ms = 0; ms < STOP_MS; ms += 5) {
        pid_t got = waitpid(h->zygote, NULL, WNOHANG);
        if (got == h->zygote || (got < 0 && errno == ECHILD))
            return;
        (void)poll(NULL, 0, 5);
    }
    (void)kill(h->zygote, SIGKILL);      /* its sandboxes have it as their parent-death signal */
    (void)waitpid(h->zygote, NULL, 0);
}

void sbx_host_stop(struct sbx_host *h)
{
    if (!h)
        return;
    host_fail(h, "the worker is stopping");
    wait_zygote(h);
    /* Warm sandboxes' directories went to trash/ without a warden: they are empty, so this is cheap. */
    if (h->pool_fd >= 0) {
        close(h->pool_fd);
        (void)unlinkat(h->state_fd, h->pool, AT_REMOVEDIR);
    }
    host_run_posts(h);
    list_foreach(s, &h->all, struct sbx, node) {
        list_del(&s->node);
        call_done(s);
        free(s);
    }
    if (h->state_fd >= 0)
        close(h->state_fd);
    cg_remove(&h->plan.cg);
    policy_free(h->p);
    h->stopped = true;
    if (!h->drain_posted)
        free(h);                 /* else the loop still holds it, and frees it */
}
