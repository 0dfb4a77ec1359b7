/* base/rc.h - the one list of result codes. A row carries everything that depends on the code. */
#pragma once

#include <stdbool.h>

#define RC_LIST(X)                                                             \
    /* name        value  HTTP  retry  meaning                             */  \
    X(OK,             0,  200,  false, "done")                                 \
    X(AGAIN,         -1,  503,  true,  "would block; call again later")        \
    X(INVALID,       -2,  400,  false, "the caller's input is wrong")          \
    X(DENIED,        -3,  403,  false, "known caller, not allowed")            \
    X(NOT_FOUND,     -4,  404,  false, "no such object")                       \
    X(CONFLICT,      -5,  409,  false, "someone else changed it first")        \
    X(LIMIT,         -6,  429,  true,  "a quota or size limit was hit")        \
    X(PROTO,         -7,  502,  false, "the peer broke the protocol")          \
    X(UNSUPPORTED,   -8,  501,  false, "not on this kernel or back end")       \
    X(NOMEM,         -9,  503,  true,  "allocation refused")                   \
    X(IO,           -10,  500,  true,  "system or database call failed")       \
    X(UNAUTHORIZED, -11,  401,  false, "no valid credential")                  \
    X(PRECONDITION, -12,  412,  false, "the named precondition does not hold") \
    X(TOO_LARGE,    -13,  413,  false, "larger than the limit")                \
    X(CLOSED,       -14,  503,  true,  "the other end is gone")                \
    X(TIMEOUT,      -15,  504,  true,  "no answer in time")

enum rc {
#define X(name, value, http, retry, text) RC_##name = value,
    RC_LIST(X)
#undef X
};

const char *rc_name(int rc);     /* "INVALID"; "UNKNOWN" for a code not in the list */
const char *rc_text(int rc);     /* the meaning column */
int         rc_http(int rc);     /* the HTTP column; 500 for an unknown code. For server/api only. */
bool        rc_retry(int rc);    /* true when a plain repeat may succeed */
