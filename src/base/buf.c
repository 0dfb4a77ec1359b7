#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"

#define FIRST_CAP ((size_t)256)

void buf_init(struct buf *b, size_t max_bytes)
{
    *b = (struct buf){ .max = max_bytes < SIZE_MAX / 4 ? max_bytes : SIZE_MAX / 4 };
}

void buf_done(struct buf *b)
{
    free(b->mem);
    *b = (struct buf){ .max = b->max };
}

void buf_clear(struct buf *b)
{
    b->off = b->end = 0;
    b->failed = false;
    if (b->mem)
        b->mem[0] = '\0';
}

void buf_wipe(struct buf *b)
{
    if (b->mem)
        explicit_bzero(b->mem, b->cap);
    buf_done(b);
}

/* Room for n bytes and the NUL behind them. */
static int grow(struct buf *b, size_t n)
{
    size_t len = buf_len(b);
    if (n > b->max - len) {
        b->failed = true;
        return RC_LIMIT;
    }
    if (b->mem && b->cap - b->end > n)
        return RC_OK;
    size_t need = len + n + 1;
    if (b->mem && need <= b->cap && b->off >= b->cap / 2) {      /* at least half is consumed: move instead of growing */
        memmove(b->mem, b->mem + b->off, len + 1);
        b->off = 0;
        b->end = len;
        return RC_OK;
    }
    size_t cap = b->cap ? b->cap : FIRST_CAP;
    while (cap < need)
        cap *= 2;
    if (cap > b->max + 1)
        cap = b->max + 1 > need ? b->max + 1 : need;
    if (b->off) {
        memmove(b->mem, b->mem + b->off, len + 1);
        b->off = 0;
        b->end = len;
    }
    if (cap > b->cap) {
        char *mem = realloc(b->mem, cap);
        if (!mem) {
            b->failed = true;
            return RC_NOMEM;
        }
        b->mem = mem;
        b->cap = cap;
        b->mem[b->end] = '\0';
    }
    return RC_OK;
}

int buf_put(struct buf *b, const void *p, size_t n)
{
    int rc = grow(b, n);
    if (rc < 0)
        return rc;
    if (n)
        memcpy(b->mem + b->end, p, n);
    b->end += n;
    b->mem[b->end] = '\0';
    return RC_OK;
}

int buf_puts(struct buf *b, const char *s) { return buf_put(b, s, strlen(s)); }
int buf_putc(struct buf *b, char c) { return buf_put(b, &c, 1); }

int buf_printf(struct buf *b, const char *fmt, ...)
{
    size_t room = b->mem ? b->cap - b->end : 0;
    if (room > buf_room(b) + 1)
        room = buf_room(b) + 1;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(room ? b->mem + b->end : NULL, room, fmt, ap);
    va_end(ap);
    if (n < 0) {
        if (room)
            b->mem[b->end] = '\0';
        b->failed = true;
        return RC_INVALID;
    }
    if ((size_t)n < room) {
        b->end += (size_t)n;
        return RC_OK;
    }
    if (room)
        b->mem[b->end] = '\0';
    int rc = grow(b, (size_t)n);
    if (rc < 0)
        return rc;
    va_start(ap, fmt);
    (void)vsnprintf(b->mem + b->end, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->end += (size_t)n;
    return RC_OK;
}

bool buf_ok(const struct buf *b) { return !b->failed; }

char *buf_reserve(struct buf *b, size_t n)
{
    return grow(b, n) < 0 ? NULL : b->mem + b->end;
}

void buf_commit(struct buf *b, size_t n)
{
    if (!b->mem)
        return;
    assert(n < b->cap - b->end);
    b->end += n;
    b->mem[b->end] = '\0';
}

void buf_consume(struct buf *b, size_t n)
{
    assert(n <= buf_len(b));
    b->off += n;
    if (b->off == b->end && b->mem) {
        b->off = b->end = 0;
        b->mem[0] = '\0';
    }
}

void buf_truncate(struct buf *b, size_t n)
{
    if (n >= buf_len(b))
        return;
    b->end = b->off + n;
    b->mem[b->end] = '\0';
}

char *buf_take(struct buf *b, size_t *ret_len)
{
    size_t n = buf_len(b);
    char *p = b->mem ? b->mem : calloc(1, 1);
    if (p && b->mem && b->off)
        memmove(p, p + b->off, n + 1);
    if (ret_len)
        *ret_len = n;
    *b = (struct buf){ .max = b->max };
    return p;
}
