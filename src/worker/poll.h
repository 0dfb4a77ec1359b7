/* worker/poll.h - asks the queue for work (worker.md 3.1): one long poll at a time, none while as many sessions run as may. Loop thread only. */
#pragma once

#include "base/attr.h"
#include "worker/ctx.h"

struct poller *poller_start(struct worker *w);
void poller_stop(struct poller *p);                      /* for good; what a poll in flight would bring returns to the queue by itself */
void poller_free(struct poller *p);                      /* NULL is fine */
/* Room again. `not_claimed`: the last item could not be acknowledged; the next poll waits a little. */
void poller_resume(struct poller *p, bool not_claimed);
bool poller_overdue(const struct poller *p);             /* polling makes no progress although it should: for /healthz */
