/* server/api/call.h - one request while a handler works on it. Only server/api includes this. */
#pragma once

#include <stdatomic.h>
#include <pthread.h>

#include "base/clock.h"
#include "json/js.h"
#include "server/api/api.h"
#include "server/api/cursor.h"
#include "server/api/schema.h"
#include "server/vault/secrets.h"

#define CALL_PARAMS_MAX 3
#define CALL_ARENA_MAX (512 * MIB)       /* store rows of one answer; lists read in chunks */
#define CALL_ANSWER_MAX (256 * MIB)      /* bytes of one answer */
#define ROUTE_BODY_SMALL (64 * KIB)      /* bodies of metadata and flags */
#define ROUTE_BODY_AGENT (4 * MIB)
#define ROUTE_BODY_SECRETS (256 * KIB)   /* credentials */
#define METADATA_PAIRS_MAX 16            /* api.md 1.8; also in the schema overlay */
#define API_LOCKS 64                     /* stripes for read-modify-write of one object */

#define CALL_TAKEN 1                     /* a handler's result: request and call are somebody else's now (stream, park); touch nothing */

struct call;
enum {
    WHO_ENV_KEY = 1, WHO_SES_TOKEN = 2, WHO_ANYONE = 4, IS_STREAM = 16, WHO_EDGE_KEY = 32,
    BETA_AGENTS = 8, BETA_TUNNELS = 64, BETA_ORG_TUNNELS = 128,          /* a value of this family in anthropic-beta (call.c) */
    SECRET_BODY = 256,                                                   /* no error may quote it */
    RAW_BODY = 512,                                                      /* not decoded here: the handler reads it */
};
struct route {
    enum http_method method;
    const char *path;                    /* "/v1/agents/{agent_id}"; a literal beats a parameter */
    enum key_role role;                  /* the least API key role; ROLE_NONE: API keys may not */
    unsigned flags;                      /* who else may, and what is needed */
    size_t body_max;
    int (*handler)(struct call *c);
    const char *op;                      /* operation in schema.h, or NULL */
};
extern const struct route routes[];
extern const size_t routes_n;
/* RC_OK; RC_NOT_FOUND: no such path; RC_INVALID: the path exists with other methods (*ret_allow: their names, static room of `allow`). */
MUST_CHECK int route_find(enum http_method method, struct slice path, const struct route **ret, struct slice params[CALL_PARAMS_MAX], char allow[64]);
/* Operation of the API document under this method and path, which this server does not serve; NULL: none. */
const char *route_unserved(enum http_method method, struct slice path);

struct api {
    struct api_conf conf;
    char *base_headers;                  /* organization and workspace headers of authorised answers */
    pthread_mutex_t locks[API_LOCKS];
    _Atomic bool draining;
};

struct call {
    struct api *api;
    struct store *store;
    struct http_req *req;
    struct arena *arena;                 /* rows and texts of this call */
    const struct route *route;
    struct principal who;
    const char *param[CALL_PARAMS_MAX];
    json_t *query, *body;                /* checked; body pruned to what the schema names; both never NULL in a handler */
    char request_id[ID_MAX];
    int64_t now_ms, start_us;
    struct err e;
    /* the answer */
    int status;                          /* 200 unless set */
    struct buf out;
    const char *content_type;
    struct buf headers;
    const char *error_type, *error_code; /* override what rc says */
    json_t *error_details;
    int error_status;                    /* 0: what rc says */
    bool no_retry;                       /* x-should-retry: false */
};

/* ---- call.c ---- */
void call_run(void *call);                                /* job: authorise, decode, handle, answer */
struct slice call_header(const struct call *c, const char *name);         /* p NULL: absent */
int  call_json(struct call *c, json_t *take);             /* answer with this tree */
int  call_fail(struct call *c, int rc, const char *fmt, ...) PRINTF_LIKE(3, 4);
int  call_fail_code(struct call *c, int rc, const char *code, const char *fmt, ...) PRINTF_LIKE(4, 5);   /* with details.error_code */
void call_lock(struct call *c, const char *id);           /* serialises read-modify-write of one object */
void call_unlock(struct call *c, const char *id);
bool call_is_worker(const struct call *c);
void call_finish(struct call *c, int rc);                 /* answers and frees; for parked calls. Any thread. */
void call_free(struct call *c);

