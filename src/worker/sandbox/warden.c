/* warden.c - the slow look-outs, away from the worker's loop: size of each workspace, memory and processes where no cgroup counts them, and the removal of
 * session directories. A child of the zygote; it has rights over the sandboxes' files (agents make directories that even their owner cannot read) and
 * their proc. It only reports: the worker kills. Every step through a workspace is by descriptor and never follows a link. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/str.h"
#include "worker/sandbox/internal.h"

#define MEMORY_TICK_MS 50
#define DISK_LOOK_MS 50          /* a look at the file system's free space; a scan follows when it fell by much */
#define DISK_TICK_MS 500
#define DISK_TICK_MAX_MS 10000
#define DISK_SHARE 10            /* a scan is repeated after at least ten times what it took */
#define DEPTH_MAX 512u           /* deeper is counted as over the limit: nobody builds that by accident */
#define DU_YIELD 512u
#define ENTRY_BYTES 1024u        /* what an entry costs at least: inodes run out, too */

struct watch {
    struct watch *next;
    uint32_t seq; int procfd, dirfd;
    uint64_t memory_bytes, disk_bytes, disk_floor; uint32_t pids;
    int64_t disk_due_ms, disk_scan_ms, memory_due_ms, memory_wait_ms;
    uint64_t fs_free, fs_files, disk_last;
    uint64_t memfd_bytes;            /* by the last disk round: looking at every descriptor is too dear for each memory round */
    bool told, measured;
};
struct warden { int sock, state_fd; dev_t memfd_dev; struct watch *all; };

struct du { struct warden *w; uint64_t bytes, stop_above; uint32_t entries; bool too_deep; };

static int64_t check_memories(struct warden *w);

