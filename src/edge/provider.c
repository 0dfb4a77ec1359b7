/* edge/provider.c - the provider's listener: an HTTPS proxy that knows CONNECT. The client certificate was checked in the handshake, the source before it. */
#include "edge/ctx.h"
#include "edge/host.h"

#define TUNNEL_PORT 443                  /* hosts of tunnels have this one port (tunnels.md 1.2) */

void provider_input(struct guest *g)
{
    struct http_head h;
    size_t used = 0;
    char host[HOST_MAX];
    uint16_t port = 0;
    if (guest_head(g, &h, &used) != RC_OK)
        return;
    if (h.method != HTTP_CONNECT)
        guest_refuse(g, REFUSE_BAD_METHOD, NULL);
    else if (host_parse(h.target, host, &port) < 0)
        guest_refuse(g, REFUSE_UNKNOWN_TUNNEL, NULL);
    else if (port != TUNNEL_PORT)
        guest_refuse(g, REFUSE_BAD_PORT, NULL);
    else {
        buf_consume(&g->in, used);
        call_start(door_ctx(g->door), g, host, port, true);
    }
}
