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
/* How a URL that a client named may be reached: the guard of MCP connections, handed in because it stands above this folder. start() gives a check, and
 * `cb` comes exactly once, never inside the call, unless cancelled: rc RC_OK with at least one way (to be tried in turn, borrowed); RC_DENIED or RC_INVALID:
 * refused before any dial, `e` says by which setting; others: cannot be said now. */
struct vault_reach {
    void *(*start)(void *ctx, const char *url, void (*cb)(void *cb_ctx, int rc, const struct fetch_via *ways, size_t n, const struct err *e), void *cb_ctx);
    void (*cancel)(void *check);
    void *ctx;
};
struct vault_conf { struct ev *ev; struct jobs *jobs; struct store *store; struct fetch *fetch; const struct seal_ring *seal; struct vault_reach reach; };
MUST_CHECK int vault_new(const struct vault_conf *c, struct vault **ret, struct err *e);
/* After the jobs were joined and the loop has ended. Validations get their callback (RC_CLOSED), lookups none. NULL is fine. */
void vault_free(struct vault *v);
/* Ends validations; `cb` comes when no refresh is under way: one that is cut off may have used up the refresh token at the provider. */
void vault_drain(struct vault *v, void (*cb)(void *ctx), void *ctx);

struct vault_found { char vault_id[ID_MAX], credential_id[ID_MAX]; const struct secret *bearer; };     /* bearer NULL: no credential matches */
struct vault_lookup;
/* First match over `vault_ids` in order, by normalised URL. An expired OAuth token is refreshed first (one refresh at a time per credential, whoever asks);
 * when that fails: RC_UNAUTHORIZED. `force_refresh`: the server said 401 to the stored token; a token that was refreshed within VAULT_FRESH_MS is given
 * as it is (two callers may hold the old one), and one that cannot be refreshed is read anew. Other codes: cannot be said now (database, overload).
 * The callback comes exactly once, never inside the call. */
#define VAULT_FRESH_MS 10000
struct vault_lookup *vault_find(struct vault *v, const char *const *vault_ids, size_t n, const char *mcp_server_url, bool force_refresh,
                                void (*cb)(void *ctx, int rc, const struct vault_found *f, const struct err *e), void *ctx);
void vault_cancel(struct vault_lookup *l);       /* no callback after; NULL is fine. A refresh that was begun goes on. */

/* A live check of one mcp_oauth credential: the MCP server is asked with its token; after a 401 the token is refreshed and tried once more. */
enum vault_verdict { VAULT_VALID, VAULT_INVALID, VAULT_UNKNOWN };
struct vault_answer { int status; const char *content_type, *body; bool truncated; };      /* body: secrets scrubbed; valid UTF-8 is not promised */
struct vault_validation {
    enum vault_verdict verdict;
    bool has_refresh_token;
    const char *refresh;                         /* "succeeded" "failed" "connect_error" "no_refresh_token"; NULL: none was tried */
    const struct vault_answer *refresh_answer;   /* with "failed" */
    const char *probe;                           /* the MCP method that failed, or NULL */
    const struct vault_answer *probe_answer;     /* NULL: there was none */
};
/* RC_NOT_FOUND; RC_INVALID: of another kind, archived, or the server may not be called (`e` says why); RC_LIMIT: too many at once; RC_CLOSED: this server
 * is stopping. The callback comes exactly once, never inside the call. */
void vault_validate(struct vault *v, const char *vault_id, const char *credential_id,
                    void (*cb)(void *ctx, int rc, const struct vault_validation *r, const struct err *e), void *ctx);

/* scheme and host in lower case, default port and trailing slash dropped. RC_INVALID: not an http(s) URL. Any thread. */
MUST_CHECK int vault_normalize_url(const char *url, struct buf *out, struct err *e);
