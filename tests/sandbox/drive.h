/* tests/sandbox/drive.h - straight-line use of sandboxes for tests: each call turns the loop until its answer is there. */
#pragma once

#include "worker/sandbox/internal.h"

struct drive {
    struct ev *ev;
    struct sbx_host *host;
    char state[128];
    struct sbx_policy policy;
};
struct drive_answer { int rc; struct inside_res h; char *body; size_t n; struct err e; };

/* "root", "user" (uid 65534 when started by root), or "" for whoever runs the test. Exits with 77 where that cannot be. */
void drive_become(const char *who);
/* A state directory of its own under /tmp; policy with small limits. */
void drive_init(struct drive *d);
int  drive_start(struct drive *d, size_t warm, const struct sbx_payload *payload, struct err *e);     /* payload NULL: the real one */
void drive_stop(struct drive *d);               /* and removes the state directory */
int  drive_claim(struct drive *d, const char *id, struct sbx **ret, struct err *e);
void drive_call(struct drive *d, struct sbx *s, const struct inside_req *req, const void *body, size_t n, struct drive_answer *a);
void drive_bash(struct drive *d, struct sbx *s, const char *command, uint32_t timeout_ms, struct drive_answer *a);
int  drive_put(struct drive *d, struct sbx *s, const char *path, const void *data, size_t n, unsigned mode);
void drive_answer_done(struct drive_answer *a);
bool drive_turn_until(struct drive *d, bool *flag, int ms);      /* false: time is over */
void drive_wait_warm(struct drive *d, size_t n);
/* Host pid of some process in the sandbox whose command line holds `text`; 0: none. */
pid_t drive_find(const struct sbx *s, const char *text);
