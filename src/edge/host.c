/* edge/host.c - see host.h */
#include "edge/host.h"

#include <string.h>

#include "base/rc.h"

#define LABEL_MAX 63

static bool all_digits(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] < '0' || p[i] > '9')
            return false;
    return true;
}

bool host_valid(const char *host)
{
    size_t total = strlen(host);
    if (total == 0 || total >= HOST_MAX)
        return false;
    for (const char *p = host;; p++) {
        size_t n = strcspn(p, ".");
        if (n == 0 || n > LABEL_MAX || strspn(p, "abcdefghijklmnopqrstuvwxyz0123456789-_") < n)
            return false;
        if (!p[n])
            return !all_digits(p, n);
        p += n;
    }
}

int host_parse(struct slice a, char ret[HOST_MAX], uint16_t *ret_port)
{
    const char *colon = memchr(a.p, ':', a.n);
    int64_t port;
    if (!colon || slice_to_i64((struct slice){ colon + 1, a.n - (size_t)(colon + 1 - a.p) }, 1, 65535, &port) < 0)
        return RC_INVALID;
    char host[HOST_MAX];
    size_t n = (size_t)(colon - a.p);
    if (n == 0 || n >= sizeof host)
        return RC_INVALID;
    for (size_t i = 0; i < n; i++)
        host[i] = a.p[i] >= 'A' && a.p[i] <= 'Z' ? (char)(a.p[i] + 32) : a.p[i];
    host[n] = '\0';
    if (strlen(host) != n || !host_valid(host))
        return RC_INVALID;
    memcpy(ret, host, n + 1);
    *ret_port = (uint16_t)port;
    return RC_OK;
}

const char *host_domain(const char *host)
{
    const char *dot = strchr(host, '.');
    return dot && dot[1] ? dot + 1 : NULL;
}
