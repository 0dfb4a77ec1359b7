/* server/server.c - puts the parts together: one loop thread, a pool of job threads, one store (architecture section 3). */
#include "server/server.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/fd.h"
#include "crypto/seal.h"
#include "http/fetch.h"
#include "log/log.h"
#include "server/api/api.h"
#include "server/settings.h"

#define JOBS_QUEUE_MAX 10000
#define JOBS_MIN 4
#define JOBS_MAX 256
#define STREAM_READERS 2         /* threads that read the log for event streams */
#define RECOVER_MS 5000          /* how often sessions without a driver are looked for */
#define EXPIRE_MS 1000           /* longest time between two looks at work leases */
#define EXPIRE_MIN_MS 50
#define WATCH_MS (12 * 3600 * INT64_C(1000))     /* between two looks at what expires in days */
#define SETTLE_MS 50             /* after the drain: what was posted to the loop runs before it ends */

struct server {
    struct settings s;
    int lock_fd, listen_fd;
    struct ev *ev;
    struct jobs *jobs;           /* requests and loop steps: mostly waiting for commits */
    struct jobs *readers;        /* reads for event streams: short, and never behind a commit */
    struct store *store;
    struct seal_ring *seal;
    struct fetch *fetch;
    struct model_registry *models;
    struct hub *hub;
    struct park *park;
    struct mcp *mcp;
    struct vault *vault;
    struct loop *loop;
    struct messages *messages;
    struct api *api;
    struct tls_ctx *tls;
    struct http_server *http;
    struct ev_timer recover, expire, watch, settle;
    int64_t expire_in_ms;
    int draining;                /* parts that still drain */
    bool stopping;
    char owner[ID_MAX];
};

/* ---- what the store tells ---- */
struct note { struct server *s; char id[]; };

static void note_events(void *arg)
{
    struct note *n = arg;
    hub_note(n->s->hub, n->id);
    free(n);
}

/* A backend thread of the store. */
static void on_note(void *ctx, enum store_note note, const char *id)
{
    struct server *s = ctx;
    switch (note) {
    case STORE_NOTE_EVENTS: {
        size_t size = strlen(id) + 1;
        struct note *n = xcalloc(1, sizeof *n + size);
        n->s = s;
        memcpy(n->id, id, size);
        ev_post(s->ev, note_events, n);
        break;
    }
    case STORE_NOTE_RUN: loop_wake(s->loop, id); break;
    case STORE_NOTE_WORK: park_note(s->park, id); break;
    }
}

static void on_preview(void *ctx, const struct loop_preview *p)
{
    hub_preview(((struct server *)ctx)->hub, p);
}

/* ---- what happens by itself ---- */
static void on_recover_timer(struct ev_timer *t);
static void on_expire_timer(struct ev_timer *t);

static void recover_done(void *arg)
{
    struct server *s = arg;
    if (!s->stopping)
        ev_timer_set(s->ev, &s->recover, RECOVER_MS, on_recover_timer);
}

static void recover_job(void *arg)
{
    struct server *s = arg;
    struct err e = { 0 };
    if (loop_recover(s->loop, &e) < 0)
        log_err(LOG_WARN, "loop.recover", &e);
    ev_post(s->ev, recover_done, s);
}

static void on_recover_timer(struct ev_timer *t)
{
    struct server *s = container_of(t, struct server, recover);
    jobs_add_always(s->jobs, recover_job, s);
}

static void expire_done(void *arg)
{
    struct server *s = arg;
    if (!s->stopping)
        ev_timer_set(s->ev, &s->expire, s->expire_in_ms, on_expire_timer);
}

static void expire_job(void *arg)
{
    struct server *s = arg;
    struct err e = { 0 };
    int64_t now = clock_now_ms(), next = -1;
    if (s->store->ops->work_expire(s->store, now, &next, &e) < 0)
        log_err(LOG_WARN, "work.expire", &e);
    int64_t in = next < 0 ? EXPIRE_MS : next - now;
    s->expire_in_ms = in < EXPIRE_MIN_MS ? EXPIRE_MIN_MS : in > EXPIRE_MS ? EXPIRE_MS : in;
    ev_post(s->ev, expire_done, s);
}