/* ---- common.c ---- */
/* Reads `limit`, `page`, include_archived, created_at[...] into a store page; asks for one row more than the limit. */
struct page { struct store_page st; struct cursor cur; bool has_cursor; int limit; const char *scope; enum cursor_kind kind; };
MUST_CHECK int page_read(struct call *c, enum cursor_kind kind, const char *scope, bool asc, int dflt, struct page *ret);
/* Which of the `n` rows read are shown: [*ret_first, *ret_first + *ret_n); true: there are more in the direction of reading. */
bool page_cut(const struct page *p, size_t n, size_t *ret_first, size_t *ret_n);
struct page_key { int64_t ms; const char *id; };
/* Ends the answer `{"data":[...` with next_page (and prev_page when `both`). first, last: keys of the shown rows, id NULL when none. */
void page_end(const struct page *p, struct buf *out, bool more, bool both, struct page_key first, struct page_key last);
int64_t call_time(const struct call *c, const char *key);                 /* query date-time in ms, -1 absent */
/* metadata patch: string upserts, null deletes (also "" when `empty_deletes`). RC_INVALID over METADATA_PAIRS_MAX. New reference. */
MUST_CHECK int metadata_patch(struct call *c, json_t *old, json_t *patch, bool empty_deletes, json_t **ret);
json_t *parse_stored(const char *text);                                   /* our own stored JSON; never NULL */
/* The session of param[0], when this caller may see it; otherwise 404. */
MUST_CHECK int call_session(struct call *c, struct store_session *ret);
MUST_CHECK int call_environment(struct call *c, struct store_environment *ret);
MUST_CHECK int call_vault(struct call *c, struct store_vault *ret);        /* of param[0] */

/* ---- tunnels.c ---- */
#define EDGE_TTL_MS 30000                /* an edge that was silent for longer is taken for gone (tunnel/proto.h) */
MUST_CHECK int call_tunnel(struct call *c, struct store_tunnel *ret);     /* of param[0]; otherwise 404 */
int tunnel_archived(struct call *c, const char *id);                      /* the refusal */
const char *tunnel_state(const struct store_tunnel *t);                   /* as in tunnel/proto.h */
/* ---- tunnel_status.c ---- */
int tunnels_metrics(struct call *c, struct buf *out);                     /* appends samples of live tunnels and their certificates */

/* ---- views.c: stored rows as API objects, appended as text (stored JSON is never decoded for it) ---- */
void view_agent(struct buf *out, const struct store_agent *a);
void view_environment(struct buf *out, const struct store_environment *v);
void view_session(struct buf *out, const struct store_session *s, int64_t now_ms);
void view_thread(struct buf *out, const struct store_session *s, int64_t now_ms);
void view_work(struct buf *out, const struct store_work *w, const char *secret);
void view_vault(struct buf *out, const struct store_vault *v);
void view_credential(struct buf *out, const struct store_credential *c);
void view_key(struct buf *out, const struct store_key *k, const char *secret);
void view_tunnel(struct buf *out, const struct store_tunnel *t, bool with_workspace);
void view_certificate(struct buf *out, const struct store_tunnel_certificate *k);
void view_deleted(struct buf *out, const char *id, const char *type);

/* ---- vaults.c ---- */
/* The vaults that a new session names: each there, not archived, and without credentials that a self-hosted environment cannot honour. */
MUST_CHECK int vaults_check(struct call *c, const json_t *ids);

/* ---- credential_auth.c: the `auth` of a credential ---- */
/* What is stored of a credential: `auth` as it is shown, its key within the vault, and its secrets. */
struct credential_auth { const char *kind; json_t *shown; char *match; struct vault_secrets secrets; bool secrets_changed; };
void credential_auth_done(struct credential_auth *a);
MUST_CHECK int credential_auth_new(struct call *c, json_t *in, struct credential_auth *ret);
/* Applies an update to `a`, whose `shown` and `secrets` are the stored ones. */
MUST_CHECK int credential_auth_patch(struct call *c, json_t *in, struct credential_auth *a);

