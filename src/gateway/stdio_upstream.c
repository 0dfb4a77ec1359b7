/* gateway/stdio_upstream.c - see stdio.h. Life of the upstream, and which client a message of a process is for. */
#include "gateway/stdio_upstream.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/secret.h"
#include "base/str.h"
#include "base/utf8.h"
#include "gateway/stdio_internal.h"
#include "json/js.h"
#include "log/log.h"

#define PATH_DEFAULT "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define ENV_MAX 256
#define REAP_STEP_MS 5
#define BAD_LINE_SHOWN 200                   /* bytes of a line that is no message that go to the log */

/* ---- pending requests ---- */

struct pending *stdio_pending_find(struct sproc *p, const char *id)
{
    list_foreach(q, &p->pending, struct pending, link)
        if (strcmp(q->id, id) == 0)
            return q;
    return NULL;
}

void stdio_pending_free(struct pending *q)
{
    ev_timer_stop(&q->cancel);
    list_del(&q->link);
    q->proc->n_pending--;
    free(q->raw_id);
    free(q);
}

void stdio_error_text(struct buf *out, const char *raw_id, int code, const char *message)
{
    buf_printf(out, "{\"jsonrpc\":\"2.0\",\"id\":%s,\"error\":{\"code\":%d,\"message\":", raw_id && *raw_id ? raw_id : "null", code);
    (void)js_write_string(out, message, strlen(message));
    buf_puts(out, "}}");
}

void stdio_proc_gone(struct sproc *p, const char *why)
{
    struct buf text;
    char words[160];
    wipe(p->session, sizeof p->session);
    p->session[0] = '\0';
    (void)snprintf(words, sizeof words, "The MCP server cannot answer: %s", why);
    buf_init(&text, RPC_TEXT_MAX + KIB);
    while (!list_empty(&p->pending)) {
        struct pending *q = list_first(&p->pending, struct pending, link);
        struct upstream_call *c = q->call;
        buf_clear(&text);
        stdio_error_text(&text, q->raw_id, RPC_INTERNAL, words);
        stdio_pending_free(q);
        if (c)
            scall_message(c, buf_data(&text), buf_len(&text), --c->n_pending == 0);
    }
    buf_done(&text);
    while (!list_empty(&p->calls)) {
        struct upstream_call *c = list_first(&p->calls, struct upstream_call, link);
        bool was_get = p->get == c;
        list_del(&c->link);
        list_add_tail(&p->up->calls, &c->link);
        c->proc = NULL;
        if (was_get) {
            p->get = NULL;
            c->ending = true;
            ev_timer_stop(&c->timer);
            scall_flush(c);
        }
    }
}

/* ---- messages of a process ---- */

static struct upstream_call *only_call(struct sproc *p, bool *ret_several)
{
    struct upstream_call *found = NULL;
    *ret_several = false;
    list_foreach(q, &p->pending, struct pending, link) {
        if (!q->call || !q->call->sse_ok)
            *ret_several |= p->stateless;        /* it may belong to somebody who is gone */
        else if (found && q->call != found)
            *ret_several = true;
        else
            found = q->call;
    }
    return found;
}

static struct upstream_call *newest_call(struct sproc *p)
{
    for (struct list *l = p->pending.prev; l != &p->pending; l = l->prev) {
        struct upstream_call *c = list_entry(l, struct pending, link)->call;
        if (c && c->sse_ok)
            return c;
    }
    return NULL;
}

/* Progress names the token of its request; messages of a subscription name the request that opened it. */
static struct upstream_call *named_call(struct sproc *p, const struct rpc *m)
{
    struct slice v, meta;
    char key[RPC_ID_MAX];
    if (slice_eq(m->method, "notifications/progress") && rpc_member(m->params, "progressToken", &v) && rpc_key(v, key))
        list_foreach(q, &p->pending, struct pending, link)
            if (q->call && q->call->sse_ok && strcmp(q->token, key) == 0)
                return q->call;
    if (rpc_member(m->params, "_meta", &meta) && rpc_member(meta, "io.modelcontextprotocol/subscriptionId", &v) && rpc_key(v, key)) {
        struct pending *q = stdio_pending_find(p, key);
        if (q && q->call && q->call->sse_ok)
            return q->call;
    }
    return NULL;
}

