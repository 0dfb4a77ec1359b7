/* inside/glob.h - file name patterns: * ? [a-z] [!a-z] {a,b} and ** for any number of directories. Pure.
 * A pattern is compiled to sets of positions which a walk carries from directory to directory, so the work per name is at most
 * (parts of the pattern) x (length of part) x (length of name): no input makes it exponential. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GLOB_PATTERN_MAX 4096
#define GLOB_ALTS_MAX 64            /* patterns after {a,b} is written out */
#define GLOB_BRACES_MAX 16          /* {} groups in one pattern */
#define GLOB_PARTS_MAX 63           /* components between slashes: one bit each and one for the end */
#define GLOB_TEXT_MAX 32768
#define GLOB_PLAIN 0xffffu
#define GLOB_SPECIAL 0xfffeu

struct glob {
    /* `star`: where the only star of a part without other specials is; GLOB_PLAIN when it has none, GLOB_SPECIAL when it needs the matcher. */
    struct { uint64_t globstar; unsigned n; struct { uint16_t off, len, star; } part[GLOB_PARTS_MAX]; } alt[GLOB_ALTS_MAX];
    unsigned n_alts;
    size_t   text_n;
    char     text[GLOB_TEXT_MAX];
};
/* Where a walk stands in each alternative: bit i = the first i parts are matched. */
struct glob_state { uint64_t at[GLOB_ALTS_MAX]; };

/* NULL, or what is wrong with the pattern (a fragment of a sentence). */
const char *glob_compile(struct glob *g, const char *pattern);
void glob_start(const struct glob *g, struct glob_state *ret);
/* One name further. Returns whether the path so far matches; *ret_alive: something below it may match. */
bool glob_step(const struct glob *g, const struct glob_state *from, const char *name, size_t n, struct glob_state *ret, bool *ret_alive);
/* Whole relative path, for tests. */
bool glob_match(const struct glob *g, const char *path);
