/* A model of two ends of a link over pipes in memory that hold little. Bytes choose what happens; what must hold always is checked. Used with seeded random
 * bytes as a unit test and with a fuzzer's as a fuzz target. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "tunnel/link_internal.h"

#define REQUIRE(c) do { if (!(c)) { fprintf(stderr, "property broken: %s (line %d)\n", #c, __LINE__); abort(); } } while (0)

#define MODEL_STREAMS 100
#define MODEL_BUDGET (3 * MIB)

struct lane { char mem[20000]; size_t n, cap; };                     /* one direction */
struct half {                                                       /* one end of a stream; [0] opener, [1] acceptor */
    struct link_stream *s;
    uint64_t sent, got;
    bool shut, freed, closed, eof, stalled, refused, free_soon, reset;
};
struct mstream { struct half h[2]; bool opened; };

static struct model {
    struct ev *ev;
    struct link *l[2];
    struct tls_io io[2];
    struct lane lane[2];                                            /* [k]: to end k */
    struct link_budget budget[2];
    struct mstream m[MODEL_STREAMS];
    size_t n;
    int ends[2], echoes, echoed;
    bool drained, no_free_in_callbacks;
    const uint8_t *p;
    size_t left;
} M;

static unsigned next_byte(void)
{
    if (!M.left)
        return 0;
    M.left--;
    return *M.p++;
}

static char byte_of(size_t stream, int side, uint64_t at) { return (char)(at * 2654435761u >> 9 ^ stream * 31 ^ (unsigned)side * 101 ^ at >> 12); }

static int lane_read(void *ctx, void *p, size_t n, size_t *ret_n)
{
    struct lane *l = ctx == &M.io[0] ? &M.lane[0] : &M.lane[1];
    if (!l->n)
        return RC_AGAIN;
    *ret_n = n < l->n ? n : l->n;
    memcpy(p, l->mem, *ret_n);
    memmove(l->mem, l->mem + *ret_n, l->n - *ret_n);
    l->n -= *ret_n;
    return RC_OK;
}

static int lane_write(void *ctx, const void *p, size_t n, size_t *ret_n)
{
    struct lane *l = ctx == &M.io[0] ? &M.lane[1] : &M.lane[0];
    if (l->n >= l->cap)
        return RC_AGAIN;
    *ret_n = n < l->cap - l->n ? n : l->cap - l->n;
    memcpy(l->mem + l->n, p, *ret_n);
    l->n += *ret_n;
    return RC_OK;
}

static size_t index_of(const struct half *h) { return (size_t)((const char *)h - (const char *)M.m) / sizeof M.m[0]; }
static int side_of(const struct half *h) { return h == &M.m[index_of(h)].h[1]; }

static void half_free(struct half *h, bool reset)
{
    if (!h->s)
        return;
    if (reset)
        link_stream_reset(h->s);
    else
        link_stream_free(h->s);
    h->s = NULL;
    h->freed = true;
    h->reset = h->reset || reset || !h->shut;
}

static void half_read(struct half *h, size_t most)
{
    const size_t i = index_of(h);
    const int from = !side_of(h);
    struct slice in;
    while (most > 0 && (in = link_peek(h->s)).n > 0) {
        size_t n = in.n < most ? in.n : most;
        for (size_t k = 0; k < n; k++)
            REQUIRE(in.p[k] == byte_of(i, from, h->got + k));
        h->got += n;
        most -= n;
        REQUIRE(h->got <= M.m[i].h[from].sent);
        link_consume(h->s, n);
    }
    if (link_eof(h->s)) {
        REQUIRE(M.m[i].h[from].shut || M.m[i].h[from].refused);
        REQUIRE(h->got == M.m[i].h[from].sent);
        h->eof = true;
    }
}

static void half_write(struct half *h, size_t n)
{
    static char b[100000];
    if (!h->s || h->shut || h->closed)
        return;
    const size_t i = index_of(h);
    for (size_t k = 0; k < n; k++)
        b[k] = byte_of(i, side_of(h), h->sent + k);
    if (n % 2) {
        h->sent += link_write(h->s, b, n);
        return;
    }
    size_t room = 0;
    char *p = link_write_reserve(h->s, n, &room);
    if (!p)
        return;
    REQUIRE(room > 0 && room <= n);
    room = room > 1 && n % 3 == 0 ? room - 1 : room;                 /* not always all of it */
    memcpy(p, b, room);
    link_write_commit(h->s, room);
    h->sent += room;
}

static void on_reply(void *ctx, struct link_stream *s, int status)
{
    struct half *h = ctx;
    REQUIRE(h->s == s && !h->closed && side_of(h) == 0);
    REQUIRE(status == 200 || M.m[index_of(h)].h[1].refused);
}

