/* server/messages/tools.h - the tools of a request's MCP servers as the model sees them, and their calls under both names. Pure. */
#pragma once

#include "base/buf.h"
#include "base/err.h"
#include "json/js.h"
#include "server/mcp/names.h"

#define TOOLS_MAX 1024                       /* listed by all servers of one request */
#define TOOLS_BYTES_MAX (8 * MIB)            /* of their definitions */
#define CALL_ID_MAX 192                      /* a provider's id of a call, and ours, with NUL */

struct tool { char mapped[MCP_NAME_MAX]; char *name; const char *server; bool enabled; };
struct tools { struct tool *at; size_t n, cap; };

void tools_done(struct tools *t);
/* Adds what `listing` (an array of tools as MCP or an mcp_tool_listing block says them) has, with the toolset's default_config and configs applied, and
 * appends the definitions that the model gets to `out`, comma first unless `*first`. RC_INVALID: two tools with one name, a tool without one; RC_LIMIT.
 * `server` is borrowed. */
MUST_CHECK int tools_add(struct tools *t, const char *server, const json_t *toolset, const json_t *listing, struct buf *out, bool *first, struct err *e);
const struct tool *tools_find(const struct tools *t, const char *mapped);        /* NULL: not one of an MCP server */
/* A name in `configs` that the server does not list, from index *at on (advanced past it); NULL: no more. They only deserve a warning. */
const char *tools_unknown(const json_t *toolset, const json_t *listing, void **iter);
/* An mcp_tool_listing block. New reference. */
json_t *tools_listing_block(const char *server, const json_t *listing);

/* Ids of calls: "toolu_X" of the provider is "mcptoolu_X" for the client, in both directions by the text alone. RC_INVALID: too long or not [a-zA-Z0-9_-]. */
MUST_CHECK int call_id_out(const char *provider_id, char out[CALL_ID_MAX]);
MUST_CHECK int call_id_in(const char *client_id, char out[CALL_ID_MAX]);
