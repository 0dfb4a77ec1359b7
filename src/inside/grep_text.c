/* inside/grep_text.c - the search in one text, line by line as grep does. */
#include "inside/grep.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define MISSES_MAX 16                   /* hits in the whole text that were none in their line, before a text is searched line by line */
#define JIT_STACK_MIN (32u * 1024)
#define JIT_STACK_MAX (1024u * 1024)

bool grep_pattern_is_plain(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char next = i + 1 < n ? p[i + 1] : 0;
        if (p[i] == '\\') {
            if (!next || (isalnum((unsigned char)next) && !strchr("wWdDsSbBtnrf", next)))
                return false;   /* anchors, back references, classes of PCRE2 */
            i++;
        } else if (p[i] == '(' && (next == '*' || (next == '?' && !(i + 2 < n && p[i + 2] == ':')))) {
            return false;       /* verbs, look-around, atomic groups, options */
        } else if (next == '+' && (p[i] == '*' || p[i] == '+' || p[i] == '?' || p[i] == '}')) {
            return false;       /* possessive */
        }
    }
    return true;
}

bool grep_compile(struct grep *g, const char *pattern, char *why, size_t why_cap)
{
    int code = 0;
    size_t at = 0, n = strlen(pattern);
    uint32_t opts = PCRE2_MULTILINE | PCRE2_UTF | PCRE2_MATCH_INVALID_UTF | PCRE2_NEVER_BACKSLASH_C;
    if (n > GREP_PATTERN_MAX) {
        snprintf(why, why_cap, "longer than %d bytes", GREP_PATTERN_MAX);
        return false;
    }
    pcre2_compile_context *cc = pcre2_compile_context_create(NULL);
    if (cc) {
        pcre2_set_newline(cc, PCRE2_NEWLINE_LF);
        g->re = pcre2_compile((PCRE2_SPTR)pattern, n, opts, &code, &at, cc);
        pcre2_compile_context_free(cc);
    }
    if (!g->re) {
        PCRE2_UCHAR msg[160] = "out of memory";
        if (cc)
            (void)pcre2_get_error_message(code, msg, sizeof msg);
        snprintf(why, why_cap, "%s at offset %zu", (const char *)msg, at);
        return false;
    }
    bool jit = pcre2_jit_compile(g->re, PCRE2_JIT_COMPLETE) == 0;       /* speed only: without it the interpreter does */
    g->md = pcre2_match_data_create(1, NULL);
    g->mc = pcre2_match_context_create(NULL);
    if (!g->md || !g->mc) {
        snprintf(why, why_cap, "out of memory");
        return false;
    }
    pcre2_set_match_limit(g->mc, GREP_MATCH_LIMIT);
    pcre2_set_heap_limit(g->mc, GREP_HEAP_KIB);
    g->jit_stack = pcre2_jit_stack_create(JIT_STACK_MIN, JIT_STACK_MAX, NULL);
    pcre2_jit_stack_assign(g->mc, NULL, g->jit_stack);
    g->whole = jit && grep_pattern_is_plain(pattern, n);     /* the interpreter would check all of the text at each call */
    return true;
}

void grep_done(struct grep *g)
{
    pcre2_jit_stack_free(g->jit_stack);
    pcre2_match_context_free(g->mc);
    pcre2_match_data_free(g->md);
    pcre2_code_free(g->re);
    g->jit_stack = NULL;
    g->mc = NULL;
    g->md = NULL;
    g->re = NULL;
}

static bool too_long(const char *line, size_t n)
{
    size_t chars = 0;
    if (n <= GREP_LINE_MAX)
        return false;
    for (size_t i = 0; i < n && chars <= GREP_LINE_MAX; i++)
        chars += ((unsigned char)line[i] & 0xc0) != 0x80;
    return chars > GREP_LINE_MAX;
}

static void put_hit(struct grep *g, const char *path, size_t line_no, const char *line, size_t n)
{
    char num[24];
    size_t path_n = strlen(path);
    if (n > 0 && line[n - 1] == '\r')
        n--;
    int num_n = snprintf(num, sizeof num, ":%zu:", line_no);
    size_t lf = g->out_n > 0, need = lf + path_n + (size_t)num_n + n;
    if (need > g->out_max - g->out_n) {
        g->full = true;
        return;
    }
    char *w = g->out + g->out_n;
    if (lf)
        *w++ = '\n';
    memcpy(w, path, path_n);
    memcpy(w + path_n, num, (size_t)num_n);
    memcpy(w + path_n + num_n, line, n);
    g->out_n += need;
    g->hits++;
}

/* Whether this line, alone, matches. */
static bool line_matches(struct grep *g, const char *line, size_t n)
{
    int rc = pcre2_match(g->re, (PCRE2_SPTR)line, n, 0, 0, g->md, g->mc);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH && ++g->costly > GREP_COSTLY_MAX)
        g->full = true;
    return rc >= 0;
}

static size_t count_lf(const char *p, const char *end)
{
    size_t n = 0;
    for (; p < end && (p = memchr(p, '\n', (size_t)(end - p))); p++)
        n++;
    return n;
}

void grep_text(struct grep *g, const char *path, const char *text, size_t n)
{
    size_t pos = 0, line_no = 1, counted = 0, misses = 0;
    bool whole = g->whole;
    while (pos < n && !g->full) {
        size_t from = pos;
        if (whole) {
            int rc = pcre2_match(g->re, (PCRE2_SPTR)text, n, pos, 0, g->md, g->mc);
            if (rc == PCRE2_ERROR_NOMATCH)
                return;
            if (rc < 0) {       /* too much work for one go: this file line by line */
                whole = false;
                continue;
            }
            size_t hit = pcre2_get_ovector_pointer(g->md)[0];
            if (hit >= n)       /* an empty match behind the last line feed */
                return;
            const char *lf = hit > pos ? memrchr(text + pos, '\n', hit - pos) : NULL;
            from = lf ? (size_t)(lf - text) + 1 : pos;
        }
        const char *lf = memchr(text + from, '\n', n - from);
        size_t end = lf ? (size_t)(lf - text) : n;
        if (!too_long(text + from, end - from) && line_matches(g, text + from, end - from)) {
            line_no += count_lf(text + counted, text + from);
            counted = from;
            put_hit(g, path, line_no, text + from, end - from);
        } else if (whole && ++misses > MISSES_MAX) {
            whole = false;
        }
        pos = end + 1;
    }
}
