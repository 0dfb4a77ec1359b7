/* Conformance: opening, keys, agents, environments, pages. */
#include "store/fixture.h"

#include <sys/stat.h>

static void opening(void **state)
{
    struct fix *f = *state;
    struct store *st;
    struct err e;
    struct stat sb;
    char path[128];
    (void)snprintf(path, sizeof path, "%s/none.db", f->dir);
    RC(RC_NOT_FOUND, store_open(path, false, &st, &e));
    assert_non_null(strstr(e.msg, "none.db"));
    RC(RC_UNSUPPORTED, store_open("mysql:/x", true, &st, &e));
    RC(RC_INVALID, store_open("", true, &st, &e));
    RC(RC_INVALID, store_open(NULL, true, &st, &e));
    RC(RC_INVALID, store_open("sqlite:", true, &st, &e));
    RC(RC_INVALID, store_open(f->dir, true, &st, &e));
    OK(f->o->ping(f->st, &f->e));
    store_close(NULL);

    (void)snprintf(path, sizeof path, "%s/deep/er/x.db", f->dir);
    OK(store_open(path, true, &st, &e));
    assert_int_equal(stat(path, &sb), 0);
    assert_int_equal(sb.st_mode & 0777, 0600);
    store_close(st);
    (void)snprintf(path, sizeof path, "%s/deep", f->dir);
    assert_int_equal(stat(path, &sb), 0);
    assert_int_equal(sb.st_mode & 0777, 0700);

    (void)snprintf(path, sizeof path, "%s/x.db", f->dir);      /* too open: tightened */
    store_close(f->st);
    assert_int_equal(chmod(path, 0644), 0);
    fix_open(f, false);
    assert_int_equal(stat(path, &sb), 0);
    assert_int_equal(sb.st_mode & 0777, 0600);

    (void)snprintf(path, sizeof path, "%s/text", f->dir);
    char junk[8192];
    memset(junk, 'x', sizeof junk);
    OK(fd_write_file_atomic(path, junk, sizeof junk, 0600, &e));
    RC(RC_INVALID, store_open(path, true, &st, &e));
}

static void names(void **state)
{
    (void)state;
    for (int i = 0; i < SESSION_STATUS_MAX_; i++) {
        enum session_status s = SESSION_STATUS_MAX_;
        assert_int_equal(session_status_parse(session_status_name((enum session_status)i), &s), RC_OK);
        assert_int_equal(s, i);
    }
    enum session_status s;
    assert_int_equal(session_status_parse("", &s), RC_INVALID);
    assert_int_equal(session_status_parse(NULL, &s), RC_INVALID);
    assert_int_equal(session_status_parse("Idle", &s), RC_INVALID);
    assert_string_equal(work_state_name(WORK_QUEUED), "queued");
    assert_string_equal(work_state_name(WORK_STOPPED), "stopped");
    assert_string_equal(work_state_name((enum work_state)77), "unknown");
}

