/* gateway/trail.c - see trail.h */
#include "gateway/trail.h"

#include "audit/audit.h"
#include "base/str.h"
#include "crypto/crypto.h"
#include "log/log.h"

struct trail {
    struct ev *ev;
    struct audit *audit;
    struct ev_timer timer;
    int64_t dirty_since, last_add;       /* dirty_since 0: all is on disk */
    bool broken;
};

int trail_open(struct ev *ev, const char *path, struct trail **ret, struct err *e)
{
    struct audit *a = NULL;
    int rc = audit_open(path, &a, e);
    if (rc < 0)
        return err_wrap(e, rc, "audit log %s", path);
    struct trail *t = xcalloc(1, sizeof *t);
    t->ev = ev;
    t->audit = a;
    *ret = t;
    return RC_OK;
}

static void broke(struct trail *t, const struct err *e)
{
    if (!t->broken)
        log_err(LOG_ERROR, "audit.failed", e);
    t->broken = true;
}

static void sync_now(struct trail *t)
{
    struct err e = { 0 };
    t->dirty_since = 0;
    int rc = audit_sync(t->audit, &e);
    if (rc < 0) {
        e.rc = rc;
        broke(t, &e);
    }
}

/* fsync blocks the loop for as long as the disk takes, so it waits for a pause. */
static void on_timer(struct ev_timer *timer)
{
    struct trail *t = container_of(timer, struct trail, timer);
    int64_t now = ev_now_ms(t->ev);
    if (now - t->last_add < TRAIL_SYNC_QUIET_MS && now - t->dirty_since < TRAIL_SYNC_MAX_MS)
        ev_timer_set(t->ev, timer, TRAIL_SYNC_QUIET_MS, on_timer);
    else
        sync_now(t);
}

void trail_close(struct trail *t)
{
    if (!t)
        return;
    ev_timer_stop(&t->timer);
    if (t->dirty_since && !t->broken)
        sync_now(t);
    audit_close(t->audit);
    free(t);
}

bool trail_broken(const struct trail *t) { return t->broken; }

void trail_session_hash(const char *id, size_t n, char out[TRAIL_SESSION_HEX])
{
    char hex[SHA256_HEX];
    sha256_hex(id, n, hex);
    (void)str_copy(out, TRAIL_SESSION_HEX, hex);
}

static void set_text(json_t *j, const char *key, const char *text)
{
    if (text && *text)
        js_set_str(j, key, text);
}

void trail_add(struct trail *t, const struct trail_line *l)
{
    struct err e = { 0 };
    json_t *j = json_object();
    if (t->broken || !j) {
        json_decref(j);
        return;
    }
    js_set_str(j, "route", l->route);
    js_set_str(j, "http_method", l->http_method);
    set_text(j, "protocol_version", l->version);
    js_set_str(j, "method", l->call && l->call->is_call ? l->call->method : NULL);
    if (l->call && str_eq(l->call->method, "tools/call"))
        js_set_str(j, "tool", l->call->name);
    if (l->call && l->call->unclear)
        js_set_bool(j, "unclear", true);
    if (l->batch)
        js_set_int(j, "batch", (int64_t)l->batch);
    set_text(j, "unparsed", l->unparsed);
    set_text(j, "refused", l->refused);
    if (l->header_mismatch)
        js_set_bool(j, "header_mismatch", true);
    if (l->status)
        js_set_int(j, "status", l->status);
    else
        js_set(j, "status", json_null());
    js_set_int(j, "bytes_in", (int64_t)l->bytes_in);
    js_set_int(j, "bytes_out", (int64_t)l->bytes_out);
    js_set_int(j, "duration_us", l->duration_us);
    set_text(j, "session", l->session);
    set_text(j, "client", l->client);
    int rc = audit_add(t->audit, "mcp.request", j, &e);
    if (rc < 0) {
        e.rc = rc;
        broke(t, &e);
        return;
    }
    t->last_add = ev_now_ms(t->ev);
    if (!t->dirty_since) {
        t->dirty_since = t->last_add;
        ev_timer_set(t->ev, &t->timer, TRAIL_SYNC_QUIET_MS, on_timer);
    }
}
