/* server/api/events.c - a session's events and its primary thread (api.md 5, 6, 7). */
#include <string.h>

#include "server/api/call.h"
#include "server/events/hub.h"
#include "wire/event.h"

#define LIMIT_DEFAULT 1000
#define CHUNK_ROWS 100               /* read at once: one arena's worth */
#define PAGE_BYTES_MAX (32 * MIB)    /* a page ends early (with next_page) beyond this */
#define EVENT_TEXT_MAX (48 * MIB)

/* ---- list ---- */
static int filter_read(struct call *c, struct store_event_filter *f, struct cursor *cur, const char *scope)
{
    json_t *types = json_object_get(c->query, "types"), *v;
    size_t i;
    f->desc = str_eq(js_str(c->query, "order"), "desc");
    f->gt_ms = call_time(c, "created_at[gt]");
    f->gte_ms = call_time(c, "created_at[gte]");
    f->lt_ms = call_time(c, "created_at[lt]");
    f->lte_ms = call_time(c, "created_at[lte]");
    const char **list = arena_zalloc(c->arena, (json_array_size(types) + 1) * sizeof *list);
    if (!list)
        return call_fail(c, RC_NOMEM, "out of memory");
    json_array_foreach(types, i, v)
        list[i] = json_string_value(v);
    f->types = list;
    f->n_types = json_array_size(types);
    const char *page = js_str(c->query, "page");
    if (!page)
        return RC_OK;
    TRY(cursor_decode(page, CURSOR_EVENTS, !f->desc, scope, cur, &c->e));
    f->has_after = true;
    f->after_ord = cur->pos;
    return RC_OK;
}

/* Appends rows until `left` are shown or the page is large enough. *ret_more: the log goes on. */
static int list_chunks(struct call *c, const char *session_id, struct store_event_filter *f, int left, bool *ret_more)
{
    bool first = true;
    for (*ret_more = true; *ret_more && left > 0 && buf_len(&c->out) < PAGE_BYTES_MAX;) {
        AUTO_PTR(arena) a = arena_new(64 * KIB, CALL_ARENA_MAX);
        struct store_event *rows = NULL;
        size_t n = 0;
        int want = left < CHUNK_ROWS ? left : CHUNK_ROWS;
        if (!a)
            return call_fail(c, RC_NOMEM, "out of memory");
        f->limit = want + 1;
        TRY(c->store->ops->event_list(c->store, a, session_id, f, &rows, &n, &c->e));
        *ret_more = n > (size_t)want;
        n = *ret_more ? (size_t)want : n;
        for (size_t i = 0; i < n; i++) {
            if (!first)
                buf_putc(&c->out, ',');
            first = false;
            TRY(event_render(&c->out, rows[i].body, strlen(rows[i].body), rows[i].processed_seq ? rows[i].processed_ms : -1));
            f->has_after = true;
            f->after_ord = store_event_ord(&rows[i]);
            left--;
            if (buf_len(&c->out) >= PAGE_BYTES_MAX && (i + 1 < n || *ret_more)) {
                *ret_more = true;
                return RC_OK;
            }
        }
    }
    return RC_OK;
}

static int list(struct call *c, const struct store_session *s)
{
    struct store_event_filter f = { .gt_ms = -1, .gte_ms = -1, .lt_ms = -1, .lte_ms = -1 };
    struct cursor cur = { 0 };
    bool more = false;
    TRY(filter_read(c, &f, &cur, s->id));
    buf_puts(&c->out, "{\"data\":[");
    TRY(list_chunks(c, s->id, &f, (int)js_int(c->query, "limit", LIMIT_DEFAULT), &more));
    struct page p = { .kind = CURSOR_EVENTS, .scope = s->id, .st = { .asc = !f.desc } };
    struct page_key last = { f.after_ord, f.has_after ? "" : NULL };
    page_end(&p, &c->out, more, false, last, last);
    return buf_ok(&c->out) ? RC_OK : call_fail(c, RC_LIMIT, "the page is too large; ask for fewer events");
}

int events_list(struct call *c)
{
    struct store_session s;
    TRY(call_session(c, &s));
    return list(c, &s);
}

/* ---- send ---- */

/* A worker answers tool calls. Messages, confirmations and the rest are the client's: a stolen worker credential must not approve what a
 * person is asked to approve. */
static int check_worker_types(struct call *c, json_t *events)
{
    size_t i;
    json_t *v;
    json_array_foreach(events, i, v) {
        const char *type = js_str(v, "type");
        if (!str_eq(type, "user.tool_result") && !str_eq(type, "user.custom_tool_result"))
            return call_fail(c, RC_DENIED, "events.%zu.type: '%s' may not be sent with worker credentials", i, type);
    }
    return RC_OK;
}

