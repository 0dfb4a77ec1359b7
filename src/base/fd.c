#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/random.h"
#include "base/str.h"

static int rc_of_errno(int e)
{
    if (e == ENOENT || e == ENOTDIR)
        return RC_NOT_FOUND;
    return e == EACCES || e == EPERM ? RC_DENIED : RC_IO;
}

int fd_nonblock(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return RC_IO;
    return (flags & O_NONBLOCK) || fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 ? RC_OK : RC_IO;
}

int fd_read_file(int dirfd, const char *path, size_t max, char **ret, size_t *ret_len, struct err *e)
{
    AUTO_CLOSE int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(e, rc_of_errno(errno), errno, "open %s", path);
    if (S_ISREG(st.st_mode) && (uint64_t)st.st_size > max)
        return err_set(e, RC_TOO_LARGE, "%s is larger than %zu bytes", path, max);
    size_t cap = S_ISREG(st.st_mode) && st.st_size > 0 ? (size_t)st.st_size + 1 : 4096, n = 0;
    AUTO_FREE char *text = malloc(cap + 1);
    for (;;) {      /* the size is a hint only: files under /proc say 0, and a file may grow meanwhile */
        if (!text)
            return err_set(e, RC_NOMEM, "read %s: out of memory", path);
        ssize_t got = read(fd, text + n, cap - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_sys(e, RC_IO, errno, "read %s", path);
        if (got == 0)
            break;
        n += (size_t)got;
        if (n > max)
            return err_set(e, RC_TOO_LARGE, "%s is larger than %zu bytes", path, max);
        if (n == cap) {
            cap *= 2;
            char *more = realloc(text, cap + 1);
            if (!more)
                return err_set(e, RC_NOMEM, "read %s: out of memory", path);
            text = more;
        }
    }
    text[n] = '\0';
    if (ret_len)
        *ret_len = n;
    *ret = TAKE(text);
    return RC_OK;
}

int fd_write_all(int fd, const void *p, size_t n, struct err *e)
{
    const char *at = p;
    while (n) {
        ssize_t put = write(fd, at, n);
        if (put < 0) {
            if (errno == EINTR)
                continue;
            return err_sys(e, errno == EPIPE ? RC_CLOSED : errno == EAGAIN ? RC_AGAIN : RC_IO, errno, "write");
        }
        at += put;
        n -= (size_t)put;
    }
    return RC_OK;
}

static int write_new(int dir, const char *tmp, const void *p, size_t n, unsigned mode, struct err *e)
{
    AUTO_CLOSE int fd = openat(dir, tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_sys(e, rc_of_errno(errno), errno, "create a temporary file");
    TRY(fd_write_all(fd, p, n, e));
    if (fchmod(fd, mode) < 0 || fsync(fd) < 0)
        return err_sys(e, RC_IO, errno, "finish a temporary file");
    return RC_OK;
}

int fd_write_file_atomic(const char *path, const void *p, size_t n, unsigned mode, struct err *e)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    AUTO_FREE char *parent = !slash ? str_dup(".") : str_ndup(path, slash == path ? 1 : (size_t)(slash - path));
    if (!*name)
        return err_set(e, RC_INVALID, "write %s: a file name is needed", path);
    AUTO_CLOSE int dir = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return err_sys(e, rc_of_errno(errno), errno, "open directory %s", parent);
    uint64_t rnd;
    random_bytes(&rnd, sizeof rnd);
    AUTO_FREE char *tmp = str_printf(".%.200s.%016llx", name, (unsigned long long)rnd);
    int rc = write_new(dir, tmp, p, n, mode, e);
    if (rc == RC_OK && renameat(dir, tmp, dir, name) < 0)
        rc = err_sys(e, RC_IO, errno, "rename");
    if (rc < 0) {
        (void)unlinkat(dir, tmp, 0);
        return err_wrap(e, rc, "write %s", path);
    }
    return fsync(dir) < 0 ? err_sys(e, RC_IO, errno, "write %s: fsync of its directory", path) : RC_OK;
}

int fd_mkdirs(const char *path, unsigned mode, struct err *e)
{
    AUTO_FREE char *part = str_dup(path);
    for (char *p = part + 1; *part; p++) {
        if (*p != '/' && *p != '\0')
            continue;
        char keep = *p;
        *p = '\0';
        if (mkdir(part, mode) == 0) {
            if (chmod(part, mode) < 0)      /* exact, whatever the umask */
                return err_sys(e, RC_IO, errno, "mode of directory %s", part);
        } else if (errno != EEXIST) {
            return err_sys(e, rc_of_errno(errno), errno, "create directory %s", part);
        }
        *p = keep;
        if (!keep)
            break;
    }
    struct stat st;
    if (stat(path, &st) < 0)
        return err_sys(e, rc_of_errno(errno), errno, "create directory %s", path);
    return S_ISDIR(st.st_mode) ? RC_OK : err_set(e, RC_CONFLICT, "create directory %s: a file of that name is in the way", path);
}
