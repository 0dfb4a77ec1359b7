/* server/settings.h - settings of `outwork server` (conf/conf.h). */
#pragma once

#include "conf/conf.h"

struct settings {
    char *listen, *data, *public_url, *organization_id, *workspace_id;
    char *model_url, *model_key_file, *model_ca_file, *model_proxy, *models_file, *script_file;
    char *tls_cert, *tls_key, *log_level;
    char *vault_key_file;
    char *tunnel_domain, *tunnel_edge_ca, *tunnel_edge_cert, *tunnel_edge_key;
    struct conf_list tunnel_edges;
    int model_provider, log_format;
    int64_t jobs, connections, drain_ms, lease_ms, retry_budget_ms;
    uint64_t bodies_max;
    struct conf_list mcp_allow, mcp_private_ok;
    char *mcp_ca_file, *mcp_proxy;
    int64_t mcp_timeout_ms;
};
extern const struct conf_program server_program;
extern const char *const model_providers[];      /* by settings.model_provider */
