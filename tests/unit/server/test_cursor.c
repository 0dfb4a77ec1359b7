#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "server/api/cursor.h"
#include "base/str.h"

static void test_round_trip(void **state)
{
    (void)state;
    static const struct { int64_t pos; const char *id; bool asc, back; } t[] = {
        { 0, "", false, false }, { 1, "sesn_01abc", true, false }, { INT64_MAX, "x", false, true }, { -1, "", true, true }, { INT64_MIN, "y", false, false },
        { 1774000000000, "sesn_01ABCDEFGHJKLMNPQRSTUVWX0123456789abcdefgh", false, false },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct cursor c = { .kind = CURSOR_SESSIONS, .asc = t[i].asc, .backward = t[i].back, .pos = t[i].pos }, d;
        char text[CURSOR_MAX];
        str_copy(c.id, sizeof c.id, t[i].id);
        cursor_encode(&c, "scope", text);
        assert_int_equal(cursor_decode(text, CURSOR_SESSIONS, t[i].asc, "scope", &d, NULL), RC_OK);
        assert_int_equal(d.pos, t[i].pos);
        assert_string_equal(d.id, c.id);
        assert_int_equal(d.backward, t[i].back);
        assert_int_equal(cursor_decode(text, CURSOR_SESSIONS, !t[i].asc, "scope", &d, NULL), RC_INVALID);      /* the other order */
        assert_int_equal(cursor_decode(text, CURSOR_EVENTS, t[i].asc, "scope", &d, NULL), RC_INVALID);         /* another list */
        assert_int_equal(cursor_decode(text, CURSOR_SESSIONS, t[i].asc, "other", &d, NULL), RC_INVALID);       /* of another object */
    }
}

static void test_damage(void **state)
{
    (void)state;
    struct cursor c = { .kind = CURSOR_EVENTS, .asc = true, .pos = 42 }, d = { .pos = -7 };
    char text[CURSOR_MAX], bad[CURSOR_MAX + 64];
    str_copy(c.id, sizeof c.id, "sevt_01");
    cursor_encode(&c, "", text);
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++) {
        memcpy(bad, text, n + 1);
        bad[i] = bad[i] == 'A' ? 'B' : 'A';
        assert_int_equal(cursor_decode(bad, CURSOR_EVENTS, true, "", &d, NULL), RC_INVALID);
        memcpy(bad, text, n + 1);
        bad[i] = '\0';                                              /* cut short, at every length */
        assert_int_equal(cursor_decode(bad, CURSOR_EVENTS, true, "", &d, NULL), RC_INVALID);
    }
    static const char *const t[] = { "", "bogus", "====", "A", "null", "%00", "page_1" };
    for (size_t i = 0; i < COUNT_OF(t); i++)
        assert_int_equal(cursor_decode(t[i], CURSOR_EVENTS, true, "", &d, NULL), RC_INVALID);
    memcpy(bad, text, n);
    memcpy(bad + n, "AA", 3);                                       /* one long */
    assert_int_equal(cursor_decode(bad, CURSOR_EVENTS, true, "", &d, NULL), RC_INVALID);
    memcpy(bad + n, "=", 2);                                        /* padding: one text per position */
    assert_int_equal(cursor_decode(bad, CURSOR_EVENTS, true, "", &d, NULL), RC_INVALID);
    memset(bad, 'A', sizeof bad - 1);
    bad[sizeof bad - 1] = '\0';
    assert_int_equal(cursor_decode(bad, CURSOR_EVENTS, true, "", &d, NULL), RC_INVALID);
    assert_int_equal(d.pos, -7);                                    /* untouched by failures */
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_round_trip), cmocka_unit_test(test_damage) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
