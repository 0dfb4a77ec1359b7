/* worker/sweep.h - removes the state of sessions that were not served for --keep-sessions. Loop thread only. */
#pragma once

#include "worker/ctx.h"

#define SWEEP_EVERY_MS (6 * 3600 * 1000)
#define SWEEP_AT_ONCE 8                /* sessions removed in one turn */

void sweep_start(struct worker *w);    /* uses w->sweep; the first look is shortly after the start */
