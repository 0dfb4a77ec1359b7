/* tunnel/link_h2.c - what nghttp2 calls. Nothing of the link's owner runs from here: events are noted and told when nghttp2 has returned, so that an
 * owner may free anything in any callback. */
#include <string.h>

#include "base/clock.h"
#include "tunnel/link_internal.h"
#include "tunnel/proto.h"

/* ---- streams ---- */

struct link_stream *stream_new(struct link *l, int32_t id)
{
    struct link_stream *s = xcalloc(1, sizeof *s);
    s->link = l;
    s->id = id;
    s->window = LINK_WINDOW_MIN;
    s->refs = 1;
    s->h2_open = s->counted = true;
    list_add_tail(&l->all, &s->all);
    list_init(&s->ready);
    l->n_h2++;
    l->n_streams++;
    return s;
}

void stream_unref(struct link_stream *s)
{
    if (--s->refs > 0)
        return;
    stream_drop(s);
    window_give_back(s);
    list_del(&s->all);
    list_del(&s->ready);
    free(s->open);
    free(s);
}

void stream_drop(struct link_stream *s)
{
    if (s->link)
        s->link->out_bytes -= s->out.n;
    ring_free(&s->in);
    ring_free(&s->out);
}

void stream_event(struct link_stream *s, unsigned ev)
{
    struct link *l = s->link;
    if (!l)
        return;
    s->events |= (uint8_t)ev;
    if (list_empty(&s->ready))
        list_add_tail(&l->ready, &s->ready);
    link_arm(l);
}

void stream_uncount(struct link_stream *s)
{
    if (!s->counted)
        return;
    s->counted = false;
    s->link->n_streams--;
}

void stream_h2_closed(struct link_stream *s)
{
    if (!s->h2_open)
        return;
    s->h2_open = false;
    s->link->n_h2--;
    s->link->n_echo -= s->echo;
    stream_uncount(s);
    stream_unref(s);
}

void stream_rst(struct link_stream *s, uint32_t code)
{
    if (!s->h2_open || !s->link || !s->link->h2)
        return;
    s->reset = true;
    if (nghttp2_submit_rst_stream(s->link->h2, NGHTTP2_FLAG_NONE, s->id, code) != 0)
        link_fail(s->link, RC_NOMEM, "the link is out of memory");
    link_arm(s->link);
}

/* ---- sending ---- */

static ssize_t on_data_wanted(nghttp2_session *h2, int32_t id, uint8_t *buf, size_t max, uint32_t *flags, nghttp2_data_source *source, void *ctx)
{
    (void)h2, (void)id, (void)buf;
    struct link_stream *s = source->ptr;
    struct link *l = ctx;
    if (s->out.n == 0 && !s->shut) {
        s->deferred = true;
        return NGHTTP2_ERR_DEFERRED;
    }
    if (buf_len(&l->out) >= LINK_OUT_FILL)
        return NGHTTP2_ERR_PAUSE;
    size_t n = s->out.n < max ? s->out.n : max;
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (s->shut && n == s->out.n) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        s->local_end = true;
    }
    return (ssize_t)n;
}

static int on_data_framed(nghttp2_session *h2, nghttp2_frame *frame, const uint8_t *head, size_t n, nghttp2_data_source *source, void *ctx)
{
    (void)h2, (void)frame;
    struct link_stream *s = source->ptr;
    struct link *l = ctx;
    if (n > s->out.n)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;      /* dropped since: it is being reset */
    if (buf_put(&l->out, head, 9) < 0)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    l->out_bytes -= n;
    while (n > 0) {
        struct slice front = ring_front(&s->out);
        size_t part = front.n < n ? front.n : n;
        if (buf_put(&l->out, front.p, part) < 0)
            return NGHTTP2_ERR_CALLBACK_FAILURE;
        ring_drop(&s->out, part);
        n -= part;
    }
    if (s->local_end && !s->owned && !s->remote_end)
        stream_rst(s, NGHTTP2_NO_ERROR);        /* all is sent and nobody here reads: the other end need not send more */
    if (s->want_write && s->out.n <= LINK_SEND_MAX / 2) {
        s->want_write = false;
        stream_event(s, SEV_WRITABLE);
    }
    return 0;
}

/* A refusal has left: the opener need not send more. Not before, since nghttp2 would take the reset for a reason to drop the answer. And where nghttp2 itself
 * complains about the peer, the link ends: both ends are ours, so the peer is broken or hostile. */
