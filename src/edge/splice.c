/* edge/splice.c - see splice.h. Two streams, and what comes on one goes to the other: a window is given back when the other link has taken the bytes, so a
 * reader that stops at one end stops the writer at the other. */
#include "edge/splice.h"

#include "base/str.h"
#include "edge/dial.h"
#include "edge/host.h"
#include "log/log.h"

struct splice {
    struct list node;
    struct edge *e;
    struct dial *dial;
    struct link_stream *in, *out;        /* from the edge, to the gateway */
    bool in_shut, out_shut;              /* we have ended our side of it */
    char *host;
};

static void splice_free(struct splice *s)
{
    dial_cancel(s->dial);
    link_stream_free(s->in);
    link_stream_free(s->out);
    list_del(&s->node);
    s->e->n_splices--;
    free(s->host);
    free(s);
}

static void move(struct link_stream *from, struct link_stream *to, bool *shut, struct metric *bytes)
{
    for (struct slice p; (p = link_peek(from)).n > 0;) {
        size_t n = link_write(to, p.p, p.n);
        link_consume(from, n);
        metric_add(bytes, (int64_t)n);
        if (n < p.n)
            return;                      /* on_writable of `to` goes on */
    }
    if (link_eof(from) && !*shut) {
        link_shutdown(to);
        *shut = true;
    }
}

static void pump(struct splice *s)
{
    move(s->in, s->out, &s->out_shut, &stat_bytes_up);
    move(s->out, s->in, &s->in_shut, &stat_bytes_down);
    if (s->in_shut && s->out_shut) {
        log_debug("edge.splice_end", "host=%s why=%s", s->host, "both ends have finished");
        splice_free(s);
    }
}

static void on_event(void *ctx, struct link_stream *stream)
{
    (void)stream;
    pump(ctx);
}

static void on_close(void *ctx, struct link_stream *stream, const struct err *why)
{
    struct splice *s = ctx;
    log_debug("edge.splice_end", "host=%s side=%s why=%s", s->host, stream == s->in ? "edge" : "gateway", why->msg);
    splice_free(s);
}

static const struct link_stream_ops moving_ops = { .on_readable = on_event, .on_writable = on_event, .on_close = on_close };
static const struct link_stream_ops waiting_ops = { .on_close = on_close };

static void on_dialled(void *ctx, struct link_stream *out, enum refusal why)
{
    struct splice *s = ctx;
    s->dial = NULL;
    if (!out) {
        stats_refused(why);
        link_reply(s->in, refusals[why].status);
        splice_free(s);
        return;
    }
    s->out = out;
    link_reply(s->in, 200);
    link_stream_attach(s->in, &moving_ops, s);
    link_stream_attach(s->out, &moving_ops, s);
}

void splice_start(struct edge *e, struct link_stream *in, const struct link_open *o)
{
    char host[HOST_MAX];
    uint16_t port;
    if (!o->forwarded || host_parse(slice_of(o->authority), host, &port) < 0) {
        stats_refused(REFUSE_BAD_REQUEST);
        link_reply(in, refusals[REFUSE_BAD_REQUEST].status);
        return;
    }
    if (e->draining) {
        stats_refused(REFUSE_DRAINING);
        link_reply(in, refusals[REFUSE_DRAINING].status);
        return;
    }
    struct splice *s = xcalloc(1, sizeof *s);
    s->e = e;
    s->in = in;
    s->host = str_dup(host);
    list_add_tail(&e->splices, &s->node);
    e->n_splices++;
    metric_add(&stat_forwarded_in, 1);
    link_stream_attach(in, &waiting_ops, s);
    const struct dial_conf c = { .host = host, .port = port, .client = o->client, .forwarded = true, .done = on_dialled, .ctx = s };
    s->dial = dial_start(e, &c);
}

void splices_end(struct edge *e)
{
    list_foreach (s, &e->splices, struct splice, node)
        splice_free(s);
}
