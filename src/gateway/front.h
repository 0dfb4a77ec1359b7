/* gateway/front.h - the inner TLS and the HTTP/1.1 in it: takes carriers, reads requests strictly, hands each to the upstream of its route and passes the answer
 * on as it comes. Keep-alive and pipelining (one request of a connection at a time); bodies of any length are streamed both ways; a client that leaves
 * cancels its request upstream at once. Loop thread only. */
#pragma once

#include "ev/ev.h"
#include "gateway/carrier.h"
#include "gateway/routes.h"
#include "gateway/trail.h"
#include "tls/tls.h"

#define FRONT_OUT_MAX (64 * KIB)         /* of an answer that wait for the carrier; then the upstream is not read */
#define FRONT_IN_MAX (HTTP_HEAD_MAX + 64 * KIB)      /* of requests that wait: a head, a body that the upstream does not take, pipelined ones */
#define FRONT_AHEAD_MAX (32 * KIB)       /* of pipelined requests read ahead of an answer */
#define FRONT_HOLD_MAX (4 * MIB)         /* a request's body that is held back until the tool policy has read all of it; larger ones are refused */
#define FRONT_HELD_MAX (128 * MIB)       /* of all such bodies together; then 503 */
#define FRONT_LINGER_MS 2000             /* after the last answer of a connection: time for the client to read it and close */
#define FRONT_RETRY_S 1                  /* Retry-After of a 503 */

struct front_limits { size_t conns_max, requests_max; int64_t head_ms, body_ms, keep_ms; };

/* `trail` NULL: no audit. Both are borrowed. */
struct front *front_new(struct ev *ev, const struct front_limits *l, struct trail *trail);
void front_limits(struct front *f, const struct front_limits *l);
/* From the next connection (TLS) and the next request (routes) on. Both are taken; what open connections and requests use lives on until they are done. */
void front_serve(struct front *f, struct tls_ctx *take_tls, struct route_table *take_routes);
const struct route_table *front_routes(const struct front *f);
/* Idle connections are closed, the others after their answer; cb when none is left. */
void front_drain(struct front *f, void (*cb)(void *ctx), void *ctx);
void front_free(struct front *f);        /* at once */
size_t front_conns(const struct front *f);
size_t front_requests(const struct front *f);
