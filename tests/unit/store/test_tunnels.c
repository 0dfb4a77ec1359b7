/* Conformance: tunnels, tokens, certificates, the directory of edges. */
#include "store/fixture.h"

#define LIVE 3
#define DAY INT64_C(86400000)
#define O(op) f->o->tunnel->op

static struct store_tunnel_token tok(const char *id, const char *tunnel, int n)
{
    struct store_tunnel_token k = { .id = id, .tunnel_id = tunnel, .sealed = "sea\0led", .sealed_n = 7, .created_ms = T0, .expires_ms = -1 };
    fix_hash(k.hash, n);
    return k;
}

static int make(struct fix *f, const char *id, const char *domain, int hash, int64_t at)
{
    struct store_tunnel t = { .id = id, .workspace_id = "wrkspc_1", .domain = domain, .created_ms = at };
    char kid[ID_MAX];
    (void)snprintf(kid, sizeof kid, "ttok_%d", hash);
    struct store_tunnel_token k = tok(kid, id, hash);
    return O(create)(f->st, &t, &k, LIVE, &f->e);
}

static int add(struct fix *f, const char *id, const char *tunnel, const char *print, int64_t expires, int64_t at)
{
    struct store_tunnel_certificate c = { .id = id, .tunnel_id = tunnel, .fingerprint = print, .pem = "PEM", .expires_ms = expires, .created_ms = at };
    return O(certificate_add)(f->st, &c, 2, &f->e);
}

static int find(struct fix *f, const char *tunnel, int hash, int64_t now)
{
    struct store_tunnel_token k;
    uint8_t h[32];
    fix_hash(h, hash);
    int rc = O(token_find)(f->st, f->a, tunnel, h, now, &k, &f->e);
    if (rc == RC_OK)
        assert_memory_equal(k.hash, h, 32);
    return rc;
}

static void tunnels(void **state)
{
    struct fix *f = *state;
    struct store_tunnel g, *list;
    size_t n;
    struct store_tunnel t = { .id = "tnl_1", .workspace_id = "wrkspc_1", .display_name = "näme", .domain = "a.x", .created_ms = T0 };
    struct store_tunnel_token k = tok("ttok_1", "tnl_1", 1), bad = tok("ttok_1", "tnl_2", 1);
    RC(RC_INVALID, O(create)(f->st, &t, &bad, LIVE, &f->e));
    OK(O(create)(f->st, &t, &k, LIVE, &f->e));
    OK(O(get)(f->st, f->a, "tnl_1", &g, &f->e));
    assert_string_equal(g.display_name, "näme");
    assert_string_equal(g.domain, "a.x");
    assert_string_equal(g.workspace_id, "wrkspc_1");
    assert_int_equal(g.created_ms, T0);
    assert_int_equal(g.archived_ms, -1);
    assert_int_equal(g.active_certificates, 0);
    RC(RC_NOT_FOUND, O(get)(f->st, f->a, "tnl_none", &g, &f->e));
    assert_non_null(strstr(f->e.msg, "tnl_none"));
    RC(RC_CONFLICT, make(f, "tnl_2", "a.x", 2, T0));                         /* the domain */
    assert_non_null(strstr(f->e.msg, "a.x"));
    RC(RC_NOT_FOUND, O(get)(f->st, f->a, "tnl_2", &g, &f->e));               /* nothing of it stayed */
    RC(RC_CONFLICT, make(f, "tnl_2", "b.x", 1, T0));                         /* the token */
    RC(RC_NOT_FOUND, O(get)(f->st, f->a, "tnl_2", &g, &f->e));
    OK(make(f, "tnl_2", "b.x", 2, T0 + 1));
    OK(O(get)(f->st, f->a, "tnl_2", &g, &f->e));
    assert_null(g.display_name);
    OK(O(find_domain)(f->st, f->a, "b.x", &g, &f->e));
    assert_string_equal(g.id, "tnl_2");
    RC(RC_NOT_FOUND, O(find_domain)(f->st, f->a, "c.x", &g, &f->e));
    OK(make(f, "tnl_3", "c.x", 3, T0 + 2));
    RC(RC_LIMIT, make(f, "tnl_4", "d.x", 4, T0 + 3));

    OK(O(archive)(f->st, "tnl_2", T0 + 50, &f->e));
    OK(O(archive)(f->st, "tnl_2", T0 + 60, &f->e));
    RC(RC_NOT_FOUND, O(archive)(f->st, "tnl_none", T0, &f->e));
    OK(O(find_domain)(f->st, f->a, "b.x", &g, &f->e));
    assert_int_equal(g.archived_ms, T0 + 50);                                /* the first time stays */
    RC(RC_CONFLICT, make(f, "tnl_4", "b.x", 4, T0 + 3));                     /* never given again */
    OK(make(f, "tnl_4", "d.x", 4, T0 + 3));                                  /* an archived one does not count */

    struct store_page p = STORE_PAGE_INIT;
    OK(O(list)(f->st, f->a, &p, &list, &n, &f->e));
    assert_int_equal(n, 3);
    assert_string_equal(list[0].id, "tnl_4");
    assert_string_equal(list[2].id, "tnl_1");
    p.include_archived = true;
    p.limit = 2;
    OK(O(list)(f->st, f->a, &p, &list, &n, &f->e));
    assert_int_equal(n, 2);
    p.after_ms = list[1].created_ms, p.after_id = list[1].id;
    OK(O(list)(f->st, f->a, &p, &list, &n, &f->e));
    assert_int_equal(n, 2);
    assert_string_equal(list[0].id, "tnl_2");
    p.backward = true, p.after_ms = list[1].created_ms, p.after_id = list[1].id;
    OK(O(list)(f->st, f->a, &p, &list, &n, &f->e));
    assert_string_equal(list[0].id, "tnl_3");
    assert_string_equal(list[1].id, "tnl_2");
}

