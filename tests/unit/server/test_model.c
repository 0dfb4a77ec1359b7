/* Model providers as the loop uses them: what goes over the wire to a Messages API, directly and through a proxy, what becomes of its answers and of its
 * silence; the script provider's streaming and injected errors; which provider and which capabilities an id has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/str.h"
#include "server/model/provider.h"

/* ---- a peer that reads one request, says what it was told to, and closes ---- */
static struct peer { int fd, port; pthread_t thread; const char *answer; char request[8192]; } peer;

static size_t content_length(const char *head)
{
    const char *p = strcasestr(head, "\ncontent-length:");
    int64_t n = 0;
    return p && slice_to_i64(slice_trim((struct slice){ p + 16, strcspn(p + 16, "\r") }), 0, 1000000, &n) == RC_OK ? (size_t)n : 0;
}

static void *serve(void *arg)
{
    (void)arg;
    int fd = accept(peer.fd, NULL, NULL);
    size_t n = 0;
    const char *end = NULL;
    while (fd >= 0 && n < sizeof peer.request - 1) {
        ssize_t got = read(fd, peer.request + n, sizeof peer.request - 1 - n);
        if (got <= 0)
            break;
        peer.request[n += (size_t)got] = 0;
        end = strstr(peer.request, "\r\n\r\n");
        if (end && n >= (size_t)(end + 4 - peer.request) + content_length(peer.request))
            break;
    }
    if (fd >= 0 && write(fd, peer.answer, strlen(peer.answer)) < 0)
        perror("peer");
    if (fd >= 0)
        close(fd);
    return NULL;
}

static void peer_start(const char *answer)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t n = sizeof a;
    memset(&peer, 0, sizeof peer);
    peer.answer = answer;
    peer.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(peer.fd >= 0 && bind(peer.fd, (struct sockaddr *)&a, sizeof a) == 0 && listen(peer.fd, 4) == 0);
    assert_int_equal(getsockname(peer.fd, (struct sockaddr *)&a, &n), 0);
    peer.port = ntohs(a.sin_port);
    assert_int_equal(pthread_create(&peer.thread, NULL, serve, NULL), 0);
}

static void peer_stop(void)
{
    assert_int_equal(pthread_join(peer.thread, NULL), 0);
    close(peer.fd);
}

/* ---- one call ---- */
struct got { int done; enum model_outcome outcome; int status; int64_t retry; char type[64], message[256], stop[32], content[512], request_id[64], text[256]; int deltas; };

static void on_delta(void *ctx, const struct model_delta *d)
{
    struct got *g = ctx;
    size_t at = strlen(g->text);
    g->deltas++;
    if (d->kind == DELTA_TEXT)
        (void)snprintf(g->text + at, sizeof g->text - at, "%.*s", (int)d->n, d->text);
}

static void on_done(void *ctx, const struct model_result *r)
{
    struct got *g = ctx;
    g->done++;
    g->outcome = r->outcome;
    g->status = r->http_status;
    g->retry = r->retry_after_ms;
    (void)str_copy(g->type, sizeof g->type, r->error_type ? r->error_type : "");
    (void)str_copy(g->message, sizeof g->message, r->message ? r->message : "");
    (void)str_copy(g->stop, sizeof g->stop, r->stop_reason ? r->stop_reason : "");
    (void)str_copy(g->request_id, sizeof g->request_id, r->request_id ? r->request_id : "");
    AUTO_FREE char *content = r->content ? js_text(r->content) : NULL;
    (void)str_copy(g->content, sizeof g->content, content ? content : "");
}

static struct ev *ev;
static struct fetch *fetch;
static struct model_registry *registry;

static void turn_until(const int *flag)
{
    int64_t end = clock_mono_ms() + 60000;
    while (!*flag && clock_mono_ms() < end)
        (void)ev_run_once(ev, 100);
    assert_true(*flag);
}

static void open_registry(const struct model_conf *c, const char *proxy)
{
    struct err e = { 0 };
    struct fetch_conf f = { .proxy = proxy };
    assert_int_equal(ev_new(&ev, &e), RC_OK);
    assert_int_equal(fetch_new(ev, &f, &fetch, &e), RC_OK);
    if (model_registry_new(ev, fetch, c, &registry, &e) < 0)
        fail_msg("%s", e.msg);
}

