/* worker/backoff.h - waits between attempts, and what an answer says about trying again. Pure. */
#pragma once

#include "base/attr.h"
#include "http/parse.h"

/* Doubles from first_ms up to max_ms; each wait lies in [low_percent, 100) percent of the step, so that many workers do not march in step. */
struct backoff { int64_t first_ms, max_ms; int low_percent; int n; };
extern const struct backoff backoff_poll, backoff_stream, backoff_result;      /* worker.md 3.1, 4.4, 4.3; copy before use */
int64_t backoff_next(struct backoff *b, double unit);                          /* `unit` in [0, 1) */
static inline void backoff_reset(struct backoff *b) { b->n = 0; }

#define RETRY_AFTER_MAX_MS 60000       /* a server may ask for more; we ask again after this */
int64_t retry_after_ms(const struct http_head *h);                             /* retry-after-ms, else retry-after (seconds); -1: none */

enum api_outcome { API_OK, API_RETRY, API_FATAL };
/* 2xx is OK; 408, 409, 429 and 5xx may be tried again, other 4xx not; x-should-retry overrides. `h` may be NULL. */
enum api_outcome api_outcome_of(int status, const struct http_head *h);
