/* gateway/gateway.c - the role's main program: settings, parts, reload, the end. */
#include "gateway/gateway.h"

#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/str.h"
#include "gateway/admin.h"
#include "gateway/dial.h"
#include "gateway/init.h"
#include "gateway/reload.h"
#include "gateway/keydir.h"
#include "gateway/ws.h"
#include "log/log.h"
#include "metrics/metrics.h"

enum { EXIT_OK, EXIT_FAIL, EXIT_USAGE };
#define DRAINED_MS 200                   /* from the last answer to the exit: what was written leaves */
#define RENEW_LOOK_MS ((int64_t)3600 * 1000)
#define EXPIRY_SOON_MS ((int64_t)14 * 24 * 3600 * 1000)

static METRIC_DEFINE(m_expiry, METRIC_GAUGE, "gateway_certificate_expiry_seconds", "Unix time at which the certificate of the inner TLS expires.");
static METRIC_DEFINE(m_reloads, METRIC_COUNTER, "gateway_reloads_total", "Times the settings were loaded again.");
static METRIC_DEFINE(m_reload_failed, METRIC_COUNTER, "gateway_reloads_failed_total", "Times new settings or files were wrong and the old ones stayed.");
static METRIC_DEFINE(m_healthy, METRIC_GAUGE, "gateway_links_healthy", "Connections to edges that answer through the data path.");

struct gateway {
    struct ev *ev;
    int argc; char **argv;
    struct gateway_settings set;         /* in force */
    struct env *env;
    struct trail *trail;
    struct front *front;
    struct dialler *dialler;             /* NULL behind cloudflared */
    struct ws_listener *ws;              /* only there */
    struct gateway_admin *admin;
    struct watch *watch;
    struct ev_timer deadline, settle, renew;
    int64_t not_before_ms, not_after_ms; /* of the leaf */
    bool stopping;
    int exit_status;
};

static int complain(int status, const struct err *e)
{
    (void)fprintf(stderr, "%s: %s\n", gateway_program.command, e->msg);
    return status;
}

/* ---- one configuration in force ---- */

static struct front_limits limits_of(const struct gateway_settings *s)
{
    return (struct front_limits){ .conns_max = (size_t)s->conns_max, .requests_max = (size_t)s->requests_max, .head_ms = s->head_ms, .body_ms = s->body_ms,
                                  .keep_ms = s->keep_ms };
}

static void look_at_leaf(struct gateway *g, const struct tls_ctx *tls)
{
    char host[ROUTE_NAME_MAX + 8], until[RFC3339_MAX] = "?";
    int64_t now = clock_now_ms();
    struct err e = { 0 };
    g->not_before_ms = g->not_after_ms = 0;
    (void)tls_ctx_validity(tls, &g->not_before_ms, &g->not_after_ms);
    rfc3339_format(g->not_after_ms, until);
    if (g->not_after_ms <= now)
        log_error("gateway.certificate", "file=%s expired=%s why=%s", g->set.cert_file, until, "clients refuse it: renew it");
    else if (g->not_after_ms - now < EXPIRY_SOON_MS)
        log_warn("gateway.certificate", "file=%s expires=%s", g->set.cert_file, until);
    if (g->not_after_ms > now && tls_ctx_leaf(tls, now, &e) < 0)
        log_warn("gateway.certificate", "file=%s why=%s", g->set.cert_file, e.msg);
    for (size_t i = 0; i < route_table_count(front_routes(g->front)); i++) {
        const struct route *r = route_table_at(front_routes(g->front), i);
        bool whole = strchr(r->name, '.') != NULL;
        (void)snprintf(host, sizeof host, whole ? "%.253s" : "%.120s.%.120s", r->name, g->set.tunnel_domain ? g->set.tunnel_domain : "");
        if (!tls_ctx_covers(tls, host))
            log_warn("gateway.certificate", "file=%s route=%s why=%s", g->set.cert_file, r->name, "the certificate has no name for this host; clients will refuse it");
    }
}

