/* Conformance: sessions, steps, the log, leases. */
#include "store/fixture.h"

static struct store_session get(struct fix *f, const char *id)
{
    struct store_session s;
    OK(f->o->session_get(f->st, f->a, id, &s, &f->e));
    return s;
}

static void create(void **state)
{
    struct fix *f = *state;
    fix_environment(f, "env_1");
    RC(RC_NOT_FOUND, fix_session(f, "sesn_1", "env_9", NULL));
    OK(fix_session(f, "sesn_1", "env_1", NULL));
    RC(RC_CONFLICT, fix_session(f, "sesn_1", "env_1", NULL));
    RC(RC_INVALID, f->o->session_create(f->st, &(struct store_session){ .id = "x" }, NULL, &f->e));
    struct store_session s = get(f, "sesn_1");
    assert_string_equal(s.thread_id, "sthr_1");
    assert_string_equal(s.agent, "{\"a\":1}");
    assert_int_equal(s.status, SESSION_IDLE);
    assert_null(s.stop_reason);
    assert_int_equal(s.last_seq, 0);
    assert_int_equal(s.running_since_ms, -1);
    assert_int_equal(s.archived_ms, -1);
    struct store_session missing;
    RC(RC_NOT_FOUND, f->o->session_get(f->st, f->a, "sesn_2", &missing, &f->e));

    /* with a first step, all or nothing */
    struct store_event_in in[] = { EV("sevt_1", "user.message"), EV("sevt_2", "session.status_running") };
    struct store_step first = STEP(NULL);
    first.events = in, first.n_events = 2, first.run = RUN_START, first.ensure_work = true, first.wake = true, first.needs_worker = 1;
    OK(fix_session(f, "sesn_2", "env_1", &first));
    assert_int_equal(first.ret_first_seq, 1);
    assert_int_equal(first.ret_last_seq, 2);
    assert_int_equal(get(f, "sesn_2").status, SESSION_RUNNING);
    assert_int_equal(fix_notes(f, STORE_NOTE_EVENTS), 1);
    assert_int_equal(fix_notes(f, STORE_NOTE_RUN), 1);
    assert_int_equal(fix_notes(f, STORE_NOTE_WORK), 1);
    assert_string_equal(f->last_note[STORE_NOTE_WORK], "env_1");
    struct store_work_stats w;
    OK(f->o->work_stats(f->st, "env_1", T0, &w, &f->e));
    assert_int_equal(w.depth, 1);
    in[1].id = "sevt_1";
    RC(RC_CONFLICT, fix_session(f, "sesn_3", "env_1", &first));
    RC(RC_NOT_FOUND, f->o->session_get(f->st, f->a, "sesn_3", &missing, &f->e));
    assert_int_equal(fix_notes(f, STORE_NOTE_EVENTS), 0);

    struct store_agent ag = { .id = "agent_1", .name = "n", .body = "{}", .created_ms = T0 };
    OK(f->o->agent_create(f->st, &ag, &f->e));
    OK(f->o->agent_archive(f->st, "agent_1", T0, &f->e));
    RC(RC_INVALID, fix_session(f, "sesn_3", "env_1", NULL));
}

