/* gateway/upstream_conn.c - one connection to an upstream: name, guard, TCP or Unix socket, TLS; then readiness goes to the call that uses it. */
#include <errno.h>
#include <sys/socket.h>

#include "base/str.h"
#include "gateway/upstream_internal.h"

static void open_failed(struct uconn *c, int rc, struct err *e)
{
    e->rc = rc;
    ev_timer_stop(&c->timer);
    call_open_failed(c->call, e);        /* frees `c` */
}

static void opened(struct uconn *c)
{
    ev_timer_stop(&c->timer);
    c->state = UCONN_READY;
    c->rd_want = EV_READ;
    c->wr_want = EV_WRITE;
    call_opened(c->call);
}

static void tls_go(struct uconn *c)
{
    struct err e = { 0 };
    unsigned want = 0;
    int rc = tls_handshake(c->tls, &want, &e);
    if (rc == RC_OK) {
        opened(c);
    } else if (rc == RC_AGAIN) {
        ev_io_want(&c->io, want);
    } else {
        (void)err_wrap(&e, rc, "TLS with %s", c->t->shown);
        open_failed(c, rc, &e);
    }
}

/* A connection that nobody uses has become readable: it has ended, or speaks unasked. (A TLS session ticket is neither.) */
static void idle_io(struct uconn *c)
{
    char tmp[64];
    size_t n = 0;
    if (uconn_read(c, tmp, sizeof tmp, &n, NULL) == RC_AGAIN)
        return;
    c->t->n_idle--;
    uconn_free(c);
}

static void on_io(struct ev_io *io, unsigned got)
{
    struct uconn *c = container_of(io, struct uconn, io);
    if (c->state == UCONN_TLS)
        tls_go(c);
    else if (c->call)
        call_io(c->call, got);
    else
        idle_io(c);
}

static void on_timeout(struct ev_timer *t)
{
    struct uconn *c = container_of(t, struct uconn, timer);
    struct err e = { 0 };
    (void)err_set(&e, RC_TIMEOUT, "TLS with %s: no answer in time", c->t->shown);
    open_failed(c, RC_TIMEOUT, &e);
}

static void on_dialled(void *ctx, int fd, const struct err *why)
{
    struct uconn *c = ctx;
    struct err e = { 0 };
    c->dial = NULL;
    if (fd < 0) {
        e = *why;
        open_failed(c, e.rc < 0 ? e.rc : RC_IO, &e);
        return;
    }
    c->fd = fd;
    c->watched = true;
    int rc = ev_io_start(c->t->u->env->ev, &c->io, fd, EV_READ, on_io);
    if (rc < 0) {
        c->watched = false;
        (void)err_set(&e, RC_IO, "cannot watch the connection");
    } else if (!c->t->tls) {
        opened(c);
        return;
    } else {
        c->state = UCONN_TLS;
        rc = tls_connect(c->t->u->env->tls, fd, c->t->host, &c->tls, &e);
    }
    if (rc < 0)
        open_failed(c, rc, &e);
    else
        tls_go(c);
}

/* The callback of net_connect_opts() has the connection as its context; so has this. */
static int check(void *ctx, const struct net_addr *a, struct err *e)
{
    const struct uconn *c = ctx;
    return ip_guard_check(c->t->u->env->guard, a, e);
}

struct uconn *uconn_open(struct target *t, struct upstream_call *call)
{
    struct uconn *c = xcalloc(1, sizeof *c);
    struct env *v = t->u->env;
    struct net_connect_opts o = { .timeout_ms = v->connect_ms, .check = check };
    *c = (struct uconn){ .t = t, .call = call, .fd = -1 };
    list_init(&c->link);
    ev_timer_set(v->ev, &c->timer, v->connect_ms + 1, on_timeout);       /* the dial's own end comes first */
    c->dial = net_connect_opts(v->ev, t->host, t->port, &o, on_dialled, c);
    return c;
}

void uconn_free(struct uconn *c)
{
    if (!c)
        return;
    net_connect_cancel(c->dial);
    ev_timer_stop(&c->timer);
    if (c->watched)
        ev_io_stop(&c->io);
    list_del(&c->link);
    tls_free(c->tls);
    if (c->fd >= 0)
        (void)close(c->fd);
    free(c);
}

void uconn_want(struct uconn *c, bool rd, bool wr)
{
    unsigned want = (rd ? c->rd_want : 0) | (wr ? c->wr_want : 0);
    if (!want && c->watched) {
        ev_io_stop(&c->io);
        c->watched = false;
    } else if (want && !c->watched) {
        c->watched = ev_io_start(c->t->u->env->ev, &c->io, c->fd, want, on_io) == RC_OK;
    } else if (want && c->io.want != want) {
        ev_io_want(&c->io, want);
    }
}

int uconn_read(struct uconn *c, void *p, size_t n, size_t *ret_n, struct err *e)
{
    if (c->tls) {
        unsigned want = EV_READ;
        int rc = tls_read(c->tls, p, n, ret_n, &want, e);
        c->rd_want = rc == RC_AGAIN ? want : EV_READ;
        return rc;
    }
    for (;;) {
        ssize_t got = recv(c->fd, p, n, MSG_DONTWAIT);
        if (got > 0) {
            *ret_n = (size_t)got;
            return RC_OK;
        }
        if (got == 0)
            return err_set(e, RC_CLOSED, "%s closed the connection", c->t->shown);
        if (errno == EINTR)
            continue;
        if (errno == EAGAIN)
            return RC_AGAIN;
        return err_sys(e, errno == ECONNRESET ? RC_CLOSED : RC_IO, errno, "read from %s", c->t->shown);
    }
}

int uconn_write(struct uconn *c, const void *p, size_t n, size_t *ret_n, struct err *e)
{
    if (c->tls) {
        unsigned want = EV_WRITE;
        int rc = tls_write(c->tls, p, n, ret_n, &want, e);
        c->wr_want = rc == RC_AGAIN ? want : EV_WRITE;
        return rc;
    }
    for (;;) {
        ssize_t put = send(c->fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put >= 0) {
            *ret_n = (size_t)put;
            return RC_OK;
        }
        if (errno == EINTR)
            continue;
        if (errno == EAGAIN)
            return RC_AGAIN;
        return err_sys(e, errno == EPIPE || errno == ECONNRESET ? RC_CLOSED : RC_IO, errno, "send to %s", c->t->shown);
    }
}
