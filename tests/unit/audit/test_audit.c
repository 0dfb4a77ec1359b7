#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "audit/audit.h"
#include "base/fd.h"

static char dir[] = "/tmp/outwork-audit-XXXXXX", path[64];

static void add(struct audit *a, const char *kind, int n)
{
    struct err e = { 0 };
    json_t *f = json_object();
    js_set_int(f, "n", n);
    assert_int_equal(audit_add(a, kind, f, &e), RC_OK);
}

static int verify(const char *head, uint64_t *lines, char out[65])
{
    struct err e = { 0 };
    return audit_verify(path, head, lines, out, &e);
}

static void rewrite(const char *from, const char *to)
{
    char *text;
    size_t n;
    struct err e = { 0 };
    assert_int_equal(fd_read_file(AT_FDCWD, path, MIB, &text, &n, &e), RC_OK);
    char *at = strstr(text, from);
    assert_non_null(at);
    assert_int_equal(strlen(from), strlen(to));
    memcpy(at, to, strlen(to));
    assert_int_equal(fd_write_file_atomic(path, text, n, 0600, &e), RC_OK);
    free(text);
}

static void chain_continues_and_shows_every_change(void **st)
{
    (void)st;
    struct audit *a = NULL, *b = NULL;
    struct err e = { 0 };
    uint64_t lines = 0;
    char head[65], head2[65];
    assert_int_equal(audit_open(path, &a, &e), RC_OK);
    assert_int_equal(audit_open(path, &b, &e), RC_CONFLICT);
    for (int i = 0; i < 100; i++)
        add(a, "tool", i);
    assert_int_equal(audit_sync(a, &e), RC_OK);
    audit_close(a);
    assert_int_equal(verify(NULL, &lines, head), RC_OK);
    assert_int_equal(lines, 100);
    assert_int_equal(audit_open(path, &a, &e), RC_OK);
    add(a, "lease", 1);
    audit_close(a);
    assert_int_equal(verify(head, &lines, head2), RC_INVALID);        /* no longer the end */
    assert_int_equal(verify(NULL, &lines, head2), RC_OK);
    assert_int_equal(lines, 101);
    assert_int_equal(verify(head2, &lines, head), RC_OK);
    rewrite("\"n\":42}", "\"n\":43}");
    assert_int_equal(verify(NULL, &lines, head), RC_INVALID);
    assert_int_equal(audit_open(path, &a, &e), RC_INVALID);           /* not continued over a break */
    rewrite("\"n\":43}\n{\"seq\":43", "\"n\":42}\n{\"seq\":43");
    assert_int_equal(verify(NULL, &lines, head), RC_OK);
}

static void a_torn_line_is_cut_off_and_told(void **st)
{
    (void)st;
    struct audit *a = NULL;
    struct err e = { 0 };
    uint64_t lines = 0, before = 0;
    char head[65];
    assert_int_equal(verify(NULL, &before, head), RC_OK);
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    assert_int_equal(write(fd, "{\"seq\":101,\"ti", 14), 14);
    close(fd);
    assert_int_equal(verify(NULL, &lines, head), RC_INVALID);
    assert_int_equal(audit_open(path, &a, &e), RC_OK);
    audit_close(a);
    assert_int_equal(verify(NULL, &lines, head), RC_OK);
    assert_int_equal(lines, before + 1);
}

static void a_record_over_the_limit_is_refused_and_harms_nothing(void **st)
{
    (void)st;
    struct audit *a = NULL;
    struct err e = { 0 };
    uint64_t lines;
    char head[65], *big = calloc(1, 300 * KIB);
    memset(big, 'x', 300 * KIB - 1);
    assert_int_equal(audit_open(path, &a, &e), RC_OK);
    json_t *f = json_object();
    js_set_str(f, "big", big);
    assert_true(audit_add(a, "tool", f, &e) < 0);
    add(a, "tool", 5);
    audit_close(a);
    assert_int_equal(verify(NULL, &lines, head), RC_OK);
    free(big);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chain_continues_and_shows_every_change),
        cmocka_unit_test(a_torn_line_is_cut_off_and_told),
        cmocka_unit_test(a_record_over_the_limit_is_refused_and_harms_nothing),
    };
    if (!mkdtemp(dir))
        return 1;
    snprintf(path, sizeof path, "%s/audit.jsonl", dir);
    int bad = cmocka_run_group_tests(tests, NULL, NULL);
    struct err e;
    (void)!fd_remove_tree(AT_FDCWD, dir, &e);
    return bad;
}
