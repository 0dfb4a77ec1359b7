/* Conformance: the work queue (worker.md 2.3, 2.4, 11). */
#include "store/fixture.h"

static int next_hash;

static int poll_at(struct fix *f, int64_t now, struct store_work *w)
{
    uint8_t h[32];
    fix_hash(h, ++next_hash);
    return f->o->work_poll(f->st, f->a, "env_1", NULL, now, 5000, h, now + 1000000, w, &f->e);
}

static struct store_work item(struct fix *f, const char *id)
{
    struct store_work w;
    OK(f->o->work_get(f->st, f->a, "env_1", id, &w, &f->e));
    return w;
}

static void session_needs(struct fix *f, const char *id, int needs)
{
    struct store_step s = STEP(NULL);
    s.ensure_work = true, s.needs_worker = needs;
    OK(fix_session(f, id, "env_1", &s));
}

static struct store_work held(struct fix *f, int64_t now)
{
    struct store_work w;
    OK(poll_at(f, now, &w));
    OK(f->o->work_ack(f->st, f->a, "env_1", w.id, now, 60000, &w, &f->e));
    return w;
}

static int beat(struct fix *f, const char *id, const char *expected, int64_t now, struct store_heartbeat *b)
{
    return f->o->work_heartbeat(f->st, "env_1", id, expected, now, 60000, 10000, b, &f->e);
}

static void beat_text(int64_t ms, char out[RFC3339_MAX]) { rfc3339_format(ms, out); }

static void claims(void **state)
{
    struct fix *f = *state;
    struct store_work w, w2;
    struct store_work_stats st;
    struct store_token tk;
    uint8_t h[32];
    fix_environment(f, "env_1");
    RC(RC_NOT_FOUND, poll_at(f, T0, &w));
    RC(RC_NOT_FOUND, f->o->work_poll(f->st, f->a, "env_none", "x", T0, 5000, h, T0, &w, &f->e));
    session_needs(f, "sesn_1", 1);
    session_needs(f, "sesn_2", 1);
    assert_int_equal(fix_notes(f, STORE_NOTE_WORK), 2);
    fix_hash(h, 1000);
    OK(f->o->work_poll(f->st, f->a, "env_1", "w1", T0 + 1, 5000, h, T0 + 500, &w, &f->e));
    assert_string_equal(w.session_id, "sesn_1");                             /* the oldest */
    assert_int_equal(w.state, WORK_QUEUED);
    assert_int_equal(w.acknowledged_ms, -1);
    assert_string_equal(w.metadata, "{}");
    assert_string_equal(w.data_type, "session");
    OK(f->o->token_find(f->st, f->a, h, T0 + 499, &tk, &f->e));
    assert_string_equal(tk.work_id, w.id);
    assert_string_equal(tk.env_id, "env_1");
    assert_string_equal(tk.session_id, "sesn_1");
    RC(RC_NOT_FOUND, f->o->token_find(f->st, f->a, h, T0 + 500, &tk, &f->e));        /* expired */
    OK(poll_at(f, T0 + 2, &w2));
    assert_string_equal(w2.session_id, "sesn_2");
    RC(RC_NOT_FOUND, poll_at(f, T0 + 5000, &w2));
    OK(f->o->work_stats(f->st, "env_1", T0 + 5000, &st, &f->e));
    assert_int_equal(st.depth, 0);
    assert_int_equal(st.pending, 2);
    assert_int_equal(st.oldest_queued_ms, T0);
    assert_int_equal(st.workers_polling, 1);
    OK(poll_at(f, T0 + 5001, &w2));                                          /* the reservation of the first ended */
    assert_string_equal(w2.id, w.id);
    OK(f->o->work_ack(f->st, f->a, "env_1", w.id, T0 + 5002, 60000, &w2, &f->e));
    assert_int_equal(w2.state, WORK_STARTING);
    assert_int_equal(w2.acknowledged_ms, T0 + 5002);
    OK(f->o->work_ack(f->st, f->a, "env_1", w.id, T0 + 6000, 60000, &w2, &f->e));
    assert_int_equal(w2.acknowledged_ms, T0 + 5002);
    RC(RC_NOT_FOUND, f->o->work_ack(f->st, f->a, "env_2", w.id, T0, 1, &w2, &f->e));
    RC(RC_NOT_FOUND, f->o->work_ack(f->st, f->a, "env_1", "work_9", T0, 1, &w2, &f->e));
    OK(f->o->work_stats(f->st, "env_1", T0 + 5003, &st, &f->e));
    assert_int_equal(st.depth, 1);
    assert_int_equal(st.pending, 0);
    OK(f->o->work_stats(f->st, "env_1", T0 + 30002, &st, &f->e));
    assert_int_equal(st.workers_polling, 0);
}

