/* Who is calling: every way to be refused, every way to be known; keys as they are made; the codec of work secrets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "auth/auth.h"
#include "base/base64.h"
#include "base/fd.h"
#include "crypto/crypto.h"

#define T0 INT64_C(1700000000000)

struct fix { struct store *st; struct arena *a; char dir[64]; struct err e; char admin[TOKEN_MAX], user[TOKEN_MAX], worker[TOKEN_MAX], session[TOKEN_MAX], id[ID_MAX], work_id[ID_MAX]; };

static void hash_of(const char *s, uint8_t out[32]) { sha256(s, strlen(s), out); }

static int setup(void **state)
{
    struct fix *f = xcalloc(1, sizeof *f);
    (void)snprintf(f->dir, sizeof f->dir, "/tmp/ow-auth-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    char path[96];
    (void)snprintf(path, sizeof path, "%s/x.db", f->dir);
    f->a = arena_new(4096, MIB);
    assert_int_equal(store_open(path, true, &f->st, &f->e), RC_OK);
    const struct store_ops *o = f->st->ops;
    struct store_environment n = { .id = "env_1", .name = "one", .body = "{}", .created_ms = T0 };
    assert_int_equal(o->environment_create(f->st, &n, &f->e), RC_OK);
    assert_int_equal(auth_api_key_create(f->st, ROLE_USER, "u", f->user, f->id, &f->e), RC_OK);
    assert_int_equal(auth_api_key_create(f->st, ROLE_ADMIN, NULL, f->admin, f->id, &f->e), RC_OK);
    char ekey[ID_MAX];
    assert_int_equal(auth_environment_key_create(f->st, "env_1", "w", f->worker, ekey, &f->e), RC_OK);
    struct store_step s = { .expect_seq = -1, .needs_worker = 1, .ensure_work = true, .now_ms = T0 };
    struct store_session in = { .id = "sesn_1", .thread_id = "sthr_1", .env_id = "env_1", .agent_id = "agent_1", .created_ms = T0 };
    assert_int_equal(o->session_create(f->st, &in, &s, &f->e), RC_OK);
    uint8_t h[32];
    struct store_work w;
    token_new(AUTH_PREFIX_SESSION, f->session);
    hash_of(f->session, h);
    assert_int_equal(o->work_poll(f->st, f->a, "env_1", NULL, T0, 5000, h, T0 + 1000, &w, &f->e), RC_OK);
    (void)str_copy(f->work_id, sizeof f->work_id, w.id);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fix *f = *state;
    store_close(f->st);
    arena_free(f->a);
    (void)!fd_remove_tree(-100, f->dir, NULL);
    free(f);
    return 0;
}

static struct principal who;
static int check(struct fix *f, const char *authorization, const char *key, int64_t now)
{
    memset(&who, 0, sizeof who);
    memset(&f->e, 0, sizeof f->e);
    return auth_check(f->st, f->a, slice_of(authorization), slice_of(key), now, &who, &f->e);
}

static void known(void **state)
{
    struct fix *f = *state;
    char h[256];
    assert_int_equal(check(f, NULL, f->admin, T0), RC_OK);
    assert_int_equal(who.kind, WHO_API_KEY);
    assert_int_equal(who.role, ROLE_ADMIN);
    assert_string_equal(who.key_id, f->id);
    assert_null(who.env_id);
    static const char *const forms[] = { "Bearer %s", "bearer %s", "BEARER  %s", " Bearer\t%s  " };
    for (size_t i = 0; i < COUNT_OF(forms); i++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        (void)snprintf(h, sizeof h, forms[i], f->user);
#pragma GCC diagnostic pop
        assert_int_equal(check(f, h, NULL, T0), RC_OK);
        assert_int_equal(who.role, ROLE_USER);
    }
    (void)snprintf(h, sizeof h, " %s\t", f->user);
    assert_int_equal(check(f, NULL, h, T0), RC_OK);
    (void)snprintf(h, sizeof h, "Bearer %s", f->worker);
    assert_int_equal(check(f, h, NULL, T0), RC_OK);
    assert_int_equal(who.kind, WHO_ENVIRONMENT);
    assert_int_equal(who.role, ROLE_NONE);
    assert_string_equal(who.env_id, "env_1");
    assert_non_null(who.key_id);
    (void)snprintf(h, sizeof h, "Bearer %s", f->session);
    assert_int_equal(check(f, h, NULL, T0 + 999), RC_OK);
    assert_int_equal(who.kind, WHO_SESSION);
    assert_string_equal(who.session_id, "sesn_1");
    assert_string_equal(who.work_id, f->work_id);
    assert_string_equal(who.env_id, "env_1");
    assert_null(who.key_id);
}

static void refused(void **state)
{
    struct fix *f = *state;
    char h[256], cut[TOKEN_MAX], longer[TOKEN_MAX + 1], other[TOKEN_MAX], bad[TOKEN_MAX];
    (void)snprintf(h, sizeof h, "Bearer %s", f->user);
    assert_int_equal(check(f, NULL, NULL, T0), RC_UNAUTHORIZED);
    assert_int_equal(check(f, h, f->user, T0), RC_UNAUTHORIZED);                /* both at once */
    assert_non_null(strstr(f->e.msg, "not both"));
    assert_int_equal(check(f, h, "", T0), RC_UNAUTHORIZED);                     /* present, though empty */
    static const char *const headers[] = { "", "Bearer", "Bearer ", "Basic dTpw", "Bearer x", "Token ow-api-x", "ow-api-x", "Bearerow-api-x" };
    for (size_t i = 0; i < COUNT_OF(headers); i++)
        assert_int_equal(check(f, headers[i], NULL, T0), RC_UNAUTHORIZED);
    assert_int_equal(check(f, f->user, NULL, T0), RC_UNAUTHORIZED);             /* without its scheme */
    (void)str_copy(cut, sizeof cut, f->user);
    cut[strlen(cut) - 1] = 0;
    (void)snprintf(longer, sizeof longer, "%sA", f->user);
    token_new(AUTH_PREFIX_API, other);
    (void)str_copy(bad, sizeof bad, f->user);
    bad[20] = ' ';
    const char *keys[] = { "", " ", "ow-api-", cut, longer, other, bad, "ow-zzz-0000000000000000000000000000000000000000000" };
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        assert_int_equal(check(f, NULL, keys[i], T0), RC_UNAUTHORIZED);
        assert_string_equal(f->e.msg, "invalid x-api-key");
    }
    (void)snprintf(h, sizeof h, "Bearer %s", f->session);
    assert_int_equal(check(f, h, NULL, T0 + 1000), RC_UNAUTHORIZED);            /* expired */
    assert_string_equal(f->e.msg, "Invalid bearer token.");
    assert_null(strstr(f->e.msg, f->session));

    assert_int_equal(f->st->ops->key_revoke(f->st, f->id, T0, &f->e), RC_OK);
    assert_int_equal(check(f, NULL, f->admin, T0), RC_UNAUTHORIZED);            /* the very next call */
    assert_int_equal(check(f, NULL, f->user, T0), RC_OK);

    struct store_step last = { .session_id = "sesn_1", .expect_seq = -1, .needs_worker = -1, .now_ms = T0 };
    assert_int_equal(check(f, h, NULL, T0), RC_OK);
    assert_int_equal(f->st->ops->session_archive(f->st, &last, &f->e), RC_OK);
    assert_int_equal(check(f, h, NULL, T0), RC_UNAUTHORIZED);
}

