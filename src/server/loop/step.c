#include "server/loop/step.h"

#include <string.h>

#include "base/str.h"

int step_init(struct step *s, const struct turn_state *base, const char *session_id, const char *thread_id, const char *agent_name, int64_t now_ms)
{
    memset(s, 0, sizeof *s);
    s->arena = arena_new(16 * KIB, STEP_ARENA_MAX);
    turn_state_init(&s->st);
    turn_state_copy(&s->st, base);
    s->from = base->run;
    s->expect_seq = base->last_seq;
    s->session_id = session_id;
    s->thread_id = thread_id;
    s->agent_name = agent_name;
    s->now_ms = now_ms;
    if (!s->arena)
        s->rc = err_set(&s->err, RC_NOMEM, "step of %s", session_id);
    return s->rc;
}

void step_done(struct step *s)
{
    turn_state_done(&s->st);
    arena_free(s->arena);
    free(s->events);
    memset(s, 0, sizeof *s);
}

static void put(struct step *s, struct store_event_in in, struct turn_entry en)
{
    if (s->rc < 0)
        return;
    if (s->n == s->cap) {
        s->cap = s->cap ? s->cap * 2 : 16;
        s->events = xrealloc(s->events, s->cap, sizeof *s->events);
    }
    s->events[s->n++] = in;
    en.seq = s->st.last_seq + 1;
    en.at_ms = s->now_ms;
    s->rc = reduce_entry(&s->st, &en, &s->err);
}

static void add(struct step *s, json_t *take_body, const char *type, struct store_event_in in)
{
    AUTO_FREE char *text = js_text(take_body);
    in.id = in.is_private ? NULL : arena_strdup(s->arena, js_str(take_body, "id"));
    in.type = arena_strdup(s->arena, type ? type : js_str(take_body, "type"));
    in.body = arena_strdup(s->arena, text);
    in.ref = arena_strdup(s->arena, in.ref);
    json_decref(take_body);
    if (!in.body || !in.type || (!in.is_private && !in.id)) {
        if (s->rc == RC_OK)
            s->rc = err_set(&s->err, RC_LIMIT, "a step of session %s is larger than %zu bytes", s->session_id, STEP_ARENA_MAX);
        return;
    }
    put(s, in, (struct turn_entry){ .queued = in.queued, .id = in.id, .type = in.type, .body = in.body, .ref = in.ref });
}

void step_add(struct step *s, json_t *take_body, const char *ref) { add(s, take_body, NULL, (struct store_event_in){ .ref = ref }); }
void step_add_queued(struct step *s, json_t *take_body) { add(s, take_body, NULL, (struct store_event_in){ .queued = true }); }

void step_add_result(struct step *s, json_t *take_body, const char *ref)
{
    add(s, take_body, NULL, (struct store_event_in){ .ref = ref, .is_result = true });
}

void step_add_private(struct step *s, const char *type, json_t *take_body) { add(s, take_body, type, (struct store_event_in){ .is_private = true }); }

static const char *const input_types[] = { [INPUT_MESSAGE] = "user.message", [INPUT_SYSTEM] = "system.message", [INPUT_INTERRUPT] = "user.interrupt" };

void step_stamp(struct step *s, const char *id, enum input_kind kind)
{
    const char *own = arena_strdup(s->arena, id);
    put(s, (struct store_event_in){ .stamp_id = own }, (struct turn_entry){ .stamp = true, .id = own, .type = input_types[kind] });
}

void step_flush_queued(struct step *s)
{
    if (s->st.n_inputs == 0)
        return;
    json_t *ids = json_array();
    size_t n = s->st.n_inputs;
    const char **list = xcalloc(n, sizeof *list);
    for (size_t i = 0; i < n; i++) {
        list[i] = arena_strdup(s->arena, s->st.inputs[i].id);
        js_push(ids, json_string(s->st.inputs[i].id));
    }
    json_t *b = json_object();
    js_set(b, "ids", ids);
    step_add_private(s, "turn.flush", b);
    for (size_t i = 0; i < n; i++)      /* the state already forgot them: a position only */
        put(s, (struct store_event_in){ .stamp_id = list[i], .drop_queued = true }, (struct turn_entry){ .type = "turn_dropped" });
    free(list);
}

static enum store_run net_run(enum turn_run from, enum turn_run to)
{
    if (to == TURN_TERMINATED)
        return from == TURN_TERMINATED ? RUN_KEEP : RUN_TERMINATE;
    if (from == to)
        return RUN_KEEP;
    if (to == TURN_IDLE)
        return RUN_END;
    if (from == TURN_IDLE)
        return RUN_START;
    return to == TURN_RESCHEDULING ? RUN_RESCHEDULE : RUN_RESUME;
}

void step_export(struct step *s, struct store_step *ret)
{
    *ret = (struct store_step){ .session_id = s->session_id, .expect_seq = s->expect_seq, .events = s->events, .n_events = s->n,
                                .run = net_run(s->from, s->st.run), .usage_add = s->usage, .now_ms = s->now_ms, .wake = s->wake };
    ret->needs_worker = turn_worker_calls(&s->st) > 0;
    ret->ensure_work = (s->ensure_work || ret->needs_worker) && s->st.run != TURN_TERMINATED;
    if (s->st.run == TURN_IDLE)
        ret->stop_reason = s->stop_reason;
}

int step_commit(struct step *s, struct store *store, const char *owner, int64_t epoch, struct err *e)
{
    if (s->rc < 0) {
        if (e)
            *e = s->err;
        return s->rc;
    }
    struct store_step out;
    step_export(s, &out);
    if (out.n_events == 0 && out.run == RUN_KEEP)
        return RC_OK;
    out.owner = owner;
    out.epoch = epoch;
    if (out.run == RUN_RESCHEDULE && s->from == TURN_IDLE)
        return err_set(e, RC_INVALID, "session %s: an idle session cannot be rescheduled", s->session_id);
    TRY(store->ops->step(store, &out, e));
    s->stale = out.ret_last_seq != s->st.last_seq;
    return RC_OK;
}
