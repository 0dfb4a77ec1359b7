/* refresh.c - refreshing one OAuth token, at most once at a time per credential.
 *
 * A provider that rotates refresh tokens has used up the old one when it answers. So a refresh that was begun is never cancelled for lack of waiters, its
 * result is committed before anybody gets it, and a commit that fails is tried again for as long as this process lives. What cannot be closed is the time
 * between the provider's answer and our commit: a crash there loses the new token (docs/vaults.md). */
#include <string.h>

#include "base/clock.h"
#include "log/log.h"
#include "metrics/metrics.h"
#include "server/vault/private.h"

#define RACES_MAX 16                     /* somebody else changed the row between our reading and writing */
#define ERROR_ANSWER_MAX (256 * KIB)

METRIC_DEFINE(metric_refreshed, METRIC_COUNTER, "outwork_vault_refreshes_total", "OAuth tokens of vault credentials that were refreshed");
METRIC_DEFINE(metric_failed, METRIC_COUNTER, "outwork_vault_refresh_failures_total", "Refreshes of vault credentials that failed");

enum stage { STAGE_LOAD, STAGE_CALL, STAGE_SAVE, STAGE_SAVE_WAIT, STAGE_UNSAVED /* given up for now; the tokens are kept here */, STAGE_ENDED /* a result to deliver or keep */ };
struct refresh {
    struct vault *v;
    struct list node, waiters;
    struct cred *cred;                   /* as it was when the refresh began */
    enum stage stage;
    struct vcall *call;
    struct buf body;                     /* of the request */
    struct secret *basic;
    struct fresh fresh;
    struct note note;
    struct ev_timer timer;               /* next try of saving; delivery; end of a kept failure */
    int tries;
    /* the result */
    enum refresh_end end;
    int rc;
    struct secret *bearer;
    struct err e;
    int64_t keep_until_ms;               /* monotonic */
};
/* A commit, or the look before the call, on a job thread. */
struct save { struct refresh *r; int rc; struct err e; struct secret *bearer; };
struct load { struct refresh *r; int rc; struct err e; struct cred *cred; };

static void start_save(struct refresh *r);
static void wipe_request(struct refresh *r)
{
    buf_wipe(&r->body);
    secret_free(r->basic);
    r->basic = NULL;
}

static void refresh_free(struct refresh *r)
{
    list_del(&r->node);
    r->v->n_refreshes--;
    ev_timer_stop(&r->timer);
    vcall_cancel(r->call);
    list_foreach(w, &r->waiters, struct refresh_wait, node)
        list_del(&w->node);
    wipe_request(r);
    fresh_done(&r->fresh);
    note_done(&r->note);
    secret_free(r->bearer);
    cred_free(r->cred);
    free(r);
}

static bool running(const struct refresh *r) { return r->stage == STAGE_LOAD || r->stage == STAGE_CALL || r->stage == STAGE_SAVE || r->stage == STAGE_SAVE_WAIT; }

bool refresh_any_running(const struct vault *v)
{
    list_foreach(r, &v->refreshes, struct refresh, node)
        if (running(r))
            return true;
    return false;
}

/* ---- the end ---- */
static void on_forget(struct ev_timer *t) { refresh_free(container_of(t, struct refresh, timer)); }

/* Waiters may join this credential again from their callback: they then find a record that has ended, or none. */
static void on_deliver(struct ev_timer *t)
{
    struct refresh *r = container_of(t, struct refresh, timer);
    struct vault *v = r->v;
    struct list due;
    if (running(r))                      /* somebody came meanwhile and has it saved once more: all hear of that */
        return;
    list_init(&due);
    while (!list_empty(&r->waiters)) {
        struct refresh_wait *w = list_first(&r->waiters, struct refresh_wait, node);
        list_del(&w->node);
        list_add_tail(&due, &w->node);
    }
    /* Copies: a callback may begin this credential's next refresh, which ends a kept record. */
    struct secret *bearer = secret_dup(r->bearer);
    struct note note = r->note;
    struct err e = r->e;
    struct refresh_result res = { .end = r->end, .rc = r->rc, .bearer = bearer, .note = note.status ? &note : NULL, .e = &e };
    bool keep = r->end == REFRESH_FAILED || r->stage == STAGE_UNSAVED;
    if (keep) {
        note.body = str_dup(note.body);
        if (r->stage != STAGE_UNSAVED)
            ev_timer_set(v->c.ev, &r->timer, FAILED_KEEP_MS, on_forget);
    } else {
        r->note = (struct note){ 0 };
        refresh_free(r);
    }
    while (!list_empty(&due)) {
        struct refresh_wait *w = list_first(&due, struct refresh_wait, node);
        list_del(&w->node);
        w->cb(w, &res);
    }
    secret_free(bearer);
    note_done(&note);
    vault_settle(v);
}

