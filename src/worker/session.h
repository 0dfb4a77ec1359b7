/* worker/session.h - the events of one session: the live stream, opened first, then the history, joined without loss or repetition, fed to
 * worker/route.h; the idle clock (worker.md 4.4). Loop thread only. */
#pragma once

#include "base/attr.h"
#include "worker/ctx.h"
#include "worker/dispatch.h"
#include "worker/route.h"

#define SESSION_AHEAD_MAX 4096         /* live events kept while the history is listed; over it the stream is opened anew */
#define SESSION_AHEAD_BYTES_MAX (32 * MIB)
#define SESSION_EVENT_MAX (32 * MIB)   /* one event */
#define SESSION_PAGES_MAX 10000        /* pages of one history */

enum session_end { SESSION_IDLE, SESSION_ENDED, SESSION_REFUSED, SESSION_BROKEN };

struct session;
struct session_conf {
    struct worker *w;
    const char *session_id;            /* borrowed */
    const struct secret *cred;         /* borrowed */
    struct dispatch *dispatch;         /* borrowed */
    /* Once, in a turn of its own: the session is idle long enough, over, refused to us, or beyond our limits. */
    void (*ended)(void *ctx, enum session_end how, const char *why);
    void *ctx;
};
struct session *session_start(const struct session_conf *c);
void session_free(struct session *s);                                 /* NULL is fine */
bool session_answered(const struct session *s, const char *id);
void session_finished(struct session *s, const char *id);             /* from dispatch: a call is settled */
