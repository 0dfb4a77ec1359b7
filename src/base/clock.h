/* base/clock.h - time. int64_t milliseconds since the epoch (UTC) for anything stored or shown; monotonic for durations. */
#pragma once

#include "base/attr.h"

int64_t clock_now_ms(void);       /* wall clock; a test may replace it by clock_set_fake() */
int64_t clock_mono_ms(void);      /* replaceable by clock_set_fake_mono() */
int64_t clock_mono_us(void);
void    clock_set_fake(int64_t (*now_ms)(void));   /* NULL gives the real clock back; tests and simulation only */
void    clock_set_fake_mono(int64_t (*now_us)(void));      /* the same for the monotonic one */

#define RFC3339_MAX 32            /* with NUL */
/* "2026-04-01T12:34:56.789Z": always UTC, always three digits, so that equal times have equal texts. */
void rfc3339_format(int64_t ms, char out[RFC3339_MAX]);
/* Accepts offsets and any number of fraction digits. RC_INVALID otherwise. */
MUST_CHECK int rfc3339_parse(const char *s, int64_t *ret_ms);