static void ended(struct refresh *r, enum refresh_end end, int rc)
{
    r->stage = STAGE_ENDED;
    r->end = end;
    r->rc = rc;
    r->keep_until_ms = ev_now_ms(r->v->c.ev) + FAILED_KEEP_MS;
    metric_add(end == REFRESH_SUCCEEDED ? &metric_refreshed : &metric_failed, 1);
    if (end == REFRESH_SUCCEEDED)
        log_info("vault_credential.refreshed", "credential=%s vault=%s", r->cred->id, r->cred->vault_id);
    else
        log_warn("vault_credential.refresh_failed", "credential=%s vault=%s why=%s", r->cred->id, r->cred->vault_id, r->e.msg);
    ev_timer_set(r->v->c.ev, &r->timer, 0, on_deliver);
}

/* ---- the commit ---- */
static bool same_secret(const struct secret *a, const struct secret *b)
{
    return a && b && secret_len(a) == secret_len(b) && memcmp(secret_text(a), secret_text(b), secret_len(a)) == 0;
}

static char *body_with_expiry(const char *text, int64_t expires_ms, struct err *e)
{
    AUTO_JS j = NULL;
    if (js_parse(text, strlen(text), SIZE_MAX, &j, e) < 0)
        return NULL;
    json_t *auth = json_object_get(j, "auth");
    if (json_is_object(auth))
        js_set_time(auth, "expires_at", expires_ms);
    return js_text(j);
}

/* RC_CONFLICT: changed between reading and writing. A refresh token that a client has put meanwhile wins, with its access token: it is of a new grant. */
static int save_once(struct save *s, struct err *e)
{
    const struct refresh *r = s->r;
    struct store *st = r->v->c.store;
    AUTO_PTR(arena) a = arena_new(8 * KIB, 2 * MIB);
    struct store_credential row;
    struct vault_secrets now = { 0 };
    if (!a)
        return err_set(e, RC_NOMEM, "out of memory");
    int rc = st->ops->vault->credential_get(st, a, r->cred->vault_id, r->cred->id, &row, e);
    if (rc == RC_NOT_FOUND || (rc == RC_OK && row.archived_ms >= 0))
        return err_set(e, RC_UNAUTHORIZED, "credential '%s' was archived or deleted", r->cred->id);
    TRY(rc);
    TRY(vault_secrets_open(r->v->c.seal, &row, &now, e));
    if (!same_secret(now.refresh_token, r->cred->secrets.refresh_token)) {
        s->bearer = TAKE(now.token);
        vault_secrets_done(&now);
        return s->bearer ? RC_OK : err_set(e, RC_UNAUTHORIZED, "credential '%s' has no token", r->cred->id);
    }
    struct vault_secrets next = {
        .token = r->fresh.access_token, .refresh_token = r->fresh.refresh_token ? r->fresh.refresh_token : now.refresh_token, .client_secret = now.client_secret,
        .refreshed_ms = clock_now_ms(),
    };
    struct buf sealed;
    buf_init(&sealed, SEAL_PLAIN_MAX + SEAL_OVERHEAD);
    rc = vault_secrets_seal(r->v->c.seal, r->cred->id, &next, &sealed, e);
    AUTO_FREE char *body = rc == RC_OK ? body_with_expiry(row.body, r->fresh.expires_ms, e) : NULL;
    if (rc == RC_OK && !body)
        rc = err_wrap(e, RC_IO, "credential '%s'", r->cred->id);
    if (rc == RC_OK)
        rc = st->ops->vault->credential_update(st, r->cred->vault_id, r->cred->id, row.updated_ms, body, buf_data(&sealed), buf_len(&sealed), clock_now_ms(), e);
    buf_done(&sealed);
    vault_secrets_done(&now);
    if (rc == RC_INVALID)
        return err_set(e, RC_UNAUTHORIZED, "credential '%s' was archived", r->cred->id);
    if (rc == RC_OK)
        s->bearer = secret_dup(r->fresh.access_token);
    return rc;
}

static void on_save_retry(struct ev_timer *t) { start_save(container_of(t, struct refresh, timer)); }

