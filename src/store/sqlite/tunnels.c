/* Tunnels of the SQLite back end: store/tunnels.h. Each change checks and writes in one transaction, so limits hold under concurrent calls. */
#include <string.h>

#include "base/str.h"
#include "store/sqlite/sqlite.h"

#define TUNNEL_COLS "t.id, t.workspace_id, t.display_name, t.domain, t.created_ms, t.archived_ms," \
                    " (SELECT count(*) FROM tunnel_certificates x WHERE x.tunnel_id = t.id AND x.archived_ms IS NULL)"
#define TOKEN_COLS "k.id, k.tunnel_id, k.hash, k.sealed, k.created_ms, k.expires_ms"
#define CERTIFICATE_COLS "c.id, c.tunnel_id, c.fingerprint, c.pem, c.expires_ms, c.created_ms, c.archived_ms"

static struct store_tunnel tunnel_row(struct row *r)
{
    struct store_tunnel t = { 0 };
    t.id = row_text(r);
    t.workspace_id = row_text(r);
    t.display_name = row_text(r);
    t.domain = row_text(r);
    t.created_ms = row_int(r);
    t.archived_ms = row_time(r);
    t.active_certificates = row_int(r);
    return t;
}

static void read_tunnel(struct row *r, void *ret, const void *ctx)
{
    (void)ctx;
    *(struct store_tunnel *)ret = tunnel_row(r);
}

static struct store_tunnel_token token_row(struct row *r)
{
    struct store_tunnel_token k = { 0 };
    size_t n;
    k.id = row_text(r);
    k.tunnel_id = row_text(r);
    const void *hash = row_blob(r, &n);
    if (hash && n == sizeof k.hash)
        memcpy(k.hash, hash, sizeof k.hash);
    k.sealed = row_blob(r, &k.sealed_n);
    k.created_ms = row_int(r);
    k.expires_ms = row_time(r);
    return k;
}

static void read_token(struct row *r, void *ret, const void *ctx)
{
    (void)ctx;
    *(struct store_tunnel_token *)ret = token_row(r);
}

static struct store_tunnel_certificate certificate_row(struct row *r)
{
    struct store_tunnel_certificate c = { 0 };
    c.id = row_text(r);
    c.tunnel_id = row_text(r);
    c.fingerprint = row_text(r);
    c.pem = row_text(r);
    c.expires_ms = row_int(r);
    c.created_ms = row_int(r);
    c.archived_ms = row_time(r);
    return c;
}

static void read_certificate(struct row *r, void *ret, const void *ctx)
{
    (void)ctx;
    *(struct store_tunnel_certificate *)ret = certificate_row(r);
}

static int no_tunnel(struct err *e, const char *id) { return err_set(e, RC_NOT_FOUND, "no tunnel '%s'", id); }

/* Inside a transaction. RC_NOT_FOUND; RC_INVALID: archived. */
static int check_live(struct tx *t, const char *id, struct err *e)
{
    int64_t archived;
    int rc = db_int(t->db, &archived, e, "SELECT archived_ms IS NOT NULL FROM tunnels WHERE id = ?", "s", id);
    if (rc < 0)
        return rc == RC_NOT_FOUND ? no_tunnel(e, id) : rc;
    return archived ? err_set(e, RC_INVALID, "tunnel '%s' is archived", id) : RC_OK;
}

static int token_insert(struct tx *t, const struct store_tunnel_token *k, struct err *e)
{
    int rc = db_run(t->db, e, "INSERT INTO tunnel_tokens(id, tunnel_id, hash, created_ms, sealed) VALUES(?, ?, ?, ?, ?)", "sshib", k->id, k->tunnel_id, k->hash,
                    k->created_ms, k->sealed, k->sealed_n);
    return rc == RC_CONFLICT ? err_set(e, rc, "the token exists already") : rc;
}

/* ---- tunnels ---- */

struct tunnel_create { const struct store_tunnel *t; const struct store_tunnel_token *k; int64_t max; };

static int create_tx(struct tx *t, void *arg, struct err *e)
{
    const struct tunnel_create *c = arg;
    int64_t live;
    TRY(db_int(t->db, &live, e, "SELECT count(*) FROM tunnels WHERE archived_ms IS NULL", ""));
    if (live >= c->max)
        return err_set(e, RC_LIMIT, "there are %lld tunnels that are not archived", (long long)live);
    int rc = db_run(t->db, e, "INSERT INTO tunnels(id, workspace_id, display_name, domain, created_ms) VALUES(?, ?, ?, ?, ?)", "ssssi", c->t->id, c->t->workspace_id,
                    c->t->display_name, c->t->domain, c->t->created_ms);
    if (rc < 0)
        return rc == RC_CONFLICT ? err_set(e, rc, "the domain '%s' was given to a tunnel before", c->t->domain) : rc;
    return token_insert(t, c->k, e);
}