static void tokens(void **state)
{
    struct fix *f = *state;
    struct store_tunnel_token g;
    OK(make(f, "tnl_1", "a.x", 1, T0));
    OK(make(f, "tnl_2", "b.x", 9, T0));
    OK(O(token_current)(f->st, f->a, "tnl_1", &g, &f->e));
    assert_string_equal(g.id, "ttok_1");
    assert_int_equal(g.expires_ms, -1);
    assert_int_equal(g.sealed_n, 7);
    assert_memory_equal(g.sealed, "sea\0led", 7);
    OK(find(f, "tnl_1", 1, T0));
    RC(RC_NOT_FOUND, find(f, "tnl_2", 1, T0));                               /* another tunnel's */
    RC(RC_NOT_FOUND, find(f, "tnl_1", 2, T0));
    RC(RC_NOT_FOUND, O(token_current)(f->st, f->a, "tnl_none", &g, &f->e));

    struct store_tunnel_token k = tok("ttok_2", "tnl_1", 2);
    OK(O(token_rotate)(f->st, &k, T0 + 10, T0 + 100, &f->e));                /* an overlap */
    OK(O(token_current)(f->st, f->a, "tnl_1", &g, &f->e));
    assert_string_equal(g.id, "ttok_2");
    OK(find(f, "tnl_1", 1, T0 + 99));
    RC(RC_NOT_FOUND, find(f, "tnl_1", 1, T0 + 100));
    OK(find(f, "tnl_1", 2, T0 + 100));
    k = tok("ttok_3", "tnl_1", 3);
    OK(O(token_rotate)(f->st, &k, T0 + 20, T0 + 1000, &f->e));
    OK(find(f, "tnl_1", 1, T0 + 99));
    RC(RC_NOT_FOUND, find(f, "tnl_1", 1, T0 + 100));                         /* a second rotation does not lengthen the first overlap */
    OK(find(f, "tnl_1", 2, T0 + 999));
    k = tok("ttok_4", "tnl_1", 4);
    OK(O(token_rotate)(f->st, &k, T0 + 30, T0 + 30, &f->e));                 /* none: all older ones end */
    for (int i = 1; i <= 3; i++)
        RC(RC_NOT_FOUND, find(f, "tnl_1", i, T0 + 30));
    OK(find(f, "tnl_1", 4, T0 + 30));
    OK(find(f, "tnl_2", 9, T0 + 30));                                        /* other tunnels untouched */
    k = tok("ttok_5", "tnl_none", 5);
    RC(RC_NOT_FOUND, O(token_rotate)(f->st, &k, T0, T0, &f->e));

    k = tok("ttok_6", "tnl_1", 6);
    OK(O(token_rotate)(f->st, &k, T0 + 40, T0 + 50, &f->e));
    OK(O(archive)(f->st, "tnl_1", T0 + 60, &f->e));
    RC(RC_NOT_FOUND, find(f, "tnl_1", 4, T0 + 60));                          /* was over before */
    struct store_tunnel_token *rows;
    size_t n;
    OK(O(token_scan)(f->st, f->a, NULL, 10, &rows, &n, &f->e));              /* an archived tunnel's token has no text to seal again */
    assert_int_equal(n, 1);
    assert_string_equal(rows[0].tunnel_id, "tnl_2");
    RC(RC_INVALID, find(f, "tnl_1", 6, T0 + 60));                            /* its holder learns why */
    RC(RC_INVALID, O(token_current)(f->st, f->a, "tnl_1", &g, &f->e));
    k = tok("ttok_7", "tnl_1", 7);
    RC(RC_INVALID, O(token_rotate)(f->st, &k, T0, T0, &f->e));
}

