/* What is said to a token endpoint and what it answers (RFC 6749 sections 2.3.1, 5 and 6; RFC 8707 for `resource`). */
#include <string.h>
#include <strings.h>

#include "base/base64.h"
#include "server/vault/private.h"

#define LIFE_MAX_S (INT64_C(10) * 366 * 86400)       /* longer lives are taken as this */

void fresh_done(struct fresh *f)
{
    secret_free(f->access_token);
    secret_free(f->refresh_token);
    *f = (struct fresh){ .expires_ms = -1 };
}

void form_put(struct buf *out, const char *p, size_t n)
{
    static const char hex[] = "0123456789ABCDEF";
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)p[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' || c == '~';
        char esc[3] = { '%', hex[c >> 4], hex[c & 15] };
        (void)buf_put(out, plain ? (char *)&c : esc, plain ? 1 : 3);
    }
}

static void field(struct buf *body, const char *name, const char *p, size_t n)
{
    buf_printf(body, "%s%s=", buf_len(body) ? "&" : "", name);
    form_put(body, p, n);
}

static void text_field(struct buf *body, const char *name, const char *s)
{
    if (s && s[0])
        field(body, name, s, strlen(s));
}

static int basic(const struct cred *c, struct secret **ret, struct err *e)
{
    struct buf pair, text;
    size_t room = 3 * (strlen(c->client_id) + secret_len(c->secrets.client_secret)) + 8;
    buf_init(&pair, room);
    buf_init(&text, 2 * room + 8);
    (void)buf_reserve(&pair, room);          /* at once, both: growing leaves copies */
    (void)buf_reserve(&text, 2 * room);
    form_put(&pair, c->client_id, strlen(c->client_id));
    buf_putc(&pair, ':');
    form_put(&pair, secret_text(c->secrets.client_secret), secret_len(c->secrets.client_secret));
    (void)base64_encode(&text, buf_data(&pair), buf_len(&pair));
    int rc = buf_ok(&pair) && buf_ok(&text) ? RC_OK : err_set(e, RC_NOMEM, "out of memory");
    if (rc == RC_OK)
        *ret = secret_new(buf_data(&text), buf_len(&text));
    buf_wipe(&pair);
    buf_wipe(&text);
    return rc;
}

int token_request(const struct cred *c, struct buf *body, struct secret **ret_basic, struct err *e)
{
    const struct vault_secrets *s = &c->secrets;
    bool is_basic = str_eq(c->auth, "client_secret_basic"), post = str_eq(c->auth, "client_secret_post");
    if (!cred_can_refresh(c) || !c->client_id || ((is_basic || post) && !s->client_secret))
        return err_set(e, RC_INVALID, "credential '%s' lacks what a refresh needs", c->id);
    (void)buf_reserve(body, 256 + 3 * (secret_len(s->refresh_token) + secret_len(s->client_secret) + strlen(c->client_id) + (c->scope ? strlen(c->scope) : 0) +
                                       (c->resource ? strlen(c->resource) : 0)));
    text_field(body, "grant_type", "refresh_token");
    field(body, "refresh_token", secret_text(s->refresh_token), secret_len(s->refresh_token));
    if (!is_basic)
        text_field(body, "client_id", c->client_id);
    if (post)
        field(body, "client_secret", secret_text(s->client_secret), secret_len(s->client_secret));
    text_field(body, "scope", c->scope);
    text_field(body, "resource", c->resource);
    if (!buf_ok(body))
        return err_set(e, RC_TOO_LARGE, "the refresh request of credential '%s' is too large", c->id);
    return is_basic ? basic(c, ret_basic, e) : RC_OK;
}

/* RFC 6750's characters, taken widely: anything visible, so that it cannot end the header line. */
static bool is_token(const struct secret *s)
{
    const char *p = secret_text(s);
    if (!s || secret_len(s) > TOKEN_TEXT_MAX)
        return false;
    for (size_t i = 0; i < secret_len(s); i++)
        if ((unsigned char)p[i] <= ' ' || (unsigned char)p[i] >= 127)
            return false;
    return true;
}

/* Some providers write the number as a string. Absent, null, zero or nonsense: unknown. */
static int64_t life_s(const json_t *j)
{
    const json_t *v = json_object_get(j, "expires_in");
    int64_t s = 0;
    if (json_is_string(v) && str_to_i64(json_string_value(v), 1, INT64_MAX, &s) < 0)
        return 0;
    if (json_is_number(v))
        s = json_number_value(v) >= (double)LIFE_MAX_S ? LIFE_MAX_S : json_number_value(v) > 0 ? (int64_t)json_number_value(v) : 0;
    return s > LIFE_MAX_S ? LIFE_MAX_S : s;
}

int token_answer(const char *p, size_t n, int64_t now_ms, struct fresh *ret, struct err *e)
{
    AUTO_JS j = NULL;
    struct fresh f = { .expires_ms = -1 };
    if (js_parse(p, n, TOKEN_ANSWER_MAX, &j, NULL) < 0 || !json_is_object(j))
        return err_set(e, RC_PROTO, "the token endpoint's answer is no JSON object");
    f.access_token = vault_take_string(j, "access_token");
    f.refresh_token = vault_take_string(j, "refresh_token");
    const char *type = js_str(j, "token_type");
    int rc = RC_OK;
    if (!f.access_token)
        rc = err_set(e, RC_PROTO, "the token endpoint's answer has no access_token");
    else if (type && strcasecmp(type, "bearer") != 0)
        rc = err_set(e, RC_PROTO, "the token endpoint gives a token that is no bearer token");
    else if (!is_token(f.access_token) || (f.refresh_token && secret_len(f.refresh_token) > TOKEN_TEXT_MAX))
        rc = err_set(e, RC_PROTO, "the token endpoint gives a token with characters that no header can carry, or one that is too long");
    int64_t life = life_s(j);
    f.expires_ms = life > 0 ? now_ms + life * 1000 : -1;
    if (rc < 0)
        fresh_done(&f);
    else
        *ret = f;
    return rc;
}

void token_error(const char *p, size_t n, char out[64])
{
    AUTO_JS j = NULL;
    out[0] = '\0';
    if (js_parse(p, n, TOKEN_ANSWER_MAX, &j, NULL) < 0)
        return;
    const char *code = js_str(j, "error");
    if (code && strlen(code) < 64 && strspn(code, "abcdefghijklmnopqrstuvwxyz_") == strlen(code))
        (void)str_copy(out, 64, code);
}
