/* gateway/headers.h - which headers cross the gateway: hop-by-hop ones and those that Connection names do not, framing is written anew, everything else goes
 * through untouched and in order. Per route, headers can be added (replacing the client's of that name) and removed. Pure. */
#pragma once

#include "base/buf.h"
#include "base/secret.h"
#include "http/parse.h"

#define HEADER_RULES_MAX 32              /* added and removed ones of a route, each */
#define HEADER_VALUE_MAX (8 * KIB)
#define HEADERS_OUT_MAX (2 * HTTP_HEAD_MAX + HEADER_RULES_MAX * (HEADER_VALUE_MAX + 256))

struct header_add { char *name, *value; struct secret *secret; };      /* value, or secret: never logged */
struct header_rules { struct header_add add[HEADER_RULES_MAX]; size_t n_add; char *remove[HEADER_RULES_MAX]; size_t n_remove; };
void header_rules_done(struct header_rules *r);
/* RC_INVALID: no header name, or one that the gateway itself decides about (framing, hop-by-hop, Host, X-Forwarded-*). */
MUST_CHECK int header_name_check(const char *name, struct err *e);
MUST_CHECK int header_value_check(const char *value, size_t n, struct err *e);

/* The head of a request as it goes upstream, with the empty line. `host`: what the client asked for, also X-Forwarded-Host; `host_upstream`: the Host to
 * send instead, or NULL. The body's framing comes from `h`. */
int headers_request(struct buf *out, const struct http_head *h, struct slice target, const char *host, const char *host_upstream, const struct header_rules *r);
/* The header lines of an answer, without framing. */
int headers_response(struct buf *out, const struct http_head *h);
