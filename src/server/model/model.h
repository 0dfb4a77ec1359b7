/* server/model/model.h - model providers behind one vtable with a typed outcome (service.md 3.5, 10.5). */
#pragma once

#include "base/attr.h"
#include "base/buf.h"
#include "base/err.h"
#include "ev/ev.h"
#include "http/fetch.h"
#include "json/js.h"

enum model_outcome {
    MODEL_OK,                /* response complete */
    MODEL_RETRY_AFTER,       /* 429 with retry-after: wait retry_after_ms */
    MODEL_OVERLOADED,        /* 500/504/529, connection trouble, broken stream: back off */
    MODEL_BILLING,           /* 402, or 429 without retry-after that keeps failing */
    MODEL_TOO_LARGE,         /* 413, or the prompt does not fit: compact */
    MODEL_REFUSED,           /* kept for providers that refuse outside a response */
    MODEL_FATAL,             /* 400, 401, 403, 404: a repeat cannot help */
    MODEL_CANCELLED,
    MODEL_OUTCOME_MAX_
};
struct model_usage { int64_t input, output, cache_read, cache_write_5m, cache_write_1h; };
struct model_result {
    enum model_outcome outcome;
    int http_status; int64_t retry_after_ms;     /* -1 none */
    const char *error_type, *message;            /* provider's words, for session.error */
    /* MODEL_OK: */
    const char *stop_reason;                     /* "end_turn" "tool_use" ... */
    json_t *stop_details;                        /* or NULL; borrowed */
    json_t *content;                             /* array of content blocks, verbatim; borrowed */
    struct model_usage usage;                    /* of everything billed for this request, compaction included */
    int64_t context_tokens;                      /* tokens that stand in the window after this response; 0: unknown */
    const char *model, *request_id;
};
struct model_delta { enum { DELTA_TEXT, DELTA_THINKING_START, DELTA_TEXT_START } kind; int index; const char *text; size_t n; };

struct model_caps {
    int64_t context_tokens, max_output_tokens, cache_min_tokens;
    bool compaction;             /* Messages API's own primitive (service.md 4.4) */
    bool mid_system;             /* accepts role:"system" messages */
    bool effort;                 /* accepts output_config.effort */
    bool adaptive_thinking;      /* accepts thinking {"type":"adaptive"} */
};
struct model_call;
struct model_request {
    const char *model;           /* id as in the agent */
    const char *body;            /* Messages API request JSON without "stream"; borrowed until on_done or cancel */
    size_t body_n;
    const char *session_id, *agent_id, *environment_id;
    const char *beta;            /* anthropic-beta value for this request, or NULL */
    void (*on_delta)(void *ctx, const struct model_delta *d);            /* ev thread */
    void (*on_done)(void *ctx, const struct model_result *r);            /* ev thread, exactly once, unless cancelled */
    void *ctx;
};
/* ---- the raw way: one request passed through, for POST /v1/messages (server/messages). Nothing is retried, decoded or judged ---- */
struct model_raw;
struct model_raw_request {
    const char *path;            /* "/v1/messages" or "/v1/messages/count_tokens" */
    const char *const *headers; size_t n_headers;    /* "name: value" of the client's that go along; content-type, a missing anthropic-version and the credential are added */
    const char *body;            /* the whole request JSON; borrowed until on_done or cancel */
    size_t body_n;
    bool stream;                 /* the body says "stream":true */
    /* ev thread, in this order, none inside raw_start. on_head: once when there is an answer; `lines` as fetch.h says. on_data: pieces of a 2xx answer
     * when `stream`. on_done: exactly once, unless cancelled; RC_OK: the answer is whole, and `body` holds it when it was not streamed. */
    void (*on_head)(void *ctx, int status, struct slice lines);
    void (*on_data)(void *ctx, const char *p, size_t n);
    void (*on_done)(void *ctx, int rc, int status, const struct buf *body, const struct err *e);
    void *ctx;
};

struct model_provider {
    const char *name;                                                   /* "anthropic" "script" */
    struct model_call *(*start)(void *self, const struct model_request *r);   /* ev thread; never NULL */
    void (*cancel)(struct model_call *c);                               /* ev thread; no callback after */
    int  (*caps)(void *self, const char *model, struct model_caps *ret);/* RC_NOT_FOUND: not a model of this provider */
    int  (*list)(void *self, json_t *into_array);                       /* appends ModelInfo objects (api.md 15) */
    void (*free)(void *self);
    struct model_raw *(*raw_start)(void *self, const struct model_raw_request *r);       /* ev thread; never NULL. NULL entry: not offered */
    void (*raw_hold)(struct model_raw *c, bool on);                     /* ev thread; while held no callback comes and the provider waits */
    void (*raw_cancel)(struct model_raw *c);                            /* ev thread; no callback after */
};

/* Which provider serves which model id: first matching prefix wins. */
struct model_registry;
struct model_conf {
    const char *provider;                    /* "anthropic" or "script": serves every model id that no other rule takes */
    const char *url, *key_file, *ca_file, *proxy;      /* anthropic; key from key_file, else taken from ANTHROPIC_API_KEY by the caller */
    const struct secret *key;
    const char *script_file;                 /* script: JSON file of scripted turns; NULL: the built-in demonstration script */
    const char *models_file;                 /* optional JSON: caps per model id */
};
MUST_CHECK int model_registry_new(struct ev *ev, struct fetch *fetch, const struct model_conf *c, struct model_registry **ret, struct err *e);
void model_registry_free(struct model_registry *m);
/* RC_NOT_FOUND when no provider serves the id. */
MUST_CHECK int model_resolve(struct model_registry *m, const char *model, const struct model_provider **ret, void **ret_self, struct model_caps *ret_caps);
json_t *model_list_all(struct model_registry *m);      /* new array of ModelInfo */
/* An empty registry, and one rule more at its end: `p` serves the ids that begin with `prefix` ("" = all). The registry calls p->free(self) at its end. */
struct model_registry *model_registry_empty(void);
void model_registry_add(struct model_registry *m, const char *prefix, const struct model_provider *p, void *self);
