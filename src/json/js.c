#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "base/utf8.h"
#include "json/js.h"

#define ERROR_TOKEN_MAX 160     /* of jansson's text, which quotes the input */

static void must(bool ok)
{
    if (!ok)
        abort();
}

/* What jansson would find too late or not at all: nesting and the number of values, before anything is built or recurses. Strings are
 * skipped by quotes alone; whatever else is wrong is left to the parser. */
static int prescan(const char *p, size_t n, struct err *e)
{
    size_t depth = 0, values = 0, line = 1, line_start = 0;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = p[i];
        if (c == '\n') {
            line++;
            line_start = i + 1;
        } else if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > JS_DEPTH_MAX)
                return err_set(e, RC_INVALID, "invalid JSON at line %zu column %zu: nested deeper than %d", line, i - line_start + 1,
                               JS_DEPTH_MAX);
            values++;
        } else if (c == ']' || c == '}') {
            depth -= depth > 0;
        } else if (c == ',') {
            values++;
        } else if (c == '\0') {
            return err_set(e, RC_INVALID, "invalid JSON at line %zu column %zu: NUL byte", line, i - line_start + 1);
        }
        if (values > JS_VALUES_MAX)
            return err_set(e, RC_TOO_LARGE, "JSON holds more than %d values", JS_VALUES_MAX);
    }
    return RC_OK;
}

int js_parse(const char *p, size_t n, size_t max, json_t **ret, struct err *e)
{
    json_error_t je;
    if (n > max)
        return err_set(e, RC_TOO_LARGE, "JSON of %zu bytes is larger than the limit of %zu", n, max);
    if (n == 0)
        return err_set(e, RC_INVALID, "invalid JSON at line 1 column 1: empty text");
    TRY(prescan(p, n, e));
    json_t *j = json_loadb(p, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &je);
    if (!j && json_error_code(&je) == json_error_out_of_memory)
        return err_set(e, RC_NOMEM, "out of memory while reading JSON");
    if (!j)
        return err_set(e, RC_INVALID, "invalid JSON at line %d column %d: %.*s", je.line, je.column, ERROR_TOKEN_MAX, je.text);
    *ret = j;
    return RC_OK;
}

/* `run` bytes that need no escape are copied at once. The text is valid UTF-8 without NUL. */
static int put_escaped(struct buf *out, const char *p, size_t n)
{
    size_t run = 0;
    TRY(buf_putc(out, '"'));
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)p[i];
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        TRY(buf_put(out, p + run, i - run));
        run = i + 1;
        switch (c) {
        case '"':  TRY(buf_put(out, "\\\"", 2)); break;
        case '\\': TRY(buf_put(out, "\\\\", 2)); break;
        case '\n': TRY(buf_put(out, "\\n", 2)); break;
        case '\r': TRY(buf_put(out, "\\r", 2)); break;
        case '\t': TRY(buf_put(out, "\\t", 2)); break;
        default:   TRY(buf_printf(out, "\\u%04x", c));
        }
    }
    TRY(buf_put(out, p + run, n - run));
    return buf_putc(out, '"');
}

static bool is_clean(const char *p, size_t n)
{
    return n == 0 || (utf8_valid_prefix(p, n) == n && !memchr(p, '\0', n));
}

int js_write_string(struct buf *out, const char *p, size_t n)
{
    if (is_clean(p, n))
        return put_escaped(out, p, n);
    struct buf clean;
    buf_init(&clean, SIZE_MAX);
    int rc = utf8_sanitize(&clean, p, n);
    if (rc == RC_OK)
        rc = put_escaped(out, buf_data(&clean), buf_len(&clean));
    else
        out->failed = true;
    buf_done(&clean);
    return rc;
}

/* The shortest of 15 to 17 digits that reads back as the same number; always with a point or exponent, so that it stays a real. */
static int put_real(struct buf *out, double v)
{
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        (void)snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    TRY(buf_puts(out, text));
    return strpbrk(text, ".en") ? RC_OK : buf_puts(out, ".0");
}

