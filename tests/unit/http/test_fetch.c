/* fetch: what a call is, what becomes of it, and the ways in which it fails. */
#include "http/fetch_rig.h"

static void buffered(void **st)
{
    (void)st;
    struct got g;
    get(&g, (struct fetch_request){ .method = "GET", .url = url("/ok") });
    assert_int_equal(g.rc, RC_OK);
    assert_int_equal(g.status, 200);
    assert_string_equal(g.body, "hello");
    assert_string_equal(g.id, "req_1");
    assert_true(g.retry == -1);
    got_done(&g);
    get(&g, (struct fetch_request){ .method = "HEAD", .url = url("/ok") });
    assert_int_equal(g.status, 200);
    assert_string_equal(g.body, "");
    got_done(&g);
    get(&g, (struct fetch_request){ .method = "DELETE", .url = url("/none") });
    assert_int_equal(g.rc, RC_OK);
    assert_int_equal(g.status, 404);
    assert_string_equal(g.id, "-");
    got_done(&g);
    get(&g, (struct fetch_request){ .method = "GET", .url = url("/redirect") });
    assert_int_equal(g.status, 302);
    assert_string_equal(g.body, "moved");
    got_done(&g);
    get(&g, (struct fetch_request){ .method = "GET", .url = url("/interim"), .first_byte_ms = 5000, .stall_ms = 5000 });
    assert_int_equal(g.status, 200);
    assert_string_equal(g.body, "late");
    assert_string_equal(g.id, "-");
    got_done(&g);
}

static void request_form(void **st)
{
    (void)st;
    struct got g;
    const char *h[] = { "content-type: application/json", "anthropic-version: 2023-06-01" };
    AUTO_PTR(secret) key = secret_new("sk-1", 4);
    get(&g, (struct fetch_request){ .method = "POST", .url = url("/echo"), .headers = h, .n_headers = 2, .secret_header = "authorization",
                                    .secret_prefix = "Bearer ", .secret = key, .body = "{\"a\":1}", .body_n = 7 });
    static const char *const want[] = { "POST /echo HTTP/1.1\r\n", "\r\ncontent-type: application/json\r\n", "\r\nanthropic-version: 2023-06-01\r\n", "\r\nauthorization: Bearer sk-1\r\n",
                                        "\r\nUser-Agent: test/1\r\n", "\r\nContent-Length: 7\r\n", "\r\n\r\n{\"a\":1}" };
    for (size_t i = 0; i < COUNT_OF(want); i++)
        if (!strstr(g.body, want[i]))
            fail_msg("no <%s> in <%s>", want[i], g.body);
    assert_null(strcasestr(g.body, "expect:"));
    got_done(&g);
    get(&g, (struct fetch_request){ .method = "POST", .url = url("/echo"), .secret_header = "x-api-key", .secret = key });
    assert_non_null(strstr(g.body, "\r\nx-api-key: sk-1\r\n"));
    assert_non_null(strstr(g.body, "Content-Length: 0\r\n"));
    assert_null(strcasestr(g.body, "content-type"));
    got_done(&g);
    const char *empty[] = { "x-empty:", "x-blank: " };
    get(&g, (struct fetch_request){ .url = url("/echo"), .headers = empty, .n_headers = 2 });
    assert_non_null(strstr(g.body, "\r\nx-empty:\r\n"));
    assert_non_null(strstr(g.body, "\r\nx-blank:\r\n"));
    got_done(&g);
    get(&g, (struct fetch_request){ .method = "PUT", .url = url("/echo"), .body = "x", .body_n = 1 });
    assert_true(str_prefix(g.body, "PUT /echo HTTP/1.1\r\n") && str_suffix(g.body, "\r\n\r\nx"));
    got_done(&g);
    AUTO_FREE char *big = xcalloc(1, 8 * MIB);
    get(&g, (struct fetch_request){ .method = "POST", .url = url("/ok"), .body = big, .body_n = 8 * MIB });
    assert_int_equal(g.rc, RC_OK);
    assert_int_equal(atomic_load(&uploaded), 8 * MIB);
    got_done(&g);
}