static void save_done(void *arg)
{
    struct save *s = arg;
    struct refresh *r = s->r;
    if (s->rc == RC_OK) {
        r->bearer = s->bearer;
        ended(r, REFRESH_SUCCEEDED, RC_OK);
    } else if (s->rc == RC_UNAUTHORIZED) {       /* archived, deleted, or sealed with a key that is gone: nobody can use it any more */
        r->e = s->e;
        ended(r, REFRESH_BROKEN, s->rc);
    } else if (++r->tries < SAVE_TRIES) {
        log_err(LOG_WARN, "vault_credential.save", &s->e);
        r->stage = STAGE_SAVE_WAIT;
        ev_timer_set(r->v->c.ev, &r->timer, (int64_t)SAVE_RETRY_MS << r->tries, on_save_retry);
    } else {
        log_err(LOG_ERROR, "vault_credential.unsaved", &s->e);
        (void)err_set(&r->e, RC_IO, "the refreshed token of credential '%s' could not be stored", r->cred->id);
        r->stage = STAGE_UNSAVED;
        r->end = REFRESH_BROKEN;
        r->rc = RC_IO;
        ev_timer_set(r->v->c.ev, &r->timer, 0, on_deliver);
    }
    free(s);
}

static void save_job(void *arg)
{
    struct save *s = arg;
    s->rc = RC_CONFLICT;
    for (int i = 0; s->rc == RC_CONFLICT && i < RACES_MAX; i++)
        s->rc = save_once(s, &s->e);
    ev_post(s->r->v->c.ev, save_done, s);
}

/* `r` outlives the job: it is not freed in this stage, and jobs are joined before vault_free(). */
static void start_save(struct refresh *r)
{
    struct save *s = xcalloc(1, sizeof *s);
    s->r = r;
    r->stage = STAGE_SAVE;
    jobs_add_always(r->v->c.jobs, save_job, s);
}

/* ---- the call ---- */
static void refused_by_provider(struct refresh *r, const struct vcall_result *x)
{
    char code[64], type[128] = "";
    struct slice ct = fetch_header(x->head, "content-type");
    const struct vault_secrets *s = &r->cred->secrets;
    const struct secret *hide[] = { s->refresh_token, s->client_secret, s->token, r->basic };
    if (ct.p && ct.n < sizeof type)
        memcpy(type, ct.p, ct.n);
    note_set(&r->note, x->status, type, x->body, x->body_n, hide, COUNT_OF(hide));
    token_error(x->body, x->body_n, code);
    (void)err_set(&r->e, RC_UNAUTHORIZED, "the token endpoint of credential '%s' answered with status %d%s%s", r->cred->id, x->status, code[0] ? ": " : "", code);
}

static void on_answer(void *ctx, const struct vcall_result *x)
{
    struct refresh *r = ctx;
    r->call = NULL;
    if (x->rc == RC_OK && x->status >= 200 && x->status < 300) {
        int rc = token_answer(x->body, x->body_n, clock_now_ms(), &r->fresh, &r->e);
        wipe_request(r);
        if (rc == RC_OK) {
            start_save(r);
            return;
        }
        /* Not shown to anybody: what could not be read as a token answer may still hold one. */
        note_set(&r->note, x->status, "", "", 0, NULL, 0);
        (void)err_wrap(&r->e, RC_UNAUTHORIZED, "credential '%s'", r->cred->id);
        ended(r, REFRESH_FAILED, RC_UNAUTHORIZED);
        return;
    }
    if (x->rc == RC_OK) {
        refused_by_provider(r, x);
        wipe_request(r);
        ended(r, REFRESH_FAILED, RC_UNAUTHORIZED);
        return;
    }
    wipe_request(r);
    (void)err_set(&r->e, RC_UNAUTHORIZED, "the token endpoint of credential '%s' %s: %s", r->cred->id, x->refused ? "may not be called" : "cannot be reached", x->e ? x->e->msg : "");
    ended(r, x->refused ? REFRESH_REFUSED : REFRESH_NO_ANSWER, RC_UNAUTHORIZED);
}

