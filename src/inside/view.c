#include "inside/view.h"

#include <string.h>

int view_lines(const char *p, size_t n, int64_t first, int64_t last, size_t *ret_off, size_t *ret_n)
{
    if (first < 1)
        first = 1;
    if (last > 0 && last < first)
        return -1;
    size_t off = 0;
    int64_t line = 1;
    for (; line < first; line++) {
        const char *lf = off < n ? memchr(p + off, '\n', n - off) : NULL;
        if (!lf) {
            *ret_off = n;
            *ret_n = 0;
            return 0;
        }
        off = (size_t)(lf - p) + 1;
    }
    size_t end = last > 0 ? off : n;
    for (; last > 0 && line <= last && end < n; line++) {
        const char *lf = memchr(p + end, '\n', n - end);
        end = lf ? (size_t)(lf - p) + 1 : n;
    }
    if (end > off && p[end - 1] == '\n')
        end--;
    *ret_off = off;
    *ret_n = end - off;
    return 0;
}
