/* store/backend.h - what a back end gives to store_open(). The conformance suite runs over every row. */
#pragma once

#include "store/store.h"

struct store_backend {
    const char *scheme;          /* dsn "<scheme>:<rest>" */
    int (*open)(const char *rest, bool create, struct store **ret, struct err *e);
};
extern const struct store_backend store_backend_sqlite;
const struct store_backend *store_backend_at(size_t i);      /* NULL after the last */
