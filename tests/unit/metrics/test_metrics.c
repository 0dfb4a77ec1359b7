#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <string.h>

#include "metrics/metrics.h"

static METRIC_DEFINE_LABEL(b_two, METRIC_COUNTER, "ow_b_total", "kind=\"two\"", "B things");
static METRIC_DEFINE(gauge, METRIC_GAUGE, "ow_a", "A \\ back\nslash");
static METRIC_DEFINE_LABEL(b_one, METRIC_COUNTER, "ow_b_total", "kind=\"one\"", "B things");
static METRIC_DEFINE(untouched, METRIC_COUNTER, "ow_never", "never");
static METRIC_DEFINE(histogram, METRIC_HISTOGRAM, "ow_c_seconds", "C");
static METRIC_DEFINE_LABEL(labelled, METRIC_HISTOGRAM, "ow_d_seconds", "role=\"x\"", "D");

static void *many(void *arg)
{
    for (int i = 0; i < 20000; i++) {
        metric_add(&b_one, 1);
        metric_observe_us(&labelled, i);
    }
    return arg;
}

static void exposition(void **st)
{
    (void)st;
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, many, NULL), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    metric_add(&b_two, 5);
    metric_set(&gauge, -3);
    static const int64_t us[] = { -5, 0, 100, 101, 60000000, 60000001 };
    for (size_t i = 0; i < COUNT_OF(us); i++)
        metric_observe_us(&histogram, us[i]);
    (void)untouched;
    struct buf b;
    buf_init(&b, 1 << 20);
    assert_int_equal(metrics_write(&b), RC_OK);
    static const char want_start[] = "# HELP ow_a A \\\\ back\\nslash\n# TYPE ow_a gauge\now_a -3\n"
        "# HELP ow_b_total B things\n# TYPE ow_b_total counter\now_b_total{kind=\"one\"} 80000\now_b_total{kind=\"two\"} 5\n"
        "# HELP ow_c_seconds C\n# TYPE ow_c_seconds histogram\now_c_seconds_bucket{le=\"0.0001\"} 3\now_c_seconds_bucket{le=\"0.00025\"} 4\n";
    assert_memory_equal(buf_data(&b), want_start, sizeof want_start - 1);
    static const char *const want[] = {
        ("ow_c_seconds_bucket{le=\"10\"} 4\now_c_seconds_bucket{le=\"60\"} 5\now_c_seconds_bucket{le=\"+Inf\"} 6\n"
         "ow_c_seconds_sum 120.000202\now_c_seconds_count 6\n"),
        "ow_d_seconds_bucket{role=\"x\",le=\"+Inf\"} 80000\n", "ow_d_seconds_sum{role=\"x\"} ", "ow_d_seconds_count{role=\"x\"} 80000\n",
    };
    for (size_t i = 0; i < COUNT_OF(want); i++)
        if (!strstr(buf_data(&b), want[i]))
            fail_msg("missing %s in %s", want[i], buf_data(&b));
    assert_null(strstr(buf_data(&b), "never"));
    buf_done(&b);
    buf_init(&b, 100);
    assert_int_equal(metrics_write(&b), RC_LIMIT);
    buf_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(exposition) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
