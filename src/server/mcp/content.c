#include "server/mcp/content.h"

#include <string.h>
#include <strings.h>

#include "base/base64.h"
#include "base/str.h"
#include "base/utf8.h"

struct work {
    json_t *out;
    size_t chars, binary;                /* put so far */
    size_t cut;                          /* characters that were left out */
};

static json_t *text_block(const char *p, size_t n)
{
    json_t *b = json_object();
    js_set_str(b, "type", "text");
    js_set_strn(b, "text", p, n);
    return b;
}

json_t *content_text(const char *text)
{
    json_t *a = json_array();
    js_push(a, text_block(text, strlen(text)));
    return a;
}

/* Bytes of the first `chars` characters. */
static size_t first_chars(const char *p, size_t n, size_t chars)
{
    size_t i = 0;
    while (i < n && chars > 0) {
        i++;
        while (i < n && ((unsigned char)p[i] & 0xc0) == 0x80)
            i++;
        chars--;
    }
    return i;
}

static void put_text(struct work *w, const char *p, size_t n)
{
    if (n == 0)
        return;
    size_t chars = utf8_count(p, n), room = CONTENT_CHARS_MAX - w->chars;
    if (chars > room) {
        w->cut += chars - room;
        n = first_chars(p, n, room);
        chars = room;
    }
    w->chars += chars;
    if (n)
        js_push(w->out, text_block(p, n));
}

static void put_note(struct work *w, char *take)
{
    put_text(w, take, strlen(take));
    free(take);
}

static bool is_base64(const char *s)
{
    struct buf b;
    buf_init(&b, CONTENT_BINARY_MAX);
    int rc = s[0] ? base64_decode(&b, s, strlen(s)) : RC_INVALID;
    buf_done(&b);
    return rc == RC_OK;
}

static bool has_type(const char *mime, const char *want)
{
    size_t n = strlen(want);
    return mime && strncasecmp(mime, want, n) == 0 && (mime[n] == '\0' || mime[n] == ';');
}

static const char *image_type(const char *mime)
{
    static const char *const types[] = { "image/jpeg", "image/png", "image/gif", "image/webp" };
    for (size_t i = 0; i < COUNT_OF(types); i++)
        if (has_type(mime, types[i]))
            return types[i];
    return has_type(mime, "image/jpg") ? types[0] : NULL;
}

/* An image or a PDF; false: the model cannot be shown it. */
static bool put_binary(struct work *w, const char *mime, const char *data)
{
    const char *type = image_type(mime);
    bool image = type != NULL;
    size_t n = data ? strlen(data) : 0;
    if (!image && has_type(mime, "application/pdf"))
        type = "application/pdf";
    if (!type || n == 0 || (image && n > CONTENT_IMAGE_MAX) || n > CONTENT_BINARY_MAX - w->binary || !is_base64(data))
        return false;
    w->binary += n;
    json_t *b = json_object(), *s = json_object();
    js_set_str(s, "type", "base64");
    js_set_str(s, "media_type", type);
    js_set_strn(s, "data", data, n);
    js_set_str(b, "type", image ? "image" : "document");
    js_set(b, "source", s);
    js_push(w->out, b);
    return true;
}

static void put_data(struct work *w, const char *what, const char *mime, const char *data)
{
    if (!put_binary(w, mime, data))
        put_note(w, str_printf("[%s of type %.100s, %zu bytes of base64: it cannot be shown here]", what, mime ? mime : "unknown", data ? strlen(data) : 0));
}

static void put_resource(struct work *w, const json_t *r)
{
    const char *uri = js_str(r, "uri"), *text = js_str(r, "text"), *mime = js_str(r, "mimeType");
    if (!text) {
        put_data(w, "a resource", mime, js_str(r, "blob"));
        return;
    }
    put_note(w, str_printf("[resource %.1000s]\n", uri ? uri : ""));
    put_text(w, text, strlen(text));
}

static void put_link(struct work *w, const json_t *b)
{
    const char *uri = js_str(b, "uri"), *name = js_str(b, "name"), *about = js_str(b, "description");
    put_note(w, str_printf("[link to resource %.1000s%s%.300s%s%.2000s]", uri ? uri : "", name ? ": " : "", name ? name : "", about ? ": " : "", about ? about : ""));
}

static void put_block(struct work *w, const json_t *b)
{
    const char *type = js_str(b, "type"), *text = js_str(b, "text");
    if (str_eq(type, "text") && text)
        put_text(w, text, strlen(text));
    else if (str_eq(type, "image"))
        put_data(w, "an image", js_str(b, "mimeType"), js_str(b, "data"));
    else if (str_eq(type, "audio"))
        put_data(w, "audio", js_str(b, "mimeType"), js_str(b, "data"));
    else if (str_eq(type, "resource"))
        put_resource(w, js_at(b, "resource"));
    else if (str_eq(type, "resource_link"))
        put_link(w, b);
    else if (type)
        put_note(w, str_printf("[content of type %.100s: it cannot be shown here]", type));
}

json_t *content_map(const json_t *result)
{
    struct work w = { .out = json_array() };
    const json_t *list = json_object_get(result, "content"), *structured = json_object_get(result, "structuredContent");
    size_t i;
    json_t *b;
    json_array_foreach(list, i, b) {
        if (i == CONTENT_BLOCKS_MAX) {
            put_note(&w, str_printf("[%zu more blocks were left out]", json_array_size(list) - i));
            break;
        }
        put_block(&w, b);
    }
    /* A server repeats structured content as text for clients that do not know it; one that does not is still understood. */
    if (json_array_size(w.out) == 0 && structured && !json_is_null(structured)) {
        AUTO_FREE char *text = js_text(structured);
        put_text(&w, text, strlen(text));
    }
    if (w.cut) {
        char *note = str_printf("[The output was cut: its first %d characters are shown, %zu more were left out and are not kept. "
                                "Ask the tool for less, or for a later part.]", CONTENT_CHARS_MAX, w.cut);
        js_push(w.out, text_block(note, strlen(note)));
        free(note);
    }
    return w.out;
}