static int tunnel_create(struct store *st, const struct store_tunnel *t, const struct store_tunnel_token *tok, int64_t live_max, struct err *e)
{
    if (!t->id || !t->workspace_id || !t->domain || !tok->id || !tok->sealed || !str_eq(tok->tunnel_id, t->id))
        return err_set(e, RC_INVALID, "a tunnel needs id, workspace, domain and a token of its own");
    struct tunnel_create c = { t, tok, live_max };
    return writer_run(sqlite_of(st), create_tx, &c, e);
}

static int tunnel_one(struct store *st, struct arena *a, const char *sql, const char *key, struct store_tunnel *ret, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, sql, "s", key));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : no_tunnel(e, key);
    struct store_tunnel t = tunnel_row(&r);
    TRY(row_ok(&r, e));
    *ret = t;
    return RC_OK;
}

static int tunnel_get(struct store *st, struct arena *a, const char *id, struct store_tunnel *ret, struct err *e)
{
    return tunnel_one(st, a, "SELECT " TUNNEL_COLS " FROM tunnels t WHERE t.id = ?", id, ret, e);
}

static int tunnel_find_domain(struct store *st, struct arena *a, const char *domain, struct store_tunnel *ret, struct err *e)
{
    return tunnel_one(st, a, "SELECT " TUNNEL_COLS " FROM tunnels t WHERE t.domain = ?", domain, ret, e);
}

static int tunnel_list(struct store *st, struct arena *a, const struct store_page *p, struct store_tunnel **ret, size_t *ret_n, struct err *e)
{
    struct query q = { 0 };
    query_add(&q, "SELECT " TUNNEL_COLS " FROM tunnels t WHERE 1", "");
    page_live(&q, p, "t");
    return rows_page(st, a, &q, p, "t", read_tunnel, NULL, sizeof **ret, ret, ret_n, e);
}

struct change { const char *tunnel_id, *id; int64_t now_ms; };

/* The hashes of the tokens that were good until now stay, so that a gateway that still has one learns that its tunnel is archived; their text goes. */
static int archive_tx(struct tx *t, void *arg, struct err *e)
{
    const struct change *c = arg;
    TRY(db_run(t->db, e, "UPDATE tunnels SET archived_ms = ? WHERE id = ? AND archived_ms IS NULL", "is", c->now_ms, c->tunnel_id));
    if (!db_changes(t->db)) {
        int rc = check_live(t, c->tunnel_id, e);
        return rc == RC_INVALID ? RC_OK : rc;
    }
    TRY(db_run(t->db, e, "UPDATE tunnel_certificates SET archived_ms = ? WHERE tunnel_id = ? AND archived_ms IS NULL", "is", c->now_ms, c->tunnel_id));
    TRY(db_run(t->db, e, "DELETE FROM tunnel_tokens WHERE tunnel_id = ? AND expires_ms <= ?", "si", c->tunnel_id, c->now_ms));
    return db_run(t->db, e, "UPDATE tunnel_tokens SET expires_ms = ?, sealed = x'' WHERE tunnel_id = ?", "is", c->now_ms, c->tunnel_id);
}

static int tunnel_archive(struct store *st, const char *id, int64_t now_ms, struct err *e)
{
    struct change c = { id, NULL, now_ms };
    return writer_run(sqlite_of(st), archive_tx, &c, e);
}

/* ---- tokens ---- */

/* After a look-up of a token that gave no row: why. */
static int why_no_token(struct reader *rd, const char *tunnel_id, struct err *e)
{
    int64_t archived;
    int rc = db_int(rd->db, &archived, e, "SELECT archived_ms IS NOT NULL FROM tunnels WHERE id = ?", "s", tunnel_id);
    if (rc < 0)
        return rc == RC_NOT_FOUND ? no_tunnel(e, tunnel_id) : rc;
    return archived ? err_set(e, RC_INVALID, "tunnel '%s' is archived", tunnel_id) : err_set(e, RC_NOT_FOUND, "no such token");
}

static int token_current(struct store *st, struct arena *a, const char *tunnel_id, struct store_tunnel_token *ret, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    TRY(reader_snapshot(&rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, "SELECT " TOKEN_COLS " FROM tunnel_tokens k WHERE k.tunnel_id = ? AND k.expires_ms IS NULL", "s", tunnel_id));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : why_no_token(&rd, tunnel_id, e);
    struct store_tunnel_token k = token_row(&r);
    TRY(row_ok(&r, e));
    *ret = k;
    return RC_OK;
}

