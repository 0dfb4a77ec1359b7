/* worker/creds.c - see creds.h */
#include "worker/creds.h"

#include <string.h>

#include "base/base64.h"
#include "base/buf.h"
#include "base/str.h"
#include "json/js.h"

static bool space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

int creds_decode(const char *text, size_t n, struct secret **ret_token, struct err *e)
{
    while (n && space(text[n - 1]))
        n--;
    while (n && space(*text))
        text++, n--;
    if (n == 0 || n > WORK_SECRET_MAX)
        return err_set(e, RC_INVALID, "the work item's secret is %s", n ? "too long" : "empty");
    struct buf plain;
    buf_init(&plain, WORK_SECRET_MAX);
    AUTO_JS j = NULL;
    int rc = base64_decode(&plain, text, n);
    if (rc < 0)
        rc = err_set(e, RC_INVALID, "the work item's secret is not base64");
    else if (js_parse(buf_data(&plain), buf_len(&plain), WORK_SECRET_MAX, &j, NULL) < 0 || !json_is_object(j))
        rc = err_set(e, RC_INVALID, "the work item's secret is not a JSON object");
    buf_wipe(&plain);
    if (rc < 0)
        return rc;
    const char *token = js_str(j, "sessions_token");
    if (!token || !*token)
        return err_set(e, RC_INVALID, "the work item's secret holds no sessions_token");
    for (const char *p = token; *p; p++)
        if ((unsigned char)*p <= ' ' || (unsigned char)*p >= 127)
            return err_set(e, RC_INVALID, "the work item's sessions_token has characters that a header cannot carry");
    *ret_token = secret_new(token, strlen(token));
    wipe((char *)(uintptr_t)token, strlen(token));      /* our own parse tree, about to be freed */
    return RC_OK;
}
