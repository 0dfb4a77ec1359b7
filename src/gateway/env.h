/* gateway/env.h - what all routes of one configuration share towards their upstreams: the address guard, TLS, times. Reference counted and unchanged once
 * made, so that routes which a reload did not touch go on with theirs. Loop thread only. */
#pragma once

#include "ev/ev.h"
#include "gateway/guard.h"
#include "gateway/settings.h"
#include "tls/tls.h"

struct env {
    unsigned refs;
    struct ev *ev;
    struct ip_guard *guard;
    struct tls_ctx *tls;                 /* NULL: no https upstream can be verified (neither ca_file nor include_system_cas) */
    int64_t connect_ms, idle_ms;
    size_t idle_max;
    char *text;                          /* what it was made from: equal texts, equal environments */
};
/* `old` (may be NULL) is taken again when nothing has changed. */
MUST_CHECK int env_new(struct ev *ev, const struct gateway_settings *s, struct env *old, struct env **ret, struct err *e);
struct env *env_ref(struct env *v);
void env_unref(struct env *v);           /* NULL is fine */
/* Appends what tells a file's contents from others without reading it: name, inode, size, times. */
void file_stamp(struct buf *out, const char *path);