static void close_registry(void)
{
    model_registry_free(registry);
    fetch_free(fetch);
    ev_free(ev);
}

static struct model_call *begin(const char *model, const char *body, struct got *g)
{
    const struct model_provider *p;
    struct model_caps caps;
    void *self;
    memset(g, 0, sizeof *g);
    assert_int_equal(model_resolve(registry, model, &p, &self, &caps), RC_OK);
    struct model_request r = { .model = model, .body = body, .body_n = strlen(body), .session_id = "sesn_1", .agent_id = "agent_1", .environment_id = "env_1", .beta = "beta-1",
                               .on_delta = on_delta, .on_done = on_done, .ctx = g };
    return p->start(self, &r);
}

static void ask(const char *model, const char *body, struct got *g)
{
    (void)begin(model, body, g);
    assert_int_equal(g->done, 0);                /* never inside start */
    turn_until(&g->done);
    assert_int_equal(g->done, 1);
}

#define BODY "{\"model\":\"m\",\"max_tokens\":9,\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}"
#define STREAM "data: {\"type\":\"message_start\",\"message\":{\"model\":\"m\"}}\n\n" \
    "data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n" \
    "data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"hello\"}}\n\n"
#define STREAM_END "data: {\"type\":\"content_block_stop\",\"index\":0}\n\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\ndata: {\"type\":\"message_stop\"}\n\n"
#define HEAD(status) "HTTP/1.1 " status "\r\nconnection: close\r\nrequest-id: req_7\r\n"
#define JSON "content-type: application/json\r\n\r\n"

static void wire(const char *answer, bool by_proxy, struct got *g)
{
    peer_start(answer);
    AUTO_PTR(secret) key = secret_new("sk-model", 8);
    AUTO_FREE char *here = str_printf("http://127.0.0.1:%d/", peer.port);
    struct model_conf c = { .provider = "anthropic", .url = by_proxy ? "http://models.example.test:8080" : here, .key = key };
    open_registry(&c, by_proxy ? here : "");
    ask("claude-opus-4-6", BODY, g);
    close_registry();
    peer_stop();
}

static void test_request(void **st)
{
    (void)st;
    struct got g;
    wire(HEAD("200 OK") "content-type: text/event-stream\r\n\r\n" STREAM STREAM_END, false, &g);
    assert_int_equal(g.outcome, MODEL_OK);
    assert_string_equal(g.content, "[{\"type\":\"text\",\"text\":\"hello\"}]");
    assert_string_equal(g.text, "hello");
    assert_string_equal(g.stop, "end_turn");
    assert_string_equal(g.request_id, "req_7");
    static const char *const want[] = { "POST /v1/messages HTTP/1.1\r\n", "\r\nx-api-key: sk-model\r\n", "\r\nanthropic-version: " ANTHROPIC_VERSION "\r\n", "\r\nanthropic-beta: beta-1\r\n",
                                        "\r\ncontent-type: application/json\r\n", "\r\n\r\n{\"stream\":true,\"model\":\"m\"," };
    for (size_t i = 0; i < COUNT_OF(want); i++)
        if (!strstr(peer.request, want[i]))
            fail_msg("no <%s> in <%s>", want[i], peer.request);
    assert_null(strcasestr(peer.request, "managed-agents"));         /* whose session it is is for the hosted API only */
    assert_null(strcasestr(peer.request, "authorization"));
}

static void test_proxy(void **st)
{
    (void)st;
    struct got g;
    wire(HEAD("200 OK") "content-type: text/event-stream\r\n\r\n" STREAM STREAM_END, true, &g);
    assert_int_equal(g.outcome, MODEL_OK);
    assert_true(str_prefix(peer.request, "POST http://models.example.test:8080/v1/messages HTTP/1.1\r\n"));
    wire(HEAD("407 Proxy Authentication Required") "\r\n", true, &g);
    assert_int_equal(g.outcome, MODEL_FATAL);
    assert_int_equal(g.status, 407);
}

