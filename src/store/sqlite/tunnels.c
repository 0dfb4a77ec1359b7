/* Tunnels of the SQLite back end: store/tunnels.h. */
#include "store/sqlite/sqlite.h"

const struct store_tunnel_ops sqlite_tunnel_ops = { 0 };
