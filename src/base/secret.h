/* base/secret.h - bytes that must not leak: wiped on free, and of a type that the logger does not take. */
#pragma once

#include "base/attr.h"
#include "base/err.h"

struct secret;   /* opaque */

struct secret *secret_new(const char *bytes, size_t n);   /* copies; aborts when out of memory */
struct secret *secret_from_str(char *s);                  /* copies, then wipes `s`; NULL in, NULL out */
void           secret_free(struct secret *s);             /* wipes; NULL is fine */
DEFINE_AUTO(secret);
struct secret *secret_dup(const struct secret *s);
const char    *secret_text(const struct secret *s);       /* NUL-terminated; borrowed. Only for handing to the wire or a hash. */
size_t         secret_len(const struct secret *s);
/* Reads a file, trims white space at the ends; RC_INVALID when empty; RC_DENIED when any other user may read or write it
 * (mode & 0006), worker.md 3.2. */
MUST_CHECK int secret_read_file(const char *path, struct secret **ret, struct err *e);
/* The same for a short-lived token that a platform projects (a Kubernetes service account's file may be 0644 in its pod): others may read it, not write it. */
MUST_CHECK int secret_read_projected(const char *path, struct secret **ret, struct err *e);
/* Takes the variable out of this process's environment (wiping the text in place, so that /proc/self/environ holds it no
 * longer); NULL when unset or empty. */
struct secret *secret_take_env(const char *name);
void           wipe(void *p, size_t n);
