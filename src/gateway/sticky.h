/* gateway/sticky.h - which of a route's upstreams a session lives on: learned from answers (Mcp-Session-Id), forgotten when it was not used for longest. Loop
 * thread only. */
#pragma once

#include "base/attr.h"
#include "base/str.h"

#define STICKY_MAX 16384                 /* sessions of one route that are remembered */
#define STICKY_ID_MAX 256                /* bytes of an id; a longer one is not remembered */

struct sticky;
struct sticky *sticky_new(void);
void sticky_free(struct sticky *s);
void sticky_set(struct sticky *s, struct slice id, size_t upstream);
bool sticky_get(struct sticky *s, struct slice id, size_t *ret_upstream);
void sticky_drop(struct sticky *s, struct slice id);