static void one_live_item(void **state)
{
    struct fix *f = *state;
    struct store_work_stats st;
    fix_environment(f, "env_1");
    session_needs(f, "sesn_1", 1);
    struct store_step s = STEP("sesn_1");
    s.ensure_work = true;
    for (int i = 0; i < 3; i++)
        OK(f->o->step(f->st, &s, &f->e));
    OK(f->o->work_stats(f->st, "env_1", T0, &st, &f->e));
    assert_int_equal(st.depth, 1);
    struct store_work w = held(f, T0), w2;
    OK(f->o->step(f->st, &s, &f->e));                                        /* held: still the one */
    RC(RC_NOT_FOUND, poll_at(f, T0 + 9000, &w2));
    s.ensure_work = false, s.needs_worker = 0;
    OK(f->o->step(f->st, &s, &f->e));
    OK(f->o->work_stop(f->st, "env_1", w.id, true, T0 + 10, &f->e));
    RC(RC_NOT_FOUND, poll_at(f, T0 + 99000, &w2));                           /* not needed: not offered again */
    s.ensure_work = true;
    OK(f->o->step(f->st, &s, &f->e));                                        /* a new message */
    OK(poll_at(f, T0 + 100000, &w2));
    assert_string_not_equal(w2.id, w.id);
}

static void heartbeats(void **state)
{
    struct fix *f = *state;
    struct store_heartbeat b;
    char t1[RFC3339_MAX], t2[RFC3339_MAX], t3[RFC3339_MAX];
    fix_environment(f, "env_1");
    session_needs(f, "sesn_1", 1);
    struct store_work w;
    OK(poll_at(f, T0, &w));
    RC(RC_NOT_FOUND, beat(f, "work_9", NULL, T0, &b));
    RC(RC_PRECONDITION, beat(f, w.id, "NO_HEARTBEAT", T0, &b));              /* never acknowledged */
    assert_int_equal(b.state, WORK_QUEUED);
    assert_int_equal(b.last_ms, -1);
    OK(f->o->work_ack(f->st, f->a, "env_1", w.id, T0, 60000, &w, &f->e));
    RC(RC_PRECONDITION, beat(f, w.id, "2026-01-01T00:00:00.000Z", T0, &b));
    assert_int_equal(b.state, WORK_STARTING);
    OK(beat(f, w.id, "NO_HEARTBEAT", T0 + 10, &b));
    assert_true(b.extended);
    assert_int_equal(b.state, WORK_ACTIVE);
    assert_int_equal(b.last_ms, T0 + 10);
    assert_int_equal(b.ttl_ms, 60000);
    beat_text(b.last_ms, t1);
    w = item(f, w.id);
    assert_int_equal(w.started_ms, T0 + 10);
    assert_int_equal(w.state, WORK_ACTIVE);

    OK(beat(f, w.id, "NO_HEARTBEAT", T0 + 20, &b));                          /* repeated call: the same answer */
    assert_int_equal(b.last_ms, T0 + 10);
    RC(RC_PRECONDITION, beat(f, w.id, "NO_HEARTBEAT", T0 + 10011, &b));      /* over the grace */
    assert_int_equal(b.last_ms, T0 + 10);
    OK(beat(f, w.id, t1, T0 + 10, &b));                                      /* same millisecond: another text */
    assert_int_equal(b.last_ms, T0 + 11);
    beat_text(b.last_ms, t2);
    OK(beat(f, w.id, t1, T0 + 100, &b));
    assert_int_equal(b.last_ms, T0 + 11);
    OK(beat(f, w.id, t2, T0 + 5000, &b));
    beat_text(b.last_ms, t3);
    RC(RC_PRECONDITION, beat(f, w.id, t1, T0 + 5001, &b));                   /* two behind */
    RC(RC_PRECONDITION, beat(f, w.id, "garbage", T0 + 5001, &b));
    RC(RC_PRECONDITION, beat(f, w.id, "NO_HEARTBEAT", T0 + 5001, &b));
    assert_int_equal(item(f, w.id).started_ms, T0 + 10);
    OK(beat(f, w.id, NULL, T0 + 6000, &b));                                  /* not compared */
    assert_int_equal(b.last_ms, T0 + 6000);

    OK(f->o->work_stop(f->st, "env_1", w.id, false, T0 + 7000, &f->e));
    OK(beat(f, w.id, "whatever", T0 + 7001, &b));
    assert_false(b.extended);
    assert_int_equal(b.state, WORK_STOPPING);
    OK(f->o->work_stop(f->st, "env_1", w.id, true, T0 + 7002, &f->e));
    OK(beat(f, w.id, t3, T0 + 7003, &b));
    assert_false(b.extended);
    assert_int_equal(b.state, WORK_STOPPED);
}

