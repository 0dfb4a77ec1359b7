/* base/arena.h - memory of one lifetime (a request, a step). Nothing inside is freed singly. Not thread-safe. */
#pragma once

#include "base/attr.h"

struct arena;

struct arena *arena_new(size_t first_block_bytes, size_t max_bytes);   /* NULL: out of memory */
void  arena_free(struct arena *a);                                     /* NULL is fine; runs the callbacks, last first */
DEFINE_AUTO(arena);
void *arena_alloc(struct arena *a, size_t n);                          /* 16-byte aligned; NULL over max_bytes or no memory */
void *arena_zalloc(struct arena *a, size_t n);
char *arena_strdup(struct arena *a, const char *s);                    /* NULL in, NULL out */
char *arena_strndup(struct arena *a, const char *s, size_t n);
char *arena_printf(struct arena *a, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* `fn(p)` runs at arena_free(). RC_NOMEM when it could not be registered (then it ran at once). */
int   arena_on_free(struct arena *a, void (*fn)(void *), void *p);
size_t arena_used(const struct arena *a);
