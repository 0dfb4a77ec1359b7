/* server/loop/reduce.h - folds the log of a session into what the loop must know of it. Pure: no time, store, network or chance.
 * The private records turn.* are the truth about the model's side; the public events about what clients were told. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "base/random.h"
#include "store/store.h"

#define TURN_CALLS_MAX 1024          /* tool calls of one response */
#define TURN_INPUTS_MAX 2000         /* queued events of a session */

enum turn_run { TURN_IDLE, TURN_RUNNING, TURN_RESCHEDULING, TURN_TERMINATED, TURN_RUN_MAX_ };
enum input_kind { INPUT_MESSAGE, INPUT_SYSTEM, INPUT_INTERRUPT, INPUT_KIND_MAX_ };
enum call_kind { CALL_WORKER, CALL_CUSTOM, CALL_NONE, CALL_MCP, CALL_KIND_MAX_ };          /* NONE: no such tool; MCP: made by this process */
enum call_perm { PERM_ALLOW, PERM_ASK, PERM_DENY, PERM_MAX_ };
enum call_verdict { VERDICT_NONE, VERDICT_ALLOW, VERDICT_DENY };
enum turn_stop { STOP_NONE, STOP_END, STOP_TOOL_USE, STOP_MAX_TOKENS, STOP_PAUSE, STOP_REFUSAL, STOP_CONTEXT, STOP_COMPACTION, STOP_MAX_ };
const char *call_kind_name(enum call_kind k);
const char *call_perm_name(enum call_perm p);
enum turn_stop turn_stop_parse(const char *s);       /* unknown reasons end the turn */

struct turn_call {
    char id[ID_MAX];                 /* of the public event */
    enum call_kind kind; enum call_perm perm; enum call_verdict verdict;
    bool answered;
    bool read_only;                  /* MCP: the server says that the tool changes nothing */
    bool started;                    /* MCP: turn.call was written, so it may have been made */
    int starts;
};
struct turn_input { char id[ID_MAX]; enum input_kind kind; };

struct turn_state {
    int64_t last_seq;                /* everything up to here is folded in */
    enum turn_run run;
    bool thread_running;             /* session.thread_status_running was told and no idle since */
    int64_t active_ms, running_since_ms;
    struct store_usage usage;        /* all of the session */
    struct turn_input *inputs; size_t n_inputs, cap_inputs;          /* queued, in order */
    /* the model's side */
    bool fresh_input;                /* something was put before the model that it has not answered */
    char request_id[ID_MAX];         /* open span.model_request_start, or "" */
    bool request_compacts;
    enum turn_stop stop;             /* of the last response of this turn; STOP_NONE: none */
    bool empty, after_results;       /* that response had no content; it followed tool results */
    char stop_details[512];          /* JSON, or "" */
    struct turn_call *calls; size_t n_calls, cap_calls;              /* of the last response */
    int64_t assistant_seq;           /* of the last response; 0 none */
    int64_t tools_seq;               /* of the turn.tools record in force: what the MCP servers offer; 0 none */
    bool tools_listed;               /* they were asked since the session began to run */
    bool tools_failed;               /* some server did not answer then */
    bool tools_retry;                /* only those are to be asked again: the turn goes on after a stop */
    int64_t context_tokens;          /* in the window after the last response; 0 unknown */
    int64_t base_seq;                /* the prompt needs nothing at or before this position */
    bool has_history;                /* a response stands in the prompt that a compaction could take away */
    /* counters of the turn */
    int64_t requests, recoveries, nudges, cuts, compactions, retries, retry_since_ms;
    bool must_compact;
    char fail_type[64], fail_msg[ERR_MSG_MAX];       /* turn.failure that was not told yet */
};

void turn_state_init(struct turn_state *st);
void turn_state_done(struct turn_state *st);
void turn_state_copy(struct turn_state *dst, const struct turn_state *src);      /* dst is initialised or done */

/* One position of the log: an append, or (stamp) the consumption of a queued event. */
struct turn_entry {
    int64_t seq, at_ms;
    bool stamp, queued;
    const char *id, *type, *body, *ref;
};
/* RC_INVALID: the log is damaged. Positions at or before last_seq are skipped. */
MUST_CHECK int reduce_entry(struct turn_state *st, const struct turn_entry *en, struct err *e);
/* Rows as store_ops.event_scan() gives them, in any order; a row may count twice (append and consumption). */
MUST_CHECK int reduce_rows(struct turn_state *st, const struct store_event *rows, size_t n, struct err *e);

struct turn_call *turn_call_find(struct turn_state *st, const char *id);
size_t turn_open_calls(const struct turn_state *st);             /* without an answer */
size_t turn_worker_calls(const struct turn_state *st);           /* of these, those a worker may run now */
/* Open calls of MCP servers that may be made, of which turn.call was written or not. */
size_t turn_mcp_calls(const struct turn_state *st, bool started);
bool turn_call_allowed(const struct turn_call *c);
bool turn_has_input(const struct turn_state *st, enum input_kind kind);
