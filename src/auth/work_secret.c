/* The `secret` of a work item: base64url of a small JSON object (worker.md 2.5). */
#include <string.h>

#include "auth/auth.h"
#include "base/base64.h"
#include "json/js.h"

#define WORK_SECRET_MAX (64 * KIB)       /* the hosted service packs further tokens in; far below this */

static int encode(const char *token, const char *base_url, struct buf *json, struct buf *out)
{
    TRY(buf_puts(json, "{\"sessions_token\":"));
    TRY(js_write_string(json, token, strlen(token)));
    if (base_url) {
        TRY(buf_puts(json, ",\"api_base_url\":"));
        TRY(js_write_string(json, base_url, strlen(base_url)));
    }
    TRY(buf_putc(json, '}'));
    return base64url_encode(out, buf_data(json), buf_len(json));
}

int auth_work_secret_encode(const char *token, const char *base_url, struct buf *out)
{
    struct buf json;
    buf_init(&json, WORK_SECRET_MAX);
    int rc = encode(token, base_url, &json, out);
    buf_wipe(&json);
    return rc;
}

static int decode(const char *s, struct buf *json, struct secret **ret, struct err *e)
{
    size_t n = strlen(s);
    if (n > WORK_SECRET_MAX)
        return err_set(e, RC_INVALID, "the work secret is too long");
    if (base64_decode(json, s, n) < 0)
        return err_set(e, RC_INVALID, "the work secret is not base64");
    AUTO_JS doc = NULL;
    struct err detail;                   /* may quote the text: not passed on */
    if (js_parse(buf_data(json), buf_len(json), WORK_SECRET_MAX, &doc, &detail) < 0 || !json_is_object(doc))
        return err_set(e, RC_INVALID, "the work secret holds no JSON object");
    json_t *v = json_object_get(doc, "sessions_token");
    const char *token = json_string_value(v);
    if (!token || !*token)
        return err_set(e, RC_INVALID, "the work secret holds no sessions token");
    *ret = secret_new(token, json_string_length(v));
    return RC_OK;
}

int auth_work_secret_decode(const char *s, struct secret **ret_token, struct err *e)
{
    struct buf json;
    buf_init(&json, WORK_SECRET_MAX);
    int rc = s ? decode(s, &json, ret_token, e) : err_set(e, RC_INVALID, "there is no work secret");
    buf_wipe(&json);
    return rc;
}
