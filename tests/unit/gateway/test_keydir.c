#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/str.h"
#include "gateway/keydir.h"
#include "tls/cert.h"

#define DAY ((int64_t)86400000)
#define DOMAIN "abc.tunnel.example"

static char dir[64];
static int64_t now;

static struct keydir *open_dir(void)
{
    struct keydir *d = NULL;
    struct err e;
    assert_int_equal(keydir_open(dir, &d, &e), RC_OK);
    return d;
}

static void fill(struct keydir *d, int64_t valid)
{
    struct err e = { 0 };
    assert_int_equal(keydir_write(d, "tunnel-domain", DOMAIN "\n", sizeof DOMAIN, &e), RC_OK);
    assert_int_equal(keydir_make_ca(d, DOMAIN, now, &e), RC_OK);
    if (keydir_make_leaf(d, DOMAIN, now, valid, &e) < 0)
        fail_msg("%s", e.msg);
}

static const char *due(int64_t at, int64_t before)
{
    const char *why = "unset";
    struct keydir *d = open_dir();
    keydir_leaf_due(d, DOMAIN, at, before, &why);
    keydir_free(d);
    return why;
}

static char *leaf(void)
{
    char *text = NULL;
    struct err e;
    struct keydir *d = open_dir();
    assert_int_equal(keydir_read(d, "tls.crt", &text, &e), RC_OK);
    keydir_free(d);
    return text;
}

static void test_made_as_required(void **st)
{
    (void)st;
    struct keydir *d = open_dir(), *second = NULL;
    struct err e;
    struct stat s;
    fill(d, 90 * DAY);
    assert_int_equal(keydir_open(dir, &second, &e), RC_CONFLICT);
    const char *files[] = { "ca.crt", "ca.key", "tls.crt", "tls.key", "tunnel-domain" };
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        AUTO_FREE char *path = str_printf("%s/%s", keydir_path(d), files[i]);
        assert_int_equal(stat(path, &s), 0);
        assert_int_equal(s.st_mode & 07777, 0600);
    }
    AUTO_FREE char *ca = NULL, *cert = NULL;
    assert_int_equal(keydir_read(d, "ca.crt", &ca, &e), RC_OK);
    assert_int_equal(keydir_read(d, "tls.crt", &cert, &e), RC_OK);
    struct cert_info i;
    if (cert_check_ca(ca, strlen(ca), now, &i, &e) < 0 || cert_check_leaf(cert, strlen(cert), ca, strlen(ca), DOMAIN, now, &i, &e) < 0)
        fail_msg("what is made does not pass the rules of registration: %s", e.msg);
    assert_true(i.not_after_ms - now <= 90 * DAY && i.not_after_ms - now > 89 * DAY);
    /* Longer than the authority: cut. */
    assert_int_equal(keydir_make_leaf(d, DOMAIN, now, 100 * 365 * DAY, &e), RC_OK);
    free(TAKE(cert));
    assert_int_equal(keydir_read(d, "tls.crt", &cert, &e), RC_OK);
    assert_int_equal(cert_check_leaf(cert, strlen(cert), ca, strlen(ca), DOMAIN, now, &i, &e), RC_OK);
    assert_true(i.not_after_ms <= now + KEYDIR_CA_VALID_MS);
    assert_int_equal(keydir_make_leaf(d, DOMAIN, now + KEYDIR_CA_VALID_MS, 90 * DAY, &e), RC_INVALID);
    assert_non_null(strstr(e.msg, "authority"));
    keydir_free(d);
    keydir_free(NULL);
}

