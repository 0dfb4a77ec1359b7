/* Which workers polled which environment lately. In memory, because an idle poll must cost no write; a bounded table of sets, in which the
 * newcomer takes the place of the one not seen for longest. */
#include <string.h>

#include "base/str.h"
#include "store/sqlite/sqlite.h"

#define WAYS 8
#define SETS (SIGHTINGS_MAX / WAYS)

struct set { struct { struct sighting seen; bool dirty; } way[WAYS]; };
struct sightings { pthread_mutex_t lock; struct set *set[SETS]; };

struct sightings *sightings_new(void)
{
    struct sightings *g = xcalloc(1, sizeof *g);
    (void)pthread_mutex_init(&g->lock, NULL);
    return g;
}

void sightings_free(struct sightings *g)
{
    if (!g)
        return;
    for (size_t i = 0; i < SETS; i++)
        free(g->set[i]);
    (void)pthread_mutex_destroy(&g->lock);
    free(g);
}

static struct set **set_of(struct sightings *g, const char *env_id, const char *worker_id)
{
    uint32_t h = 2166136261u;
    for (const char *p = env_id; *p; p++)
        h = (h ^ (unsigned char)*p) * 16777619u;
    for (size_t i = 0; i < WORKER_ID_LEN - 1 && worker_id[i]; i++)
        h = (h ^ (unsigned char)worker_id[i]) * 16777619u;
    return &g->set[(h ^ h >> 15) % SETS];
}

static bool is_same(const struct sighting *s, const char *env_id, const char *worker_id)
{
    return str_eq(s->env_id, env_id) && strncmp(s->worker_id, worker_id, WORKER_ID_LEN - 1) == 0;
}

void sightings_note(struct sightings *g, const char *env_id, const char *worker_id, int64_t now_ms)
{
    pthread_mutex_lock(&g->lock);
    struct set **set = set_of(g, env_id, worker_id);
    if (!*set)
        *set = xcalloc(1, sizeof **set);
    size_t pick = 0;
    for (size_t i = 0; i < WAYS; i++) {
        if (is_same(&(*set)->way[i].seen, env_id, worker_id)) {
            pick = i;
            break;
        }
        if ((*set)->way[i].seen.seen_ms < (*set)->way[pick].seen.seen_ms)
            pick = i;
    }
    struct sighting *s = &(*set)->way[pick].seen;
    (void)str_copy(s->env_id, sizeof s->env_id, env_id);
    (void)str_copy(s->worker_id, sizeof s->worker_id, worker_id);
    s->seen_ms = now_ms;
    (*set)->way[pick].dirty = true;
    pthread_mutex_unlock(&g->lock);
}

bool sightings_seen(struct sightings *g, const char *env_id, const char *worker_id, int64_t since_ms)
{
    bool found = false;
    pthread_mutex_lock(&g->lock);
    struct set *set = *set_of(g, env_id, worker_id);
    for (size_t i = 0; set && i < WAYS; i++)
        found |= set->way[i].seen.seen_ms > since_ms && is_same(&set->way[i].seen, env_id, worker_id);
    pthread_mutex_unlock(&g->lock);
    return found;
}

int64_t sightings_count(struct sightings *g, const char *env_id, int64_t since_ms)
{
    int64_t n = 0;
    pthread_mutex_lock(&g->lock);
    for (size_t s = 0; s < SETS; s++)
        for (size_t i = 0; g->set[s] && i < WAYS; i++)
            n += g->set[s]->way[i].seen.seen_ms > since_ms && str_eq(g->set[s]->way[i].seen.env_id, env_id);
    pthread_mutex_unlock(&g->lock);
    return n;
}

struct sighting *sightings_dirty(struct sightings *g, size_t *ret_n)
{
    struct sighting *out = NULL;
    size_t n = 0, cap = 0;
    pthread_mutex_lock(&g->lock);
    for (size_t s = 0; s < SETS; s++)
        for (size_t i = 0; g->set[s] && i < WAYS; i++) {
            if (!g->set[s]->way[i].dirty)
                continue;
            if (n == cap) {
                cap = cap ? 2 * cap : 16;
                out = xrealloc(out, cap, sizeof *out);
            }
            out[n++] = g->set[s]->way[i].seen;
            g->set[s]->way[i].dirty = false;
        }
    pthread_mutex_unlock(&g->lock);
    *ret_n = n;
    return out;
}