static void test_answers(void **st)
{
    (void)st;
    static const struct { const char *answer; enum model_outcome want; int64_t retry; const char *type; } t[] = {
        { HEAD("429 Too Many") "retry-after: 7\r\n" JSON "{\"error\":{\"type\":\"rate_limit_error\",\"message\":\"slow\"}}", MODEL_RETRY_AFTER, 7000, "rate_limit_error" },
        { HEAD("429 Too Many") "retry-after-ms: 250\r\n" JSON "{\"error\":{\"type\":\"rate_limit_error\",\"message\":\"slow\"}}", MODEL_RETRY_AFTER, 250, "rate_limit_error" },
        { HEAD("429 Too Many") "retry-after: soon\r\n" JSON "{}", MODEL_BILLING, -1, "" },
        { HEAD("429 Too Many") JSON "{\"error\":{\"type\":\"rate_limit_error\",\"message\":\"spent\"}}", MODEL_BILLING, -1, "rate_limit_error" },
        { HEAD("529 Overloaded") JSON "{\"error\":{\"type\":\"overloaded_error\",\"message\":\"x\"}}", MODEL_OVERLOADED, -1, "overloaded_error" },
        { HEAD("401 No") JSON "{\"error\":{\"type\":\"authentication_error\",\"message\":\"x\"}}", MODEL_FATAL, -1, "authentication_error" },
        { HEAD("200 OK") "\r\n" STREAM, MODEL_OVERLOADED, -1, "api_error" },                                                 /* the end is missing */
        { HEAD("200 OK") "content-length: 5000\r\n\r\n" STREAM STREAM_END, MODEL_OVERLOADED, -1, "connection_error" },       /* broken off */
        { HEAD("200 OK") "\r\ndata: moon\n\n", MODEL_OVERLOADED, -1, "api_error" },
        { HEAD("200 OK") "content-type: text/html\r\n\r\n<html>a portal</html>", MODEL_OVERLOADED, -1, "api_error" },
        { HEAD("200 OK") "\r\n" STREAM "data: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"x\"}}\n\n", MODEL_OVERLOADED, -1, "overloaded_error" },
        { "", MODEL_OVERLOADED, -1, "connection_error" },                                                                    /* closed without a word */
        { "moon\r\n\r\n", MODEL_OVERLOADED, -1, "connection_error" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        struct got g;
        wire(t[i].answer, false, &g);
        if (g.outcome != t[i].want || g.retry != t[i].retry || !str_eq(g.type, t[i].type))
            fail_msg("%zu: outcome %d, retry %lld, %s: %s", i, (int)g.outcome, (long long)g.retry, g.type, g.message);
        assert_true(g.outcome == MODEL_OK || g.message[0]);
        assert_null(strstr(g.message, "sk-model"));
    }
}

static void test_nobody_there(void **st)
{
    (void)st;
    struct got g;
    peer_start("");
    int port = peer.port;
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);         /* lets the peer's thread end */
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    close(fd);
    peer_stop();
    AUTO_FREE char *url = str_printf("http://127.0.0.1:%d", port);
    struct model_conf c = { .provider = "anthropic", .url = url };
    open_registry(&c, "");
    ask("m", BODY, &g);
    assert_int_equal(g.outcome, MODEL_OVERLOADED);
    assert_string_equal(g.type, "connection_error");
    close_registry();
}

/* After cancel nothing comes, wherever the call was. */
static void test_cancel(void **st)
{
    (void)st;
    struct got g;
    peer_start(HEAD("200 OK") "\r\n" STREAM STREAM_END);
    AUTO_FREE char *url = str_printf("http://127.0.0.1:%d", peer.port);
    struct model_conf c = { .provider = "anthropic", .url = url };
    open_registry(&c, "");
    const struct model_provider *p;
    struct model_caps caps;
    void *self;
    assert_int_equal(model_resolve(registry, "m", &p, &self, &caps), RC_OK);
    struct model_call *call = begin("m", BODY, &g);
    turn_until(&g.deltas);
    if (!g.done)
        p->cancel(call);
    int was = g.done;
    for (int i = 0; i < 5; i++)
        (void)ev_run_once(ev, 5);
    assert_int_equal(g.done, was);
    p->cancel(begin("m", BODY, &g));
    for (int i = 0; i < 5; i++)
        (void)ev_run_once(ev, 5);
    assert_int_equal(g.done, 0);
    close_registry();
    peer_stop();
}

