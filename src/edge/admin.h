/* edge/admin.h - /healthz, /readyz and /metrics in plain HTTP. */
#pragma once

#include "edge/ctx.h"

MUST_CHECK int edge_admin_new(struct edge *e, struct admin **ret, struct err *err);       /* RC_OK with NULL when admin.listen is not set */
void edge_admin_free(struct admin *a);
const char *admin_address(const struct admin *a);    /* "" when off */
