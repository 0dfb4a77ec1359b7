/* The pure parts of the Messages gateway. The first byte chooses:
 * 'h' a history: what comes out is JSON, has no MCP block left where one was understood, and is translated to itself;
 * 'r' a request: what is taken can be written for the provider, as JSON, without mcp_servers;
 * otherwise rounds of streams, separated by NUL: however they are cut into pieces the client gets the same, indexes go on, message_start comes once. */
#include <string.h>

#include "http/sse.h"
#include "json/span.h"
#include "server/messages/history.h"
#include "server/messages/join.h"
#include "server/messages/private.h"

#define REQUIRE(x) do { if (!(x)) abort(); } while (0)

static void history(struct slice in)
{
    struct buf out, again;
    struct err e = { 0 };
    AUTO_JS listings = json_object();
    buf_init(&out, 4 * MIB);
    buf_init(&again, 4 * MIB);
    (void)buf_putc(&out, '[');
    int rc = history_translate(in, &out, listings, &e);
    (void)buf_putc(&out, ']');
    REQUIRE((rc == RC_OK) == (e.msg[0] == '\0') && (rc == RC_OK || rc == RC_INVALID || rc == RC_TOO_LARGE));
    if (rc == RC_OK) {
        struct slice first = { buf_data(&out), buf_len(&out) }, item;
        struct span_walk w;
        REQUIRE(span_enter(first, '[', &w, &e) == RC_OK);
        while ((rc = span_next(&w, NULL, &item, &e)) == RC_OK) {
        }
        REQUIRE(rc == RC_NOT_FOUND);
        REQUIRE(history_translate(first, &again, listings, &e) == RC_OK);
        size_t n = buf_len(&again);          /* white space between items goes in the first pass */
        REQUIRE(n == first.n - 2 && memcmp(buf_data(&again), first.p + 1, n) == 0);
    }
    buf_done(&out);
    buf_done(&again);
}

static void request(struct slice in)
{
    struct request q = { .n_headers = 1 };
    struct buf defs[SERVERS_MAX], none, out;
    struct err e = { 0 };
    q.headers[0] = str_dup("anthropic-beta: mcp-client-2026-09-15");
    buf_init(&q.body, 1 * MIB);
    (void)buf_put(&q.body, in.p, in.n);
    int rc = request_read(&q, &e);
    REQUIRE((rc == RC_OK) == (e.msg[0] == '\0'));
    if (rc == RC_OK && q.rewrite) {
        struct slice v;
        buf_init(&none, 0);
        buf_init(&out, 4 * MIB);
        for (size_t i = 0; i < SERVERS_MAX; i++) {
            buf_init(&defs[i], 16);
            (void)buf_puts(&defs[i], "{}");
        }
        REQUIRE(request_write(&q, defs, &none, true, &out, &e) == RC_OK);
        REQUIRE(span_member((struct slice){ buf_data(&out), buf_len(&out) }, "mcp_servers", &v, &e) == RC_NOT_FOUND);
        REQUIRE(span_member((struct slice){ buf_data(&out), buf_len(&out) }, "messages", &v, &e) == RC_OK && v.p[0] == '[');
        for (size_t i = 0; i < SERVERS_MAX; i++)
            buf_done(&defs[i]);
        buf_done(&out);
    }
    request_done(&q);
}

struct seen { int64_t next; int starts, stops; };

static int on_event(void *ctx, const struct sse_event *ev)
{
    struct seen *s = ctx;
    AUTO_JS j = NULL;
    struct err e;
    REQUIRE(js_parse(ev->data, ev->data_n, SSE_EVENT_MAX, &j, &e) == RC_OK);
    const char *type = js_str(j, "type");
    REQUIRE(type);
    s->starts += str_eq(type, "message_start");
    s->stops += str_eq(type, "message_stop");
    if (str_eq(type, "content_block_start"))
        REQUIRE(js_int(j, "index", -1) == s->next++);
    return RC_OK;
}

static int rounds(struct slice in, size_t step, bool stream, struct buf *out)
{
    static const char names[] = "[{\"name\":\"s\"},{\"name\":\"t\"}]";
    struct tools tools = { 0 };
    struct err e = { 0 };
    struct buf defs;
    bool first = true;
    int rc = RC_OK;
    AUTO_JS set = json_object();
    AUTO_JS listing = NULL;
    AUTO_JS content = json_array();
    buf_init(&defs, MIB);
    REQUIRE(js_parse(names, sizeof names - 1, MIB, &listing, &e) == RC_OK && tools_add(&tools, "docs", set, listing, &defs, &first, &e) == RC_OK);
    struct join *j = join_new(&tools, stream);
    struct join_round *r = xcalloc(1, sizeof *r);
    bool done = false;
    while (rc == RC_OK && !done) {
        const char *nul = memchr(in.p, '\0', in.n);
        size_t n = nul ? (size_t)(nul - in.p) : in.n;
        for (size_t at = 0; at < n && rc == RC_OK; at += step)
            rc = join_feed(j, in.p + at, n - at < step ? n - at : step, out, &e);
        if (rc == RC_OK)
            rc = join_round(j, RC_OK, NULL, r, &e);
        if (rc != RC_OK || r->error_type)
            break;
        for (size_t i = 0; i < r->n; i++)
            join_result(j, &r->calls[i], true, content, out);
        done = !nul;
        in.p += n + !done;
        in.n -= n + !done;
    }
    if (rc == RC_OK && done)
        REQUIRE(join_finish(j, NULL, out, &e) == RC_OK);
    REQUIRE(rc == RC_OK || e.msg[0]);
    join_free(j);
    tools_done(&tools);
    buf_done(&defs);
    free(r);
    return rc;
}

static void joined(struct slice in)
{
    struct buf whole, pieces, message;
    struct seen s = { 0 };
    buf_init(&whole, 16 * MIB);
    buf_init(&pieces, 16 * MIB);
    buf_init(&message, 16 * MIB);
    int rc = rounds(in, in.n + 1, true, &whole);
    REQUIRE((rounds(in, 3, true, &pieces) < 0) == (rc < 0));
    if (rc == RC_OK) {
        REQUIRE(buf_len(&whole) == buf_len(&pieces) && memcmp(buf_data(&whole), buf_data(&pieces), buf_len(&whole)) == 0);
        struct sse_decoder *d = sse_decoder_new(SSE_EVENT_MAX);
        REQUIRE(sse_feed(d, buf_data(&whole), buf_len(&whole), on_event, &s) == RC_OK);
        sse_decoder_free(d);
        REQUIRE(s.starts <= 1 && s.stops <= 1);
    }
    (void)rounds(in, 50, false, &message);
    buf_done(&whole);
    buf_done(&pieces);
    buf_done(&message);
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t n)
{
    if (n == 0)
        return 0;
    char *copy = malloc(n);
    if (!copy)
        abort();
    memcpy(copy, in + 1, n - 1);
    struct slice rest = { copy, n - 1 };
    if (in[0] == 'h')
        history(rest);
    else if (in[0] == 'r')
        request(rest);
    else
        joined(rest);
    free(copy);
    return 0;
}