static void refused_requests(void **st)
{
    (void)st;
    static const struct { const char *method, *url, *header; } row[] = {
        { "GET", "ftp://127.0.0.1/x", NULL }, { "GET", "file:///etc/passwd", NULL }, { "GET", "", NULL }, { "GET", NULL, NULL }, { "GET", "http://", NULL },
        { "GET", "http://127.0.0.1/\r\nx: y", NULL }, { "GET /x", "http://127.0.0.1/", NULL }, { "GET\r\n", "http://127.0.0.1/", NULL },
        { "GET", "http://127.0.0.1/", "a: b\r\nc: d" }, { "GET", "http://127.0.0.1/", "a: b\n" }, { "GET", "http://127.0.0.1:99999/", NULL },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct got g;
        get(&g, (struct fetch_request){ .method = row[i].method, .url = row[i].url, .headers = &row[i].header, .n_headers = row[i].header != NULL });
        if (g.rc != RC_INVALID || g.status != 0 || !g.msg[0])
            fail_msg("row %zu: rc %d %s", i, g.rc, g.msg);
        got_done(&g);
    }
    struct got g;
    AUTO_PTR(secret) bad = secret_new("sk\r\nx: y", 8);
    get(&g, (struct fetch_request){ .method = "GET", .url = url("/ok"), .secret_header = "x-api-key", .secret = bad });
    assert_int_equal(g.rc, RC_INVALID);
    assert_null(strstr(g.msg, "sk"));
    got_done(&g);
    get(&g, (struct fetch_request){ .method = "GET", .url = "http://user:pw@127.0.0.1/" });
    assert_true(g.rc < 0);
    got_done(&g);
}

static void retry_after(void **st)
{
    (void)st;
    static const struct { const char *path; int64_t ms; } row[] = {
        { "/retry/2", 2000 }, { "/retry/0", 0 }, { "/retry/1.9", 1000 }, { "/retry/-5", -1 }, { "/retry/soon", -1 }, { "/retry/", -1 }, { "/retry/86400", 86400000 },
        { "/retry/86401", 86400000 }, { "/retry/99999999999999999999", -1 }, { "/retry/Sun,_06_Nov_1994_08:49:37_GMT", 0 }, { "/retry/Fri,_01_Jan_2100_00:00:00_GMT", 86400000 }, { "/retry-ms", 1500 },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct got g;
        get(&g, (struct fetch_request){ .method = "GET", .url = url(row[i].path), .on_data = on_data });
        if (g.rc != RC_OK || g.retry != row[i].ms)
            fail_msg("%s: rc %d, %lld ms", row[i].path, g.rc, (long long)g.retry);
        assert_int_equal(g.pieces, 0);
        assert_string_equal(g.id, i + 1 < COUNT_OF(row) ? "x1" : "rq");
        if (i == 0)
            assert_string_equal(g.body, "{\"slow\":1}");
        got_done(&g);
    }
    time_t soon = time(NULL) + 30;
    struct tm tm;
    char path[100];
    (void)strftime(path, sizeof path, "/retry/%a,_%d_%b_%Y_%H:%M:%S_GMT", gmtime_r(&soon, &tm));
    struct got g;
    get(&g, (struct fetch_request){ .method = "GET", .url = url(path) });
    assert_true(g.retry > 27000 && g.retry <= 30000);
    got_done(&g);
}

