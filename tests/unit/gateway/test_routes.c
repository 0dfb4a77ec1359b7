#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "gateway/reload.h"

#define FRAME "tunnel_domain: D1.tunnel.example\ntls: {cert_file: c, key_file: k}\n"

static struct ev *ev;

static int load(const char *text, struct setup *s, struct err *e)
{
    return setup_text(ev, text, strlen(text), true, s, e);
}

static void hosted_file(void **st)
{
    (void)st;
    struct setup s;
    struct err e = { 0 };
    static const char text[] = "listen_addr: \":8080\"\nlog_level: warn\nshutdown_timeout: 30s\ntunnel_domain: abc123.tunnel.anthropic.com\n"
                               "tls:\n  cert_file: /data/tls.crt\n  key_file: /data/tls.key\nroutes:\n  docs: http://docs.internal:8080\n  \"wiki\": \"https://10.0.0.2:443\"\n"
                               "  full.host.example: http://[fd00::2]:90\nupstream:\n  allowed_ips:\n    - 10.0.0.0/8\n    - 172.20.1.1\n  disable_ip_validation: false\n"
                               "  tls:\n    include_system_cas: true\n";
    if (load(text, &s, &e) < 0)
        fail_msg("%s", e.msg);
    assert_int_equal(s.set.shutdown_ms, 30000);
    assert_string_equal(s.set.listen_addr, ":8080");
    assert_int_equal(s.set.allowed_ips.n, 2);
    assert_int_equal(route_table_count(s.routes), 3);
    static const struct { const char *host, *route; bool ours; } rows[] = {
        { "docs.abc123.tunnel.anthropic.com", "docs", true }, { "wiki.abc123.tunnel.anthropic.com", "wiki", true }, { "full.host.example", "full.host.example", true },
        { "nope.abc123.tunnel.anthropic.com", NULL, true }, { "abc123.tunnel.anthropic.com", NULL, false }, { "docs", "docs", false }, { "docs.elsewhere.example", NULL, false },
        { "docs.xabc123.tunnel.anthropic.com", NULL, false }, { ".abc123.tunnel.anthropic.com", NULL, false }, { "a.docs.abc123.tunnel.anthropic.com", NULL, true },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct route *r = route_table_find(s.routes, rows[i].host);
        assert_int_equal(route_table_ours(s.routes, rows[i].host), rows[i].ours);
        if (rows[i].route)
            assert_string_equal(r->name, rows[i].route);
        else
            assert_null(r);
    }
    setup_done(&s);
}

static void extension(void **st)
{
    (void)st;
    struct setup s;
    struct err e = { 0 };
    static const char text[] = FRAME "routes:\n  a:\n    upstreams: [http://10.0.0.1:80, unix:/run/x.sock]\n    host: upstream\n    tools: {allow: [x, \"y*\"], deny: z}\n"
                                     "    headers: {add: {X-A: \"1\"}, remove: [X-B, X-C]}\n  a.b: http://10.0.0.1:1\n  p:\n    stdio: {command: /bin/cat, args: [-u], env: {A: b}, cwd: /}\n"
                                     "  q: {stdio: \"/bin/sh -c 'exec cat'\"}\n";
    if (load(text, &s, &e) < 0)
        fail_msg("%s", e.msg);
    const struct route *a = route_table_find(s.routes, "a.d1.tunnel.example");
    assert_non_null(a);
    assert_non_null(a->policy);
    assert_int_equal(a->headers.n_add, 1);
    assert_int_equal(a->headers.n_remove, 2);
    assert_string_equal(a->leads_to, "http://10.0.0.1:80, unix:/run/x.sock");
    assert_string_equal(route_table_find(s.routes, "a.b.d1.tunnel.example")->name, "a.b");
    assert_string_equal(route_table_find(s.routes, "p.d1.tunnel.example")->ops->name, "stdio");
    assert_string_equal(route_table_find(s.routes, "q.d1.tunnel.example")->ops->name, "stdio");
    setup_done(&s);
}

