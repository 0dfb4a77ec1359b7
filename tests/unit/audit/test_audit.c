#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

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

/* Makes the file from text and opens it. */
static int open_text(const char *text, size_t n, struct err *e)
{
    struct audit *a = NULL;
    assert_int_equal(fd_write_file_atomic(path, text, n, 0600, e), RC_OK);
    int rc = audit_open(path, &a, e);
    if (rc == RC_OK)
        audit_close(a);
    return rc;
}

#define ZEROS "0000000000000000000000000000000000000000000000000000000000000000"
#define LINE(seq, prev) "{\"seq\":" seq ",\"time\":\"2026-04-01T12:34:56.789Z\",\"prev\":\"" prev "\",\"kind\":\"k\"}\n"

static void only_a_good_end_is_continued(void **st)
{
    (void)st;
    struct err e = { 0 };
    uint64_t lines = 9;
    char head[65];
    static const struct { const char *text; int rc; const char *why; } row[] = {
        { "", RC_OK, "" }, { LINE("0", ZEROS), RC_OK, "" }, { "torn", RC_OK, "" }, { LINE("0", ZEROS) "{", RC_OK, "" }, { "\n", RC_INVALID, "no record" },
        { "{}\n", RC_INVALID, "no record" }, { "\n" LINE("0", ZEROS), RC_INVALID, "is empty" }, { LINE("1", ZEROS), RC_INVALID, "no record" }, { LINE("-1", ZEROS), RC_INVALID, "no record" },
        { LINE("0", "x"), RC_INVALID, "does not continue" }, { LINE("0", ZEROS) LINE("0", ZEROS), RC_INVALID, "no record" },
        { LINE("0", ZEROS) LINE("1", ZEROS), RC_INVALID, "line 2 does not continue the line before it" },
        { "{\"seq\":0,\"prev\":\"" ZEROS "\",\"kind\":\"k\"}\n", RC_INVALID, "no kind or no time" },
        { "{\"seq\":0,\"time\":\"2026-04-01T12:34:56.789Z\",\"prev\":\"" ZEROS "\"}\n", RC_INVALID, "no kind or no time" },
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        int rc = open_text(row[i].text, strlen(row[i].text), &e);
        if (rc != row[i].rc || (rc && !strstr(e.msg, row[i].why)))
            fail_msg("row %zu: rc %d: %s", i, rc, e.msg);
        if (rc)
            assert_int_equal(verify(NULL, &lines, head), RC_INVALID);
        else
            assert_int_equal(verify(NULL, &lines, head), RC_OK);
    }
    size_t n = 1024 * KIB;
    char *big = malloc(n);
    memset(big, 'x', n);
    assert_int_equal(open_text(big, n, &e), RC_INVALID);
    big[n - 1] = '\n';
    assert_int_equal(open_text(big, n, &e), RC_INVALID);
    memset(big, 0, n);
    assert_int_equal(open_text(big, 4096, &e), RC_OK);      /* zeros of a crashed file system: torn */
    assert_int_equal(verify(NULL, &lines, head), RC_OK);
    assert_int_equal(lines, 1);
    free(big);
}

static void a_line_at_the_limit_and_a_full_tail(void **st)
{
    (void)st;
    struct audit *a = NULL;
    struct err e = { 0 };
    uint64_t lines = 0;
    char head[65], *big = calloc(1, 256 * KIB + 1);
    memset(big, 'x', 256 * KIB);
    assert_int_equal(fd_write_file_atomic(path, "", 0, 0600, &e), RC_OK);
    assert_int_equal(audit_open(path, &a, &e), RC_OK);
    size_t low = 0, high = 256 * KIB;       /* the longest text that fits */
    while (low + 1 < high) {
        size_t mid = (low + high) / 2;
        json_t *f = json_object();
        js_set_strn(f, "t", big, mid);
        if (audit_add(a, "tool", f, &e) == RC_OK)
            low = mid;
        else
            high = mid;
    }
    for (int i = 0; i < 2; i++) {
        json_t *f = json_object();
        js_set_strn(f, "t", big, low);
        assert_int_equal(audit_add(a, "tool", f, &e), RC_OK);
    }
    audit_close(a);
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    assert_int_equal(write(fd, big, 256 * KIB - 1), 256 * KIB - 1);
    close(fd);
    assert_int_equal(audit_open(path, &a, &e), RC_OK);      /* two lines of full length and a torn one */
    audit_close(a);
    assert_int_equal(verify(NULL, &lines, head), RC_OK);
    free(big);
}

