/* Finds out who is calling, and makes credentials. A credential's text exists only with its holder; here only its hash is kept. */
#include "auth/auth.h"

#include <string.h>

#include "base/clock.h"
#include "crypto/crypto.h"

#define TOKEN_BODY_LEN 43        /* as token_new() makes it: 256 bits in base64url */
#define HINT_LEN 4
#define KEY_NAME_MAX 256

struct kind_row { const char *prefix; enum principal_kind kind; };
static const struct kind_row kinds[] = {
    { AUTH_PREFIX_API, WHO_API_KEY },
    { AUTH_PREFIX_ENVIRONMENT, WHO_ENVIRONMENT },
    { AUTH_PREFIX_SESSION, WHO_SESSION },
    { AUTH_PREFIX_EDGE, WHO_EDGE },
};

static bool is_token_char(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '-' || c == '_';
}

/* WHO_NOBODY: not a credential of ours by its form. */
static enum principal_kind kind_of(struct slice s)
{
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        size_t n = strlen(kinds[i].prefix);
        if (s.n != n + TOKEN_BODY_LEN || memcmp(s.p, kinds[i].prefix, n) != 0)
            continue;
        for (size_t k = n; k < s.n; k++)
            if (!is_token_char(s.p[k]))
                return WHO_NOBODY;
        return kinds[i].kind;
    }
    return WHO_NOBODY;
}

/* The credential inside "Bearer <credential>"; p NULL when the header has another form. */
static struct slice bearer(struct slice h)
{
    static const char scheme[] = "bearer";
    const size_t n = sizeof scheme - 1;
    h = slice_trim(h);
    if (h.n <= n || !slice_eq_nocase((struct slice){ h.p, n }, scheme) || (h.p[n] != ' ' && h.p[n] != '\t'))
        return (struct slice){ 0 };
    return slice_trim((struct slice){ h.p + n, h.n - n });
}

/* The kind of key row that a credential of this form must have: none may pass for another. */
static enum key_kind key_kind_of(enum principal_kind kind)
{
    return kind == WHO_API_KEY ? KEY_API : kind == WHO_EDGE ? KEY_EDGE : KEY_ENVIRONMENT;
}

static int from_key(struct store *st, struct arena *a, enum principal_kind kind, const uint8_t hash[SHA256_BYTES], struct principal *ret, struct err *e)
{
    struct store_key k;
    TRY(st->ops->key_find(st, a, hash, &k, e));
    if (k.kind != key_kind_of(kind))
        return RC_NOT_FOUND;
    *ret = (struct principal){ .kind = kind, .key_id = k.id, .role = kind == WHO_API_KEY ? k.role : ROLE_NONE, .env_id = k.env_id };
    return RC_OK;
}

static int from_token(struct store *st, struct arena *a, const uint8_t hash[SHA256_BYTES], int64_t now_ms, struct principal *ret, struct err *e)
{
    struct store_token t;
    TRY(st->ops->token_find(st, a, hash, now_ms, &t, e));
    *ret = (struct principal){ .kind = WHO_SESSION, .env_id = t.env_id, .session_id = t.session_id, .work_id = t.work_id };
    return RC_OK;
}

int auth_check(struct store *st, struct arena *a, struct slice authorization, struct slice x_api_key, int64_t now_ms, struct principal *ret, struct err *e)
{
    if (authorization.p && x_api_key.p)
        return err_set(e, RC_UNAUTHORIZED, "Send either x-api-key or Authorization, not both.");
    if (!authorization.p && !x_api_key.p)
        return err_set(e, RC_UNAUTHORIZED, "x-api-key header or Authorization: Bearer is required.");
    /* Unknown, revoked and expired look alike to the caller. */
    const char *refusal = authorization.p ? "Invalid bearer token." : "invalid x-api-key";
    struct slice text = authorization.p ? bearer(authorization) : slice_trim(x_api_key);
    if (!text.p)
        return err_set(e, RC_UNAUTHORIZED, "The Authorization header must be of the form: Bearer <credential>.");
    enum principal_kind kind = kind_of(text);
    if (kind == WHO_NOBODY)
        return err_set(e, RC_UNAUTHORIZED, "%s", refusal);
    uint8_t hash[SHA256_BYTES];
    sha256(text.p, text.n, hash);
    int rc = kind == WHO_SESSION ? from_token(st, a, hash, now_ms, ret, e) : from_key(st, a, kind, hash, ret, e);
    return rc == RC_NOT_FOUND ? err_set(e, RC_UNAUTHORIZED, "%s", refusal) : rc;
}

