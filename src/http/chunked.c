/* http/chunked.c - decoder of the chunked transfer coding (RFC 9112 7.1), one byte at a time except inside payload. Strict: no bare LF or CR,
 * no white space round the size, extensions and trailers skipped but checked and bounded. */
#include "base/rc.h"
#include "http/parse.h"

#define CHUNK_DIGITS_MAX 15             /* of a size: under 2^60 */
#define CHUNK_LINE_MAX 4096u            /* one size line with its extensions */
#define CHUNK_TRAILER_MAX 16384u        /* all trailers of a message */

/* Zero is the state of a fresh struct. */
enum { SIZE, EXT, EXT_NAME, EXT_VALUE, EXT_TOKEN, EXT_QUOTED, EXT_ESCAPE, EXT_END, SIZE_LF, DATA, DATA_CR, DATA_LF, LINE, NAME, VALUE, VALUE_LF, END_LF, DONE, BROKEN };

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static bool is_text(char c)     /* field-value character */
{
    unsigned char u = (unsigned char)c;
    return u == '\t' || (u >= 0x20 && u != 0x7F);
}

static bool is_token(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '!' || (c >= '#' && c <= '\'') || c == '*' ||
           c == '+' || c == '-' || c == '.' || c == '^' || c == '_' || c == '`' || c == '|' || c == '~';
}

static int size_byte(struct http_chunked *k, char c)
{
    int d = hex(c);
    if (d >= 0) {
        k->left = k->left << 4 | (uint64_t)d;
        return ++k->line_bytes > CHUNK_DIGITS_MAX ? BROKEN : SIZE;
    }
    if (k->line_bytes == 0)
        return BROKEN;
    return c == ';' ? EXT : c == '\r' ? SIZE_LF : BROKEN;
}

/* chunk-ext = *( ";" token [ "=" ( token / quoted-string ) ] ), without the white space that RFC 9112 calls bad. */
static int ext_byte(struct http_chunked *k, char c)
{
    if (++k->line_bytes > CHUNK_LINE_MAX)
        return BROKEN;
    int between = c == ';' ? EXT : c == '\r' ? SIZE_LF : BROKEN;
    switch (k->state) {
    case EXT:
        return is_token(c) ? EXT_NAME : BROKEN;
    case EXT_NAME:
        return is_token(c) ? EXT_NAME : c == '=' ? EXT_VALUE : between;
    case EXT_VALUE:
        return is_token(c) ? EXT_TOKEN : c == '"' ? EXT_QUOTED : BROKEN;
    case EXT_TOKEN:
        return is_token(c) ? EXT_TOKEN : between;
    case EXT_QUOTED:
        return c == '"' ? EXT_END : c == '\\' ? EXT_ESCAPE : is_text(c) ? EXT_QUOTED : BROKEN;
    case EXT_ESCAPE:
        return is_text(c) ? EXT_QUOTED : BROKEN;
    case EXT_END:
        return between;
    default:
        return BROKEN;
    }
}

static int trailer_byte(struct http_chunked *k, char c)
{
    if (k->state != END_LF && ++k->trailer_bytes > CHUNK_TRAILER_MAX)
        return BROKEN;
    switch (k->state) {
    case LINE:
        return c == '\r' ? END_LF : is_token(c) ? NAME : BROKEN;
    case NAME:
        return c == ':' ? VALUE : is_token(c) ? NAME : BROKEN;
    case VALUE:
        return c == '\r' ? VALUE_LF : is_text(c) ? VALUE : BROKEN;
    case VALUE_LF:
        return c == '\n' ? LINE : BROKEN;
    case END_LF:
        return c == '\n' ? DONE : BROKEN;
    default:
        return BROKEN;
    }
}

static int framing_byte(struct http_chunked *k, char c)
{
    switch (k->state) {
    case SIZE:
        return size_byte(k, c);
    case EXT:
    case EXT_NAME:
    case EXT_VALUE:
    case EXT_TOKEN:
    case EXT_QUOTED:
    case EXT_ESCAPE:
    case EXT_END:
        return ext_byte(k, c);
    case SIZE_LF:
        return c != '\n' ? BROKEN : k->left ? DATA : LINE;
    case DATA_CR:
        return c == '\r' ? DATA_LF : BROKEN;
    case DATA_LF:
        k->line_bytes = 0;
        return c == '\n' ? SIZE : BROKEN;
    default:
        return trailer_byte(k, c);
    }
}

int http_chunked_step(struct http_chunked *c, const char *p, size_t n, size_t *ret_used, struct slice *ret_data)
{
    size_t i = 0;
    *ret_data = (struct slice){ p, 0 };
    while (c->state != DATA && c->state != DONE && c->state != BROKEN && i < n)
        c->state = framing_byte(c, p[i++]);
    if (c->state == DATA && i < n) {
        size_t take = c->left < n - i ? (size_t)c->left : n - i;
        *ret_data = (struct slice){ p + i, take };
        i += take;
        c->left -= take;
        if (c->left == 0)
            c->state = DATA_CR;
    }
    *ret_used = i;
    return c->state == BROKEN ? RC_INVALID : c->state == DONE ? RC_CLOSED : RC_OK;
}
