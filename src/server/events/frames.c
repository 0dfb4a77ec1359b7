#include "server/events/frames.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/random.h"
#include "base/str.h"
#include "http/sse.h"
#include "server/events/hub.h"
#include "wire/event.h"

#define ROWS_PER_READ 256
#define ROWS_MAX 65536           /* for a log whose old queued events were consumed all at once */
#define ARENA_MAX (256 * MIB)

/* One appearance of a record. */
struct show { int64_t pos, processed_ms; const struct store_event *ev; };

static int by_pos(const void *a, const void *b)
{
    const struct show *x = a, *y = b;
    return (x->pos > y->pos) - (x->pos < y->pos);
}

static bool is_terminal(const char *type)
{
    return str_eq(type, "session.status_terminated") || str_eq(type, "session.deleted");
}

static size_t shows_of(const struct store_event *rows, size_t n, int64_t from, int64_t upto, struct show *out)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        const struct store_event *ev = &rows[i];
        bool twice = ev->processed_seq != ev->seq;
        if (ev->seq > from && ev->seq <= upto)
            out[k++] = (struct show){ ev->seq, twice ? -1 : ev->processed_ms, ev };
        if (twice && ev->processed_seq > from && ev->processed_seq <= upto)
            out[k++] = (struct show){ ev->processed_seq, ev->processed_ms, ev };
    }
    qsort(out, k, sizeof *out, by_pos);
    return k;
}

static int render(struct frames *f, const struct show *s)
{
    struct buf json;
    char id[24];
    snprintf(id, sizeof id, "%lld", (long long)s->pos);
    buf_init(&json, HUB_FRAME_MAX);
    int rc = event_render(&json, s->ev->body, strlen(s->ev->body), s->processed_ms);
    size_t start = buf_len(&f->text);
    if (rc == RC_OK)
        rc = sse_write(&f->text, id, s->ev->type, buf_data(&json), buf_len(&json));
    buf_done(&json);
    if (rc == RC_OK)
        f->frame[f->n++] = (struct frame){ s->pos, start, buf_len(&f->text), is_terminal(s->ev->type) };
    return rc;
}

static void render_deleted(struct frames *f)
{
    char id[ID_MAX], json[256], now[RFC3339_MAX];
    id_new("sevt", id);
    rfc3339_format(clock_now_ms(), now);
    int n = snprintf(json, sizeof json, "{\"id\":\"%s\",\"type\":\"session.deleted\",\"processed_at\":\"%s\"}", id, now);
    (void)sse_write(&f->text, NULL, "session.deleted", json, (size_t)n);
}

/* Rows past `from`. With a full page only positions up to the last row's own are complete: later consumptions come again. */
static int read_rows(struct arena *a, struct store *st, const char *session_id, int64_t from, struct store_event **ret, size_t *ret_n, int64_t *ret_upto)
{
    for (int limit = ROWS_PER_READ; limit <= ROWS_MAX; limit *= 4) {
        struct err e;
        TRY(st->ops->event_scan(st, a, session_id, from, limit, true, ret, ret_n, &e));
        *ret_upto = INT64_MAX;
        if (*ret_n < (size_t)limit)
            return RC_OK;
        *ret_upto = (*ret)[*ret_n - 1].seq;
        if (*ret_upto > from)
            return RC_OK;
    }
    return RC_LIMIT;
}

static int read_some(struct frames *f, struct arena *a, struct store *st, const char *session_id, int64_t from, size_t bytes_max)
{
    struct store_event *rows = NULL;
    size_t n = 0;
    int64_t upto = INT64_MAX;
    TRY(read_rows(a, st, session_id, from, &rows, &n, &upto));
    if (n == 0) {
        struct store_session s;
        struct err e;
        int rc = st->ops->session_get(st, a, session_id, &s, &e);
        if (rc == RC_NOT_FOUND)
            render_deleted(f);
        f->at_end = true;
        return rc;
    }
    struct show *shows = arena_alloc(a, 2 * n * sizeof *shows);
    f->frame = xcalloc(2 * n, sizeof *f->frame);
    if (!shows)
        return RC_NOMEM;
    size_t k = shows_of(rows, n, from, upto, shows), i = 0;
    for (; i < k && (i == 0 || buf_len(&f->text) < bytes_max); i++) {
        TRY(render(f, &shows[i]));
        f->upto = shows[i].pos;
    }
    if (i == k && upto != INT64_MAX && upto > f->upto)
        f->upto = upto;
    f->at_end = i == k && upto == INT64_MAX;
    return RC_OK;
}

void frames_read(struct frames *f, struct store *st, const char *session_id, int64_t from, size_t bytes_max)
{
    *f = (struct frames){ .upto = from };
    buf_init(&f->text, bytes_max + HUB_FRAME_MAX);
    struct arena *a = arena_new(64 * KIB, ARENA_MAX);
    f->rc = a ? read_some(f, a, st, session_id, from, bytes_max) : RC_NOMEM;
    if (f->rc == RC_NOT_FOUND && !buf_len(&f->text))     /* the scan itself said so */
        render_deleted(f);
    arena_free(a);
}

void frames_done(struct frames *f)
{
    buf_done(&f->text);
    free(f->frame);
}