static void streaming(void **st)
{
    (void)st;
    struct got g;
    get(&g, (struct fetch_request){ .method = "GET", .url = url("/stream"), .on_data = on_data });
    assert_int_equal(g.rc, RC_OK);
    assert_string_equal(buf_data(&g.data), "part0part1part2part3part4");
    assert_true(g.pieces >= 3);     /* as they come */
    assert_int_equal(g.data_status, 200);
    assert_true(g.retry == -1);     /* what a trailer says does not count */
    assert_string_equal(g.body, "");
    got_done(&g);
    get(&g, (struct fetch_request){ .method = "GET", .url = url("/stream-error"), .on_data = on_data });
    assert_int_equal(g.rc, RC_OK);
    assert_int_equal(g.status, 529);
    assert_int_equal(g.pieces, 0);
    assert_string_equal(g.body, "part0part1part2part3part4");
    got_done(&g);
    get(&g, (struct fetch_request){ .method = "GET", .url = url("/big"), .on_data = on_data });
    assert_int_equal(g.rc, RC_OK);
    assert_int_equal(g.streamed, 320 * 65536);
    got_done(&g);
    got_init(&g);
    g.piece_rc = RC_PROTO;
    start(&g, (struct fetch_request){ .method = "GET", .url = url("/stream"), .on_data = on_data });
    wait_done(&g);
    assert_int_equal(g.rc, RC_PROTO);
    assert_int_equal(g.pieces, 1);
    assert_non_null(strstr(g.msg, "receiver"));
    got_done(&g);
    get(&g, (struct fetch_request){ .method = "GET", .url = url("/ok"), .on_data = on_data });
    assert_string_equal(buf_data(&g.data), "hello");
    got_done(&g);
}

static void body_limit(void **st)
{
    (void)st;
    struct got g;
    get(&g, (struct fetch_request){ .method = "GET", .url = url("/ok"), .body_max = 5 });
    assert_int_equal(g.rc, RC_OK);
    got_done(&g);
    get(&g, (struct fetch_request){ .method = "GET", .url = url("/ok"), .body_max = 4 });
    assert_int_equal(g.rc, RC_TOO_LARGE);
    assert_int_equal(g.status, 200);
    assert_string_equal(g.msg, "the answer is larger than 4 bytes");
    got_done(&g);
    get(&g, (struct fetch_request){ .method = "GET", .url = url("/stream-error"), .on_data = on_data, .body_max = 24 });
    assert_int_equal(g.rc, RC_TOO_LARGE);
    got_done(&g);
}

static void failures(void **st)
{
    (void)st;
    struct got g;
    get(&g, (struct fetch_request){ .method = "GET", .url = "http://127.0.0.1:1/" });
    assert_int_equal(g.rc, RC_IO);
    assert_int_equal(g.status, 0);
    assert_true(g.msg[0] && g.retry == -1);
    got_done(&g);
    static const struct { const char *path; int rc, status; } row[] = { { "/short", RC_CLOSED, 200 }, { "/nothing", RC_CLOSED, 0 }, { "/garbage", RC_PROTO, 0 } };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        get(&g, (struct fetch_request){ .method = "GET", .url = url(row[i].path), .on_data = on_data });
        assert_int_equal(g.rc, row[i].rc);
        assert_int_equal(g.status, row[i].status);
        got_done(&g);
    }
    get(&g, (struct fetch_request){ .method = "GET", .url = "http://no-such-host.invalid/", .connect_ms = 10000 });
    assert_true(g.rc == RC_IO || g.rc == RC_TIMEOUT);
    got_done(&g);
}

