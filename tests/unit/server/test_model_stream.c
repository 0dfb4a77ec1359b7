/* A streamed answer of the Messages API put together; errors in the stream, broken streams, answers that are errors: which outcome each is. Every stream is
 * fed whole and byte by byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "server/model/stream.h"

#define START "{'type':'message_start','message':{'id':'msg_1','model':'m-1','usage':{'input_tokens':10,'output_tokens':1}}}\n"
#define STOP(reason) "{'type':'message_delta','delta':{'stop_reason':'" reason "'},'usage':{'output_tokens':7}}\n{'type':'message_stop'}\n"
#define TEXT0 "{'type':'content_block_start','index':0,'content_block':{'type':'text','text':''}}\n"
#define TOOL0 "{'type':'content_block_start','index':0,'content_block':{'type':'tool_use','id':'t1','name':'bash','input':{}}}\n"
#define DELTA(i, kind, key, value) "{'type':'content_block_delta','index':" #i ",'delta':{'type':'" kind "','" key "':" value "}}\n"
#define END(i) "{'type':'content_block_stop','index':" #i "}\n"

/* One event a line, single quotes for double ones. */
static void sse_of(const char *lines, struct buf *out)
{
    buf_init(out, 4 * MIB);
    for (const char *p = lines; *p;) {
        size_t n = strcspn(p, "\n");
        (void)buf_puts(out, "event: x\ndata: ");
        for (size_t i = 0; i < n; i++)
            (void)buf_putc(out, p[i] == '\'' ? '"' : p[i]);
        (void)buf_puts(out, "\n\n");
        p += n + (p[n] == '\n');
    }
}

struct got { struct model_result r; struct msg_stream *m; char text[512]; int rc; };

static void on_delta(void *ctx, const struct model_delta *d)
{
    struct got *g = ctx;
    size_t at = strlen(g->text);
    if (d->kind == DELTA_TEXT)
        (void)snprintf(g->text + at, sizeof g->text - at, "%.*s", (int)d->n, d->text);
    else
        (void)snprintf(g->text + at, sizeof g->text - at, d->kind == DELTA_TEXT_START ? "<%d>" : "{%d}", d->index);
}

static void run(struct got *g, const char *bytes, size_t n, size_t piece)
{
    struct err e = { 0 };
    memset(g, 0, sizeof *g);
    g->m = msg_stream_new(on_delta, g);
    for (size_t at = 0; at < n && g->rc == RC_OK; at += piece)
        g->rc = msg_stream_feed(g->m, bytes + at, n - at < piece ? n - at : piece, &e);
    msg_stream_result(g->m, g->rc, &e, &g->r);
}

