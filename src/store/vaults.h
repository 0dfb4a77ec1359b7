/* store/vaults.h - vaults and their credentials (api.md 9). Secrets are sealed by the caller (crypto/seal.h). Part of store/store.h's contract. */
#pragma once

#include "base/arena.h"
#include "base/attr.h"
#include "base/err.h"

struct store;
struct store_page;

struct store_vault { const char *id, *body; int64_t created_ms, updated_ms, archived_ms; };     /* body: API object without id and times */
struct store_credential {
    const char *id, *vault_id, *kind;        /* "static_bearer" "mcp_oauth" "environment_variable" */
    const char *match;                       /* normalised MCP server URL, or secret_name: unique among a vault's active ones */
    const char *body;                        /* API object without id, times and secrets */
    const void *sealed; size_t sealed_n;     /* JSON of the secrets, sealed; NULL when purged */
    int64_t created_ms, updated_ms, archived_ms;
};
struct store_vault_ops {
    int (*create)(struct store *st, const struct store_vault *v, struct err *e);
    int (*get)(struct store *st, struct arena *a, const char *id, struct store_vault *ret, struct err *e);
    int (*list)(struct store *st, struct arena *a, const struct store_page *p, struct store_vault **ret, size_t *ret_n, struct err *e);
    int (*update)(struct store *st, const char *id, int64_t expect_updated_ms, const char *body, int64_t now_ms, struct err *e);    /* RC_CONFLICT: moved on; RC_INVALID: archived */
    int (*archive)(struct store *st, const char *id, int64_t now_ms, struct err *e);          /* with its credentials, whose secrets are purged */
    int (*remove)(struct store *st, const char *id, struct err *e);
    /* RC_CONFLICT: `match` is taken; RC_LIMIT: `max` active ones; RC_INVALID: vault archived; RC_NOT_FOUND. */
    int (*credential_create)(struct store *st, const struct store_credential *c, int64_t max, struct err *e);
    int (*credential_get)(struct store *st, struct arena *a, const char *vault_id, const char *id, struct store_credential *ret, struct err *e);
    int (*credential_find)(struct store *st, struct arena *a, const char *vault_id, const char *match, struct store_credential *ret, struct err *e);   /* active ones, MCP kinds */
    /* Rows without `sealed`. */
    int (*credential_list)(struct store *st, struct arena *a, const char *vault_id, const struct store_page *p, struct store_credential **ret, size_t *ret_n, struct err *e);
    /* `sealed` NULL keeps what is stored. RC_CONFLICT: moved on; RC_INVALID: archived. */
    int (*credential_update)(struct store *st, const char *vault_id, const char *id, int64_t expect_updated_ms, const char *body, const void *sealed, size_t sealed_n, int64_t now_ms, struct err *e);
    int (*credential_archive)(struct store *st, const char *vault_id, const char *id, int64_t now_ms, struct err *e);     /* purges the secrets */
    int (*credential_remove)(struct store *st, const char *vault_id, const char *id, struct err *e);
    /* Sealed rows after `after_id` (NULL: the first), ordered by id: for the re-wrap command, with compare-and-set on the old blob. */
    int (*sealed_scan)(struct store *st, struct arena *a, const char *after_id, int limit, struct store_credential **ret, size_t *ret_n, struct err *e);
    int (*sealed_replace)(struct store *st, const char *id, const void *old, size_t old_n, const void *fresh, size_t fresh_n, struct err *e);   /* RC_CONFLICT */
};
