/* fetch.c - libcurl's multi interface on the event loop, opened by dlopen(). */
#include "http/fetch.h"

#include <dlfcn.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#define CURL_DISABLE_TYPECHECK
#include <curl/curl.h>

#include "base/list.h"
#include "base/str.h"

#define BODY_MAX (32 * MIB)
#define RETRY_AFTER_MAX_MS (24LL * 3600 * 1000)
#define DEFAULT_CONNS 256

#define CURL_FUNCS(X) \
    X(curl_global_init) X(curl_easy_init) X(curl_easy_setopt) X(curl_easy_getinfo) X(curl_easy_cleanup) X(curl_easy_strerror) \
    X(curl_slist_append) X(curl_slist_free_all) X(curl_multi_init) X(curl_multi_setopt) X(curl_multi_add_handle) X(curl_multi_remove_handle) \
    X(curl_multi_socket_action) X(curl_multi_info_read) X(curl_multi_assign) X(curl_multi_cleanup) X(curl_getdate)
static struct {
#define X(name) __typeof__(name) *name;
    CURL_FUNCS(X)
#undef X
    void *lib;
} api;

struct sock { struct ev_io io; struct fetch *f; struct list node; };
struct fetch {
    struct ev *ev;
    CURLM *multi;
    struct ev_timer timer;
    struct list calls, socks;
    char *ca_file, *proxy, *user_agent;
};
struct fetch_call {
    struct fetch *f;
    struct list node;
    CURL *easy;
    struct curl_slist *headers;
    struct fetch_request r;
    struct buf body;
    struct ev_timer total, silence;
    int status, failed;              /* failed: an rc of ours that ended the call */
    int64_t retry_after_ms;
    char request_id[128], why[CURL_ERROR_SIZE];
    bool began, done;
    struct err start_err;
};