static void test_conf(void **st)
{
    (void)st;
    struct err e = { 0 };
    struct model_registry *m = NULL;
    assert_int_equal(ev_new(&ev, &e), RC_OK);
    assert_int_equal(model_registry_new(ev, NULL, &(struct model_conf){ .provider = "oracle" }, &m, &e), RC_INVALID);
    assert_int_equal(model_registry_new(ev, NULL, &(struct model_conf){ .provider = "anthropic", .url = "ftp://x" }, &m, &e), RC_INVALID);
    assert_int_equal(model_registry_new(ev, NULL, &(struct model_conf){ .provider = "anthropic" }, &m, &e), RC_INVALID);        /* hosted, and no key */
    assert_non_null(strstr(e.msg, "ANTHROPIC_API_KEY"));
    assert_int_equal(model_registry_new(ev, NULL, &(struct model_conf){ .provider = "anthropic", .url = "http://x", .key_file = "/nowhere/key" }, &m, &e), RC_NOT_FOUND);
    assert_int_equal(model_registry_new(ev, NULL, &(struct model_conf){ .provider = "script", .script_file = "/nowhere/script" }, &m, &e), RC_NOT_FOUND);
    assert_int_equal(model_registry_new(ev, NULL, &(struct model_conf){ .provider = "script", .models_file = "/nowhere/models" }, &m, &e), RC_NOT_FOUND);
    assert_null(m);
    ev_free(ev);
}

