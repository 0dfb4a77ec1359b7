#include "wire/event.h"

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

int event_render(struct buf *out, const char *body, size_t n, int64_t processed_ms)
{
    while (n && is_space(body[n - 1]))
        n--;
    if (n < 2 || body[0] != '{' || body[n - 1] != '}')
        return RC_INVALID;
    size_t inner = n - 1;
    while (inner > 1 && is_space(body[inner - 1]))
        inner--;
    char time[RFC3339_MAX];
    size_t before = buf_len(out);
    int rc = buf_put(out, body, inner);
    if (rc == RC_OK && processed_ms < 0)
        rc = buf_printf(out, "%s\"processed_at\":null}", inner > 1 ? "," : "");
    else if (rc == RC_OK) {
        rfc3339_format(processed_ms, time);
        rc = buf_printf(out, "%s\"processed_at\":\"%s\"}", inner > 1 ? "," : "", time);
    }
    if (rc < 0)
        buf_truncate(out, before);
    return rc;
}