/* A hash under the wrong prefix says nothing: the prefix is part of what is hashed, and the kinds must agree as well. */
static void kind_must_agree(void **state)
{
    struct fix *f = *state;
    char text[TOKEN_MAX];
    uint8_t h[32];
    token_new(AUTH_PREFIX_ENVIRONMENT, text);
    hash_of(text, h);
    struct store_key k = { .id = "apikey_x", .name = "", .hint = "", .kind = KEY_API, .role = ROLE_ADMIN, .created_ms = T0 };
    assert_int_equal(f->st->ops->key_create(f->st, &k, h, &f->e), RC_OK);
    assert_int_equal(check(f, NULL, text, T0), RC_UNAUTHORIZED);
}

static void edge_keys(void **state)
{
    struct fix *f = *state;
    char text[TOKEN_MAX], id[ID_MAX], h[256];
    struct store_key *list;
    size_t n;
    assert_int_equal(auth_edge_key_create(f->st, "edge 1", text, id, &f->e), RC_OK);
    assert_true(str_prefix(text, "ow-edge-") && strlen(text) == strlen("ow-edge-") + 43);
    assert_true(str_prefix(id, "edgekey_01"));
    (void)snprintf(h, sizeof h, "Bearer %s", text);
    assert_int_equal(check(f, h, NULL, T0), RC_OK);
    assert_int_equal(who.kind, WHO_EDGE);
    assert_int_equal(who.role, ROLE_NONE);
    assert_string_equal(who.key_id, id);
    assert_null(who.env_id);
    assert_int_equal(f->st->ops->key_list(f->st, f->a, KEY_EDGE, NULL, &list, &n, &f->e), RC_OK);
    assert_int_equal(n, 1);
    assert_string_equal(list[0].name, "edge 1");
    assert_int_equal(f->st->ops->key_revoke(f->st, id, T0, &f->e), RC_OK);
    assert_int_equal(check(f, h, NULL, T0), RC_UNAUTHORIZED);
}

