/* inside/dir.h - reading a directory without memory of its own. Used by both programs. */
#pragma once

#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct dir { int fd; char *buf; unsigned cap; size_t at, n; };

/* The next entry besides "." and ".."; NULL at the end and on failure. Valid until the next call. */
static inline const struct dirent64 *dir_next(struct dir *d)
{
    for (;;) {
        if (d->at >= d->n) {
            ssize_t got = getdents64(d->fd, d->buf, d->cap);
            if (got <= 0)
                return NULL;
            d->n = (size_t)got;
            d->at = 0;
        }
        const struct dirent64 *e = (const struct dirent64 *)(const void *)(d->buf + d->at);
        d->at += e->d_reclen;
        if (e->d_name[0] == '.' && (e->d_name[1] == 0 || (e->d_name[1] == '.' && e->d_name[2] == 0)))
            continue;
        return e;
    }
}
