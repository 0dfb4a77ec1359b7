/* crypto/seal.h - secrets at rest: XChaCha20-Poly1305 (libsodium) under keys of a key file. The first key seals, every key opens, so that a key can be replaced:
 * put the new one first, re-wrap, remove the old one. Thread-safe after loading. */
#pragma once

#include "base/attr.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/secret.h"

struct seal_ring;
/* The file has one key a line (base64 of 32 bytes), the newest first, comments with '#'. `create`: a missing file is made (0600) with a fresh key.
 * RC_DENIED: other users can read it. */
MUST_CHECK int seal_load(const char *path, bool create, struct seal_ring **ret, struct err *e);
void seal_free(struct seal_ring *r);
/* `context` (such as "credential:vcrd_01...") is authenticated: a sealed text moved to another row does not open. The blob names its key. */
MUST_CHECK int seal_put(const struct seal_ring *r, const char *context, const char *p, size_t n, struct buf *out, struct err *e);
/* RC_UNAUTHORIZED: no key of the ring opens it, or it was altered. */
MUST_CHECK int seal_open(const struct seal_ring *r, const char *context, const void *p, size_t n, struct secret **ret, struct err *e);
bool seal_is_current(const struct seal_ring *r, const void *p, size_t n);     /* sealed with the first key */