static void runs(void **state)
{
    struct fix *f = *state;
    fix_environment(f, "env_1");
    OK(fix_session(f, "sesn_1", "env_1", NULL));
    static const struct { enum store_run run; int64_t at; enum session_status want; int64_t active, since; const char *stop, *want_stop; } rows[] = {
        { RUN_KEEP, 0, SESSION_IDLE, 0, -1, NULL, NULL },
        { RUN_END, 0, SESSION_IDLE, 0, -1, NULL, NULL },
        { RUN_START, 100, SESSION_RUNNING, 0, 100, NULL, NULL },
        { RUN_START, 150, SESSION_RUNNING, 0, 100, NULL, NULL },
        { RUN_KEEP, 160, SESSION_RUNNING, 0, 100, NULL, NULL },
        { RUN_RESCHEDULE, 200, SESSION_RESCHEDULING, 100, -1, NULL, NULL },
        { RUN_RESCHEDULE, 300, SESSION_RESCHEDULING, 100, -1, NULL, NULL },
        { RUN_RESUME, 400, SESSION_RUNNING, 100, 400, NULL, NULL },
        { RUN_END, 450, SESSION_IDLE, 150, -1, "{\"type\":\"end_turn\"}", "{\"type\":\"end_turn\"}" },
        { RUN_KEEP, 460, SESSION_IDLE, 150, -1, "{\"type\":\"requires_action\"}", "{\"type\":\"requires_action\"}" },
        { RUN_START, 500, SESSION_RUNNING, 150, 500, NULL, "{\"type\":\"requires_action\"}" },
        { RUN_END, 490, SESSION_IDLE, 150, -1, "{}", "{}" },           /* a clock that went back */
        { RUN_RESCHEDULE, 600, SESSION_RESCHEDULING, 150, -1, NULL, "{}" },
        { RUN_TERMINATE, 700, SESSION_TERMINATED, 150, -1, NULL, "{}" },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct store_step s = STEP("sesn_1");
        s.run = rows[i].run, s.now_ms = T0 + rows[i].at, s.stop_reason = rows[i].stop;
        OK(f->o->step(f->st, &s, &f->e));
        struct store_session v = get(f, "sesn_1");
        assert_int_equal(v.status, rows[i].want);
        assert_int_equal(v.active_ms, rows[i].active);
        assert_int_equal(v.running_since_ms, rows[i].since < 0 ? -1 : T0 + rows[i].since);
        assert_true(str_eq(v.stop_reason, rows[i].want_stop));
    }
    assert_int_equal(get(f, "sesn_1").terminated_ms, T0 + 700);
    static const enum store_run refused[] = { RUN_START, RUN_RESCHEDULE, RUN_RESUME };
    for (size_t i = 0; i < COUNT_OF(refused); i++) {
        struct store_step s = STEP("sesn_1");
        s.run = refused[i];
        RC(RC_INVALID, f->o->step(f->st, &s, &f->e));
    }
    OK(fix_step1(f, STEP("sesn_1"), EV("sevt_late", "user.tool_result")));
}

