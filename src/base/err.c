#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"

/* A message is one line and may hold a peer's words: control characters become spaces, and a cut never splits a character. */
static void finish(struct err *e, int rc, int sys_errno, const char *text, size_t wanted)
{
    size_t n = strlen(text);
    if (wanted > n) {      /* cut: drop a last character that is not whole */
        size_t i = n;
        while (i > 0 && n - i < 3 && ((unsigned char)text[i - 1] & 0xc0) == 0x80)
            i--;
        if (i > 0 && (unsigned char)text[i - 1] >= 0xc0) {
            unsigned char lead = (unsigned char)text[i - 1];
            size_t need = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
            if (n - (i - 1) < need)
                n = i - 1;
        }
    }
    for (size_t i = 0; i < n; i++)
        e->msg[i] = (unsigned char)text[i] < 0x20 || text[i] == 0x7f ? ' ' : text[i];
    e->msg[n] = '\0';
    e->rc = rc;
    e->sys_errno = sys_errno;
}

/* The text is made in a buffer of its own first: an argument may point into e->msg. */
int err_set(struct err *e, int rc, const char *fmt, ...)
{
    if (!e)
        return rc;
    char text[ERR_MSG_MAX];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0)
        text[0] = '\0';
    finish(e, rc, 0, text, n < 0 ? 0 : (size_t)n);
    return rc;
}

static size_t append(char *text, size_t at, const char *sep, const char *more)
{
    size_t cap = ERR_MSG_MAX, have = at < cap ? at : cap - 1;
    int n = snprintf(text + have, cap - have, "%s%s", sep, more);
    return at + (n < 0 ? 0 : (size_t)n);
}

int err_sys(struct err *e, int rc, int sys_errno, const char *fmt, ...)
{
    if (!e)
        return rc;
    char text[ERR_MSG_MAX], name[128];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0)
        text[0] = '\0';
    size_t wanted = append(text, n < 0 ? 0 : (size_t)n, ": ", strerror_r(sys_errno, name, sizeof name));
    finish(e, rc, sys_errno, text, wanted);
    return rc;
}

int err_wrap(struct err *e, int rc, const char *fmt, ...)
{
    if (!e)
        return rc;
    char text[ERR_MSG_MAX];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0)
        text[0] = '\0';
    size_t wanted = append(text, n < 0 ? 0 : (size_t)n, e->msg[0] ? ": " : "", e->msg);
    finish(e, rc, e->sys_errno, text, wanted);
    return rc;
}
