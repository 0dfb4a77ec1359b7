/* sim.h - the control plane's core in one process under a virtual clock: store (SQLite in memory), queue, agent loop, worker leases; around it simulated
 * workers, clients, a model and a network that loses, delays, repeats and reorders. One seed decides everything, so a run can be repeated exactly.
 *
 * The product's code runs unchanged on one thread. Three things are put in its place: the job pool (sched.c: the scheduler picks which job runs next), the
 * clock and the kernel's randomness, and a model provider (model.c). The store is wrapped (server.c): an operation may fail, or be the last thing that a
 * server does, before or after its commit. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/attr.h"
#include "base/random.h"
#include "server/loop/loop.h"
#include "store/store.h"

#define SIM_SESSIONS_MAX 4
#define SIM_WORKERS_MAX 3
#define SIM_EVENTS_MAX 1024          /* of one session's log */
#define SIM_MS_MAX (4 * 3600 * 1000) /* virtual: by then every session must have ended */

/* ---- sched.c: chance, time, what happens next ---- */
struct sim_conf { uint64_t seed; bool trace; const char *template_db, *db; };
uint64_t sim_rand(void);                                 /* the scheduler's own stream */
uint32_t sim_below(uint32_t n);
bool     sim_chance(uint32_t per_mille);
int64_t  sim_now_ms(void);
bool     sim_faults(void);                               /* still in the phase in which things go wrong */
void     sim_trace(const char *fmt, ...) PRINTF_LIKE(1, 2);
_Noreturn void sim_fail(const char *fmt, ...) PRINTF_LIKE(1, 2);     /* an invariant is broken: prints the seed and ends the program */
/* Once, not before `ms` from now; of several that are due a random one is first. `arg` is NULL or malloc'd: `fn` takes it over, or the end of the run frees it. */
void     sim_after(int64_t ms, void (*fn)(void *arg), void *arg);
uint64_t sim_run(const struct sim_conf *c);              /* one seed; a hash of all that happened */
size_t   sim_jobs_drop(void);                            /* the server is gone */

/* ---- server.c: the product's side ---- */
extern const char *sim_env_id;
struct sim_server { struct store *store; struct loop *loop; struct ev *ev; bool up; };
extern struct sim_server sim_server;
void server_first_start(const char *path);
void server_start(void);             /* opens the store anew */
void server_kill(void);
void server_kill_soon(void);         /* at the n-th store operation from now, before or after its commit */
bool server_dying(void);             /* that has happened: nothing it does counts any more */
void server_stop(void);
void server_turn(void);              /* one turn of its event loop */
uint64_t server_writes(void);        /* grows with every operation that may have changed the store */
struct store *server_truth(void);    /* the store without the wrapping, for checks */

/* ---- model.c ---- */
struct model_registry *sim_model_new(void);
void sim_model_forget(void);         /* the server is gone */
void sim_model_reset(void);          /* another run begins */

/* ---- world.c: clients and workers. Requests reach the server later, not at all or twice; so do answers. ---- */
void world_start(void);
void world_kill_worker(void);
size_t world_unsettled(void);        /* a session that has not come to its end, or whose client has more to say; SIZE_MAX: none */

/* ---- check.c ---- */
enum sim_kind { K_OTHER, K_CALL, K_CALL_CUSTOM, K_RESULT, K_CONFIRM };
struct sim_event {
    int64_t seq, processed_seq;
    char id[ID_MAX], ref[ID_MAX], type[48];
    uint64_t hash;
    enum sim_kind kind;
    bool is_private, ask, allowed, denied, answered;     /* of a call */
    long number;                     /* of a call: the number in its input */
};
struct sim_session {
    char id[ID_MAX], thread_id[ID_MAX];
    struct sim_event ev[SIM_EVENTS_MAX]; size_t n;
    int64_t last_seq;
    char status[24], stop[32];       /* as told by the log: "idle", "requires_action" */
    struct { char id[ID_MAX]; } acked[SIM_EVENTS_MAX]; size_t n_acked;
};
extern struct sim_session sim_session[SIM_SESSIONS_MAX];
extern size_t sim_n_sessions;
void check_reset(void);
void check_all(void);                                    /* after each step: reads what is new and holds it against the rules */
void check_again(void);                                  /* after a restart: reads everything and compares */
void check_end(void);                                    /* when all has come to rest */
void check_acked(struct sim_session *s, const char *event_id);       /* the server said that it has it */
/* A worker holds the session's item until `until_ms`, as the server told it. */
void check_hold(size_t session, const char *work_id, int worker, int64_t until_ms);
void check_hold_end(size_t session);
struct sim_session *sim_session_find(const char *id);
