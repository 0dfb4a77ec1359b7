/* gateway/ws_frame.c - see ws_frame.h */
#include "gateway/ws_frame.h"

#include <string.h>

#include "base/rc.h"

static size_t head_length(const struct ws_in *w)
{
    unsigned len = w->head[1] & 0x7f;
    return 2 + (len == 126 ? 2u : len == 127 ? 8u : 0u) + (w->head[1] & 0x80 ? 4u : 0u);
}

/* The head is whole: checks it and begins the frame. Returns NULL, or what is wrong. */
static const char *begin(struct ws_in *w)
{
    const uint8_t *h = w->head;
    unsigned len = h[1] & 0x7f;
    size_t at = 2;
    w->fin = h[0] & 0x80;
    w->op = h[0] & 0x0f;
    w->masked = h[1] & 0x80;
    w->left = len;
    if (h[0] & 0x70)
        return "a reserved bit is set; no extension was agreed on";
    if (len >= 126) {
        size_t n = len == 126 ? 2 : 8;
        w->left = 0;
        for (size_t i = 0; i < n; i++)
            w->left = w->left << 8 | h[at++];
        if (w->left >> 63)
            return "a frame's length has its top bit set";
        if (w->left < 126 || (n == 8 && w->left <= UINT16_MAX))
            return "a frame's length is not in its shortest form";
    }
    if (w->masked)
        memcpy(w->mask, h + at, 4);
    switch (w->op) {
    case WS_TEXT:
    case WS_BINARY:
        if (w->in_message)
            return "a new message inside a fragmented one";
        w->in_message = !w->fin;
        break;
    case WS_CONTINUATION:
        if (!w->in_message)
            return "a continuation of no message";
        w->in_message = !w->fin;
        break;
    case WS_CLOSE:
    case WS_PING:
    case WS_PONG:
        if (!w->fin || w->left > WS_CONTROL_MAX)
            return "a control frame is fragmented or too long";
        if (w->op == WS_CLOSE && w->left == 1)
            return "half a status code in a close frame";
        break;
    default:
        return "an opcode that is not defined";
    }
    w->at = 0;
    w->control_n = 0;
    w->head_n = 0;
    w->in_frame = true;
    return NULL;
}

static bool is_control(const struct ws_in *w) { return w->op & 8; }

static void unmask(struct ws_in *w, uint8_t *p, size_t n)
{
    for (size_t i = 0; w->masked && i < n; i++)
        p[i] ^= w->mask[(w->at + i) & 3];
    w->at += n;
    w->left -= n;
}

int ws_step(struct ws_in *w, uint8_t *p, size_t n, size_t *ret_used, struct ws_item *ret, const char **ret_why)
{
    size_t i = 0;
    *ret = (struct ws_item){ WS_ITEM_NONE, NULL, 0 };
    while (!w->in_frame && i < n) {
        w->head[w->head_n++] = p[i++];
        if (w->head_n >= 2 && w->head_n == head_length(w) && (*ret_why = begin(w)) != NULL)
            return RC_PROTO;
    }
    if (w->in_frame) {
        size_t take = n - i < w->left ? n - i : (size_t)w->left;
        uint8_t *from = p + i;
        unmask(w, from, take);
        i += take;
        if (is_control(w)) {
            memcpy(w->control + w->control_n, from, take);
            w->control_n = (uint8_t)(w->control_n + take);
        } else if (take) {
            *ret = (struct ws_item){ WS_ITEM_DATA, from, take };
        }
        if (w->left == 0) {
            w->in_frame = false;
            if (is_control(w))
                *ret = (struct ws_item){ w->op == WS_PING ? WS_ITEM_PING : w->op == WS_PONG ? WS_ITEM_PONG : WS_ITEM_CLOSE, w->control, w->control_n };
        }
    }
    *ret_used = i;
    return RC_OK;
}

size_t ws_head(enum ws_op op, size_t n, uint8_t out[WS_HEAD_MAX])
{
    out[0] = (uint8_t)(0x80 | (unsigned)op);
    if (n < 126) {
        out[1] = (uint8_t)n;
        return 2;
    }
    size_t bytes = n <= UINT16_MAX ? 2 : 8;
    out[1] = bytes == 2 ? 126 : 127;
    for (size_t i = 0; i < bytes; i++)
        out[2 + i] = (uint8_t)((uint64_t)n >> (8 * (bytes - 1 - i)));
    return 2 + bytes;
}
