/* tunnel/link_echo.c - health through the data path: a stream of its own to the peer's end of the link. An answer shows that frames, windows and the loops
 * of both ends work, which a keep-alive of TCP or a PING does not. */
#include <string.h>

#include "base/clock.h"
#include "base/random.h"
#include "tunnel/link_internal.h"
#include "tunnel/proto.h"

#define ECHO_BYTES 32

struct echo {
    struct list node;
    struct link_stream *stream;
    struct ev_timer timer;
    void (*cb)(void *ctx, bool ok, int64_t rtt_us);
    void *ctx;
    int64_t sent_us;
    uint8_t sent[ECHO_BYTES];
    size_t got;
};

static void end(struct echo *x, bool ok)
{
    int64_t us = clock_mono_us() - x->sent_us;
    ev_timer_stop(&x->timer);
    list_del(&x->node);
    if (x->stream)
        link_stream_free(x->stream);
    x->cb(x->ctx, ok, ok && us > 0 ? us : ok);
    free(x);
}

static void on_readable(void *ctx, struct link_stream *s)
{
    struct echo *x = ctx;
    for (struct slice in; (in = link_peek(s)).n > 0; link_consume(s, in.n)) {
        if (in.n > sizeof x->sent - x->got || memcmp(in.p, x->sent + x->got, in.n) != 0) {
            end(x, false);
            return;
        }
        x->got += in.n;
    }
    if (x->got == sizeof x->sent || link_eof(s))
        end(x, x->got == sizeof x->sent);
}

static void on_close(void *ctx, struct link_stream *s, const struct err *why)
{
    (void)s, (void)why;
    end(ctx, false);
}

static void on_timer(struct ev_timer *t)
{
    end(container_of(t, struct echo, timer), false);
}

void link_echo(struct link *l, int64_t timeout_ms, void (*cb)(void *ctx, bool ok, int64_t rtt_us), void *ctx)
{
    static const struct link_stream_ops ops = { .on_readable = on_readable, .on_close = on_close };
    static const struct link_open open = { .authority = PROTO_ECHO };
    struct echo *x = xcalloc(1, sizeof *x);
    x->cb = cb;
    x->ctx = ctx;
    x->sent_us = clock_mono_us();
    random_bytes(x->sent, sizeof x->sent);
    list_add_tail(&l->echoes, &x->node);
    struct err e;
    bool ok = link_stream_open(l, &open, &ops, x, &x->stream, &e) == RC_OK && link_write(x->stream, x->sent, sizeof x->sent) == sizeof x->sent;
    if (x->stream)
        stream_uncount(x->stream);
    ev_timer_set(l->ev, &x->timer, ok ? timeout_ms : 0, on_timer);
}

void echo_end_all(struct link *l)
{
    while (!list_empty(&l->echoes))
        end(list_first(&l->echoes, struct echo, node), false);
}

/* The other end: what came goes back. */
void echo_answer(struct link_stream *s)
{
    for (struct slice in; (in = link_peek(s)).n > 0;) {
        size_t n = link_write(s, in.p, in.n);
        if (n == 0)
            return;         /* told again when there is room */
        link_consume(s, n);
        s->link->echoed_ms = ev_now_ms(s->link->ev);
    }
    if (link_eof(s))
        link_shutdown(s);
}
