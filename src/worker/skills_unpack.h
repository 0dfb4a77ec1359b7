/* worker/skills_unpack.h - runs the unpacker (worker/unpack.h) over one archive and puts what it says into the sandbox. Loop thread only. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "worker/box.h"

struct skills_unpack;
/* What is at `dir` (relative to the workspace) is removed first. `done` once, in a turn of its own; RC_OK: all files are in place. */
MUST_CHECK int skills_unpack_start(struct ev *ev, struct box *box, const char *dir, const void *archive, size_t n,
                                   void (*done)(void *ctx, int rc, const char *why, size_t files, uint64_t bytes), void *ctx,
                                   struct skills_unpack **ret, struct err *e);
void skills_unpack_free(struct skills_unpack *u);        /* kills the unpacker; NULL is fine */