static int load_api(struct err *e)
{
    if (api.lib)
        return RC_OK;
    void *lib = dlopen("libcurl.so.4", RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        return err_set(e, RC_UNSUPPORTED, "libcurl is needed for calls to model APIs and could not be opened: %s", dlerror());
#define X(name)                                                                                       \
    if (!(api.name = (__typeof__(name) *)dlsym(lib, #name)))                                          \
        return err_set(e, RC_UNSUPPORTED, "libcurl.so.4 lacks " #name);
    CURL_FUNCS(X)
#undef X
    if (api.curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        return err_set(e, RC_UNSUPPORTED, "libcurl could not be initialised");
    api.lib = lib;
    return RC_OK;
}

/* ---- sockets and timer ---- */
static void reap(struct fetch *f);

static void on_socket(struct ev_io *io, unsigned got)
{
    struct sock *s = container_of(io, struct sock, io);
    struct fetch *f = s->f;
    int running, what = (got & EV_READ ? CURL_CSELECT_IN : 0) | (got & EV_WRITE ? CURL_CSELECT_OUT : 0) | (got & EV_HUP ? CURL_CSELECT_IN | CURL_CSELECT_ERR : 0);
    (void)api.curl_multi_socket_action(f->multi, io->fd, what, &running);
    reap(f);
}

static int socket_cb(CURL *easy, curl_socket_t fd, int what, void *ctx, void *priv)
{
    struct fetch *f = ctx;
    struct sock *s = priv;
    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        if (s) {
            ev_io_stop(&s->io);
            list_del(&s->node);
            free(s);
            (void)api.curl_multi_assign(f->multi, fd, NULL);
        }
        return 0;
    }
    unsigned want = (what & CURL_POLL_IN ? EV_READ : 0) | (what & CURL_POLL_OUT ? EV_WRITE : 0);
    if (s) {
        ev_io_want(&s->io, want);
        return 0;
    }
    s = xcalloc(1, sizeof *s);
    s->f = f;
    if (ev_io_start(f->ev, &s->io, fd, want, on_socket) < 0) {
        free(s);
        return -1;
    }
    list_add_tail(&f->socks, &s->node);
    (void)api.curl_multi_assign(f->multi, fd, s);
    return 0;
}

static void on_timer(struct ev_timer *t)
{
    struct fetch *f = container_of(t, struct fetch, timer);
    int running;
    (void)api.curl_multi_socket_action(f->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    reap(f);
}

static int timer_cb(CURLM *m, long ms, void *ctx)
{
    struct fetch *f = ctx;
    (void)m;
    if (ms < 0)
        ev_timer_stop(&f->timer);
    else
        ev_timer_set(f->ev, &f->timer, ms, on_timer);
    return 0;
}

/* ---- one call ---- */
static void call_free(struct fetch_call *c)
{
    ev_timer_stop(&c->total);
    ev_timer_stop(&c->silence);
    list_del(&c->node);
    if (c->easy) {
        (void)api.curl_multi_remove_handle(c->f->multi, c->easy);
        api.curl_easy_cleanup(c->easy);
    }
    for (struct curl_slist *h = c->headers; h; h = h->next)      /* one of them holds the credential */
        wipe(h->data, strlen(h->data));
    api.curl_slist_free_all(c->headers);
    buf_done(&c->body);
    free(c);
}

static int rc_of(CURLcode code)
{
    switch ((int)code) {
    case CURLE_OPERATION_TIMEDOUT: return RC_TIMEOUT;
    case CURLE_PARTIAL_FILE:
    case CURLE_RECV_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_HTTP2_STREAM: return RC_CLOSED;
    case CURLE_WEIRD_SERVER_REPLY: return RC_PROTO;
    default: return RC_IO;
    }
}

static void finish(struct fetch_call *c, CURLcode code)
{
    struct err e = { 0 };
    int rc = RC_OK;
    if (c->start_err.rc < 0)
        rc = err_set(&e, c->start_err.rc, "%s", c->start_err.msg);
    else if (c->failed < 0)
        rc = err_set(&e, c->failed, "%s: %s", c->r.url, c->why[0] ? c->why : rc_text(c->failed));
    else if (code != CURLE_OK)
        rc = err_set(&e, rc_of(code), "%s: %s", c->r.url, c->why[0] ? c->why : api.curl_easy_strerror(code));
    if (c->done)
        return;
    c->done = true;
    char id[sizeof c->request_id];
    memcpy(id, c->request_id, sizeof id);
    c->r.on_done(c->r.ctx, rc, c->status, c->retry_after_ms, id[0] ? id : NULL, &c->body, rc < 0 ? &e : NULL);
    free((char *)(uintptr_t)c->r.url);
    call_free(c);
}

static void reap(struct fetch *f)
{
    CURLMsg *m;
    int left;
    while ((m = api.curl_multi_info_read(f->multi, &left))) {
        if (m->msg != CURLMSG_DONE)
            continue;
        struct fetch_call *found = NULL;
        CURLcode code = m->data.result;
        list_foreach(c, &f->calls, struct fetch_call, node) {
            if (c->easy == m->easy_handle)
                found = c;
        }
        if (found)
            finish(found, code);
    }
}

static void on_total(struct ev_timer *t)
{
    struct fetch_call *c = container_of(t, struct fetch_call, total);
    c->failed = RC_TIMEOUT;
    (void)str_copy(c->why, sizeof c->why, c->start_err.rc < 0 ? "" : "no complete answer in time");
    finish(c, CURLE_OPERATION_TIMEDOUT);
}

static void on_silence(struct ev_timer *t)
{
    struct fetch_call *c = container_of(t, struct fetch_call, silence);
    c->failed = RC_TIMEOUT;
    (void)str_copy(c->why, sizeof c->why, c->began ? "the answer stalled" : "no answer in time");
    finish(c, CURLE_OPERATION_TIMEDOUT);
}

static void read_retry_after(struct fetch_call *c, const char *v, bool in_ms)
{
    int64_t n;
    if (str_to_i64(v, 0, RETRY_AFTER_MAX_MS, &n) == RC_OK) {
        c->retry_after_ms = in_ms ? n : n > RETRY_AFTER_MAX_MS / 1000 ? RETRY_AFTER_MAX_MS : n * 1000;
        return;
    }
    time_t at = api.curl_getdate(v, NULL), now = time(NULL);
    if (!in_ms && at >= 0)
        c->retry_after_ms = at > now ? (int64_t)(at - now) * 1000 : 0;
}

static size_t on_header(char *p, size_t size, size_t n, void *ctx)
{
    struct fetch_call *c = ctx;
    char line[512];
    size_t len = size * n < sizeof line - 1 ? size * n : sizeof line - 1;
    memcpy(line, p, len);
    line[len] = '\0';
    line[strcspn(line, "\r\n")] = '\0';
    if (str_prefix(line, "HTTP/")) {
        long status = 0;
        (void)api.curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
        c->status = (int)status;
        c->retry_after_ms = -1;
        return size * n;
    }
    char *v = strchr(line, ':');
    if (!v)
        return size * n;
    *v++ = '\0';
    v += strspn(v, " \t");
    if (strcasecmp(line, "retry-after-ms") == 0)
        read_retry_after(c, v, true);
    else if (strcasecmp(line, "retry-after") == 0 && c->retry_after_ms < 0)
        read_retry_after(c, v, false);
    else if (strcasecmp(line, "request-id") == 0)
        (void)str_copy(c->request_id, sizeof c->request_id, v);
    return size * n;
}

static size_t on_body(char *p, size_t size, size_t n, void *ctx)
{
    struct fetch_call *c = ctx;
    size_t len = size * n;
    long status = 0;
    (void)api.curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    c->status = (int)status;
    c->began = true;
    if (c->r.stall_ms > 0)
        ev_timer_set(c->f->ev, &c->silence, c->r.stall_ms, on_silence);
    else
        ev_timer_stop(&c->silence);
    if (c->done)
        return 0;
    if (c->r.on_data && status / 100 == 2) {
        int rc = c->r.on_data(c->r.ctx, c->status, p, len);
        if (rc < 0)
            c->failed = rc;
        return rc < 0 || c->done ? 0 : len;
    }
    if (buf_put(&c->body, p, len) < 0) {
        c->failed = RC_TOO_LARGE;
        return 0;
    }
    return len;
}

static void add_header(struct fetch_call *c, const char *line)
{
    struct curl_slist *h = api.curl_slist_append(c->headers, line);
    if (h)
        c->headers = h;
}

static void set_options(struct fetch_call *c, const struct fetch_request *r)
{
    struct fetch *f = c->f;
    CURL *h = c->easy;
    for (size_t i = 0; i < r->n_headers; i++)
        add_header(c, r->headers[i]);
    if (r->secret && r->secret_header) {
        char *line = str_printf("%s: %s%s", r->secret_header, r->secret_prefix ? r->secret_prefix : "", secret_text(r->secret));
        add_header(c, line);
        wipe(line, strlen(line));
        free(line);
    }
    add_header(c, "Expect:");
#define SET(opt, v) (void)api.curl_easy_setopt(h, opt, v)
    SET(CURLOPT_URL, r->url);
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_CUSTOMREQUEST, r->method);
    if (r->body || str_eq(r->method, "POST")) {
        SET(CURLOPT_POSTFIELDS, r->body ? r->body : "");
        SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)r->body_n);
    }
    SET(CURLOPT_HTTPHEADER, c->headers);
    SET(CURLOPT_HEADERFUNCTION, on_header);
    SET(CURLOPT_HEADERDATA, c);
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, c);
    SET(CURLOPT_ERRORBUFFER, c->why);
    SET(CURLOPT_TCP_KEEPALIVE, 1L);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)(r->connect_ms > 0 ? r->connect_ms : 10000));
    if (f->ca_file)
        SET(CURLOPT_CAINFO, f->ca_file);
    if (f->proxy)
        SET(CURLOPT_PROXY, f->proxy);
    if (f->user_agent)
        SET(CURLOPT_USERAGENT, f->user_agent);
#undef SET
}