/* ---- ids ---- */
static void write_file(char path[64], const char *text)
{
    (void)str_copy(path, 64, "/tmp/outwork-model-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

static void test_ids(void **st)
{
    (void)st;
    char models[64], script[64];
    write_file(models, "{\"models\":{\"claude-opus-4-6\":{\"context_tokens\":50000,\"max_output_tokens\":4000,\"compaction\":false},\"local-\":{\"context_tokens\":8192,\"max_output_tokens\":1024}}}");
    write_file(script, "{\"models\":[\"script-a\"],\"default\":\"d\",\"scenarios\":[]}");
    struct model_conf c = { .provider = "anthropic", .url = "http://127.0.0.1:1", .models_file = models, .script_file = script };
    open_registry(&c, "");
    static const struct { const char *id, *provider; int64_t context; bool compaction; } t[] = {
        { "script-a", "script", 200000, false }, { "claude-opus-4-6", "anthropic", 50000, false }, { "claude-opus-4-6-20260101", "anthropic", 50000, false },
        { "claude-sonnet-4-6", "anthropic", 200000, true }, { "claude-opus-4-7-x", "anthropic", 200000, true }, { "local-llama", "anthropic", 8192, false },
        { "moon", "anthropic", 200000, false }, { "scrip", "anthropic", 200000, false },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        const struct model_provider *p = NULL;
        struct model_caps caps = { 0 };
        void *self;
        assert_int_equal(model_resolve(registry, t[i].id, &p, &self, &caps), RC_OK);
        if (!str_eq(p->name, t[i].provider) || caps.context_tokens != t[i].context || caps.compaction != t[i].compaction)
            fail_msg("%s: %s, %lld, %d", t[i].id, p->name, (long long)caps.context_tokens, caps.compaction);
    }
    AUTO_JS all = model_list_all(registry);
    size_t i, scripts = 0;
    json_t *v;
    json_array_foreach(all, i, v)
        scripts += str_eq(js_str(v, "id"), "script-a");
    assert_int_equal(scripts, 1);
    close_registry();
    unlink(models);
    unlink(script);
}

/* ---- the script provider ---- */
#define TURN(t) "{\"scenarios\":[{\"turns\":[" t "]}]}"
#define LONG_TEXT "\xc3\xa4\xc3\xb6\xc3\xbc\xe2\x82\xac\xf0\x9f\x98\x80 and more text than goes into one piece, \xc3\xa4\xc3\xb6\xc3\xbc\xc3\x9f"

static void script(const char *text)
{
    char path[64];
    write_file(path, text);
    struct model_conf c = { .provider = "script", .script_file = path };
    open_registry(&c, "");
    unlink(path);
}

static void test_script(void **st)
{
    (void)st;
    struct got g;
    script(TURN("{\"text\":\"" LONG_TEXT "\",\"chunk_ms\":1}"));
    ask("any", BODY, &g);
    assert_int_equal(g.outcome, MODEL_OK);
    assert_string_equal(g.text, LONG_TEXT);                  /* pieces put together again */
    assert_true(g.deltas > 3);
    assert_string_equal(g.stop, "end_turn");
    ask("any", "no json", &g);
    assert_int_equal(g.outcome, MODEL_FATAL);
    close_registry();
    script(TURN("{\"text\":\"abc\",\"error\":{\"status\":529,\"times\":2}}"));
    for (int i = 0; i < 3; i++) {                            /* counts per request */
        ask("any", BODY, &g);
        assert_int_equal(g.outcome, i < 2 ? MODEL_OVERLOADED : MODEL_OK);
    }
    ask("any", "{\"messages\":[{\"role\":\"user\",\"content\":\"another\"}]}", &g);
    assert_int_equal(g.outcome, MODEL_OVERLOADED);
    close_registry();
    static const struct { const char *error; enum model_outcome want; int64_t retry; } t[] = {
        { "{\"status\":429,\"retry_after_ms\":1234}", MODEL_RETRY_AFTER, 1234 }, { "{\"status\":429}", MODEL_BILLING, -1 }, { "{\"status\":0}", MODEL_OVERLOADED, -1 },
        { "{\"status\":400,\"type\":\"invalid_request_error\"}", MODEL_FATAL, -1 }, { "{\"status\":413}", MODEL_TOO_LARGE, -1 }, { "{\"status\":500}", MODEL_OVERLOADED, -1 },
        { "{\"status\":529,\"after_chunks\":1}", MODEL_OVERLOADED, -1 },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        AUTO_FREE char *text = str_printf("{\"scenarios\":[{\"turns\":[{\"text\":\"%s\",\"error\":%s}]}]}", LONG_TEXT, t[i].error);
        script(text);
        ask("any", BODY, &g);
        if (g.outcome != t[i].want || g.retry != t[i].retry || !g.message[0])
            fail_msg("%s: outcome %d, retry %lld", t[i].error, (int)g.outcome, (long long)g.retry);
        assert_true(strstr(t[i].error, "after_chunks") ? g.deltas > 0 : g.deltas == 0);
        close_registry();
    }
}

static void test_script_cancel(void **st)
{
    (void)st;
    struct got g;
    const struct model_provider *p;
    struct model_caps caps;
    void *self;
    script(TURN("{\"text\":\"" LONG_TEXT "\",\"delay_ms\":1,\"chunk_ms\":1}"));
    assert_int_equal(model_resolve(registry, "any", &p, &self, &caps), RC_OK);
    struct model_call *c = begin("any", BODY, &g);
    turn_until(&g.deltas);
    p->cancel(c);
    int was = g.deltas;
    for (int i = 0; i < 5; i++)
        (void)ev_run_once(ev, 3);
    assert_int_equal(g.done, 0);
    assert_int_equal(g.deltas, was);
    close_registry();
}

static void test_chunks(void **st)
{
    (void)st;
    const char *p = LONG_TEXT;
    for (size_t left = strlen(p); left > 0;) {
        size_t n = script_chunk(p, left);
        assert_true(n > 0 && n <= left && n < SCRIPT_CHUNK_BYTES + 4);
        p += n;
        left -= n;
        assert_true(left == 0 || ((unsigned char)*p & 0xc0) != 0x80);        /* a piece never begins inside a character */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request), cmocka_unit_test(test_proxy), cmocka_unit_test(test_answers), cmocka_unit_test(test_nobody_there), cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_conf), cmocka_unit_test(test_ids), cmocka_unit_test(test_script), cmocka_unit_test(test_script_cancel), cmocka_unit_test(test_chunks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
