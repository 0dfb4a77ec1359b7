/* str, utf8, base64, dur. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <inttypes.h>
#include <string.h>

#include "base/base64.h"
#include "base/buf.h"
#include "base/dur.h"
#include "base/rc.h"
#include "base/str.h"
#include "base/utf8.h"

static void numbers(void **st)
{
    (void)st;
    static const struct { const char *s; int64_t min, max; int rc; int64_t v; } row[] = {
        { "0", 0, 9, 0, 0 }, { "9", 0, 9, 0, 9 }, { "10", 0, 9, RC_INVALID, 0 }, { "-1", 0, 9, RC_INVALID, 0 },
        { "-1", -1, 9, 0, -1 }, { "", 0, 9, RC_INVALID, 0 }, { "-", -9, 9, RC_INVALID, 0 }, { " 1", 0, 9, RC_INVALID, 0 },
        { "1 ", 0, 9, RC_INVALID, 0 }, { "+1", 0, 9, RC_INVALID, 0 }, { "1x", 0, 9, RC_INVALID, 0 }, { "0x1", 0, 9, RC_INVALID, 0 },
        { "007", 0, 9, 0, 7 }, { "9223372036854775807", INT64_MIN, INT64_MAX, 0, INT64_MAX },
        { "9223372036854775808", INT64_MIN, INT64_MAX, RC_INVALID, 0 }, { "-9223372036854775808", INT64_MIN, INT64_MAX, 0, INT64_MIN },
        { "-9223372036854775809", INT64_MIN, INT64_MAX, RC_INVALID, 0 }, { "99999999999999999999999", INT64_MIN, INT64_MAX, RC_INVALID, 0 },
        { NULL, 0, 9, RC_INVALID, 0 },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        int64_t v = 4711;
        assert_int_equal(str_to_i64(row[i].s, row[i].min, row[i].max, &v), row[i].rc);
        assert_true(v == (row[i].rc ? 4711 : row[i].v));
    }
}

static void slices(void **st)
{
    (void)st;
    assert_true(slice_eq(SLICE("ab"), "ab"));
    assert_false(slice_eq(SLICE("ab"), "abc"));
    assert_false(slice_eq(SLICE("ab"), "a"));
    assert_true(slice_eq((struct slice){ NULL, 0 }, ""));
    assert_false(slice_eq(SLICE("ab"), NULL));
    assert_true(slice_eq_nocase(SLICE("Content-Type"), "content-tYPE"));
    assert_false(slice_eq_nocase(SLICE("a[b"), "a{b"));
    assert_true(slice_eq(slice_trim(SLICE(" \t a b\t ")), "a b"));
    assert_true(slice_eq(slice_trim(SLICE(" \t ")), ""));
    assert_true(str_eq(NULL, NULL) && !str_eq("", NULL) && str_eq("x", "x") && !str_eq("x", "y"));
    assert_true(str_prefix("abc", "ab") && str_prefix("abc", "") && !str_prefix("a", "ab"));
    assert_true(str_suffix("abc", "bc") && str_suffix("abc", "") && !str_suffix("c", "bc"));
    char four[4];
    assert_true(str_copy(four, sizeof four, "abc"));
    assert_string_equal(four, "abc");
    assert_false(str_copy(four, sizeof four, "abcd"));
    assert_string_equal(four, "abc");
    assert_false(str_copy(four, 0, ""));
    assert_null(str_dup(NULL));
    AUTO_FREE char *p = str_printf("%d-%s", 5, "x"), *q = str_ndup("hello", 2);
    assert_string_equal(p, "5-x");
    assert_string_equal(q, "he");
}

static void utf8(void **st)
{
    (void)st;
    static const struct { const char *in; size_t n, valid; const char *clean; } row[] = {
        { "", 0, 0, "" }, { "abc", 3, 3, "abc" }, { "plain text longer than eight", 28, 28, "plain text longer than eight" },
        { "\xc3\xa9", 2, 2, "\xc3\xa9" }, { "12345678\xc3\xa9" "12345678", 18, 18, "12345678\xc3\xa9" "12345678" },
        { "a\xc3", 2, 1, "a\xef\xbf\xbd" }, { "\xc0\x80", 2, 0, "\xef\xbf\xbd\xef\xbf\xbd" },              /* overlong */
        { "\xe0\x80\x80", 3, 0, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" },
        { "\xed\xa0\x80", 3, 0, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" },                                  /* surrogate */
        { "\xed\x9f\xbf", 3, 3, "\xed\x9f\xbf" }, { "\xf4\x8f\xbf\xbf", 4, 4, "\xf4\x8f\xbf\xbf" },
        { "\xf4\x90\x80\x80", 4, 0, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" }, { "\xf5", 1, 0, "\xef\xbf\xbd" },
        { "\xe2\x82x", 3, 0, "\xef\xbf\xbdx" }, { "\xf0\x9f\x98", 3, 0, "\xef\xbf\xbd" }, { "\x80", 1, 0, "\xef\xbf\xbd" },
        { "\xff" "ok", 3, 0, "\xef\xbf\xbd" "ok" }, { "a\0b", 3, 3, "a\xef\xbf\xbd" "b" }, { "\xf0\x8f\xbf\xbf", 4, 0, NULL },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        assert_int_equal(utf8_valid_prefix(row[i].in, row[i].n), row[i].valid);
        struct buf b;
        buf_init(&b, 1000);
        assert_int_equal(utf8_sanitize(&b, row[i].in, row[i].n), RC_OK);
        if (row[i].clean)
            assert_string_equal(buf_data(&b), row[i].clean);
        assert_int_equal(utf8_valid_prefix(buf_data(&b), buf_len(&b)), buf_len(&b));
        buf_done(&b);
    }
    assert_int_equal(utf8_count("a\xc3\xa9\xf0\x9f\x98\x80", 7), 3);
    struct buf tiny;
    buf_init(&tiny, 2);
    assert_int_equal(utf8_sanitize(&tiny, "\xff", 1), RC_LIMIT);
    buf_done(&tiny);
}

static void base64(void **st)
{
    (void)st;
    static const struct { const char *raw, *std, *url; } row[] = {      /* RFC 4648 section 10 */
        { "", "", "" }, { "f", "Zg==", "Zg" }, { "fo", "Zm8=", "Zm8" }, { "foo", "Zm9v", "Zm9v" }, { "foob", "Zm9vYg==", "Zm9vYg" },
        { "fooba", "Zm9vYmE=", "Zm9vYmE" }, { "foobar", "Zm9vYmFy", "Zm9vYmFy" }, { "\xfb\xff\xfe", "+//+", "-__-" },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct buf a, b, c, d;
        buf_init(&a, 100); buf_init(&b, 100); buf_init(&c, 100); buf_init(&d, 100);
        assert_int_equal(base64_encode(&a, row[i].raw, strlen(row[i].raw)), RC_OK);
        assert_string_equal(buf_data(&a), row[i].std);
        assert_int_equal(base64url_encode(&b, row[i].raw, strlen(row[i].raw)), RC_OK);
        assert_string_equal(buf_data(&b), row[i].url);
        assert_int_equal(base64_decode(&c, row[i].std, strlen(row[i].std)), RC_OK);
        assert_string_equal(buf_data(&c), row[i].raw);
        assert_int_equal(base64_decode(&d, row[i].url, strlen(row[i].url)), RC_OK);
        assert_string_equal(buf_data(&d), row[i].raw);
        buf_done(&a); buf_done(&b); buf_done(&c); buf_done(&d);
    }
    static const char *const bad[] = { "Z", "Zg=", "Zg===", "====", "=", "Z===", "Zm9v Zm9v", "Zm9v\n", "Zh==", "Zm9=", "Zm9vZ", "Z*==", "Zm8=Zm8=", "Zm8=x" };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        struct buf b;
        buf_init(&b, 100);
        (void)buf_puts(&b, "kept");
        assert_int_equal(base64_decode(&b, bad[i], strlen(bad[i])), RC_INVALID);
        assert_string_equal(buf_data(&b), "kept");
        buf_done(&b);
    }
    struct buf small;
    buf_init(&small, 3);
    assert_int_equal(base64_encode(&small, "x", 1), RC_LIMIT);
    assert_false(buf_ok(&small));
    buf_clear(&small);
    assert_int_equal(base64_decode(&small, "Zm9v", 4), RC_OK);
    assert_int_equal(base64_decode(&small, "Zm9v", 4), RC_LIMIT);
    buf_done(&small);
}

