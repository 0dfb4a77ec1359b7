/* http/client.h - small asynchronous HTTP/1.1 client on the event loop, used by the worker: keep-alive pool per origin, TLS with the
 * system's or an own CA, HTTP CONNECT / absolute-form proxy (HTTPS_PROXY, HTTP_PROXY, NO_PROXY read by the caller), response streaming.
 * Loop thread only. The control plane's calls to model APIs go through http/fetch.h instead. */
#pragma once

#include "base/attr.h"
#include "base/buf.h"
#include "base/secret.h"
#include "ev/ev.h"
#include "http/parse.h"
#include "tls/tls.h"

struct http_client;
struct http_client_conf {
    const char *ca_file;             /* NULL: system */
    const char *http_proxy, *https_proxy, *no_proxy;   /* URLs "http://[user:pass@]host:port", or NULL */
    size_t idle_max;                 /* kept connections per origin (default 8 when 0) */
    int64_t idle_ms;                 /* kept for (default 60 s when 0) */
    int64_t connect_ms;              /* default 10 s when 0 */
    const char *user_agent;
};
MUST_CHECK int http_client_new(struct ev *ev, const struct http_client_conf *c, struct http_client **ret, struct err *e);
void http_client_free(struct http_client *c);      /* cancels what runs */

struct http_call;
struct http_response { int status; const struct http_head *head; struct buf *body; };   /* body: whole (buffered mode) */
struct http_request {
    const char *method, *url;        /* absolute http:// or https:// URL */
    const char *headers;             /* complete lines "name: value\r\n", or NULL; never Authorization */
    const struct secret *bearer;     /* sent as Authorization: Bearer, or NULL */
    const char *body; size_t body_n; /* copied; content-type must be among headers; NULL with body_n 0: content-length: 0 on POST */
    int64_t timeout_ms;              /* whole call in buffered mode; until the head in streaming mode; 0: 60 s */
    int64_t stall_ms;                /* streaming mode: longest silence, 0: none */
    size_t  body_max;                /* buffered mode: RC_TOO_LARGE above; 0: 32 MiB */
    /* Streaming mode when on_data is set: on_head once, then on_data (negative return ends the call with that code), then on_done. A response whose
     * status is not 2xx is buffered also in streaming mode. */
    void (*on_head)(void *ctx, const struct http_head *h);
    int  (*on_data)(void *ctx, const char *p, size_t n);
    /* Exactly once, unless cancelled. rc RC_OK: `r` has status, head, body (empty after streaming). Otherwise `e` says why: RC_IO, RC_CLOSED,
     * RC_TIMEOUT, RC_PROTO, RC_TOO_LARGE. A request on a kept connection that closed before a byte of answer is sent again once. */
    void (*on_done)(void *ctx, int rc, const struct http_response *r, const struct err *e);
    void *ctx;
};
struct http_call *http_call_start(struct http_client *c, const struct http_request *r);   /* never NULL; failures come by on_done */
void http_call_cancel(struct http_call *c);        /* no callback after; NULL is fine */
