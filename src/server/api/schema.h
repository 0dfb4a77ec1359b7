/* server/api/schema.h - request shapes as constant tables, made by tools/gen-schema from api/openapi.json.
 * Read by validate.c only; the rest of the server names an operation and calls shape_*(). */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "base/str.h"
#include "json/js.h"

enum schema_kind {
    SCHEMA_ANY, SCHEMA_STRING, SCHEMA_INT, SCHEMA_NUMBER, SCHEMA_BOOL, SCHEMA_ARRAY, SCHEMA_OBJECT, SCHEMA_MAP,
    SCHEMA_ONEOF,            /* by the text of property `tag` */
    SCHEMA_ANYOF,            /* by JSON type */
    SCHEMA_KIND_MAX_
};
struct schema_node {
    enum schema_kind kind;
    bool nullable, open;     /* open: properties that are not listed belong to the object */
    uint16_t items;          /* array, map: node of each value */
    uint16_t first, n;       /* string: allowed texts; object: properties; oneOf, anyOf: variants */
    uint16_t key_max;        /* map: longest key in characters, 0 any */
    const char *tag, *format;
    int64_t min, max;        /* string: characters; array: items; number: value; map: `max` entries */
};
struct schema_prop { const char *name; uint16_t node; bool required; };
struct schema_variant { const char *tag; uint16_t node; };
struct schema_op { const char *id; uint16_t body, query; };            /* node 0: no such part */
struct schema_known { const char *method, *path, *id; };               /* every operation of the document */

extern const char *const schema_texts[];
extern const struct schema_prop schema_props[];
extern const struct schema_variant schema_variants[];
extern const struct schema_node schema_nodes[];
extern const struct schema_op schema_ops[];                            /* sorted by id */
extern const size_t schema_ops_n;
extern const struct schema_known schema_known[];
extern const size_t schema_known_n;

#define SCHEMA_ARRAY_QUERY_MAX 1000      /* values of one repeated query parameter */

const struct schema_op *schema_op_find(const char *id);                /* NULL: not served */
/* RC_INVALID with "<path>: <what was expected>". */
MUST_CHECK int shape_check(uint16_t node, const json_t *v, struct err *e);
/* A new tree with only what the schema names; leaves are shared. `v` must have passed shape_check(). */
json_t *shape_prune(uint16_t node, json_t *v);
/* Decodes a raw query by the operation's parameters into an object: integers, booleans, arrays are typed. Keys are the base names ("types",
 * "created_at[gte]"). Unknown parameters are ignored, the last of a repeated scalar counts. New reference. */
MUST_CHECK int shape_query(uint16_t node, struct slice raw, json_t **ret, struct err *e);
