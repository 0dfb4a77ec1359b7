/* server/mcp/params.h - arguments that a tool's schema marks with x-mcp-header, as headers of the call (revision 2026-07-28). Pure. */
#pragma once

#include "base/err.h"
#include "json/js.h"

#define PARAMS_MAX 64                    /* marked arguments of one tool */
#define PARAMS_VALUE_MAX 4096            /* bytes of one value; a longer one is left out, and the server says what it misses */

/* Whether the marks of a tool's inputSchema are what the revision allows: a token as name, each name once (letter case does not count), on a text, an integer
 * or a boolean that is reached from the top by "properties" alone. RC_INVALID with a reason: a client must not offer the tool. */
MUST_CHECK int params_check(const json_t *schema, struct err *e);

struct params { char *lines[PARAMS_MAX]; size_t n; };    /* header lines */
/* The headers for these arguments; what is null or not there has none. Zeroed before; freed by params_done. */
void params_make(struct params *p, const json_t *schema, const json_t *arguments);
void params_done(struct params *p);
/* A text as header value: as it is where it survives that, else base64 in the revision's wrapping. Malloc'd; NULL: too long. */
char *params_value(const char *s);
