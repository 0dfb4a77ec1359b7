/* edge/table.c - see table.h */
#include "edge/table.h"

#include <string.h>

#include "base/random.h"
#include "base/str.h"

#define BUCKETS_FIRST 64

static void make(struct table *t, size_t n)
{
    t->bucket = xcalloc(n, sizeof *t->bucket);
    t->n_buckets = n;
    for (size_t i = 0; i < n; i++)
        list_init(&t->bucket[i]);
}

void table_init(struct table *t)
{
    *t = (struct table){ 0 };
    random_bytes(&t->seed, sizeof t->seed);
    make(t, BUCKETS_FIRST);
}

void table_done(struct table *t)
{
    free(t->bucket);
    *t = (struct table){ 0 };
}

static uint64_t hash_of(const struct table *t, const char *key)
{
    uint64_t h = t->seed;
    for (const unsigned char *p = (const unsigned char *)key; *p; p++) {
        h = (h ^ *p) * 0x9e3779b97f4a7c15ull;
        h ^= h >> 29;
    }
    return h ^ h >> 32;
}

static struct list *chain(const struct table *t, uint64_t hash)
{
    return &t->bucket[hash & (t->n_buckets - 1)];
}

static void grow(struct table *t)
{
    struct list *old = t->bucket;
    size_t n = t->n_buckets;
    make(t, 2 * n);
    for (size_t i = 0; i < n; i++)
        list_foreach (it, &old[i], struct table_node, chain) {
            list_del(&it->chain);
            list_add_head(chain(t, it->hash), &it->chain);
        }
    free(old);
}

void table_add(struct table *t, struct table_node *n, const char *key)
{
    if (t->n >= 2 * t->n_buckets)
        grow(t);
    n->key = key;
    n->hash = hash_of(t, key);
    list_add_head(chain(t, n->hash), &n->chain);
    t->n++;
}

void table_del(struct table *t, struct table_node *n)
{
    list_del(&n->chain);
    t->n--;
}

struct table_node *table_find(const struct table *t, const char *key)
{
    uint64_t h = hash_of(t, key);
    list_foreach (it, chain(t, h), struct table_node, chain)
        if (it->hash == h && strcmp(it->key, key) == 0)
            return it;
    return NULL;
}