static void certificates(void **state)
{
    struct fix *f = *state;
    struct store_tunnel t;
    struct store_tunnel_certificate c, *list;
    size_t n;
    OK(make(f, "tnl_1", "a.x", 1, T0));
    OK(make(f, "tnl_2", "b.x", 2, T0));
    OK(add(f, "tcrt_1", "tnl_1", "aa", T0 + 5 * DAY, T0));
    RC(RC_CONFLICT, add(f, "tcrt_2", "tnl_1", "aa", T0 + DAY, T0));
    OK(add(f, "tcrt_3", "tnl_2", "aa", T0 + DAY, T0));                       /* the same on another tunnel */
    OK(add(f, "tcrt_4", "tnl_1", "bb", T0 + 90 * DAY, T0 + 1));
    RC(RC_LIMIT, add(f, "tcrt_5", "tnl_1", "cc", T0 + DAY, T0));
    RC(RC_CONFLICT, add(f, "tcrt_5", "tnl_1", "bb", T0 + DAY, T0));          /* more precise than the limit */
    RC(RC_NOT_FOUND, add(f, "tcrt_5", "tnl_none", "cc", T0 + DAY, T0));
    OK(O(certificate_get)(f->st, f->a, "tnl_1", "tcrt_1", &c, &f->e));
    assert_string_equal(c.fingerprint, "aa");
    assert_string_equal(c.pem, "PEM");
    assert_int_equal(c.expires_ms, T0 + 5 * DAY);
    assert_int_equal(c.archived_ms, -1);
    RC(RC_NOT_FOUND, O(certificate_get)(f->st, f->a, "tnl_2", "tcrt_1", &c, &f->e));
    OK(O(get)(f->st, f->a, "tnl_1", &t, &f->e));
    assert_int_equal(t.active_certificates, 2);

    OK(O(certificates_expiring)(f->st, f->a, T0 + 14 * DAY, &list, &n, &f->e));
    assert_int_equal(n, 2);
    assert_string_equal(list[0].id, "tcrt_3");
    assert_string_equal(list[1].id, "tcrt_1");

    RC(RC_NOT_FOUND, O(certificate_archive)(f->st, "tnl_2", "tcrt_1", T0 + 9, &f->e));
    OK(O(certificate_archive)(f->st, "tnl_1", "tcrt_1", T0 + 9, &f->e));
    OK(O(certificate_archive)(f->st, "tnl_1", "tcrt_1", T0 + 10, &f->e));
    OK(O(certificate_get)(f->st, f->a, "tnl_1", "tcrt_1", &c, &f->e));
    assert_int_equal(c.archived_ms, T0 + 9);
    OK(add(f, "tcrt_5", "tnl_1", "aa", T0 + DAY, T0 + 2));                   /* registered anew after its archiving */
    struct store_page p = STORE_PAGE_INIT;
    OK(O(certificate_list)(f->st, f->a, "tnl_1", &p, &list, &n, &f->e));
    assert_int_equal(n, 2);
    assert_string_equal(list[0].id, "tcrt_5");
    p.include_archived = true;
    OK(O(certificate_list)(f->st, f->a, "tnl_1", &p, &list, &n, &f->e));
    assert_int_equal(n, 3);

    OK(O(archive)(f->st, "tnl_1", T0 + 20, &f->e));
    OK(O(certificate_get)(f->st, f->a, "tnl_1", "tcrt_4", &c, &f->e));
    assert_int_equal(c.archived_ms, T0 + 20);
    OK(O(certificate_get)(f->st, f->a, "tnl_1", "tcrt_1", &c, &f->e));
    assert_int_equal(c.archived_ms, T0 + 9);
    RC(RC_INVALID, add(f, "tcrt_6", "tnl_1", "dd", T0 + DAY, T0));
    OK(O(certificate_archive)(f->st, "tnl_1", "tcrt_4", T0 + 30, &f->e));    /* again */
    OK(O(certificates_expiring)(f->st, f->a, T0 + 14 * DAY, &list, &n, &f->e));
    assert_int_equal(n, 1);
}

