/* fds.c - one SOCK_SEQPACKET packet with descriptors, both ways. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "worker/sandbox/internal.h"

union fds_control { char mem[CMSG_SPACE(sizeof(int) * FDS_MAX)]; struct cmsghdr align; };

int fds_send(int sock, const void *p, size_t n, const int *fds, size_t n_fds)
{
    if (n_fds > FDS_MAX)
        return RC_INVALID;
    union fds_control c;
    memset(&c, 0, sizeof c);
    struct iovec iov = { (void *)(uintptr_t)p, n };
    struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
    if (n_fds) {
        m.msg_control = c.mem;
        m.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
        struct cmsghdr *h = CMSG_FIRSTHDR(&m);
        h->cmsg_level = SOL_SOCKET;
        h->cmsg_type = SCM_RIGHTS;
        h->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
        memcpy(CMSG_DATA(h), fds, sizeof(int) * n_fds);
    }
    ssize_t put;
    do
        put = sendmsg(sock, &m, MSG_NOSIGNAL);
    while (put < 0 && errno == EINTR);
    if (put < 0)
        return errno == EAGAIN ? RC_AGAIN : errno == EPIPE || errno == ECONNRESET ? RC_CLOSED : RC_IO;
    return (size_t)put == n ? RC_OK : RC_IO;
}

ssize_t fds_recv(int sock, void *p, size_t n, int fds[FDS_MAX], int flags)
{
    for (size_t i = 0; i < FDS_MAX; i++)
        fds[i] = -1;
    union fds_control c;
    struct iovec iov = { p, n };
    struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.mem, .msg_controllen = sizeof c.mem };
    ssize_t got;
    do
        got = recvmsg(sock, &m, MSG_CMSG_CLOEXEC | flags);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == EAGAIN ? RC_AGAIN : errno == ECONNRESET ? 0 : RC_IO;
    size_t k = 0;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
            continue;
        size_t cnt = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < cnt && k < FDS_MAX; i++)
            memcpy(&fds[k++], CMSG_DATA(h) + i * sizeof(int), sizeof(int));
    }
    if (got == 0)
        return 0;
    if ((size_t)got != n || (m.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
        for (size_t i = 0; i < k; i++) {
            close(fds[i]);
            fds[i] = -1;
        }
        return RC_PROTO;
    }
    return got;
}