struct fetch_call *fetch_start(struct fetch *f, const struct fetch_request *r)
{
    struct fetch_call *c = xcalloc(1, sizeof *c);
    c->f = f;
    c->r = *r;
    c->r.url = str_dup(r->url);
    c->retry_after_ms = -1;
    buf_init(&c->body, r->body_max ? r->body_max : BODY_MAX);
    list_add_tail(&f->calls, &c->node);
    c->easy = api.curl_easy_init();
    if (c->easy) {
        set_options(c, r);
        if (api.curl_multi_add_handle(f->multi, c->easy) != CURLM_OK)
            (void)err_set(&c->start_err, RC_IO, "%s: the call could not be started", r->url);
    } else {
        (void)err_set(&c->start_err, RC_NOMEM, "%s: the call could not be made", r->url);
    }
    if (c->start_err.rc < 0)
        ev_timer_set(f->ev, &c->total, 0, on_total);         /* told in a later turn, like every outcome */
    else if (r->total_ms > 0)
        ev_timer_set(f->ev, &c->total, r->total_ms, on_total);
    if (c->start_err.rc == 0 && r->first_byte_ms > 0)
        ev_timer_set(f->ev, &c->silence, r->first_byte_ms, on_silence);
    return c;
}

/* libcurl's handle may be in use by a callback above us: it is taken apart in a later turn. */
static void free_later(void *arg)
{
    call_free(arg);
}

