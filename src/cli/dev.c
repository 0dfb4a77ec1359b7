/* `outwork dev`: all roles as child processes on this machine, with keys made on the first start and kept beside the data. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "auth/auth.h"
#include "base/fd.h"
#include "base/secret.h"
#include "base/str.h"
#include "cli/cmd.h"
#include "cli/dev.h"
#include "json/js.h"
#include "log/log.h"
#include "proc/proc.h"

#define READY_WAIT_MS 20000
#define READY_STEP_MS 30
#define STOP_WAIT_MS 35000
#define BETA "anthropic-beta: managed-agents-2026-04-01\r\n"

#define FIELD(f) offsetof(struct dev_settings, f)
static const struct conf_key keys[] = {
    { .name = "data", .type = CONF_STR, .field = FIELD(data), .dflt = "./.outwork", .arg = "DIR", .help = "Everything is kept here: database, keys, workspaces." },
    { .name = "listen", .type = CONF_STR, .field = FIELD(listen), .dflt = "127.0.0.1:8400", .arg = "ADDR:PORT", .help = "Where the server listens." },
    { .name = "model.provider", .type = CONF_STR, .field = FIELD(provider), .arg = "NAME",
      .help = "anthropic or script; default: anthropic when ANTHROPIC_API_KEY or --model-key-file is given, else script (no model, a demonstration)." },
    { .name = "model.url", .type = CONF_STR, .field = FIELD(model_url), .arg = "URL", .help = "Base URL of the Messages API." },
    { .name = "model.key-file", .type = CONF_STR, .field = FIELD(model_key_file), .arg = "FILE", .help = "File with the model API key." },
    { .name = "script.file", .type = CONF_STR, .field = FIELD(script_file), .arg = "FILE", .help = "Script for the provider script." },
    { .name = "tunnel.domain", .type = CONF_STR, .field = FIELD(tunnel_domain), .dflt = "tunnel.localhost", .arg = "NAME", .help = "Tunnels get host names below this one." },
    { .name = "route", .type = CONF_LIST, .field = FIELD(routes), .arg = "NAME=UPSTREAM",
      .help = "An MCP server for the agents, reached through a tunnel: http://HOST:PORT, https://..., unix:PATH, or stdio:COMMAND. Several times for several." },
    { .name = "sandbox.network", .type = CONF_STR, .field = FIELD(network), .dflt = "none", .arg = "none|host", .help = "What the tools' network reaches." },
    { .name = "max-sessions", .type = CONF_INT, .field = FIELD(max_sessions), .dflt = "16", .min = "1", .max = "1024", .help = "Sessions served at once." },
    { .name = "log-level", .type = CONF_STR, .field = FIELD(log_level), .dflt = "info", .arg = "LEVEL", .help = "debug, info, warn or error." },
};
static const struct conf_program program = {
    .command = "outwork dev", .summary = "Run server and worker on this machine, with --route edge and gateway too.", .usage = "[options]",
    .epilog = "It prints two exports for the official SDKs and CLI, then logs until you press Ctrl-C. Run it again: keys, sessions and workspaces are still there.\n",
    .keys = keys, .n_keys = COUNT_OF(keys),
};

static const char *const role_names[DEV_ROLES] = { "worker", "gateway", "edge", "server" };

static void on_stop_timeout(struct ev_timer *t)
{
    struct dev *d = container_of(t, struct dev, timer);
    for (int i = 0; i < DEV_ROLES; i++)
        if (d->role[i].up)
            kill(d->role[i].child.pid, SIGKILL);
}

/* One after the other: the worker posts what it has before its server may go. */
static void stop_next(struct dev *d)
{
    for (int i = 0; i < DEV_ROLES; i++)
        if (d->role[i].up) {
            kill(d->role[i].child.pid, SIGTERM);
            return;
        }
    ev_stop(d->ev);
}

static void stop_all(struct dev *d, int status)
{
    if (d->stopping)
        return;
    d->stopping = true;
    d->status = status;
    ev_timer_set(d->ev, &d->timer, STOP_WAIT_MS, on_stop_timeout);
    stop_next(d);
}

void dev_fail(struct dev *d, const char *what)
{
    fprintf(stderr, "outwork dev: %s\n", what);
    stop_all(d, 1);
}

