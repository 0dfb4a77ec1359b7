/* Events as a client sends them, and queries: what passes the check stays valid when pruned, and pruning twice changes nothing. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "server/api/schema.h"

#define REQUIRE(x) do { if (!(x)) abort(); } while (0)

static void try_body(uint16_t node, json_t *v)
{
    struct err e = { 0 };
    int rc = shape_check(node, v, &e);
    if (rc != RC_OK) {
        REQUIRE(rc == RC_INVALID && strstr(e.msg, ": "));       /* a path and what was wrong */
        return;
    }
    json_t *once = shape_prune(node, v), *twice;
    REQUIRE(shape_check(node, once, &e) == RC_OK);
    twice = shape_prune(node, once);
    REQUIRE(json_equal(once, twice));
    json_decref(once);
    json_decref(twice);
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len)
{
    json_t *v = NULL, *q = NULL;
    struct err e = { 0 };
    if (js_parse((const char *)in, len, MIB, &v, &e) == RC_OK) {
        for (size_t i = 0; i < schema_ops_n; i++)
            if (schema_ops[i].body)
                try_body(schema_ops[i].body, v);
        json_decref(v);
        return 0;
    }
    for (size_t i = 0; i < schema_ops_n; i++)
        if (schema_ops[i].query && shape_query(schema_ops[i].query, (struct slice){ (const char *)in, len }, &q, &e) == RC_OK) {
            REQUIRE(shape_check(schema_ops[i].query, q, &e) == RC_OK);
            json_decref(q);
        }
    return 0;
}
