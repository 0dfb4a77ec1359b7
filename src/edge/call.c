/* edge/call.c - a client that waits for its stream: from a complete request to the relay, or to a refusal in the form of its listener. */
#include "base/str.h"
#include "edge/ctx.h"
#include "edge/dial.h"
#include "edge/host.h"
#include "edge/pass.h"
#include "log/log.h"

struct call {
    struct list node;
    struct edge *e;
    struct guest *guest;
    struct dial *dial;
    struct link_stream *stream;          /* there, and the client is being told */
    bool http;                           /* the client speaks HTTP to us; else TLS to somebody behind us */
    char host[HOST_MAX];
};

/* A TLS client understands an alert; fatal, in the record of a handshake (RFC 8446 6). */
static void refuse_tls(struct guest *g, enum refusal why)
{
    enum { UNRECOGNIZED_NAME = 112, ACCESS_DENIED = 49, INTERNAL_ERROR = 80 };
    char alert[] = { 21, 3, 3, 0, 2, 2, 0 };
    alert[6] = why == REFUSE_UNKNOWN_TUNNEL ? UNRECOGNIZED_NAME : why == REFUSE_NO_CERTIFICATE ? ACCESS_DENIED : INTERNAL_ERROR;
    stats_refused(why);
    log_debug("edge.refused", "door=%s peer=%s why=%s", "passthrough", g->peer_text, refusals[why].text);
    guest_end(g, alert, sizeof alert);
}

static void call_free(struct call *c)
{
    dial_cancel(c->dial);
    link_stream_free(c->stream);
    list_del(&c->node);
    free(c);
}

static void on_gone(struct guest *g)
{
    call_free(g->ctx);
}

static void on_close(void *ctx, struct link_stream *s, const struct err *why)
{
    (void)s, (void)why;
    struct call *c = ctx;
    struct guest *g = c->guest;
    call_free(c);
    guest_drop(g);                       /* it may have a part of our 200 */
}

static void connect_through(struct guest *g)
{
    struct call *c = g->ctx;
    char client[NET_ADDR_TEXT];
    (void)str_copy(client, sizeof client, g->peer_text);
    struct guest_gift gift = guest_take(g);
    const struct relay_end from = { .fd = gift.fd, .tls = gift.tls, .early = buf_data(&gift.early), .early_n = buf_len(&gift.early) };
    pass_start(c->e, &from, &gift.seat, TAKE(c->stream), c->host, client);
    buf_done(&gift.early);
    call_free(c);
}

static void on_dialled(void *ctx, struct link_stream *s, enum refusal why)
{
    static const struct link_stream_ops ops = { .on_close = on_close };
    static const char yes[] = "HTTP/1.1 200 Connection established\r\n\r\n";
    struct call *c = ctx;
    struct guest *g = c->guest;
    c->dial = NULL;
    if (s) {
        c->stream = s;
        link_stream_attach(s, &ops, c);
        if (c->http)
            guest_answer(g, yes, sizeof yes - 1, connect_through);
        else
            connect_through(g);
        return;
    }
    bool http = c->http;
    call_free(c);
    if (http)
        guest_refuse(g, why, NULL);
    else
        refuse_tls(g, why);
}

void call_start(struct edge *e, struct guest *g, const char *host, uint16_t port, bool http)
{
    if (e->draining) {
        if (http)
            guest_refuse(g, REFUSE_DRAINING, NULL);
        else
            refuse_tls(g, REFUSE_DRAINING);
        return;
    }
    struct call *c = xcalloc(1, sizeof *c);
    c->e = e;
    c->guest = g;
    c->http = http;
    (void)str_copy(c->host, sizeof c->host, host);
    list_add_tail(&e->calls, &c->node);
    guest_hold(g, on_gone, c);
    const struct dial_conf d = { .host = c->host, .port = port, .client = g->peer_text, .done = on_dialled, .ctx = c };
    c->dial = dial_start(e, &d);
}

void calls_end(struct edge *e)
{
    list_foreach (c, &e->calls, struct call, node) {
        struct guest *g = c->guest;
        call_free(c);
        guest_drop(g);
    }
}
