#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "http/sse.h"

static int log_event(void *ctx, const struct sse_event *ev)
{
    struct buf *b = ctx;
    assert_int_equal(ev->data[ev->data_n], '\0');
    buf_printf(b, "[%s|%s|%s]", ev->id ? ev->id : "-", ev->event, ev->data);
    return strcmp(ev->event, "stop") == 0 ? RC_DENIED : RC_OK;
}

static int feed(const char *in, size_t n, size_t step, size_t max, struct buf *out)
{
    struct sse_decoder *d = sse_decoder_new(max);
    int rc = RC_OK;
    for (size_t at = 0; at < n && rc == RC_OK; at += step)
        rc = sse_feed(d, in + at, n - at < step ? n - at : step, log_event, out);
    sse_decoder_free(d);
    return rc;
}

static void test_decode(void **st)
{
    (void)st;
    static const struct { const char *in, *out; int rc; } t[] = {
        { "", "", RC_OK }, { "\n\n\n", "", RC_OK }, { "data: a\n\n", "[-||a]", RC_OK }, { "data:a\n\n", "[-||a]", RC_OK }, { "data:  a\n\n", "[-|| a]", RC_OK },
        { "data: a\n", "", RC_OK }, { "data\n\n", "[-||]", RC_OK }, { "data:\n\n", "[-||]", RC_OK }, { "data: a\ndata: b\n\n", "[-||a\nb]", RC_OK },
        { "data\ndata\n\n", "[-||\n]", RC_OK }, { "event: x\n\ndata: a\n\n", "[-||a]", RC_OK }, { "event: x\ndata: a\n\n", "[-|x|a]", RC_OK },
        { "event: x\nevent: y\ndata: a\n\n", "[-|y|a]", RC_OK }, { "id: 7\ndata: a\n\ndata: b\n\n", "[7||a][7||b]", RC_OK }, { "id: 7\n\ndata: b\n\n", "[7||b]", RC_OK },
        { "id: 7\nid\ndata: b\n\n", "[||b]", RC_OK }, { ": comment\ndata: a\n: more\n\n:\n\n", "[-||a]", RC_OK }, { "data: a\r\n\r\ndata: b\r\n\r\n", "[-||a][-||b]", RC_OK },
        { "data: a\r\rdata: b\r\r", "[-||a][-||b]", RC_OK }, { "data: a\n\r\ndata: b\r\n\n", "[-||a][-||b]", RC_OK }, { "\xEF\xBB\xBF" "data: a\n\n", "[-||a]", RC_OK },
        { "\xEF\xBB" "data: a\n\n", "", RC_OK }, { "\xEF\xBB\xBF\xEF\xBB\xBF" "data: a\n\n", "", RC_OK }, { "retry: 10\ndata: a\n\n", "[-||a]", RC_OK },
        { "Data: a\n\n data: b\n\n", "", RC_OK }, { "event: stop\ndata: a\n\ndata: b\n\n", "[-|stop|a]", RC_DENIED }, { "data: a: b\n\n", "[-||a: b]", RC_OK },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++)
        for (size_t step = 1; step < 9; step++) {
            struct buf out;
            buf_init(&out, 1 * MIB);
            int rc = feed(t[i].in, strlen(t[i].in), step, 1000, &out);
            if (rc != t[i].rc || strcmp(buf_data(&out), t[i].out) != 0)
                fail_msg("row %zu step %zu: rc %d \"%s\"", i, step, rc, buf_data(&out));
            buf_done(&out);
        }
    struct buf out;
    buf_init(&out, 1 * MIB);
    assert_int_equal(feed("id: 1\nid: a\0b\ndata: x\n\n", 23, 5, 1000, &out), RC_OK);
    assert_string_equal(buf_data(&out), "[1||x]");      /* an id with NUL is ignored */
    buf_done(&out);
}

