/* conf/conf_internal.h - shared by conf.c (sources and precedence), conf_value.c (text to value and back) and conf_help.c. */
#pragma once

#include "conf/conf.h"

#define CONF_NAME_MAX 96
#define CONF_FILE_MAX (1 * MIB)
#define CONF_LIST_MAX 256            /* items of one CONF_LIST */

/* Sets the field of `k` from text. `where` ("--listen", "OUTWORK_LISTEN", "server.yaml:3") begins the message of RC_INVALID. */
MUST_CHECK int conf_set(const struct conf_key *k, void *settings, const char *text, const char *where, struct err *e);
/* Empties a list field, so that a stronger source replaces a weaker one instead of adding to it. */
void conf_list_clear(struct conf_list *l);
void conf_write_value(const struct conf_key *k, const void *settings, struct buf *out);
void conf_flag_name(const struct conf_key *k, char out[CONF_NAME_MAX]);      /* "--model-url" */
void conf_env_name(const struct conf_key *k, char out[CONF_NAME_MAX]);       /* "OUTWORK_MODEL_URL" */
int  conf_print_help(const struct conf_program *p);
/* The known name nearest to `name`, or NULL when none is near. `flag`: compare flag names (without dashes), else key names. */
const char *conf_nearest(const struct conf_program *p, const char *name, bool flag, char out[CONF_NAME_MAX]);
static inline void *conf_field(const struct conf_key *k, void *settings) { return (char *)settings + k->field; }
