/* http/client_pool.h - origins and their kept connections. Private to http/client*.c. */
#pragma once

#include "http/client.h"

#include "base/list.h"
#include "http/client_conn.h"

struct origin {
    struct list link, idle;
    size_t n_idle;
    struct hconn_route route;
};

struct http_client {
    struct ev *ev;
    struct tls_ctx *tls;                 /* made at the first https call: the system's CA set costs memory */
    char *ca_file, *http_proxy, *https_proxy, *no_proxy, *user_agent;
    size_t idle_max;
    int64_t idle_ms, connect_ms;
    struct list origins, calls;
    struct ev_timer sweep;
};

struct origin *pool_origin(struct http_client *cl, const struct http_url *u);     /* found or made; lives as long as the client */
struct hconn *pool_take(struct origin *o);                                         /* the one used last, or NULL */
void pool_keep(struct http_client *cl, struct origin *o, struct hconn *c);
void pool_idle_io(struct hconn *c);      /* readiness on a connection that no call uses */
void calls_cancel(struct http_client *cl);                                          /* in client.c: every call of the client */