/* Two workers were handed the same item, and both acknowledge: the first beat decides, at once and for good. */
static void two_claimants(void **state)
{
    struct fix *f = *state;
    struct store_work a, b;
    struct store_heartbeat h;
    fix_environment(f, "env_1");
    session_needs(f, "sesn_1", 1);
    OK(poll_at(f, T0, &a));
    OK(poll_at(f, T0 + 5000, &b));
    assert_string_equal(a.id, b.id);
    OK(f->o->work_ack(f->st, f->a, "env_1", a.id, T0 + 5001, 60000, &a, &f->e));
    OK(f->o->work_ack(f->st, f->a, "env_1", b.id, T0 + 5002, 60000, &b, &f->e));
    OK(beat(f, a.id, "NO_HEARTBEAT", T0 + 5003, &h));
    RC(RC_PRECONDITION, beat(f, b.id, "NO_HEARTBEAT", T0 + 5004, &h));
    assert_int_equal(h.state, WORK_ACTIVE);
}

static void stops(void **state)
{
    struct fix *f = *state;
    struct store_work w, w2;
    fix_environment(f, "env_1");
    RC(RC_NOT_FOUND, f->o->work_stop(f->st, "env_1", "work_9", true, T0, &f->e));
    static const struct { int reach; bool force; int rc; enum work_state want; } rows[] = {
        { 0, false, RC_OK, WORK_STOPPED },   { 0, true, RC_OK, WORK_STOPPED },  { 1, false, RC_OK, WORK_STOPPING }, { 1, true, RC_OK, WORK_STOPPED },
        { 2, false, RC_OK, WORK_STOPPING },  { 2, true, RC_OK, WORK_STOPPED },  { 3, false, RC_CONFLICT, WORK_STOPPING }, { 3, true, RC_OK, WORK_STOPPED },
        { 4, false, RC_CONFLICT, WORK_STOPPED }, { 4, true, RC_CONFLICT, WORK_STOPPED },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char id[16];
        struct store_heartbeat b;
        (void)snprintf(id, sizeof id, "sesn_%zu", i);
        session_needs(f, id, 0);
        OK(poll_at(f, T0 + 1, &w));
        assert_string_equal(w.session_id, id);
        if (rows[i].reach >= 1)
            OK(f->o->work_ack(f->st, f->a, "env_1", w.id, T0 + 2, 60000, &w2, &f->e));
        if (rows[i].reach >= 2)
            OK(beat(f, w.id, NULL, T0 + 3, &b));
        if (rows[i].reach >= 3)
            OK(f->o->work_stop(f->st, "env_1", w.id, false, T0 + 4, &f->e));
        if (rows[i].reach >= 4)
            OK(f->o->work_stop(f->st, "env_1", w.id, true, T0 + 5, &f->e));
        RC(rows[i].rc, f->o->work_stop(f->st, "env_1", w.id, rows[i].force, T0 + 6, &f->e));
        w = item(f, w.id);
        assert_int_equal(w.state, rows[i].want);
        assert_int_equal(w.stopped_ms >= 0, rows[i].want == WORK_STOPPED);
        assert_true(w.stop_requested_ms >= 0);
        if (rows[i].want == WORK_STOPPED) {
            RC(RC_CONFLICT, f->o->work_ack(f->st, f->a, "env_1", w.id, T0 + 7, 1000, &w2, &f->e));
        } else {
            OK(f->o->work_ack(f->st, f->a, "env_1", w.id, T0 + 7, 1000, &w2, &f->e));
            assert_int_equal(w2.state, WORK_STOPPING);
        }
    }
}

