/* edge/passthrough.c - the optional plain listener: the server name in the ClientHello picks the tunnel, and the hello goes on as it came. */
#include "edge/ctx.h"
#include "edge/host.h"
#include "tunnel/hello.h"

#define TUNNEL_PORT 443

void passthrough_input(struct guest *g)
{
    static const char unrecognized_name[] = { 21, 3, 3, 0, 2, 2, 112 };     /* a fatal alert, RFC 8446 6.2 */
    char name[HELLO_NAME_MAX];
    int rc = hello_name((const uint8_t *)buf_data(&g->in), buf_len(&g->in), name);
    if (rc == RC_AGAIN && buf_room(&g->in))
        return;
    if (rc != RC_OK) {
        stats_refused(REFUSE_NO_HELLO);
        guest_drop(g);
    } else if (!host_valid(name)) {
        stats_refused(REFUSE_UNKNOWN_TUNNEL);
        guest_end(g, unrecognized_name, sizeof unrecognized_name);
    } else {
        call_start(door_ctx(g->door), g, name, TUNNEL_PORT, false);
    }
}
