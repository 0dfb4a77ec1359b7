/* worker/onwork.h - --on-work: a script of the operator's serves each item (worker.md 3.4). One script at a time. Loop thread only. */
#pragma once

#include "base/attr.h"
#include "json/js.h"
#include "worker/ctx.h"

#define ONWORK_KILL_MS 25000           /* between SIGTERM and SIGKILL when the worker stops; its own bound is 30 s */

/* RC_INVALID / RC_NOT_FOUND when the script cannot be started at all. */
MUST_CHECK int onwork_new(struct worker *w, struct onwork **ret, struct err *e);
void onwork_free(struct onwork *o);                              /* kills what runs; NULL is fine */
MUST_CHECK int onwork_claimed(struct onwork *o, const json_t *work, struct err *e);    /* acknowledges, then starts the script */
bool onwork_busy(const struct onwork *o);
void onwork_stop(struct onwork *o);                              /* SIGTERM now, SIGKILL later; worker_item_gone() when it has ended */
