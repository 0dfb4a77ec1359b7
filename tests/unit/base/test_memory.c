/* rc, err, buf, arena, list. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/list.h"

static void codes(void **st)
{
    (void)st;
    assert_string_equal(rc_name(RC_OK), "OK");
    assert_string_equal(rc_name(RC_TIMEOUT), "TIMEOUT");
    assert_string_equal(rc_name(-99), "UNKNOWN");
    assert_int_equal(rc_http(RC_TOO_LARGE), 413);
    assert_int_equal(rc_http(1), 500);
    assert_true(rc_retry(RC_IO) && !rc_retry(RC_DENIED) && !rc_retry(-99));
    assert_string_equal(rc_text(RC_NOT_FOUND), "no such object");
}

static void errors(void **st)
{
    (void)st;
    struct err e = { 0 };
    assert_int_equal(err_set(&e, RC_INVALID, "bad %d\nnext\x1b", 5), RC_INVALID);
    assert_string_equal(e.msg, "bad 5 next ");
    assert_int_equal(err_sys(&e, RC_IO, ENOENT, "open %s", "x"), RC_IO);
    assert_string_equal(e.msg, "open x: No such file or directory");
    assert_int_equal(err_wrap(&e, RC_DENIED, "load '%s'", e.msg), RC_DENIED);       /* an argument inside the object itself */
    assert_string_equal(e.msg, "load 'open x: No such file or directory': open x: No such file or directory");
    assert_int_equal(e.sys_errno, ENOENT);
    assert_int_equal(e.rc, RC_DENIED);
    assert_int_equal(err_set(NULL, RC_LIMIT, "x"), RC_LIMIT);
    assert_int_equal(err_sys(NULL, RC_LIMIT, 1, "x"), RC_LIMIT);
    assert_int_equal(err_wrap(NULL, RC_LIMIT, "x"), RC_LIMIT);
    struct err empty = { 0 };
    err_wrap(&empty, RC_IO, "alone");
    assert_string_equal(empty.msg, "alone");
}

static void errors_cut(void **st)
{
    (void)st;
    for (size_t pad = ERR_MSG_MAX - 8; pad < ERR_MSG_MAX; pad++) {      /* a three-byte character over every place of the end */
        char text[ERR_MSG_MAX + 64];
        memset(text, 'a', pad);
        memcpy(text + pad, "\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac", 13);
        struct err e = { 0 };
        err_set(&e, RC_INVALID, "%s", text);
        size_t n = strlen(e.msg);
        assert_true(n < ERR_MSG_MAX && n >= ERR_MSG_MAX - 4);
        assert_true(n <= pad ? n == pad : (n - pad) % 3 == 0);
    }
    struct err e = { 0 };
    char full[ERR_MSG_MAX];
    memset(full, 'x', sizeof full - 1);
    full[sizeof full - 1] = 0;
    err_set(&e, RC_INVALID, "%s", full);
    assert_int_equal(strlen(e.msg), ERR_MSG_MAX - 1);
    err_wrap(&e, RC_INVALID, "front");
    assert_int_equal(strlen(e.msg), ERR_MSG_MAX - 1);
    assert_memory_equal(e.msg, "front: xxx", 10);
    err_sys(&e, RC_IO, EIO, "%s", full);
    assert_int_equal(strlen(e.msg), ERR_MSG_MAX - 1);
}

static void buffers(void **st)
{
    (void)st;
    struct buf b;
    buf_init(&b, 10);
    assert_string_equal(buf_data(&b), "");
    assert_int_equal(buf_room(&b), 10);
    assert_int_equal(buf_puts(&b, "0123456789"), RC_OK);
    assert_int_equal(buf_putc(&b, 'x'), RC_LIMIT);
    assert_false(buf_ok(&b));
    assert_string_equal(buf_data(&b), "0123456789");
    buf_consume(&b, 4);
    assert_string_equal(buf_data(&b), "456789");
    assert_int_equal(buf_put(&b, "abcd", 4), RC_OK);
    assert_int_equal(buf_put(&b, "e", 1), RC_LIMIT);
    assert_string_equal(buf_data(&b), "456789abcd");
    buf_truncate(&b, 100);
    buf_truncate(&b, 3);
    assert_string_equal(buf_data(&b), "456");
    assert_int_equal(buf_printf(&b, "%s", "1234567"), RC_OK);
    assert_int_equal(buf_printf(&b, "%d", 1), RC_LIMIT);
    assert_string_equal(buf_data(&b), "4561234567");
    buf_consume(&b, 10);
    assert_int_equal(buf_len(&b), 0);
    buf_clear(&b);
    assert_true(buf_ok(&b));
    assert_null(buf_reserve(&b, 11));
    char *p = buf_reserve(&b, 10);
    assert_non_null(p);
    memset(p, 'z', 10);
    buf_commit(&b, 2);
    assert_string_equal(buf_data(&b), "zz");
    buf_consume(&b, 1);
    size_t n = 0;
    AUTO_FREE char *taken = buf_take(&b, &n);
    assert_int_equal(n, 1);
    assert_string_equal(taken, "z");
    AUTO_FREE char *none = buf_take(&b, NULL);
    assert_string_equal(none, "");
    buf_commit(&b, 0);
    (void)buf_puts(&b, "secret");
    buf_wipe(&b);
    assert_string_equal(buf_data(&b), "");
    buf_done(&b);
}