static void begin_call(struct refresh *r)
{
    static const char *const headers[] = { "content-type: application/x-www-form-urlencoded", "accept: application/json" };
    buf_init(&r->body, SEAL_PLAIN_MAX * 4);
    if (token_request(r->cred, &r->body, &r->basic, &r->e) < 0) {
        wipe_request(r);
        ended(r, REFRESH_BROKEN, RC_UNAUTHORIZED);
        return;
    }
    struct vcall_conf c = {
        .method = "POST", .url = r->cred->token_endpoint, .headers = headers, .n_headers = COUNT_OF(headers), .secret_prefix = "Basic ", .secret = r->basic,
        .body = buf_data(&r->body), .body_n = buf_len(&r->body), .total_ms = TOKEN_TOTAL_MS, .body_max = ERROR_ANSWER_MAX, .cb = on_answer, .ctx = r,
    };
    r->stage = STAGE_CALL;
    r->call = vcall_start(r->v, &c);
}

/* ---- the look before it ---- */
/* The row was read before this record was made: a refresh that ended in between has used up the refresh token that stood in it, and a provider may take
 * its second use for a theft. From now on nobody else refreshes this credential, so what is read now counts. */
static void load_done(void *arg)
{
    struct load *x = arg;
    struct refresh *r = x->r;
    if (x->rc == RC_OK && (x->cred->archived || !cred_can_refresh(x->cred)))
        x->rc = err_set(&x->e, RC_UNAUTHORIZED, "credential '%s' was changed and cannot be refreshed", r->cred->id);
    if (x->rc < 0) {
        r->e = x->e;
        ended(r, REFRESH_BROKEN, x->rc == RC_NOT_FOUND ? RC_UNAUTHORIZED : x->rc);
    } else {
        bool other = !same_secret(x->cred->secrets.token, r->cred->secrets.token);
        cred_free(r->cred);
        r->cred = x->cred;
        if (other && r->cred->secrets.token && !cred_expired(r->cred, clock_now_ms())) {
            r->bearer = secret_dup(r->cred->secrets.token);
            ended(r, REFRESH_SUCCEEDED, RC_OK);
        } else {
            begin_call(r);
        }
    }
    free(x);
}

static void load_job(void *arg)
{
    struct load *x = arg;
    const struct refresh *r = x->r;
    x->rc = cred_load(r->v, r->cred->vault_id, r->cred->id, NULL, &x->cred, &x->e);
    ev_post(r->v->c.ev, load_done, x);
}

static void start_load(struct refresh *r)
{
    struct load *x = xcalloc(1, sizeof *x);
    x->r = r;
    r->stage = STAGE_LOAD;
    jobs_add_always(r->v->c.jobs, load_job, x);
}

/* ---- joining ---- */
static struct refresh *find(struct vault *v, const char *credential_id)
{
    list_foreach(r, &v->refreshes, struct refresh, node)
        if (str_eq(r->cred->id, credential_id))
            return r;
    return NULL;
}

static void evict_one(struct vault *v)
{
    list_foreach(r, &v->refreshes, struct refresh, node) {
        if (r->stage == STAGE_ENDED && list_empty(&r->waiters)) {
            refresh_free(r);
            return;
        }
    }
}

void refresh_join(struct vault *v, struct cred *take, bool again, struct refresh_wait *w)
{
    struct refresh *r = find(v, take->id);
    if (r && r->stage == STAGE_ENDED && list_empty(&r->waiters) &&
        (again || take->updated_ms != r->cred->updated_ms || ev_now_ms(v->c.ev) >= r->keep_until_ms)) {
        refresh_free(r);
        r = NULL;
    }
    if (r) {
        list_add_tail(&r->waiters, &w->node);
        cred_free(take);
        if (r->stage == STAGE_UNSAVED) {
            r->tries = 0;
            start_save(r);
        } else if (r->stage == STAGE_ENDED) {
            ev_timer_set(v->c.ev, &r->timer, 0, on_deliver);
        }
        return;
    }
    if (v->n_refreshes >= REFRESHES_MAX)
        evict_one(v);
    r = xcalloc(1, sizeof *r);
    r->v = v;
    r->cred = take;
    r->fresh.expires_ms = -1;
    list_init(&r->waiters);
    list_add_tail(&r->waiters, &w->node);
    list_add_tail(&v->refreshes, &r->node);
    if (++v->n_refreshes > REFRESHES_MAX) {
        (void)err_set(&r->e, RC_LIMIT, "too many credentials are being refreshed");
        ended(r, REFRESH_BROKEN, RC_LIMIT);
        return;
    }
    start_load(r);
}

void refresh_leave(struct refresh_wait *w) { list_del(&w->node); }

void refresh_free_all(struct vault *v)
{
    list_foreach(r, &v->refreshes, struct refresh, node)
        refresh_free(r);
}
