/* server/messages/join.h - several streamed answers of the provider (one a round) put together to one answer for the client, in which the calls of MCP tools are
 * mcp_tool_use blocks and their results mcp_tool_result blocks: message_start once, indexes that go on, usage added up, one message_delta and message_stop.
 * Pure: bytes in, bytes out. Fuzzed by tests/fuzz/fuzz_messages.c.
 *
 * Order of calls: join_listing()*, then for each round join_feed()*, join_round(), and when calls are open join_result() for each of them in order; then the next
 * round or join_finish(). After an error of join_feed() or join_round() only join_free(). */
#pragma once

#include "base/buf.h"
#include "base/err.h"
#include "json/js.h"
#include "server/messages/tools.h"

#define JOIN_CALLS_MAX 64                    /* MCP calls in one round */
#define JOIN_BLOCKS_MAX 4096                 /* content blocks of one answer, of all rounds */

struct join;
/* `tools` is borrowed. `stream`: events go to `out` of the calls below; else `out` gets the whole message from join_finish(). */
struct join *join_new(const struct tools *tools, bool stream);
void join_free(struct join *j);
/* A block that comes first in the answer: an mcp_tool_listing. */
void join_listing(struct join *j, json_t *take_block);
/* Bytes of the current round's stream. RC_OK; RC_PROTO, RC_TOO_LARGE: give up. */
MUST_CHECK int join_feed(struct join *j, const char *p, size_t n, struct buf *out, struct err *e);

struct join_call { const struct tool *tool; char id[CALL_ID_MAX], client_id[CALL_ID_MAX]; json_t *input; };   /* input borrowed until the next round */
struct join_round {
    struct join_call calls[JOIN_CALLS_MAX];
    size_t n;
    bool client_tools;                       /* the model also calls tools of the client */
    bool run;                                /* stop_reason says that tools are wanted; false: each call is answered without being made */
    json_t *content;                         /* as the provider wants it back; borrowed until the next round */
    const char *error_type, *error_message;  /* the stream ended with an error event, which `out` has had; the rest is not set */
};
/* The round's stream has ended (`rc`, `why`: how). RC_OK; otherwise it broke off and `e` says so. */
MUST_CHECK int join_round(struct join *j, int rc, const struct err *why, struct join_round *ret, struct err *e);
/* The result of the next call, in the order of join_round.calls. `content`: array of blocks; the client sees their text (other kinds are named in words). */
void join_result(struct join *j, const struct join_call *c, bool is_error, const json_t *content, struct buf *out);
/* The end. `stop_reason` NULL: the provider's last one. */
MUST_CHECK int join_finish(struct join *j, const char *stop_reason, struct buf *out, struct err *e);
bool join_begun(const struct join *j);       /* message_start has been written */
