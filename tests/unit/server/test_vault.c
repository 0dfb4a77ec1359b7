/* Look-ups and refreshes over a real store and libcurl; the token endpoint is a thread of this file that answers as it is told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/fd.h"
#include "server/vault/private.h"

#define MCP "https://mcp.example.com/x"
#define TURNS_MAX 3000               /* of the loop, 20 ms each at most */

/* ---- the token endpoint ---- */
static struct {
    int fd, port;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int asked, status;               /* asked: whole requests so far */
    bool hold;
    const char *answer;
    char last[4096];                 /* the last request */
} ep = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static void serve(int fd)
{
    size_t n = 0, need = 0;
    char text[4096], head[256];
    ssize_t got;
    memset(text, 0, sizeof text);
    while ((!need || n < need) && n < sizeof text - 1 && (got = read(fd, text + n, sizeof text - 1 - n)) > 0) {
        n += (size_t)got;
        char *end = strstr(text, "\r\n\r\n"), *len = strcasestr(text, "content-length:");
        if (end && len)
            need = (size_t)(end - text) + 4 + strtoul(len + 15, NULL, 10);
    }
    pthread_mutex_lock(&ep.lock);
    (void)str_copy(ep.last, sizeof ep.last, text);
    ep.asked++;
    pthread_cond_broadcast(&ep.changed);
    while (ep.hold)
        pthread_cond_wait(&ep.changed, &ep.lock);
    const char *answer = ep.answer;
    int k = snprintf(head, sizeof head, "HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %zu\r\nconnection: close\r\n\r\n", ep.status, strlen(answer));
    pthread_mutex_unlock(&ep.lock);
    if (write(fd, head, (size_t)k) == k)
        (void)!write(fd, answer, strlen(answer));
    (void)close(fd);
}