static void durations(void **st)
{
    (void)st;
    static const struct { const char *s; int rc; int64_t ms; const char *back; } row[] = {
        { "0", 0, 0, "0" }, { "0s", 0, 0, "0" }, { "250ms", 0, 250, "250ms" }, { "30s", 0, 30000, "30s" }, { "5m", 0, 300000, "5m" },
        { "1h", 0, 3600000, "1h" }, { "7d", 0, 604800000, "7d" }, { "90s", 0, 90000, "90s" }, { "1500ms", 0, 1500, "1500ms" },
        { "24h", 0, 86400000, "1d" }, { "1h30m", 0, 5400000, "90m" }, { "1m0s5ms", 0, 60005, "60005ms" }, { "1000ms", 0, 1000, "1s" },
        { "", RC_INVALID, 0, 0 }, { "5", RC_INVALID, 0, 0 }, { "-5s", RC_INVALID, 0, 0 }, { "s", RC_INVALID, 0, 0 }, { "5 s", RC_INVALID, 0, 0 },
        { "5S", RC_INVALID, 0, 0 }, { "1.5s", RC_INVALID, 0, 0 }, { "5sec", RC_INVALID, 0, 0 }, { "30m1h", RC_INVALID, 0, 0 },
        { "1s1s", RC_INVALID, 0, 0 }, { "5s ", RC_INVALID, 0, 0 }, { "5us", RC_INVALID, 0, 0 }, { "1h30", RC_INVALID, 0, 0 },
        { "106751991167d", 0, 106751991167 * (int64_t)86400000, "106751991167d" }, { "106751991168d", RC_INVALID, 0, 0 },
        { "18446744073709551616ms", RC_INVALID, 0, 0 }, { "9223372036854775807ms", 0, INT64_MAX, "9223372036854775807ms" }, { NULL, RC_INVALID, 0, 0 },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        int64_t v = -7;
        char text[24];
        assert_int_equal(dur_parse(row[i].s, &v), row[i].rc);
        assert_true(v == (row[i].rc ? -7 : row[i].ms));
        if (row[i].rc)
            continue;
        dur_format(v, text);
        assert_string_equal(text, row[i].back);
    }
}

