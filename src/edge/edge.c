/* edge/edge.c - the edge's main program: settings, listeners, one loop, and the way out: GOAWAY, the streams' time to finish, the end. */
#include "edge/edge.h"

#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "base/str.h"
#include "edge/admin.h"
#include "edge/gateways.h"
#include "edge/host.h"
#include "edge/init.h"
#include "edge/pass.h"
#include "edge/peers.h"
#include "edge/routes.h"
#include "edge/splice.h"
#include "log/log.h"
#include "tunnel/hello.h"

#define DRAIN_LOOK_MS 50                 /* how often a draining edge looks whether all has ended */
#define ID_SAFE "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."

/* ---- the end ---- */

static void on_drain_end(struct ev_timer *t)
{
    struct edge *e = container_of(t, struct edge, drain_end);
    log_warn("edge.drain_cut", "relays=%zu", e->n_passes);
    ev_stop(e->ev);
}

static void on_drain_look(struct ev_timer *t)
{
    struct edge *e = container_of(t, struct edge, drain_look);
    bool open = e->n_passes || !list_empty(&e->splices) || !list_empty(&e->calls) || door_guests(e->provider_door) || door_guests(e->passthrough_door);
    if (open)
        ev_timer_set(e->ev, t, DRAIN_LOOK_MS, on_drain_look);
    else
        ev_stop(e->ev);
}

static void on_signal(void *ctx, int signo)
{
    struct edge *e = ctx;
    if (e->draining) {
        log_warn("edge.stop", "signal=%d now=%s", signo, "true");
        ev_stop(e->ev);
        return;
    }
    log_info("edge.drain", "signal=%d grace_ms=%lld relays=%zu links=%zu", signo, (long long)e->set.drain_ms, e->n_passes, gateways_links(e->gateways));
    e->draining = true;
    door_close(e->gateway_door);
    door_close(e->provider_door);
    door_close(e->passthrough_door);
    door_close(e->peer_door);
    gateways_drain(e->gateways);
    peers_drain(e->peers);
    control_changed(e->control);
    ev_timer_set(e->ev, &e->drain_end, e->set.drain_ms, on_drain_end);
    ev_timer_set(e->ev, &e->drain_look, DRAIN_LOOK_MS, on_drain_look);
}

static void edge_free(struct edge *e)
{
    ev_timer_stop(&e->drain_end);
    ev_timer_stop(&e->drain_look);
    edge_admin_free(e->admin);
    calls_end(e);
    splices_end(e);
    passes_end(e);
    peers_free(e->peers);
    gateways_free(e->gateways);
    routes_free(e->routes);
    control_free(TAKE(e->control));
    door_free(e->gateway_door);
    door_free(e->provider_door);
    door_free(e->passthrough_door);
    door_free(e->peer_door);
    tls_ctx_free(e->tls_gateway);
    tls_ctx_free(e->tls_provider);
    tls_ctx_free(e->tls_peer);
    tls_ctx_free(e->tls_peer_client);
    for (size_t i = 0; i < e->n_retired; i++)
        tls_ctx_free(e->retired[i]);
    free(e->retired);
    ranges_done(&e->gateway_allow);
    ranges_done(&e->provider_allow);
    ranges_done(&e->passthrough_allow);
    ev_free(e->ev);
    conf_free(&edge_program, &e->set);
}

/* ---- certificates ---- */

struct contexts { struct tls_ctx *gateway, *provider, *peer, *peer_client; };

static void contexts_free(struct contexts *c)
{
    tls_ctx_free(c->gateway);
    tls_ctx_free(c->provider);
    tls_ctx_free(c->peer);
    tls_ctx_free(c->peer_client);
}

static int contexts_load(const struct edge_settings *s, struct contexts *ret, struct err *e)
{
    struct contexts c = { 0 };
    const struct tls_conf own = { .cert_file = s->tls_cert, .key_file = s->tls_key, .tls13_only = true };
    struct tls_conf provider = own, peer = { .cert_file = s->peer_cert, .key_file = s->peer_key, .ca_file = s->peer_ca, .tls13_only = true };
    provider.ca_file = s->provider_client_ca;
    int rc = tls_ctx_server(&own, &c.gateway, e);
    if (rc == RC_OK)
        rc = tls_ctx_server(&provider, &c.provider, e);
    if (rc == RC_OK && s->peer_cert && (rc = tls_ctx_server(&peer, &c.peer, e)) == RC_OK)
        rc = tls_ctx_client(&peer, &c.peer_client, e);
    if (rc < 0) {
        contexts_free(&c);
        return rc;
    }
    *ret = c;
    return RC_OK;
}

