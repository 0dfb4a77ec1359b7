/* auth/auth.h - who is calling. Reads the two credential headers, finds the credential by its hash, says what it may do. */
#pragma once

#include "base/arena.h"
#include "base/buf.h"
#include "base/secret.h"
#include "base/attr.h"
#include "base/err.h"
#include "base/random.h"
#include "base/str.h"
#include "store/store.h"

enum principal_kind { WHO_NOBODY, WHO_API_KEY, WHO_ENVIRONMENT, WHO_SESSION, WHO_EDGE };
struct principal {
    enum principal_kind kind;
    const char *key_id;                      /* API, environment or edge key */
    enum key_role role;                      /* API key */
    const char *env_id;                      /* environment key, sessions token */
    const char *session_id, *work_id;        /* sessions token */
};

#define AUTH_PREFIX_API "ow-api-"
#define AUTH_PREFIX_ENVIRONMENT "ow-env-"
#define AUTH_PREFIX_SESSION "ow-ses-"
#define AUTH_PREFIX_EDGE "ow-edge-"

/* RC_UNAUTHORIZED (text for the API caller): none, both headers at once (worker.md 1.2), malformed, unknown, revoked, expired.
 * `authorization`, `x_api_key`: header values, p NULL when absent. */
MUST_CHECK int auth_check(struct store *st, struct arena *a, struct slice authorization, struct slice x_api_key, int64_t now_ms,
                          struct principal *ret, struct err *e);

/* Makes a credential, stores its hash; `ret` holds the text (wipe it after use), `ret_id` its id. */
MUST_CHECK int auth_api_key_create(struct store *st, enum key_role role, const char *name, char ret[TOKEN_MAX], char ret_id[ID_MAX], struct err *e);
MUST_CHECK int auth_environment_key_create(struct store *st, const char *env_id, const char *name, char ret[TOKEN_MAX], char ret_id[ID_MAX], struct err *e);
MUST_CHECK int auth_edge_key_create(struct store *st, const char *name, char ret[TOKEN_MAX], char ret_id[ID_MAX], struct err *e);
int auth_role_parse(const char *s, enum key_role *ret);      /* RC_INVALID */
const char *auth_role_name(enum key_role r);

/* The `secret` of a polled work item (worker.md 2.5): URL-safe base64 of {"sessions_token":…,"api_base_url":…}; base_url may be NULL. */
MUST_CHECK int auth_work_secret_encode(const char *token, const char *base_url, struct buf *out);
/* Padding optional. RC_INVALID: not decodable, no object, no non-empty token. */
MUST_CHECK int auth_work_secret_decode(const char *s, struct secret **ret_token, struct err *e);
