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

/* ---- anthropic.c, script.c ---- */
MUST_CHECK int model_anthropic_new(struct fetch *fetch, const struct model_table *t, const struct model_conf *c,
                                   const struct model_provider **ret, void **ret_self, struct err *e);
MUST_CHECK int model_script_new(struct ev *ev, const char *file, const struct model_provider **ret, void **ret_self, struct err *e);
extern const char model_script_demo[];      /* script_demo.c: the built-in script, JSON text */

/* The pure part of the script provider: the answer to a Messages API request. A new object
 * {"content":[...],"stop_reason":..,"usage":{..},"delay_ms":..,"chunk_ms":..,"error":{..}?}; RC_INVALID when the request is not understood. */
MUST_CHECK int model_script_answer(const json_t *script, const json_t *request, json_t **ret, struct err *e);
MUST_CHECK int model_script_check(const json_t *script, struct err *e);      /* shape of a script file */
