/* server/api/query.c - query strings to typed objects (schema.h). Arrays come as "types[]=a", "types%5B%5D=a" or "types=a". */
#include "server/api/schema.h"

#include <string.h>

#include "http/parse.h"

#define QUERY_KEY_MAX 128
#define QUERY_VALUE_MAX 4096     /* the longest value: a page cursor */

static const struct schema_prop *prop_find(const struct schema_node *n, char *key)
{
    size_t len = strlen(key);
    if (len > 2 && strcmp(key + len - 2, "[]") == 0)
        key[len - 2] = '\0';
    for (unsigned i = 0; i < n->n; i++)
        if (strcmp(schema_props[n->first + i].name, key) == 0)
            return &schema_props[n->first + i];
    return NULL;
}

/* One value as the JSON type that its node wants. A value that does not fit stays text, so that shape_check() names it. */
static json_t *typed(const struct schema_node *n, char *text)
{
    int64_t v;
    if (n->kind == SCHEMA_INT && str_to_i64(text, INT64_MIN, INT64_MAX, &v) == RC_OK)
        return json_integer(v);
    if (n->kind == SCHEMA_BOOL && (str_eq(text, "true") || str_eq(text, "false")))
        return json_boolean(text[0] == 't');
    if (n->format && str_eq(n->format, "date-time"))     /* "...+00:00" sent without encoding its plus */
        for (char *p = text; *p; p++)
            if (*p == ' ')
                *p = '+';
    return js_string(text, strlen(text));
}

static int take_pair(const struct schema_node *n, struct slice pair, json_t *out, struct err *e)
{
    char key[QUERY_KEY_MAX], value[QUERY_VALUE_MAX];
    const char *eq = memchr(pair.p, '=', pair.n);
    struct slice k = { pair.p, eq ? (size_t)(eq - pair.p) : pair.n };
    struct slice v = eq ? (struct slice){ eq + 1, pair.n - k.n - 1 } : (struct slice){ "", 0 };
    if (http_pct_decode(k, true, key, sizeof key) != RC_OK)
        return RC_OK;                                    /* nothing of ours */
    const struct schema_prop *p = prop_find(n, key);
    if (!p)
        return RC_OK;
    if (http_pct_decode(v, true, value, sizeof value) != RC_OK)
        return err_set(e, RC_INVALID, "%s: malformed or too long", key);
    const struct schema_node *x = &schema_nodes[p->node];
    if (x->kind == SCHEMA_ARRAY) {
        json_t *list = json_object_get(out, p->name);
        if (!list) {
            list = json_array();
            js_set(out, p->name, list);
        }
        if (json_array_size(list) >= SCHEMA_ARRAY_QUERY_MAX)
            return err_set(e, RC_INVALID, "%s: more than %d values", p->name, SCHEMA_ARRAY_QUERY_MAX);
        js_push(list, typed(&schema_nodes[x->items], value));
    } else if (value[0] || x->kind == SCHEMA_INT || x->n) {
        js_set(out, p->name, typed(x, value));
    }
    return RC_OK;
}

int shape_query(uint16_t node, struct slice raw, json_t **ret, struct err *e)
{
    AUTO_JS out = json_object();
    const struct schema_node *n = &schema_nodes[node];
    while (node && raw.n) {
        const char *amp = memchr(raw.p, '&', raw.n);
        size_t len = amp ? (size_t)(amp - raw.p) : raw.n;
        if (len)
            TRY(take_pair(n, (struct slice){ raw.p, len }, out, e));
        raw.p += len + (amp != NULL);
        raw.n -= len + (amp != NULL);
    }
    if (node)
        TRY(shape_check(node, out, e));
    *ret = TAKE(out);
    return RC_OK;
}
