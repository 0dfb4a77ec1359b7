/* server/api/validate.c - walks the generated tables over a JSON value (schema.h). No state, no allocation while checking. */
#include "server/api/schema.h"

#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/utf8.h"

#define PATH_MAX_BYTES 256      /* of the path in a message; the rest is cut */
#define MISSING_MAX_BYTES 400   /* of a list of missing properties */
#define WORDS_MAX_BYTES 160     /* of a list of allowed words */

/* Where the walk stands: one frame per level, on the stack. Depth is bounded by the parser (JS_DEPTH_MAX). */
struct at { const struct at *up; const char *key; size_t index; };

static void path_write(const struct at *at, struct buf *out)
{
    if (!at->up) {
        if (at->key)
            buf_puts(out, at->key);
        return;
    }
    path_write(at->up, out);
    if (buf_len(out))
        buf_putc(out, '.');
    if (at->key)
        buf_puts(out, at->key);
    else
        buf_printf(out, "%zu", at->index);
}

/* As path_write, behind other text. */
static void path_write_all(const struct at *at, struct buf *out)
{
    struct buf b;
    buf_init(&b, PATH_MAX_BYTES);
    path_write(at, &b);
    buf_put(out, buf_data(&b), buf_len(&b));
    buf_done(&b);
}

static int refuse(struct err *e, const struct at *at, const char *text)
{
    struct buf b;
    buf_init(&b, PATH_MAX_BYTES);
    path_write(at, &b);
    err_set(e, RC_INVALID, "%s: %s", buf_len(&b) ? buf_data(&b) : "body", text);
    buf_done(&b);
    return RC_INVALID;
}

static int refuse_number(struct err *e, const struct at *at, const char *before, int64_t limit, const char *after)
{
    char msg[96];
    snprintf(msg, sizeof msg, "%s%lld%s", before, (long long)limit, after);
    return refuse(e, at, msg);
}

static int refuse_word(struct err *e, const struct at *at, const struct schema_node *n)
{
    struct buf b;
    buf_init(&b, WORDS_MAX_BYTES);
    buf_puts(&b, n->n == 1 || (n->kind == SCHEMA_ONEOF && n->n == 1) ? "expected " : "expected one of ");
    for (unsigned i = 0; i < n->n; i++) {
        const char *w = n->kind == SCHEMA_ONEOF ? schema_variants[n->first + i].tag : schema_texts[n->first + i];
        buf_printf(&b, i ? ", '%s'" : "'%s'", w);
    }
    int rc = refuse(e, at, buf_data(&b));
    buf_done(&b);
    return rc;
}

static bool is_tool_name(const char *s)
{
    size_t n = strlen(s);
    return n >= 1 && n <= 128 && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == n;
}

static const char *kind_text(enum schema_kind k)
{
    switch (k) {
    case SCHEMA_STRING: return "a string";
    case SCHEMA_INT: return "an integer";
    case SCHEMA_NUMBER: return "a number";
    case SCHEMA_BOOL: return "a boolean";
    case SCHEMA_ARRAY: return "an array";
    case SCHEMA_OBJECT: case SCHEMA_MAP: case SCHEMA_ONEOF: return "an object";
    case SCHEMA_ANY: case SCHEMA_ANYOF: case SCHEMA_KIND_MAX_: break;
    }
    return "another value";
}

static bool kind_fits(enum schema_kind k, const json_t *v)
{
    switch (k) {
    case SCHEMA_STRING: return json_is_string(v);
    case SCHEMA_INT: return json_is_integer(v);
    case SCHEMA_NUMBER: return json_is_number(v);
    case SCHEMA_BOOL: return json_is_boolean(v);
    case SCHEMA_ARRAY: return json_is_array(v);
    case SCHEMA_OBJECT: case SCHEMA_MAP: case SCHEMA_ONEOF: return json_is_object(v);
    case SCHEMA_ANY: case SCHEMA_ANYOF: return true;
    case SCHEMA_KIND_MAX_: break;
    }
    return false;
}

static int check(const struct schema_node *n, const json_t *v, const struct at *at, struct err *e);

