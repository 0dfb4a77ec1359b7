/* server/api/routes.c - every path: who may, how large, what it needs (README). A row cannot be written without them. */
#include "server/api/call.h"

#include <stdio.h>
#include <string.h>

#define SEGMENTS_MAX 10
#define WORKER (WHO_ENV_KEY | WHO_SES_TOKEN)
#define U ROLE_USER
#define D ROLE_DEVELOPER
#define A ROLE_ADMIN
#define B BETA_AGENTS
#define T BETA_TUNNELS
#define O BETA_ORG_TUNNELS

/* Environment paths do not ask for the beta header: plain curl calls of the getting-started kind must work (docs/decisions). */
const struct route routes[] = {
    /* method      path                                                     role       who else, needs                body               handler               operation */
    { HTTP_GET,    "/healthz",                                              ROLE_NONE, WHO_ANYONE,                    0,                 health_live,          NULL },
    { HTTP_GET,    "/readyz",                                               ROLE_NONE, WHO_ANYONE,                    0,                 health_ready,         NULL },
    { HTTP_GET,    "/metrics",                                              ROLE_NONE, WHO_ANYONE,                    0,                 health_metrics,       NULL },

    { HTTP_GET,    "/v1/models",                                            U,         0,                             0,                 models_list,          "beta_models_list" },
    { HTTP_GET,    "/v1/models/{model_id}",                                 U,         0,                             0,                 models_get,           NULL },

    { HTTP_POST,   "/v1/messages",                                          U,         RAW_BODY,                      JS_BODY_MAX,       messages_create,      NULL },
    { HTTP_POST,   "/v1/messages/count_tokens",                             U,         RAW_BODY,                      JS_BODY_MAX,       messages_count,       NULL },

    { HTTP_GET,    "/v1/agents",                                            U,         B,                             0,                 agents_list,          "beta_agents_list" },
    { HTTP_POST,   "/v1/agents",                                            D,         B,                             ROUTE_BODY_AGENT,  agents_create,        "beta_agents_create" },
    { HTTP_GET,    "/v1/agents/{agent_id}",                                 U,         B,                             0,                 agents_get,           "beta_agents_retrieve" },
    { HTTP_POST,   "/v1/agents/{agent_id}",                                 D,         B,                             ROUTE_BODY_AGENT,  agents_update,        "beta_agents_update" },
    { HTTP_POST,   "/v1/agents/{agent_id}/archive",                         D,         B,                             ROUTE_BODY_SMALL,  agents_archive,       NULL },
    { HTTP_GET,    "/v1/agents/{agent_id}/versions",                        U,         B,                             0,                 agents_versions,      "beta_agents_versions_list" },

    { HTTP_GET,    "/v1/environments",                                      U,         0,                             0,                 environments_list,    "beta_environments_list" },
    { HTTP_POST,   "/v1/environments",                                      D,         0,                             ROUTE_BODY_SMALL,  environments_create,  "beta_environments_create" },
    { HTTP_GET,    "/v1/environments/{environment_id}",                     U,         0,                             0,                 environments_get,     NULL },
    { HTTP_POST,   "/v1/environments/{environment_id}",                     D,         0,                             ROUTE_BODY_SMALL,  environments_update,  "beta_environments_update" },
    { HTTP_DELETE, "/v1/environments/{environment_id}",                     D,         0,                             ROUTE_BODY_SMALL,  environments_delete,  NULL },
    { HTTP_POST,   "/v1/environments/{environment_id}/archive",             D,         0,                             ROUTE_BODY_SMALL,  environments_archive, NULL },

    { HTTP_GET,    "/v1/environments/{environment_id}/work",                U,         B | WHO_ENV_KEY,               0,                 work_list,            "beta_environments_work_list" },
    { HTTP_GET,    "/v1/environments/{environment_id}/work/poll",           ROLE_NONE, B | WHO_ENV_KEY,               0,                 work_poll,            "beta_environments_work_poll" },
    { HTTP_GET,    "/v1/environments/{environment_id}/work/stats",          U,         B | WHO_ENV_KEY,               0,                 work_stats,           NULL },
    { HTTP_GET,    "/v1/environments/{environment_id}/work/{work_id}",      U,         B | WHO_ENV_KEY,               0,                 work_get,             NULL },
    { HTTP_POST,   "/v1/environments/{environment_id}/work/{work_id}",      D,         B,                             ROUTE_BODY_SMALL,  work_update,          "beta_environments_work_update" },
    { HTTP_POST,   "/v1/environments/{environment_id}/work/{work_id}/ack",  ROLE_NONE, B | WORKER,                    ROUTE_BODY_SMALL,  work_ack,             NULL },
    { HTTP_POST,   "/v1/environments/{environment_id}/work/{work_id}/heartbeat", ROLE_NONE, B | WORKER,               ROUTE_BODY_SMALL,  work_heartbeat,       "beta_environments_work_heartbeat" },
    { HTTP_POST,   "/v1/environments/{environment_id}/work/{work_id}/stop", D,         B | WORKER,                    ROUTE_BODY_SMALL,  work_stop,            "beta_environments_work_stop" },

    { HTTP_GET,    "/v1/sessions",                                          U,         B,                             0,                 sessions_list,        "beta_sessions_list" },
    { HTTP_POST,   "/v1/sessions",                                          U,         B,                             JS_BODY_MAX,       sessions_create,      "beta_sessions_create" },
    { HTTP_GET,    "/v1/sessions/{session_id}",                             U,         B | WORKER,                    0,                 sessions_get,         NULL },
    { HTTP_POST,   "/v1/sessions/{session_id}",                             D,         B,                             ROUTE_BODY_AGENT,  sessions_update,      "beta_sessions_update" },
    { HTTP_DELETE, "/v1/sessions/{session_id}",                             D,         B,                             ROUTE_BODY_SMALL,  sessions_delete,      NULL },
    { HTTP_POST,   "/v1/sessions/{session_id}/archive",                     D,         B,                             ROUTE_BODY_SMALL,  sessions_archive,     NULL },
    { HTTP_GET,    "/v1/sessions/{session_id}/resources",                   U,         B | WORKER,                    0,                 resources_list,       "beta_sessions_resources_list" },

    { HTTP_GET,    "/v1/sessions/{session_id}/events",                      U,         B | WORKER,                    0,                 events_list,          "beta_sessions_events_list" },
    { HTTP_POST,   "/v1/sessions/{session_id}/events",                      U,         B | WORKER,                    JS_BODY_MAX,       events_send,          "beta_sessions_events_send" },
    { HTTP_GET,    "/v1/sessions/{session_id}/events/stream",               U,         B | WORKER | IS_STREAM,        0,                 events_stream,        "beta_sessions_events_stream" },
    { HTTP_GET,    "/v1/sessions/{session_id}/threads",                     U,         B,                             0,                 threads_list,         "beta_sessions_threads_list" },
    { HTTP_GET,    "/v1/sessions/{session_id}/threads/{thread_id}",         U,         B,                             0,                 threads_get,          NULL },
    { HTTP_POST,   "/v1/sessions/{session_id}/threads/{thread_id}/archive", D,         B,                             ROUTE_BODY_SMALL,  threads_archive,      NULL },
    { HTTP_GET,    "/v1/sessions/{session_id}/threads/{thread_id}/events",  U,         B,                             0,                 threads_events,       "beta_sessions_threads_events_list" },
    { HTTP_GET,    "/v1/sessions/{session_id}/threads/{thread_id}/stream",  U,         B | IS_STREAM,                 0,                 threads_stream,       "beta_sessions_threads_events_stream" },

    { HTTP_GET,    "/v1/tunnels",                                           U,         T,                             0,                 tunnels_list,         "beta_tunnels_list" },
    { HTTP_POST,   "/v1/tunnels",                                           A,         T,                             ROUTE_BODY_SMALL,  tunnels_create,       "beta_tunnels_create" },
    { HTTP_GET,    "/v1/tunnels/{tunnel_id}",                               U,         T,                             0,                 tunnels_get,          NULL },
    { HTTP_POST,   "/v1/tunnels/{tunnel_id}/archive",                       A,         T,                             ROUTE_BODY_SMALL,  tunnels_archive,      NULL },
    { HTTP_POST,   "/v1/tunnels/{tunnel_id}/reveal_token",                  A,         T,                             ROUTE_BODY_SMALL,  tunnels_reveal_token, NULL },
    { HTTP_POST,   "/v1/tunnels/{tunnel_id}/rotate_token",                  A,         T,                             ROUTE_BODY_SMALL,  tunnels_rotate_token, "beta_tunnels_rotateToken" },
    { HTTP_GET,    "/v1/tunnels/{tunnel_id}/certificates",                  U,         T,                             0,                 certificates_list,    "beta_tunnels_certificates_list" },
    { HTTP_POST,   "/v1/tunnels/{tunnel_id}/certificates",                  A,         T,                             ROUTE_BODY_SMALL,  certificates_create,  "beta_tunnels_certificates_create" },
    { HTTP_GET,    "/v1/tunnels/{tunnel_id}/certificates/{certificate_id}", U,         T,                             0,                 certificates_get,     NULL },
    { HTTP_POST,   "/v1/tunnels/{tunnel_id}/certificates/{certificate_id}/archive", A,         T,                             ROUTE_BODY_SMALL,  certificates_archive, NULL },

    { HTTP_GET,    "/v1/organizations/tunnels",                             U,         O,                             0,                 tunnels_list,         "beta_tunnels_list" },
    { HTTP_POST,   "/v1/organizations/tunnels",                             A,         O,                             ROUTE_BODY_SMALL,  tunnels_create,       "beta_tunnels_create" },
    { HTTP_GET,    "/v1/organizations/tunnels/{tunnel_id}",                 U,         O,                             0,                 tunnels_get,          NULL },
    { HTTP_POST,   "/v1/organizations/tunnels/{tunnel_id}/archive",         A,         O,                             ROUTE_BODY_SMALL,  tunnels_archive,      NULL },
    { HTTP_POST,   "/v1/organizations/tunnels/{tunnel_id}/reveal_token",    A,         O,                             ROUTE_BODY_SMALL,  tunnels_reveal_token, NULL },
    { HTTP_POST,   "/v1/organizations/tunnels/{tunnel_id}/rotate_token",    A,         O,                             ROUTE_BODY_SMALL,  tunnels_rotate_token, "beta_tunnels_rotateToken" },
    { HTTP_GET,    "/v1/organizations/tunnels/{tunnel_id}/certificates",    U,         O,                             0,                 certificates_list,    "beta_tunnels_certificates_list" },
    { HTTP_POST,   "/v1/organizations/tunnels/{tunnel_id}/certificates",    A,         O,                             ROUTE_BODY_SMALL,  certificates_create,  "beta_tunnels_certificates_create" },
    { HTTP_GET,    "/v1/organizations/tunnels/{tunnel_id}/certificates/{certificate_id}", U,         O,                             0,                 certificates_get,     NULL },
    { HTTP_POST,   "/v1/organizations/tunnels/{tunnel_id}/certificates/{certificate_id}/archive", A,         O,                             ROUTE_BODY_SMALL,  certificates_archive, NULL },
    { HTTP_GET,    "/v1/vaults",                                            U,         B,                             0,                 vaults_list,          "beta_vaults_list" },
    { HTTP_POST,   "/v1/vaults",                                            D,         B,                             ROUTE_BODY_SMALL,  vaults_create,        "beta_vaults_create" },
    { HTTP_GET,    "/v1/vaults/{vault_id}",                                 U,         B,                             0,                 vaults_get,           NULL },
    { HTTP_POST,   "/v1/vaults/{vault_id}",                                 D,         B,                             ROUTE_BODY_SMALL,  vaults_update,        "beta_vaults_update" },
    { HTTP_DELETE, "/v1/vaults/{vault_id}",                                 D,         B,                             ROUTE_BODY_SMALL,  vaults_delete,        NULL },
    { HTTP_POST,   "/v1/vaults/{vault_id}/archive",                         D,         B,                             ROUTE_BODY_SMALL,  vaults_archive,       NULL },
    { HTTP_GET,    "/v1/vaults/{vault_id}/credentials",                     U,         B,                             0,                 credentials_list,     "beta_vaults_credentials_list" },
    { HTTP_POST,   "/v1/vaults/{vault_id}/credentials",                     D,         B | SECRET_BODY,               ROUTE_BODY_SECRETS, credentials_create,  "beta_vaults_credentials_create" },
    { HTTP_GET,    "/v1/vaults/{vault_id}/credentials/{credential_id}",     U,         B,                             0,                 credentials_get,      NULL },
    { HTTP_POST,   "/v1/vaults/{vault_id}/credentials/{credential_id}",     D,         B | SECRET_BODY,               ROUTE_BODY_SECRETS, credentials_update,  "beta_vaults_credentials_update" },
    { HTTP_DELETE, "/v1/vaults/{vault_id}/credentials/{credential_id}",     D,         B,                             ROUTE_BODY_SMALL,  credentials_delete,   NULL },
    { HTTP_POST,   "/v1/vaults/{vault_id}/credentials/{credential_id}/archive", D,     B,                             ROUTE_BODY_SMALL,  credentials_archive,  NULL },
    { HTTP_POST,   "/v1/vaults/{vault_id}/credentials/{credential_id}/mcp_oauth_validate", D, B,                      ROUTE_BODY_SMALL,  credentials_validate, NULL },

    { HTTP_GET,    "/outwork/v1/keys",                                      A,         0,                             0,                 keys_list,            NULL },
    { HTTP_POST,   "/outwork/v1/keys",                                      A,         0,                             ROUTE_BODY_SMALL,  keys_create,          NULL },
    { HTTP_GET,    "/outwork/v1/keys/{key_id}",                             A,         0,                             0,                 keys_get,             NULL },
    { HTTP_DELETE, "/outwork/v1/keys/{key_id}",                             A,         0,                             ROUTE_BODY_SMALL,  keys_revoke,          NULL },
    { HTTP_GET,    "/outwork/v1/environments/{environment_id}/keys",        A,         0,                             0,                 env_keys_list,        NULL },
    { HTTP_POST,   "/outwork/v1/environments/{environment_id}/keys",        A,         0,                             ROUTE_BODY_SMALL,  env_keys_create,      NULL },
    { HTTP_DELETE, "/outwork/v1/environments/{environment_id}/keys/{key_id}", A,       0,                             ROUTE_BODY_SMALL,  env_keys_revoke,      NULL },

    { HTTP_GET,    "/outwork/v1/edge-keys",                                 A,         0,                             0,                 edge_keys_list,       NULL },
    { HTTP_POST,   "/outwork/v1/edge-keys",                                 A,         0,                             ROUTE_BODY_SMALL,  edge_keys_create,     NULL },
    { HTTP_GET,    "/outwork/v1/edge-keys/{key_id}",                        A,         0,                             0,                 edge_keys_get,        NULL },
    { HTTP_DELETE, "/outwork/v1/edge-keys/{key_id}",                        A,         0,                             ROUTE_BODY_SMALL,  edge_keys_revoke,     NULL },
    { HTTP_GET,    "/outwork/v1/tunnels",                                   U,         0,                             0,                 tunnel_status_list,   "beta_tunnels_list" },
    { HTTP_GET,    "/outwork/v1/tunnels/{tunnel_id}",                       U,         0,                             0,                 tunnel_status_get,    NULL },
    { HTTP_GET,    "/outwork/v1/tunnels/{tunnel_id}/connectors",            U,         0,                             0,                 tunnel_connectors,    NULL },
    { HTTP_GET,    "/outwork/v1/edges",                                     A,         0,                             0,                 edges_list,           NULL },
    { HTTP_POST,   "/outwork/v1/edges/authenticate",                        ROLE_NONE, WHO_EDGE_KEY,                  ROUTE_BODY_SMALL,  edges_authenticate,   NULL },
    { HTTP_POST,   "/outwork/v1/edges/{edge_id}/heartbeat",                 ROLE_NONE, WHO_EDGE_KEY,                  ROUTE_BODY_AGENT,  edges_heartbeat,      NULL },
    { HTTP_GET,    "/outwork/v1/edges/route",                               ROLE_NONE, WHO_EDGE_KEY,                  0,                 edges_route,          NULL },
};
const size_t routes_n = COUNT_OF(routes);
#undef U
#undef D
#undef A
#undef B
#undef T
#undef O

