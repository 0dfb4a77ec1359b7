#include "server/events/hub.h"

#include <stdatomic.h>
#include <string.h>

#include "base/list.h"
#include "base/random.h"
#include "base/str.h"
#include "http/sse.h"
#include "metrics/metrics.h"
#include "server/events/frames.h"

#define TOPIC_BUCKETS 4096
#define TICK_MS 250                  /* pings due, slow readers, reads to repeat */
#define QUEUE_MAX (HUB_SOFT_BYTES + HUB_BATCH_BYTES + HUB_FRAME_MAX)

METRIC_DEFINE(metric_subs, METRIC_GAUGE, "outwork_sse_subscribers", "Open event streams");
METRIC_DEFINE(metric_frames, METRIC_COUNTER, "outwork_sse_frames_total", "Log frames written to event streams");
METRIC_DEFINE(metric_shed, METRIC_COUNTER, "outwork_sse_previews_shed_total", "Previews not sent to slow readers");
METRIC_DEFINE(metric_slow, METRIC_COUNTER, "outwork_sse_slow_disconnects_total", "Readers disconnected for being slow");

/* One session that somebody listens to. */
struct topic {
    struct list node, subs;          /* bucket; struct sub.in_topic */
    struct list in_failed;           /* a read failed: repeated at the next tick */
    uint64_t version;                /* +1 per note */
    bool busy, oldest_turn;          /* a read is running; whose turn it is next: the furthest behind or the head */
    struct hub *hub;
    char id[];
};
struct sub {
    struct list in_topic, in_ping, in_slow;
    struct topic *topic;
    struct http_stream *stream;      /* NULL until on_start */
    int64_t cursor;                  /* everything up to this position was sent */
    uint64_t seen;                   /* topic version up to which the log was read for this one */
    int64_t ping_due_ms, slow_since_ms;
    size_t slow_queued;
    uint64_t preview;                /* hash of the event whose previews it follows */
    uint8_t deltas;
    bool ended, fresh;               /* ended: close when read; fresh: written to since the last ping */
};
struct hub {
    struct hub_conf conf;
    struct list bucket[TOPIC_BUCKETS], pings, slow, failed;
    struct ev_timer tick;
    size_t n_subs;
    _Atomic size_t n_all;            /* with those not yet registered */
};
/* A subscription on its way to the loop thread. */
struct arrival { struct hub *hub; struct sub *sub; struct http_req *req; char *headers; char id[]; };

static const char ping_frame[] = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
static const char drain_frame[] = ": the server is going away\n\n";

static void kick(struct topic *t);

static uint64_t hash_text(const char *s)
{
    uint64_t h = 14695981039346656037u;
    for (; *s; s++)
        h = (h ^ (uint8_t)*s) * 1099511628211u;
    return h;
}

static struct topic *topic_find(struct hub *h, const char *id)
{
    list_foreach(t, &h->bucket[hash_text(id) % TOPIC_BUCKETS], struct topic, node)
        if (strcmp(t->id, id) == 0)
            return t;
    return NULL;
}

static struct topic *topic_get(struct hub *h, const char *id)
{
    struct topic *t = topic_find(h, id);
    if (t)
        return t;
    size_t n = strlen(id) + 1;
    t = xcalloc(1, sizeof *t + n);
    memcpy(t->id, id, n);
    t->hub = h;
    t->version = 1;
    list_init(&t->subs);
    list_init(&t->in_failed);
    list_add_tail(&h->bucket[hash_text(id) % TOPIC_BUCKETS], &t->node);
    return t;
}

static void topic_drop_if_unused(struct topic *t)
{
    if (t->busy || !list_empty(&t->subs))
        return;
    list_del(&t->node);
    list_del(&t->in_failed);
    free(t);
}

/* Ends the stream (after what is queued) and forgets the subscriber. The topic stays: the caller may be walking it. */
static void sub_end(struct sub *s)
{
    struct hub *h = s->topic->hub;
    list_del(&s->in_topic);
    list_del(&s->in_ping);
    list_del(&s->in_slow);
    if (s->stream)
        http_stream_end(s->stream);
    free(s);
    h->n_subs--;
    atomic_fetch_sub(&h->n_all, 1);
    metric_add(&metric_subs, -1);
}