static int put_value(const json_t *j, struct buf *out, int depth)
{
    if (depth > JS_WRITE_DEPTH_MAX) {       /* a tree of our own making that contains itself */
        out->failed = true;
        return RC_INVALID;
    }
    switch (json_typeof(j)) {
    case JSON_OBJECT: {
        bool first = true;
        json_t *obj = (json_t *)(uintptr_t)j;       /* jansson's iterators do not take const, but only read */
        TRY(buf_putc(out, '{'));
        for (void *it = json_object_iter(obj); it; it = json_object_iter_next(obj, it)) {
            const char *key = json_object_iter_key(it);
            if (!first)
                TRY(buf_putc(out, ','));
            first = false;
            TRY(js_write_string(out, key, json_object_iter_key_len(it)));
            TRY(buf_putc(out, ':'));
            TRY(put_value(json_object_iter_value(it), out, depth + 1));
        }
        return buf_putc(out, '}');
    }
    case JSON_ARRAY:
        TRY(buf_putc(out, '['));
        for (size_t i = 0; i < json_array_size(j); i++) {
            if (i)
                TRY(buf_putc(out, ','));
            TRY(put_value(json_array_get(j, i), out, depth + 1));
        }
        return buf_putc(out, ']');
    case JSON_STRING:
        return js_write_string(out, json_string_value(j), json_string_length(j));
    case JSON_INTEGER:
        return buf_printf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(j));
    case JSON_REAL:
        return put_real(out, json_real_value(j));
    case JSON_TRUE:
        return buf_puts(out, "true");
    case JSON_FALSE:
        return buf_puts(out, "false");
    case JSON_NULL:
        break;
    }
    return buf_puts(out, "null");
}

int js_write(const json_t *j, struct buf *out)
{
    return j ? put_value(j, out, 0) : RC_INVALID;
}

char *js_text(const json_t *j)
{
    struct buf b;
    buf_init(&b, SIZE_MAX);
    must(js_write(j, &b) == RC_OK);
    char *s = buf_take(&b, NULL);
    must(s != NULL);
    return s;
}

json_t *js_at(const json_t *j, const char *path)
{
    while (j && path && *path) {
        size_t n = strcspn(path, ".");
        int64_t index;
        if (json_is_object(j))
            j = json_object_getn(j, path, n);
        else if (json_is_array(j) && slice_to_i64((struct slice){ path, n }, 0, INT32_MAX, &index) == RC_OK)
            j = json_array_get(j, (size_t)index);
        else
            return NULL;
        path += n + (path[n] == '.');
    }
    return (json_t *)(uintptr_t)j;
}

const char *js_str(const json_t *j, const char *path) { return json_string_value(js_at(j, path)); }

int64_t js_int(const json_t *j, const char *path, int64_t dflt)
{
    const json_t *v = js_at(j, path);
    return json_is_integer(v) ? json_integer_value(v) : dflt;
}

bool js_bool(const json_t *j, const char *path, bool dflt)
{
    const json_t *v = js_at(j, path);
    return json_is_boolean(v) ? json_is_true(v) : dflt;
}

bool js_is_null(const json_t *j, const char *path) { return json_is_null(js_at(j, path)); }

void js_set(json_t *obj, const char *key, json_t *take_value) { must(json_object_set_new(obj, key, take_value) == 0); }

json_t *js_string(const char *s, size_t n)
{
    json_t *j;
    if (is_clean(s, n)) {
        j = json_stringn_nocheck(n ? s : "", n);
    } else {
        struct buf clean;
        buf_init(&clean, SIZE_MAX);
        must(utf8_sanitize(&clean, s, n) == RC_OK);
        j = json_stringn_nocheck(buf_data(&clean), buf_len(&clean));
        buf_done(&clean);
    }
    must(j != NULL);
    return j;
}

void js_set_strn(json_t *obj, const char *key, const char *s, size_t n) { js_set(obj, key, s ? js_string(s, n) : json_null()); }
void js_set_str(json_t *obj, const char *key, const char *s) { js_set_strn(obj, key, s, s ? strlen(s) : 0); }
void js_set_int(json_t *obj, const char *key, int64_t v) { js_set(obj, key, json_integer(v)); }
void js_set_bool(json_t *obj, const char *key, bool v) { js_set(obj, key, json_boolean(v)); }

void js_set_time(json_t *obj, const char *key, int64_t ms)
{
    char text[RFC3339_MAX];
    if (ms >= 0)
        rfc3339_format(ms, text);
    js_set_str(obj, key, ms >= 0 ? text : NULL);
}

void js_push(json_t *arr, json_t *take_value) { must(json_array_append_new(arr, take_value) == 0); }