static void own_fields_and_files_of_others_are_refused(void **st)
{
    (void)st;
    struct audit *a = NULL;
    struct err e = { 0 };
    uint64_t lines = 0;
    char head[65];
    static const char *const own[] = { "seq", "time", "prev", "kind" };
    assert_int_equal(fd_write_file_atomic(path, "", 0, 0600, &e), RC_OK);
    assert_int_equal(audit_open(path, &a, &e), RC_OK);
    for (size_t i = 0; i < 4; i++) {
        json_t *f = json_object();
        js_set_int(f, own[i], 5);
        assert_int_equal(audit_add(a, "tool", f, &e), RC_INVALID);
    }
    add(a, "tool", 1);
    audit_close(a);
    assert_int_equal(verify(NULL, &lines, head), RC_OK);
    assert_int_equal(lines, 1);
    assert_int_equal(chmod(path, 0620), 0);
    assert_int_equal(audit_open(path, &a, &e), RC_DENIED);
    assert_int_equal(chmod(path, 0644), 0);
    assert_int_equal(audit_open(path, &a, &e), RC_OK);
    audit_close(a);
    assert_int_equal(audit_open(dir, &a, &e), RC_IO);
    char link[80];
    snprintf(link, sizeof link, "%s/link", dir);
    assert_int_equal(symlink(path, link), 0);
    assert_int_equal(audit_open(link, &a, &e), RC_IO);
    assert_int_equal(audit_open("/nonexistent/x", &a, &e), RC_IO);
    assert_int_equal(audit_verify("/nonexistent/x", NULL, &lines, head, &e), RC_IO);
}

/* A disk that fills up in the middle of a line. */
static void a_line_cut_by_a_full_disk_is_taken_back(void **st)
{
    (void)st;
    struct audit *a = NULL;
    struct err e = { 0 };
    uint64_t lines = 0;
    char head[65];
    assert_int_equal(fd_write_file_atomic(path, "", 0, 0600, &e), RC_OK);
    assert_int_equal(audit_open(path, &a, &e), RC_OK);
    add(a, "tool", 1);
    struct rlimit was, small;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    small = was;
    small.rlim_cur = 300;       /* the second line ends beyond it */
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    json_t *f = json_object();
    js_set_str(f, "t", "a text that is long enough for the line to end beyond the limit of the file, wherever that is");
    int rc = audit_add(a, "tool", f, &e);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    assert_int_equal(rc, RC_IO);
    add(a, "tool", 2);
    audit_close(a);
    assert_int_equal(verify(NULL, &lines, head), RC_OK);
    assert_int_equal(lines, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chain_continues_and_shows_every_change),
        cmocka_unit_test(a_torn_line_is_cut_off_and_told),
        cmocka_unit_test(a_record_over_the_limit_is_refused_and_harms_nothing),
        cmocka_unit_test(only_a_good_end_is_continued),
        cmocka_unit_test(a_line_at_the_limit_and_a_full_tail),
        cmocka_unit_test(own_fields_and_files_of_others_are_refused),
        cmocka_unit_test(a_line_cut_by_a_full_disk_is_taken_back),
    };
    if (!mkdtemp(dir))
        return 1;
    snprintf(path, sizeof path, "%s/audit.jsonl", dir);
    int bad = cmocka_run_group_tests(tests, NULL, NULL);
    struct err e;
    (void)!fd_remove_tree(AT_FDCWD, dir, &e);
    return bad;
}
