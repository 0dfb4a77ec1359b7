/* gateway/route_conf.c - one route out of its part of the settings file:
 *     name: scheme://host:port                              as the hosted service's proxy has it
 *     name: { upstream | upstreams | stdio, host, tools: {allow, deny}, headers: {add, remove} }     ours */
#include <string.h>

#include "base/dur.h"
#include "base/fd.h"
#include "base/str.h"
#include "gateway/routes.h"
#include "gateway/stdio_upstream.h"
#include "gateway/upstream_http.h"

#define ARGS_MAX 64
#define PATH_TEXT (ROUTE_NAME_MAX + 64)

struct reader {
    const struct conf_tree *tree;
    struct env *env;
    struct route *r;
    char path[PATH_TEXT];                /* "routes.docs", for messages */
    struct err *e;
};

/* ---- helpers ---- */

static int wrong(struct reader *rd, const struct conf_node *at, const char *what, const char *why)
{
    return conf_node_err(rd->tree, at, rd->path, rd->e, "%s%s%s", what, *what ? ": " : "", why);
}

/* Puts place and path in front of what a lower function has said. */
static int wrap(struct reader *rd, const struct conf_node *at)
{
    char said[ERR_MSG_MAX];
    (void)str_copy(said, sizeof said, rd->e ? rd->e->msg : "");
    return wrong(rd, at, "", said);
}

static int want_text(struct reader *rd, const struct conf_node *x, const char *what, const char **ret)
{
    if (x->kind != CONF_NODE_TEXT || !x->text || !*x->text)
        return wrong(rd, x, what, "a text is expected");
    *ret = x->text;
    return RC_OK;
}

/* A list of texts, or one text. */
static int want_texts(struct reader *rd, const struct conf_node *x, const char *what, size_t max, const char **ret, size_t *ret_n)
{
    if (x->kind == CONF_NODE_TEXT) {
        *ret_n = 1;
        return want_text(rd, x, what, ret);
    }
    if (x->kind != CONF_NODE_LIST)
        return wrong(rd, x, what, "a list is expected");
    if (x->n > max)
        return conf_node_err(rd->tree, x, rd->path, rd->e, "%s: at most %zu entries", what, max);
    for (size_t i = 0; i < x->n; i++)
        TRY(want_text(rd, &x->child[i], what, &ret[i]));
    *ret_n = x->n;
    return RC_OK;
}

static int only(struct reader *rd, const struct conf_node *map, const char *what, const char *const *known, size_t n)
{
    if (map->kind != CONF_NODE_MAP)
        return wrong(rd, map, what, "a mapping is expected");
    for (size_t i = 0; i < map->n; i++) {
        bool ok = false;
        for (size_t k = 0; k < n; k++)
            ok = ok || str_eq(map->child[i].key, known[k]);
        if (!ok)
            return conf_node_err(rd->tree, &map->child[i], rd->path, rd->e, "%s%sunknown setting '%.60s'", what, *what ? ": " : "", map->child[i].key);
    }
    return RC_OK;
}

/* ---- headers and tools ---- */

static int header_value(struct reader *rd, const struct conf_node *x, struct header_add *a)
{
    static const char *const known[] = { "file" };
    const char *text = NULL;
    if (x->kind == CONF_NODE_MAP) {
        TRY(only(rd, x, "headers.add", known, COUNT_OF(known)));
        const struct conf_node *file = conf_node_get(x, "file");
        if (!file)
            return wrong(rd, x, "headers.add", "a value, or a mapping with 'file', is expected");
        TRY(want_text(rd, file, "headers.add", &text));
        if (secret_read_file(text, &a->secret, rd->e) < 0 || header_value_check(secret_text(a->secret), secret_len(a->secret), rd->e) < 0)
            return wrap(rd, file);
        return RC_OK;
    }
    TRY(want_text(rd, x, "headers.add", &text));
    if (header_value_check(text, strlen(text), rd->e) < 0)
        return wrap(rd, x);
    a->value = str_dup(text);
    return RC_OK;
}

