/* server/loop/snapshot.h - what the loop reads of a session besides its log. */
#pragma once

#include "json/js.h"
#include "store/store.h"

struct snapshot {
    struct arena *arena;
    struct store_session s;          /* in the arena */
    json_t *agent;
    const char *agent_name, *model, *system;
    json_t *mcp;                     /* what the MCP servers offer: "servers" of the turn.tools record; NULL until snapshot_tools() */
};
/* RC_NOT_FOUND: no such session; RC_INVALID: damaged agent text. */
MUST_CHECK int snapshot_load(struct store *st, const char *session_id, struct snapshot *ret, struct err *e);
/* Reads the record at `tools_seq` (0: there is none) into ret->mcp, once. */
MUST_CHECK int snapshot_tools(struct store *st, struct snapshot *ret, int64_t tools_seq, struct err *e);
/* New reference of the body of the private record at this position. RC_INVALID: it is not there. */
MUST_CHECK int snapshot_record(struct store *st, const char *session_id, int64_t seq, json_t **ret, struct err *e);
void snapshot_done(struct snapshot *s);      /* zeroed is fine */
