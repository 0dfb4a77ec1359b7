/* edge/stats.h - the edge's metrics, and why something was refused: one list from which come the answer, the metric and the log word. */
#pragma once

#include "metrics/metrics.h"
#include "tunnel/proto.h"

/* What a client is told. `code` goes into PROTO_H_ERROR; `retry`: with Retry-After. */
#define REFUSAL_LIST(X)                                                                                                                             \
    /* name              status reason                  code                       retry  text for a person                                      */ \
    X(UNKNOWN_TUNNEL,      404, "Not Found",             PROTO_E_UNKNOWN_TUNNEL,    false, "no tunnel has this host name")                            \
    X(NO_CERTIFICATE,      403, "Forbidden",             PROTO_E_NO_CERTIFICATE,    false, "the tunnel has no registered certificate authority, so it takes no traffic") \
    X(NO_CONNECTOR,        502, "Bad Gateway",           PROTO_E_NO_CONNECTOR,      true,  "no gateway of this tunnel is connected")                  \
    X(CONNECTOR_FAILED,    502, "Bad Gateway",           PROTO_E_CONNECTOR_FAILED,  true,  "the gateway refused the stream, or went away before it answered") \
    X(BUSY,                503, "Service Unavailable",   PROTO_E_BUSY,              true,  "this edge is at a limit")                                 \
    X(DRAINING,            503, "Service Unavailable",   PROTO_E_BUSY,              true,  "this edge is shutting down; use another one")             \
    X(BAD_PORT,            403, "Forbidden",             PROTO_E_UNKNOWN_TUNNEL,    false, "only port 443 of tunnel hosts can be reached")            \
    X(BAD_METHOD,          405, "Method Not Allowed",    "bad_request",             false, "this is a proxy for CONNECT and nothing else")            \
    X(BAD_REQUEST,         400, "Bad Request",           "bad_request",             false, "the request is malformed")                                \
    X(TOO_LARGE,           431, "Request Header Fields Too Large", "bad_request",   false, "the request head is too large")                           \
    X(SLOW,                408, "Request Timeout",       "bad_request",             false, "the request took too long to arrive")                     \
    X(TOKEN,               401, "Unauthorized",          "token_refused",           false, "the tunnel token is refused: it is wrong, rotated or of another server") \
    X(ARCHIVED,            403, "Forbidden",             "tunnel_archived",         false, "the tunnel is archived")                                  \
    X(TOO_MANY_LINKS,      429, "Too Many Requests",     "busy",                    true,  "the tunnel has its maximum of connections to this edge")  \
    X(NO_SERVER,           503, "Service Unavailable",   "busy",                    true,  "the token cannot be checked at the moment")               \
    X(NOT_A_PEER,          400, "Bad Request",           "bad_request",             false, "this listener is for other edges")                        \
    X(HANDSHAKE,             0, "",                      "",                        false, "TLS handshake failed")                                    \
    X(SOURCE,                0, "",                      "",                        false, "source address not allowed")                              \
    X(SOURCE_LIMIT,          0, "",                      "",                        false, "too many connections of one source")                      \
    X(NO_HELLO,              0, "",                      "",                        false, "no ClientHello")

enum refusal {
    REFUSE_NONE,
#define X(name, status, reason, code, retry, text) REFUSE_##name,
    REFUSAL_LIST(X)
#undef X
    REFUSAL_MAX_
};
struct refusal_row { int status; const char *name, *reason, *code, *text; bool retry; };
extern const struct refusal_row refusals[REFUSAL_MAX_];      /* by enum refusal; status 0: the connection just ends */
void stats_refused(enum refusal r);

extern struct metric stat_links, stat_tunnels, stat_streams, stat_relays, stat_relays_total, stat_bytes_up, stat_bytes_down, stat_handshakes, stat_handshakes_open,
    stat_forwarded_out, stat_forwarded_in, stat_echo, stat_echo_failed, stat_beats, stat_beats_failed, stat_auth_ok, stat_auth_refused, stat_auth_failed,
    stat_routes_asked, stat_peers, stat_sources_open;
