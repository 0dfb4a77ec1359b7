/* worker/settings.c - see settings.h */
#include "worker/settings.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/random.h"
#include "base/str.h"
#include "http/url.h"

#define WORKER_ID_MAX 128
#define ID_TEXT_MAX 200                  /* ids that we put into URLs and file names */

#define F(f) offsetof(struct worker_settings, f)

/* Order: rows of `run` only, rows of both, rows of the poller only; the two programs are windows on this one table. */
static const struct conf_key keys[] = {
    { .name = "session-id", .type = CONF_STR, .field = F(session_id), .env = "ANTHROPIC_SESSION_ID", .arg = "ID", .help = "The session of the claimed item." },
    { .name = "work-id", .type = CONF_STR, .field = F(work_id), .env = "ANTHROPIC_WORK_ID", .arg = "ID", .help = "The claimed item." },
    { .name = "work-secret-file", .type = CONF_STR, .field = F(work_secret_file), .env = "ANTHROPIC_WORK_SECRET_FILE", .arg = "FILE",
      .help = "The item's secret; with it no environment key is needed. Or set ANTHROPIC_WORK_SECRET." },
#define RUN_KEYS 3
    { .name = "environment-id", .type = CONF_STR, .field = F(environment_id), .env = "ANTHROPIC_ENVIRONMENT_ID", .arg = "ENV",
      .help = "The self-hosted environment to serve (env_...)." },
    { .name = "environment-key-file", .type = CONF_STR, .field = F(environment_key_file), .arg = "FILE",
      .help = "File with the environment key, not readable by others; or set ANTHROPIC_ENVIRONMENT_KEY. Never a flag." },
    { .name = "base-url", .type = CONF_STR, .field = F(base_url), .dflt = "https://api.anthropic.com", .env = "ANTHROPIC_BASE_URL", .arg = "URL",
      .help = "The service." },
    { .name = "ca-file", .type = CONF_STR, .field = F(ca_file), .arg = "FILE",
      .help = "Trust these certificate authorities for the service instead of the system's." },
    { .name = "https-proxy", .type = CONF_STR, .field = F(https_proxy), .env = "HTTPS_PROXY", .arg = "URL", .help = "Proxy for an https service." },
    { .name = "http-proxy", .type = CONF_STR, .field = F(http_proxy), .env = "HTTP_PROXY", .arg = "URL", .help = "Proxy for an http service." },
    { .name = "no-proxy", .type = CONF_STR, .field = F(no_proxy), .env = "NO_PROXY", .arg = "HOSTS", .help = "Hosts reached without a proxy." },
    { .name = "max-idle", .type = CONF_DUR, .field = F(max_idle), .dflt = "60s", .arg = "TIME",
      .help = "Let a session go after this long at the end of a turn; 0: never." },
    { .name = "workdir", .type = CONF_STR, .field = F(workdir), .arg = "DIR",
      .help = "Accepted for old scripts; tools always work in the sandbox's /workspace." },
    { .name = "sandbox-network", .type = CONF_ENUM, .field = F(network), .dflt = "none", .choices = "none|host", .arg = "none|host",
      .help = "none: only loopback; host: the tools share this machine's network." },
    { .name = "sandbox-memory", .type = CONF_SIZE, .field = F(memory), .dflt = "2GiB", .min = "16MiB", .arg = "SIZE", .help = "Memory of one session." },
    { .name = "sandbox-disk", .type = CONF_SIZE, .field = F(disk), .dflt = "4GiB", .min = "1MiB", .arg = "SIZE", .help = "Files in /workspace." },
    { .name = "sandbox-tmp", .type = CONF_SIZE, .field = F(tmp), .dflt = "256MiB", .min = "1MiB", .arg = "SIZE", .help = "Files in /tmp and in /dev/shm, each." },
    { .name = "sandbox-pids", .type = CONF_INT, .field = F(pids), .dflt = "512", .min = "8", .max = "65536", .arg = "N", .help = "Processes of one session." },
    { .name = "sandbox-cpu", .type = CONF_INT, .field = F(cpu_percent), .dflt = "200", .min = "0", .max = "102400", .arg = "PERCENT",
      .help = "100 is one core; 0: no limit." },
    { .name = "sandbox-call", .type = CONF_DUR, .field = F(call_ms), .dflt = "10m", .min = "1s", .max = "24h", .arg = "TIME",
      .help = "Longest single tool call." },
    { .name = "sandbox-output", .type = CONF_SIZE, .field = F(output), .dflt = "100KiB", .min = "1KiB", .max = "8MiB", .arg = "SIZE",
      .help = "Output of one command that is kept (its end)." },
    { .name = "sandbox-ro", .type = CONF_LIST, .field = F(ro_paths), .arg = "DIR", .help = "Show this directory read-only in the sandbox; may be repeated." },
    { .name = "sandbox-env", .type = CONF_LIST, .field = F(env), .arg = "NAME=VALUE", .help = "Variable for the tools' shell; may be repeated." },
    { .name = "sandbox-weak", .type = CONF_LIST, .field = F(weak), .arg = "LAYER",
      .help = "Run without this layer when the kernel lacks it: landlock, seccomp or limits." },
    { .name = "state-dir", .type = CONF_STR, .field = F(state_dir), .arg = "DIR",
      .help = "Where sessions are kept (default: /var/lib/outwork/worker as root, else ~/.local/state/outwork/worker)." },
    { .name = "audit-log", .type = CONF_STR, .field = F(audit_log), .arg = "FILE", .help = "Hash-chained record of what ran (default: audit.jsonl in the state directory)." },
    { .name = "log-format", .type = CONF_ENUM, .field = F(log_format), .dflt = "text", .choices = "text|json", .arg = "text|json", .help = "Form of the log on stderr." },
    { .name = "log-level", .type = CONF_ENUM, .field = F(log_level), .dflt = "info", .choices = "debug|info|warn|error", .arg = "LEVEL", .help = "Least important line shown." },
    { .name = "print-config", .type = CONF_BOOL, .field = F(print_config), .dflt = "false", .help = "Print the settings in force as YAML and exit." },
    { .name = "worker-id", .type = CONF_STR, .field = F(worker_id), .env = "ANTHROPIC_WORKER_ID", .arg = "ID",
      .help = "Name of this process in the queue's statistics (default: host name and a random part)." },
    { .name = "on-work", .type = CONF_STR, .field = F(on_work), .arg = "SCRIPT",
      .help = "Start SCRIPT for each work item instead of serving it here: item on stdin, ids and key in the environment." },
    { .name = "on-work-owns-stop", .type = CONF_BOOL, .field = F(on_work_owns_stop), .dflt = "false",
      .help = "The script ends the item itself; without it the item is stopped as soon as the script returns." },
    { .name = "max-sessions", .type = CONF_INT, .field = F(max_sessions), .dflt = "16", .min = "1", .max = "1024", .arg = "N",
      .help = "Sessions served at the same time; at the limit no work is asked for." },
    { .name = "warm", .type = CONF_INT, .field = F(warm), .dflt = "1", .min = "0", .max = "64", .arg = "N",
      .help = "Finished sandboxes kept ready." },
    { .name = "keep-sessions", .type = CONF_DUR, .field = F(keep_sessions), .dflt = "30d", .min = "1h", .arg = "TIME",
      .help = "How long the files of a session are kept after it was last served." },
    { .name = "health-listen", .type = CONF_STR, .field = F(health_listen), .arg = "ADDR:PORT",
      .help = "Answer /healthz and /metrics there; /healthz turns 503 when polling or a heartbeat makes no progress." },
#define POLL_KEYS 7
};

