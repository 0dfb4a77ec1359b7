/* gateway/keydir.h - the directory that `outwork gateway init` makes: what belongs to one tunnel on this host (tunnels.md 3.3), every file 0600 and replaced
 * atomically:  tunnel-id  tunnel-domain  tunnel-token  token-version  ca.crt  ca.key  tls.crt  tls.key  config.yaml */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "base/secret.h"

#define KEYDIR_FILE_MAX (64 * KIB)
#define KEYDIR_CA_VALID_MS ((int64_t)5 * 365 * 24 * 3600 * 1000)
#define KEYDIR_LEAF_VALID_MS ((int64_t)2160 * 3600 * 1000)       /* 90 days */
#define KEYDIR_RENEW_BEFORE_MS ((int64_t)720 * 3600 * 1000)      /* 30 days */

struct keydir;
/* Makes the directory (0700) if need be and locks it against another command; RC_CONFLICT when one is at it. */
MUST_CHECK int keydir_open(const char *path, struct keydir **ret, struct err *e);
void keydir_free(struct keydir *d);                   /* NULL is fine; unlocks */
DEFINE_AUTO(keydir);
const char *keydir_path(const struct keydir *d);     /* absolute */
bool keydir_has(const struct keydir *d, const char *name);
/* A file's text without white space at the ends, malloc'd; RC_NOT_FOUND. The caller wipes what is a secret. */
MUST_CHECK int keydir_read(const struct keydir *d, const char *name, char **ret, struct err *e);
MUST_CHECK int keydir_write(const struct keydir *d, const char *name, const char *text, size_t n, struct err *e);

/* A new authority for the tunnel of `domain`. */
MUST_CHECK int keydir_make_ca(const struct keydir *d, const char *domain, int64_t now_ms, struct err *e);
/* A new leaf for *.`domain` and `domain`, signed by ca.key. RC_NOT_FOUND: ca.key is not here; RC_INVALID: the authority itself expires too soon. */
MUST_CHECK int keydir_make_leaf(const struct keydir *d, const char *domain, int64_t now_ms, int64_t valid_ms, struct err *e);
/* Must tls.crt be made anew: missing, of another domain, not the one of tls.key, not yet or no longer valid, or with less than `before_ms` left?
 * *ret_why: static text; NULL: no. */
void keydir_leaf_due(const struct keydir *d, const char *domain, int64_t now_ms, int64_t before_ms, const char **ret_why);

/* For a timer of the running gateway: renews the leaf of `dir` when it is due as above. RC_OK and *ret_done: a new one is in place, to be loaded. RC_NOT_FOUND:
 * it is due, but `dir` has no ca.key (or no tunnel-domain). A directory that is not ours (no tunnel-domain) with a certificate that is not due is RC_OK. */
MUST_CHECK int renew_if_due(const char *dir, int64_t now_ms, int64_t before_ms, int64_t valid_ms, bool *ret_done, struct err *e);
