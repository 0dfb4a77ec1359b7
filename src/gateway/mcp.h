/* gateway/mcp.h - reads the methods and tool names of the JSON-RPC messages that pass by, without keeping the body: a strict, incremental JSON scanner with a
 * fixed amount of memory. Pure; fuzzed (tests/fuzz/fuzz_mcp.c).
 *
 * It is what the tool policy decides by, so whatever two JSON readers might take differently is `unclear` instead of one of the readings: a name that
 * occurs twice or in other letter case, an escape that is half a character, a name that is too long, an array inside a batch. */
#pragma once

#include "base/attr.h"

#define MCP_NAME_MAX 128                 /* bytes of a method or tool name (API limit of tool names) */
#define MCP_ID_MAX 128                   /* bytes of a request's id as it was written; a longer one is answered as null */
#define MCP_VERSION_MAX 32
#define MCP_DEPTH_MAX 64                 /* nesting; deeper is unparsed */
#define MCP_SCAN_MAX (64 * MIB)          /* bytes of one body that are looked at; a larger one is unparsed */
#define MCP_BATCH_MAX 64                 /* messages of one batch; more are unparsed */

/* One message. Texts are decoded and NUL-terminated; empty when absent. */
struct mcp_call {
    char method[MCP_NAME_MAX + 1], name[MCP_NAME_MAX + 1], version[MCP_VERSION_MAX + 1];     /* name: params.name; version: in _meta or of initialize */
    char id[MCP_ID_MAX + 1];             /* as written: "7" or "\"abc\"" */
    bool is_call, unclear;               /* is_call: it has a method, so it is no answer */
};
enum mcp_result {
    MCP_RPC,                             /* a message or a batch of them; all were reported */
    MCP_OTHER,                           /* text that no reader of JSON-RPC would take for messages (a form, a number, nothing) */
    MCP_UNPARSED,                        /* may be messages, but not read: see mcp_why() */
};

struct mcp_scan {
    void (*on_call)(void *ctx, const struct mcp_call *c);
    void *ctx;
    const char *why;                     /* unparsed since; static text */
    size_t seen, n_calls;
    uint8_t state, slot, after_string, literal_at, u_left;
    bool batch, other, started;
    uint16_t depth, u_value, u_high;
    uint64_t objects;                    /* bit d: level d is an object */
    uint32_t got;                        /* slots of the current message that had a value */
    const char *literal;
    char key[64]; size_t key_n;
    char *into; size_t into_n, into_max; /* where the current string's text goes; NULL: nowhere */
    struct mcp_call call;
};
void mcp_init(struct mcp_scan *s, void (*on_call)(void *ctx, const struct mcp_call *c), void *ctx);
void mcp_feed(struct mcp_scan *s, const char *p, size_t n);
enum mcp_result mcp_finish(struct mcp_scan *s);      /* the body is whole */
static inline const char *mcp_why(const struct mcp_scan *s) { return s->why ? s->why : ""; }
static inline bool mcp_is_batch(const struct mcp_scan *s) { return s->batch; }
/* True when `version` ("2026-07-28") is one of those that make servers compare Mcp-Method and Mcp-Name with the body. */
bool mcp_mirrors(const char *version);
/* Does the header (maybe in the form =?base64?...?=) say the same as `text`? */
bool mcp_header_agrees(const char *header, size_t n, const char *text);
