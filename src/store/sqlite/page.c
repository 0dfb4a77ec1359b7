/* Keyset pages over (created_ms, id), shared by every list. */
#include <string.h>

#include "store/sqlite/sqlite.h"

static void add_alias(struct query *q, const char *before, const char *alias, const char *after)
{
    query_add(q, before, "");
    query_add(q, alias, "");
    query_add(q, after, "");
}

static bool ascending(const struct store_page *p) { return p->asc != p->backward; }

static void bound(struct query *q, const char *alias, const char *cond, int64_t ms)
{
    if (ms < 0)
        return;
    add_alias(q, " AND ", alias, ".created_ms ");
    query_add(q, cond, "i", ms);
}

void page_where(struct query *q, const struct store_page *p, const char *alias)
{
    bound(q, alias, "> ?", p->gt_ms);
    bound(q, alias, ">= ?", p->gte_ms);
    bound(q, alias, "< ?", p->lt_ms);
    bound(q, alias, "<= ?", p->lte_ms);
    if (p->after_id) {
        add_alias(q, " AND (", alias, ".created_ms, ");
        add_alias(q, "", alias, ".id)");
        query_add(q, ascending(p) ? " > (?, ?)" : " < (?, ?)", "is", p->after_ms, p->after_id);
    }
}

void page_order(struct query *q, const struct store_page *p, const char *alias)
{
    const char *dir = ascending(p) ? "" : " DESC";
    add_alias(q, " ORDER BY ", alias, ".created_ms");
    query_add(q, dir, "");
    add_alias(q, ", ", alias, ".id");
    query_add(q, dir, "");
    query_add(q, " LIMIT ?", "d", page_limit(p->limit));
}

int page_limit(int limit)
{
    return limit < 1 ? 1 : limit > STORE_LIST_MAX ? STORE_LIST_MAX + 1 : limit;
}

void *rows_grow(struct arena *a, void *rows, size_t n, size_t *cap, size_t size)
{
    if (n < *cap)
        return rows;
    size_t want = *cap ? 2 * *cap : 16;
    void *p = arena_alloc(a, want * size);
    if (p && n)
        memcpy(p, rows, n * size);
    if (p)
        *cap = want;
    return p;
}

void rows_reverse(void *rows, size_t n, size_t size)
{
    if (n < 2)
        return;
    char *lo = rows, *hi = lo + (n - 1) * size, tmp[512];
    if (size > sizeof tmp)
        abort();
    for (; lo < hi; lo += size, hi -= size) {
        memcpy(tmp, lo, size);
        memcpy(lo, hi, size);
        memcpy(hi, tmp, size);
    }
}
