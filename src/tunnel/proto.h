/* tunnel/proto.h - the names that gateway, edge and server agree on. One place, so that no end can drift.
 *
 * Gateway -> edge (TLS 1.3, ALPN "http/1.1"): an upgrade request, then the same connection carries HTTP/2 in the OTHER direction (the edge is its client):
 *     GET /outwork/v1/tunnel HTTP/1.1 | Host | Connection: Upgrade | Upgrade: outwork-tunnel/1 | Authorization: Bearer <tunnel token>
 *     Outwork-Connector: <id of the gateway process> | Outwork-Connection: <index>/<count> | User-Agent
 *   101 accepts; 401 the token is refused, 403 the tunnel is archived, 429 and 503 (with Retry-After) come back later.
 * Edge -> edge (forwarding, TLS 1.3 with client certificate): the same with Upgrade: outwork-peer/1, without Authorization; the dialling edge is the opener.
 * Streams: CONNECT with :authority = "<route>.<tunnel domain>:443" (as the client asked), header PROTO_H_FORWARDED "1" on a stream that one edge has
 *   forwarded already (never a second time), PROTO_H_CLIENT the client's address. The acceptor answers :status 200 and the bytes flow, or an error status.
 *   Authority PROTO_ECHO is the health check: whatever comes is sent back.
 * Provider -> edge: HTTPS proxy (TLS, client certificate of --client-ca, source ranges), HTTP/1.1 CONNECT host:443. Refusals carry PROTO_H_ERROR.
 *
 * Edge -> server (control API, bearer edge key; JSON):
 *   POST /outwork/v1/edges/authenticate   {"tunnel_id","token_sha256"(hex)} -> 200 {"tunnel_id","domain","token_id","workspace_id","state"} | 401
 *     token_id is "" when the state is "archived". A 401 says in error.details.error_code whose credential it means: "token_refused" or "edge_key_refused".
 *   POST /outwork/v1/edges/{edge_id}/heartbeat  {"address":"host:port of the peer listener, or PROTO_NO_PEER","version","draining":bool,"connectors":[{"id","tunnel_id","token_id",
 *       "connections":n,"version","remote_address","connected_at"}]} -> 200 {"ttl_seconds":30,"tunnels":[{"id","state"}]}; sent every ttl/3 and when something changed
 *   GET  /outwork/v1/edges/route?host=H&from=EDGE_ID -> 200 {"tunnel_id","domain","state","edges":[{"id","address"}]} | 404 no such tunnel
 *   state: "active", "needs_certificate" (no registered authority: no traffic), "archived" (connections are cut). */
#pragma once

#define PROTO_PATH "/outwork/v1/tunnel"
#define PROTO_UPGRADE_TUNNEL "outwork-tunnel/1"
#define PROTO_UPGRADE_PEER "outwork-peer/1"
#define PROTO_ECHO "echo.outwork.invalid:443"
#define PROTO_H_CONNECTOR "outwork-connector"
#define PROTO_H_CONNECTION "outwork-connection"
#define PROTO_H_FORWARDED "outwork-forwarded"
#define PROTO_H_CLIENT "outwork-client"
#define PROTO_H_ERROR "outwork-error"            /* values: */
#define PROTO_E_UNKNOWN_TUNNEL "unknown_tunnel"  /* 404 */
#define PROTO_E_NO_CERTIFICATE "no_certificate"  /* 403 */
#define PROTO_E_NO_CONNECTOR "no_connector"      /* 502: no gateway is connected */
#define PROTO_E_CONNECTOR_FAILED "connector_failed"      /* 502: it refused, or went away before it answered */
#define PROTO_E_BUSY "busy"                      /* 503: a limit of this edge; comes with Retry-After */
#define PROTO_TOKEN_MAX 1024
#define PROTO_NO_PEER "none:0"                   /* the address of an edge that takes no streams of others */
