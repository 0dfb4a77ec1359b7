/* The small pure rules: backoff, outcomes, credentials, lease interval, skill names and versions, names in archives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/base64.h"
#include "base/str.h"
#include "worker/backoff.h"
#include "worker/creds.h"
#include "worker/lease.h"
#include "worker/skills.h"
#include "worker/unpack.h"

static void test_backoff(void **state)
{
    (void)state;
    static const struct { const struct backoff *b; int64_t low[8], high; } rows[] = {
        { &backoff_poll, { 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000 }, 60000 },
        { &backoff_stream, { 250, 500, 1000, 2000, 4000, 5000, 5000, 5000 }, 10000 },
        { &backoff_result, { 750, 1500, 3000, 6000, 12000, 22500, 22500, 22500 }, 30000 },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct backoff lo = *rows[i].b, hi = *rows[i].b;
        for (int k = 0; k < 8; k++) {
            assert_int_equal(backoff_next(&lo, 0.0), rows[i].low[k]);
            int64_t h = backoff_next(&hi, 0.999999);
            assert_true(h >= rows[i].low[k] && h < rows[i].high);
        }
        backoff_reset(&lo);
        assert_int_equal(backoff_next(&lo, 0.0), rows[i].low[0]);
        for (int k = 0; k < 1000; k++)
            assert_true(backoff_next(&lo, 0.5) <= rows[i].high);
    }
}

static void head_with(struct http_head *h, const char *name, const char *value)
{
    memset(h, 0, sizeof *h);
    if (!name)
        return;
    h->headers[0] = (struct http_header){ slice_of(name), slice_of(value) };
    h->n_headers = 1;
}

static void test_outcome(void **state)
{
    (void)state;
    static const struct { int status; const char *should; enum api_outcome want; } rows[] = {
        { 200, NULL, API_OK }, { 204, NULL, API_OK }, { 299, NULL, API_OK }, { 400, NULL, API_FATAL }, { 401, NULL, API_FATAL },
        { 404, NULL, API_FATAL }, { 408, NULL, API_RETRY }, { 409, NULL, API_RETRY }, { 412, NULL, API_FATAL }, { 429, NULL, API_RETRY },
        { 500, NULL, API_RETRY }, { 503, NULL, API_RETRY }, { 529, NULL, API_RETRY }, { 302, NULL, API_FATAL }, { 0, NULL, API_RETRY },
        { 400, "true", API_RETRY }, { 500, "false", API_FATAL }, { 500, "maybe", API_RETRY }, { 200, "true", API_OK },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct http_head h;
        head_with(&h, rows[i].should ? "X-Should-Retry" : NULL, rows[i].should);
        assert_int_equal(api_outcome_of(rows[i].status, &h), rows[i].want);
    }
    assert_int_equal(api_outcome_of(200, NULL), API_OK);
}

static void test_retry_after(void **state)
{
    (void)state;
    static const struct { const char *name, *value; int64_t want; } rows[] = {
        { NULL, NULL, -1 }, { "Retry-After", "3", 3000 }, { "retry-after-ms", "250", 250 }, { "retry-after", "0", 0 },
        { "retry-after", "Wed, 21 Oct 2026 07:28:00 GMT", -1 }, { "retry-after", "-1", -1 }, { "retry-after", "999999", RETRY_AFTER_MAX_MS },
        { "retry-after-ms", "60001", RETRY_AFTER_MAX_MS },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct http_head h;
        head_with(&h, rows[i].name, rows[i].value);
        assert_int_equal(retry_after_ms(&h), rows[i].want);
    }
    assert_int_equal(retry_after_ms(NULL), -1);
}

static void test_creds(void **state)
{
    (void)state;
    static const struct { const char *json, *want; } rows[] = {
        { "{\"sessions_token\":\"sk-ant-req-1\"}", "sk-ant-req-1" },
        { "{\"sessions_token\":\"t\",\"api_base_url\":\"https://x\",\"other\":1}", "t" },
        { "{\"sessions_token\":\"\"}", NULL }, { "{\"sessions_token\":7}", NULL }, { "{\"sessions_token\":null}", NULL }, { "{}", NULL },
        { "[]", NULL }, { "\"x\"", NULL }, { "{", NULL }, { "{\"sessions_token\":\"a\\nb\"}", NULL }, { "{\"sessions_token\":\"a b\"}", NULL },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        for (int form = 0; form < 3; form++) {
            struct buf b;
            struct err e;
            buf_init(&b, 4096);
            if (form == 2)
                buf_puts(&b, " \n");
            (void)(form ? base64url_encode(&b, rows[i].json, strlen(rows[i].json)) : base64_encode(&b, rows[i].json, strlen(rows[i].json)));
            if (form == 2)
                buf_puts(&b, "\n");
            struct secret *s = NULL;
            int rc = creds_decode(buf_data(&b), buf_len(&b), &s, &e);
            assert_int_equal(rc, rows[i].want ? RC_OK : RC_INVALID);
            if (rows[i].want)
                assert_string_equal(secret_text(s), rows[i].want);
            secret_free(s);
            buf_done(&b);
        }
    struct secret *s = NULL;
    struct err e;
    assert_int_equal(creds_decode("", 0, &s, &e), RC_INVALID);
    assert_int_equal(creds_decode("!!!", 3, &s, &e), RC_INVALID);
    assert_null(strstr(e.msg, "!!!"));       /* a secret is never repeated in a message */
}

