/* worker/record.c - see record.h */
#include "worker/record.h"

#include "audit/audit.h"
#include "base/str.h"
#include "log/log.h"

struct record {
    struct ev *ev;
    struct audit *audit;
    struct ev_timer timer;
    int64_t dirty_since, last_add;       /* dirty_since 0: all is on disk */
    bool broken;
};

int record_open(struct ev *ev, const char *path, struct record **ret, struct err *e)
{
    struct audit *a = NULL;
    int rc = audit_open(path, &a, e);
    if (rc == RC_CONFLICT)
        return err_set(e, rc, "the audit log %s is written by another process: give this worker its own --state-dir", path);
    if (rc < 0)
        return err_wrap(e, rc, "audit log %s", path);
    struct record *r = xcalloc(1, sizeof *r);
    r->ev = ev;
    r->audit = a;
    *ret = r;
    return RC_OK;
}

static void broke(struct record *r, const struct err *e)
{
    if (!r->broken)
        log_err(LOG_ERROR, "audit.failed", e);
    r->broken = true;                    /* fails closed: no tool runs without its line (worker/dispatch.c) */
}

static void sync_now(struct record *r)
{
    struct err e;
    r->dirty_since = 0;
    int rc = audit_sync(r->audit, &e);
    if (rc < 0) {
        e.rc = rc;
        broke(r, &e);
    }
}

/* fsync blocks the loop for as long as the disk takes, so it waits for a pause between calls. */
static void on_timer(struct ev_timer *t)
{
    struct record *r = container_of(t, struct record, timer);
    int64_t now = ev_now_ms(r->ev);
    if (now - r->last_add < RECORD_SYNC_QUIET_MS && now - r->dirty_since < RECORD_SYNC_MAX_MS)
        ev_timer_set(r->ev, t, RECORD_SYNC_QUIET_MS, on_timer);
    else
        sync_now(r);
}

void record_add(struct record *r, const char *kind, json_t *take_fields)
{
    struct err e;
    if (!r || r->broken) {
        json_decref(take_fields);
        return;
    }
    int rc = audit_add(r->audit, kind, take_fields, &e);
    if (rc < 0) {
        e.rc = rc;
        broke(r, &e);
        return;
    }
    r->last_add = ev_now_ms(r->ev);
    if (!r->dirty_since) {
        r->dirty_since = r->last_add;
        ev_timer_set(r->ev, &r->timer, RECORD_SYNC_QUIET_MS, on_timer);
    }
}

bool record_broken(const struct record *r)
{
    return r->broken;
}

void record_close(struct record *r)
{
    if (!r)
        return;
    ev_timer_stop(&r->timer);
    if (r->dirty_since && !r->broken)
        sync_now(r);
    audit_close(r->audit);
    free(r);
}
