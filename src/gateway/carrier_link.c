/* gateway/carrier_link.c - see carrier_link.h */
#include "gateway/carrier_link.h"

#include <string.h>

#include "base/str.h"
#include "net/net.h"

struct over_link { struct carrier c; struct link_stream *s; char peer[NET_ADDR_TEXT]; };

static int on_read(struct carrier *c, void *p, size_t n, size_t *ret_n)
{
    struct over_link *o = container_of(c, struct over_link, c);
    struct slice got = link_peek(o->s);
    if (!got.n)
        return link_eof(o->s) ? RC_CLOSED : RC_AGAIN;
    size_t k = got.n < n ? got.n : n;
    memcpy(p, got.p, k);
    link_consume(o->s, k);
    *ret_n = k;
    return RC_OK;
}

static int on_write(struct carrier *c, const void *p, size_t n, size_t *ret_n)
{
    *ret_n = link_write(container_of(c, struct over_link, c)->s, p, n);
    return *ret_n ? RC_OK : RC_AGAIN;
}

static void on_shutdown(struct carrier *c) { link_shutdown(container_of(c, struct over_link, c)->s); }

static void on_free(struct carrier *c)
{
    struct over_link *o = container_of(c, struct over_link, c);
    link_stream_free(o->s);
    free(o);
}

static const char *peer(const struct carrier *c) { return container_of((struct carrier *)(uintptr_t)c, struct over_link, c)->peer; }

static const struct carrier_ops ops = { .read = on_read, .write = on_write, .shutdown = on_shutdown, .free = on_free, .peer = peer };

static void stream_readable(void *ctx, struct link_stream *s)
{
    struct over_link *o = ctx;
    (void)s;
    o->c.on_readable(o->c.ctx);
}

static void stream_writable(void *ctx, struct link_stream *s)
{
    struct over_link *o = ctx;
    (void)s;
    o->c.on_writable(o->c.ctx);
}

static void stream_close(void *ctx, struct link_stream *s, const struct err *why)
{
    struct over_link *o = ctx;
    (void)s;
    o->c.on_close(o->c.ctx, why);        /* frees `o` */
}

static const struct link_stream_ops stream_ops = { .on_readable = stream_readable, .on_writable = stream_writable, .on_close = stream_close };

void carrier_link_accept(struct front *f, struct link_stream *s, const struct link_open *o)
{
    struct over_link *l = xcalloc(1, sizeof *l);
    l->c.ops = &ops;
    l->s = s;
    (void)str_copy(l->peer, sizeof l->peer, *o->client ? o->client : "-");
    link_stream_attach(s, &stream_ops, l);
    link_reply(s, 200);
    front_accept(f, &l->c);
}
