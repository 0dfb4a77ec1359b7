/* A credential as this folder works with it. Any thread. */
#include <string.h>

#include "base/clock.h"
#include "server/vault/private.h"

#define ROW_MAX (2 * MIB)

void cred_free(struct cred *c)
{
    if (!c)
        return;
    vault_secrets_done(&c->secrets);
    free(c->url);
    free(c->token_endpoint);
    free(c->client_id);
    free(c->auth);
    free(c->scope);
    free(c->resource);
    free(c);
}

static int from_row(const struct vault *v, const struct store_credential *row, struct cred **ret, struct err *e)
{
    AUTO_PTR(cred) c = xcalloc(1, sizeof *c);
    AUTO_JS body = NULL;
    if (js_parse(row->body, strlen(row->body), ROW_MAX, &body, e) < 0)
        return err_wrap(e, RC_IO, "credential '%s'", row->id);
    (void)str_copy(c->vault_id, ID_MAX, row->vault_id);
    (void)str_copy(c->id, ID_MAX, row->id);
    c->oauth = str_eq(row->kind, "mcp_oauth");
    c->archived = row->archived_ms >= 0;
    c->updated_ms = row->updated_ms;
    c->expires_ms = -1;
    const char *expires = js_str(body, "auth.expires_at");
    if (expires && rfc3339_parse(expires, &c->expires_ms) < 0)
        c->expires_ms = -1;
    c->url = str_dup(js_str(body, "auth.mcp_server_url"));
    c->token_endpoint = str_dup(js_str(body, "auth.refresh.token_endpoint"));
    c->client_id = str_dup(js_str(body, "auth.refresh.client_id"));
    c->auth = str_dup(js_str(body, "auth.refresh.token_endpoint_auth.type"));
    c->scope = str_dup(js_str(body, "auth.refresh.scope"));
    c->resource = str_dup(js_str(body, "auth.refresh.resource"));
    if (!c->archived)
        TRY(vault_secrets_open(v->c.seal, row, &c->secrets, e));
    *ret = TAKE(c);
    return RC_OK;
}

int cred_load(const struct vault *v, const char *vault_id, const char *id, const char *match, struct cred **ret, struct err *e)
{
    const struct store_vault_ops *o = v->c.store->ops->vault;
    AUTO_PTR(arena) a = arena_new(8 * KIB, ROW_MAX);
    struct store_credential row;
    if (!a)
        return err_set(e, RC_NOMEM, "out of memory");
    TRY(id ? o->credential_get(v->c.store, a, vault_id, id, &row, e) : o->credential_find(v->c.store, a, vault_id, match, &row, e));
    return from_row(v, &row, ret, e);
}

bool cred_can_refresh(const struct cred *c) { return c->oauth && c->token_endpoint && c->secrets.refresh_token; }

bool cred_expired(const struct cred *c, int64_t now_ms)
{
    int64_t skew = EXPIRY_SKEW_MS;
    if (!c->oauth || c->expires_ms < 0)
        return false;
    if (c->secrets.refreshed_ms > 0 && (c->expires_ms - c->secrets.refreshed_ms) / 10 < skew)
        skew = (c->expires_ms - c->secrets.refreshed_ms) / 10;
    return now_ms >= c->expires_ms - skew;
}
