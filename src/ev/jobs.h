/* ev/jobs.h - a pool of threads for blocking, straight-line work. Thread-safe. */
#pragma once

#include "base/attr.h"
#include "base/err.h"

struct jobs;

MUST_CHECK int jobs_new(size_t threads, size_t queue_max, struct jobs **ret, struct err *e);
/* `fn(arg)` runs on some job thread. RC_LIMIT when queue_max jobs wait already (nothing was queued). */
MUST_CHECK int jobs_add(struct jobs *j, void (*fn)(void *arg), void *arg);
/* As jobs_add but never refused: for work that was already promised (loop steps). */
void jobs_add_always(struct jobs *j, void (*fn)(void *arg), void *arg);
void jobs_free(struct jobs *j);      /* finishes what is queued, joins; no jobs_add may race with it */
size_t jobs_waiting(const struct jobs *j);
