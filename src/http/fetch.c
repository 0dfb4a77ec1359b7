/* libcurl's multi interface driven by our loop. libcurl's callbacks only note what happened; the caller's callbacks run after libcurl has
 * returned, so that they may start and cancel any call. */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "http/fetch_internal.h"

#define CACHE_DEFAULT 64        /* connections kept for the next call */

struct sock { struct ev_io io; struct fetch *f; struct list link; };

void fetch_ready(struct fetch_call *c)
{
    if (list_empty(&c->ready))
        list_add_tail(&c->f->ready, &c->ready);
}

void fetch_end(struct fetch_call *c, int rc)
{
    if (c->ended)
        return;
    c->ended = true;
    c->end_rc = rc;
    fetch_ready(c);
}

/* Takes the call out of libcurl and of every list. Nothing is reported. */
static void detach(struct fetch_call *c)
{
    const struct fetch_curl *curl = c->f->curl;
    ev_timer_stop(&c->timer);
    list_del(&c->link);
    list_del(&c->ready);
    if (c->added)
        (void)curl->multi_remove_handle(c->f->multi, c->easy);
    c->added = false;
    if (c->easy)
        curl->easy_cleanup(c->easy);
    c->easy = NULL;
    fetch_wipe_headers(c);
    curl->slist_free_all(c->connect_to);
    c->connect_to = NULL;
}

static void call_free(struct fetch_call *c)
{
    buf_done(&c->head);
    buf_done(&c->body);
    buf_done(&c->pending);
    free(c);
}

static void finish(struct fetch_call *c)
{
    detach(c);
    c->in_callback = true;      /* fetch_cancel() in on_done() has nothing left to do */
    c->cancelled = true;
    int64_t retry = c->retry_after_exact_ms >= 0 ? c->retry_after_exact_ms : c->retry_after_ms;
    c->req.on_done(c->req.ctx, c->end_rc, c->status, retry, c->request_id[0] ? c->request_id : NULL, &c->body, &c->err);
    call_free(c);
}

/* ---- handing over, outside libcurl ---- */

static void hand_over_head(struct fetch_call *c)
{
    c->head_told = true;
    if (!c->req.on_head)
        return;
    c->in_callback = true;
    c->req.on_head(c->req.ctx, c->status, (struct slice){ buf_data(&c->head), buf_len(&c->head) });
    c->in_callback = false;
    buf_done(&c->head);
}

static void go_on(struct fetch_call *c)
{
    if (!c->paused || c->held || c->ended)
        return;
    c->paused = false;
    (void)c->f->curl->easy_pause(c->easy, CURLPAUSE_CONT);
}

static void hand_over_data(struct fetch_call *c)
{
    struct buf data = c->pending;
    buf_init(&c->pending, FETCH_PENDING_MAX);
    c->in_callback = true;
    int rc = c->req.on_data(c->req.ctx, c->status, buf_data(&data), buf_len(&data));
    c->in_callback = false;
    buf_done(&data);
    if (c->cancelled) {
        call_free(c);
        return;
    }
    if (rc < 0) {
        if (c->err.rc == RC_OK)
            err_set(&c->err, rc, "the receiver ended the call: %s", rc_text(rc));
        c->ended = false;       /* the receiver's word counts, also when the transfer had just ended well */
        fetch_end(c, rc);
    } else if (c->ended) {
        fetch_ready(c);
    } else {
        go_on(c);
    }
}

static void hand_over_call(struct fetch_call *c)
{
    if (c->held)
        return;                 /* fetch_hold() makes it ready again */
    if (c->head_whole && !c->head_told) {
        hand_over_head(c);
        if (c->cancelled)
            call_free(c);
        else
            fetch_ready(c);     /* again, as the callback may have held it */
    } else if (buf_len(&c->pending)) {
        hand_over_data(c);
    } else if (c->ended) {
        finish(c);
    } else {
        go_on(c);
    }
}

static void read_results(struct fetch *f)
{
    int left;
    for (CURLMsg *m; (m = f->curl->multi_info_read(f->multi, &left));) {
        struct fetch_call *c = NULL;
        if (m->msg == CURLMSG_DONE && f->curl->easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&c) == CURLE_OK && c)
            fetch_note_result(c, m->data.result);
    }
}

static void hand_over(struct fetch *f)
{
    read_results(f);
    while (!list_empty(&f->ready)) {
        struct fetch_call *c = list_first(&f->ready, struct fetch_call, ready);
        list_del(&c->ready);
        hand_over_call(c);
        read_results(f);
    }
}

static void act(struct fetch *f, curl_socket_t s, int what)
{
    int running;
    (void)f->curl->multi_socket_action(f->multi, s, what, &running);
    hand_over(f);
}

/* ---- the loop's side ---- */

