/* gateway/ws_frame.h - WebSocket frames (RFC 6455 section 5) taken from a byte stream, any cut. Pure; fuzzed (tests/fuzz/fuzz_ws.c).
 * Payload of data frames comes as it arrives, so a frame's length needs no limit; control frames are collected (125 bytes at most). */
#pragma once

#include "base/attr.h"

#define WS_CONTROL_MAX 125
#define WS_HEAD_MAX 14                   /* bytes of a frame's head */

enum ws_op { WS_CONTINUATION = 0, WS_TEXT = 1, WS_BINARY = 2, WS_CLOSE = 8, WS_PING = 9, WS_PONG = 10 };

struct ws_in {                           /* zero before first use */
    uint8_t head[WS_HEAD_MAX], head_n;
    uint8_t op, control_n;
    bool masked, fin, in_frame, in_message;
    uint8_t mask[4];
    uint64_t left, at;                   /* of the current frame's payload */
    uint8_t control[WS_CONTROL_MAX];
};
enum ws_item_kind { WS_ITEM_NONE, WS_ITEM_DATA, WS_ITEM_PING, WS_ITEM_PONG, WS_ITEM_CLOSE };
struct ws_item { enum ws_item_kind kind; const uint8_t *p; size_t n; };     /* points into the fed bytes, or into ws_in for control frames */

/* Takes a part of [p, p + n), unmasking payload in place. RC_OK: *ret_used bytes were taken (at least one when n > 0) and *ret says what they completed,
 * maybe nothing. RC_PROTO: *ret_why (static text); the connection must be failed. Masked and unmasked frames are taken, text like binary (decision 0015). */
MUST_CHECK int ws_step(struct ws_in *w, uint8_t *p, size_t n, size_t *ret_used, struct ws_item *ret, const char **ret_why);

/* Head of a final, unmasked frame (a server's). Returns its length. */
size_t ws_head(enum ws_op op, size_t payload_n, uint8_t out[WS_HEAD_MAX]);