static bool next_segment(struct slice *left, struct slice *ret)
{
    if (!left->n || left->p[0] != '/')
        return false;
    left->p++;
    left->n--;
    const char *slash = memchr(left->p, '/', left->n);
    *ret = (struct slice){ left->p, slash ? (size_t)(slash - left->p) : left->n };
    left->p += ret->n;
    left->n -= ret->n;
    return true;
}

/* How well `path` fits: -1 not at all, else the number of literal segments. */
static int match(const char *pattern, struct slice path, struct slice params[CALL_PARAMS_MAX])
{
    struct slice want = slice_of(pattern), w, g;
    int literals = 0;
    size_t n = 0;
    for (int i = 0; i < SEGMENTS_MAX; i++) {
        bool more_w = next_segment(&want, &w), more_g = next_segment(&path, &g);
        if (more_w != more_g)
            return -1;
        if (!more_w)
            return want.n || path.n ? -1 : literals;
        if (w.n && w.p[0] == '{') {
            if (!g.n || n == CALL_PARAMS_MAX)
                return -1;
            params[n++] = g;
        } else if (w.n == g.n && memcmp(w.p, g.p, w.n) == 0) {
            literals++;
        } else {
            return -1;
        }
    }
    return -1;
}

int route_find(enum http_method method, struct slice path, const struct route **ret, struct slice params[CALL_PARAMS_MAX], char allow[64])
{
    int best = -1;
    size_t used = 0;
    const struct route *found = NULL;
    allow[0] = '\0';
    if (path.n > 1 && path.p[path.n - 1] == '/')
        path.n--;                    /* a trailing slash means the same */
    for (size_t i = 0; i < routes_n; i++) {
        struct slice got[CALL_PARAMS_MAX] = { { NULL, 0 } };
        int fit = match(routes[i].path, path, got);
        if (fit < 0)
            continue;
        if (routes[i].method == method && fit > best) {
            best = fit;
            found = &routes[i];
            memcpy(params, got, sizeof got);
        }
        int k = snprintf(allow + used, 64 - used, "%s%s", used ? ", " : "", http_method_name(routes[i].method));
        used += k > 0 && (size_t)k < 64 - used ? (size_t)k : 0;
    }
    if (found) {
        *ret = found;
        return RC_OK;
    }
    return used ? RC_INVALID : RC_NOT_FOUND;
}

const char *route_unserved(enum http_method method, struct slice path)
{
    for (size_t i = 0; i < schema_known_n; i++) {
        struct slice got[CALL_PARAMS_MAX] = { { NULL, 0 } };
        if (str_eq(schema_known[i].method, http_method_name(method)) && match(schema_known[i].path, path, got) >= 0)
            return schema_known[i].id;
    }
    return NULL;
}
