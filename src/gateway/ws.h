/* gateway/ws.h - `--behind-cloudflared`: a plain listener on the configuration's `listen_addr`, where cloudflared hands over connections as WebSockets whose
 * payload is the inner TLS (tunnels.md 4.4), so that the gateway can stand in for the closed proxy image. Loop thread only.
 *
 * Accepted: an HTTP/1.1 upgrade to websocket on any path and with any subprotocol, then binary or text frames, fragmented or not, masked or not, with no
 * alignment between frames and TLS records; and TLS right away (first byte 0x16), which is what cloudflared gives to a tcp:// origin. Anything else
 * gets an HTTP answer that says what this port is for. Decision 0015. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "ev/ev.h"
#include "gateway/carrier.h"
#include "net/net.h"

#define WS_CONNS_MAX 4096                /* connections of one listener; the next ones wait in the backlog, where one without a request makes room after WS_PATIENCE_MS */
#define WS_HEAD_MS 10000                 /* time to send the first byte and the whole upgrade request */
#define WS_PATIENCE_MS 1000

struct ws_conf { size_t conns_max; int64_t head_ms; };   /* 0: the defaults above */
struct ws_listener;
/* `c` may be NULL. `f` is borrowed until ws_free(). */
MUST_CHECK int ws_listen(struct ev *ev, const struct net_addr *a, const struct ws_conf *c, struct front *f, struct ws_listener **ret, struct err *e);
const struct net_addr *ws_addr(const struct ws_listener *l);     /* with the real port */
size_t ws_conns(const struct ws_listener *l);
void ws_stop_accepting(struct ws_listener *l);           /* draining: connections go on */
/* Closes the listener and what has not been handed over; carriers that the front has stay its own. NULL is fine. */
void ws_free(struct ws_listener *l);
