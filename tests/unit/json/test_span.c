/* Walking over JSON text: what is found where, and what is refused where. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "json/js.h"
#include "json/span.h"

static void test_values_come_as_they_are(void **state)
{
    (void)state;
    static const char text[] = " { \"a\" : 1.50e+3 ,\"b\\u0063\":\"x\\\"y\", \"d\":[1, {\"e\":null}] ,\"\":{}, \"f\":-0 } \n";
    static const struct { const char *key, *value; } want[] = {
        { "a", "1.50e+3" }, { "bc", "\"x\\\"y\"" }, { "d", "[1, {\"e\":null}]" }, { "", "{}" }, { "f", "-0" },
    };
    struct span_walk w;
    struct slice key, value;
    struct err e = { 0 };
    assert_int_equal(span_enter(slice_of(text), '{', &w, &e), RC_OK);
    for (size_t i = 0; i < COUNT_OF(want); i++) {
        assert_int_equal(span_next(&w, &key, &value, &e), RC_OK);
        assert_true(span_key_is(key, want[i].key));
        assert_true(slice_eq(value, want[i].value));
    }
    assert_int_equal(span_next(&w, &key, &value, &e), RC_NOT_FOUND);
    assert_int_equal(span_member(slice_of(text), "bc", &value, &e), RC_OK);
    assert_true(span_is(value, "x\"y"));
    assert_int_equal(span_member(slice_of(text), "z", &value, &e), RC_NOT_FOUND);
    assert_int_equal(span_member(slice_of("{\"a\":1,\"\\u0061\":2}"), "a", &value, &e), RC_INVALID);
    assert_int_equal(span_member(slice_of("[]"), "a", &value, &e), RC_INVALID);
}

/* The number is the offset that is named. */
static void test_refused(void **state)
{
    (void)state;
    static const struct { const char *text; int at; } t[] = {
        { "[", 1 }, { "[1", 2 }, { "[1,", 3 }, { "[1,]", 3 }, { "[,1]", 1 }, { "[1 2]", 3 }, { "[01]", 2 }, { "[-]", 1 }, { "[1.]", 1 }, { "[1e]", 1 },
        { "[.5]", 1 }, { "[+1]", 1 }, { "[NaN]", 1 }, { "[tru]", 1 }, { "[\"a]", 1 }, { "[\"\\x\"]", 1 }, { "[\"\\u12g4\"]", 1 }, { "[\"\t\"]", 1 },
        { "[{\"a\"}]", 2 }, { "[{\"a\":}]", 6 }, { "[{1:2}]", 2 }, { "[{\"a\":1,}]", 8 }, { "[[1}]", 3 }, { "[] x", 3 }, { "[]]", 2 }, { "['a']", 1 },
        { "[\"\\", 1 }, { "[\"\\u00", 1 },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct span_walk w;
        struct slice value;
        struct err e = { 0 };
        int rc;
        char want[60];
        assert_int_equal(span_enter(slice_of(t[i].text), '[', &w, &e), RC_OK);
        while ((rc = span_next(&w, NULL, &value, &e)) == RC_OK) {
        }
        (void)snprintf(want, sizeof want, "not valid JSON at offset %d", t[i].at);
        if (rc != RC_INVALID || strcmp(e.msg, want) != 0)
            fail_msg("%s: rc %d \"%s\", not \"%s\"", t[i].text, rc, e.msg, want);
    }
}

static void test_depth(void **state)
{
    (void)state;
    for (int depth = JS_DEPTH_MAX; depth <= JS_DEPTH_MAX + 1; depth++) {
        char text[2 * JS_DEPTH_MAX + 8] = "[";
        for (int i = 0; i < depth; i++)
            strcat(text, "[");
        for (int i = 0; i < depth; i++)
            strcat(text, "]");
        strcat(text, "]");
        struct span_walk w;
        struct slice value;
        struct err e = { 0 };
        assert_int_equal(span_enter(slice_of(text), '[', &w, &e), RC_OK);
        assert_int_equal(span_next(&w, NULL, &value, &e), depth > JS_DEPTH_MAX ? RC_INVALID : RC_OK);
    }
}

static void test_text(void **state)
{
    (void)state;
    static const struct { const char *raw, *want; } t[] = {
        { "\"\"", "" }, { "\"a\\/b\\\\\"", "a/b\\" }, { "\"\\u00e9\\u20ac\\ud83d\\ude00\"", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80" }, { "\"\\b\\f\\n\\r\\t\"", "\b\f\n\r\t" },
        { "\"\xff\"", NULL }, { "\"\\u0000\"", NULL }, { "\"\\ud800\"", NULL }, { "\"\\ude00\"", NULL }, { "\"\\ud800\\u0041\"", NULL }, { "12", NULL }, { "\"", NULL }, { "", NULL },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct buf b;
        buf_init(&b, 100);
        int rc = span_text(slice_of(t[i].raw), &b);
        assert_int_equal(rc, t[i].want ? RC_OK : RC_INVALID);
        if (t[i].want)
            assert_string_equal(buf_data(&b), t[i].want);
        buf_done(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_come_as_they_are), cmocka_unit_test(test_refused), cmocka_unit_test(test_depth), cmocka_unit_test(test_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
