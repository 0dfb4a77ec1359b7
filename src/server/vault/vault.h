/* server/vault/vault.h - which credential a session's vaults hold for an MCP server, refreshed when it has expired (api.md 9). Secrets are sealed at rest
 * (crypto/seal.h) and leave this folder only as struct secret. ev thread, except vault_new and vault_free. */
#pragma once

#include "base/attr.h"
#include "base/random.h"
#include "base/secret.h"
#include "crypto/seal.h"
#include "ev/ev.h"
#include "ev/jobs.h"
#include "http/fetch.h"
#include "store/store.h"

struct vault;
struct vault_conf { struct ev *ev; struct jobs *jobs; struct store *store; struct fetch *fetch; const struct seal_ring *seal; };
MUST_CHECK int vault_new(const struct vault_conf *c, struct vault **ret, struct err *e);
void vault_free(struct vault *v);

struct vault_found { char vault_id[ID_MAX], credential_id[ID_MAX]; const struct secret *bearer; };     /* bearer NULL: no credential matches */
struct vault_lookup;
/* First match over `vault_ids` in order, by normalised URL. An expired OAuth token is refreshed first (one refresh at a time per credential, whoever asks);
 * when that fails: RC_UNAUTHORIZED. `force_refresh`: the server said 401 to the stored token. The callback comes exactly once, never inside the call. */
struct vault_lookup *vault_find(struct vault *v, const char *const *vault_ids, size_t n, const char *mcp_server_url, bool force_refresh,
                                void (*cb)(void *ctx, int rc, const struct vault_found *f, const struct err *e), void *ctx);
void vault_cancel(struct vault_lookup *l);       /* no callback after; NULL is fine */
/* scheme and host in lower case, default port and trailing slash dropped. RC_INVALID: not an http(s) URL. */
MUST_CHECK int vault_normalize_url(const char *url, struct buf *out, struct err *e);
