/* server/api/work.c - the work queue as official workers use it (worker.md 2 and 11). */
#include <string.h>

#include "crypto/crypto.h"
#include "server/api/call.h"

#define LIMIT_DEFAULT 20
#define RECLAIM_MS 5000              /* default of reclaim_older_than_ms */
#define TTL_MIN_S 10                 /* desired_ttl_seconds is clamped */
#define TTL_MAX_S 300
#define BEAT_GRACE_MS 10000          /* a repeated heartbeat with the value before is a retransmission for so long */
#define TOKEN_LIFE_MS (24 * 3600 * (int64_t)1000)
#define WORKER_ID_MAX 200
#define SECRET_TEXT_MAX 4096

/* ---- who may touch which item ---- */
static int no_item(struct call *c)
{
    return call_fail(c, RC_NOT_FOUND, "Work item '%.60s' not found.", c->param[1]);
}

/* The environment of the path must be the caller's; for API keys it must exist. */
static int check_env(struct call *c)
{
    struct store_environment v;
    if (call_is_worker(c))
        return str_eq(c->who.env_id, c->param[0]) ? RC_OK : call_fail(c, RC_NOT_FOUND, "Environment '%.60s' not found.", c->param[0]);
    return call_environment(c, &v);
}

static int check_item(struct call *c)
{
    TRY(check_env(c));
    return c->who.kind == WHO_SESSION && !str_eq(c->who.work_id, c->param[1]) ? no_item(c) : RC_OK;
}

/* ---- poll ---- */
struct held_poll { struct parked parked; struct call *c; };

static void answer_empty(struct call *c)
{
    buf_puts(&c->out, "null");
    call_finish(c, RC_OK);
}

/* Asks the store once. RC_NOT_FOUND: the queue is empty. */
static int poll_once(struct call *c)
{
    char token[TOKEN_MAX];
    uint8_t hash[SHA256_BYTES];
    char *worker = NULL;
    struct slice id = call_header(c, "anthropic-worker-id");
    if (id.p && id.n && id.n <= WORKER_ID_MAX)
        worker = arena_strndup(c->arena, id.p, id.n);
    token_new(AUTH_PREFIX_SESSION, token);
    sha256(token, strlen(token), hash);
    struct store_work w;
    int64_t now = clock_now_ms();
    int rc = c->store->ops->work_poll(c->store, c->arena, c->param[0], worker, now, js_int(c->query, "reclaim_older_than_ms", RECLAIM_MS), hash,
                                      now + TOKEN_LIFE_MS, &w, &c->e);
    if (rc == RC_OK) {
        struct buf secret;
        buf_init(&secret, SECRET_TEXT_MAX);
        rc = auth_work_secret_encode(token, c->api->conf.public_url, &secret);
        if (rc == RC_OK)
            view_work(&c->out, &w, buf_data(&secret));
        buf_wipe(&secret);
    }
    wipe(token, sizeof token);
    return rc;
}

static void held_give_up(void *arg)
{
    struct held_poll *h = arg;
    struct call *c = h->c;
    free(h);
    answer_empty(c);
}

static void held_retry(void *arg)
{
    struct held_poll *h = arg;
    struct call *c = h->c;
    struct park *park = c->api->conf.park;
    bool woken = h->parked.woken;
    int rc = RC_NOT_FOUND;
    h->parked.mark = park_mark(park, h->parked.env_id);
    if (!http_req_gone(c->req))          /* an item given to nobody would be lost until it is reclaimed */
        rc = poll_once(c);
    if (rc == RC_NOT_FOUND && !http_req_gone(c->req)) {
        park_add(park, &h->parked);
        return;
    }
    if (woken)                           /* notes may stand for several items, or this one had nobody to go to */
        park_pass(park, h->parked.env_id);
    free(h);
    if (rc == RC_NOT_FOUND)
        answer_empty(c);
    else
        call_finish(c, rc);
}

int work_poll(struct call *c)
{
    struct park *park = c->api->conf.park;
    int64_t block_ms = js_int(c->query, "block_ms", 0);
    buf_puts(&c->headers, "outwork-poll: held\r\n");       /* says: this server wakes a waiting poll, so ask again at once */
    TRY(check_env(c));
    uint64_t mark = park_mark(park, c->param[0]);
    int rc = poll_once(c);
    if (rc != RC_NOT_FOUND)
        return rc;
    if (block_ms == 0) {
        buf_puts(&c->out, "null");
        return RC_OK;
    }
    struct held_poll *h = xcalloc(1, sizeof *h);
    h->c = c;
    h->parked = (struct parked){
        .env_id = c->param[0], .mark = mark, .until_mono_ms = clock_mono_ms() + block_ms, .retry = held_retry, .give_up = held_give_up,
    };
    park_add(park, &h->parked);
    return CALL_TAKEN;
}

/* ---- lease ---- */
int work_ack(struct call *c)
{
    struct store_work w;
    TRY(check_item(c));
    int rc = c->store->ops->work_ack(c->store, c->arena, c->param[0], c->param[1], c->now_ms, c->api->conf.lease_ms, &w, &c->e);
    if (rc == RC_NOT_FOUND)
        return no_item(c);
    if (rc == RC_CONFLICT) {
        c->no_retry = true;
        return call_fail(c, rc, "Work item '%.60s' is stopped.", c->param[1]);
    }
    if (rc == RC_OK)
        view_work(&c->out, &w, NULL);
    return rc;
}

