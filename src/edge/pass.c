/* edge/pass.c - see pass.h */
#include "edge/pass.h"

#include "base/str.h"
#include "log/log.h"

struct pass {
    struct list node;
    struct edge *e;
    struct relay *relay;
    struct seat seat;
    uint64_t up, down;                   /* counted already */
    int64_t started_ms;
    char *host;
    char client[NET_ADDR_TEXT];
};

static void count(struct pass *p, uint64_t up, uint64_t down)
{
    metric_add(&stat_bytes_up, (int64_t)(up - p->up));
    metric_add(&stat_bytes_down, (int64_t)(down - p->down));
    p->up = up;
    p->down = down;
}

static void pass_free(struct pass *p)
{
    relay_free(p->relay);
    seat_done(&p->seat);
    list_del(&p->node);
    p->e->n_passes--;
    metric_add(&stat_relays, -1);
    free(p->host);
    free(p);
}

static void on_done(void *ctx, const struct relay_result *r)
{
    struct pass *p = ctx;
    count(p, r->a_to_b, r->b_to_a);
    log_debug("edge.relay_end", "host=%s client=%s to_gateway=%llu to_client=%llu seconds=%lld why=%s", p->host, p->client, (unsigned long long)r->a_to_b,
              (unsigned long long)r->b_to_a, (long long)((ev_now_ms(p->e->ev) - p->started_ms) / 1000), r->clean ? "both sides have ended" : r->why.msg);
    pass_free(p);
}

static void drop_end(const struct relay_end *x)
{
    link_stream_free(x->stream);
    tls_free(x->tls);
    if (!x->stream)
        (void)close(x->fd);
}

void pass_start(struct edge *e, const struct relay_end *from, struct seat *seat, struct link_stream *to, const char *host, const char *client)
{
    const struct relay_end gateway = { .stream = to };
    struct pass *p = xcalloc(1, sizeof *p);
    struct err err;
    p->e = e;
    p->seat = *seat;
    *seat = (struct seat){ 0 };
    p->host = str_dup(host);
    p->started_ms = ev_now_ms(e->ev);
    (void)str_copy(p->client, sizeof p->client, client);
    list_add_tail(&e->passes, &p->node);
    e->n_passes++;
    metric_add(&stat_relays, 1);
    metric_add(&stat_relays_total, 1);
    if (relay_new(e->ev, from, &gateway, on_done, p, &p->relay, &err) < 0) {
        log_err(LOG_WARN, "edge.relay_failed", &err);
        drop_end(from);
        drop_end(&gateway);
        pass_free(p);
        return;
    }
    log_debug("edge.relay", "host=%s client=%s forwarded=%s", p->host, p->client, from->stream ? "true" : "false");
}

void passes_end(struct edge *e)
{
    list_foreach (p, &e->passes, struct pass, node)
        pass_free(p);
}

void passes_count(struct edge *e)
{
    list_foreach (p, &e->passes, struct pass, node) {
        uint64_t up, down;
        relay_bytes(p->relay, &up, &down);
        count(p, up, down);
    }
}
