/* json/span.c - see span.h. */
#include "json/span.h"

#include <string.h>

#include "base/utf8.h"
#include "json/js.h"

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

static const char *space(const char *p, const char *end)
{
    while (p < end && is_space(*p))
        p++;
    return p;
}

static bool is_hex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

/* `p` is at the opening quote; the place after the closing one, or NULL. */
static const char *skip_string(const char *p, const char *end)
{
    for (p++; p < end; p++) {
        unsigned char c = (unsigned char)*p;
        if (c == '"')
            return p + 1;
        if (c < 0x20)
            return NULL;
        if (c != '\\')
            continue;
        if (++p == end)
            return NULL;
        if (*p == 'u') {
            if (end - p < 5 || !is_hex(p[1]) || !is_hex(p[2]) || !is_hex(p[3]) || !is_hex(p[4]))
                return NULL;
            p += 4;
        } else if (!*p || !strchr("\"\\/bfnrt", *p)) {
            return NULL;
        }
    }
    return NULL;
}

static const char *skip_digits(const char *p, const char *end)
{
    const char *from = p;
    while (p < end && *p >= '0' && *p <= '9')
        p++;
    return p == from ? NULL : p;
}

static const char *skip_number(const char *p, const char *end)
{
    if (*p == '-')
        p++;
    if (p < end && *p == '0')
        p++;
    else if (!(p = skip_digits(p, end)))
        return NULL;
    if (p < end && *p == '.' && !(p = skip_digits(p + 1, end)))
        return NULL;
    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;
        if (p < end && (*p == '+' || *p == '-'))
            p++;
        p = skip_digits(p, end);
    }
    return p;
}

static const char *skip_word(const char *p, const char *end, const char *word)
{
    size_t n = strlen(word);
    return (size_t)(end - p) >= n && memcmp(p, word, n) == 0 ? p + n : NULL;
}

static const char *skip_scalar(const char *p, const char *end)
{
    switch (*p) {
    case '"': return skip_string(p, end);
    case 't': return skip_word(p, end, "true");
    case 'f': return skip_word(p, end, "false");
    case 'n': return skip_word(p, end, "null");
    default: return *p == '-' || (*p >= '0' && *p <= '9') ? skip_number(p, end) : NULL;
    }
}

/* After a key: the colon. */
static const char *skip_colon(const char *p, const char *end)
{
    p = space(p, end);
    return p < end && *p == ':' ? space(p + 1, end) : NULL;
}

/* One value; where it went wrong goes to *at. Without recursion: `kinds` has the closing bracket of each level. */
static const char *skip_value(const char *p, const char *end, const char **at)
{
    char kinds[JS_DEPTH_MAX];
    size_t depth = 0;
    for (;;) {
        /* a value begins at p */
        *at = p;
        if (p == end)
            return NULL;
        if (*p == '{' || *p == '[') {
            if (depth == JS_DEPTH_MAX)
                return NULL;
            char close = kinds[depth++] = *p == '{' ? '}' : ']';
            p = space(p + 1, end);
            if (p < end && *p == close) {
                p++;
                depth--;
            } else if (close == '}') {
                goto key;
            } else {
                continue;
            }
        } else if (!(p = skip_scalar(p, end))) {
            return NULL;
        }
        /* a value has ended at p */
        for (;;) {
            if (depth == 0)
                return p;
            p = space(p, end);
            *at = p;
            if (p < end && *p == kinds[depth - 1]) {
                p++;
                depth--;
                continue;
            }
            if (p == end || *p != ',')
                return NULL;
            p = space(p + 1, end);
            break;
        }
        if (kinds[depth - 1] == ']')
            continue;
    key:
        *at = p;
        if (p == end || *p != '"' || !(p = skip_string(p, end)) || !(p = skip_colon(p, end)))
            return NULL;
    }
}

static int invalid(const struct span_walk *w, const char *at, struct err *e)
{
    return err_set(e, RC_INVALID, "not valid JSON at offset %zu", (size_t)(at - w->begin));
}

int span_enter(struct slice text, char open, struct span_walk *ret, struct err *e)
{
    struct span_walk w = { .p = text.p, .end = text.p + text.n, .begin = text.p, .close = open == '{' ? '}' : ']', .first = true };
    w.p = space(w.p, w.end);
    if (w.p == w.end || *w.p != open)
        return err_set(e, RC_INVALID, "expected %s", open == '{' ? "an object" : "an array");
    w.p++;
    *ret = w;
    return RC_OK;
}