static int check_string(const struct schema_node *n, const json_t *v, const struct at *at, struct err *e)
{
    const char *s = json_string_value(v);
    size_t bytes = json_string_length(v);
    if (n->n) {
        for (unsigned i = 0; i < n->n; i++)
            if (strcmp(schema_texts[n->first + i], s) == 0)
                return RC_OK;
        return refuse_word(e, at, n);
    }
    if (n->min > 0 && bytes == 0)
        return refuse_number(e, at, "minimum string length is ", n->min, "");
    if (n->max != INT64_MAX && (int64_t)bytes > n->max && (int64_t)utf8_count(s, bytes) > n->max)
        return refuse_number(e, at, "longer than ", n->max, " characters");
    if (n->format && strcmp(n->format, "date-time") == 0) {
        int64_t ms;
        if (rfc3339_parse(s, &ms) != RC_OK)
            return refuse(e, at, "expected an RFC 3339 date and time");
    } else if (n->format && strcmp(n->format, "tool-name") == 0 && !is_tool_name(s)) {
        return refuse(e, at, "expected 1 to 128 characters of A-Z a-z 0-9 _ -");
    }
    return RC_OK;
}

/* All missing properties of one object at once. RC_OK when none is. */
static int check_required(const struct schema_node *n, const json_t *v, const struct at *at, struct err *e)
{
    struct buf b;
    buf_init(&b, MISSING_MAX_BYTES);
    for (unsigned i = 0; i < n->n; i++) {
        const struct schema_prop *p = &schema_props[n->first + i];
        struct at here = { .up = at, .key = p->name };
        if (!p->required || json_object_get(v, p->name))
            continue;
        if (buf_len(&b))
            buf_puts(&b, "; ");
        path_write_all(&here, &b);
        buf_puts(&b, ": field required");
    }
    int rc = buf_len(&b) ? err_set(e, RC_INVALID, "%s", buf_data(&b)) : RC_OK;
    buf_done(&b);
    return rc;
}

static int check_object(const struct schema_node *n, const json_t *v, const struct at *at, struct err *e)
{
    TRY(check_required(n, v, at, e));
    for (unsigned i = 0; i < n->n; i++) {
        const struct schema_prop *p = &schema_props[n->first + i];
        const json_t *x = json_object_get(v, p->name);
        struct at here = { .up = at, .key = p->name };
        if (x)
            TRY(check(&schema_nodes[p->node], x, &here, e));
    }
    return RC_OK;
}

static int check_map(const struct schema_node *n, json_t *v, const struct at *at, struct err *e)
{
    if (n->max != INT64_MAX && (int64_t)json_object_size(v) > n->max)
        return refuse_number(e, at, "more than ", n->max, " entries");
    const char *key;
    json_t *x;
    json_object_foreach(v, key, x) {
        struct at here = { .up = at, .key = key };
        size_t bytes = strlen(key);
        if (n->key_max && bytes == 0)
            return refuse(e, at, "an empty key");
        if (n->key_max && bytes > n->key_max && utf8_count(key, bytes) > n->key_max)
            return refuse_number(e, at, "a key is longer than ", n->key_max, " characters");
        TRY(check(&schema_nodes[n->items], x, &here, e));
    }
    return RC_OK;
}

static const struct schema_variant *variant_by_tag(const struct schema_node *n, const char *tag)
{
    for (unsigned i = 0; i < n->n; i++)
        if (str_eq(schema_variants[n->first + i].tag, tag))
            return &schema_variants[n->first + i];
    return NULL;
}

static int check_oneof(const struct schema_node *n, const json_t *v, const struct at *at, struct err *e)
{
    const json_t *tag = json_object_get(v, n->tag);
    struct at here = { .up = at, .key = n->tag };
    if (!tag)
        return refuse(e, &here, "field required");
    const struct schema_variant *x = json_is_string(tag) ? variant_by_tag(n, json_string_value(tag)) : NULL;
    if (!x)
        return refuse_word(e, &here, n);
    return check(&schema_nodes[x->node], v, at, e);
}

/* The alternatives differ by JSON type; where two share one, the first that passes counts and the last one's complaint is told. */
static int check_anyof(const struct schema_node *n, const json_t *v, const struct at *at, struct err *e)
{
    int rc = RC_OK;
    bool tried = false;
    for (unsigned i = 0; i < n->n; i++) {
        const struct schema_node *x = &schema_nodes[schema_variants[n->first + i].node];
        if (!kind_fits(x->kind, v))
            continue;
        tried = true;
        rc = check(x, v, at, e);
        if (rc == RC_OK)
            return RC_OK;
    }
    if (tried)
        return rc;
    struct buf b;
    buf_init(&b, WORDS_MAX_BYTES);
    buf_puts(&b, "expected ");
    for (unsigned i = 0; i < n->n; i++)
        buf_printf(&b, i ? " or %s" : "%s", kind_text(schema_nodes[schema_variants[n->first + i].node].kind));
    rc = refuse(e, at, buf_data(&b));
    buf_done(&b);
    return rc;
}

