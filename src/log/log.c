#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/str.h"
#include "base/utf8.h"
#include "log/log.h"

#define LINE_MAX_BYTES 4096     /* PIPE_BUF: a line of this size goes through a pipe in one piece */
#define VALUE_MAX 1024          /* of one value, before quoting; longer ones are cut and end in "..." */
#define TAIL_ROOM 16            /* kept free for the mark of a cut line and the end of it */

static const char *const level_upper[] = { "DEBUG", "INFO", "WARN", "ERROR" };
static const char *const level_lower[] = { "debug", "info", "warn", "error" };
_Static_assert(COUNT_OF(level_upper) == LOG_LEVEL_MAX_ && COUNT_OF(level_lower) == LOG_LEVEL_MAX_, "a name per level");

static _Atomic int min_level = LOG_INFO;
static enum log_format out_format = LOG_TEXT;
static char out_role[32];

void log_setup(enum log_level min, enum log_format format, const char *role)
{
    out_format = format;
    (void)str_copy(out_role, sizeof out_role, role ? role : "");
    atomic_store(&min_level, (int)min);
}

bool log_on(enum log_level level)
{
    return (int)level >= atomic_load_explicit(&min_level, memory_order_relaxed);
}

struct line { size_t n; bool cut; char text[LINE_MAX_BYTES]; };

static bool put(struct line *l, const char *p, size_t n)
{
    if (l->cut || n > sizeof l->text - TAIL_ROOM - l->n) {
        l->cut = true;
        return false;
    }
    memcpy(l->text + l->n, p, n);
    l->n += n;
    return true;
}

static void puts_(struct line *l, const char *s) { (void)put(l, s, strlen(s)); }

/* Bytes of a code point that could move, hide or end text on a terminal or in a line-based reader: C1 controls, line separators,
 * direction overrides. 0 when it is harmless; else its length and *ret is the code point. */
static size_t nasty(const unsigned char *p, size_t n, unsigned *ret)
{
    if (n >= 2 && p[0] == 0xc2 && p[1] < 0xa0) {
        *ret = p[1];
        return 2;
    }
    if (n < 3 || p[0] != 0xe2)
        return 0;
    unsigned c = 0x2000u | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    *ret = c;
    return (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) ? 3 : 0;
}

static void put_quoted(struct line *l, const char *s, size_t n)
{
    (void)put(l, "\"", 1);
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)s[i];
        unsigned code = c;
        char esc[8];
        size_t len = 1;
        if (c == '"' || c == '\\') {
            (void)put(l, (char[]){ '\\', (char)c }, 2);
        } else if (c == '\n') {
            puts_(l, "\\n");
        } else if (c == '\t') {
            puts_(l, "\\t");
        } else if (c < 0x20 || c == 0x7f || (c >= 0x80 && (len = nasty((const unsigned char *)s + i, n - i, &code)) > 0)) {
            (void)snprintf(esc, sizeof esc, "\\u%04x", code & 0xffff);
            puts_(l, esc);
        } else {
            len = 1;
            while (c >= 0x80 && i + len < n && ((unsigned char)s[i + len] & 0xc0) == 0x80)
                len++;
            (void)put(l, s + i, len);
        }
        i += len;
    }
    (void)put(l, "\"", 1);
}

static bool is_plain(const char *s, size_t n)
{
    static const char mark[] = "-_.:/@+,~%*?[](){}<>;!#$&^|'`";
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        bool alnum = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!alnum && (c == '\0' || !strchr(mark, c)))
            return false;
    }
    return n > 0;
}

/* One pair; a pair is in the line whole or not at all. `number`: the text is a JSON number. */
static void put_pair(struct line *l, const char *key, size_t key_n, const char *value, size_t n, bool number)
{
    size_t before = l->n;
    if (l->cut)
        return;
    if (out_format == LOG_JSON) {
        puts_(l, l->n > 1 ? ",\"" : "\"");
        (void)put(l, key, key_n);
        puts_(l, "\":");
    } else {
        puts_(l, " ");
        (void)put(l, key, key_n);
        puts_(l, "=");
    }
    if (number || (out_format == LOG_TEXT && is_plain(value, n)))
        (void)put(l, value, n);
    else
        put_quoted(l, value, n);
    if (l->cut)
        l->n = before;
}

