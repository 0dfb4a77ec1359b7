/* base/fd.h - descriptors: all close-on-exec from birth, -1 means none. */
#pragma once

#include "base/attr.h"
#include "base/err.h"

MUST_CHECK int fd_nonblock(int fd);
/* Reads a whole file, at most `max` bytes (RC_TOO_LARGE above). *ret is malloc'd and NUL-terminated. `dirfd` as in openat(). */
MUST_CHECK int fd_read_file(int dirfd, const char *path, size_t max, char **ret, size_t *ret_len, struct err *e);
/* Writes all bytes, restarting on EINTR and short writes. */
MUST_CHECK int fd_write_all(int fd, const void *p, size_t n, struct err *e);
/* Replaces a file atomically: temporary name in the same directory, fsync, rename, fsync of the directory. */
MUST_CHECK int fd_write_file_atomic(const char *path, const void *p, size_t n, unsigned mode, struct err *e);
/* mkdir -p; each missing directory gets `mode`. */
MUST_CHECK int fd_mkdirs(const char *path, unsigned mode, struct err *e);
/* Removes a tree without following symbolic links; a missing one is fine. */
MUST_CHECK int fd_remove_tree(int dirfd, const char *path, struct err *e);