static void *endpoint(void *arg)
{
    (void)arg;
    for (;;) {
        int fd = accept4(ep.fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            return NULL;
        serve(fd);
    }
}

static void say(int status, const char *answer)
{
    pthread_mutex_lock(&ep.lock);
    ep.status = status;
    ep.answer = answer;
    pthread_mutex_unlock(&ep.lock);
}

static void hold(bool on)
{
    pthread_mutex_lock(&ep.lock);
    ep.hold = on;
    pthread_cond_broadcast(&ep.changed);
    pthread_mutex_unlock(&ep.lock);
}

static int asked(void)
{
    pthread_mutex_lock(&ep.lock);
    int n = ep.asked;
    pthread_mutex_unlock(&ep.lock);
    return n;
}

/* ---- the world ---- */
static struct {
    char dir[64], endpoint[64];
    struct ev *ev; struct jobs *jobs; struct store *store; struct fetch *fetch; struct seal_ring *seal; struct vault *vault;
    struct store_ops ops; struct store_vault_ops vault_ops;
    int (*real_update)(struct store *, const char *, const char *, int64_t, const char *, const void *, size_t, int64_t, struct err *);
    _Atomic int fail_updates;
    bool refuse;
} w;

static int update_or_fail(struct store *st, const char *vid, const char *id, int64_t expect, const char *body, const void *sealed, size_t n, int64_t now, struct err *e)
{
    if (w.fail_updates > 0) {
        w.fail_updates--;
        return err_set(e, RC_IO, "the disk is full");
    }
    return w.real_update(st, vid, id, expect, body, sealed, n, now, e);
}

struct check { struct ev_timer timer; void (*cb)(void *, int, const struct fetch_via *, size_t, const struct err *); void *ctx; };

static void on_check(struct ev_timer *t)
{
    struct check *x = container_of(t, struct check, timer);
    struct err e = { 0 };
    struct fetch_via way[2] = { { .proxy = "", .address = "127.0.0.3" }, { .proxy = "", .address = "127.0.0.1" } };      /* nobody is at the first */
    if (w.refuse)
        (void)err_set(&e, RC_DENIED, "not in the list");
    x->cb(x->ctx, w.refuse ? RC_DENIED : RC_OK, way, w.refuse ? 0 : 2, &e);
    free(x);
}

static void *check_start(void *ctx, const char *url, void (*cb)(void *, int, const struct fetch_via *, size_t, const struct err *), void *cb_ctx)
{
    (void)ctx, (void)url;
    struct check *x = xcalloc(1, sizeof *x);
    x->cb = cb;
    x->ctx = cb_ctx;
    ev_timer_set(w.ev, &x->timer, 0, on_check);
    return x;
}

static void check_cancel(void *check)
{
    ev_timer_stop(&((struct check *)check)->timer);
    free(check);
}

static void add(const char *vault_id, const char *id, const char *kind, const char *url, const char *token, const char *refresh, int64_t expires_ms)
{
    struct err e = { 0 };
    struct buf match, sealed;
    char expires[RFC3339_MAX] = "", body[1024];
    struct vault_secrets s = { .token = secret_new(token, strlen(token)), .refresh_token = refresh ? secret_new(refresh, strlen(refresh)) : NULL };
    buf_init(&match, 4096);
    buf_init(&sealed, 4096);
    rfc3339_format(expires_ms, expires);
    assert_int_equal(vault_normalize_url(url, &match, &e), RC_OK);
    assert_int_equal(vault_secrets_seal(w.seal, id, &s, &sealed, &e), RC_OK);
    snprintf(body, sizeof body, "{\"display_name\":null,\"metadata\":{},\"auth\":{\"type\":\"%s\",\"mcp_server_url\":\"%s\",\"expires_at\":%s%s%s,\"refresh\":%s%s%s}}", kind, url,
             expires_ms > 0 ? "\"" : "", expires_ms > 0 ? expires : "null", expires_ms > 0 ? "\"" : "", refresh ? "{\"client_id\":\"c\",\"token_endpoint_auth\":{\"type\":\"none\"},\"token_endpoint\":\"" : "null",
             refresh ? w.endpoint : "", refresh ? "\"}" : "");
    struct store_credential c = { .id = id, .vault_id = vault_id, .kind = kind, .match = buf_data(&match), .body = body, .sealed = buf_data(&sealed), .sealed_n = buf_len(&sealed), .created_ms = 1000 };
    if (w.store->ops->vault->credential_create(w.store, &c, 20, &e) < 0)
        fail_msg("%s", e.msg);
    vault_secrets_done(&s);
    buf_done(&match);
    buf_done(&sealed);
}

static struct cred *stored(const char *vault_id, const char *id)
{
    struct cred *c = NULL;
    struct err e = { 0 };
    if (cred_load(w.vault, vault_id, id, NULL, &c, &e) < 0)
        fail_msg("%s", e.msg);
    return c;
}

static int setup(void **state)
{
    (void)state;
    struct err e = { 0 };
    char dsn[128], key[128];
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t n = sizeof a;
    memset(&w, 0, sizeof w);
    ep.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(ep.fd, (struct sockaddr *)&a, sizeof a) | listen(ep.fd, 16) | getsockname(ep.fd, (struct sockaddr *)&a, &n), 0);
    ep.asked = 0;
    ep.hold = false;
    assert_int_equal(pthread_create(&ep.thread, NULL, endpoint, NULL), 0);
    snprintf(w.endpoint, sizeof w.endpoint, "http://token.example.com:%d/t", ntohs(a.sin_port));
    snprintf(w.dir, sizeof w.dir, "/tmp/ow-vault-XXXXXX");
    assert_non_null(mkdtemp(w.dir));
    snprintf(dsn, sizeof dsn, "%s/s.db", w.dir);
    snprintf(key, sizeof key, "%s/k", w.dir);
    struct fetch_conf fc = { .proxy = "", .user_agent = "t" };
    if (ev_new(&w.ev, &e) || jobs_new(3, 1000, &w.jobs, &e) || store_open(dsn, true, &w.store, &e) || fetch_new(w.ev, &fc, &w.fetch, &e) || seal_load(key, true, &w.seal, &e))
        fail_msg("%s", e.msg);
    w.ops = *w.store->ops;
    w.vault_ops = *w.ops.vault;
    w.real_update = w.vault_ops.credential_update;
    w.vault_ops.credential_update = update_or_fail;
    w.ops.vault = &w.vault_ops;
    w.store->ops = &w.ops;
    struct vault_conf vc = { .ev = w.ev, .jobs = w.jobs, .store = w.store, .fetch = w.fetch, .seal = w.seal, .reach = { check_start, check_cancel, NULL } };
    assert_int_equal(vault_new(&vc, &w.vault, &e), RC_OK);
    for (int i = 1; i < 4; i++) {
        char id[8];
        snprintf(id, sizeof id, "vlt_%d", i);
        struct store_vault v = { .id = id, .body = "{}", .created_ms = 1000 };
        assert_int_equal(w.store->ops->vault->create(w.store, &v, &e), RC_OK);
    }
    say(200, "{\"access_token\":\"fresh-1\",\"token_type\":\"bearer\",\"expires_in\":3600,\"refresh_token\":\"rotated-1\"}");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    struct err e = { 0 };
    hold(false);
    jobs_free(w.jobs);
    vault_free(w.vault);
    fetch_free(w.fetch);
    store_close(w.store);
    seal_free(w.seal);
    ev_free(w.ev);
    (void)shutdown(ep.fd, SHUT_RDWR);
    assert_int_equal(pthread_join(ep.thread, NULL), 0);
    (void)close(ep.fd);
    return fd_remove_tree(AT_FDCWD, w.dir, &e);
}

