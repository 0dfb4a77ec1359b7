/* json/js.h - bounded JSON over jansson: limits at the door, typed access, deterministic output.
 * `struct js` is jansson's json_t under a name that we own: reference counted, thread-safe to read when nobody writes. */
#pragma once

#include <jansson.h>

#include "base/attr.h"
#include "base/buf.h"
#include "base/err.h"

#define JS_DEPTH_MAX 64                  /* nesting that a peer may send */
#define JS_BODY_MAX (32 * MIB)           /* the largest document taken from a peer (api.md 1.6) */

#define JS_VALUES_MAX 250000             /* values in one document: up to 250 bytes of memory each */
#define JS_WRITE_DEPTH_MAX 256           /* nesting that js_write() follows */

/* RC_INVALID with line, column and reason; RC_TOO_LARGE over `max` bytes or JS_VALUES_MAX. Duplicate keys, NUL in strings, text after the value and
 * nesting over JS_DEPTH_MAX are refused. The result is a new reference. */
MUST_CHECK int js_parse(const char *p, size_t n, size_t max, json_t **ret, struct err *e);

/* Compact output, keys in insertion order. Equal trees built in the same order give equal bytes.
 * Reals have the fewest digits that read back the same (0.1 stays 0.1). RC_LIMIT, RC_NOMEM from `out`; RC_INVALID: NULL or too deep. */
MUST_CHECK int js_write(const json_t *j, struct buf *out);
char *js_text(const json_t *j);                          /* malloc'd compact text; aborts when out of memory */

/* Borrowed results; NULL or the default when absent or of another type. `path` is dotted: "error.type"; array index by number. */
json_t     *js_at(const json_t *j, const char *path);
const char *js_str(const json_t *j, const char *path);   /* NULL: absent or no string */
int64_t     js_int(const json_t *j, const char *path, int64_t dflt);
bool        js_bool(const json_t *j, const char *path, bool dflt);
bool        js_is_null(const json_t *j, const char *path);   /* present and null */

/* Setters on objects; abort when out of memory; keys and values must be valid UTF-8 (js_set_str replaces what is not). */
void js_set(json_t *obj, const char *key, json_t *take_value);
void js_set_str(json_t *obj, const char *key, const char *s);     /* NULL writes null */
void js_set_strn(json_t *obj, const char *key, const char *s, size_t n);
void js_set_int(json_t *obj, const char *key, int64_t v);
void js_set_bool(json_t *obj, const char *key, bool v);
void js_set_time(json_t *obj, const char *key, int64_t ms);       /* RFC 3339; negative writes null */
void js_push(json_t *arr, json_t *take_value);
json_t *js_string(const char *s, size_t n);                       /* sanitised string value */

static inline void js_decref_(json_t **j) { json_decref(*j); }
#define AUTO_JS __attribute__((cleanup(js_decref_))) json_t *

/* Streaming text of one JSON string literal (with quotes) from any bytes; invalid UTF-8 is replaced. For large payloads. */
int js_write_string(struct buf *out, const char *p, size_t n);
