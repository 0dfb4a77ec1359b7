/* server/loop/drive_mcp.h - the MCP servers of a session while it runs in this process: their connections, the listing of their tools, the calls under way.
 * A job adds and takes; everything with the network happens on the ev thread. */
#pragma once

#include "server/loop/drive.h"

struct desk;

/* ---- job threads; r->desk may be NULL everywhere ---- */
/* After the step that says so is committed: asks the servers of the agent (st->tools_retry: only those that failed last time). */
void desk_list(struct runner *r, const struct snapshot *snap, const struct turn_state *st);
/* After the step with turn.call is committed: makes the calls of `st` that were started and are not under way here. */
MUST_CHECK int desk_call(struct runner *r, const struct snapshot *snap, const struct turn_state *st, struct err *e);
bool desk_listing(const struct runner *r);            /* no outcome yet */
bool desk_calling(const struct runner *r);            /* a call without an outcome */
/* Puts outcomes into the step: results, errors, the record of tools. desk_taken() when it was committed. */
void desk_put(struct runner *r, const struct snapshot *snap, struct step *s);
void desk_taken(struct runner *r);
/* Gives everything up: calls are cancelled, connections closed. */
void desk_drop(struct runner *r);
void desk_free(struct desk *h);                        /* ev thread, when no job uses it; NULL is fine */
