/* net/connect.c - name resolution on a helper thread and connecting, one address after the other: the next one starts when an address has
 * failed or has not answered for STAGGER_MS, and all that run race (RFC 8305, without the sorting, which getaddrinfo has done). */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/str.h"
#include "net/net.h"

#define ADDRS_MAX 8             /* of one name that are tried */
#define STAGGER_MS 250
#define TIMEOUT_DEFAULT_MS 10000

/* What the helper thread and the loop share; whoever lets go last frees it. The thread reports by an eventfd of its own and not by ev_post(),
 * so that a slow name server can never make it touch a loop that is gone. */
struct lookup {
    atomic_int refs;
    atomic_bool done;           /* orders the results before the loop's look at them */
    int efd;
    char host[256], port[8];
    struct net_addr addrs[ADDRS_MAX];
    size_t n;
    int gai, gai_errno;
};

struct attempt { struct ev_io io; int fd; struct net_connect *c; };

struct net_connect {
    struct ev *ev;
    void (*cb)(void *ctx, int fd, const struct err *e);
    void *ctx;
    char name[280];             /* for messages */
    struct lookup *lookup;
    struct ev_io lookup_io;
    struct net_addr addrs[ADDRS_MAX];
    size_t n, next, running, rotate;
    int (*check)(void *ctx, const struct net_addr *a, struct err *e);
    struct attempt tries[ADDRS_MAX];
    struct ev_timer total, stagger;
    struct err last;
};

static void lookup_unref(struct lookup *l)
{
    if (atomic_fetch_sub(&l->refs, 1) == 1) {
        if (l->efd >= 0)
            (void)close(l->efd);
        free(l);
    }
}

static void release(struct net_connect *c)
{
    for (size_t i = 0; i < c->next; i++) {
        ev_io_stop(&c->tries[i].io);
        if (c->tries[i].fd >= 0)
            (void)close(c->tries[i].fd);
    }
    ev_timer_stop(&c->total);
    ev_timer_stop(&c->stagger);
    ev_io_stop(&c->lookup_io);
    if (c->lookup)
        lookup_unref(c->lookup);
    free(c);
}

static void finish(struct net_connect *c, int fd)
{
    void (*cb)(void *, int, const struct err *) = c->cb;
    void *ctx = c->ctx;
    struct err e = c->last;
    release(c);
    cb(ctx, fd, fd >= 0 ? NULL : &e);
}

static void start_next(struct net_connect *c);

static void attempt_failed(struct attempt *a, int err)
{
    struct net_connect *c = a->c;
    ev_io_stop(&a->io);
    (void)close(a->fd);
    a->fd = -1;
    c->running--;
    char text[NET_ADDR_TEXT];
    net_addr_format(&c->addrs[a - c->tries], text);
    (void)err_sys(&c->last, RC_IO, err, "connect to %s (%s)", c->name, text);
    start_next(c);
}

static void on_attempt(struct ev_io *io, unsigned got)
{
    (void)got;
    struct attempt *a = container_of(io, struct attempt, io);
    int err = 0;
    socklen_t n = sizeof err;
    if (getsockopt(a->fd, SOL_SOCKET, SO_ERROR, &err, &n) < 0)
        err = errno;
    if (err) {
        attempt_failed(a, err);
        return;
    }
    ev_io_stop(&a->io);
    int fd = TAKE_FD(a->fd);
    finish(a->c, fd);
}

static void on_stagger(struct ev_timer *t)
{
    start_next(container_of(t, struct net_connect, stagger));
}

static int attempt_start(struct net_connect *c, size_t i)
{
    struct attempt *a = &c->tries[i];
    const struct net_addr *to = &c->addrs[i];
    int one = 1;
    AUTO_CLOSE int fd = socket(to->ss.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (to->ss.ss_family != AF_UNIX)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (const struct sockaddr *)&to->ss, to->len) < 0 && errno != EINPROGRESS)
        return -errno;
    if (ev_io_start(c->ev, &a->io, fd, EV_WRITE, on_attempt) < 0)
        return -ENOMEM;
    a->fd = TAKE_FD(fd);
    return 0;
}

/* Starts the next address that does not fail at once; ends the whole when none is left and none runs. */
static void start_next(struct net_connect *c)
{
    while (c->next < c->n) {
        size_t i = c->next++;
        c->tries[i].fd = -1;
        c->tries[i].c = c;
        if (c->check && c->addrs[i].ss.ss_family != AF_UNIX) {
            int no = c->check(c->ctx, &c->addrs[i], &c->last);
            if (no < 0) {
                c->last.rc = no;
                continue;
            }
        }
        int rc = attempt_start(c, i);
        if (rc == 0) {
            c->running++;
            if (c->next < c->n)
                ev_timer_set(c->ev, &c->stagger, STAGGER_MS, on_stagger);
            return;
        }
        char text[NET_ADDR_TEXT];
        net_addr_format(&c->addrs[i], text);
        (void)err_sys(&c->last, RC_IO, -rc, "connect to %s (%s)", c->name, text);
    }
    if (c->running == 0)
        finish(c, -1);
}

static void on_total(struct ev_timer *t)
{
    struct net_connect *c = container_of(t, struct net_connect, total);
    (void)err_set(&c->last, RC_TIMEOUT, "connect to %s: no answer in time", c->name);
    finish(c, -1);
}

