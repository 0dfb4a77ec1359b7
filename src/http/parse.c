/* http/parse.c - strict HTTP/1.1 heads. Two passes over at most HTTP_HEAD_MAX bytes: the first looks for the empty line and is resumable
 * (only the new bytes of a slow sender are looked at), the second runs once, over the complete head. */
#include "http/parse.h"

#include <string.h>

#include "base/rc.h"

#define CL_DIGITS_MAX 18    /* of Content-Length: always inside int64_t */

static const char *const method_names[HTTP_METHOD_MAX_] = {
    [HTTP_GET] = "GET",     [HTTP_POST] = "POST", [HTTP_PUT] = "PUT",         [HTTP_DELETE] = "DELETE",
    [HTTP_PATCH] = "PATCH", [HTTP_HEAD] = "HEAD", [HTTP_OPTIONS] = "OPTIONS", [HTTP_CONNECT] = "CONNECT",
};

const char *http_method_name(enum http_method m)
{
    return m < HTTP_METHOD_MAX_ ? method_names[m] : "?";
}

/* Character classes of RFC 9110 5.6.2 (token), 5.5 (field value), RFC 3986 (target, without '#'), and of a Host value. */
enum { TOKEN = 1, VALUE = 2, TARGET = 4, HOST = 8 };
static const uint8_t class_of[256] = {
    ['\t'] = VALUE, [' '] = VALUE, ['!'] = TOKEN | VALUE | TARGET | HOST, ['"'] = VALUE | TARGET, ['#'] = TOKEN | VALUE,
    ['$'] = TOKEN | VALUE | TARGET | HOST, ['%'] = TOKEN | VALUE | TARGET | HOST, ['&'] = TOKEN | VALUE | TARGET | HOST,
    ['\''] = TOKEN | VALUE | TARGET | HOST, ['('] = VALUE | TARGET | HOST, [')'] = VALUE | TARGET | HOST, ['*'] = TOKEN | VALUE | TARGET | HOST,
    ['+'] = TOKEN | VALUE | TARGET | HOST, [','] = VALUE | TARGET, ['-'] = TOKEN | VALUE | TARGET | HOST, ['.'] = TOKEN | VALUE | TARGET | HOST,
    ['/'] = VALUE | TARGET, ['0' ... '9'] = TOKEN | VALUE | TARGET | HOST, [':'] = VALUE | TARGET | HOST, [';'] = VALUE | TARGET | HOST,
    ['<'] = VALUE | TARGET, ['='] = VALUE | TARGET | HOST, ['>'] = VALUE | TARGET, ['?'] = VALUE | TARGET, ['@'] = VALUE | TARGET,
    ['A' ... 'Z'] = TOKEN | VALUE | TARGET | HOST, ['['] = VALUE | TARGET | HOST, ['\\'] = VALUE | TARGET, [']'] = VALUE | TARGET | HOST,
    ['^'] = TOKEN | VALUE | TARGET, ['_'] = TOKEN | VALUE | TARGET | HOST, ['`'] = TOKEN | VALUE | TARGET,
    ['a' ... 'z'] = TOKEN | VALUE | TARGET | HOST, ['{'] = VALUE | TARGET, ['|'] = TOKEN | VALUE | TARGET, ['}'] = VALUE | TARGET,
    ['~'] = TOKEN | VALUE | TARGET | HOST, [0x80 ... 0xFF] = VALUE,
};

static bool is(char c, int cls)
{
    return class_of[(unsigned char)c] & cls;
}

static size_t span(struct slice s, int cls)
{
    size_t i = 0;
    while (i < s.n && is(s.p[i], cls))
        i++;
    return i;
}

/* Finds the end of the head; looks at [seen, n) only. Whatever the cut, the first offence by position decides. */
static int find_end(const char *p, size_t n, size_t seen, size_t *ret_end, const char **ret_why)
{
    size_t lim = n < HTTP_HEAD_MAX ? n : HTTP_HEAD_MAX;
    if (n && !is(p[0], TOKEN)) {
        *ret_why = "the message does not begin with a token";
        return RC_INVALID;
    }
    while (seen < lim) {
        const char *lf = memchr(p + seen, '\n', lim - seen);
        if (!lf)
            break;
        size_t i = (size_t)(lf - p);
        if (i == 0 || p[i - 1] != '\r') {
            *ret_why = "a line ends without CR";
            return RC_INVALID;
        }
        if (i >= 3 && p[i - 2] == '\n') {
            *ret_end = i + 1;
            return RC_OK;
        }
        seen = i + 1;
    }
    if (n >= HTTP_HEAD_MAX) {
        *ret_why = "the head is too large";
        return RC_TOO_LARGE;
    }
    return RC_AGAIN;
}

