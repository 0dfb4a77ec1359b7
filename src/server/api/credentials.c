/* server/api/credentials.c - the credentials of a vault (api.md 9). Their secrets go in sealed and never come out. */
#include <string.h>

#include "server/api/call.h"

#define LIMIT_DEFAULT 20
#define UPDATE_TRIES 8
#define CREDENTIALS_MAX 20           /* active ones of one vault */

static int get(struct call *c, struct store_credential *ret)
{
    struct store_vault v;
    TRY(call_vault(c, &v));
    int rc = c->store->ops->vault->credential_get(c->store, c->arena, v.id, c->param[1], ret, &c->e);
    return rc == RC_NOT_FOUND ? call_fail(c, rc, "Credential '%.60s' not found.", c->param[1]) : rc;
}

static int answer(struct call *c)
{
    struct store_credential row;
    TRY(get(c, &row));
    view_credential(&c->out, &row);
    return RC_OK;
}

int credentials_list(struct call *c)
{
    struct page p;
    struct store_vault v;
    struct store_credential *rows;
    size_t n, first;
    TRY(call_vault(c, &v));
    TRY(page_read(c, CURSOR_CREDENTIALS, v.id, false, LIMIT_DEFAULT, &p));
    TRY(c->store->ops->vault->credential_list(c->store, c->arena, v.id, &p.st, &rows, &n, &c->e));
    bool more = page_cut(&p, n, &first, &n);
    buf_puts(&c->out, "{\"data\":[");
    for (size_t i = 0; i < n; i++) {
        if (i)
            buf_putc(&c->out, ',');
        view_credential(&c->out, &rows[first + i]);
    }
    struct page_key last = n ? (struct page_key){ rows[first + n - 1].created_ms, rows[first + n - 1].id } : (struct page_key){ 0, NULL };
    page_end(&p, &c->out, more, false, last, last);
    return RC_OK;
}

static json_t *name_of(json_t *in)
{
    json_t *v = json_object_get(in, "display_name");
    return json_string_length(v) ? json_incref(v) : json_null();
}

static char *body_text(json_t *take_name, json_t *take_metadata, json_t *auth)
{
    AUTO_JS body = json_object();
    js_set(body, "display_name", take_name);
    js_set(body, "metadata", take_metadata);
    js_set(body, "auth", json_incref(auth));
    return js_text(body);
}

/* ---- create ---- */
static int store_new(struct call *c, const struct credential_auth *a, json_t *take_metadata)
{
    char id[ID_MAX];
    struct buf sealed;
    AUTO_FREE char *body = body_text(name_of(c->body), take_metadata, a->shown);
    id_new("vcrd", id);
    buf_init(&sealed, SEAL_PLAIN_MAX + SEAL_OVERHEAD);
    int rc = vault_secrets_seal(c->api->conf.seal, id, &a->secrets, &sealed, &c->e);
    struct store_credential row = {
        .id = id, .vault_id = c->param[0], .kind = a->kind, .match = a->match, .body = body, .sealed = buf_data(&sealed), .sealed_n = buf_len(&sealed),
        .created_ms = c->now_ms, .updated_ms = c->now_ms, .archived_ms = -1,
    };
    if (rc == RC_OK)
        rc = c->store->ops->vault->credential_create(c->store, &row, CREDENTIALS_MAX, &c->e);
    buf_done(&sealed);
    switch (rc) {
    case RC_OK: view_credential(&c->out, &row); return rc;
    case RC_CONFLICT:
        c->no_retry = true;
        return call_fail(c, rc, "The vault has an active credential for %s '%.200s' already.", str_eq(a->kind, "environment_variable") ? "secret_name" : "mcp_server_url", a->match);
    case RC_LIMIT: return call_fail(c, RC_INVALID, "A vault may have %d active credentials; archive one first.", CREDENTIALS_MAX);
    case RC_INVALID: return call_fail(c, rc, "Vault '%.60s' is archived and cannot be changed.", c->param[0]);
    case RC_NOT_FOUND: return call_fail(c, rc, "Vault '%.60s' not found.", c->param[0]);
    default: return rc;
    }
}