/* ---- look-ups ---- */
struct look { bool done; int rc, calls; char bearer[128], id[ID_MAX], msg[ERR_MSG_MAX]; };

static void on_found(void *ctx, int rc, const struct vault_found *f, const struct err *e)
{
    struct look *l = ctx;
    l->done = true;
    l->calls++;
    l->rc = rc;
    (void)str_copy(l->bearer, sizeof l->bearer, rc == RC_OK && f->bearer ? secret_text(f->bearer) : "");
    (void)str_copy(l->id, sizeof l->id, rc == RC_OK ? f->credential_id : "");
    (void)str_copy(l->msg, sizeof l->msg, e ? e->msg : "");
    if (str_eq(l->bearer, "fresh-1")) {          /* nobody has a token that is not stored */
        AUTO_PTR(cred) c = stored("vlt_1", "c1");
        assert_string_equal(secret_text(c->secrets.token), "fresh-1");
        assert_string_equal(secret_text(c->secrets.refresh_token), "rotated-1");
    }
}

static void turn_until(const bool *flag)
{
    for (int i = 0; i < TURNS_MAX && !*flag; i++)
        (void)ev_run_once(w.ev, 20);
    assert_true(*flag);
}

static void turn_until_asked(int n)
{
    for (int i = 0; i < TURNS_MAX && asked() < n; i++)
        (void)ev_run_once(w.ev, 20);
    assert_int_equal(asked(), n);
}

static struct look find(bool force)
{
    static const char *const ids[] = { "vlt_1", "vlt_2", "vlt_none", "vlt_3" };
    struct look l = { 0 };
    (void)vault_find(w.vault, ids, 4, "HTTPS://MCP.example.com:443/x/", force, on_found, &l);
    assert_false(l.done);                        /* never inside the call */
    turn_until(&l.done);
    assert_int_equal(l.calls, 1);
    return l;
}

static void order_and_absence(void **st)
{
    (void)st;
    struct err e = { 0 };
    struct look l = find(false);
    assert_int_equal(l.rc, RC_OK);
    assert_string_equal(l.bearer, "");
    add("vlt_3", "c3", "static_bearer", MCP, "third", NULL, -1);
    assert_string_equal(find(false).bearer, "third");
    add("vlt_2", "c2", "static_bearer", MCP "/", "second", NULL, -1);
    l = find(true);
    assert_string_equal(l.bearer, "second");
    assert_string_equal(l.id, "c2");
    assert_int_equal(w.store->ops->vault->archive(w.store, "vlt_2", 2000, &e), RC_OK);
    assert_string_equal(find(false).bearer, "third");
    assert_int_equal(asked(), 0);
    static const char *const ids[] = { "vlt_3" };
    struct look bad = { 0 };
    (void)vault_find(w.vault, ids, 1, "nonsense", false, on_found, &bad);
    turn_until(&bad.done);
    assert_int_equal(bad.rc, RC_INVALID);
}

