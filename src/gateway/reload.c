/* gateway/reload.c - see reload.h. Files are looked at by name once a second and not watched by inotify: that also sees a Kubernetes volume being switched by its
 * symbolic link, and network file systems. */
#include "gateway/reload.h"

#include <string.h>

#include "base/str.h"

#define STAMPS_MAX (1 * MIB)

/* ---- stamps ---- */

/* "file: PATH" anywhere below (secret headers). */
static void named_files(const struct conf_node *x, struct buf *out)
{
    if (x->kind == CONF_NODE_TEXT && x->key && x->text && str_eq(x->key, "file"))
        file_stamp(out, x->text);
    for (size_t i = 0; i < x->n; i++)
        named_files(&x->child[i], out);
}

/* Of the files that `set` names. */
static void stamp_files(const struct gateway_settings *set, struct buf *out)
{
    const char *const files[] = { set->cert_file, set->key_file, set->upstream_ca, set->upstream_cert, set->upstream_key };
    for (size_t i = 0; i < COUNT_OF(files); i++)
        file_stamp(out, files[i]);
    if (set->routes)
        named_files(&set->routes->root, out);
}

/* ---- one configuration ---- */

static int build(struct ev *ev, const struct route_table *old_routes, struct env *old_env, bool no_tls, struct setup *s, struct err *e)
{
    TRY(gateway_settings_finish(&s->set, e));
    TRY(env_new(ev, &s->set, old_env, &s->env, e));
    TRY(route_table_new(s->env, &s->set, old_routes, &s->routes, e));
    if (no_tls)
        return RC_OK;
    struct tls_conf c = { .cert_file = s->set.cert_file, .key_file = s->set.key_file, .tls13_only = true };
    return tls_ctx_server(&c, &s->tls, e);
}

int setup_load(struct ev *ev, int argc, char **argv, const struct route_table *old_routes, struct env *old_env, struct setup *ret, struct err *e)
{
    struct setup s = { .env = NULL };
    bool quit = false;
    struct buf stamps;
    buf_init(&stamps, STAMPS_MAX);
    file_stamp(&stamps, conf_file(&gateway_program, argc, argv));
    int rc = conf_load(&gateway_program, argc, argv, &s.set, NULL, &quit, e);
    stamp_files(&s.set, &stamps);        /* before they are read, so that a change meanwhile shows at the next look */
    s.stamps = buf_take(&stamps, NULL);
    if (rc == RC_OK)
        rc = build(ev, old_routes, old_env, false, &s, e);
    if (rc < 0) {
        setup_done(&s);
        return rc;
    }
    *ret = s;
    return RC_OK;
}

int setup_text(struct ev *ev, const char *yaml, size_t n, bool no_tls, struct setup *ret, struct err *e)
{
    struct setup s = { .env = NULL };
    int rc = conf_load_text(&gateway_program, yaml, n, &s.set, e);
    if (rc == RC_OK)
        rc = build(ev, NULL, NULL, no_tls, &s, e);
    if (rc < 0) {
        setup_done(&s);
        return rc;
    }
    *ret = s;
    return RC_OK;
}

int setup_build(struct ev *ev, const char *settings_file, struct setup *s, struct err *e)
{
    struct buf stamps;
    buf_init(&stamps, STAMPS_MAX);
    file_stamp(&stamps, settings_file);
    stamp_files(&s->set, &stamps);
    s->stamps = buf_take(&stamps, NULL);
    return build(ev, NULL, NULL, false, s, e);
}

void setup_done(struct setup *s)
{
    route_table_free(s->routes);
    env_unref(s->env);
    tls_ctx_free(s->tls);
    conf_free(&gateway_program, &s->set);
    free(s->stamps);
    *s = (struct setup){ .env = NULL };
}

/* ---- looking ---- */

struct watch {
    struct ev *ev;
    void (*changed)(void *ctx);
    void *ctx;
    struct ev_timer timer;
    const char *file;
    const struct gateway_settings *set;
    char *known, *seen;                  /* stamps: in force, and at the last look */
};

static void on_look(struct ev_timer *t)
{
    struct watch *w = container_of(t, struct watch, timer);
    struct buf b;
    buf_init(&b, STAMPS_MAX);
    file_stamp(&b, w->file);
    stamp_files(w->set, &b);
    char *now = buf_take(&b, NULL);
    bool settled = w->seen && str_eq(w->seen, now), news = !str_eq(w->known, now);
    free(w->seen);
    w->seen = now;
    ev_timer_set(w->ev, t, RELOAD_LOOK_MS, on_look);
    if (!news || !settled)
        return;
    free(w->known);                      /* also when it turns out to be wrong: it is tried again at the next change */
    w->known = str_dup(now);
    w->changed(w->ctx);
}

struct watch *watch_new(struct ev *ev, void (*changed)(void *ctx), void *ctx)
{
    struct watch *w = xcalloc(1, sizeof *w);
    w->ev = ev;
    w->changed = changed;
    w->ctx = ctx;
    return w;
}

void watch_files(struct watch *w, const char *settings_file, const struct gateway_settings *set, char *take_stamps)
{
    w->file = settings_file;
    w->set = set;
    free(w->known);
    free(w->seen);
    w->known = take_stamps;
    w->seen = NULL;
    ev_timer_set(w->ev, &w->timer, RELOAD_LOOK_MS, on_look);
}

void watch_free(struct watch *w)
{
    if (!w)
        return;
    ev_timer_stop(&w->timer);
    free(w->known);
    free(w->seen);
    free(w);
}