/* While calls are open, an item that ends is followed by a fresh one, later each time, until something happens in the session. */
static void offers(void **state)
{
    struct fix *f = *state;
    static const int64_t delay[] = { 0, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000 };
    struct store_work w, w2;
    fix_environment(f, "env_1");
    session_needs(f, "sesn_1", 1);
    int64_t now = T0;
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < COUNT_OF(delay); i++) {
            w = held(f, now);
            (void)fix_notes(f, STORE_NOTE_WORK);
            OK(f->o->work_stop(f->st, "env_1", w.id, true, now, &f->e));
            assert_int_equal(fix_notes(f, STORE_NOTE_WORK), delay[i] == 0);
            if (delay[i])
                RC(RC_NOT_FOUND, poll_at(f, now + delay[i] - 1, &w2));
            now += delay[i];
        }
        /* a result: the waiting item is claimable at once, when the step asks for one, and the delays start over */
        w = held(f, now);
        OK(f->o->work_stop(f->st, "env_1", w.id, true, now, &f->e));
        RC(RC_NOT_FOUND, poll_at(f, now, &w2));
        char id[16];
        (void)snprintf(id, sizeof id, "sevt_%d", round);
        struct store_step s = STEP("sesn_1");
        s.ensure_work = true, s.now_ms = now;
        OK(fix_step1(f, s, EV(id, "user.tool_result")));
        assert_int_equal(fix_notes(f, STORE_NOTE_WORK), 1);
    }
}

static void lapses(void **state)
{
    struct fix *f = *state;
    struct store_heartbeat b;
    int64_t next;
    fix_environment(f, "env_1");
    OK(f->o->work_expire(f->st, T0, &next, &f->e));
    assert_int_equal(next, -1);
    session_needs(f, "sesn_1", 1);
    struct store_work w = held(f, T0), w2;
    OK(beat(f, w.id, "NO_HEARTBEAT", T0 + 100, &b));
    char text[RFC3339_MAX];
    beat_text(b.last_ms, text);
    (void)fix_notes(f, STORE_NOTE_WORK);
    OK(f->o->work_expire(f->st, T0 + 60099, &next, &f->e));
    assert_int_equal(next, T0 + 60100);
    assert_int_equal(item(f, w.id).state, WORK_ACTIVE);
    OK(f->o->work_expire(f->st, T0 + 60100, &next, &f->e));
    assert_int_equal(next, -1);
    assert_int_equal(fix_notes(f, STORE_NOTE_WORK), 1);
    w2 = item(f, w.id);                                                      /* the same item, as new */
    assert_int_equal(w2.state, WORK_QUEUED);
    assert_int_equal(w2.acknowledged_ms, -1);
    assert_int_equal(w2.started_ms, -1);
    assert_int_equal(w2.heartbeat_ms, -1);
    RC(RC_PRECONDITION, beat(f, w.id, text, T0 + 60101, &b));                /* its former holder learns it */
    struct store_work again = held(f, T0 + 60102);
    assert_string_equal(again.id, w.id);
    OK(beat(f, w.id, "NO_HEARTBEAT", T0 + 60103, &b));
    RC(RC_PRECONDITION, beat(f, w.id, text, T0 + 60104, &b));
    OK(f->o->work_expire(f->st, T0 + 60103 + 60000, &next, &f->e));          /* the second lapse waits a second */
    assert_int_equal(next, T0 + 121103);
    RC(RC_NOT_FOUND, poll_at(f, T0 + 121102, &w2));
    (void)fix_notes(f, STORE_NOTE_WORK);
    OK(f->o->work_expire(f->st, T0 + 121102, &next, &f->e));
    assert_int_equal(fix_notes(f, STORE_NOTE_WORK), 0);
    OK(f->o->work_expire(f->st, T0 + 121103, &next, &f->e));                 /* and is told when it may be claimed */
    assert_int_equal(fix_notes(f, STORE_NOTE_WORK), 1);
    OK(poll_at(f, T0 + 121103, &w2));
    OK(f->o->work_expire(f->st, T0 + 121104, &next, &f->e));
    assert_int_equal(next, T0 + 126103);                                     /* end of the reservation */
    OK(f->o->work_expire(f->st, T0 + 126103, &next, &f->e));
    assert_int_equal(fix_notes(f, STORE_NOTE_WORK), 1);

    /* starting lapses too; without need the item just ends; a stopping one is stopped and followed by another */
    session_needs(f, "sesn_2", 0);
    struct store_step s = STEP("sesn_1");
    s.needs_worker = 0;
    OK(f->o->step(f->st, &s, &f->e));
    w = held(f, T0 + 130000);
    w2 = held(f, T0 + 130000);
    OK(f->o->work_expire(f->st, T0 + 190000, &next, &f->e));
    assert_int_equal(item(f, w.id).state, WORK_STOPPED);
    assert_int_equal(item(f, w2.id).state, WORK_STOPPED);
    session_needs(f, "sesn_3", 1);
    w = held(f, T0 + 200000);
    OK(f->o->work_stop(f->st, "env_1", w.id, false, T0 + 200001, &f->e));
    OK(f->o->work_expire(f->st, T0 + 260000, &next, &f->e));
    assert_int_equal(item(f, w.id).state, WORK_STOPPED);
    OK(poll_at(f, T0 + 260000, &w2));
    assert_string_equal(w2.session_id, "sesn_3");
    assert_string_not_equal(w2.id, w.id);
}