#define EXITS \
    "Exit status: 0 clean end (also after SIGTERM), 1 failure, 2 wrong use, 3 the service refused the credential,\n" \
    "4 this kernel cannot enforce the sandbox (the message names what is missing; see `outwork doctor`).\n" \
    "SIGTERM or SIGINT: running calls are cancelled and answered, items are released, all within 30 s; a second signal ends at once.\n"

const struct conf_program worker_program = {
    .command = "outwork worker",
    .summary = "Claim the sessions of one environment and run their tool calls in a kernel sandbox on this machine.",
    .usage = "[options]\n       outwork worker run [options]",
    .epilog =
        "All connections go out from here; nothing listens unless --health-listen is given. Each session gets its own sandbox: no network,\n"
        "its own /workspace that is kept between turns, limits on memory, disk, processes and time. What ran is in the audit log.\n"
        "\n"
        "Examples:\n"
        "  ANTHROPIC_ENVIRONMENT_ID=env_... ANTHROPIC_ENVIRONMENT_KEY=sk-ant-oat01-... outwork worker\n"
        "  outwork worker --environment-id env_... --environment-key-file /etc/outwork/env.key --max-sessions 4\n"
        "  outwork worker --sandbox-network host --sandbox-memory 8GiB --sandbox-ro /opt/toolchain\n"
        "  outwork worker --on-work ./start-container.sh       each item in a container of your own, which calls `outwork worker run`\n"
        "\n" EXITS,
    .keys = keys + RUN_KEYS, .n_keys = COUNT_OF(keys) - RUN_KEYS,
};