static void retire(struct edge *e, struct tls_ctx **place, struct tls_ctx *fresh)
{
    if (*place) {
        e->retired = xrealloc(e->retired, e->n_retired + 1, sizeof *e->retired);
        e->retired[e->n_retired++] = *place;
    }
    *place = fresh;
}

static void install(struct edge *e, const struct contexts *c)
{
    retire(e, &e->tls_gateway, c->gateway);
    retire(e, &e->tls_provider, c->provider);
    retire(e, &e->tls_peer, c->peer);
    retire(e, &e->tls_peer_client, c->peer_client);
}

static void on_reload(void *ctx, int signo)
{
    (void)signo;
    struct edge *e = ctx;
    struct contexts c;
    struct err err;
    if (contexts_load(&e->set, &c, &err) < 0) {
        log_err(LOG_ERROR, "edge.certificates_not_reloaded", &err);     /* the old ones stay */
        return;
    }
    install(e, &c);
    log_info("edge.certificates_reloaded", "cert=%s", e->set.tls_cert);
}

/* ---- the start ---- */

static json_t *make_beat(void *ctx)
{
    struct edge *e = ctx;
    json_t *j = json_object();
    js_set_str(j, "address", e->set.peer_advertise ? e->set.peer_advertise : e->peer_door ? door_address(e->peer_door) : PROTO_NO_PEER);
    js_set_str(j, "version", OUTWORK_VERSION);
    js_set_bool(j, "draining", e->draining);
    js_set(j, "connectors", gateways_connectors(e->gateways));
    return j;
}

static void on_state(void *ctx, const char *tunnel_id, enum tunnel_state s)
{
    gateways_state(((struct edge *)ctx)->gateways, tunnel_id, s);
}

static void on_reachable(void *ctx, bool reachable)
{
    struct edge *e = ctx;
    if (reachable)
        log_info("edge.server_reachable", "server=%s", e->set.server);
    else
        log_warn("edge.server_unreachable", "server=%s effect=%s", e->set.server, "connected gateways go on; new ones are sent away until it answers");
}

static int load_key(const struct edge_settings *s, struct secret **ret, struct err *e)
{
    AUTO_PTR(secret) key = secret_take_env("OUTWORK_EDGE_KEY");
    if (s->key_file) {
        secret_free(TAKE(key));
        TRY(secret_read_file(s->key_file, &key, e));
    }
    if (!key)
        return err_set(e, RC_INVALID, "the edge key is missing: --key-file FILE or OUTWORK_EDGE_KEY (`outwork edge-key create` on the server makes one)");
    for (const char *p = secret_text(key); *p; p++)
        if ((unsigned char)*p <= ' ' || (unsigned char)*p >= 127)
            return err_set(e, RC_INVALID, "the edge key holds a space or a character that no key has");
    *ret = TAKE(key);
    return RC_OK;
}

static int open_door(struct edge *e, const struct door_conf *more, const char *listen, struct door **ret, struct err *err)
{
    if (!listen)
        return RC_OK;
    struct door_conf c = *more;
    c.ev = e->ev;
    c.listen = listen;
    c.conns_max = (size_t)e->set.max_connections;
    c.fresh_max = (size_t)e->set.max_fresh;
    c.fresh_per_source = (size_t)e->set.max_fresh_per_source;
    c.head_ms = e->set.head_ms;
    c.ctx = e;
    return door_new(&c, ret, err);
}

static int open_doors(struct edge *e, struct err *err)
{
    const struct edge_settings *s = &e->set;
    const size_t few = (size_t)s->max_per_source, many = (size_t)s->max_provider_per_source;
    const struct ranges *ga = e->gateway_allow.n ? &e->gateway_allow : NULL, *pa = e->provider_allow.n ? &e->provider_allow : NULL;
    const struct door_conf gateway = { .name = "gateway", .tls = &e->tls_gateway, .allow = ga, .per_source = few, .in_max = EDGE_HEAD_MAX, .on_input = gateways_input };
    const struct door_conf provider = { .name = "provider", .tls = &e->tls_provider, .allow = pa, .per_source = many, .in_max = EDGE_HEAD_MAX, .on_input = provider_input };
    const struct door_conf peer = { .name = "peer", .tls = &e->tls_peer, .per_source = many, .in_max = EDGE_HEAD_MAX, .on_input = peers_input };
    const struct door_conf plain = { .name = "passthrough", .allow = &e->passthrough_allow, .per_source = few, .in_max = HELLO_MAX, .on_input = passthrough_input };
    TRY(open_door(e, &gateway, s->gateway_listen, &e->gateway_door, err));
    TRY(open_door(e, &provider, s->provider_listen, &e->provider_door, err));
    TRY(open_door(e, &peer, s->peer_listen, &e->peer_door, err));
    TRY(open_door(e, &plain, s->passthrough_listen, &e->passthrough_door, err));
    return edge_admin_new(e, &e->admin, err);
}