static void one_refresh_for_all(void **st)
{
    (void)st;
    static const char *const ids[] = { "vlt_1" };
    struct look l[5] = { 0 };
    add("vlt_1", "c1", "mcp_oauth", MCP, "old", "refresh-0", clock_now_ms() + 5000);      /* within the skew */
    hold(true);
    for (int i = 0; i < 5; i++) {
        struct vault_lookup *x = vault_find(w.vault, ids, 1, MCP, i == 2, on_found, &l[i]);
        if (i == 3)
            vault_cancel(x);
    }
    turn_until_asked(1);
    struct vault_lookup *late = vault_find(w.vault, ids, 1, MCP, false, on_found, &l[3]);
    for (int i = 0; i < 20; i++)
        (void)ev_run_once(w.ev, 1);
    vault_cancel(late);                          /* while it waits */
    hold(false);
    for (int i = 0; i < 5; i++)
        if (i != 3)
            turn_until(&l[i].done);
    for (int i = 0; i < 5; i++)
        assert_string_equal(l[i].bearer, i == 3 ? "" : "fresh-1");
    assert_int_equal(l[3].calls, 0);
    assert_int_equal(asked(), 1);
    assert_non_null(strstr(ep.last, "grant_type=refresh_token&refresh_token=refresh-0&client_id=c"));
    assert_string_equal(find(false).bearer, "fresh-1");
    assert_string_equal(find(true).bearer, "fresh-1");       /* just refreshed: a second 401 is somebody else's old token */
    assert_int_equal(asked(), 1);
}

/* A caller that read the row before another's refresh was stored must not use the old refresh token again. */
struct wait_ctx { struct refresh_wait wait; bool done; enum refresh_end end; char bearer[64]; };

static void on_wait(struct refresh_wait *r, const struct refresh_result *res)
{
    struct wait_ctx *x = container_of(r, struct wait_ctx, wait);
    x->done = true;
    x->end = res->end;
    (void)str_copy(x->bearer, sizeof x->bearer, res->bearer ? secret_text(res->bearer) : "");
}

static void a_stale_row_is_read_again(void **st)
{
    (void)st;
    add("vlt_1", "c1", "mcp_oauth", MCP, "old", "refresh-0", clock_now_ms() - 1000);
    struct cred *stale = stored("vlt_1", "c1");
    assert_string_equal(find(false).bearer, "fresh-1");
    struct wait_ctx x = { .wait.cb = on_wait };
    list_init(&x.wait.node);
    refresh_join(w.vault, stale, false, &x.wait);
    turn_until(&x.done);
    assert_int_equal(x.end, REFRESH_SUCCEEDED);
    assert_string_equal(x.bearer, "fresh-1");
    assert_int_equal(asked(), 1);
}

static void refusals(void **st)
{
    (void)st;
    add("vlt_1", "c1", "mcp_oauth", MCP, "old", "refresh-0", clock_now_ms() - 1000);
    say(400, "{\"error\":\"invalid_grant\",\"error_description\":\"refresh-0 is unknown\"}");
    struct look l = find(false);
    assert_int_equal(l.rc, RC_UNAUTHORIZED);
    assert_non_null(strstr(l.msg, "invalid_grant"));
    assert_null(strstr(l.msg, "refresh-0"));
    assert_int_equal(find(false).rc, RC_UNAUTHORIZED);
    assert_int_equal(asked(), 1);                /* remembered */
    struct err e = { 0 };
    struct store_credential row;
    AUTO_PTR(arena) a = arena_new(4096, MIB);
    assert_int_equal(w.store->ops->vault->credential_get(w.store, a, "vlt_1", "c1", &row, &e), RC_OK);
    assert_int_equal(w.real_update(w.store, "vlt_1", "c1", -1, row.body, NULL, 0, 5000, &e), RC_OK);
    say(200, "{\"access_token\":\"fresh-1\",\"refresh_token\":\"rotated-1\"}");
    assert_string_equal(find(false).bearer, "fresh-1");      /* somebody has changed the credential: asked again */
    assert_int_equal(asked(), 2);

    add("vlt_2", "c2", "mcp_oauth", "https://other.example.com", "old2", "r2", clock_now_ms() - 1000);
    w.refuse = true;
    static const char *const ids[] = { "vlt_2" };
    struct look r = { 0 };
    (void)vault_find(w.vault, ids, 1, "https://other.example.com/", false, on_found, &r);
    turn_until(&r.done);
    assert_int_equal(r.rc, RC_UNAUTHORIZED);
    assert_non_null(strstr(r.msg, "not in the list"));
    assert_int_equal(asked(), 2);
    add("vlt_2", "c9", "mcp_oauth", "https://no.example.com", "old2", NULL, clock_now_ms() - 1000);
    r = (struct look){ 0 };
    (void)vault_find(w.vault, ids, 1, "https://no.example.com", false, on_found, &r);
    turn_until(&r.done);
    assert_int_equal(r.rc, RC_UNAUTHORIZED);
    assert_non_null(strstr(r.msg, "no refresh token"));
}