static void errors(void **st)
{
    (void)st;
    static const struct { const char *routes, *words; } rows[] = {
        { "routes: []\n", "settings:3: routes: cannot unmarshal !!seq into map[string]string" }, { "routes: {}\n", "at least one" }, { "routes: x\n", "at least one" }, { "", "routes: none" },
        { "routes:\n  a: http://h\n", "settings:4: routes.a: invalid upstream (must be scheme://host:port): 'http://h' has no port" },
        { "routes:\n  a: http://h:80/\n", "has a path" }, { "routes:\n  a: http://h:80/x\n", "invalid upstream (must be scheme://host:port)" },
        { "routes:\n  a: ftp://h:80\n", "neither http nor https" }, { "routes:\n  a: h:80\n", "neither http nor https" }, { "routes:\n  a: http://h:0\n", "invalid upstream" },
        { "routes:\n  a: http://h:99999\n", "invalid upstream" }, { "routes:\n  a: http://u:p@h:1\n", "invalid upstream" }, { "routes:\n  a: http://[::1]\n", "has no port" },
        { "routes:\n  a: unix:x\n", "no absolute path" }, { "routes:\n  a: https://h:1\n", "nothing says whom to trust" }, { "routes:\n  a: ~\n", "invalid upstream" },
        { "routes:\n  a: [http://h:1]\n", "invalid upstream" }, { "routes:\n  a: http://h:1\n  A: http://h:1\n", "'a' is there twice" }, { "routes:\n  \"*\": http://h:1\n", "no wildcards" },
        { "routes:\n  a..b: http://h:1\n", "no host name" }, { "routes:\n  -: {}\n", "exactly one of" }, { "routes:\n  a: {upstream: http://h:1, upstreams: [http://h:1]}\n", "exactly one of" },
        { "routes:\n  a: {upstreams: []}\n", "at least one" }, { "routes:\n  a: {upstream: http://h:1, host: other}\n", "'upstream' is expected" },
        { "routes:\n  a: {upstream: http://h:1, tools: {}}\n", "allow or deny" }, { "routes:\n  a: {upstream: http://h:1, tools: {allow: []}}\n", "would allow everything" },
        { "routes:\n  a: {upstream: http://h:1, tools: {alow: x}}\n", "tools: unknown setting 'alow'" }, { "routes:\n  a: {upstream: http://h:1, headers: {add: {Host: x}}}\n", "decided by the gateway" },
        { "routes:\n  a: {upstream: http://h:1, headers: {add: {\"X Y\": x}}}\n", "no name of a header" }, { "routes:\n  a: {upstream: http://h:1, headers: {add: {X: \"a\\nb\"}}}\n", "control character" },
        { "routes:\n  a: {upstream: http://h:1, headers: {add: {X: {file: /nonexistent}}}}\n", "/nonexistent" }, { "routes:\n  a: {stdio: {args: [x]}}\n", "command is expected" },
        { "routes:\n  a: {stdio: /nonexistent/x}\n", "/nonexistent/x" }, { "routes:\n  a: {stdio: /bin/cat, host: upstream}\n", "has no upstream, host or headers" },
        { "routes:\n  a: http://h:1\nupstream: {allowed_ips: [x]}\n", "'x' is neither an address nor a range" },
        { "routes:\n  a: http://h:1\nupstream: {allowed_ips: [10.0.0.1], disable_ip_validation: true}\n", "exclude each other" },
        { "routes:\n  a: http://h:1\nroute: {}\n", "unknown setting 'route' (did you mean" },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct setup s;
        struct err e = { 0 };
        char text[1024];
        (void)snprintf(text, sizeof text, FRAME "%s", rows[i].routes);
        if (load(text, &s, &e) >= 0)
            fail_msg("row %zu was taken", i);
        if (!strstr(e.msg, rows[i].words))
            fail_msg("row %zu: %s", i, e.msg);
    }
    struct setup s;
    struct err e = { 0 };
    assert_true(load("tls: {cert_file: c, key_file: k}\nroutes: {a: \"http://h:1\"}\n", &s, &e) < 0);
    assert_non_null(strstr(e.msg, "bare sub-domain"));
    assert_true(load("tunnel_domain: x\nroutes: {a: \"http://h:1\"}\n", &s, &e) < 0);
    assert_non_null(strstr(e.msg, "tls.cert_file"));
}

static void unchanged_routes_stay(void **st)
{
    (void)st;
    struct setup a, b;
    struct err e = { 0 };
    struct route_table *t = NULL;
    struct env *env = NULL;
    assert_int_equal(load(FRAME "routes:\n  x: http://10.0.0.1:1\n  y: {upstream: http://10.0.0.1:2, tools: {deny: a}}\n  z: http://10.0.0.1:3\n", &a, &e), RC_OK);
    assert_int_equal(load(FRAME "routes:\n  y: {upstream: http://10.0.0.1:2, tools: {deny: a}}\n  x: http://10.0.0.1:9\n", &b, &e), RC_OK);
    assert_int_equal(env_new(ev, &b.set, a.env, &env, &e), RC_OK);
    assert_ptr_equal(env, a.env);
    assert_int_equal(route_table_new(env, &b.set, a.routes, &t, &e), RC_OK);
    assert_ptr_equal(route_table_find(t, "y.d1.tunnel.example"), route_table_find(a.routes, "y.d1.tunnel.example"));
    assert_ptr_not_equal(route_table_find(t, "x.d1.tunnel.example"), route_table_find(a.routes, "x.d1.tunnel.example"));
    struct route *held = route_ref(route_table_find(a.routes, "z.d1.tunnel.example"));
    env_unref(env);
    route_table_free(t);
    setup_done(&a);
    setup_done(&b);
    assert_string_equal(held->leads_to, "http://10.0.0.1:3");      /* as long as an exchange goes through it */
    route_unref(held);
}

static int setup(void **st)
{
    (void)st;
    struct err e;
    return ev_new(&ev, &e);
}

static int teardown(void **st)
{
    (void)st;
    ev_free(ev);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(hosted_file), cmocka_unit_test(extension), cmocka_unit_test(errors), cmocka_unit_test(unchanged_routes_stay) };
    return cmocka_run_group_tests(tests, setup, teardown);
}
