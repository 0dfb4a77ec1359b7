/* worker/skills_unpack.c - see skills_unpack.h */
#include "worker/skills_unpack.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "base/str.h"
#include "proc/proc.h"
#include "worker/unpack.h"

#define DIR_MAX 256
#define WHY_MAX 300
#define PUT_HEAD_MAX (DIR_MAX + UNPACK_NAME_MAX + 2)
#define WALL_MS ((UNPACK_SECONDS + 30) * 1000)
#define READ_CHUNK (64 * KIB)

struct skills_unpack {
    struct ev *ev;
    struct box *box;
    char dir[DIR_MAX];
    void (*done)(void *, int, const char *, size_t, uint64_t);
    void *ctx;
    pid_t pid;
    bool child_runs, calling;
    struct ev_child child;
    int fd;
    struct ev_io io;
    struct ev_timer timer, end;
    struct buf in;                       /* one record's head and name */
    struct unpack_record rec;
    bool have_rec;
    struct buf put;                      /* path, NUL, content: the body of INSIDE_PUT */
    uint64_t left;
    size_t files;
    uint64_t bytes;
    int rc;
    char why[WHY_MAX];
};

static void on_readable(struct ev_io *io, unsigned got);

static void on_end(struct ev_timer *t)
{
    struct skills_unpack *u = container_of(t, struct skills_unpack, end);
    u->done(u->ctx, u->rc, u->why, u->files, u->bytes);
}

static void end(struct skills_unpack *u, int rc, const char *why)
{
    if (ev_timer_armed(&u->end))
        return;
    u->rc = rc;
    (void)str_copy(u->why, sizeof u->why, why);
    ev_io_stop(&u->io);
    ev_timer_stop(&u->timer);
    ev_timer_set(u->ev, &u->end, 0, on_end);
}

static void on_timeout(struct ev_timer *t)
{
    end(container_of(t, struct skills_unpack, timer), RC_TIMEOUT, "unpacking took too long");
}

static void on_put(void *ctx, int rc, const struct inside_res *h, const char *body, size_t n, const char *why, const char *restarted)
{
    struct skills_unpack *u = ctx;
    (void)restarted;
    u->calling = false;
    if (rc < 0) {
        end(u, rc, why);
    } else if (h->flags & INSIDE_ERROR) {
        char text[WHY_MAX];
        (void)snprintf(text, sizeof text, "%.*s", (int)(n < 200 ? n : 200), body);
        end(u, RC_DENIED, text);
    } else if (ev_io_start(u->ev, &u->io, u->fd, EV_READ, on_readable) < 0) {
        end(u, RC_IO, "cannot watch the unpacker");
    }
}

static void place(struct skills_unpack *u)
{
    struct inside_req r = { .magic = INSIDE_MAGIC, .op = INSIDE_PUT, .arg0 = unpack_mode(u->rec.mode), .body_bytes = buf_len(&u->put) };
    u->files++;
    u->bytes += u->rec.size;
    u->have_rec = false;
    u->calling = true;
    ev_io_stop(&u->io);                  /* the pipe fills meanwhile, and the unpacker waits: memory stays one file */
    box_call(u->box, &r, buf_data(&u->put), buf_len(&u->put), on_put, u);
    buf_done(&u->put);
}

/* A whole head with its name is in u->in. */
static void take_record(struct skills_unpack *u)
{
    const char *name = buf_data(&u->in) + sizeof u->rec;
    size_t n = u->rec.name_n;
    if (u->rec.kind == UNPACK_END) {
        end(u, RC_OK, "");
        return;
    }
    if (u->rec.kind == UNPACK_ERROR) {
        char text[WHY_MAX];
        (void)snprintf(text, sizeof text, "%.*s", (int)(n < 250 ? n : 250), name);
        end(u, RC_INVALID, text);
        return;
    }
    if (u->rec.kind != UNPACK_FILE || !unpack_name_ok(name, n) || u->rec.size > UNPACK_FILE_MAX || u->files >= UNPACK_MEMBERS_MAX ||
        u->bytes + u->rec.size > UNPACK_TOTAL_MAX) {
        end(u, RC_PROTO, "the unpacker broke its limits");
        return;
    }
    buf_init(&u->put, PUT_HEAD_MAX + UNPACK_FILE_MAX);
    buf_printf(&u->put, "%s/", u->dir);
    buf_put(&u->put, name, n);
    buf_putc(&u->put, 0);
    u->have_rec = true;
    u->left = u->rec.size;
    buf_clear(&u->in);
    if (u->left == 0)
        place(u);
}

/* How many bytes complete what is being read; 0 when a record is ready. */
static size_t wanted(struct skills_unpack *u)
{
    if (u->have_rec)
        return (size_t)u->left;
    size_t have = buf_len(&u->in);
    if (have < sizeof u->rec)
        return sizeof u->rec - have;
    memcpy(&u->rec, buf_data(&u->in), sizeof u->rec);
    return sizeof u->rec + u->rec.name_n - have;
}

