/* cli/dev_tunnel.c - the tunnel of `outwork dev --route NAME=UPSTREAM`: an edge and a gateway on loopback, with everything that they have in production but the
 * machines between them. Keys, token and configuration are kept in DATA/tunnel and used again. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "cli/dev.h"
#include "json/js.h"
#include "net/net.h"
#include "proc/proc.h"

#define NAME_MAX_LEN 63                      /* a label of a host name, RFC 1035 */
#define STDIO "stdio:"
#define CONNECTED_WAIT_MS 20000
#define CONNECTED_STEP_MS 50

static char *path_of(const struct dev *d, const char *name) { return str_printf("%s/tunnel/%s", d->s.data, name); }

/* "name=upstream": where the upstream begins; NULL: no such thing. */
static const char *upstream_of(const char *route, size_t *ret_name_n)
{
    size_t n = strspn(route, "abcdefghijklmnopqrstuvwxyz0123456789-");
    *ret_name_n = n;
    return n > 0 && n <= NAME_MAX_LEN && route[0] != '-' && route[n - 1] != '-' && route[n] == '=' && route[n + 1] ? route + n + 1 : NULL;
}

int dev_tunnel_check(const struct dev *d, struct err *e)
{
    for (size_t i = 0; i < d->s.routes.n; i++) {
        size_t n;
        if (!upstream_of(d->s.routes.item[i], &n))
            return err_set(e, RC_INVALID, "route '%s': expected NAME=UPSTREAM, as in docs=http://127.0.0.1:8080 or notes='stdio:notes-mcp --read-only'; a name has letters a-z, "
                           "digits and '-'", d->s.routes.item[i]);
    }
    return RC_OK;
}

/* One of our own commands, to its end. Its words on standard output are for somebody who runs it by hand. */
static int run(char *const *argv, char *const *envp, struct err *e)
{
    const struct proc_spec p = { .path = "/proc/self/exe", .argv = argv, .envp = envp, .fd_in = -1, .fd_out = -1, .fd_err = 2 };
    pid_t pid;
    int pidfd = -1, status = 0;
    TRY(proc_spawn(&p, &pid, &pidfd, e));
    (void)close(pidfd);
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return err_sys(e, RC_IO, errno, "wait for `outwork %s %s`", argv[1], argv[2]);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? RC_OK : err_set(e, RC_IO, "`outwork %s %s` failed; see its message above", argv[1], argv[2]);
}

static int free_port(uint16_t *ret, struct err *e)
{
    struct net_addr any, bound;
    char text[NET_ADDR_TEXT];
    int64_t port = 0;
    int fd = -1;
    TRY(net_addr_parse("127.0.0.1:0", &any, e));
    TRY(net_listen(&any, &fd, &bound, e));
    (void)close(fd);
    net_addr_format(&bound, text);
    TRY(str_to_i64(strrchr(text, ':') + 1, 1, UINT16_MAX, &port));
    *ret = (uint16_t)port;
    return RC_OK;
}

int dev_tunnel_prepare(struct dev *d, struct err *e)
{
    if (d->s.routes.n == 0)
        return RC_OK;
    AUTO_FREE char *keys = path_of(d, "keys"), *crt = path_of(d, "keys/provider.crt"), *dir = str_printf("%s/tunnel", d->s.data);
    TRY(fd_mkdirs(dir, 0700, e));
    if (access(crt, F_OK) != 0) {
        char *argv[] = { "outwork", "edge", "init", "--dir", keys, "--name", "127.0.0.1", NULL };
        TRY(run(argv, NULL, e));
    }
    TRY(free_port(&d->provider_port, e));
    return free_port(&d->gateway_port, e);
}

void dev_tunnel_server_args(struct dev *d, char **argv, size_t *n)
{
    if (d->s.routes.n == 0)
        return;
    argv[(*n)++] = str_printf("--tunnel-edge=https://127.0.0.1:%u", d->provider_port);
    argv[(*n)++] = str_printf("--tunnel-edge-ca=%s/tunnel/keys/ca.crt", d->s.data);
    argv[(*n)++] = str_printf("--tunnel-edge-cert=%s/tunnel/keys/provider.crt", d->s.data);
    argv[(*n)++] = str_printf("--tunnel-edge-key=%s/tunnel/keys/provider.key", d->s.data);
}