static void on_readable(void *ctx, struct link_stream *s)
{
    struct half *h = ctx;
    REQUIRE(h->s == s && !h->closed);
    if (h->free_soon && !M.no_free_in_callbacks)
        half_free(h, false);
    else if (!h->stalled)
        half_read(h, SIZE_MAX);
}

static void on_writable(void *ctx, struct link_stream *s)
{
    struct half *h = ctx;
    REQUIRE(h->s == s && !h->closed);
    half_write(h, 3001);
}

static void on_close(void *ctx, struct link_stream *s, const struct err *why)
{
    struct half *h = ctx;
    REQUIRE(h->s == s && !h->closed && why->rc < 0 && why->msg[0]);
    h->closed = true;
    if (link_eof(s))                                                /* everything came, and then the other end left */
        half_read(h, 0);
    if (h->free_soon && !M.no_free_in_callbacks)
        half_free(h, false);
}

static const struct link_stream_ops half_ops = { on_reply, on_readable, on_writable, on_close };

static void on_open(void *ctx, struct link *l, struct link_stream *s, const struct link_open *o)
{
    (void)ctx;
    REQUIRE(l == M.l[1]);
    int64_t i = -1;
    struct slice number = { o->authority + 1, strcspn(o->authority + 1, ".") };
    REQUIRE(slice_to_i64(number, 0, MODEL_STREAMS - 1, &i) == RC_OK && !M.m[i].opened);
    struct half *h = &M.m[i].h[1];
    M.m[i].opened = true;
    switch (next_byte() % 8) {
    case 0:                                                         /* refused without a word */
        h->refused = true;
        return;
    case 1:
        link_stream_attach(s, &half_ops, h);
        h->s = s;
        h->refused = true;
        link_reply(s, 503);
        half_free(h, false);
        return;
    default:
        link_stream_attach(s, &half_ops, h);
        h->s = s;
        link_reply(s, 200);
        half_write(h, next_byte() * 40);
    }
}

static void on_end(void *ctx, struct link *l, const struct err *why)
{
    int k = l == M.l[1];
    (void)ctx;
    M.ends[k]++;
    if (why->rc != RC_CLOSED)
        fprintf(stderr, "end %d: %s\n", k, why->msg);
    REQUIRE(M.ends[k] == 1 && why->rc == RC_CLOSED && M.drained);   /* nothing here breaks HTTP/2 */
}

static void on_goaway(void *ctx, struct link *l) { (void)ctx, (void)l; REQUIRE(M.drained); }
static const struct link_ops link_side_ops = { .on_open = on_open, .on_goaway = on_goaway, .on_end = on_end };

static void on_echo(void *ctx, bool ok, int64_t rtt) { (void)ctx, (void)ok, (void)rtt; M.echoed++; }

/* What holds after every step. */
static void check(void)
{
    for (int k = 0; k < 2; k++) {
        REQUIRE(M.budget[k].used <= MODEL_BUDGET);
        size_t out = 0, h2 = 0;
        list_foreach(s, &M.l[k]->all, struct link_stream, all) {
            REQUIRE(s->in.n <= (size_t)s->window + s->excess && s->window >= LINK_WINDOW_MIN && s->window <= LINK_WINDOW_MAX);
            REQUIRE(s->out.n <= LINK_SEND_MAX && (s->in.n > 0 || !s->in.mem) && (s->out.n > 0 || !s->out.mem));
            out += s->out.n;
            h2 += s->h2_open;
        }
        REQUIRE(out == M.l[k]->out_bytes && h2 == M.l[k]->n_h2 && M.l[k]->n_streams <= h2);
        REQUIRE(buf_len(&M.l[k]->out) <= LINK_OUT_MAX);
    }
}

static void poke(int k)
{
    if (!M.ends[k])
        link_poke(M.l[k]);
    check();
}