static void sub_mark_slow(struct sub *s, size_t queued)
{
    s->preview = 0;                  /* what it would get from here on is no prefix any more */
    if (!list_empty(&s->in_slow))
        return;
    s->slow_since_ms = ev_now_ms(s->topic->hub->conf.ev);
    s->slow_queued = queued;
    list_add_tail(&s->topic->hub->slow, &s->in_slow);
}

static bool sub_ready(const struct sub *s)
{
    return s->stream && list_empty((struct list *)(uintptr_t)&s->in_slow);
}

/* RC_OK also when the reader is gone: on_close follows. */
static int sub_write(struct sub *s, const char *p, size_t n)
{
    int rc = http_stream_write(s->stream, p, n);
    size_t queued = http_stream_queued(s->stream);
    s->fresh = true;
    if (rc == RC_LIMIT || queued >= HUB_SOFT_BYTES)
        sub_mark_slow(s, queued);
    return rc == RC_LIMIT ? RC_LIMIT : RC_OK;
}

/* ---- reading ---- */
struct reading { struct topic *topic; struct frames frames; int64_t from; uint64_t version; };

static void deliver_to(struct sub *s, struct reading *r)
{
    struct frames *f = &r->frames;
    if (!sub_ready(s) || s->cursor < r->from || (s->cursor > f->upto && !f->at_end))
        return;
    size_t i = 0, last;
    while (i < f->n && f->frame[i].pos <= s->cursor)
        i++;
    for (last = i; last < f->n && !f->frame[last].terminal; last++)
        ;
    bool terminal = last < f->n;
    size_t end = terminal ? f->frame[last].end : buf_len(&f->text);
    if (i < f->n) {
        size_t start = f->frame[i].start;
        if (sub_write(s, buf_data(&f->text) + start, end - start) != RC_OK)
            return;
        metric_add(&metric_frames, (int64_t)((terminal ? last + 1 : f->n) - i));
    }
    if (s->cursor < f->upto)
        s->cursor = f->upto;
    if (f->at_end)
        s->seen = r->version;
    if (terminal || (s->ended && f->at_end))
        sub_end(s);
}

static void read_done(void *arg)
{
    struct reading *r = arg;
    struct topic *t = r->topic;
    t->busy = false;
    if (r->frames.rc == RC_OK) {
        list_foreach(s, &t->subs, struct sub, in_topic)
            deliver_to(s, r);
    } else if (r->frames.rc == RC_NOT_FOUND) {          /* deleted: the text is the one session.deleted frame */
        list_foreach(s, &t->subs, struct sub, in_topic) {
            if (!s->stream)
                continue;                               /* its own read will say so */
            (void)sub_write(s, buf_data(&r->frames.text), buf_len(&r->frames.text));
            sub_end(s);
        }
    } else if (list_empty(&t->in_failed)) {
        list_add_tail(&t->hub->failed, &t->in_failed);
    }
    bool ok = r->frames.rc == RC_OK || r->frames.rc == RC_NOT_FOUND;
    frames_done(&r->frames);
    free(r);
    if (ok)
        kick(t);
    topic_drop_if_unused(t);
}

static void read_job(void *arg)
{
    struct reading *r = arg;
    frames_read(&r->frames, r->topic->hub->conf.store, r->topic->id, r->from, HUB_BATCH_BYTES);
    ev_post(r->topic->hub->conf.ev, read_done, r);
}

/* Starts the next read for this topic, if any reader needs one. Head and stragglers take turns, so that neither starves. */
static void kick(struct topic *t)
{
    if (t->busy || !list_empty(&t->in_failed))
        return;
    int64_t low = INT64_MAX, high = -1;
    list_foreach(s, &t->subs, struct sub, in_topic) {
        if (!sub_ready(s) || s->seen == t->version)
            continue;
        low = s->cursor < low ? s->cursor : low;
        high = s->cursor > high ? s->cursor : high;
    }
    if (high < 0)
        return;
    struct reading *r = xcalloc(1, sizeof *r);
    r->topic = t;
    r->version = t->version;
    r->from = t->oldest_turn ? low : high;
    t->oldest_turn = !t->oldest_turn;
    t->busy = true;
    jobs_add_always(t->hub->conf.jobs, read_job, r);
}

