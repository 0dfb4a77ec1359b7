/* server/vault/secrets.h - the secrets of one credential, and how they are sealed: one JSON object under the context "credential:<id>". Any thread. */
#pragma once

#include <jansson.h>

#include "base/attr.h"
#include "base/buf.h"
#include "base/random.h"
#include "base/secret.h"
#include "crypto/seal.h"
#include "store/store.h"

#define VAULT_CONTEXT_MAX (16 + ID_MAX)

struct vault_secrets {                   /* each may be NULL */
    struct secret *token;                /* access token, bearer token, or value of the variable */
    struct secret *refresh_token, *client_secret;
    int64_t refreshed_ms;                /* when we got `token` from the token endpoint; 0: a client gave it */
};
void vault_secrets_done(struct vault_secrets *s);        /* wipes */
void vault_context(const char *credential_id, char out[VAULT_CONTEXT_MAX]);
MUST_CHECK int vault_secrets_seal(const struct seal_ring *r, const char *credential_id, const struct vault_secrets *s, struct buf *out, struct err *e);
/* RC_UNAUTHORIZED: purged, altered, or no key of the ring opens it. */
MUST_CHECK int vault_secrets_open(const struct seal_ring *r, const struct store_credential *c, struct vault_secrets *ret, struct err *e);
/* Copies the string out of a parsed document and wipes it there; NULL when it is absent, no string or empty. */
struct secret *vault_take_string(json_t *obj, const char *key);
