/* server/api/api.h - the HTTP API: routes requests to handlers on job threads (architecture section 3).
 * api_request() and api_body_limit() run on the loop thread, handlers on job threads. */
#pragma once

#include "auth/auth.h"
#include "base/attr.h"
#include "base/err.h"
#include "crypto/seal.h"
#include "ev/ev.h"
#include "ev/jobs.h"
#include "http/server.h"
#include "server/events/hub.h"
#include "server/loop/loop.h"
#include "server/messages/messages.h"
#include "server/model/model.h"
#include "server/vault/vault.h"
#include "server/work/park.h"
#include "store/store.h"

struct api;
struct api_conf {
    struct ev *ev; struct jobs *jobs; struct store *store; struct loop *loop; struct model_registry *models;
    const struct seal_ring *seal;        /* seals the secrets of vaults and tunnels */
    struct vault *vault;                 /* validates credentials; NULL: that is not served */
    struct hub *hub; struct park *park; struct messages *messages;
    const char *public_url;              /* base URL told to workers, or NULL */
    const char *organization_id, *workspace_id;
    int64_t lease_ms;                    /* default lease of a work item */
    const char *tunnel_domain;           /* new tunnels lie below it; NULL: none can be made */
};
MUST_CHECK int api_new(const struct api_conf *c, struct api **ret, struct err *e);
void api_free(struct api *a);
void api_watch(struct api *a);                        /* job: logs what an operator should see in time (certificates about to expire) */
void api_draining(struct api *a);                     /* /readyz says no from now on. Any thread. */
/* For struct http_server_conf; ctx = struct api. */
void api_request(void *ctx, struct http_req *r);
int64_t api_body_limit(void *ctx, const struct http_head *h);
void api_refused(void *ctx, int status, const char *why, struct buf *body);
