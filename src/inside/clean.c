#include "inside/clean.h"

#include <stdbool.h>
#include <string.h>

#define OSC_MAX 4096            /* a longer one is no sequence but text behind a stray ESC */
#define LINE_SEARCH 1024        /* how far clean_tail() looks for the next line */

/* Bytes of the sequence that begins at p (an ESC); 1 when it is none that we know. */
static size_t sequence(const char *p, size_t n)
{
    size_t i = 2;
    if (n < 2)
        return 1;
    if (p[1] == '[') {
        while (i < n && p[i] >= 0x30 && p[i] <= 0x3f)
            i++;
        while (i < n && p[i] >= 0x20 && p[i] <= 0x2f)
            i++;
        return i < n && p[i] >= 0x40 && p[i] <= 0x7e ? i + 1 : 1;
    }
    if (p[1] == ']') {
        for (; i < n && i < OSC_MAX && p[i] != '\n'; i++) {
            if (p[i] == '\a')
                return i + 1;
            if (p[i] == 0x1b && i + 1 < n && p[i + 1] == '\\')
                return i + 2;
        }
    }
    return 1;
}

size_t clean_output(char *p, size_t n)
{
    size_t out = 0, line = 0;
    bool cr = false;
    if (!memchr(p, 0x1b, n) && !memchr(p, '\r', n))
        return n;
    for (size_t i = 0; i < n;) {
        char c = p[i];
        if (c == 0x1b) {
            i += sequence(p + i, n - i);
            continue;
        }
        i++;
        if (c == '\r') {
            cr = true;
            continue;
        }
        if (cr && c != '\n')
            out = line;
        cr = false;
        p[out++] = c;
        if (c == '\n')
            line = out;
    }
    return out;
}

size_t clean_trimmed(const char *p, size_t n)
{
    while (n > 0 && p[n - 1] == '\n')
        n--;
    return n;
}

size_t clean_tail(const char *p, size_t n, size_t keep)
{
    if (n <= keep)
        return 0;
    size_t from = n - keep;
    if (p[from - 1] == '\n')
        return from;
    size_t look = n - from < LINE_SEARCH ? n - from : LINE_SEARCH;
    const char *lf = memchr(p + from, '\n', look);
    if (lf && lf + 1 < p + n)
        return (size_t)(lf - p) + 1;
    for (int i = 0; i < 3 && from < n && ((unsigned char)p[from] & 0xc0) == 0x80; i++)
        from++;
    return from;
}
