/* edge/source.c - see source.h */
#include "edge/source.h"

#include <string.h>

#include "base/random.h"
#include "base/str.h"
#include "edge/ranges.h"

#define BUCKETS 4096            /* chains stay short up to some ten thousand sources */

struct sources { struct list bucket[BUCKETS]; uint64_t seed; };

struct sources *sources_new(void)
{
    struct sources *s = xcalloc(1, sizeof *s);
    for (size_t i = 0; i < BUCKETS; i++)
        list_init(&s->bucket[i]);
    random_bytes(&s->seed, sizeof s->seed);
    return s;
}

void sources_free(struct sources *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < BUCKETS; i++)
        list_foreach (it, &s->bucket[i], struct source, node)
            free(it);
    free(s);
}

/* Keyed, so that nobody can choose addresses that share a chain. */
static size_t bucket_of(const struct sources *s, const uint8_t key[16])
{
    uint64_t h = s->seed, part;
    for (size_t i = 0; i < 16; i += 8) {
        memcpy(&part, key + i, 8);
        h = (h ^ part) * 0x9e3779b97f4a7c15ull;
        h ^= h >> 29;
    }
    return (size_t)(h >> 32) % BUCKETS;
}

struct source *source_enter(struct sources *s, const struct net_addr *a)
{
    uint8_t key[16] = { 0 };
    static const uint8_t v4[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff };
    if (range_key(a, key) && memcmp(key, v4, sizeof v4) != 0)
        memset(key + 8, 0, 8);
    struct list *b = &s->bucket[bucket_of(s, key)];
    struct source *it = NULL;
    list_foreach (i, b, struct source, node)
        if (memcmp(i->key, key, sizeof key) == 0)
            it = i;
    if (!it) {
        it = xcalloc(1, sizeof *it);
        memcpy(it->key, key, sizeof key);
        list_add_head(b, &it->node);
    }
    it->conns++;
    it->fresh++;
    return it;
}

void source_known(struct source *s)
{
    s->fresh--;
}

void source_leave(struct source *s, bool fresh)
{
    s->conns--;
    s->fresh -= fresh;
    if (s->conns)
        return;
    list_del(&s->node);
    free(s);
}
