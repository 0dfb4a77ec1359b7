/* Conformance: vaults and their credentials. */
#include "store/fixture.h"

#define V (f->o->vault)

static void vault(struct fix *f, const char *id, int64_t ms)
{
    struct store_vault v = { .id = id, .body = "{\"display_name\":\"d\"}", .created_ms = ms };
    OK(V->create(f->st, &v, &f->e));
}

static int credential(struct fix *f, const char *vault_id, const char *id, const char *kind, const char *match)
{
    struct store_credential c = { .id = id, .vault_id = vault_id, .kind = kind, .match = match, .body = "{\"b\":1}", .sealed = "se\0aled", .sealed_n = 7, .created_ms = T0 };
    return V->credential_create(f->st, &c, 3, &f->e);
}

static struct store_credential get(struct fix *f, const char *vault_id, const char *id)
{
    struct store_credential c = { 0 };
    OK(V->credential_get(f->st, f->a, vault_id, id, &c, &f->e));
    return c;
}

static void vaults(void **state)
{
    struct fix *f = *state;
    struct store_vault v, *rows;
    size_t n;
    RC(RC_NOT_FOUND, V->get(f->st, f->a, "vlt_1", &v, &f->e));
    vault(f, "vlt_1", T0);
    vault(f, "vlt_2", T0 + 5);
    vault(f, "vlt_3", T0 + 5);
    OK(V->get(f->st, f->a, "vlt_1", &v, &f->e));
    assert_string_equal(v.body, "{\"display_name\":\"d\"}");
    assert_int_equal(v.created_ms, T0);
    assert_int_equal(v.updated_ms, T0);
    assert_int_equal(v.archived_ms, -1);

    OK(V->update(f->st, "vlt_1", T0, "{\"x\":2}", T0, &f->e));      /* the clock did not move: still later */
    RC(RC_CONFLICT, V->update(f->st, "vlt_1", T0, "{}", T0 + 9, &f->e));
    OK(V->update(f->st, "vlt_1", -1, "{\"x\":3}", T0 + 9, &f->e));
    OK(V->get(f->st, f->a, "vlt_1", &v, &f->e));
    assert_string_equal(v.body, "{\"x\":3}");
    assert_int_equal(v.updated_ms, T0 + 9);
    RC(RC_NOT_FOUND, V->update(f->st, "vlt_9", -1, "{}", T0, &f->e));

    struct store_page p = STORE_PAGE_INIT;
    OK(V->list(f->st, f->a, &p, &rows, &n, &f->e));
    assert_int_equal(n, 3);
    assert_string_equal(rows[0].id, "vlt_3");
    assert_string_equal(rows[2].id, "vlt_1");
    p.limit = 1;
    p.after_ms = T0 + 5;
    p.after_id = "vlt_3";
    OK(V->list(f->st, f->a, &p, &rows, &n, &f->e));
    assert_int_equal(n, 1);
    assert_string_equal(rows[0].id, "vlt_2");

    OK(V->archive(f->st, "vlt_2", T0 + 20, &f->e));
    OK(V->archive(f->st, "vlt_2", T0 + 30, &f->e));                 /* again: nothing changes */
    OK(V->get(f->st, f->a, "vlt_2", &v, &f->e));
    assert_int_equal(v.archived_ms, T0 + 20);
    assert_int_equal(v.updated_ms, T0 + 20);
    RC(RC_INVALID, V->update(f->st, "vlt_2", -1, "{}", T0 + 40, &f->e));
    RC(RC_NOT_FOUND, V->archive(f->st, "vlt_9", T0, &f->e));
    p = (struct store_page)STORE_PAGE_INIT;
    OK(V->list(f->st, f->a, &p, &rows, &n, &f->e));
    assert_int_equal(n, 2);
    p.include_archived = true;
    OK(V->list(f->st, f->a, &p, &rows, &n, &f->e));
    assert_int_equal(n, 3);

    OK(V->remove(f->st, "vlt_2", &f->e));
    RC(RC_NOT_FOUND, V->remove(f->st, "vlt_2", &f->e));
}

