/* audit/audit.h - append-only JSON lines, hash-chained: each line holds "seq", "prev" (SHA-256 of the previous line's bytes without the
 * newline, 64 zeros for the first) and the event. Written by the supervisor (worker, later gateway), never by what is audited. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "json/js.h"

struct audit;
/* Opens or continues the log at `path` (0600). Continuing verifies the last line against the one before it, whatever the log's length (all of
 * it: audit_verify()); a torn last line is cut off and a record says so. Exclusive lock: RC_CONFLICT when another process writes it.
 * RC_DENIED when other users may write it. */
MUST_CHECK int audit_open(const char *path, struct audit **ret, struct err *e);
/* `fields` (taken) gets "seq", "time", "prev", "kind" in front; RC_INVALID when it has one of them itself. A line that could not be written
 * whole (full disk) is taken back. One write(); fsync'd by audit_sync() or every second line burst by the owner. */
MUST_CHECK int audit_add(struct audit *a, const char *kind, json_t *take_fields, struct err *e);
MUST_CHECK int audit_sync(struct audit *a, struct err *e);
void audit_close(struct audit *a);
/* Checks every line: form, sequence, chain. *ret_lines lines were good; on RC_INVALID the message names the first bad line and how.
 * `head` (64 hex, from `outwork audit head`) may be NULL; when given the last line's hash must equal it, so that dropping lines at the end shows. */
MUST_CHECK int audit_verify(const char *path, const char *head, uint64_t *ret_lines, char ret_head[65], struct err *e);