static void keys(void **state)
{
    struct fix *f = *state;
    uint8_t h[32], h2[32], h3[32];
    fix_hash(h, 1), fix_hash(h2, 2), fix_hash(h3, 3);
    fix_environment(f, "env_1");
    struct store_key k = { .id = "apikey_1", .name = "n", .hint = "abcd", .kind = KEY_API, .role = ROLE_ADMIN, .created_ms = T0 }, got, *list;
    OK(f->o->key_create(f->st, &k, h, &f->e));
    RC(RC_CONFLICT, f->o->key_create(f->st, &k, h2, &f->e));                 /* id */
    k.id = "apikey_2";
    RC(RC_CONFLICT, f->o->key_create(f->st, &k, h, &f->e));                  /* hash */
    k.env_id = "env_1";
    RC(RC_INVALID, f->o->key_create(f->st, &k, h2, &f->e));
    struct store_key n = { .id = "ekey_1", .name = "w", .hint = "wxyz", .kind = KEY_ENVIRONMENT, .env_id = "env_none", .created_ms = T0 + 1 };
    RC(RC_NOT_FOUND, f->o->key_create(f->st, &n, h2, &f->e));
    assert_non_null(strstr(f->e.msg, "env_none"));
    n.env_id = "env_1";
    OK(f->o->key_create(f->st, &n, h2, &f->e));
    n.env_id = NULL;
    RC(RC_INVALID, f->o->key_create(f->st, &n, h3, &f->e));

    OK(f->o->key_find(f->st, f->a, h, &got, &f->e));
    assert_string_equal(got.id, "apikey_1");
    assert_int_equal(got.role, ROLE_ADMIN);
    assert_null(got.env_id);
    assert_int_equal(got.revoked_ms, -1);
    OK(f->o->key_find(f->st, f->a, h2, &got, &f->e));
    assert_string_equal(got.env_id, "env_1");
    assert_int_equal(got.kind, KEY_ENVIRONMENT);
    RC(RC_NOT_FOUND, f->o->key_find(f->st, f->a, h3, &got, &f->e));

    size_t cnt;
    OK(f->o->key_list(f->st, f->a, KEY_API, NULL, &list, &cnt, &f->e));
    assert_int_equal(cnt, 1);
    OK(f->o->lease_clear(f->st, &f->e));                                     /* last use is written behind the find, before later writes */
    OK(f->o->key_list(f->st, f->a, KEY_API, NULL, &list, &cnt, &f->e));
    assert_true(list[0].last_used_ms > 0);
    OK(f->o->key_list(f->st, f->a, KEY_ENVIRONMENT, "env_1", &list, &cnt, &f->e));
    assert_int_equal(cnt, 1);
    OK(f->o->key_list(f->st, f->a, KEY_ENVIRONMENT, "env_2", &list, &cnt, &f->e));
    assert_int_equal(cnt, 0);

    RC(RC_NOT_FOUND, f->o->key_revoke(f->st, "apikey_9", T0, &f->e));
    OK(f->o->key_revoke(f->st, "apikey_1", T0 + 5, &f->e));
    OK(f->o->key_revoke(f->st, "apikey_1", T0 + 9, &f->e));
    RC(RC_NOT_FOUND, f->o->key_find(f->st, f->a, h, &got, &f->e));
    OK(f->o->key_list(f->st, f->a, KEY_API, NULL, &list, &cnt, &f->e));
    assert_int_equal(list[0].revoked_ms, T0 + 5);
    OK(f->o->environment_delete(f->st, "env_1", &f->e));                     /* its keys go with it */
    RC(RC_NOT_FOUND, f->o->key_find(f->st, f->a, h2, &got, &f->e));
}

static void agents(void **state)
{
    struct fix *f = *state;
    struct store_agent in = { .id = "agent_1", .name = "one", .body = "{\"v\":1}", .created_ms = T0 }, g, *list;
    size_t n;
    OK(f->o->agent_create(f->st, &in, &f->e));
    RC(RC_CONFLICT, f->o->agent_create(f->st, &in, &f->e));
    RC(RC_INVALID, f->o->agent_create(f->st, &(struct store_agent){ .id = "x" }, &f->e));
    RC(RC_NOT_FOUND, f->o->agent_update(f->st, "agent_9", 1, "n", "{}", T0, &f->e));
    RC(RC_CONFLICT, f->o->agent_update(f->st, "agent_1", 2, "n", "{}", T0, &f->e));
    OK(f->o->agent_update(f->st, "agent_1", 1, "two", "{\"v\":2}", T0 + 10, &f->e));
    OK(f->o->agent_update(f->st, "agent_1", 2, "three", "{\"v\":3}", T0 + 20, &f->e));
    OK(f->o->agent_get(f->st, f->a, "agent_1", 0, &g, &f->e));
    assert_int_equal(g.version, 3);
    assert_string_equal(g.name, "three");
    assert_int_equal(g.created_ms, T0);
    assert_int_equal(g.updated_ms, T0 + 20);
    assert_int_equal(g.archived_ms, -1);
    OK(f->o->agent_get(f->st, f->a, "agent_1", 1, &g, &f->e));
    assert_string_equal(g.body, "{\"v\":1}");
    RC(RC_NOT_FOUND, f->o->agent_get(f->st, f->a, "agent_1", 4, &g, &f->e));
    RC(RC_NOT_FOUND, f->o->agent_get(f->st, f->a, "agent_2", 0, &g, &f->e));
    OK(f->o->agent_versions(f->st, f->a, "agent_1", 2, 0, &list, &n, &f->e));
    assert_int_equal(n, 2);
    assert_int_equal(list[0].version, 3);
    OK(f->o->agent_versions(f->st, f->a, "agent_1", 5, 2, &list, &n, &f->e));
    assert_int_equal(n, 1);
    assert_int_equal(list[0].version, 1);
    RC(RC_NOT_FOUND, f->o->agent_versions(f->st, f->a, "agent_2", 5, 0, &list, &n, &f->e));
    RC(RC_NOT_FOUND, f->o->agent_archive(f->st, "agent_2", T0, &f->e));
    OK(f->o->agent_archive(f->st, "agent_1", T0 + 30, &f->e));
    OK(f->o->agent_archive(f->st, "agent_1", T0 + 40, &f->e));
    OK(f->o->agent_get(f->st, f->a, "agent_1", 0, &g, &f->e));
    assert_int_equal(g.archived_ms, T0 + 30);
    RC(RC_INVALID, f->o->agent_update(f->st, "agent_1", 3, "n", "{}", T0, &f->e));
    struct store_page p = STORE_PAGE_INIT;
    OK(f->o->agent_list(f->st, f->a, &p, &list, &n, &f->e));
    assert_int_equal(n, 0);
    p.include_archived = true;
    OK(f->o->agent_list(f->st, f->a, &p, &list, &n, &f->e));
    assert_int_equal(n, 1);
    assert_string_equal(list[0].name, "three");
}

