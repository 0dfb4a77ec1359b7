/* gateway/rpc.c - see rpc.h. A recursive reader with bounded depth; every function returns the place after what it read, or NULL. */
#include "gateway/rpc.h"

#include <string.h>

#include "base/utf8.h"
#include "json/js.h"

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static const char *space(const char *p, const char *end)
{
    while (p < end && is_space(*p))
        p++;
    return p;
}

static const char *string(const char *p, const char *end)      /* p is after the opening quote */
{
    while (p < end && *p != '"') {
        if ((unsigned char)*p < 0x20)
            return NULL;
        if (*p++ != '\\')
            continue;
        if (p == end || !*p || !strchr("\"\\/bfnrtu", *p))
            return NULL;
        if (*p++ != 'u')
            continue;
        for (int i = 0; i < 4; i++, p++)
            if (p == end || !(is_digit(*p) || (*p >= 'a' && *p <= 'f') || (*p >= 'A' && *p <= 'F')))
                return NULL;
    }
    return p < end ? p + 1 : NULL;
}

static const char *digits(const char *p, const char *end)
{
    if (p == end || !is_digit(*p))
        return NULL;
    while (p < end && is_digit(*p))
        p++;
    return p;
}

static const char *number(const char *p, const char *end)
{
    if (p < end && *p == '-')
        p++;
    p = p < end && *p == '0' ? p + 1 : digits(p, end);
    if (p && p < end && *p == '.')
        p = digits(p + 1, end);
    if (p && p < end && (*p == 'e' || *p == 'E')) {
        p++;
        if (p < end && (*p == '+' || *p == '-'))
            p++;
        p = digits(p, end);
    }
    return p;
}

static const char *word(const char *p, const char *end, const char *w)
{
    size_t n = strlen(w);
    return (size_t)(end - p) >= n && memcmp(p, w, n) == 0 ? p + n : NULL;
}

/* Called for each member of the outermost object, or each element of the outermost list (key empty). False ends the reading as a failure. */
struct visitor { bool (*seen)(void *ctx, struct slice key, struct slice value); void *ctx; };

static const char *value(const char *p, const char *end, unsigned depth, const struct visitor *v);

static const char *members(const char *p, const char *end, unsigned depth, const struct visitor *v)
{
    p = space(p, end);
    if (p < end && *p == '}')
        return p + 1;
    for (;;) {
        if (p == end || *p != '"')
            return NULL;
        const char *k = p + 1;
        if (!(p = string(k, end)))
            return NULL;
        struct slice key = { k, (size_t)(p - k) - 1 };
        p = space(p, end);
        if (p == end || *p != ':')
            return NULL;
        const char *from = p = space(p + 1, end);
        if (!(p = value(p, end, depth, NULL)) || (v && !v->seen(v->ctx, key, (struct slice){ from, (size_t)(p - from) })))
            return NULL;
        p = space(p, end);
        if (p < end && *p == '}')
            return p + 1;
        if (p == end || *p != ',')
            return NULL;
        p = space(p + 1, end);
    }
}

static const char *elements(const char *p, const char *end, unsigned depth, const struct visitor *v)
{
    p = space(p, end);
    if (p < end && *p == ']')
        return p + 1;
    for (;;) {
        const char *from = p;
        if (!(p = value(p, end, depth, NULL)) || (v && !v->seen(v->ctx, (struct slice){ NULL, 0 }, (struct slice){ from, (size_t)(p - from) })))
            return NULL;
        p = space(p, end);
        if (p < end && *p == ']')
            return p + 1;
        if (p == end || *p != ',')
            return NULL;
        p = space(p + 1, end);
    }
}

static const char *value(const char *p, const char *end, unsigned depth, const struct visitor *v)
{
    if (p == end || (depth == RPC_DEPTH_MAX && (*p == '{' || *p == '[')))
        return NULL;
    switch (*p) {
    case '{': return members(p + 1, end, depth + 1, v);
    case '[': return elements(p + 1, end, depth + 1, v);
    case '"': return string(p + 1, end);
    case 't': return word(p, end, "true");
    case 'f': return word(p, end, "false");
    case 'n': return word(p, end, "null");
    default:  return number(p, end);
    }
}

static bool whole(const char *p, size_t n, const struct visitor *v)
{
    const char *end = p + n, *from = space(p, end), *after = value(from, end, 0, v);
    return after && space(after, end) == end && utf8_valid_prefix(p, n) == n;
}

/* ---- one message ---- */

struct reading { struct rpc *r; struct slice version; const char *why; };

static bool on_member(void *ctx, struct slice key, struct slice val)
{
    struct reading *s = ctx;
    const struct { const char *name; struct slice *to; } known[] = {
        { "id", &s->r->id }, { "method", &s->r->method }, { "params", &s->r->params }, { "result", &s->r->result }, { "error", &s->r->error },
        { "jsonrpc", &s->version },
    };
    if (memchr(key.p, '\\', key.n)) {
        s->why = "a name with an escape in the message";
        return false;
    }
    for (size_t i = 0; i < COUNT_OF(known); i++) {
        if (!slice_eq(key, known[i].name))
            continue;
        if (known[i].to->p) {
            s->why = "a name occurs twice in the message";
            return false;
        }
        *known[i].to = val;
    }
    return true;
}