static void ended_sessions(void **state)
{
    struct fix *f = *state;
    struct store_work w, w2;
    fix_environment(f, "env_1");
    session_needs(f, "sesn_1", 1);
    session_needs(f, "sesn_2", 1);
    session_needs(f, "sesn_3", 1);
    struct store_step s = STEP("sesn_1");
    OK(f->o->session_archive(f->st, &s, &f->e));
    s = STEP("sesn_2");
    s.run = RUN_TERMINATE;
    OK(f->o->step(f->st, &s, &f->e));
    w = held(f, T0);
    assert_string_equal(w.session_id, "sesn_3");
    RC(RC_NOT_FOUND, poll_at(f, T0 + 100000, &w2));
    s = STEP("sesn_3");
    s.run = RUN_TERMINATE, s.ensure_work = true, s.needs_worker = 1;
    OK(f->o->step(f->st, &s, &f->e));
    assert_int_equal(item(f, w.id).state, WORK_STOPPING);                    /* its worker is told at the next beat */
    OK(f->o->work_stop(f->st, "env_1", w.id, true, T0 + 1, &f->e));
    RC(RC_NOT_FOUND, poll_at(f, T0 + 200000, &w2));
}

static void tokens(void **state)
{
    struct fix *f = *state;
    struct store_work w;
    struct store_token tk;
    uint8_t h[32];
    int64_t next;
    fix_environment(f, "env_1");
    session_needs(f, "sesn_1", 1);
    fix_hash(h, 5555);
    OK(f->o->work_poll(f->st, f->a, "env_1", NULL, T0, 5000, h, T0 + 1000000, &w, &f->e));
    OK(f->o->work_stop(f->st, "env_1", w.id, true, T0 + 10, &f->e));
    OK(f->o->token_find(f->st, f->a, h, T0 + 60009, &tk, &f->e));            /* a draining worker */
    assert_int_equal(tk.expires_ms, T0 + 1000000);
    RC(RC_NOT_FOUND, f->o->token_find(f->st, f->a, h, T0 + 60010, &tk, &f->e));
    OK(f->o->work_expire(f->st, T0 + 2000000, &next, &f->e));                /* prunes; the item stays for 30 days */
    assert_int_equal(item(f, w.id).state, WORK_STOPPED);
    OK(f->o->work_expire(f->st, T0 + INT64_C(31) * 86400000, &next, &f->e));
    RC(RC_NOT_FOUND, f->o->work_get(f->st, f->a, "env_1", w.id, &w, &f->e));
}