static void on_exit_of(struct ev_child *c, int status)
{
    struct dev_child *r = container_of(c, struct dev_child, child);
    struct dev *d = r->dev;
    r->up = false;
    if (!d->stopping) {
        fprintf(stderr, "outwork dev: the %s ended (wait status 0x%x); see its messages above\n", role_names[r - d->role], status);
        stop_all(d, WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : 1);
    } else {
        if (status != 0) {
            fprintf(stderr, "outwork dev: the %s did not end well (wait status 0x%x); see its messages above\n", role_names[r - d->role], status);
            d->status = d->status ? d->status : 1;
        }
        stop_next(d);
    }
}

static void on_signal(void *ctx, int signo)
{
    (void)signo;
    stop_all(ctx, 0);
}

int dev_spawn(struct dev *d, enum dev_role role, char *const *argv, char *const *envp)
{
    struct err e = { 0 };
    struct proc_spec p = { .path = "/proc/self/exe", .argv = argv, .envp = envp, .fd_in = -1, .fd_out = 1, .fd_err = 2, .new_group = true };
    struct dev_child *r = &d->role[role];
    pid_t pid;
    int pidfd = -1;
    if (proc_spawn(&p, &pid, &pidfd, &e) < 0) {
        dev_fail(d, e.msg);
        return RC_IO;
    }
    close(pidfd);
    r->dev = d;
    int rc = ev_child_start(d->ev, &r->child, pid, on_exit_of);
    r->up = rc == RC_OK;
    return rc;
}

char *dev_env(const char *name, const char *value) { return str_printf("%s=%s", name, value); }

void dev_env_free(char *const *envp)
{
    for (size_t i = 0; envp[i]; i++) {
        wipe(envp[i], strlen(envp[i]));
        free(envp[i]);
    }
}

/* The few variables that the worker needs and users set, plus its own credentials: nothing else is handed down. */
static void start_worker(struct dev *d)
{
    char *data = str_printf("%s/worker", d->s.data), *sessions = str_printf("%lld", (long long)d->s.max_sessions);
    char *argv[] = { "outwork", "worker", "--state-dir", data, "--max-sessions", sessions, "--sandbox-network", d->s.network,
                     "--log-level", d->s.log_level, NULL };
    char *envp[] = { dev_env("ANTHROPIC_BASE_URL", d->base), dev_env("ANTHROPIC_ENVIRONMENT_ID", d->env_id),
                     dev_env("ANTHROPIC_ENVIRONMENT_KEY", secret_text(d->env_key)), str_dup(DEV_PATH), NULL };
    int rc = dev_spawn(d, DEV_WORKER, argv, envp);
    dev_env_free(envp);
    free(data);
    free(sessions);
    if (rc < 0)
        return;
    printf("\nexport ANTHROPIC_BASE_URL=%s\nexport ANTHROPIC_API_KEY=%s\n\nenvironment: %s (local)   data: %s   press Ctrl-C to stop\n\n", d->base,
           secret_text(d->api_key), d->env_id, d->s.data);
    dev_tunnel_print(d);
    fflush(stdout);
}

void dev_call(struct dev *d, const char *method, const char *path, const char *body, void (*done)(void *, int, const struct http_response *, const struct err *))
{
    char *url = str_printf("%s%s", d->base, path);
    struct http_request r = { .method = method, .url = url, .headers = body ? BETA "content-type: application/json\r\n" : BETA, .bearer = d->api_key,
                              .body = body, .body_n = body ? strlen(body) : 0, .timeout_ms = 10000, .on_done = done, .ctx = d };
    (void)http_call_start(d->http, &r);
    free(url);
}

struct secret *dev_new_key(struct dev *d, int rc, const struct http_response *r, const struct err *e, const char *what, const char *file)
{
    AUTO_JS j = NULL;
    struct err pe = { 0 };
    const char *key = NULL;
    if (rc == RC_OK && r->status / 100 == 2 && js_parse(buf_data(r->body), buf_len(r->body), JS_BODY_MAX, &j, &pe) == RC_OK)
        key = js_str(j, "key");
    if (!key) {
        AUTO_FREE char *why = str_printf("the server made no %s", what);
        dev_fail(d, rc < 0 ? e->msg : why);
        return NULL;
    }
    if (fd_write_file_atomic(file, key, strlen(key), 0600, &pe) < 0)
        log_err(LOG_WARN, "dev.key_file", &pe);
    return secret_new(key, strlen(key));
}