/* The client has no stream open now: the message waits for one. */
static void keep(struct sproc *p, const char *line, size_t n)
{
    if (n + 1 > STDIO_BACKLOG_MAX) {
        metric_add(&stdio_metric_dropped, 1);
        return;
    }
    while (buf_room(&p->backlog) < n + 1) {
        char *nl = memchr(buf_data(&p->backlog), '\n', buf_len(&p->backlog));
        buf_consume(&p->backlog, (size_t)(nl - buf_data(&p->backlog)) + 1);
        metric_add(&stdio_metric_dropped, 1);
        log_warn("stdio.backlog_full", "route=%s session=%s", p->up->route, p->tag);
    }
    (void)buf_put(&p->backlog, line, n);
    (void)buf_putc(&p->backlog, '\n');
}

static void refuse_request(struct sproc *p, const struct rpc *m)
{
    struct buf b;
    AUTO_FREE char *id = str_ndup(m->id.p, m->id.n);
    buf_init(&b, RPC_TEXT_MAX + KIB);
    stdio_error_text(&b, id, RPC_METHOD_NOT_FOUND, "there are no requests to the client in this protocol revision");
    if (buf_ok(&b))
        (void)!sproc_send(p, buf_data(&b), buf_len(&b));
    buf_done(&b);
}

static void from_server(struct sproc *p, const struct rpc *m, const char *line, size_t n)
{
    bool several;
    struct upstream_call *c = named_call(p, m), *only = c ? NULL : only_call(p, &several);
    if (p->stateless && m->kind == RPC_REQUEST) {
        refuse_request(p, m);
        return;
    }
    if (!c && only && !several)
        c = only;
    if (!c && p->stateless) {                    /* it could be another caller's */
        log_debug("stdio.unrelated", "route=%s method=%.*s", p->up->route, (int)(m->method.n < 64 ? m->method.n : 64), m->method.p);
        metric_add(&stdio_metric_dropped, 1);
        return;
    }
    if (!c && p->get) {
        if (buf_len(&p->get->out) + n > STDIO_BACKLOG_MAX) {     /* a reader that is stuck holds up nobody */
            metric_add(&stdio_metric_dropped, 1);
            log_warn("stdio.slow_reader", "route=%s session=%s", p->up->route, p->tag);
            return;
        }
        c = p->get;
    }
    if (!c)
        c = newest_call(p);
    if (c)
        scall_message(c, line, n, false);
    else
        keep(p, line, n);
}

/* -32020 to -32022 come from a server that knows the revision and objects to something else. */
static bool refuses_discover(const struct rpc *m)
{
    struct slice code;
    int64_t v = 0;
    return rpc_member(m->error, "code", &code) && slice_to_i64(code, INT32_MIN, INT32_MAX, &v) == RC_OK && !(v <= RPC_HEADER_MISMATCH && v >= -32022);
}

static void answer(struct sproc *p, const struct rpc *m, const char *line, size_t n)
{
    char key[RPC_ID_MAX];
    struct pending *q = m->id.n && rpc_key(m->id, key) ? stdio_pending_find(p, key) : NULL;
    if (!q) {
        log_debug("stdio.unknown_answer", "route=%s session=%s", p->up->route, p->tag);
        metric_add(&stdio_metric_dropped, 1);
        return;
    }
    struct upstream_call *c = q->call;
    bool failed_init = q->is_init && m->error.n, old_server = p->stateless && q->is_discover && refuses_discover(m);
    stdio_pending_free(q);
    if (c && failed_init)
        c->show_session = false;
    if (c)
        scall_message(c, line, n, --c->n_pending == 0);
    if (failed_init)
        sproc_end(p, "initialize was refused");
    if (old_server) {
        p->up->legacy = true;
        if (list_empty(&p->pending))
            sproc_end(p, "the server speaks earlier revisions");
    }
}

static void bad_line(struct sproc *p, const char *line, size_t n, const char *why)
{
    struct buf shown;
    buf_init(&shown, 4 * BAD_LINE_SHOWN);
    (void)utf8_sanitize(&shown, line, n < BAD_LINE_SHOWN ? n : BAD_LINE_SHOWN);
    log_warn("stdio.bad_line", "route=%s session=%s why=%s line=%s", p->up->route, p->tag, why, buf_data(&shown));
    buf_done(&shown);
    metric_add(&stdio_metric_dropped, 1);
}

