#include <string.h>

#include "base/buf.h"
#include "base/utf8.h"

/* Length of the valid sequence at p, or 0; then *ret_bad is the length of the longest broken start of one (at least 1), which is
 * replaced as a whole (Unicode 15, 3.9, "maximal subpart"). */
static size_t sequence(const unsigned char *p, size_t n, size_t *ret_bad)
{
    unsigned char c = p[0], lo = 0x80, hi = 0xbf;
    size_t need;
    *ret_bad = 1;
    if (c < 0x80)
        return 1;
    if (c >= 0xc2 && c <= 0xdf)
        need = 2;
    else if (c >= 0xe0 && c <= 0xef) {
        need = 3;
        if (c == 0xe0) lo = 0xa0;       /* overlong */
        if (c == 0xed) hi = 0x9f;       /* surrogates */
    } else if (c >= 0xf0 && c <= 0xf4) {
        need = 4;
        if (c == 0xf0) lo = 0x90;
        if (c == 0xf4) hi = 0x8f;       /* over U+10FFFF */
    } else
        return 0;
    for (size_t i = 1; i < need; i++) {
        if (i == n || p[i] < lo || p[i] > hi) {
            *ret_bad = i;
            return 0;
        }
        lo = 0x80;
        hi = 0xbf;
    }
    return need;
}

size_t utf8_valid_prefix(const char *text, size_t n)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t i = 0, bad;
    while (i < n) {
        uint64_t eight;
        while (n - i >= sizeof eight) {     /* most text is ASCII */
            memcpy(&eight, p + i, sizeof eight);
            if (eight & 0x8080808080808080u)
                break;
            i += sizeof eight;
        }
        if (i == n)
            break;
        size_t k = sequence(p + i, n - i, &bad);
        if (!k)
            return i;
        i += k;
    }
    return n;
}

size_t utf8_count(const char *p, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += ((unsigned char)p[i] & 0xc0) != 0x80;
    return count;
}

int utf8_sanitize(struct buf *out, const char *text, size_t n)
{
    size_t i = 0;
    while (i < n) {
        size_t good = utf8_valid_prefix(text + i, n - i);
        const char *nul = good ? memchr(text + i, '\0', good) : NULL;
        if (nul)
            good = (size_t)(nul - (text + i));
        TRY(buf_put(out, text + i, good));
        i += good;
        if (i == n)
            break;
        size_t bad = 1;
        if (!nul)
            (void)sequence((const unsigned char *)text + i, n - i, &bad);
        TRY(buf_put(out, "\xef\xbf\xbd", 3));
        i += bad;
    }
    return RC_OK;
}
