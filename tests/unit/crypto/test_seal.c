#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/base64.h"
#include "base/fd.h"
#include "base/str.h"
#include "crypto/seal.h"

#define CONTEXT "credential:vcrd_01a"
static char dir[64], path[96];

static int setup(void **st)
{
    (void)st;
    memcpy(dir, "/tmp/outwork-seal-XXXXXX", 25);
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/vault.key", dir);
    return 0;
}

static int teardown(void **st)
{
    (void)st;
    struct err e = { 0 };
    return fd_remove_tree(-1, dir, &e);
}

static struct seal_ring *load(bool create)
{
    struct seal_ring *r = NULL;
    struct err e = { 0 };
    int rc = seal_load(path, create, &r, &e);
    if (rc < 0)
        fail_msg("seal_load: %s", e.msg);
    return r;
}

static void write_file(const char *text, unsigned mode)
{
    struct err e = { 0 };
    assert_int_equal(fd_write_file_atomic(path, text, strlen(text), mode, &e), RC_OK);
}

static char *read_file(void)
{
    char *text;
    struct err e = { 0 };
    assert_int_equal(fd_read_file(-100, path, MIB, &text, NULL, &e), RC_OK);
    return text;
}

static void put(const struct seal_ring *r, const char *context, const char *text, struct buf *out)
{
    struct err e = { 0 };
    buf_init(out, MIB);
    assert_int_equal(seal_put(r, context, text, strlen(text), out, &e), RC_OK);
    assert_int_equal(buf_len(out), strlen(text) + SEAL_OVERHEAD);
}

/* RC_OK also means: it is `want`. */
static int open_blob(const struct seal_ring *r, const char *context, const void *p, size_t n, const char *want)
{
    AUTO_PTR(secret) s = NULL;
    struct err e = { 0 };
    int rc = seal_open(r, context, p, n, &s, &e);
    assert_int_equal(rc == RC_OK, s != NULL);
    if (rc == RC_OK)
        assert_string_equal(secret_text(s), want);
    else
        assert_null(strstr(e.msg, want));
    return rc;
}

static void round_trip(void **st)
{
    (void)st;
    struct stat info;
    struct buf a, b;
    AUTO_PTR(seal_ring) r = load(true);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    put(r, CONTEXT, "hunter2-plain", &a);
    put(r, CONTEXT, "hunter2-plain", &b);
    assert_memory_not_equal(buf_data(&a), buf_data(&b), buf_len(&a));      /* a nonce of its own each time */
    assert_null(memmem(buf_data(&a), buf_len(&a), "hunter2", 7));
    assert_int_equal(open_blob(r, CONTEXT, buf_data(&a), buf_len(&a), "hunter2-plain"), RC_OK);
    assert_true(seal_is_current(r, buf_data(&a), buf_len(&a)));
    buf_done(&b);
    put(r, CONTEXT, "", &b);
    assert_int_equal(open_blob(r, CONTEXT, buf_data(&b), buf_len(&b), ""), RC_OK);
    AUTO_PTR(seal_ring) again = load(true);                                /* the same key, not another one */
    assert_int_equal(open_blob(again, CONTEXT, buf_data(&a), buf_len(&a), "hunter2-plain"), RC_OK);
    buf_done(&a);
    buf_done(&b);
}

static void altered(void **st)
{
    (void)st;
    struct buf a;
    AUTO_PTR(seal_ring) r = load(true);
    put(r, CONTEXT, "hunter2-plain", &a);
    for (size_t i = 0; i < buf_len(&a); i++) {
        buf_data(&a)[i] ^= 1;
        assert_int_equal(open_blob(r, CONTEXT, buf_data(&a), buf_len(&a), "hunter2-plain"), RC_UNAUTHORIZED);
        buf_data(&a)[i] ^= 1;
    }
    for (size_t n = 0; n < buf_len(&a); n++)
        assert_int_equal(open_blob(r, CONTEXT, buf_data(&a), n, "hunter2-plain"), RC_UNAUTHORIZED);
    buf_putc(&a, 'x');
    assert_int_equal(open_blob(r, CONTEXT, buf_data(&a), buf_len(&a), "hunter2-plain"), RC_UNAUTHORIZED);
    buf_truncate(&a, buf_len(&a) - 1);
    assert_int_equal(open_blob(r, "credential:vcrd_01b", buf_data(&a), buf_len(&a), "hunter2-plain"), RC_UNAUTHORIZED);
    assert_int_equal(open_blob(r, "", buf_data(&a), buf_len(&a), "hunter2-plain"), RC_UNAUTHORIZED);
    assert_int_equal(open_blob(r, CONTEXT, buf_data(&a), buf_len(&a), "hunter2-plain"), RC_OK);
    buf_done(&a);
}

