/* A provider's streamed answer. Properties: whatever comes, there is an outcome; MODEL_OK only for a whole message; pieces of any size give the same outcome. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/model/stream.h"

#define REQUIRE(c) do { if (!(c)) { fprintf(stderr, "property broken: %s (line %d)\n", #c, __LINE__); abort(); } } while (0)

struct seen { enum model_outcome outcome; size_t blocks, text; int64_t output; };

static void on_delta(void *ctx, const struct model_delta *d)
{
    if (d->kind == DELTA_TEXT)
        ((struct seen *)ctx)->text += d->n;
}

static struct seen run(const char *p, size_t n, size_t piece)
{
    struct seen s = { 0 };
    struct err e = { 0 };
    struct model_result r;
    struct msg_stream *m = msg_stream_new(on_delta, &s);
    int rc = RC_OK;
    for (size_t at = 0; at < n && rc == RC_OK; at += piece)
        rc = msg_stream_feed(m, p + at, n - at < piece ? n - at : piece, &e);
    msg_stream_result(m, rc, &e, &r);
    REQUIRE((unsigned)r.outcome < MODEL_OUTCOME_MAX_);
    s.outcome = r.outcome;
    if (r.outcome == MODEL_OK) {
        REQUIRE(json_is_array(r.content) && r.stop_reason);
        s.blocks = json_array_size(r.content);
        s.output = r.usage.output;
    } else {
        REQUIRE(r.message && *r.message);
    }
    msg_stream_free(m);
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len)
{
    struct seen whole = run((const char *)in, len, len ? len : 1), bytes = run((const char *)in, len, 1), odd = run((const char *)in, len, 7);
    REQUIRE(memcmp(&whole, &bytes, sizeof whole) == 0 && memcmp(&whole, &odd, sizeof whole) == 0);
    return 0;
}
