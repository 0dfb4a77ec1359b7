/* store/tunnels.h - tunnels, their tokens and authorities, and the directory of edges and connectors (tunnels.md 2, 11). Part of store/store.h's contract. */
#pragma once

#include "base/arena.h"
#include "base/attr.h"
#include "base/err.h"

struct store;
struct store_page;

struct store_tunnel { const char *id, *workspace_id, *display_name, *domain; int64_t created_ms, archived_ms; int64_t active_certificates; };     /* display_name may be NULL */
struct store_tunnel_token { const char *id, *tunnel_id; uint8_t hash[32]; const void *sealed; size_t sealed_n; int64_t created_ms, expires_ms; };     /* expires -1: the current one */
struct store_tunnel_certificate { const char *id, *tunnel_id, *fingerprint, *pem; int64_t expires_ms, created_ms, archived_ms; };
struct store_edge { const char *id, *key_id, *address, *version; bool draining; int64_t seen_ms; };
struct store_connector { const char *id, *edge_id, *tunnel_id, *token_id, *version, *remote_address; int64_t connections, connected_ms, seen_ms; };

struct store_tunnel_ops {
    /* With its first token. RC_LIMIT: `live_max` unarchived ones exist; RC_CONFLICT: the domain was used before. */
    int (*create)(struct store *st, const struct store_tunnel *t, const struct store_tunnel_token *tok, int64_t live_max, struct err *e);
    int (*get)(struct store *st, struct arena *a, const char *id, struct store_tunnel *ret, struct err *e);
    int (*find_domain)(struct store *st, struct arena *a, const char *domain, struct store_tunnel *ret, struct err *e);     /* archived ones too */
    int (*list)(struct store *st, struct arena *a, const struct store_page *p, struct store_tunnel **ret, size_t *ret_n, struct err *e);
    int (*archive)(struct store *st, const char *id, int64_t now_ms, struct err *e);        /* with its certificates and tokens; again: RC_OK, nothing changes */
    int (*token_current)(struct store *st, struct arena *a, const char *tunnel_id, struct store_tunnel_token *ret, struct err *e);   /* RC_NOT_FOUND; RC_INVALID archived */
    /* The old current one stays valid until overlap_until_ms (now: not at all; then all older ones end too). RC_NOT_FOUND; RC_INVALID archived. */
    int (*token_rotate)(struct store *st, const struct store_tunnel_token *fresh, int64_t now_ms, int64_t overlap_until_ms, struct err *e);
    /* RC_NOT_FOUND; RC_INVALID: the token was good, but the tunnel is archived. */
    int (*token_find)(struct store *st, struct arena *a, const char *tunnel_id, const uint8_t hash[32], int64_t now_ms, struct store_tunnel_token *ret, struct err *e);
    /* Tokens after `after_id` (NULL: the first), ordered by id, and the exchange of one sealed text (RC_CONFLICT: it is another one now): for the re-wrap command. */
    int (*token_scan)(struct store *st, struct arena *a, const char *after_id, int limit, struct store_tunnel_token **ret, size_t *ret_n, struct err *e);
    int (*token_reseal)(struct store *st, const char *id, const void *old, size_t old_n, const void *fresh, size_t fresh_n, struct err *e);
    /* RC_LIMIT: `active_max` active ones; RC_CONFLICT: the same fingerprint is active on this tunnel; RC_INVALID: archived tunnel; RC_NOT_FOUND. */
    int (*certificate_add)(struct store *st, const struct store_tunnel_certificate *c, int64_t active_max, struct err *e);
    int (*certificate_get)(struct store *st, struct arena *a, const char *tunnel_id, const char *id, struct store_tunnel_certificate *ret, struct err *e);
    int (*certificate_list)(struct store *st, struct arena *a, const char *tunnel_id, const struct store_page *p, struct store_tunnel_certificate **ret, size_t *ret_n, struct err *e);
    int (*certificate_archive)(struct store *st, const char *tunnel_id, const char *id, int64_t now_ms, struct err *e);     /* again: RC_OK */
    int (*certificates_expiring)(struct store *st, struct arena *a, int64_t before_ms, struct store_tunnel_certificate **ret, size_t *ret_n, struct err *e);

    /* Replaces what this edge said before; connectors of unknown tunnels are passed over. RC_CONFLICT: an edge of this id was seen since `since_ms` with another
     * key that is still good. */
    int (*edge_seen)(struct store *st, const struct store_edge *e_, int64_t since_ms, const struct store_connector *c, size_t n, struct err *e);
    int (*edge_for)(struct store *st, struct arena *a, const char *tunnel_id, int64_t since_ms, struct store_edge **ret, size_t *ret_n, struct err *e);   /* edges with a connector of it, seen since then, not draining first */
    int (*edge_list)(struct store *st, struct arena *a, struct store_edge **ret, size_t *ret_n, struct err *e);
    int (*connector_list)(struct store *st, struct arena *a, const char *tunnel_id, struct store_connector **ret, size_t *ret_n, struct err *e);   /* newest seen first; gone ones have 0 connections, and are forgotten after a day */
};
