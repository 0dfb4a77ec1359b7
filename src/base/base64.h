/* base/base64.h - RFC 4648, standard and URL-safe alphabets. */
#pragma once

#include "base/attr.h"
#include "base/buf.h"

int base64_encode(struct buf *out, const void *p, size_t n);         /* with padding */
int base64url_encode(struct buf *out, const void *p, size_t n);      /* without padding */
/* Both alphabets, padding optional, no white space. RC_INVALID for anything else. */
MUST_CHECK int base64_decode(struct buf *out, const char *s, size_t n);
