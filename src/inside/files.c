/* inside/files.c - read, write, edit, and the placement and removal of skills. */
#include "inside/dir.h"
#include "inside/init.h"
#include "inside/view.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define MAGIC_BYTES 12
#define REMOVE_DEPTH_MAX 128
#define REMOVE_DIR_BYTES 8192

int file_read_all(int fd, size_t size, struct answer *a)
{
    size_t left = size;
    char *to = answer_room(a, size);
    if (!to)
        return -ENOMEM;
    while (left > 0) {
        ssize_t got = read(fd, to, left);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)           /* cut short meanwhile: what is there counts */
            break;
        to += got;
        left -= (size_t)got;
        a->n += (size_t)got;
    }
    return 0;
}

static enum inside_kind kind_of(const char *p, size_t n)
{
    static const struct { const char *magic; size_t n; enum inside_kind kind; } t[] = {
        { "\x89PNG\r\n\x1a\n", 8, INSIDE_IMAGE_PNG }, { "\xff\xd8\xff", 3, INSIDE_IMAGE_JPEG }, { "GIF87a", 6, INSIDE_IMAGE_GIF },
        { "GIF89a", 6, INSIDE_IMAGE_GIF }, { "%PDF-", 5, INSIDE_PDF },
    };
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++)
        if (n >= t[i].n && memcmp(p, t[i].magic, t[i].n) == 0)
            return t[i].kind;
    if (n >= MAGIC_BYTES && memcmp(p, "RIFF", 4) == 0 && memcmp(p + 8, "WEBP", 4) == 0)
        return INSIDE_IMAGE_WEBP;
    return INSIDE_TEXT;
}

/* Opens a regular file for reading; an error answer and -1 otherwise. Never blocks on a FIFO. */
static int open_regular(const char *tool, const char *path, struct stat *st, struct answer *a)
{
    int fd = path_open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY, NULL);
    if (fd < 0) {
        path_error(a, tool, path, -fd);
        return -1;
    }
    if (fstat(fd, st) < 0)
        path_error(a, tool, path, errno);
    else if (S_ISDIR(st->st_mode))
        path_error(a, tool, path, EISDIR);
    else if (!S_ISREG(st->st_mode))
        answer_error(a, 0, "%s: %s is not a regular file", tool, path);
    else
        return fd;
    close(fd);
    return -1;
}

static void too_large(struct answer *a, const char *tool, const char *path, uint64_t size, uint64_t limit, const char *hint)
{
    answer_error(a, 0, "%s: %s is %llu bytes, exceeds %llu-byte limit.%s", tool, path, (unsigned long long)size, (unsigned long long)limit, hint);
}

static uint64_t cap_of(uint64_t limit) { return limit == 0 || limit > INSIDE_RES_MAX ? INSIDE_RES_MAX : limit; }

void tool_read(struct request *r, struct answer *a)
{
    struct stat st;
    char magic[MAGIC_BYTES];
    const char *path = request_string(r);
    int fd = open_regular("read", path, &st, a);
    if (fd < 0)
        return;
    ssize_t got = pread(fd, magic, sizeof magic, 0);
    enum inside_kind kind = kind_of(magic, got > 0 ? (size_t)got : 0);
    uint64_t size = (uint64_t)st.st_size, cap = cap_of(r->h.limit0);
    if (kind != INSIDE_TEXT)
        cap = kind != INSIDE_PDF && r->h.reserved ? cap_of(r->h.reserved) : cap_of(r->h.limit1);
    int rc = 0;
    if (size > cap)
        too_large(a, "read", path, size, cap, kind == INSIDE_TEXT ? " Use bash (head/tail/sed) to read a slice." : "");
    else if (kind != INSIDE_TEXT && (r->h.flags & INSIDE_VIEW))
        answer_error(a, 0, "read: view_range cannot be used on %s", kind == INSIDE_PDF ? "a PDF" : "an image");
    else
        rc = file_read_all(fd, (size_t)size, a);
    close(fd);
    if (rc < 0) {
        path_error(a, "read", path, -rc);
        return;
    }
    if (a->flags & INSIDE_ERROR)
        return;
    a->kind = kind;
    if (r->h.flags & INSIDE_VIEW) {
        size_t off = 0, n = 0;
        if (view_lines(answer_body(a), a->n, r->h.arg0, r->h.arg1, &off, &n) < 0) {
            answer_error(a, 0, "read: view_range end line %lld is before start line %lld", (long long)r->h.arg1, (long long)r->h.arg0);
            return;
        }
        memmove(answer_body(a), answer_body(a) + off, n);
        a->n = n;
    }
}

static int write_all(int fd, const char *p, size_t n)
{
    while (n > 0) {
        ssize_t put = write(fd, p, n);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -errno;
        p += put;
        n -= (size_t)put;
    }
    return 0;
}

