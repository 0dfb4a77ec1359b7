/* SSE decoder. Properties: the same events and the same result whatever the cut; what the encoder writes comes back unchanged. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http/sse.h"

#define REQUIRE(c) do { if (!(c)) { fprintf(stderr, "property broken: %s (line %d)\n", #c, __LINE__); abort(); } } while (0)
#define EVENT_MAX 300

static int collect(void *ctx, const struct sse_event *ev)
{
    struct buf *b = ctx;
    REQUIRE(ev->data_n <= EVENT_MAX && ev->data[ev->data_n] == '\0');
    buf_puts(b, ev->id ? ev->id : "(none)");
    buf_putc(b, '\1');
    buf_puts(b, ev->event);
    buf_putc(b, '\1');
    buf_put(b, ev->data, ev->data_n);
    buf_putc(b, '\2');
    return RC_OK;
}

static int feed(const char *p, size_t n, size_t step, struct buf *out)
{
    struct sse_decoder *d = sse_decoder_new(EVENT_MAX);
    int rc = RC_OK;
    for (size_t at = 0; at < n && rc == RC_OK; at += step)
        rc = sse_feed(d, p + at, n - at < step ? n - at : step, collect, out);
    sse_decoder_free(d);
    return rc;
}

static void round_trip(const char *p, size_t n)
{
    struct buf wire, got, want;
    buf_init(&wire, 1 * MIB);
    buf_init(&got, 1 * MIB);
    buf_init(&want, 1 * MIB);
    char *line = malloc(n + 1);
    size_t k = 0;
    for (size_t i = 0; i < n && k + 12 < EVENT_MAX; i++)
        if (p[i] != '\n' && p[i] != '\r')
            line[k++] = p[i];
    line[k] = '\0';
    REQUIRE(sse_write(&wire, "id1", "ev", line, k) == RC_OK);
    REQUIRE(feed(buf_data(&wire), buf_len(&wire), 7, &got) == RC_OK);
    struct sse_event ev = { .event = "ev", .id = "id1", .data = line, .data_n = k };
    (void)collect(&want, &ev);
    REQUIRE(buf_len(&got) == buf_len(&want) && memcmp(buf_data(&got), buf_data(&want), buf_len(&got)) == 0);
    free(line);
    buf_done(&wire);
    buf_done(&got);
    buf_done(&want);
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len)
{
    if (len < 1)
        return 0;
    const char *p = (const char *)in + 1;
    size_t n = len - 1;
    struct buf a, b;
    buf_init(&a, 16 * MIB);
    buf_init(&b, 16 * MIB);
    int ra = feed(p, n, n ? n : 1, &a), rb = feed(p, n, in[0] % 41 + 1u, &b);
    REQUIRE(ra == rb && buf_len(&a) == buf_len(&b) && memcmp(buf_data(&a), buf_data(&b), buf_len(&a)) == 0);
    round_trip(p, n);
    buf_done(&a);
    buf_done(&b);
    return 0;
}