static void sizes(void **st)
{
    (void)st;
    static const struct { const char *s; int rc; uint64_t n; const char *back; } row[] = {
        { "0", 0, 0, "0" }, { "1B", 0, 1, "1B" }, { "64KiB", 0, 65536, "64KiB" }, { "2GiB", 0, 2147483648, "2GiB" }, { "1MB", 0, 1000000, "1MB" },
        { "1kb", 0, 1000, "1KB" }, { "1024B", 0, 1024, "1KiB" }, { "3tib", 0, 3ull << 40, "3TiB" }, { "1500B", 0, 1500, "1500B" },
        { "1", RC_INVALID, 0, 0 }, { "", RC_INVALID, 0, 0 }, { "1K", RC_INVALID, 0, 0 }, { "-1B", RC_INVALID, 0, 0 }, { "1KiB1B", RC_INVALID, 0, 0 },
        { "1 KiB", RC_INVALID, 0, 0 }, { "KiB", RC_INVALID, 0, 0 }, { "16777215TiB", 0, 16777215ull << 40, "16777215TiB" },
        { "16777216TiB", RC_INVALID, 0, 0 }, { "18446744073709551615B", 0, UINT64_MAX, "18446744073709551615B" }, { NULL, RC_INVALID, 0, 0 },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        uint64_t v = 7;
        char text[24];
        assert_int_equal(size_parse(row[i].s, &v), row[i].rc);
        assert_true(v == (row[i].rc ? 7 : row[i].n));
        if (row[i].rc)
            continue;
        size_format(v, text);
        assert_string_equal(text, row[i].back);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers), cmocka_unit_test(slices), cmocka_unit_test(utf8), cmocka_unit_test(base64),
        cmocka_unit_test(durations), cmocka_unit_test(sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