static void steps(void **state)
{
    struct fix *f = *state;
    fix_environment(f, "env_1");
    OK(fix_session(f, "sesn_1", "env_1", NULL));
    OK(fix_session(f, "sesn_2", "env_1", NULL));
    RC(RC_NOT_FOUND, fix_step1(f, STEP("sesn_9"), EV("sevt_1", "a")));

    struct store_step s = STEP("sesn_1");
    OK(f->o->step(f->st, &s, &f->e));                                        /* empty */
    assert_int_equal(s.ret_first_seq, 1);
    assert_int_equal(s.ret_last_seq, 0);
    assert_int_equal(fix_notes(f, STORE_NOTE_EVENTS), 0);

    struct store_event_in in[] = { { .id = "sevt_q", .type = "user.message", .body = "{}", .queued = true },
                                   { .type = "raw", .body = "[]", .is_private = true },
                                   { .id = "sevt_t", .type = "agent.tool_use", .body = "{}", .thread_id = "sthr_2" } };
    s.events = in, s.n_events = 3, s.expect_seq = 0;
    s.usage_add = (struct store_usage){ 1, 2, 3, 4, 5, 6 };
    s.title = "new", s.metadata = "{\"m\":1}", s.agent = "{\"a\":2}";
    OK(f->o->step(f->st, &s, &f->e));
    assert_int_equal(s.ret_first_seq, 1);
    assert_int_equal(s.ret_last_seq, 3);
    RC(RC_CONFLICT, f->o->step(f->st, &s, &f->e));
    assert_non_null(strstr(f->e.msg, "log moved"));
    struct store_session v = get(f, "sesn_1");
    assert_int_equal(v.last_seq, 3);
    assert_string_equal(v.title, "new");
    assert_string_equal(v.metadata, "{\"m\":1}");
    assert_string_equal(v.agent, "{\"a\":2}");
    assert_int_equal(v.usage.input, 1);
    assert_int_equal(v.usage.requests, 6);

    static const struct { struct store_event_in in; int rc; const char *say; } bad[] = {
        { { .id = "sevt_t", .type = "a", .body = "{}" }, RC_CONFLICT, "sevt_t" },
        { { .id = "x", .type = NULL, .body = "{}" }, RC_INVALID, "type" },
        { { .id = "x", .type = "a", .body = NULL }, RC_INVALID, "body" },
        { { .id = NULL, .type = "a", .body = "{}" }, RC_INVALID, "id" },
        { { .id = "x", .type = "a", .body = "{}", .is_result = true }, RC_INVALID, "answers" },
        { { .stamp_id = "sevt_none" }, RC_NOT_FOUND, "sevt_none" },
        { { .stamp_id = "sevt_t" }, RC_CONFLICT, "consumed" },
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        struct store_event_in two[] = { EV("sevt_gone", "a"), bad[i].in };
        struct store_step b = STEP("sesn_1");
        b.events = two, b.n_events = 2, b.usage_add.input = 100, b.run = RUN_START;
        f->e.msg[0] = 0;
        RC(bad[i].rc, f->o->step(f->st, &b, &f->e));
        assert_non_null(strstr(f->e.msg, bad[i].say));
        assert_int_equal(get(f, "sesn_1").last_seq, 3);                      /* nothing of it stayed */
        assert_int_equal(get(f, "sesn_1").usage.input, 1);
        assert_int_equal(get(f, "sesn_1").status, SESSION_IDLE);
    }
    RC(RC_NOT_FOUND, fix_step1(f, STEP("sesn_2"), (struct store_event_in){ .stamp_id = "sevt_q" }));    /* another session's */

    /* results: first write wins, per session */
    struct store_event_in r1 = { .id = "sevt_r1", .type = "user.tool_result", .body = "{}", .ref = "sevt_t", .is_result = true }, r2 = r1;
    r2.id = "sevt_r2";
    OK(fix_step1(f, STEP("sesn_1"), r1));
    RC(RC_CONFLICT, fix_step1(f, STEP("sesn_1"), r2));
    assert_string_equal(f->e.msg, "duplicate result");
    OK(fix_step1(f, STEP("sesn_2"), r2));
    r2.id = "sevt_c1", r2.is_result = false;                                 /* a confirmation of the same call is no result */
    OK(fix_step1(f, STEP("sesn_1"), r2));
}