static void views(void **state)
{
    struct fix *f = *state;
    struct store_work w, *list;
    size_t n;
    fix_environment(f, "env_1");
    fix_environment(f, "env_2");
    for (int i = 0; i < 3; i++) {
        char id[16];
        (void)snprintf(id, sizeof id, "sesn_%d", i);
        session_needs(f, id, 1);
    }
    struct store_page p = STORE_PAGE_INIT;
    OK(f->o->work_list(f->st, f->a, "env_1", &p, &list, &n, &f->e));
    assert_int_equal(n, 3);
    p.limit = 2;
    OK(f->o->work_list(f->st, f->a, "env_1", &p, &list, &n, &f->e));
    assert_int_equal(n, 2);
    OK(f->o->work_list(f->st, f->a, "env_2", &p, &list, &n, &f->e));
    assert_int_equal(n, 0);
    OK(poll_at(f, T0, &w));
    OK(f->o->work_update(f->st, f->a, "env_1", w.id, "{\"k\":\"v\"}", &w, &f->e));
    assert_string_equal(w.metadata, "{\"k\":\"v\"}");
    assert_string_equal(item(f, w.id).metadata, "{\"k\":\"v\"}");
    RC(RC_NOT_FOUND, f->o->work_update(f->st, f->a, "env_2", w.id, "{}", &w, &f->e));
    RC(RC_INVALID, f->o->work_update(f->st, f->a, "env_1", w.id, NULL, &w, &f->e));
    RC(RC_NOT_FOUND, f->o->work_get(f->st, f->a, "env_2", w.id, &w, &f->e));
}

static void sightings(void **state)
{
    struct fix *f = *state;
    struct store_work w;
    struct store_work_stats st;
    uint8_t h[32] = { 0 };
    int64_t next;
    fix_environment(f, "env_1");
    fix_environment(f, "env_2");
    char longer[400];
    memset(longer, 'w', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    const char *ids[] = { "a", "b", "a", "", NULL, longer, longer };
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        RC(RC_NOT_FOUND, f->o->work_poll(f->st, f->a, "env_1", ids[i], T0 + (int)i, 5000, h, T0, &w, &f->e));
    RC(RC_NOT_FOUND, f->o->work_poll(f->st, f->a, "env_2", "a", T0, 5000, h, T0, &w, &f->e));
    OK(f->o->work_stats(f->st, "env_1", T0 + 100, &st, &f->e));
    assert_int_equal(st.workers_polling, 3);
    assert_int_equal(st.oldest_queued_ms, -1);
    OK(f->o->work_stats(f->st, "env_2", T0 + 100, &st, &f->e));
    assert_int_equal(st.workers_polling, 1);
    OK(f->o->work_expire(f->st, T0 + 10000, &next, &f->e));                  /* written now and then: another process sees them */
    store_close(f->st);
    fix_open(f, false);
    OK(f->o->work_stats(f->st, "env_1", T0 + 10001, &st, &f->e));
    assert_int_equal(st.workers_polling, 3);
    RC(RC_NOT_FOUND, f->o->work_poll(f->st, f->a, "env_1", longer, T0 + 10002, 5000, h, T0, &w, &f->e));
    RC(RC_NOT_FOUND, f->o->work_poll(f->st, f->a, "env_1", "c", T0 + 10002, 5000, h, T0, &w, &f->e));
    OK(f->o->work_stats(f->st, "env_1", T0 + 10003, &st, &f->e));
    assert_int_equal(st.workers_polling, 4);
    for (int i = 0; i < 20000; i++) {                                        /* a peer that changes its name forever: bounded */
        char id[32];
        (void)snprintf(id, sizeof id, "many-%d", i);
        RC(RC_NOT_FOUND, f->o->work_poll(f->st, f->a, "env_1", id, T0 + 10003, 5000, h, T0, &w, &f->e));
    }
    OK(f->o->work_stats(f->st, "env_1", T0 + 10004, &st, &f->e));
    assert_true(st.workers_polling > 3000 && st.workers_polling <= 4096 + 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = { T(claims), T(one_live_item), T(heartbeats), T(two_claimants), T(stops), T(offers), T(lapses), T(ended_sessions), T(tokens), T(views), T(sightings) };
    RUN_ALL(tests);
}
