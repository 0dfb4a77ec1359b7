/* gateway/admin.h - /healthz, /readyz and /metrics on an address of their own (tunnels.md 11 e). Loop thread only. */
#pragma once

#include "base/err.h"
#include "ev/ev.h"

struct gateway_admin;
struct gateway_admin_ops {
    bool (*ready)(void *ctx, char why[256]);     /* why not, one line */
    void (*refresh)(void *ctx);                  /* sets the gauges, before they are written */
};
/* `listen`: "127.0.0.1:9090". */
MUST_CHECK int gateway_admin_start(struct ev *ev, const char *listen, const struct gateway_admin_ops *ops, void *ctx, struct gateway_admin **ret, struct err *e);
void gateway_admin_free(struct gateway_admin *a);        /* NULL is fine */
