#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>

#include "metrics/metrics.h"

/* Upper bounds, with the text that Prometheus shows. */
static const struct { int64_t us; const char *le; } bounds[METRIC_BUCKETS] = {
    { 100, "0.0001" },    { 250, "0.00025" },   { 1000, "0.001" },    { 2500, "0.0025" },
    { 5000, "0.005" },    { 10000, "0.01" },    { 25000, "0.025" },   { 50000, "0.05" },
    { 100000, "0.1" },    { 250000, "0.25" },   { 500000, "0.5" },    { 1000000, "1" },
    { 2500000, "2.5" },   { 5000000, "5" },     { 10000000, "10" },   { 60000000, "60" },
};

static struct metric *_Atomic all;      /* pushed only, never taken off: metrics are static objects */

static void touch(struct metric *m)
{
    if (atomic_load_explicit(&m->registered, memory_order_relaxed) || atomic_exchange(&m->registered, true))
        return;
    m->next = atomic_load(&all);
    while (!atomic_compare_exchange_weak(&all, &m->next, m))
        ;
}

void metric_add(struct metric *m, int64_t n)
{
    touch(m);
    atomic_fetch_add_explicit(&m->value, n, memory_order_relaxed);
}

void metric_set(struct metric *m, int64_t v)
{
    touch(m);
    atomic_store_explicit(&m->value, v, memory_order_relaxed);
}

void metric_observe_us(struct metric *m, int64_t us)
{
    touch(m);
    if (us < 0)
        us = 0;
    for (size_t i = 0; i < METRIC_BUCKETS; i++)
        if (us <= bounds[i].us) {
            atomic_fetch_add_explicit(&m->bucket[i], 1, memory_order_relaxed);
            break;
        }
    atomic_fetch_add_explicit(&m->sum_us, us, memory_order_relaxed);
    atomic_fetch_add_explicit(&m->value, 1, memory_order_relaxed);
}

static int by_name(const void *a, const void *b)
{
    const struct metric *x = *(struct metric *const *)a, *y = *(struct metric *const *)b;
    int c = strcmp(x->name, y->name);
    return c ? c : strcmp(x->label ? x->label : "", y->label ? y->label : "");
}

static void write_help(struct buf *out, const struct metric *m)
{
    static const char *const kind[] = { "counter", "gauge", "histogram" };
    (void)buf_printf(out, "# HELP %s ", m->name);
    for (const char *p = m->help ? m->help : ""; *p; p++)
        (void)(*p == '\n' ? buf_puts(out, "\\n") : *p == '\\' ? buf_puts(out, "\\\\") : buf_putc(out, *p));
    (void)buf_printf(out, "\n# TYPE %s %s\n", m->name, kind[m->kind]);
}

static void write_braces(struct buf *out, const struct metric *m)
{
    if (m->label)
        (void)buf_printf(out, "{%s}", m->label);
}

static void write_histogram(struct buf *out, struct metric *m)
{
    const char *label = m->label ? m->label : "", *comma = m->label ? "," : "";
    int64_t count = atomic_load_explicit(&m->value, memory_order_relaxed), sum = 0;
    int64_t us = atomic_load_explicit(&m->sum_us, memory_order_relaxed);
    for (size_t i = 0; i < METRIC_BUCKETS; i++) {
        sum += atomic_load_explicit(&m->bucket[i], memory_order_relaxed);
        (void)buf_printf(out, "%s_bucket{%s%sle=\"%s\"} %" PRId64 "\n", m->name, label, comma, bounds[i].le, sum);
    }
    if (count < sum)        /* an observation came in between: the whole may never be less than its parts */
        count = sum;
    (void)buf_printf(out, "%s_bucket{%s%sle=\"+Inf\"} %" PRId64 "\n%s_sum", m->name, label, comma, count, m->name);
    write_braces(out, m);
    (void)buf_printf(out, " %" PRId64 ".%06" PRId64 "\n%s_count", us / 1000000, us % 1000000, m->name);
    write_braces(out, m);
    (void)buf_printf(out, " %" PRId64 "\n", count);
}

int metrics_write(struct buf *out)
{
    struct metric *head = atomic_load(&all);
    size_t n = 0;
    for (struct metric *m = head; m; m = m->next)
        n++;
    AUTO_FREE struct metric **list = calloc(n ? n : 1, sizeof *list);
    if (!list)
        return RC_NOMEM;
    size_t k = 0;
    for (struct metric *m = head; m; m = m->next)
        list[k++] = m;
    if (n)
        qsort(list, n, sizeof *list, by_name);
    for (size_t i = 0; i < n; i++) {
        if (i == 0 || strcmp(list[i]->name, list[i - 1]->name) != 0)
            write_help(out, list[i]);
        if (list[i]->kind == METRIC_HISTOGRAM) {
            write_histogram(out, list[i]);
            continue;
        }
        (void)buf_puts(out, list[i]->name);
        write_braces(out, list[i]);
        (void)buf_printf(out, " %" PRId64 "\n", atomic_load_explicit(&list[i]->value, memory_order_relaxed));
    }
    return buf_ok(out) ? RC_OK : RC_LIMIT;
}
