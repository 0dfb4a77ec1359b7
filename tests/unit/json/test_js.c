#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/str.h"
#include "json/js.h"

static char *nested(int depth, char open, char close)
{
    char *s = xcalloc(1, (size_t)depth * 2 + 1);
    memset(s, open, (size_t)depth);
    memset(s + depth, close, (size_t)depth);
    return s;
}

static void parse(void **st)
{
    (void)st;
    static const struct { const char *s; int rc; const char *why; } row[] = {
        { "{}", 0, 0 }, { "[]", 0, 0 }, { " {\"a\":1} \n", 0, 0 }, { "1", 0, 0 }, { "\"x\"", 0, 0 }, { "null", 0, 0 },
        { "", RC_INVALID, "empty text" }, { "   ", RC_INVALID, "line 1" }, { "{", RC_INVALID, "line 1 column 1" },
        { "{} x", RC_INVALID, "end of file expected" }, { "{}{}", RC_INVALID, "end of file" }, { "{\"a\":1,\"a\":2}", RC_INVALID, "duplicate object key" },
        { "{\n \"a\": tru}", RC_INVALID, "line 2 column 9" }, { "[1,]", RC_INVALID, "line 1" }, { "{'a':1}", RC_INVALID, "line 1" },
        { "\"\\u0000\"", RC_INVALID, "u0000" }, { "{\"\\u0000\":1}", RC_INVALID, "u0000" }, { "\"a\tb\"", RC_INVALID, "control character" },
        { "\"\\ud800\"", RC_INVALID, "Unicode" }, { "\"\xff\"", RC_INVALID, "decode byte" }, { "\"\xed\xa0\x80\"", RC_INVALID, "decode byte" },
        { "99999999999999999999", RC_INVALID, "too big integer" }, { "1e999", RC_INVALID, "overflow" }, { "01", RC_INVALID, "line 1" }, { "NaN", RC_INVALID, "line 1" },
        { "\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"", 0, 0 }, { "\"\\\"[\\\\\"", 0, 0 },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct err e = { 0 };
        json_t *j = NULL;
        int rc = js_parse(row[i].s, strlen(row[i].s), 1000, &j, &e);
        if (rc != row[i].rc || (rc && !strstr(e.msg, row[i].why)))
            fail_msg("row %zu <%s>: rc %d <%s>", i, row[i].s, rc, e.msg);
        assert_int_equal(rc == 0, j != NULL);
        json_decref(j);
    }
    struct err e = { 0 };
    json_t *j = NULL;
    assert_int_equal(js_parse("[1]", 3, 3, &j, &e), RC_OK);
    json_decref(j);
    assert_int_equal(js_parse("[12]", 4, 3, &j, &e), RC_TOO_LARGE);
    assert_int_equal(js_parse("[\0]", 3, 9, &j, &e), RC_INVALID);
    assert_int_equal(js_parse("\"a\0b\"", 5, 9, &j, &e), RC_INVALID);
    assert_int_equal(js_parse("\"\\", 2, 9, &j, &e), RC_INVALID);
}

static void depth(void **st)
{
    (void)st;
    struct err e = { 0 };
    static const struct { int depth, rc; } row[] = { { 1, 0 }, { JS_DEPTH_MAX - 1, 0 }, { JS_DEPTH_MAX, 0 }, { JS_DEPTH_MAX + 1, RC_INVALID }, { 1000000, RC_INVALID } };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        AUTO_FREE char *s = nested(row[i].depth, '[', ']');
        AUTO_JS j = NULL;
        assert_int_equal(js_parse(s, strlen(s), JS_BODY_MAX, &j, &e), row[i].rc);
    }
    assert_non_null(strstr(e.msg, "line 1 column 65: nested deeper than 64"));
    AUTO_FREE char *open = nested(3000000, '[', '{');
    json_t *j = NULL;
    assert_int_equal(js_parse(open, strlen(open), JS_BODY_MAX, &j, &e), RC_INVALID);
    struct buf b;
    buf_init(&b, SIZE_MAX);
    (void)buf_puts(&b, "[0");
    for (int i = 2; i < JS_VALUES_MAX; i++)
        (void)buf_puts(&b, ",0");
    size_t n = buf_len(&b);
    (void)buf_puts(&b, "]");
    assert_int_equal(js_parse(buf_data(&b), buf_len(&b), JS_BODY_MAX, &j, &e), RC_OK);
    json_decref(j);
    buf_truncate(&b, n);
    (void)buf_puts(&b, ",0,0]");
    assert_int_equal(js_parse(buf_data(&b), buf_len(&b), JS_BODY_MAX, &j, &e), RC_TOO_LARGE);
    buf_done(&b);
}

