/* server/model/provider.h - what the providers and the registry share. Internal to server/model. */
#pragma once

#include "server/model/model.h"

/* ---- caps.c: what is known about model ids ---- */
struct model_table;
MUST_CHECK int model_table_new(const char *models_file, struct model_table **ret, struct err *e);   /* models_file NULL: the built-in rows only */
void model_table_free(struct model_table *t);
/* The row whose id is the longest prefix of `model`; unknown ids get cautious defaults and false. */
bool model_table_caps(const struct model_table *t, const char *model, struct model_caps *ret);
/* Appends a ModelInfo object for each listed id. */
void model_table_list(const struct model_table *t, json_t *into_array);
json_t *model_info_new(const char *id, const char *display_name, const char *line, const struct model_caps *c);

/* ---- anthropic.c, anthropic_raw.c ---- */
#define ANTHROPIC_VERSION "2023-06-01"
#define ANTHROPIC_CONNECT_MS 15000
#define ANTHROPIC_FIRST_BYTE_MS 300000   /* a long prompt is read before the first byte */
#define ANTHROPIC_STALL_MS 120000        /* pings come every few seconds */
#define ANTHROPIC_TOTAL_MS 3600000

struct anthropic {
    struct fetch *fetch;
    const struct model_table *table;
    struct secret *key;
    char *url;               /* without a trailing slash */
    bool hosted;             /* the default host: sends the id headers (service.md 1.6) */
};
struct model_raw *anthropic_raw_start(void *self, const struct model_raw_request *r);
void anthropic_raw_hold(struct model_raw *c, bool on);
void anthropic_raw_cancel(struct model_raw *c);

/* ---- script_run.c, script_raw.c ---- */
struct script_fail { uint64_t hash; int64_t n; };
#define SCRIPT_FAILS_MAX 256             /* requests whose injected errors are counted */
#define SCRIPT_CHUNK_BYTES 24            /* text is streamed in pieces of about this size */
struct script {
    struct ev *ev;
    json_t *doc;
    struct script_fail fails[SCRIPT_FAILS_MAX];
    size_t fail_next;
};
/* Whether the injected error of the request that these bytes identify still applies: its first `times` tries fail. The count lives in memory only. */
bool script_still_fails(struct script *s, const char *body, size_t body_n, const char *session_id, int64_t times);
struct model_usage script_usage(const json_t *answer, size_t body_n);
size_t script_chunk(const char *text, size_t left);      /* bytes of the next piece; never inside a character */
const char *script_error_type(int status, const json_t *error);
struct model_raw *script_raw_start(void *self, const struct model_raw_request *r);
void script_raw_hold(struct model_raw *c, bool on);
void script_raw_cancel(struct model_raw *c);

MUST_CHECK int model_anthropic_new(struct fetch *fetch, const struct model_table *t, const struct model_conf *c,
                                   const struct model_provider **ret, void **ret_self, struct err *e);
MUST_CHECK int model_script_new(struct ev *ev, const char *file, const struct model_provider **ret, void **ret_self, struct err *e);
extern const char model_script_demo[];      /* script_demo.c: the built-in script, JSON text */

/* The pure part of the script provider: the answer to a Messages API request. A new object
 * {"content":[...],"stop_reason":..,"usage":{..},"delay_ms":..,"chunk_ms":..,"error":{..}?}; RC_INVALID when the request is not understood. */
MUST_CHECK int model_script_answer(const json_t *script, const json_t *request, json_t **ret, struct err *e);
MUST_CHECK int model_script_check(const json_t *script, struct err *e);      /* shape of a script file */
