/* Event streams over a real store and loop; the HTTP side is a recorder whose reader can be slow. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/random.h"
#include "base/str.h"
#include "server/events/frames.h"
#include "server/events/hub.h"

/* ---- the HTTP side ---- */
struct http_stream { struct http_stream_conf conf; struct buf got; size_t unread; bool ended, closed, slow; };
struct http_req { struct http_stream st; };

void http_stream_start(struct http_req *r, const struct http_stream_conf *c)
{
    r->st.conf = *c;
    buf_init(&r->st.got, 64 * MIB);
    c->on_start(c->ctx, &r->st);
}

int http_stream_write(struct http_stream *s, const void *p, size_t n)
{
    if (s->unread + n > s->conf.queue_max)
        return RC_LIMIT;
    assert_false(s->ended);
    buf_put(&s->got, p, n);
    s->unread += s->slow ? n : 0;
    return RC_OK;
}

size_t http_stream_queued(const struct http_stream *s) { return s->unread; }
void http_stream_end(struct http_stream *s) { assert_false(s->ended); s->ended = true; }

/* ---- the world ---- */
static struct {
    char dir[64];
    struct ev *ev; struct jobs *jobs; struct store *store; struct hub *hub;
    char session[ID_MAX];
} w;

struct told { char id[ID_MAX]; };
static void told(void *arg) { hub_note(w.hub, ((struct told *)arg)->id); free(arg); }
static void on_note(void *ctx, enum store_note note, const char *id)
{
    (void)ctx;
    if (note != STORE_NOTE_EVENTS)
        return;
    struct told *t = xcalloc(1, sizeof *t);
    snprintf(t->id, sizeof t->id, "%s", id);
    ev_post(w.ev, told, t);
}

static int setup(void **state)
{
    (void)state;
    struct err e = { 0 };
    char dsn[128], env[ID_MAX], thread[ID_MAX];
    snprintf(w.dir, sizeof w.dir, "/tmp/ow-hub-XXXXXX");
    assert_non_null(mkdtemp(w.dir));
    snprintf(dsn, sizeof dsn, "%s/s.db", w.dir);
    if (ev_new(&w.ev, &e) || jobs_new(3, 1000, &w.jobs, &e) || store_open(dsn, true, &w.store, &e))
        fail_msg("%s", e.msg);
    struct hub_conf c = { .ev = w.ev, .jobs = w.jobs, .store = w.store };
    assert_int_equal(hub_new(&c, &w.hub, &e), RC_OK);
    w.store->ops->on_note(w.store, on_note, NULL);
    id_new("env", env);
    id_new("sesn", w.session);
    id_new("sthr", thread);
    struct store_environment v = { .id = env, .name = "e", .body = "{}", .created_ms = 1, .updated_ms = 1, .archived_ms = -1 };
    assert_int_equal(w.store->ops->environment_create(w.store, &v, &e), RC_OK);
    struct store_agent a = { .id = "agent_1", .name = "a", .body = "{}", .version = 1, .created_ms = 1, .updated_ms = 1, .archived_ms = -1 };
    (void)w.store->ops->agent_create(w.store, &a, &e);
    struct store_session s = { .id = w.session, .thread_id = thread, .env_id = env, .agent_id = "agent_1", .agent_version = 1, .agent = "{}", .metadata = "{}",
                               .extra = "{}", .created_ms = 1, .updated_ms = 1, .archived_ms = -1, .terminated_ms = -1, .running_since_ms = -1 };
    if (w.store->ops->session_create(w.store, &s, NULL, &e) != RC_OK)
        fail_msg("%s", e.msg);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    struct err e;
    for (int i = 0; i < 10; i++)
        (void)ev_run_once(w.ev, 5);
    jobs_free(w.jobs);
    for (int i = 0; i < 3; i++)
        (void)ev_run_once(w.ev, 1);
    hub_free(w.hub);
    store_close(w.store);
    ev_free(w.ev);
    return fd_remove_tree(AT_FDCWD, w.dir, &e);
}

static int64_t append(const char *id, const char *type, const char *text, bool queued, enum store_run run)
{
    struct err e = { 0 };
    char *body = str_printf("{\"id\":\"%s\",\"type\":\"%s\",\"text\":\"%s\"}", id, type, text);
    struct store_event_in in = { .id = id, .type = type, .body = body, .queued = queued };
    struct store_step s = { .session_id = w.session, .expect_seq = -1, .events = &in, .n_events = 1, .run = run, .needs_worker = -1, .now_ms = clock_now_ms() };
    if (w.store->ops->step(w.store, &s, &e) != RC_OK)
        fail_msg("%s", e.msg);
    free(body);
    return s.ret_last_seq;
}

static void stamp(const char *id)
{
    struct err e = { 0 };
    struct store_event_in in = { .stamp_id = id };
    struct store_step s = { .session_id = w.session, .expect_seq = -1, .events = &in, .n_events = 1, .needs_worker = -1, .now_ms = clock_now_ms() };
    if (w.store->ops->step(w.store, &s, &e) != RC_OK)
        fail_msg("%s", e.msg);
}