static void environments(void **state)
{
    struct fix *f = *state;
    fix_environment(f, "env_1");
    struct store_environment in = { .id = "env_2", .name = "env_1", .body = "{}", .created_ms = T0 }, g, *list;
    size_t n;
    RC(RC_CONFLICT, f->o->environment_create(f->st, &in, &f->e));
    in.name = "two";
    OK(f->o->environment_create(f->st, &in, &f->e));
    RC(RC_CONFLICT, f->o->environment_create(f->st, &in, &f->e));
    RC(RC_INVALID, f->o->environment_create(f->st, &(struct store_environment){ .id = "x" }, &f->e));
    OK(f->o->environment_get(f->st, f->a, "env_2", &g, &f->e));
    assert_int_equal(g.updated_ms, T0);
    RC(RC_CONFLICT, f->o->environment_update(f->st, "env_2", T0, "env_1", "{}", T0 + 1, &f->e));       /* name */
    RC(RC_CONFLICT, f->o->environment_update(f->st, "env_2", T0 - 1, "b", "{}", T0 + 1, &f->e));       /* moved on */
    OK(f->o->environment_update(f->st, "env_2", T0, "two", "{\"b\":1}", T0 - 5, &f->e));               /* a clock that went back */
    OK(f->o->environment_get(f->st, f->a, "env_2", &g, &f->e));
    assert_int_equal(g.updated_ms, T0 + 1);
    assert_string_equal(g.body, "{\"b\":1}");
    RC(RC_NOT_FOUND, f->o->environment_update(f->st, "env_3", -1, "c", "{}", T0, &f->e));
    RC(RC_NOT_FOUND, f->o->environment_get(f->st, f->a, "env_3", &g, &f->e));
    RC(RC_NOT_FOUND, f->o->environment_archive(f->st, "env_3", T0, &f->e));
    RC(RC_NOT_FOUND, f->o->environment_delete(f->st, "env_3", &f->e));
    OK(f->o->environment_archive(f->st, "env_2", T0 + 7, &f->e));
    OK(f->o->environment_archive(f->st, "env_2", T0 + 8, &f->e));
    OK(f->o->environment_get(f->st, f->a, "env_2", &g, &f->e));
    assert_int_equal(g.archived_ms, T0 + 7);
    RC(RC_INVALID, f->o->environment_update(f->st, "env_2", -1, "c", "{}", T0, &f->e));
    RC(RC_INVALID, fix_session(f, "sesn_1", "env_2", NULL));
    in.id = "env_4";                                                                                   /* the name is free again */
    OK(f->o->environment_create(f->st, &in, &f->e));
    OK(fix_session(f, "sesn_1", "env_1", NULL));
    RC(RC_CONFLICT, f->o->environment_delete(f->st, "env_1", &f->e));
    OK(f->o->session_delete(f->st, "sesn_1", &f->e));
    OK(f->o->environment_delete(f->st, "env_1", &f->e));
    struct store_page p = STORE_PAGE_INIT;
    OK(f->o->environment_list(f->st, f->a, &p, &list, &n, &f->e));
    assert_int_equal(n, 1);
    p.include_archived = true;
    OK(f->o->environment_list(f->st, f->a, &p, &list, &n, &f->e));
    assert_int_equal(n, 2);
}

