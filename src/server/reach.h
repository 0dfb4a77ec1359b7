/* server/reach.h - the guard of MCP connections as server/vault wants it: that folder stands below server/mcp and gets it handed in. ev thread, except
 * reach_new and reach_free. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "server/mcp/mcp.h"
#include "server/vault/vault.h"

struct reach;
MUST_CHECK int reach_new(const struct mcp_conf *c, struct reach **ret, struct err *e);      /* strings are borrowed */
void reach_free(struct reach *r);        /* NULL is fine */
struct vault_reach reach_of(struct reach *r);