static void on_io(struct ev_io *io, unsigned got)
{
    struct sock *s = container_of(io, struct sock, io);
    int what = (got & EV_READ ? CURL_CSELECT_IN : 0) | (got & EV_WRITE ? CURL_CSELECT_OUT : 0) | (got & EV_HUP ? CURL_CSELECT_ERR : 0);
    act(s->f, io->fd, what);
}

static void on_timer(struct ev_timer *t)
{
    act(container_of(t, struct fetch, timer), CURL_SOCKET_TIMEOUT, 0);
}

static int set_timer(CURLM *multi, long ms, void *ctx)
{
    struct fetch *f = ctx;
    (void)multi;
    if (ms < 0)
        ev_timer_stop(&f->timer);
    else
        ev_timer_set(f->ev, &f->timer, ms, on_timer);
    return 0;
}

static int set_socket(CURL *easy, curl_socket_t fd, int what, void *ctx, void *assigned)
{
    struct fetch *f = ctx;
    struct sock *s = assigned;
    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        if (s) {
            ev_io_stop(&s->io);
            list_del(&s->link);
            free(s);
        }
        (void)f->curl->multi_assign(f->multi, fd, NULL);
        return 0;
    }
    unsigned want = (what & CURL_POLL_IN ? EV_READ : 0) | (what & CURL_POLL_OUT ? EV_WRITE : 0);
    if (s) {
        ev_io_want(&s->io, want);
        return 0;
    }
    s = xcalloc(1, sizeof *s);
    s->f = f;
    if (ev_io_start(f->ev, &s->io, fd, want, on_io) < 0) {
        free(s);
        return -1;
    }
    list_add_tail(&f->socks, &s->link);
    (void)f->curl->multi_assign(f->multi, fd, s);
    return 0;
}

/* ---- our own time limits ---- */

static int64_t deadline(const struct fetch_call *c, const char **ret_what)
{
    const struct fetch_request *r = &c->req;
    int64_t due = INT64_MAX;
    if (r->total_ms > 0) {
        due = c->started_ms + r->total_ms;
        *ret_what = "the whole call took too long";
    }
    int64_t phase = INT64_MAX;
    const char *what = "";
    if (c->phase == PHASE_CONNECT && r->connect_ms > 0) {
        phase = c->started_ms + r->connect_ms;
        what = "no connection in time";
    } else if (c->phase == PHASE_FIRST_BYTE && r->first_byte_ms > 0) {
        phase = c->connected_ms + r->first_byte_ms;
        what = "no answer in time";
    } else if (c->phase == PHASE_STREAM && r->stall_ms > 0 && !c->held) {
        phase = c->last_byte_ms + r->stall_ms;
        what = "the answer stalled";
    }
    if (phase < due) {
        due = phase;
        *ret_what = what;
    }
    return due;
}

static void watch(struct fetch_call *c);

static void on_call_timer(struct ev_timer *t)
{
    struct fetch_call *c = container_of(t, struct fetch_call, timer);
    struct fetch *f = c->f;
    const char *what = "";
    int64_t now = ev_now_ms(f->ev), due = c->ended ? now : deadline(c, &what);
    if (!c->ended && now < due) {
        watch(c);
    } else if (!c->ended) {
        err_set(&c->err, RC_TIMEOUT, "%s (after %lld ms)", what, (long long)(now - c->started_ms));
        fetch_end(c, RC_TIMEOUT);
    }
    hand_over(f);
}

/* The timer looks again at least every shortest limit: phases move without touching it. */
static void watch(struct fetch_call *c)
{
    const struct fetch_request *r = &c->req;
    const char *what;
    int64_t now = ev_now_ms(c->f->ev), due = deadline(c, &what), in = due == INT64_MAX ? INT64_MAX : due - now;
    const int64_t limits[] = { r->first_byte_ms, r->stall_ms };
    for (size_t i = 0; i < COUNT_OF(limits); i++)
        if (limits[i] > 0 && limits[i] < in && c->phase != PHASE_STREAM)
            in = limits[i];
    if (in != INT64_MAX)
        ev_timer_set(c->f->ev, &c->timer, in > 0 ? in : 0, on_call_timer);
}

/* ---- starting ---- */

static int start(struct fetch_call *c, const struct fetch_request *r)
{
    TRY(fetch_setup(c, r));
    CURLMcode m = c->f->curl->multi_add_handle(c->f->multi, c->easy);
    if (m != CURLM_OK)
        return err_set(&c->err, RC_IO, "start a call: %s", c->f->curl->multi_strerror(m));
    c->added = true;
    return RC_OK;
}

