/* http/server_reply.c - answers: their head, the writing, refusals, and what becomes of the connection after. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "http/server_internal.h"

static const char *reason(int status)
{
    static const struct { int status; const char *text; } t[] = {
        { 200, "OK" }, { 201, "Created" }, { 202, "Accepted" }, { 204, "No Content" }, { 206, "Partial Content" }, { 301, "Moved Permanently" },
        { 302, "Found" }, { 303, "See Other" }, { 304, "Not Modified" }, { 307, "Temporary Redirect" }, { 308, "Permanent Redirect" },
        { 400, "Bad Request" }, { 401, "Unauthorized" }, { 402, "Payment Required" }, { 403, "Forbidden" }, { 404, "Not Found" },
        { 405, "Method Not Allowed" }, { 406, "Not Acceptable" }, { 408, "Request Timeout" }, { 409, "Conflict" }, { 410, "Gone" },
        { 411, "Length Required" }, { 412, "Precondition Failed" }, { 413, "Content Too Large" }, { 414, "URI Too Long" },
        { 415, "Unsupported Media Type" }, { 416, "Range Not Satisfiable" }, { 417, "Expectation Failed" }, { 421, "Misdirected Request" },
        { 422, "Unprocessable Content" }, { 426, "Upgrade Required" }, { 428, "Precondition Required" }, { 429, "Too Many Requests" },
        { 431, "Request Header Fields Too Large" }, { 500, "Internal Server Error" }, { 501, "Not Implemented" }, { 502, "Bad Gateway" },
        { 503, "Service Unavailable" }, { 504, "Gateway Timeout" }, { 529, "Overloaded" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++)
        if (t[i].status == status)
            return t[i].text;
    return "Status";
}

static bool has_no_body(int status) { return status == 204 || status == 304; }

void reply_head_begin(struct buf *out, int status, const char *content_type, const char *headers)
{
    buf_init(out, HTTP_REPLY_HEAD_MAX);
    (void)buf_reserve(out, 511);            /* one allocation for an ordinary head */
    buf_printf(out, "HTTP/1.1 %d %s\r\n", status, reason(status));
    if (content_type) {
        buf_puts(out, "content-type: ");
        buf_puts(out, content_type);
        buf_puts(out, "\r\n");
    }
    if (headers)
        buf_puts(out, headers);
}

void reply_head_end(struct http_server *s, struct buf *out, const struct http_head *h, bool close)
{
    buf_puts(out, "date: ");
    buf_puts(out, server_date(s));
    buf_puts(out, close ? "\r\nconnection: close\r\n\r\n" : h && h->minor == 0 ? "\r\nconnection: keep-alive\r\n\r\n" : "\r\n\r\n");
}

/* ---- writing ---- */

/* Our side is done. The peer gets time to read the answer before close() could reset the connection under it (RFC 9112 9.6). */
static void linger_begin(struct conn *c)
{
    if (c->eof) {
        conn_close(c);
        return;
    }
    tls_free(c->tls);                       /* sends close_notify */
    c->tls = NULL;
    c->rd_want = EV_READ;
    c->wr_want = EV_WRITE;
    c->close_after = true;
    buf_done(&c->in);
    c->state = CONN_LINGER;
    conn_deadline(c, HTTP_LINGER_MS);
    if (shutdown(c->fd, SHUT_WR) < 0)
        conn_close(c);
}

static void answer_done(struct conn *c)
{
    size_t ahead = buf_len(&c->in);
    if (c->close_after || (c->eof && ahead == 0)) {
        linger_begin(c);
        return;
    }
    c->state = CONN_IDLE;
    c->since_ms = ev_now_ms(c->s->ev);
    conn_deadline(c, c->s->conf.limits.idle_ms);
    if (!c->processing && (ahead || c->tls_more))
        conn_kick(c);
}

