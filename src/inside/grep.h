/* inside/grep.h - the searching program's parts. It runs as a child of PID 1, for one search, under limits of its own. */
#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GREP_FILE_MAX (8u * 1024 * 1024)
#define GREP_LINE_MAX 2000              /* characters; longer lines are passed over */
#define GREP_BINARY_BYTES 512           /* a NUL in the first so many: no text */
#define GREP_ENTRIES_MAX 50000
#define GREP_DEPTH_MAX 40
#define GREP_PATTERN_MAX 65536
#define GREP_MATCH_LIMIT 1000000u       /* steps of PCRE2 for one line */
#define GREP_HEAP_KIB (64u * 1024)
#define GREP_COSTLY_MAX 1000            /* lines that hit the limit before the search gives up */
#define GREP_EXIT_MATCH 0
#define GREP_EXIT_NONE 1
#define GREP_EXIT_PATTERN 2             /* the text is PCRE2's message */
#define GREP_EXIT_ERROR 3               /* the text says what */

struct grep {
    pcre2_code *re;
    pcre2_match_data *md;
    pcre2_match_context *mc;
    pcre2_jit_stack *jit_stack;
    bool   whole;                       /* the pattern may be searched in a whole file at once (grep_pattern_is_plain) */
    char  *out;                         /* out_max bytes */
    size_t out_n, out_max;
    size_t costly, hits;
    bool   full;                        /* out is, or the search gave up */
};

/* True when a hit of the pattern in a line is also a hit in the text around it, so that a search in the whole text finds a superset. */
bool grep_pattern_is_plain(const char *p, size_t n);
/* Compiles; on failure `why` has the message. */
bool grep_compile(struct grep *g, const char *pattern, char *why, size_t why_cap);
void grep_done(struct grep *g);
/* Adds "<path>:<line>:<text>" for each line that matches. */
void grep_text(struct grep *g, const char *path, const char *text, size_t n);
