#include "server/settings.h"

#define F(field) offsetof(struct settings, field)

const char *const model_providers[] = { "anthropic", "script" };

static const struct conf_key keys[] = {
    { .name = "listen", .type = CONF_STR, .field = F(listen), .dflt = "127.0.0.1:8400", .arg = "ADDR:PORT", .help = "Where the API is served." },
    { .name = "data", .type = CONF_STR, .field = F(data), .arg = "DIR", .help = "Database and lock (default: /var/lib/outwork as root, else ./.outwork/server)." },
    { .name = "public-url", .type = CONF_STR, .field = F(public_url), .arg = "URL", .help = "Base URL under which workers reach this server; told to them with each work item." },
    { .name = "tls.cert", .type = CONF_STR, .field = F(tls_cert), .arg = "FILE", .help = "Certificate chain (PEM); with tls.key the API is served over TLS." },
    { .name = "tls.key", .type = CONF_STR, .field = F(tls_key), .arg = "FILE", .help = "Private key of tls.cert (PEM)." },

    { .name = "model.provider", .type = CONF_ENUM, .field = F(model_provider), .dflt = "anthropic", .choices = "anthropic|script", .arg = "NAME",
      .help = "Who answers model requests: a Messages API, or a script without any network." },
    { .name = "model.url", .type = CONF_STR, .field = F(model_url), .arg = "URL", .help = "Base URL of the Messages API (default: the hosted one)." },
    { .name = "model.key-file", .type = CONF_STR, .field = F(model_key_file), .arg = "FILE", .help = "File with the model API key; without it the variable ANTHROPIC_API_KEY." },
    { .name = "model.ca-file", .type = CONF_STR, .field = F(model_ca_file), .arg = "FILE", .help = "Certificates to trust for model.url instead of the system's." },
    { .name = "model.proxy", .type = CONF_STR, .field = F(model_proxy), .arg = "URL", .help = "Proxy for model requests." },
    { .name = "model.list-file", .type = CONF_STR, .field = F(models_file), .arg = "FILE", .help = "JSON with the windows and limits of further models." },
    { .name = "model.retry-budget", .type = CONF_DUR, .field = F(retry_budget_ms), .dflt = "5m", .min = "1s", .max = "24h", .arg = "TIME",
      .help = "How long one model request is retried before the turn is given up." },
    { .name = "script.file", .type = CONF_STR, .field = F(script_file), .arg = "FILE", .help = "Turns of the provider script (default: a demonstration)." },

    { .name = "mcp.allow", .type = CONF_LIST, .field = F(mcp_allow), .arg = "HOST", .help = "Public hosts whose MCP servers may be called: mcp.example.com, *.example.com, or *. Default: none." },
    { .name = "mcp.private-ok", .type = CONF_LIST, .field = F(mcp_private_ok), .arg = "HOST:PORT",
      .help = "MCP servers that may have a private address and plain http. For development; in production use a tunnel." },
    { .name = "mcp.ca-file", .type = CONF_STR, .field = F(mcp_ca_file), .arg = "FILE", .help = "Certificates to trust for public MCP servers instead of the system's." },
    { .name = "mcp.proxy", .type = CONF_STR, .field = F(mcp_proxy), .arg = "URL", .help = "Proxy for public MCP servers; it then looks their names up." },
    { .name = "mcp.timeout", .type = CONF_DUR, .field = F(mcp_timeout_ms), .dflt = "5m", .min = "1s", .max = "24h", .arg = "TIME", .help = "How long one tool call of an MCP server may take." },

    { .name = "vault.key-file", .type = CONF_STR, .field = F(vault_key_file), .arg = "FILE",
      .help = "Keys that seal the secrets of vaults and tunnels (default: vault.key in the data directory, made at the first start)." },

    { .name = "tunnel.domain", .type = CONF_STR, .field = F(tunnel_domain), .arg = "NAME",
      .help = "Every new tunnel gets a host name below this one; without it none can be made." },
    { .name = "tunnel.edge", .type = CONF_LIST, .field = F(tunnel_edges), .arg = "URL", .help = "Listeners of edges for this server, https://host:port; tried in turn." },
    { .name = "tunnel.edge-ca", .type = CONF_STR, .field = F(tunnel_edge_ca), .arg = "FILE", .help = "Certificates (PEM) that the edges' listeners are verified with." },
    { .name = "tunnel.edge-cert", .type = CONF_STR, .field = F(tunnel_edge_cert), .arg = "FILE", .help = "Certificate (PEM) that this server shows to the edges." },
    { .name = "tunnel.edge-key", .type = CONF_STR, .field = F(tunnel_edge_key), .arg = "FILE", .help = "Private key of tunnel.edge-cert (PEM)." },

    { .name = "jobs", .type = CONF_INT, .field = F(jobs), .dflt = "0", .min = "0", .max = "256", .arg = "N", .help = "Threads for requests and loop steps; 0: two per processor, at least 4." },
    { .name = "connections", .type = CONF_INT, .field = F(connections), .dflt = "8192", .min = "16", .max = "100000", .arg = "N", .help = "Client connections at once." },
    { .name = "bodies-max", .type = CONF_SIZE, .field = F(bodies_max), .dflt = "256MiB", .min = "32MiB", .arg = "SIZE", .help = "Memory for request bodies, all together." },
    { .name = "lease", .type = CONF_DUR, .field = F(lease_ms), .dflt = "60s", .min = "10s", .max = "5m", .arg = "TIME", .help = "Lease of a work item between heartbeats." },
    { .name = "drain", .type = CONF_DUR, .field = F(drain_ms), .dflt = "25s", .min = "0", .max = "1h", .arg = "TIME", .help = "Time to finish what runs after SIGTERM." },
    { .name = "organization-id", .type = CONF_STR, .field = F(organization_id), .dflt = "org_outwork", .arg = "ID", .help = "Value of the anthropic-organization-id header." },
    { .name = "workspace-id", .type = CONF_STR, .field = F(workspace_id), .dflt = "wrkspc_default", .arg = "ID", .help = "Value of the anthropic-workspace-id header." },
    { .name = "log.level", .type = CONF_STR, .field = F(log_level), .dflt = "info", .arg = "LEVEL", .help = "debug, info, warn or error." },
    { .name = "log.format", .type = CONF_ENUM, .field = F(log_format), .dflt = "json", .choices = "text|json", .arg = "text|json", .help = "Form of the log lines on stderr." },
};

const struct conf_program server_program = {
    .command = "outwork server", .summary = "The control plane: API, agent loop, work queue.", .usage = "[options]", .keys = keys, .n_keys = COUNT_OF(keys),
    .epilog = "Examples:\n"
              "  outwork server --model-provider script\n"
              "  ANTHROPIC_API_KEY=... outwork server --listen :8400 --tls-cert api.pem --tls-key api.key\n",
};
