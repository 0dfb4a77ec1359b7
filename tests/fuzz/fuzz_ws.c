/* WebSocket frames. Properties: any cut of the bytes gives the same items and the same verdict; data never exceeds the input; control frames have at most
 * 125 bytes; what ws_head() writes is read back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rc.h"
#include "gateway/ws_frame.h"

#define REQUIRE(c) do { if (!(c)) { fprintf(stderr, "property broken: %s (line %d)\n", #c, __LINE__); abort(); } } while (0)

/* Everything that came out: payload bytes as they are; control items as a mark, their kind, length and bytes. */
struct outcome { uint8_t *bytes; size_t n; int rc; };

static struct outcome run(const uint8_t *in, size_t len, size_t step)
{
    struct outcome o = { malloc(len * 8 + 64), 0, RC_OK };
    struct ws_in w = { 0 };
    uint8_t *copy = malloc(len + 1);
    memcpy(copy, in, len);
    for (size_t at = 0; at < len && o.rc == RC_OK;) {
        size_t n = len - at < step ? len - at : step, used = 0;
        struct ws_item item;
        const char *why = NULL;
        o.rc = ws_step(&w, copy + at, n, &used, &item, &why);
        if (o.rc < 0) {
            REQUIRE(o.rc == RC_PROTO && why && *why);
            break;
        }
        REQUIRE(used > 0 && used <= n);
        at += used;
        if (item.kind == WS_ITEM_NONE)
            continue;
        REQUIRE(item.n <= n || item.kind != WS_ITEM_DATA);
        if (item.kind != WS_ITEM_DATA) {
            REQUIRE(item.n <= WS_CONTROL_MAX);
            o.bytes[o.n++] = (uint8_t)item.kind;
            o.bytes[o.n++] = (uint8_t)item.n;
        }
        memcpy(o.bytes + o.n, item.p, item.n);
        o.n += item.n;
    }
    free(copy);
    return o;
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len)
{
    if (len > 65536)
        return 0;
    struct outcome a = run(in, len, len ? len : 1), b = run(in, len, 1), c = run(in, len, 7);
    REQUIRE(a.rc == b.rc && a.n == b.n && memcmp(a.bytes, b.bytes, a.n) == 0);
    REQUIRE(a.rc == c.rc && a.n == c.n && memcmp(a.bytes, c.bytes, a.n) == 0);
    free(a.bytes);
    free(b.bytes);
    free(c.bytes);

    uint8_t *frame = malloc(WS_HEAD_MAX + len);
    size_t h = ws_head(WS_BINARY, len, frame), used = 0, got = 0;
    memcpy(frame + h, in, len);
    struct ws_in w = { 0 };
    struct ws_item item;
    const char *why;
    for (size_t at = 0; at < h + len; at += used) {
        REQUIRE(ws_step(&w, frame + at, h + len - at, &used, &item, &why) == RC_OK);
        REQUIRE(item.n == 0 || memcmp(item.p, in + got, item.n) == 0);
        got += item.n;
    }
    REQUIRE(got == len && !w.in_frame);
    free(frame);
    return 0;
}
