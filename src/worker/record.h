/* worker/record.h - the worker's audit log: every line goes through here; flushed to disk when the worker is quiet, at the latest after
 * RECORD_SYNC_MAX_MS. Loop thread only. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "ev/ev.h"
#include "json/js.h"

#define RECORD_SYNC_QUIET_MS 200
#define RECORD_SYNC_MAX_MS 2000

struct record;
MUST_CHECK int record_open(struct ev *ev, const char *path, struct record **ret, struct err *e);
void record_close(struct record *r);                      /* flushes; NULL is fine */
/* `fields` (taken). A log that cannot be written is said once in the process log; record_broken() then stays true. */
void record_add(struct record *r, const char *kind, json_t *take_fields);
bool record_broken(const struct record *r);