const struct conf_program worker_run_program = {
    .command = "outwork worker run",
    .summary = "Serve one work item that was already claimed (by `outwork worker --on-work` or `ant beta:worker poll`), then exit.",
    .usage = "[options]",
    .epilog = "The item is named by ANTHROPIC_WORK_ID, ANTHROPIC_SESSION_ID and ANTHROPIC_ENVIRONMENT_ID as such a poller sets them.\n\n" EXITS,
    .keys = keys, .n_keys = COUNT_OF(keys) - POLL_KEYS,
};

static void default_from_env(char **field, const char *name)
{
    const char *v = *field ? NULL : secure_getenv(name);
    if (v && *v)
        *field = str_dup(v);
}

static void empty_is_unset(char **field)
{
    if (*field && !**field) {
        free(*field);
        *field = NULL;
    }
}

/* Ids go into URL paths and file names: what is not plain is refused instead of escaped. */
static int check_id(const char *what, const char *env, const char *id, struct err *e)
{
    if (!id)
        return err_set(e, RC_INVALID, "%s is missing: give --%s or set %s", what, what, env);
    size_t n = strlen(id);
    for (size_t i = 0; i < n; i++)
        if (!((id[i] >= 'a' && id[i] <= 'z') || (id[i] >= 'A' && id[i] <= 'Z') || (id[i] >= '0' && id[i] <= '9') || id[i] == '_' || id[i] == '-'))
            return err_set(e, RC_INVALID, "%s '%s' holds a character that no id has", what, id);
    return n <= ID_TEXT_MAX ? RC_OK : err_set(e, RC_INVALID, "%s is too long", what);
}

static char *default_worker_id(void)
{
    char host[HOST_NAME_MAX + 1] = { 0 };
    if (gethostname(host, sizeof host - 1) < 0 || !host[0])
        (void)str_copy(host, sizeof host, "outwork");
    uint8_t r[6];
    random_bytes(r, sizeof r);
    return str_printf("%s-%02x%02x%02x%02x%02x%02x", host, r[0], r[1], r[2], r[3], r[4], r[5]);
}

static int default_state_dir(struct worker_settings *s, struct err *e)
{
    if (s->state_dir)
        return RC_OK;
    if (geteuid() == 0) {
        s->state_dir = str_dup("/var/lib/outwork/worker");
        return RC_OK;
    }
    const char *base = secure_getenv("XDG_STATE_HOME"), *home = secure_getenv("HOME");
    if (base && base[0] == '/')
        s->state_dir = str_printf("%s/outwork/worker", base);
    else if (home && home[0] == '/')
        s->state_dir = str_printf("%s/.local/state/outwork/worker", home);
    else
        return err_set(e, RC_INVALID, "no HOME to keep sessions under: give --state-dir");
    return RC_OK;
}

