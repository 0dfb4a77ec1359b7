/* gateway/rpc.h - reads one whole JSON-RPC message without building a tree: what kind it is, and where its parts lie. Pure; fuzzed (tests/fuzz/fuzz_rpc.c).
 * Values keep their text, so that a message is passed on exactly as it came, whatever its numbers look like. */
#pragma once

#include "base/attr.h"
#include "base/str.h"

#define RPC_DEPTH_MAX 256                /* nesting */
#define RPC_ID_MAX 256                   /* bytes of an id or a progress token in its canonical text, with NUL */
#define RPC_TEXT_MAX (8 * KIB)           /* bytes of a value that rpc_string() and rpc_key() decode, as it is written */
#define RPC_BATCH_MAX 64                 /* messages of one batch (revision 2025-03-26) */

enum rpc_kind { RPC_REQUEST, RPC_NOTIFICATION, RPC_RESPONSE };
struct rpc {
    enum rpc_kind kind;
    struct slice text;                   /* the whole object */
    struct slice id;                     /* as written, a string with its quotes; empty: none, or null in a response */
    struct slice method;                 /* as written, without the quotes */
    struct slice params, result, error;  /* as written; empty: none */
};
/* RC_OK; RC_INVALID: no JSON-RPC message (*ret_why static text says why; *ret_syntax: it is not even JSON). A name that occurs twice, or with an escape in
 * it, among "id", "method", "params", "result", "error" is refused: two readers might take different ones. After a failure ret->id has what was found. */
MUST_CHECK int rpc_parse(const char *p, size_t n, struct rpc *ret, bool *ret_syntax, const char **ret_why);
/* True for a JSON text whose first character is '['; then rpc_items() gives its elements. RC_INVALID: no JSON, RC_TOO_LARGE: over RPC_BATCH_MAX. */
bool rpc_is_batch(const char *p, size_t n);
MUST_CHECK int rpc_items(const char *p, size_t n, struct slice ret[RPC_BATCH_MAX], size_t *ret_n);
/* The last member `key` of `object`, which is the text of a valid JSON value; false when it is no object or has none. */
bool rpc_member(struct slice object, const char *key, struct slice *ret);
/* Canonical text of a string or number, so that "\u0061" and "a" are one id. False when it is neither, or too long. */
bool rpc_key(struct slice value, char out[RPC_ID_MAX]);
/* The text of a JSON string value, decoded; false when it is none, too long, or holds NUL. */
bool rpc_string(struct slice value, char *out, size_t cap);
