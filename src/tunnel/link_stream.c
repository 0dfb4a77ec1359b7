/* tunnel/link_stream.c - what the owner of a stream calls. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "tunnel/link_internal.h"
#include "tunnel/proto.h"

/* "host:port" in lower case: a name or an IPv4 address, and a port. */
bool link_authority(char out[LINK_AUTHORITY_MAX], const uint8_t *p, size_t n)
{
    size_t host = n;
    while (host > 0 && p[host - 1] != ':')
        host--;
    if (host < 2 || host > 256 || n - host < 1 || n - host > 5)
        return false;
    unsigned port = 0;
    for (size_t i = host; i < n; i++) {
        if (p[i] < '0' || p[i] > '9')
            return false;
        port = port * 10 + (unsigned)(p[i] - '0');
    }
    if (port < 1 || port > 65535 || p[host] == '0')
        return false;
    char before = '.';
    for (size_t i = 0; i + 1 < host; i++) {
        char c = (char)(p[i] >= 'A' && p[i] <= 'Z' ? p[i] - 'A' + 'a' : p[i]);
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || (c == '.' && before != '.')))
            return false;
        out[i] = before = c;
    }
    memcpy(out + host - 1, p + host - 1, n - host + 1);
    out[n] = '\0';
    return before != '.';
}

/* A numeric address; anything else is kept from the log lines and headers it would end up in. */
bool link_client(char out[LINK_CLIENT_MAX], const uint8_t *p, size_t n)
{
    if (n >= LINK_CLIENT_MAX)
        return false;
    for (size_t i = 0; i < n; i++)
        if (!isxdigit(p[i]) && p[i] != ':' && p[i] != '.' && p[i] != '[' && p[i] != ']')
            return false;
    memcpy(out, p, n);
    out[n] = '\0';
    return true;
}

#define HEADER(n, v, v_n) { (uint8_t *)(uintptr_t)(n), (uint8_t *)(uintptr_t)(v), sizeof(n) - 1, (v_n), NGHTTP2_NV_FLAG_NONE }

