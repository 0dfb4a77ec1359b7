/* worker/skills.c - see skills.h. One skill after another, one file after another: the sandbox takes one request at a time. */
#include "worker/skills.h"

#include <stdio.h>
#include <string.h>

#include "base/list.h"
#include "base/str.h"
#include "log/log.h"
#include "worker/record.h"
#include "worker/skills_unpack.h"
#include "worker/unpack.h"

#define VERSION_MAX 64
#define SKILL_ID_MAX 128
#define DIR_NAME_MAX 128
#define VERSION_PAGES_MAX 50
#define CALL_MS 60000
#define DOWNLOAD_MS 300000
#define PUT_NAME_MAX (UNPACK_NAME_MAX + DIR_NAME_MAX + 32)

struct skill { char id[SKILL_ID_MAX], version[VERSION_MAX], dir[DIR_NAME_MAX]; bool placed; };

struct skills {
    struct skills_conf c;
    const struct secret *cred;           /* the one in use */
    struct skill *v;
    size_t n, at, n_files;
    int pages;
    char best[VERSION_MAX], page[256];
    struct api_call *call;
    struct skills_unpack *unpack;
    struct ev_timer turn;
    bool calling;                        /* a removal runs in the box */
    void (*removed)(void *);
    void *removed_ctx;
};

static void ask_versions(struct skills *s);
static void ask_name(struct skills *s);
static void ask_content(struct skills *s);
static void begin_skill(struct skills *s);

/* ---- pure ---- */

bool skill_version_exact(const char *v)
{
    return v && *v && v[strspn(v, "0123456789")] == 0;
}

int skill_version_cmp(const char *a, const char *b)
{
    a += strspn(a, "0");
    b += strspn(b, "0");
    size_t an = strlen(a), bn = strlen(b);
    return an != bn ? (an < bn ? -1 : 1) : strcmp(a, b);
}

void skill_dir_name(const char *name, const char *id, char *out, size_t cap)
{
    struct slice t = slice_trim(slice_of(name ? name : ""));
    while (t.n && t.p[t.n - 1] == '/')
        t.n--;
    const char *slash = t.n ? memrchr(t.p, '/', t.n) : NULL;
    if (slash)
        t = (struct slice){ slash + 1, t.n - (size_t)(slash + 1 - t.p) };
    if (t.n && t.n < cap && unpack_name_ok(t.p, t.n)) {
        memcpy(out, t.p, t.n);
        out[t.n] = 0;
    } else {
        (void)str_copy(out, cap, id);
    }
}

static bool plain(const char *s, size_t cap)
{
    size_t n = s ? strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") : 0;
    return n && n < cap && s[n] == 0;
}

/* ---- order ---- */

static void on_turn(struct ev_timer *t)
{
    struct skills *s = container_of(t, struct skills, turn);
    if (s->at < s->n)
        begin_skill(s);
    else
        s->c.done(s->c.ctx);
}

static void next_skill(struct skills *s)
{
    s->at++;
    ev_timer_set(s->c.w->ev, &s->turn, 0, on_turn);
}

static void give_up(struct skills *s, const char *what, const char *why)
{
    log_warn("skill.failed", "session=%s skill=%s step=%s why=%s", s->c.session_id, s->v[s->at].id, what, why);
    next_skill(s);
}

/* True when the same call is to be made again with the other credential (worker.md 2.5). */
static bool other_credential(struct skills *s, const struct api_answer *a)
{
    if ((a->status != 401 && a->status != 403) || !s->c.fallback || s->cred == s->c.fallback)
        return false;
    log_info("skill.credential", "session=%s why=%s", s->c.session_id, "the item's token is not accepted for skills; the environment key is used");
    s->cred = s->c.fallback;
    return true;
}

static void ask(struct skills *s, const char *what, const char *query, size_t body_max, bool raw, void (*done)(void *, const struct api_answer *))
{
    char path[API_PATH_MAX];
    (void)snprintf(path, sizeof path, "/v1/skills/%s/versions%s?beta=true%s", s->v[s->at].id, what, query);
    struct api_req r = { .method = "GET", .path = path, .cred = s->cred, .beta = API_BETA_SKILLS, .timeout_ms = raw ? DOWNLOAD_MS : CALL_MS,
                         .body_max = body_max, .raw = raw, .done = done, .ctx = s };
    s->call = api_start(&s->c.w->api, &r);
}

