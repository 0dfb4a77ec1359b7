#include "server/vault/secrets.h"

#include <stdio.h>
#include <string.h>

#include "json/js.h"

void vault_secrets_done(struct vault_secrets *s)
{
    secret_free(s->token);
    secret_free(s->refresh_token);
    secret_free(s->client_secret);
    *s = (struct vault_secrets){ 0 };
}

void vault_context(const char *credential_id, char out[VAULT_CONTEXT_MAX])
{
    (void)snprintf(out, VAULT_CONTEXT_MAX, "credential:%s", credential_id);
}

struct secret *vault_take_string(json_t *obj, const char *key)
{
    json_t *v = json_object_get(obj, key);
    size_t n = json_string_length(v);
    if (!json_is_string(v) || !n)
        return NULL;
    struct secret *s = secret_new(json_string_value(v), n);
    wipe((char *)(uintptr_t)json_string_value(v), n);      /* jansson's own buffer: its length stays, its text is gone */
    return s;
}

static void put(struct buf *out, const char *key, const struct secret *s)
{
    if (!s)
        return;
    buf_printf(out, ",\"%s\":", key);
    (void)js_write_string(out, secret_text(s), secret_len(s));
}

int vault_secrets_seal(const struct seal_ring *r, const char *credential_id, const struct vault_secrets *s, struct buf *out, struct err *e)
{
    char context[VAULT_CONTEXT_MAX];
    struct buf plain;
    vault_context(credential_id, context);
    buf_init(&plain, SEAL_PLAIN_MAX);
    (void)buf_reserve(&plain, 256 + 6 * (secret_len(s->token) + secret_len(s->refresh_token) + secret_len(s->client_secret)));   /* at once: growing leaves copies */
    buf_printf(&plain, "{\"refreshed_ms\":%lld", (long long)s->refreshed_ms);
    put(&plain, "token", s->token);
    put(&plain, "refresh_token", s->refresh_token);
    put(&plain, "client_secret", s->client_secret);
    buf_putc(&plain, '}');
    int rc = buf_ok(&plain) ? seal_put(r, context, buf_data(&plain), buf_len(&plain), out, e) : err_set(e, RC_TOO_LARGE, "the secrets of one credential are too large");
    buf_wipe(&plain);
    return rc;
}

int vault_secrets_open(const struct seal_ring *r, const struct store_credential *c, struct vault_secrets *ret, struct err *e)
{
    char context[VAULT_CONTEXT_MAX];
    AUTO_PTR(secret) plain = NULL;
    AUTO_JS j = NULL;
    if (!c->sealed)
        return err_set(e, RC_UNAUTHORIZED, "the secrets of credential '%s' were purged", c->id);
    vault_context(c->id, context);
    int rc = seal_open(r, context, c->sealed, c->sealed_n, &plain, e);
    if (rc < 0)
        return err_wrap(e, rc, "the secrets of credential '%s'", c->id);
    if (js_parse(secret_text(plain), secret_len(plain), SEAL_PLAIN_MAX, &j, NULL) < 0)      /* no text of the parser's: it could quote */
        return err_set(e, RC_UNAUTHORIZED, "the secrets of credential '%s' are not what this program seals", c->id);
    *ret = (struct vault_secrets){ .refreshed_ms = js_int(j, "refreshed_ms", 0) };
    ret->token = vault_take_string(j, "token");
    ret->refresh_token = vault_take_string(j, "refresh_token");
    ret->client_secret = vault_take_string(j, "client_secret");
    return RC_OK;
}