/* Stores the hash of a new credential; its text goes to `ret` only when that succeeded. */
static int key_create(struct store *st, struct store_key *k, const char *prefix, const char *id_prefix, char ret[TOKEN_MAX], char ret_id[ID_MAX], struct err *e)
{
    char text[TOKEN_MAX], id[ID_MAX], hint[HINT_LEN + 1];
    uint8_t hash[SHA256_BYTES];
    if (k->name && strlen(k->name) > KEY_NAME_MAX)
        return err_set(e, RC_INVALID, "the name of a key has at most %d bytes", KEY_NAME_MAX);
    token_new(prefix, text);
    id_new(id_prefix, id);
    size_t n = strlen(text);
    sha256(text, n, hash);
    (void)str_copy(hint, sizeof hint, text + n - HINT_LEN);
    k->id = id;
    k->hint = hint;
    k->created_ms = clock_now_ms();
    int rc = st->ops->key_create(st, k, hash, e);
    if (rc == RC_OK) {
        (void)str_copy(ret, TOKEN_MAX, text);
        (void)str_copy(ret_id, ID_MAX, id);
    }
    wipe(text, sizeof text);
    return rc;
}

int auth_api_key_create(struct store *st, enum key_role role, const char *name, char ret[TOKEN_MAX], char ret_id[ID_MAX], struct err *e)
{
    if (role != ROLE_USER && role != ROLE_DEVELOPER && role != ROLE_ADMIN)
        return err_set(e, RC_INVALID, "an API key needs a role: admin, developer or user");
    struct store_key k = { .kind = KEY_API, .role = role, .name = name, .revoked_ms = -1, .last_used_ms = -1 };
    return key_create(st, &k, AUTH_PREFIX_API, "apikey", ret, ret_id, e);
}

int auth_environment_key_create(struct store *st, const char *env_id, const char *name, char ret[TOKEN_MAX], char ret_id[ID_MAX], struct err *e)
{
    if (!env_id || !*env_id)
        return err_set(e, RC_INVALID, "an environment key needs an environment");
    struct store_key k = { .kind = KEY_ENVIRONMENT, .env_id = env_id, .name = name, .revoked_ms = -1, .last_used_ms = -1 };
    return key_create(st, &k, AUTH_PREFIX_ENVIRONMENT, "ekey", ret, ret_id, e);
}

int auth_edge_key_create(struct store *st, const char *name, char ret[TOKEN_MAX], char ret_id[ID_MAX], struct err *e)
{
    struct store_key k = { .kind = KEY_EDGE, .name = name, .revoked_ms = -1, .last_used_ms = -1 };
    return key_create(st, &k, AUTH_PREFIX_EDGE, "edgekey", ret, ret_id, e);
}

static const struct { const char *name; enum key_role role; } roles[] = {
    { "admin", ROLE_ADMIN }, { "developer", ROLE_DEVELOPER }, { "user", ROLE_USER },
};

int auth_role_parse(const char *s, enum key_role *ret)
{
    for (size_t i = 0; i < COUNT_OF(roles); i++)
        if (str_eq(s, roles[i].name)) {
            *ret = roles[i].role;
            return RC_OK;
        }
    return RC_INVALID;
}

const char *auth_role_name(enum key_role r)
{
    for (size_t i = 0; i < COUNT_OF(roles); i++)
        if (roles[i].role == r)
            return roles[i].name;
    return "none";
}