static struct store_connector con(const char *id, const char *tunnel, int64_t connections)
{
    return (struct store_connector){ .id = id, .tunnel_id = tunnel, .token_id = "ttok_1", .version = "1", .remote_address = "[::1]:5", .connections = connections, .connected_ms = T0 };
}

static void seen(struct fix *f, const char *edge, bool draining, int64_t at, const struct store_connector *c, size_t n)
{
    struct store_edge d = { .id = edge, .key_id = "ekey_1", .address = "h:1", .version = "2", .draining = draining, .seen_ms = at };
    OK(O(edge_seen)(f->st, &d, at - 30000, c, n, &f->e));
}

static void directory(void **state)
{
    struct fix *f = *state;
    struct store_edge *e;
    struct store_connector *c;
    size_t n;
    OK(make(f, "tnl_1", "a.x", 1, T0));
    OK(make(f, "tnl_2", "b.x", 2, T0));
    struct store_connector all[] = { con("gw_1", "tnl_1", 4), con("gw_2", "tnl_2", 1), con("gw_3", "tnl_none", 1) };
    seen(f, "edge_a", false, T0, all, 3);
    all[0].connections = 2;
    seen(f, "edge_b", false, T0 + 5, all, 1);
    OK(O(edge_for)(f->st, f->a, "tnl_1", T0 - 1, &e, &n, &f->e));
    assert_int_equal(n, 2);
    assert_string_equal(e[0].id, "edge_a");                                  /* more connections */
    OK(O(edge_for)(f->st, f->a, "tnl_1", T0 + 1, &e, &n, &f->e));            /* edge_a was silent too long */
    assert_int_equal(n, 1);
    assert_string_equal(e[0].id, "edge_b");
    assert_string_equal(e[0].address, "h:1");
    OK(O(edge_for)(f->st, f->a, "tnl_none", 0, &e, &n, &f->e));
    assert_int_equal(n, 0);
    seen(f, "edge_a", true, T0 + 10, all, 2);                                /* draining: last */
    OK(O(edge_for)(f->st, f->a, "tnl_1", T0, &e, &n, &f->e));
    assert_int_equal(n, 2);
    assert_string_equal(e[0].id, "edge_b");
    assert_true(e[1].draining);
    seen(f, "edge_a", false, T0 + 20, all + 1, 1);                           /* gw_1 left edge_a */
    OK(O(edge_for)(f->st, f->a, "tnl_1", T0, &e, &n, &f->e));
    assert_int_equal(n, 1);
    OK(O(connector_list)(f->st, f->a, "tnl_1", &c, &n, &f->e));
    assert_int_equal(n, 2);
    assert_string_equal(c[0].edge_id, "edge_a");
    assert_int_equal(c[0].connections, 0);
    assert_int_equal(c[0].seen_ms, T0 + 10);
    assert_int_equal(c[1].connections, 2);
    assert_string_equal(c[1].remote_address, "[::1]:5");
    OK(O(edge_list)(f->st, f->a, &e, &n, &f->e));
    assert_int_equal(n, 2);
    seen(f, "edge_b", false, T0 + 30 + DAY, NULL, 0);                        /* a day later the rest is forgotten */
    OK(O(connector_list)(f->st, f->a, "tnl_1", &c, &n, &f->e));
    assert_int_equal(n, 0);
    OK(O(edge_list)(f->st, f->a, &e, &n, &f->e));
    assert_int_equal(n, 1);
    struct store_edge bad = { .id = "edge_c", .key_id = "ekey_1", .address = "h:1", .seen_ms = T0 };
    RC(RC_INVALID, O(edge_seen)(f->st, &bad, T0, NULL, 0, &f->e));
    bad.version = "1";
    struct store_connector half = { .id = "gw_1", .tunnel_id = "tnl_1" };
    RC(RC_INVALID, O(edge_seen)(f->st, &bad, T0, &half, 1, &f->e));
}

