/* JSON-RPC messages. Properties: every part lies inside the text; a message that is accepted is accepted again alone and as the element of a batch with the
 * same parts; canonical ids are stable; whatever jansson reads as an object with our names is not refused as "not JSON". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rc.h"
#include "gateway/rpc.h"
#include "json/js.h"

#define REQUIRE(c) do { if (!(c)) { fprintf(stderr, "property broken: %s (line %d)\n", #c, __LINE__); abort(); } } while (0)

static bool inside(struct slice part, const char *p, size_t n)
{
    return !part.p || (part.p >= p && part.p + part.n <= p + n);
}

static bool same(struct slice a, struct slice b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len)
{
    if (len > 16384)
        return 0;
    const char *p = (const char *)in, *why = NULL;
    struct rpc m, again;
    bool syntax = false;
    int rc = rpc_parse(p, len, &m, &syntax, &why);
    REQUIRE(rc == RC_OK || (rc == RC_INVALID && why));
    REQUIRE(inside(m.id, p, len) && inside(m.method, p, len) && inside(m.params, p, len) && inside(m.result, p, len) && inside(m.error, p, len));
    if (rc == RC_INVALID && syntax) {
        json_t *j = NULL;
        if (js_parse(p, len, JS_BODY_MAX, &j, NULL) == RC_OK) {
            REQUIRE(!json_is_object(j) && !json_is_array(j));
            json_decref(j);
        }
        return 0;
    }
    if (rc != RC_OK)
        return 0;
    REQUIRE((m.kind == RPC_RESPONSE) == (m.method.n == 0));
    REQUIRE(rpc_parse(m.text.p, m.text.n, &again, &syntax, &why) == RC_OK && again.kind == m.kind && same(again.id, m.id) && same(again.params, m.params));
    char *batch = malloc(2 * m.text.n + 4);
    int n = sprintf(batch, "[%.*s,%.*s]", (int)m.text.n, m.text.p, (int)m.text.n, m.text.p);
    if (!memchr(m.text.p, 0, m.text.n)) {
        struct slice items[RPC_BATCH_MAX];
        size_t n_items = 0;
        REQUIRE(rpc_is_batch(batch, (size_t)n) && rpc_items(batch, (size_t)n, items, &n_items) == RC_OK && n_items == 2 && same(items[0], m.text) && same(items[1], m.text));
    }
    free(batch);
    if (m.id.n) {
        char a[RPC_ID_MAX], b[RPC_ID_MAX];
        REQUIRE(rpc_key(m.id, a));
        REQUIRE(rpc_key(slice_of(a), b) && strcmp(a, b) == 0);
    }
    struct slice meta;
    if (rpc_member(m.params, "_meta", &meta))
        REQUIRE(inside(meta, m.params.p, m.params.n));
    return 0;
}
