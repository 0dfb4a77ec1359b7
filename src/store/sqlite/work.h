/* store/sqlite/work.h - reading work items. */
#pragma once

#include "store/sqlite/sqlite.h"

#define WORK_COLS "w.id, w.env_id, w.session_id, w.metadata, w.state, w.created_ms, w.acknowledged_ms, w.started_ms, w.heartbeat_ms, w.stop_requested_ms, w.stopped_ms"

struct store_work work_row(struct row *r);       /* columns WORK_COLS */
MUST_CHECK int work_read(struct db *db, struct arena *a, const char *env_id, const char *id, struct store_work *ret, struct err *e);   /* RC_NOT_FOUND */
