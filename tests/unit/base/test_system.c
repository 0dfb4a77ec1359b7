/* clock, random, fd, rmtree, secret. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/random.h"
#include "base/secret.h"
#include "base/str.h"

static char dir[64];

static int64_t now;
static int64_t at(void) { return now; }
static int64_t fake(void) { return 1775046896789; }

static void times(void **st)
{
    (void)st;
    static const struct { const char *s; int rc; int64_t ms; const char *back; } row[] = {
        { "2026-04-01T12:34:56.789Z", 0, 1775046896789, "2026-04-01T12:34:56.789Z" }, { "1970-01-01T00:00:00Z", 0, 0, "1970-01-01T00:00:00.000Z" },
        { "1969-12-31T23:59:59.999Z", 0, -1, "1969-12-31T23:59:59.999Z" }, { "2026-04-01T14:34:56.789+02:00", 0, 1775046896789, "2026-04-01T12:34:56.789Z" },
        { "2026-04-01t07:04:56.7899999999-05:30", 0, 1775046896789, NULL }, { "2024-02-29T00:00:00Z", 0, 1709164800000, NULL },
        { "2000-02-29 00:00:00z", 0, 951782400000, NULL }, { "2016-12-31T23:59:60Z", 0, 1483228800000, "2017-01-01T00:00:00.000Z" },
        { "0000-01-01T00:00:00Z", 0, -62167219200000, "0000-01-01T00:00:00.000Z" }, { "9999-12-31T23:59:59.999Z", 0, 253402300799999, "9999-12-31T23:59:59.999Z" },
        { "2026-04-01T12:34:56.5Z", 0, 1775046896500, "2026-04-01T12:34:56.500Z" },
        { "2023-02-29T00:00:00Z", RC_INVALID, 0, 0 }, { "1900-02-29T00:00:00Z", RC_INVALID, 0, 0 }, { "2026-13-01T00:00:00Z", RC_INVALID, 0, 0 },
        { "2026-00-01T00:00:00Z", RC_INVALID, 0, 0 }, { "2026-04-31T00:00:00Z", RC_INVALID, 0, 0 }, { "2026-04-01T24:00:00Z", RC_INVALID, 0, 0 },
        { "2026-04-01T12:34:56", RC_INVALID, 0, 0 }, { "2026-04-01T12:34:56.Z", RC_INVALID, 0, 0 }, { "2026-04-01T12:34Z", RC_INVALID, 0, 0 },
        { "2026-04-01T12:34:56Zx", RC_INVALID, 0, 0 }, { "2026-04-01T12:34:56+0200", RC_INVALID, 0, 0 }, { "2026-04-01T12:34:56+24:00", RC_INVALID, 0, 0 },
        { "", RC_INVALID, 0, 0 }, { "2026", RC_INVALID, 0, 0 }, { "26-04-01T12:34:56Z", RC_INVALID, 0, 0 }, { NULL, RC_INVALID, 0, 0 },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        int64_t ms = 5;
        char text[RFC3339_MAX];
        assert_int_equal(rfc3339_parse(row[i].s, &ms), row[i].rc);
        assert_true(ms == (row[i].rc ? 5 : row[i].ms));
        if (row[i].rc || !row[i].back)
            continue;
        rfc3339_format(ms, text);
        assert_string_equal(text, row[i].back);
    }
    for (int64_t ms = -62167219200000; ms < 253402300799999; ms += 86399999LL * 77) {
        char text[RFC3339_MAX];
        int64_t back;
        rfc3339_format(ms, text);
        assert_int_equal(rfc3339_parse(text, &back), RC_OK);
        assert_true(back == ms);
    }
    char text[RFC3339_MAX];
    rfc3339_format(INT64_MAX, text);
    assert_string_equal(text, "9999-12-31T23:59:59.999Z");
    rfc3339_format(INT64_MIN, text);
    assert_string_equal(text, "0000-01-01T00:00:00.000Z");
    clock_set_fake(fake);
    assert_true(clock_now_ms() == 1775046896789);
    clock_set_fake(NULL);
    assert_true(clock_now_ms() > 1700000000000 && clock_now_ms() != 1775046896789);
    clock_set_fake_mono(fake);
    assert_true(clock_mono_us() == 1775046896789 && clock_mono_ms() == 1775046896);
    clock_set_fake_mono(NULL);
    int64_t a = clock_mono_us();
    assert_true(a != 1775046896789 && clock_mono_us() >= a && clock_mono_ms() >= a / 1000);
}

static void ids(void **st)
{
    (void)st;
    char a[ID_MAX], b[ID_MAX], t[TOKEN_MAX], u[TOKEN_MAX];
    clock_set_fake(fake);
    id_new("session", a);
    clock_set_fake(NULL);
    assert_int_equal(strlen(a), 7 + 3 + 22);
    assert_true(str_prefix(a, "session_01"));
    assert_int_equal(strspn(a + 10, "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"), 22);
    id_new("session", b);
    assert_string_not_equal(a, b);
    now = 0;        /* equal prefixes sort by age */
    char last[ID_MAX] = "";
    for (int64_t ms = 1; ms < ((int64_t)1 << 48); ms *= 3) {
        now = ms;
        clock_set_fake(at);
        id_new("x", a);
        assert_true(strcmp(last, a) < 0);
        memcpy(last, a, sizeof last);
    }
    clock_set_fake(NULL);
    token_new("ow-key-", t);
    token_new("ow-key-", u);
    assert_int_equal(strlen(t), 7 + 43);
    assert_string_not_equal(t, u);
    assert_int_equal(strspn(t + 7, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"), 43);
    int count[3] = { 0 };
    for (int i = 0; i < 3000; i++) {
        count[random_u32_below(3)]++;
        double d = random_unit();
        assert_true(d >= 0 && d < 1);
    }
    assert_true(count[0] > 800 && count[1] > 800 && count[2] > 800);
    assert_int_equal(random_u32_below(1), 0);
}

static void files(void **st)
{
    (void)st;
    struct err e = { 0 };
    AUTO_FREE char *deep = str_printf("%s/a/b/c", dir), *file = str_printf("%s/f", deep), *nest = str_printf("%s/x/y", file);
    mode_t old = umask(077);
    assert_int_equal(fd_mkdirs(deep, 0755, &e), RC_OK);
    umask(old);
    struct stat s;
    assert_int_equal(stat(deep, &s), 0);
    assert_int_equal(s.st_mode & 07777, 0755);
    assert_int_equal(fd_mkdirs(deep, 0700, &e), RC_OK);
    assert_int_equal(fd_write_file_atomic(file, "hello", 5, 0640, &e), RC_OK);
    assert_int_equal(fd_write_file_atomic(file, "hello!", 6, 0640, &e), RC_OK);
    assert_int_equal(stat(file, &s), 0);
    assert_int_equal(s.st_mode & 07777, 0640);
    assert_true(fd_mkdirs(file, 0755, &e) < 0);
    assert_true(fd_mkdirs(nest, 0755, &e) < 0);
    assert_true(fd_write_file_atomic(nest, "x", 1, 0600, &e) < 0);
    assert_int_equal(fd_write_file_atomic("/tmp/", "x", 1, 0600, &e), RC_INVALID);
    AUTO_FREE char *text = NULL;
    size_t n = 0;
    assert_int_equal(fd_read_file(AT_FDCWD, file, 6, &text, &n, &e), RC_OK);
    assert_int_equal(n, 6);
    assert_string_equal(text, "hello!");
    char *other = NULL;
    assert_int_equal(fd_read_file(AT_FDCWD, file, 5, &other, &n, &e), RC_TOO_LARGE);
    assert_int_equal(fd_read_file(AT_FDCWD, nest, 5, &other, &n, &e), RC_NOT_FOUND);
    assert_int_equal(fd_read_file(AT_FDCWD, deep, 5, &other, &n, &e), RC_IO);
    assert_int_equal(fd_read_file(AT_FDCWD, "/proc/self/status", 20, &other, &n, &e), RC_TOO_LARGE);
    assert_int_equal(fd_read_file(AT_FDCWD, "/proc/self/status", 1 << 20, &other, NULL, &e), RC_OK);
    assert_true(strlen(other) > 100);
    free(other);
    int p[2];
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    assert_int_equal(fd_nonblock(p[1]), RC_OK);
    assert_int_equal(fd_nonblock(p[1]), RC_OK);
    assert_true(fcntl(p[1], F_GETFL) & O_NONBLOCK);
    assert_int_equal(fd_write_all(p[1], "abc", 3, &e), RC_OK);
    close(p[0]);
    close(p[1]);
    assert_int_equal(fd_write_all(-1, "abc", 3, &e), RC_IO);
    assert_int_equal(fd_nonblock(-1), RC_IO);
    AUTO_FREE char *top = str_printf("%s/a", dir);
    assert_int_equal(fd_remove_tree(AT_FDCWD, top, &e), RC_OK);
    assert_int_equal(access(top, F_OK), -1);
}

/* 300 levels, a directory without rights, a link out of the tree, a socket-like odd name: all gone, the link's target is not. */
static void hostile_tree(const char *where)
{
    struct err e = { 0 };
    AUTO_FREE char *tree = str_printf("%s/tree", where), *keep = str_printf("%s/keep", where), *link = str_printf("%s/tree/link", where);
    AUTO_FREE char *locked = str_printf("%s/tree/locked", where), *inside = str_printf("%s/tree/locked/file", where);
    assert_int_equal(fd_mkdirs(tree, 0755, &e), RC_OK);
    assert_int_equal(fd_write_file_atomic(keep, "x", 1, 0600, &e), RC_OK);
    assert_int_equal(symlink(where, link), 0);
    assert_int_equal(fd_mkdirs(locked, 0755, &e), RC_OK);
    assert_int_equal(fd_write_file_atomic(inside, "x", 1, 0, &e), RC_OK);
    int fd = open(tree, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; i < 300; i++) {
        assert_int_equal(mkdirat(fd, "a-directory-with-a-long-name", 0755), 0);
        int next = openat(fd, "a-directory-with-a-long-name", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        close(fd);
        fd = next;
        int f = openat(fd, "file", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        assert_true(f >= 0);
        close(f);
    }
    close(fd);
    assert_int_equal(chmod(locked, 0), 0);
    assert_int_equal(fd_remove_tree(AT_FDCWD, tree, &e), RC_OK);
    assert_int_equal(access(tree, F_OK), -1);
    assert_int_equal(access(keep, F_OK), 0);
    assert_int_equal(fd_remove_tree(AT_FDCWD, tree, &e), RC_OK);
    assert_int_equal(symlink(where, tree), 0);
    assert_int_equal(fd_remove_tree(AT_FDCWD, tree, &e), RC_OK);      /* a link itself */
    assert_int_equal(fd_remove_tree(AT_FDCWD, keep, &e), RC_OK);      /* a file */
}

static void trees(void **st)
{
    (void)st;
    hostile_tree(dir);
    if (geteuid() != 0)
        return;
    AUTO_FREE char *own = str_printf("%s/own", dir);        /* again as an ordinary user, whom modes do hinder */
    assert_int_equal(mkdir(own, 0755), 0);
    assert_int_equal(chown(own, 65534, 65534), 0);
    assert_int_equal(chmod(dir, 0755), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (setgid(65534) || setuid(65534))
            _exit(9);
        hostile_tree(own);
        _exit(0);
    }
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void secrets(void **st)
{
    (void)st;
    struct err e = { 0 };
    AUTO_FREE char *path = str_printf("%s/secret", dir);
    struct secret *s = NULL;
    static const struct { const char *text; unsigned mode; int rc; const char *want; } row[] = {
        { " sk-1 \r\n", 0600, RC_OK, "sk-1" }, { "sk 2", 0640, RC_OK, "sk 2" }, { "", 0600, RC_INVALID, 0 }, { " \n", 0600, RC_INVALID, 0 },
        { "x", 0604, RC_DENIED, 0 }, { "x", 0602, RC_DENIED, 0 }, { "x", 0601, RC_OK, "x" },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        assert_int_equal(fd_write_file_atomic(path, row[i].text, strlen(row[i].text), row[i].mode, &e), RC_OK);
        int projected = row[i].mode & 0002 ? RC_DENIED : row[i].rc == RC_DENIED ? RC_OK : row[i].rc;         /* others may read such a token */
        assert_int_equal(secret_read_projected(path, &s, &e), projected);
        if (projected == RC_OK)
            secret_free(s);
        assert_int_equal(secret_read_file(path, &s, &e), row[i].rc);
        if (row[i].rc)
            continue;
        assert_string_equal(secret_text(s), row[i].want);
        assert_int_equal(secret_len(s), strlen(row[i].want));
        secret_free(s);
    }
    char *big = xcalloc(1, 64 * KIB + 1);
    memset(big, 'x', 64 * KIB + 1);
    assert_int_equal(fd_write_file_atomic(path, big, 64 * KIB + 1, 0600, &e), RC_OK);
    assert_int_equal(secret_read_file(path, &s, &e), RC_TOO_LARGE);
    assert_int_equal(fd_write_file_atomic(path, big, 64 * KIB, 0600, &e), RC_OK);
    assert_int_equal(secret_read_file(path, &s, &e), RC_OK);
    secret_free(s);
    free(big);
    assert_int_equal(fd_write_file_atomic(path, "a\0b", 3, 0600, &e), RC_OK);
    assert_int_equal(secret_read_file(path, &s, &e), RC_INVALID);
    assert_int_equal(secret_read_file(dir, &s, &e), RC_INVALID);
    assert_int_equal(secret_read_file("/nonexistent", &s, &e), RC_NOT_FOUND);
    char text[] = "hidden";
    AUTO_PTR(secret) a = secret_from_str(text);
    assert_int_equal(text[0], 0);
    AUTO_PTR(secret) b = secret_dup(a);
    assert_string_equal(secret_text(b), "hidden");
    assert_null(secret_dup(NULL));
    assert_null(secret_from_str(NULL));
    assert_null(secret_text(NULL));
    assert_int_equal(secret_len(NULL), 0);
    secret_free(NULL);
}

static void environment(void **st)
{
    (void)st;
    static char entry[] = "OW_TEST_SECRET=sk-env";
    assert_int_equal(putenv(entry), 0);
    AUTO_PTR(secret) s = secret_take_env("OW_TEST_SECRET");
    assert_string_equal(secret_text(s), "sk-env");
    assert_null(getenv("OW_TEST_SECRET"));
    for (size_t i = strlen("OW_TEST_SECRET="); i < sizeof entry; i++)
        assert_int_equal(entry[i], 0);
    assert_null(secret_take_env("OW_TEST_SECRET"));
    setenv("OW_TEST_SECRET", "", 1);
    assert_null(secret_take_env("OW_TEST_SECRET"));
    assert_null(getenv("OW_TEST_SECRET"));
    setenv("OW_TEST_SECRET_LONGER", "stays", 1);
    assert_null(secret_take_env("OW_TEST_SECRET"));
    assert_string_equal(getenv("OW_TEST_SECRET_LONGER"), "stays");
}

/* The kernel's copy: a process started with the variable shows it no longer in /proc/self/environ. */
static void proc_environ(void **st)
{
    (void)st;
    pid_t pid = fork();
    if (pid == 0) {
        setenv("OW_TEST_EXEC", "sk-proc-environ-value", 1);
        execl("/proc/self/exe", "test", "check-environ", (char *)NULL);
        _exit(9);
    }
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static int check_environ(void)
{
    struct err e = { 0 };
    char *text = NULL;
    size_t n = 0;
    if (fd_read_file(AT_FDCWD, "/proc/self/environ", MIB, &text, &n, &e) < 0 || !memmem(text, n, "sk-proc-environ", 15))
        return 1;
    free(text);
    struct secret *s = secret_take_env("OW_TEST_EXEC");
    if (!str_eq(secret_text(s), "sk-proc-environ-value"))
        return 2;
    secret_free(s);
    if (fd_read_file(AT_FDCWD, "/proc/self/environ", MIB, &text, &n, &e) < 0 || memmem(text, n, "sk-proc-environ", 15))
        return 3;
    free(text);
    return 0;
}

static int setup(void **st)
{
    (void)st;
    (void)snprintf(dir, sizeof dir, "/tmp/ow-base-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **st)
{
    (void)st;
    struct err e = { 0 };
    return fd_remove_tree(AT_FDCWD, dir, &e);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "check-environ") == 0)
        return check_environ();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(times), cmocka_unit_test(ids), cmocka_unit_test(files), cmocka_unit_test(trees), cmocka_unit_test(secrets),
        cmocka_unit_test(environment), cmocka_unit_test(proc_environ),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