/* Takes `s`. */
static void apply(struct gateway *g, struct setup *s)
{
    struct front_limits l = limits_of(&s->set);
    conf_free(&gateway_program, &g->set);
    env_unref(g->env);
    g->set = s->set;
    g->env = TAKE(s->env);
    log_setup((enum log_level)g->set.log_level, (enum log_format)g->set.log_format, "gateway");
    const struct tls_ctx *tls = s->tls;
    front_limits(g->front, &l);
    front_serve(g->front, TAKE(s->tls), TAKE(s->routes));
    s->set = (struct gateway_settings){ .listen_addr = NULL };
    for (size_t i = 0; i < route_table_count(front_routes(g->front)); i++)
        log_info("gateway.route", "what=%s host=%s upstream=%s kind=%s", "route configured", route_table_at(front_routes(g->front), i)->name,
                 route_table_at(front_routes(g->front), i)->leads_to, route_table_at(front_routes(g->front), i)->ops->name);
    look_at_leaf(g, tls);
    watch_files(g->watch, conf_file(&gateway_program, g->argc, g->argv), &g->set, TAKE(s->stamps));
}

static bool same_list(const struct conf_list *a, const struct conf_list *b)
{
    bool same = a->n == b->n;
    for (size_t i = 0; same && i < a->n; i++)
        same = str_eq(a->item[i], b->item[i]);
    return same;
}

/* What a reload cannot change, since it is woven into what runs. */
static void warn_of_restart(const struct gateway_settings *was, const struct gateway_settings *is)
{
    const char *what = !str_eq(was->listen_addr, is->listen_addr)     ? "listen_addr"
                       : !same_list(&was->edges, &is->edges)          ? "edge"
                       : !str_eq(was->edge_ca, is->edge_ca)           ? "edge_ca"
                       : was->connections != is->connections          ? "connections"
                       : !str_eq(was->audit_log, is->audit_log)       ? "audit_log"
                       : !str_eq(was->admin_listen, is->admin_listen) ? "admin_listen"
                       : !str_eq(was->token_file, is->token_file)     ? "token_file"
                                                                      : NULL;
    if (what)
        log_warn("gateway.reload", "setting=%s why=%s", what, "this setting changes only by a restart");
}

static void reload(struct gateway *g)
{
    struct setup s;
    struct err e = { 0 };
    if (g->stopping)
        return;
    if (setup_load(g->ev, g->argc, g->argv, front_routes(g->front), g->env, &s, &e) < 0) {
        metric_add(&m_reload_failed, 1);
        log_error("gateway.reload", "refused=%s", e.msg);
        return;
    }
    metric_add(&m_reloads, 1);
    warn_of_restart(&g->set, &s.set);
    apply(g, &s);
    log_info("gateway.reload", "routes=%zu", route_table_count(front_routes(g->front)));
}

static void on_files_changed(void *ctx) { reload(ctx); }

static void on_hup(void *ctx, int signo)
{
    (void)signo;
    reload(ctx);
}

/* ---- the end ---- */

static void on_settled(struct ev_timer *t)
{
    ev_stop(container_of(t, struct gateway, settle)->ev);
}

static void on_drained(void *ctx)
{
    struct gateway *g = ctx;
    ev_timer_stop(&g->deadline);
    ev_timer_set(g->ev, &g->settle, DRAINED_MS, on_settled);
}

static void on_deadline(struct ev_timer *t)
{
    struct gateway *g = container_of(t, struct gateway, deadline);
    log_warn("gateway.stop_late", "requests=%zu why=%s", front_requests(g->front), "shutdown_timeout is over; they are cut");
    ev_stop(g->ev);
}

static void on_signal(void *ctx, int signo)
{
    struct gateway *g = ctx;
    if (g->stopping) {
        ev_stop(g->ev);
        return;
    }
    g->stopping = true;
    log_info("gateway.stop", "signal=%d requests=%zu", signo, front_requests(g->front));
    ev_timer_set(g->ev, &g->deadline, g->set.shutdown_ms, on_deadline);
    if (g->dialler)
        dialler_drain(g->dialler);
    if (g->ws)
        ws_stop_accepting(g->ws);
    front_drain(g->front, on_drained, g);
}

/* ---- the start ---- */

