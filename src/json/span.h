/* json/span.h - walks over a JSON text without decoding it. Values come as the bytes that they are, so that what is not changed can be forwarded byte for
 * byte (a number keeps its digits, a string its escapes). Strict as RFC 8259; nesting to JS_DEPTH_MAX. UTF-8 is not checked. Pure; nothing is allocated.
 * Fuzzed by tests/fuzz/fuzz_span.c. */
#pragma once

#include "base/attr.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/str.h"

struct span_walk { const char *p, *end, *begin; char close; bool first; };

/* Enters `text`, which must be one object ('{') or array ('['). RC_INVALID: it is something else. */
MUST_CHECK int span_enter(struct slice text, char open, struct span_walk *ret, struct err *e);
/* The next member or item. RC_OK; RC_NOT_FOUND: the end (nothing but white space follows); RC_INVALID, with the offset in `e`. `ret_key` (may be NULL) is the
 * raw text between the quotes; for items of an array it is empty. */
MUST_CHECK int span_next(struct span_walk *w, struct slice *ret_key, struct slice *ret_value, struct err *e);
/* Whether a raw key spells `name`, escapes read. */
bool span_key_is(struct slice raw_key, const char *name);
/* The value of member `name` of an object; RC_NOT_FOUND; RC_INVALID: no object, malformed, or `name` is there twice. */
MUST_CHECK int span_member(struct slice object, const char *name, struct slice *ret, struct err *e);
/* Whether a value is the string `text`. */
bool span_is(struct slice value, const char *text);
/* First character of a value tells its kind: '{' '[' '"' 't' 'f' 'n', or a number. '\0' for an empty slice. */
static inline char span_kind(struct slice value) { return value.n ? value.p[0] : '\0'; }
/* Appends the decoded text of a string value. RC_INVALID: no string, or it holds a NUL, half a surrogate pair or invalid UTF-8. */
MUST_CHECK int span_text(struct slice value, struct buf *out);