static json_t *beat_state(const struct store_heartbeat *b)
{
    json_t *o = json_object();
    js_set_str(o, "state", work_state_name(b->state));
    js_set_int(o, "ttl_seconds", b->ttl_ms / 1000);
    if (b->last_ms >= 0)
        js_set_time(o, "last_heartbeat", b->last_ms);
    else
        js_set_str(o, "last_heartbeat", "NO_HEARTBEAT");
    return o;
}

static int64_t ttl_wanted(const struct call *c)
{
    if (!json_object_get(c->query, "desired_ttl_seconds"))
        return c->api->conf.lease_ms;
    int64_t s = js_int(c->query, "desired_ttl_seconds", 0);
    return 1000 * (s < TTL_MIN_S ? TTL_MIN_S : s > TTL_MAX_S ? TTL_MAX_S : s);
}

int work_heartbeat(struct call *c)
{
    struct store_heartbeat b = { .last_ms = -1 };
    TRY(check_item(c));
    int rc = c->store->ops->work_heartbeat(c->store, c->param[0], c->param[1], js_str(c->query, "expected_last_heartbeat"), c->now_ms, ttl_wanted(c),
                                           BEAT_GRACE_MS, &b, &c->e);
    if (rc == RC_NOT_FOUND)
        return no_item(c);
    if (rc == RC_PRECONDITION) {
        c->error_details = json_object();
        js_set(c->error_details, "current_state", beat_state(&b));
        return call_fail_code(c, rc, "heartbeat_precondition_failed", "expected_last_heartbeat does not match: the item was offered again or another worker holds it");
    }
    if (rc < 0)
        return rc;
    json_t *o = beat_state(&b);
    js_set_str(o, "type", "work_heartbeat");
    js_set_bool(o, "lease_extended", b.extended);
    return call_json(c, o);
}

int work_stop(struct call *c)
{
    TRY(check_item(c));
    int rc = c->store->ops->work_stop(c->store, c->param[0], c->param[1], js_bool(c->body, "force", false), c->now_ms, &c->e);
    if (rc == RC_NOT_FOUND)
        return no_item(c);
    if (rc == RC_CONFLICT) {
        c->no_retry = true;
        return call_fail(c, rc, "Work item '%.60s' is stopping or stopped already.", c->param[1]);
    }
    if (rc == RC_OK)
        c->status = 204;
    return rc;
}

/* ---- looking ---- */
int work_get(struct call *c)
{
    struct store_work w;
    TRY(check_item(c));
    int rc = c->store->ops->work_get(c->store, c->arena, c->param[0], c->param[1], &w, &c->e);
    if (rc == RC_NOT_FOUND)
        return no_item(c);
    if (rc == RC_OK)
        view_work(&c->out, &w, NULL);
    return rc;
}

int work_list(struct call *c)
{
    struct page p;
    struct store_work *rows;
    size_t n, first;
    TRY(check_env(c));
    TRY(page_read(c, CURSOR_WORK, c->param[0], false, LIMIT_DEFAULT, &p));
    TRY(c->store->ops->work_list(c->store, c->arena, c->param[0], &p.st, &rows, &n, &c->e));
    bool more = page_cut(&p, n, &first, &n);
    buf_puts(&c->out, "{\"data\":[");
    for (size_t i = 0; i < n; i++) {
        if (i)
            buf_putc(&c->out, ',');
        view_work(&c->out, &rows[first + i], NULL);
    }
    struct page_key last = n ? (struct page_key){ rows[first + n - 1].created_ms, rows[first + n - 1].id } : (struct page_key){ 0, NULL };
    page_end(&p, &c->out, more, false, last, last);
    return RC_OK;
}

static int update(struct call *c, struct store_work *w)
{
    json_t *now = NULL;
    int rc = c->store->ops->work_get(c->store, c->arena, c->param[0], c->param[1], w, &c->e);
    if (rc == RC_NOT_FOUND)
        return no_item(c);
    if (rc < 0)
        return rc;
    AUTO_JS old = parse_stored(w->metadata);
    TRY(metadata_patch(c, old, json_object_get(c->body, "metadata"), false, &now));
    AUTO_FREE char *text = js_text(now);
    json_decref(now);
    return c->store->ops->work_update(c->store, c->arena, c->param[0], c->param[1], text, w, &c->e);
}

int work_update(struct call *c)
{
    struct store_work w;
    TRY(check_item(c));
    call_lock(c, c->param[1]);
    int rc = update(c, &w);
    call_unlock(c, c->param[1]);
    if (rc == RC_OK)
        view_work(&c->out, &w, NULL);
    return rc;
}

int work_stats(struct call *c)
{
    struct store_work_stats s;
    TRY(check_env(c));
    TRY(c->store->ops->work_stats(c->store, c->param[0], c->now_ms, &s, &c->e));
    json_t *o = json_object();
    js_set_str(o, "type", "work_queue_stats");
    js_set_int(o, "depth", s.depth);
    js_set_int(o, "pending", s.pending);
    js_set_time(o, "oldest_queued_at", s.oldest_queued_ms);
    js_set_int(o, "workers_polling", s.workers_polling);
    return call_json(c, o);
}