static void on_env_key(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    struct dev *d = ctx;
    AUTO_FREE char *file = str_printf("%s/environment-key", d->s.data);
    d->env_key = dev_new_key(d, rc, r, e, "environment key", file);
    if (d->env_key)
        start_worker(d);
}

static void have_environment(struct dev *d)
{
    char *file = str_printf("%s/environment-key", d->s.data), *id_file = str_printf("%s/environment-id", d->s.data), *known = NULL;
    struct err e = { 0 };
    bool same = fd_read_file(AT_FDCWD, id_file, ID_MAX, &known, NULL, &e) == RC_OK && str_eq(known, d->env_id);
    free(known);
    if (same && secret_read_file(file, &d->env_key, &e) == RC_OK) {
        start_worker(d);
    } else if (fd_write_file_atomic(id_file, d->env_id, strlen(d->env_id), 0600, &e) < 0) {
        dev_fail(d, e.msg);
    } else {
        char *path = str_printf("/outwork/v1/environments/%s/keys", d->env_id);
        dev_call(d, "POST", path, "{\"name\":\"dev\"}", on_env_key);
        free(path);
    }
    free(file);
    free(id_file);
}

static void on_environments(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    struct dev *d = ctx;
    AUTO_JS j = NULL;
    struct err pe = { 0 };
    if (rc == RC_OK && r->status == 200 && js_parse(buf_data(r->body), buf_len(r->body), JS_BODY_MAX, &j, &pe) == RC_OK) {
        size_t i;
        json_t *env;
        json_array_foreach(js_at(j, "data"), i, env) {
            if (str_eq(js_str(env, "name"), "local"))
                (void)str_copy(d->env_id, sizeof d->env_id, js_str(env, "id"));
        }
    }
    if (d->env_id[0])
        have_environment(d);
    else
        dev_fail(d, rc < 0 ? e->msg : "no environment 'local' could be made or found");
}

static void on_environment(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    struct dev *d = ctx;
    AUTO_JS j = NULL;
    struct err pe = { 0 };
    if (rc == RC_OK && r->status == 409) {
        dev_call(d, "GET", "/v1/environments?limit=100", NULL, on_environments);
        return;
    }
    if (rc == RC_OK && r->status == 200 && js_parse(buf_data(r->body), buf_len(r->body), JS_BODY_MAX, &j, &pe) == RC_OK && js_str(j, "id")) {
        (void)str_copy(d->env_id, sizeof d->env_id, js_str(j, "id"));
        have_environment(d);
        return;
    }
    dev_fail(d, rc < 0 ? e->msg : "the server refused to make the environment 'local'");
}

void dev_have_tunnel(struct dev *d)
{
    dev_call(d, "POST", "/v1/environments", "{\"name\":\"local\",\"config\":{\"type\":\"self_hosted\"}}", on_environment);
}

static void try_ready(struct ev_timer *t);
static void on_ready(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    struct dev *d = ctx;
    (void)e;
    if (d->stopping)
        return;
    if (rc == RC_OK && r->status == 200 && d->s.routes.n)
        dev_tunnel_start(d);
    else if (rc == RC_OK && r->status == 200)
        dev_have_tunnel(d);
    else if (ev_now_ms(d->ev) > d->deadline_ms)
        dev_fail(d, "the server did not become ready");
    else
        ev_timer_set(d->ev, &d->timer, READY_STEP_MS, try_ready);
}

static void try_ready(struct ev_timer *t)
{
    struct dev *d = container_of(t, struct dev, timer);
    dev_call(d, "GET", "/readyz", NULL, on_ready);
}

