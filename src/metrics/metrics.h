/* metrics/metrics.h - counters, gauges and histograms with Prometheus text exposition. Lock-free updates, thread-safe. */
#pragma once

#include "base/attr.h"
#include "base/buf.h"

enum metric_kind { METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM };

#define METRIC_BUCKETS 16
struct metric {
    const char *name, *help;
    enum metric_kind kind;
    const char *label;              /* label pairs inside the braces ('role="server"'), or NULL */
    _Atomic int64_t value;          /* counter, gauge; histogram: count */
    _Atomic int64_t sum_us;         /* histogram */
    _Atomic int64_t bucket[METRIC_BUCKETS];
    struct metric *next;            /* private */
    _Atomic bool registered;        /* private */
};
#define METRIC_DEFINE(var, k, n, h) struct metric var = { .name = (n), .help = (h), .kind = (k) }
#define METRIC_DEFINE_LABEL(var, k, n, l, h) struct metric var = { .name = (n), .help = (h), .kind = (k), .label = (l) }

void metric_add(struct metric *m, int64_t n);
void metric_set(struct metric *m, int64_t v);
void metric_observe_us(struct metric *m, int64_t us);   /* buckets from 100 us doubling-ish to 60 s */
int  metrics_write(struct buf *out);                    /* every metric that was touched; families grouped by name */
