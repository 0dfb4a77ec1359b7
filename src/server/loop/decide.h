/* server/loop/decide.h - what to do next with a session (service.md 3.5). Pure. */
#pragma once

#include "server/loop/reduce.h"

#define TURN_REQUESTS_MAX 1000       /* model requests of one turn; then tool_use_limit_reached_error */
#define TURN_CUTS_MAX 3              /* responses in a row whose tool call was cut off by the output limit */
#define TURN_COMPACTIONS_MAX 3       /* compactions in a row without output */
#define MCP_STARTS_MAX 3             /* times that a call is made whose tool changes nothing, when its answer was lost with the server */
#define COMPACT_TRIES_MAX 2          /* tries of one summarising request */

enum effect_kind {
    EFFECT_NONE,             /* nothing to do: the session waits for a client; give the lease back */
    EFFECT_WAIT,             /* a model request or a retry delay is under way */
    EFFECT_YIELD,            /* draining: leave the rest to the next owner */
    EFFECT_CANCEL,           /* stop the request under way: an interrupt waits */
    EFFECT_RECOVER,          /* close the request that a dead owner left open */
    EFFECT_INTERRUPT,        /* close open calls, consume the interrupt, end the turn */
    EFFECT_CALL_MODEL,       /* start or resume the run as needed, consume inputs, open a request */
    EFFECT_NOTE,             /* put a remark before the model (which: `note`), then decide again */
    EFFECT_COMPACT,          /* open a summarising request */
    EFFECT_LIST_TOOLS,       /* ask the MCP servers for their tools */
    EFFECT_CALL_MCP,         /* make the calls of MCP servers that may be made */
    EFFECT_RECOVER_MCP,      /* calls that a dead owner has made: again, or answered as unknown */
    EFFECT_BLOCK,            /* idle, requires_action */
    EFFECT_END,              /* idle, end_turn or refusal */
    EFFECT_FAIL,             /* session.error exhausted, queue flushed, idle retries_exhausted */
    EFFECT_KIND_MAX_
};
enum note_kind { NOTE_CONTINUE, NOTE_CUT };
struct effect {
    enum effect_kind kind;
    enum note_kind note;
    bool refusal;
    const char *error_type, *message;        /* EFFECT_FAIL; borrowed from the state or static */
};
struct facts {
    bool in_flight;          /* this process runs the open request */
    bool mcp;                /* the agent has MCP servers */
    bool listing;            /* this process asks them for their tools */
    bool calls_in_flight;    /* this process makes the calls that were started */
    bool waiting;            /* a retry delay is not over */
    bool draining;
    bool own_compaction;     /* the model compacts by itself (Messages API primitive) */
    int64_t compact_at;      /* tokens in the window from which we compact; 0: never */
    int64_t recoveries_max;
};
struct effect decide(const struct turn_state *st, const struct facts *f);
const char *effect_kind_name(enum effect_kind k);
