/* net/addr.c - numeric addresses in text and back, and listeners. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/str.h"
#include "net/net.h"

#define BACKLOG 1024

static int parse_unix(const char *path, struct net_addr *a, struct err *e)
{
    struct sockaddr_un *un = (struct sockaddr_un *)&a->ss;
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof un->sun_path)
        return err_set(e, RC_INVALID, "a socket path has 1 to %zu bytes: \"%s\"", sizeof un->sun_path - 1, path);
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, path, n + 1);
    a->len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + 1);
    return RC_OK;
}

static int parse_host(struct slice host, uint16_t port, struct net_addr *a)
{
    char text[INET6_ADDRSTRLEN];
    struct sockaddr_in *v4 = (struct sockaddr_in *)&a->ss;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&a->ss;
    bool bracket = host.n >= 2 && host.p[0] == '[' && host.p[host.n - 1] == ']';
    if (bracket)
        host = (struct slice){ host.p + 1, host.n - 2 };
    if (host.n >= sizeof text || (bracket && host.n == 0))
        return RC_INVALID;
    memcpy(text, host.p, host.n);
    text[host.n] = '\0';
    if (!bracket && host.n && inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        a->len = sizeof *v4;
        return RC_OK;
    }
    if (host.n && (!bracket || inet_pton(AF_INET6, text, &v6->sin6_addr) != 1))
        return RC_INVALID;
    v6->sin6_family = AF_INET6;         /* an empty host is in6addr_any, which takes IPv4, too */
    v6->sin6_port = htons(port);
    a->len = sizeof *v6;
    return RC_OK;
}

int net_addr_parse(const char *s, struct net_addr *ret, struct err *e)
{
    struct net_addr a = { 0 };
    if (str_prefix(s, "unix:")) {
        TRY(parse_unix(s + 5, &a, e));
        *ret = a;
        return RC_OK;
    }
    const char *colon = strrchr(s, ':');
    int64_t port = 0;
    if (!colon || str_to_i64(colon + 1, 0, 65535, &port) < 0 || parse_host((struct slice){ s, (size_t)(colon - s) }, (uint16_t)port, &a) < 0)
        return err_set(e, RC_INVALID, "\"%s\" is no address: write 127.0.0.1:8400, [::1]:8400, :8400 or unix:/path", s);
    *ret = a;
    return RC_OK;
}

void net_addr_format(const struct net_addr *a, char out[NET_ADDR_TEXT])
{
    char ip[INET6_ADDRSTRLEN] = "?";
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)&a->ss;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&a->ss;
    if (a->ss.ss_family == AF_INET && inet_ntop(AF_INET, &v4->sin_addr, ip, sizeof ip)) {
        snprintf(out, NET_ADDR_TEXT, "%s:%u", ip, ntohs(v4->sin_port));
    } else if (a->ss.ss_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr) && inet_ntop(AF_INET, &v6->sin6_addr.s6_addr[12], ip, sizeof ip)) {
        snprintf(out, NET_ADDR_TEXT, "%s:%u", ip, ntohs(v6->sin6_port));
    } else if (a->ss.ss_family == AF_INET6 && inet_ntop(AF_INET6, &v6->sin6_addr, ip, sizeof ip)) {
        snprintf(out, NET_ADDR_TEXT, "[%s]:%u", ip, ntohs(v6->sin6_port));
    } else if (a->ss.ss_family == AF_UNIX) {
        snprintf(out, NET_ADDR_TEXT, "unix:%.*s", NET_ADDR_TEXT - 6, ((const struct sockaddr_un *)&a->ss)->sun_path);
    } else {
        snprintf(out, NET_ADDR_TEXT, "?");
    }
}

/* A socket file that nobody listens on is the remains of an earlier process: it is removed. Anything else there is left alone. */
static void remove_stale(const struct net_addr *a)
{
    const struct sockaddr_un *un = (const struct sockaddr_un *)&a->ss;
    struct stat st;
    if (lstat(un->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
        return;
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)un, a->len) < 0 && errno == ECONNREFUSED)
        (void)unlink(un->sun_path);
}

int net_listen(const struct net_addr *a, int *ret_fd, struct net_addr *ret_bound, struct err *e)
{
    char text[NET_ADDR_TEXT];
    net_addr_format(a, text);
    int family = a->ss.ss_family, one = 1, zero = 0;
    AUTO_CLOSE int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct net_addr use = *a;
    if (fd < 0 && errno == EAFNOSUPPORT && family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)&a->ss)->sin6_addr)) {
        struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = ((const struct sockaddr_in6 *)&a->ss)->sin6_port };
        use = (struct net_addr){ .len = sizeof v4 };        /* a kernel without IPv6: "all addresses" are the IPv4 ones */
        memcpy(&use.ss, &v4, sizeof v4);
        family = AF_INET;
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    }
    if (fd < 0)
        return err_sys(e, RC_IO, errno, "socket for %s", text);
    if (family == AF_UNIX)
        remove_stale(&use);
    else
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (family == AF_INET6)
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    if (bind(fd, (const struct sockaddr *)&use.ss, use.len) < 0)
        return err_sys(e, errno == EACCES ? RC_DENIED : RC_IO, errno, "bind to %s", text);
    if (listen(fd, BACKLOG) < 0)
        return err_sys(e, RC_IO, errno, "listen on %s", text);
    struct net_addr bound = { .len = sizeof bound.ss };
    if (getsockname(fd, (struct sockaddr *)&bound.ss, &bound.len) < 0)
        return err_sys(e, RC_IO, errno, "address of the listener on %s", text);
    if (ret_bound)
        *ret_bound = bound;
    *ret_fd = TAKE_FD(fd);
    return RC_OK;
}
