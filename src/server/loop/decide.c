#include "server/loop/decide.h"

static const char *const names[] = {
    [EFFECT_NONE] = "none", [EFFECT_WAIT] = "wait", [EFFECT_YIELD] = "yield", [EFFECT_CANCEL] = "cancel", [EFFECT_RECOVER] = "recover",
    [EFFECT_INTERRUPT] = "interrupt", [EFFECT_CALL_MODEL] = "call_model", [EFFECT_NOTE] = "note", [EFFECT_COMPACT] = "compact",
    [EFFECT_LIST_TOOLS] = "list_tools", [EFFECT_CALL_MCP] = "call_mcp", [EFFECT_RECOVER_MCP] = "recover_mcp",
    [EFFECT_BLOCK] = "block", [EFFECT_END] = "end", [EFFECT_FAIL] = "fail",
};

const char *effect_kind_name(enum effect_kind k) { return k < EFFECT_KIND_MAX_ ? names[k] : "?"; }

static struct effect just(enum effect_kind kind) { return (struct effect){ .kind = kind }; }

static struct effect fail(const char *type, const char *msg)
{
    return (struct effect){ .kind = EFFECT_FAIL, .error_type = type, .message = msg };
}

/* The next request goes to the model, unless a limit or the size of the context is in the way. */
static struct effect call(const struct turn_state *st, const struct facts *f)
{
    if (st->requests >= TURN_REQUESTS_MAX)
        return fail("tool_use_limit_reached_error", "too many model requests in one turn");
    if (f->listing)
        return just(EFFECT_WAIT);
    if (f->mcp && !st->tools_listed)         /* also before a summary: its request carries the tools too */
        return just(f->draining ? EFFECT_YIELD : EFFECT_LIST_TOOLS);
    bool full = !f->own_compaction && f->compact_at > 0 && st->context_tokens >= f->compact_at && st->has_history;
    if (!st->must_compact && !full)
        return just(f->draining ? EFFECT_YIELD : EFFECT_CALL_MODEL);
    if (st->compactions >= TURN_COMPACTIONS_MAX || !st->has_history)
        return fail("compaction_limit_reached_error", "the conversation does not fit the model's context window, and compacting it did not help");
    return just(f->draining ? EFFECT_YIELD : EFFECT_COMPACT);
}

static struct effect after_response(const struct turn_state *st, const struct facts *f)
{
    switch (st->stop) {
    case STOP_PAUSE:
    case STOP_COMPACTION:
    case STOP_CONTEXT:
        return call(st, f);
    case STOP_MAX_TOKENS:
        if (st->cuts >= TURN_CUTS_MAX)
            return fail("model_request_failed_error", "the model's tool calls were cut off by its output limit again and again");
        return (struct effect){ .kind = EFFECT_NOTE, .note = NOTE_CUT };
    case STOP_REFUSAL:
        return (struct effect){ .kind = EFFECT_END, .refusal = true };
    case STOP_END:
        /* An empty answer to tool results is a known artefact: one continuation, never more (service.md 3.5). */
        if (st->empty && st->after_results && st->nudges == 0)
            return (struct effect){ .kind = EFFECT_NOTE, .note = NOTE_CONTINUE };
        return just(EFFECT_END);
    case STOP_NONE:
    case STOP_TOOL_USE:
    case STOP_MAX_:
        break;
    }
    return just(EFFECT_END);
}

/* Calls are open. `blocked`: what follows when none of them is for us to make. */
static struct effect open_calls(const struct turn_state *st, const struct facts *f, enum effect_kind blocked)
{
    bool started = turn_mcp_calls(st, true) > 0;
    if (started && !f->calls_in_flight)
        return just(f->draining ? EFFECT_YIELD : EFFECT_RECOVER_MCP);
    if (turn_mcp_calls(st, false) > 0 && !f->draining)
        return just(EFFECT_CALL_MCP);
    if (started)
        return just(EFFECT_WAIT);
    return just(turn_mcp_calls(st, false) > 0 ? EFFECT_YIELD : blocked);
}

static struct effect decide_idle(const struct turn_state *st, const struct facts *f)
{
    if (turn_has_input(st, INPUT_INTERRUPT))
        return just(EFFECT_INTERRUPT);
    if (turn_open_calls(st) > 0)
        return open_calls(st, f, EFFECT_NONE);
    if (st->n_calls > 0 || turn_has_input(st, INPUT_MESSAGE))
        return call(st, f);
    return just(EFFECT_NONE);
}

struct effect decide(const struct turn_state *st, const struct facts *f)
{
    if (st->run == TURN_TERMINATED)
        return just(EFFECT_NONE);
    bool interrupt = turn_has_input(st, INPUT_INTERRUPT);
    if (st->request_id[0]) {
        if (f->in_flight)
            return just(interrupt ? EFFECT_CANCEL : EFFECT_WAIT);
        return just(EFFECT_RECOVER);
    }
    if (st->run == TURN_IDLE)
        return decide_idle(st, f);
    if (interrupt)
        return just(EFFECT_INTERRUPT);
    if (st->fail_type[0])
        return fail(st->fail_type, st->fail_msg);
    if (st->recoveries > f->recoveries_max)
        return fail("unknown_error", "the turn was given up after repeated restarts of the server");
    if (turn_open_calls(st) > 0)
        return open_calls(st, f, EFFECT_BLOCK);
    if (st->run == TURN_RESCHEDULING && f->waiting)
        return just(EFFECT_WAIT);
    if (st->stop == STOP_REFUSAL && !st->fresh_input)
        return after_response(st, f);        /* the turn ends visibly; what is queued starts the next one */
    /* A truncated answer is taken back first: whatever is queued goes with the next request. */
    if (st->stop == STOP_MAX_TOKENS && !st->fresh_input)
        return after_response(st, f);
    if (st->n_calls > 0 || st->fresh_input || turn_has_input(st, INPUT_MESSAGE) || st->must_compact)
        return call(st, f);
    if (st->stop == STOP_NONE)
        return just(EFFECT_END);             /* running without anything to answer */
    return after_response(st, f);
}
