/* http/fetch.h - the control plane's outgoing calls, by libcurl's multi interface on the event loop (HTTP/1.1 and 2, proxies, own CA).
 * libcurl is opened by dlopen() at fetch_new(), so that a worker or CLI process does not carry its twenty libraries (see the decision record).
 * Loop thread only. Callbacks never run inside fetch_start() or fetch_cancel(), and may call both for any call. Redirects are not followed. */
#pragma once

#include "base/attr.h"
#include "base/buf.h"
#include "base/secret.h"
#include "base/str.h"
#include "ev/ev.h"

#define FETCH_HEAD_MAX (32 * KIB)      /* header lines kept for on_head */
#define FETCH_PENDING_MAX (4 * MIB)    /* streamed bytes that may wait to be handed over; then the peer waits */

struct fetch;
/* proxy NULL: as HTTPS_PROXY, HTTP_PROXY and NO_PROXY say; "": none. ca_file NULL: the system's authorities. conns_max 0: no limit; else calls
 * over it wait, which counts as connecting. */
struct fetch_conf { const char *ca_file; const char *proxy; const char *user_agent; size_t conns_max; };
MUST_CHECK int fetch_new(struct ev *ev, const struct fetch_conf *c, struct fetch **ret, struct err *e);
void fetch_free(struct fetch *f);       /* cancels what runs; not from inside a callback */

/* How one request is carried, when not as struct fetch_conf says. The strings are borrowed until fetch_start() has returned. A connection is kept for,
 * and taken by, only calls whose struct fetch_via says the same, the bytes of ca_pem included: taking an authority away acts on the next call. */
struct fetch_via {
    const char *proxy;                                /* NULL: as fetch_conf; "": none; "https://host:port": CONNECT through it, also for plain http */
    const char *proxy_ca_file, *proxy_cert_file, *proxy_key_file;      /* the proxy's authorities instead of the system's; our certificate for it */
    const char *proxy_note;                           /* name of a header of the proxy's refusal that fetch_proxy_note() then gives */
    const char *ca_pem; size_t ca_pem_n;              /* trust exactly these authorities for the server: TLS 1.3, signed by one of them directly,
                                                         with subject alternative name and authority key identifier (tunnels.md 3.2) */
    const char *address;                              /* "192.0.2.1" or "2001:db8::1": this is dialled for the URL's host; nothing is looked up */
};

struct fetch_call;
struct fetch_request {
    const struct fetch_via *via;                      /* or NULL */
    const char *method, *url;
    const char *const *headers; size_t n_headers;     /* "name: value", copied */
    const char *secret_header;                        /* "x-api-key" or "authorization"; value = secret_prefix + secret */
    const char *secret_prefix;                        /* "" or "Bearer " */
    const struct secret *secret;
    const char *body; size_t body_n;                  /* borrowed until on_done or cancel */
    /* 0: no limit. Until the connection stands (name, TCP, proxy, TLS); from then to the head of the answer (with sending the body); between
     * two pieces of the answer; all of it. */
    int64_t connect_ms, first_byte_ms, stall_ms, total_ms;
    size_t body_max;                                  /* of a buffered answer; 0: 32 MiB */
    /* The head of the answer, once, before any data and before on_done; never for interim answers. `lines`: "name: value\r\n" each, borrowed; of a head
     * over FETCH_HEAD_MAX the lines that fit. May be NULL. */
    void (*on_head)(void *ctx, int status, struct slice lines);
    int  (*on_data)(void *ctx, int status, const char *p, size_t n);   /* streaming; NULL: buffered. Non-2xx is always buffered. */
    /* Exactly once, unless cancelled. RC_OK: a whole answer came, whatever its status. RC_TIMEOUT; RC_CLOSED: broken off; RC_TOO_LARGE; RC_PROTO: also
     * a certificate that does not verify; RC_INVALID: the request; RC_IO; or the negative code that on_data returned.
     * status 0 when there was no answer; retry_after_ms -1 when not given. `body` is borrowed. */
    void (*on_done)(void *ctx, int rc, int status, int64_t retry_after_ms, const char *request_id, const struct buf *body, const struct err *e);
    void *ctx;
};
struct fetch_call *fetch_start(struct fetch *f, const struct fetch_request *r);   /* never NULL */
void fetch_cancel(struct fetch_call *c);   /* no callback after; NULL is fine */

/* In on_data and on_done of this call. What a proxy said when it refused, or ""; whether anything of the request may have reached the server (false:
 * another way may be tried without doing anything twice). */
int fetch_proxy_status(const struct fetch_call *c);   /* of its answer to CONNECT; 0: none came */
const char *fetch_proxy_note(const struct fetch_call *c);
bool fetch_sent(const struct fetch_call *c);
/* While held, no callback comes and the peer is read no further than FETCH_PENDING_MAX; the silence does not count as a stall. Not after on_done. */
void fetch_hold(struct fetch_call *c, bool on);
/* Value of the first line with this name in what on_head got; p NULL: absent. */
struct slice fetch_header(struct slice lines, const char *name);
