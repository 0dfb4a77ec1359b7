#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <openssl/ssl.h>
#include <stdio.h>
#include <string.h>

#include "base/rc.h"
#include "tunnel/hello.h"

/* In a block of exactly n bytes, so that a byte read too far is seen. */
static int parse(const uint8_t *p, size_t n, char name[HELLO_NAME_MAX])
{
    uint8_t *copy = malloc(n ? n : 1);
    if (n)
        memcpy(copy, p, n);
    int rc = hello_name(copy, n, name);
    free(copy);
    return rc;
}

static void every_split(const uint8_t *p, size_t n, const char *want)
{
    char name[HELLO_NAME_MAX] = "untouched";
    for (size_t k = 0; k < n; k++) {
        if (parse(p, k, name) != RC_AGAIN)
            fail_msg("%zu of %zu bytes: rc %d", k, n, parse(p, k, name));
        assert_string_equal(name, "untouched");
    }
    assert_int_equal(parse(p, n, name), RC_OK);
    assert_string_equal(name, want);
    uint8_t *more = malloc(n + 100);                    /* what follows the hello does not matter */
    memcpy(more, p, n);
    memset(more + n, 0xee, 100);
    assert_int_equal(parse(more, n + 100, name), RC_OK);
    free(more);
}

/* The same message in records of `size` bytes. */
static size_t cut_records(const uint8_t *p, size_t n, size_t size, uint8_t *out)
{
    size_t w = 0;
    for (size_t at = 5; at < n; at += size) {
        size_t part = n - at < size ? n - at : size;
        const uint8_t head[5] = { 22, 3, 1, (uint8_t)(part >> 8), (uint8_t)part };
        memcpy(out + w, head, 5);
        memcpy(out + w + 5, p + at, part);
        w += 5 + part;
    }
    return w;
}

static size_t real_hello(const char *name, int min, int max, uint8_t *out, size_t cap)
{
    SSL_CTX *c = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(c, min);
    SSL_CTX_set_max_proto_version(c, max);
    SSL *s = SSL_new(c);
    BIO *in = BIO_new(BIO_s_mem()), *o = BIO_new(BIO_s_mem());
    SSL_set_bio(s, in, o);
    SSL_set_connect_state(s);
    if (name)
        SSL_set_tlsext_host_name(s, name);
    SSL_do_handshake(s);
    int n = BIO_read(o, out, (int)cap);
    SSL_free(s);
    SSL_CTX_free(c);
    assert_true(n > 50);
    return (size_t)n;
}

static void test_real(void **st)
{
    (void)st;
    static const struct { const char *name, *want; int min, max; } t[] = {
        { "docs.tnl.example", "docs.tnl.example", TLS1_3_VERSION, TLS1_3_VERSION }, { "Docs.TNL.Example", "docs.tnl.example", TLS1_2_VERSION, TLS1_3_VERSION },
        { "docs.tnl.example", "docs.tnl.example", TLS1_2_VERSION, TLS1_2_VERSION }, { NULL, "", TLS1_2_VERSION, TLS1_3_VERSION },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        static uint8_t b[4096], r[65536];
        size_t n = real_hello(t[i].name, t[i].min, t[i].max, b, sizeof b);
        every_split(b, n, t[i].want);
        static const size_t sizes[] = { 1, 3, 4, 5, 17, 100 };
        for (size_t k = 0; k < COUNT_OF(sizes); k++)
            every_split(r, cut_records(b, n, sizes[k], r), t[i].want);
    }
}

