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

static void page_where(struct query *q, const struct store_page *p, const char *alias)
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

static void page_order(struct query *q, const struct store_page *p, const char *alias)
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

void page_live(struct query *q, const struct store_page *p, const char *alias)
{
    if (!p->include_archived)
        add_alias(q, " AND ", alias, ".archived_ms IS NULL");
}

static void *grow(struct arena *a, void *rows, size_t n, size_t *cap, size_t size)
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

int rows_read(struct row *r, row_read_fn read, const void *ctx, size_t size, void *ret, size_t *ret_n, struct err *e)
{
    char *rows = NULL;
    size_t n = 0, cap = 0;
    int rc;
    while ((rc = row_next(r, e)) > 0) {
        rows = grow(r->a, rows, n, &cap, size);
        if (!rows)
            return err_set(e, RC_LIMIT, "the list is larger than the memory of this request");
        read(r, rows + n++ * size, ctx);
        TRY(row_ok(r, e));
    }
    TRY(rc);
    memcpy(ret, &rows, sizeof rows);         /* a pointer to records, of a type that is not known here */
    *ret_n = n;
    return RC_OK;
}

static void reverse(char *rows, size_t n, size_t size)
{
    char tmp[512];
    if (n < 2)
        return;
    if (size > sizeof tmp)
        abort();
    for (char *lo = rows, *hi = lo + (n - 1) * size; lo < hi; lo += size, hi -= size) {
        memcpy(tmp, lo, size);
        memcpy(lo, hi, size);
        memcpy(hi, tmp, size);
    }
}

int rows_page(struct store *st, struct arena *a, struct query *q, const struct store_page *p, const char *alias, row_read_fn read, const void *ctx, size_t size,
              void *ret, size_t *ret_n, struct err *e)
{
    page_where(q, p, alias);
    page_order(q, p, alias);
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(query_run(rd.db, &r, a, e, q));
    char *rows;
    size_t n;
    TRY(rows_read(&r, read, ctx, size, &rows, &n, e));
    if (p->backward)
        reverse(rows, n, size);
    memcpy(ret, &rows, sizeof rows);
    *ret_n = n;
    return RC_OK;
}
