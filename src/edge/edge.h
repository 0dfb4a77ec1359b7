/* edge/edge.h - `outwork edge`: accepts outbound connections of gateways and relays ciphertext by host name. It ends no inner TLS and has no key that could. */
#pragma once

int edge_main(int argc, char **argv);            /* the role; `outwork edge init` makes the keys of the outer leg */
