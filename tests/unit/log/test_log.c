#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "log/log.h"

static int64_t fake(void) { return 1775046896789; }
static int saved_stderr = -1, capture[2];
static const char *volatile null_text;
static char text[1 << 17];

static void begin(enum log_format f)
{
    clock_set_fake(fake);
    log_setup(LOG_INFO, f, "worker");
    assert_int_equal(pipe2(capture, O_CLOEXEC), 0);
    (void)fcntl(capture[1], F_SETPIPE_SZ, 1 << 17);
    saved_stderr = dup(STDERR_FILENO);
    assert_true(dup2(capture[1], STDERR_FILENO) >= 0);
    close(capture[1]);
}

static const char *end(void)
{
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    clock_set_fake(NULL);
    size_t n = 0;
    for (ssize_t got; (got = read(capture[0], text + n, sizeof text - 1 - n)) > 0;)
        n += (size_t)got;
    close(capture[0]);
    text[n] = 0;
    return text;
}

#define T "2026-04-01T12:34:56.789Z"

static void text_form(void **st)
{
    (void)st;
    begin(LOG_TEXT);
    log_info("work.claimed", "id=%s n=%d", "work_1", 5);
    log_debug("not.shown", "x=%d", 1);
    log_info("q", "a=%s b=%s c=%s d=%s", "two words", "", null_text, "x=\"y\"\\");
    log_info("forge", "msg=%s end=%d", "a\nERROR fake level=error key=\x1b[31m\r\t", 1);
    log_info("unicode", "a=%s b=%s c=%s d=%s", "\xc3\xa9", "bad\xff", "\xc2\x9b" "31m", "l\xe2\x80\xa8n \xe2\x80\xae.");
    log_info("numbers", "a=%u b=%ld c=%lu d=%lld e=%llu f=%zu g=%x h=%.2f i=%.3f", 4000000000u, -5L, 6UL, -7LL, 8ULL, (size_t)9, 255u, 1.5, -0.25);
    log_info("mixed", "addr=%s:%d part=%.3s star=%.*s pct=%d%%  lone plain=word", "h", 80, "abcdef", 2, "xyz", 50);
    log_info("none", " %s n=%d", "a b", 1);
    log_info("key", "k%d=%d n=%d", 1, 2, 3);
    log_info("empty", "  ");
    log_error("bad", "a=%d b=%p c=%s", 1, (void *)0, "x");
    struct err e = { .rc = RC_IO, .sys_errno = EIO, .msg = "open x" };
    log_err(LOG_WARN, "file", &e);
    e.sys_errno = 0;
    log_err(LOG_ERROR, "file", &e);
    const char *got = end();
    static const char want[] =
        T " INFO work.claimed role=worker id=work_1 n=5\n"
        T " INFO q role=worker a=\"two words\" b=\"\" c=\"\" d=\"x=\\\"y\\\"\\\\\"\n"
        T " INFO forge role=worker msg=\"a\\nERROR fake level=error key=\\u001b[31m\\u000d\\t\" end=1\n"
        T " INFO unicode role=worker a=\"\xc3\xa9\" b=\"bad\xef\xbf\xbd\" c=\"\\u009b31m\" d=\"l\\u2028n \\u202e.\"\n"
        T " INFO numbers role=worker a=4000000000 b=-5 c=6 d=-7 e=8 f=9 g=ff h=1.50 i=-0.250\n"
        T " INFO mixed role=worker addr=h:80 part=abc star=xy pct=50% lone=\"\" plain=word\n"
        T " INFO none role=worker msg=\"a b\" n=1\n"
        T " INFO key role=worker log_format_error=\"k%d=%d n=%d\"\n"
        T " INFO empty role=worker\n"
        T " ERROR bad role=worker a=1 log_format_error=\"a=%d b=%p c=%s\"\n"
        T " WARN file role=worker rc=IO error=\"open x\" errno=5\n"
        T " ERROR file role=worker rc=IO error=\"open x\"\n";
    assert_string_equal(got, want);
}