static void credentials(void **state)
{
    struct fix *f = *state;
    struct store_credential c, *rows;
    struct store_page p = STORE_PAGE_INIT;
    size_t n;
    vault(f, "vlt_1", T0);
    vault(f, "vlt_2", T0);
    RC(RC_NOT_FOUND, credential(f, "vlt_9", "c0", "static_bearer", "https://a/"));
    OK(credential(f, "vlt_1", "c1", "static_bearer", "https://a"));
    RC(RC_CONFLICT, credential(f, "vlt_1", "c2", "mcp_oauth", "https://a"));            /* one per URL, whatever the MCP kind */
    OK(credential(f, "vlt_1", "c2", "environment_variable", "https://a"));              /* names are another space */
    RC(RC_CONFLICT, credential(f, "vlt_1", "c3", "environment_variable", "https://a"));
    OK(credential(f, "vlt_2", "c3", "mcp_oauth", "https://a"));                         /* and per vault */
    OK(credential(f, "vlt_1", "c4", "mcp_oauth", "https://b"));
    RC(RC_LIMIT, credential(f, "vlt_1", "c5", "mcp_oauth", "https://c"));

    c = get(f, "vlt_1", "c1");
    assert_string_equal(c.kind, "static_bearer");
    assert_string_equal(c.body, "{\"b\":1}");
    assert_int_equal(c.sealed_n, 7);
    assert_memory_equal(c.sealed, "se\0aled", 7);
    RC(RC_NOT_FOUND, V->credential_get(f->st, f->a, "vlt_2", "c1", &c, &f->e));         /* another vault's is none */
    OK(V->credential_find(f->st, f->a, "vlt_1", "https://a", &c, &f->e));
    assert_string_equal(c.id, "c1");
    RC(RC_NOT_FOUND, V->credential_find(f->st, f->a, "vlt_1", "https://c", &c, &f->e));

    OK(V->credential_list(f->st, f->a, "vlt_1", &p, &rows, &n, &f->e));
    assert_int_equal(n, 3);
    assert_string_equal(rows[0].id, "c4");
    assert_null(rows[0].sealed);

    OK(V->credential_update(f->st, "vlt_1", "c1", T0, "{\"b\":2}", NULL, 0, T0, &f->e));
    c = get(f, "vlt_1", "c1");
    assert_string_equal(c.body, "{\"b\":2}");
    assert_memory_equal(c.sealed, "se\0aled", 7);                                       /* kept */
    RC(RC_CONFLICT, V->credential_update(f->st, "vlt_1", "c1", T0, "{}", "x", 1, T0, &f->e));
    OK(V->credential_update(f->st, "vlt_1", "c1", c.updated_ms, "{\"b\":3}", "x", 1, T0 + 7, &f->e));
    c = get(f, "vlt_1", "c1");
    assert_int_equal(c.sealed_n, 1);
    assert_int_equal(c.updated_ms, T0 + 7);
    RC(RC_NOT_FOUND, V->credential_update(f->st, "vlt_2", "c1", -1, "{}", NULL, 0, T0, &f->e));

    /* Archived: the secret is gone, the record stays, the key and the place are free. */
    RC(RC_NOT_FOUND, V->credential_archive(f->st, "vlt_2", "c1", T0, &f->e));
    OK(V->credential_archive(f->st, "vlt_1", "c1", T0 + 9, &f->e));
    OK(V->credential_archive(f->st, "vlt_1", "c1", T0 + 11, &f->e));
    c = get(f, "vlt_1", "c1");
    assert_int_equal(c.archived_ms, T0 + 9);
    assert_null(c.sealed);
    RC(RC_INVALID, V->credential_update(f->st, "vlt_1", "c1", -1, "{}", "x", 1, T0, &f->e));
    RC(RC_NOT_FOUND, V->credential_find(f->st, f->a, "vlt_1", "https://a", &c, &f->e));
    OK(credential(f, "vlt_1", "c6", "mcp_oauth", "https://a"));
    OK(V->credential_list(f->st, f->a, "vlt_1", &p, &rows, &n, &f->e));
    assert_int_equal(n, 3);
    p.include_archived = true;
    OK(V->credential_list(f->st, f->a, "vlt_1", &p, &rows, &n, &f->e));
    assert_int_equal(n, 4);

    RC(RC_NOT_FOUND, V->credential_remove(f->st, "vlt_2", "c6", &f->e));
    OK(V->credential_remove(f->st, "vlt_1", "c6", &f->e));
    RC(RC_NOT_FOUND, V->credential_remove(f->st, "vlt_1", "c6", &f->e));

    OK(V->archive(f->st, "vlt_1", T0 + 50, &f->e));
    c = get(f, "vlt_1", "c4");
    assert_int_equal(c.archived_ms, T0 + 50);
    assert_null(c.sealed);
    assert_int_equal(get(f, "vlt_1", "c1").archived_ms, T0 + 9);
    assert_non_null(get(f, "vlt_2", "c3").sealed);
    RC(RC_INVALID, credential(f, "vlt_1", "c7", "static_bearer", "https://z"));
    OK(V->remove(f->st, "vlt_1", &f->e));
    RC(RC_NOT_FOUND, V->credential_get(f->st, f->a, "vlt_1", "c4", &c, &f->e));
}