/* JSON, which is YAML, too. Loopback is opened: on a developer's machine the servers are there. */
static int write_config(struct dev *d, const char *file, struct err *e)
{
    static const char *const reach[] = { "127.0.0.0/8", "::1", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7" };
    AUTO_FREE char *ca = path_of(d, "keys/ca.crt"), *token = path_of(d, "gateway/tunnel-token"), *crt = path_of(d, "gateway/tls.crt"), *key = path_of(d, "gateway/tls.key"),
                   *audit = path_of(d, "audit.jsonl"), *edge = str_printf("127.0.0.1:%u", d->gateway_port);
    AUTO_JS j = json_object();
    json_t *edges = json_array(), *tls = json_object(), *upstream = json_object(), *ips = json_array(), *routes = json_object();
    json_array_append_new(edges, json_string(edge));
    for (size_t i = 0; i < COUNT_OF(reach); i++)
        json_array_append_new(ips, json_string(reach[i]));
    js_set_str(tls, "cert_file", crt);
    js_set_str(tls, "key_file", key);
    js_set(upstream, "allowed_ips", ips);
    for (size_t i = 0; i < d->s.routes.n; i++) {
        size_t n;
        const char *to = upstream_of(d->s.routes.item[i], &n);
        AUTO_FREE char *name = str_ndup(d->s.routes.item[i], n);
        json_t *route = json_object();
        if (str_prefix(to, STDIO)) {
            js_set_str(route, "stdio", to + strlen(STDIO));
        } else {
            json_t *upstreams = json_array();
            json_array_append_new(upstreams, json_string(to));
            js_set(route, "upstreams", upstreams);
            js_set_str(route, "host", "upstream");           /* servers that guard against rebinding know themselves as localhost only */
        }
        js_set(routes, name, route);
    }
    js_set(j, "edge", edges);
    js_set_str(j, "edge_ca", ca);
    js_set_str(j, "token_file", token);
    js_set_str(j, "tunnel_domain", d->domain);
    js_set(j, "tls", tls);
    js_set(j, "upstream", upstream);
    js_set_str(j, "audit_log", audit);
    js_set(j, "routes", routes);
    AUTO_FREE char *text = js_text(j);
    return fd_write_file_atomic(file, text, strlen(text), 0600, e);
}

static int read_line(const struct dev *d, const char *name, char *ret, size_t cap, struct err *e)
{
    AUTO_FREE char *file = path_of(d, name), *text = NULL;
    TRY(fd_read_file(AT_FDCWD, file, cap - 1, &text, NULL, e));
    text[strcspn(text, " \r\n")] = '\0';
    return str_copy(ret, cap, text) ? RC_OK : err_set(e, RC_TOO_LARGE, "%s is too long", file);
}

static int start_gateway(struct dev *d, struct err *e)
{
    AUTO_FREE char *out = str_printf("dir:%s/tunnel/gateway", d->s.data), *config = path_of(d, "gateway.yaml");
    char *init[] = { "outwork", "gateway", "init", "--api-url", d->base, "--output", out, "--display-name", "dev", NULL };
    char *envp[] = { dev_env("ANTHROPIC_API_KEY", secret_text(d->api_key)), str_dup(DEV_PATH), NULL };
    int rc = run(init, envp, e);
    dev_env_free(envp);
    TRY(rc);
    TRY(read_line(d, "gateway/tunnel-domain", d->domain, sizeof d->domain, e));
    TRY(read_line(d, "gateway/tunnel-id", d->tunnel_id, sizeof d->tunnel_id, e));
    TRY(write_config(d, config, e));
    char *argv[] = { "outwork", "gateway", "--config", config, "--log-level", d->s.log_level, NULL };
    return dev_spawn(d, DEV_GATEWAY, argv, NULL);
}

static void ask_connected(struct ev_timer *t);

static void on_tunnel(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    struct dev *d = ctx;
    AUTO_JS j = NULL;
    struct err pe = { 0 };
    (void)e;
    if (d->stopping)
        return;
    if (rc == RC_OK && r->status == 200 && js_parse(buf_data(r->body), buf_len(r->body), JS_BODY_MAX, &j, &pe) == RC_OK && js_int(j, "connections", 0) > 0)
        dev_have_tunnel(d);
    else if (ev_now_ms(d->ev) > d->deadline_ms)
        dev_fail(d, "the gateway did not connect to the edge");
    else
        ev_timer_set(d->ev, &d->timer, CONNECTED_STEP_MS, ask_connected);
}

/* Who reads the URLs shall be able to use them. */
static void ask_connected(struct ev_timer *t)
{
    struct dev *d = container_of(t, struct dev, timer);
    AUTO_FREE char *path = str_printf("/outwork/v1/tunnels/%s", d->tunnel_id);
    dev_call(d, "GET", path, NULL, on_tunnel);
}

static void start(struct dev *d)
{
    struct err e = { 0 };
    AUTO_FREE char *gateway = str_printf("127.0.0.1:%u", d->gateway_port), *provider = str_printf("127.0.0.1:%u", d->provider_port), *crt = path_of(d, "keys/edge.crt"),
                   *key = path_of(d, "keys/edge.key"), *ca = path_of(d, "keys/ca.crt");
    char *argv[] = { "outwork", "edge", "--server", d->base, "--gateway-listen", gateway, "--provider-listen", provider, "--admin-listen", "127.0.0.1:0", "--tls-cert", crt,
                     "--tls-key", key, "--provider-client-ca", ca, "--log-level", d->s.log_level, "--log-format", "text", NULL };
    char *envp[] = { dev_env("OUTWORK_EDGE_KEY", secret_text(d->edge_key)), str_dup(DEV_PATH), NULL };
    int rc = dev_spawn(d, DEV_EDGE, argv, envp);
    dev_env_free(envp);
    if (rc == RC_OK && start_gateway(d, &e) < 0)
        dev_fail(d, e.msg[0] ? e.msg : "the gateway cannot be started");
    if (d->stopping)
        return;
    d->deadline_ms = ev_now_ms(d->ev) + CONNECTED_WAIT_MS;
    ev_timer_set(d->ev, &d->timer, CONNECTED_STEP_MS, ask_connected);
}

static void on_edge_key(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    struct dev *d = ctx;
    AUTO_FREE char *file = path_of(d, "edge-key");
    d->edge_key = dev_new_key(d, rc, r, e, "edge key", file);
    if (d->edge_key)
        start(d);
}

void dev_tunnel_start(struct dev *d)
{
    struct err e = { 0 };
    AUTO_FREE char *file = path_of(d, "edge-key");
    if (secret_read_file(file, &d->edge_key, &e) == RC_OK)
        start(d);
    else
        dev_call(d, "POST", "/outwork/v1/edge-keys", "{\"name\":\"dev\"}", on_edge_key);
}

void dev_tunnel_print(const struct dev *d)
{
    for (size_t i = 0; i < d->s.routes.n; i++) {
        size_t n;
        const char *to = upstream_of(d->s.routes.item[i], &n);
        printf("MCP server: https://%.*s.%s/mcp -> %s\n", (int)n, d->s.routes.item[i], d->domain, to);
    }
}