/* An edge's id stays with the key that brought it, until the edge is silent for long or the key is revoked. */
static void edge_keys(void **state)
{
    struct fix *f = *state;
    struct store_edge *all;
    size_t n;
    uint8_t hash[2][32] = { { 1 }, { 2 } };
    for (int i = 0; i < 2; i++) {
        struct store_key k = { .id = i ? "ekey_b" : "ekey_a", .kind = KEY_EDGE, .name = "", .hint = "", .created_ms = T0 };
        OK(f->st->ops->key_create(f->st, &k, hash[i], &f->e));
    }
    struct store_edge a = { .id = "edge_x", .key_id = "ekey_a", .address = "h:1", .version = "1", .seen_ms = T0 }, b = a;
    b.key_id = "ekey_b";
    b.address = "thief:1";
    OK(O(edge_seen)(f->st, &a, T0 - 10, NULL, 0, &f->e));
    RC(RC_CONFLICT, O(edge_seen)(f->st, &b, T0 - 10, NULL, 0, &f->e));
    OK(O(edge_list)(f->st, f->a, &all, &n, &f->e));
    assert_int_equal(n, 1);
    assert_string_equal(all[0].address, "h:1");
    OK(O(edge_seen)(f->st, &a, T0 - 10, NULL, 0, &f->e));
    OK(O(edge_seen)(f->st, &b, T0 + 1, NULL, 0, &f->e));                     /* the first was silent too long */
    RC(RC_CONFLICT, O(edge_seen)(f->st, &a, T0 - 10, NULL, 0, &f->e));
    OK(f->st->ops->key_revoke(f->st, "ekey_b", T0, &f->e));
    OK(O(edge_seen)(f->st, &a, T0 - 10, NULL, 0, &f->e));
}

/* Limits hold when calls come at once, and no acknowledged row is missing after the file is opened again. */
struct racer { struct fix *f; int i, made; };

static void *race(void *arg)
{
    struct racer *r = arg;
    for (int k = 0; k < 5; k++) {
        char id[ID_MAX], domain[32], kid[ID_MAX];
        struct err e = { 0 };
        (void)snprintf(id, sizeof id, "tnl_%d_%d", r->i, k);
        (void)snprintf(domain, sizeof domain, "d%d-%d.x", r->i, k);
        (void)snprintf(kid, sizeof kid, "ttok_%d_%d", r->i, k);
        struct store_tunnel t = { .id = id, .workspace_id = "w", .domain = domain, .created_ms = T0 };
        struct store_tunnel_token tk = tok(kid, id, 100 + 10 * r->i + k);
        int rc = r->f->o->tunnel->create(r->f->st, &t, &tk, 10, &e);
        r->made += rc == RC_OK;
        if (rc != RC_OK && rc != RC_LIMIT)
            abort();
    }
    return NULL;
}

static void limit_under_load(void **state)
{
    struct fix *f = *state;
    struct racer r[6];
    pthread_t th[6];
    int made = 0;
    for (int i = 0; i < 6; i++) {
        r[i] = (struct racer){ f, i, 0 };
        assert_int_equal(pthread_create(&th[i], NULL, race, &r[i]), 0);
    }
    for (int i = 0; i < 6; i++) {
        (void)pthread_join(th[i], NULL);
        made += r[i].made;
    }
    assert_int_equal(made, 10);
    store_close(f->st);
    fix_open(f, false);
    struct store_tunnel *list;
    size_t n;
    struct store_page p = STORE_PAGE_INIT;
    OK(O(list)(f->st, f->a, &p, &list, &n, &f->e));
    assert_int_equal(n, 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = { T(tunnels), T(tokens), T(certificates), T(directory), T(edge_keys), T(limit_under_load) };
    RUN_ALL(tests);
}
