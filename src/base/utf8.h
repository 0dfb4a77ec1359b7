/* base/utf8.h - UTF-8 checks. */
#pragma once

#include "base/attr.h"
struct buf;

/* Length of the valid prefix; == n when all of it is valid (RFC 3629: no surrogates, no overlong forms). */
size_t utf8_valid_prefix(const char *p, size_t n);
size_t utf8_count(const char *p, size_t n);               /* code points of valid text */
/* Appends to `out`, replacing each invalid sequence and each NUL by U+FFFD. */
int    utf8_sanitize(struct buf *out, const char *p, size_t n);
