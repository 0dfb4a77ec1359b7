/* Links. The first byte chooses: two ends of a link over small pipes, with the bytes choosing what their owners do (the model of tests/unit/tunnel), or one end,
 * acceptor or opener, that is fed the bytes as HTTP/2 frames after a well-formed beginning; its owner answers, reads and frees. Properties: no crash, no leak,
 * windows and queues within their limits, the end is told once and with words, the budget is given back. */
#include "../unit/tunnel/model.h"

static struct { struct ev *ev; struct link *l; struct link_stream *s[64]; struct link_budget budget; const uint8_t *p; size_t n, step; int ends, n_s; unsigned mode; } R;

static int raw_read(void *ctx, void *p, size_t n, size_t *ret_n)
{
    (void)ctx;
    size_t part = R.n < R.step ? R.n : R.step;
    part = part < n ? part : n;
    if (!part)
        return RC_AGAIN;
    memcpy(p, R.p, part);
    R.p += part;
    R.n -= part;
    *ret_n = part;
    return RC_OK;
}

static int raw_write(void *ctx, const void *p, size_t n, size_t *ret_n)
{
    (void)ctx, (void)p;
    *ret_n = n;
    return RC_OK;
}

static void raw_readable(void *ctx, struct link_stream *s)
{
    struct slice in = link_peek(s);
    (void)ctx;
    if (R.mode & 16)
        (void)link_write(s, in.p, in.n);
    if (R.mode & 8)
        link_consume(s, in.n);                                      /* `in` ends here */
    if (link_eof(s))
        link_shutdown(s);
}

static void raw_close(void *ctx, struct link_stream *s, const struct err *why)
{
    struct link_stream **place = ctx;
    REQUIRE(*place == s && why->msg[0]);
    link_stream_free(s);
    *place = NULL;
}

static const struct link_stream_ops raw_stream_ops = { .on_readable = raw_readable, .on_close = raw_close };

static void raw_open(void *ctx, struct link *l, struct link_stream *s, const struct link_open *o)
{
    (void)ctx, (void)l;
    REQUIRE(strchr(o->authority, ':') && strlen(o->client) < LINK_CLIENT_MAX);
    struct link_stream **place = &R.s[R.n_s++ % 64];
    if (*place)
        link_stream_free(*place);
    *place = s;
    link_stream_attach(s, &raw_stream_ops, place);
    link_reply(s, R.mode & 32 ? 200 : 404);
}

static void raw_end(void *ctx, struct link *l, const struct err *why)
{
    (void)ctx, (void)l;
    REQUIRE(why->rc < 0 && why->msg[0]);
    R.ends++;
}

static const struct link_ops raw_ops = { .on_open = raw_open, .on_end = raw_end };

static void feed(const void *p, size_t n, size_t step)
{
    R.p = p;
    R.n = n;
    R.step = step;
    for (int i = 0; (R.n > 0 || i < 3) && !R.ends; i++) {
        link_poke(R.l);
        if (R.mode & 64)
            (void)ev_run_once(R.ev, 0);
        list_foreach(s, &R.l->all, struct link_stream, all)
            REQUIRE(s->in.n <= s->window + s->excess && s->out.n <= LINK_SEND_MAX && s->headers <= LINK_HEADERS_MAX + 70000);
    }
}

static void raw_run(const uint8_t *in, size_t len)
{
    static const char magic[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0\0\0\0\4\1\0\0\0\0";
    struct ev *ev = R.ev;
    struct err e;
    memset(&R, 0, sizeof R);
    R.ev = ev;
    if (!R.ev)
        REQUIRE(ev_new(&R.ev, &e) == RC_OK);
    R.mode = in[0];
    R.budget.max = MIB;
    bool acceptor = R.mode & 4;
    const struct tls_io io = { raw_read, raw_write, NULL };
    REQUIRE(link_new_pipe(R.ev, acceptor ? LINK_ACCEPTOR : LINK_OPENER, &R.budget, &io, &raw_ops, NULL, &R.l, &e) == RC_OK);
    feed(acceptor ? magic : magic + 24, sizeof magic - 1 - (acceptor ? 0 : 24), 100);
    REQUIRE(!R.ends);
    if (!acceptor) {
        const struct link_open o = { .authority = "a.example:443" };
        for (int i = 0; i < 3; i++)
            REQUIRE(link_stream_open(R.l, &o, &raw_stream_ops, &R.s[i], &R.s[i], &e) == RC_OK);
    }
    feed(in + 2, len - 2, in[1] + 1);
    link_free(R.l);
    for (int i = 0; i < 64; i++)
        link_stream_free(R.s[i]);
    REQUIRE(R.budget.used == 0);
}

static void done(void)
{
    model_done();
    ev_free(R.ev);
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len)
{
    static bool registered;
    if (!registered)
        registered = atexit(done) == 0;
    if (len < 3)
        return 0;
    if ((in[0] & 3) == 0)
        model_run(in + 1, len - 1);
    else
        raw_run(in, len);
    return 0;
}