static void a_full_disk_loses_nothing(void **st)
{
    (void)st;
    add("vlt_1", "c1", "mcp_oauth", MCP, "old", "refresh-0", clock_now_ms() - 1000);
    w.fail_updates = 2;
    assert_string_equal(find(false).bearer, "fresh-1");
    assert_int_equal(asked(), 1);

    add("vlt_1", "c2", "mcp_oauth", "https://two.example.com", "old", "refresh-0", clock_now_ms() - 1000);
    static const char *const ids[] = { "vlt_1" };
    struct look l = { 0 };
    say(200, "{\"access_token\":\"fresh-2\",\"refresh_token\":\"rotated-2\"}");
    w.fail_updates = SAVE_TRIES;
    (void)vault_find(w.vault, ids, 1, "https://two.example.com", false, on_found, &l);
    turn_until(&l.done);
    assert_int_equal(l.rc, RC_IO);
    say(400, "{\"error\":\"invalid_grant\"}");       /* the provider would refuse the old one now */
    l = (struct look){ 0 };
    (void)vault_find(w.vault, ids, 1, "https://two.example.com", false, on_found, &l);
    turn_until(&l.done);
    assert_int_equal(l.rc, RC_OK);
    assert_string_equal(l.bearer, "fresh-2");
    assert_int_equal(asked(), 2);
    AUTO_PTR(cred) c = stored("vlt_1", "c2");
    assert_string_equal(secret_text(c->secrets.refresh_token), "rotated-2");
}

static void changes_during_a_refresh(void **st)
{
    (void)st;
    static const char *const ids[] = { "vlt_2" };
    struct err e = { 0 };
    struct look l = { 0 };
    add("vlt_2", "c2", "mcp_oauth", MCP, "old", "refresh-0", clock_now_ms() - 1000);
    hold(true);
    (void)vault_find(w.vault, ids, 1, MCP, false, on_found, &l);
    turn_until_asked(1);
    AUTO_PTR(arena) a = arena_new(4096, MIB);
    struct store_credential row;
    struct vault_secrets s = { .token = secret_new("theirs", 6), .refresh_token = secret_new("their-refresh", 13) };
    struct buf sealed;
    buf_init(&sealed, 4096);
    assert_int_equal(vault_secrets_seal(w.seal, "c2", &s, &sealed, &e), RC_OK);
    assert_int_equal(w.store->ops->vault->credential_get(w.store, a, "vlt_2", "c2", &row, &e), RC_OK);
    assert_int_equal(w.real_update(w.store, "vlt_2", "c2", -1, row.body, buf_data(&sealed), buf_len(&sealed), 5000, &e), RC_OK);
    hold(false);
    turn_until(&l.done);
    assert_string_equal(l.bearer, "theirs");     /* a new grant was put meanwhile: it stays */
    AUTO_PTR(cred) c = stored("vlt_2", "c2");
    assert_string_equal(secret_text(c->secrets.refresh_token), "their-refresh");
    vault_secrets_done(&s);
    buf_done(&sealed);

    l = (struct look){ 0 };
    hold(true);
    (void)vault_find(w.vault, ids, 1, MCP, true, on_found, &l);
    turn_until_asked(2);
    assert_int_equal(w.store->ops->vault->credential_archive(w.store, "vlt_2", "c2", 6000, &e), RC_OK);
    hold(false);
    turn_until(&l.done);
    assert_int_equal(l.rc, RC_UNAUTHORIZED);
    assert_int_equal(w.store->ops->vault->credential_get(w.store, a, "vlt_2", "c2", &row, &e), RC_OK);
    assert_null(row.sealed);                     /* nothing was put back */
}

