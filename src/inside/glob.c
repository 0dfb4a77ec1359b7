#include "inside/glob.h"

#include <string.h>

/* The code point at p, leniently: a byte that begins no valid sequence stands for itself. Returns its length. */
static size_t decode(const char *s, size_t n, uint32_t *ret)
{
    const unsigned char *p = (const unsigned char *)s;
    size_t need = p[0] >= 0xf0 && p[0] < 0xf8 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc2 ? 2 : 1;
    uint32_t c = need == 4 ? p[0] & 7u : need == 3 ? p[0] & 15u : p[0] & 31u;
    if (p[0] >= 0xf8 || need == 1 || need > n)
        need = 1;
    for (size_t i = 1; i < need; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            need = 1;
            break;
        }
        c = c << 6 | (p[i] & 0x3fu);
    }
    *ret = need == 1 ? p[0] : c;
    return need;
}

/* Length of the class that begins at p ('['), 0 when it is not closed. */
static size_t class_len(const char *p, size_t n)
{
    size_t i = 1;
    if (i < n && (p[i] == '!' || p[i] == '^'))
        i++;
    if (i < n && p[i] == ']')
        i++;
    while (i < n && p[i] != ']' && p[i] != '/')
        i += p[i] == '\\' && i + 1 < n ? 2 : 1;
    return i < n && p[i] == ']' ? i + 1 : 0;
}

static size_t class_char(const char *p, size_t n, uint32_t *ret)
{
    if (*p == '\\' && n > 1)
        return 1 + decode(p + 1, n - 1, ret);
    return decode(p, n, ret);
}

/* `p`, `n`: a whole class with its brackets. */
static bool class_has(const char *p, size_t n, uint32_t c)
{
    bool negated = p[1] == '!' || p[1] == '^', hit = false;
    size_t i = negated ? 2 : 1, end = n - 1;
    while (i < end) {
        uint32_t from = 0, to = 0;
        i += class_char(p + i, end - i, &from);
        to = from;
        if (i + 1 < end && p[i] == '-') {
            i++;
            i += class_char(p + i, end - i, &to);
        }
        if (c >= from && c <= to)
            hit = true;
    }
    return hit != negated;
}

/* One pattern unit that is no star against the start of `s`; *used_p and *used_s bytes. */
static bool unit_match(const char *p, size_t pn, const char *s, size_t sn, size_t *used_p, size_t *used_s)
{
    uint32_t c = 0;
    *used_p = *used_s = 1;
    if (*p == '?') {
        *used_s = decode(s, sn, &c);
        return true;
    }
    if (*p == '[') {
        *used_p = class_len(p, pn);
        *used_s = decode(s, sn, &c);
        return class_has(p, *used_p, c);
    }
    if (*p == '\\' && pn > 1) {
        *used_p = 2;
        return p[1] == *s;
    }
    return *p == *s;
}

/* One component. Only the last star is ever taken back, which is enough, so the time is at most pn x sn. */
static bool part_match(const char *p, size_t pn, const char *s, size_t sn)
{
    size_t pi = 0, si = 0, star_p = SIZE_MAX, star_s = 0, up = 0, us = 0;
    while (si < sn || pi < pn) {
        if (pi < pn && p[pi] == '*') {
            star_p = ++pi;
            star_s = si;
            continue;
        }
        if (pi < pn && si < sn && unit_match(p + pi, pn - pi, s + si, sn - si, &up, &us)) {
            pi += up;
            si += us;
            continue;
        }
        if (star_p == SIZE_MAX || star_s >= sn)
            return false;
        uint32_t c = 0;
        star_s += decode(s + star_s, sn - star_s, &c);
        si = star_s;
        pi = star_p;
    }
    return true;
}

/* Most parts are a name, or one star between two texts: these are two comparisons. A text that begins within a code point is left to the matcher. */
static uint16_t part_kind(const char *p, size_t n)
{
    unsigned star = GLOB_PLAIN;
    for (size_t i = 0; i < n; i++) {
        if (p[i] == '?' || p[i] == '[' || p[i] == '\\' || (p[i] == '*' && star != GLOB_PLAIN))
            return GLOB_SPECIAL;
        if (p[i] == '*') {
            star = (unsigned)i;
            if (i + 1 < n && ((unsigned char)p[i + 1] & 0xc0) == 0x80)
                return GLOB_SPECIAL;
        }
    }
    return (uint16_t)star;
}

static bool name_match(const char *p, size_t pn, unsigned star, const char *s, size_t sn)
{
    if (star == GLOB_SPECIAL)
        return part_match(p, pn, s, sn);
    if (star == GLOB_PLAIN)
        return pn == sn && memcmp(p, s, sn) == 0;
    size_t tail = pn - star - 1;
    return sn >= star + tail && memcmp(p + star + 1, s + sn - tail, tail) == 0 && memcmp(p, s, star) == 0;
}