static int send_plain(struct conn *c, size_t *ret_n)
{
    struct iovec v[2] = {
        { buf_data(&c->out), buf_len(&c->out) },
        { buf_data(&c->body), buf_len(&c->body) },
    };
    struct msghdr m = { .msg_iov = v[0].iov_len ? v : v + 1, .msg_iovlen = v[0].iov_len && v[1].iov_len ? 2 : 1 };
    ssize_t n;
    do {
        n = sendmsg(c->fd, &m, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? RC_AGAIN : RC_IO;
    *ret_n = (size_t)n;
    return RC_OK;
}

/* Head and the beginning of the body share one record; the rest goes from where it lies. */
static int send_tls(struct conn *c, size_t *ret_n)
{
    const char *p = buf_data(&c->out);
    size_t n = buf_len(&c->out), more = buf_len(&c->body);
    unsigned want = EV_WRITE;
    if (n == 0) {
        p = buf_data(&c->body);
        n = more;
    } else if (more && n < HTTP_TLS_RECORD) {
        size_t take = more < HTTP_TLS_RECORD - n ? more : HTTP_TLS_RECORD - n;
        memcpy(c->s->record, p, n);
        memcpy(c->s->record + n, buf_data(&c->body), take);
        p = c->s->record;
        n += take;
    }
    int rc = tls_write(c->tls, p, n, ret_n, &want, NULL);
    c->wr_want = rc == RC_AGAIN ? want : EV_WRITE;
    return rc;
}

static void sent(struct conn *c, size_t n)
{
    size_t head = buf_len(&c->out);
    if (n < head) {
        buf_consume(&c->out, n);
        return;
    }
    buf_done(&c->out);                      /* an idle connection or stream keeps no memory */
    if (n - head < buf_len(&c->body))
        buf_consume(&c->body, n - head);
    else
        buf_done(&c->body);
}

int conn_send(struct conn *c)
{
    bool timed = c->state == CONN_WRITING || c->state == CONN_STREAM;
    bool progress = false;
    int rc = RC_OK;
    while (rc == RC_OK && (buf_len(&c->out) || buf_len(&c->body))) {
        size_t n = 0;
        rc = c->tls ? send_tls(c, &n) : send_plain(c, &n);
        if (rc == RC_OK) {
            progress = progress || n > 0;
            sent(c, n);
        }
    }
    if (progress && c->stream)
        stream_sent(c->stream);
    if (rc == RC_AGAIN && timed && (progress || c->deadline_ms == INT64_MAX)) {
        c->unread = conn_unread(c);
        conn_deadline(c, c->s->conf.limits.write_ms);
    } else if (rc == RC_OK && c->state == CONN_STREAM) {
        conn_deadline(c, -1);
    }
    return rc;
}

void conn_flush(struct conn *c)
{
    int rc = conn_send(c);
    if (rc < 0 && rc != RC_AGAIN)
        conn_close(c);
    else if (rc == RC_OK && c->state == CONN_WRITING)
        answer_done(c);
}

void conn_answer(struct conn *c, struct buf *head, struct buf *body)
{
    c->state = CONN_WRITING;
    conn_deadline(c, -1);
    if (buf_len(&c->out)) {                 /* the end of a "100 Continue" still waits */
        if (buf_put(&c->out, buf_data(head), buf_len(head)) < 0)
            c->close_after = true;
        buf_done(head);
    } else {
        buf_done(&c->out);
        c->out = *head;
    }
    buf_done(&c->body);
    c->body = *body;
    conn_flush(c);
}

void conn_refuse(struct conn *c, int status, const char *why)
{
    struct http_server *s = c->s;
    struct http_req *r = TAKE(c->req);
    bool head_only = r && r->head.method == HTTP_HEAD;
    struct buf head, body;
    buf_init(&body, HTTP_REFUSAL_MAX);
    if (s->conf.on_refused)
        s->conf.on_refused(s->conf.ctx, status, why, &body);
    reply_head_begin(&head, status, buf_len(&body) ? "application/json" : NULL, status == 503 ? "retry-after: 1\r\n" : NULL);
    buf_printf(&head, "content-length: %zu\r\n", buf_len(&body));
    reply_head_end(s, &head, NULL, true);
    if (head_only)
        buf_done(&body);
    metric_add(&http_metric_refused, 1);
    c->close_after = true;
    buf_done(&c->in);
    if (r)
        req_free(r);
    conn_answer(c, &head, &body);
}

/* ---- the application's answer ---- */

static void reply_apply(void *arg)
{
    struct http_req *r = arg;
    struct conn *c = r->conn;
    if (!c) {
        req_free(r);
        return;
    }
    conn_enter(c);
    c->req = NULL;
    c->close_after = r->reply_close || !r->head.keep_alive || c->s->draining;
    reply_head_end(c->s, &r->out, &r->head, c->close_after);
    if (!buf_ok(&r->out)) {
        conn_refuse(c, 500, "the head of the answer is too large");
    } else {
        if (r->head.method == HTTP_HEAD)
            buf_done(&r->reply_body);
        struct buf head = r->out, body = r->reply_body;
        r->out = r->reply_body = (struct buf){ 0 };
        conn_answer(c, &head, &body);
    }
    req_free(r);
    conn_leave(c);
}

void http_reply(struct http_req *r, const struct http_reply *a)
{
    bool bad = a->status < 200 || a->status > 599 || (a->body && !buf_ok(a->body));     /* a cut body must not pass for a whole one */
    int status = bad ? 500 : a->status;
    reply_head_begin(&r->out, status, a->content_type, a->headers);
    if (a->body) {
        r->reply_body = *a->body;
        buf_init(a->body, r->reply_body.max);
    }
    if (bad || has_no_body(status))
        buf_done(&r->reply_body);
    if (!has_no_body(status))
        buf_printf(&r->out, "content-length: %zu\r\n", buf_len(&r->reply_body));
    r->reply_close = a->close;
    struct http_server *s = r->s;
    if (pthread_equal(pthread_self(), atomic_load_explicit(&s->loop_thread, memory_order_relaxed)))
        reply_apply(r);
    else
        ev_post(s->ev, reply_apply, r);
}