static void raise_fd_limit(const struct edge *e)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) < 0)
        return;
    if (r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &r);
    }
    if (r.rlim_cur < (rlim_t)e->set.max_connections)
        log_warn("edge.few_descriptors", "limit=%llu max_connections=%lld", (unsigned long long)r.rlim_cur, (long long)e->set.max_connections);
}

static int start(struct edge *e, struct err *err)
{
    struct contexts c;
    struct control_conf cc = { .base_url = e->set.server, .ca_file = e->set.server_ca, .edge_id = e->id, .beat = make_beat, .on_state = on_state,
                               .on_reachable = on_reachable, .ctx = e };
    raise_fd_limit(e);
    e->budget.max = e->set.window_budget;
    TRY(ranges_parse(e->set.gateway_allow.item, e->set.gateway_allow.n, &e->gateway_allow, err));
    TRY(ranges_parse(e->set.provider_allow.item, e->set.provider_allow.n, &e->provider_allow, err));
    TRY(ranges_parse(e->set.passthrough_allow.item, e->set.passthrough_allow.n, &e->passthrough_allow, err));
    TRY(ev_new(&e->ev, err));
    TRY(ev_signal(e->ev, SIGTERM, on_signal, e, err));
    TRY(ev_signal(e->ev, SIGINT, on_signal, e, err));
    TRY(ev_signal(e->ev, SIGHUP, on_reload, e, err));
    TRY(contexts_load(&e->set, &c, err));
    install(e, &c);
    TRY(load_key(&e->set, &cc.key, err));
    cc.ev = e->ev;
    int rc = control_new(&cc, &e->control, err);
    if (rc < 0) {
        secret_free(cc.key);
        return rc;
    }
    e->gateways = gateways_new(e);
    e->routes = routes_new(e);
    e->peers = peers_new(e);
    TRY(open_doors(e, err));
    control_start(e->control);
    log_info("edge.ready", "gateway=%s provider=%s passthrough=%s peer=%s admin=%s id=%s server=%s version=%s", door_address(e->gateway_door),
             door_address(e->provider_door), e->passthrough_door ? door_address(e->passthrough_door) : "", e->peer_door ? door_address(e->peer_door) : "",
             admin_address(e->admin), e->id, e->set.server, OUTWORK_VERSION);
    return RC_OK;
}

static int configure(struct edge *e, int argc, char **argv, bool *ret_help, struct err *err)
{
    TRY(conf_load(&edge_program, argc, argv, &e->set, NULL, ret_help, err));
    if (*ret_help)
        return RC_OK;
    TRY(edge_settings_check(&e->set, err));
    size_t n = strlen(e->set.server);
    while (n && e->set.server[n - 1] == '/')
        e->set.server[--n] = '\0';
    if (!e->set.id)
        id_new("edge", e->id);
    else if (!*e->set.id || strspn(e->set.id, ID_SAFE) != strlen(e->set.id) || !str_copy(e->id, sizeof e->id, e->set.id))
        return err_set(err, RC_INVALID, "--id has 1 to %d letters, digits, dashes, dots and underscores", ID_MAX - 1);
    log_setup((enum log_level)e->set.log_level, e->set.log_format == 1 ? LOG_JSON : LOG_TEXT, "edge");
    return RC_OK;
}

int edge_main(int argc, char **argv)
{
    if (argc >= 2 && str_eq(argv[1], "init"))
        return edge_init_main(argc - 1, argv + 1);
    struct edge e = { 0 };
    struct err err = { 0 };
    bool help = false;
    list_init(&e.calls);
    list_init(&e.passes);
    list_init(&e.splices);
    /* Queues come and go thousands of times a second under bulk: their memory stays with the process. The rest goes back after a burst of connections. */
    (void)mallopt(M_ARENA_MAX, 1);
    (void)mallopt(M_MMAP_THRESHOLD, 1024 * 1024);
    (void)mallopt(M_TRIM_THRESHOLD, 4 * 1024 * 1024);
    (void)signal(SIGPIPE, SIG_IGN);
    int rc = configure(&e, argc, argv, &help, &err);
    if (rc < 0 || help) {
        if (rc < 0)
            (void)fprintf(stderr, "outwork edge: %s\n", err.msg);
        conf_free(&edge_program, &e.set);
        return rc < 0 ? 2 : 0;
    }
    rc = start(&e, &err);
    if (rc < 0) {
        (void)fprintf(stderr, "outwork edge: %s\n", err.msg);
        edge_free(&e);
        return rc == RC_INVALID ? 2 : 1;
    }
    ev_run(e.ev);
    log_info("edge.stopped", "relays_cut=%zu", e.n_passes);
    edge_free(&e);
    return 0;
}
