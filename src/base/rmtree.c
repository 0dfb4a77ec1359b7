/* Removal of a tree that an untrusted program may have made: no link is followed, and neither depth nor odd modes stop it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/random.h"

#define DEPTH_MAX 32        /* open directories at once; a deeper one is first moved up to the top of the tree */
#define ROUNDS_MAX 100000   /* passes over the top directory: someone still fills it when that is not enough */

struct removal { int top; struct err *e; };

/* The owner may have taken away its own access; an O_PATH descriptor keeps a swapped-in link from being followed. */
static int open_dir(int parent, const char *name)
{
    int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    int fd = openat(parent, name, flags);
    struct stat st;
    if (fd >= 0 && fstat(fd, &st) == 0 && (st.st_mode & 0700) != 0700)
        (void)fchmod(fd, 0700);
    if (fd >= 0 || errno != EACCES)
        return fd;
    AUTO_CLOSE int path = openat(parent, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    char proc[64];
    if (path < 0)
        return -1;
    (void)snprintf(proc, sizeof proc, "/proc/self/fd/%d", path);
    if (chmod(proc, 0700) < 0) {
        errno = EACCES;
        return -1;
    }
    return openat(parent, name, flags);
}

static int empty(struct removal *r, int fd, int depth, bool *ret_again);

static int unlink_one(struct removal *r, int dir, const char *name, int flags)
{
    if (unlinkat(dir, name, flags) == 0 || errno == ENOENT)
        return RC_OK;
    int code = errno;
    if (code == EACCES && fchmod(dir, 0700) == 0 && (unlinkat(dir, name, flags) == 0 || errno == ENOENT))
        return RC_OK;
    return err_sys(r->e, code == ENOTEMPTY ? RC_CONFLICT : code == EACCES || code == EPERM ? RC_DENIED : RC_IO, code, "remove %s", name);
}

static int remove_dir(struct removal *r, int dir, const char *name, int depth, bool *ret_again)
{
    if (depth == DEPTH_MAX) {
        char up[40];
        uint64_t rnd;
        random_bytes(&rnd, sizeof rnd);
        (void)snprintf(up, sizeof up, ".rm-%016llx", (unsigned long long)rnd);
        if (renameat(dir, name, r->top, up) < 0)
            return err_sys(r->e, RC_IO, errno, "move the deep directory %s up", name);
        *ret_again = true;
        return RC_OK;
    }
    AUTO_CLOSE int fd = open_dir(dir, name);
    if (fd < 0)
        return errno == ENOENT ? RC_OK : err_sys(r->e, errno == EACCES ? RC_DENIED : RC_IO, errno, "open directory %s", name);
    TRY(empty(r, fd, depth, ret_again));
    return unlink_one(r, dir, name, AT_REMOVEDIR);
}

static int entry(struct removal *r, int fd, const struct dirent *de, int depth, bool *ret_again)
{
    bool dir = de->d_type == DT_DIR;
    if (de->d_type == DT_UNKNOWN) {
        struct stat st;
        if (fstatat(fd, de->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            return errno == ENOENT ? RC_OK : err_sys(r->e, RC_IO, errno, "stat %s", de->d_name);
        dir = S_ISDIR(st.st_mode);
    }
    return dir ? remove_dir(r, fd, de->d_name, depth + 1, ret_again) : unlink_one(r, fd, de->d_name, 0);
}

static int empty(struct removal *r, int fd, int depth, bool *ret_again)
{
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    DIR *d = own < 0 ? NULL : fdopendir(own);
    if (!d) {
        int code = errno;
        if (own >= 0)
            (void)close(own);
        return err_sys(r->e, RC_IO, code, "read a directory");
    }
    int rc = RC_OK;
    rewinddir(d);           /* the top is read once per round, and the duplicate shares its position */
    for (struct dirent *de; rc == RC_OK && (errno = 0, de = readdir(d));)
        if (strcmp(de->d_name, ".") != 0 && strcmp(de->d_name, "..") != 0)
            rc = entry(r, fd, de, depth, ret_again);
    (void)closedir(d);
    return rc;
}

int fd_remove_tree(int dirfd, const char *path, struct err *e)
{
    struct stat st;
    if (fstatat(dirfd, path, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? RC_OK : err_sys(e, RC_IO, errno, "remove %s", path);
    struct removal r = { .top = -1, .e = e };
    if (!S_ISDIR(st.st_mode)) {
        if (unlinkat(dirfd, path, 0) < 0 && errno != ENOENT)
            return err_sys(e, errno == EACCES || errno == EPERM ? RC_DENIED : RC_IO, errno, "remove %s", path);
        return RC_OK;
    }
    AUTO_CLOSE int top = open_dir(dirfd, path);
    if (top < 0)
        return errno == ENOENT ? RC_OK : err_sys(e, errno == EACCES ? RC_DENIED : RC_IO, errno, "remove %s", path);
    r.top = top;
    bool again = true;
    for (int i = 0; again && i < ROUNDS_MAX; i++) {
        again = false;
        int rc = empty(&r, top, 0, &again);
        if (rc == RC_CONFLICT)          /* new entries appeared while it was read */
            again = true;
        else if (rc < 0)
            return err_wrap(e, rc, "remove %s", path);
    }
    if (unlinkat(dirfd, path, AT_REMOVEDIR) < 0 && errno != ENOENT)
        return err_sys(e, RC_IO, errno, "remove %s", path);
    return RC_OK;
}
