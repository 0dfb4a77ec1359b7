/* blocks.c - from the sandbox's answer to the API's content blocks, as JSON text: large output is never built as a tree. */
#include <string.h>

#include "base/base64.h"
#include "base/str.h"
#include "crypto/crypto.h"
#include "worker/tools/tools.h"

#define AUDIT_COMMAND_BYTES 512

static const char *const media[] = {
    [INSIDE_IMAGE_PNG] = "image/png", [INSIDE_IMAGE_JPEG] = "image/jpeg", [INSIDE_IMAGE_GIF] = "image/gif", [INSIDE_IMAGE_WEBP] = "image/webp", [INSIDE_PDF] = "application/pdf",
};

static int text_block(struct buf *out, const char *p, size_t n)
{
    if (n == 0)
        p = "(no output)", n = strlen(p);
    buf_puts(out, "[{\"type\":\"text\",\"text\":");
    (void)js_write_string(out, p, n);
    buf_puts(out, "}]");
    return buf_ok(out) ? RC_OK : RC_LIMIT;
}

int tool_error_content(struct buf *content, const char *text, size_t n)
{
    return text_block(content, text, n);
}

int tool_result(const char *name, const struct inside_req *req, const struct inside_res *res, const char *body, size_t n, struct buf *content, bool *ret_is_error)
{
    (void)name, (void)req;
    *ret_is_error = (res->flags & INSIDE_ERROR) != 0;
    if (res->kind == INSIDE_TEXT || *ret_is_error)
        return text_block(content, body, n);
    if (res->kind >= COUNT_OF(media))
        return RC_PROTO;
    buf_printf(content, "[{\"type\":\"%s\",\"source\":{\"type\":\"base64\",\"media_type\":\"%s\",\"data\":\"", res->kind == INSIDE_PDF ? "document" : "image", media[res->kind]);
    (void)base64_encode(content, body, n);
    buf_puts(content, "\"}}]");
    return buf_ok(content) ? RC_OK : RC_LIMIT;
}

json_t *tool_audit(const char *name, const json_t *input)
{
    static const char *const keys[] = { "file_path", "path", "pattern" };
    json_t *o = json_object();
    js_set_str(o, "tool", name);
    const json_t *command = json_object_get(input, "command");
    if (json_is_string(command)) {
        char hex[SHA256_HEX];
        size_t n = json_string_length(command);
        sha256_hex(json_string_value(command), n, hex);
        js_set_strn(o, "command", json_string_value(command), n < AUDIT_COMMAND_BYTES ? n : AUDIT_COMMAND_BYTES);
        js_set_str(o, "command_sha256", hex);
    }
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        const char *v = js_str(input, keys[i]);
        if (v)
            js_set_strn(o, keys[i], v, strnlen(v, AUDIT_COMMAND_BYTES));
    }
    return o;
}