void fetch_cancel(struct fetch_call *c)
{
    if (!c || c->done)
        return;
    c->done = true;
    ev_timer_stop(&c->total);
    ev_timer_stop(&c->silence);
    free((char *)(uintptr_t)c->r.url);
    c->r.url = NULL;
    ev_post(c->f->ev, free_later, c);
}

int fetch_new(struct ev *ev, const struct fetch_conf *conf, struct fetch **ret, struct err *e)
{
    TRY(load_api(e));
    struct fetch *f = xcalloc(1, sizeof *f);
    f->ev = ev;
    list_init(&f->calls);
    list_init(&f->socks);
    f->ca_file = str_dup(conf->ca_file);
    f->proxy = str_dup(conf->proxy);
    f->user_agent = str_dup(conf->user_agent);
    f->multi = api.curl_multi_init();
    if (!f->multi) {
        fetch_free(f);
        return err_set(e, RC_NOMEM, "libcurl made no handle");
    }
    (void)api.curl_multi_setopt(f->multi, CURLMOPT_SOCKETFUNCTION, socket_cb);
    (void)api.curl_multi_setopt(f->multi, CURLMOPT_SOCKETDATA, f);
    (void)api.curl_multi_setopt(f->multi, CURLMOPT_TIMERFUNCTION, timer_cb);
    (void)api.curl_multi_setopt(f->multi, CURLMOPT_TIMERDATA, f);
    (void)api.curl_multi_setopt(f->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, (long)(conf->conns_max ? conf->conns_max : DEFAULT_CONNS));
    *ret = f;
    return RC_OK;
}

void fetch_free(struct fetch *f)
{
    if (!f)
        return;
    list_foreach(c, &f->calls, struct fetch_call, node) {
        if (!c->done)
            free((char *)(uintptr_t)c->r.url);
        call_free(c);
    }
    if (f->multi)
        (void)api.curl_multi_cleanup(f->multi);
    ev_timer_stop(&f->timer);
    list_foreach(s, &f->socks, struct sock, node) {
        ev_io_stop(&s->io);
        list_del(&s->node);
        free(s);
    }
    free(f->ca_file);
    free(f->proxy);
    free(f->user_agent);
    free(f);
}