static void test_retry(void **st)
{
    (void)st;
    static const struct { const char *in; int64_t ms; } t[] = {
        { "data: a\n\n", -1 }, { "retry: 500\ndata: a\n\n", 500 }, { "retry:0\n\n", 0 }, { "retry: 1\nretry: 2000\n", 2000 }, { "retry: 7\n\nretry: 5s\n\n", 7 },
        { "retry: -3\n", -1 }, { "retry\n", -1 }, { "retry: 1.5\n", -1 }, { "retry: 99999999999999999999\n", -1 }, { "retry: 12", -1 },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct sse_decoder *d = sse_decoder_new(1000);
        struct buf out;
        buf_init(&out, 1 * MIB);
        assert_int_equal(sse_feed(d, t[i].in, strlen(t[i].in), log_event, &out), RC_OK);
        assert_int_equal(sse_retry_ms(d), t[i].ms);
        sse_decoder_free(d);
        buf_done(&out);
    }
}

static void test_limit(void **st)
{
    (void)st;
    for (size_t step = 1; step < 300; step += 71) {
        struct buf out;
        buf_init(&out, 1 * MIB);
        char in[300];
        memset(in, 'x', sizeof in);
        memcpy(in, "data: ", 6);
        memcpy(in + 100, "\n\n", 2);
        assert_int_equal(feed(in, 102, step, 100, &out), RC_OK);
        assert_int_equal(feed(in, 102, step, 99, &out), RC_TOO_LARGE);
        memset(in, 'x', sizeof in);             /* no line end at all */
        assert_int_equal(feed(in, 100, step, 100, &out), RC_OK);
        assert_int_equal(feed(in, 101, step, 100, &out), RC_TOO_LARGE);
        buf_clear(&out);
        /* Comments do not add up; data lines do. */
        char many[4000] = "";
        for (int i = 0; i < 100; i++)
            memcpy(many + i * 20, ": keep alive 123456\n", 20);
        assert_int_equal(feed(many, 2000, step, 100, &out), RC_OK);
        for (int i = 0; i < 100; i++)
            memcpy(many + i * 20, "data: abcdefghijklm\n", 20);
        assert_int_equal(feed(many, 2000, step, 100, &out), RC_TOO_LARGE);
        assert_string_equal(buf_data(&out), "");
        buf_done(&out);
    }
}

static void test_encode(void **st)
{
    (void)st;
    struct buf b, out;
    buf_init(&b, 100);
    buf_init(&out, 1 * MIB);
    assert_int_equal(sse_write(&b, "9", "message", "{\"a\":1}", 7), RC_OK);
    assert_string_equal(buf_data(&b), "id: 9\nevent: message\ndata: {\"a\":1}\n\n");
    assert_int_equal(sse_write(&b, NULL, "", "", 0), RC_OK);
    assert_int_equal(sse_write(&b, NULL, NULL, "z", 1), RC_OK);
    assert_int_equal(feed(buf_data(&b), buf_len(&b), 4, 100, &out), RC_OK);
    assert_string_equal(buf_data(&out), "[9|message|{\"a\":1}][9||][9||z]");
    size_t n = buf_len(&b);
    assert_int_equal(sse_write(&b, "1", "x", "0123456789012345678901234567890123456789", 40), RC_LIMIT);
    assert_int_equal(buf_len(&b), n);
    buf_done(&b);
    buf_done(&out);
}

static int count_large(void *ctx, const struct sse_event *ev)
{
    *(size_t *)ctx += ev->data_n;
    return RC_OK;
}

static void test_large(void **st)
{
    (void)st;
    struct sse_decoder *d = sse_decoder_new(SSE_EVENT_MAX);
    static char chunk[65536];
    memset(chunk, 'y', sizeof chunk);
    size_t got = 0;
    for (int k = 0; k < 2; k++) {
        assert_int_equal(sse_feed(d, "data: ", 6, count_large, &got), RC_OK);
        for (int i = 0; i < 160; i++)
            assert_int_equal(sse_feed(d, chunk, sizeof chunk, count_large, &got), RC_OK);
        assert_int_equal(sse_feed(d, "\n\n", 2, count_large, &got), RC_OK);
    }
    assert_int_equal(got, 2 * 160 * sizeof chunk);
    sse_decoder_free(d);
    sse_decoder_free(NULL);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_decode), cmocka_unit_test(test_retry), cmocka_unit_test(test_limit), cmocka_unit_test(test_encode), cmocka_unit_test(test_large),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