static int check(const struct schema_node *n, const json_t *v, const struct at *at, struct err *e)
{
    if (json_is_null(v) && n->nullable)
        return RC_OK;
    if (!kind_fits(n->kind, v)) {
        char msg[48];
        snprintf(msg, sizeof msg, "expected %s", kind_text(n->kind));
        return refuse(e, at, msg);
    }
    switch (n->kind) {
    case SCHEMA_STRING: return check_string(n, v, at, e);
    case SCHEMA_INT:
        if (json_integer_value(v) < n->min)
            return refuse_number(e, at, "must be at least ", n->min, "");
        return json_integer_value(v) > n->max ? refuse_number(e, at, "must be at most ", n->max, "") : RC_OK;
    case SCHEMA_ARRAY: {
        int64_t count = (int64_t)json_array_size(v);
        if (count < n->min)
            return refuse_number(e, at, "expected at least ", n->min, " entries");
        if (count > n->max)
            return refuse_number(e, at, "more than ", n->max, " entries");
        for (size_t i = 0; i < (size_t)count; i++) {
            struct at here = { .up = at, .index = i };
            TRY(check(&schema_nodes[n->items], json_array_get(v, i), &here, e));
        }
        return RC_OK;
    }
    case SCHEMA_OBJECT: return check_object(n, v, at, e);
    case SCHEMA_MAP: return check_map(n, (json_t *)(uintptr_t)v, at, e);
    case SCHEMA_ONEOF: return check_oneof(n, v, at, e);
    case SCHEMA_ANYOF: return check_anyof(n, v, at, e);
    case SCHEMA_ANY: case SCHEMA_NUMBER: case SCHEMA_BOOL: case SCHEMA_KIND_MAX_: break;
    }
    return RC_OK;
}

int shape_check(uint16_t node, const json_t *v, struct err *e)
{
    struct at root = { 0 };
    return check(&schema_nodes[node], v, &root, e);
}

static json_t *prune_object(const struct schema_node *n, json_t *v)
{
    json_t *out = json_object(), *x;
    const char *key;
    json_object_foreach(v, key, x) {
        const struct schema_prop *p = NULL;
        for (unsigned i = 0; i < n->n && !p; i++)
            if (strcmp(schema_props[n->first + i].name, key) == 0)
                p = &schema_props[n->first + i];
        if (p)
            js_set(out, key, shape_prune(p->node, x));
        else if (n->open)
            js_set(out, key, json_incref(x));
    }
    return out;
}

json_t *shape_prune(uint16_t node, json_t *v)
{
    const struct schema_node *n = &schema_nodes[node];
    if (!kind_fits(n->kind, v))      /* a null */
        return json_incref(v);
    switch (n->kind) {
    case SCHEMA_OBJECT: return prune_object(n, v);
    case SCHEMA_ONEOF: {
        const struct schema_variant *x = variant_by_tag(n, json_string_value(json_object_get(v, n->tag)));
        return x ? shape_prune(x->node, v) : json_incref(v);
    }
    case SCHEMA_ANYOF:
        for (unsigned i = 0; i < n->n; i++) {
            uint16_t x = schema_variants[n->first + i].node;
            if (kind_fits(schema_nodes[x].kind, v) && shape_check(x, v, NULL) == RC_OK)
                return shape_prune(x, v);
        }
        return json_incref(v);
    case SCHEMA_ARRAY: {
        json_t *out = json_array();
        for (size_t i = 0; i < json_array_size(v); i++)
            js_push(out, shape_prune(n->items, json_array_get(v, i)));
        return out;
    }
    case SCHEMA_MAP: {
        json_t *out = json_object(), *x;
        const char *key;
        json_object_foreach(v, key, x)
            js_set(out, key, shape_prune(n->items, x));
        return out;
    }
    case SCHEMA_ANY: case SCHEMA_STRING: case SCHEMA_INT: case SCHEMA_NUMBER: case SCHEMA_BOOL: case SCHEMA_KIND_MAX_: break;
    }
    return json_incref(v);
}

const struct schema_op *schema_op_find(const char *id)
{
    for (size_t i = 0; i < schema_ops_n; i++)
        if (strcmp(schema_ops[i].id, id) == 0)
            return &schema_ops[i];
    return NULL;
}