struct rotate { const struct store_tunnel_token *k; int64_t now_ms, until_ms; };

/* An overlap never lengthens the life of a token that was replaced before: a rotation without one ends them all. */
static int rotate_tx(struct tx *t, void *arg, struct err *e)
{
    const struct rotate *c = arg;
    TRY(check_live(t, c->k->tunnel_id, e));
    TRY(db_run(t->db, e, "UPDATE tunnel_tokens SET expires_ms = min(coalesce(expires_ms, ?1), ?1) WHERE tunnel_id = ?2", "is", c->until_ms, c->k->tunnel_id));
    TRY(db_run(t->db, e, "DELETE FROM tunnel_tokens WHERE tunnel_id = ? AND expires_ms <= ?", "si", c->k->tunnel_id, c->now_ms));
    return token_insert(t, c->k, e);
}

static int token_rotate(struct store *st, const struct store_tunnel_token *fresh, int64_t now_ms, int64_t overlap_until_ms, struct err *e)
{
    if (!fresh->id || !fresh->tunnel_id || !fresh->sealed)
        return err_set(e, RC_INVALID, "a token needs id, tunnel and its sealed text");
    struct rotate c = { fresh, now_ms, overlap_until_ms < now_ms ? now_ms : overlap_until_ms };
    return writer_run(sqlite_of(st), rotate_tx, &c, e);
}

static int token_find(struct store *st, struct arena *a, const char *tunnel_id, const uint8_t hash[32], int64_t now_ms, struct store_tunnel_token *ret, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, "SELECT t.archived_ms IS NOT NULL, " TOKEN_COLS " FROM tunnel_tokens k JOIN tunnels t ON t.id = k.tunnel_id"
                 " WHERE k.hash = ?1 AND k.tunnel_id = ?2 AND (t.archived_ms IS NOT NULL OR k.expires_ms IS NULL OR k.expires_ms > ?3)", "hsi", hash, tunnel_id, now_ms));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : err_set(e, RC_NOT_FOUND, "no such token");
    bool archived = row_int(&r) != 0;
    struct store_tunnel_token k = token_row(&r);
    TRY(row_ok(&r, e));
    if (archived)
        return err_set(e, RC_INVALID, "tunnel '%s' is archived", tunnel_id);
    *ret = k;
    return RC_OK;
}

/* ---- certificates ---- */

struct certificate_add { const struct store_tunnel_certificate *c; int64_t max; };

static int certificate_add_tx(struct tx *t, void *arg, struct err *e)
{
    const struct certificate_add *x = arg;
    const struct store_tunnel_certificate *c = x->c;
    int64_t same, active;
    TRY(check_live(t, c->tunnel_id, e));
    TRY(db_int(t->db, &same, e, "SELECT count(*) FROM tunnel_certificates WHERE tunnel_id = ? AND archived_ms IS NULL AND fingerprint = ?", "ss", c->tunnel_id, c->fingerprint));
    if (same)
        return err_set(e, RC_CONFLICT, "the certificate is registered on tunnel '%s' already", c->tunnel_id);
    TRY(db_int(t->db, &active, e, "SELECT count(*) FROM tunnel_certificates WHERE tunnel_id = ? AND archived_ms IS NULL", "s", c->tunnel_id));
    if (active >= x->max)
        return err_set(e, RC_LIMIT, "tunnel '%s' has %lld active certificates", c->tunnel_id, (long long)active);
    return db_run(t->db, e, "INSERT INTO tunnel_certificates(id, tunnel_id, fingerprint, expires_ms, created_ms, pem) VALUES(?, ?, ?, ?, ?, ?)", "sssiis", c->id, c->tunnel_id,
                  c->fingerprint, c->expires_ms, c->created_ms, c->pem);
}

static int certificate_add(struct store *st, const struct store_tunnel_certificate *c, int64_t active_max, struct err *e)
{
    if (!c->id || !c->tunnel_id || !c->fingerprint || !c->pem)
        return err_set(e, RC_INVALID, "a certificate needs id, tunnel, fingerprint and its text");
    struct certificate_add x = { c, active_max };
    return writer_run(sqlite_of(st), certificate_add_tx, &x, e);
}

static int no_certificate(struct err *e, const char *id, const char *tunnel_id)
{
    return err_set(e, RC_NOT_FOUND, "no certificate '%s' on tunnel '%s'", id, tunnel_id);
}

