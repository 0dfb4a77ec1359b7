#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/rc.h"
#include "base/str.h"

static void out_of_memory(void)
{
    static const char text[] = "out of memory\n";
    ssize_t n = write(STDERR_FILENO, text, sizeof text - 1);
    (void)n;
    abort();
}

static inline char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c | 0x20) : c; }

bool slice_eq(struct slice a, const char *s)
{
    return s && a.n == strlen(s) && (a.n == 0 || memcmp(a.p, s, a.n) == 0);
}

bool slice_eq_nocase(struct slice a, const char *s)
{
    if (!s || a.n != strlen(s))
        return false;
    for (size_t i = 0; i < a.n; i++)
        if (lower(a.p[i]) != lower(s[i]))
            return false;
    return true;
}

struct slice slice_trim(struct slice a)
{
    while (a.n && (a.p[0] == ' ' || a.p[0] == '\t'))
        a.p++, a.n--;
    while (a.n && (a.p[a.n - 1] == ' ' || a.p[a.n - 1] == '\t'))
        a.n--;
    return a;
}

bool str_eq(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

bool str_prefix(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

bool str_suffix(const char *s, const char *suffix)
{
    size_t n = strlen(s), k = strlen(suffix);
    return k <= n && memcmp(s + n - k, suffix, k) == 0;
}

bool str_copy(char *dst, size_t cap, const char *src)
{
    if (!cap)
        return false;
    size_t n = strnlen(src, cap);
    bool whole = n < cap;
    if (!whole)
        n = cap - 1;
    memcpy(dst, src, n);
    dst[n] = '\0';
    return whole;
}

int slice_to_i64(struct slice s, int64_t min, int64_t max, int64_t *ret)
{
    bool neg = s.n && s.p[0] == '-';
    size_t i = neg;
    if (i == s.n)
        return RC_INVALID;
    int64_t v = 0;      /* collected below zero, so that INT64_MIN fits */
    for (; i < s.n; i++) {
        if (s.p[i] < '0' || s.p[i] > '9')
            return RC_INVALID;
        if (__builtin_mul_overflow(v, (int64_t)10, &v) || __builtin_sub_overflow(v, (int64_t)(s.p[i] - '0'), &v))
            return RC_INVALID;
    }
    if (!neg) {
        if (v == INT64_MIN)
            return RC_INVALID;
        v = -v;
    }
    if (v < min || v > max)
        return RC_INVALID;
    *ret = v;
    return RC_OK;
}

int str_to_i64(const char *s, int64_t min, int64_t max, int64_t *ret)
{
    return s ? slice_to_i64(slice_of(s), min, max, ret) : RC_INVALID;
}

char *str_ndup(const char *s, size_t n)
{
    if (!s)
        return NULL;
    char *p = n < SIZE_MAX ? malloc(n + 1) : NULL;
    if (!p)
        out_of_memory();
    memcpy(p, s, n);
    p[n] = '\0';
    return p;
}

char *str_dup(const char *s) { return s ? str_ndup(s, strlen(s)) : NULL; }

char *str_printf(const char *fmt, ...)
{
    char *p = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&p, fmt, ap);
    va_end(ap);
    if (n < 0)
        out_of_memory();
    return p;
}

void *xcalloc(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size ? size : 1);
    if (!p)
        out_of_memory();
    return p;
}

void *xrealloc(void *p, size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes))
        out_of_memory();
    void *q = realloc(p, bytes ? bytes : 1);
    if (!q)
        out_of_memory();
    return q;
}