static void on_expire_timer(struct ev_timer *t)
{
    struct server *s = container_of(t, struct server, expire);
    jobs_add_always(s->jobs, expire_job, s);
}

static void watch_done(void *arg);
static void watch_job(void *arg)
{
    struct server *s = arg;
    api_watch(s->api);
    ev_post(s->ev, watch_done, s);
}

static void on_watch_timer(struct ev_timer *t)
{
    struct server *s = container_of(t, struct server, watch);
    jobs_add_always(s->jobs, watch_job, s);
}

static void watch_done(void *arg)
{
    struct server *s = arg;
    if (!s->stopping)
        ev_timer_set(s->ev, &s->watch, WATCH_MS, on_watch_timer);
}

/* ---- the end ---- */
static void on_settled(struct ev_timer *t)
{
    ev_stop(container_of(t, struct server, settle)->ev);
}

static void part_drained(void *ctx)
{
    struct server *s = ctx;
    if (--s->draining == 0)
        ev_timer_set(s->ev, &s->settle, SETTLE_MS, on_settled);
}

static void on_signal(void *ctx, int signo)
{
    struct server *s = ctx;
    if (s->stopping) {
        log_warn("server.stop", "signal=%d now=%s", signo, "true");
        ev_stop(s->ev);
        return;
    }
    log_info("server.drain", "signal=%d grace_ms=%lld", signo, (long long)s->s.drain_ms);
    s->stopping = true;
    s->draining = 3;
    ev_timer_stop(&s->recover);
    ev_timer_stop(&s->expire);
    ev_timer_stop(&s->watch);
    api_draining(s->api);
    park_drain(s->park);
    http_server_drain(s->http, s->s.drain_ms, part_drained, s);
    loop_drain(s->loop, s->s.drain_ms, part_drained, s);
    vault_drain(s->vault, part_drained, s);
}

/* Jobs may still use everything else, so they are joined before anything that they use goes. */
static void server_free(struct server *s)
{
    if (s->http)
        http_server_free(s->http);
    if (s->jobs)
        jobs_free(s->jobs);
    if (s->readers)
        jobs_free(s->readers);
    if (s->loop)
        loop_free(s->loop);
    messages_free(s->messages);
    if (s->mcp)
        mcp_use_vault(s->mcp, NULL);
    vault_free(s->vault);       /* before the client whose connections it uses */
    mcp_free(s->mcp);
    hub_free(s->hub);
    park_free(s->park);
    api_free(s->api);
    if (s->models)
        model_registry_free(s->models);
    if (s->fetch)
        fetch_free(s->fetch);
    store_close(s->store);
    seal_free(s->seal);
    if (s->tls)
        tls_ctx_free(s->tls);
    ev_free(s->ev);
    if (s->lock_fd >= 0)
        (void)close(s->lock_fd);
    conf_free(&server_program, &s->s);
}

/* ---- the start ---- */
static int open_data(struct server *s, struct err *e)
{
    AUTO_FREE char *db = NULL, *lock = NULL;
    if (!s->s.data)
        s->s.data = str_dup(geteuid() == 0 ? "/var/lib/outwork" : "./.outwork/server");
    TRY(fd_mkdirs(s->s.data, 0700, e));
    lock = str_printf("%s/server.lock", s->s.data);
    s->lock_fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (s->lock_fd < 0)
        return err_sys(e, RC_IO, errno, "open '%s'", lock);
    if (flock(s->lock_fd, LOCK_EX | LOCK_NB) < 0)
        return err_set(e, RC_CONFLICT, "another server runs on '%s'; stop it, or choose another --data", s->s.data);
    db = str_printf("%s/outwork.db", s->s.data);
    TRY(store_open(db, true, &s->store, e));
    if (!s->s.vault_key_file)
        s->s.vault_key_file = str_printf("%s/vault.key", s->s.data);
    int rc = seal_load(s->s.vault_key_file, true, &s->seal, e);
    if (rc < 0)
        return err_wrap(e, rc, "vault.key-file");
    return s->store->ops->lease_clear(s->store, e);
}

