/* edge/settings.h - settings of `outwork edge` (conf/conf.h). */
#pragma once

#include "conf/conf.h"

struct edge_settings {
    char *gateway_listen, *provider_listen, *passthrough_listen, *peer_listen, *admin_listen;
    char *tls_cert, *tls_key, *provider_client_ca;
    char *peer_cert, *peer_key, *peer_ca, *peer_advertise;
    struct conf_list gateway_allow, provider_allow, passthrough_allow;
    char *server, *server_ca, *key_file, *id;
    int64_t max_connections, max_per_source, max_provider_per_source, max_fresh, max_fresh_per_source, max_links, max_streams;
    uint64_t window_budget;
    int64_t head_ms, connect_ms, echo_ms, drain_ms;
    int log_level, log_format;
};
extern const struct conf_program edge_program;

/* What the table cannot say: what goes together, what is mandatory. RC_INVALID. */
MUST_CHECK int edge_settings_check(const struct edge_settings *s, struct err *e);