static void step(void)
{
    unsigned op = next_byte(), pick = next_byte(), arg = next_byte();
    int side = op >> 7;
    struct half *h = M.n ? &M.m[pick % M.n].h[side] : NULL;
    switch (op % 16) {
    case 0: case 1: {
        if (M.n == MODEL_STREAMS)
            return;
        char name[64];
        snprintf(name, sizeof name, "s%zu.example:443", M.n);
        const struct link_open o = { .authority = name, .client = "192.0.2.1", .forwarded = arg & 1 };
        struct half *x = &M.m[M.n].h[0];
        struct err e;
        if (link_stream_open(M.l[0], &o, &half_ops, x, &x->s, &e) != RC_OK)
            return;
        M.n++;
        half_write(x, arg * 20);
        return;
    }
    case 2: case 3: case 4:
        if (h)
            half_write(h, (arg + 1) * (op & 64 ? 390 : 7));
        return;
    case 5:
        if (h && h->s && !h->closed && !h->refused) {
            h->shut = h->shut || link_alive(h->s->link);
            link_shutdown(h->s);
        }
        return;
    case 6:
        if (h && arg < 200)
            half_free(h, arg & 1);
        return;
    case 7:
        if (h)
            h->stalled = !h->stalled;
        if (h && h->s && !h->stalled && !h->closed)
            half_read(h, SIZE_MAX);
        return;
    case 8:
        if (h && h->s && !h->closed)
            half_read(h, arg * 33);
        return;
    case 9:
        M.lane[side].cap = arg * 75 + 1;
        return;
    case 10:
        if (h)
            h->free_soon = arg > 200;
        return;
    case 11:
        if (arg == 255 && pick > 200 && M.n > 3) {
            M.drained = true;
            link_goaway(M.l[side]);
        }
        return;
    case 12:
        if (M.echoes < 20 && !M.ends[0]) {
            M.echoes++;
            link_echo(M.l[0], 1000000, on_echo, NULL);
        }
        return;
    case 13:
        M.l[side]->rtt_us = arg * 5000;                             /* a long way: windows grow */
        M.l[side]->rtt_at_us = INT64_MAX / 2;
        return;
    case 14:
        M.l[side]->turns = 2;
        if (!M.ends[side])
            window_tick(M.l[side]);
        return;
    default:
        poke(side);
        if (arg & 1)
            (void)ev_run_once(M.ev, 0);
        return;
    }
}

static void model_run(const uint8_t *p, size_t n)
{
    struct err e;
    struct ev *ev = M.ev;
    memset(&M, 0, sizeof M);
    M.ev = ev;
    if (!M.ev)
        REQUIRE(ev_new(&M.ev, &e) == RC_OK);
    M.p = p;
    M.left = n;
    for (int k = 0; k < 2; k++) {
        M.lane[k].cap = sizeof M.lane[k].mem;
        M.budget[k].max = MODEL_BUDGET;
        M.io[k] = (struct tls_io){ lane_read, lane_write, &M.io[k] };
        REQUIRE(link_new_pipe(M.ev, k ? LINK_ACCEPTOR : LINK_OPENER, &M.budget[k], &M.io[k], &link_side_ops, NULL, &M.l[k], &e) == RC_OK);
    }
    for (int i = 0; i < 6; i++)
        poke(i % 2);
    REQUIRE(link_usable(M.l[0]));
    while (M.left)
        step();
    /* Everybody reads and writes to the end now; each stream that nobody broke has delivered everything. */
    M.no_free_in_callbacks = true;
    M.lane[0].cap = M.lane[1].cap = sizeof M.lane[0].mem;
    for (size_t i = 0; i < M.n; i++)
        for (int k = 0; k < 2; k++) {
            struct half *h = &M.m[i].h[k];
            h->stalled = false;
            if (!h->s || h->closed)
                continue;
            half_read(h, SIZE_MAX);
            h->shut = h->shut || link_alive(h->s->link);
            link_shutdown(h->s);
        }
    for (int i = 0; i < 5000; i++) {
        poke(i % 2);
        bool quiet = M.lane[0].n == 0 && M.lane[1].n == 0 && list_empty(&M.l[0]->ready) && list_empty(&M.l[1]->ready);
        if (quiet && i > 20 && !M.l[0]->more && !M.l[1]->more && link_queued(M.l[0]) == 0 && link_queued(M.l[1]) == 0)
            break;
    }
    for (size_t i = 0; i < M.n; i++) {
        struct half *o = &M.m[i].h[0], *a = &M.m[i].h[1];
        if (o->closed || a->closed || o->freed || a->freed || a->refused || !a->s)
            continue;
        for (int k = 0; k < 2; k++) {                               /* what was shut in good order has come */
            struct half *to = &M.m[i].h[k], *from = &M.m[i].h[!k];
            REQUIRE(!from->shut || (to->got == from->sent && to->eof));
        }
    }
    /* An owner who left after its end has lost nothing on the way, as long as the reader stayed. */
    for (size_t i = 0; i < M.n; i++)
        for (int k = 0; k < 2; k++) {
            struct half *to = &M.m[i].h[k], *from = &M.m[i].h[!k];
            if (from->freed && !from->reset && !from->refused && to->s && !to->freed && !to->reset && !from->closed && !M.drained)
                REQUIRE(to->got == from->sent && to->eof);
        }
    for (int k = 0; k < 2; k++)
        link_free(M.l[k]);
    REQUIRE(M.echoed == M.echoes);
    for (size_t i = 0; i < M.n; i++)
        for (int k = 0; k < 2; k++)
            half_free(&M.m[i].h[k], false);
    REQUIRE(M.budget[0].used == 0 && M.budget[1].used == 0);
}

static void model_done(void)
{
    ev_free(M.ev);
    M.ev = NULL;
}