static void fencing(void **state)
{
    struct fix *f = *state;
    int64_t e1, e2, e3;
    fix_environment(f, "env_1");
    OK(fix_session(f, "sesn_1", "env_1", NULL));
    RC(RC_NOT_FOUND, f->o->lease_claim(f->st, "sesn_9", "a", T0, T0 + 100, &e1, &f->e));
    struct store_step s = STEP("sesn_1");
    s.owner = "a", s.epoch = 1;
    RC(RC_PRECONDITION, f->o->step(f->st, &s, &f->e));                       /* no lease at all */
    OK(f->o->lease_claim(f->st, "sesn_1", "a", T0, T0 + 100, &e1, &f->e));
    s.epoch = e1;
    OK(f->o->step(f->st, &s, &f->e));
    RC(RC_CONFLICT, f->o->lease_claim(f->st, "sesn_1", "b", T0 + 99, T0 + 200, &e2, &f->e));
    OK(f->o->lease_claim(f->st, "sesn_1", "a", T0, T0 + 100, &e2, &f->e));   /* already ours: a new epoch */
    assert_true(e2 > e1);
    RC(RC_PRECONDITION, f->o->step(f->st, &s, &f->e));
    RC(RC_PRECONDITION, f->o->lease_renew(f->st, "sesn_1", "a", e1, T0 + 300, &f->e));
    OK(f->o->lease_renew(f->st, "sesn_1", "a", e2, T0 + 300, &f->e));
    RC(RC_CONFLICT, f->o->lease_claim(f->st, "sesn_1", "b", T0 + 299, T0 + 400, &e3, &f->e));
    OK(f->o->lease_claim(f->st, "sesn_1", "b", T0 + 300, T0 + 400, &e3, &f->e));      /* expired */
    assert_true(e3 > e2);
    s.epoch = e2;
    RC(RC_PRECONDITION, f->o->step(f->st, &s, &f->e));
    OK(f->o->lease_release(f->st, "sesn_1", "a", e2, &f->e));                /* not ours: nothing happens */
    s.owner = "b", s.epoch = e3;
    OK(f->o->step(f->st, &s, &f->e));
    s.owner = "a";
    RC(RC_PRECONDITION, f->o->step(f->st, &s, &f->e));
    OK(f->o->lease_release(f->st, "sesn_1", "b", e3, &f->e));
    s.owner = "b";
    RC(RC_PRECONDITION, f->o->step(f->st, &s, &f->e));
    OK(f->o->lease_claim(f->st, "sesn_1", "c", T0, T0 + 400, &e1, &f->e));
    assert_true(e1 > e3);                                                    /* epochs never go back */
    s = STEP("sesn_1");
    s.owner = "c", s.epoch = e1, s.run = RUN_START;
    OK(f->o->step(f->st, &s, &f->e));
    s.run = RUN_END;
    OK(f->o->step(f->st, &s, &f->e));                                        /* gives the lease back */
    RC(RC_PRECONDITION, f->o->lease_renew(f->st, "sesn_1", "c", e1, T0 + 900, &f->e));
    OK(f->o->lease_claim(f->st, "sesn_1", "d", T0, T0 + 400, &e1, &f->e));
    OK(f->o->lease_clear(f->st, &f->e));
    OK(f->o->lease_claim(f->st, "sesn_1", "e", T0, T0 + 400, &e1, &f->e));
}

static void orphans(void **state)
{
    struct fix *f = *state;
    const char **ids, *name[] = { "sesn_0", "sesn_1", "sesn_2", "sesn_3", "sesn_4" };
    size_t n;
    int64_t ep;
    fix_environment(f, "env_1");
    for (size_t i = 0; i < COUNT_OF(name); i++)
        OK(fix_session(f, name[i], "env_1", NULL));
    OK(f->o->lease_orphans(f->st, f->a, T0, 10, &ids, &n, &f->e));
    assert_int_equal(n, 0);
    struct store_step s = STEP("sesn_1");
    s.run = RUN_START;
    OK(f->o->step(f->st, &s, &f->e));
    OK(fix_step1(f, STEP("sesn_3"), (struct store_event_in){ .id = "sevt_q", .type = "user.message", .body = "{}", .queued = true }));
    OK(fix_step1(f, STEP("sesn_4"), EV("sevt_p", "user.tool_result")));
    OK(f->o->lease_orphans(f->st, f->a, T0, 10, &ids, &n, &f->e));
    assert_int_equal(n, 2);
    assert_string_equal(ids[0], "sesn_1");
    assert_string_equal(ids[1], "sesn_3");
    OK(f->o->lease_orphans(f->st, f->a, T0, 1, &ids, &n, &f->e));            /* full pages take turns */
    assert_string_equal(ids[0], "sesn_1");
    OK(f->o->lease_orphans(f->st, f->a, T0, 1, &ids, &n, &f->e));
    assert_string_equal(ids[0], "sesn_3");
    OK(f->o->lease_orphans(f->st, f->a, T0, 1, &ids, &n, &f->e));
    assert_int_equal(n, 0);
    OK(f->o->lease_claim(f->st, "sesn_1", "a", T0, T0 + 100, &ep, &f->e));
    OK(f->o->lease_orphans(f->st, f->a, T0 + 99, 10, &ids, &n, &f->e));
    assert_int_equal(n, 1);
    OK(f->o->lease_orphans(f->st, f->a, T0 + 100, 10, &ids, &n, &f->e));
    assert_int_equal(n, 2);
    s = STEP("sesn_3");
    s.run = RUN_TERMINATE;
    OK(f->o->step(f->st, &s, &f->e));
    OK(f->o->lease_orphans(f->st, f->a, T0 + 100, 10, &ids, &n, &f->e));
    assert_int_equal(n, 1);
}