static int on_sent(nghttp2_session *h2, const nghttp2_frame *frame, void *ctx)
{
    struct link *l = ctx;
    struct link_stream *s;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
        if (frame->headers.cat != NGHTTP2_HCAT_RESPONSE || !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
            return 0;
        s = nghttp2_session_get_stream_user_data(h2, frame->hd.stream_id);
        if (s && !s->remote_end)
            stream_rst(s, NGHTTP2_NO_ERROR);
        return 0;
    case NGHTTP2_GOAWAY:
        if (frame->goaway.error_code != NGHTTP2_NO_ERROR)
            link_fail(l, RC_PROTO, "the peer broke HTTP/2: %.*s (%s)", (int)(frame->goaway.opaque_data_len < 100 ? frame->goaway.opaque_data_len : 100),
                      frame->goaway.opaque_data_len ? (const char *)frame->goaway.opaque_data : "", nghttp2_http2_strerror(frame->goaway.error_code));
        return 0;
    case NGHTTP2_RST_STREAM:        /* codes that this link never uses for its own resets, and that no race brings about */
        if (frame->rst_stream.error_code == NGHTTP2_PROTOCOL_ERROR || frame->rst_stream.error_code == NGHTTP2_FLOW_CONTROL_ERROR
            || frame->rst_stream.error_code == NGHTTP2_FRAME_SIZE_ERROR)
            link_fail(l, RC_PROTO, "the peer broke HTTP/2 on a stream (%s)", nghttp2_http2_strerror(frame->rst_stream.error_code));
        return 0;
    default:
        return 0;
    }
}

nghttp2_data_provider stream_provider(struct link_stream *s)
{
    return (nghttp2_data_provider){ .source.ptr = s, .read_callback = on_data_wanted };
}

void link_h2_ping(struct link *l)
{
    if (l->ping_us)
        return;
    static const uint8_t payload[8] = "outwork";
    l->ping_us = clock_mono_us();
    l->pinged_ms = ev_now_ms(l->ev);
    if (nghttp2_submit_ping(l->h2, NGHTTP2_FLAG_NONE, payload) != 0)
        link_fail(l, RC_NOMEM, "the link is out of memory");
}

/* ---- receiving ---- */

static struct link_stream *stream_of(const struct link *l, int32_t id)
{
    return id ? nghttp2_session_get_stream_user_data(l->h2, id) : NULL;
}