/* The next line without CR LF. The caller knows that there is one. */
static struct slice next_line(const char **p, const char *end)
{
    const char *lf = memchr(*p, '\n', (size_t)(end - *p));
    struct slice line = { *p, (size_t)(lf - *p) - 1 };
    *p = lf + 1;
    return line;
}

static int invalid(const char **ret_why, const char *why)
{
    *ret_why = why;
    return RC_INVALID;
}

static int content_length(struct http_head *h, struct slice v, const char **ret_why)
{
    if (v.n == 0 || v.n > CL_DIGITS_MAX)
        return invalid(ret_why, "content-length is not a number");
    int64_t x = 0;
    for (size_t i = 0; i < v.n; i++) {
        if (v.p[i] < '0' || v.p[i] > '9')
            return invalid(ret_why, "content-length is not a number");
        x = x * 10 + (v.p[i] - '0');
    }
    if (h->content_length >= 0 && h->content_length != x)
        return invalid(ret_why, "content-length is given twice and differs");
    h->content_length = x;
    return RC_OK;
}

struct conn_tokens { bool close, keep_alive, upgrade; };

static int connection(struct conn_tokens *t, struct slice v, const char **ret_why)
{
    while (v.n) {
        const char *comma = memchr(v.p, ',', v.n);
        size_t n = comma ? (size_t)(comma - v.p) : v.n;
        struct slice tok = slice_trim((struct slice){ v.p, n });
        if (span(tok, TOKEN) != tok.n)
            return invalid(ret_why, "connection is not a list of tokens");
        t->close = t->close || slice_eq_nocase(tok, "close");
        t->keep_alive = t->keep_alive || slice_eq_nocase(tok, "keep-alive");
        t->upgrade = t->upgrade || slice_eq_nocase(tok, "upgrade");
        n += comma != NULL;
        v = (struct slice){ v.p + n, v.n - n };
    }
    return RC_OK;
}

/* Headers that decide how the message is framed and what becomes of the connection. */
static int framing(struct http_head *h, bool request, const char **ret_why)
{
    struct conn_tokens t = { 0 };
    size_t hosts = 0;
    bool upgrade = false;
    for (size_t i = 0; i < h->n_headers; i++) {
        struct slice k = h->headers[i].name, v = h->headers[i].value;
        if (slice_eq_nocase(k, "content-length")) {
            TRY(content_length(h, v, ret_why));
        } else if (slice_eq_nocase(k, "transfer-encoding")) {
            if (h->chunked || !slice_eq_nocase(v, "chunked"))
                return invalid(ret_why, "transfer-encoding is not a single \"chunked\"");
            h->chunked = true;
        } else if (slice_eq_nocase(k, "connection")) {
            TRY(connection(&t, v, ret_why));
        } else if (slice_eq_nocase(k, "host")) {
            if (request && span(v, HOST) != v.n)
                return invalid(ret_why, "host is malformed");
            hosts++;
        } else if (slice_eq_nocase(k, "expect")) {
            h->expect_continue = h->minor == 1 && slice_eq_nocase(v, "100-continue");
        } else if (slice_eq_nocase(k, "upgrade")) {
            upgrade = true;
        }
    }
    if (h->chunked && h->content_length >= 0)
        return invalid(ret_why, "both content-length and transfer-encoding");
    if (h->chunked && h->minor == 0)
        return invalid(ret_why, "transfer-encoding in HTTP/1.0");
    if (request && (hosts > 1 || (hosts == 0 && h->minor == 1)))
        return invalid(ret_why, hosts ? "host is given twice" : "host is missing");
    h->keep_alive = !t.close && (h->minor == 1 || t.keep_alive);
    h->upgrade = t.upgrade && upgrade;
    return RC_OK;
}

/* Header lines in [p, end), where end is behind the empty line. */
static int headers(const char *p, const char *end, struct http_head *h, bool request, const char **ret_why)
{
    for (;;) {
        struct slice line = next_line(&p, end);
        if (line.n == 0)
            return framing(h, request, ret_why);
        if (line.p[0] == ' ' || line.p[0] == '\t')
            return invalid(ret_why, "a header is folded");
        size_t k = span(line, TOKEN);
        if (k == 0 || k == line.n || line.p[k] != ':')
            return invalid(ret_why, "a header name is malformed");
        struct slice v = slice_trim((struct slice){ line.p + k + 1, line.n - k - 1 });
        if (span(v, VALUE) != v.n)
            return invalid(ret_why, "a header value holds a control character");
        if (h->n_headers == HTTP_HEADERS_MAX) {
            *ret_why = "too many headers";
            return RC_TOO_LARGE;
        }
        h->headers[h->n_headers++] = (struct http_header){ { line.p, k }, v };
    }
}

static void head_clear(struct http_head *h)     /* all but the array, which is large */
{
    h->method = HTTP_GET;
    h->target = h->reason = (struct slice){ "", 0 };
    h->status = 0;
    h->minor = 1;
    h->n_headers = 0;
    h->chunked = h->keep_alive = h->expect_continue = h->upgrade = false;
    h->content_length = -1;
}