/* A hello by hand. `ext` is the text of the extensions. */
static size_t craft(uint8_t *out, const uint8_t *ext, size_t ext_n, bool with_ext)
{
    uint8_t *p = out + 9;
    size_t w = 0;
    p[w++] = 3, p[w++] = 3;
    memset(p + w, 0x5a, 32), w += 32;
    p[w++] = 0;
    p[w++] = 0, p[w++] = 2, p[w++] = 0x13, p[w++] = 1;
    p[w++] = 1, p[w++] = 0;
    if (with_ext) {
        p[w++] = (uint8_t)(ext_n >> 8), p[w++] = (uint8_t)ext_n;
        memcpy(p + w, ext, ext_n), w += ext_n;
    }
    const uint8_t head[9] = { 22, 3, 1, (uint8_t)((w + 4) >> 8), (uint8_t)(w + 4), 1, (uint8_t)(w >> 16), (uint8_t)(w >> 8), (uint8_t)w };
    memcpy(out, head, 9);
    return w + 9;
}

static size_t ext_name(uint8_t *out, const char *name, size_t n)
{
    const uint8_t head[9] = { 0, 0, (uint8_t)((n + 5) >> 8), (uint8_t)(n + 5), (uint8_t)((n + 3) >> 8), (uint8_t)(n + 3), 0, (uint8_t)(n >> 8), (uint8_t)n };
    memcpy(out, head, 9);
    memcpy(out + 9, name, n);
    return n + 9;
}

/* A key share as large as the hybrid ones (1216 bytes for X25519MLKEM768, more with a second share), in front of the name. */
static void test_large(void **st)
{
    (void)st;
    static uint8_t ext[20000], b[40000], r[200000];
    for (size_t share = 1216; share < 12000; share = share * 2 + 1) {
        const size_t all = share + 4;
        const uint8_t head[10] = { 0, 51, (uint8_t)((all + 2) >> 8), (uint8_t)(all + 2), (uint8_t)(all >> 8), (uint8_t)all, 0x11, 0xec, (uint8_t)(share >> 8), (uint8_t)share };
        memcpy(ext, head, 10);
        memset(ext + 10, 0xa5, share);
        size_t n = 10 + share;
        n += ext_name(ext + n, "a.example", 9);
        n = craft(b, ext, n, true);
        every_split(b, n, "a.example");
        if (share < 3000)
            every_split(r, cut_records(b, n, 600, r), "a.example");
    }
}

static void test_limits(void **st)
{
    (void)st;
    static uint8_t ext[40000], b[60000], r[200000];
    char name[HELLO_NAME_MAX] = "untouched";
    /* padding (extension 21) that makes the whole hello exactly as large as it may be, and one byte more */
    for (size_t over = 0; over < 2; over++) {
        size_t n = ext_name(ext, "a.example", 9), fixed = craft(b, ext, n, true), pad = HELLO_MAX - fixed - 4 + over;
        const uint8_t head[4] = { 0, 21, (uint8_t)(pad >> 8), (uint8_t)pad };
        memcpy(ext + n, head, 4);
        memset(ext + n + 4, 0, pad);
        n = craft(b, ext, n + 4 + pad, true);
        assert_int_equal(n, HELLO_MAX + over);
        assert_int_equal(parse(b, n, name), over ? RC_TOO_LARGE : RC_OK);
        if (over)
            assert_int_equal(parse(b, 20, name), RC_TOO_LARGE);             /* said before the bytes have come */
        size_t m = cut_records(b, n, 1, r);                                 /* six bytes on the wire for each one */
        assert_int_equal(parse(r, m, name), RC_TOO_LARGE);
        assert_int_equal(parse(r, HELLO_MAX, name), RC_TOO_LARGE);
    }
    strcpy(name, "untouched");
    char longest[256];
    memset(longest, 'a', sizeof longest);
    longest[100] = longest[200] = '.';
    every_split(b, craft(b, ext, ext_name(ext, longest, 255), true), (longest[255] = '\0', longest));
    longest[255] = 'a';
    assert_int_equal(parse(b, craft(b, ext, ext_name(ext, longest, 256), true), name), RC_INVALID);
}