static void seqs(struct store_event *v, size_t n, const char *want)
{
    char got[256] = "";
    for (size_t i = 0, k = 0; i < n; i++)
        k += (size_t)snprintf(got + k, sizeof got - k, "%s%d/%d", i ? " " : "", (int)v[i].seq, (int)v[i].processed_seq);
    assert_string_equal(got, want);
}

static void log_reading(void **state)
{
    struct fix *f = *state;
    fix_environment(f, "env_1");
    OK(fix_session(f, "sesn_1", "env_1", NULL));
    OK(fix_session(f, "sesn_2", "env_1", NULL));
    OK(fix_step1(f, STEP("sesn_2"), EV("sevt_other", "user.message")));
    struct store_event_in in[] = {
        { .id = "e1", .type = "user.message", .body = "{\"n\":1}", .queued = true },
        { .id = "e2", .type = "user.message", .body = "{\"n\":2}", .queued = true },
        { .id = "e3", .type = "session.status_running", .body = "{}" },
        { .stamp_id = "e1" },
        { .type = "raw", .body = "[1]", .is_private = true },
        { .id = "e6", .type = "agent.message", .body = "{}", .thread_id = "sthr_2" },
        { .id = "e7", .type = "user.message", .body = "{}", .queued = true },
    };
    struct store_step s = STEP("sesn_1");
    s.events = in, s.n_events = COUNT_OF(in), s.now_ms = T0 + 50;
    OK(f->o->step(f->st, &s, &f->e));
    struct store_event *v, one;
    size_t n;
    OK(f->o->event_scan(f->st, f->a, "sesn_1", 0, 100, false, &v, &n, &f->e));
    seqs(v, n, "1/4 2/0 3/3 5/5 6/6 7/0");
    assert_string_equal(v[0].body, "{\"n\":1}");
    assert_int_equal(v[0].processed_ms, T0 + 50);
    assert_int_equal(v[1].processed_ms, -1);
    assert_true(v[3].is_private);
    assert_null(v[3].id);
    OK(f->o->event_scan(f->st, f->a, "sesn_1", 0, 100, true, &v, &n, &f->e));
    seqs(v, n, "1/4 2/0 3/3 6/6 7/0");
    OK(f->o->event_scan(f->st, f->a, "sesn_1", 3, 100, false, &v, &n, &f->e));
    seqs(v, n, "1/4 5/5 6/6 7/0");
    OK(f->o->event_scan(f->st, f->a, "sesn_1", 4, 100, false, &v, &n, &f->e));
    seqs(v, n, "5/5 6/6 7/0");
    OK(f->o->event_scan(f->st, f->a, "sesn_1", 3, 2, false, &v, &n, &f->e));
    seqs(v, n, "1/4 5/5");
    OK(f->o->event_scan(f->st, f->a, "sesn_1", 7, 100, false, &v, &n, &f->e));
    assert_int_equal(n, 0);
    OK(f->o->event_scan(f->st, f->a, "sesn_1", INT64_MAX, 100, false, &v, &n, &f->e));
    assert_int_equal(n, 0);
    RC(RC_NOT_FOUND, f->o->event_scan(f->st, f->a, "sesn_9", 0, 1, false, &v, &n, &f->e));

    /* public list: consumed ones by consumption, queued ones last */
    struct store_event_filter fl = { .gt_ms = -1, .gte_ms = -1, .lt_ms = -1, .lte_ms = -1, .limit = 100 };
    OK(f->o->event_list(f->st, f->a, "sesn_1", &fl, &v, &n, &f->e));
    seqs(v, n, "3/3 1/4 6/6 2/0 7/0");
    assert_string_equal(v[0].thread_id, "sthr_1");
    assert_string_equal(v[2].thread_id, "sthr_2");
    fl.desc = true;
    OK(f->o->event_list(f->st, f->a, "sesn_1", &fl, &v, &n, &f->e));
    seqs(v, n, "7/0 2/0 6/6 1/4 3/3");
    for (int desc = 0; desc < 2; desc++) {                                   /* one by one */
        struct store_event_filter p = { .gt_ms = -1, .gte_ms = -1, .lt_ms = -1, .lte_ms = -1, .limit = 1, .desc = desc };
        size_t seen = 0;
        for (;; seen++) {
            OK(f->o->event_list(f->st, f->a, "sesn_1", &p, &v, &n, &f->e));
            if (!n)
                break;
            p.has_after = true;
            p.after_ord = store_event_ord(v);
        }
        assert_int_equal(seen, 5);
    }
    fl.desc = false, fl.thread_id = "sthr_2";
    OK(f->o->event_list(f->st, f->a, "sesn_1", &fl, &v, &n, &f->e));
    seqs(v, n, "6/6");
    fl.thread_id = "sthr_1";
    OK(f->o->event_list(f->st, f->a, "sesn_1", &fl, &v, &n, &f->e));
    seqs(v, n, "3/3 1/4 2/0 7/0");
    const char *types[] = { "user.message", "agent.message" };
    fl.thread_id = NULL, fl.types = types, fl.n_types = 2;
    OK(f->o->event_list(f->st, f->a, "sesn_1", &fl, &v, &n, &f->e));
    seqs(v, n, "1/4 6/6 2/0 7/0");
    fl.n_types = 1, fl.gt_ms = T0 + 50;
    OK(f->o->event_list(f->st, f->a, "sesn_1", &fl, &v, &n, &f->e));
    assert_int_equal(n, 0);
    fl.gt_ms = -1, fl.gte_ms = T0 + 50, fl.lte_ms = T0 + 50;
    OK(f->o->event_list(f->st, f->a, "sesn_1", &fl, &v, &n, &f->e));
    assert_int_equal(n, 3);
    fl.lt_ms = T0 + 50;
    OK(f->o->event_list(f->st, f->a, "sesn_1", &fl, &v, &n, &f->e));
    assert_int_equal(n, 0);
    const char *many[65];
    for (int i = 0; i < 65; i++)
        many[i] = "x";
    struct store_event_filter fm = { .gt_ms = 1, .gte_ms = 1, .lt_ms = 1, .lte_ms = 1, .limit = 1, .types = many, .n_types = 64, .thread_id = "x", .has_after = true };
    OK(f->o->event_list(f->st, f->a, "sesn_1", &fm, &v, &n, &f->e));
    fm.n_types = 65;
    RC(RC_INVALID, f->o->event_list(f->st, f->a, "sesn_1", &fm, &v, &n, &f->e));
    fm.n_types = 0;
    RC(RC_NOT_FOUND, f->o->event_list(f->st, f->a, "sesn_9", &fm, &v, &n, &f->e));

    OK(f->o->event_get(f->st, f->a, "sesn_1", "e6", &one, &f->e));
    assert_int_equal(one.seq, 6);
    RC(RC_NOT_FOUND, f->o->event_get(f->st, f->a, "sesn_1", "sevt_other", &one, &f->e));
    RC(RC_NOT_FOUND, f->o->event_get(f->st, f->a, "sesn_9", "e6", &one, &f->e));

    /* a flushed input leaves the public list, and reduce() is told */
    (void)fix_notes(f, STORE_NOTE_EVENTS);
    OK(fix_step1(f, STEP("sesn_1"), (struct store_event_in){ .stamp_id = "e7", .drop_queued = true }));
    assert_int_equal(fix_notes(f, STORE_NOTE_EVENTS), 1);
    OK(f->o->event_scan(f->st, f->a, "sesn_1", 7, 100, false, &v, &n, &f->e));
    seqs(v, n, "7/8");
    assert_true(v[0].is_private);
    OK(f->o->event_scan(f->st, f->a, "sesn_1", 7, 100, true, &v, &n, &f->e));
    assert_int_equal(n, 0);
    RC(RC_NOT_FOUND, f->o->event_get(f->st, f->a, "sesn_1", "e7", &one, &f->e));
    RC(RC_CONFLICT, fix_step1(f, STEP("sesn_1"), (struct store_event_in){ .stamp_id = "e7" }));
    OK(fix_step1(f, STEP("sesn_1"), (struct store_event_in){ .type = "raw", .body = "{}", .is_private = true }));
    assert_int_equal(fix_notes(f, STORE_NOTE_EVENTS), 0);                    /* nothing public */
    assert_int_equal(get(f, "sesn_1").last_seq, 9);
}