static void time_limits(void **st)
{
    (void)st;
    AUTO_FREE char *tls = str_printf("https://127.0.0.1:%d/silent", port);
    struct fetch_request row[] = {
        { .url = tls, .connect_ms = 150, .total_ms = 9000 },                            /* accepted, but no TLS answer */
        { .url = url("/silent"), .first_byte_ms = 150, .connect_ms = 9000, .stall_ms = 50 }, { .url = url("/silent"), .total_ms = 150 },
        { .url = url("/stall"), .stall_ms = 150, .first_byte_ms = 9000 }, { .url = url("/drip"), .total_ms = 150, .stall_ms = 9000 },
    };
    static const char *const want[] = { "connection", "no answer in time", "the whole call", "the answer stalled", "the whole call" };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct got g;
        row[i].method = "GET";
        row[i].on_data = on_data;
        get(&g, row[i]);
        if (g.rc != RC_TIMEOUT || g.ms < 149 || g.ms > 1500 || !strcasestr(g.msg, want[i]))
            fail_msg("row %zu: rc %d after %lld ms: %s", i, g.rc, (long long)g.ms, g.msg);
        assert_int_equal(g.status, i < 3 ? 0 : 200);
        got_done(&g);
    }
    struct got g;       /* steady drops keep a stream alive */
    get(&g, (struct fetch_request){ .method = "GET", .url = url("/stream"), .stall_ms = 2000, .first_byte_ms = 2000, .connect_ms = 2000, .total_ms = 5000 });
    assert_int_equal(g.rc, RC_OK);
    got_done(&g);
}

static void cancelling(void **st)
{
    (void)st;
    struct got a, b, c;
    fetch_cancel(NULL);
    got_init(&a);       /* at once */
    start(&a, (struct fetch_request){ .method = "GET", .url = url("/ok") });
    fetch_cancel(a.call);
    got_init(&b);       /* one that failed before it began */
    start(&b, (struct fetch_request){ .method = "GET", .url = "bad" });
    fetch_cancel(b.call);
    turn(50);
    assert_int_equal(a.done + b.done, 0);
    got_done(&a);
    got_done(&b);
    got_init(&a);       /* itself, in on_data */
    a.cancel_self = true;
    start(&a, (struct fetch_request){ .method = "GET", .url = url("/stream"), .on_data = on_data });
    turn(150);
    assert_int_equal(a.pieces, 1);
    assert_int_equal(a.done, 0);
    got_done(&a);
    got_init(&a);       /* itself, in on_data, with an error besides */
    a.cancel_self = true;
    a.piece_rc = RC_PROTO;
    start(&a, (struct fetch_request){ .method = "GET", .url = url("/ok"), .on_data = on_data });
    turn(100);
    assert_int_equal(a.done, 0);
    got_done(&a);
    got_init(&a);       /* itself, in on_done: nothing left */
    a.cancel_self = true;
    start(&a, (struct fetch_request){ .method = "GET", .url = url("/ok") });
    wait_done(&a);
    got_done(&a);
    got_init(&a);       /* another one in on_data, yet another in on_done */
    got_init(&b);
    got_init(&c);
    start(&b, (struct fetch_request){ .method = "GET", .url = url("/drip"), .on_data = on_data });
    start(&c, (struct fetch_request){ .method = "GET", .url = url("/silent") });
    a.cancel_other = true;
    a.other = b.call;
    start(&a, (struct fetch_request){ .method = "GET", .url = url("/stream"), .on_data = on_data });
    while (a.pieces == 0)
        ev_run_once(ev, 50);
    a.other = c.call;
    int pieces = b.pieces;
    wait_done(&a);
    turn(50);
    assert_int_equal(b.done + c.done, 0);
    assert_int_equal(b.pieces, pieces);
    got_done(&a);
    got_done(&b);
    got_done(&c);
}

static int chain_left;
static struct got chain_got;
static void chain_done(void *ctx, int rc, int status, int64_t retry, const char *id, const struct buf *body, const struct err *e)
{
    struct got *g = ctx;
    assert_int_equal(rc, RC_OK);
    (void)status, (void)retry, (void)id, (void)body, (void)e;
    if (--chain_left == 0) {
        g->done = 1;
        return;
    }
    (void)fetch_start(fetch, &(struct fetch_request){ .method = "GET", .url = url("/ok"), .on_done = chain_done, .ctx = g });
}