static int headers(struct reader *rd, const struct conf_node *x)
{
    static const char *const known[] = { "add", "remove" };
    struct header_rules *h = &rd->r->headers;
    TRY(only(rd, x, "headers", known, COUNT_OF(known)));
    const struct conf_node *add = conf_node_get(x, "add"), *remove = conf_node_get(x, "remove");
    if (add && (add->kind != CONF_NODE_MAP || add->n > HEADER_RULES_MAX))
        return conf_node_err(rd->tree, add, rd->path, rd->e, "headers.add: a mapping of at most %d headers is expected", HEADER_RULES_MAX);
    for (size_t i = 0; add && i < add->n; i++) {
        if (header_name_check(add->child[i].key, rd->e) < 0)
            return wrap(rd, &add->child[i]);
        struct header_add *a = &h->add[h->n_add++];
        a->name = str_dup(add->child[i].key);
        TRY(header_value(rd, &add->child[i], a));
    }
    const char *name[HEADER_RULES_MAX];
    size_t n = 0;
    if (remove)
        TRY(want_texts(rd, remove, "headers.remove", HEADER_RULES_MAX, name, &n));
    for (size_t i = 0; i < n; i++) {
        if (header_name_check(name[i], rd->e) < 0)
            return wrap(rd, remove);
        h->remove[h->n_remove++] = str_dup(name[i]);
    }
    return RC_OK;
}

static int tools(struct reader *rd, const struct conf_node *x)
{
    static const char *const known[] = { "allow", "deny" };
    const char *allow[CONF_ITEMS_MAX], *deny[CONF_ITEMS_MAX];
    size_t n_allow = 0, n_deny = 0;
    TRY(only(rd, x, "tools", known, COUNT_OF(known)));
    const struct conf_node *a = conf_node_get(x, "allow"), *d = conf_node_get(x, "deny");
    if (a)
        TRY(want_texts(rd, a, "tools.allow", CONF_ITEMS_MAX, allow, &n_allow));
    if (d)
        TRY(want_texts(rd, d, "tools.deny", CONF_ITEMS_MAX, deny, &n_deny));
    if (a && !n_allow)
        return wrong(rd, a, "tools.allow", "an empty list would allow everything; to refuse every tool write deny: \"*\"");
    if (!n_allow && !n_deny)
        return wrong(rd, x, "tools", "allow or deny is expected");
    return tool_policy_new(allow, n_allow, deny, n_deny, &rd->r->policy, rd->e) < 0 ? wrap(rd, x) : RC_OK;
}

static void stdio_upstream_free(void *u) { stdio_free(u); }

/* ---- upstreams ---- */

static int http_upstream(struct reader *rd, const struct conf_node *at, const char *const *urls, size_t n, bool host_upstream)
{
    struct uhttp *u = NULL;
    struct buf shown;
    if (n == 0)
        return wrong(rd, at, "upstreams", "at least one is expected");
    if (uhttp_new(rd->env, rd->r->name, urls, n, host_upstream, &rd->r->headers, &u, rd->e) < 0)
        return wrap(rd, at);
    rd->r->ops = &uhttp_ops;
    rd->r->upstream = u;
    rd->r->upstream_free = uhttp_free;
    buf_init(&shown, 64 * KIB);
    for (size_t i = 0; i < n; i++)
        (void)buf_printf(&shown, "%s%s", i ? ", " : "", urls[i]);
    rd->r->leads_to = buf_take(&shown, NULL);
    return RC_OK;
}

static int upstream_of(struct reader *rd, const struct conf_node *x)
{
    const struct conf_node *one = conf_node_get(x, "upstream"), *many = conf_node_get(x, "upstreams"), *host = conf_node_get(x, "host");
    const char *urls[ROUTE_UPSTREAMS_MAX], *kind = "client";
    size_t n = 0;
    if (!one == !many)
        return wrong(rd, x, "", "exactly one of upstream, upstreams and stdio is expected");
    if (host)
        TRY(want_text(rd, host, "host", &kind));
    if (!str_eq(kind, "client") && !str_eq(kind, "upstream"))
        return wrong(rd, host, "host", "'client' (the host that was asked for) or 'upstream' is expected");
    TRY(want_texts(rd, one ? one : many, one ? "upstream" : "upstreams", one ? 1 : ROUTE_UPSTREAMS_MAX, urls, &n));
    return http_upstream(rd, one ? one : many, urls, n, str_eq(kind, "upstream"));
}

/* ---- processes ---- */

struct stdio_text { char *env[ARGS_MAX + 1]; size_t n_env; char **words; const char *argv[ARGS_MAX + 1]; };

