/* server/work/park.h - long polls that wait for a work item: no thread, one timer each. Loop thread, except where said.
 * Race rule: a poller reads park_mark() before it asks the store; parking with a mark that is out of date retries at once. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "base/list.h"
#include "ev/ev.h"
#include "ev/jobs.h"

#define PARK_MAX 20000          /* waiting polls in one process */

struct park;
/* Embedded by the caller; its memory lives until retry() or give_up() was called. */
struct parked {
    struct list node;
    struct ev_timer timer;
    struct park *park;
    const char *env_id;
    uint64_t mark;              /* from park_mark(), taken before the store was asked */
    int64_t until_mono_ms;
    void (*retry)(void *parked);      /* job thread: ask the store again; park again or answer */
    void (*give_up)(void *parked);    /* any thread: answer "nothing" */
    bool woken;                 /* this retry follows a wake-up: on success call park_pass() */
};
MUST_CHECK int park_new(struct ev *ev, struct jobs *jobs, struct park **ret, struct err *e);
void park_free(struct park *p);
uint64_t park_mark(struct park *p, const char *env_id);           /* any thread */
void park_add(struct park *p, struct parked *x);                  /* any thread; `x` belongs to the park until its callback */
void park_note(struct park *p, const char *env_id);               /* any thread: an item became claimable; wakes one */
void park_pass(struct park *p, const char *env_id);               /* any thread: wakes the next one without a new item */
void park_drain(struct park *p);                                  /* answers all, and all that come later, at once */
size_t park_waiting(const struct park *p);
