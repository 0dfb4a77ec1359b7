/* What must survive threads, other processes, a full disk and kill -9. */
#include "store/fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "store/sqlite/sqlite.h"

#define THREADS 8

struct worker { struct fix *f; int n; pthread_t t; void (*fn)(struct worker *w); int done, failed; };

static void *worker_main(void *arg) { struct worker *w = arg; w->fn(w); return NULL; }

static void run_threads(struct fix *f, struct worker *w, void (*fn)(struct worker *))
{
    for (int i = 0; i < THREADS; i++) {
        w[i] = (struct worker){ .f = f, .n = i, .fn = fn };
        assert_int_equal(pthread_create(&w[i].t, NULL, worker_main, &w[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(w[i].t, NULL);
}

/* ---- threads ---- */

#define ITEMS 160
static _Atomic int handed[ITEMS];

static void claim_all(struct worker *w)
{
    struct arena *a = arena_new(64 * KIB, 16 * MIB);
    struct store_work item;
    struct err e;
    uint8_t h[32];
    for (int i = 0;; i++) {
        fix_hash(h, w->n * 100000 + i + 1);
        int rc = w->f->o->work_poll(w->f->st, a, "env_1", NULL, T0, 1000000, h, T0 + 1, &item, &e);
        if (rc == RC_NOT_FOUND)
            break;
        w->failed += rc != RC_OK;
        if (rc != RC_OK)
            break;
        int64_t k = 0;
        w->failed += str_to_i64(item.session_id + 5, 0, ITEMS - 1, &k) != RC_OK;
        handed[k]++;
        w->failed += w->f->o->work_ack(w->f->st, a, "env_1", item.id, T0, 1000, &item, &e) != RC_OK;
    }
    arena_free(a);
}

static void claims_are_exclusive(void **state)
{
    struct fix *f = *state;
    struct worker w[THREADS];
    memset(handed, 0, sizeof handed);
    fix_environment(f, "env_1");
    for (int i = 0; i < ITEMS; i++) {
        char id[16];
        struct store_step s = STEP(NULL);
        s.ensure_work = true, s.needs_worker = 1;
        (void)snprintf(id, sizeof id, "sesn_%d", i);
        OK(fix_session(f, id, "env_1", &s));
    }
    run_threads(f, w, claim_all);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(w[i].failed, 0);
    for (int i = 0; i < ITEMS; i++)
        assert_int_equal(handed[i], 1);
}

#define STEPS 60
static void append_optimistic(struct worker *w)
{
    struct arena *a = arena_new(64 * KIB, 16 * MIB);
    struct err e;
    while (w->done < STEPS) {
        struct store_session s;
        char id[32];
        (void)snprintf(id, sizeof id, "sevt_%d_%d", w->n, w->done);
        struct store_event_in in = EV(id, "agent.message");
        struct store_step st = STEP("sesn_1");
        st.events = &in, st.n_events = 1, st.usage_add.requests = 1;
        if (w->f->o->session_get(w->f->st, a, "sesn_1", &s, &e) != RC_OK) {
            w->failed++;
            break;
        }
        st.expect_seq = s.last_seq;
        int rc = w->f->o->step(w->f->st, &st, &e);
        if (rc == RC_OK && st.ret_first_seq != s.last_seq + 1)
            w->failed++;
        if (rc == RC_OK)
            w->done++;
        else if (rc != RC_CONFLICT)
            w->failed++;
    }
    arena_free(a);
}

static void one_log_many_writers(void **state)
{
    struct fix *f = *state;
    struct worker w[THREADS];
    struct store_session s;
    struct store_event *v;
    size_t n;
    fix_environment(f, "env_1");
    OK(fix_session(f, "sesn_1", "env_1", NULL));
    run_threads(f, w, append_optimistic);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(w[i].failed, 0);
    OK(f->o->session_get(f->st, f->a, "sesn_1", &s, &f->e));
    assert_int_equal(s.last_seq, THREADS * STEPS);
    assert_int_equal(s.usage.requests, THREADS * STEPS);
    OK(f->o->event_scan(f->st, f->a, "sesn_1", 0, 1000, true, &v, &n, &f->e));
    assert_int_equal(n, THREADS * STEPS);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(v[i].seq, i + 1);
}

static void answer_the_same_call(struct worker *w)
{
    char id[32];
    struct err e;
    (void)snprintf(id, sizeof id, "sevt_r%d", w->n);
    struct store_event_in in = { .id = id, .type = "user.tool_result", .body = "{}", .ref = "sevt_call", .is_result = true };
    struct store_step s = STEP("sesn_1");
    s.events = &in, s.n_events = 1;
    int rc = w->f->o->step(w->f->st, &s, &e);
    w->done = rc == RC_OK;
    w->failed = rc != RC_OK && !(rc == RC_CONFLICT && str_eq(e.msg, "duplicate result"));
}

static void one_result_per_call(void **state)
{
    struct fix *f = *state;
    struct worker w[THREADS];
    int won = 0;
    fix_environment(f, "env_1");
    OK(fix_session(f, "sesn_1", "env_1", NULL));
    run_threads(f, w, answer_the_same_call);
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(w[i].failed, 0);
        won += w[i].done;
    }
    assert_int_equal(won, 1);
}

/* ---- group commit ---- */

struct gate { sem_t entered, go; };

static int gate_tx(struct tx *t, void *arg, struct err *e)
{
    struct gate *g = arg;
    (void)e;
    (void)sem_post(&g->entered);
    while (sem_wait(&g->go) < 0)
        ;
    return db_run(t->db, e, "UPDATE leases SET owner = owner", "");
}

struct gated { struct fix *f; struct gate *g; };
static void *gate_main(void *arg)
{
    struct gated *g = arg;
    struct err e;
    (void)!writer_run(sqlite_of(g->f->st), gate_tx, g->g, &e);
    return NULL;
}

static void one_step_each(struct worker *w)
{
    char id[32];
    struct err e;
    (void)snprintf(id, sizeof id, "sesn_%d", w->n);
    struct store_event_in in = { .id = id, .type = "a", .body = w->n == 3 ? NULL : "{}" };      /* one of them is refused */
    struct store_step s = STEP(id);
    s.events = &in, s.n_events = 1;
    int rc = w->f->o->step(w->f->st, &s, &e);
    w->done = rc == RC_OK;
    w->failed = rc != (w->n == 3 ? RC_INVALID : RC_OK);
}

static void all_that_wait_share_one_commit(void **state)
{
    struct fix *f = *state;
    struct worker w[THREADS];
    struct gate g;
    struct gated gd = { f, &g };
    struct writer_stats before, after;
    pthread_t holder;
    fix_environment(f, "env_1");
    for (int i = 0; i < THREADS; i++) {
        char id[16];
        (void)snprintf(id, sizeof id, "sesn_%d", i);
        OK(fix_session(f, id, "env_1", NULL));
    }
    (void)sem_init(&g.entered, 0, 0);
    (void)sem_init(&g.go, 0, 0);
    (void)fix_notes(f, STORE_NOTE_EVENTS);
    sqlite_writer_stats(f->st, &before);
    assert_int_equal(pthread_create(&holder, NULL, gate_main, &gd), 0);
    while (sem_wait(&g.entered) < 0)
        ;
    for (int i = 0; i < THREADS; i++) {
        w[i] = (struct worker){ .f = f, .n = i, .fn = one_step_each };
        assert_int_equal(pthread_create(&w[i].t, NULL, worker_main, &w[i]), 0);
    }
    nanosleep(&(struct timespec){ .tv_nsec = 200000000 }, NULL);              /* all of them wait in the queue now */
    (void)sem_post(&g.go);
    pthread_join(holder, NULL);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(w[i].t, NULL);
        assert_int_equal(w[i].failed, 0);
    }
    sqlite_writer_stats(f->st, &after);
    assert_int_equal(after.closures - before.closures, THREADS + 1);
    assert_int_equal(after.commits - before.commits, 2);                      /* the gate's, and one for the eight */
    assert_int_equal(after.batch_max, THREADS);
    for (int i = 0; i < THREADS; i++) {
        char id[16];
        struct store_session s;
        (void)snprintf(id, sizeof id, "sesn_%d", i);
        OK(f->o->session_get(f->st, f->a, id, &s, &f->e));
        assert_int_equal(s.last_seq, i == 3 ? 0 : 1);
    }
    assert_int_equal(fix_notes(f, STORE_NOTE_EVENTS), THREADS - 1);
}

static void idle_polls_write_nothing(void **state)
{
    struct fix *f = *state;
    struct writer_stats before, after;
    struct store_work w;
    uint8_t h[32] = { 0 };
    int64_t next;
    fix_environment(f, "env_1");
    OK(f->o->work_expire(f->st, T0, &next, &f->e));
    sqlite_writer_stats(f->st, &before);
    for (int i = 0; i < 1000; i++)
        RC(RC_NOT_FOUND, f->o->work_poll(f->st, f->a, "env_1", "w", T0 + i, 5000, h, T0, &w, &f->e));
    OK(f->o->work_expire(f->st, T0 + 1000, &next, &f->e));
    sqlite_writer_stats(f->st, &after);
    assert_int_equal(after.closures, before.closures);
}

static void note_that_writes(void *ctx, enum store_note note, const char *id)
{
    struct fix *f = ctx;
    struct err e;
    (void)note, (void)id;
    f->notes[0] += f->o->lease_clear(f->st, &e) == RC_INVALID;
}

static void writing_from_a_note_is_refused(void **state)
{
    struct fix *f = *state;
    fix_environment(f, "env_1");
    OK(fix_session(f, "sesn_1", "env_1", NULL));
    f->o->on_note(f->st, note_that_writes, f);
    OK(fix_step1(f, STEP("sesn_1"), EV("sevt_1", "a")));
    OK(f->o->lease_clear(f->st, &f->e));                                      /* it still works */
    assert_int_equal(f->notes[0], 1);
}

/* ---- a disk that is full ---- */

static int cap_tx(struct tx *t, void *arg, struct err *e)
{
    char sql[64];
    (void)snprintf(sql, sizeof sql, "PRAGMA max_page_count = %lld", *(long long *)arg);
    return db_script(t->db, sql, e);
}

static void full_disk(void **state)
{
    struct fix *f = *state;
    long long few = 1, many = 1 << 30;
    fix_environment(f, "env_1");
    OK(fix_session(f, "sesn_1", "env_1", NULL));
    char *big = xcalloc(1, MIB);
    memset(big, 'x', MIB - 1);
    OK(writer_run(sqlite_of(f->st), cap_tx, &few, &f->e));
    for (int i = 0; i < 3; i++)
        RC(RC_IO, fix_step1(f, STEP("sesn_1"), (struct store_event_in){ .id = "sevt_1", .type = "a", .body = big }));
    OK(writer_run(sqlite_of(f->st), cap_tx, &many, &f->e));
    OK(fix_step1(f, STEP("sesn_1"), (struct store_event_in){ .id = "sevt_1", .type = "a", .body = big }));
    struct store_event one;
    OK(f->o->event_get(f->st, f->a, "sesn_1", "sevt_1", &one, &f->e));
    assert_string_equal(one.body, big);
    free(big);
}

/* ---- files of others ---- */

static void raw_sql(const char *path, const char *sql)
{
    sqlite3 *h;
    assert_int_equal(sqlite3_open(path, &h), SQLITE_OK);
    assert_int_equal(sqlite3_exec(h, sql, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(h);
}

static void newer_and_foreign_files(void **state)
{
    struct fix *f = *state;
    struct store *st;
    struct err e;
    char path[128];
    (void)snprintf(path, sizeof path, "%s/x.db", f->dir);
    raw_sql(path, "INSERT INTO schema_version VALUES(99, 0)");
    RC(RC_UNSUPPORTED, f->o->ping(f->st, &f->e));
    RC(RC_UNSUPPORTED, store_open(path, false, &st, &e));
    assert_non_null(strstr(e.msg, "schema 99"));
    assert_non_null(strstr(e.msg, path));
    raw_sql(path, "DELETE FROM schema_version WHERE version = 99");
    OK(f->o->ping(f->st, &f->e));
    (void)snprintf(path, sizeof path, "%s/other.db", f->dir);
    raw_sql(path, "CREATE TABLE theirs(x)");
    RC(RC_INVALID, store_open(path, true, &st, &e));
    assert_non_null(strstr(e.msg, "another program"));
}

/* ---- other processes ---- */

static int wait_ok(pid_t pid)
{
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 100 + WTERMSIG(status);
}

static int make_keys(const char *dsn, int n, int base)
{
    struct store *st;
    struct err e;
    if (store_open(dsn, true, &st, &e) < 0)
        return 1;
    for (int i = 0; i < n; i++) {
        uint8_t h[32];
        char id[32];
        fix_hash(h, base + i);
        (void)snprintf(id, sizeof id, "apikey_%d", base + i);
        struct store_key k = { .id = id, .name = "n", .hint = "h", .kind = KEY_API, .role = ROLE_USER, .created_ms = T0 };
        if (st->ops->key_create(st, &k, h, &e) < 0)
            return 2;
    }
    store_close(st);
    return 0;
}

static void another_process_writes(void **state)
{
    struct fix *f = *state;
    struct store_key *k;
    size_t n;
    store_close(f->st);                          /* no threads while forking */
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(make_keys(f->dsn, 60, 1));
    fix_open(f, false);
    fix_environment(f, "env_1");
    OK(fix_session(f, "sesn_1", "env_1", NULL));
    for (int i = 0; i < 200; i++) {
        char id[32];
        (void)snprintf(id, sizeof id, "sevt_%d", i);
        OK(fix_step1(f, STEP("sesn_1"), EV(id, "a")));
    }
    assert_int_equal(wait_ok(pid), 0);
    OK(f->o->key_list(f->st, f->a, KEY_API, NULL, &k, &n, &f->e));
    assert_int_equal(n, 60);
}

static void many_make_the_same_file(void **state)
{
    struct fix *f = *state;
    struct store_key *k;
    size_t n;
    pid_t pid[6];
    store_close(f->st);
    OK(fd_remove_tree(-100, f->dir, &f->e));
    for (int i = 0; i < 6; i++) {
        pid[i] = fork();
        assert_true(pid[i] >= 0);
        if (pid[i] == 0)
            _exit(make_keys(f->dsn, 5, 1 + 100 * i));
    }
    for (int i = 0; i < 6; i++)
        assert_int_equal(wait_ok(pid[i]), 0);
    fix_open(f, false);
    OK(f->o->key_list(f->st, f->a, KEY_API, NULL, &k, &n, &f->e));
    assert_int_equal(n, 30);
}

/* ---- kill -9 ---- */

#define CRASH_ROUNDS 25
#define CRASH_THREADS 3
struct ack { int thread; int64_t seq; };
struct crash { struct store *st; int fd, thread, round; };

/* Each step: an input is queued and consumed, an answer, a private record. It is reported only after step() has returned. */
static void *crash_main(void *arg)
{
    struct crash *c = arg;
    struct err e;
    char session[16];
    (void)snprintf(session, sizeof session, "sesn_%d", c->thread);
    for (int i = 0;; i++) {
        char q[48], a[48];
        (void)snprintf(q, sizeof q, "q_%d_%d_%d", c->round, c->thread, i);
        (void)snprintf(a, sizeof a, "a_%d_%d_%d", c->round, c->thread, i);
        struct store_event_in in[] = { { .id = q, .type = "user.message", .body = "{}", .queued = true },
                                       { .stamp_id = q },
                                       { .id = a, .type = "user.tool_result", .body = "{}", .ref = q, .is_result = true },
                                       { .type = "raw", .body = "{}", .is_private = true } };
        struct store_step s = STEP(session);
        s.events = in, s.n_events = 4, s.usage_add.requests = 1, s.run = i % 2 ? RUN_END : RUN_START, s.ensure_work = i % 7 == 0;
        if (c->st->ops->step(c->st, &s, &e) != RC_OK)
            _exit(3);
        struct ack ack = { c->thread, s.ret_last_seq };
        if (write(c->fd, &ack, sizeof ack) != (ssize_t)sizeof ack)
            _exit(4);
    }
    return NULL;
}

static void crash_child(const char *dsn, int fd, int round)
{
    struct store *st;
    struct err e;
    struct crash c[CRASH_THREADS];
    pthread_t t;
    if (store_open(dsn, false, &st, &e) < 0)
        _exit(5);
    for (int i = 0; i < CRASH_THREADS; i++) {
        c[i] = (struct crash){ st, fd, i, round };
        if (pthread_create(&t, NULL, crash_main, &c[i]))
            _exit(6);
    }
    pthread_join(t, NULL);
    _exit(7);
}

/* Whole steps only, consecutive, and the other tables of the same transaction agree. */
static void check_log(struct fix *f, int thread, int64_t acked)
{
    char id[16];
    struct store_session s;
    (void)snprintf(id, sizeof id, "sesn_%d", thread);
    OK(f->o->session_get(f->st, f->a, id, &s, &f->e));
    assert_true(s.last_seq >= acked);
    assert_int_equal(s.last_seq % 4, 0);
    assert_int_equal(s.usage.requests, s.last_seq / 4);
    int64_t seq = 0, rows = 0;
    for (;;) {
        struct store_event *v;
        size_t n;
        struct arena *a = arena_new(64 * KIB, 64 * MIB);
        OK(f->o->event_scan(f->st, a, id, seq, 1000, false, &v, &n, &f->e));
        for (size_t i = 0; i < n; i++) {
            if (v[i].seq <= seq)
                continue;                        /* consumed behind the page's border: shown again */
            int64_t step = rows / 3, part = rows % 3;
            assert_int_equal(v[i].seq, step * 4 + (part == 0 ? 1 : part + 2));
            assert_int_equal(v[i].processed_seq, part == 0 ? step * 4 + 2 : v[i].seq);
            seq = v[i].seq;
            rows++;
        }
        arena_free(a);
        if (n < 1000)
            break;
    }
    assert_int_equal(rows, s.last_seq / 4 * 3);
}

static void kill_at_any_moment(void **state)
{
    struct fix *f = *state;
    int64_t acked[CRASH_THREADS] = { 0 }, total = 0;
    char path[128];
    fix_environment(f, "env_1");
    for (int i = 0; i < CRASH_THREADS; i++) {
        char id[16];
        (void)snprintf(id, sizeof id, "sesn_%d", i);
        OK(fix_session(f, id, "env_1", NULL));
    }
    for (int round = 0; round < CRASH_ROUNDS; round++) {
        int p[2];
        struct ack ack;
        store_close(f->st);
        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            close(p[0]);
            crash_child(f->dsn, p[1], round);
        }
        close(p[1]);
        int64_t end = clock_mono_us() + 1000 + random_u32_below(60000);
        bool killed = false;
        while (read(p[0], &ack, sizeof ack) == (ssize_t)sizeof ack) {
            acked[ack.thread] = ack.seq;
            total++;
            if (!killed && clock_mono_us() > end)
                killed = kill(pid, SIGKILL) == 0;          /* what is still in the pipe was acknowledged too */
        }
        close(p[0]);
        assert_int_equal(wait_ok(pid), 100 + SIGKILL);
        fix_open(f, false);
        for (int i = 0; i < CRASH_THREADS; i++)
            check_log(f, i, acked[i]);
    }
    assert_true(total >= CRASH_ROUNDS);
    sqlite3 *h;
    sqlite3_stmt *st;
    (void)snprintf(path, sizeof path, "%s/x.db", f->dir);
    assert_int_equal(sqlite3_open(path, &h), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(h, "PRAGMA integrity_check", -1, &st, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(st), SQLITE_ROW);
    assert_string_equal((const char *)sqlite3_column_text(st, 0), "ok");
    sqlite3_finalize(st);
    sqlite3_close(h);
    print_message("%d kills, %d acknowledged steps\n", CRASH_ROUNDS, (int)total);
}

int main(void)
{
    fix_backend = &store_backend_sqlite;        /* looks inside: this back end only */
    const struct CMUnitTest tests[] = {
        T(claims_are_exclusive), T(one_log_many_writers), T(one_result_per_call), T(all_that_wait_share_one_commit), T(idle_polls_write_nothing),
        T(writing_from_a_note_is_refused), T(full_disk), T(newer_and_foreign_files), T(another_process_writes), T(many_make_the_same_file), T(kill_at_any_moment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