/* Splits one brace-free pattern into parts. */
static const char *add_alternative(struct glob *g, const char *p, size_t n)
{
    if (g->n_alts == GLOB_ALTS_MAX)
        return "it has too many alternatives";
    if (n > GLOB_TEXT_MAX - g->text_n)
        return "it is too long";
    __typeof__(g->alt[0]) *alt = &g->alt[g->n_alts];
    char *text = g->text + g->text_n;
    memcpy(text, p, n);
    alt->n = 0;
    alt->globstar = 0;
    if (n > 0 && text[0] == '/')
        return "it is absolute; give the directory as path";
    for (size_t i = 0; i < n;) {
        size_t from = i;
        while (i < n && text[i] != '/')
            i += text[i] == '\\' && i + 1 < n && text[i + 1] != '/' ? 2 : 1;
        size_t len = i - from;
        const char *part = text + from;
        i++;
        if (len == 0 || (len == 1 && part[0] == '.'))
            continue;
        if (len == 2 && part[0] == '.' && part[1] == '.')
            return "\"..\" is not allowed";
        if (alt->n == GLOB_PARTS_MAX)
            return "it has too many components";
        if (len == 2 && part[0] == '*' && part[1] == '*')
            alt->globstar |= 1ull << alt->n;
        for (size_t k = 0; k < len; k++) {
            size_t cls = part[k] == '[' ? class_len(part + k, len - k) : 1;
            if (cls == 0)
                return "a [ is not closed";
            k += part[k] == '\\' ? 1 : cls - 1;
        }
        alt->part[alt->n].off = (uint16_t)(g->text_n + from);
        alt->part[alt->n].len = (uint16_t)len;
        alt->part[alt->n].star = part_kind(part, len);
        alt->n++;
    }
    if (alt->n == 0)
        return "it is empty";
    g->text_n += n;
    g->n_alts++;
    return NULL;
}

/* From `from`, inside a {} group: where its next top-level comma or its end is; 0 when it is not closed. */
static size_t next_cut(const char *p, size_t n, size_t from)
{
    int depth = 0;
    for (size_t i = from; i < n; i++) {
        if (p[i] == '\\')
            i++;
        else if (p[i] == '[' && class_len(p + i, n - i))
            i += class_len(p + i, n - i) - 1;
        else if (p[i] == '{')
            depth++;
        else if (depth == 0 && (p[i] == ',' || p[i] == '}'))
            return i;
        else if (p[i] == '}')
            depth--;
    }
    return 0;
}

/* Writes out the leftmost {} group and goes on with each result. Each call ends in at least one alternative, so the count bounds the work. */
static const char *expand(struct glob *g, const char *p, size_t n, int braces)
{
    size_t open = 0;
    for (; open < n && p[open] != '{'; open++) {
        if (p[open] == '\\')
            open++;
        else if (p[open] == '[' && class_len(p + open, n - open))
            open += class_len(p + open, n - open) - 1;
    }
    if (open >= n)
        return add_alternative(g, p, n);
    if (braces == GLOB_BRACES_MAX)
        return "it has too many {}";
    size_t close = open, from = open + 1;
    do {
        close = next_cut(p, n, close + 1);
        if (close == 0)
            return "a { is not closed";
    } while (p[close] != '}');
    char one[GLOB_PATTERN_MAX];
    for (size_t cut = open; cut != close; from = cut + 1) {
        cut = next_cut(p, n, from);
        size_t len = cut - from, rest = n - close - 1;
        memcpy(one, p, open);
        memcpy(one + open, p + from, len);
        memcpy(one + open + len, p + close + 1, rest);
        const char *why = expand(g, one, open + len + rest, braces + 1);
        if (why)
            return why;
    }
    return NULL;
}

const char *glob_compile(struct glob *g, const char *pattern)
{
    size_t n = strlen(pattern);
    g->n_alts = 0;
    g->text_n = 0;
    if (n == 0)
        return "it is empty";
    if (n >= GLOB_PATTERN_MAX)
        return "it is too long";
    return expand(g, pattern, n, 0);
}

/* A "**" may stand for nothing: the position behind it is reached too. */
static uint64_t closure(uint64_t at, uint64_t globstar)
{
    for (uint64_t more; (more = (at & globstar) << 1 & ~at);)
        at |= more;
    return at;
}

void glob_start(const struct glob *g, struct glob_state *ret)
{
    for (unsigned a = 0; a < g->n_alts; a++)
        ret->at[a] = closure(1, g->alt[a].globstar);
}

bool glob_step(const struct glob *g, const struct glob_state *from, const char *name, size_t n, struct glob_state *ret, bool *ret_alive)
{
    bool match = false;
    *ret_alive = false;
    for (unsigned a = 0; a < g->n_alts; a++) {
        uint64_t now = from->at[a], next = now & g->alt[a].globstar, end = 1ull << g->alt[a].n;
        for (uint64_t todo = now & ~end & ~g->alt[a].globstar; todo; todo &= todo - 1) {
            unsigned i = (unsigned)__builtin_ctzll(todo);
            if (name_match(g->text + g->alt[a].part[i].off, g->alt[a].part[i].len, g->alt[a].part[i].star, name, n))
                next |= 2ull << i;
        }
        next = closure(next, g->alt[a].globstar);
        ret->at[a] = next;
        match |= (next & end) != 0;
        *ret_alive |= (next & ~end) != 0;
    }
    return match;
}

bool glob_match(const struct glob *g, const char *path)
{
    struct glob_state s;
    bool match = false, alive = true;
    glob_start(g, &s);
    while (*path && alive) {
        size_t n = strcspn(path, "/");
        match = glob_step(g, &s, path, n, &s, &alive);
        path += n + strspn(path + n, "/");
        if (*path && !alive)
            return false;
    }
    return match;
}
