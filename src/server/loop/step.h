/* server/loop/step.h - builds one atomic step of a session: events go in, the state follows at once, so that decide() can be
 * asked again before anything is written (one transaction per loop step). Bodies are the API's event objects without processed_at. */
#pragma once

#include "json/js.h"
#include "server/loop/reduce.h"
#include "store/store.h"

#define STEP_ARENA_MAX (256 * MIB)

struct step {
    struct arena *arena;
    struct turn_state st;            /* the state after the events so far */
    enum turn_run from;              /* run state before the step */
    int64_t expect_seq, now_ms;
    const char *session_id, *thread_id, *agent_name;
    struct store_event_in *events; size_t n, cap;
    struct store_usage usage;
    const char *stop_reason;         /* of the last idle */
    bool ensure_work, wake;
    bool stale;                      /* committed, but s->st is not the state of the log: read it anew */
    int rc; struct err err;          /* sticky: the first thing that went wrong */
};
/* `base` is copied. The strings are borrowed until step_done(). */
int step_init(struct step *s, const struct turn_state *base, const char *session_id, const char *thread_id, const char *agent_name, int64_t now_ms);
void step_done(struct step *s);
/* Writes it. On RC_OK s->st is the state of the log, unless s->stale. RC_CONFLICT: the log moved or a result is a duplicate;
 * RC_PRECONDITION: the lease is lost. A step without events and without change writes nothing. */
MUST_CHECK int step_commit(struct step *s, struct store *store, const char *owner, int64_t epoch, struct err *e);
/* Fills `ret` for a step that the caller writes itself (session_create, session_archive). */
void step_export(struct step *s, struct store_step *ret);

/* ---- events (events.c). `take_` arguments are stolen. ---- */
json_t *event_new(char ret_id[ID_MAX], const char *type);                         /* {"id","type"} with a new id */
void step_add(struct step *s, json_t *take_body, const char *ref);                /* public, consumed at once; the body has id and type */
void step_add_queued(struct step *s, json_t *take_body);
void step_add_result(struct step *s, json_t *take_body, const char *ref);         /* answers a call: unique per ref */
void step_add_private(struct step *s, const char *type, json_t *take_body);
void step_stamp(struct step *s, const char *id, enum input_kind kind);
void step_flush_queued(struct step *s);                                           /* drops all queued inputs */

void step_running(struct step *s);           /* session.status_running, session.thread_status_running: what of them is missing */
void step_rescheduled(struct step *s);
/* session.thread_status_idle, session.usage, session.status_idle. take_details: refusal details or NULL. */
void step_idle(struct step *s, json_t *take_reason, json_t *take_details);
void step_idle_why(struct step *s, const char *type);
void step_blocked(struct step *s);           /* idle, requires_action with the open calls */
void step_error(struct step *s, const char *type, const char *message, const char *retry_status);
void step_terminated(struct step *s);
void step_request_start(struct step *s, bool compact, char ret_id[ID_MAX]);
void step_request_end(struct step *s, const char *start_id, bool is_error, const struct store_usage *u);
/* Answers each open call with an error text, as what its executor would have sent. */
void step_close_calls(struct step *s, const char *text);
void step_deny_result(struct step *s, const char *call_id, const char *text);     /* agent.tool_result or agent.mcp_tool_result, is_error */
void step_mcp_result(struct step *s, const char *call_id, json_t *take_content, bool is_error);
void step_mcp_error(struct step *s, bool auth, const char *server, const char *message);      /* session.error; the session goes on without it */
