#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "wire/event.h"

static void render(void **st)
{
    (void)st;
    static const struct { const char *in; int64_t ms; int rc; const char *out; } row[] = {
        { "{\"id\":\"e\"}", 1775046896789, 0, "{\"id\":\"e\",\"processed_at\":\"2026-04-01T12:34:56.789Z\"}" },
        { "{\"id\":\"e\"}", -1, 0, "{\"id\":\"e\",\"processed_at\":null}" }, { "{}", 0, 0, "{\"processed_at\":\"1970-01-01T00:00:00.000Z\"}" },
        { "{ }", -1, 0, "{\"processed_at\":null}" }, { "{\"a\":{}} \n", -1, 0, "{\"a\":{},\"processed_at\":null}" }, { "{\"a\":1 }", -1, 0, "{\"a\":1,\"processed_at\":null}" },
        { "", -1, RC_INVALID, "" }, { "{", -1, RC_INVALID, "" }, { "}", -1, RC_INVALID, "" }, { "[]", -1, RC_INVALID, "" }, { "{\"a\":1", -1, RC_INVALID, "" }, { " {}", -1, RC_INVALID, "" },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct buf b;
        buf_init(&b, 200);
        assert_int_equal(event_render(&b, row[i].in, strlen(row[i].in), row[i].ms), row[i].rc);
        assert_string_equal(buf_data(&b), row[i].out);
        buf_done(&b);
    }
    for (size_t max = 0; max < 60; max++) {     /* whole or nothing at every limit */
        struct buf b;
        buf_init(&b, max);
        int rc = event_render(&b, "{\"id\":\"e\"}", 10, -1);
        assert_int_equal(rc, max < 30 ? RC_LIMIT : RC_OK);
        assert_int_equal(buf_len(&b), rc ? 0 : 30);
        buf_done(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(render) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