static int make_models(struct server *s, struct err *e)
{
    AUTO_PTR(secret) key = secret_take_env("ANTHROPIC_API_KEY");
    struct fetch_conf fc = { .ca_file = s->s.model_ca_file, .proxy = s->s.model_proxy, .user_agent = "outwork/" OUTWORK_VERSION };
    struct model_conf mc = {
        .provider = model_providers[s->s.model_provider], .url = s->s.model_url, .key_file = s->s.model_key_file, .ca_file = s->s.model_ca_file,
        .proxy = s->s.model_proxy, .key = s->s.model_key_file ? NULL : key, .script_file = s->s.script_file, .models_file = s->s.models_file,
    };
    TRY(fetch_new(s->ev, &fc, &s->fetch, e));
    return model_registry_new(s->ev, s->fetch, &mc, &s->models, e);
}

static int make_mcp(struct server *s, struct err *e)
{
    struct mcp_conf mc = {
        .ev = s->ev, .jobs = s->jobs, .store = s->store, .workspace_id = s->s.workspace_id,
        .allow = (const char *const *)s->s.mcp_allow.item, .n_allow = s->s.mcp_allow.n,
        .private_ok = (const char *const *)s->s.mcp_private_ok.item, .n_private_ok = s->s.mcp_private_ok.n,
        .ca_file = s->s.mcp_ca_file, .proxy = s->s.mcp_proxy, .tunnel_domain = s->s.tunnel_domain,
        .edges = (const char *const *)s->s.tunnel_edges.item, .n_edges = s->s.tunnel_edges.n,
        .edge_ca_file = s->s.tunnel_edge_ca, .edge_cert_file = s->s.tunnel_edge_cert, .edge_key_file = s->s.tunnel_edge_key,
    };
    if ((mc.edge_cert_file != NULL) != (mc.edge_key_file != NULL))
        return err_set(e, RC_INVALID, "tunnel.edge-cert and tunnel.edge-key go together");
    for (size_t i = 0; i < mc.n_edges; i++)
        if (strncmp(mc.edges[i], "https://", 8) != 0)
            return err_set(e, RC_INVALID, "tunnel.edge: '%s' must begin with https://", mc.edges[i]);
    TRY(mcp_new(&mc, &s->mcp, e));
    struct vault_conf vc = { .ev = s->ev, .jobs = s->jobs, .store = s->store, .fetch = mcp_fetch(s->mcp), .seal = s->seal, .reach = mcp_reach(s->mcp) };
    TRY(vault_new(&vc, &s->vault, e));
    mcp_use_vault(s->mcp, s->vault);
    return RC_OK;
}

static int make_parts(struct server *s, struct err *e)
{
    struct hub_conf hc = { .ev = s->ev, .jobs = s->readers, .store = s->store };
    struct loop_conf lc = {
        .ev = s->ev, .jobs = s->jobs, .store = s->store, .models = s->models, .on_preview = on_preview, .ctx = s, .owner = s->owner,
        .retry_budget_ms = s->s.retry_budget_ms, .mcp = s->mcp, .mcp_timeout_ms = s->s.mcp_timeout_ms,
    };
    TRY(hub_new(&hc, &s->hub, e));
    TRY(park_new(s->ev, s->jobs, &s->park, e));
    TRY(loop_new(&lc, &s->loop, e));
    struct messages_conf mc = { .ev = s->ev, .models = s->models, .mcp = s->mcp, .mcp_timeout_ms = s->s.mcp_timeout_ms };
    TRY(messages_new(&mc, &s->messages, e));
    struct api_conf ac = {
        .ev = s->ev, .jobs = s->jobs, .store = s->store, .seal = s->seal, .vault = s->vault, .loop = s->loop, .models = s->models, .hub = s->hub, .park = s->park,
        .messages = s->messages,
        .public_url = s->s.public_url, .organization_id = s->s.organization_id, .workspace_id = s->s.workspace_id, .lease_ms = s->s.lease_ms,
        .tunnel_domain = s->s.tunnel_domain,
    };
    TRY(api_new(&ac, &s->api, e));
    s->store->ops->on_note(s->store, on_note, s);
    return RC_OK;
}