static void du_dir(int fd, struct du *d, unsigned depth)        /* takes fd */
{
    if (depth > DEPTH_MAX) {
        d->too_deep = true;
        close(fd);
        return;
    }
    DIR *dir = fdopendir(fd);
    if (!dir) {
        close(fd);
        return;
    }
    for (struct dirent *de; d->bytes <= d->stop_above && (de = readdir(dir));) {
        if (str_eq(de->d_name, ".") || str_eq(de->d_name, ".."))
            continue;
        struct stat st;
        if (++d->entries % DU_YIELD == 0)       /* a large workspace must not blind the faster look-out */
            (void)check_memories(d->w);
        if (fstatat(fd, de->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        uint64_t size = (uint64_t)st.st_blocks * 512 + ENTRY_BYTES;
        d->bytes += S_ISDIR(st.st_mode) || st.st_nlink <= 1 ? size : size / st.st_nlink;      /* all links of a file lie in the workspace */
        if (!S_ISDIR(st.st_mode))
            continue;
        int sub = openat(fd, de->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (sub >= 0)
            du_dir(sub, d, depth + 1);
        else if (errno == EMFILE || errno == ENFILE)
            d->too_deep = true;
    }
    closedir(dir);
}

static bool breach(struct warden *w, struct watch *x, uint32_t limit, uint64_t value)
{
    struct wd_msg m = { .type = WA_BREACH, .seq = x->seq, .limit = limit, .value = value };
    x->told = true;
    if (fds_send(w->sock, &m, sizeof m, NULL, 0) < 0)
        _exit(0);
    return true;
}

static void check_memory(struct warden *w, struct watch *x, int64_t now)
{
    struct sbx_usage u;
    int64_t t0 = clock_mono_us();
    if (limits_usage(x->procfd, x->memory_bytes > x->memfd_bytes ? x->memory_bytes - x->memfd_bytes : x->memory_bytes ? 0 : UINT64_MAX, &u)) {
        if (x->memory_bytes && u.rss_bytes + x->memfd_bytes > x->memory_bytes)
            (void)breach(w, x, WD_MEMORY, u.rss_bytes + x->memfd_bytes);
        else if (x->pids && u.procs > x->pids)
            (void)breach(w, x, WD_PIDS, u.procs);
    }
    int64_t cost = (clock_mono_us() - t0) / 1000 * DISK_SHARE;
    x->memory_wait_ms = cost > MEMORY_TICK_MS ? cost : MEMORY_TICK_MS;
    x->memory_due_ms = now + x->memory_wait_ms;
}

/* A session that comes back too large may shrink and go on, but not grow. */
static uint64_t disk_limit(const struct watch *x)
{
    return x->disk_bytes > x->disk_floor ? x->disk_bytes : x->disk_floor;
}

static bool disk_scan_due(struct watch *x, const struct statvfs *fs, int64_t now)
{
    if (!x->measured)
        return true;
    if (fs->f_bfree == x->fs_free && fs->f_ffree == x->fs_files)      /* nothing on that file system grew */
        return false;
    if (now >= x->disk_scan_ms)
        return true;
    uint64_t grown = fs->f_bfree < x->fs_free ? (x->fs_free - fs->f_bfree) * fs->f_frsize : 0, limit = disk_limit(x);
    return grown > (limit > x->disk_last ? limit - x->disk_last : 0) / 2;
}

static void check_disk(struct warden *w, struct watch *x, int64_t now)
{
    x->disk_due_ms = now + DISK_LOOK_MS;
    struct statvfs fs;
    struct stat st;
    if (fstatvfs(x->dirfd, &fs) < 0 || fstat(x->dirfd, &st) < 0)
        return;
    uint64_t hidden = 0;
    if (x->procfd >= 0 && (x->memory_bytes || now >= x->disk_scan_ms || disk_scan_due(x, &fs, now)))
        limits_hidden(x->procfd, st.st_dev, w->memfd_dev, &hidden, &x->memfd_bytes);
    if (!disk_scan_due(x, &fs, now))
        return;
    x->fs_free = fs.f_bfree;
    x->fs_files = fs.f_ffree;
    struct du d = { .w = w, .bytes = hidden, .stop_above = x->measured ? disk_limit(x) : UINT64_MAX };
    int fd = openat(x->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
        du_dir(fd, &d, 0);
    if (!x->measured || d.bytes < x->disk_floor)
        x->disk_floor = d.bytes;
    x->measured = true;
    x->disk_last = d.bytes;
    if (d.too_deep || d.bytes > disk_limit(x)) {
        (void)breach(w, x, WD_DISK, d.bytes);
        return;
    }
    int64_t end = clock_mono_ms(), took = (end - now) * DISK_SHARE;
    x->disk_scan_ms = end + (took < DISK_TICK_MS ? DISK_TICK_MS : took > DISK_TICK_MAX_MS ? DISK_TICK_MAX_MS : took);
    x->disk_due_ms = end + (took / DISK_SHARE > DISK_LOOK_MS ? took : DISK_LOOK_MS);      /* a slow scan is not repeated at every look */
}

static void unwatch(struct warden *w, uint32_t seq)
{
    for (struct watch **at = &w->all; *at; at = &(*at)->next)
        if ((*at)->seq == seq) {
            struct watch *x = *at;
            *at = x->next;
            if (x->procfd >= 0)
                close(x->procfd);
            close(x->dirfd);
            free(x);
            return;
        }
}

static void on_watch(struct warden *w, const struct wd_msg *m, int fds[FDS_MAX])
{
    unwatch(w, m->seq);
    struct watch *x = xcalloc(1, sizeof *x);
    *x = (struct watch){ .next = w->all, .seq = m->seq, .dirfd = fds[0], .procfd = fds[1], .memory_bytes = m->memory_bytes, .disk_bytes = m->disk_bytes, .pids = m->pids };
    fds[0] = fds[1] = -1;
    w->all = x;
}

/* Removes what lies in trash/, in a process of its own (it may be millions of files), and gives the host uids back. What stays is tried again at the
 * next sweep. */
static void sweep(struct warden *w)
{
    if (fork() != 0)
        return;
    close(w->sock);
    int fd = openat(w->state_fd, "trash", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    for (struct dirent *de; d && (de = readdir(d));) {
        if (de->d_name[0] == '.')
            continue;
        char path[300], uid[32];
        (void)snprintf(path, sizeof path, "%s/workspace", de->d_name);
        struct stat st;
        bool known = fstatat(fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0;
        if (fd_remove_tree(fd, de->d_name, NULL) < 0 || !known)
            continue;
        (void)snprintf(uid, sizeof uid, "uids/%u", st.st_uid);
        (void)unlinkat(w->state_fd, uid, 0);
    }
    _exit(0);
}

static void on_message(struct warden *w)
{
    struct wd_msg m;
    int fds[FDS_MAX];
    ssize_t n = fds_recv(w->sock, &m, sizeof m, fds, MSG_DONTWAIT);
    if (n == RC_AGAIN)
        return;
    if (n <= 0)
        _exit(0);
    if (m.type == WQ_WATCH && fds[0] >= 0)
        on_watch(w, &m, fds);
    else if (m.type == WQ_UNWATCH)
        unwatch(w, m.seq);
    else if (m.type == WQ_SWEEP)
        sweep(w);
    for (size_t i = 0; i < FDS_MAX; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

/* Returns when the next one is due. */
static int64_t check_memories(struct warden *w)
{
    int64_t now = clock_mono_ms(), due = INT64_MAX;
    for (struct watch *x = w->all; x; x = x->next) {
        if (x->told || x->procfd < 0 || !(x->memory_bytes || x->pids))
            continue;
        if (x->memory_due_ms <= now)
            check_memory(w, x, now);
        due = x->memory_due_ms < due ? x->memory_due_ms : due;
    }
    return due;
}

static int64_t check_disks(struct warden *w)
{
    int64_t due = INT64_MAX;
    for (struct watch *x = w->all; x; x = x->next) {
        if (x->told || !x->disk_bytes)
            continue;
        int64_t now = clock_mono_ms();
        if (x->disk_due_ms <= now)
            check_disk(w, x, now);
        due = x->disk_due_ms < due ? x->disk_due_ms : due;
    }
    return due;
}

_Noreturn void warden_run(int sock, int state_fd)
{
    struct warden w = { .sock = sock, .state_fd = state_fd };
    (void)prctl(PR_SET_NAME, "outwork-warden", 0, 0, 0);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    (void)signal(SIGCHLD, SIG_IGN);
    AUTO_CLOSE int memfd = memfd_create("device", MFD_CLOEXEC);
    struct stat st;
    if (memfd < 0 || fstat(memfd, &st) < 0)
        _exit(1);
    w.memfd_dev = st.st_dev;
    for (;;) {
        int64_t a = check_disks(&w), b = check_memories(&w), due = a < b ? a : b, now = clock_mono_ms();
        struct pollfd p = { sock, POLLIN, 0 };
        int wait = due == INT64_MAX ? -1 : due <= now ? 0 : due - now > 60000 ? 60000 : (int)(due - now);
        if (poll(&p, 1, wait) < 0 && errno != EINTR)
            _exit(1);
        if (p.revents)
            on_message(&w);
    }
}
