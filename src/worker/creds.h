/* worker/creds.h - which credential a work item is served with (worker.md 2.5). Pure. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "base/secret.h"

#define WORK_SECRET_MAX (64 * KIB)

/* `text` is a work item's "secret": base64 (either alphabet, padding optional) of {"sessions_token":"..."}. RC_INVALID with the reason (never the
 * text) when it is not, or holds no token. White space at the ends is ignored. */
MUST_CHECK int creds_decode(const char *text, size_t n, struct secret **ret_token, struct err *e);