static void lists(void **state)
{
    struct fix *f = *state;
    fix_environment(f, "env_1");
    const char *name[] = { "sesn_0", "sesn_1", "sesn_2", "sesn_3" };
    enum store_run run[] = { RUN_KEEP, RUN_START, RUN_RESCHEDULE, RUN_TERMINATE };
    for (int i = 0; i < 4; i++) {
        OK(fix_session(f, name[i], "env_1", NULL));
        struct store_step s = STEP(name[i]);
        s.run = run[i];
        OK(f->o->step(f->st, &s, &f->e));
    }
    struct store_session *v;
    size_t n;
    struct store_page p = STORE_PAGE_INIT;
    OK(f->o->session_list(f->st, f->a, &p, NULL, &v, &n, &f->e));
    assert_int_equal(n, 4);
    assert_string_equal(v[0].id, "sesn_3");
    assert_string_equal(v[0].agent, "{\"a\":1}");
    for (int i = 0; i < 4; i++) {
        struct store_session_filter fl = { .statuses = 1u << i };
        OK(f->o->session_list(f->st, f->a, &p, &fl, &v, &n, &f->e));
        assert_int_equal(n, 1);
        assert_string_equal(v[0].id, name[i]);
        assert_int_equal(v[0].status, i);
    }
    struct store_session_filter fl = { .statuses = 3, .agent_id = "agent_1", .agent_version = 3 };
    OK(f->o->session_list(f->st, f->a, &p, &fl, &v, &n, &f->e));
    assert_int_equal(n, 2);
    fl.agent_version = 2;
    OK(f->o->session_list(f->st, f->a, &p, &fl, &v, &n, &f->e));
    assert_int_equal(n, 0);
    fl = (struct store_session_filter){ .agent_id = "agent_2" };
    OK(f->o->session_list(f->st, f->a, &p, &fl, &v, &n, &f->e));
    assert_int_equal(n, 0);
    struct store_step s = STEP("sesn_0");
    OK(f->o->session_archive(f->st, &s, &f->e));
    OK(f->o->session_list(f->st, f->a, &p, NULL, &v, &n, &f->e));
    assert_int_equal(n, 3);
    p.include_archived = true, p.asc = true;
    OK(f->o->session_list(f->st, f->a, &p, NULL, &v, &n, &f->e));
    assert_int_equal(n, 4);
    assert_string_equal(v[0].id, "sesn_0");
}

