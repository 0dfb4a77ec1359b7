/* http/parse.h - strict HTTP/1.1 message parsing (RFC 9112). No allocation, no logging; slices point into the caller's bytes.
 * Refused: obs-fold, bare LF or CR, space before the colon, both Content-Length and Transfer-Encoding, repeated differing
 * Content-Length, any Transfer-Encoding but a single "chunked", control characters, non-token names, HTTP/0.9, HTTP/2 prefaces.
 * Fuzzed by tests/fuzz/fuzz_http.c. */
#pragma once

#include "base/attr.h"
#include "base/str.h"

#define HTTP_HEADERS_MAX 64              /* headers in one message */
#define HTTP_HEAD_MAX (32 * KIB)         /* request or status line and headers together */
#define HTTP_TARGET_MAX (8 * KIB)

enum http_method { HTTP_GET, HTTP_POST, HTTP_PUT, HTTP_DELETE, HTTP_PATCH, HTTP_HEAD, HTTP_OPTIONS, HTTP_CONNECT, HTTP_METHOD_MAX_ };
const char *http_method_name(enum http_method m);

struct http_header { struct slice name, value; };      /* value without white space at the ends */
struct http_head {
    enum http_method method;             /* request */
    struct slice target;                 /* request: origin-form as sent */
    int status;                          /* response */
    struct slice reason;
    int minor;                           /* HTTP/1.minor: 0 or 1 */
    struct http_header headers[HTTP_HEADERS_MAX]; size_t n_headers;
    bool chunked, keep_alive, expect_continue, upgrade;
    int64_t content_length;              /* -1: none given */
};
/* RC_OK: *ret_used bytes were the head (with the empty line). RC_AGAIN: incomplete (pass `seen` = length of the previous try, so that a
 * slow sender costs linear time). RC_INVALID: malformed. RC_TOO_LARGE: over HTTP_HEAD_MAX, HTTP_TARGET_MAX or HTTP_HEADERS_MAX.
 * RC_UNSUPPORTED: a well-formed request whose method is none of enum http_method. *ret_why (static text) says what was wrong.
 * The target may be in absolute form ("http://host/path"), "*" for OPTIONS, "host:port" for CONNECT. Host is required once in HTTP/1.1. */
MUST_CHECK int http_parse_request(const char *p, size_t n, size_t seen, struct http_head *ret, size_t *ret_used, const char **ret_why);
MUST_CHECK int http_parse_response(const char *p, size_t n, size_t seen, struct http_head *ret, size_t *ret_used, const char **ret_why);
const struct slice *http_find(const struct http_head *h, const char *name);   /* first of that name, case-insensitive; NULL */

/* Chunked body decoder, incremental. Feed bytes; it yields slices of payload inside them. Extensions and trailers are skipped, bounded. */
struct http_chunked { int state; uint64_t left; uint32_t line_bytes, trailer_bytes; };
/* Consumes a part of [p, p+n): *ret_used bytes taken, *ret_data a slice of payload among them (maybe empty). RC_OK: go on (call again while
 * bytes are left); RC_CLOSED: the last chunk and trailers are done; RC_INVALID. */
MUST_CHECK int http_chunked_step(struct http_chunked *c, const char *p, size_t n, size_t *ret_used, struct slice *ret_data);

/* Percent-decodes one path segment or query component into `out` (cap with NUL). '+' is a space only when `plus`. RC_INVALID: bad escape,
 * NUL, or invalid UTF-8; RC_TOO_LARGE: does not fit. */
MUST_CHECK int http_pct_decode(struct slice in, bool plus, char *out, size_t cap);