static void rotation(void **st)
{
    (void)st;
    struct buf a, b;
    char id[SEAL_KEY_ID_MAX], first[SEAL_KEY_ID_MAX], second[SEAL_KEY_ID_MAX];
    struct err e = { 0 };
    struct stat info;
    AUTO_PTR(seal_ring) running = load(true);      /* a server that is not restarted */
    put(running, CONTEXT, "old secret", &a);
    assert_int_equal(seal_key_id(running, 0, first), RC_OK);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(seal_key_add(path, id, &e), RC_OK);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0640);

    AUTO_PTR(seal_ring) fresh = load(false);
    assert_int_equal(seal_key_count(fresh), 2);
    assert_int_equal(seal_key_id(fresh, 0, second), RC_OK);
    assert_string_equal(second, id);
    assert_int_equal(seal_key_id(fresh, 1, second), RC_OK);
    assert_string_equal(second, first);
    assert_int_equal(seal_key_id(fresh, 2, second), RC_NOT_FOUND);
    assert_false(seal_is_current(fresh, buf_data(&a), buf_len(&a)));
    assert_int_equal(open_blob(fresh, CONTEXT, buf_data(&a), buf_len(&a), "old secret"), RC_OK);

    put(fresh, CONTEXT, "new secret", &b);
    assert_true(seal_is_current(fresh, buf_data(&b), buf_len(&b)));
    assert_int_equal(open_blob(running, CONTEXT, buf_data(&b), buf_len(&b), "new secret"), RC_OK);      /* it reads the file again */
    buf_done(&b);
    put(running, CONTEXT, "newer secret", &b);
    assert_true(seal_is_current(fresh, buf_data(&b), buf_len(&b)));

    /* The old key is removed: what was not re-wrapped does not open, and the message names the key. */
    char *text = read_file(), *cut = strstr(text, "# Seals");
    assert_non_null(cut);
    *cut = '\0';
    write_file(text, 0600);
    wipe(text, strlen(text));
    free(text);
    AUTO_PTR(seal_ring) only = load(false);
    AUTO_PTR(secret) s = NULL;
    assert_int_equal(seal_key_count(only), 1);
    assert_int_equal(seal_open(only, CONTEXT, buf_data(&a), buf_len(&a), &s, &e), RC_UNAUTHORIZED);
    assert_non_null(strstr(e.msg, first));
    assert_int_equal(open_blob(only, CONTEXT, buf_data(&b), buf_len(&b), "newer secret"), RC_OK);

    /* A file that is broken or gone changes nothing for those who run. */
    write_file("nonsense\n", 0600);
    buf_done(&a);
    put(only, CONTEXT, "still works", &a);
    assert_int_equal(remove(path), 0);
    assert_int_equal(open_blob(only, CONTEXT, buf_data(&a), buf_len(&a), "still works"), RC_OK);
    buf_done(&a);
    buf_done(&b);
}

#define K1 "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
#define K2 "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="

static void files(void **st)
{
    (void)st;
    static const struct { const char *text; unsigned mode; int rc; size_t keys; const char *says; } row[] = {
        { K1 "\n", 0600, RC_OK, 1, NULL },
        { K1, 0640, RC_OK, 1, NULL },
        { "# c\n\n  " K1 "  \r\n#x\n" K2 "\n", 0600, RC_OK, 2, NULL },
        { K1 "\n", 0604, RC_DENIED, 0, "every user" },
        { K1 "\n", 0602, RC_DENIED, 0, "every user" },
        { "", 0600, RC_INVALID, 0, "empty" },
        { "# nothing\n", 0600, RC_INVALID, 0, "no key" },
        { K1 "\n" K1 "\n", 0600, RC_INVALID, 0, "same as key 1" },
        { K1 "\nAAECAwQF\n", 0600, RC_INVALID, 0, "key 2" },                              /* short */
        { K1 "\n" K1 K2 "\n", 0600, RC_INVALID, 0, "key 2" },                             /* two in a line */
        { "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISI=\n", 0600, RC_INVALID, 0, "key 1" },     /* long */
        { "not base64 at all!\n", 0600, RC_INVALID, 0, "key 1" },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct seal_ring *r = NULL;
        struct err e = { 0 };
        write_file(row[i].text, row[i].mode);
        int rc = seal_load(path, true, &r, &e);
        if (rc != row[i].rc)
            fail_msg("row %zu: %d instead of %d: %s", i, rc, row[i].rc, e.msg);
        if (rc == RC_OK)
            assert_int_equal(seal_key_count(r), row[i].keys);
        else if (!strstr(e.msg, row[i].says) || strstr(e.msg, "AAEC") || strstr(e.msg, "base64 at all"))
            fail_msg("row %zu says \"%s\"", i, e.msg);
        seal_free(r);
    }
    struct seal_ring *r = NULL;
    char id[SEAL_KEY_ID_MAX];
    struct err e = { 0 };
    assert_int_equal(seal_key_add(path, id, &e), RC_INVALID);      /* the last row's file is left alone */
    AUTO_FREE char *text = read_file();
    assert_string_equal(text, "not base64 at all!\n");
    assert_int_equal(remove(path), 0);
    assert_int_equal(seal_load(path, false, &r, &e), RC_NOT_FOUND);
    assert_int_equal(seal_key_add(path, id, &e), RC_NOT_FOUND);
}

