/* The scanner that the tool policy decides by, against a JSON reader (jansson): whatever that takes for a call, the scanner has seen as the same call or as
 * unclear. Cutting the input into pieces changes nothing. */
#include <string.h>

#include "base/str.h"
#include "gateway/mcp.h"
#include "json/js.h"

struct got { struct mcp_call c[MCP_BATCH_MAX]; size_t n; };

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void on_call(void *ctx, const struct mcp_call *c)
{
    struct got *g = ctx;
    check(g->n < MCP_BATCH_MAX);
    g->c[g->n++] = *c;
}

static enum mcp_result scan(const char *p, size_t n, size_t step, struct got *g)
{
    struct mcp_scan s;
    g->n = 0;
    mcp_init(&s, on_call, g);
    for (size_t i = 0; i < n; i += step)
        mcp_feed(&s, p + i, n - i < step ? n - i : step);
    return mcp_finish(&s);
}

static void same_call(const json_t *m, const struct mcp_call *c)
{
    if (c->unclear)
        return;
    check(json_is_object(m));
    const char *method = json_string_value(json_object_get(m, "method")), *name = json_string_value(json_object_get(json_object_get(m, "params"), "name"));
    check(c->is_call == (method != NULL));
    check(strcmp(c->method, method ? method : "") == 0);
    check(strcmp(c->name, name ? name : "") == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t n)
{
    static struct got whole, cut;
    const char *p = (const char *)in;
    enum mcp_result r = scan(p, n, n + 1, &whole), again = scan(p, n, n ? 1 + in[n - 1] % 7 : 1, &cut);
    check(r == again && whole.n == cut.n);
    for (size_t i = 0; i < whole.n; i++)
        check(whole.c[i].unclear == cut.c[i].unclear && strcmp(whole.c[i].method, cut.c[i].method) == 0 && strcmp(whole.c[i].name, cut.c[i].name) == 0 &&
              strcmp(whole.c[i].id, cut.c[i].id) == 0);
    json_error_t e;
    json_t *j = json_loadb(p, n, 0, &e);     /* the last of two equal names counts, as in most readers */
    if (j && (json_is_object(j) || json_is_array(j))) {
        check(r != MCP_OTHER);
        if (r == MCP_RPC && json_is_object(j)) {
            check(whole.n == 1);
            same_call(j, &whole.c[0]);
        } else if (r == MCP_RPC) {
            check(whole.n == json_array_size(j));
            for (size_t i = 0; i < whole.n; i++)
                same_call(json_array_get(j, i), &whole.c[i]);
        }
    }
    json_decref(j);
    return 0;
}
