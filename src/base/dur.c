#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/dur.h"
#include "base/rc.h"

struct unit { const char *name; uint64_t n; };

static const struct unit dur_units[] = { { "d", 86400000 }, { "h", 3600000 }, { "m", 60000 }, { "s", 1000 }, { "ms", 1 } };
static const struct unit size_units[] = {
    { "TiB", 1ull << 40 }, { "TB", 1000000000000 }, { "GiB", 1ull << 30 }, { "GB", 1000000000 }, { "MiB", 1ull << 20 },
    { "MB", 1000000 }, { "KiB", 1ull << 10 }, { "KB", 1000 }, { "B", 1 },
};

/* Reads one whole number followed by one unit; letters decide where the unit ends. */
static int take(const char **s, const struct unit *units, size_t n_units, bool nocase, size_t *ret_unit, uint64_t *ret)
{
    const char *p = *s;
    uint64_t v = 0;
    if (*p < '0' || *p > '9')
        return RC_INVALID;
    for (; *p >= '0' && *p <= '9'; p++)
        if (__builtin_mul_overflow(v, (uint64_t)10, &v) || __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
            return RC_INVALID;
    size_t n = 0;
    while ((p[n] >= 'a' && p[n] <= 'z') || (p[n] >= 'A' && p[n] <= 'Z'))
        n++;
    for (size_t i = 0; i < n_units; i++) {
        const char *u = units[i].name;
        if (strlen(u) != n || (nocase ? strncasecmp(p, u, n) : strncmp(p, u, n)) != 0)
            continue;
        if (__builtin_mul_overflow(v, units[i].n, &v))
            return RC_INVALID;
        *s = p + n;
        *ret_unit = i;
        *ret = v;
        return RC_OK;
    }
    return RC_INVALID;
}

int dur_parse(const char *s, int64_t *ret_ms)
{
    if (!s)
        return RC_INVALID;
    if (strcmp(s, "0") == 0) {
        *ret_ms = 0;
        return RC_OK;
    }
    int64_t sum = 0;
    size_t least = 0, unit = 0;     /* "1h30m": each unit smaller than the one before */
    do {
        uint64_t v = 0;
        if (take(&s, dur_units + least, COUNT_OF(dur_units) - least, false, &unit, &v) < 0 || v > INT64_MAX ||
            __builtin_add_overflow(sum, (int64_t)v, &sum))
            return RC_INVALID;
        least += unit + 1;
    } while (*s);
    *ret_ms = sum;
    return RC_OK;
}

int size_parse(const char *s, uint64_t *ret_bytes)
{
    if (!s)
        return RC_INVALID;
    if (strcmp(s, "0") == 0) {
        *ret_bytes = 0;
        return RC_OK;
    }
    size_t unit = 0;
    uint64_t v = 0;
    if (take(&s, size_units, COUNT_OF(size_units), true, &unit, &v) < 0 || *s)
        return RC_INVALID;
    *ret_bytes = v;
    return RC_OK;
}

static void format(uint64_t v, const struct unit *units, size_t n, char out[24])
{
    if (v == 0) {
        memcpy(out, "0", 2);
        return;
    }
    size_t best = SIZE_MAX;
    for (size_t i = 0; i < n; i++) {
        char text[32];
        if (v % units[i].n)
            continue;
        int len = snprintf(text, sizeof text, "%" PRIu64 "%s", v / units[i].n, units[i].name);
        if (len > 0 && (size_t)len < best && len < 24) {
            best = (size_t)len;
            memcpy(out, text, best + 1);
        }
    }
}

void dur_format(int64_t ms, char out[24])
{
    if (ms < 0)
        (void)snprintf(out, 24, "%" PRId64 "ms", ms);
    else
        format((uint64_t)ms, dur_units, COUNT_OF(dur_units), out);
}

void size_format(uint64_t bytes, char out[24])
{
    format(bytes, size_units, COUNT_OF(size_units), out);
}
