#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/rc.h"

#define DAY_S ((int64_t)86400)
#define YEAR_0_MS (-62167219200000)            /* 0000-01-01T00:00:00.000Z */
#define YEAR_9999_MS 253402300799999           /* 9999-12-31T23:59:59.999Z */

static int64_t (*_Atomic fake_now)(void);
static int64_t (*_Atomic fake_mono)(void);

static int64_t read_us(clockid_t id)
{
    struct timespec ts;
    (void)clock_gettime(id, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

int64_t clock_now_ms(void)
{
    int64_t (*fake)(void) = atomic_load_explicit(&fake_now, memory_order_acquire);
    return fake ? fake() : read_us(CLOCK_REALTIME) / 1000;
}

int64_t clock_mono_us(void)
{
    int64_t (*fake)(void) = atomic_load_explicit(&fake_mono, memory_order_acquire);
    return fake ? fake() : read_us(CLOCK_MONOTONIC);
}

int64_t clock_mono_ms(void) { return clock_mono_us() / 1000; }
void clock_set_fake(int64_t (*now_ms)(void)) { atomic_store_explicit(&fake_now, now_ms, memory_order_release); }
void clock_set_fake_mono(int64_t (*now_us)(void)) { atomic_store_explicit(&fake_mono, now_us, memory_order_release); }

/* Days since 1970-01-01 of a date of the proleptic Gregorian calendar, and back (H. Hinnant, "chrono-compatible date algorithms"). */
static int64_t days_of(int64_t y, int64_t m, int64_t d)
{
    y -= m <= 2;
    int64_t era = (y >= 0 ? y : y - 399) / 400, yoe = y - era * 400;
    int64_t doy = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
    return era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

static void date_of(int64_t days, int64_t *y, int64_t *m, int64_t *d)
{
    days += 719468;
    int64_t era = (days >= 0 ? days : days - 146096) / 146097, doe = days - era * 146097;
    int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
    *d = doy - (153 * mp + 2) / 5 + 1;
    *m = mp + (mp < 10 ? 3 : -9);
    *y = yoe + era * 400 + (*m <= 2);
}

static char *digits(char *p, int64_t v, int n)
{
    for (int i = n - 1; i >= 0; i--, v /= 10)
        p[i] = (char)('0' + v % 10);
    return p + n;
}

void rfc3339_format(int64_t ms, char out[RFC3339_MAX])
{
    ms = ms < YEAR_0_MS ? YEAR_0_MS : ms > YEAR_9999_MS ? YEAR_9999_MS : ms;
    int64_t s = ms / 1000, frac = ms % 1000;
    if (frac < 0)
        frac += 1000, s--;
    int64_t days = s / DAY_S, sod = s % DAY_S, y, m, d;
    if (sod < 0)
        sod += DAY_S, days--;
    date_of(days, &y, &m, &d);
    char *p = digits(out, y, 4);
    *p++ = '-'; p = digits(p, m, 2);
    *p++ = '-'; p = digits(p, d, 2);
    *p++ = 'T'; p = digits(p, sod / 3600, 2);
    *p++ = ':'; p = digits(p, sod / 60 % 60, 2);
    *p++ = ':'; p = digits(p, sod % 60, 2);
    *p++ = '.'; p = digits(p, frac, 3);
    *p++ = 'Z';
    *p = '\0';
}

/* Takes exactly n digits in [min, max]. */
static bool number(const char **p, int n, int64_t min, int64_t max, int64_t *ret)
{
    int64_t v = 0;
    for (int i = 0; i < n; i++, (*p)++) {
        if (**p < '0' || **p > '9')
            return false;
        v = v * 10 + (**p - '0');
    }
    *ret = v;
    return v >= min && v <= max;
}

static bool literal(const char **p, const char *any)
{
    if (!**p || !strchr(any, **p))
        return false;
    (*p)++;
    return true;
}

static bool zone(const char **p, int64_t *ret_s)
{
    *ret_s = 0;
    if (literal(p, "Zz"))
        return true;
    int64_t sign = **p == '-' ? -1 : 1, h, m;
    if (!literal(p, "+-") || !number(p, 2, 0, 23, &h) || !literal(p, ":") || !number(p, 2, 0, 59, &m))
        return false;
    *ret_s = sign * (h * 3600 + m * 60);
    return true;
}

int rfc3339_parse(const char *s, int64_t *ret_ms)
{
    int64_t y, mo, d, h, mi, sec, off, ms = 0;
    const char *p = s;
    if (!p || !number(&p, 4, 0, 9999, &y) || !literal(&p, "-") || !number(&p, 2, 1, 12, &mo) || !literal(&p, "-") ||
        !number(&p, 2, 1, 31, &d) || !literal(&p, "Tt ") || !number(&p, 2, 0, 23, &h) || !literal(&p, ":") ||
        !number(&p, 2, 0, 59, &mi) || !literal(&p, ":") || !number(&p, 2, 0, 60, &sec))
        return RC_INVALID;
    static const int8_t month[] = { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 };
    bool leap = (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
    if (d > month[mo - 1] + (mo == 2 && leap))
        return RC_INVALID;
    if (literal(&p, ".")) {
        if (*p < '0' || *p > '9')
            return RC_INVALID;
        for (int64_t unit = 100; *p >= '0' && *p <= '9'; p++, unit /= 10)      /* digits under a millisecond are dropped */
            ms += unit * (*p - '0');
    }
    if (!zone(&p, &off) || *p)
        return RC_INVALID;
    *ret_ms = ((days_of(y, mo, d) * DAY_S) + h * 3600 + mi * 60 + sec - off) * 1000 + ms;
    return RC_OK;
}
