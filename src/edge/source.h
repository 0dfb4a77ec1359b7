/* edge/source.h - how many connections each source has: one address of IPv4, one /64 of IPv6 (which one host can walk through). A source is known only
 * while it has a connection, so the table is bounded by the connections. Loop thread only. */
#pragma once

#include "base/attr.h"
#include "base/list.h"
#include "net/net.h"

struct sources;
struct source {
    struct list node;                /* private */
    uint8_t key[16];                 /* private */
    size_t conns;                    /* open connections of this source */
    size_t fresh;                    /* those among them that have not said who they are */
};
struct sources *sources_new(void);
void sources_free(struct sources *s);
/* Counts one more, fresh connection in. Never NULL. */
struct source *source_enter(struct sources *s, const struct net_addr *a);
void source_known(struct source *s);                 /* the connection is no longer fresh; once */
void source_leave(struct source *s, bool fresh);     /* the connection is gone */
