/* worker/api.h - one call of the service's HTTP API: path under the base URL, one credential, JSON back. Loop thread only. */
#pragma once

#include "http/client.h"
#include "json/js.h"
#include "worker/backoff.h"

#define API_BETA "managed-agents-2026-04-01"
#define API_BETA_SKILLS "skills-2025-10-02"
#define API_VERSION "2023-06-01"
#define API_PATH_MAX 2048

struct api { struct http_client *http; const char *base; };

struct api_answer {
    enum api_outcome outcome;
    int status;                          /* 0: there was no answer */
    int rc;                              /* of the connection; RC_TOO_LARGE is API_FATAL */
    const json_t *json;                  /* borrowed; NULL when `raw`, without a body, or not JSON */
    struct buf *body;                    /* NULL when there was no answer */
    const struct http_head *head;        /* NULL when there was no answer */
    int64_t retry_after_ms;              /* -1: not said */
    const char *why;                     /* one line for the log; "" when API_OK */
};

struct api_req {
    const char *method;                  /* "GET" or "POST" */
    const char *path;                    /* from "/v1/..."; with its query; copied */
    const struct secret *cred;
    const char *beta;                    /* NULL: API_BETA */
    const char *headers;                 /* further lines, or NULL */
    const char *body; size_t body_n;     /* JSON, copied; NULL: none */
    int64_t timeout_ms;
    size_t body_max;                     /* 0: 1 MiB */
    bool raw;                            /* the body is not parsed (no JSON, or nobody looks at it) */
    bool wipe;                           /* the answer holds a secret: overwritten after `done` */
    void (*done)(void *ctx, const struct api_answer *a);     /* exactly once, unless cancelled */
    void *ctx;
};
struct api_call;
struct api_call *api_start(const struct api *a, const struct api_req *r);    /* never NULL */
void api_cancel(struct api_call *c);                                         /* NULL is fine */

/* The same headers for a caller that streams (worker/session.c). `out` bounds: API_HEADERS_MAX. */
#define API_HEADERS_MAX 512
void api_headers(char out[API_HEADERS_MAX], const char *beta, const char *more, bool json_body);
/* Text for a failed answer: the service's own message, else the status. `body` may be NULL. */
void api_explain(char *out, size_t cap, int status, const struct buf *body, const json_t *json);