static void test_due(void **st)
{
    (void)st;
    assert_string_equal(due(now, 0), "there is none");
    struct keydir *d = open_dir();
    fill(d, 90 * DAY);
    keydir_free(d);
    assert_null(due(now, 30 * DAY));
    assert_null(due(now + 59 * DAY, 30 * DAY));
    assert_string_equal(due(now + 61 * DAY, 30 * DAY), "it expires soon");
    assert_string_equal(due(now + 91 * DAY, 0), "it has expired");
    assert_string_equal(due(now - DAY, 0), "it is not valid yet");
    d = open_dir();
    const char *why = NULL;
    keydir_leaf_due(d, "other.tunnel.example", now, 0, &why);
    assert_string_equal(why, "it is of another domain");
    struct err e;
    assert_int_equal(keydir_write(d, "tls.key", "junk", 4, &e), RC_OK);
    keydir_free(d);
    assert_string_equal(due(now, 0), "certificate and key do not fit, or cannot be read");
}

static void test_renew(void **st)
{
    (void)st;
    struct err e = { 0 };
    bool done = true;
    struct keydir *d = open_dir();
    fill(d, 90 * DAY);
    keydir_free(d);
    AUTO_FREE char *first = leaf();
    assert_int_equal(renew_if_due(dir, now, 30 * DAY, 90 * DAY, &done, &e), RC_OK);
    assert_false(done);
    AUTO_FREE char *same = leaf();
    assert_string_equal(first, same);
    d = open_dir();                                              /* a command is at it */
    assert_int_equal(renew_if_due(dir, now + 70 * DAY, 30 * DAY, 90 * DAY, &done, &e), RC_CONFLICT);
    keydir_free(d);
    assert_int_equal(renew_if_due(dir, now + 70 * DAY, 30 * DAY, 90 * DAY, &done, &e), RC_OK);
    assert_true(done);
    AUTO_FREE char *second = leaf();
    assert_string_not_equal(first, second);
    assert_null(due(now + 70 * DAY, 30 * DAY));
    assert_int_equal(renew_if_due(dir, now + 70 * DAY, 30 * DAY, 90 * DAY, &done, &e), RC_OK);
    assert_false(done);
    AUTO_FREE char *key = str_printf("%s/ca.key", dir);
    assert_int_equal(unlink(key), 0);
    assert_int_equal(renew_if_due(dir, now + 150 * DAY, 30 * DAY, 90 * DAY, &done, &e), RC_NOT_FOUND);
    assert_non_null(strstr(e.msg, "ca.key"));
    assert_non_null(strstr(e.msg, "expires soon"));
}

static void test_foreign_directory(void **st)
{
    (void)st;
    struct err e = { 0 };
    bool done = true;
    struct keydir *d = open_dir();
    fill(d, 90 * DAY);
    keydir_free(d);
    AUTO_FREE char *domain = str_printf("%s/tunnel-domain", dir), *lock = str_printf("%s/.lock", dir);
    assert_int_equal(unlink(domain), 0);                         /* as the hosted service's volume may be: only the leaf */
    assert_int_equal(unlink(lock), 0);
    assert_int_equal(renew_if_due(dir, now, 30 * DAY, 90 * DAY, &done, &e), RC_OK);
    assert_false(done);
    assert_int_not_equal(access(lock, F_OK), 0);                 /* looking leaves no trace */
    assert_int_equal(renew_if_due(dir, now + 70 * DAY, 30 * DAY, 90 * DAY, &done, &e), RC_NOT_FOUND);
    assert_non_null(strstr(e.msg, "tunnel-domain"));
    assert_int_equal(renew_if_due("/no/such/directory", now, 0, DAY, &done, &e), RC_IO);
}

static int setup(void **st)
{
    (void)st;
    now = clock_now_ms();
    strcpy(dir, "/tmp/ow-keydir-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **st)
{
    (void)st;
    struct err e;
    return fd_remove_tree(AT_FDCWD, dir, &e);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test_setup_teardown(test_made_as_required, setup, teardown), cmocka_unit_test_setup_teardown(test_due, setup, teardown),
        cmocka_unit_test_setup_teardown(test_renew, setup, teardown), cmocka_unit_test_setup_teardown(test_foreign_directory, setup, teardown),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
