/* gateway/settings.c - see settings.h */
#include "gateway/settings.h"

#include <string.h>

#include "base/str.h"
#include "gateway/egress.h"
#include "gateway/egress.h"

#define DOMAIN_MAX 253

#define F(f) offsetof(struct gateway_settings, f)
static const struct conf_key keys[] = {
    { .name = "edge", .type = CONF_LIST, .field = F(edges), .arg = "HOST:PORT",
      .help = "An edge to connect to; may be repeated. Without it the one that the token names." },
    { .name = "edge-ca", .type = CONF_STR, .field = F(edge_ca), .arg = "FILE",
      .help = "Trust these certificate authorities for edges instead of the system's." },
    { .name = "connections", .type = CONF_INT, .field = F(connections), .dflt = "4", .min = "1", .max = "64", .arg = "N",
      .help = "Connections kept to edges, spread over them." },
    { .name = "proxy", .type = CONF_STR, .field = F(proxy), .env = "HTTPS_PROXY", .arg = "URL",
      .help = "HTTP proxy on the way to edges (CONNECT); not used for upstreams." },
    { .name = "no-proxy", .type = CONF_STR, .field = F(no_proxy), .env = "NO_PROXY", .arg = "HOSTS", .help = "Edges that are reached without the proxy." },
    { .name = "token-file", .type = CONF_STR, .field = F(token_file), .arg = "FILE",
      .help = "File with the tunnel token, not readable by others; read again for each connection, so that a rotated token needs no restart." },
    { .name = "tunnel-token", .type = CONF_STR, .field = F(token), .env = "TUNNEL_TOKEN", .secret = true, .help = "The tunnel token itself." },
    { .name = "behind-cloudflared", .type = CONF_BOOL, .field = F(behind_cloudflared), .dflt = "false",
      .help = "Take the place of the hosted service's proxy: accept WebSockets of a cloudflared on listen-addr instead of connecting to an edge." },
    { .name = "listen-addr", .type = CONF_STR, .field = F(listen_addr), .arg = "ADDR:PORT",
      .help = "Where --behind-cloudflared listens; of no use without it." },
    { .name = "tunnel-domain", .type = CONF_STR, .field = F(tunnel_domain), .arg = "DOMAIN",
      .help = "The tunnel's domain: a route 'docs' is https://docs.DOMAIN. Without it the names of routes are whole host names." },
    { .name = "routes", .type = CONF_TREE, .field = F(routes), .help = "Names and where they lead, see docs/gateway.md." },
    { .name = "tls.cert-file", .type = CONF_STR, .field = F(cert_file), .arg = "FILE", .help = "Certificate of the inner TLS; a changed file is taken up." },
    { .name = "tls.key-file", .type = CONF_STR, .field = F(key_file), .arg = "FILE", .help = "Its private key." },
    { .name = "tls.renew-before", .type = CONF_DUR, .field = F(renew_before_ms), .dflt = "30d", .arg = "TIME",
      .help = "Make a new certificate by itself when the one there has less time left, if its directory was made by `outwork gateway init` and still has ca.key; "
              "0: never." },
    { .name = "upstream.allowed-ips", .type = CONF_LIST, .field = F(allowed_ips), .arg = "RANGE",
      .help = "Addresses that routes may lead to, instead of RFC 1918 and fc00::/7; may be repeated." },
    { .name = "upstream.disable-ip-validation", .type = CONF_BOOL, .field = F(ip_validation_off), .dflt = "false",
      .help = "Let routes lead to any address." },
    { .name = "upstream.tls.ca-file", .type = CONF_STR, .field = F(upstream_ca), .arg = "FILE", .help = "Certificate authorities of https upstreams." },
    { .name = "upstream.tls.include-system-cas", .type = CONF_BOOL, .field = F(upstream_system_cas), .dflt = "false",
      .help = "Trust the system's authorities for https upstreams (beside ca-file)." },
    { .name = "upstream.tls.cert-file", .type = CONF_STR, .field = F(upstream_cert), .arg = "FILE", .help = "Client certificate shown to https upstreams." },
    { .name = "upstream.tls.key-file", .type = CONF_STR, .field = F(upstream_key), .arg = "FILE", .help = "Its private key." },
    { .name = "upstream.connect-timeout", .type = CONF_DUR, .field = F(connect_ms), .dflt = "10s", .min = "100ms", .max = "5m", .arg = "TIME",
      .help = "For name, connection and TLS of an upstream." },
    { .name = "upstream.idle-timeout", .type = CONF_DUR, .field = F(idle_ms), .dflt = "4s", .max = "1h", .arg = "TIME",
      .help = "How long an unused connection is kept; under what the server itself allows (5s is usual)." },
    { .name = "upstream.idle-connections", .type = CONF_INT, .field = F(idle_max), .dflt = "128", .min = "0", .max = "65536", .arg = "N",
      .help = "Unused connections kept for each upstream." },
    { .name = "limits.connections", .type = CONF_INT, .field = F(conns_max), .dflt = "20000", .min = "1", .max = "1000000", .arg = "N",
      .help = "Inner connections at once." },
    { .name = "limits.requests", .type = CONF_INT, .field = F(requests_max), .dflt = "16384", .min = "1", .max = "1000000", .arg = "N",
      .help = "Requests in flight at once, open streams included; the next ones get 503." },
    { .name = "limits.head-timeout", .type = CONF_DUR, .field = F(head_ms), .dflt = "10s", .min = "100ms", .max = "5m", .arg = "TIME",
      .help = "For a TLS handshake, and from the first byte of a request to the end of its head." },
    { .name = "limits.body-timeout", .type = CONF_DUR, .field = F(body_ms), .dflt = "60s", .min = "100ms", .max = "1h", .arg = "TIME",
      .help = "Between two pieces of a request's body." },
    { .name = "limits.idle-timeout", .type = CONF_DUR, .field = F(keep_ms), .dflt = "5m", .min = "100ms", .max = "24h", .arg = "TIME",
      .help = "Between two requests of a connection. Answers have no time limit." },
    { .name = "limits.window-budget", .type = CONF_SIZE, .field = F(window_budget), .dflt = "256MiB", .min = "1MiB", .arg = "SIZE",
      .help = "Memory that the flow control windows of all streams together may promise beyond the smallest." },
    { .name = "audit-log", .type = CONF_STR, .field = F(audit_log), .arg = "FILE",
      .help = "Hash-chained record with a line for each MCP request; a request whose line cannot be written is refused." },
    { .name = "admin-listen", .type = CONF_STR, .field = F(admin_listen), .arg = "ADDR:PORT", .help = "Answer /healthz, /readyz and /metrics there." },
    { .name = "shutdown-timeout", .type = CONF_DUR, .field = F(shutdown_ms), .dflt = "30s", .max = "1h", .arg = "TIME",
      .help = "How long requests in flight are waited for after SIGTERM." },
    { .name = "log-format", .type = CONF_ENUM, .field = F(log_format), .dflt = "text", .choices = "text|json", .arg = "text|json", .help = "Form of the log on stderr." },
    { .name = "log-level", .type = CONF_ENUM, .field = F(log_level), .dflt = "info", .choices = "debug|info|warn|error", .arg = "LEVEL", .help = "Least important line shown." },
};