static const char *classify(struct rpc *r, struct slice version)
{
    bool id_null = slice_eq(r->id, "null");
    char key[RPC_ID_MAX];
    if (version.p && !slice_eq(version, "\"2.0\""))
        return "\"jsonrpc\" is not \"2.0\"";
    if (r->id.p && !id_null && !rpc_key(r->id, key))
        return "the id is no string or number of a usable length";
    if (!r->method.p) {
        if (!r->result.p == !r->error.p)
            return "neither a method, nor one of result and error";
        if (!r->id.p || (id_null && r->result.p))
            return "an answer without an id";
        r->kind = RPC_RESPONSE;
    } else {
        if (r->method.p[0] != '"' || r->method.n < 3)
            return "the method is no name";
        r->method = (struct slice){ r->method.p + 1, r->method.n - 2 };
        if (r->result.p || r->error.p)
            return "both a method and an answer";
        if (r->params.p && r->params.p[0] != '{' && r->params.p[0] != '[' && !slice_eq(r->params, "null"))
            return "the params are no object";
        if (id_null)
            return "the id of a request must not be null";
        r->kind = r->id.p ? RPC_REQUEST : RPC_NOTIFICATION;
    }
    if (id_null)
        r->id = (struct slice){ NULL, 0 };
    return NULL;
}

int rpc_parse(const char *p, size_t n, struct rpc *ret, bool *ret_syntax, const char **ret_why)
{
    *ret = (struct rpc){ 0 };
    struct reading s = { .r = ret };
    struct visitor v = { on_member, &s };
    const char *at = space(p, p + n);
    *ret_syntax = false;
    if (at == p + n || *at != '{') {
        *ret_syntax = !whole(p, n, NULL);
        *ret_why = *ret_syntax ? "not JSON" : "not an object";
        return RC_INVALID;
    }
    if (!whole(p, n, &v)) {
        *ret_syntax = !s.why;
        *ret_why = s.why ? s.why : "not JSON";
        return RC_INVALID;
    }
    ret->text = (struct slice){ at, n - (size_t)(at - p) };
    while (is_space(ret->text.p[ret->text.n - 1]))
        ret->text.n--;
    *ret_why = classify(ret, s.version);
    return *ret_why ? RC_INVALID : RC_OK;
}

/* ---- parts ---- */

bool rpc_is_batch(const char *p, size_t n)
{
    const char *at = space(p, p + n);
    return at < p + n && *at == '[';
}

struct collect { struct slice *items; size_t n; bool full; };

static bool on_item(void *ctx, struct slice key, struct slice val)
{
    struct collect *c = ctx;
    (void)key;
    if (c->n == RPC_BATCH_MAX) {
        c->full = true;
        return false;
    }
    c->items[c->n++] = val;
    return true;
}

int rpc_items(const char *p, size_t n, struct slice ret[RPC_BATCH_MAX], size_t *ret_n)
{
    struct collect c = { .items = ret };
    struct visitor v = { on_item, &c };
    if (!rpc_is_batch(p, n))
        return RC_INVALID;
    if (!whole(p, n, &v))
        return c.full ? RC_TOO_LARGE : RC_INVALID;
    *ret_n = c.n;
    return RC_OK;
}

struct wanted { const char *key; struct slice found; };

static bool on_wanted(void *ctx, struct slice key, struct slice val)
{
    struct wanted *w = ctx;
    if (slice_eq(key, w->key))
        w->found = val;
    return true;
}

bool rpc_member(struct slice object, const char *key, struct slice *ret)
{
    struct wanted w = { .key = key };
    struct visitor v = { on_wanted, &w };
    if (!object.n || object.p[0] != '{' || !value(object.p, object.p + object.n, 0, &v) || !w.found.p)
        return false;
    *ret = w.found;
    return true;
}

/* Only the value's own text goes through the tree builder: it is short. */
static json_t *decode(struct slice v)
{
    char text[RPC_TEXT_MAX + 2];
    if (v.n == 0 || v.n > sizeof text - 2)
        return NULL;
    text[0] = '[';
    memcpy(text + 1, v.p, v.n);
    text[v.n + 1] = ']';
    json_t *list = NULL;
    if (js_parse(text, v.n + 2, sizeof text, &list, NULL) < 0)
        return NULL;
    json_t *one = json_incref(json_array_get(list, 0));
    json_decref(list);
    return one;
}

bool rpc_key(struct slice v, char out[RPC_ID_MAX])
{
    if (!v.n || !(v.p[0] == '"' || v.p[0] == '-' || is_digit(v.p[0])))
        return false;
    AUTO_JS j = decode(v);
    struct buf b;
    buf_init(&b, RPC_ID_MAX - 1);
    bool fits;
    if (j)
        fits = js_write(j, &b) == RC_OK;
    else
        fits = v.p[0] != '"' && buf_put(&b, v.p, v.n) == RC_OK;      /* a number beyond 64 bits: its own text */
    if (fits) {
        memcpy(out, buf_data(&b), buf_len(&b));
        out[buf_len(&b)] = '\0';
    }
    buf_done(&b);
    return fits;
}

bool rpc_string(struct slice v, char *out, size_t cap)
{
    AUTO_JS j = v.n && v.p[0] == '"' ? decode(v) : NULL;
    return json_is_string(j) && json_string_length(j) < cap && str_copy(out, cap, json_string_value(j));
}