static void rewrap(void **state)
{
    struct fix *f = *state;
    struct store_credential *rows;
    size_t n;
    vault(f, "vlt_1", T0);
    OK(credential(f, "vlt_1", "c1", "static_bearer", "a"));
    OK(credential(f, "vlt_1", "c2", "static_bearer", "b"));
    OK(credential(f, "vlt_1", "c3", "static_bearer", "c"));
    OK(V->credential_archive(f->st, "vlt_1", "c2", T0 + 1, &f->e));
    OK(V->sealed_scan(f->st, f->a, NULL, 1, &rows, &n, &f->e));
    assert_int_equal(n, 1);
    assert_string_equal(rows[0].id, "c1");
    assert_memory_equal(rows[0].sealed, "se\0aled", 7);
    OK(V->sealed_scan(f->st, f->a, "c1", 10, &rows, &n, &f->e));
    assert_int_equal(n, 1);                                          /* the purged one is not there */
    assert_string_equal(rows[0].id, "c3");
    OK(V->sealed_scan(f->st, f->a, "c3", 10, &rows, &n, &f->e));
    assert_int_equal(n, 0);

    OK(V->sealed_replace(f->st, "c1", "se\0aled", 7, "new", 3, &f->e));
    RC(RC_CONFLICT, V->sealed_replace(f->st, "c1", "se\0aled", 7, "newer", 5, &f->e));
    RC(RC_CONFLICT, V->sealed_replace(f->st, "c1", "se", 2, "newer", 5, &f->e));
    RC(RC_CONFLICT, V->sealed_replace(f->st, "c2", "se\0aled", 7, "newer", 5, &f->e));      /* archived meanwhile: never comes back */
    assert_int_equal(get(f, "vlt_1", "c1").updated_ms, T0);
    assert_memory_equal(get(f, "vlt_1", "c1").sealed, "new", 3);
}

static void rewrap_tokens(void **state)
{
    struct fix *f = *state;
    struct store_tunnel_token *rows, k = { .tunnel_id = "tnl_1", .sealed = "old", .sealed_n = 3, .created_ms = T0, .expires_ms = -1 };
    struct store_tunnel t = { .id = "tnl_1", .workspace_id = "w", .domain = "a.example.com", .created_ms = T0, .archived_ms = -1 };
    size_t n;
    k.id = "ttok_2";
    fix_hash(k.hash, 2);
    OK(f->o->tunnel->create(f->st, &t, &k, 10, &f->e));
    k.id = "ttok_1";
    fix_hash(k.hash, 1);
    OK(f->o->tunnel->token_rotate(f->st, &k, T0 + 1, T0 + 1000, &f->e));      /* both are there: the overlap */
    OK(f->o->tunnel->token_scan(f->st, f->a, NULL, 1, &rows, &n, &f->e));
    assert_int_equal(n, 1);
    assert_string_equal(rows[0].id, "ttok_1");
    OK(f->o->tunnel->token_scan(f->st, f->a, "ttok_1", 10, &rows, &n, &f->e));
    assert_int_equal(n, 1);
    assert_string_equal(rows[0].id, "ttok_2");
    OK(f->o->tunnel->token_reseal(f->st, "ttok_1", "old", 3, "new", 3, &f->e));
    RC(RC_CONFLICT, f->o->tunnel->token_reseal(f->st, "ttok_1", "old", 3, "newer", 5, &f->e));
    struct store_tunnel_token now;
    OK(f->o->tunnel->token_current(f->st, f->a, "tnl_1", &now, &f->e));
    assert_memory_equal(now.sealed, "new", 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = { T(vaults), T(credentials), T(rewrap), T(rewrap_tokens) };
    RUN_ALL(tests);
}
