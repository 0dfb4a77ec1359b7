/* edge/settings.c - see settings.h */
#include "edge/settings.h"

#include "base/str.h"
#include "http/url.h"

#define F(field) offsetof(struct edge_settings, field)

static const struct conf_key keys[] = {
    { .name = "gateway.listen", .type = CONF_STR, .field = F(gateway_listen), .dflt = ":8443", .arg = "ADDR:PORT", .help = "Where gateways connect (TLS 1.3, tunnel token)." },
    { .name = "gateway.allow", .type = CONF_LIST, .field = F(gateway_allow), .arg = "RANGE", .help = "Source addresses of gateways, may be repeated (default: any)." },
    { .name = "provider.listen", .type = CONF_STR, .field = F(provider_listen), .dflt = ":8444", .arg = "ADDR:PORT",
      .help = "Where the server connects: an HTTPS proxy that asks for a client certificate." },
    { .name = "provider.client-ca", .type = CONF_STR, .field = F(provider_client_ca), .arg = "FILE", .help = "Authorities of the client certificates on provider.listen (PEM)." },
    { .name = "provider.allow", .type = CONF_LIST, .field = F(provider_allow), .arg = "RANGE",
      .help = "Source addresses allowed on provider.listen beside the certificate, may be repeated (default: any)." },
    { .name = "passthrough.listen", .type = CONF_STR, .field = F(passthrough_listen), .arg = "ADDR:PORT",
      .help = "Plain TCP, routed by the server name in the TLS hello; needs passthrough.allow (default: off)." },
    { .name = "passthrough.allow", .type = CONF_LIST, .field = F(passthrough_allow), .arg = "RANGE", .help = "Source addresses allowed on passthrough.listen, may be repeated." },
    { .name = "tls.cert", .type = CONF_STR, .field = F(tls_cert), .arg = "FILE", .help = "Certificate chain shown to gateways and to the server (PEM); read again on SIGHUP." },
    { .name = "tls.key", .type = CONF_STR, .field = F(tls_key), .arg = "FILE", .help = "Private key of tls.cert (PEM)." },

    { .name = "server", .type = CONF_STR, .field = F(server), .arg = "URL", .help = "Base URL of the server that knows tokens and tunnels." },
    { .name = "server-ca", .type = CONF_STR, .field = F(server_ca), .arg = "FILE", .help = "Certificates to trust for the server instead of the system's." },
    { .name = "key-file", .type = CONF_STR, .field = F(key_file), .arg = "FILE", .help = "File with the edge key, not readable by others; or set OUTWORK_EDGE_KEY. Never a flag." },
    { .name = "id", .type = CONF_STR, .field = F(id), .arg = "ID", .help = "Name of this process in the server's directory (default: a new one at each start)." },

    { .name = "peer.listen", .type = CONF_STR, .field = F(peer_listen), .arg = "ADDR:PORT", .help = "Where other edges hand over streams (default: off; then this edge is alone)." },
    { .name = "peer.advertise", .type = CONF_STR, .field = F(peer_advertise), .arg = "HOST:PORT", .help = "How other edges reach peer.listen (default: its address)." },
    { .name = "peer.cert", .type = CONF_STR, .field = F(peer_cert), .arg = "FILE", .help = "Certificate of this edge among edges, for both directions (PEM)." },
    { .name = "peer.key", .type = CONF_STR, .field = F(peer_key), .arg = "FILE", .help = "Private key of peer.cert (PEM)." },
    { .name = "peer.ca", .type = CONF_STR, .field = F(peer_ca), .arg = "FILE", .help = "Authorities of the edges' certificates (PEM); not those of the providers." },

    { .name = "admin.listen", .type = CONF_STR, .field = F(admin_listen), .arg = "ADDR:PORT", .help = "Answer /healthz, /readyz and /metrics there in plain HTTP (default: off)." },

    { .name = "max-connections", .type = CONF_INT, .field = F(max_connections), .dflt = "40000", .min = "16", .max = "1000000", .arg = "N",
      .help = "Open connections of each listener; the next ones wait in the kernel." },
    { .name = "max-connections-per-source", .type = CONF_INT, .field = F(max_per_source), .dflt = "1024", .min = "1", .max = "1000000", .arg = "N",
      .help = "Of them from one address (IPv6: one /64), on the gateways' and the passthrough listener." },
    { .name = "max-provider-connections-per-source", .type = CONF_INT, .field = F(max_provider_per_source), .dflt = "20000", .min = "1", .max = "1000000", .arg = "N",
      .help = "The same on the providers' and the peers' listener." },
    { .name = "max-handshakes", .type = CONF_INT, .field = F(max_fresh), .dflt = "512", .min = "1", .max = "100000", .arg = "N",
      .help = "Connections of one listener that have not said yet what they want; the next ones wait in the kernel." },
    { .name = "max-handshakes-per-source", .type = CONF_INT, .field = F(max_fresh_per_source), .dflt = "128", .min = "1", .max = "100000", .arg = "N",
      .help = "Of them from one address; more are closed." },
    { .name = "max-links-per-tunnel", .type = CONF_INT, .field = F(max_links), .dflt = "64", .min = "1", .max = "10000", .arg = "N", .help = "Gateway connections of one tunnel." },
    { .name = "max-streams-per-tunnel", .type = CONF_INT, .field = F(max_streams), .dflt = "10000", .min = "1", .max = "1000000", .arg = "N",
      .help = "Relayed connections of one tunnel." },
    { .name = "window-budget", .type = CONF_SIZE, .field = F(window_budget), .dflt = "256MiB", .min = "0", .arg = "SIZE",
      .help = "Memory that flow control may promise to all streams beyond 256 KiB each." },
    { .name = "head-timeout", .type = CONF_DUR, .field = F(head_ms), .dflt = "10s", .min = "100ms", .max = "10m", .arg = "TIME",
      .help = "From accepting a connection until it has said what it wants, TLS handshake included." },
    { .name = "connect-timeout", .type = CONF_DUR, .field = F(connect_ms), .dflt = "10s", .min = "100ms", .max = "10m", .arg = "TIME",
      .help = "From a client's request to the gateway's answer, with retries." },
    { .name = "echo-interval", .type = CONF_DUR, .field = F(echo_ms), .dflt = "10s", .min = "100ms", .max = "20s", .arg = "TIME",
      .help = "Pause between health checks through each link; one not answered in the same time ends the link." },
    { .name = "drain", .type = CONF_DUR, .field = F(drain_ms), .dflt = "30s", .min = "0", .max = "24h", .arg = "TIME", .help = "Time for streams to finish after SIGTERM." },
    { .name = "log.level", .type = CONF_ENUM, .field = F(log_level), .dflt = "info", .choices = "debug|info|warn|error", .arg = "LEVEL", .help = "Least important line shown." },
    { .name = "log.format", .type = CONF_ENUM, .field = F(log_format), .dflt = "json", .choices = "text|json", .arg = "text|json", .help = "Form of the log lines on stderr." },
};

