/* The pure parts of the Messages gateway: what a request becomes for the provider, a history with MCP blocks, several streams joined to one, errors told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/secret.h"
#include "server/messages/history.h"
#include "server/messages/join.h"
#include "server/messages/private.h"

static char *quoted(const char *s)           /* ' for " keeps the tables readable */
{
    char *t = str_dup(s);
    for (char *p = t; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    return t;
}

static void same(const char *what, struct buf *got, const char *want)
{
    AUTO_FREE char *w = quoted(want);
    if (strcmp(buf_data(got), w) != 0)
        fail_msg("%s:\n got %s\nwant %s", what, buf_data(got), w);
}

/* ---- ids ---- */

static void test_call_ids(void **state)
{
    (void)state;
    static const struct { const char *in, *out; } t[] = {
        { "toolu_01abc", "mcptoolu_01abc" }, { "call_7", "mcptoolu_x-call_7" }, { "toolu_x-1", "mcptoolu_x-toolu_x-1" }, { "x-", "mcptoolu_x-x-" },
        { "toolu_", NULL }, { "", NULL }, { "a b", NULL }, { "a\"b", NULL },
    };
    char out[CALL_ID_MAX], back[CALL_ID_MAX], longest[300];
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        assert_int_equal(call_id_out(t[i].in, out), t[i].out ? RC_OK : RC_INVALID);
        if (!t[i].out)
            continue;
        assert_string_equal(out, t[i].out);
        assert_int_equal(call_id_in(out, back), RC_OK);
        assert_string_equal(back, t[i].in);
    }
    memset(longest, 'a', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    assert_int_equal(call_id_out(longest, out), RC_INVALID);
    assert_int_equal(call_id_in("srvtoolu_1", out), RC_OK);
    assert_string_equal(out, "srvtoolu_1");
}

/* ---- history ---- */

#define USE(id, name) "{'type':'mcp_tool_use','id':'mcptoolu_" id "','name':'" name "','server_name':'docs','input':{'n':1.50}}"
#define RES(id, rest) "{'type':'mcp_tool_result','tool_use_id':'mcptoolu_" id "'" rest "}"
#define TUSE(id, name) "{'type':'tool_use','id':'toolu_" id "','name':'mcp__docs__" name "','input':{'n':1.50}}"
#define TRES(id, rest) "{'type':'tool_result','tool_use_id':'toolu_" id "'" rest "}"
#define TXT(t) "{'type':'text','text':'" t "'}"
#define USER(c) "{'role':'user','content':" c "}"
#define ASSIST(c) "{'role':'assistant','content':[" c "]}"
#define OK ",'is_error':false,'content':[" TXT("r") "]"
#define TOK ",'content':[" TXT("r") "],'is_error':false"

static void test_history(void **state)
{
    (void)state;
    static const struct { const char *what, *in, *want, *error; } t[] = {
        { "nothing of MCP stays as it is", "[{ 'role':'user', 'content':'a' }, 7]", "{ 'role':'user', 'content':'a' },7", NULL },
        { "a call, its result, the end of the answer, the user", "[" USER("'q'") "," ASSIST(TXT("t") "," USE("1", "s") "," RES("1", OK) "," TXT("e")) "," USER("'more'") "]",
          USER("'q'") "," ASSIST(TXT("t") "," TUSE("1", "s")) "," USER("[" TRES("1", TOK) "]") "," ASSIST(TXT("e")) "," USER("'more'"), NULL },
        { "an answer that ends with a result: it opens the user's message", "[" ASSIST(USE("1", "s") "," RES("1", OK)) "," USER("'more'") "]",
          ASSIST(TUSE("1", "s")) "," USER("[" TRES("1", TOK) "," TXT("more") "]"), NULL },
        { "the same, blocks", "[" ASSIST(USE("1", "s") "," RES("1", OK)) "," USER("[" TXT("more") ", {'x':1e5}]") "]",
          ASSIST(TUSE("1", "s")) "," USER("[" TRES("1", TOK) "," TXT("more") ",{'x':1e5}]"), NULL },
        { "nothing follows: the model goes on", "[" ASSIST(USE("1", "s") "," RES("1", OK)) "]", ASSIST(TUSE("1", "s")) "," USER("[" TRES("1", TOK) "]"), NULL },
        { "an empty user text", "[" ASSIST(USE("1", "s") "," RES("1", OK)) "," USER("''") "]", ASSIST(TUSE("1", "s")) "," USER("[" TRES("1", TOK) "]"), NULL },
        { "parallel calls", "[" ASSIST(USE("1", "s") "," USE("2", "t") "," RES("1", OK) "," RES("2", OK)) "]",
          ASSIST(TUSE("1", "s") "," TUSE("2", "t")) "," USER("[" TRES("1", TOK) "," TRES("2", TOK) "]"), NULL },
        { "one after the other", "[" ASSIST(USE("1", "s") "," RES("1", OK) "," USE("2", "t") "," RES("2", OK)) "]",
          ASSIST(TUSE("1", "s")) "," USER("[" TRES("1", TOK) "]") "," ASSIST(TUSE("2", "t")) "," USER("[" TRES("2", TOK) "]"), NULL },
        { "mixed with a tool of the client's", "[" ASSIST("{'type':'tool_use','id':'toolu_9','name':'mine','input':{}}," USE("1", "s") "," RES("1", OK)) ","
          USER("[{'type':'tool_result','tool_use_id':'toolu_9','content':'c'}]") "]",
          ASSIST("{'type':'tool_use','id':'toolu_9','name':'mine','input':{}}," TUSE("1", "s")) ","
          USER("[" TRES("1", TOK) ",{'type':'tool_result','tool_use_id':'toolu_9','content':'c'}]"), NULL },
        { "two answers in a row", "[" ASSIST(USE("1", "s") "," RES("1", OK)) "," ASSIST(USE("2", "s") "," RES("2", OK)) "]",
          ASSIST(TUSE("1", "s")) "," USER("[" TRES("1", TOK) "]") "," ASSIST(TUSE("2", "s")) "," USER("[" TRES("2", TOK) "]"), NULL },
        { "an answer without MCP behind it", "[" ASSIST(USE("1", "s") "," RES("1", OK)) "," ASSIST(TXT("x")) "]",
          ASSIST(TUSE("1", "s")) "," USER("[" TRES("1", TOK) "]") "," ASSIST(TXT("x")), NULL },
        { "a string, an error, a breakpoint, nulls", "[" ASSIST(USE("1", "s") "," RES("1", ",'content':'why','is_error':true,'cache_control':{'type':'ephemeral'}")) "]",
          ASSIST(TUSE("1", "s")) "," USER("[" TRES("1", ",'content':'why','is_error':true,'cache_control':{'type':'ephemeral'}") "]"), NULL },
        { "empty content", "[" ASSIST(USE("1", "s") "," USE("2", "s") "," RES("1", ",'content':[ ],'cache_control':null") "," RES("2", ",'content':''")) "]",
          ASSIST(TUSE("1", "s") "," TUSE("2", "s")) "," USER("[" TRES("1", "") "," TRES("2", "") "]"), NULL },
        { "a listing leaves", "[" USER("'q'") "," ASSIST("{'type':'mcp_tool_listing','mcp_server_name':'docs','tools':[{'name':'s'}]}," TXT("x")) "]",
          USER("'q'") "," ASSIST(TXT("x")), NULL },
        { "nothing but a listing", "[" ASSIST("{'type':'mcp_tool_listing','mcp_server_name':'docs','tools':[]}") "," USER("'q'") "]", USER("'q'"), NULL },
        { "a name that needs another", "[" ASSIST("{'type':'mcp_tool_use','id':'a','name':'s.t','server_name':'docs','input':{}}," "{'type':'mcp_tool_result','tool_use_id':'a'}") "]",
          ASSIST("{'type':'tool_use','id':'a','name':'mcp__docs__s_t_2b7ad65b2a','input':{}}") "," USER("[{'type':'tool_result','tool_use_id':'a'}]"), NULL },
        { "no result", "[" USER("'q'") "," ASSIST(USE("1", "s") "," USE("2", "s") "," RES("1", OK)) "]", NULL, "messages.1.content.2: an mcp_tool_use before it has no mcp_tool_result" },
        { "no result before more", "[" ASSIST(USE("1", "s") "," USE("2", "s") "," RES("1", OK) "," TXT("x")) "]", NULL, "messages.0.content.3: an mcp_tool_use before it has no mcp_tool_result" },
        { "no call", "[" ASSIST(RES("1", OK)) "]", NULL, "messages.0.content.0: this mcp_tool_result answers no mcp_tool_use before it" },
        { "answered twice", "[" ASSIST(USE("1", "s") "," RES("1", OK) "," RES("1", OK)) "]", NULL, "messages.0.content.2: this mcp_tool_result answers no mcp_tool_use before it" },
        { "half a call", "[" ASSIST("{'type':'mcp_tool_use','id':'a'}") "]", NULL, "messages.0.content.0: an mcp_tool_use block needs id, name, server_name and input" },
        { "no list", "{'mcp_tool_use':1}", NULL, "messages: expected an array" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        AUTO_FREE char *in = quoted(t[i].in);
        AUTO_JS listings = json_object();
        struct buf out;
        struct err e = { 0 };
        buf_init(&out, MIB);
        int rc = history_translate(slice_of(in), &out, listings, &e);
        if (rc != (t[i].error ? RC_INVALID : RC_OK) || (t[i].error && strcmp(e.msg, t[i].error) != 0))
            fail_msg("%s: rc %d \"%s\"", t[i].what, rc, e.msg);
        if (rc == RC_OK && strcmp(t[i].what, "a name that needs another") == 0) {
            char name[MCP_NAME_MAX];
            mcp_tool_name("docs", "s.t", name);
            assert_non_null(strstr(buf_data(&out), name));
        } else if (rc == RC_OK) {
            same(t[i].what, &out, t[i].want);
        }
        if (strstr(t[i].what, "a listing leaves"))
            assert_int_equal(json_array_size(json_object_get(listings, "docs")), 1);
        buf_done(&out);
    }
    /* Over the limit of the provider's text. */
    AUTO_FREE char *in = quoted("[" ASSIST(USE("1", "s") "," RES("1", OK)) "]");
    AUTO_JS listings = json_object();
    struct buf out;
    struct err e = { 0 };
    buf_init(&out, 40);
    assert_int_equal(history_translate(slice_of(in), &out, listings, &e), RC_TOO_LARGE);
    buf_done(&out);
}

/* ---- requests ---- */

static void set_header(struct request *q, const char *line)
{
    q->headers[q->n_headers++] = str_dup(line);
}

static int read_request(struct request *q, const char *betas, const char *text, struct err *e)
{
    AUTO_FREE char *body = quoted(text);
    memset(q, 0, sizeof *q);
    set_header(q, "anthropic-version: 2023-06-01");
    if (betas)
        set_header(q, betas);
    set_header(q, "accept: application/json");
    buf_init(&q->body, MIB);
    (void)buf_puts(&q->body, body);
    return request_read(q, e);
}

#define SERVER(name) "{'type':'url','name':'" name "','url':'https://h/" name "'}"
#define SET(name) "{'type':'mcp_toolset','mcp_server_name':'" name "'}"
#define B11 "anthropic-beta: mcp-client-2025-11-20"
#define B09 "anthropic-beta: other-1, mcp-client-2026-09-15 ,mcp-client-2025-11-20,last-2"
#define B04 "anthropic-beta: mcp-client-2025-04-04"

static void test_requests_refused(void **state)
{
    (void)state;
    static const struct { const char *betas, *body, *error; } t[] = {
        { NULL, "{'model':'m','mcp_servers':[" SERVER("a") "],'tools':[" SET("a") "]}", "mcp_servers: needs the header 'anthropic-beta: mcp-client-2025-11-20'" },
        { B11, "{'model':'m','mcp_servers':[" SERVER("a") "]}", "mcp_servers.0: 'a' has no mcp_toolset in tools" },
        { B11, "{'model':'m','mcp_servers':[" SERVER("a") "," SERVER("a") "]}", "mcp_servers.1.name: 'a' is there twice" },
        { B11, "{'model':'m','mcp_servers':[" SERVER("a") "],'tools':[" SET("a") "," SET("a") "]}", "tools.1: the MCP server 'a' has a toolset already" },
        { B11, "{'model':'m','tools':[" SET("a") "]}", "tools.0.mcp_server_name: 'a' is not in mcp_servers" },
        { B11, "{'model':'m','mcp_servers':[{'type':'url','name':'a','url':'ftp://x'}]}", "mcp_servers.0.url: must start with https:// and have at most 2048 bytes" },
        { B11, "{'model':'m','mcp_servers':[{'type':'url','url':'https://x'}]}", "mcp_servers.0.name: expected a string of 1 to 255 bytes" },
        { B11, "{'model':'m','mcp_servers':[{'type':'sse','name':'a','url':'https://x'}]}", "mcp_servers.0.type: expected 'url'" },
        { B11, "{'model':'m','mcp_servers':[{'type':'url','name':'a','url':'https://x','authorization_token':1}]}", "mcp_servers.0.authorization_token: expected a string" },
        { B11, "{'model':'m','mcp_servers':{}}", "mcp_servers: expected an array of at most 20" },
        { B11, "{'model':'m','mcp_servers':[" SERVER("a") "],'tools':[{'type':'mcp_toolset','mcp_server_name':'a','configs':[]}]}", "tools.0.configs: expected an object" },
        { B11, "{'model':'m','mcp_servers':[" SERVER("a") "],'tools':[{'type':'mcp_toolset','mcp_server_name':'a','configs':{'x':{'enabled':1}}}]}",
          "tools.0.configs.enabled: expected true or false" },
        { B11, "{'model':'m','mcp_servers':[" SERVER("a") "],'tools':[{'type':'mcp_toolset','mcp_server_name':'a','tools':[]}]}",
          "tools.0.tools: expected an array, with the header 'anthropic-beta: mcp-client-2026-09-15'" },
        { B11, "{'model':'m','tools':{},'mcp_servers':[]}", "tools: expected an array" },
        { NULL, "{'model':'m','tools':[],'tools':[]}", "tools: is there twice" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct request q;
        struct err e = { 0 };
        AUTO_FREE char *want = quoted(t[i].error), *got = NULL;
        int rc = read_request(&q, t[i].betas, t[i].body, &e);
        got = quoted(e.msg);
        if (rc != RC_INVALID || strcmp(got, want) != 0)
            fail_msg("%s: rc %d \"%s\"", t[i].body, rc, e.msg);
        request_done(&q);
    }
}

static void write_request(struct request *q, const char *def, bool stream, struct buf *out)
{
    struct buf defs[SERVERS_MAX], none;
    struct err e;
    AUTO_FREE char *d = quoted(def);
    for (size_t i = 0; i < SERVERS_MAX; i++) {
        buf_init(&defs[i], MIB);
        if (i < q->n_servers && d[0])
            (void)buf_puts(&defs[i], d);
    }
    buf_init(&none, 0);
    buf_init(out, MIB);
    assert_int_equal(request_write(q, defs, &none, stream, out, &e), RC_OK);
    for (size_t i = 0; i < SERVERS_MAX; i++)
        buf_done(&defs[i]);
}

static void test_requests_rewritten(void **state)
{
    (void)state;
    static const struct { const char *betas, *body, *want, *header; unsigned bits; } t[] = {
        { B11, "{'mcp_servers':[" SERVER("a") "],'max_tokens':1e2,'model':'m','stream':true,'tools':[{'name':'x'}," SET("a") ", {'name':'y'}],'messages':[{'role':'user','content':'q'}]}",
          "{'max_tokens':1e2,'model':'m','stream':true,'tools':[{'name':'x'},{'d':1},{'name':'y'}],'messages':[{'role':'user','content':'q'}]}", NULL, BETA_MCP_2025_11 },
        { B09, "{'model':'m','mcp_servers':[" SERVER("a") "," SERVER("b") "],'tools':[" SET("b") "," SET("a") "],'messages':[]}",
          "{'model':'m','stream':true,'tools':[{'d':1},{'d':1}],'messages':[]}", "anthropic-beta: other-1,last-2", BETA_MCP_2026_09 | BETA_MCP_2025_11 },
        { B04, "{'model':'m','mcp_servers':[" SERVER("a") "],'tools':[{'name':'x'}],'messages':[]}", "{'model':'m','stream':true,'tools':[{'d':1},{'name':'x'}],'messages':[]}",
          NULL, BETA_MCP_2025_04 },
        { B04, "{'model':'m','mcp_servers':[" SERVER("a") "],'messages':[]}", "{'model':'m','stream':true,'tools':[{'d':1}],'messages':[]}", NULL, BETA_MCP_2025_04 },
        { NULL, "{'model':'m','mcp_servers':null,'messages':[]}", "{'model':'m','stream':true,'messages':[]}", NULL, 0 },
        { NULL, "{'model':'m','mcp_servers':[],'tools':[],'messages':[]}", "{'model':'m','stream':true,'tools':[],'messages':[]}", NULL, 0 },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct request q;
        struct err e = { 0 };
        struct buf out;
        if (read_request(&q, t[i].betas, t[i].body, &e) != RC_OK)
            fail_msg("%s: %s", t[i].body, e.msg);
        assert_true(q.rewrite);
        assert_int_equal(q.betas, t[i].bits);
        bool found = false;
        for (size_t k = 0; k < q.n_headers; k++)
            if (strncmp(q.headers[k], "anthropic-beta", 14) == 0) {
                found = true;
                assert_string_equal(q.headers[k], t[i].header);
            }
        assert_int_equal(found, t[i].header != NULL);
        write_request(&q, "{'d':1}", true, &out);
        same(t[i].body, &out, t[i].want);
        buf_done(&out);
        request_done(&q);
    }
    struct request q;                                /* what has nothing to do with MCP is left alone */
    struct err e;
    assert_int_equal(read_request(&q, B11, "{'model':'m','tools':[{'type':'bash'}],'messages':[{'role':'user','content':'mcp'}]}", &e), RC_OK);
    assert_false(q.rewrite);
    assert_int_equal(q.n_headers, 3);
    request_done(&q);
}

static void test_older_form(void **state)
{
    (void)state;
    struct request q;
    struct err e = { 0 };
    assert_int_equal(read_request(&q, B04, "{'model':'m','mcp_servers':[{'type':'url','name':'a','url':'https://h','authorization_token':'s3','tool_configuration':"
                                           "{'allowed_tools':['x']}},{'type':'url','name':'b','url':'https://h','tool_configuration':{'enabled':false}},{'type':'url','name':'c',"
                                           "'url':'https://h','tool_configuration':null}],'messages':[]}", &e), RC_OK);
    assert_string_equal(secret_text(q.servers[0].token), "s3");
    AUTO_FREE char *text = quoted("[{'name':'x','inputSchema':{'type':'object'}},{'name':'y'}]");
    static const char *const enabled[] = { "10", "00", "11" };
    json_t *listing = NULL;
    assert_int_equal(js_parse(text, strlen(text), MIB, &listing, &e), RC_OK);
    for (size_t i = 0; i < 3; i++) {
        struct tools tools = { 0 };
        struct buf defs;
        bool first = true;
        buf_init(&defs, MIB);
        assert_int_equal(tools_add(&tools, q.servers[i].name, q.servers[i].toolset, listing, &defs, &first, &e), RC_OK);
        for (size_t k = 0; k < 2; k++)
            assert_int_equal(tools.at[k].enabled, enabled[i][k] == '1');
        tools_done(&tools);
        buf_done(&defs);
    }
    json_decref(listing);
    request_done(&q);
}

static json_t *parsed(const char *text)
{
    AUTO_FREE char *t = quoted(text);
    json_t *j = NULL;
    struct err e;
    if (js_parse(t, strlen(t), MIB, &j, &e) != RC_OK)
        fail_msg("%s: %s", t, e.msg);
    return j;
}

static void test_tools(void **state)
{
    (void)state;
    AUTO_JS set = parsed("{'default_config':{'defer_loading':true},'configs':{'b':{'enabled':false},'gone':{'enabled':true},'c':{'defer_loading':false}},"
                         "'cache_control':{'type':'ephemeral'}}");
    AUTO_JS listing = parsed("[{'name':'a','description':'A','inputSchema':{'type':'object','x':1}},{'name':'b'},{'name':'c','input_schema':{'type':'object'}},{'name':'d.e'}]");
    struct tools tools = { 0 };
    struct buf defs;
    struct err e = { 0 };
    bool first = true;
    buf_init(&defs, MIB);
    assert_int_equal(tools_add(&tools, "docs", set, listing, &defs, &first, &e), RC_OK);
    AUTO_FREE char *all = str_printf("[%s]", buf_data(&defs));
    AUTO_JS got = NULL;
    assert_int_equal(js_parse(all, strlen(all), MIB, &got, &e), RC_OK);
    assert_int_equal(json_array_size(got), 3);
    assert_string_equal(js_str(got, "0.name"), "mcp__docs__a");
    assert_string_equal(js_str(got, "0.description"), "A");
    assert_int_equal(js_int(got, "0.input_schema.x", 0), 1);
    assert_true(js_bool(got, "0.defer_loading", false));
    assert_null(js_at(got, "1.defer_loading"));
    assert_null(js_at(got, "1.cache_control"));
    assert_string_equal(js_str(got, "2.cache_control.type"), "ephemeral");
    assert_string_equal(js_str(got, "2.input_schema.type"), "object");
    assert_string_equal(tools_find(&tools, js_str(got, "2.name"))->name, "d.e");
    assert_false(tools_find(&tools, "mcp__docs__b")->enabled);
    assert_null(tools_find(&tools, "mcp__docs__x"));
    void *iter = NULL;
    assert_string_equal(tools_unknown(set, listing, &iter), "gone");
    assert_null(tools_unknown(set, listing, &iter));
    AUTO_JS block = tools_listing_block("docs", listing);
    assert_string_equal(js_str(block, "mcp_server_name"), "docs");
    assert_int_equal(js_int(block, "tools.0.input_schema.x", 0), 1);
    assert_true(json_is_object(js_at(block, "tools.1.input_schema")));
    /* Refused: a name twice, none, too many, too large. */
    AUTO_JS twice = parsed("[{'name':'z'},{'name':'z'}]");
    AUTO_JS none = parsed("[{'description':'z'}]");
    assert_int_equal(tools_add(&tools, "docs", set, twice, &defs, &first, &e), RC_INVALID);
    assert_int_equal(tools_add(&tools, "docs", set, none, &defs, &first, &e), RC_INVALID);
    struct buf small;
    buf_init(&small, 10);
    AUTO_JS one = parsed("[{'name':'q'}]");
    assert_int_equal(tools_add(&tools, "docs", set, one, &small, &first, &e), RC_LIMIT);
    AUTO_JS many = json_array();
    for (int i = 0; i <= TOOLS_MAX; i++) {
        json_t *o = json_object();
        AUTO_FREE char *name = str_printf("m%d", i);
        js_set_str(o, "name", name);
        js_push(many, o);
    }
    assert_int_equal(tools_add(&tools, "docs", set, many, &defs, &first, &e), RC_LIMIT);
    /* A tool of the client's with such a name. */
    struct request q;
    assert_int_equal(read_request(&q, B11, "{'model':'m','mcp_servers':[" SERVER("docs") "],'tools':[{'name':'mcp__docs__a'}," SET("docs") "],'messages':[]}", &e), RC_OK);
    assert_int_equal(request_names(&q, &tools, &e), RC_INVALID);
    assert_non_null(strstr(e.msg, "mcp__docs__a"));
    request_done(&q);
    tools_done(&tools);
    buf_done(&small);
    buf_done(&defs);
}

/* ---- provider's words ---- */

static void test_provider_errors(void **state)
{
    (void)state;
    static const struct { int status; const char *body; int told; const char *want; } t[] = {
        { 429, "{'type':'error','error':{'type':'rate_limit_error','message':'slow','n':1.0},'request_id':'req_theirs'}", 429,
          "{'type':'error','error':{'type':'rate_limit_error','message':'slow','n':1.0},'request_id':'req_1'}" },
        { 529, "<html>", 529, "{'type':'error','error':{'type':'overloaded_error','message':'The model provider answered with status 529.'},'request_id':'req_1'}" },
        { 400, "{'error':'text'}", 400, "{'type':'error','error':{'type':'invalid_request_error','message':'The model provider answered with status 400.'},'request_id':'req_1'}" },
        { 401, "{'type':'error','error':{'type':'authentication_error','message':'bad key'}}", 502,
          "{'type':'error','error':{'type':'api_error','message':'The model provider refused this server's credential.'},'request_id':'req_1'}" },
        { 302, "", 502, "{'type':'error','error':{'type':'api_error','message':'The model provider gave no answer of its own.'},'request_id':'req_1'}" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        AUTO_FREE char *body = quoted(t[i].body), *got = NULL, *want = quoted(t[i].want);
        struct buf out;
        buf_init(&out, MIB);
        assert_int_equal(provider_error(t[i].status, slice_of(body), "req_1", &out), t[i].told);
        got = quoted(buf_data(&out));
        assert_string_equal(got, want);
        buf_done(&out);
    }
    assert_int_equal(provider_status("overloaded_error"), 529);
    assert_int_equal(provider_status("rate_limit_error"), 429);
    assert_int_equal(provider_status("new_error"), 500);
    struct buf out;
    buf_init(&out, MIB);
    provider_lines(SLICE("content-type: a\r\nRequest-Id: r1\r\nanthropic-ratelimit-x: 1\r\nanthropic-organization-id: o\r\nRetry-After: 3\r\nset-cookie: x\r\nx-should-retry: true\r\n"), &out);
    assert_string_equal(buf_data(&out), "x-provider-Request-Id: r1\r\nanthropic-ratelimit-x: 1\r\nRetry-After: 3\r\nx-should-retry: true\r\n");
    buf_done(&out);
}

/* ---- joining ---- */

#define EV(type, rest) "event: " type "\ndata: {'type':'" type "'" rest "}\n\n"
#define START(usage) EV("message_start", ",'message':{'id':'msg_1','type':'message','role':'assistant','model':'m','content':[],'stop_reason':null,'usage':{" usage "}}")
#define TEXT(i, t) EV("content_block_start", ",'index':" i ",'content_block':{'type':'text','text':''}") \
    EV("content_block_delta", ",'index':" i ",'delta':{'type':'text_delta','text':'" t "'}") EV("content_block_stop", ",'index':" i)
#define CALL(i, id, name, input) EV("content_block_start", ",'index':" i ",'content_block':{'type':'tool_use','id':'" id "','name':'" name "','input':{}}") \
    EV("content_block_delta", ",'index':" i ",'delta':{'type':'input_json_delta','partial_json':'" input "'}") EV("content_block_stop", ",'index':" i)
#define MCALL(i, id, name, input) EV("content_block_start", ",'index':" i ",'content_block':{'type':'mcp_tool_use','id':'" id "','name':'" name "','server_name':'docs','input':{}}") \
    EV("content_block_delta", ",'index':" i ",'delta':{'type':'input_json_delta','partial_json':'" input "'}") EV("content_block_stop", ",'index':" i)
#define MRES(i, id, err, t) EV("content_block_start", ",'index':" i ",'content_block':{'type':'mcp_tool_result','tool_use_id':'" id "','is_error':" err \
    ",'content':[{'type':'text','text':'" t "','citations':null}]}") EV("content_block_stop", ",'index':" i)
#define STOP(reason, usage) EV("message_delta", ",'delta':{'stop_reason':'" reason "','stop_sequence':null},'usage':{" usage "}") EV("message_stop", "")

static struct tools two_tools(void)
{
    struct tools t = { 0 };
    struct buf defs;
    struct err e;
    bool first = true;
    AUTO_JS set = parsed("{}");
    AUTO_JS listing = parsed("[{'name':'s'},{'name':'t'}]");
    buf_init(&defs, MIB);
    assert_int_equal(tools_add(&t, "docs", set, listing, &defs, &first, &e), RC_OK);
    buf_done(&defs);
    return t;
}

struct joined { struct tools tools; struct join *j; struct buf out; struct join_round r; struct err e; };

static void joined_init(struct joined *x, bool stream)
{
    memset(x, 0, sizeof *x);
    x->tools = two_tools();
    x->j = join_new(&x->tools, stream);
    buf_init(&x->out, MIB);
}

static void joined_done(struct joined *x)
{
    join_free(x->j);
    tools_done(&x->tools);
    buf_done(&x->out);
}

/* One round, fed in pieces of `step` bytes. */
static int feed(struct joined *x, const char *text, size_t step)
{
    AUTO_FREE char *t = quoted(text);
    for (size_t at = 0, n = strlen(t); at < n; at += step) {
        int rc = join_feed(x->j, t + at, n - at < step ? n - at : step, &x->out, &x->e);
        if (rc < 0)
            return rc;
    }
    return join_round(x->j, RC_OK, NULL, &x->r, &x->e);
}

static void result(struct joined *x, size_t i, bool is_error, const char *content)
{
    AUTO_JS c = parsed(content);
    join_result(x->j, &x->r.calls[i], is_error, c, &x->out);
}

#define R1 START("'input_tokens':10,'output_tokens':1,'cache_read_input_tokens':null,'service_tier':'standard'") "event: ping\ndata: {'type': 'ping'}\n\n" TEXT("0", "look") \
    CALL("1", "toolu_1", "mcp__docs__s", "{}") CALL("2", "toolu_2", "mcp__docs__t", "[1]") STOP("tool_use", "'output_tokens':20,'server_tool_use':{'web':1}")
#define R2 START("'input_tokens':100,'output_tokens':1,'cache_read_input_tokens':5") TEXT("0", "seen") STOP("end_turn", "'output_tokens':7,'server_tool_use':{'web':2}")

static void test_two_rounds(void **state)
{
    (void)state;
    static const char want[] =
        START("'input_tokens':10,'output_tokens':1,'cache_read_input_tokens':null,'service_tier':'standard'") "event: ping\ndata: {'type': 'ping'}\n\n" TEXT("0", "look")
        MCALL("1", "mcptoolu_1", "s", "{}") MCALL("2", "mcptoolu_2", "t", "[1]") MRES("3", "mcptoolu_1", "false", "one") MRES("4", "mcptoolu_2", "true", "two") TEXT("5", "seen")
        EV("message_delta", ",'delta':{'stop_reason':'end_turn','stop_sequence':null},'usage':{'input_tokens':110,'output_tokens':27,'cache_read_input_tokens':5,"
           "'service_tier':'standard','server_tool_use':{'web':3}}") EV("message_stop", "");
    for (size_t step = 1; step < 5000; step = step * 3 + 1) {
        struct joined x;
        joined_init(&x, true);
        assert_int_equal(feed(&x, R1, step), RC_OK);
        assert_int_equal(x.r.n, 2);
        assert_true(x.r.run);
        assert_false(x.r.client_tools);
        assert_string_equal(x.r.calls[0].id, "toolu_1");
        assert_string_equal(x.r.calls[1].tool->name, "t");
        assert_true(json_is_array(x.r.calls[1].input));
        assert_string_equal(js_str(x.r.content, "1.name"), "mcp__docs__s");
        result(&x, 0, false, "[{'type':'text','text':'one'}]");
        result(&x, 1, true, "[{'type':'text','text':'two'}]");
        assert_int_equal(feed(&x, R2, step), RC_OK);
        assert_int_equal(x.r.n, 0);
        assert_int_equal(join_finish(x.j, NULL, &x.out, &x.e), RC_OK);
        same("two rounds", &x.out, want);
        joined_done(&x);
    }
}

static void test_not_streamed(void **state)
{
    (void)state;
    struct joined x;
    joined_init(&x, false);
    json_t *block = parsed("{'type':'mcp_tool_listing','mcp_server_name':'docs','tools':[]}");
    join_listing(x.j, block);
    assert_int_equal(feed(&x, R1, 100), RC_OK);
    assert_int_equal(buf_len(&x.out), 0);
    result(&x, 0, false, "[{'type':'text','text':'one'},{'type':'image','source':{'type':'base64','media_type':'image/png','data':'AA=='}}]");
    result(&x, 1, true, "[]");
    assert_int_equal(feed(&x, R2, 100), RC_OK);
    assert_int_equal(join_finish(x.j, "pause_turn", &x.out, &x.e), RC_OK);
    same("message", &x.out,
         "{'id':'msg_1','type':'message','role':'assistant','model':'m','content':[{'type':'mcp_tool_listing','mcp_server_name':'docs','tools':[]},{'type':'text','text':'look'},"
         "{'type':'mcp_tool_use','id':'mcptoolu_1','name':'s','server_name':'docs','input':{}},{'type':'mcp_tool_use','id':'mcptoolu_2','name':'t','server_name':'docs','input':[1]},"
         "{'type':'mcp_tool_result','tool_use_id':'mcptoolu_1','is_error':false,'content':[{'type':'text','text':'one','citations':null},"
         "{'type':'text','text':'[image image/png: shown to the model in this turn]','citations':null}]},"
         "{'type':'mcp_tool_result','tool_use_id':'mcptoolu_2','is_error':true,'content':[]},{'type':'text','text':'seen'}],'stop_reason':'pause_turn','usage':"
         "{'input_tokens':110,'output_tokens':27,'cache_read_input_tokens':5,'service_tier':'standard','server_tool_use':{'web':3}},'stop_sequence':null}");
    joined_done(&x);
}

static void test_listing_comes_first(void **state)
{
    (void)state;
    struct joined x;
    joined_init(&x, true);
    join_listing(x.j, parsed("{'type':'mcp_tool_listing','mcp_server_name':'docs','tools':[]}"));
    assert_int_equal(feed(&x, START("") "event: x\ndata: {'type':'x',\ndata:  'index' : 0 ,'y':1.50}\n\n" TEXT("0", "a") STOP("end_turn", ""), 9), RC_OK);
    assert_int_equal(join_finish(x.j, NULL, &x.out, &x.e), RC_OK);
    same("listing", &x.out, START("") EV("content_block_start", ",'index':0,'content_block':{'type':'mcp_tool_listing','mcp_server_name':'docs','tools':[]}")
         EV("content_block_stop", ",'index':0") "event: x\ndata: {'type':'x',  'index' : 1 ,'y':1.50}\n\n" TEXT("1", "a")
         EV("message_delta", ",'delta':{'stop_reason':'end_turn','stop_sequence':null},'usage':{}") EV("message_stop", ""));
    joined_done(&x);
}

static void test_rounds_that_end_otherwise(void **state)
{
    (void)state;
    static const struct { const char *what, *in; int rc; size_t n; bool run, client; const char *error; } t[] = {
        { "a tool of the client's only", START("") CALL("0", "toolu_1", "mine", "{}") STOP("tool_use", ""), RC_OK, 0, true, true, NULL },
        { "mixed", START("") CALL("0", "toolu_1", "mine", "{}") CALL("1", "toolu_2", "mcp__docs__s", "{}") STOP("tool_use", ""), RC_OK, 1, true, true, NULL },
        { "cut", START("") CALL("0", "toolu_2", "mcp__docs__s", "[") STOP("max_tokens", ""), RC_OK, 1, false, false, NULL },
        { "an error in the middle", START("") TEXT("0", "x") EV("error", ",'error':{'type':'overloaded_error','message':'busy'}") TEXT("1", "y"), RC_OK, 0, false, false, "overloaded_error" },
        { "an error at once", EV("error", ",'error':{'type':'api_error','message':'no'}"), RC_OK, 0, false, false, "api_error" },
        { "an odd error", EV("error", ""), RC_OK, 0, false, false, "api_error" },
        { "no end", START("") TEXT("0", "x"), RC_PROTO, 0, false, false, NULL },
        { "nothing", "", RC_PROTO, 0, false, false, NULL },
        { "no JSON", "data: x\n\n", RC_PROTO, 0, false, false, NULL },
        { "no start", TEXT("0", "x"), RC_PROTO, 0, false, false, NULL },
        { "no index", START("") EV("content_block_stop", ""), RC_PROTO, 0, false, false, NULL },
        { "a wild index", START("") EV("content_block_delta", ",'index':99999999"), RC_PROTO, 0, false, false, NULL },
        { "an unusable id", START("") CALL("0", "a b", "mcp__docs__s", "{}") STOP("tool_use", ""), RC_PROTO, 0, false, false, NULL },
        { "broken input", START("") CALL("0", "a", "mcp__docs__s", "{") STOP("tool_use", ""), RC_PROTO, 0, false, false, NULL },
        { "no object", "data: []\n\n", RC_PROTO, 0, false, false, NULL },
        { "message_start of nothing", EV("message_start", ""), RC_PROTO, 0, false, false, NULL },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        for (int stream = 0; stream < 2; stream++) {
            struct joined x;
            joined_init(&x, stream);
            int rc = feed(&x, t[i].in, 50);
            if (rc != t[i].rc || (rc < 0 && !x.e.msg[0]))
                fail_msg("%s: rc %d \"%s\"", t[i].what, rc, x.e.msg);
            if (rc == RC_OK) {
                if (x.r.n != t[i].n || x.r.client_tools != t[i].client || x.r.run != t[i].run || !str_eq(x.r.error_type, t[i].error))
                    fail_msg("%s: n %zu run %d client %d error %s", t[i].what, x.r.n, x.r.run, x.r.client_tools, x.r.error_type ? x.r.error_type : "");
                if (t[i].error && stream)
                    assert_non_null(strstr(buf_data(&x.out), "event: error\n"));
            }
            joined_done(&x);
        }
    }
    struct joined x;                         /* the transport's word, when it broke off */
    joined_init(&x, true);
    AUTO_FREE char *start = quoted(START(""));
    assert_int_equal(join_feed(x.j, start, strlen(start), &x.out, &x.e), RC_OK);
    struct err why;
    (void)err_set(&why, RC_TIMEOUT, "too slow");
    assert_int_equal(join_round(x.j, RC_TIMEOUT, &why, &x.r, &x.e), RC_TIMEOUT);
    assert_string_equal(x.e.msg, "too slow");
    joined_done(&x);
}

static void test_limits_of_a_round(void **state)
{
    (void)state;
    struct buf b;
    struct joined x;
    buf_init(&b, MIB);
    (void)buf_puts(&b, START(""));
    for (int i = 0; i <= JOIN_CALLS_MAX; i++)
        (void)buf_printf(&b, "data: {'type':'content_block_start','index':%d,'content_block':{'type':'tool_use','id':'toolu_%d','name':'mcp__docs__s','input':{}}}\n\n"
                             "data: {'type':'content_block_stop','index':%d}\n\n", i, i, i);
    (void)buf_puts(&b, STOP("tool_use", ""));
    joined_init(&x, true);
    assert_int_equal(feed(&x, buf_data(&b), 1000), RC_TOO_LARGE);
    joined_done(&x);
    buf_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_call_ids), cmocka_unit_test(test_history), cmocka_unit_test(test_requests_refused), cmocka_unit_test(test_requests_rewritten),
        cmocka_unit_test(test_older_form), cmocka_unit_test(test_tools), cmocka_unit_test(test_provider_errors), cmocka_unit_test(test_two_rounds),
        cmocka_unit_test(test_not_streamed), cmocka_unit_test(test_listing_comes_first), cmocka_unit_test(test_rounds_that_end_otherwise),
        cmocka_unit_test(test_limits_of_a_round),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