static void stdio_text_done(struct stdio_text *t)
{
    for (size_t i = 0; i < t->n_env; i++) {
        wipe(t->env[i], strlen(t->env[i]));          /* values may come from files of secrets */
        free(t->env[i]);
    }
    free(t->words);
}

static int stdio_env(struct reader *rd, const struct conf_node *x, struct stdio_text *t)
{
    static const char *const known[] = { "file" };
    if (x->kind != CONF_NODE_MAP || x->n > ARGS_MAX)
        return conf_node_err(rd->tree, x, rd->path, rd->e, "stdio.env: a mapping of at most %d variables is expected", ARGS_MAX);
    for (size_t i = 0; i < x->n; i++) {
        const struct conf_node *v = &x->child[i], *file = conf_node_get(v, "file");
        AUTO_PTR(secret) s = NULL;
        const char *text = NULL;
        if (v->kind == CONF_NODE_MAP) {
            TRY(only(rd, v, "stdio.env", known, COUNT_OF(known)));
            if (!file)
                return wrong(rd, v, "stdio.env", "a value, or a mapping with 'file', is expected");
            TRY(want_text(rd, file, "stdio.env", &text));
            if (secret_read_file(text, &s, rd->e) < 0)
                return wrap(rd, file);
            text = secret_text(s);
        } else if (v->kind == CONF_NODE_TEXT) {
            text = v->text ? v->text : "";
        } else {
            return wrong(rd, v, "stdio.env", "a text is expected");
        }
        t->env[t->n_env++] = str_printf("%s=%s", v->key, text);
    }
    return RC_OK;
}

/* processes, idle_timeout, message_size of `x`, when it has them. */
static int stdio_limits(struct reader *rd, const struct conf_node *x, struct stdio_conf *c)
{
    const struct conf_node *procs = conf_node_get(x, "processes"), *idle = conf_node_get(x, "idle_timeout"), *size = conf_node_get(x, "message_size");
    const char *text = NULL;
    int64_t n = 0;
    uint64_t bytes = 0;
    if (procs) {
        TRY(want_text(rd, procs, "stdio.processes", &text));
        if (str_to_i64(text, 1, STDIO_PROCS_LIMIT, &n) < 0)
            return conf_node_err(rd->tree, procs, rd->path, rd->e, "stdio.processes: a number from 1 to %d is expected", STDIO_PROCS_LIMIT);
        c->procs_max = (size_t)n;
    }
    if (idle) {
        TRY(want_text(rd, idle, "stdio.idle_timeout", &text));
        if (dur_parse(text, &c->idle_ms) < 0 || c->idle_ms < 1)
            return wrong(rd, idle, "stdio.idle_timeout", "a time with a unit is expected, as in 30m");
    }
    if (size) {
        TRY(want_text(rd, size, "stdio.message_size", &text));
        if (size_parse(text, &bytes) < 0 || bytes < KIB || bytes > STDIO_LINE_LIMIT)
            return wrong(rd, size, "stdio.message_size", "a size with a unit from 1KiB to 64MiB is expected");
        c->line_max = (size_t)bytes;
    }
    return RC_OK;
}

static int stdio_start(struct reader *rd, const struct conf_node *at, struct stdio_text *t, const char *cwd)
{
    struct stdio_upstream *u = NULL;
    struct stdio_conf c = { .route = rd->r->name, .argv = t->words ? t->words : (char *const *)(uintptr_t)t->argv, .env = t->n_env ? t->env : NULL, .cwd = cwd };
    if (at->kind == CONF_NODE_MAP)
        TRY(stdio_limits(rd, at, &c));
    if (stdio_new(rd->env->ev, &c, &u, rd->e) < 0)
        return wrap(rd, at);
    rd->r->ops = &stdio_upstream_ops;
    rd->r->upstream = u;
    rd->r->upstream_free = stdio_upstream_free;
    rd->r->leads_to = str_printf("stdio: %s", c.argv[0]);
    return RC_OK;
}

