/* server/api/vaults.c - vaults (api.md 9). Their credentials: credentials.c. */
#include "server/api/call.h"

#define LIMIT_DEFAULT 20
#define UPDATE_TRIES 8
#define CHECK_PAGE 100               /* more than the active credentials of one vault */

static int answer(struct call *c)
{
    struct store_vault v;
    TRY(call_vault(c, &v));
    view_vault(&c->out, &v);
    return RC_OK;
}

int vaults_list(struct call *c)
{
    struct page p;
    struct store_vault *rows;
    size_t n, first;
    TRY(page_read(c, CURSOR_VAULTS, "", false, LIMIT_DEFAULT, &p));
    TRY(c->store->ops->vault->list(c->store, c->arena, &p.st, &rows, &n, &c->e));
    bool more = page_cut(&p, n, &first, &n);
    buf_puts(&c->out, "{\"data\":[");
    for (size_t i = 0; i < n; i++) {
        if (i)
            buf_putc(&c->out, ',');
        view_vault(&c->out, &rows[first + i]);
    }
    struct page_key last = n ? (struct page_key){ rows[first + n - 1].created_ms, rows[first + n - 1].id } : (struct page_key){ 0, NULL };
    page_end(&p, &c->out, more, false, last, last);
    return RC_OK;
}

int vaults_create(struct call *c)
{
    AUTO_JS vault = json_object();
    AUTO_JS none = json_object();
    json_t *metadata = NULL;
    char id[ID_MAX];
    js_set_str(vault, "display_name", js_str(c->body, "display_name"));
    TRY(metadata_patch(c, none, json_object_get(c->body, "metadata"), false, &metadata));
    js_set(vault, "metadata", metadata);
    AUTO_FREE char *body = js_text(vault);
    id_new("vlt", id);
    struct store_vault in = { .id = id, .body = body, .created_ms = c->now_ms, .updated_ms = c->now_ms, .archived_ms = -1 };
    TRY(c->store->ops->vault->create(c->store, &in, &c->e));
    view_vault(&c->out, &in);
    return RC_OK;
}

int vaults_get(struct call *c) { return answer(c); }

/* One try. RC_CONFLICT: somebody else changed it between our reading and writing. */
static int update_once(struct call *c)
{
    struct store_vault v;
    json_t *metadata = NULL, *name = json_object_get(c->body, "display_name");
    TRY(call_vault(c, &v));
    if (v.archived_ms >= 0)
        return call_fail(c, RC_INVALID, "Vault '%.60s' is archived and cannot be changed.", v.id);
    AUTO_JS old = parse_stored(v.body);
    AUTO_JS vault = json_deep_copy(old);
    if (json_is_string(name))
        js_set(vault, "display_name", json_incref(name));
    TRY(metadata_patch(c, json_object_get(vault, "metadata"), json_object_get(c->body, "metadata"), false, &metadata));
    js_set(vault, "metadata", metadata);
    if (json_equal(old, vault))
        return RC_OK;
    AUTO_FREE char *body = js_text(vault);
    return c->store->ops->vault->update(c->store, v.id, v.updated_ms, body, c->now_ms, &c->e);
}

int vaults_update(struct call *c)
{
    int rc = RC_CONFLICT;
    call_lock(c, c->param[0]);
    for (int i = 0; rc == RC_CONFLICT && i < UPDATE_TRIES; i++)
        rc = update_once(c);
    call_unlock(c, c->param[0]);
    return rc < 0 ? rc : answer(c);
}

int vaults_archive(struct call *c)
{
    struct store_vault v;
    TRY(call_vault(c, &v));
    TRY(c->store->ops->vault->archive(c->store, v.id, c->now_ms, &c->e));
    return answer(c);
}

int vaults_delete(struct call *c)
{
    struct store_vault v;
    TRY(call_vault(c, &v));
    TRY(c->store->ops->vault->remove(c->store, v.id, &c->e));
    view_deleted(&c->out, v.id, "vault_deleted");
    return RC_OK;
}

/* An environment_variable credential is put in at a managed egress, which self-hosted environments lack: a session that silently ran without it would fail
 * later, and elsewhere (decision 17). */
static int check_kinds(struct call *c, size_t i, const struct store_vault *v)
{
    struct store_page p = STORE_PAGE_INIT;
    struct store_credential *rows;
    size_t n;
    p.limit = CHECK_PAGE;
    TRY(c->store->ops->vault->credential_list(c->store, c->arena, v->id, &p, &rows, &n, &c->e));
    for (size_t k = 0; k < n; k++)
        if (str_eq(rows[k].kind, "environment_variable"))
            return call_fail(c, RC_INVALID, "vault_ids.%zu: the credential '%.60s' of vault '%.60s' is an environment_variable. `environment_variable` credentials are not supported "
                             "with self-hosted environments; keep them in a vault of their own, or archive it.", i, rows[k].id, v->id);
    return RC_OK;
}

int vaults_check(struct call *c, const json_t *ids)
{
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const char *id = json_string_value(json_array_get(ids, i));
        struct store_vault v;
        int rc = c->store->ops->vault->get(c->store, c->arena, id ? id : "", &v, &c->e);
        if (rc == RC_NOT_FOUND)
            return call_fail(c, rc, "vault_ids.%zu: '%.60s' not found", i, id ? id : "");
        if (rc < 0)
            return rc;
        if (v.archived_ms >= 0)
            return call_fail(c, RC_INVALID, "vault_ids.%zu: '%.60s' is archived", i, v.id);
        TRY(check_kinds(c, i, &v));
    }
    return RC_OK;
}