/* ---- one skill: version, name, archive ---- */

static void on_versions(void *ctx, const struct api_answer *a)
{
    struct skills *s = ctx;
    s->call = NULL;
    if (a->outcome != API_OK) {
        if (other_credential(s, a))
            ask_versions(s);
        else
            give_up(s, "versions", a->why);
        return;
    }
    size_t i;
    json_t *it;
    json_array_foreach(js_at(a->json, "data"), i, it) {
        const char *v = js_str(it, "version");
        if (skill_version_exact(v) && strlen(v) < VERSION_MAX && (!s->best[0] || skill_version_cmp(v, s->best) > 0))
            (void)str_copy(s->best, sizeof s->best, v);
    }
    const char *next = js_str(a->json, "next_page");
    if (next && plain(next, sizeof s->page) && ++s->pages < VERSION_PAGES_MAX) {
        (void)str_copy(s->page, sizeof s->page, next);
        ask_versions(s);
    } else if (!s->best[0]) {
        give_up(s, "versions", "the skill has no version");
    } else {
        (void)str_copy(s->v[s->at].version, VERSION_MAX, s->best);
        ask_name(s);
    }
}

static void ask_versions(struct skills *s)
{
    char query[300] = "";
    if (s->page[0])
        (void)snprintf(query, sizeof query, "&page=%s", s->page);
    ask(s, "", query, 0, false, on_versions);
}

static void on_name(void *ctx, const struct api_answer *a)
{
    struct skills *s = ctx;
    struct skill *k = &s->v[s->at];
    s->call = NULL;
    if (a->outcome != API_OK) {
        if (other_credential(s, a))
            ask_name(s);
        else
            give_up(s, "version", a->why);
        return;
    }
    skill_dir_name(js_str(a->json, "name"), k->id, k->dir, sizeof k->dir);
    ask_content(s);
}

static void ask_name(struct skills *s)
{
    char what[VERSION_MAX + 2];
    (void)snprintf(what, sizeof what, "/%s", s->v[s->at].version);
    ask(s, what, "", 0, false, on_name);
}

static void on_unpacked(void *ctx, int rc, const char *why, size_t files, uint64_t bytes)
{
    struct skills *s = ctx;
    struct skill *k = &s->v[s->at];
    AUTO_FREE char *reason = str_dup(why);           /* `why` is the unpacker's */
    skills_unpack_free(TAKE(s->unpack));
    json_t *f = json_object();
    js_set_str(f, "session", s->c.session_id);
    js_set_str(f, "tool", "skill");
    js_set_str(f, "skill", k->id);
    js_set_str(f, "version", k->version);
    js_set_str(f, "dir", k->dir);
    js_set_int(f, "files", (int64_t)files);
    js_set_int(f, "bytes", (int64_t)bytes);
    js_set_bool(f, "error", rc < 0);
    record_add(s->c.w->record, "tool", f);
    if (rc < 0) {
        give_up(s, "unpack", reason);
        return;
    }
    log_info("skill.placed", "session=%s skill=%s dir=%s files=%zu", s->c.session_id, k->id, k->dir, files);
    next_skill(s);
}

static void on_content(void *ctx, const struct api_answer *a)
{
    struct skills *s = ctx;
    struct skill *k = &s->v[s->at];
    struct err e;
    s->call = NULL;
    if (a->outcome != API_OK) {
        if (other_credential(s, a))
            ask_content(s);
        else
            give_up(s, "content", a->why);
        return;
    }
    char dir[DIR_NAME_MAX + 16];
    (void)snprintf(dir, sizeof dir, "skills/%s", k->dir);
    k->placed = true;                    /* also after a failure half way: it is removed at the end */
    if (skills_unpack_start(s->c.w->ev, s->c.box, dir, buf_data(a->body), buf_len(a->body), on_unpacked, s, &s->unpack, &e) < 0)
        give_up(s, "unpack", e.msg);
}

