/* base/str.h - text helpers: slices, bounded copies, strict number parsing. */
#pragma once

#include "base/attr.h"

struct slice { const char *p; size_t n; };
#define SLICE(lit) ((struct slice){ (lit), sizeof(lit) - 1 })
static inline struct slice slice_of(const char *s) { return (struct slice){ s, s ? __builtin_strlen(s) : 0 }; }
bool slice_eq(struct slice a, const char *s);
bool slice_eq_nocase(struct slice a, const char *s);          /* ASCII only */
struct slice slice_trim(struct slice a);                      /* spaces and tabs at both ends */
bool str_eq(const char *a, const char *b);                    /* NULL equals only NULL */
bool str_prefix(const char *s, const char *prefix);
bool str_suffix(const char *s, const char *suffix);
/* Copies with NUL, cutting at `cap`; returns false when it was cut. */
bool str_copy(char *dst, size_t cap, const char *src);
/* Whole string must be a decimal number in [min, max]; else RC_INVALID and *ret untouched. */
MUST_CHECK int str_to_i64(const char *s, int64_t min, int64_t max, int64_t *ret);
MUST_CHECK int slice_to_i64(struct slice s, int64_t min, int64_t max, int64_t *ret);
char *str_dup(const char *s);                                 /* aborts when out of memory; NULL in, NULL out */
char *str_ndup(const char *s, size_t n);
char *str_printf(const char *fmt, ...) PRINTF_LIKE(1, 2);     /* malloc'd; aborts when out of memory */
void *xcalloc(size_t n, size_t size);                         /* aborts when out of memory: for small, bounded things */
void *xrealloc(void *p, size_t n, size_t size);               /* overflow-checked; aborts */
