/* http/pct.c - percent-decoding of path segments and query components. */
#include "base/rc.h"
#include "base/utf8.h"
#include "http/parse.h"

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

int http_pct_decode(struct slice in, bool plus, char *out, size_t cap)
{
    size_t n = 0;
    for (size_t i = 0; i < in.n; i++) {
        char c = in.p[i];
        if (c == '%') {
            int hi = in.n - i > 2 ? hex(in.p[i + 1]) : -1;
            int lo = in.n - i > 2 ? hex(in.p[i + 2]) : -1;
            if (hi < 0 || lo < 0)
                return RC_INVALID;
            c = (char)(hi << 4 | lo);
            i += 2;
        } else if (c == '+' && plus) {
            c = ' ';
        }
        if (c == '\0')
            return RC_INVALID;
        if (n + 1 >= cap)
            return RC_TOO_LARGE;
        out[n++] = c;
    }
    if (n >= cap)
        return RC_TOO_LARGE;    /* cap 0: not even the NUL fits */
    out[n] = '\0';
    return utf8_valid_prefix(out, n) == n ? RC_OK : RC_INVALID;
}
