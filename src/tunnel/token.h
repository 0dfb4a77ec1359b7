/* tunnel/token.h - the connector token (tunnels.md 3.1): standard base64 of {"a":account,"s":base64 secret,"t":tunnel id,"e":endpoint}. */
#pragma once

#include "base/attr.h"
#include "base/buf.h"
#include "base/err.h"

#define TOKEN_TUNNEL_MAX 64
#define TOKEN_ENDPOINT_MAX 256
struct tunnel_token { char account[64], tunnel_id[TOKEN_TUNNEL_MAX], endpoint[TOKEN_ENDPOINT_MAX]; };      /* the secret is not kept: the whole text is the credential */

/* A fresh token with a secret of 256 bits. endpoint may be NULL or "". The caller wipes `ret`. */
MUST_CHECK int tunnel_token_make(const char *account, const char *tunnel_id, const char *endpoint, struct buf *ret, struct err *e);
/* RC_INVALID: not such a text, too long, or without tunnel id or secret. Never repeats the token in its message. */
MUST_CHECK int tunnel_token_parse(const char *text, size_t n, struct tunnel_token *ret, struct err *e);
