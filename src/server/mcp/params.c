/* server/mcp/params.c - see params.h */
#include "server/mcp/params.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/base64.h"
#include "base/str.h"

#define MARK "x-mcp-header"
#define DEPTH_MAX 8                      /* of objects inside objects that may hold a marked argument */

static bool is_token(const char *s)
{
    return s[0] && s[strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~")] == '\0';
}

/* ---- the rules ---- */
struct check { const char *names[PARAMS_MAX]; size_t n; struct err *e; };

static int take_mark(struct check *c, const json_t *schema, const json_t *mark)
{
    const char *name = json_string_value(mark), *type = js_str(schema, "type");
    if (!name || strlen(name) != json_string_length(mark) || !is_token(name))
        return err_set(c->e, RC_INVALID, "a name that cannot be part of a header's name");
    if (!type || (!str_eq(type, "string") && !str_eq(type, "integer") && !str_eq(type, "boolean")))
        return err_set(c->e, RC_INVALID, "'%s' is on something that is no text, integer or boolean", name);
    for (size_t i = 0; i < c->n; i++)
        if (strcasecmp(c->names[i], name) == 0)
            return err_set(c->e, RC_INVALID, "'%s' is there twice", name);
    if (c->n == PARAMS_MAX)
        return err_set(c->e, RC_INVALID, "more than %d of them", PARAMS_MAX);
    c->names[c->n++] = name;
    return RC_OK;
}

/* Values of these keys are no schemas but data, or names of schemas. */
static bool holds_data(const char *key) { return str_eq(key, "default") || str_eq(key, "const") || str_eq(key, "enum") || str_eq(key, "examples"); }
static bool holds_names(const char *key)
{
    return str_eq(key, "properties") || str_eq(key, "patternProperties") || str_eq(key, "$defs") || str_eq(key, "definitions") || str_eq(key, "dependentSchemas");
}

/* `reached`: from the top by "properties" alone. The JSON reader has limited how deep this can go. */
static int walk_check(struct check *c, const json_t *j, bool reached, int depth)
{
    const char *key, *name;
    json_t *v, *sub;
    size_t i;
    json_array_foreach(j, i, v)
        TRY(walk_check(c, v, false, depth));
    json_object_foreach((json_t *)(uintptr_t)j, key, v) {
        if (str_eq(key, MARK)) {
            if (!reached || depth == 0 || depth > DEPTH_MAX)
                return err_set(c->e, RC_INVALID, "one is at a place that no plain argument has");
            TRY(take_mark(c, j, v));
        } else if (holds_names(key) && json_is_object(v)) {
            json_object_foreach(v, name, sub)
                TRY(walk_check(c, sub, reached && str_eq(key, "properties"), depth + 1));
        } else if (!holds_data(key)) {
            TRY(walk_check(c, v, false, depth));
        }
    }
    return RC_OK;
}

int params_check(const json_t *schema, struct err *e)
{
    struct check c = { .e = e };
    return walk_check(&c, schema, true, 0);
}

/* ---- a call's headers ---- */
char *params_value(const char *s)
{
    size_t n = strlen(s);
    bool plain = n == 0 || (s[0] != ' ' && s[n - 1] != ' ' && !str_prefix(s, "=?base64?"));
    for (size_t i = 0; i < n; i++)
        plain &= s[i] >= 0x20 && s[i] <= 0x7e;
    if (plain)
        return str_dup(s);
    struct buf b;
    buf_init(&b, 64 * KIB);
    (void)buf_puts(&b, "=?base64?");
    (void)base64_encode(&b, s, n);
    (void)buf_puts(&b, "?=");
    char *ret = buf_ok(&b) ? buf_take(&b, &n) : NULL;
    buf_done(&b);
    return ret;
}

static void walk_make(struct params *p, const json_t *schema, const json_t *arguments, int depth)
{
    const char *key;
    json_t *prop;
    json_object_foreach(json_object_get(schema, "properties"), key, prop) {
        const json_t *v = json_object_get(arguments, key);
        const char *token = js_str(prop, MARK);
        char number[32];
        if (json_is_object(v) && depth < DEPTH_MAX)
            walk_make(p, prop, v, depth + 1);
        if (!token || !is_token(token) || p->n == PARAMS_MAX)
            continue;
        const char *text = json_is_string(v) ? json_string_value(v) : json_is_true(v) ? "true" : json_is_false(v) ? "false" : NULL;
        if (json_is_integer(v)) {
            (void)snprintf(number, sizeof number, "%lld", (long long)json_integer_value(v));
            text = number;
        } else if (json_is_real(v) && fabs(json_real_value(v)) < 9e15 && trunc(json_real_value(v)) == json_real_value(v)) {    /* 42.0 is an integer, too */
            (void)snprintf(number, sizeof number, "%lld", (long long)json_real_value(v));
            text = number;
        }
        if (!text || strlen(text) > PARAMS_VALUE_MAX)
            continue;
        AUTO_FREE char *value = params_value(text);
        if (value)
            p->lines[p->n++] = str_printf("mcp-param-%s: %s", token, value);
    }
}

void params_make(struct params *p, const json_t *schema, const json_t *arguments) { walk_make(p, schema, arguments, 1); }

void params_done(struct params *p)
{
    for (size_t i = 0; i < p->n; i++)
        free(p->lines[i]);
    p->n = 0;
}
