/* base/err.h - a result code with its details, on the caller's stack. No heap. */
#pragma once

#include "base/attr.h"
#include "base/rc.h"

#define ERR_MSG_MAX 512

struct err {
    int  rc, sys_errno;
    char msg[ERR_MSG_MAX]; /* one line for a person: what was wrong, where, what to do */
};

/* Each returns `rc`, so that a failing line is one `return`. `e` may be NULL. Too long text is cut at a whole UTF-8 character. */
int err_set(struct err *e, int rc, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* As err_set, and appends ": <strerror(sys_errno)>". */
int err_sys(struct err *e, int rc, int sys_errno, const char *fmt, ...) PRINTF_LIKE(4, 5);
/* Puts "context: " in front of what `e` already says; keeps sys_errno. */
int err_wrap(struct err *e, int rc, const char *fmt, ...) PRINTF_LIKE(3, 4);