void hub_note(struct hub *h, const char *session_id)
{
    struct topic *t = topic_find(h, session_id);
    if (!t)
        return;
    t->version++;
    kick(t);
}

/* ---- previews ---- */
static void preview_render(const struct loop_preview *p, struct buf *out)
{
    struct buf json;
    buf_init(&json, HUB_BATCH_BYTES);
    if (p->start) {
        buf_puts(&json, "{\"type\":\"event_start\",\"event\":{\"type\":");
        js_write_string(&json, p->type, strlen(p->type));
        buf_puts(&json, ",\"id\":");
        js_write_string(&json, p->event_id, strlen(p->event_id));
        buf_puts(&json, "}}");
    } else {
        buf_puts(&json, "{\"type\":\"event_delta\",\"event_id\":");
        js_write_string(&json, p->event_id, strlen(p->event_id));
        buf_printf(&json, ",\"delta\":{\"type\":\"content_delta\",\"index\":%d,\"content\":{\"type\":\"text\",\"text\":", p->index);
        js_write_string(&json, p->text, p->n);
        buf_puts(&json, "}}}");
    }
    if (buf_ok(&json))
        (void)sse_write(out, NULL, p->start ? "event_start" : "event_delta", buf_data(&json), buf_len(&json));
    buf_done(&json);
}

void hub_preview(struct hub *h, const struct loop_preview *p)
{
    struct topic *t = topic_find(h, p->session_id);
    if (!t)
        return;
    unsigned kind = str_eq(p->type, "agent.message") ? HUB_DELTA_MESSAGE : str_eq(p->type, "agent.thinking") ? HUB_DELTA_THINKING : 0;
    uint64_t id = hash_text(p->event_id);
    struct buf frame;
    buf_init(&frame, 2 * HUB_BATCH_BYTES);
    list_foreach(s, &t->subs, struct sub, in_topic) {
        if (!(s->deltas & kind) || !s->stream)
            continue;
        if (!sub_ready(s)) {
            s->preview = 0;
            metric_add(&metric_shed, 1);
            continue;
        }
        if (p->start)
            s->preview = id;
        else if (s->preview != id)   /* it came in the middle, or something was shed: texts must stay prefixes */
            continue;
        if (!buf_len(&frame))
            preview_render(p, &frame);
        if (!buf_ok(&frame) || !buf_len(&frame) || sub_write(s, buf_data(&frame), buf_len(&frame)) != RC_OK)
            s->preview = 0;
    }
    buf_done(&frame);
}

/* ---- time ---- */
static void tick_slow(struct hub *h, int64_t now)
{
    list_foreach(s, &h->slow, struct sub, in_slow) {
        size_t queued = http_stream_queued(s->stream);
        struct topic *t = s->topic;
        if (queued < HUB_SOFT_BYTES / 2) {
            list_del(&s->in_slow);
            kick(t);
        } else if (queued < s->slow_queued) {           /* it reads, slowly */
            s->slow_queued = queued;
            s->slow_since_ms = now;
        } else if (now - s->slow_since_ms >= HUB_SLOW_MS) {
            metric_add(&metric_slow, 1);
            sub_end(s);
            topic_drop_if_unused(t);
        }
    }
}

static void tick_pings(struct hub *h, int64_t now)
{
    list_foreach(s, &h->pings, struct sub, in_ping) {
        if (s->ping_due_ms > now)
            break;                                      /* ordered by due time: the interval is one for all */
        if (s->stream && !s->fresh)
            (void)sub_write(s, ping_frame, sizeof ping_frame - 1);
        s->fresh = false;
        s->ping_due_ms = now + HUB_PING_MS;
        list_del(&s->in_ping);
        list_add_tail(&h->pings, &s->in_ping);
    }
}

