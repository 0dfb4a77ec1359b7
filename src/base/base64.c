#include "base/base64.h"

static int encode(struct buf *out, const void *bytes, size_t n, const char *alphabet, bool pad)
{
    const uint8_t *p = bytes;
    size_t len;
    if (n > SIZE_MAX / 2) {
        out->failed = true;
        return RC_LIMIT;
    }
    len = n / 3 * 4 + (n % 3 ? (pad ? 4 : n % 3 + 1) : 0);
    char *start = buf_reserve(out, len), *q = start;
    if (!q)
        return buf_room(out) < len ? RC_LIMIT : RC_NOMEM;
    for (; n >= 3; n -= 3, p += 3) {
        *q++ = alphabet[p[0] >> 2];
        *q++ = alphabet[(p[0] & 3) << 4 | p[1] >> 4];
        *q++ = alphabet[(p[1] & 15) << 2 | p[2] >> 6];
        *q++ = alphabet[p[2] & 63];
    }
    if (n) {
        unsigned second = n == 2 ? p[1] : 0u;
        *q++ = alphabet[p[0] >> 2];
        *q++ = alphabet[(p[0] & 3u) << 4 | second >> 4];
        if (n == 2)
            *q++ = alphabet[(second & 15) << 2];
        else if (pad)
            *q++ = '=';
        if (pad)
            *q++ = '=';
    }
    buf_commit(out, (size_t)(q - start));
    return RC_OK;
}

int base64_encode(struct buf *out, const void *p, size_t n)
{
    return encode(out, p, n, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", true);
}

int base64url_encode(struct buf *out, const void *p, size_t n)
{
    return encode(out, p, n, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", false);
}

static inline int value(char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    if (c == '+' || c == '-') return 62;
    if (c == '/' || c == '_') return 63;
    return -1;
}

/* Gives the reserved room back with its NUL in place. */
static int refuse(struct buf *out)
{
    buf_commit(out, 0);
    return RC_INVALID;
}

int base64_decode(struct buf *out, const char *s, size_t n)
{
    if (n && s[n - 1] == '=') {         /* padding must be complete when it is there */
        if (n % 4)
            return RC_INVALID;
        n -= s[n - 2] == '=' ? 2 : 1;
    }
    if (n % 4 == 1)
        return RC_INVALID;
    size_t len = n / 4 * 3 + (n % 4 ? n % 4 - 1 : 0);
    char *start = buf_reserve(out, len), *q = start;
    if (!q)
        return buf_room(out) < len ? RC_LIMIT : RC_NOMEM;
    for (; n >= 4; n -= 4, s += 4) {
        int a = value(s[0]), b = value(s[1]), c = value(s[2]), d = value(s[3]);
        if ((a | b | c | d) < 0)
            return refuse(out);
        *q++ = (char)(a << 2 | b >> 4);
        *q++ = (char)(b << 4 | c >> 2);
        *q++ = (char)(c << 6 | d);
    }
    if (n) {
        int a = value(s[0]), b = value(s[1]), c = n == 3 ? value(s[2]) : 0;
        if ((a | b | c) < 0 || (n == 2 ? b & 15 : c & 3))       /* left-over bits must be zero: one text per value */
            return refuse(out);
        *q++ = (char)(a << 2 | b >> 4);
        if (n == 3)
            *q++ = (char)(b << 4 | c >> 2);
    }
    buf_commit(out, (size_t)(q - start));
    return RC_OK;
}