static void turn(int64_t ms)
{
    for (int64_t end = clock_mono_ms() + ms; clock_mono_ms() < end;)
        (void)ev_run_once(w.ev, 5);
}

/* Runs the loop until `n` frames of that event name came. */
static size_t count(struct http_req *r, const char *word)
{
    size_t n = 0;
    if (!r->st.got.mem)
        return 0;
    for (const char *p = buf_data(&r->st.got); (p = strstr(p, word)); p++)
        n++;
    return n;
}

static void wait_for(struct http_req *r, const char *word, size_t n)
{
    for (int64_t end = clock_mono_ms() + 5000; count(r, word) < n;) {
        (void)ev_run_once(w.ev, 5);
        if (clock_mono_ms() > end)
            fail_msg("waited for %zu of '%s'; got:\n%s", n, word, buf_data(&r->st.got));
    }
}

static void listen_from(struct http_req *r, int64_t seq, unsigned deltas, bool ended)
{
    memset(r, 0, sizeof *r);
    assert_int_equal(hub_subscribe(w.hub, r, w.session, seq, deltas, ended, ""), RC_OK);
    while (!r->st.conf.on_start)
        (void)ev_run_once(w.ev, 5);
}

static void hang_up(struct http_req *r)
{
    if (!r->st.ended)
        r->st.conf.on_close(r->st.conf.ctx, &r->st);
    assert_true(r->st.ended);
    buf_done(&r->st.got);
}

static void test_live_and_queued_twice(void **state)
{
    (void)state;
    struct http_req a, b;
    int64_t s0 = append("sevt_0", "agent.message", "before", false, RUN_KEEP);
    listen_from(&a, s0, 0, false);
    listen_from(&b, s0, 0, false);
    append("sevt_1", "user.message", "hi", true, RUN_KEEP);
    append("sevt_2", "agent.thinking", "", false, RUN_KEEP);
    stamp("sevt_1");
    wait_for(&a, "\n\n", 3);
    wait_for(&b, "\n\n", 3);
    assert_string_equal(buf_data(&a.st.got), buf_data(&b.st.got));
    assert_int_equal(count(&a, "sevt_0"), 0);
    assert_int_equal(count(&a, "event: user.message\n"), 2);
    assert_int_equal(count(&a, "\"processed_at\":null"), 1);
    char *first = strstr(buf_data(&a.st.got), "event: user.message"), *mid = strstr(buf_data(&a.st.got), "event: agent.thinking");
    assert_true(first < mid && strstr(mid, "event: user.message"));
    assert_int_equal(hub_subscribers(w.hub), 2);
    hang_up(&a), hang_up(&b);
    assert_int_equal(hub_subscribers(w.hub), 0);
}

/* From every position of the stream, the rest comes, byte for byte. */
static void test_resume_from_everywhere(void **state)
{
    (void)state;
    struct http_req all, part;
    char id[16];
    listen_from(&all, 0, 0, false);
    for (int i = 0; i < 12; i++) {
        snprintf(id, sizeof id, "sevt_%d", i);
        append(id, "user.message", "x", i % 3 == 0, RUN_KEEP);
        if (i % 3 == 2) {
            snprintf(id, sizeof id, "sevt_%d", i - 2);
            stamp(id);
        }
    }
    wait_for(&all, "\n\n", 16);
    for (char *p = buf_data(&all.st.got), *end; (end = strstr(p, "\n\n")); p = end + 2) {
        listen_from(&part, atoll(p + 4), 0, false);

        for (int64_t stop = clock_mono_ms() + 3000; buf_len(&part.st.got) < strlen(end + 2) && clock_mono_ms() < stop;)
            (void)ev_run_once(w.ev, 5);
        assert_string_equal(buf_data(&part.st.got), end + 2);
        hang_up(&part);
    }
    hang_up(&all);
}

/* More than one read: rows and bytes over a batch, with consumption positions far behind their own. */
static void test_long_log(void **state)
{
    (void)state;
    struct http_req a;
    char id[24], *big = str_printf("%0200000d", 7);
    for (int i = 0; i < 600; i++) {
        snprintf(id, sizeof id, "sevt_q%d", i);
        append(id, "user.message", i % 100 == 0 ? big : "x", i < 400, RUN_KEEP);
    }
    for (int i = 0; i < 400; i++) {
        snprintf(id, sizeof id, "sevt_q%d", i);
        stamp(id);
    }
    listen_from(&a, 0, 0, false);
    wait_for(&a, "\n\n", 1000);
    turn(50);
    assert_int_equal(count(&a, "\n\n"), 1000);
    int64_t last = 0;
    for (char *p = buf_data(&a.st.got); p && *p; p = strstr(p, "\n\n"), p = p ? p + 2 : p) {
        int64_t pos = atoll(p + 4);
        assert_true(pos > last);
        last = pos;
    }
    hang_up(&a);
    free(big);
}