/* ---- agent_spec.c: from request to resolved form ---- */
/* Applies a create, update or override body to `agent` (a resolved object; for create the defaults of agent_blank()). */
json_t *agent_blank(void);
MUST_CHECK int agent_apply(struct call *c, json_t *agent, json_t *in, bool override);
MUST_CHECK int agent_tools_resolve(struct call *c, json_t *in, json_t **ret);
/* agent_mcp.c: the same for mcp_servers and one mcp_toolset (`tool`: its place in tools); then whether the two fit together. */
MUST_CHECK int agent_servers_resolve(struct call *c, json_t *in, json_t **ret);
MUST_CHECK int agent_mcp_toolset_resolve(struct call *c, size_t tool, json_t *in, json_t **ret);
MUST_CHECK int agent_mcp_check(struct call *c, const json_t *agent);
/* What a session keeps of an agent: the API object without metadata and times. New reference. */
json_t *agent_snapshot(const struct store_agent *a);

/* ---- handlers ---- */
int agents_list(struct call *c);
int agents_create(struct call *c);
int agents_get(struct call *c);
int agents_update(struct call *c);
int agents_archive(struct call *c);
int agents_versions(struct call *c);
int environments_list(struct call *c);
int environments_create(struct call *c);
int environments_get(struct call *c);
int environments_update(struct call *c);
int environments_archive(struct call *c);
int environments_delete(struct call *c);
int work_poll(struct call *c);
int work_list(struct call *c);
int work_stats(struct call *c);
int work_get(struct call *c);
int work_update(struct call *c);
int work_ack(struct call *c);
int work_heartbeat(struct call *c);
int work_stop(struct call *c);
int sessions_list(struct call *c);
int sessions_create(struct call *c);
int sessions_get(struct call *c);
int sessions_update(struct call *c);
int sessions_archive(struct call *c);
int sessions_delete(struct call *c);
int resources_list(struct call *c);
int events_list(struct call *c);
int events_send(struct call *c);
int events_stream(struct call *c);
int threads_list(struct call *c);
int threads_get(struct call *c);
int threads_archive(struct call *c);
int threads_events(struct call *c);
int threads_stream(struct call *c);
int vaults_list(struct call *c);
int vaults_create(struct call *c);
int vaults_get(struct call *c);
int vaults_update(struct call *c);
int vaults_archive(struct call *c);
int vaults_delete(struct call *c);
int credentials_list(struct call *c);
int credentials_create(struct call *c);
int credentials_get(struct call *c);
int credentials_update(struct call *c);
int credentials_archive(struct call *c);
int credentials_delete(struct call *c);
int credentials_validate(struct call *c);
int messages_create(struct call *c);
int messages_count(struct call *c);
int models_list(struct call *c);
int models_get(struct call *c);
int keys_list(struct call *c);
int keys_create(struct call *c);
int keys_get(struct call *c);
int keys_revoke(struct call *c);
int env_keys_list(struct call *c);
int env_keys_create(struct call *c);
int env_keys_revoke(struct call *c);
int edge_keys_list(struct call *c);
int edge_keys_create(struct call *c);
int edge_keys_get(struct call *c);
int edge_keys_revoke(struct call *c);
int tunnels_list(struct call *c);
int tunnels_create(struct call *c);
int tunnels_get(struct call *c);
int tunnels_archive(struct call *c);
int tunnels_reveal_token(struct call *c);
int tunnels_rotate_token(struct call *c);
int certificates_list(struct call *c);
int certificates_create(struct call *c);
int certificates_get(struct call *c);
int certificates_archive(struct call *c);
int tunnel_status_list(struct call *c);
int tunnel_status_get(struct call *c);
int tunnel_connectors(struct call *c);
int edges_list(struct call *c);
int edges_authenticate(struct call *c);
int edges_heartbeat(struct call *c);
int edges_route(struct call *c);
int health_live(struct call *c);
int health_ready(struct call *c);
int health_metrics(struct call *c);