static int make_listener(struct server *s, char where[NET_ADDR_TEXT], struct err *e)
{
    struct net_addr want, bound;
    if ((s->s.tls_cert != NULL) != (s->s.tls_key != NULL))
        return err_set(e, RC_INVALID, "tls.cert and tls.key go together");
    if (s->s.tls_cert) {
        struct tls_conf tc = { .cert_file = s->s.tls_cert, .key_file = s->s.tls_key };
        TRY(tls_ctx_server(&tc, &s->tls, e));
    }
    TRY(net_addr_parse(s->s.listen, &want, e));
    TRY(net_listen(&want, &s->listen_fd, &bound, e));
    net_addr_format(&bound, where);
    struct http_server_conf hc = {
        .limits = http_limits_default, .tls = s->tls, .on_request = api_request, .body_limit = api_body_limit, .on_refused = api_refused, .ctx = s->api,
    };
    hc.limits.conns_max = (size_t)s->s.connections;
    hc.limits.bodies_max = s->s.bodies_max;
    return http_server_new(s->ev, &hc, s->listen_fd, &s->http, e);
}

/* More threads make larger group commits but longer waits for each; beyond two per processor the waits win. */
static size_t job_threads(const struct server *s)
{
    if (s->s.jobs > 0)
        return (size_t)s->s.jobs;
    long n = 2 * sysconf(_SC_NPROCESSORS_ONLN);
    return n < JOBS_MIN ? JOBS_MIN : n > JOBS_MAX ? JOBS_MAX : (size_t)n;
}

static void raise_fd_limit(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &r);
    }
}

static int server_start(struct server *s, struct err *e)
{
    char where[NET_ADDR_TEXT];
    raise_fd_limit();
    (void)signal(SIGPIPE, SIG_IGN);
    id_new("server", s->owner);
    TRY(ev_new(&s->ev, e));
    TRY(ev_signal(s->ev, SIGTERM, on_signal, s, e));
    TRY(ev_signal(s->ev, SIGINT, on_signal, s, e));
    TRY(open_data(s, e));
    TRY(make_models(s, e));
    TRY(jobs_new(job_threads(s), JOBS_QUEUE_MAX, &s->jobs, e));
    TRY(jobs_new(STREAM_READERS, JOBS_QUEUE_MAX, &s->readers, e));
    TRY(make_mcp(s, e));
    TRY(make_parts(s, e));
    TRY(make_listener(s, where, e));
    TRY(loop_recover(s->loop, e));
    ev_timer_set(s->ev, &s->recover, RECOVER_MS, on_recover_timer);
    ev_timer_set(s->ev, &s->expire, EXPIRE_MIN_MS, on_expire_timer);
    ev_timer_set(s->ev, &s->watch, 0, on_watch_timer);
    log_info("server.ready", "address=%s data=%s model=%s version=%s", where, s->s.data, model_providers[s->s.model_provider], OUTWORK_VERSION);
    return RC_OK;
}

static int read_settings(struct server *s, int argc, char **argv, bool *ret_help, struct err *e)
{
    struct conf_list pos = { 0 };
    enum log_level level;
    TRY(conf_load(&server_program, argc, argv, &s->s, &pos, ret_help, e));
    if (*ret_help)
        return RC_OK;
    if (pos.n)
        return err_set(e, RC_INVALID, "unexpected argument '%s'", pos.item[0]);
    if (log_level_parse(s->s.log_level, &level) < 0)
        return err_set(e, RC_INVALID, "log.level: debug, info, warn or error");
    log_setup(level, s->s.log_format == 1 ? LOG_JSON : LOG_TEXT, "server");
    return RC_OK;
}

int server_main(int argc, char **argv)
{
    struct server s = { .lock_fd = -1, .listen_fd = -1 };
    struct err e = { 0 };
    bool help = false;
    int rc = read_settings(&s, argc, argv, &help, &e);
    if (rc < 0 || help) {
        if (rc < 0)
            fprintf(stderr, "outwork server: %s\n", e.msg);
        conf_free(&server_program, &s.s);
        return rc < 0 ? 2 : 0;
    }
    rc = server_start(&s, &e);
    if (rc < 0)
        log_err(LOG_ERROR, "server.failed", &e);
    else
        ev_run(s.ev);
    if (rc == RC_OK)
        log_info("server.stopped", "running=%zu", loop_running(s.loop));
    server_free(&s);
    return rc < 0 ? 1 : 0;
}
