/* store/sqlite/events.h - how a session's log lies in the table. */
#pragma once

#include "store/store.h"

#define EVENT_SEQ_MAX ((int64_t)UINT32_MAX)          /* seq fills the low half of the key */
#define EVENT_KEY(sn, seq) (((sn) << 32) | (seq))
#define EVENT_TYPES_MAX 64                           /* types in one filter */
