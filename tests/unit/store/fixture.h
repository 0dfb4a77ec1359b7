/* A fresh store per test, for each back end of the registry, and short ways to make things in it. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <pthread.h>
#include <cmocka.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/random.h"
#include "base/str.h"
#include "store/backend.h"
#include "store/store.h"

#define T0 INT64_C(1700000000000)

struct fix { struct store *st; const struct store_ops *o; struct arena *a; char dir[64], dsn[128]; struct err e; int notes[3]; char last_note[3][ID_MAX]; };
static const struct store_backend *fix_backend;
static pthread_mutex_t fix_lock = PTHREAD_MUTEX_INITIALIZER;

#define OK(call) do { (f)->e.msg[0] = 0; int rc_ = (call); if (rc_ != RC_OK) fail_msg("%s: %s (%s)", #call, rc_name(rc_), (f)->e.msg); } while (0)
#define RC(want, call) do { int rc_ = (call); if (rc_ != (want)) fail_msg("%s: %s, not %s (%s)", #call, rc_name(rc_), rc_name(want), (f)->e.msg); } while (0)

static inline void fix_note(void *ctx, enum store_note note, const char *id)
{
    struct fix *f = ctx;
    pthread_mutex_lock(&fix_lock);
    f->notes[note]++;
    (void)str_copy(f->last_note[note], ID_MAX, id);
    pthread_mutex_unlock(&fix_lock);
}

/* Notes come after the caller was woken: a further write is the barrier. */
static inline int fix_notes(struct fix *f, enum store_note note)
{
    (void)f->o->lease_clear(f->st, NULL);
    (void)f->o->lease_clear(f->st, NULL);
    pthread_mutex_lock(&fix_lock);
    int n = f->notes[note];
    f->notes[note] = 0;
    pthread_mutex_unlock(&fix_lock);
    return n;
}

static inline void fix_open(struct fix *f, bool create)
{
    OK(store_open(f->dsn, create, &f->st, &f->e));
    f->o = f->st->ops;
    f->o->on_note(f->st, fix_note, f);
}

static inline int fix_setup(void **state)
{
    struct fix *f = xcalloc(1, sizeof *f);
    (void)snprintf(f->dir, sizeof f->dir, "/tmp/ow-store-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    (void)snprintf(f->dsn, sizeof f->dsn, "%s:%s/x.db", fix_backend->scheme, f->dir);
    f->a = arena_new(64 * KIB, 256 * MIB);
    fix_open(f, true);
    *state = f;
    return 0;
}

static inline int fix_teardown(void **state)
{
    struct fix *f = *state;
    store_close(f->st);
    arena_free(f->a);
    (void)!fd_remove_tree(-100, f->dir, NULL);
    free(f);
    return 0;
}

static inline void fix_environment(struct fix *f, const char *id)
{
    struct store_environment n = { .id = id, .name = id, .body = "{}", .created_ms = T0 };
    OK(f->o->environment_create(f->st, &n, &f->e));
}

static inline int fix_session(struct fix *f, const char *id, const char *env_id, struct store_step *first)
{
    struct store_session s = { .id = id, .thread_id = "sthr_1", .env_id = env_id, .agent_id = "agent_1", .agent_version = 3, .title = "t", .agent = "{\"a\":1}",
                               .metadata = "{}", .extra = "{}", .created_ms = T0 };
    return f->o->session_create(f->st, &s, first, &f->e);
}

#define STEP(id) ((struct store_step){ .session_id = (id), .expect_seq = -1, .needs_worker = -1, .now_ms = T0 })
#define EV(i, t) ((struct store_event_in){ .id = (i), .type = (t), .body = "{\"x\":1}" })

static inline int fix_step1(struct fix *f, struct store_step s, struct store_event_in in)
{
    s.events = &in;
    s.n_events = 1;
    return f->o->step(f->st, &s, &f->e);
}

static inline void fix_hash(uint8_t h[32], int n) { memset(h, 0, 32); memcpy(h, &n, sizeof n); }

#define T(fn) cmocka_unit_test_setup_teardown(fn, fix_setup, fix_teardown)
#define RUN_ALL(tests) \
    do { int bad_ = 0; for (size_t i_ = 0; (fix_backend = store_backend_at(i_)); i_++) bad_ += cmocka_run_group_tests_name(fix_backend->scheme, tests, NULL, NULL); return bad_; } while (0)