static void test_names(void **st)
{
    (void)st;
    static const char *const bad[] = { "", ".", "a.", ".a", "a..b", "a b", "a/b", "a:443", "\xc3\xa9.example", "a\nb", "*.example", "[::1]" };
    static uint8_t ext[1000], b[2000];
    char name[HELLO_NAME_MAX] = "untouched";
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        size_t n = craft(b, ext, ext_name(ext, bad[i], strlen(bad[i])), true);
        if (parse(b, n, name) != RC_INVALID)
            fail_msg("\"%s\"", bad[i]);
    }
    assert_int_equal(parse(b, craft(b, ext, ext_name(ext, "a\0b", 3), true), name), RC_INVALID);
    assert_string_equal(name, "untouched");
    size_t one = ext_name(ext, "a.example", 9);
    assert_int_equal(parse(b, craft(b, ext, one + ext_name(ext + one, "b.example", 9), true), name), RC_INVALID);       /* the extension twice */
    static const uint8_t two[] = { 0, 0, 0, 10, 0, 8, 0, 0, 1, 'a', 0, 0, 1, 'b' }, other[] = { 0, 0, 0, 10, 0, 8, 9, 0, 1, 'a', 0, 0, 1, 'b' },
                         none[] = { 0, 0, 0, 2, 0, 0 }, empty[] = { 0, 0, 0, 0 }, tail[] = { 0, 0, 0, 7, 0, 4, 0, 0, 1, 'a', 9 }, cut[] = { 0, 0, 0, 9, 0, 4, 0, 0, 1, 'a' };
    assert_int_equal(parse(b, craft(b, two, sizeof two, true), name), RC_INVALID);      /* two names of one type */
    assert_int_equal(parse(b, craft(b, none, sizeof none, true), name), RC_INVALID);
    assert_int_equal(parse(b, craft(b, empty, sizeof empty, true), name), RC_INVALID);
    assert_int_equal(parse(b, craft(b, tail, sizeof tail, true), name), RC_INVALID);
    assert_int_equal(parse(b, craft(b, cut, sizeof cut, true), name), RC_INVALID);
    assert_string_equal(name, "untouched");
    every_split(b, craft(b, other, sizeof other, true), "b");                           /* a type nobody knows stands before it */
    every_split(b, craft(b, NULL, 0, false), "");
    every_split(b, craft(b, ext, 0, true), "");
}

static void test_not_hello(void **st)
{
    (void)st;
    static const struct { const char *p; size_t n; } t[] = {
        { "G", 1 }, { "GET / HTTP/1.1\r\n\r\n", 18 }, { "\x16\x02", 2 }, { "\x15\x03\x01\x00\x02\x02\x28", 7 }, { "\x17\x03\x03\x00\x10", 5 },
        { "\x16\x03\x01\x00\x00", 5 },                      /* an empty record */
        { "\x16\x03\x01\x40\x01", 5 },                      /* a record over 2^14 */
        { "\x16\x03\x01\x00\x04\x02", 6 },                  /* a ServerHello */
        { "\x80\x2e\x01\x03\x01", 5 },                      /* SSL 2.0 */
        { "\x16\x03\x01\x00\x01\x01\x15\x03\x01", 9 },      /* an alert in the middle of the message */
        { "\x16\x03\x01\x00\x04\x01\x00\x00\x00", 9 },      /* an empty message */
    };
    char name[HELLO_NAME_MAX];
    for (size_t i = 0; i < COUNT_OF(t); i++)
        if (parse((const uint8_t *)t[i].p, t[i].n, name) != RC_INVALID)
            fail_msg("row %zu", i);
    assert_int_equal(parse((const uint8_t *)"", 0, name), RC_AGAIN);
}

int main(void)
{
    const struct CMUnitTest t[] = { cmocka_unit_test(test_real), cmocka_unit_test(test_large), cmocka_unit_test(test_limits), cmocka_unit_test(test_names), cmocka_unit_test(test_not_hello) };
    return cmocka_run_group_tests(t, NULL, NULL);
}
