/* gateway/init_api.h - the few calls of the tunnels API that setting up a gateway needs (tunnels.md 2), one after the other. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "base/secret.h"
#include "json/js.h"

#define INIT_API_TEXT_MAX 256

struct init_api;
struct init_api_conf {
    const char *base;                        /* "https://api.example.com" */
    const struct secret *credential;         /* sent as Authorization: Bearer; borrowed, never kept longer. NULL: call init_api_exchange first. */
    const char *ca_file, *http_proxy, *https_proxy, *no_proxy;
};
MUST_CHECK int init_api_new(const struct init_api_conf *c, struct init_api **ret, struct err *e);
void init_api_free(struct init_api *a);
DEFINE_AUTO(init_api);

/* Workload identity (tunnels.md 2.5): an OpenID Connect token of the platform is exchanged for a short-lived credential, which the calls below use. Refused for a
 * service that is not reached by https, except on loopback: the token would cross the network in the clear. */
struct init_identity { const struct secret *token; const char *rule_id, *organization_id, *service_account_id, *workspace_id; /* the last two may be NULL */ };
MUST_CHECK int init_api_exchange(struct init_api *a, const struct init_identity *id, struct err *e);

/* All: RC_UNAUTHORIZED, RC_DENIED, RC_NOT_FOUND, RC_INVALID with the service's own words; RC_PROTO: an answer that is not what the API promises. */
struct init_tunnel { char id[INIT_API_TEXT_MAX], domain[INIT_API_TEXT_MAX]; bool archived; };
MUST_CHECK int init_api_tunnel(struct init_api *a, const char *id, struct init_tunnel *ret, struct err *e);
MUST_CHECK int init_api_create(struct init_api *a, const char *display_name, struct init_tunnel *ret, struct err *e);       /* not idempotent */
/* Registers the authority unless one with this fingerprint is active already; *ret_added says which. */
MUST_CHECK int init_api_register(struct init_api *a, const char *tunnel_id, const char *pem, const char *fingerprint, bool *ret_added, struct err *e);
MUST_CHECK int init_api_token(struct init_api *a, const char *tunnel_id, bool rotate, struct secret **ret, struct err *e);
/* Ids become parts of URLs and file contents. */
bool init_id_ok(const char *id);
bool init_domain_ok(const char *domain);