static int on_begin_headers(nghttp2_session *h2, const nghttp2_frame *frame, void *ctx)
{
    struct link *l = ctx;
    if (l->role != LINK_ACCEPTOR || frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    struct link_stream *s = stream_new(l, frame->hd.stream_id);
    s->open = xcalloc(1, sizeof *s->open);
    s->open->bad = true;                                                /* until an authority has come */
    if (nghttp2_session_set_stream_user_data(h2, s->id, s) != 0) {     /* it is gone already */
        stream_h2_closed(s);
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    return 0;
}

static bool is(const uint8_t *p, size_t n, const char *s)
{
    return strlen(s) == n && memcmp(p, s, n) == 0;
}

static int on_header(nghttp2_session *h2, const nghttp2_frame *frame, const uint8_t *name, size_t nn, const uint8_t *value, size_t vn, uint8_t flags, void *ctx)
{
    (void)h2, (void)flags;
    struct link *l = ctx;
    struct link_stream *s = stream_of(l, frame->hd.stream_id);
    if (!s)
        return 0;
    s->headers += (uint32_t)(nn + vn + 32);
    if (s->headers > LINK_HEADERS_MAX) {
        link_fail(l, RC_PROTO, "the peer sent more than %zu bytes of headers on one stream", LINK_HEADERS_MAX);
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    if (frame->headers.cat == NGHTTP2_HCAT_RESPONSE && is(name, nn, ":status")) {
        int64_t status;
        if (slice_to_i64((struct slice){ (const char *)value, vn }, 100, 599, &status) == RC_OK)
            s->status = (uint16_t)status;
    } else if (s->open && frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
        struct open_info *o = s->open;
        if (is(name, nn, ":method"))
            o->connect = is(value, vn, "CONNECT");
        else if (is(name, nn, ":authority"))
            o->bad = !link_authority(o->authority, value, vn);
        else if (is(name, nn, PROTO_H_CLIENT))
            (void)link_client(o->client, value, vn);
        else if (is(name, nn, PROTO_H_FORWARDED))
            o->forwarded = true;
    }
    return 0;
}

static int on_chunk(nghttp2_session *h2, uint8_t flags, int32_t id, const uint8_t *data, size_t n, void *ctx)
{
    (void)flags;
    struct link *l = ctx;
    struct link_stream *s = stream_of(l, id);
    if (nghttp2_session_consume_connection(h2, n) != 0)     /* credited on receipt: no reader can hold the others */
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (!s || s->reset)
        return 0;
    window_received(s, n);
    if (!s->owned && !s->open && !s->echo)                  /* nobody reads it any more, but our last bytes still go out */
        return nghttp2_session_consume_stream(h2, id, n) == 0 ? 0 : NGHTTP2_ERR_CALLBACK_FAILURE;
    if (!ring_put(&s->in, data, n)) {
        stream_rst(s, NGHTTP2_INTERNAL_ERROR);
        return 0;
    }
    stream_event(s, SEV_READABLE);
    return 0;
}

static void remote_end(struct link_stream *s)
{
    s->remote_end = true;
    stream_event(s, SEV_READABLE);
}

static void on_headers_frame(struct link *l, struct link_stream *s, const nghttp2_frame *frame)
{
    if (frame->headers.cat == NGHTTP2_HCAT_REQUEST && s->open)
        stream_event(s, SEV_OPEN);
    else if (l->role == LINK_OPENER && !s->replied && s->status >= 200) {
        s->replied = true;
        stream_event(s, SEV_REPLY);
    }
}

/* Counts what costs us work and moves no bytes. */
static void count_control(struct link *l)
{
    int64_t now = ev_now_ms(l->ev);
    if (now - l->window_began_ms >= LINK_PING_MS) {
        l->window_began_ms = now;
        l->n_control = 0;
    }
    if (++l->n_control > LINK_CONTROL_MAX)
        link_fail(l, RC_PROTO, "the peer sent more than %d control frames in %d s", LINK_CONTROL_MAX, LINK_PING_MS / 1000);
}

static void on_ping_answer(struct link *l)
{
    if (!l->ping_us)
        return;
    int64_t now = clock_mono_us(), us = now - l->ping_us;
    us = us > 0 ? us : 1;
    l->rtt_us = l->rtt_us ? (l->rtt_us * 7 + us) / 8 : us;
    l->rtt_us = l->rtt_us > 0 ? l->rtt_us : 1;
    l->rtt_at_us = now;
    l->ping_us = 0;
}

static int on_frame(nghttp2_session *h2, const nghttp2_frame *frame, void *ctx)
{
    (void)h2;
    struct link *l = ctx;
    struct link_stream *s = stream_of(l, frame->hd.stream_id);
    bool end = false;
    switch (frame->hd.type) {
    case NGHTTP2_DATA:
        end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
        if (!end && frame->hd.length == 0)
            count_control(l);
        break;
    case NGHTTP2_HEADERS:
        end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
        if (s)
            on_headers_frame(l, s, frame);
        break;
    case NGHTTP2_SETTINGS:
        count_control(l);
        if (frame->hd.flags & NGHTTP2_FLAG_ACK)
            l->settings_acked = true;
        else
            l->settings_got = true;
        l->ready_due = l->settings_acked && l->settings_got && !l->ready_said;
        break;
    case NGHTTP2_PING:
        if (frame->hd.flags & NGHTTP2_FLAG_ACK)
            on_ping_answer(l);
        count_control(l);
        break;
    case NGHTTP2_GOAWAY:
        if (!l->goaway_got)
            l->goaway_due = true;
        l->goaway_got = true;
        break;
    case NGHTTP2_RST_STREAM:
    case NGHTTP2_WINDOW_UPDATE:
        break;
    default:
        count_control(l);
        break;
    }
    if (end && s)
        remote_end(s);
    return 0;
}

static int on_stream_close(nghttp2_session *h2, int32_t id, uint32_t code, void *ctx)
{
    const struct link *l = ctx;
    struct link_stream *s = nghttp2_session_get_stream_user_data(h2, id);
    if (!s)
        return 0;
    (void)nghttp2_session_set_stream_user_data(h2, id, NULL);
    bool clean = code == NGHTTP2_NO_ERROR && s->local_end && s->remote_end && !s->reset;
    bool refused_by_us = l->role == LINK_ACCEPTOR && s->replied && s->status != 200;
    if (!clean && code == NGHTTP2_NO_ERROR && s->remote_end && !s->reset && s->owned && s->status == 200) {
        s->soft = true;
        s->link->out_bytes -= s->out.n;
        ring_free(&s->out);
        stream_event(s, SEV_READABLE | (s->in.n == 0 ? SEV_CLOSE : 0));
    } else if (!clean) {
        s->reset = true;
        s->error_code = code;
        stream_drop(s);
        if (s->owned && !refused_by_us)
            stream_event(s, SEV_CLOSE);
    }
    stream_h2_closed(s);
    return 0;
}

/* Both ends are ours: a frame that breaks the rules means a broken or hostile peer, so the link ends. Not for what a race can bring. */
static int on_invalid(nghttp2_session *h2, const nghttp2_frame *frame, int code, void *ctx)
{
    (void)h2, (void)frame;
    if (code != NGHTTP2_ERR_REFUSED_STREAM && code != NGHTTP2_ERR_STREAM_CLOSED)
        link_fail(ctx, RC_PROTO, "the peer broke HTTP/2: %s (frame type %u)", nghttp2_strerror(code), frame->hd.type);
    return 0;
}

/* ---- the session ---- */

static int session_new(struct link *l)
{
    nghttp2_session_callbacks *cb = NULL;
    nghttp2_option *o = NULL;
    int rc = nghttp2_session_callbacks_new(&cb);
    if (rc == 0)
        rc = nghttp2_option_new(&o);
    if (rc == 0) {
        nghttp2_session_callbacks_set_send_data_callback(cb, on_data_framed);
        nghttp2_session_callbacks_set_on_frame_send_callback(cb, on_sent);
        nghttp2_session_callbacks_set_on_begin_headers_callback(cb, on_begin_headers);
        nghttp2_session_callbacks_set_on_header_callback(cb, on_header);
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_chunk);
        nghttp2_session_callbacks_set_on_frame_recv_callback(cb, on_frame);
        nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_stream_close);
        nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(cb, on_invalid);
        nghttp2_option_set_no_auto_window_update(o, 1);
        nghttp2_option_set_no_closed_streams(o, 1);
        nghttp2_option_set_peer_max_concurrent_streams(o, LINK_STREAMS_MAX);
        nghttp2_option_set_max_outbound_ack(o, LINK_ACKS_MAX);
        nghttp2_option_set_max_settings(o, LINK_SETTINGS_MAX);
        nghttp2_option_set_max_continuations(o, LINK_CONTINUATIONS_MAX);
        nghttp2_option_set_stream_reset_rate_limit(o, LINK_RESETS_BURST, LINK_RESETS_RATE);
        rc = l->role == LINK_OPENER ? nghttp2_session_client_new2(&l->h2, cb, l, o) : nghttp2_session_server_new2(&l->h2, cb, l, o);
    }
    nghttp2_option_del(o);
    nghttp2_session_callbacks_del(cb);
    return rc;
}

int link_h2_new(struct link *l, struct err *e)
{
    const nghttp2_settings_entry acceptor[] = {
        { NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, LINK_STREAMS_MAX }, { NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, LINK_WINDOW_MIN },
        { NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, LINK_HEADERS_MAX },
    }, opener[] = {
        { NGHTTP2_SETTINGS_ENABLE_PUSH, 0 }, { NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 0 }, { NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, LINK_WINDOW_MIN },
        { NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, LINK_HEADERS_MAX },
    };
    if (session_new(l) != 0)
        return err_set(e, RC_NOMEM, "the link is out of memory");
    int rc = l->role == LINK_OPENER ? nghttp2_submit_settings(l->h2, NGHTTP2_FLAG_NONE, opener, COUNT_OF(opener))
                                    : nghttp2_submit_settings(l->h2, NGHTTP2_FLAG_NONE, acceptor, COUNT_OF(acceptor));
    if (rc == 0)
        rc = nghttp2_session_set_local_window_size(l->h2, NGHTTP2_FLAG_NONE, 0, INT32_MAX);     /* the connection never holds a stream back */
    return rc == 0 ? RC_OK : err_set(e, RC_NOMEM, "the link is out of memory");
}