int credentials_create(struct call *c)
{
    struct store_vault v;
    struct credential_auth a;
    AUTO_JS none = json_object();
    json_t *metadata = NULL;
    TRY(call_vault(c, &v));
    TRY(credential_auth_new(c, json_object_get(c->body, "auth"), &a));
    int rc = metadata_patch(c, none, json_object_get(c->body, "metadata"), false, &metadata);
    if (rc == RC_OK)
        rc = store_new(c, &a, metadata);
    credential_auth_done(&a);
    return rc;
}

int credentials_get(struct call *c) { return answer(c); }

/* ---- update ---- */
/* The tree lives until the request ends, its texts need not. */
static void forget_secrets(json_t *auth)
{
    static const char *const flat[] = { "token", "access_token", "secret_value" };
    for (size_t i = 0; i < COUNT_OF(flat); i++)
        secret_free(vault_take_string(auth, flat[i]));       /* wiped there */
    secret_free(vault_take_string(json_object_get(auth, "refresh"), "refresh_token"));
    secret_free(vault_take_string(js_at(auth, "refresh.token_endpoint_auth"), "client_secret"));
}

/* What the document does not list for an update was dropped from c->body. A key that cannot change is still looked for, as an answer of 200 would say that it
 * had been changed. */
static int check_unchanged(struct call *c, const json_t *shown)
{
    static const char *const fixed[] = { "mcp_server_url", "secret_name", "refresh.token_endpoint", "refresh.client_id" };
    struct slice raw = http_req_body(c->req);
    AUTO_JS body = NULL;
    if (slice_trim(raw).n == 0 || js_parse(raw.p, raw.n, c->route->body_max, &body, NULL) < 0)
        return RC_OK;
    json_t *auth = json_object_get(body, "auth");
    int rc = RC_OK;
    for (size_t i = 0; i < COUNT_OF(fixed) && rc == RC_OK; i++) {
        const char *now = js_str(auth, fixed[i]), *was = js_str(shown, fixed[i]);
        if (now && !str_eq(now, was))
            rc = call_fail(c, RC_INVALID, "auth.%s: cannot be changed; archive this credential and create another", fixed[i]);
    }
    forget_secrets(auth);
    return rc;
}

/* One try. RC_CONFLICT: a refresh or another client was faster. `in`: a copy of auth, as its secrets are taken out. */
static int update_once(struct call *c, json_t *in)
{
    struct store_credential row;
    json_t *metadata = NULL, *name = json_object_get(c->body, "display_name");
    TRY(get(c, &row));
    if (row.archived_ms >= 0)
        return call_fail(c, RC_INVALID, "Credential '%.60s' is archived and cannot be changed.", row.id);
    AUTO_JS old = parse_stored(row.body);
    TRY(check_unchanged(c, json_object_get(old, "auth")));
    TRY(metadata_patch(c, json_object_get(old, "metadata"), json_object_get(c->body, "metadata"), false, &metadata));
    struct credential_auth a = { .kind = row.kind, .shown = json_deep_copy(json_object_get(old, "auth")) };
    AUTO_FREE char *body = NULL;
    struct buf sealed;
    buf_init(&sealed, SEAL_PLAIN_MAX + SEAL_OVERHEAD);
    int rc = vault_secrets_open(c->api->conf.seal, &row, &a.secrets, &c->e);
    if (rc == RC_UNAUTHORIZED)               /* ours to mend, not the caller's key */
        rc = RC_IO;
    if (rc == RC_OK)
        rc = credential_auth_patch(c, in, &a);
    if (rc == RC_OK && a.secrets_changed)
        rc = vault_secrets_seal(c->api->conf.seal, row.id, &a.secrets, &sealed, &c->e);
    if (rc == RC_OK)
        body = body_text(name ? name_of(c->body) : json_incref(json_object_get(old, "display_name")), json_incref(metadata), a.shown);
    if (rc == RC_OK && (a.secrets_changed || !str_eq(body, row.body)))
        rc = c->store->ops->vault->credential_update(c->store, row.vault_id, row.id, row.updated_ms, body, a.secrets_changed ? buf_data(&sealed) : NULL, buf_len(&sealed),
                                                     c->now_ms, &c->e);
    buf_done(&sealed);
    credential_auth_done(&a);
    json_decref(metadata);
    return rc;
}