static char *quoted(const char *s)
{
    char *out = str_dup(s);
    for (char *p = out; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    return out;
}

static const struct { const char *what, *lines, *content, *stop, *told; } whole[] = {
    { "text", START TEXT0 DELTA(0, "text_delta", "text", "'a '") "{'type':'ping'}\n" DELTA(0, "text_delta", "text", "'b'") END(0) STOP("end_turn"),
      "[{'type':'text','text':'a b'}]", "end_turn", "<0>a b" },
    { "nothing at all", START STOP("end_turn"), "[]", "end_turn", "" },
    { "thinking, kept with its signature",
      START "{'type':'content_block_start','index':0,'content_block':{'type':'thinking','thinking':'','signature':''}}\n" DELTA(0, "thinking_delta", "thinking", "'hm'")
      DELTA(0, "signature_delta", "signature", "'c2ln'") DELTA(0, "signature_delta", "signature", "'=='") END(0) STOP("end_turn"),
      "[{'type':'thinking','thinking':'hm','signature':'c2ln=='}]", "end_turn", "{0}" },
    { "redacted thinking, as it came", START "{'type':'content_block_start','index':0,'content_block':{'type':'redacted_thinking','data':'xyz'}}\n" END(0) STOP("end_turn"),
      "[{'type':'redacted_thinking','data':'xyz'}]", "end_turn", "{0}" },
    { "a call whose input comes in pieces", START TOOL0 DELTA(0, "input_json_delta", "partial_json", "''") DELTA(0, "input_json_delta", "partial_json", "'{\\'comm'")
      DELTA(0, "input_json_delta", "partial_json", "'and\\':\\'ls\\'}'") END(0) STOP("tool_use"),
      "[{'type':'tool_use','id':'t1','name':'bash','input':{'command':'ls'}}]", "tool_use", "" },
    { "a call without input", START TOOL0 END(0) STOP("tool_use"), "[{'type':'tool_use','id':'t1','name':'bash','input':{}}]", "tool_use", "" },
    { "a call that the limit cut off", START TOOL0 DELTA(0, "input_json_delta", "partial_json", "'{\\'comm'") END(0) STOP("max_tokens"),
      "[{'type':'tool_use','id':'t1','name':'bash','input':{}}]", "max_tokens", "" },
    { "a block that is never closed", START TEXT0 DELTA(0, "text_delta", "text", "'cut'") STOP("max_tokens"), "[{'type':'text','text':'cut'}]", "max_tokens", "<0>cut" },
    { "two blocks, deltas between each other",
      START TEXT0 "{'type':'content_block_start','index':1,'content_block':{'type':'text','text':''}}\n" DELTA(1, "text_delta", "text", "'two'")
      DELTA(0, "text_delta", "text", "'one'") END(1) END(0) STOP("end_turn"), "[{'type':'text','text':'one'},{'type':'text','text':'two'}]", "end_turn", "<0><1>twoone" },
    { "a compaction", START "{'type':'content_block_start','index':0,'content_block':{'type':'compaction','content':null}}\n" DELTA(0, "compaction_delta", "content", "'sum'")
      END(0) STOP("compaction"), "[{'type':'compaction','content':'sum'}]", "compaction", "" },
    { "a compaction that failed", START "{'type':'content_block_start','index':0,'content_block':{'type':'compaction'}}\n" DELTA(0, "compaction_delta", "content", "null")
      END(0) STOP("end_turn"), "[{'type':'compaction','content':null}]", "end_turn", "" },
    { "citations", START TEXT0 DELTA(0, "citations_delta", "citation", "{'a':1}") DELTA(0, "citations_delta", "citation", "{'a':2}") END(0) STOP("end_turn"),
      "[{'type':'text','text':'','citations':[{'a':1},{'a':2}]}]", "end_turn", "<0>" },
    { "kinds of a later version", START TEXT0 DELTA(0, "smell_delta", "smell", "'rose'") END(0) "{'type':'weather','sun':true}\n" STOP("end_turn"),
      "[{'type':'text','text':''}]", "end_turn", "<0>" },
    { "what follows the end", START STOP("end_turn") "{'type':'error','error':{'type':'api_error','message':'late'}}\nnonsense\n", "[]", "end_turn", "" },
    { "an unknown stop reason", START STOP("moon"), "[]", "moon", "" },
};

static void test_whole(void **st)
{
    (void)st;
    for (size_t i = 0; i < COUNT_OF(whole); i++) {
        struct buf b;
        sse_of(whole[i].lines, &b);
        AUTO_FREE char *want = quoted(whole[i].content);
        for (size_t piece = 1; piece <= buf_len(&b); piece += piece < 3 ? 1 : buf_len(&b)) {
            struct got g;
            run(&g, buf_data(&b), buf_len(&b), piece);
            if (g.r.outcome != MODEL_OK)
                fail_msg("%s: outcome %d: %s", whole[i].what, (int)g.r.outcome, g.r.message);
            AUTO_FREE char *content = js_text(g.r.content);
            assert_string_equal(content, want);
            assert_string_equal(g.r.stop_reason, whole[i].stop);
            assert_string_equal(g.text, whole[i].told);
            assert_string_equal(g.r.model, "m-1");
            assert_int_equal(g.r.usage.input, 10);
            assert_int_equal(g.r.usage.output, 7);
            assert_int_equal(g.r.context_tokens, 17);
            assert_int_equal(g.r.retry_after_ms, -1);
            msg_stream_free(g.m);
        }
        buf_done(&b);
    }
}

#define ERROR(type, msg) "{'type':'error','error':{'type':'" type "','message':'" msg "'}}\n"
static const struct { const char *what, *lines; enum model_outcome outcome; const char *type, *message; int status; } broken[] = {
    { "overloaded in the middle", START TEXT0 ERROR("overloaded_error", "Overloaded"), MODEL_OVERLOADED, "overloaded_error", "Overloaded", 200 },
    { "an error at once", ERROR("api_error", "sorry"), MODEL_OVERLOADED, "api_error", "sorry", 200 },
    { "rate limit: no retry-after comes in a stream", START ERROR("rate_limit_error", "slow"), MODEL_BILLING, "rate_limit_error", "slow", 429 },
    { "billing", START ERROR("billing_error", "pay"), MODEL_BILLING, "billing_error", "pay", 200 },
    { "too large", START ERROR("request_too_large", "big"), MODEL_TOO_LARGE, "request_too_large", "big", 200 },
    { "invalid", START ERROR("invalid_request_error", "no"), MODEL_FATAL, "invalid_request_error", "no", 200 },
    { "credential", START ERROR("authentication_error", "who"), MODEL_FATAL, "authentication_error", "who", 200 },
    { "permission", START ERROR("permission_error", "not you"), MODEL_FATAL, "permission_error", "not you", 200 },
    { "no such model", START ERROR("not_found_error", "m"), MODEL_FATAL, "not_found_error", "m", 200 },
    { "an error nobody knows", START ERROR("moon_error", "x"), MODEL_OVERLOADED, "moon_error", "x", 200 },
    { "an error without words", START "{'type':'error'}\n", MODEL_OVERLOADED, "api_error", "the model API reported an error without words", 200 },
    { "the first error counts", START ERROR("overloaded_error", "a") ERROR("invalid_request_error", "b") STOP("end_turn"), MODEL_OVERLOADED, "overloaded_error", "a", 200 },
    { "nothing", "", MODEL_OVERLOADED, "api_error", "ended before the message was complete", 200 },
    { "it ends after the start", START, MODEL_OVERLOADED, "api_error", "ended before", 200 },
    { "it ends before message_stop", START "{'type':'message_delta','delta':{'stop_reason':'end_turn'}}\n", MODEL_OVERLOADED, "api_error", "ended before", 200 },
    { "no stop reason", START "{'type':'message_stop'}\n", MODEL_OVERLOADED, "api_error", "ended before", 200 },
    { "a broken input and no limit that cut it", START TOOL0 DELTA(0, "input_json_delta", "partial_json", "'{\\'comm'") END(0) STOP("tool_use"), MODEL_OVERLOADED, "api_error", "ended before", 200 },
    { "two starts", START START, MODEL_OVERLOADED, "api_error", "two message_start", 200 },
    { "a block before the start", TEXT0, MODEL_OVERLOADED, "api_error", "before message_start", 200 },
    { "no type", "{'kind':'x'}\n", MODEL_OVERLOADED, "api_error", "without a type", 200 },
    { "no JSON", START "moon\n", MODEL_OVERLOADED, "api_error", "", 200 },
    { "a block out of order", START "{'type':'content_block_start','index':1,'content_block':{'type':'text'}}\n", MODEL_OVERLOADED, "api_error", "out of order", 200 },
    { "a block twice", START TEXT0 TEXT0, MODEL_OVERLOADED, "api_error", "out of order", 200 },
    { "a block without a type", START "{'type':'content_block_start','index':0,'content_block':{}}\n", MODEL_OVERLOADED, "api_error", "out of order", 200 },
    { "a delta of no block", START DELTA(0, "text_delta", "text", "'x'"), MODEL_OVERLOADED, "api_error", "not open", 200 },
    { "a delta of a closed block", START TEXT0 END(0) DELTA(0, "text_delta", "text", "'x'"), MODEL_OVERLOADED, "api_error", "not open", 200 },
    { "a delta without its text", START TEXT0 DELTA(0, "text_delta", "words", "'x'"), MODEL_OVERLOADED, "api_error", "without \"text\"", 200 },
    { "a block closed twice", START TEXT0 END(0) END(0), MODEL_OVERLOADED, "api_error", "not open", 200 },
};

static void test_broken(void **st)
{
    (void)st;
    for (size_t i = 0; i < COUNT_OF(broken); i++) {
        struct buf b;
        sse_of(broken[i].lines, &b);
        for (int whole_piece = 0; whole_piece < 2; whole_piece++) {
            struct got g;
            run(&g, buf_data(&b), buf_len(&b), whole_piece ? buf_len(&b) + 1 : 1);
            if (g.r.outcome != broken[i].outcome || !str_eq(g.r.error_type, broken[i].type) || !strstr(g.r.message, broken[i].message) || g.r.http_status != broken[i].status)
                fail_msg("%s: outcome %d, %s: %s (%d)", broken[i].what, (int)g.r.outcome, g.r.error_type, g.r.message, g.r.http_status);
            assert_null(g.r.content);
            msg_stream_free(g.m);
        }
        buf_done(&b);
    }
}

static void test_usage(void **st)
{
    (void)st;
    static const struct { const char *usage; struct model_usage want; int64_t context; } t[] = {
        { "{'output_tokens':5}", { 10, 5, 0, 0, 0 }, 15 },
        { "{'input_tokens':3,'output_tokens':5,'cache_read_input_tokens':100,'cache_creation_input_tokens':40}", { 3, 5, 100, 40, 0 }, 148 },
        { "{'output_tokens':5,'cache_creation_input_tokens':40,'cache_creation':{'ephemeral_1h_input_tokens':30}}", { 10, 5, 0, 10, 30 }, 55 },
        { "{'output_tokens':5,'cache_creation_input_tokens':4,'cache_creation':{'ephemeral_1h_input_tokens':30}}", { 10, 5, 0, 0, 4 }, 19 },
        /* what is billed is the sum of the iterations, what stands in the window is the last one */
        { "{'output_tokens':5,'iterations':[{'input_tokens':1000,'output_tokens':50},{'input_tokens':60,'output_tokens':5,'cache_read_input_tokens':2}]}", { 1060, 55, 2, 0, 0 }, 67 },
        { "{'output_tokens':5,'iterations':[]}", { 10, 5, 0, 0, 0 }, 15 },
        { "'none'", { 10, 1, 0, 0, 0 }, 11 },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        AUTO_FREE char *lines = str_printf("%s{'type':'message_delta','delta':{'stop_reason':'end_turn'},'usage':%s}\n{'type':'message_stop'}\n", START, t[i].usage);
        struct buf b;
        struct got g;
        sse_of(lines, &b);
        run(&g, buf_data(&b), buf_len(&b), 5);
        assert_int_equal(g.r.outcome, MODEL_OK);
        assert_memory_equal(&g.r.usage, &t[i].want, sizeof t[i].want);
        assert_int_equal(g.r.context_tokens, t[i].context);
        msg_stream_free(g.m);
        buf_done(&b);
    }
}

static void test_refusal_details(void **st)
{
    (void)st;
    struct buf b;
    struct got g;
    sse_of(START "{'type':'message_delta','delta':{'stop_reason':'refusal','stop_details':{'category':'x'}}}\n{'type':'message_stop'}\n", &b);
    run(&g, buf_data(&b), buf_len(&b), 1);
    assert_int_equal(g.r.outcome, MODEL_OK);
    assert_string_equal(js_str(g.r.stop_details, "category"), "x");
    msg_stream_free(g.m);
    buf_done(&b);
}

static void test_limits(void **st)
{
    (void)st;
    for (int over = 0; over < 2; over++) {
        struct buf lines, b;
        struct got g;
        buf_init(&lines, 4 * MIB);
        (void)buf_puts(&lines, START);
        for (int i = 0; i < STREAM_BLOCKS_MAX + over; i++)
            (void)buf_printf(&lines, "{'type':'content_block_start','index':%d,'content_block':{'type':'text','text':''}}\n", i);
        (void)buf_puts(&lines, STOP("end_turn"));
        sse_of(buf_data(&lines), &b);
        run(&g, buf_data(&b), buf_len(&b), 4096);
        assert_int_equal(g.rc, over ? RC_TOO_LARGE : RC_OK);
        assert_int_equal(g.r.outcome, over ? MODEL_OVERLOADED : MODEL_OK);
        msg_stream_free(g.m);
        buf_done(&b);
        buf_done(&lines);
    }
}

static void test_error_answers(void **st)
{
    (void)st;
    static const struct { int status; int64_t after; const char *body; enum model_outcome want; const char *type, *message; } t[] = {
        { 400, -1, "{'error':{'type':'invalid_request_error','message':'bad'}}", MODEL_FATAL, "invalid_request_error", "bad" },
        { 400, -1, "{'error':{'type':'invalid_request_error','message':'prompt is too long: 3 > 2'}}", MODEL_TOO_LARGE, "invalid_request_error", "prompt is too long" },
        { 400, -1, "{'error':{'type':'invalid_request_error','message':'input and max_tokens exceed context limit'}}", MODEL_TOO_LARGE, "invalid_request_error", "exceed context" },
        { 400, -1, "{'error':{'type':'billing_error','message':'pay'}}", MODEL_BILLING, "billing_error", "pay" },
        { 401, -1, "{'error':{'type':'authentication_error','message':'who'}}", MODEL_FATAL, "authentication_error", "who" },
        { 402, -1, "{}", MODEL_BILLING, NULL, "answered with status 402" },
        { 403, -1, "<html>", MODEL_FATAL, NULL, "status 403" },
        { 404, -1, "", MODEL_FATAL, NULL, "status 404" },
        { 408, -1, "", MODEL_OVERLOADED, NULL, "status 408" },
        { 409, -1, "", MODEL_OVERLOADED, NULL, "status 409" },
        { 413, -1, "{'error':{'type':'request_too_large','message':'big'}}", MODEL_TOO_LARGE, "request_too_large", "big" },
        { 429, 0, "{'error':{'type':'rate_limit_error','message':'slow'}}", MODEL_RETRY_AFTER, "rate_limit_error", "slow" },
        { 429, 7000, "{'error':{'type':'rate_limit_error','message':'slow'}}", MODEL_RETRY_AFTER, "rate_limit_error", "slow" },
        { 429, -1, "{'error':{'type':'rate_limit_error','message':'spent'}}", MODEL_BILLING, "rate_limit_error", "spent" },
        { 500, -1, "{'error':{'type':'api_error','message':'oops'}}", MODEL_OVERLOADED, "api_error", "oops" },
        { 504, -1, "", MODEL_OVERLOADED, NULL, "status 504" },
        { 529, 3000, "{'error':{'type':'overloaded_error','message':''}}", MODEL_OVERLOADED, "overloaded_error", "status 529" },
        { 302, -1, "", MODEL_FATAL, NULL, "status 302" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct model_result r;
        struct buf text;
        AUTO_FREE char *body = quoted(t[i].body);
        buf_init(&text, 64 * KIB);
        msg_error_result(t[i].status, t[i].after, body, strlen(body), &text, &r);
        if (r.outcome != t[i].want || !str_eq(r.error_type, t[i].type) || !strstr(r.message, t[i].message) || r.retry_after_ms != t[i].after || r.http_status != t[i].status)
            fail_msg("status %d: outcome %d, %s: %s", t[i].status, (int)r.outcome, r.error_type ? r.error_type : "-", r.message);
        buf_done(&text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole), cmocka_unit_test(test_broken), cmocka_unit_test(test_usage), cmocka_unit_test(test_refusal_details), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_error_answers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
