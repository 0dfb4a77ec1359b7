#include <string.h>

#include "base/str.h"
#include "http/url.h"
#include "server/vault/vault.h"

/* "https://h?x" and "https://h/?x" are one URL; http/url.h wants the slash. Slashes at the end of the path go, the query stays as it is. */
int vault_normalize_url(const char *url, struct buf *out, struct err *e)
{
    struct http_url u;
    char authority[URL_HOST_MAX + 10];
    const char *scheme = url ? strstr(url, "://") : NULL;
    size_t host = scheme ? (size_t)(scheme - url) + 3 + strcspn(scheme + 3, "/?") : 0;
    AUTO_FREE char *with_slash = scheme && url[host] == '?' ? str_printf("%.*s/%s", (int)host, url, url + host) : NULL;
    TRY(http_url_parse(with_slash ? with_slash : url, false, &u, e));
    http_url_authority(&u, false, authority);
    size_t path = 0;
    while (path < u.target.n && u.target.p[path] != '?')
        path++;
    size_t kept = path;
    while (kept && u.target.p[kept - 1] == '/')
        kept--;
    buf_printf(out, "%s://%s", u.tls ? "https" : "http", authority);
    (void)buf_put(out, u.target.p, kept);
    (void)buf_put(out, u.target.p + path, u.target.n - path);
    return buf_ok(out) ? RC_OK : err_set(e, RC_TOO_LARGE, "the URL is too long");
}
