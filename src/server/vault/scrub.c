/* What of a peer's answer may be shown to a client. */
#include <string.h>

#include "base/base64.h"
#include "server/vault/private.h"

#define HIDDEN "[redacted]"
#define SHORT_SECRET 4                   /* shorter ones would redact half of every text */

void note_done(struct note *n)
{
    free(n->body);
    *n = (struct note){ 0 };
}

static char *replaced(char *take_text, size_t *n, const char *what, size_t what_n)
{
    struct buf out;
    const char *p = take_text, *end = take_text + *n, *hit;
    if (what_n < SHORT_SECRET || !memmem(p, *n, what, what_n))
        return take_text;
    buf_init(&out, 16 * MIB);
    while ((hit = memmem(p, (size_t)(end - p), what, what_n))) {
        (void)buf_put(&out, p, (size_t)(hit - p));
        (void)buf_puts(&out, HIDDEN);
        p = hit + what_n;
    }
    (void)buf_put(&out, p, (size_t)(end - p));
    wipe(take_text, *n);
    free(take_text);
    if (!buf_ok(&out))
        buf_clear(&out);
    return buf_take(&out, n);
}

/* As JSON writes it: with "\/" too, as some do. */
static void json_form(struct buf *out, const struct secret *s, bool slashes)
{
    struct buf b;
    buf_init(&b, 8 * secret_len(s) + 8);
    (void)js_write_string(&b, secret_text(s), secret_len(s));
    for (size_t i = 1; i + 1 < buf_len(&b); i++) {
        if (slashes && buf_data(&b)[i] == '/')
            buf_putc(out, '\\');
        buf_putc(out, buf_data(&b)[i]);
    }
    buf_wipe(&b);
}

void note_set(struct note *n, int status, const char *content_type, const char *body, size_t body_n, const struct secret *const *secrets, size_t n_secrets)
{
    note_done(n);
    n->status = status;
    (void)str_copy(n->content_type, sizeof n->content_type, content_type ? content_type : "");
    n->body = str_ndup(body, body_n);
    for (size_t i = 0; i < n_secrets; i++) {
        for (int form = 0; form < 5 && secrets[i]; form++) {
            struct buf b;
            buf_init(&b, 16 * secret_len(secrets[i]) + 16);
            switch (form) {
            case 0: (void)buf_put(&b, secret_text(secrets[i]), secret_len(secrets[i])); break;
            case 1: json_form(&b, secrets[i], false); break;
            case 2: json_form(&b, secrets[i], true); break;
            case 3: form_put(&b, secret_text(secrets[i]), secret_len(secrets[i])); break;
            default: (void)base64_encode(&b, secret_text(secrets[i]), secret_len(secrets[i])); break;
            }
            n->body = replaced(n->body, &body_n, buf_data(&b), buf_len(&b));
            buf_wipe(&b);
        }
    }
    n->truncated = body_n > SHOWN_MAX;
    if (n->truncated)
        n->body[SHOWN_MAX] = '\0';
}
