/* gateway/sticky.c - see sticky.h. A hash table with chains; the rows also form a list, least recently used at its end. */
#include "gateway/sticky.h"

#include <string.h>

#include "base/list.h"
#include "base/random.h"

#define BUCKETS 4096                     /* a power of two */

struct row { struct list lru; struct row *next; uint32_t hash; uint16_t upstream, n; char id[]; };
struct sticky { struct list lru; size_t n; uint32_t seed; struct row *bucket[BUCKETS]; };

struct sticky *sticky_new(void)
{
    struct sticky *s = xcalloc(1, sizeof *s);
    list_init(&s->lru);
    random_bytes(&s->seed, sizeof s->seed);
    return s;
}

void sticky_free(struct sticky *s)
{
    if (!s)
        return;
    list_foreach(r, &s->lru, struct row, lru)
        free(r);
    free(s);
}

static uint32_t hash_of(const struct sticky *s, struct slice id)      /* FNV-1a from a random start */
{
    uint32_t h = 2166136261u ^ s->seed;
    for (size_t i = 0; i < id.n; i++)
        h = (h ^ (unsigned char)id.p[i]) * 16777619u;
    return h;
}

static struct row **find(struct sticky *s, struct slice id, uint32_t h)
{
    struct row **at = &s->bucket[h & (BUCKETS - 1)];
    while (*at && !((*at)->hash == h && (*at)->n == id.n && memcmp((*at)->id, id.p, id.n) == 0))
        at = &(*at)->next;
    return at;
}

static void drop(struct sticky *s, struct row **at)
{
    struct row *r = *at;
    *at = r->next;
    list_del(&r->lru);
    s->n--;
    free(r);
}

void sticky_set(struct sticky *s, struct slice id, size_t upstream)
{
    if (id.n == 0 || id.n > STICKY_ID_MAX)
        return;
    uint32_t h = hash_of(s, id);
    struct row **at = find(s, id, h), *r = *at;
    if (!r) {
        if (s->n == STICKY_MAX) {
            struct row *old = list_entry(s->lru.prev, struct row, lru);
            drop(s, find(s, (struct slice){ old->id, old->n }, old->hash));
        }
        at = &s->bucket[h & (BUCKETS - 1)];
        r = xcalloc(1, sizeof *r + id.n);
        r->hash = h;
        r->n = (uint16_t)id.n;
        memcpy(r->id, id.p, id.n);
        r->next = *at;
        *at = r;
        s->n++;
    } else {
        list_del(&r->lru);
    }
    r->upstream = (uint16_t)upstream;
    list_add_head(&s->lru, &r->lru);
}

bool sticky_get(struct sticky *s, struct slice id, size_t *ret_upstream)
{
    struct row *r = id.n && id.n <= STICKY_ID_MAX ? *find(s, id, hash_of(s, id)) : NULL;
    if (!r)
        return false;
    list_del(&r->lru);
    list_add_head(&s->lru, &r->lru);
    *ret_upstream = r->upstream;
    return true;
}

void sticky_drop(struct sticky *s, struct slice id)
{
    struct row **at = find(s, id, hash_of(s, id));
    if (*at)
        drop(s, at);
}
