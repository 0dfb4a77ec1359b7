/* edge/ctx.h - what the parts of the edge share. Loop thread only. */
#pragma once

#include "edge/control.h"
#include "edge/door.h"
#include "edge/settings.h"
#include "tunnel/link.h"

#define EDGE_HEAD_MAX (16 * KIB)         /* request head of a gateway, provider or peer */

struct gateways;
struct routes;
struct peers;
struct admin;

struct edge {
    struct edge_settings set;
    struct ev *ev;
    char id[ID_MAX];
    struct tls_ctx *tls_gateway, *tls_provider, *tls_peer, *tls_peer_client;   /* in force; the last two may be NULL */
    struct tls_ctx **retired; size_t n_retired;                                /* of before a SIGHUP: connections may still use them */
    struct ranges gateway_allow, provider_allow, passthrough_allow;
    struct door *gateway_door, *provider_door, *passthrough_door, *peer_door;  /* the last two may be NULL */
    struct link_budget budget;
    struct control *control;
    struct gateways *gateways;
    struct routes *routes;
    struct peers *peers;
    struct admin *admin;
    struct list calls, splices, passes;      /* clients that wait for a stream; streams of other edges that wait; what is being relayed */
    size_t n_passes;
    struct ev_timer drain_end, drain_look;
    bool draining;
};

/* A client asks for a host: the rest is provider.c's and passthrough.c's common way, call.c. `http`: it sent CONNECT; else a ClientHello. */
void call_start(struct edge *e, struct guest *g, const char *host, uint16_t port, bool http);
void calls_end(struct edge *e);

void provider_input(struct guest *g);        /* door_ctx() of all doors is the edge */
void passthrough_input(struct guest *g);
