/* gateway/reload.h - what the settings file and the files it names make, and making it again when one of them changes. Loop thread only. */
#pragma once

#include "gateway/front.h"
#include "gateway/settings.h"

#define RELOAD_LOOK_MS 1000              /* between two looks at the files; a change counts when it stays the same for one */

/* A whole configuration, ready to serve. */
struct setup {
    struct gateway_settings set;
    struct env *env;
    struct route_table *routes;
    struct tls_ctx *tls;
    char *stamps;                        /* of the files as they were when they were read; NULL from setup_text() */
};
/* Loads and checks everything. `old` (may be NULL) is what unchanged parts are taken from. */
MUST_CHECK int setup_load(struct ev *ev, int argc, char **argv, const struct route_table *old_routes, struct env *old_env, struct setup *ret, struct err *e);
/* The same from text, for tests and fuzzing. Without the certificate when `no_tls`. */
MUST_CHECK int setup_text(struct ev *ev, const char *yaml, size_t n, bool no_tls, struct setup *ret, struct err *e);
/* The rest of it from `s->set`, which came from `settings_file` (may be NULL). */
MUST_CHECK int setup_build(struct ev *ev, const char *settings_file, struct setup *s, struct err *e);
void setup_done(struct setup *s);

/* Calls `changed` when the settings file or a file of `set` (borrowed until the next watch_files()) is another one than before, and has stayed so for one look. */
struct watch;
struct watch *watch_new(struct ev *ev, void (*changed)(void *ctx), void *ctx);
void watch_files(struct watch *w, const char *settings_file, const struct gateway_settings *set, char *take_stamps);
void watch_free(struct watch *w);