int events_send(struct call *c)
{
    struct store_session s;
    json_t *events = json_object_get(c->body, "events");
    struct buf data;
    TRY(call_session(c, &s));
    if (call_is_worker(c))
        TRY(check_worker_types(c, events));
    buf_init(&data, EVENT_TEXT_MAX);
    int rc = inbox_send(c->api->conf.loop, s.id, events, call_is_worker(c), &data, &c->e);
    if (rc == RC_OK) {
        buf_puts(&c->out, "{\"data\":");
        buf_put(&c->out, buf_data(&data), buf_len(&data));
        buf_putc(&c->out, '}');
    }
    buf_done(&data);
    return rc;
}

/* ---- stream ---- */
static int read_deltas(struct call *c, unsigned *ret)
{
    size_t i;
    json_t *v;
    *ret = 0;
    json_array_foreach(json_object_get(c->query, "event_deltas"), i, v) {
        if (str_eq(json_string_value(v), "agent.message"))
            *ret |= HUB_DELTA_MESSAGE;
        else if (str_eq(json_string_value(v), "agent.thinking"))
            *ret |= HUB_DELTA_THINKING;
        else
            return call_fail(c, RC_INVALID, "event_deltas.%zu: expected one of 'agent.message', 'agent.thinking'", i);
    }
    return RC_OK;
}

/* "last_event_id" of the query: for clients that cannot set the header. */
static struct slice query_last_id(struct slice query)
{
    static const char key[] = "last_event_id=";
    while (query.n) {
        const char *amp = memchr(query.p, '&', query.n);
        size_t n = amp ? (size_t)(amp - query.p) : query.n;
        if (n >= sizeof key - 1 && memcmp(query.p, key, sizeof key - 1) == 0)
            return (struct slice){ query.p + sizeof key - 1, n - (sizeof key - 1) };
        query.p += n + (amp != NULL);
        query.n -= n + (amp != NULL);
    }
    return (struct slice){ NULL, 0 };
}

/* The position after which the client wants events: what it saw last, or now. */
static int64_t start_position(struct call *c, const struct store_session *s)
{
    int64_t seq;
    struct slice last = call_header(c, "last-event-id");
    if (!last.p)
        last = query_last_id(http_req_query(c->req));
    if (last.p && slice_to_i64(last, 0, INT64_MAX, &seq) == RC_OK)
        return seq < s->last_seq ? seq : s->last_seq;
    return s->last_seq;
}

static int stream(struct call *c, const struct store_session *s)
{
    unsigned deltas;
    TRY(read_deltas(c, &deltas));
    char *headers = arena_printf(c->arena, "cache-control: no-cache\r\nx-accel-buffering: no\r\nrequest-id: %s\r\n%s", c->request_id, c->api->base_headers);
    if (!headers)
        return call_fail(c, RC_NOMEM, "out of memory");
    bool ended = s->status == SESSION_TERMINATED;
    if (hub_subscribe(c->api->conf.hub, c->req, s->id, start_position(c, s), deltas, ended, headers) != RC_OK)
        return call_fail(c, RC_AGAIN, "too many event streams are open");
    call_free(c);
    return CALL_TAKEN;
}

int events_stream(struct call *c)
{
    struct store_session s;
    TRY(call_session(c, &s));
    return stream(c, &s);
}

/* ---- threads: the primary one is the session ---- */
static int primary_thread(struct call *c, struct store_session *ret)
{
    TRY(call_session(c, ret));
    if (!str_eq(ret->thread_id, c->param[1]))
        return call_fail(c, RC_NOT_FOUND, "Thread '%.60s' not found.", c->param[1]);
    return RC_OK;
}

int threads_list(struct call *c)
{
    struct store_session s;
    json_t *statuses = json_object_get(c->query, "statuses"), *v;
    size_t i;
    TRY(call_session(c, &s));
    bool shown = json_array_size(statuses) == 0;
    json_array_foreach(statuses, i, v)
        shown = shown || str_eq(json_string_value(v), session_status_name(s.status));
    buf_puts(&c->out, "{\"data\":[");
    if (shown)
        view_thread(&c->out, &s, c->now_ms);
    buf_puts(&c->out, "],\"next_page\":null}");
    return RC_OK;
}

int threads_get(struct call *c)
{
    struct store_session s;
    TRY(primary_thread(c, &s));
    view_thread(&c->out, &s, c->now_ms);
    return RC_OK;
}

int threads_archive(struct call *c)
{
    struct store_session s;
    TRY(primary_thread(c, &s));
    return call_fail(c, RC_INVALID, "Thread '%.60s' is the session's primary thread; archive the session instead.", c->param[1]);
}

int threads_events(struct call *c)
{
    struct store_session s;
    TRY(primary_thread(c, &s));
    return list(c, &s);
}

int threads_stream(struct call *c)
{
    struct store_session s;
    TRY(primary_thread(c, &s));
    return stream(c, &s);
}