static void json_form(void **st)
{
    (void)st;
    begin(LOG_JSON);
    log_info("work.claimed", "id=%s n=%d hex=%x d=%.1f pad=%03d txt=%s", "5", 5, 255u, 0.5, 7, "a\"b\n");
    log_info("numbers", "inf=%.1f neg=%lld mix=%d%s", 1.0 / 0.0, -9LL, 5, "x");
    const char *got = end();
    static const char want[] =
        "{\"time\":\"" T "\",\"level\":\"info\",\"event\":\"work.claimed\",\"role\":\"worker\",\"id\":\"5\",\"n\":5,\"hex\":\"ff\",\"d\":0.5,\"pad\":\"007\",\"txt\":\"a\\\"b\\n\"}\n"
        "{\"time\":\"" T "\",\"level\":\"info\",\"event\":\"numbers\",\"role\":\"worker\",\"inf\":\"inf\",\"neg\":-9,\"mix\":\"5x\"}\n";
    assert_string_equal(got, want);
}

static void limits(void **st)
{
    (void)st;
    for (int f = LOG_TEXT; f <= LOG_JSON; f++) {
        char big[5000], euro[2000];
        memset(big, 'x', sizeof big - 1);
        big[sizeof big - 1] = 0;
        begin((enum log_format)f);
        log_info("big", "a=%s end=%d", big, 1);
        log_info("many", "a=%s b=%s c=%s d=%s e=%s end=%d", big, big, big, big, big, 1);
        memset(big, '\n', sizeof big - 1);
        log_info("esc", "a=%s b=%s c=%s d=%s end=%d", big, big, big, big, 1);
        for (size_t pad = 0; pad < 4; pad++) {
            memset(euro, 'y', pad);
            for (size_t i = pad; i + 4 < sizeof euro; i += 3)
                memcpy(euro + i, "\xe2\x82\xac", 4);
            log_info("euro", "a=%s", euro);
        }
        char *p = (char *)(uintptr_t)end();
        int lines = 0;
        for (char *nl; (nl = strchr(p, '\n')); p = nl + 1, lines++) {
            *nl = 0;
            assert_true(nl - p < 4096);
            assert_int_equal(strstr(p, f == LOG_JSON ? "\"cut\":true}" : " cut=true") != NULL, lines == 1 || lines == 2);
            assert_int_equal(strstr(p, f == LOG_JSON ? "\"end\":1}" : " end=1") != NULL, lines == 0);
            assert_non_null(strstr(p, "...") );
            assert_null(strstr(p, "\xef\xbf\xbd"));
        }
        assert_int_equal(lines, 7);
    }
}

static void *writer(void *arg)
{
    for (int i = 0; i < 200; i++)
        log_info("thread", "name=%s i=%d", (const char *)arg, i);
    return NULL;
}

static void threads(void **st)
{
    (void)st;
    begin(LOG_TEXT);
    pthread_t a, b;
    assert_int_equal(pthread_create(&a, NULL, writer, (void *)(uintptr_t)"one two"), 0);
    assert_int_equal(pthread_create(&b, NULL, writer, (void *)(uintptr_t)"three"), 0);
    pthread_join(a, NULL);
    pthread_join(b, NULL);
    char *p = (char *)(uintptr_t)end();
    int lines = 0;
    for (char *nl; (nl = strchr(p, '\n')); p = nl + 1, lines++)
        assert_memory_equal(p, T " INFO thread role=worker name=", strlen(T) + 30);
    assert_int_equal(lines, 400);
}

static void parse(void **st)
{
    (void)st;
    enum log_level l = LOG_ERROR;
    enum log_format f = LOG_TEXT;
    assert_int_equal(log_level_parse("debug", &l), RC_OK);
    assert_int_equal(l, LOG_DEBUG);
    assert_int_equal(log_level_parse("error", &l), RC_OK);
    assert_int_equal(l, LOG_ERROR);
    assert_int_equal(log_level_parse("Error", &l), RC_INVALID);
    assert_int_equal(log_level_parse("", &l), RC_INVALID);
    assert_int_equal(log_level_parse(NULL, &l), RC_INVALID);
    assert_int_equal(log_format_parse("json", &f), RC_OK);
    assert_int_equal(f, LOG_JSON);
    assert_int_equal(log_format_parse("text", &f), RC_OK);
    assert_int_equal(f, LOG_TEXT);
    assert_int_equal(log_format_parse(NULL, &f), RC_INVALID);
    log_setup(LOG_ERROR, LOG_TEXT, NULL);
    assert_true(!log_on(LOG_WARN) && log_on(LOG_ERROR));
    errno = 77;
    log_warn("not.shown", "x=%d", 1);
    assert_int_equal(errno, 77);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_form), cmocka_unit_test(json_form), cmocka_unit_test(limits), cmocka_unit_test(threads), cmocka_unit_test(parse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
