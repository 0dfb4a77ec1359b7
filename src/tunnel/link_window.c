/* tunnel/link_window.c - how much a stream may send us before its reader takes it. Too little and a long way starves a fast stream (256 KiB at 60 ms is
 * 35 Mbit/s); too much and readers that stop cost memory. So a window grows only as far as the stream's measured rate and the link's round-trip time
 * ask for, all of them share a budget, and streams that no longer need it give it back. */
#include "base/clock.h"
#include "tunnel/link_internal.h"

#define WINDOW_STEP (64 * KIB)
#define SHRINK_TICKS 3      /* ticks in a row with little traffic */

static void grow(struct link_stream *s, uint64_t target)
{
    struct link_budget *b = s->link->budget;
    if (!b || b->used >= b->max)
        return;
    uint64_t most = 2 * (uint64_t)s->window, room = b->max - b->used;
    target = target < most ? target : most;
    target = target < LINK_WINDOW_MAX ? target : LINK_WINDOW_MAX;
    uint64_t more = target > s->window ? target - s->window : 0;
    more = (more < room ? more : room) / WINDOW_STEP * WINDOW_STEP;
    if (more == 0)
        return;
    if (nghttp2_session_set_local_window_size(s->link->h2, NGHTTP2_FLAG_NONE, s->id, (int32_t)(s->window + more)) != 0)
        return;
    s->link->n_grown += s->window == LINK_WINDOW_MIN && s->excess == 0;
    s->window += (uint32_t)more;
    b->used += more;
}

/* `n` bytes went to the reader. Measures over half a window at a time. */
void window_delivered(struct link_stream *s, size_t n)
{
    struct link *l = s->link;
    s->since += (uint32_t)n;
    if (s->since < s->window / 2 || s->remote_end)
        return;
    int64_t now = clock_mono_us();
    if (now - l->rtt_at_us > LINK_RTT_FRESH_US)
        link_h2_ping(l);
    if (s->mark_us && l->rtt_us && s->excess == 0) {
        int64_t took = now > s->mark_us ? now - s->mark_us : 1;
        uint64_t bdp = (uint64_t)s->since * (uint64_t)l->rtt_us / (uint64_t)took;
        if (2 * bdp > s->window)
            grow(s, 2 * bdp);
    }
    s->mark_us = now;
    s->since = 0;
}

/* After a window was made smaller, what the peer was promised before is used up by what it sends: only then it is given back. */
void window_received(struct link_stream *s, size_t n)
{
    if (s->excess == 0)
        return;
    uint32_t part = n < s->excess ? (uint32_t)n : s->excess;
    s->excess -= part;
    s->link->budget->used -= part;
    s->link->n_grown -= s->excess == 0 && s->window == LINK_WINDOW_MIN;
}

void window_give_back(struct link_stream *s)
{
    uint64_t held = (uint64_t)s->window - LINK_WINDOW_MIN + s->excess;
    if (held == 0 || !s->link)
        return;
    s->link->budget->used -= held;
    s->link->n_grown--;
    s->window = LINK_WINDOW_MIN;
    s->excess = 0;
}

/* Every LINK_PING_MS: grown windows of streams that moved less than a quarter of one lately. */
void window_tick(struct link *l)
{
    if (l->n_grown == 0 || ++l->turns % SHRINK_TICKS)
        return;
    int64_t now = clock_mono_us();
    list_foreach(s, &l->all, struct link_stream, all) {
        if (s->window == LINK_WINDOW_MIN || s->excess || !s->h2_open || s->in.n > 0 || now - s->mark_us < SHRINK_TICKS * LINK_PING_MS * INT64_C(1000))
            continue;
        if (nghttp2_session_set_local_window_size(l->h2, NGHTTP2_FLAG_NONE, s->id, LINK_WINDOW_MIN) != 0)
            continue;
        s->excess = s->window - (uint32_t)LINK_WINDOW_MIN;
        s->window = LINK_WINDOW_MIN;
    }
}
