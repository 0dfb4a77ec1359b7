/* base/random.h - kernel randomness and ids. */
#pragma once

#include "base/attr.h"

void     random_bytes(void *p, size_t n);          /* getrandom(); aborts when the kernel has none */
uint32_t random_u32_below(uint32_t n);             /* uniform in [0, n), n > 0 */
double   random_unit(void);                        /* [0, 1) */

#define ID_MAX 48                                  /* longest id of ours with NUL */
/* `<prefix>_01` + 22 base58 characters (api.md 1.7): 48 bits of time, then randomness, so ids of one kind sort roughly by age. */
void id_new(const char *prefix, char out[ID_MAX]);
/* `<prefix>` + 43 URL-safe base64 characters (256 bits): a credential. `out` must be wiped by the caller. */
#define TOKEN_MAX 80
void token_new(const char *prefix, char out[TOKEN_MAX]);
