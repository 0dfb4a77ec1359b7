/* server/events/frames.h - a piece of a session's log as SSE frames. Job threads; no state. */
#pragma once

#include "base/attr.h"
#include "base/buf.h"
#include "store/store.h"

/* A queued user event has two positions: its own (processed_at null) and that of its consumption. Frames are ordered by position, which is
 * also the frame's id. */
struct frame { int64_t pos; size_t start, end; bool terminal; };
struct frames {
    int rc;                      /* RC_OK; RC_NOT_FOUND: the session is gone, `text` is one session.deleted frame; else try again */
    struct frame *frame; size_t n;
    struct buf text;
    int64_t upto;                /* all positions up to this one are covered */
    bool at_end;                 /* the log had nothing more */
};
/* Reads from `from` (exclusive) about `bytes_max` bytes, at least one event. */
void frames_read(struct frames *f, struct store *st, const char *session_id, int64_t from, size_t bytes_max);
void frames_done(struct frames *f);