/* stdio: "command line", or {command, args, env, cwd, processes, idle_timeout, message_size}. */
static int stdio_node(struct reader *rd, const struct conf_node *x, struct stdio_text *t)
{
    static const char *const known[] = { "command", "args", "env", "cwd", "processes", "idle_timeout", "message_size" };
    const struct conf_node *command = x, *args = NULL, *env = NULL, *cwd = NULL;
    const char *text = NULL, *dir = NULL;
    size_t n = 0;
    if (x->kind == CONF_NODE_MAP) {
        TRY(only(rd, x, "stdio", known, COUNT_OF(known)));
        command = conf_node_get(x, "command");
        args = conf_node_get(x, "args");
        env = conf_node_get(x, "env");
        cwd = conf_node_get(x, "cwd");
    }
    if (!command)
        return wrong(rd, x, "stdio", "command is expected");
    TRY(want_text(rd, command, "stdio.command", &text));
    if (args) {
        t->argv[0] = text;
        TRY(want_texts(rd, args, "stdio.args", ARGS_MAX - 1, t->argv + 1, &n));
    } else if (stdio_words(text, &t->words, rd->e) < 0) {
        return wrap(rd, command);
    }
    if (env)
        TRY(stdio_env(rd, env, t));
    if (cwd)
        TRY(want_text(rd, cwd, "stdio.cwd", &dir));
    return stdio_start(rd, x, t, dir);
}

static int stdio_of(struct reader *rd, const struct conf_node *x)
{
    struct stdio_text t = { .n_env = 0 };
    int rc = stdio_node(rd, x, &t);
    stdio_text_done(&t);
    return rc;
}

static int mapping(struct reader *rd, const struct conf_node *x)
{
    static const char *const known[] = { "upstream", "upstreams", "stdio", "host", "tools", "headers" };
    TRY(only(rd, x, "", known, COUNT_OF(known)));
    const struct conf_node *t = conf_node_get(x, "tools"), *h = conf_node_get(x, "headers");
    if (t)
        TRY(tools(rd, t));
    if (h)
        TRY(headers(rd, h));
    const struct conf_node *stdio = conf_node_get(x, "stdio");
    if (!stdio)
        return upstream_of(rd, x);
    if (h || conf_node_get(x, "upstream") || conf_node_get(x, "upstreams") || conf_node_get(x, "host"))
        return wrong(rd, stdio, "stdio", "a process has no upstream, host or headers");
    return stdio_of(rd, stdio);
}

int route_make(struct env *env, const struct conf_tree *t, const struct conf_node *x, const char *name, const char *text, struct route **ret, struct err *e)
{
    struct err own;
    struct route *r = xcalloc(1, sizeof *r);
    struct reader rd = { .tree = t, .env = env, .r = r, .e = e ? e : &own };
    r->refs = 1;
    r->name = str_dup(name);
    r->text = str_dup(text);
    r->env = env_ref(env);
    r->stats = route_stats_of(name);
    (void)str_copy(rd.path, sizeof rd.path, "routes.");
    (void)str_copy(rd.path + 7, sizeof rd.path - 7, name);
    int rc;
    if (x->kind == CONF_NODE_MAP)
        rc = mapping(&rd, x);
    else if (x->kind == CONF_NODE_TEXT && x->text)
        rc = http_upstream(&rd, x, (const char *const[]){ x->text }, 1, false);
    else
        rc = wrong(&rd, x, "", "invalid upstream (must be scheme://host:port)");
    if (rc < 0) {
        route_unref(r);
        return rc;
    }
    *ret = r;
    return RC_OK;
}

/* Length-prefixed, so that no two different trees have the same text. */
int route_text(const struct conf_node *x, struct buf *out)
{
    const char *text = x->text ? x->text : "";
    if (x->kind == CONF_NODE_TEXT) {
        (void)buf_printf(out, "%c%zu:%s", x->text ? 't' : '0', strlen(text), text);
        if (x->key && str_eq(x->key, "file"))
            file_stamp(out, text);
        return buf_ok(out) ? RC_OK : RC_LIMIT;
    }
    (void)buf_printf(out, "%c%zu(", x->kind == CONF_NODE_MAP ? 'm' : 'l', x->n);
    for (size_t i = 0; i < x->n; i++) {
        if (x->kind == CONF_NODE_MAP)
            (void)buf_printf(out, "%zu:%s=", strlen(x->child[i].key), x->child[i].key);
        TRY(route_text(&x->child[i], out));
    }
    (void)buf_putc(out, ')');
    return buf_ok(out) ? RC_OK : RC_LIMIT;
}