static bool ready(void *ctx, char why[256])
{
    struct gateway *g = ctx;
    int64_t now = clock_now_ms();
    const char *no = g->stopping                                        ? "stopping"
                     : g->dialler && dialler_healthy(g->dialler) == 0   ? "no connection to an edge"
                     : g->not_after_ms <= now                           ? "the certificate has expired"
                     : g->not_before_ms > now                           ? "the certificate is not valid yet"
                     : g->trail && trail_broken(g->trail)               ? "the audit log cannot be written"
                                                                        : NULL;
    if (no)
        (void)str_copy(why, 256, no);
    return !no;
}

static void refresh(void *ctx)
{
    struct gateway *g = ctx;
    metric_set(&m_expiry, g->not_after_ms / 1000);
    metric_set(&m_healthy, g->dialler ? (int64_t)dialler_healthy(g->dialler) : 0);
}

static const struct gateway_admin_ops admin_ops = { .ready = ready, .refresh = refresh };

static int start_ws(struct gateway *g, struct err *e)
{
    struct net_addr a;
    char text[NET_ADDR_TEXT];
    TRY(net_addr_parse(g->set.listen_addr, &a, e));
    const struct ws_conf c = { .conns_max = (size_t)g->set.conns_max, .head_ms = g->set.head_ms };
    TRY(ws_listen(g->ev, &a, &c, g->front, &g->ws, e));
    net_addr_format(ws_addr(g->ws), text);
    log_info("gateway.behind_cloudflared", "listen=%s", text);
    return RC_OK;
}

/* The watch sees the new files and loads them. */
static void on_renew(struct ev_timer *t)
{
    struct gateway *g = container_of(t, struct gateway, renew);
    struct err e = { 0 };
    bool done = false;
    const char *slash = strrchr(g->set.cert_file, '/');
    AUTO_FREE char *dir = slash ? str_ndup(g->set.cert_file, (size_t)(slash - g->set.cert_file)) : NULL;
    bool ours = slash && slash != g->set.cert_file && str_eq(slash, "/tls.crt") && g->set.renew_before_ms > 0;
    int rc = ours ? renew_if_due(dir, clock_now_ms(), g->set.renew_before_ms, KEYDIR_LEAF_VALID_MS, &done, &e) : RC_OK;
    if (rc < 0)
        log_warn("gateway.renew", "dir=%s why=%s", dir, e.msg);
    if (done)
        log_info("gateway.renew", "dir=%s what=%s", dir, "a new certificate was made");
    ev_timer_set(g->ev, t, RENEW_LOOK_MS, on_renew);
}

static int start_dialler(struct gateway *g, struct err *e)
{
    AUTO_PTR(secret) token = g->set.token ? secret_from_str(g->set.token) : NULL;      /* wipes the setting's text */
    struct dial_conf c = { .edges = (const char *const *)g->set.edges.item, .n_edges = g->set.edges.n, .ca_file = g->set.edge_ca, .token_file = g->set.token_file,
                           .token = token, .connections = (size_t)g->set.connections, .window_budget = g->set.window_budget,
                           .proxy = g->set.proxy, .no_proxy = g->set.no_proxy };
    return dialler_new(g->ev, &c, g->front, &g->dialler, e);
}

static int start_parts(struct gateway *g, struct setup *s, struct err *e)
{
    struct front_limits l = limits_of(&s->set);
    TRY(ev_signal(g->ev, SIGTERM, on_signal, g, e));
    TRY(ev_signal(g->ev, SIGINT, on_signal, g, e));
    TRY(ev_signal(g->ev, SIGHUP, on_hup, g, e));
    if (s->set.audit_log)
        TRY(trail_open(g->ev, s->set.audit_log, &g->trail, e));
    g->front = front_new(g->ev, &l, g->trail);
    g->watch = watch_new(g->ev, on_files_changed, g);
    apply(g, s);
    if (g->set.admin_listen)
        TRY(gateway_admin_start(g->ev, g->set.admin_listen, &admin_ops, g, &g->admin, e));
    on_renew(&g->renew);
    return g->set.behind_cloudflared ? start_ws(g, e) : start_dialler(g, e);
}

