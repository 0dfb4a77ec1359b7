/* A scripted peer for the client's tests: a thread that accepts on 127.0.0.1 and gives each connection to `serve`, one after another or, with
 * `parallel`, each in a thread of its own. */
#pragma once

#include <openssl/ssl.h>
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PEER_SEEN_MAX 64

struct peer {
    int listen_fd; uint16_t port;
    void (*serve)(struct peer *p, int fd, int no);       /* closes nothing; `no` from 0 */
    SSL_CTX *ctx;
    pthread_t thread;
    atomic_int conns, requests;
    pthread_mutex_t lock;
    char *seen[PEER_SEEN_MAX];                           /* request heads and bodies, in order of arrival */
    atomic_bool stop;
    bool parallel;
    pthread_t workers[PEER_SEEN_MAX];
    int fds[PEER_SEEN_MAX];
};
struct peer_job { struct peer *p; int fd, no; };

static inline void *peer_worker(void *arg)
{
    struct peer_job j = *(struct peer_job *)arg;
    free(arg);
    j.p->serve(j.p, j.fd, j.no);
    shutdown(j.fd, SHUT_RDWR);
    return NULL;
}

static inline void *peer_main(void *arg)
{
    struct peer *p = arg;
    while (!p->stop) {
        int fd = accept(p->listen_fd, NULL, NULL);
        if (fd < 0)
            break;
        int no = p->conns++;
        if (p->stop || no >= PEER_SEEN_MAX) {
            close(fd);
            p->conns--;
            break;
        }
        p->fds[no] = fd;
        if (p->parallel) {
            struct peer_job *j = malloc(sizeof *j);
            *j = (struct peer_job){ p, fd, no };
            pthread_create(&p->workers[no], NULL, peer_worker, j);
        } else {
            p->serve(p, fd, no);
            shutdown(fd, SHUT_RDWR);
        }
    }
    return NULL;
}

static inline void peer_start(struct peer *p, void (*serve)(struct peer *, int, int))
{
    SSL_CTX *ctx = p->ctx;
    bool parallel = p->parallel;
    memset(p, 0, sizeof *p);
    p->ctx = ctx;
    p->parallel = parallel;
    p->serve = serve;
    pthread_mutex_init(&p->lock, NULL);
    p->listen_fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t n = sizeof a;
    if (bind(p->listen_fd, (struct sockaddr *)&a, sizeof a) || listen(p->listen_fd, 64) || getsockname(p->listen_fd, (struct sockaddr *)&a, &n))
        abort();
    p->port = ntohs(a.sin_port);
    pthread_create(&p->thread, NULL, peer_main, p);
}

static inline void peer_stop(struct peer *p)
{
    p->stop = true;
    shutdown(p->listen_fd, SHUT_RDWR);
    for (int i = 0; !p->parallel && i < p->conns; i++)
        shutdown(p->fds[i], SHUT_RDWR);
    pthread_join(p->thread, NULL);
    for (int i = 0; p->parallel && i < p->conns; i++)
        shutdown(p->fds[i], SHUT_RDWR);
    for (int i = 0; i < p->conns; i++) {
        if (p->parallel)
            pthread_join(p->workers[i], NULL);
        close(p->fds[i]);
    }
    close(p->listen_fd);
    for (int i = 0; i < PEER_SEEN_MAX; i++)
        free(p->seen[i]);
}

/* Plain or TLS, blocking. */
struct peer_io { int fd; SSL *ssl; };

static inline ssize_t peer_read(struct peer_io *io, void *b, size_t n)
{
    return io->ssl ? SSL_read(io->ssl, b, (int)n) : recv(io->fd, b, n, 0);
}

static inline void peer_write(struct peer_io *io, const char *b, size_t n)
{
    while (n) {
        ssize_t w = io->ssl ? SSL_write(io->ssl, b, (int)n) : send(io->fd, b, n, MSG_NOSIGNAL);
        if (w <= 0)
            return;
        b += w;
        n -= (size_t)w;
    }
}

static inline void peer_say(struct peer_io *io, const char *s) { peer_write(io, s, strlen(s)); }

/* One request, kept in p->seen. False at the end of the connection. */
static inline bool peer_request(struct peer *p, struct peer_io *io)
{
    size_t cap = 4096, n = 0, want = 0;
    char *b = calloc(1, cap);
    for (;;) {
        char *end = want ? NULL : strstr(b, "\r\n\r\n");
        if (end) {
            char *cl = strcasestr(b, "content-length:");
            want = (size_t)(end + 4 - b) + (cl && cl < end ? strtoul(cl + 15, NULL, 10) : 0);
            if (want + 1 > cap)
                b = realloc(b, cap = want + 1);
        }
        if (want && n >= want)
            break;
        if (n + 1 >= cap)
            b = realloc(b, cap *= 2);
        ssize_t got = peer_read(io, b + n, (want ? want : cap - 1) - n);
        if (got <= 0) {
            free(b);
            return false;
        }
        n += (size_t)got;
        b[n] = 0;
    }
    pthread_mutex_lock(&p->lock);
    if (p->requests < PEER_SEEN_MAX)
        p->seen[p->requests] = b;
    else
        free(b);
    p->requests++;
    pthread_mutex_unlock(&p->lock);
    return true;
}