static void set_true(void *ctx) { *(bool *)ctx = true; }

static void on_validation(void *ctx, int rc, const struct vault_validation *r, const struct err *e)
{
    (void)r, (void)e;
    *(int *)ctx = rc;
}

static void drain_waits(void **st)
{
    (void)st;
    static const char *const ids[] = { "vlt_1" };
    struct look l = { 0 };
    bool drained = false;
    int validation = 1, second = 1;
    add("vlt_1", "c1", "mcp_oauth", MCP, "old", "refresh-0", clock_now_ms() - 1000);
    hold(true);
    (void)vault_find(w.vault, ids, 1, MCP, false, on_found, &l);
    turn_until_asked(1);
    vault_validate(w.vault, "vlt_1", "c1", on_validation, &validation);
    vault_drain(w.vault, set_true, &drained);
    assert_int_equal(validation, RC_CLOSED);
    vault_validate(w.vault, "vlt_1", "c1", on_validation, &second);
    for (int i = 0; i < 50; i++)
        (void)ev_run_once(w.ev, 1);
    assert_int_equal(second, RC_CLOSED);
    assert_false(drained);
    hold(false);
    turn_until(&drained);
    assert_true(l.done);
    assert_string_equal(l.bearer, "fresh-1");
}

/* What runs at the end is freed, with the look-ups that wait for it. */
static void freed_while_busy(void **st)
{
    (void)st;
    static const char *const ids[] = { "vlt_1" };
    static struct look l;
    static int validation;
    add("vlt_1", "c1", "mcp_oauth", MCP, "old", "refresh-0", clock_now_ms() - 1000);
    hold(true);
    (void)vault_find(w.vault, ids, 1, MCP, false, on_found, &l);
    turn_until_asked(1);
    vault_validate(w.vault, "vlt_1", "c1", on_validation, &validation);
    assert_false(l.done);
}

/* ---- pure parts ---- */
static void urls(void **st)
{
    (void)st;
    static const struct { const char *in, *out; } row[] = {
        { "https://a.example.com", "https://a.example.com" }, { "HTTPS://A.Example.COM/", "https://a.example.com" }, { "https://a:443/", "https://a" },
        { "http://a:80/x/", "http://a/x" }, { "http://a:443/x", "http://a:443/x" }, { "https://a:8443", "https://a:8443" }, { "https://a/X/y/", "https://a/X/y" },
        { "https://a/x//", "https://a/x" }, { "https://a/?q=/", "https://a?q=/" }, { "https://a?q=/", "https://a?q=/" }, { "https://a/x/?Q", "https://a/x?Q" },
        { "https://[2001:DB8::1]:443/", "https://[2001:db8::1]" }, { "ftp://a", NULL }, { "https://u@a", NULL }, { "https://a/#f", NULL }, { "", NULL }, { "https://", NULL },
        { "https://a:0", NULL }, { "https://a:99999", NULL }, { "a.example.com", NULL }, { "https://a b", NULL }, { "?://x?", NULL }, { "x?y=https://", NULL },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct buf b;
        struct err e = { 0 };
        buf_init(&b, 4096);
        int rc = vault_normalize_url(row[i].in, &b, &e);
        if ((rc == RC_OK) != (row[i].out != NULL) || (row[i].out && !str_eq(buf_data(&b), row[i].out)))
            fail_msg("row %zu \"%s\": %d \"%s\"", i, row[i].in, rc, buf_data(&b));
        buf_done(&b);
    }
}