static void connections_are_kept(void **st)
{
    (void)st;
    int before = atomic_load(&n_conns);
    got_init(&chain_got);
    chain_left = 20;
    (void)fetch_start(fetch, &(struct fetch_request){ .method = "GET", .url = url("/ok"), .on_done = chain_done, .ctx = &chain_got });
    wait_done(&chain_got);
    got_done(&chain_got);
    assert_true(atomic_load(&n_conns) - before <= 1);
    for (int i = 0; i < 5; i++) {       /* the server closes a kept connection: the request goes out again on a new one */
        struct got g;
        get(&g, (struct fetch_request){ .method = "GET", .url = url("/once") });
        assert_int_equal(g.rc, RC_OK);
        assert_string_equal(g.body, "once");
        got_done(&g);
        turn(10);
    }
}

static void many_at_once(void **st)
{
    (void)st;
    enum { N = 60 };
    static struct got g[N];
    for (int i = 0; i < N; i++) {
        got_init(&g[i]);
        start(&g[i], (struct fetch_request){ .method = "GET", .url = url(i % 3 ? "/stream" : "/ok"), .on_data = on_data, .total_ms = 15000 });
    }
    for (int i = 0; i < N; i++) {
        wait_done(&g[i]);
        assert_int_equal(g[i].rc, RC_OK);
        assert_int_equal(g[i].streamed, i % 3 ? 25 : 5);
        got_done(&g[i]);
    }
    for (int fd = 3; fd < 200; fd++) {      /* no child inherits a connection */
        struct sockaddr_storage a;
        socklen_t n = sizeof a;
        if (getpeername(fd, (struct sockaddr *)&a, &n) == 0 && a.ss_family == AF_INET)
            assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    }
}

static void proxies(void **st)
{
    (void)st;
    struct fetch *keep = fetch;
    struct err e;
    AUTO_FREE char *proxy = str_printf("http://127.0.0.1:%d", port);
    assert_int_equal(fetch_new(ev, &(struct fetch_conf){ .proxy = proxy, .conns_max = 1 }, &fetch, &e), RC_OK);
    struct got g, h;
    got_init(&g);
    got_init(&h);
    start(&g, (struct fetch_request){ .method = "GET", .url = "http://model.invalid/x?y" });
    start(&h, (struct fetch_request){ .method = "GET", .url = "http://model.invalid/x?y" });    /* waits for the one connection */
    wait_done(&g);
    wait_done(&h);
    assert_int_equal(g.rc, RC_OK);
    assert_int_equal(g.status, 404);        /* the test's server answers as the proxy: it saw the absolute form */
    assert_int_equal(h.status, 404);
    got_done(&g);
    got_done(&h);
    fetch_free(fetch);
    setenv("http_proxy", "http://127.0.0.1:1", 1);      /* "" means none, whatever the environment says */
    assert_int_equal(fetch_new(ev, &(struct fetch_conf){ .proxy = "" }, &fetch, &e), RC_OK);
    get(&g, (struct fetch_request){ .method = "GET", .url = url("/ok") });
    assert_int_equal(g.rc, RC_OK);
    got_done(&g);
    fetch_free(fetch);
    unsetenv("http_proxy");
    fetch = keep;
}

static void freed_while_running(void **st)
{
    (void)st;
    struct fetch *keep = fetch;
    struct err e;
    assert_int_equal(fetch_new(ev, &(struct fetch_conf){ 0 }, &fetch, &e), RC_OK);
    struct got g[3];
    static const char *const path[] = { "/drip", "/silent", "/stall" };
    for (int i = 0; i < 3; i++) {
        got_init(&g[i]);
        start(&g[i], (struct fetch_request){ .method = "GET", .url = url(path[i]), .on_data = on_data, .total_ms = 5000 });
    }
    turn(30);
    fetch_free(fetch);
    fetch = keep;
    turn(30);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(g[i].done, 0);
        got_done(&g[i]);
    }
    fetch_free(NULL);
}

/* ---- TLS against python's server ---- */

