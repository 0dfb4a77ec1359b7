/* base/dur.h - durations ("250ms" "30s" "5m" "1h" "7d") and sizes ("64KiB" "2GiB" "1MB"); a unit is mandatory, "0" excepted. */
#pragma once

#include "base/attr.h"

MUST_CHECK int dur_parse(const char *s, int64_t *ret_ms);          /* RC_INVALID: no unit, negative, overflow */
MUST_CHECK int size_parse(const char *s, uint64_t *ret_bytes);
void dur_format(int64_t ms, char out[24]);                         /* the shortest exact form */
void size_format(uint64_t bytes, char out[24]);
