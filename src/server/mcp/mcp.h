/* server/mcp/mcp.h - MCP client of the control plane: streamable HTTP of protocol revisions 2025-03-26 to 2026-07-28, with fallback to the older SSE transport.
 * Used by the agent loop and by POST /v1/messages. Every call goes through the guard: public https hosts by allow-list with checked addresses, hosts of our own
 * tunnels through the edge with exactly the registered authorities. ev thread only. Callbacks come exactly once, never inside the call, not after a cancel. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "base/secret.h"
#include "ev/ev.h"
#include "ev/jobs.h"
#include "http/fetch.h"
#include "json/js.h"
#include "server/vault/vault.h"
#include "store/store.h"

struct mcp;
struct mcp_conf {
    struct ev *ev; struct jobs *jobs; struct store *store; struct vault *vault;
    const char *workspace_id;
    const char *tunnel_domain;                   /* hosts below it are tunnels of ours: never dialled directly */
    const char *const *edges; size_t n_edges;    /* "https://host:port" of the provider listeners; tried in turn */
    const char *edge_ca_file, *edge_cert_file, *edge_key_file;
    const char *const *allow; size_t n_allow;    /* public hosts: "mcp.example.com", "*.example.com", "*" */
    const char *const *private_ok; size_t n_private_ok;      /* "host:port" that may be private and plain http (development) */
    const char *ca_file, *proxy;                 /* for public hosts */
};
MUST_CHECK int mcp_new(const struct mcp_conf *c, struct mcp **ret, struct err *e);
void mcp_free(struct mcp *m);
/* The vaults and this client need each other: made without one, the client is given it afterwards. Before the vault is
 * freed it is taken away (NULL): that ends all sessions. */
void mcp_use_vault(struct mcp *m, struct vault *v);
struct fetch *mcp_fetch(struct mcp *m);          /* the client's own; for whoever calls what mcp_reach() has allowed */
struct vault_reach mcp_reach(struct mcp *m);     /* how a URL may be reached, by the guard; ctx is `m` */

enum mcp_outcome { MCP_OK, MCP_CONNECT_FAILED, MCP_AUTH_FAILED, MCP_REFUSED /* by our own guard or registry; before any dial */, MCP_CANCELLED };

struct mcp_target {                              /* copied */
    const char *name, *url;
    const char *const *vault_ids; size_t n_vaults;
    const struct secret *bearer;                 /* given by the caller instead of a vault (Messages API), or NULL */
};
struct mcp_session;
/* Connects: initialize (or server/discover of the stateless revision) and tools/list with all its pages. On MCP_OK the session is the caller's. */
struct mcp_session *mcp_connect(struct mcp *m, const struct mcp_target *t,
                                void (*cb)(void *ctx, struct mcp_session *s, enum mcp_outcome o, const char *why), void *ctx);
const json_t *mcp_tools(const struct mcp_session *s);        /* array of {"name","description","inputSchema",...}; borrowed */
void mcp_session_free(struct mcp_session *s);    /* ends the server's session too (DELETE), without waiting; also cancels a connect and running calls */

struct mcp_result {
    enum mcp_outcome outcome;
    bool is_error;                               /* the tool's own word */
    json_t *content;                             /* array of Messages-shaped blocks: text, image, document; borrowed */
    const char *why;
};
struct mcp_call;
struct mcp_call *mcp_call_start(struct mcp_session *s, const char *tool, const json_t *arguments, int64_t timeout_ms,
                                void (*cb)(void *ctx, const struct mcp_result *r), void *ctx);
void mcp_call_cancel(struct mcp_call *c);        /* NULL is fine */
