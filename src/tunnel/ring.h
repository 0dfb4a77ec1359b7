/* tunnel/ring.h - private to tunnel: a byte queue whose contents never move, of a size that is a power of two and a hard maximum. Holds no memory when it
 * is empty: thousands of idle streams have two each. Loop thread only. */
#pragma once

#include <string.h>

#include "base/attr.h"
#include "base/str.h"

#define RING_FIRST ((size_t)4096)
#define RING_BULK ((size_t)65536)        /* the next size: what has more than a few KiB mostly has a lot, and growing step by step copies it each time */

struct ring { char *mem; uint32_t cap, at, n; };     /* n bytes from mem[at], round the end */

void ring_free(struct ring *r);
bool ring_grow(struct ring *r, size_t n);            /* room for `n` more bytes; false without memory */

/* The first contiguous bytes. */
static inline struct slice ring_front(const struct ring *r)
{
    size_t n = r->cap - r->at < r->n ? r->cap - r->at : r->n;
    return (struct slice){ n ? r->mem + r->at : NULL, n };
}

static inline void ring_drop(struct ring *r, size_t n)
{
    r->n -= (uint32_t)n;
    if (r->n == 0)
        ring_free(r);
    else
        r->at = (r->at + (uint32_t)n) & (r->cap - 1);
}

/* The first contiguous free bytes; ring_commit() says how many were filled. */
static inline char *ring_back(const struct ring *r, size_t *ret_n)
{
    uint32_t end = (r->at + r->n) & (r->cap - 1);
    *ret_n = r->n == r->cap ? 0 : end >= r->at ? r->cap - end : r->at - end;
    return r->mem + end;
}

static inline void ring_commit(struct ring *r, size_t n)
{
    r->n += (uint32_t)n;
    if (r->n == 0)
        ring_free(r);
}

static inline bool ring_put(struct ring *r, const void *p, size_t n)
{
    if (n == 0 || !ring_grow(r, n))
        return n == 0;
    size_t room;
    char *to = ring_back(r, &room);
    size_t first = n < room ? n : room;
    memcpy(to, p, first);
    memcpy(r->mem, (const char *)p + first, n - first);
    r->n += (uint32_t)n;
    return true;
}