static void answers(void **st)
{
    (void)st;
    static const struct { const char *in, *access, *refresh; int64_t expires; } row[] = {
        { "{\"access_token\":\"a\"}", "a", NULL, -1 }, { "{\"access_token\":\"a\",\"expires_in\":10,\"refresh_token\":\"r\",\"token_type\":\"BEARER\"}", "a", "r", 10007 },
        { "{\"access_token\":\"a\",\"expires_in\":\"20\"}", "a", NULL, 20007 }, { "{\"access_token\":\"a\",\"expires_in\":0}", "a", NULL, -1 },
        { "{\"access_token\":\"a\",\"expires_in\":-5}", "a", NULL, -1 }, { "{\"access_token\":\"a\",\"expires_in\":1.5}", "a", NULL, 1007 },
        { "{\"access_token\":\"a\",\"expires_in\":1e300}", "a", NULL, INT64_C(366) * 10 * 86400000 + 7 }, { "{\"access_token\":\"a\",\"expires_in\":\"x\"}", "a", NULL, -1 },
        { "{\"access_token\":\"a\",\"refresh_token\":\"\"}", "a", NULL, -1 }, { "{\"access_token\":\"a\",\"refresh_token\":7}", "a", NULL, -1 },
        { "{}", NULL, NULL, 0 }, { "[]", NULL, NULL, 0 }, { "", NULL, NULL, 0 }, { "{\"access_token\":\"\"}", NULL, NULL, 0 }, { "{\"access_token\":\"a b\"}", NULL, NULL, 0 },
        { "{\"access_token\":\"a\\r\\nx: y\"}", NULL, NULL, 0 }, { "{\"access_token\":\"a\",\"token_type\":\"mac\"}", NULL, NULL, 0 }, { "{\"access_token\":{}}", NULL, NULL, 0 },
        { "{\"access_token\":\"\xc3\xa4\"}", NULL, NULL, 0 },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct fresh f = { 0 };
        struct err e = { 0 };
        int rc = token_answer(row[i].in, strlen(row[i].in), 7, &f, &e);
        if (rc != (row[i].access ? RC_OK : RC_PROTO))
            fail_msg("row %zu: %d %s", i, rc, e.msg);
        if (rc == RC_OK && (!str_eq(secret_text(f.access_token), row[i].access) || !str_eq(secret_text(f.refresh_token), row[i].refresh) || f.expires_ms != row[i].expires))
            fail_msg("row %zu: %s %lld", i, secret_text(f.access_token), (long long)f.expires_ms);
        fresh_done(&f);
    }
    char code[64];
    token_error("{\"error\":\"invalid_grant\"}", 25, code);
    assert_string_equal(code, "invalid_grant");
    static const char *const odd[] = { "{\"error\":\"my-secret\"}", "{\"error\":{}}", "x", "", "{\"error\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}" };
    for (size_t i = 0; i < COUNT_OF(odd); i++) {
        token_error(odd[i], strlen(odd[i]), code);
        assert_string_equal(code, "");
    }
}

static void requests(void **st)
{
    (void)st;
    struct err e = { 0 };
    struct secret *basic = NULL;
    struct buf b;
    struct cred c = { .oauth = true, .token_endpoint = "x", .client_id = "c&d", .auth = "client_secret_post", .scope = "a b", .resource = "https://r/?x=1",
                      .secrets = { .refresh_token = secret_new("r+/=", 4), .client_secret = secret_new("s:%", 3) } };
    buf_init(&b, 4096);
    assert_int_equal(token_request(&c, &b, &basic, &e), RC_OK);
    assert_string_equal(buf_data(&b), "grant_type=refresh_token&refresh_token=r%2B%2F%3D&client_id=c%26d&client_secret=s%3A%25&scope=a%20b&resource=https%3A%2F%2Fr%2F%3Fx%3D1");
    assert_null(basic);
    buf_done(&b);
    c.auth = "client_secret_basic";
    c.scope = c.resource = NULL;
    assert_int_equal(token_request(&c, &b, &basic, &e), RC_OK);
    assert_string_equal(buf_data(&b), "grant_type=refresh_token&refresh_token=r%2B%2F%3D");
    assert_string_equal(secret_text(basic), "YyUyNmQ6cyUzQSUyNQ==");         /* c%26d:s%3A%25 */
    secret_free(basic);
    buf_done(&b);
    secret_free(TAKE(c.secrets.client_secret));
    assert_int_equal(token_request(&c, &b, &basic, &e), RC_INVALID);
    buf_done(&b);
    vault_secrets_done(&c.secrets);
}

