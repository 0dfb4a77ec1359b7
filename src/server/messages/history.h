/* server/messages/history.h - a conversation with mcp_tool_use and mcp_tool_result blocks as the provider takes it: calls of client tools and their results.
 * The same blocks always give the same bytes, so that a provider's prompt cache holds. Everything else is copied as it is. Pure.
 * Fuzzed by tests/fuzz/fuzz_messages.c. */
#pragma once

#include "base/buf.h"
#include "base/err.h"
#include "base/str.h"
#include "json/js.h"

#define HISTORY_OPEN_MAX 256                 /* MCP calls of one assistant message */

/* Whether `messages` may hold such blocks; false: nothing is to be done. */
bool history_has_mcp(struct slice messages);
/* Appends the items of the translated array (without its brackets) to `out`. mcp_tool_listing blocks leave the history; the last one of each server goes to
 * `listings` (an object: server name to array of tools). RC_INVALID names the place: not an array of messages, a call without a result, a result without a call. */
MUST_CHECK int history_translate(struct slice messages, struct buf *out, json_t *listings, struct err *e);