static void ask_content(struct skills *s)
{
    char what[VERSION_MAX + 16];
    (void)snprintf(what, sizeof what, "/%s/content", s->v[s->at].version);
    ask(s, what, "", SKILL_ARCHIVE_MAX, true, on_content);
}

static void begin_skill(struct skills *s)
{
    s->best[0] = s->page[0] = 0;
    s->pages = 0;
    if (skill_version_exact(s->v[s->at].version))
        ask_name(s);
    else
        ask_versions(s);
}

struct skills *skills_start(const struct skills_conf *c, const json_t *list)
{
    size_t n = json_is_array(list) ? json_array_size(list) : 0;
    if (n > SKILLS_MAX) {
        log_warn("skill.failed", "session=%s why=%s", c->session_id, "the agent has more than 64 skills; the rest is left out");
        n = SKILLS_MAX;
    }
    if (n == 0)
        return NULL;
    struct skills *s = xcalloc(1, sizeof *s);
    s->c = *c;
    s->cred = c->cred;
    s->v = xcalloc(n, sizeof *s->v);
    for (size_t i = 0; i < n; i++) {
        const json_t *it = json_array_get(list, i);
        const char *id = js_str(it, "skill_id"), *version = js_str(it, "version");
        struct skill *k = &s->v[s->n];
        if (!plain(id, sizeof k->id)) {
            log_warn("skill.failed", "session=%s skill=%s why=%s", c->session_id, id, "its id cannot be used");
            continue;
        }
        (void)str_copy(k->id, sizeof k->id, id);
        if (!version || !str_copy(k->version, sizeof k->version, version))
            (void)str_copy(k->version, sizeof k->version, "latest");
        s->n++;
    }
    ev_timer_set(c->w->ev, &s->turn, 0, on_turn);
    return s;
}

/* ---- removal ---- */

static void remove_next(struct skills *s);

static void on_removed(void *ctx, int rc, const struct inside_res *h, const char *body, size_t n, const char *why, const char *restarted)
{
    struct skills *s = ctx;
    (void)h, (void)body, (void)n, (void)restarted;
    s->calling = false;
    if (rc < 0) {
        log_warn("skill.left", "session=%s why=%s", s->c.session_id, why);
        s->at = s->n;                    /* no sandbox: the files stay in the kept workspace, and are replaced next time */
    }
    remove_next(s);
}

static void on_remove_turn(struct ev_timer *t)
{
    struct skills *s = container_of(t, struct skills, turn);
    s->removed(s->removed_ctx);          /* may free `s` */
}

static void remove_next(struct skills *s)
{
    while (s->at < s->n && !s->v[s->at].placed)
        s->at++;
    if (s->at >= s->n || !box_alive(s->c.box)) {
        ev_timer_set(s->c.w->ev, &s->turn, 0, on_remove_turn);
        return;
    }
    char path[DIR_NAME_MAX + 16];
    size_t n = (size_t)snprintf(path, sizeof path, "skills/%s", s->v[s->at++].dir) + 1;
    struct inside_req r = { .magic = INSIDE_MAGIC, .op = INSIDE_REMOVE, .body_bytes = n };
    s->calling = true;
    box_call(s->c.box, &r, path, n, on_removed, s);
}

void skills_remove(struct skills *s, void (*done)(void *), void *ctx)
{
    api_cancel(TAKE(s->call));
    skills_unpack_free(TAKE(s->unpack));
    ev_timer_stop(&s->turn);
    s->removed = done;
    s->removed_ctx = ctx;
    s->at = 0;
    if (box_busy(s->c.box))              /* a file was being placed: the caller is in a hurry, and the box goes next */
        ev_timer_set(s->c.w->ev, &s->turn, 0, on_remove_turn);
    else
        remove_next(s);
}

void skills_free(struct skills *s)
{
    if (!s)
        return;
    api_cancel(s->call);
    skills_unpack_free(s->unpack);
    if (s->calling)
        box_forget(s->c.box);
    ev_timer_stop(&s->turn);
    free(s->v);
    free(s);
}
