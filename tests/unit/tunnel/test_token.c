#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "base/base64.h"
#include "base/str.h"
#include "tunnel/proto.h"
#include "tunnel/token.h"

static void test_round(void **st)
{
    (void)st;
    struct buf a, b;
    struct err e;
    struct tunnel_token t;
    buf_init(&a, PROTO_TOKEN_MAX);
    buf_init(&b, PROTO_TOKEN_MAX);
    assert_int_equal(tunnel_token_make("acc", "tnl_1", "edge.example:7844", &a, &e), RC_OK);
    assert_int_equal(tunnel_token_make("acc", "tnl_1", NULL, &b, &e), RC_OK);
    assert_true(str_prefix(buf_data(&a), "eyJ"));                           /* what users and other programs know it by */
    assert_string_not_equal(buf_data(&a), buf_data(&b));
    assert_int_equal(tunnel_token_parse(buf_data(&a), buf_len(&a), &t, &e), RC_OK);
    assert_string_equal(t.account, "acc");
    assert_string_equal(t.tunnel_id, "tnl_1");
    assert_string_equal(t.endpoint, "edge.example:7844");
    assert_int_equal(tunnel_token_parse(buf_data(&b), buf_len(&b), &t, &e), RC_OK);
    assert_string_equal(t.endpoint, "");
    char longest[TOKEN_TUNNEL_MAX], endpoint[TOKEN_ENDPOINT_MAX];
    memset(longest, 'x', sizeof longest);
    memset(endpoint, 'e', sizeof endpoint);
    longest[63] = endpoint[TOKEN_ENDPOINT_MAX - 1] = '\0';
    buf_clear(&a);
    assert_int_equal(tunnel_token_make(longest, longest, endpoint, &a, &e), RC_OK);
    assert_int_equal(tunnel_token_parse(buf_data(&a), buf_len(&a), &t, &e), RC_OK);
    assert_string_equal(t.endpoint, endpoint);
    for (size_t n = 0; n < buf_len(&a); n++)                                /* no part of a token is one, but for the padding */
        assert_true(tunnel_token_parse(buf_data(&a), n, &t, &e) == RC_INVALID || buf_data(&a)[n] == '=');
    buf_wipe(&a);
    buf_wipe(&b);
    static const char *const bad[][3] = { { "a\"", "t", "" }, { "a", "", "" }, { "a", "t\\", "" }, { "a", "t", "x y" }, { "a", "t t", "" } };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        assert_int_equal(tunnel_token_make(bad[i][0], bad[i][1], bad[i][2], &a, &e), RC_INVALID);
        assert_int_equal(buf_len(&a), 0);
    }
}

static void test_forms(void **st)
{
    (void)st;
    static const struct { const char *json; int rc; const char *say; } t[] = {
        { "{\"a\":\"f\",\"t\":\"id\",\"s\":\"c2VjcmV0\"}", RC_OK, NULL }, { "{\"s\":\"c2VjcmV0\",\"t\":\"id\"}", RC_OK, NULL },
        { " {\n \"t\" : \"id\" ,\t\"s\" : \"c2VjcmV0\" }\n", RC_OK, NULL }, { "{\"t\":\"i\\u0064\",\"s\":\"c2VjcmV0\",\"v\":1,\"n\":null,\"x\":\"y\"}", RC_OK, NULL },
        { "{\"a\":\"f\",\"t\":\"id\",\"s\":\"c2Vjcg==\"}", RC_OK, NULL }, { "{\"a\":\"f\",\"t\":\"id\",\"s\":\"c2Vjcg\"}", RC_OK, NULL },
        { "{\"a\":\"f\",\"t\":\"\",\"s\":\"c2VjcmV0\"}", RC_INVALID, "no tunnel" }, { "{\"a\":\"f\",\"s\":\"c2VjcmV0\"}", RC_INVALID, "no tunnel" },
        { "{\"a\":\"f\",\"t\":\"id\"}", RC_INVALID, "secret" }, { "{\"a\":\"f\",\"t\":\"id\",\"s\":\"\"}", RC_INVALID, "secret" },
        { "{\"a\":\"f\",\"t\":\"id\",\"s\":\"*not*base64*\"}", RC_INVALID, "secret" }, { "{\"t\":\"id\",\"t\":\"id\",\"s\":\"c2VjcmV0\"}", RC_INVALID, "form" },
        { "{\"t\":\"id\",\"s\":\"c2VjcmV0\"} x", RC_INVALID, "form" }, { "{\"t\":\"id\",\"s\":\"c2VjcmV0\",}", RC_INVALID, "form" },
        { "{\"t\":\"id\",\"s\":\"c2VjcmV0\"", RC_INVALID, "form" }, { "{\"t\":{},\"s\":\"c2VjcmV0\"}", RC_INVALID, "form" }, { "{\"t\":7,\"s\":\"c2VjcmV0\"}", RC_INVALID, "form" },
        { "{\"t\":\"a/../b\",\"s\":\"c2VjcmV0\"}", RC_INVALID, "form" }, { "{\"t\":\"i\\u0000\",\"s\":\"c2VjcmV0\"}", RC_INVALID, "form" },
        { "{\"t\":\"i\\", RC_INVALID, "form" }, { "{\"t\":\"\xc3\xa9\",\"s\":\"c2VjcmV0\"}", RC_INVALID, "form" }, { "{}", RC_INVALID, "form" }, { "[]", RC_INVALID, "form" },
        { "", RC_INVALID, "empty" }, { "{\"x\":[1],\"t\":\"id\",\"s\":\"c2VjcmV0\"}", RC_INVALID, "form" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct buf b;
        struct err e = { 0 };
        struct tunnel_token got = { .tunnel_id = "untouched" };
        buf_init(&b, PROTO_TOKEN_MAX);
        assert_int_equal(base64_encode(&b, t[i].json, strlen(t[i].json)), RC_OK);
        int rc = tunnel_token_parse(buf_data(&b), buf_len(&b), &got, &e);
        if (rc != t[i].rc || (t[i].say && !strstr(e.msg, t[i].say)) || strcmp(got.tunnel_id, rc == RC_OK ? "id" : "untouched") != 0)
            fail_msg("row %zu: rc %d \"%s\" %s", i, rc, e.msg, got.tunnel_id);
        assert_null(strstr(e.msg, "c2V"));
        if (rc == RC_OK && strchr(buf_data(&b), '=')) {                     /* copied without its padding */
            size_t n = strcspn(buf_data(&b), "=");
            assert_int_equal(tunnel_token_parse(buf_data(&b), n, &got, &e), RC_OK);
        }
        buf_done(&b);
    }
    struct tunnel_token got;
    struct err e = { 0 };
    static const char *const text[] = { "not base64!", "eyJ\n", " eyJ", "e" };
    for (size_t i = 0; i < COUNT_OF(text); i++)
        assert_int_equal(tunnel_token_parse(text[i], strlen(text[i]), &got, &e), RC_INVALID);
    char big[PROTO_TOKEN_MAX + 1];
    memset(big, 'A', sizeof big);
    assert_int_equal(tunnel_token_parse(big, sizeof big, &got, &e), RC_INVALID);
    assert_non_null(strstr(e.msg, "longer"));
}

int main(void)
{
    const struct CMUnitTest t[] = { cmocka_unit_test(test_round), cmocka_unit_test(test_forms) };
    return cmocka_run_group_tests(t, NULL, NULL);
}