static void making(void **state)
{
    struct fix *f = *state;
    char text[TOKEN_MAX] = "untouched", id[ID_MAX] = "same", name[300];
    assert_true(str_prefix(f->user, AUTH_PREFIX_API) && strlen(f->user) == strlen(AUTH_PREFIX_API) + 43);
    assert_true(str_prefix(f->worker, AUTH_PREFIX_ENVIRONMENT));
    assert_true(str_prefix(f->id, "apikey_01"));
    assert_string_not_equal(f->user, f->admin);
    assert_int_equal(auth_api_key_create(f->st, ROLE_NONE, "n", text, id, &f->e), RC_INVALID);
    assert_int_equal(auth_api_key_create(f->st, (enum key_role)9, "n", text, id, &f->e), RC_INVALID);
    assert_int_equal(auth_environment_key_create(f->st, "env_2", "n", text, id, &f->e), RC_NOT_FOUND);
    assert_int_equal(auth_environment_key_create(f->st, NULL, "n", text, id, &f->e), RC_INVALID);
    memset(name, 'n', sizeof name);
    name[257] = 0;
    assert_int_equal(auth_api_key_create(f->st, ROLE_USER, name, text, id, &f->e), RC_INVALID);
    assert_string_equal(text, "untouched");
    assert_string_equal(id, "same");
    name[256] = 0;
    assert_int_equal(auth_api_key_create(f->st, ROLE_USER, name, text, id, &f->e), RC_OK);
    struct store_key *list;
    size_t n;
    assert_int_equal(f->st->ops->key_list(f->st, f->a, KEY_API, NULL, &list, &n, &f->e), RC_OK);
    assert_int_equal(n, 3);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(strlen(list[i].hint), 4);
        if (str_eq(list[i].id, f->id))
            assert_true(str_suffix(f->admin, list[i].hint));
    }
    enum key_role r = ROLE_NONE;
    static const enum key_role roles[] = { ROLE_USER, ROLE_DEVELOPER, ROLE_ADMIN };
    for (size_t i = 0; i < COUNT_OF(roles); i++) {
        assert_int_equal(auth_role_parse(auth_role_name(roles[i]), &r), RC_OK);
        assert_int_equal(r, roles[i]);
    }
    static const char *const none[] = { "", "king", "Admin", "none", NULL };
    for (size_t i = 0; i < COUNT_OF(none); i++)
        assert_int_equal(auth_role_parse(none[i], &r), RC_INVALID);
    assert_string_equal(auth_role_name(ROLE_NONE), "none");
}

static void put_secret(struct buf *b, const char *json)
{
    buf_init(b, KIB * 256);
    assert_int_equal(base64url_encode(b, json, strlen(json)), RC_OK);
}

static void work_secrets(void **state)
{
    (void)state;
    struct buf b;
    struct err e;
    struct secret *s = NULL;
    static const char *const tokens[] = { "ow-ses-abc", "with \"quotes\" and \\", "\xc3\xa9" };
    static const char *const urls[] = { NULL, "https://h:1/x", "" };
    for (size_t i = 0; i < COUNT_OF(tokens); i++)
        for (size_t k = 0; k < COUNT_OF(urls); k++) {
            buf_init(&b, KIB);
            assert_int_equal(auth_work_secret_encode(tokens[i], urls[k], &b), RC_OK);
            assert_null(strpbrk(buf_data(&b), "+/= \n"));
            assert_int_equal(auth_work_secret_decode(buf_data(&b), &s, &e), RC_OK);
            assert_string_equal(secret_text(s), tokens[i]);
            secret_free(s);
            buf_done(&b);
        }
    buf_init(&b, 8);                                    /* no room */
    assert_int_equal(auth_work_secret_encode("ow-ses-abc", NULL, &b), RC_LIMIT);
    buf_done(&b);

    /* padded, standard alphabet, further members: as other servers make them */
    assert_int_equal(auth_work_secret_decode("eyJzZXNzaW9uc190b2tlbiI6InQ/PyIsIngiOjF9", &s, &e), RC_OK);
    assert_string_equal(secret_text(s), "t??");
    secret_free(s);
    assert_int_equal(auth_work_secret_decode("eyJzZXNzaW9uc190b2tlbiI6InQifQ==", &s, &e), RC_OK);
    secret_free(s);

    static const char *const bad[] = { "[]", "\"x\"", "{}", "{\"sessions_token\":\"\"}", "{\"sessions_token\":null}", "{\"sessions_token\":1}", "{\"sessions_token\":\"x\"", "", "x" };
    s = NULL;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        put_secret(&b, bad[i]);
        assert_int_equal(auth_work_secret_decode(buf_data(&b), &s, &e), RC_INVALID);
        buf_done(&b);
    }
    static const char *const raw[] = { NULL, "", "!", "a", "eyJ9\n", "eyJzZXNz aW9u" };
    for (size_t i = 0; i < COUNT_OF(raw); i++)
        assert_int_equal(auth_work_secret_decode(raw[i], &s, &e), RC_INVALID);
    char *big = xcalloc(1, 70 * KIB);
    memset(big, 'A', 70 * KIB - 1);
    assert_int_equal(auth_work_secret_decode(big, &s, &e), RC_INVALID);
    free(big);
    assert_null(s);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = { T(known), T(refused), T(kind_must_agree), T(edge_keys), T(making), cmocka_unit_test(work_secrets) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