int credentials_update(struct call *c)
{
    int rc = RC_CONFLICT;
    call_lock(c, c->param[1]);
    for (int i = 0; rc == RC_CONFLICT && i < UPDATE_TRIES; i++) {
        AUTO_JS in = json_deep_copy(json_object_get(c->body, "auth"));
        rc = update_once(c, in);
        forget_secrets(in);
    }
    forget_secrets(json_object_get(c->body, "auth"));
    call_unlock(c, c->param[1]);
    return rc < 0 ? rc : answer(c);
}

int credentials_archive(struct call *c)
{
    struct store_credential row;
    TRY(get(c, &row));
    TRY(c->store->ops->vault->credential_archive(c->store, row.vault_id, row.id, c->now_ms, &c->e));
    return answer(c);
}

int credentials_delete(struct call *c)
{
    struct store_credential row;
    TRY(get(c, &row));
    TRY(c->store->ops->vault->credential_remove(c->store, row.vault_id, row.id, &c->e));
    view_deleted(&c->out, row.id, "vault_credential_deleted");
    return RC_OK;
}

/* ---- validate: runs on the loop's thread, and the call waits for it without a thread ---- */
static json_t *answer_json(const struct vault_answer *a)
{
    if (!a)
        return json_null();
    json_t *o = json_object();
    js_set_int(o, "status_code", a->status);
    js_set_str(o, "content_type", a->content_type);
    js_set_str(o, "body", a->body);
    js_set_bool(o, "body_truncated", a->truncated);
    return o;
}

static void on_validated(void *ctx, int rc, const struct vault_validation *r, const struct err *e)
{
    static const char *const verdict[] = { [VAULT_VALID] = "valid", [VAULT_INVALID] = "invalid", [VAULT_UNKNOWN] = "unknown" };
    struct call *c = ctx;
    if (rc < 0) {
        call_finish(c, call_fail(c, rc == RC_UNAUTHORIZED ? RC_IO : rc, "%s", e->msg));
        return;
    }
    json_t *o = json_object(), *probe = r->probe ? json_object() : json_null(), *refresh = r->refresh ? json_object() : json_null();
    js_set_str(o, "type", "vault_credential_validation");
    js_set_str(o, "vault_id", c->param[0]);
    js_set_str(o, "credential_id", c->param[1]);
    js_set_str(o, "status", verdict[r->verdict]);
    js_set_bool(o, "has_refresh_token", r->has_refresh_token);
    if (r->probe) {
        js_set_str(probe, "method", r->probe);
        js_set(probe, "http_response", answer_json(r->probe_answer));
    }
    js_set(o, "mcp_probe", probe);
    if (r->refresh) {
        js_set_str(refresh, "status", r->refresh);
        js_set(refresh, "http_response", answer_json(r->refresh_answer));
    }
    js_set(o, "refresh", refresh);
    js_set_time(o, "validated_at", clock_now_ms());
    call_finish(c, call_json(c, o));
}

static void start_validation(void *arg)
{
    struct call *c = arg;
    vault_validate(c->api->conf.vault, c->param[0], c->param[1], on_validated, c);
}

int credentials_validate(struct call *c)
{
    struct store_credential row;
    if (!c->api->conf.vault)
        return call_fail(c, RC_UNSUPPORTED, "This server validates no credentials.");
    TRY(get(c, &row));
    if (!str_eq(row.kind, "mcp_oauth"))
        return call_fail(c, RC_INVALID, "Only mcp_oauth credentials can be validated; '%.60s' is of the type %s.", row.id, row.kind);
    if (row.archived_ms >= 0)
        return call_fail(c, RC_INVALID, "Credential '%.60s' is archived.", row.id);
    ev_post(c->api->conf.ev, start_validation, c);
    return CALL_TAKEN;
}
