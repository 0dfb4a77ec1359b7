/* edge/control.h - what the edge asks the server (tunnel/proto.h): who may connect, where a host is served; and what it tells it: the heartbeat. Loop thread
 * only; answers never come inside the call. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "base/random.h"
#include "base/secret.h"
#include "ev/ev.h"
#include "json/js.h"

#define CONTROL_AUTH_RUNNING 32          /* token checks at the server at once; the others wait here, bounded by the guests of the door */
#define CONTROL_TIMEOUT_MS 10000
#define CONTROL_ANSWER_MAX (1 * MIB)     /* a heartbeat of an edge lists the states of all its tunnels */
#define CONTROL_DOMAIN_MAX 256           /* with NUL */
#define CONTROL_EDGES_MAX 4              /* of one tunnel that are tried */

enum tunnel_state { TUNNEL_ACTIVE, TUNNEL_NEEDS_CERTIFICATE, TUNNEL_ARCHIVED };

struct control;
struct control_conf {
    struct ev *ev;
    const char *base_url, *ca_file, *edge_id;
    struct secret *key;                  /* taken over */
    json_t *(*beat)(void *ctx);          /* the body of a heartbeat, new reference */
    void (*on_state)(void *ctx, const char *tunnel_id, enum tunnel_state s);      /* from the answers of heartbeats */
    void (*on_reachable)(void *ctx, bool reachable);                              /* changes only */
    void *ctx;
};
MUST_CHECK int control_new(const struct control_conf *c, struct control **ret, struct err *e);
void control_free(struct control *c);
void control_start(struct control *c);           /* sends the first heartbeat */
void control_changed(struct control *c);         /* something worth a heartbeat happened; several in a row make one */
bool control_reachable(const struct control *c, const char **ret_why);   /* the last heartbeat was accepted, and not longer ago than its ttl; else why not */

/* One token. RC_OK with the facts, borrowed; RC_UNAUTHORIZED; another code: the server cannot say now. */
struct control_tunnel { const char *tunnel_id, *domain, *token_id; enum tunnel_state state; };
struct control_auth;
struct control_auth *control_authenticate(struct control *c, const char *tunnel_id, const char *token_sha256_hex,
                                          void (*done)(void *ctx, int rc, const struct control_tunnel *t), void *ctx);
void control_auth_cancel(struct control_auth *a);        /* no answer comes; NULL is fine */

/* Where a host is served. RC_OK, RC_NOT_FOUND: no such tunnel; another code: the server cannot say now. */
struct control_route { char tunnel_id[ID_MAX]; char domain[CONTROL_DOMAIN_MAX]; enum tunnel_state state; size_t n; struct { char id[ID_MAX], address[CONTROL_DOMAIN_MAX + 8]; } edges[CONTROL_EDGES_MAX]; };
void control_route(struct control *c, const char *host, void (*done)(void *ctx, int rc, const struct control_route *r), void *ctx);