static void output(void **st)
{
    (void)st;
    static const struct { const char *in, *out; } row[] = {
        { "{ \"b\" : 1 , \"a\" : [ true , false , null ] }", "{\"b\":1,\"a\":[true,false,null]}" },
        { "0.1", "0.1" }, { "1.0", "1.0" }, { "100.0", "100.0" }, { "1e100", "1e+100" }, { "0.30000000000000004", "0.30000000000000004" },
        { "5e-324", "4.94065645841247e-324" }, { "1.7976931348623157e308", "1.7976931348623157e+308" }, { "-0.0", "-0.0" }, { "3.14", "3.14" },
        { "9223372036854775807", "9223372036854775807" }, { "-9223372036854775808", "-9223372036854775808" }, { "[]", "[]" }, { "{}", "{}" },
        { "\"\\u001f\\u00e9\\/\\b\\f\\n\\r\\t\\\"\\\\\"", "\"\\u001f\xc3\xa9/\\u0008\\u000c\\n\\r\\t\\\"\\\\\"" }, { "\"\x7f\"", "\"\x7f\"" },
        { "{\"z\\n\":{\"y\":[[1],[2]]}}", "{\"z\\n\":{\"y\":[[1],[2]]}}" },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct err e = { 0 };
        AUTO_JS j = NULL;
        AUTO_JS again = NULL;
        assert_int_equal(js_parse(row[i].in, strlen(row[i].in), 1000, &j, &e), RC_OK);
        AUTO_FREE char *s = js_text(j);
        assert_string_equal(s, row[i].out);
        assert_int_equal(js_parse(s, strlen(s), 1000, &again, &e), RC_OK);
        assert_true(json_equal(j, again));
    }
    struct buf b;
    buf_init(&b, 5);
    AUTO_JS six = json_string("1234");
    assert_int_equal(js_write(six, &b), RC_LIMIT);
    assert_int_equal(js_write(NULL, &b), RC_INVALID);
    buf_done(&b);
    json_t *top = json_array(), *at = top;      /* deeper than js_write() follows */
    for (int i = 0; i < JS_WRITE_DEPTH_MAX + 1; i++) {
        json_t *next = json_array();
        js_push(at, next);
        at = next;
    }
    buf_init(&b, SIZE_MAX);
    assert_int_equal(js_write(top, &b), RC_INVALID);
    assert_false(buf_ok(&b));
    buf_done(&b);
    json_decref(top);
}

static void get(void **st)
{
    (void)st;
    struct err e = { 0 };
    AUTO_JS j = NULL;
    const char *text = "{\"s\":\"x\",\"i\":5,\"b\":true,\"n\":null,\"r\":1.5,\"o\":{\"p\":{\"q\":\"deep\"}},\"a\":[{\"k\":7},\"e\"]}";
    assert_int_equal(js_parse(text, strlen(text), 1000, &j, &e), RC_OK);
    assert_string_equal(js_str(j, "s"), "x");
    assert_string_equal(js_str(j, "o.p.q"), "deep");
    assert_string_equal(js_str(j, "a.1"), "e");
    assert_int_equal(js_int(j, "a.0.k", -1), 7);
    assert_ptr_equal(js_at(j, ""), j);
    static const char *const absent[] = { "x", "i", "s.x", "o.p.q.r", "a.2", "a.-1", "a.x", "a.", "n", ".s", "o..p", "a.99999999999999999999" };
    for (size_t i = 0; i < COUNT_OF(absent); i++)
        assert_null(js_str(j, absent[i]));
    assert_null(js_str(NULL, "s"));
    assert_int_equal(js_int(j, "i", -1), 5);
    assert_int_equal(js_int(j, "r", -1), -1);
    assert_int_equal(js_int(j, "s", -1), -1);
    assert_true(js_bool(j, "b", false));
    assert_true(js_bool(j, "i", true));
    assert_true(js_is_null(j, "n"));
    assert_false(js_is_null(j, "x"));
}

static void set(void **st)
{
    (void)st;
    AUTO_JS o = json_object();
    js_set_str(o, "a", "x\xff");
    js_set_str(o, "b", NULL);
    js_set_strn(o, "c", "1\0" "2", 3);
    js_set_strn(o, "d", "", 0);
    js_set_int(o, "e", -5);
    js_set_bool(o, "f", true);
    js_set_time(o, "g", 0);
    js_set_time(o, "h", -1);
    js_set(o, "i", json_array());
    js_push(json_object_get(o, "i"), js_string(NULL, 0));
    js_set_int(o, "e", 6);      /* keeps its place */
    AUTO_FREE char *s = js_text(o);
    assert_string_equal(s, "{\"a\":\"x\xef\xbf\xbd\",\"b\":null,\"c\":\"1\xef\xbf\xbd" "2\",\"d\":\"\",\"e\":6,\"f\":true,"
                           "\"g\":\"1970-01-01T00:00:00.000Z\",\"h\":null,\"i\":[\"\"]}");
}

static void write_string(void **st)
{
    (void)st;
    for (int c = 0; c < 256; c++) {      /* every byte, alone and amid others, gives text that reads back */
        char in[5] = { 'a', (char)c, 'b', (char)c, 'c' };
        struct buf b;
        struct err e;
        AUTO_JS j = NULL;
        buf_init(&b, 1000);
        assert_int_equal(js_write_string(&b, in, sizeof in), RC_OK);
        assert_int_equal(js_parse(buf_data(&b), buf_len(&b), 1000, &j, &e), RC_OK);
        if (c > 0 && c < 0x80)
            assert_memory_equal(json_string_value(j), in, 5);
        buf_done(&b);
    }
    struct buf b;
    buf_init(&b, 5);
    assert_int_equal(js_write_string(&b, "\xff\xff", 2), RC_LIMIT);
    assert_false(buf_ok(&b));
    buf_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parse), cmocka_unit_test(depth), cmocka_unit_test(output), cmocka_unit_test(get), cmocka_unit_test(set),
        cmocka_unit_test(write_string),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