static void one_message(struct sproc *p, char *line, size_t n)
{
    struct rpc m;
    bool syntax;
    const char *why;
    if (rpc_parse(line, n, &m, &syntax, &why) < 0)
        bad_line(p, line, n, why);
    else if (m.kind == RPC_RESPONSE)
        answer(p, &m, m.text.p, m.text.n);
    else
        from_server(p, &m, m.text.p, m.text.n);
}

void stdio_message(struct sproc *p, char *line, size_t n)
{
    for (char *cr = line; (cr = memchr(cr, '\r', n - (size_t)(cr - line))) != NULL;)
        *cr++ = ' ';                             /* white space in JSON, the end of a line in an event stream */
    struct slice items[RPC_BATCH_MAX];
    size_t n_items;
    if (!rpc_is_batch(line, n) || rpc_items(line, n, items, &n_items) < 0) {
        one_message(p, line, n);
        return;
    }
    for (size_t i = 0; i < n_items; i++)         /* a batch of revision 2025-03-26 */
        one_message(p, (char *)(uintptr_t)items[i].p, items[i].n);
}

/* ---- life ---- */

static char **dup_list(char *const *list, size_t extra)
{
    size_t n = 0;
    while (list && list[n])
        n++;
    char **ret = xcalloc(n + extra + 1, sizeof *ret);
    for (size_t i = 0; i < n; i++)
        ret[i] = str_dup(list[i]);
    return ret;
}

static void free_list(char **list)
{
    for (size_t i = 0; list && list[i]; i++) {
        wipe(list[i], strlen(list[i]));          /* variables may be credentials of the server */
        free(list[i]);
    }
    free(list);
}

static const char *env_path(char *const *env)
{
    for (size_t i = 0; env && env[i]; i++)
        if (str_prefix(env[i], "PATH="))
            return env[i] + 5;
    return NULL;
}

