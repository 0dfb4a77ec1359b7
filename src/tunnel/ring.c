/* tunnel/ring.c - memory of rings. A busy stream empties and fills its rings with each message, so a thread keeps blocks of the two usual sizes at hand:
 * cheaper than a heap that looks for one of 4 KiB each time, and than taking the pages of large ones from the kernel again and again. */
#include "tunnel/ring.h"

#ifdef __SANITIZE_ADDRESS__
#define KEPT_FIRST 0                     /* a use after the end shall be seen */
#define KEPT_BULK 0
#else
#define KEPT_FIRST 128                   /* 512 KiB */
#define KEPT_BULK 8                      /* 512 KiB */
#endif

struct kept { void *head; unsigned n; };     /* a free block begins with a pointer to the next */

static _Thread_local struct kept kept_first, kept_bulk;

static struct kept *kept_of(size_t cap)
{
    return cap == RING_FIRST ? &kept_first : cap == RING_BULK ? &kept_bulk : NULL;
}

static char *block_get(size_t cap)
{
    struct kept *k = kept_of(cap);
    if (!k || !k->head)
        return malloc(cap);
    void **block = k->head;
    k->head = *block;
    k->n--;
    return (char *)block;
}

static void block_put(char *mem, size_t cap)
{
    struct kept *k = mem ? kept_of(cap) : NULL;
    if (!k || k->n >= (cap == RING_FIRST ? KEPT_FIRST : KEPT_BULK)) {
        free(mem);
        return;
    }
    void **block = (void **)(void *)mem;
    *block = k->head;
    k->head = block;
    k->n++;
}

void ring_free(struct ring *r)
{
    block_put(r->mem, r->cap);
    *r = (struct ring){ 0 };
}

bool ring_grow(struct ring *r, size_t n)
{
    size_t need = r->n + n, cap = r->cap ? r->cap : RING_FIRST;
    if (need <= r->cap)
        return true;
    if (need > UINT32_MAX / 2)
        return false;
    if (need > RING_FIRST && cap < RING_BULK)
        cap = RING_BULK;
    while (cap < need)
        cap *= 2;
    char *mem = block_get(cap);
    if (!mem)
        return false;
    if (r->mem) {
        size_t first = r->cap - r->at < r->n ? r->cap - r->at : r->n;
        memcpy(mem, r->mem + r->at, first);
        memcpy(mem + first, r->mem, r->n - first);
        block_put(r->mem, r->cap);
    }
    r->mem = mem;
    r->cap = (uint32_t)cap;
    r->at = 0;
    return true;
}
