/* gateway/gateway.h - `outwork gateway`: keeps outbound connections to the edge, ends the inner TLS, guards and routes to MCP servers. */
#pragma once

int gateway_main(int argc, char **argv);         /* the role; `outwork gateway init|renew|check` */
