/* What an MCP server sends: messages out of a body or an event stream, and results as content blocks. Properties: the same messages whatever the cut;
 * blocks are of the three known kinds, texts never empty, text within its limit. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "base/utf8.h"
#include "server/mcp/content.h"
#include "server/mcp/fold.h"
#include "server/mcp/params.h"

#define REQUIRE(c) do { if (!(c)) { fprintf(stderr, "property broken: %s (line %d)\n", #c, __LINE__); abort(); } } while (0)

static void check_content(const json_t *result)
{
    json_t *a = content_map(result), *b;
    size_t i, chars = 0;
    json_array_foreach(a, i, b) {
        const char *type = js_str(b, "type"), *text = js_str(b, "text");
        REQUIRE(str_eq(type, "text") || str_eq(type, "image") || str_eq(type, "document"));
        if (str_eq(type, "text")) {
            REQUIRE(text && text[0]);
            chars += utf8_count(text, strlen(text));
        } else {
            REQUIRE(js_str(b, "source.data") && js_str(b, "source.media_type"));
        }
    }
    REQUIRE(chars <= CONTENT_CHARS_MAX + 1000);
    json_decref(a);
}

/* A tool's schema that passes has headers for any arguments, and none of them can begin a second line. */
static void check_params(const json_t *o)
{
    struct err e = { 0 };
    struct params p = { .n = 0 };
    int rc = params_check(json_object_get(o, "inputSchema"), &e);
    REQUIRE(rc == RC_OK || (rc == RC_INVALID && e.msg[0]));
    params_make(&p, json_object_get(o, "inputSchema"), json_object_get(o, "arguments"));
    for (size_t i = 0; i < p.n; i++)
        REQUIRE(!strpbrk(p.lines[i], "\r\n"));
    params_done(&p);
}

static void on_message(void *ctx, const struct fold_message *m)
{
    struct buf *out = ctx;
    AUTO_FREE char *body = m->body ? js_text(m->body) : NULL;
    REQUIRE(m->kind == FOLD_RESULT || m->kind == FOLD_ERROR ? json_is_object(m->body) : m->method != NULL);
    REQUIRE((m->kind == FOLD_REQUEST) == (m->raw_id != NULL));
    (void)buf_printf(out, "%d %lld %s ", (int)m->kind, (long long)m->id, m->method ? m->method : "-");
    (void)buf_puts(out, body ? body : "-");
    if (m->kind == FOLD_RESULT)
        check_content(m->body);
    if (m->kind == FOLD_RESULT)
        check_params(m->body);
}

static void on_endpoint(void *ctx, const char *path)
{
    (void)buf_printf(ctx, "endpoint ");
    (void)buf_puts(ctx, path);
}

static int run(bool sse, const char *p, size_t n, size_t step, struct buf *out, char event_id[FOLD_EVENT_ID_MAX])
{
    static const struct fold_ops ops = { .on_message = on_message, .on_endpoint = on_endpoint };
    struct fold f;
    struct err e = { 0 };
    int rc = RC_OK;
    fold_init(&f, sse, &ops, out);
    for (size_t at = 0; at < n && rc == RC_OK; at += step)
        rc = fold_feed(&f, p + at, n - at < step ? n - at : step, &e);
    if (rc == RC_OK)
        rc = fold_end(&f, &e);
    REQUIRE(rc == RC_OK || e.msg[0]);
    memcpy(event_id, f.event_id, FOLD_EVENT_ID_MAX);
    fold_done(&f);
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n == 0)
        return 0;
    bool sse = data[0] & 1;
    const size_t steps[] = { n, 1, 7 };
    struct buf first, other;
    char id[2][FOLD_EVENT_ID_MAX] = { { 0 } };
    buf_init(&first, 64 * MIB);
    int rc = run(sse, (const char *)data + 1, n - 1, steps[0], &first, id[0]);
    for (size_t i = 1; i < 3; i++) {
        buf_init(&other, 64 * MIB);
        REQUIRE(run(sse, (const char *)data + 1, n - 1, steps[i], &other, id[1]) == rc);
        REQUIRE(buf_len(&first) == buf_len(&other) && memcmp(buf_data(&first), buf_data(&other), buf_len(&first)) == 0);
        REQUIRE(str_eq(id[0], id[1]));
        buf_done(&other);
    }
    buf_done(&first);
    return 0;
}
