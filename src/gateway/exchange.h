/* gateway/exchange.h - one request on its way through the gateway: the front reads it, an upstream kind answers it. Nothing is buffered beyond one window:
 * each side says how much it can take. Loop thread only. Calls marked (front) are made by upstream kinds; they may run inside upstream_ops calls. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "http/parse.h"

struct exchange;                         /* the front's side */
struct upstream_call;                    /* the upstream kind's side */
struct route;                            /* gateway/routes.h */

/* ---- (front) what an upstream kind calls ---- */
const struct http_head *exchange_head(const struct exchange *x);     /* the request; valid until the call ends */
const char *exchange_host(const struct exchange *x);                 /* "<route>.<tunnel domain>", lower case */
bool exchange_has_body(const struct exchange *x);
/* Status and headers of the answer (complete lines "name: value\r\n", hop-by-hop ones already left out). length -1: unknown (chunked). */
void exchange_reply(struct exchange *x, int status, const char *headers, size_t n, int64_t length);
/* A piece of the body; returns how much was taken. Less than n: upstream_ops.resume comes when there is room again. */
size_t exchange_write(struct exchange *x, const void *p, size_t n);
void exchange_end(struct exchange *x);                               /* the answer is whole; the call is over and must not be touched */
/* It failed. Before exchange_reply(): answered with `status` and the words of `why`; after it: the inner connection is cut, so that nobody takes half for whole. */
void exchange_fail(struct exchange *x, int status, const struct err *why);

/* ---- an upstream kind: http (http, https, unix) and stdio ---- */
struct upstream_ops {
    const char *name;                                                /* "http" "stdio" */
    /* Begins. Never fails at once: failures come by exchange_fail(), not inside this call. */
    struct upstream_call *(*start)(void *upstream, struct exchange *x);
    size_t (*body)(struct upstream_call *c, const void *p, size_t n);    /* a piece of the request's body; returns how much was taken; 0..n */
    void (*body_end)(struct upstream_call *c);
    void (*resume)(struct upstream_call *c);                         /* the front has room again */
    void (*cancel)(struct upstream_call *c);                         /* the client is gone: drop the upstream's side at once; the call is over */
};
void exchange_want_body(struct exchange *x);                         /* (front) after body() took less than n: there is room again */
