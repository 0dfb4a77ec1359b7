#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/arena.h"
#include "base/rc.h"

#define ALIGN ((size_t)16)
#define BLOCK_GROWTH_MAX (1 * MIB)      /* blocks double up to here; a larger request gets a block of its own */

struct block { struct block *next; size_t size, used; _Alignas(16) unsigned char mem[]; };
struct callback { struct callback *next; void (*fn)(void *); void *p; };

struct arena {
    struct block *blocks;               /* newest first; only the first has room to offer */
    struct callback *callbacks;         /* newest first */
    size_t next_block, used, max;
};

struct arena *arena_new(size_t first_block_bytes, size_t max_bytes)
{
    struct arena *a = calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->next_block = first_block_bytes < 256 ? 256 : first_block_bytes;
    a->max = max_bytes;
    return a;
}

void arena_free(struct arena *a)
{
    if (!a)
        return;
    while (a->callbacks) {
        struct callback *c = a->callbacks;
        a->callbacks = c->next;         /* first, so that a callback may still allocate or register */
        c->fn(c->p);
    }
    for (struct block *b = a->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    free(a);
}

static struct block *block_new(size_t size)
{
    struct block *b = malloc(sizeof *b + size);
    if (b) {
        b->size = size;
        b->used = 0;
        b->next = NULL;
    }
    return b;
}

void *arena_alloc(struct arena *a, size_t n)
{
    if (n > SIZE_MAX - 2 * ALIGN)
        return NULL;
    size_t take = n ? (n + ALIGN - 1) & ~(ALIGN - 1) : ALIGN;
    if (take > a->max || a->used > a->max - take)
        return NULL;
    struct block *b = a->blocks;
    if (!b || b->size - b->used < take) {
        if (take > a->next_block / 2) {         /* own block, placed behind the current one */
            struct block *own = block_new(take);
            if (!own)
                return NULL;
            own->used = take;
            if (b) {
                own->next = b->next;
                b->next = own;
            } else {
                a->blocks = own;
            }
            a->used += take;
            return own->mem;
        }
        b = block_new(a->next_block);
        if (!b)
            return NULL;
        b->next = a->blocks;
        a->blocks = b;
        if (a->next_block < BLOCK_GROWTH_MAX)
            a->next_block *= 2;
    }
    void *p = b->mem + b->used;
    b->used += take;
    a->used += take;
    return p;
}

void *arena_zalloc(struct arena *a, size_t n)
{
    void *p = arena_alloc(a, n);
    return p ? memset(p, 0, n) : NULL;
}

char *arena_strndup(struct arena *a, const char *s, size_t n)
{
    if (!s)
        return NULL;
    char *p = n < SIZE_MAX ? arena_alloc(a, n + 1) : NULL;
    if (!p)
        return NULL;
    memcpy(p, s, n);
    p[n] = '\0';
    return p;
}

char *arena_strdup(struct arena *a, const char *s)
{
    return s ? arena_strndup(a, s, strlen(s)) : NULL;
}

char *arena_printf(struct arena *a, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *p = n < 0 ? NULL : arena_alloc(a, (size_t)n + 1);
    if (!p)
        return NULL;
    va_start(ap, fmt);
    (void)vsnprintf(p, (size_t)n + 1, fmt, ap);
    va_end(ap);
    return p;
}

int arena_on_free(struct arena *a, void (*fn)(void *), void *p)
{
    struct callback *c = arena_alloc(a, sizeof *c);
    if (!c) {
        fn(p);
        return RC_NOMEM;
    }
    *c = (struct callback){ a->callbacks, fn, p };
    a->callbacks = c;
    return RC_OK;
}

size_t arena_used(const struct arena *a) { return a->used; }