static void archive_and_delete(void **state)
{
    struct fix *f = *state;
    fix_environment(f, "env_1");
    struct store_step s = STEP(NULL);
    s.run = RUN_START, s.ensure_work = true, s.needs_worker = 1;
    OK(fix_session(f, "sesn_1", "env_1", &s));
    struct store_work w;
    struct store_token tk;
    uint8_t h[32];
    fix_hash(h, 7);
    OK(f->o->work_poll(f->st, f->a, "env_1", NULL, T0, 5000, h, T0 + 100000, &w, &f->e));
    OK(f->o->work_ack(f->st, f->a, "env_1", w.id, T0, 60000, &w, &f->e));
    OK(f->o->token_find(f->st, f->a, h, T0, &tk, &f->e));
    assert_string_equal(tk.session_id, "sesn_1");
    struct store_event_in ended = EV("sevt_end", "session.status_terminated");
    struct store_step last = STEP("sesn_1");
    last.events = &ended, last.n_events = 1;
    RC(RC_INVALID, f->o->session_archive(f->st, &last, &f->e));              /* running */
    RC(RC_INVALID, f->o->session_delete(f->st, "sesn_1", &f->e));
    s = STEP("sesn_1");
    s.run = RUN_RESCHEDULE;
    OK(f->o->step(f->st, &s, &f->e));
    RC(RC_INVALID, f->o->session_archive(f->st, &last, &f->e));
    s.run = RUN_END;
    OK(f->o->step(f->st, &s, &f->e));
    OK(f->o->session_archive(f->st, &last, &f->e));
    struct store_session v = get(f, "sesn_1");
    assert_int_equal(v.status, SESSION_TERMINATED);
    assert_int_equal(v.archived_ms, T0);
    assert_int_equal(v.last_seq, 1);
    RC(RC_NOT_FOUND, f->o->token_find(f->st, f->a, h, T0, &tk, &f->e));      /* at once */
    OK(f->o->work_get(f->st, f->a, "env_1", w.id, &w, &f->e));
    assert_int_equal(w.state, WORK_STOPPED);
    OK(f->o->session_archive(f->st, &last, &f->e));                          /* again: kept */
    assert_int_equal(get(f, "sesn_1").last_seq, 1);
    RC(RC_INVALID, fix_step1(f, STEP("sesn_1"), EV("sevt_x", "a")));
    struct store_step none = STEP("sesn_9");
    RC(RC_NOT_FOUND, f->o->session_archive(f->st, &none, &f->e));

    /* delete: log, item's life and token are gone; the id may be used again, with a log of its own */
    s = STEP(NULL);
    struct store_event_in e1 = EV("sevt_1", "user.message");
    s.events = &e1, s.n_events = 1, s.ensure_work = true, s.needs_worker = 1;
    OK(fix_session(f, "sesn_2", "env_1", &s));
    fix_hash(h, 8);
    OK(f->o->work_poll(f->st, f->a, "env_1", NULL, T0, 5000, h, T0 + 100000, &w, &f->e));
    (void)fix_notes(f, STORE_NOTE_EVENTS);
    OK(f->o->session_delete(f->st, "sesn_2", &f->e));
    assert_int_equal(fix_notes(f, STORE_NOTE_EVENTS), 1);
    assert_string_equal(f->last_note[STORE_NOTE_EVENTS], "sesn_2");
    RC(RC_NOT_FOUND, f->o->token_find(f->st, f->a, h, T0, &tk, &f->e));
    RC(RC_NOT_FOUND, f->o->session_delete(f->st, "sesn_2", &f->e));
    OK(f->o->work_get(f->st, f->a, "env_1", w.id, &w, &f->e));
    assert_int_equal(w.state, WORK_STOPPED);
    RC(RC_NOT_FOUND, f->o->work_poll(f->st, f->a, "env_1", NULL, T0 + 99999, 5000, h, T0 + 200000, &w, &f->e));
    OK(fix_session(f, "sesn_2", "env_1", &s));
    struct store_event *ev;
    size_t n;
    OK(f->o->event_scan(f->st, f->a, "sesn_2", 0, 10, false, &ev, &n, &f->e));
    assert_int_equal(n, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = { T(create), T(runs), T(steps), T(fencing), T(orphans), T(log_reading), T(lists), T(archive_and_delete) };
    RUN_ALL(tests);
}
