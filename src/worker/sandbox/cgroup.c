/* cgroup.c - memory, process and processor limits by cgroup: v2 where the controller is there and ours to use, else v1, each controller on its own.
 * Never moves a controller between hierarchies and never moves a process that is not ours. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/str.h"
#include "worker/sandbox/internal.h"

#define CG_TEXT_MAX (1 * MIB)
#define CG_PERIOD_US 100000u

static const char *const ctl_names[CG_CTL_MAX_] = { "memory", "pids", "cpu" };

/* Is `word` in a list separated by `sep`, within n bytes? */
static bool list_has(const char *p, size_t n, char sep, const char *word)
{
    size_t w = strlen(word);
    for (size_t i = 0; i <= n;) {
        size_t end = i;
        while (end < n && p[end] != sep && p[end] != '\n')
            end++;
        if (end - i == w && memcmp(p + i, word, w) == 0)
            return true;
        i = end + 1;
    }
    return false;
}

/* Field `k` (0-based) of a line separated by blanks. */
static struct slice field(const char *line, size_t n, size_t k)
{
    size_t i = 0;
    for (;;) {
        size_t end = i;
        while (end < n && line[end] != ' ')
            end++;
        if (k-- == 0)
            return (struct slice){ line + i, end - i };
        if (end >= n)
            return (struct slice){ line + n, 0 };
        i = end + 1;
    }
}

bool cg_mountinfo_find(const char *mountinfo, int version, const char *controller, char *ret_mount, size_t mount_cap, char *ret_root, size_t root_cap)
{
    for (const char *p = mountinfo; *p;) {
        const char *nl = strchr(p, '\n');
        size_t n = nl ? (size_t)(nl - p) : strlen(p);
        for (size_t k = 6; k < 16; k++) {       /* optional fields, then "-" type source options */
            struct slice sep = field(p, n, k);
            if (!slice_eq(sep, "-"))
                continue;
            struct slice type = field(p, n, k + 1), opts = field(p, n, k + 3), root = field(p, n, 3), at = field(p, n, 4);
            bool hit = version == 2 ? slice_eq(type, "cgroup2") : slice_eq(type, "cgroup") && list_has(opts.p, opts.n, ',', controller);
            if (hit && at.n < mount_cap && root.n < root_cap) {
                memcpy(ret_mount, at.p, at.n);
                ret_mount[at.n] = 0;
                memcpy(ret_root, root.p, root.n);
                ret_root[root.n] = 0;
                return true;
            }
            break;
        }
        if (!nl)
            break;
        p = nl + 1;
    }
    return false;
}

bool cg_selfpath_find(const char *proc_cgroup, int version, const char *controller, char *ret, size_t cap)
{
    for (const char *p = proc_cgroup; *p;) {
        const char *nl = strchr(p, '\n');
        size_t n = nl ? (size_t)(nl - p) : strlen(p);
        const char *c1 = memchr(p, ':', n), *c2 = c1 ? memchr(c1 + 1, ':', (size_t)(p + n - c1 - 1)) : NULL;
        if (c2) {
            size_t names = (size_t)(c2 - c1 - 1), path = (size_t)(p + n - c2 - 1);
            bool hit = version == 2 ? names == 0 && c1 == p + 1 && *p == '0' : list_has(c1 + 1, names, ',', controller);
            if (hit && path < cap) {
                memcpy(ret, c2 + 1, path);
                ret[path] = 0;
                return true;
            }
        }
        if (!nl)
            break;
        p = nl + 1;
    }
    return false;
}

