/* vault.c - look-ups: the first credential of a session's vaults that matches, with a token that has not expired. */
#include "server/vault/vault.h"

#include <string.h>

#include "base/clock.h"
#include "server/vault/private.h"

struct vault_lookup {
    struct vault *v;
    struct list node;
    struct refresh_wait wait;
    char **ids; size_t n;
    char *url;
    char vault_id[ID_MAX], credential_id[ID_MAX];          /* what is being refreshed */
    bool force, cancelled;               /* cancelled: the job still has to report; freed then */
    void (*cb)(void *ctx, int rc, const struct vault_found *f, const struct err *e);
    void *ctx;
    /* the job's, until it has reported */
    int rc;
    struct err e;
    struct cred *cred;                   /* NULL: none matches */
};

static void lookup_free(struct vault_lookup *l)
{
    list_del(&l->node);
    refresh_leave(&l->wait);
    cred_free(l->cred);
    for (size_t i = 0; i < l->n; i++)
        free(l->ids[i]);
    free(l->ids);
    free(l->url);
    free(l);
}

static void found(struct vault_lookup *l, int rc, const char *vault_id, const char *credential_id, const struct secret *bearer, const struct err *e)
{
    struct vault_found f = { .bearer = bearer };
    void (*cb)(void *, int, const struct vault_found *, const struct err *) = l->cb;
    void *ctx = l->ctx;
    (void)str_copy(f.vault_id, ID_MAX, vault_id);
    (void)str_copy(f.credential_id, ID_MAX, credential_id);
    l->cancelled = true;                 /* a vault_cancel() in the callback has nothing left to do */
    cb(ctx, rc, rc == RC_OK ? &f : NULL, e);
    lookup_free(l);
}

static void on_refreshed(struct refresh_wait *w, const struct refresh_result *r)
{
    struct vault_lookup *l = container_of(w, struct vault_lookup, wait);
    found(l, r->rc, l->vault_id, l->credential_id, r->bearer, r->e);
}

static void decide(struct vault_lookup *l)
{
    int64_t now = clock_now_ms();
    struct cred *c = l->cred;
    if (l->rc < 0 || !c) {
        found(l, l->rc, "", "", NULL, &l->e);
        return;
    }
    bool expired = cred_expired(c, now), just_now = c->secrets.refreshed_ms > 0 && now - c->secrets.refreshed_ms < VAULT_FRESH_MS;
    if (cred_can_refresh(c) && (expired || (l->force && !just_now))) {
        (void)str_copy(l->vault_id, ID_MAX, c->vault_id);
        (void)str_copy(l->credential_id, ID_MAX, c->id);
        refresh_join(l->v, TAKE(l->cred), false, &l->wait);
        return;
    }
    if (c->oauth && c->expires_ms >= 0 && now >= c->expires_ms) {
        (void)err_set(&l->e, RC_UNAUTHORIZED, "the access token of credential '%s' has expired, and it has no refresh token", c->id);
        found(l, RC_UNAUTHORIZED, "", "", NULL, &l->e);
        return;
    }
    found(l, RC_OK, c->vault_id, c->id, c->secrets.token, &l->e);
}

static void reported(void *arg)
{
    struct vault_lookup *l = arg;
    if (l->cancelled)
        lookup_free(l);
    else
        decide(l);
}

/* A vault that is archived or gone has no credential any more: the session goes on with the others. */
static int look(struct vault_lookup *l)
{
    struct buf match;
    buf_init(&match, 32 * KIB);
    int rc = vault_normalize_url(l->url, &match, &l->e);
    for (size_t i = 0; rc == RC_OK && i < l->n && !l->cred; i++) {
        rc = cred_load(l->v, l->ids[i], NULL, buf_data(&match), &l->cred, &l->e);
        if (rc == RC_NOT_FOUND)
            rc = RC_OK;
    }
    buf_done(&match);
    return rc;
}

static void look_job(void *arg)
{
    struct vault_lookup *l = arg;
    l->rc = look(l);
    ev_post(l->v->c.ev, reported, l);
}

struct vault_lookup *vault_find(struct vault *v, const char *const *vault_ids, size_t n, const char *mcp_server_url, bool force_refresh,
                                void (*cb)(void *ctx, int rc, const struct vault_found *f, const struct err *e), void *ctx)
{
    struct vault_lookup *l = xcalloc(1, sizeof *l);
    l->v = v;
    l->n = n < VAULT_IDS_MAX ? n : VAULT_IDS_MAX;
    l->ids = xcalloc(l->n + 1, sizeof *l->ids);
    for (size_t i = 0; i < l->n; i++)
        l->ids[i] = str_dup(vault_ids[i]);
    l->url = str_dup(mcp_server_url);
    l->force = force_refresh;
    l->cb = cb;
    l->ctx = ctx;
    list_init(&l->wait.node);
    l->wait.cb = on_refreshed;
    list_add_tail(&v->lookups, &l->node);
    if (jobs_add(v->c.jobs, look_job, l) < 0) {
        l->rc = err_set(&l->e, RC_LIMIT, "too much waits for the database");
        ev_post(v->c.ev, reported, l);
    }
    return l;
}

void vault_cancel(struct vault_lookup *l)
{
    if (!l || l->cancelled)
        return;
    l->cancelled = true;
    if (!list_empty(&l->wait.node))      /* the job has reported; it waits for a refresh */
        lookup_free(l);
}

/* ---- the whole ---- */
int vault_new(const struct vault_conf *c, struct vault **ret, struct err *e)
{
    if (!c->reach.start || !c->reach.cancel)
        return err_set(e, RC_INVALID, "vaults need a guard of their connections");
    struct vault *v = xcalloc(1, sizeof *v);
    v->c = *c;
    list_init(&v->lookups);
    list_init(&v->refreshes);
    list_init(&v->calls);
    list_init(&v->validations);
    *ret = v;
    return RC_OK;
}

void vault_free(struct vault *v)
{
    if (!v)
        return;
    ev_timer_stop(&v->settle);
    validate_end_all(v, true);
    list_foreach(l, &v->lookups, struct vault_lookup, node)
        lookup_free(l);
    refresh_free_all(v);
    vcall_free_all(v);
    free(v);
}

static void on_settle(struct ev_timer *t)
{
    struct vault *v = container_of(t, struct vault, settle);
    void (*cb)(void *) = v->drained;
    v->drained = NULL;
    if (cb)
        cb(v->drained_ctx);
}

void vault_settle(struct vault *v)
{
    if (v->draining && v->drained && !refresh_any_running(v) && !ev_timer_armed(&v->settle))
        ev_timer_set(v->c.ev, &v->settle, 0, on_settle);
}

void vault_drain(struct vault *v, void (*cb)(void *ctx), void *ctx)
{
    v->draining = true;
    v->drained = cb;
    v->drained_ctx = ctx;
    validate_end_all(v, false);
    vault_settle(v);
}