static void on_start(struct ev_timer *t)
{
    start_next(container_of(t, struct net_connect, stagger));
}

/* ---- resolving ---- */

static void on_resolved(struct ev_io *io, unsigned got)
{
    (void)got;
    struct net_connect *c = container_of(io, struct net_connect, lookup_io);
    if (!atomic_load(&c->lookup->done))
        return;
    struct lookup *l = TAKE(c->lookup);
    ev_io_stop(io);
    c->n = l->n;
    for (size_t i = 0; i < c->n; i++)
        c->addrs[i] = l->addrs[(i + c->rotate) % c->n];
    if (l->gai == EAI_SYSTEM)
        (void)err_sys(&c->last, RC_IO, l->gai_errno, "resolve %s", c->name);
    else if (l->gai || c->n == 0)
        (void)err_set(&c->last, RC_IO, "resolve %s: %s", c->name, l->gai ? gai_strerror(l->gai) : "no address");
    lookup_unref(l);
    start_next(c);
}

static void *resolver(void *arg)
{
    struct lookup *l = arg;
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG | AI_NUMERICSERV }, *list = NULL;
    l->gai = getaddrinfo(l->host, l->port, &hints, &list);
    l->gai_errno = errno;
    for (struct addrinfo *i = l->gai ? NULL : list; i && l->n < ADDRS_MAX; i = i->ai_next) {
        if (i->ai_addrlen > sizeof l->addrs[0].ss)
            continue;
        memcpy(&l->addrs[l->n].ss, i->ai_addr, i->ai_addrlen);
        l->addrs[l->n++].len = i->ai_addrlen;
    }
    if (list)
        freeaddrinfo(list);
    atomic_store(&l->done, true);
    uint64_t one = 1;
    ssize_t w = write(l->efd, &one, sizeof one);     /* cannot fail: the counter is 0 */
    (void)w;
    lookup_unref(l);
    return NULL;
}

static int resolve(struct net_connect *c, const char *host, uint16_t port)
{
    struct lookup *l = xcalloc(1, sizeof *l);
    l->refs = 2;
    l->efd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (l->efd < 0 || ev_io_start(c->ev, &c->lookup_io, l->efd, EV_READ, on_resolved) < 0) {
        int e = l->efd < 0 ? errno : ENOMEM;
        l->refs = 1;
        lookup_unref(l);
        return e;
    }
    (void)str_copy(l->host, sizeof l->host, host);
    snprintf(l->port, sizeof l->port, "%u", port);
    pthread_attr_t at;
    pthread_t th;
    sigset_t all, old;
    sigfillset(&all);
    pthread_attr_init(&at);
    pthread_attr_setdetachstate(&at, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(&th, &at, resolver, l);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&at);
    if (err) {
        ev_io_stop(&c->lookup_io);
        l->refs = 1;
        lookup_unref(l);
        return err;
    }
    c->lookup = l;
    return 0;
}

/* "10.0.0.1", "::1", "[::1]": no thread needed. */
static bool numeric(const char *host, uint16_t port, struct net_addr *ret)
{
    char text[INET6_ADDRSTRLEN + 16];
    bool v6 = strchr(host, ':') && host[0] != '[';
    int n = snprintf(text, sizeof text, v6 ? "[%s]:%u" : "%s:%u", host, port);
    return host[0] && n > 0 && (size_t)n < sizeof text && net_addr_parse(text, ret, NULL) == RC_OK;
}

struct net_connect *net_connect_start(struct ev *ev, const char *host, uint16_t port, int64_t timeout_ms,
                                      void (*cb)(void *ctx, int fd, const struct err *e), void *ctx)
{
    struct net_connect_opts o = { .timeout_ms = timeout_ms };
    return net_connect_opts(ev, host, port, &o, cb, ctx);
}

struct net_connect *net_connect_opts(struct ev *ev, const char *host, uint16_t port, const struct net_connect_opts *o,
                                     void (*cb)(void *ctx, int fd, const struct err *e), void *ctx)
{
    struct net_connect *c = xcalloc(1, sizeof *c);
    c->rotate = o->rotate;
    c->check = o->check;
    c->ev = ev;
    c->cb = cb;
    c->ctx = ctx;
    snprintf(c->name, sizeof c->name, "%.255s:%u", host, port);
    (void)err_set(&c->last, RC_IO, "connect to %s: no address", c->name);
    ev_timer_set(ev, &c->total, o->timeout_ms > 0 ? o->timeout_ms : TIMEOUT_DEFAULT_MS, on_total);
    if (strncmp(host, "unix:", 5) == 0 ? net_addr_parse(host, &c->addrs[0], &c->last) == RC_OK : numeric(host, port, &c->addrs[0])) {
        c->n = 1;
        ev_timer_set(ev, &c->stagger, 0, on_start);     /* the callback never runs inside this call */
    } else {
        int err = strlen(host) < 256 && host[0] ? resolve(c, host, port) : EINVAL;
        if (err) {
            (void)err_sys(&c->last, RC_IO, err, "resolve %s", c->name);
            ev_timer_set(ev, &c->stagger, 0, on_start);
        }
    }
    return c;
}

void net_connect_cancel(struct net_connect *c)
{
    if (c)
        release(c);
}