static int certificate_get(struct store *st, struct arena *a, const char *tunnel_id, const char *id, struct store_tunnel_certificate *ret, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, "SELECT " CERTIFICATE_COLS " FROM tunnel_certificates c WHERE c.id = ? AND c.tunnel_id = ?", "ss", id, tunnel_id));
    int rc = row_next(&r, e);
    if (rc <= 0)
        return rc < 0 ? rc : no_certificate(e, id, tunnel_id);
    struct store_tunnel_certificate c = certificate_row(&r);
    TRY(row_ok(&r, e));
    *ret = c;
    return RC_OK;
}

static int certificate_list(struct store *st, struct arena *a, const char *tunnel_id, const struct store_page *p, struct store_tunnel_certificate **ret, size_t *ret_n, struct err *e)
{
    struct query q = { 0 };
    query_add(&q, "SELECT " CERTIFICATE_COLS " FROM tunnel_certificates c WHERE c.tunnel_id = ?", "s", tunnel_id);
    page_live(&q, p, "c");
    return rows_page(st, a, &q, p, "c", read_certificate, NULL, sizeof **ret, ret, ret_n, e);
}

static int certificate_archive_tx(struct tx *t, void *arg, struct err *e)
{
    const struct change *c = arg;
    TRY(db_run(t->db, e, "UPDATE tunnel_certificates SET archived_ms = coalesce(archived_ms, ?) WHERE id = ? AND tunnel_id = ?", "iss", c->now_ms, c->id, c->tunnel_id));
    return db_changes(t->db) ? RC_OK : no_certificate(e, c->id, c->tunnel_id);
}

static int certificate_archive(struct store *st, const char *tunnel_id, const char *id, int64_t now_ms, struct err *e)
{
    struct change c = { tunnel_id, id, now_ms };
    return writer_run(sqlite_of(st), certificate_archive_tx, &c, e);
}

static int certificates_expiring(struct store *st, struct arena *a, int64_t before_ms, struct store_tunnel_certificate **ret, size_t *ret_n, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, "SELECT " CERTIFICATE_COLS " FROM tunnel_certificates c WHERE c.archived_ms IS NULL AND c.expires_ms < ?"
                 " ORDER BY c.expires_ms, c.id LIMIT ?", "id", before_ms, STORE_LIST_MAX));
    return rows_read(&r, read_certificate, NULL, sizeof **ret, ret, ret_n, e);
}

/* ---- re-wrapping ---- */
/* Without the tokens of archived tunnels, whose text is gone. */
static int token_scan(struct store *st, struct arena *a, const char *after_id, int limit, struct store_tunnel_token **ret, size_t *ret_n, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, "SELECT " TOKEN_COLS " FROM tunnel_tokens k WHERE k.id > ? AND length(k.sealed) > 0 ORDER BY k.id LIMIT ?", "sd", after_id ? after_id : "", page_limit(limit)));
    return rows_read(&r, read_token, NULL, sizeof **ret, ret, ret_n, e);
}

struct reseal { const char *id; const void *old, *fresh; size_t old_n, fresh_n; };

static int token_reseal_tx(struct tx *t, void *arg, struct err *e)
{
    const struct reseal *x = arg;
    TRY(db_run(t->db, e, "UPDATE tunnel_tokens SET sealed = ? WHERE id = ? AND sealed = ?", "bsb", x->fresh, x->fresh_n, x->id, x->old, x->old_n));
    return db_changes(t->db) ? RC_OK : err_set(e, RC_CONFLICT, "tunnel token '%s' was changed meanwhile", x->id);
}

static int token_reseal(struct store *st, const char *id, const void *old, size_t old_n, const void *fresh, size_t fresh_n, struct err *e)
{
    struct reseal x = { id, old, fresh, old_n, fresh_n };
    return writer_run(sqlite_of(st), token_reseal_tx, &x, e);
}

const struct store_tunnel_ops sqlite_tunnel_ops = {
    .create = tunnel_create, .get = tunnel_get, .find_domain = tunnel_find_domain, .list = tunnel_list, .archive = tunnel_archive,
    .token_current = token_current, .token_rotate = token_rotate, .token_scan = token_scan, .token_reseal = token_reseal, .token_find = token_find,
    .certificate_add = certificate_add, .certificate_get = certificate_get, .certificate_list = certificate_list,
    .certificate_archive = certificate_archive, .certificates_expiring = certificates_expiring,
    .edge_seen = sqlite_edge_seen, .edge_for = sqlite_edge_for, .edge_list = sqlite_edge_list, .connector_list = sqlite_connector_list,
};