int span_next(struct span_walk *w, struct slice *ret_key, struct slice *ret_value, struct err *e)
{
    const char *p = space(w->p, w->end), *at = p;
    if (p == w->end)
        return invalid(w, p, e);
    if (*p == w->close) {
        w->p = p;
        p = space(p + 1, w->end);
        return p == w->end ? RC_NOT_FOUND : invalid(w, p, e);
    }
    if (!w->first) {
        if (*p != ',')
            return invalid(w, p, e);
        p = space(p + 1, w->end);
    }
    struct slice key = { "", 0 };
    if (w->close == '}') {
        const char *from = p;
        if (p == w->end || *p != '"' || !(p = skip_string(p, w->end)))
            return invalid(w, from, e);
        key = (struct slice){ from + 1, (size_t)(p - from) - 2 };
        at = p;
        if (!(p = skip_colon(p, w->end)))
            return invalid(w, at, e);
    }
    const char *from = p;
    if (!(p = skip_value(p, w->end, &at)))
        return invalid(w, at, e);
    w->p = p;
    w->first = false;
    if (ret_key)
        *ret_key = key;
    *ret_value = (struct slice){ from, (size_t)(p - from) };
    return RC_OK;
}

static int hex4(const char *p)
{
    int v = 0;
    for (int i = 0; i < 4; i++)
        v = v * 16 + (p[i] <= '9' ? p[i] - '0' : (p[i] | 0x20) - 'a' + 10);
    return v;
}

static void put_utf8(struct buf *out, unsigned c)
{
    char b[4];
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = { 0, 0, 0xC0, 0xE0, 0xF0 };
    for (size_t i = n; i-- > 1; c >>= 6)
        b[i] = (char)(0x80 | (c & 0x3F));
    b[0] = (char)(lead[n] | c);
    (void)buf_put(out, b, n);
}

/* [p, end) is the raw text of a string that skip_string() has passed. */
static int unescape(const char *p, const char *end, struct buf *out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    while (p < end) {
        const char *slash = memchr(p, '\\', (size_t)(end - p));
        size_t plain = slash ? (size_t)(slash - p) : (size_t)(end - p);
        (void)buf_put(out, p, plain);
        p += plain;
        if (p == end)
            break;
        if (p[1] != 'u') {
            (void)buf_putc(out, to[strchr(from, p[1]) - from]);
            p += 2;
            continue;
        }
        unsigned c = (unsigned)hex4(p + 2);
        p += 6;
        if (c >= 0xD800 && c < 0xDC00 && end - p >= 6 && p[0] == '\\' && p[1] == 'u') {
            unsigned low = (unsigned)hex4(p + 2);
            if (low < 0xDC00 || low > 0xDFFF)
                return RC_INVALID;
            c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
            p += 6;
        } else if (c >= 0xD800 && c < 0xE000) {
            return RC_INVALID;
        }
        if (c == 0)
            return RC_INVALID;
        put_utf8(out, c);
    }
    return buf_ok(out) ? RC_OK : RC_LIMIT;
}

int span_text(struct slice value, struct buf *out)
{
    if (span_kind(value) != '"' || value.n < 2)
        return RC_INVALID;
    size_t before = buf_len(out);
    TRY(unescape(value.p + 1, value.p + value.n - 1, out));
    size_t n = buf_len(out) - before;
    return utf8_valid_prefix(buf_data(out) + before, n) == n ? RC_OK : RC_INVALID;
}

bool span_key_is(struct slice raw, const char *name)
{
    if (!raw.n || !memchr(raw.p, '\\', raw.n))
        return slice_eq(raw, name);
    struct buf b;
    buf_init(&b, raw.n + 1);
    bool same = unescape(raw.p, raw.p + raw.n, &b) == RC_OK && str_eq(buf_data(&b), name);
    buf_done(&b);
    return same;
}

bool span_is(struct slice value, const char *text)
{
    return span_kind(value) == '"' && value.n >= 2 && span_key_is((struct slice){ value.p + 1, value.n - 2 }, text);
}

int span_member(struct slice object, const char *name, struct slice *ret, struct err *e)
{
    struct span_walk w;
    struct slice key, value, found = { NULL, 0 };
    int rc;
    TRY(span_enter(object, '{', &w, e));
    while ((rc = span_next(&w, &key, &value, e)) == RC_OK) {
        if (!span_key_is(key, name))
            continue;
        if (found.p)
            return err_set(e, RC_INVALID, "\"%s\" is there twice", name);
        found = value;
    }
    if (rc != RC_NOT_FOUND)
        return rc;
    if (!found.p)
        return RC_NOT_FOUND;
    *ret = found;
    return RC_OK;
}
