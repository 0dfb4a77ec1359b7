/* edge/splice.c - see splice.h */
#include "edge/splice.h"

#include "base/str.h"
#include "edge/dial.h"
#include "edge/host.h"
#include "edge/pass.h"
#include "log/log.h"

struct splice {
    struct list node;
    struct edge *e;
    struct dial *dial;
    struct link_stream *in;
    char host[HOST_MAX], client[NET_ADDR_TEXT];
};

static void splice_free(struct splice *s)
{
    dial_cancel(s->dial);
    link_stream_free(s->in);
    list_del(&s->node);
    free(s);
}

static void on_close(void *ctx, struct link_stream *stream, const struct err *why)
{
    (void)stream;
    struct splice *s = ctx;
    log_debug("edge.splice_end", "host=%s why=%s", s->host, why->msg);
    splice_free(s);
}

static void on_dialled(void *ctx, struct link_stream *out, enum refusal why)
{
    struct splice *s = ctx;
    s->dial = NULL;
    if (!out) {
        stats_refused(why);
        link_reply(s->in, refusals[why].status);
    } else {
        struct link_stream *in = TAKE(s->in);
        const struct relay_end from = { .stream = in };
        struct seat none = { 0 };
        link_reply(in, 200);
        pass_start(s->e, &from, &none, out, s->host, s->client);
    }
    splice_free(s);
}

static void refuse(struct link_stream *in, enum refusal why)
{
    stats_refused(why);
    link_reply(in, refusals[why].status);
}

void splice_start(struct edge *e, struct link_stream *in, const struct link_open *o)
{
    static const struct link_stream_ops ops = { .on_close = on_close };
    struct splice *s = xcalloc(1, sizeof *s);
    uint16_t port;
    s->e = e;
    s->in = in;
    list_init(&s->node);
    link_stream_attach(in, &ops, s);
    if (!o->forwarded || host_parse(slice_of(o->authority), s->host, &port) < 0 || e->draining) {
        refuse(in, e->draining ? REFUSE_DRAINING : REFUSE_BAD_REQUEST);
        splice_free(s);
        return;
    }
    (void)str_copy(s->client, sizeof s->client, o->client);
    list_add_tail(&e->splices, &s->node);
    metric_add(&stat_forwarded_in, 1);
    const struct dial_conf c = { .host = s->host, .port = port, .client = s->client, .forwarded = true, .done = on_dialled, .ctx = s };
    s->dial = dial_start(e, &c);
}

void splices_end(struct edge *e)
{
    list_foreach (s, &e->splices, struct splice, node)
        splice_free(s);
}