static void free_parts(struct gateway *g)
{
    ev_timer_stop(&g->deadline);
    ev_timer_stop(&g->settle);
    ev_timer_stop(&g->renew);
    ws_free(g->ws);
    gateway_admin_free(g->admin);
    watch_free(g->watch);
    dialler_free(g->dialler);
    front_free(g->front);
    trail_close(g->trail);
    env_unref(g->env);
    conf_free(&gateway_program, &g->set);
}

/* Each inner connection may need a descriptor upstream. */
static void raise_files(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &r);
    }
}

static int run(struct gateway *g, struct setup *s)
{
    struct err e = { 0 };
    int rc = start_parts(g, s, &e);
    setup_done(s);
    if (rc < 0)
        return complain(rc == RC_INVALID ? EXIT_USAGE : EXIT_FAIL, &e);
    ev_run(g->ev);
    return g->exit_status;
}

static int check(struct ev *ev, int argc, char **argv)
{
    struct setup s = { .env = NULL };
    struct err e = { 0 };
    bool quit = false;
    int rc = conf_load(&gateway_program, argc, argv, &s.set, NULL, &quit, &e);
    if (rc == RC_OK && !quit)
        rc = setup_build(ev, conf_file(&gateway_program, argc, argv), &s, &e);
    if (rc < 0 || quit) {
        setup_done(&s);
        return rc < 0 ? complain(EXIT_FAIL, &e) : EXIT_OK;
    }
    for (size_t i = 0; i < route_table_count(s.routes); i++) {
        const struct route *r = route_table_at(s.routes, i);
        bool bare = s.set.tunnel_domain && *s.set.tunnel_domain && !strchr(r->name, '.');
        printf("https://%s%s%s -> %s%s\n", r->name, bare ? "." : "", bare ? s.set.tunnel_domain : "", r->leads_to, r->policy ? " (tool policy)" : "");
    }
    setup_done(&s);
    return EXIT_OK;
}

/* The hosted service's proxy takes "-config" and "-tunnel-domain" with one dash; so do we. */
static void two_dashes(int argc, char **argv)
{
    static char config[] = "--config", domain[] = "--tunnel-domain";
    for (int i = 1; i < argc; i++)
        if (str_eq(argv[i], "-config"))
            argv[i] = config;
        else if (str_eq(argv[i], "-tunnel-domain"))
            argv[i] = domain;
}

int gateway_main(int argc, char **argv)
{
    if (argc > 1 && str_eq(argv[1], "init"))
        return gateway_init_main(argc - 1, argv + 1);
    if (argc > 1 && str_eq(argv[1], "renew"))
        return gateway_renew_main(argc - 1, argv + 1);
    struct err e = { 0 };
    struct setup s = { .env = NULL };
    struct gateway g = { .argc = argc, .argv = argv };
    bool quit = false, only_check = argc > 1 && str_eq(argv[1], "check");
    if (only_check) {
        argv[1] = argv[0];
        g.argc--;
        g.argv++;
    }
    two_dashes(g.argc, g.argv);
    (void)mallopt(M_MMAP_THRESHOLD, 1024 * 1024);       /* as the edge does */
    (void)mallopt(M_TRIM_THRESHOLD, 4 * 1024 * 1024);
    if (ev_new(&g.ev, &e) < 0)
        return complain(EXIT_FAIL, &e);
    int status = EXIT_OK;
    if (only_check) {
        status = check(g.ev, g.argc, g.argv);
    } else if (conf_load(&gateway_program, g.argc, g.argv, &s.set, NULL, &quit, &e) < 0) {
        status = complain(EXIT_USAGE, &e);
    } else if (!quit) {
        raise_files();
        log_setup((enum log_level)s.set.log_level, (enum log_format)s.set.log_format, "gateway");
        status = setup_build(g.ev, conf_file(&gateway_program, g.argc, g.argv), &s, &e) < 0 ? complain(EXIT_USAGE, &e) : run(&g, &s);
    }
    setup_done(&s);
    free_parts(&g);
    ev_free(g.ev);
    return status;
}