static void on_tick(struct ev_timer *timer)
{
    struct hub *h = container_of(timer, struct hub, tick);
    int64_t now = ev_now_ms(h->conf.ev);
    tick_slow(h, now);
    tick_pings(h, now);
    list_foreach(t, &h->failed, struct topic, in_failed) {
        list_del(&t->in_failed);
        kick(t);
        topic_drop_if_unused(t);
    }
    if (h->n_subs)
        ev_timer_set(h->conf.ev, &h->tick, TICK_MS, on_tick);
}

/* ---- coming and going ---- */
static void on_start(void *ctx, struct http_stream *stream)
{
    struct sub *s = ctx;
    s->stream = stream;
    kick(s->topic);
}

static void on_close(void *ctx, struct http_stream *stream)
{
    struct sub *s = ctx;
    struct topic *t = s->topic;
    s->stream = stream;
    sub_end(s);
    topic_drop_if_unused(t);
}

static void on_drain(void *ctx, struct http_stream *stream)
{
    struct sub *s = ctx;
    (void)http_stream_write(stream, drain_frame, sizeof drain_frame - 1);
    on_close(s, stream);
}

static void arrive(void *arg)
{
    struct arrival *a = arg;
    struct hub *h = a->hub;
    struct sub *s = a->sub;
    s->topic = topic_get(h, a->id);
    s->seen = 0;                     /* versions start at 1: it is read for at once */
    s->ping_due_ms = ev_now_ms(h->conf.ev) + HUB_PING_MS;
    list_init(&s->in_slow);
    list_add_tail(&s->topic->subs, &s->in_topic);
    list_add_tail(&h->pings, &s->in_ping);
    h->n_subs++;
    metric_add(&metric_subs, 1);
    if (!ev_timer_armed(&h->tick))
        ev_timer_set(h->conf.ev, &h->tick, TICK_MS, on_tick);
    struct http_stream_conf conf = {
        .status = 200, .content_type = "text/event-stream", .headers = a->headers, .queue_max = QUEUE_MAX,
        .on_start = on_start, .on_close = on_close, .on_drain = on_drain, .ctx = s,
    };
    http_stream_start(a->req, &conf);
    free(a->headers);
    free(a);
}

int hub_subscribe(struct hub *h, struct http_req *req, const char *session_id, int64_t after_seq, unsigned deltas, bool ended, const char *headers)
{
    if (atomic_fetch_add(&h->n_all, 1) >= HUB_SUBS_MAX) {
        atomic_fetch_sub(&h->n_all, 1);
        return RC_LIMIT;
    }
    size_t n = strlen(session_id) + 1;
    struct arrival *a = xcalloc(1, sizeof *a + n);
    memcpy(a->id, session_id, n);
    a->hub = h;
    a->req = req;
    a->headers = str_dup(headers);
    a->sub = xcalloc(1, sizeof *a->sub);
    a->sub->cursor = after_seq;
    a->sub->deltas = (uint8_t)deltas;
    a->sub->ended = ended;
    ev_post(h->conf.ev, arrive, a);
    return RC_OK;
}

size_t hub_subscribers(const struct hub *h)
{
    return h->n_subs;
}

int hub_new(const struct hub_conf *c, struct hub **ret, struct err *e)
{
    (void)e;
    struct hub *h = xcalloc(1, sizeof *h);
    h->conf = *c;
    for (size_t i = 0; i < TOPIC_BUCKETS; i++)
        list_init(&h->bucket[i]);
    list_init(&h->pings);
    list_init(&h->slow);
    list_init(&h->failed);
    *ret = h;
    return RC_OK;
}

void hub_free(struct hub *h)
{
    if (!h)
        return;
    ev_timer_stop(&h->tick);
    for (size_t i = 0; i < TOPIC_BUCKETS; i++)
        list_foreach(t, &h->bucket[i], struct topic, node) {
            list_foreach(s, &t->subs, struct sub, in_topic) {
                s->stream = NULL;    /* the server that owned it is gone */
                sub_end(s);
            }
            t->busy = false;
            topic_drop_if_unused(t);
        }
    free(h);
}