static int put(int dirfd, const char *file, const char *text)
{
    AUTO_CLOSE int fd = openat(dirfd, file, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    size_t n = strlen(text);
    return write(fd, text, n) == (ssize_t)n ? 0 : -errno;
}

/* Our own directory of one hierarchy, by what the kernel says of us; -1 when it is not visible. */
static int own_dir(const char *mountinfo, const char *self, int version, const char *ctl, char path[512])
{
    char at[300], root[300], own[300], full[700];
    if (!cg_mountinfo_find(mountinfo, version, ctl, at, sizeof at, root, sizeof root) || !cg_selfpath_find(self, version, ctl, own, sizeof own))
        return -1;
    const char *rel = own;
    size_t rn = strlen(root);
    if (rn > 1 && str_prefix(own, root))
        rel = own + rn;
    (void)snprintf(full, sizeof full, "%s%s", at, str_eq(rel, "/") ? "" : rel);
    int fd = open(full, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && rn <= 1) {            /* a container that shows only its own part, under the mount itself */
        str_copy(full, sizeof full, at);
        fd = open(full, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
    if (fd >= 0 && !str_copy(path, 512, full)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Removes empty directories that a worker which is gone has left. */
static void sweep(int dirfd)
{
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d)
        return;
    for (struct dirent *de; (de = readdir(d));) {
        if (!str_prefix(de->d_name, "outwork-"))
            continue;
        int64_t pid = 0;
        if (str_to_i64(de->d_name + 8, 1, INT32_MAX, &pid) < 0 || kill((pid_t)pid, 0) == 0 || errno != ESRCH)
            continue;
        int sub = openat(fd, de->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *sd = sub < 0 ? NULL : fdopendir(sub);
        if (sd) {
            for (struct dirent *se; (se = readdir(sd));)
                if (se->d_name[0] == 's')
                    (void)unlinkat(sub, se->d_name, AT_REMOVEDIR);
            closedir(sd);
        }
        (void)unlinkat(fd, de->d_name, AT_REMOVEDIR);
    }
    closedir(d);
}

static bool has_file(int dirfd, const char *name)
{
    return faccessat(dirfd, name, F_OK, 0) == 0;
}

/* v2 forbids processes beside children with controllers. If we are alone in our group we step into a leaf of it. */
static bool v2_enable(int dirfd, unsigned ctls)
{
    char want[64] = "";
    for (unsigned c = 0; c < CG_CTL_MAX_; c++)
        if (ctls & (1u << c)) {
            size_t n = strlen(want);
            (void)snprintf(want + n, sizeof want - n, "%s+%s", n ? " " : "", ctl_names[c]);
        }
    if (put(dirfd, "cgroup.subtree_control", want) == 0)
        return true;
    AUTO_FREE char *procs = NULL;
    char mine[32];
    size_t n = 0;
    (void)snprintf(mine, sizeof mine, "%d\n", getpid());
    if (fd_read_file(dirfd, "cgroup.procs", CG_TEXT_MAX, &procs, &n, NULL) < 0 || !str_eq(procs, mine))
        return false;
    if (mkdirat(dirfd, "outwork-worker", 0755) < 0 && errno != EEXIST)
        return false;
    return put(dirfd, "outwork-worker/cgroup.procs", "0") == 0 && put(dirfd, "cgroup.subtree_control", want) == 0;
}

static void use(struct cg *c, int version, int dirfd, const char *path, unsigned ctls)
{
    struct cg_hier *h = &c->h[c->n];
    *h = (struct cg_hier){ .version = version, .fd = -1, .ctls = ctls };
    (void)snprintf(h->path, sizeof h->path, "%s", path);
    if (faccessat(dirfd, "cgroup.procs", W_OK, AT_EACCESS) < 0 || faccessat(dirfd, ".", W_OK, AT_EACCESS) < 0) {
        (void)snprintf(c->why, sizeof c->why, "%.200s is not writable", path);
        return;
    }
    char name[32];
    (void)snprintf(name, sizeof name, "outwork-%d", getpid());
    sweep(dirfd);
    if ((mkdirat(dirfd, name, 0755) < 0 && errno != EEXIST) || (h->fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0) {
        (void)snprintf(c->why, sizeof c->why, "cannot make a group in %.200s (errno %d)", path, errno);
        return;
    }
    if (version == 2 && (!v2_enable(dirfd, ctls) || !v2_enable(h->fd, ctls))) {
        (void)snprintf(c->why, sizeof c->why, "controllers of %.150s cannot be handed down: delegate the group (systemd: Delegate=yes)", path);
        (void)unlinkat(dirfd, name, AT_REMOVEDIR);
        close(h->fd);
        h->fd = -1;
        return;
    }
    size_t used = strlen(h->path);
    (void)snprintf(h->path + used, sizeof h->path - used, "/%s", name);
    c->n++;
}

void cg_open(struct cg *c)
{
    memset(c, 0, sizeof *c);
    AUTO_FREE char *mi = NULL;
    AUTO_FREE char *self = NULL;
    size_t n = 0;
    if (fd_read_file(AT_FDCWD, "/proc/self/mountinfo", CG_TEXT_MAX, &mi, &n, NULL) < 0 || fd_read_file(AT_FDCWD, "/proc/self/cgroup", CG_TEXT_MAX, &self, &n, NULL) < 0) {
        str_copy(c->why, sizeof c->why, "cannot read /proc/self/cgroup");
        return;
    }
    char path[512];
    unsigned have = 0;
    AUTO_CLOSE int v2 = own_dir(mi, self, 2, "", path);
    AUTO_FREE char *ctls = NULL;
    if (v2 >= 0 && fd_read_file(v2, "cgroup.controllers", 4096, &ctls, &n, NULL) == RC_OK) {
        for (unsigned k = 0; k < CG_CTL_MAX_; k++)
            if (list_has(ctls, n, ' ', ctl_names[k]))
                have |= 1u << k;
        size_t before = c->n;
        if (have)
            use(c, 2, v2, path, have);
        if (c->n == before)
            have = 0;
    }
    for (unsigned k = 0; k < CG_CTL_MAX_; k++) {
        if (have & (1u << k))
            continue;
        AUTO_CLOSE int v1 = own_dir(mi, self, 1, ctl_names[k], path);
        if (v1 >= 0)
            use(c, 1, v1, path, 1u << k);
        else if (!c->why[0])
            (void)snprintf(c->why, sizeof c->why, "no cgroup with the %s controller is mounted here", ctl_names[k]);
    }
}

int cg_reopen(struct cg *c, struct err *e)
{
    for (size_t i = 0; i < c->n; i++) {
        c->h[i].fd = open(c->h[i].path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (c->h[i].fd < 0)
            return err_sys(e, RC_IO, errno, "open cgroup %s", c->h[i].path);
    }
    return RC_OK;
}

void cg_close(struct cg *c)
{
    for (size_t i = 0; i < c->n; i++)
        if (c->h[i].fd >= 0) {
            close(c->h[i].fd);
            c->h[i].fd = -1;
        }
}

void cg_remove(struct cg *c)
{
    cg_close(c);
    for (size_t i = 0; i < c->n; i++)
        (void)rmdir(c->h[i].path);
    c->n = 0;
}

int cg_has(const struct cg *c, enum cg_ctl ctl)
{
    for (size_t i = 0; i < c->n; i++)
        if (c->h[i].ctls & (1u << ctl))
            return c->h[i].version;
    return 0;
}

static int set_u64(int dirfd, const char *file, uint64_t v)
{
    char text[32];
    (void)snprintf(text, sizeof text, "%llu", (unsigned long long)v);
    return put(dirfd, file, text);
}

/* The rows that set one limit; `must`: failing is an error, else the file may be missing (no swap accounting). */
static int apply(int fd, int version, unsigned ctls, const struct sbx_limits *l, struct err *e)
{
    int rc = 0;
    if ((ctls & (1u << CG_MEMORY)) && l->memory_bytes) {
        if (version == 1) {
            (void)put(fd, "memory.use_hierarchy", "1");
            rc = set_u64(fd, "memory.limit_in_bytes", l->memory_bytes);
            if (rc == 0 && has_file(fd, "memory.memsw.limit_in_bytes"))
                rc = set_u64(fd, "memory.memsw.limit_in_bytes", l->memory_bytes);
        } else {
            rc = set_u64(fd, "memory.max", l->memory_bytes);
            if (rc == 0 && has_file(fd, "memory.swap.max"))
                rc = set_u64(fd, "memory.swap.max", 0);
        }
        if (rc < 0)
            return err_sys(e, RC_IO, -rc, "memory limit of the cgroup");
    }
    if ((ctls & (1u << CG_PIDS)) && l->pids && (rc = set_u64(fd, "pids.max", l->pids)) < 0)
        return err_sys(e, RC_IO, -rc, "process limit of the cgroup");
    if ((ctls & (1u << CG_CPU)) && l->cpu_percent) {
        uint64_t quota = (uint64_t)l->cpu_percent * (CG_PERIOD_US / 100);
        if (version == 1) {
            rc = set_u64(fd, "cpu.cfs_period_us", CG_PERIOD_US);
            rc = rc < 0 ? rc : set_u64(fd, "cpu.cfs_quota_us", quota);
        } else {
            char text[64];
            (void)snprintf(text, sizeof text, "%llu %u", (unsigned long long)quota, CG_PERIOD_US);
            rc = put(fd, "cpu.max", text);
        }
        if (rc < 0)
            return err_sys(e, RC_IO, -rc, "processor limit of the cgroup");
    }
    return RC_OK;
}

int cg_box_make(const struct cg *c, uint32_t seq, const struct sbx_limits *l, struct cg_box *b, struct err *e)
{
    for (size_t i = 0; i < CG_CTL_MAX_; i++)
        b->fd[i] = -1;
    (void)snprintf(b->name, sizeof b->name, "s%u", seq);
    for (size_t i = 0; i < c->n; i++) {
        const struct cg_hier *h = &c->h[i];
        if ((mkdirat(h->fd, b->name, 0755) < 0 && errno != EEXIST) || (b->fd[i] = openat(h->fd, b->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
            return err_sys(e, RC_IO, errno, "make cgroup %s/%s", h->path, b->name);
        TRY(apply(b->fd[i], h->version, h->ctls, l, e));
    }
    return RC_OK;
}

int cg_box_clone_fd(const struct cg *c, const struct cg_box *b)
{
    for (size_t i = 0; i < c->n; i++)
        if (c->h[i].version == 2)
            return b->fd[i];
    return -1;
}

/* Done by the new process, not for it: a move between v1 groups waits until every processor has seen it, milliseconds that the zygote has no time for. */
int cg_box_enter(const struct cg *c, const struct cg_box *b, struct err *e)
{
    for (size_t i = 0; i < c->n; i++) {
        int rc = c->h[i].version == 2 ? 0 : put(b->fd[i], "cgroup.procs", "0");
        if (rc < 0)
            return err_sys(e, RC_IO, -rc, "enter cgroup %s/%s", c->h[i].path, b->name);
    }
    return RC_OK;
}

uint32_t cg_box_oom_kills(const struct cg *c, const struct cg_box *b)
{
    for (size_t i = 0; i < c->n; i++) {
        if (!(c->h[i].ctls & (1u << CG_MEMORY)) || b->fd[i] < 0)
            continue;
        AUTO_FREE char *text = NULL;
        size_t n = 0;
        if (fd_read_file(b->fd[i], c->h[i].version == 2 ? "memory.events" : "memory.oom_control", 4096, &text, &n, NULL) < 0)
            return 0;
        const char *p = strstr(text, "oom_kill ");
        return p ? (uint32_t)strtoul(p + 9, NULL, 10) : 0;
    }
    return 0;
}

void cg_box_kill(const struct cg *c, const struct cg_box *b)
{
    for (size_t i = 0; i < c->n; i++)
        if (c->h[i].version == 2 && b->fd[i] >= 0)
            (void)put(b->fd[i], "cgroup.kill", "1");
}

void cg_box_remove(const struct cg *c, struct cg_box *b)
{
    for (size_t i = 0; i < c->n; i++) {
        if (b->fd[i] < 0)
            continue;
        close(b->fd[i]);
        b->fd[i] = -1;
        (void)unlinkat(c->h[i].fd, b->name, AT_REMOVEDIR);
    }
}
