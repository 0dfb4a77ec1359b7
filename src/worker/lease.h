/* worker/lease.h - the heartbeat of one work item (worker.md 3.3). Nothing a session does can delay it: it has its own timer and its own
 * connection out of the pool. Loop thread only. */
#pragma once

#include "base/attr.h"
#include "base/secret.h"
#include "worker/ctx.h"

#define LEASE_TTL_ASSUMED_MS 90000     /* until the service says */
#define LEASE_INTERVAL_MAX_MS 30000
#define LEASE_INTERVAL_MIN_MS 1000
#define LEASE_WINDOW_DEFAULT_MS 300000 /* how long results are retried before the service has said its TTL */

int64_t lease_interval_ms(int64_t ttl_ms);                                  /* clamp(ttl / 2); pure */

enum lease_news {
    LEASE_HELD,          /* the first beat was accepted: the item is ours */
    LEASE_STOP,          /* the service wants the item to end: finish and force-stop it */
    LEASE_LOST,          /* another worker has it, or nobody answered for a whole TTL: post nothing more, do not stop it */
    LEASE_REFUSED,       /* the service refuses the heartbeat for good */
};
struct lease;
/* `news` may end the lease by lease_free(). `cred` is borrowed. */
struct lease *lease_start(struct worker *w, const char *work_id, const struct secret *cred,
                          void (*news)(void *ctx, enum lease_news n, const char *why), void *ctx);
void lease_free(struct lease *l);                                           /* NULL is fine */
int64_t lease_window_ms(const struct lease *l);                             /* the TTL last granted */
bool lease_overdue(const struct lease *l);                                  /* no beat for longer than it should take: for /healthz */