static void test_previews(void **state)
{
    (void)state;
    struct http_req with, without, late;
    listen_from(&with, 0, HUB_DELTA_MESSAGE, false);
    listen_from(&without, 0, 0, false);
    struct loop_preview p = { .session_id = w.session, .event_id = "sevt_m", .type = "agent.message", .start = true };
    hub_preview(w.hub, &p);
    p.start = false, p.text = "say \"hi\"\n", p.n = 9;
    hub_preview(w.hub, &p);
    listen_from(&late, 0, HUB_DELTA_MESSAGE, false);
    hub_preview(w.hub, &p);
    p.type = "agent.thinking", p.start = true;
    hub_preview(w.hub, &p);
    assert_int_equal(count(&with, "event: event_start\n"), 1);
    assert_int_equal(count(&with, "event: event_delta\n"), 2);
    assert_int_equal(count(&with, "\"text\":\"say \\\"hi\\\"\\n\"}}}\n\n"), 2);
    assert_int_equal(count(&with, "{\"type\":\"event_start\",\"event\":{\"type\":\"agent.message\",\"id\":\"sevt_m\"}}"), 1);
    assert_int_equal(buf_len(&without.st.got), 0);
    assert_int_equal(buf_len(&late.st.got), 0);         /* opened in the middle: its text would be no prefix */
    /* a slow reader loses the rest of that preview, also once it is fast again */
    with.st.slow = true, with.st.unread = HUB_SOFT_BYTES;
    p = (struct loop_preview){ .session_id = w.session, .event_id = "sevt_m", .type = "agent.message", .text = "x", .n = 1 };
    hub_preview(w.hub, &p);
    size_t len = buf_len(&with.st.got);
    hub_preview(w.hub, &p);
    with.st.unread = 0, with.st.slow = false;
    turn(400);
    hub_preview(w.hub, &p);
    assert_int_equal(buf_len(&with.st.got), len);
    hang_up(&with), hang_up(&without), hang_up(&late);
}

/* A reader that stops: nothing piles up for it, others are not held, and it gets everything once it reads again. */
static void test_slow_reader(void **state)
{
    (void)state;
    struct http_req slow, fast;
    char id[24], *big = str_printf("%0100000d", 7);
    listen_from(&slow, 0, 0, false);
    listen_from(&fast, 0, 0, false);
    slow.st.slow = true;
    for (int i = 0; i < 60; i++) {
        snprintf(id, sizeof id, "sevt_%d", i);
        append(id, "user.message", big, false, RUN_KEEP);
    }
    wait_for(&fast, "\n\n", 60);
    turn(50);
    assert_true(slow.st.unread >= HUB_SOFT_BYTES && slow.st.unread < HUB_SOFT_BYTES + 2 * HUB_BATCH_BYTES);
    slow.st.slow = false, slow.st.unread = 0;
    wait_for(&slow, "\n\n", 60);
    assert_string_equal(buf_data(&slow.st.got), buf_data(&fast.st.got));
    hang_up(&slow), hang_up(&fast);
    free(big);
}

static void test_ends(void **state)
{
    (void)state;
    struct http_req a, over;
    struct err e;
    listen_from(&a, 0, 0, false);
    int64_t seq = append("sevt_t", "session.status_terminated", "", false, RUN_KEEP);
    wait_for(&a, "session.status_terminated\n", 1);
    assert_true(a.st.ended);
    listen_from(&over, seq, 0, true);                   /* nothing can come any more */
    for (int64_t end = clock_mono_ms() + 3000; !over.st.ended && clock_mono_ms() < end;)
        (void)ev_run_once(w.ev, 5);
    assert_true(over.st.ended);
    assert_int_equal(buf_len(&over.st.got), 0);
    hang_up(&a), hang_up(&over);
    listen_from(&a, seq, 0, false);
    assert_int_equal(w.store->ops->session_delete(w.store, w.session, &e), RC_OK);
    wait_for(&a, "event: session.deleted\n", 1);
    assert_true(a.st.ended);
    hang_up(&a);
    listen_from(&a, 0, 0, false);                       /* deleted between the look at it and the registration */
    wait_for(&a, "event: session.deleted\n", 1);
    hang_up(&a);
    assert_int_equal(hub_subscribers(w.hub), 0);
}

static void test_drain(void **state)
{
    (void)state;
    struct http_req a;
    listen_from(&a, 0, 0, false);
    a.st.conf.on_drain(a.st.conf.ctx, &a.st);
    assert_true(a.st.ended);
    assert_string_equal(buf_data(&a.st.got), ": the server is going away\n\n");
    hang_up(&a);
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_live_and_queued_twice), CASE(test_resume_from_everywhere), CASE(test_long_log), CASE(test_previews), CASE(test_slow_reader), CASE(test_ends), CASE(test_drain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