struct fetch_call *fetch_start(struct fetch *f, const struct fetch_request *r)
{
    struct fetch_call *c = xcalloc(1, sizeof *c);
    c->f = f;
    c->req = (struct fetch_request){ .connect_ms = r->connect_ms, .first_byte_ms = r->first_byte_ms, .stall_ms = r->stall_ms, .total_ms = r->total_ms,
                                     .on_head = r->on_head, .on_data = r->on_data, .on_done = r->on_done, .ctx = r->ctx };
    c->started_ms = c->last_byte_ms = clock_mono_ms();
    c->retry_after_ms = c->retry_after_exact_ms = -1;
    buf_init(&c->head, FETCH_HEAD_MAX);
    buf_init(&c->body, r->body_max ? r->body_max : FETCH_BODY_MAX);
    buf_init(&c->pending, FETCH_PENDING_MAX);
    list_init(&c->ready);
    list_add_tail(&f->calls, &c->link);
    int rc = start(c, r);
    if (rc == RC_OK) {
        watch(c);
    } else {
        fetch_end(c, rc);
        ev_timer_set(f->ev, &c->timer, 0, on_call_timer);       /* reported from the loop, never from here */
    }
    return c;
}

void fetch_cancel(struct fetch_call *c)
{
    if (!c || c->cancelled)
        return;
    c->cancelled = true;
    detach(c);
    if (!c->in_callback)
        call_free(c);       /* else hand_over_data() does */
}

int fetch_proxy_status(const struct fetch_call *c) { return c->proxy_status; }
const char *fetch_proxy_note(const struct fetch_call *c) { return c->proxy_note; }
bool fetch_sent(const struct fetch_call *c) { return c->phase != PHASE_CONNECT; }

void fetch_hold(struct fetch_call *c, bool on)
{
    if (!c || c->cancelled || c->held == on)
        return;
    c->held = on;
    if (on)
        return;
    c->last_byte_ms = ev_now_ms(c->f->ev);
    fetch_ready(c);
    ev_timer_set(c->f->ev, &c->timer, 0, on_call_timer);        /* handed over from the loop, never from here */
}

struct slice fetch_header(struct slice lines, const char *name)
{
    while (lines.n) {
        const char *end = memchr(lines.p, '\n', lines.n), *colon;
        size_t n = end ? (size_t)(end - lines.p) + 1 : lines.n;
        colon = memchr(lines.p, ':', n);
        if (colon && slice_eq_nocase((struct slice){ lines.p, (size_t)(colon - lines.p) }, name)) {
            struct slice v = { colon + 1, n - (size_t)(colon - lines.p) - 1 };
            while (v.n && (v.p[v.n - 1] == '\n' || v.p[v.n - 1] == '\r'))
                v.n--;
            return slice_trim(v);
        }
        lines.p += n;
        lines.n -= n;
    }
    return (struct slice){ NULL, 0 };
}

/* ---- the whole ---- */

int fetch_new(struct ev *ev, const struct fetch_conf *conf, struct fetch **ret, struct err *e)
{
    const struct fetch_curl *curl;
    if (conf->ca_file && access(conf->ca_file, R_OK) < 0)       /* said at the start, not by each call */
        return err_sys(e, RC_INVALID, errno, "certificate authorities in %s", conf->ca_file);
    TRY(fetch_curl_get(&curl, e));
    CURLM *multi = curl->multi_init();
    if (!multi)
        return err_set(e, RC_NOMEM, "out of memory for outgoing calls");
    struct fetch *f = xcalloc(1, sizeof *f);
    f->ev = ev;
    f->curl = curl;
    f->multi = multi;
    f->ca_file = str_dup(conf->ca_file);
    f->proxy = str_dup(conf->proxy);
    f->user_agent = str_dup(conf->user_agent);
    list_init(&f->calls);
    list_init(&f->ready);
    list_init(&f->socks);
    (void)curl->multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, set_socket);
    (void)curl->multi_setopt(multi, CURLMOPT_SOCKETDATA, f);
    (void)curl->multi_setopt(multi, CURLMOPT_TIMERFUNCTION, set_timer);
    (void)curl->multi_setopt(multi, CURLMOPT_TIMERDATA, f);
    (void)curl->multi_setopt(multi, CURLMOPT_MAXCONNECTS, conf->conns_max ? (long)conf->conns_max : (long)CACHE_DEFAULT);
    if (conf->conns_max)
        (void)curl->multi_setopt(multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, (long)conf->conns_max);
    *ret = f;
    return RC_OK;
}

void fetch_free(struct fetch *f)
{
    if (!f)
        return;
    list_foreach(c, &f->calls, struct fetch_call, link)
        fetch_cancel(c);
    (void)f->curl->multi_cleanup(f->multi);
    ev_timer_stop(&f->timer);
    list_foreach(s, &f->socks, struct sock, link) {
        ev_io_stop(&s->io);
        list_del(&s->link);
        free(s);
    }
    free(f->ca_file);
    free(f->proxy);
    free(f->user_agent);
    free(f);
}
