#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "base/rc.h"
#include "gateway/ws_frame.h"

/* Feeds in steps of `step` bytes; what came out as text: payload, and "<kind:bytes>" for control frames. Returns the last code. */
static int feed(struct ws_in *w, const uint8_t *in, size_t n, size_t step, char *out)
{
    uint8_t copy[512];
    assert_true(n <= sizeof copy);
    memcpy(copy, in, n);
    size_t o = strlen(out);
    for (size_t at = 0; at < n;) {
        size_t used = 0, len = n - at < step ? n - at : step;
        struct ws_item item;
        const char *why = NULL;
        int rc = ws_step(w, copy + at, len, &used, &item, &why);
        if (rc < 0) {
            assert_non_null(why);
            return rc;
        }
        assert_true(used > 0);
        at += used;
        static const char *const name[] = { "", "", "ping", "pong", "close" };
        if (item.kind > WS_ITEM_DATA) {
            out[o++] = '<';
            memcpy(out + o, name[item.kind], strlen(name[item.kind]));
            o += strlen(name[item.kind]);
            out[o++] = ':';
        }
        if (item.n)
            memcpy(out + o, item.p, item.n);
        o += item.n;
        if (item.kind > WS_ITEM_DATA)
            out[o++] = '>';
        out[o] = '\0';
    }
    return RC_OK;
}

static void test_messages(void **st)
{
    (void)st;
    /* The examples of RFC 6455 5.7, then fragments with a ping in between, and text. */
    static const uint8_t masked[] = { 0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58 };
    static const uint8_t parts[] = { 0x02, 0x02, 'a', 'b', 0x89, 0x01, '!', 0x00, 0x00, 0x80, 0x01, 'c', 0x81, 0x01, 't', 0x8a, 0x00, 0x88, 0x02, 'x', 'y' };
    for (size_t step = 1; step < 12; step++) {
        struct ws_in w = { 0 };
        char out[256] = "";
        assert_int_equal(feed(&w, masked, sizeof masked, step, out), RC_OK);
        assert_int_equal(feed(&w, parts, sizeof parts, step, out), RC_OK);
        assert_string_equal(out, "Helloab<ping:!>ct<pong:><close:xy>");
        assert_false(w.in_frame);
    }
}

static void test_lengths(void **st)
{
    (void)st;
    static const size_t n[] = { 0, 1, 125, 126, 127, 65535, 65536, 1 << 20 };
    for (size_t i = 0; i < COUNT_OF(n); i++) {
        uint8_t h[WS_HEAD_MAX], body[64] = { 0 };
        size_t hn = ws_head(WS_BINARY, n[i], h), used = 0, got = 0;
        assert_int_equal(hn, n[i] < 126 ? 2 : n[i] < 65536 ? 4 : 10);
        struct ws_in w = { 0 };
        struct ws_item item;
        const char *why;
        assert_int_equal(ws_step(&w, h, hn, &used, &item, &why), RC_OK);
        assert_int_equal(used, hn);
        while (got < n[i]) {
            assert_int_equal(ws_step(&w, body, sizeof body < n[i] - got ? sizeof body : n[i] - got, &used, &item, &why), RC_OK);
            assert_int_equal(item.kind, WS_ITEM_DATA);
            got += item.n;
        }
        assert_false(w.in_frame);
    }
}

static void test_refusals(void **st)
{
    (void)st;
    static const struct { uint8_t b[16]; size_t n; } t[] = {
        { { 0xc2, 0x00 }, 2 }, { { 0xa2, 0x00 }, 2 }, { { 0x92, 0x00 }, 2 },             /* reserved bits */
        { { 0x83, 0x00 }, 2 }, { { 0x8b, 0x00 }, 2 },                                    /* opcodes */
        { { 0x80, 0x00 }, 2 }, { { 0x00, 0x00 }, 2 },                                    /* continuation of nothing */
        { { 0x02, 0x00, 0x82, 0x00 }, 4 },                                               /* a message inside a message */
        { { 0x09, 0x00 }, 2 }, { { 0x89, 0x7e, 0x00, 0x7e }, 4 },                        /* control: fragmented, long */
        { { 0x88, 0x01, 'x' }, 3 },                                                      /* half a status */
        { { 0x82, 0x7e, 0x00, 0x7d }, 4 }, { { 0x82, 0x7f, 0, 0, 0, 0, 0, 0, 0xff, 0xff }, 10 },     /* not the shortest length */
        { { 0x82, 0x7f, 0x80, 0, 0, 0, 0, 0, 0, 0 }, 10 },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++)
        for (size_t step = 1; step <= t[i].n; step++) {
            struct ws_in w = { 0 };
            char out[64] = "";
            if (feed(&w, t[i].b, t[i].n, step, out) != RC_PROTO)
                fail_msg("row %zu, steps of %zu: accepted", i, step);
        }
}

int main(void)
{
    const struct CMUnitTest t[] = { cmocka_unit_test(test_messages), cmocka_unit_test(test_lengths), cmocka_unit_test(test_refusals) };
    return cmocka_run_group_tests(t, NULL, NULL);
}