int file_replace(int dirfd, const char *leaf, const void *p, size_t n, mode_t mode)
{
    struct stat st;
    char temp[32];
    uint64_t r = 0;
    if (fstatat(dirfd, leaf, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        if (S_ISDIR(st.st_mode))
            return -EISDIR;
        if (!S_ISREG(st.st_mode))
            return -ENXIO;
        if (mode == 0)
            mode = st.st_mode & 0777;
    } else if (errno != ENOENT) {
        return -errno;
    } else if (mode == 0) {
        mode = 0644;
    }
    if (getrandom(&r, sizeof r, 0) != sizeof r)
        return -EIO;
    snprintf(temp, sizeof temp, ".ow-%016llx", (unsigned long long)r);
    int fd = openat(dirfd, temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    int rc = write_all(fd, p, n);
    if (rc == 0 && fchmod(fd, mode) < 0)
        rc = -errno;
    if (close(fd) < 0 && rc == 0)
        rc = -errno;
    if (rc == 0 && renameat(dirfd, temp, dirfd, leaf) < 0)
        rc = -errno;
    if (rc < 0)
        (void)unlinkat(dirfd, temp, 0);
    return rc;
}

/* Puts `n` bytes at `path`; false and the error answer when that failed. */
static bool place(const char *tool, const char *path, const void *p, size_t n, mode_t mode, bool make, struct answer *a)
{
    char leaf[NAME_MAX + 1];
    size_t len = strlen(path);
    int dirfd = len > 1 && path[len - 1] == '/' ? -EISDIR : path_parent(path, make, false, leaf);
    int rc = dirfd < 0 ? dirfd : file_replace(dirfd, leaf, p, n, mode);
    if (dirfd >= 0)
        close(dirfd);
    if (rc < 0)
        path_error(a, tool, path, -rc);
    return rc == 0;
}

void tool_write(struct request *r, struct answer *a)
{
    const char *path = request_string(r);
    size_t n = r->n - r->next;
    if (place("write", path, r->body + r->next, n, 0, true, a))
        answer_printf(a, "wrote %zu bytes to %s", n, path);
}

void tool_put(struct request *r, struct answer *a)
{
    const char *path = request_string(r);
    mode_t mode = (mode_t)(r->h.arg0 & 0777);
    (void)place("put", path, r->body + r->next, r->n - r->next, mode ? mode : 0644, true, a);
}

static size_t count_of(const char *p, size_t n, const char *what, size_t what_n)
{
    size_t hits = 0;
    for (const char *at = p; (at = memmem(at, n - (size_t)(at - p), what, what_n)); at += what_n)
        hits++;
    return hits;
}

/* All hits replaced, left to right; malloc'd. NULL: over INSIDE_REQ_MAX or no memory. */
static char *replaced(const char *p, size_t n, const char *from, size_t from_n, const char *to, size_t to_n, size_t hits, size_t *ret_n)
{
    size_t grow = 0, total = n - hits * from_n;
    if (__builtin_mul_overflow(hits, to_n, &grow) || __builtin_add_overflow(total, grow, &total) || total > INSIDE_REQ_MAX)
        return NULL;
    char *out = malloc(total + 1), *w = out;
    if (!out)
        return NULL;
    const char *at = p, *end = p + n;
    for (; hits > 0; hits--) {
        const char *hit = memmem(at, (size_t)(end - at), from, from_n);
        memcpy(w, at, (size_t)(hit - at));
        w += hit - at;
        memcpy(w, to, to_n);
        w += to_n;
        at = hit + from_n;
    }
    memcpy(w, at, (size_t)(end - at));
    *ret_n = total;
    return out;
}

void tool_edit(struct request *r, struct answer *a)
{
    struct stat st;
    const char *path = request_string(r);
    const char *from = r->body + r->next;
    size_t data = r->n - r->next, from_n = (size_t)r->h.arg0;
    if (r->h.arg0 <= 0 || from_n > data) {
        answer_error(a, 0, "edit: old_string must not be empty");
        return;
    }
    int fd = open_regular("edit", path, &st, a);
    if (fd < 0)
        return;
    uint64_t cap = cap_of(r->h.limit0);
    if ((uint64_t)st.st_size > cap) {
        too_large(a, "edit", path, (uint64_t)st.st_size, cap, " Use bash (sed) to edit it.");
        close(fd);
        return;
    }
    int rc = file_read_all(fd, (size_t)st.st_size, a);
    close(fd);
    if (rc < 0) {
        path_error(a, "edit", path, -rc);
        return;
    }
    size_t hits = a->n ? count_of(answer_body(a), a->n, from, from_n) : 0, n = 0;
    if (hits == 0) {
        answer_error(a, 0, "edit: old_string not found in %s", path);
        return;
    }
    if (hits > 1 && !(r->h.flags & INSIDE_ALL)) {
        answer_error(a, 0, "edit: old_string appears %zu times in %s (must be unique)", hits, path);
        return;
    }
    char *text = replaced(answer_body(a), a->n, from, from_n, from + from_n, data - from_n, hits, &n);
    answer_clear(a);
    if (!text)
        answer_error(a, 0, "edit: the result for %s would exceed the limit of %u bytes", path, INSIDE_REQ_MAX);
    else if (place("edit", path, text, n, 0, false, a))
        answer_printf(a, "edited %s (%zu replacement(s))", path, hits);
    free(text);
}

/* Removes a tree below an open directory without following a link; 0 or -errno of the first failure. */
static int remove_tree(int dirfd, const char *name, int depth)
{
    if (unlinkat(dirfd, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)      /* EPERM: what POSIX wants for a directory */
        return -errno;
    if (depth >= REMOVE_DEPTH_MAX)
        return -ELOOP;
    int fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    char room[REMOVE_DIR_BYTES] __attribute__((aligned(8)));
    struct dir d = { .fd = fd, .buf = room, .cap = sizeof room };
    const struct dirent64 *e;
    int rc = 0;
    while (rc == 0 && (e = dir_next(&d)))
        rc = remove_tree(fd, e->d_name, depth + 1);
    close(fd);
    if (rc == 0 && unlinkat(dirfd, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
        rc = -errno;
    return rc;
}

void tool_remove(struct request *r, struct answer *a)
{
    char leaf[NAME_MAX + 1];
    const char *path = request_string(r);
    int dirfd = path_parent(path, false, true, leaf);
    int rc = dirfd == -ENOENT || dirfd == -ENOTDIR ? 0 : dirfd;
    if (dirfd >= 0) {
        rc = remove_tree(dirfd, leaf, 0);
        close(dirfd);
    }
    if (rc < 0)
        path_error(a, "remove", path, -rc);
}
