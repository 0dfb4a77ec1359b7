/* worker/release.h - POST .../work/{id}/stop, tried again within a bound (worker.md 2.2, 3.2). Loop thread only. */
#pragma once

#include "base/attr.h"
#include "worker/ctx.h"

#define RELEASE_MS 9000                /* all tries together */

/* `cred` is copied. 409 (stopped already) counts as done. `done` in any case, never inside this call. */
void work_release(struct worker *w, const char *work_id, const struct secret *cred, bool force, void (*done)(void *ctx), void *ctx);
