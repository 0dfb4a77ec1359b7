/* The HTTP server as the API sees it, without sockets: requests are structs, answers are kept. Included by one test program each. */
#pragma once

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "http/server.h"
#include "base/str.h"

struct http_req {
    struct http_head head;
    struct slice path, query, body;
    struct arena *arena;
    pthread_mutex_t lock;
    bool done, gone;
    int status;
    char *content_type, *headers, *answer;
    size_t answer_n;
    char target[4096], lines[16][512];
};

const struct http_head *http_req_head(const struct http_req *r) { return &r->head; }
struct slice http_req_path(const struct http_req *r) { return r->path; }
struct slice http_req_query(const struct http_req *r) { return r->query; }
struct slice http_req_body(const struct http_req *r) { return r->body; }
struct arena *http_req_arena(struct http_req *r) { return r->arena; }
bool http_req_gone(const struct http_req *r) { return r->gone; }
int http_req_watch(struct http_req *r, void (*cb)(void *ctx), void *ctx) { (void)r, (void)cb, (void)ctx; return RC_OK; }

void http_req_take_body(struct http_req *r, struct buf *ret)
{
    buf_init(ret, r->body.n + 1);
    (void)buf_put(ret, r->body.p, r->body.n);
}

void http_reply(struct http_req *r, const struct http_reply *a)
{
    pthread_mutex_lock(&r->lock);
    r->status = a->status;
    r->content_type = str_dup(a->content_type);
    r->headers = str_dup(a->headers ? a->headers : "");
    r->answer = a->body ? buf_take(a->body, &r->answer_n) : str_dup("");
    r->done = true;
    pthread_mutex_unlock(&r->lock);
}

static bool fake_done(struct http_req *r)
{
    pthread_mutex_lock(&r->lock);
    bool done = r->done;
    pthread_mutex_unlock(&r->lock);
    return done;
}

/* `headers`: "name: value" lines, NULL at the end. */
static struct http_req *fake_request(enum http_method m, const char *target, const char *const *headers, const char *body)
{
    struct http_req *r = xcalloc(1, sizeof *r);
    pthread_mutex_init(&r->lock, NULL);
    str_copy(r->target, sizeof r->target, target);
    r->arena = arena_new(1024, 64 * KIB);
    r->head.method = m;
    r->head.target = slice_of(r->target);
    char *q = strchr(r->target, '?');
    r->path = (struct slice){ r->target, q ? (size_t)(q - r->target) : strlen(r->target) };
    r->query = q ? slice_of(q + 1) : (struct slice){ "", 0 };
    r->body = body ? slice_of(body) : (struct slice){ "", 0 };
    for (size_t i = 0; headers[i]; i++) {
        str_copy(r->lines[i], sizeof r->lines[i], headers[i]);
        char *colon = strchr(r->lines[i], ':');
        r->head.headers[i] = (struct http_header){ { r->lines[i], (size_t)(colon - r->lines[i]) }, slice_trim(slice_of(colon + 1)) };
        r->head.n_headers = i + 1;
    }
    return r;
}

static void fake_free(struct http_req *r)
{
    arena_free(r->arena);
    pthread_mutex_destroy(&r->lock);
    free(r->content_type), free(r->headers), free(r->answer), free(r);
}
