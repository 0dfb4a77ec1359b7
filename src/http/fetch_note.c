/* What libcurl reports while it works. Nothing here runs the caller's code: it is only noted, and handed over when libcurl has returned. */
#include <ctype.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "http/fetch_internal.h"

static int64_t parse_retry_after(const struct fetch_curl *curl, struct slice v, bool ms)
{
    char text[64];
    int64_t n;
    struct slice whole = v;
    const char *dot = v.n ? memchr(v.p, '.', v.n) : NULL;
    if (dot)
        whole.n = (size_t)(dot - v.p);      /* fractions are dropped */
    if (slice_to_i64(whole, 0, FETCH_RETRY_AFTER_MAX_MS, &n) == RC_OK)
        n = ms ? n : n * 1000;
    else if (ms || v.n == 0 || v.n >= sizeof text)
        return -1;
    else {
        memcpy(text, v.p, v.n);
        text[v.n] = '\0';
        time_t at = curl->getdate(text, NULL);
        if (at == -1)
            return -1;
        n = (int64_t)at * 1000 - clock_now_ms();
    }
    return n < 0 ? 0 : n > FETCH_RETRY_AFTER_MAX_MS ? FETCH_RETRY_AFTER_MAX_MS : n;
}

static void note_status(struct fetch_call *c, struct slice line)
{
    const char *space = memchr(line.p, ' ', line.n);
    int64_t status = 0;
    if (!space || line.n - (size_t)(space - line.p) < 4 || slice_to_i64((struct slice){ space + 1, 3 }, 100, 999, &status) < 0)
        return;
    if (status < 200)
        return;                             /* interim: the answer is still to come */
    c->status = (int)status;
    c->phase = PHASE_STREAM;
    c->retry_after_ms = c->retry_after_exact_ms = -1;
    c->request_id[0] = '\0';
    buf_clear(&c->head);
}

static void note_request_id(struct fetch_call *c, struct slice v)
{
    size_t n = 0;
    for (size_t i = 0; i < v.n && n < sizeof c->request_id - 1; i++)
        if (isgraph((unsigned char)v.p[i]))
            c->request_id[n++] = v.p[i];
    c->request_id[n] = '\0';
}

/* What of a proxy's answer to CONNECT is of interest. */
static void note_proxy(struct fetch_call *c, struct slice line)
{
    if (line.n > 5 && memcmp(line.p, "HTTP/", 5) == 0) {
        const char *space = memchr(line.p, ' ', line.n);
        int64_t status = 0;
        if (space && line.n - (size_t)(space - line.p) >= 4 && slice_to_i64((struct slice){ space + 1, 3 }, 100, 999, &status) == RC_OK)
            c->proxy_status = (int)status;
        c->proxy_note[0] = '\0';
        return;
    }
    const char *colon = line.n ? memchr(line.p, ':', line.n) : NULL;
    if (!colon || !slice_eq_nocase((struct slice){ line.p, (size_t)(colon - line.p) }, c->proxy_note_name))
        return;
    struct slice v = slice_trim((struct slice){ colon + 1, line.n - (size_t)(colon - line.p) - 1 });
    size_t n = 0;
    for (size_t i = 0; i < v.n && n < sizeof c->proxy_note - 1; i++)
        if (isgraph((unsigned char)v.p[i]))
            c->proxy_note[n++] = v.p[i];
    c->proxy_note[n] = '\0';
}

static size_t on_header(char *p, size_t size, size_t count, void *ctx)
{
    struct fetch_call *c = ctx;
    size_t n = size * count;
    struct slice line = { p, n };
    c->last_byte_ms = ev_now_ms(c->f->ev);
    while (line.n && (line.p[line.n - 1] == '\n' || line.p[line.n - 1] == '\r'))
        line.n--;
    if (c->body_begun)
        return n;                           /* a trailer */
    if (c->proxied && c->phase == PHASE_CONNECT) {
        note_proxy(c, line);
        return n;
    }
    if (line.n > 5 && memcmp(line.p, "HTTP/", 5) == 0) {
        note_status(c, line);
        return n;
    }
    if (line.n == 0 && c->status && !c->head_whole) {
        c->head_whole = true;
        fetch_ready(c);
    }
    const char *colon = line.n ? memchr(line.p, ':', line.n) : NULL;
    if (!colon || !c->status || c->head_whole)
        return n;
    if (c->req.on_head && buf_room(&c->head) > line.n + 2) {
        (void)buf_put(&c->head, line.p, line.n);
        (void)buf_puts(&c->head, "\r\n");
    }
    struct slice name = { line.p, (size_t)(colon - line.p) }, value = slice_trim((struct slice){ colon + 1, line.n - name.n - 1 });
    if (slice_eq_nocase(name, "retry-after-ms"))
        c->retry_after_exact_ms = parse_retry_after(c->f->curl, value, true);
    else if (slice_eq_nocase(name, "retry-after"))
        c->retry_after_ms = parse_retry_after(c->f->curl, value, false);
    else if (slice_eq_nocase(name, "request-id") || (!c->request_id[0] && slice_eq_nocase(name, "x-request-id")))
        note_request_id(c, value);
    return n;
}

