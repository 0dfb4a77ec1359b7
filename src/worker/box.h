/* worker/box.h - the sandbox of one session as the worker sees it: claimed when first needed, claimed again after it died, one request at a
 * time. It hides every order in which a death and an answer may arrive. Loop thread only. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "inside/proto.h"
#include "worker/ctx.h"

struct box;

/* rc RC_OK: `h` and `body` are the sandbox's answer. Otherwise `why` names what happened to it. `restarted` is what killed the sandbox before this
 * one, told with the first answer of the new one; NULL otherwise. */
typedef void (*box_done)(void *ctx, int rc, const struct inside_res *h, const char *body, size_t n, const char *why, const char *restarted);

struct box *box_new(struct worker *w, const char *session_id);
void box_free(struct box *b);                    /* kills the sandbox; `done` of a running request is not called; NULL is fine */
void box_open(struct box *b);                    /* claims ahead of the first request */
/* One at a time. `body` is copied. */
void box_call(struct box *b, const struct inside_req *req, const void *body, size_t n, box_done done, void *ctx);
void box_interrupt(struct box *b);               /* ends the running bash call; it answers with what it printed so far */
void box_kill(struct box *b, const char *why);   /* the running request ends with RC_CLOSED and `why`, in a later turn */
void box_forget(struct box *b);                  /* the running request goes on, but nobody hears of its end */
bool box_busy(const struct box *b);
bool box_alive(const struct box *b);             /* there is a sandbox now */
