/* gateway/settings.h - what `outwork gateway` can be told: flags, variables, and a YAML file that may be the hosted service's own proxy configuration
 * (tunnels.md 4.1). */
#pragma once

#include "conf/conf.h"

struct gateway_settings {
    char *listen_addr; bool behind_cloudflared;
    int log_level, log_format;
    int64_t shutdown_ms;
    char *tunnel_domain, *cert_file, *key_file;
    struct conf_tree *routes;
    struct conf_list allowed_ips; bool ip_validation_off;
    char *upstream_ca, *upstream_cert, *upstream_key; bool upstream_system_cas;
    int64_t connect_ms, idle_ms, idle_max;
    struct conf_list edges; char *edge_ca; int64_t connections;
    char *proxy, *no_proxy;              /* on the way to edges */
    int64_t renew_before_ms;
    char *token_file, *token;            /* token: from the environment, which is wiped */
    char *audit_log, *admin_listen;
    int64_t conns_max, requests_max, head_ms, body_ms, keep_ms;
    uint64_t window_budget;
};
extern const struct conf_program gateway_program;
/* Checks what one row alone cannot; RC_INVALID names the setting. Host names become lower case. */
MUST_CHECK int gateway_settings_finish(struct gateway_settings *s, struct err *e);