const struct conf_program edge_program = {
    .command = "outwork edge",
    .summary = "The public node of tunnels: takes connections of gateways and of the server, and relays ciphertext between them by host name.",
    .usage = "[options]\n       outwork edge init --dir DIR --name HOST[,HOST|IP...]",
    .epilog = "The edge ends no inner TLS and holds no key that could: what it relays stays encrypted between the server and the gateway.\n"
              "\n"
              "Examples:\n"
              "  outwork edge init --dir /etc/outwork/edge --name edge.example.com      makes the keys of the outer connections\n"
              "  OUTWORK_EDGE_KEY=... outwork edge --server https://agents.example.com --tls-cert edge.crt --tls-key edge.key \\\n"
              "      --provider-client-ca ca.crt --admin-listen 127.0.0.1:9444\n"
              "\n"
              "Signals: SIGTERM drains (gateways and peers are told, streams finish within --drain), a second one ends at once; SIGHUP reads the\n"
              "certificates again. Exit status: 0 clean end, 1 failure, 2 wrong use.\n",
    .keys = keys, .n_keys = COUNT_OF(keys),
};

static int pair(const char *a, const char *b, const char *names, struct err *e)
{
    return (a != NULL) == (b != NULL) ? RC_OK : err_set(e, RC_INVALID, "%s go together", names);
}

/* "127.0.0.1:80" names one port of loopback; the key may travel there in the clear. */
static bool loopback(const struct http_url *u)
{
    return str_eq(u->host, "localhost") || str_eq(u->host, "::1") || str_prefix(u->host, "127.");
}

int edge_settings_check(const struct edge_settings *s, struct err *e)
{
    struct http_url u;
    if (!s->server)
        return err_set(e, RC_INVALID, "--server URL is missing: the edge asks that server who may connect");
    if (http_url_parse(s->server, false, &u, e) < 0)
        return err_wrap(e, RC_INVALID, "--server");
    if (!u.tls && !loopback(&u))
        return err_set(e, RC_INVALID, "--server must be https: the edge key would travel in the clear");
    if (!s->tls_cert || !s->tls_key)
        return err_set(e, RC_INVALID, "--tls-cert and --tls-key are missing; `outwork edge init` makes them");
    if (!s->provider_client_ca)
        return err_set(e, RC_INVALID, "--provider-client-ca is missing: without client certificates anybody could use the tunnels");
    if (s->passthrough_listen && s->passthrough_allow.n == 0)
        return err_set(e, RC_INVALID, "--passthrough-listen needs --passthrough-allow: that listener asks for no certificate");
    TRY(pair(s->peer_cert, s->peer_key, "--peer-cert and --peer-key", e));
    TRY(pair(s->peer_cert, s->peer_ca, "--peer-cert and --peer-ca", e));
    if (s->peer_listen && !s->peer_cert)
        return err_set(e, RC_INVALID, "--peer-listen needs --peer-cert, --peer-key and --peer-ca");
    return RC_OK;
}
