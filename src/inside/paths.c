/* inside/paths.c - which file a path of the model means, and that it lies in a root. The kernel decides (openat2 with RESOLVE_BENEATH); our own
 * resolution only turns absolute links that point into a root, which the kernel refuses, into a path without links. */
#include "inside/init.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HOPS_MAX 40             /* symbolic links on one path, as the kernel */
#define RACE_TRIES 8            /* openat2 answers EAGAIN when a rename raced with `..` */

static struct root roots[INSIDE_ROOTS_MAX];
static size_t n_roots;

static int root_add(const char *path)
{
    struct root *r = &roots[n_roots];
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    if (path[0] != '/' || n >= sizeof r->given)
        return -EINVAL;
    memcpy(r->given, path, n);
    r->given[n] = 0;
    if (!realpath(r->given, r->real))
        return -errno;
    r->fd = open(r->real, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (r->fd < 0)
        return -errno;
    n_roots++;
    return 0;
}

int roots_init(const char *cwd)
{
    int rc = root_add(cwd);
    if (rc < 0)
        return rc;
    if (chdir(roots[0].real) < 0)
        return -errno;
    (void)root_add("/tmp");     /* a sandbox without one is fine */
    return 0;
}

const struct root *root_at(size_t i) { return i < n_roots ? &roots[i] : NULL; }

/* The rest of `path` below `dir`: "" for dir itself, NULL when it is not below. */
static const char *below(const char *path, const char *dir)
{
    size_t n = strlen(dir);
    if (n == 1)                 /* "/" */
        return path + strspn(path, "/");
    if (strncmp(path, dir, n) != 0 || (path[n] != '/' && path[n] != 0))
        return NULL;
    return path + n + strspn(path + n, "/");
}

/* One component more at the end of `out`; -ENAMETOOLONG. */
static int push(char out[PATH_MAX], size_t *len, const char *name, size_t n)
{
    if (*len + 1 + n + 1 > PATH_MAX)
        return -ENAMETOOLONG;
    out[(*len)++] = '/';
    memcpy(out + *len, name, n);
    *len += n;
    out[*len] = 0;
    return 0;
}

/* Absolute path without links, "." and ".."; what does not exist is kept as written. With `keep_link` the last component is not read. */
static int canonical(const char *path, bool keep_link, char out[PATH_MAX])
{
    char todo[2 * PATH_MAX], target[PATH_MAX];
    size_t len = 0;
    int hops = 0;
    int w = path[0] == '/' ? snprintf(todo, sizeof todo, "%s", path) : snprintf(todo, sizeof todo, "%s/%s", roots[0].real, path);
    if (w < 0 || (size_t)w >= PATH_MAX)
        return -ENAMETOOLONG;
    out[0] = 0;
    char *at = todo;
    for (;;) {
        at += strspn(at, "/");
        size_t n = strcspn(at, "/");
        if (n == 0)
            return 0;
        char *rest = at + n;
        if (n > NAME_MAX)
            return -ENAMETOOLONG;
        if (n == 1 && at[0] == '.') {
            at = rest;
            continue;
        }
        if (n == 2 && at[0] == '.' && at[1] == '.') {
            while (len > 0 && out[--len] != '/')
                ;
            out[len] = 0;
            at = rest;
            continue;
        }
        size_t before = len;
        int rc = push(out, &len, at, n);
        if (rc < 0)
            return rc;
        bool last = rest[strspn(rest, "/")] == 0;
        ssize_t got = keep_link && last ? -1 : readlink(out, target, sizeof target - 1);
        if (got < 0) {          /* no link, or not there: then whoever opens it says so */
            at = rest;
            continue;
        }
        if (++hops > HOPS_MAX)
            return -ELOOP;
        target[got] = 0;
        len = target[0] == '/' ? 0 : before;
        out[len] = 0;
        char joined[2 * PATH_MAX];
        w = snprintf(joined, sizeof joined, "%s/%s", target, rest);
        if (w < 0 || (size_t)w >= sizeof joined)
            return -ENAMETOOLONG;
        memcpy(todo, joined, (size_t)w + 1);
        at = todo;
    }
}

/* Root and rest of a canonical path. */
static const struct root *root_of(const char *canon, const char **ret_rest)
{
    for (size_t i = 0; i < n_roots; i++) {
        *ret_rest = below(canon, roots[i].real);
        if (*ret_rest)
            return &roots[i];
    }
    return NULL;
}

static int open_beneath(int dirfd, const char *rel, int flags, uint64_t more)
{
    struct open_how how = { .flags = (uint64_t)(flags | O_CLOEXEC), .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | more };
    for (int i = 0; i < RACE_TRIES; i++) {
        long fd = syscall(SYS_openat2, dirfd, *rel ? rel : ".", &how, sizeof how);
        if (fd >= 0)
            return (int)fd;
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
    }
    return -EAGAIN;
}

/* The absolute name to show: "." and empty components dropped. A path with ".." is shown in its canonical form. */
static bool show(const struct root *r, const char *rest, char *shown)
{
    size_t len = strlen(r->given);
    memcpy(shown, r->given, len + 1);
    if (len == 1)
        len = 0;
    for (const char *p = rest; *p;) {
        p += strspn(p, "/");
        size_t n = strcspn(p, "/");
        if (n == 2 && p[0] == '.' && p[1] == '.')
            return false;
        if (n > 0 && !(n == 1 && p[0] == '.') && push(shown, &len, p, n) < 0)
            return false;
        p += n;
    }
    if (len == 0)
        memcpy(shown, "/", 2);
    return true;
}

int path_open(const char *path, int flags, char *shown)
{
    const struct root *r = NULL;
    const char *rest = path;
    if (*path == 0)
        return -ENOENT;
    if (*path != '/')
        r = &roots[0];
    for (size_t i = 0; !r && i < n_roots; i++)
        if ((rest = below(path, roots[i].given)) || (rest = below(path, roots[i].real)))
            r = &roots[i];
    if (r && (!shown || show(r, rest, shown))) {
        int fd = open_beneath(r->fd, rest, flags, 0);
        if (fd != -EXDEV)
            return fd;
    }
    char canon[PATH_MAX];
    int rc = canonical(path, false, canon);
    if (rc < 0)
        return rc;
    r = root_of(canon, &rest);
    if (!r || (shown && !show(r, rest, shown)))
        return -EXDEV;
    return open_beneath(r->fd, rest, flags, RESOLVE_NO_SYMLINKS);
}

int path_parent(const char *path, bool make, bool keep_link, char leaf[NAME_MAX + 1])
{
    char canon[PATH_MAX];
    const char *rest = NULL;
    if (*path == 0)
        return -ENOENT;
    int rc = canonical(path, keep_link, canon);
    if (rc < 0)
        return rc;
    const struct root *r = root_of(canon, &rest);
    if (!r)
        return -EXDEV;
    if (*rest == 0)
        return keep_link ? -EXDEV : -EISDIR;
    int fd = fcntl(r->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    for (;;) {      /* no ".." and no links are left, so each step goes one directory down or fails */
        char name[NAME_MAX + 1];
        size_t n = strcspn(rest, "/");
        if (n > NAME_MAX) {
            close(fd);
            return -ENAMETOOLONG;
        }
        memcpy(name, rest, n);
        name[n] = 0;
        rest += n + strspn(rest + n, "/");
        if (*rest == 0) {
            memcpy(leaf, name, n + 1);
            return fd;
        }
        int next = openat(fd, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0 && errno == ENOENT && make && (mkdirat(fd, name, 0755) == 0 || errno == EEXIST))
            next = openat(fd, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        int err = errno;
        close(fd);
        if (next < 0)
            return -err;
        fd = next;
    }
}

const char *path_errno_text(int err)
{
    static char other[64];
    static const struct { int err; const char *text; } t[] = {
        { ENOENT, "no such file or directory" }, { EACCES, "permission denied" }, { EPERM, "permission denied" },
        { ENOTDIR, "not a directory" }, { EISDIR, "is a directory" }, { EEXIST, "file already exists" },
        { ELOOP, "too many levels of symbolic links" }, { ENAMETOOLONG, "file name too long" },
        { ENOSPC, "no space left on device" }, { EDQUOT, "no space left on device" }, { EMFILE, "too many open files" },
        { ENFILE, "too many open files" }, { EROFS, "read-only file system" },
    };
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++)
        if (t[i].err == err)
            return t[i].text;
    const char *name = strerrorname_np(err);
    snprintf(other, sizeof other, "i/o error (%s)", name ? name : "unknown");
    return other;
}

void path_error(struct answer *a, const char *tool, const char *path, int err)
{
    if (err == EXDEV)
        answer_error(a, INSIDE_DENIED, "path \"%s\" is outside the session's working directory", path);
    else if (err == ENXIO)      /* a socket, or a FIFO nobody reads */
        answer_error(a, 0, "%s: %s is not a regular file", tool, path);
    else
        answer_error(a, 0, "%s: %s: %s", tool, path, path_errno_text(err));
}
