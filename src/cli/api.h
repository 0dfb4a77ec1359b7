/* cli/api.h - calls of the server's API by commands: one at a time, waiting for each answer. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "base/secret.h"
#include "json/js.h"

struct cli_api;
struct cli_api_conf {
    const char *base;                    /* "https://agents.example.com" */
    const char *headers;                 /* complete lines, sent with every call */
    const char *ca_file, *http_proxy, *https_proxy, *no_proxy;       /* or NULL */
    const struct secret *key;            /* borrowed */
};
MUST_CHECK int cli_api_new(const struct cli_api_conf *c, struct cli_api **ret, struct err *e);
void cli_api_free(struct cli_api *a);    /* NULL is fine */
DEFINE_AUTO(cli_api);
/* `take_body` NULL: none. On RC_OK *ret is the answer, an object; a new reference. RC_UNAUTHORIZED, RC_DENIED, RC_NOT_FOUND, RC_INVALID with what the server
 * said; RC_IO and the client's codes: no answer. */
MUST_CHECK int cli_api_call(struct cli_api *a, const char *method, const char *path, json_t *take_body, json_t **ret, struct err *e);
/* All pages of a list behind `path`, which has a query already. *ret: array of what was in their `data`; a new reference. */
MUST_CHECK int cli_api_list(struct cli_api *a, const char *path, json_t **ret, struct err *e);