static bool executable(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

static int find_program(const char *name, const char *path, char **ret, struct err *e)
{
    if (strchr(name, '/')) {
        if (!executable(name))
            return err_set(e, RC_NOT_FOUND, "stdio: %s is no program that can be executed", name);
        *ret = str_dup(name);
        return RC_OK;
    }
    for (const char *p = path; *p;) {
        size_t n = strcspn(p, ":");
        char *full = n ? str_printf("%.*s/%s", (int)n, p, name) : NULL;
        if (full && executable(full)) {
            *ret = full;
            return RC_OK;
        }
        free(full);
        p += n + (p[n] == ':');
    }
    return err_set(e, RC_NOT_FOUND, "stdio: no program %s in %s", name, path);
}

static int check_env(char *const *env, struct err *e)
{
    for (size_t i = 0; env && env[i]; i++) {
        if (i == ENV_MAX)
            return err_set(e, RC_INVALID, "stdio: at most %d variables", ENV_MAX);
        const char *eq = strchr(env[i], '=');
        if (!eq || eq == env[i])                 /* not shown: it may be a credential */
            return err_set(e, RC_INVALID, "stdio: variable %zu is not NAME=VALUE", i + 1);
    }
    return RC_OK;
}

int stdio_new(struct ev *ev, const struct stdio_conf *c, struct stdio_upstream **ret, struct err *e)
{
    if (!c->argv || !c->argv[0] || !*c->argv[0])
        return err_set(e, RC_INVALID, "stdio: no command");
    TRY(check_env(c->env, e));
    const char *path = env_path(c->env);
    char *program = NULL;
    TRY(find_program(c->argv[0], path ? path : PATH_DEFAULT, &program, e));
    struct stdio_upstream *u = xcalloc(1, sizeof *u);
    *u = (struct stdio_upstream){ .ev = ev, .route = str_dup(c->route ? c->route : ""), .cwd = str_dup(c->cwd), .path = program, .argv = dup_list(c->argv, 0),
                                  .env = dup_list(c->env, 1), .procs_max = c->procs_max ? c->procs_max : STDIO_PROCS_MAX,
                                  .line_max = c->line_max ? c->line_max : STDIO_LINE_MAX, .idle_ms = c->idle_ms > 0 ? c->idle_ms : STDIO_IDLE_MS };
    list_init(&u->procs);
    list_init(&u->calls);
    if (!path) {
        size_t n = 0;
        while (u->env[n])
            n++;
        u->env[n] = str_dup("PATH=" PATH_DEFAULT);
    }
    *ret = u;
    return RC_OK;
}

static bool same_list(char *const *a, char *const *b)
{
    size_t i = 0;
    for (; a && b && a[i] && b[i]; i++)
        if (strcmp(a[i], b[i]) != 0)
            return false;
    return !(a && a[i]) && !(b && b[i]);
}

bool stdio_same(const struct stdio_upstream *u, const struct stdio_conf *c)
{
    char **env = dup_list(c->env, 1);
    if (!env_path(c->env)) {
        size_t n = 0;
        while (env[n])
            n++;
        env[n] = str_dup("PATH=" PATH_DEFAULT);
    }
    bool same = str_eq(u->route, c->route ? c->route : "") && str_eq(u->cwd, c->cwd) && same_list(u->argv, c->argv) && same_list(u->env, env) &&
                u->procs_max == (c->procs_max ? c->procs_max : STDIO_PROCS_MAX) && u->line_max == (c->line_max ? c->line_max : STDIO_LINE_MAX) &&
                u->idle_ms == (c->idle_ms > 0 ? c->idle_ms : STDIO_IDLE_MS);
    free_list(env);
    return same;
}

size_t stdio_procs(const struct stdio_upstream *u)
{
    return u->n_procs;
}

void stdio_stop(struct stdio_upstream *u)
{
    u->stopping = true;
    list_foreach(p, &u->procs, struct sproc, link)
        sproc_end(p, "the gateway is stopping");
}

void stdio_free(struct stdio_upstream *u)
{
    if (!u)
        return;
    list_foreach(p, &u->procs, struct sproc, link)
        sproc_term(p);
    for (int waited = 0; waited < STDIO_FREE_MS; waited += REAP_STEP_MS) {
        bool all = true;
        list_foreach(p, &u->procs, struct sproc, link)
            all &= sproc_reap(p);
        if (all)
            break;
        (void)poll(NULL, 0, REAP_STEP_MS);
    }
    while (!list_empty(&u->procs))
        sproc_kill_now(list_first(&u->procs, struct sproc, link));
    while (!list_empty(&u->calls))
        scall_abort(list_first(&u->calls, struct upstream_call, link), 503, "the gateway is stopping");
    free_list(u->argv);
    free_list(u->env);
    free(u->route);
    free(u->cwd);
    free(u->path);
    free(u);
}

/* ---- command lines ---- */

/* One word from *at into out; false: a quote is not closed. */
static bool one_word(const char **at, char **out)
{
    const char *p = *at;
    char quote = 0, *o = *out;
    for (; *p && (quote || !strchr(" \t", *p)); p++) {
        if (quote && *p == quote)
            quote = 0;
        else if (!quote && (*p == '\'' || *p == '"'))
            quote = *p;
        else if (*p == '\\' && quote != '\'' && p[1])
            *o++ = *++p;
        else
            *o++ = *p;
    }
    *o++ = '\0';
    *at = p;
    *out = o;
    return !quote;
}

int stdio_words(const char *line, char ***ret_argv, struct err *e)
{
    size_t n = 0, head = (STDIO_WORDS_MAX + 1) * sizeof(char *);
    char **argv = xcalloc(1, head + strlen(line) + STDIO_WORDS_MAX + 1), *out = (char *)argv + head;
    const char *p = line + strspn(line, " \t"), *why = *p ? NULL : "the command is empty";
    while (*p && !why) {
        if (n == STDIO_WORDS_MAX) {
            why = "the command has too many words";
            break;
        }
        argv[n++] = out;
        if (!one_word(&p, &out))
            why = "a quote in the command is not closed";
        p += strspn(p, " \t");
    }
    if (why) {
        free(argv);
        return err_set(e, RC_INVALID, "stdio: %s", why);
    }
    *ret_argv = argv;
    return RC_OK;
}
