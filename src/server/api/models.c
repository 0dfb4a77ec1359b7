/* server/api/models.c - what the configured providers offer (api.md 15). */
#include <string.h>

#include "server/api/call.h"

#define LIMIT_DEFAULT 20

static bool wanted(const json_t *lifecycles, const json_t *model)
{
    size_t i;
    json_t *v;
    const char *is = js_str(model, "lifecycle");
    if (json_array_size(lifecycles) == 0)
        return !str_eq(is, "retired");          /* active and deprecated */
    json_array_foreach(lifecycles, i, v)
        if (str_eq(json_string_value(v), is))
            return true;
    return false;
}

static size_t index_of(const json_t *list, const char *id, size_t none)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        if (str_eq(js_str(json_array_get(list, i), "id"), id))
            return i;
    return none;
}

int models_list(struct call *c)
{
    AUTO_JS all = model_list_all(c->api->conf.models);
    AUTO_JS some = json_array();
    json_t *out = json_array(), *page = json_object(), *v;
    size_t i, limit = (size_t)js_int(c->query, "limit", LIMIT_DEFAULT);
    const char *after = js_str(c->query, "after_id"), *before = js_str(c->query, "before_id");
    json_array_foreach(all, i, v)
        if (wanted(json_object_get(c->query, "lifecycle"), v))
            js_push(some, json_incref(v));
    size_t n = json_array_size(some), from = 0, end = n;
    if (after) {
        from = index_of(some, after, n) + 1;
    } else if (before) {
        end = index_of(some, before, 0);
        from = end > limit ? end - limit : 0;
    }
    bool more = before && !after ? from > 0 : end > from + limit;
    for (i = from; i < end && i < from + limit; i++)
        js_push(out, json_incref(json_array_get(some, i)));
    n = json_array_size(out);
    js_set_bool(page, "has_more", more);
    js_set_str(page, "first_id", n ? js_str(json_array_get(out, 0), "id") : NULL);
    js_set_str(page, "last_id", n ? js_str(json_array_get(out, n - 1), "id") : NULL);
    js_set(page, "data", out);
    return call_json(c, page);
}

int models_get(struct call *c)
{
    AUTO_JS all = model_list_all(c->api->conf.models);
    size_t i = index_of(all, c->param[0], SIZE_MAX);
    if (i == SIZE_MAX)
        return call_fail(c, RC_NOT_FOUND, "model: '%.100s' not found", c->param[0]);
    return call_json(c, json_incref(json_array_get(all, i)));
}