static void on_readable(struct ev_io *io, unsigned got)
{
    struct skills_unpack *u = container_of(io, struct skills_unpack, io);
    (void)got;
    if (u->calling)
        return;
    struct buf *to = u->have_rec ? &u->put : &u->in;
    size_t want = wanted(u);
    if (!u->have_rec && buf_len(&u->in) >= sizeof u->rec && (u->rec.magic != UNPACK_MAGIC || u->rec.name_n > UNPACK_NAME_MAX)) {
        end(u, RC_PROTO, "the unpacker sent nonsense");
        return;
    }
    char *p = want ? buf_reserve(to, want < READ_CHUNK ? want : READ_CHUNK) : NULL;
    if (want && !p) {
        end(u, RC_NOMEM, "no memory for a file of the skill");
        return;
    }
    if (want) {
        ssize_t n = read(u->fd, p, want < READ_CHUNK ? want : READ_CHUNK);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            end(u, RC_CLOSED, "the unpacker ended early (broken archive, or over its limits of memory or time)");
            return;
        }
        buf_commit(to, (size_t)n);
        if (u->have_rec)
            u->left -= (uint64_t)n;
    }
    if (u->have_rec && u->left == 0)
        place(u);
    else if (!u->have_rec && buf_len(&u->in) >= sizeof u->rec && wanted(u) == 0)
        take_record(u);
}

static void on_child(struct ev_child *c, int status)
{
    struct skills_unpack *u = container_of(c, struct skills_unpack, child);
    (void)status;                        /* what it achieved is told by its records */
    u->child_runs = false;
}

static int spawn(struct skills_unpack *u, const void *archive, size_t n, struct err *e)
{
    AUTO_CLOSE int in = memfd_create("skill", MFD_CLOEXEC);
    int p[2] = { -1, -1 };
    if (in < 0)
        return err_sys(e, RC_IO, errno, "memfd");
    TRY(fd_write_all(in, archive, n, e));
    if (pipe2(p, O_CLOEXEC) < 0)
        return err_sys(e, RC_IO, errno, "pipe");
    u->fd = p[0];
    AUTO_CLOSE int out = p[1];
    static char *const argv[] = { (char *)"outwork", (char *)"worker", (char *)"unpack-skill", NULL };
    static char *const envp[] = { (char *)"PATH=/usr/bin:/bin", (char *)"LC_ALL=C.UTF-8", NULL };
    struct proc_spec s = { .path = "/proc/self/exe", .argv = argv, .envp = envp, .fd_in = in, .fd_out = out, .fd_err = -1, .cwd = "/", .new_group = true };
    int pidfd = -1;
    TRY(proc_spawn(&s, &u->pid, &pidfd, e));
    if (pidfd >= 0)
        (void)close(pidfd);
    u->child_runs = true;
    if (ev_child_start(u->ev, &u->child, u->pid, on_child) < 0 || fd_nonblock(u->fd) < 0)
        return err_set(e, RC_IO, "cannot watch the unpacker");
    return RC_OK;
}

int skills_unpack_start(struct ev *ev, struct box *box, const char *dir, const void *archive, size_t n,
                        void (*done)(void *, int, const char *, size_t, uint64_t), void *ctx, struct skills_unpack **ret, struct err *e)
{
    struct skills_unpack *u = xcalloc(1, sizeof *u);
    u->ev = ev;
    u->box = box;
    u->done = done;
    u->ctx = ctx;
    u->fd = -1;
    (void)str_copy(u->dir, sizeof u->dir, dir);
    buf_init(&u->in, sizeof u->rec + UNPACK_NAME_MAX);
    buf_init(&u->put, 0);
    int rc = spawn(u, archive, n, e);
    if (rc < 0) {
        e->rc = rc;
        skills_unpack_free(u);
        return rc;
    }
    ev_timer_set(ev, &u->timer, WALL_MS, on_timeout);
    struct inside_req r = { .magic = INSIDE_MAGIC, .op = INSIDE_REMOVE, .body_bytes = strlen(u->dir) + 1 };
    u->calling = true;
    box_call(box, &r, u->dir, strlen(u->dir) + 1, on_put, u);
    *ret = u;
    return RC_OK;
}

/* The child may still run: it is killed and reaped, and nobody hears of it. */
void skills_unpack_free(struct skills_unpack *u)
{
    if (!u)
        return;
    if (u->calling)
        box_forget(u->box);
    ev_timer_stop(&u->timer);
    ev_timer_stop(&u->end);
    ev_io_stop(&u->io);
    if (u->fd >= 0)
        (void)close(u->fd);
    if (u->child_runs) {
        ev_child_stop(&u->child);
        (void)kill(u->pid, SIGKILL);
        (void)waitpid(u->pid, NULL, 0);
    }
    buf_done(&u->in);
    buf_done(&u->put);
    free(u);
}
