/* server/api/common.c - what the resources share: pages, metadata, visibility. */
#include <string.h>

#include "server/api/call.h"

int64_t call_time(const struct call *c, const char *key)
{
    const char *s = json_string_value(json_object_get(c->query, key));
    int64_t ms;
    return s && rfc3339_parse(s, &ms) == RC_OK ? ms : -1;
}

static bool outside(const struct store_page *st, int64_t ms)
{
    return (st->gt_ms >= 0 && ms <= st->gt_ms) || (st->gte_ms >= 0 && ms < st->gte_ms) ||
           (st->lt_ms >= 0 && ms >= st->lt_ms) || (st->lte_ms >= 0 && ms > st->lte_ms);
}

int page_read(struct call *c, enum cursor_kind kind, const char *scope, bool asc, int dflt, struct page *ret)
{
    struct page p = { .st = STORE_PAGE_INIT, .kind = kind, .scope = scope };
    p.limit = (int)js_int(c->query, "limit", dflt);
    p.st.asc = asc;
    p.st.limit = p.limit + 1;        /* the one more says whether there is a next page */
    p.st.include_archived = js_bool(c->query, "include_archived", false);
    p.st.gt_ms = call_time(c, "created_at[gt]");
    p.st.gte_ms = call_time(c, "created_at[gte]");
    p.st.lt_ms = call_time(c, "created_at[lt]");
    p.st.lte_ms = call_time(c, "created_at[lte]");
    const char *text = js_str(c->query, "page");
    *ret = p;
    if (!text)
        return RC_OK;
    TRY(cursor_decode(text, kind, asc, scope, &ret->cur, &c->e));
    if ((kind == CURSOR_SESSIONS || kind == CURSOR_AGENTS) && outside(&p.st, ret->cur.pos))
        return call_fail(c, RC_INVALID, "page: the created_at filter excludes the cursor's position");
    ret->has_cursor = true;
    ret->st.backward = ret->cur.backward;
    ret->st.after_ms = ret->cur.pos;
    ret->st.after_id = ret->cur.id;
    return RC_OK;
}

bool page_cut(const struct page *p, size_t n, size_t *ret_first, size_t *ret_n)
{
    size_t limit = (size_t)p->limit;
    *ret_n = n < limit ? n : limit;
    *ret_first = p->st.backward ? n - *ret_n : 0;      /* the extra row is the one farthest from the cursor */
    return n > limit;
}

static void put_cursor(const struct page *p, struct buf *out, const char *name, bool there, bool backward, struct page_key key)
{
    char text[CURSOR_MAX];
    if (!there || !key.id) {
        buf_printf(out, ",\"%s\":null", name);
        return;
    }
    struct cursor c = { .kind = p->kind, .asc = p->st.asc, .backward = backward, .pos = key.ms };
    str_copy(c.id, sizeof c.id, key.id);
    cursor_encode(&c, p->scope, text);
    buf_printf(out, ",\"%s\":\"%s\"", name, text);
}

void page_end(const struct page *p, struct buf *out, bool more, bool both, struct page_key first, struct page_key last)
{
    bool back = p->st.backward;
    buf_putc(out, ']');
    if (both)
        put_cursor(p, out, "prev_page", back ? more : p->has_cursor, true, first);
    put_cursor(p, out, "next_page", back || more, false, last);
    buf_putc(out, '}');
}

int metadata_patch(struct call *c, json_t *old, json_t *patch, bool empty_deletes, json_t **ret)
{
    AUTO_JS out = json_deep_copy(old);
    const char *key;
    json_t *v;
    json_object_foreach(patch, key, v) {
        if (json_is_null(v) || (empty_deletes && json_string_length(v) == 0))
            (void)json_object_del(out, key);
        else
            js_set(out, key, json_incref(v));
    }
    if (json_object_size(out) > METADATA_PAIRS_MAX)
        return call_fail_code(c, RC_INVALID, "invalid_metadata", "metadata: more than %d entries", METADATA_PAIRS_MAX);
    *ret = TAKE(out);
    return RC_OK;
}

json_t *parse_stored(const char *text)
{
    json_t *v = NULL;
    if (!text || js_parse(text, strlen(text), SIZE_MAX, &v, NULL) != RC_OK)
        return json_object();
    return v;
}

static int not_found(struct call *c, const char *what, const char *id)
{
    return call_fail(c, RC_NOT_FOUND, "%s '%.60s' not found.", what, id);
}

/* A foreign object looks like a missing one. */
int call_session(struct call *c, struct store_session *ret)
{
    const char *id = c->param[0];
    if (c->who.kind == WHO_SESSION && !str_eq(c->who.session_id, id))
        return not_found(c, "Session", id);
    int rc = c->store->ops->session_get(c->store, c->arena, id, ret, &c->e);
    if (rc == RC_NOT_FOUND || (rc == RC_OK && c->who.kind == WHO_ENVIRONMENT && !str_eq(c->who.env_id, ret->env_id)))
        return not_found(c, "Session", id);
    return rc;
}

int call_vault(struct call *c, struct store_vault *ret)
{
    const char *id = c->param[0];
    int rc = c->store->ops->vault->get(c->store, c->arena, id, ret, &c->e);
    return rc == RC_NOT_FOUND ? not_found(c, "Vault", id) : rc;
}

int call_environment(struct call *c, struct store_environment *ret)
{
    const char *id = c->param[0];
    int rc = c->store->ops->environment_get(c->store, c->arena, id, ret, &c->e);
    return rc == RC_NOT_FOUND ? not_found(c, "Environment", id) : rc;
}
