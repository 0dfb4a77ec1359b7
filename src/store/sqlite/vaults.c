/* Vaults of the SQLite back end: store/vaults.h. */
#include "store/sqlite/sqlite.h"

const struct store_vault_ops sqlite_vault_ops = { 0 };