int link_stream_open(struct link *l, const struct link_open *o, const struct link_stream_ops *ops, void *ctx, struct link_stream **ret, struct err *e)
{
    if (!link_usable(l))
        return err_set(e, RC_CLOSED, "the link takes no new streams");
    uint32_t theirs = nghttp2_session_get_remote_settings(l->h2, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
    if (l->n_h2 >= LINK_STREAMS_MAX || l->n_h2 >= theirs)
        return err_set(e, RC_LIMIT, "the link has %zu streams open, as many as it may", l->n_h2);
    char authority[LINK_AUTHORITY_MAX], client[LINK_CLIENT_MAX];
    size_t n = 2;
    if (!link_authority(authority, (const uint8_t *)o->authority, strlen(o->authority)))
        return err_set(e, RC_INVALID, "the authority of a stream is no host name with a port");
    nghttp2_nv nv[4] = { HEADER(":method", "CONNECT", 7), HEADER(":authority", authority, strlen(authority)) };
    if (o->client && o->client[0] && link_client(client, (const uint8_t *)o->client, strlen(o->client)))
        nv[n++] = (nghttp2_nv)HEADER(PROTO_H_CLIENT, client, strlen(client));
    if (o->forwarded)
        nv[n++] = (nghttp2_nv)HEADER(PROTO_H_FORWARDED, "1", 1);
    struct link_stream *s = stream_new(l, 0);
    const nghttp2_data_provider data = stream_provider(s);
    int32_t id = nghttp2_submit_request(l->h2, NULL, nv, n, &data, s);
    if (id < 0) {
        stream_h2_closed(s);
        return err_set(e, RC_NOMEM, "open a stream: %s", nghttp2_strerror(id));
    }
    s->id = id;
    s->ops = ops;
    s->ctx = ctx;
    s->owned = true;
    s->refs++;
    link_arm(l);
    *ret = s;
    if (id > LINK_LAST_ID)
        link_goaway(l);     /* long before the ids run out; the gateway opens another link */
    return RC_OK;
}

void link_stream_attach(struct link_stream *s, const struct link_stream_ops *ops, void *ctx)
{
    if (!s->owned)
        s->refs++;
    s->owned = true;
    s->ops = ops;
    s->ctx = ctx;
    if (s->in.n > 0 || s->remote_end)
        stream_event(s, SEV_READABLE);
}

void link_reply(struct link_stream *s, int status)
{
    struct link *l = s->link;
    if (!link_alive(l) || l->role != LINK_ACCEPTOR || s->replied || !s->h2_open || s->reset)
        return;
    char text[16];
    int n = snprintf(text, sizeof text, "%d", status);
    const nghttp2_nv nv[] = { HEADER(":status", text, (size_t)n) };
    const nghttp2_data_provider data = stream_provider(s);
    s->replied = true;
    s->status = (uint16_t)status;
    if (status != 200)
        s->shut = s->local_end = true;
    if (nghttp2_submit_response(l->h2, s->id, nv, 1, status == 200 ? &data : NULL) != 0)
        link_fail(l, RC_NOMEM, "the link is out of memory");
    link_arm(l);
}

struct link *link_stream_link(const struct link_stream *s)
{
    return s->link;
}

struct slice link_peek(const struct link_stream *s)
{
    return ring_front(&s->in);
}

void link_consume(struct link_stream *s, size_t n)
{
    if (n == 0)
        return;
    ring_drop(&s->in, n);
    struct link *l = s->link;
    if (s->soft && s->in.n == 0)
        stream_event(s, SEV_CLOSE);
    if (!s->h2_open || !link_alive(l) || s->reset)
        return;
    if (nghttp2_session_consume_stream(l->h2, s->id, n) != 0)
        link_fail(l, RC_NOMEM, "the link is out of memory");
    window_delivered(s, n);
    if (!l->busy && nghttp2_session_want_write(l->h2))
        link_arm(l);
}

bool link_eof(const struct link_stream *s)
{
    return s->remote_end && s->in.n == 0 && !s->reset;
}

static bool writable(const struct link_stream *s)
{
    return link_alive(s->link) && s->h2_open && !s->shut && !s->reset;
}

/* Bytes were queued, or the end was: nghttp2 asks again. */
static void resume(struct link_stream *s)
{
    if (s->deferred) {
        s->deferred = false;
        if (nghttp2_session_resume_data(s->link->h2, s->id) != 0)
            link_fail(s->link, RC_NOMEM, "the link is out of memory");
    }
    link_arm(s->link);
}

size_t link_write(struct link_stream *s, const void *p, size_t n)
{
    if (!writable(s))
        return 0;
    size_t part = LINK_SEND_MAX - s->out.n < n ? LINK_SEND_MAX - s->out.n : n;
    if (part > 0 && !ring_put(&s->out, p, part))
        part = 0;
    s->want_write = s->want_write || part < n;
    if (part > 0) {
        s->link->out_bytes += part;
        resume(s);
    }
    return part;
}

char *link_write_reserve(struct link_stream *s, size_t max, size_t *ret_n)
{
    if (!writable(s))
        return NULL;
    size_t n = LINK_SEND_MAX - s->out.n < max ? LINK_SEND_MAX - s->out.n : max, room = 0;
    if (n == 0 || !ring_grow(&s->out, n)) {
        s->want_write = true;
        return NULL;
    }
    char *p = ring_back(&s->out, &room);
    *ret_n = room < n ? room : n;
    return p;
}

size_t link_write_room(const struct link_stream *s)
{
    return writable(s) ? LINK_SEND_MAX - s->out.n : 0;
}

void link_write_commit(struct link_stream *s, size_t n)
{
    ring_commit(&s->out, n);
    if (n == 0 || !s->link)
        return;
    s->link->out_bytes += n;
    resume(s);
}

void link_shutdown(struct link_stream *s)
{
    if (!writable(s))
        return;
    s->shut = true;
    resume(s);
}

void link_stream_reset(struct link_stream *s)
{
    if (!s || !s->owned)
        return;
    if (s->link && s->h2_open && s->link->h2 && !s->reset) {
        stream_drop(s);
        stream_rst(s, NGHTTP2_CANCEL);
    }
    link_stream_free(s);
}

/* When our side was ended the stream still sends what is queued, without an owner; then the other end is told to send no more. */
void link_stream_free(struct link_stream *s)
{
    if (!s || !s->owned)
        return;
    s->owned = false;
    s->ops = NULL;
    s->ctx = NULL;
    s->events &= SEV_OPEN;
    ring_free(&s->in);
    struct link *l = s->link;
    if (l && s->h2_open && l->h2 && !s->reset && !s->shut) {
        stream_drop(s);
        stream_rst(s, s->replied || l->role == LINK_OPENER ? NGHTTP2_CANCEL : NGHTTP2_REFUSED_STREAM);
    }
    bool refusal = s->replied && s->status != 200;      /* on_sent() resets it behind the answer; now, the reset would replace the answer */
    if (l && s->h2_open && l->h2 && !s->reset && s->local_end && !s->remote_end && !refusal)
        stream_rst(s, NGHTTP2_NO_ERROR);
    stream_unref(s);
}
