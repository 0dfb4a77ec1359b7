/* server/loop/snapshot.h - what the loop reads of a session besides its log. */
#pragma once

#include "json/js.h"
#include "store/store.h"

struct snapshot {
    struct arena *arena;
    struct store_session s;          /* in the arena */
    json_t *agent;
    const char *agent_name, *model, *system;
};
/* RC_NOT_FOUND: no such session; RC_INVALID: damaged agent text. */
MUST_CHECK int snapshot_load(struct store *st, const char *session_id, struct snapshot *ret, struct err *e);
void snapshot_done(struct snapshot *s);      /* zeroed is fine */
