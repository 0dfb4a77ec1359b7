/* crypto/seal.h - secrets at rest: XChaCha20-Poly1305 (libsodium) under keys of a key file. The first key seals, every key opens, so that a key can be replaced:
 * put the new one first, re-wrap, remove the old one. Thread-safe after loading. A ring follows its file: a change is seen at the next seal_put() and when a
 * blob names a key that the ring does not hold; a file that cannot be read then leaves the keys as they were. */
#pragma once

#include "base/attr.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/secret.h"

#define SEAL_KEYS_MAX 32                  /* keys in one file */
#define SEAL_OVERHEAD 52                  /* bytes that a sealed text is longer than its plain text */
#define SEAL_PLAIN_MAX (256 * KIB)
#define SEAL_CONTEXT_MAX 255

struct seal_ring;
/* The file has one key a line (base64 of 32 bytes), the newest first, comments with '#'. `create`: a missing file is made (0600) with a fresh key.
 * RC_DENIED: other users can read it; RC_INVALID: malformed, empty, or the same key twice; RC_NOT_FOUND. */
MUST_CHECK int seal_load(const char *path, bool create, struct seal_ring **ret, struct err *e);
void seal_free(struct seal_ring *r);
static inline void seal_ring_free(struct seal_ring *r) { seal_free(r); }      /* for AUTO_PTR */
DEFINE_AUTO(seal_ring);
/* `context` (such as "credential:vcrd_01...") is authenticated: a sealed text moved to another row does not open. The blob names its key. */
MUST_CHECK int seal_put(const struct seal_ring *r, const char *context, const char *p, size_t n, struct buf *out, struct err *e);
/* RC_UNAUTHORIZED: no key of the ring opens it, or it was altered. */
MUST_CHECK int seal_open(const struct seal_ring *r, const char *context, const void *p, size_t n, struct secret **ret, struct err *e);
bool seal_is_current(const struct seal_ring *r, const void *p, size_t n);     /* sealed with the first key */

#define SEAL_KEY_ID_MAX 17                /* 16 hex digits and NUL: tells keys apart, says nothing of their bytes */
/* Puts a fresh key in front of the keys of an existing file, atomically, keeping its mode and owner. Safe against another seal_key_add() at the same time.
 * RC_LIMIT: SEAL_KEYS_MAX are there already; else as seal_load(). */
MUST_CHECK int seal_key_add(const char *path, char ret_id[SEAL_KEY_ID_MAX], struct err *e);
/* Number of keys, and the id of the i-th (0: the one that seals). */
size_t seal_key_count(const struct seal_ring *r);
MUST_CHECK int seal_key_id(const struct seal_ring *r, size_t i, char ret_id[SEAL_KEY_ID_MAX]);   /* RC_NOT_FOUND */
