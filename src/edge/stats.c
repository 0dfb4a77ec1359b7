/* edge/stats.c - see stats.h */
#include "edge/stats.h"

const struct refusal_row refusals[REFUSAL_MAX_] = {
#define X(name_, status_, reason_, code_, retry_, text_) \
    [REFUSE_##name_] = { .status = (status_), .name = #name_, .reason = (reason_), .code = (code_), .text = (text_), .retry = (retry_) },
    REFUSAL_LIST(X)
#undef X
};

static struct metric refused[REFUSAL_MAX_] = {
#define X(name_, status_, reason_, code_, retry_, text_)                                                                                  \
    [REFUSE_##name_] = { .name = "outwork_edge_refused_total", .label = "reason=\"" #name_ "\"", .kind = METRIC_COUNTER,                    \
                         .help = "Connections and requests refused, by reason." },
    REFUSAL_LIST(X)
#undef X
};

METRIC_DEFINE(stat_links, METRIC_GAUGE, "outwork_edge_links", "Connections of gateways.");
METRIC_DEFINE(stat_tunnels, METRIC_GAUGE, "outwork_edge_tunnels", "Tunnels with a gateway connected here.");
METRIC_DEFINE(stat_peers, METRIC_GAUGE, "outwork_edge_peer_links", "Connections with other edges, both directions.");
METRIC_DEFINE(stat_streams, METRIC_GAUGE, "outwork_edge_streams", "Streams open on links of gateways and peers, health checks included.");
METRIC_DEFINE(stat_relays, METRIC_GAUGE, "outwork_edge_relays", "Connections being relayed.");
METRIC_DEFINE(stat_relays_total, METRIC_COUNTER, "outwork_edge_relays_total", "Connections relayed since the start.");
METRIC_DEFINE_LABEL(stat_bytes_up, METRIC_COUNTER, "outwork_edge_relayed_bytes_total", "direction=\"to_gateway\"", "Bytes relayed.");
METRIC_DEFINE_LABEL(stat_bytes_down, METRIC_COUNTER, "outwork_edge_relayed_bytes_total", "direction=\"to_client\"", "Bytes relayed.");
METRIC_DEFINE(stat_handshakes, METRIC_COUNTER, "outwork_edge_handshakes_total", "TLS handshakes completed.");
METRIC_DEFINE(stat_handshakes_open, METRIC_GAUGE, "outwork_edge_handshakes_open", "Connections that have not said yet what they want.");
METRIC_DEFINE(stat_sources_open, METRIC_GAUGE, "outwork_edge_connections", "Open connections of all listeners but the admin one.");
METRIC_DEFINE_LABEL(stat_forwarded_out, METRIC_COUNTER, "outwork_edge_forwarded_total", "direction=\"out\"", "Streams handed to, or taken from, another edge.");
METRIC_DEFINE_LABEL(stat_forwarded_in, METRIC_COUNTER, "outwork_edge_forwarded_total", "direction=\"in\"", "Streams handed to, or taken from, another edge.");
METRIC_DEFINE(stat_echo, METRIC_HISTOGRAM, "outwork_edge_echo_seconds", "Round trip of the health check through the data path of a link.");
METRIC_DEFINE(stat_echo_failed, METRIC_COUNTER, "outwork_edge_echo_failures_total", "Links dropped because the health check was not answered.");
METRIC_DEFINE_LABEL(stat_beats, METRIC_COUNTER, "outwork_edge_heartbeats_total", "result=\"ok\"", "Heartbeats to the server.");
METRIC_DEFINE_LABEL(stat_beats_failed, METRIC_COUNTER, "outwork_edge_heartbeats_total", "result=\"failed\"", "Heartbeats to the server.");
METRIC_DEFINE_LABEL(stat_auth_ok, METRIC_COUNTER, "outwork_edge_token_checks_total", "result=\"ok\"", "Tokens checked with the server.");
METRIC_DEFINE_LABEL(stat_auth_refused, METRIC_COUNTER, "outwork_edge_token_checks_total", "result=\"refused\"", "Tokens checked with the server.");
METRIC_DEFINE_LABEL(stat_auth_failed, METRIC_COUNTER, "outwork_edge_token_checks_total", "result=\"failed\"", "Tokens checked with the server.");
METRIC_DEFINE(stat_routes_asked, METRIC_COUNTER, "outwork_edge_route_lookups_total", "Questions to the server about hosts that no gateway here serves.");

void stats_refused(enum refusal r)
{
    metric_add(&refused[r], 1);
}