int settings_finish(struct worker_settings *s, bool run, struct err *e)
{
    char **texts[] = { &s->environment_id, &s->environment_key_file, &s->worker_id, &s->ca_file, &s->https_proxy, &s->http_proxy, &s->no_proxy,
                       &s->on_work, &s->session_id, &s->work_id, &s->work_secret_file, &s->state_dir, &s->audit_log, &s->health_listen };
    for (size_t i = 0; i < COUNT_OF(texts); i++)
        empty_is_unset(texts[i]);
    default_from_env(&s->https_proxy, "https_proxy");
    default_from_env(&s->http_proxy, "http_proxy");
    default_from_env(&s->no_proxy, "no_proxy");
    if (str_eq(s->on_work, "in-process")) {          /* how the other CLI names the ordinary mode */
        free(s->on_work);
        s->on_work = NULL;
    }
    TRY(check_id("environment-id", "ANTHROPIC_ENVIRONMENT_ID", s->environment_id, e));
    if (run) {
        TRY(check_id("session-id", "ANTHROPIC_SESSION_ID", s->session_id, e));
        TRY(check_id("work-id", "ANTHROPIC_WORK_ID", s->work_id, e));
    }
    struct http_url u;
    int rc = http_url_parse(s->base_url, false, &u, e);
    if (rc < 0)
        return err_wrap(e, rc, "base-url");
    for (size_t n = strlen(s->base_url); n && s->base_url[n - 1] == '/'; n--)
        s->base_url[n - 1] = 0;
    if (!s->worker_id && !run)
        s->worker_id = default_worker_id();
    for (const char *p = s->worker_id; p && *p; p++)
        if ((unsigned char)*p <= ' ' || (unsigned char)*p >= 127)
            return err_set(e, RC_INVALID, "worker-id: only printable ASCII without spaces");
    if (s->worker_id && strlen(s->worker_id) > WORKER_ID_MAX)
        return err_set(e, RC_INVALID, "worker-id: at most %d characters", WORKER_ID_MAX);
    TRY(default_state_dir(s, e));
    rc = fd_mkdirs(s->state_dir, 0700, e);
    if (rc < 0)
        return err_wrap(e, rc, "state-dir");
    if (!s->audit_log)                               /* a log has one writer: each claimed item has its own */
        s->audit_log = run ? str_printf("%s/audit-%s.jsonl", s->state_dir, s->work_id) : str_printf("%s/audit.jsonl", s->state_dir);
    return RC_OK;
}

int settings_policy(const struct worker_settings *s, struct sbx_policy *ret, struct err *e)
{
    struct sbx_policy p = {
        .net = s->network ? SBX_NET_HOST : SBX_NET_NONE,
        .limits = sbx_limits_default,
        .state_dir = s->state_dir,
        .ro_paths = (const char *const *)s->ro_paths.item, .n_ro_paths = s->ro_paths.n,
        .env = (const char *const *)s->env.item, .n_env = s->env.n,
        .uid_base = 1879048192, .uid_count = 65536,
    };
    p.limits.memory_bytes = s->memory;
    p.limits.disk_bytes = s->disk;
    p.limits.tmp_bytes = s->tmp;
    p.limits.pids = (uint32_t)s->pids;
    p.limits.cpu_percent = (uint32_t)s->cpu_percent;
    p.limits.call_ms = s->call_ms;
    p.limits.output_bytes = (size_t)s->output;
    for (size_t i = 0; i < s->env.n; i++)
        if (!strchr(s->env.item[i], '=') || str_prefix(s->env.item[i], "ANTHROPIC_"))
            return err_set(e, RC_INVALID, "sandbox-env: '%.40s' must be NAME=VALUE, and no ANTHROPIC_* variable enters the sandbox", s->env.item[i]);
    for (size_t i = 0; i < s->ro_paths.n; i++)
        if (s->ro_paths.item[i][0] != '/')
            return err_set(e, RC_INVALID, "sandbox-ro: '%s' is no absolute path", s->ro_paths.item[i]);
    for (size_t i = 0; i < s->weak.n; i++) {
        const char *w = s->weak.item[i];
        if (str_eq(w, "landlock"))
            p.weak_landlock = true;
        else if (str_eq(w, "seccomp"))
            p.weak_seccomp = true;
        else if (str_eq(w, "limits"))
            p.weak_limits = true;
        else
            return err_set(e, RC_INVALID, "sandbox-weak: '%s' is none of landlock, seccomp, limits", w);
    }
    *ret = p;
    return RC_OK;
}
