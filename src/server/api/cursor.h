/* server/api/cursor.h - opaque page cursors (api.md 1.5). One canonical text per position; bound to the list and its order by a checksum
 * (against mistakes, not against an attacker: a cursor gives no access). */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "base/random.h"

#define CURSOR_MAX 160           /* text with NUL */

enum cursor_kind {
    CURSOR_AGENTS = 1, CURSOR_VERSIONS, CURSOR_ENVIRONMENTS, CURSOR_WORK, CURSOR_SESSIONS, CURSOR_EVENTS, CURSOR_TUNNELS, CURSOR_CERTIFICATES,
    CURSOR_VAULTS, CURSOR_CREDENTIALS, CURSOR_KIND_MAX_
};
struct cursor {
    enum cursor_kind kind;
    bool asc, backward;
    int64_t pos;                 /* created_ms, version or event position of the last row */
    char id[ID_MAX];             /* its id; "" for lists keyed by `pos` alone */
};
/* `scope`: what the list is of (session id, environment id), or "". */
void cursor_encode(const struct cursor *c, const char *scope, char out[CURSOR_MAX]);
/* RC_INVALID: not a cursor, of another list, of another order. */
MUST_CHECK int cursor_decode(const char *text, enum cursor_kind kind, bool asc, const char *scope, struct cursor *ret, struct err *e);