static int version(struct slice v, struct http_head *h, const char **ret_why)
{
    if (v.n != 8 || memcmp(v.p, "HTTP/1.", 7) != 0 || (v.p[7] != '0' && v.p[7] != '1'))
        return invalid(ret_why, "the version is neither HTTP/1.0 nor HTTP/1.1");
    h->minor = v.p[7] - '0';
    return RC_OK;
}

static bool target_form(enum http_method m, struct slice t)
{
    if (t.n == 0 || span(t, TARGET) != t.n)
        return false;
    if (m == HTTP_CONNECT)
        return span(t, HOST) == t.n && memchr(t.p, ':', t.n) != NULL;
    if (t.p[0] == '/')
        return true;
    if (slice_eq(t, "*"))
        return m == HTTP_OPTIONS;
    size_t scheme = t.n > 7 && slice_eq_nocase((struct slice){ t.p, 7 }, "http://") ? 7 : t.n > 8 && slice_eq_nocase((struct slice){ t.p, 8 }, "https://") ? 8 : 0;
    size_t host = scheme ? span((struct slice){ t.p + scheme, t.n - scheme }, HOST) : 0;
    return host && (scheme + host == t.n || t.p[scheme + host] == '/' || t.p[scheme + host] == '?');
}

static int request_line(struct slice line, struct http_head *h, const char **ret_why)
{
    size_t k = span(line, TOKEN);
    if (k == 0 || k == line.n || line.p[k] != ' ')
        return invalid(ret_why, "the request line is malformed");
    struct slice name = { line.p, k };
    struct slice rest = { line.p + k + 1, line.n - k - 1 };
    const char *sp = memchr(rest.p, ' ', rest.n);
    if (!sp)
        return invalid(ret_why, "the request line is malformed");
    h->target = (struct slice){ rest.p, (size_t)(sp - rest.p) };
    TRY(version((struct slice){ sp + 1, rest.n - h->target.n - 1 }, h, ret_why));
    h->method = HTTP_METHOD_MAX_;
    for (int m = 0; m < HTTP_METHOD_MAX_; m++)
        if (slice_eq(name, method_names[m]))
            h->method = (enum http_method)m;
    if (h->target.n > HTTP_TARGET_MAX) {
        *ret_why = "the target is too long";
        return RC_TOO_LARGE;
    }
    if (!target_form(h->method, h->target))
        return invalid(ret_why, "the target is malformed");
    return RC_OK;
}

static int status_line(struct slice line, struct http_head *h, const char **ret_why)
{
    if (line.n < 12 || line.p[8] != ' ' || (line.n > 12 && line.p[12] != ' '))
        return invalid(ret_why, "the status line is malformed");
    TRY(version((struct slice){ line.p, 8 }, h, ret_why));
    for (size_t i = 9; i < 12; i++) {
        if (line.p[i] < '0' || line.p[i] > '9')
            return invalid(ret_why, "the status is not a number");
        h->status = h->status * 10 + (line.p[i] - '0');
    }
    if (h->status < 100)
        return invalid(ret_why, "the status is under 100");
    if (line.n > 13)
        h->reason = (struct slice){ line.p + 13, line.n - 13 };
    if (span(h->reason, VALUE) != h->reason.n)
        return invalid(ret_why, "the reason holds a control character");
    return RC_OK;
}

int http_parse_request(const char *p, size_t n, size_t seen, struct http_head *ret, size_t *ret_used, const char **ret_why)
{
    size_t used = 0;
    *ret_why = "";
    TRY(find_end(p, n, seen, &used, ret_why));
    const char *at = p;
    head_clear(ret);
    TRY(request_line(next_line(&at, p + used), ret, ret_why));
    TRY(headers(at, p + used, ret, true, ret_why));
    if (ret->method == HTTP_METHOD_MAX_) {
        *ret_why = "the method is unknown";
        return RC_UNSUPPORTED;
    }
    *ret_used = used;
    return RC_OK;
}

int http_parse_response(const char *p, size_t n, size_t seen, struct http_head *ret, size_t *ret_used, const char **ret_why)
{
    size_t used = 0;
    *ret_why = "";
    TRY(find_end(p, n, seen, &used, ret_why));
    const char *at = p;
    head_clear(ret);
    TRY(status_line(next_line(&at, p + used), ret, ret_why));
    TRY(headers(at, p + used, ret, false, ret_why));
    *ret_used = used;
    return RC_OK;
}

const struct slice *http_find(const struct http_head *h, const char *name)
{
    for (size_t i = 0; i < h->n_headers; i++)
        if (slice_eq_nocase(h->headers[i].name, name))
            return &h->headers[i].value;
    return NULL;
}
