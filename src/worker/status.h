/* worker/status.h - what the worker says of itself: counters, and /healthz that follows progress and not mere existence. Loop thread only. */
#pragma once

#include "base/attr.h"
#include "base/err.h"

struct worker;
struct status;

/* Opens the listener when --health-listen is set. */
MUST_CHECK int status_start(struct worker *w, struct status **ret, struct err *e);
void status_free(struct status *s);                              /* NULL is fine */

void status_poll(struct status *s, bool answered);               /* a poll came back */
void status_heartbeat(struct status *s);
void status_sessions(struct status *s, size_t n);
void status_call(struct status *s, int64_t us, bool is_error);   /* a tool call has run */
void status_result(struct status *s, bool posted);               /* one attempt to post a result */