static bool is_streamed(const struct fetch_call *c) { return c->req.on_data && c->status >= 200 && c->status < 300; }

static size_t on_body(char *p, size_t size, size_t count, void *ctx)
{
    struct fetch_call *c = ctx;
    size_t n = size * count;
    c->last_byte_ms = ev_now_ms(c->f->ev);
    c->body_begun = true;
    if (is_streamed(c)) {
        if (buf_len(&c->pending) && (c->held || buf_room(&c->pending) < n)) {
            c->paused = true;
            fetch_ready(c);
            return CURL_WRITEFUNC_PAUSE;
        }
        if (buf_put(&c->pending, p, n) == RC_OK) {
            fetch_ready(c);
            return n;
        }
    } else {
        int rc = buf_put(&c->body, p, n);
        if (rc == RC_OK)
            return n;
        if (rc == RC_LIMIT) {
            err_set(&c->err, RC_TOO_LARGE, "the answer is larger than %zu bytes", c->body.max);
            return 0;                       /* libcurl ends the transfer with CURLE_WRITE_ERROR */
        }
    }
    err_set(&c->err, RC_NOMEM, "out of memory for the answer");
    return 0;
}

/* The connection stands (TCP, proxy, TLS); the request goes out now. */
static int on_connected(void *ctx, char *ip, char *own_ip, int port, int own_port)
{
    struct fetch_call *c = ctx;
    long made = 0;
    (void)ip, (void)own_ip, (void)port, (void)own_port;
    if (c->exact && !c->ruled && (c->f->curl->easy_getinfo(c->easy, CURLINFO_NUM_CONNECTS, &made) != CURLE_OK || made > 0)) {
        err_set(&c->err, RC_UNSUPPORTED, "this libcurl cannot hold the server's certificate to the rules of tunnels");
        return CURL_PREREQFUNC_ABORT;
    }
    if (c->phase == PHASE_CONNECT)
        c->phase = PHASE_FIRST_BYTE;
    c->connected_ms = ev_now_ms(c->f->ev);
    return CURL_PREREQFUNC_OK;
}

void fetch_note_install(struct fetch_call *c)
{
    const struct fetch_curl *curl = c->f->curl;
    (void)curl->easy_setopt(c->easy, CURLOPT_WRITEFUNCTION, on_body);
    (void)curl->easy_setopt(c->easy, CURLOPT_WRITEDATA, c);
    (void)curl->easy_setopt(c->easy, CURLOPT_HEADERFUNCTION, on_header);
    (void)curl->easy_setopt(c->easy, CURLOPT_HEADERDATA, c);
    (void)curl->easy_setopt(c->easy, CURLOPT_PRIVATE, c);
    (void)curl->easy_setopt(c->easy, CURLOPT_ERRORBUFFER, c->curl_text);
    if (curl->easy_setopt(c->easy, CURLOPT_PREREQFUNCTION, on_connected) == CURLE_OK)
        (void)curl->easy_setopt(c->easy, CURLOPT_PREREQDATA, c);
    else if (c->proxied || c->exact)        /* without it nothing says which of two answers is the proxy's */
        err_set(&c->err, RC_UNSUPPORTED, "this libcurl is too old for tunnels (7.80 is needed)");
    else {                      /* before 7.80 libcurl alone watches the connect time, and the first byte counts from the start */
        c->phase = PHASE_FIRST_BYTE;
        c->connected_ms = c->started_ms;
    }
}

static const struct { CURLcode code; int rc; } rc_of_curl[] = {
    { CURLE_OPERATION_TIMEDOUT, RC_TIMEOUT }, { CURLE_GOT_NOTHING, RC_CLOSED }, { CURLE_RECV_ERROR, RC_CLOSED }, { CURLE_SEND_ERROR, RC_CLOSED },
    { CURLE_PARTIAL_FILE, RC_CLOSED }, { CURLE_HTTP2, RC_CLOSED }, { CURLE_HTTP2_STREAM, RC_CLOSED }, { CURLE_URL_MALFORMAT, RC_INVALID },
    { CURLE_UNSUPPORTED_PROTOCOL, RC_PROTO } /* not HTTP at all */, { CURLE_BAD_FUNCTION_ARGUMENT, RC_INVALID }, { CURLE_OUT_OF_MEMORY, RC_NOMEM },
    { CURLE_PEER_FAILED_VERIFICATION, RC_PROTO }, { CURLE_SSL_CACERT_BADFILE, RC_INVALID }, { CURLE_WEIRD_SERVER_REPLY, RC_PROTO },
    { CURLE_BAD_CONTENT_ENCODING, RC_PROTO },
};

void fetch_note_result(struct fetch_call *c, CURLcode code)
{
    if (code == CURLE_OK) {
        fetch_end(c, RC_OK);
        return;
    }
    int rc = RC_IO;
    for (size_t i = 0; i < COUNT_OF(rc_of_curl); i++)
        if (rc_of_curl[i].code == code)
            rc = rc_of_curl[i].rc;
    if (c->err.rc == RC_OK)
        err_set(&c->err, rc, "%s", c->curl_text[0] ? c->curl_text : c->f->curl->easy_strerror(code));
    fetch_end(c, c->err.rc);
}
