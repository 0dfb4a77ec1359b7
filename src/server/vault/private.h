/* server/vault/private.h - shared by the files of this folder: vault.c (lookups), cred.c (a credential read from and written to the store), token.c (the
 * token endpoint's language, pure), refresh.c, call.c (one HTTP request the way the guard says), scrub.c, validate.c. */
#pragma once

#include "base/list.h"
#include "base/str.h"
#include "json/js.h"
#include "server/vault/secrets.h"
#include "server/vault/vault.h"

#define VAULT_IDS_MAX 64                 /* vaults of one lookup */
#define REFRESHES_MAX 1024               /* credentials whose refresh is under way or has just failed */
#define VALIDATIONS_MAX 64
#define EXPIRY_SKEW_MS 60000             /* a token that ends within this is refreshed before it is used; at most a tenth of its life */
#define FAILED_KEEP_MS 30000             /* after the provider's refusal the same answer is given this long without asking again */
#define TOKEN_TOTAL_MS 30000             /* one request to a token endpoint */
#define TOKEN_ANSWER_MAX (64 * KIB)
#define TOKEN_TEXT_MAX (32 * KIB)        /* one token */
#define PROBE_TOTAL_MS 20000             /* one request to an MCP server */
#define PROBE_ANSWER_MAX (1 * MIB)
#define CONNECT_MS 10000
#define SHOWN_MAX 4096                   /* bytes of a peer's answer in a validation */
#define SAVE_TRIES 5                     /* of storing refreshed tokens, SAVE_RETRY_MS doubled each time */
#define SAVE_RETRY_MS 200
#define WAYS_MAX 8

struct refresh;
struct validation;
struct vault {
    struct vault_conf c;
    struct list lookups, refreshes, calls, validations;
    size_t n_refreshes, n_validations;
    bool draining;
    void (*drained)(void *ctx); void *drained_ctx;
    struct ev_timer settle;              /* tells `drained` */
};

/* ---- cred.c: any thread ---- */
struct cred {
    char vault_id[ID_MAX], id[ID_MAX];
    bool oauth, archived;
    int64_t updated_ms, expires_ms;      /* expires -1: unknown */
    char *url;                           /* MCP server, as the client wrote it */
    char *token_endpoint, *client_id, *auth, *scope, *resource;      /* token_endpoint NULL: no refresh */
    struct vault_secrets secrets;
};
void cred_free(struct cred *c);
DEFINE_AUTO(cred);
/* By id, or (id NULL) the active one that matches. RC_NOT_FOUND; RC_UNAUTHORIZED: its secrets do not open. Archived ones come without secrets. */
MUST_CHECK int cred_load(const struct vault *v, const char *vault_id, const char *id, const char *match, struct cred **ret, struct err *e);
bool cred_can_refresh(const struct cred *c);
bool cred_expired(const struct cred *c, int64_t now_ms);

/* ---- token.c: pure ---- */
struct fresh { struct secret *access_token, *refresh_token; int64_t expires_ms; };       /* refresh_token NULL: keep the old one; expires -1: unknown */
void fresh_done(struct fresh *f);
/* Body of the request, and for client_secret_basic what stands behind "Basic ". RC_INVALID: the credential lacks something. `body` is to be wiped. */
MUST_CHECK int token_request(const struct cred *c, struct buf *body, struct secret **ret_basic, struct err *e);
/* A 2xx answer. RC_PROTO: it holds no usable bearer token. Errors never quote it. */
MUST_CHECK int token_answer(const char *p, size_t n, int64_t now_ms, struct fresh *ret, struct err *e);
/* The error code of a refusal, when it is one that may be shown (letters and underscores); else "". */
void token_error(const char *p, size_t n, char out[64]);
void form_put(struct buf *out, const char *p, size_t n);                  /* application/x-www-form-urlencoded */

/* ---- scrub.c: pure ---- */
struct note { int status; char content_type[128]; char *body; bool truncated; };      /* status 0: nothing was answered */
void note_done(struct note *n);
/* Keeps what may be shown of an answer: every form in which one of `secrets` may stand in it is replaced. */
void note_set(struct note *n, int status, const char *content_type, const char *body, size_t body_n, const struct secret *const *secrets, size_t n_secrets);

/* ---- call.c: ev thread ---- */
struct vcall;
struct vcall_result {
    int rc;                              /* RC_OK: an answer came; else `e` */
    bool refused;                        /* by the guard, before any dial */
    int status; struct slice head;
    const char *body; size_t body_n;
    const struct err *e;
};
struct vcall_conf {                      /* all borrowed until the callback */
    const char *method, *url;
    const char *const *headers; size_t n_headers;
    const char *secret_prefix; const struct secret *secret;      /* of the header authorization */
    const char *body; size_t body_n;
    int64_t total_ms; size_t body_max;
    bool one_event;                      /* an event stream is read up to its first event only */
    void (*cb)(void *ctx, const struct vcall_result *r);
    void *ctx;
};
struct vcall *vcall_start(struct vault *v, const struct vcall_conf *c);      /* `cb` once, never inside; the call is gone then */
void vcall_cancel(struct vcall *c);      /* NULL is fine */
void vcall_free_all(struct vault *v);

/* ---- refresh.c: ev thread ---- */
enum refresh_end { REFRESH_SUCCEEDED, REFRESH_FAILED /* the provider refused */, REFRESH_NO_ANSWER, REFRESH_REFUSED /* by our guard */, REFRESH_BROKEN /* our own fault */ };
struct refresh_result { enum refresh_end end; int rc; const struct secret *bearer; const struct note *note; const struct err *e; };
struct refresh_wait { struct list node; void (*cb)(struct refresh_wait *w, const struct refresh_result *r); };
/* Joins the refresh of this credential, or begins it. `cb` comes later, once. `again`: also when the provider has just refused. */
void refresh_join(struct vault *v, struct cred *take, bool again, struct refresh_wait *w);
void refresh_leave(struct refresh_wait *w);      /* harmless when not waiting (its node initialised) */
void refresh_free_all(struct vault *v);
bool refresh_any_running(const struct vault *v);
void vault_settle(struct vault *v);              /* after a refresh has ended: tells `drained` when it was the last */

/* ---- validate.c ---- */
void validate_end_all(struct vault *v, bool loop_ended);      /* loop_ended: what was posted will not run */
