/* provider.c - how a provider's answer is told to the client: which headers, which envelope, which words. Pure. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "http/sse.h"
#include "json/js.h"
#include "json/span.h"
#include "server/messages/private.h"

static bool begins(struct slice s, const char *prefix)
{
    size_t n = strlen(prefix);
    return s.n >= n && strncasecmp(s.p, prefix, n) == 0;
}

/* Ours say who answers: this server's organization, workspace and request id. */
static bool wanted(struct slice name)
{
    if (begins(name, "anthropic-"))
        return !slice_eq_nocase(name, "anthropic-organization-id") && !slice_eq_nocase(name, "anthropic-workspace-id");
    return slice_eq_nocase(name, "retry-after") || slice_eq_nocase(name, "retry-after-ms") || slice_eq_nocase(name, "x-should-retry");
}

void provider_lines(struct slice lines, struct buf *out)
{
    while (lines.n) {
        const char *end = memchr(lines.p, '\n', lines.n);
        size_t n = end ? (size_t)(end - lines.p) + 1 : lines.n;
        const char *colon = memchr(lines.p, ':', n);
        if (colon) {
            struct slice name = { lines.p, (size_t)(colon - lines.p) };
            if (slice_eq_nocase(name, "request-id"))
                (void)buf_puts(out, "x-provider-");
            if ((wanted(name) || slice_eq_nocase(name, "request-id")) && buf_room(out) > n)
                (void)buf_put(out, lines.p, n);
        }
        lines.p += n;
        lines.n -= n;
    }
}

static const struct { int status; const char *type; } types[] = {
    { 400, "invalid_request_error" }, { 401, "authentication_error" }, { 402, "billing_error" }, { 403, "permission_error" }, { 404, "not_found_error" },
    { 409, "conflict_error" }, { 413, "request_too_large" }, { 429, "rate_limit_error" }, { 500, "api_error" }, { 503, "overloaded_error" },
    { 504, "timeout_error" }, { 529, "overloaded_error" },
};

static const char *type_of(int status)
{
    for (size_t i = 0; i < COUNT_OF(types); i++)
        if (types[i].status == status)
            return types[i].type;
    return status >= 500 ? "api_error" : "invalid_request_error";
}

int provider_status(const char *type)
{
    for (size_t i = COUNT_OF(types); i-- > 0;)           /* from the end: an overload is 529 */
        if (str_eq(types[i].type, type))
            return types[i].status;
    return 500;
}

void provider_envelope(struct buf *out, const char *type, const char *message, const char *request_id)
{
    (void)buf_puts(out, "{\"type\":\"error\",\"error\":{\"type\":");
    (void)js_write_string(out, type, strlen(type));
    (void)buf_puts(out, ",\"message\":");
    (void)js_write_string(out, message, strlen(message));
    (void)buf_puts(out, "},\"request_id\":");
    (void)js_write_string(out, request_id, strlen(request_id));
    (void)buf_putc(out, '}');
}

int provider_error(int status, struct slice body, const char *request_id, struct buf *out)
{
    struct slice error, type, message;
    char text[128];
    /* The provider's 401 is about our credential, not about the client's: a client that believed it would throw its own key away. */
    if (status == 401 || status < 400) {
        provider_envelope(out, "api_error", status == 401 ? "The model provider refused this server's credential." : "The model provider gave no answer of its own.", request_id);
        return 502;
    }
    if (span_member(body, "error", &error, NULL) == RC_OK && span_member(error, "type", &type, NULL) == RC_OK && span_kind(type) == '"' &&
        span_member(error, "message", &message, NULL) == RC_OK && span_kind(message) == '"') {
        (void)buf_puts(out, "{\"type\":\"error\",\"error\":");
        (void)buf_put(out, error.p, error.n);
        (void)buf_puts(out, ",\"request_id\":");
        (void)js_write_string(out, request_id, strlen(request_id));
        (void)buf_putc(out, '}');
    } else {
        (void)snprintf(text, sizeof text, "The model provider answered with status %d.", status);
        provider_envelope(out, type_of(status), text, request_id);
    }
    return status;
}

int provider_failure(int rc, const struct err *why, const char **ret_type, struct err *e)
{
    bool late = rc == RC_TIMEOUT;
    *ret_type = late ? "timeout_error" : "api_error";
    return err_set(e, late ? RC_TIMEOUT : RC_PROTO, "The model provider could not be reached or broke off: %s", why && why->msg[0] ? why->msg : rc_text(rc));
}

void provider_error_event(struct buf *out, const char *type, const char *message, const char *request_id)
{
    struct buf data;
    buf_init(&data, 64 * KIB);
    provider_envelope(&data, type, message, request_id);
    (void)sse_write(out, NULL, "error", buf_data(&data), buf_len(&data));
    buf_done(&data);
}