/* A value under construction: pieces of one token of the format. */
struct value { size_t n; bool cut; char text[VALUE_MAX]; };

static void value_put(struct value *v, const char *p, size_t n)
{
    size_t room = sizeof v->text - v->n;
    if (n > room) {
        v->cut = true;
        n = room;
    }
    if (n)
        memcpy(v->text + v->n, p, n);
    v->n += n;
}

/* Makes the text valid UTF-8, marks a cut one. */
static void value_finish(struct value *v, struct buf *clean)
{
    if (v->cut) {
        v->n -= 3;
        size_t good = utf8_valid_prefix(v->text, v->n);
        if (v->n - good < 4)        /* a character split by the cut */
            v->n = good;
    }
    (void)utf8_sanitize(clean, v->text, v->n);
    if (v->cut)
        (void)buf_puts(clean, "...");
}

enum length { LEN_INT, LEN_LONG, LEN_LLONG, LEN_SIZE };
struct spec { char text[24]; size_t n; enum length length; char conv; int precision; bool star; };

/* Reads one conversion after '%'. False for one that is not allowed: then the arguments cannot be followed any further. */
static bool spec_parse(const char **p, struct spec *s)
{
    const char *from = *p, *q = from;
    *s = (struct spec){ .precision = -1 };
    q += strspn(q, "-+ #0");
    q += strspn(q, "0123456789");
    if (*q == '.' && q[1] == '*') {
        s->star = true;
        q += 2;
    } else if (*q == '.') {
        s->precision = 0;
        for (q++; *q >= '0' && *q <= '9' && s->precision < 10000; q++)
            s->precision = s->precision * 10 + (*q - '0');
    }
    if (q[0] == 'l' && q[1] == 'l') { s->length = LEN_LLONG; q += 2; }
    else if (*q == 'l') { s->length = LEN_LONG; q++; }
    else if (*q == 'z') { s->length = LEN_SIZE; q++; }
    s->conv = *q;
    size_t n = (size_t)(q - from) + 1;
    if (!*q || !strchr("sdiuxXfgc%", *q) || n + 2 > sizeof s->text || (s->star && s->conv != 's'))
        return false;
    s->text[0] = '%';
    memcpy(s->text + 1, from, n);
    s->n = n + 1;
    s->text[s->n] = '\0';
    *p = q + 1;
    return true;
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"     /* the format is a piece of one that the compiler has checked */
static void spec_value(const struct spec *s, struct value *v, va_list *ap)
{
    char text[512] = "";
    switch (s->conv) {
    case '%':
        value_put(v, "%", 1);
        return;
    case 's': {
        int most = s->star ? va_arg(*ap, int) : s->precision;
        const char *str = va_arg(*ap, const char *);
        if (str)
            value_put(v, str, most < 0 ? strlen(str) : strnlen(str, (size_t)most));
        return;
    }
    case 'c':
        (void)snprintf(text, sizeof text, "%c", va_arg(*ap, int));
        break;
    case 'f': case 'g':
        (void)snprintf(text, sizeof text, s->text, va_arg(*ap, double));
        break;
    default:
        if (s->length == LEN_LLONG)
            (void)snprintf(text, sizeof text, s->text, va_arg(*ap, long long));
        else if (s->length == LEN_LONG)
            (void)snprintf(text, sizeof text, s->text, va_arg(*ap, long));
        else if (s->length == LEN_SIZE)
            (void)snprintf(text, sizeof text, s->text, va_arg(*ap, size_t));
        else
            (void)snprintf(text, sizeof text, s->text, va_arg(*ap, int));
    }
    value_put(v, text, strlen(text));
}
#pragma GCC diagnostic pop

/* Whether snprintf's text is also a JSON number: no hex, no padding, no inf or nan. */
static bool is_number(const char *s, size_t n)
{
    size_t i = n && s[0] == '-';
    if (i == n || (s[i] == '0' && i + 1 < n && s[i + 1] != '.') || s[n - 1] == '.')
        return false;
    for (; i < n; i++)
        if ((s[i] < '0' || s[i] > '9') && s[i] != '.')
            return false;
    return true;
}

static void put_pairs(struct line *l, const char *fmt, va_list *ap)
{
    for (const char *p = fmt; *p;) {
        p += strspn(p, " ");
        const char *key = p;
        p += strcspn(p, "=% ");
        size_t key_n = (size_t)(p - key);
        if (*p == '%' && key_n) {       /* a key made of arguments: not a literal, so not trusted */
            put_pair(l, "log_format_error", 16, fmt, strlen(fmt), false);
            return;
        }
        if (*p == '%') {
            key = "msg";
            key_n = 3;
        }
        struct value v = { .n = 0 };
        size_t specs = 0, literals = 0;
        char conv = 0;
        if (*p == '=')
            p++;
        while (*p && *p != ' ') {
            struct spec s;
            if (*p != '%') {
                value_put(&v, p++, 1);
                literals++;
                continue;
            }
            p++;
            if (!spec_parse(&p, &s)) {
                put_pair(l, "log_format_error", 16, fmt, strlen(fmt), false);
                return;
            }
            spec_value(&s, &v, ap);
            specs++;
            conv = s.conv;
        }
        if (!key_n)
            continue;
        struct buf clean;
        buf_init(&clean, 4 * VALUE_MAX);
        value_finish(&v, &clean);
        bool number = specs == 1 && !literals && strchr("diuf", conv) && is_number(buf_data(&clean), buf_len(&clean));
        put_pair(l, key, key_n, buf_data(&clean), buf_len(&clean), number);
        buf_done(&clean);
    }
}

static void emit(const char *p, size_t n)
{
    while (n) {
        ssize_t put_n = write(STDERR_FILENO, p, n);
        if (put_n < 0 && errno == EINTR)
            continue;
        if (put_n <= 0)
            return;         /* nobody reads it, or a full non-blocking pipe: a log line is not worth waiting for */
        p += put_n;
        n -= (size_t)put_n;
    }
}

void log_event(enum log_level level, const char *event, const char *fmt, ...)
{
    if (!log_on(level) || (unsigned)level >= LOG_LEVEL_MAX_)
        return;
    int saved = errno;
    struct line l;
    char now[RFC3339_MAX];
    l.n = 0;
    l.cut = false;
    rfc3339_format(clock_now_ms(), now);
    if (out_format == LOG_JSON) {
        puts_(&l, "{");
        put_pair(&l, "time", 4, now, strlen(now), false);
        put_pair(&l, "level", 5, level_lower[level], strlen(level_lower[level]), false);
        put_pair(&l, "event", 5, event, strlen(event), false);
    } else {
        puts_(&l, now);
        puts_(&l, " ");
        puts_(&l, level_upper[level]);
        puts_(&l, " ");
        puts_(&l, event);
    }
    if (out_role[0])
        put_pair(&l, "role", 4, out_role, strlen(out_role), false);
    va_list ap;
    va_start(ap, fmt);
    put_pairs(&l, fmt, &ap);
    va_end(ap);
    const char *tail = out_format == LOG_JSON ? (l.cut ? ",\"cut\":true}\n" : "}\n") : (l.cut ? " cut=true\n" : "\n");
    size_t k = strlen(tail);        /* TAIL_ROOM was kept for it */
    memcpy(l.text + l.n, tail, k);
    emit(l.text, l.n + k);
    errno = saved;
}

void log_err(enum log_level level, const char *event, const struct err *e)
{
    if (e->sys_errno)
        log_event(level, event, "rc=%s error=%s errno=%d", rc_name(e->rc), e->msg, e->sys_errno);
    else
        log_event(level, event, "rc=%s error=%s", rc_name(e->rc), e->msg);
}

int log_level_parse(const char *s, enum log_level *ret)
{
    for (size_t i = 0; s && i < COUNT_OF(level_lower); i++)
        if (strcmp(s, level_lower[i]) == 0) {
            *ret = (enum log_level)i;
            return RC_OK;
        }
    return RC_INVALID;
}

int log_format_parse(const char *s, enum log_format *ret)
{
    if (!str_eq(s, "text") && !str_eq(s, "json"))
        return RC_INVALID;
    *ret = *s == 't' ? LOG_TEXT : LOG_JSON;
    return RC_OK;
}