static void test_lease_interval(void **state)
{
    (void)state;
    static const struct { int64_t ttl, want; } rows[] = { { 0, 1000 }, { 1000, 1000 }, { 2000, 1000 }, { 2002, 1001 }, { 30000, 15000 }, { 60000, 30000 },
                                                          { 60002, 30000 }, { 300000, 30000 }, { INT64_MAX, 30000 } };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        assert_int_equal(lease_interval_ms(rows[i].ttl), rows[i].want);
}

static void test_skill_versions(void **state)
{
    (void)state;
    assert_true(skill_version_exact("20260101"));
    assert_true(skill_version_exact("0"));
    assert_false(skill_version_exact(""));
    assert_false(skill_version_exact("latest"));
    assert_false(skill_version_exact("1.2"));
    assert_false(skill_version_exact(NULL));
    assert_true(skill_version_cmp("9", "10") < 0);
    assert_true(skill_version_cmp("10", "9") > 0);
    assert_true(skill_version_cmp("007", "7") == 0);
    assert_true(skill_version_cmp("1759178010641129", "1759178010641130") < 0);
    assert_true(skill_version_cmp("99999999999999999999999999", "100000000000000000000000000") < 0);
}

static void test_skill_names(void **state)
{
    (void)state;
    static const struct { const char *name, *want; } rows[] = {
        { "pdf", "pdf" }, { "  pdf \t", "pdf" }, { "a/b/pdf", "pdf" }, { "pdf/", "pdf" }, { "", "ID" }, { NULL, "ID" }, { "..", "ID" }, { "a/..", "ID" },
        { ".", "ID" }, { "/", "ID" }, { "x\ny", "ID" }, { "with space", "with space" },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char out[32];
        skill_dir_name(rows[i].name, "ID", out, sizeof out);
        assert_string_equal(out, rows[i].want);
    }
    char out[4];
    skill_dir_name("long", "ID", out, sizeof out);
    assert_string_equal(out, "ID");
}

static void test_archive_names(void **state)
{
    (void)state;
    static const struct { const char *in, *want; } rows[] = {
        { "a", "a" }, { "./a", "a" }, { "a//b", "a/b" }, { "a/./b", "a/b" }, { "a/", "a" }, { "./", "" }, { ".", "" }, { "", "" }, { "..", NULL },
        { "a/../b", NULL }, { "/a", NULL }, { "a/..", NULL }, { "..a/b..", "..a/b.." }, { "././/./a/b/.", "a/b" },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char name[64];
        (void)str_copy(name, sizeof name, rows[i].in);
        assert_int_equal(unpack_clean_name(name), rows[i].want != NULL);
        if (rows[i].want)
            assert_string_equal(name, rows[i].want);
    }
    static const struct { const char *name; bool ok; } oks[] = {
        { "a", true }, { "a/b.c", true }, { ".hidden/x", true }, { "", false }, { "/a", false }, { "a/", false }, { "a//b", false }, { "./a", false },
        { "a/.", false }, { "..", false }, { "a/../b", false }, { "a\nb", false }, { "a\x7f", false }, { "...", true },
    };
    for (size_t i = 0; i < COUNT_OF(oks); i++)
        assert_int_equal(unpack_name_ok(oks[i].name, strlen(oks[i].name)), oks[i].ok);
    char longest[UNPACK_NAME_MAX + 1];
    memset(longest, 'x', sizeof longest);
    assert_true(unpack_name_ok(longest, UNPACK_NAME_MAX));
    assert_false(unpack_name_ok(longest, UNPACK_NAME_MAX + 1));
    assert_false(unpack_name_ok("a\0b", 3));
    assert_int_equal(unpack_mode(0777), 0755);
    assert_int_equal(unpack_mode(0666), 0644);
    assert_int_equal(unpack_mode(04711), 0755);
    assert_int_equal(unpack_mode(0), 0644);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_backoff), cmocka_unit_test(test_outcome), cmocka_unit_test(test_retry_after), cmocka_unit_test(test_creds),
        cmocka_unit_test(test_lease_interval), cmocka_unit_test(test_skill_versions), cmocka_unit_test(test_skill_names), cmocka_unit_test(test_archive_names),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
