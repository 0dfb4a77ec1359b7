/* worker/backoff.c - see backoff.h */
#include "worker/backoff.h"

const struct backoff backoff_poll = { .first_ms = 2000, .max_ms = 60000, .low_percent = 50 };
const struct backoff backoff_stream = { .first_ms = 500, .max_ms = 10000, .low_percent = 50 };
const struct backoff backoff_result = { .first_ms = 1000, .max_ms = 30000, .low_percent = 75 };

int64_t backoff_next(struct backoff *b, double unit)
{
    int64_t step = b->first_ms;
    for (int i = 0; i < b->n && step < b->max_ms; i++)
        step *= 2;
    if (step > b->max_ms)
        step = b->max_ms;
    else
        b->n++;
    int64_t low = step * b->low_percent / 100;
    return low + (int64_t)(unit * (double)(step - low));
}

int64_t retry_after_ms(const struct http_head *h)
{
    static const struct { const char *name; int64_t unit_ms; } names[] = { { "retry-after-ms", 1 }, { "retry-after", 1000 } };
    for (size_t i = 0; h && i < COUNT_OF(names); i++) {
        const struct slice *v = http_find(h, names[i].name);
        int64_t n = 0;
        if (!v || slice_to_i64(*v, 0, INT32_MAX, &n) < 0)       /* the date form is not worth a parser: our own backoff does */
            continue;
        n *= names[i].unit_ms;
        return n < RETRY_AFTER_MAX_MS ? n : RETRY_AFTER_MAX_MS;
    }
    return -1;
}

enum api_outcome api_outcome_of(int status, const struct http_head *h)
{
    if (status >= 200 && status < 300)
        return API_OK;
    const struct slice *v = h ? http_find(h, "x-should-retry") : NULL;
    if (v && slice_eq_nocase(*v, "true"))
        return API_RETRY;
    if (v && slice_eq_nocase(*v, "false"))
        return API_FATAL;
    if (status == 408 || status == 409 || status == 429 || status >= 500 || status < 200)
        return API_RETRY;
    return API_FATAL;
}