static int start_server(struct dev *d)
{
    char *argv[DEV_ARGS_MAX], *data = str_printf("%s/server", d->s.data);
    size_t n = 0;
    argv[n++] = "outwork", argv[n++] = "server", argv[n++] = "--data", argv[n++] = data, argv[n++] = "--listen", argv[n++] = d->s.listen;
    argv[n++] = "--tunnel-domain", argv[n++] = d->s.tunnel_domain;
    argv[n++] = "--log-level", argv[n++] = d->s.log_level, argv[n++] = "--log-format", argv[n++] = "text", argv[n++] = "--model-provider", argv[n++] = d->s.provider;
    if (d->s.model_url)
        argv[n++] = "--model-url", argv[n++] = d->s.model_url;
    if (d->s.model_key_file)
        argv[n++] = "--model-key-file", argv[n++] = d->s.model_key_file;
    if (d->s.script_file)
        argv[n++] = "--script-file", argv[n++] = d->s.script_file;
    size_t own = n;
    dev_tunnel_server_args(d, argv, &n);
    argv[n] = NULL;
    int rc = dev_spawn(d, DEV_SERVER, argv, NULL);
    while (n > own)
        free(argv[--n]);
    free(data);
    return rc;
}

/* The administrator's key: made on the first start, kept in DATA/api-key (0600). */
static int load_api_key(struct dev *d, struct err *e)
{
    char file[4200], db[4200], text[TOKEN_MAX], id[ID_MAX];
    snprintf(file, sizeof file, "%s/api-key", d->s.data);
    snprintf(db, sizeof db, "%s/server/outwork.db", d->s.data);
    if (access(file, F_OK) == 0)
        return secret_read_file(file, &d->api_key, e);
    struct store *st = NULL;
    TRY(store_open(db, true, &st, e));
    int rc = auth_api_key_create(st, ROLE_ADMIN, "dev", text, id, e);
    store_close(st);
    TRY(rc);
    TRY(fd_write_file_atomic(file, text, strlen(text), 0600, e));
    d->api_key = secret_new(text, strlen(text));
    wipe(text, sizeof text);
    return RC_OK;
}

static int dev_start(struct dev *d, struct err *e)
{
    char dir[4200];
    snprintf(dir, sizeof dir, "%s/server", d->s.data);
    TRY(fd_mkdirs(d->s.data, 0755, e));      /* the sandbox's uid must be able to pass through to its own workspace */
    TRY(fd_mkdirs(dir, 0700, e));
    TRY(load_api_key(d, e));
    TRY(dev_tunnel_prepare(d, e));
    if (!d->s.provider)
        d->s.provider = str_dup(d->s.model_key_file || getenv("ANTHROPIC_API_KEY") ? "anthropic" : "script");
    snprintf(d->base, sizeof d->base, "http://%s%s", d->s.listen[0] == ':' ? "127.0.0.1" : "", d->s.listen);
    TRY(ev_new(&d->ev, e));
    TRY(ev_signal(d->ev, SIGINT, on_signal, d, e));
    TRY(ev_signal(d->ev, SIGTERM, on_signal, d, e));
    struct http_client_conf hc = { .user_agent = "outwork-dev/" OUTWORK_VERSION };
    TRY(http_client_new(d->ev, &hc, &d->http, e));
    d->deadline_ms = ev_now_ms(d->ev) + READY_WAIT_MS;
    if (start_server(d) == RC_OK)
        ev_timer_set(d->ev, &d->timer, READY_STEP_MS, try_ready);
    return RC_OK;
}

int cmd_dev(int argc, char **argv)
{
    struct dev d = { 0 };
    struct conf_list pos = { 0 };
    struct err e = { 0 };
    bool help = false;
    int rc = conf_load(&program, argc, argv, &d.s, &pos, &help, &e);
    if (rc == RC_OK && !help && pos.n)
        rc = err_set(&e, RC_INVALID, "unexpected argument '%s'", pos.item[0]);
    free(pos.item);
    if (rc == RC_OK && !help)
        rc = dev_tunnel_check(&d, &e);
    if (rc < 0 || help) {
        if (rc < 0)
            fprintf(stderr, "outwork dev: %s\n", e.msg);
        conf_free(&program, &d.s);
        return rc < 0 ? 2 : 0;
    }
    if (dev_start(&d, &e) < 0) {
        fprintf(stderr, "outwork dev: %s\n", e.msg);
        d.status = 1;
    } else {
        ev_run(d.ev);
    }
    http_client_free(d.http);
    ev_free(d.ev);
    secret_free(d.api_key);
    secret_free(d.env_key);
    secret_free(d.edge_key);
    conf_free(&program, &d.s);
    return d.status;
}