static char dir[64];

static bool make_certificate(void)
{
    char cmd[600];
    (void)snprintf(cmd, sizeof cmd, "cd %s && exec openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out ca.pem -days 2 "
                   "-subj /CN=test -addext subjectAltName=IP:127.0.0.1 >/dev/null 2>&1", dir);
    pid_t pid = fork();
    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", cmd, (char *)NULL);
        _exit(9);
    }
    int status = -1;
    return waitpid(pid, &status, 0) == pid && status == 0;
}

static pid_t tls_server(int *ret_port)
{
    static const char script[] =
        "import http.server,ssl,sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(s):\n"
        "        s.send_response(200); s.send_header('content-length','3'); s.end_headers(); s.wfile.write(b'tls')\n"
        "    def log_message(s,*a): pass\n"
        "class S(http.server.ThreadingHTTPServer):\n"
        "    def handle_error(s,*a): pass\n"
        "c=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); c.load_cert_chain('ca.pem','key.pem')\n"
        "s=S(('127.0.0.1',0),H); s.socket=c.wrap_socket(s.socket,server_side=True)\n"
        "print(s.server_address[1],flush=True); s.serve_forever()\n";
    int p[2];
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(p[1], STDOUT_FILENO);
        if (chdir(dir) == 0)
            execlp("python3", "python3", "-c", script, (char *)NULL);
        _exit(9);
    }
    close(p[1]);
    char text[16] = "";
    for (size_t n = 0; n < sizeof text - 1 && !strchr(text, '\n') && read(p[0], text + n, 1) == 1; n++) {
    }
    close(p[0]);
    *ret_port = (int)strtol(text, NULL, 10);
    return pid;
}

static void own_authority(void **st)
{
    (void)st;
    struct fetch *keep = fetch;
    struct err e;
    int tls_port = 0;
    (void)snprintf(dir, sizeof dir, "/tmp/ow-fetch-XXXXXX");
    assert_non_null(mkdtemp(dir));
    assert_true(make_certificate());
    pid_t pid = tls_server(&tls_port);
    assert_true(tls_port > 0);
    AUTO_FREE char *good = str_printf("https://127.0.0.1:%d/", tls_port), *wrong_name = str_printf("https://localhost:%d/", tls_port);
    AUTO_FREE char *ca = str_printf("%s/ca.pem", dir), *missing = str_printf("%s/none.pem", dir);
    struct { const char *ca, *url; int rc; } row[] = { { ca, good, RC_OK }, { NULL, good, RC_PROTO }, { ca, wrong_name, RC_PROTO } };
    assert_int_equal(fetch_new(ev, &(struct fetch_conf){ .ca_file = missing }, &fetch, &e), RC_INVALID);
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        assert_int_equal(fetch_new(ev, &(struct fetch_conf){ .ca_file = row[i].ca, .proxy = "" }, &fetch, &e), RC_OK);
        struct got g;
        get(&g, (struct fetch_request){ .method = "GET", .url = row[i].url });
        if (g.rc != row[i].rc)
            fail_msg("row %zu: rc %d: %s", i, g.rc, g.msg);
        if (g.rc == RC_OK)
            assert_string_equal(g.body, "tls");
        got_done(&g);
        fetch_free(fetch);
    }
    fetch = keep;
    kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
    assert_int_equal(fd_remove_tree(AT_FDCWD, dir, &e), RC_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(buffered), cmocka_unit_test(request_form), cmocka_unit_test(refused_requests), cmocka_unit_test(retry_after), cmocka_unit_test(streaming),
        cmocka_unit_test(body_limit), cmocka_unit_test(failures), cmocka_unit_test(time_limits), cmocka_unit_test(cancelling), cmocka_unit_test(connections_are_kept),
        cmocka_unit_test(many_at_once), cmocka_unit_test(proxies), cmocka_unit_test(freed_while_running), cmocka_unit_test(own_authority),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