static void buffers_grow(void **st)
{
    (void)st;
    struct buf b;
    buf_init(&b, SIZE_MAX);
    size_t in = 0, out = 0;
    for (int i = 0; i < 20000; i++) {       /* a queue: the contents keep their order over every move and growth */
        char c = (char)('a' + i % 26);
        for (int k = 0; k <= i % 7; k++, in++)
            assert_int_equal(buf_printf(&b, "%c", (char)(c + k % 2)), RC_OK);
        size_t take = buf_len(&b) / 3;
        out += take;
        buf_consume(&b, take);
        assert_int_equal(buf_len(&b), in - out);
        assert_int_equal(strlen(buf_data(&b)), in - out);
    }
    assert_true(b.cap < 4096);
    assert_null(buf_reserve(&b, SIZE_MAX));
    buf_done(&b);
    buf_init(&b, 0);
    assert_int_equal(buf_put(&b, "", 0), RC_OK);
    assert_int_equal(buf_putc(&b, 'x'), RC_LIMIT);
    assert_int_equal(buf_printf(&b, "%s", ""), RC_OK);
    buf_done(&b);
}

static int order[4], orders;
static void note(void *p) { order[orders++] = *(int *)p; }

static void arenas(void **st)
{
    (void)st;
    struct arena *a = arena_new(1, 100000);
    char *s = arena_strdup(a, "hello");
    assert_string_equal(s, "hello");
    assert_null(arena_strdup(a, NULL));
    assert_string_equal(arena_strndup(a, "hello", 2), "he");
    assert_string_equal(arena_printf(a, "%d/%s", 3, "x"), "3/x");
    for (size_t n = 0; n < 300; n++) {
        unsigned char *p = arena_zalloc(a, n);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 16, 0);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(p[i], 0);
        memset(p, 0xff, n);
    }
    assert_string_equal(s, "hello");
    size_t used = arena_used(a);
    assert_null(arena_alloc(a, 100000 - used + 1));
    assert_null(arena_alloc(a, SIZE_MAX));
    assert_null(arena_strndup(a, "x", SIZE_MAX));
    static int one = 1, two = 2, three = 3;
    assert_int_equal(arena_on_free(a, note, &one), 0);
    assert_int_equal(arena_on_free(a, note, &two), 0);
    assert_non_null(arena_alloc(a, (100000 - arena_used(a)) & ~(size_t)15));
    orders = 0;
    assert_int_equal(arena_on_free(a, note, &three), RC_NOMEM);
    assert_int_equal(orders, 1);
    arena_free(a);
    assert_int_equal(orders, 3);
    assert_int_equal(order[0], 3);
    assert_int_equal(order[1], 2);
    assert_int_equal(order[2], 1);
    arena_free(NULL);
    struct arena *zero = arena_new(0, 0);
    assert_null(arena_alloc(zero, 0));
    arena_free(zero);
}

struct item { int v; struct list link; };

static void lists(void **st)
{
    (void)st;
    struct list head;
    struct item it[4] = { { .v = 0 }, { .v = 1 }, { .v = 2 }, { .v = 3 } };
    list_init(&head);
    assert_true(list_empty(&head));
    for (int i = 0; i < 3; i++)
        list_add_tail(&head, &it[i].link);
    list_add_head(&head, &it[3].link);
    assert_int_equal(list_first(&head, struct item, link)->v, 3);
    int seen = 0;
    list_foreach(x, &head, struct item, link) {
        seen = seen * 10 + x->v + 1;
        list_del(&x->link);
        assert_true(list_empty(&x->link));
    }
    assert_int_equal(seen, 4123);
    assert_true(list_empty(&head));
    list_del(&it[0].link);      /* harmless when in no list */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes), cmocka_unit_test(errors), cmocka_unit_test(errors_cut), cmocka_unit_test(buffers),
        cmocka_unit_test(buffers_grow), cmocka_unit_test(arenas), cmocka_unit_test(lists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
