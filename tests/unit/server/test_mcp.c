/* The pure parts of the MCP client: which servers may be called, what they send, how results are shown to the model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "base/utf8.h"
#include "server/mcp/content.h"
#include "server/mcp/fold.h"
#include "server/mcp/guard.h"
#include "server/mcp/params.h"

/* ---- guard ---- */
static void test_addresses(void **state)
{
    (void)state;
    static const struct { const char *a, *why; } t[] = {        /* why NULL: public */
        { "8.8.8.8", NULL }, { "1.1.1.1", NULL }, { "172.15.255.255", NULL }, { "172.32.0.0", NULL }, { "100.63.255.255", NULL }, { "100.128.0.0", NULL },
        { "192.167.255.255", NULL }, { "223.255.255.255", NULL }, { "169.253.0.1", NULL }, { "192.0.1.1", NULL }, { "168.63.129.15", NULL },
        { "0.0.0.0", "this network" }, { "0.1.2.3", "this network" }, { "10.0.0.1", "private" }, { "100.64.0.1", "carrier" }, { "127.0.0.1", "loopback" },
        { "127.255.255.254", "loopback" }, { "169.254.169.254", "metadata" }, { "172.16.0.1", "private" }, { "172.31.255.255", "private" },
        { "192.0.0.8", "reserved" }, { "192.0.2.1", "documentation" }, { "192.88.99.1", "6to4" }, { "192.168.1.1", "private" }, { "198.18.0.1", "benchmark" },
        { "198.19.255.255", "benchmark" }, { "198.51.100.7", "documentation" }, { "203.0.113.9", "documentation" }, { "224.0.0.1", "multicast" },
        { "239.1.1.1", "multicast" }, { "240.0.0.1", "reserved" }, { "255.255.255.255", "reserved" }, { "168.63.129.16", "metadata" },
        { "2606:4700::1111", NULL }, { "2a00:1450:4001::1", NULL }, { "::ffff:8.8.8.8", NULL }, { "64:ff9b::8.8.8.8", NULL }, { "2002:808:808::1", NULL },
        { "::", "reserved" }, { "::1", "loopback" }, { "::ffff:127.0.0.1", "loopback" }, { "::ffff:10.1.2.3", "private" }, { "::10.1.2.3", "reserved" },
        { "64:ff9b::a9fe:a9fe", "metadata" }, { "64:ff9b:1::1", "reserved" }, { "fe80::1", "link-local" }, { "febf::1", "link-local" }, { "fec0::1", "private" },
        { "fc00::1", "private" }, { "fd00:ec2::254", "private" }, { "ff02::1", "multicast" }, { "2001:db8::1", "documentation" }, { "3fff::1", "documentation" },
        { "2001::1", "Teredo" }, { "2001:2::1", "reserved" }, { "2002:7f00:1::1", "loopback" }, { "2002:a00:1::1", "private" }, { "100::1", "reserved" }, { "4000::1", "reserved" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct sockaddr_in in = { .sin_family = AF_INET };
        struct sockaddr_in6 in6 = { .sin6_family = AF_INET6 };
        const char *why = "";
        bool v6 = strchr(t[i].a, ':') != NULL;
        assert_int_equal(inet_pton(v6 ? AF_INET6 : AF_INET, t[i].a, v6 ? (void *)&in6.sin6_addr : (void *)&in.sin_addr), 1);
        bool ok = guard_address_public(v6 ? (struct sockaddr *)&in6 : (struct sockaddr *)&in, &why);
        if (ok != (t[i].why == NULL) || (t[i].why && !strstr(why, t[i].why)))
            fail_msg("%s: %d '%s'", t[i].a, ok, why);
    }
    struct sockaddr un = { .sa_family = AF_UNIX };
    const char *why = NULL;
    assert_false(guard_address_public(&un, &why));
}

static void test_hosts(void **state)
{
    (void)state;
    static const char *const list[] = { "mcp.example.com", "*.corp.example", "10.0.0.1" }, *const any[] = { "*" };
    static const struct { const char *host; bool want; } t[] = {
        { "mcp.example.com", true }, { "MCP.Example.com", true }, { "x.mcp.example.com", false }, { "example.com", false }, { "a.corp.example", true },
        { "a.b.corp.example", true }, { "corp.example", false }, { "xcorp.example", false }, { ".corp.example", false }, { "10.0.0.1", true },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        if (guard_host_matches(list, COUNT_OF(list), t[i].host) != t[i].want)
            fail_msg("%s", t[i].host);
        assert_true(guard_host_matches(any, 1, t[i].host));
        assert_false(guard_host_matches(NULL, 0, t[i].host));
    }
}

static void test_classify(void **state)
{
    (void)state;
    static const char *const allow[] = { "*.example.com" }, *const ok[] = { "127.0.0.1:8080", "[::1]:9", "build.internal:443" };
    const struct guard_rules all = { .tunnel_domain = "tunnel.example.com", .allow = allow, .n_allow = 1, .private_ok = ok, .n_private_ok = 3 };
    const struct guard_rules none = { .tunnel_domain = NULL };
    static const struct { const char *url; int rc; enum guard_kind kind; const char *domain, *words; } t[] = {
        { "https://mcp.example.com/mcp", RC_OK, GUARD_PUBLIC, NULL, NULL },
        { "https://mcp.example.com:8443/mcp", RC_OK, GUARD_PUBLIC, NULL, NULL },
        { "http://mcp.example.com/mcp", RC_DENIED, 0, NULL, "https://" },
        { "https://mcp.example.org/mcp", RC_DENIED, 0, NULL, "mcp.allow" },
        { "http://127.0.0.1:8080/x", RC_OK, GUARD_PRIVATE, NULL, NULL },
        { "https://127.0.0.1:8080/x", RC_OK, GUARD_PRIVATE, NULL, NULL },
        { "http://127.0.0.1:8081/x", RC_DENIED, 0, NULL, "https://" },
        { "http://[::1]:9/x", RC_OK, GUARD_PRIVATE, NULL, NULL },
        { "https://build.internal/x", RC_OK, GUARD_PRIVATE, NULL, NULL },
        { "https://docs.abc.tunnel.example.com/mcp", RC_OK, GUARD_TUNNEL, "abc.tunnel.example.com", NULL },
        { "https://DOCS.ABC.Tunnel.Example.COM/mcp", RC_OK, GUARD_TUNNEL, "abc.tunnel.example.com", NULL },
        { "https://a.docs.abc.tunnel.example.com/mcp", RC_OK, GUARD_TUNNEL, "docs.abc.tunnel.example.com", NULL },      /* no tunnel has that domain */
        { "https://abc.tunnel.example.com/mcp", RC_DENIED, 0, NULL, "names no route" },
        { "https://tunnel.example.com/mcp", RC_DENIED, 0, NULL, "names no route" },
        { "https://docs.abc.tunnel.example.com:8443/mcp", RC_DENIED, 0, NULL, "443" },
        { "http://docs.abc.tunnel.example.com/mcp", RC_DENIED, 0, NULL, "443" },
        { "https://docs.abc.tunnel.example.com./mcp", RC_INVALID, 0, NULL, "dot" },
        { "https://xtunnel.example.com/mcp", RC_OK, GUARD_PUBLIC, NULL, NULL },
        { "ftp://mcp.example.com/", RC_INVALID, 0, NULL, NULL },
        { "https://user@mcp.example.com/", RC_INVALID, 0, NULL, NULL },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct http_url u;
        struct err e = { 0 };
        enum guard_kind kind = GUARD_PUBLIC;
        const char *domain = NULL;
        int rc = guard_classify(&all, t[i].url, &u, &kind, &domain, &e);
        if (rc != t[i].rc || (rc == RC_OK && kind != t[i].kind) || (t[i].words && !strstr(e.msg, t[i].words)) || (t[i].domain && !str_eq(domain, t[i].domain)))
            fail_msg("%s: %d %d %s %s", t[i].url, rc, kind, domain ? domain : "-", e.msg);
    }
    struct http_url u;
    struct err e = { 0 };
    enum guard_kind kind;
    const char *domain;
    assert_int_equal(guard_classify(&none, "https://mcp.example.com/", &u, &kind, &domain, &e), RC_DENIED);
    assert_non_null(strstr(e.msg, "mcp.allow is empty"));
}

/* ---- fold ---- */
static char seen[4096];

static void on_message(void *ctx, const struct fold_message *m)
{
    (void)ctx;
    AUTO_FREE char *body = m->body ? js_text(m->body) : str_dup("-");
    size_t n = strlen(seen);
    (void)snprintf(seen + n, sizeof seen - n, "%d:%lld:%s:%s;", (int)m->kind, (long long)m->id, m->method ? m->method : "", body);
}

static void on_endpoint(void *ctx, const char *path)
{
    (void)ctx;
    size_t n = strlen(seen);
    (void)snprintf(seen + n, sizeof seen - n, "endpoint:%s;", path);
}

static const struct fold_ops ops = { .on_message = on_message, .on_endpoint = on_endpoint };

static void test_fold(void **state)
{
    (void)state;
    static const struct { bool sse; const char *in; int rc; const char *want, *id; } t[] = {
        { false, "{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":{\"a\":1}}", RC_OK, "0:3::{\"a\":1};", "" },
        { false, "{\"id\":\"3\",\"error\":{\"code\":-1}}", RC_OK, "1:3::{\"code\":-1};", "" },
        { false, "{\"id\":\"server-error\",\"error\":{\"code\":-1}}", RC_OK, "1:-1::{\"code\":-1};", "" },
        { false, "{\"id\":null,\"error\":{\"code\":-1}}", RC_OK, "1:-1::{\"code\":-1};", "" },
        { false, "{\"id\":1,\"error\":\"text\"}", RC_OK, "", "" },
        { false, "[{\"id\":1,\"method\":\"ping\"},{\"method\":\"n\"},{\"id\":2,\"result\":{}},5]", RC_OK, "2:-1:ping:-;3:-1:n:-;0:2::{};", "" },
        { false, "", RC_OK, "", "" },
        { false, "Accepted", RC_PROTO, "", "" },
        { false, "5", RC_PROTO, "", "" },
        { true, "event: message\nid: 7\ndata: {\"id\":1,\"result\":{}}\n\n", RC_OK, "0:1::{};", "7" },
        { true, ": keep\n\ndata: {\"id\":1,\ndata: \"result\":{}}\n\n", RC_OK, "0:1::{};", "" },
        { true, "event: endpoint\ndata: /m?s=1\n\nevent: strange\ndata: x\n\n", RC_OK, "endpoint:/m?s=1;", "" },
        { true, "data: {\n\n", RC_PROTO, "", "" },
        { true, "data: {\"id\":1,\"result\":{}}", RC_OK, "", "" },       /* the frame never ended */
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        for (size_t step = 1; step < 40; step += 13) {
            struct fold f;
            struct err e = { 0 };
            int rc = RC_OK;
            size_t n = strlen(t[i].in);
            seen[0] = '\0';
            fold_init(&f, t[i].sse, &ops, NULL);
            for (size_t at = 0; at < n && rc == RC_OK; at += step)
                rc = fold_feed(&f, t[i].in + at, n - at < step ? n - at : step, &e);
            if (rc == RC_OK)
                rc = fold_end(&f, &e);
            if (rc != t[i].rc || !str_eq(seen, t[i].want) || !str_eq(f.event_id, t[i].id))
                fail_msg("%zu step %zu: %d '%s' id '%s' (%s)", i, step, rc, seen, f.event_id, e.msg);
            fold_done(&f);
        }
    }
}

static void test_fold_limits(void **state)
{
    (void)state;
    static char block[MIB];
    memset(block, ' ', sizeof block);
    for (int sse = 0; sse < 2; sse++) {
        struct fold f;
        struct err e = { 0 };
        int rc = RC_OK;
        fold_init(&f, sse == 1, &ops, NULL);
        if (sse)
            rc = fold_feed(&f, "data: ", 6, &e);
        for (size_t i = 0; i < FOLD_MESSAGE_MAX / sizeof block + 1 && rc == RC_OK; i++)
            rc = fold_feed(&f, block, sizeof block, &e);
        assert_int_equal(rc, RC_TOO_LARGE);
        fold_done(&f);
    }
}

/* ---- content ---- */
static json_t *map(const char *text)
{
    json_t *in = NULL;
    struct err e;
    assert_int_equal(js_parse(text, strlen(text), JS_BODY_MAX, &in, &e), RC_OK);
    json_t *out = content_map(in);
    json_decref(in);
    return out;
}

static void test_content(void **state)
{
    (void)state;
    static const struct { const char *in, *want; } t[] = {
        { "{\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"\"}]}", "[{\"type\":\"text\",\"text\":\"a\"}]" },
        { "{\"content\":[{\"type\":\"image\",\"mimeType\":\"image/PNG\",\"data\":\"aGk=\"}]}",
          "[{\"type\":\"image\",\"source\":{\"type\":\"base64\",\"media_type\":\"image/png\",\"data\":\"aGk=\"}}]" },
        { "{\"content\":[{\"type\":\"image\",\"mimeType\":\"image/tiff\",\"data\":\"aGk=\"}]}",
          "[{\"type\":\"text\",\"text\":\"[an image of type image/tiff, 4 bytes of base64: it cannot be shown here]\"}]" },
        { "{\"content\":[{\"type\":\"image\",\"mimeType\":\"image/png\",\"data\":\"a b\"}]}",
          "[{\"type\":\"text\",\"text\":\"[an image of type image/png, 3 bytes of base64: it cannot be shown here]\"}]" },
        { "{\"content\":[{\"type\":\"resource\",\"resource\":{\"uri\":\"f://x\",\"mimeType\":\"application/pdf\",\"blob\":\"aGk=\"}}]}",
          "[{\"type\":\"document\",\"source\":{\"type\":\"base64\",\"media_type\":\"application/pdf\",\"data\":\"aGk=\"}}]" },
        { "{\"content\":[{\"type\":\"resource\",\"resource\":{\"uri\":\"f://x\",\"text\":\"body\"}}]}",
          "[{\"type\":\"text\",\"text\":\"[resource f://x]\\n\"},{\"type\":\"text\",\"text\":\"body\"}]" },
        { "{\"content\":[{\"type\":\"resource_link\",\"uri\":\"f://x\",\"name\":\"n\"}]}", "[{\"type\":\"text\",\"text\":\"[link to resource f://x: n]\"}]" },
        { "{\"content\":[],\"structuredContent\":{\"a\":1}}", "[{\"type\":\"text\",\"text\":\"{\\\"a\\\":1}\"}]" },
        { "{\"content\":[{\"type\":\"text\",\"text\":\"t\"}],\"structuredContent\":{\"a\":1}}", "[{\"type\":\"text\",\"text\":\"t\"}]" },
        { "{\"content\":[{\"type\":\"hologram\"}]}", "[{\"type\":\"text\",\"text\":\"[content of type hologram: it cannot be shown here]\"}]" },
        { "{\"content\":7}", "[]" }, { "{}", "[]" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        json_t *got = map(t[i].in);
        AUTO_FREE char *text = js_text(got);
        assert_string_equal(text, t[i].want);
        json_decref(got);
    }
}

static void test_content_is_cut_at_characters(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 4 * MIB);
    (void)buf_puts(&b, "{\"content\":[{\"type\":\"text\",\"text\":\"");
    for (size_t i = 0; i < CONTENT_CHARS_MAX - 1; i++)
        (void)buf_puts(&b, "\xc3\xa4");
    (void)buf_puts(&b, "\"},{\"type\":\"text\",\"text\":\"\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\"}]}");
    json_t *got = map(buf_data(&b));
    assert_int_equal(json_array_size(got), 3);
    assert_string_equal(js_str(got, "1.text"), "\xe2\x82\xac");
    assert_non_null(strstr(js_str(got, "2.text"), "2 more were left out"));
    json_decref(got);
    buf_done(&b);
}

/* ---- x-mcp-header ---- */
static void test_params_rules(void **state)
{
    (void)state;
    static const struct { const char *properties, *why; } t[] = {        /* why NULL: fine */
        { "{}", NULL }, { "{\"a\":{\"type\":\"string\"}}", NULL }, { "{\"a\":{\"type\":\"string\",\"x-mcp-header\":\"Region\"},\"b\":{\"type\":\"integer\",\"x-mcp-header\":\"N\"}}", NULL },
        { "{\"a\":{\"type\":\"object\",\"properties\":{\"b\":{\"type\":\"boolean\",\"x-mcp-header\":\"Deep\"}}}}", NULL },
        { "{\"x-mcp-header\":{\"type\":\"string\"}}", NULL },                                             /* the name of an argument */
        { "{\"a\":{\"type\":\"object\",\"default\":{\"x-mcp-header\":\"no mark\"}}}", NULL },            /* data */
        { "{\"a\":{\"type\":\"string\",\"x-mcp-header\":\"\"}}", "name" }, { "{\"a\":{\"type\":\"string\",\"x-mcp-header\":\"My Region\"}}", "name" },
        { "{\"a\":{\"type\":\"string\",\"x-mcp-header\":\"a:b\"}}", "name" }, { "{\"a\":{\"type\":\"string\",\"x-mcp-header\":\"R\\u00e9gion\"}}", "name" },
        { "{\"a\":{\"type\":\"string\",\"x-mcp-header\":\"a\\r\\nb\"}}", "name" }, { "{\"a\":{\"type\":\"string\",\"x-mcp-header\":7}}", "name" },
        { "{\"a\":{\"type\":\"object\",\"x-mcp-header\":\"A\"}}", "no text" }, { "{\"a\":{\"type\":\"number\",\"x-mcp-header\":\"A\"}}", "no text" },
        { "{\"a\":{\"type\":[\"string\",\"null\"],\"x-mcp-header\":\"A\"}}", "no text" }, { "{\"a\":{\"x-mcp-header\":\"A\"}}", "no text" },
        { "{\"a\":{\"type\":\"string\",\"x-mcp-header\":\"Same\"},\"b\":{\"type\":\"string\",\"x-mcp-header\":\"sAME\"}}", "twice" },
        { "{\"a\":{\"type\":\"array\",\"items\":{\"type\":\"string\",\"x-mcp-header\":\"A\"}}}", "place" },
        { "{\"a\":{\"anyOf\":[{\"type\":\"string\",\"x-mcp-header\":\"A\"}]}}", "place" },
        { "{\"a\":{\"properties\":{\"b\":{\"items\":{\"properties\":{\"c\":{\"type\":\"string\",\"x-mcp-header\":\"A\"}}}}}}}", "place" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct err e = { 0 };
        AUTO_FREE char *text = str_printf("{\"type\":\"object\",\"properties\":%s}", t[i].properties);
        AUTO_JS schema = json_loads(text, 0, NULL);
        assert_non_null(schema);
        int rc = params_check(schema, &e);
        if (rc != (t[i].why ? RC_INVALID : RC_OK) || (t[i].why && !strstr(e.msg, t[i].why)))
            fail_msg("%s: %d '%s'", t[i].properties, rc, e.msg);
    }
    struct err e = { 0 };
    AUTO_JS top = json_loads("{\"type\":\"string\",\"x-mcp-header\":\"A\"}", 0, NULL);
    assert_int_equal(params_check(top, &e), RC_INVALID);
    assert_int_equal(params_check(NULL, &e), RC_OK);
    AUTO_JS many = json_object();                                        /* as many as there may be, and one more */
    json_t *props = json_object();
    json_object_set_new(many, "properties", props);
    for (int i = 0; i <= PARAMS_MAX; i++) {
        char name[16];
        (void)snprintf(name, sizeof name, "p%d", i);
        assert_int_equal(params_check(many, &e), RC_OK);
        json_object_set_new(props, name, json_pack("{s:s,s:s}", "type", "string", "x-mcp-header", name));
    }
    assert_int_equal(params_check(many, &e), RC_INVALID);
}

static void test_params_values(void **state)
{
    (void)state;
    static const struct { const char *value, *line; } t[] = {
        { "\"us west\"", "mcp-param-A: us west" }, { "\"\"", "mcp-param-A: " }, { "\" x\"", "mcp-param-A: =?base64?IHg=?=" }, { "\"\\u00e9\"", "mcp-param-A: =?base64?w6k=?=" },
        { "\"a\\r\\nb\"", "mcp-param-A: =?base64?YQ0KYg==?=" }, { "\"=?base64?x\"", "mcp-param-A: =?base64?PT9iYXNlNjQ/eA==?=" }, { "true", "mcp-param-A: true" },
        { "-7", "mcp-param-A: -7" }, { "42.0", "mcp-param-A: 42" }, { "42.5", NULL }, { "null", NULL }, { "[]", NULL },
    };
    AUTO_JS schema = json_loads("{\"properties\":{\"a\":{\"type\":\"string\",\"x-mcp-header\":\"A\"},\"o\":{\"type\":\"object\",\"properties\":{\"b\":{\"x-mcp-header\":\"B\"}}}}}", 0, NULL);
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct params p = { .n = 0 };
        AUTO_FREE char *text = str_printf("{\"a\":%s,\"o\":{\"b\":\"in\"}}", t[i].value);
        AUTO_JS arguments = json_loads(text, 0, NULL);
        params_make(&p, schema, arguments);
        assert_int_equal(p.n, t[i].line ? 2 : 1);
        if (t[i].line)
            assert_string_equal(p.lines[0], t[i].line);
        assert_string_equal(p.lines[p.n - 1], "mcp-param-B: in");
        params_done(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_addresses), cmocka_unit_test(test_hosts), cmocka_unit_test(test_classify), cmocka_unit_test(test_fold),
        cmocka_unit_test(test_fold_limits), cmocka_unit_test(test_content), cmocka_unit_test(test_content_is_cut_at_characters),
        cmocka_unit_test(test_params_rules), cmocka_unit_test(test_params_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
