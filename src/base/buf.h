/* base/buf.h - a growing byte buffer with a mandatory hard maximum. Always NUL-terminated after the contents, so that
 * text in it can be read as a C string. Reading from the front is cheap (an offset moves). Not thread-safe. */
#pragma once

#include "base/attr.h"
#include "base/err.h"

struct buf {
    char  *mem;          /* private */
    size_t off, end, cap, max;
    bool   failed;       /* sticky: an append was refused (limit or memory); see buf_ok() */
};

void   buf_init(struct buf *b, size_t max_bytes);   /* allocates nothing yet */
void   buf_done(struct buf *b);                     /* frees; the buffer may be initialised again */
void   buf_clear(struct buf *b);                    /* empties, keeps the memory, clears `failed` */
void   buf_wipe(struct buf *b);                     /* zeroes the memory, then frees */
/* Appends. RC_LIMIT over the maximum, RC_NOMEM; then nothing was added and `failed` is set. The result may be ignored
 * when buf_ok() is asked once at the end. */
int    buf_put(struct buf *b, const void *p, size_t n);
int    buf_puts(struct buf *b, const char *s);
int    buf_putc(struct buf *b, char c);
int    buf_printf(struct buf *b, const char *fmt, ...) PRINTF_LIKE(2, 3);
bool   buf_ok(const struct buf *b);
/* Makes room for `n` more bytes and returns the place; NULL when refused. buf_commit() says how many were written. */
char  *buf_reserve(struct buf *b, size_t n);
void   buf_commit(struct buf *b, size_t n);
void   buf_consume(struct buf *b, size_t n);        /* drops n bytes from the front, n <= buf_len() */
void   buf_truncate(struct buf *b, size_t n);       /* keeps the first n bytes */
static inline size_t buf_len(const struct buf *b) { return b->end - b->off; }
static inline char  *buf_data(struct buf *b) { return b->mem ? b->mem + b->off : (char *)(uintptr_t) ""; }
static inline size_t buf_room(const struct buf *b) { return b->max - buf_len(b); }
/* Hands the memory out as a malloc'd NUL-terminated string (never NULL unless out of memory); the buffer is empty after. */
char  *buf_take(struct buf *b, size_t *ret_len);