const struct conf_program gateway_program = {
    .command = "outwork gateway", .usage = "[check|init|renew] [options]",
    .summary = "Keeps outbound connections to an edge, ends the inner TLS with your key and passes the requests to your MCP servers.",
    .epilog = "Commands:\n"
              "  outwork gateway check --config FILE    check the settings, print the routes, exit\n"
              "  outwork gateway init, renew            make the keys of a tunnel, register them, fetch the token; see `init --help`\n\n"
              "SIGHUP, or a change of the settings file, a certificate or a key, loads them again: open streams go on; what is wrong is refused and the\n"
              "settings in force stay. Exit status: 0 clean end, 1 failure, 2 wrong use.\n",
    .keys = keys, .n_keys = COUNT_OF(keys),
};

static int domain(char *d, struct err *e)
{
    size_t n = strlen(d);
    while (n && d[n - 1] == '.')
        d[--n] = '\0';
    for (char *c = d; *c; c++) {
        if (*c >= 'A' && *c <= 'Z')
            *c = (char)(*c | 0x20);
        bool ok = (*c >= 'a' && *c <= 'z') || (*c >= '0' && *c <= '9') || *c == '-' || *c == '.';
        if (!ok || (*c == '.' && (c == d || c[1] == '.')))
            return err_set(e, RC_INVALID, "tunnel_domain: '%.80s' is no domain name", d);
    }
    return n > DOMAIN_MAX ? err_set(e, RC_INVALID, "tunnel_domain: longer than %d bytes", DOMAIN_MAX) : RC_OK;
}

int gateway_settings_finish(struct gateway_settings *s, struct err *e)
{
    if (s->tunnel_domain)
        TRY(domain(s->tunnel_domain, e));
    if (!s->cert_file || !s->key_file)
        return err_set(e, RC_INVALID, "tls.cert_file and tls.key_file are required: the certificate of the inner TLS and its key");
    if (!s->routes)
        return err_set(e, RC_INVALID, "routes: none; a mapping of names to scheme://host:port is required");
    if (s->allowed_ips.n && s->ip_validation_off)
        return err_set(e, RC_INVALID, "upstream.allowed_ips and upstream.disable_ip_validation exclude each other");
    struct egress_conf out = { s->proxy, s->no_proxy };
    TRY(egress_check(&out, e));
    if (!s->upstream_cert != !s->upstream_key)
        return err_set(e, RC_INVALID, "upstream.tls.cert_file and upstream.tls.key_file belong together");
    TRY(egress_check(&(struct egress_conf){ .proxy = s->proxy }, e));
    if (s->behind_cloudflared && !s->listen_addr)
        return err_set(e, RC_INVALID, "--behind-cloudflared needs listen_addr");
    return RC_OK;
}