static void limits(void **st)
{
    (void)st;
    struct err e = { 0 };
    char id[SEAL_KEY_ID_MAX];
    struct buf out;
    seal_ring_free(load(true));
    for (int i = 1; i < SEAL_KEYS_MAX; i++)
        assert_int_equal(seal_key_add(path, id, &e), RC_OK);
    assert_int_equal(seal_key_add(path, id, &e), RC_LIMIT);
    AUTO_PTR(seal_ring) r = load(false);
    assert_int_equal(seal_key_count(r), SEAL_KEYS_MAX);
    AUTO_FREE char *text = read_file();
    AUTO_FREE char *more = str_printf("%s" K1 "\n", text);
    write_file(more, 0600);
    struct seal_ring *none = NULL;
    assert_int_equal(seal_load(path, false, &none, &e), RC_INVALID);

    char *big = calloc(1, SEAL_PLAIN_MAX + 2);
    memset(big, 'x', SEAL_PLAIN_MAX + 1);
    buf_init(&out, MIB);
    assert_int_equal(seal_put(r, CONTEXT, big, SEAL_PLAIN_MAX + 1, &out, &e), RC_TOO_LARGE);
    assert_int_equal(seal_put(r, CONTEXT, big, SEAL_PLAIN_MAX, &out, &e), RC_OK);
    big[SEAL_PLAIN_MAX] = '\0';
    assert_int_equal(open_blob(r, CONTEXT, buf_data(&out), buf_len(&out), big), RC_OK);
    big[SEAL_CONTEXT_MAX + 1] = '\0';
    assert_int_equal(seal_put(r, big, "x", 1, &out, &e), RC_TOO_LARGE);
    assert_int_equal(open_blob(r, big, buf_data(&out), buf_len(&out), "\x01"), RC_UNAUTHORIZED);
    free(big);
    buf_done(&out);
}

#define ADDERS 8
static void *adder(void *arg)
{
    char id[SEAL_KEY_ID_MAX];
    struct err e = { 0 };
    *(int *)arg = seal_key_add(path, id, &e);
    return NULL;
}

/* Keys that are added at once are all there after: a lost one could have sealed something meanwhile. */
static void added_at_once(void **st)
{
    (void)st;
    pthread_t t[ADDERS];
    int rc[ADDERS];
    seal_ring_free(load(true));
    for (int i = 0; i < ADDERS; i++)
        assert_int_equal(pthread_create(&t[i], NULL, adder, &rc[i]), 0);
    for (int i = 0; i < ADDERS; i++) {
        assert_int_equal(pthread_join(t[i], NULL), 0);
        assert_int_equal(rc[i], RC_OK);
    }
    AUTO_PTR(seal_ring) r = load(false);
    assert_int_equal(seal_key_count(r), ADDERS + 1);
}

/* The formula is fixed: a blob of this version opens in every later one. Made once with K1 by another implementation of the construction. */
static void known_blob(void **st)
{
    (void)st;
    struct buf b;
    write_file(K1 "\n", 0600);
    AUTO_PTR(seal_ring) r = load(false);
    static const char text[] = "T1dTMbbzoNBulbTvZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7Fx2Wx5EO/ef/RGiLs59KOaSWy7XORo06qRI=";
    buf_init(&b, KIB);
    assert_int_equal(base64_decode(&b, text, strlen(text)), RC_OK);
    assert_int_equal(open_blob(r, CONTEXT, buf_data(&b), buf_len(&b), "known text"), RC_OK);
    buf_done(&b);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = { CASE(round_trip), CASE(altered), CASE(rotation), CASE(files), CASE(limits), CASE(added_at_once), CASE(known_blob) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