/* Ten rows, pairs of which share their time; every way to walk them must give each exactly once, in order. */
static void pages(void **state)
{
    struct fix *f = *state;
    char id[10][16];
    for (int i = 0; i < 10; i++) {
        (void)snprintf(id[i], sizeof id[i], "env_%d", i);
        struct store_environment in = { .id = id[i], .name = id[i], .body = "{}", .created_ms = T0 + i / 2 };
        OK(f->o->environment_create(f->st, &in, &f->e));
    }
    struct store_environment *list;
    size_t n;
    for (int asc = 0; asc < 2; asc++)
        for (int limit = 1; limit <= 11; limit++) {
            struct store_page p = STORE_PAGE_INIT;
            p.limit = limit;
            p.asc = asc;
            int at = 0;
            do {
                OK(f->o->environment_list(f->st, f->a, &p, &list, &n, &f->e));
                for (size_t i = 0; i < n; i++, at++)
                    assert_string_equal(list[i].id, id[asc ? at : 9 - at]);
                if (n) {
                    /* back from here: the rows before this page's first one, in list order */
                    struct store_page b = p;
                    b.backward = true;
                    b.after_id = list[0].id;
                    b.after_ms = list[0].created_ms;
                    struct store_environment *before;
                    size_t m;
                    OK(f->o->environment_list(f->st, f->a, &b, &before, &m, &f->e));
                    int first = at - (int)n;
                    assert_int_equal(m, first < limit ? first : limit);
                    for (size_t i = 0; i < m; i++) {
                        int k = first - (int)m + (int)i;
                        assert_string_equal(before[i].id, id[asc ? k : 9 - k]);
                    }
                    p.after_id = list[n - 1].id;
                    p.after_ms = list[n - 1].created_ms;
                }
            } while (n == (size_t)limit);
            assert_int_equal(at, 10);
        }
    static const struct { int64_t gt, gte, lt, lte; size_t want; } filters[] = {
        { -1, -1, -1, -1, 10 }, { T0, -1, -1, -1, 8 }, { -1, T0 + 1, -1, -1, 8 }, { -1, -1, T0 + 1, -1, 2 }, { -1, -1, -1, T0, 2 }, { T0, -1, T0 + 1, -1, 0 }, { -1, T0 + 2, -1, T0 + 2, 2 },
    };
    for (size_t i = 0; i < COUNT_OF(filters); i++) {
        struct store_page p = STORE_PAGE_INIT;
        p.gt_ms = filters[i].gt, p.gte_ms = filters[i].gte, p.lt_ms = filters[i].lt, p.lte_ms = filters[i].lte;
        OK(f->o->environment_list(f->st, f->a, &p, &list, &n, &f->e));
        assert_int_equal(n, filters[i].want);
    }
    struct store_page p = STORE_PAGE_INIT;
    p.limit = 0;
    OK(f->o->environment_list(f->st, f->a, &p, &list, &n, &f->e));
    assert_int_equal(n, 1);
}

static void arena_limit(void **state)
{
    struct fix *f = *state;
    char *big = xcalloc(1, 64 * KIB);
    memset(big, 'b', 64 * KIB - 1);
    struct store_agent in = { .id = "agent_1", .name = "n", .body = big, .created_ms = T0 }, g, *list;
    OK(f->o->agent_create(f->st, &in, &f->e));
    struct arena *small = arena_new(1024, 8 * KIB);
    size_t n;
    struct store_page p = STORE_PAGE_INIT;
    RC(RC_LIMIT, f->o->agent_get(f->st, small, "agent_1", 0, &g, &f->e));
    RC(RC_LIMIT, f->o->agent_list(f->st, small, &p, &list, &n, &f->e));
    OK(f->o->agent_get(f->st, f->a, "agent_1", 0, &g, &f->e));
    assert_string_equal(g.body, big);
    arena_free(small);
    free(big);
}

int main(void)
{
    const struct CMUnitTest tests[] = { T(opening), cmocka_unit_test(names), T(keys), T(agents), T(environments), T(pages), T(arena_limit) };
    RUN_ALL(tests);
}