static void scrubbing(void **st)
{
    (void)st;
    struct note n = { 0 };
    AUTO_PTR(secret) s = secret_new("to/ken+\"1\"", 10);
    AUTO_PTR(secret) tiny = secret_new("ab", 2);
    const struct secret *hide[] = { NULL, s, tiny };
    static const char in[] = "raw to/ken+\"1\" json \"to/ken+\\\"1\\\"\" slashes to\\/ken+\\\"1\\\" form to%2Fken%2B%221%22 base64 dG8va2VuKyIxIg== ab end";
    note_set(&n, 400, "text/plain", in, strlen(in), hide, 3);
    assert_string_equal(n.body, "raw [redacted] json \"[redacted]\" slashes [redacted] form [redacted] base64 [redacted] ab end");
    assert_false(n.truncated);
    char *big = calloc(1, SHOWN_MAX + 20);
    memset(big, 'x', SHOWN_MAX + 10);
    memcpy(big + SHOWN_MAX - 5, "to/ken+\"1\"", 10);      /* across the cut */
    note_set(&n, 400, NULL, big, SHOWN_MAX + 10, hide, 3);
    assert_int_equal(strlen(n.body), SHOWN_MAX);
    assert_true(n.truncated);
    assert_null(strstr(n.body, "to/"));
    free(big);
    note_done(&n);
}

static void secrets(void **st)
{
    (void)st;
    struct err e = { 0 };
    struct buf b;
    struct vault_secrets in = { .token = secret_new("t\n\"\xc3\xa4", 5), .client_secret = secret_new("c", 1), .refreshed_ms = 42 }, out = { 0 };
    buf_init(&b, 4096);
    assert_int_equal(vault_secrets_seal(w.seal, "vcrd_1", &in, &b, &e), RC_OK);
    struct store_credential c = { .id = "vcrd_1", .sealed = buf_data(&b), .sealed_n = buf_len(&b) };
    assert_int_equal(vault_secrets_open(w.seal, &c, &out, &e), RC_OK);
    assert_string_equal(secret_text(out.token), "t\n\"\xc3\xa4");
    assert_string_equal(secret_text(out.client_secret), "c");
    assert_null(out.refresh_token);
    assert_int_equal(out.refreshed_ms, 42);
    c.id = "vcrd_2";
    assert_int_equal(vault_secrets_open(w.seal, &c, &out, &e), RC_UNAUTHORIZED);      /* moved to another row */
    c.sealed = NULL;
    assert_int_equal(vault_secrets_open(w.seal, &c, &out, &e), RC_UNAUTHORIZED);
    vault_secrets_done(&in);
    vault_secrets_done(&out);
    buf_done(&b);
    json_t *j = json_pack("{s:s, s:s}", "a", "value", "empty", "");
    const char *raw = json_string_value(json_object_get(j, "a"));
    AUTO_PTR(secret) s = vault_take_string(j, "a");
    assert_string_equal(secret_text(s), "value");
    assert_memory_equal(raw, "\0\0\0\0\0", 5);
    assert_null(vault_take_string(j, "empty"));
    assert_null(vault_take_string(j, "none"));
    json_decref(j);
}

static void expiry(void **st)
{
    (void)st;
    struct cred c = { .oauth = true, .expires_ms = 1000000 };
    assert_false(cred_expired(&c, 1000000 - EXPIRY_SKEW_MS - 1));
    assert_true(cred_expired(&c, 1000000 - EXPIRY_SKEW_MS));
    c.secrets.refreshed_ms = 1000000 - 10000;        /* lived ten seconds: a tenth of that */
    assert_false(cred_expired(&c, 1000000 - 1001));
    assert_true(cred_expired(&c, 1000000 - 1000));
    c.expires_ms = -1;
    assert_false(cred_expired(&c, INT64_MAX));
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(urls), cmocka_unit_test(answers), cmocka_unit_test(requests), cmocka_unit_test(scrubbing), cmocka_unit_test(expiry), CASE(secrets),
        CASE(order_and_absence), CASE(one_refresh_for_all), CASE(a_stale_row_is_read_again), CASE(refusals), CASE(a_full_disk_loses_nothing),
        CASE(changes_during_a_refresh), CASE(drain_waits), CASE(freed_while_busy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
