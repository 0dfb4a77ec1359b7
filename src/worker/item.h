/* worker/item.h - one claimed work item from claim to stop (worker.md 3.2): heartbeat first, then the session, its skills, its calls, and the
 * forced stop at the end. Items free themselves and say so by worker_item_gone(). Loop thread only. */
#pragma once

#include "base/attr.h"
#include "json/js.h"
#include "worker/ctx.h"
#include "worker/lease.h"

#define ITEM_DRAIN_MS 12000            /* for running calls to stop and results to be posted */
#define ITEM_STOP_MS 10000             /* for the forced stop, with its retries */

struct item;

/* From a poll's answer: acknowledges, then serves. RC_INVALID: the item cannot be understood (nothing was begun). */
MUST_CHECK int item_claimed(struct worker *w, const json_t *work, struct err *e);
/* An item that was claimed and acknowledged elsewhere. `token` (taken, may be NULL) is the item's own credential. */
void item_serve(struct worker *w, const char *work_id, const char *session_id, struct secret *token);
/* Ends all items: cancels, posts, releases. */
void items_stop(struct worker *w, const char *why);
bool items_overdue(const struct worker *w);                  /* some lease makes no progress: for /healthz */
bool items_serve_session(const struct worker *w, const char *session_id);
bool item_id_ok(const char *id);                             /* fit for a path and a file name */
