/* world.c - clients and workers, as the official ones behave, and the network between them and the server. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "sim.h"

#define TTL_MS 30000
#define GRACE_MS 10000
#define RECLAIM_MS 5000
#define TRIES_MAX 3                  /* of one call, as the official clients do under their own loops */
#define IDLE_MS 5000                 /* then a worker lets go of a session whose turn has ended */
#define DONE_MAX 512

/* One API call on its way. Copied for each delivery. */
struct call {
    void (*serve)(struct call *c);               /* at the server */
    void (*reply)(const struct call *c);         /* back at the caller */
    int who; unsigned life;
    size_t session;
    int rc, tries;
    bool once;                                   /* not repeated by the caller */
    char work_id[ID_MAX], call_id[ID_MAX], beat[RFC3339_MAX], body[512];
    int64_t ttl_ms;
    bool extended, found;
};

enum duty { D_NONE, D_POLL, D_SERVE };
static struct worker {
    unsigned life;
    enum duty duty;
    size_t session;
    char work_id[ID_MAX], beat[RFC3339_MAX];
    int64_t lease_ms, idle_since_ms;             /* until then it believes to hold the item */
    bool busy;
    struct { char id[ID_MAX]; } done[DONE_MAX]; size_t n_done;
} workers[SIM_WORKERS_MAX];
static struct client { unsigned messages; bool archive, asked; } clients[SIM_SESSIONS_MAX];
static size_t n_workers;

/* ---- the network ---- */
static void travel(const struct call *c, int64_t ms, void (*fn)(void *))
{
    struct call *copy = xcalloc(1, sizeof *copy);
    *copy = *c;
    sim_after(ms, fn, copy);
}

static int64_t distance(void) { return sim_faults() && sim_chance(50) ? sim_below(8000) : 1 + sim_below(20); }

static void send(struct call *c);

static void arrive_back(void *arg)
{
    struct call *c = arg;
    bool worker = c->who >= 0;
    if (!worker || workers[c->who].life == c->life) {
        bool passing = c->rc == RC_TIMEOUT || c->rc == RC_IO || c->rc == RC_AGAIN;
        if (passing && !c->once && ++c->tries < TRIES_MAX)
            send(c);
        else
            c->reply(c);
    }
    free(c);
}

static void no_answer(const struct call *c)
{
    struct call late = *c;
    late.rc = RC_TIMEOUT;
    travel(&late, 1000 + sim_below(5000), arrive_back);
}

static void arrive(void *arg)
{
    struct call *c = arg;
    if (!sim_server.up) {
        c->rc = RC_IO;
        travel(c, distance(), arrive_back);
    } else {
        c->serve(c);
        if (server_dying() || (sim_faults() && sim_chance(30)))
            no_answer(c);
        else
            travel(c, distance(), arrive_back);
    }
    free(c);
}

/* The copy's answer finds nobody. */
static void arrive_twice(void *arg)
{
    struct call *c = arg;
    if (sim_server.up)
        c->serve(c);
    free(c);
}

static void send(struct call *c)
{
    int64_t more = c->tries ? 500 << c->tries : 0;
    if (sim_faults() && sim_chance(30)) {
        no_answer(c);
        return;
    }
    travel(c, more + distance(), arrive);
    if (sim_faults() && sim_chance(50))
        travel(c, more + distance() + (int64_t)sim_below(4000), arrive_twice);
}

/* ---- at the server: what the API's functions do ---- */
static void note_acked(struct sim_session *s, const char *data, size_t n)
{
    AUTO_JS a = NULL;
    struct err e;
    size_t i;
    json_t *v;
    if (js_parse(data, n, JS_BODY_MAX, &a, &e) < 0)
        sim_fail("%s: the answer to an event: %s", s->id, e.msg);
    json_array_foreach(a, i, v)
        check_acked(s, js_str(v, "id"));
}

static void serve_event(struct call *c)
{
    struct sim_session *s = &sim_session[c->session];
    struct err e = { 0 };
    AUTO_JS events = NULL;
    struct buf out;
    if (js_parse(c->body, strlen(c->body), JS_BODY_MAX, &events, &e) < 0)
        sim_fail("%s", e.msg);
    buf_init(&out, MIB);
    c->rc = inbox_send(sim_server.loop, s->id, events, c->who >= 0, &out, &e);
    sim_trace("api: event of %d: %s", c->who, c->rc < 0 ? e.msg : "taken");
    if (c->rc == RC_OK)
        note_acked(s, buf_data(&out), buf_len(&out));
    buf_done(&out);
}

static void serve_archive(struct call *c)
{
    struct err e = { 0 };
    c->rc = inbox_archive(sim_server.loop, sim_session[c->session].id, &e);
    sim_trace("api: archive: %s", c->rc < 0 ? e.msg : "done");
}

static void serve_poll(struct call *c)
{
    AUTO_PTR(arena) a = arena_new(16 * KIB, MIB);
    struct store_work w;
    struct err e = { 0 };
    uint8_t hash[32];
    random_bytes(hash, sizeof hash);
    int64_t now = clock_now_ms();
    c->rc = sim_server.store->ops->work_poll(sim_server.store, a, sim_env_id, NULL, now, RECLAIM_MS, hash, now + 3600000, &w, &e);
    c->found = c->rc == RC_OK;
    if (!c->found)
        return;
    struct sim_session *s = sim_session_find(w.session_id);
    if (!s)
        sim_fail("work for '%s'", w.session_id);
    c->session = (size_t)(s - sim_session);
    (void)str_copy(c->work_id, sizeof c->work_id, w.id);
}

static void serve_ack(struct call *c)
{
    AUTO_PTR(arena) a = arena_new(16 * KIB, MIB);
    struct store_work w;
    struct err e = { 0 };
    c->rc = sim_server.store->ops->work_ack(sim_server.store, a, sim_env_id, c->work_id, clock_now_ms(), TTL_MS, &w, &e);
    sim_trace("api: ack by %d: %s", c->who, c->rc < 0 ? e.msg : "taken");
}

static int name_of(const struct call *c) { return 1 + c->who + (int)c->life * SIM_WORKERS_MAX; }

static void serve_beat(struct call *c)
{
    struct store_heartbeat b = { 0 };
    struct err e = { 0 };
    c->rc = sim_server.store->ops->work_heartbeat(sim_server.store, sim_env_id, c->work_id, c->beat, clock_now_ms(), TTL_MS, GRACE_MS, &b, &e);
    sim_trace("api: beat of %d: %s", c->who, c->rc < 0 ? e.msg : b.extended ? "held" : "let go");
    if (c->rc < 0)
        return;
    c->extended = b.extended;
    c->ttl_ms = b.ttl_ms;
    rfc3339_format(b.last_ms, c->beat);
    if (b.extended)
        check_hold(c->session, c->work_id, name_of(c), sim_now_ms() + b.ttl_ms);
}

static void serve_stop(struct call *c)
{
    struct err e = { 0 };
    c->rc = sim_server.store->ops->work_stop(sim_server.store, sim_env_id, c->work_id, true, clock_now_ms(), &e);
    sim_trace("api: stop by %d: %s", c->who, c->rc < 0 ? e.msg : "done");
    if (c->rc == RC_OK || server_dying())        /* it may have been done */
        check_hold_end(c->session);
}

/* ---- workers ---- */
struct tick { int who; unsigned life; };
static void after(const struct worker *w, int64_t ms, void (*fn)(void *))
{
    struct tick *t = xcalloc(1, sizeof *t);
    *t = (struct tick){ (int)(w - workers), w->life };
    sim_after(ms, fn, t);
}

static struct worker *ticked(void *arg)
{
    struct tick t = *(struct tick *)arg;
    free(arg);
    return workers[t.who].life == t.life ? &workers[t.who] : NULL;
}

static struct call call_of(const struct worker *w, void (*serve)(struct call *), void (*reply)(const struct call *))
{
    struct call c = { .serve = serve, .reply = reply, .who = (int)(w - workers), .life = w->life, .session = w->session };
    memcpy(c.work_id, w->work_id, sizeof c.work_id);
    memcpy(c.beat, w->beat, sizeof c.beat);
    return c;
}

static void on_poll(const struct call *c);
static void poll_again(void *arg)
{
    struct worker *w = ticked(arg);
    if (!w)
        return;
    struct call c = call_of(w, serve_poll, on_poll);
    send(&c);
}

/* Another life, as far as late answers go: it polls again. */
static void let_go(struct worker *w, int64_t ms)
{
    w->life++;
    w->duty = D_POLL;
    w->n_done = 0;
    w->busy = false;
    after(w, ms, poll_again);
}

static void on_stop(const struct call *c) { let_go(&workers[c->who], 1 + sim_below(50)); }

static void stop(struct worker *w)
{
    w->duty = D_NONE;
    struct call c = call_of(w, serve_stop, on_stop);
    send(&c);
}

static void on_beat(const struct call *c);
static void beat(void *arg)
{
    struct worker *w = ticked(arg);
    if (!w || w->duty != D_SERVE)
        return;
    struct call c = call_of(w, serve_beat, on_beat);
    send(&c);
}

static void look(void *arg);

static void on_beat(const struct call *c)
{
    struct worker *w = &workers[c->who];
    bool first = str_eq(w->beat, "NO_HEARTBEAT");
    if (w->duty != D_SERVE)
        return;
    if (c->rc == RC_OK && !c->extended) {
        stop(w);
    } else if (c->rc == RC_OK) {
        memcpy(w->beat, c->beat, sizeof w->beat);
        w->lease_ms = sim_now_ms() + c->ttl_ms - 1000;
        after(w, TTL_MS / 3, beat);
        if (first)
            after(w, 1, look);
    } else if (c->rc == RC_PRECONDITION || c->rc == RC_NOT_FOUND || sim_now_ms() > w->lease_ms) {
        let_go(w, 100);
    } else {
        after(w, 2000, beat);
    }
}

static void on_ack(const struct call *c)
{
    struct worker *w = &workers[c->who];
    if (c->rc < 0) {
        let_go(w, 500);
        return;
    }
    w->duty = D_SERVE;
    w->idle_since_ms = 0;
    w->lease_ms = sim_now_ms() + TTL_MS - 1000;
    (void)str_copy(w->beat, sizeof w->beat, "NO_HEARTBEAT");
    after(w, 1, beat);
}

static void on_poll(const struct call *c)
{
    struct worker *w = &workers[c->who];
    if (!c->found) {
        after(w, 300 + sim_below(1000), poll_again);
        return;
    }
    w->session = c->session;
    memcpy(w->work_id, c->work_id, sizeof w->work_id);
    struct call a = call_of(w, serve_ack, on_ack);
    send(&a);
}

static bool did(const struct worker *w, const char *id)
{
    for (size_t i = 0; i < w->n_done; i++)
        if (str_eq(w->done[i].id, id))
            return true;
    return false;
}

/* `rude`: also one that was not allowed yet, which must be refused. */
static const struct sim_event *next_call(const struct worker *w, bool rude)
{
    const struct sim_session *s = &sim_session[w->session];
    for (size_t i = 0; i < s->n; i++) {
        const struct sim_event *v = &s->ev[i];
        if (v->kind == K_CALL && !v->answered && (!v->ask || v->allowed || rude) && !did(w, v->id))
            return v;
    }
    return NULL;
}

static void on_result(const struct call *c)
{
    struct worker *w = &workers[c->who];
    bool passing = c->rc == RC_TIMEOUT || c->rc == RC_IO || c->rc == RC_AGAIN;
    if (passing && sim_now_ms() < w->lease_ms) {         /* the finished result is kept and sent again, the call is not made again */
        struct call again = *c;
        again.tries = 0;
        send(&again);
        return;
    }
    w->busy = false;
    if (!passing && w->n_done < DONE_MAX && c->call_id[0])
        memcpy(w->done[w->n_done++].id, c->call_id, ID_MAX);
}

static void run_done(void *arg)
{
    struct call *c = arg;
    if (workers[c->who].life == c->life)
        send(c);
    free(c);
}

static void run(struct worker *w, const struct sim_event *v)
{
    struct call c = call_of(w, serve_event, on_result);
    w->busy = true;
    if (!v->ask || v->allowed)
        memcpy(c.call_id, v->id, sizeof c.call_id);
    (void)snprintf(c.body, sizeof c.body, "[{\"type\":\"user.tool_result\",\"tool_use_id\":\"%s\",\"content\":[{\"type\":\"text\",\"text\":\"ran %ld\"}]}]", v->id, v->number);
    sim_trace("worker %d: runs %ld", c.who, v->number);
    travel(&c, 1 + (int64_t)sim_below(sim_faults() && sim_chance(100) ? 40000 : 1500), run_done);
}

/* Its event stream: what there is to do. */
static void look(void *arg)
{
    struct worker *w = ticked(arg);
    if (!w || w->duty != D_SERVE)
        return;
    const struct sim_session *s = &sim_session[w->session];
    const struct sim_event *v = w->busy || !sim_server.up ? NULL : next_call(w, sim_faults() && sim_chance(50));
    bool over = str_eq(s->status, "terminated") || (str_eq(s->status, "idle") && !str_eq(s->stop, "requires_action"));
    if (sim_now_ms() > w->lease_ms) {
        let_go(w, 100);
        return;
    }
    if (sim_faults() && sim_chance(4)) {         /* told to end: it gives the session back, whatever is open */
        stop(w);
        return;
    }
    if (v)
        run(w, v);
    if (!over || w->busy)
        w->idle_since_ms = 0;
    else if (!w->idle_since_ms)
        w->idle_since_ms = sim_now_ms();
    else if (sim_now_ms() - w->idle_since_ms > IDLE_MS) {
        stop(w);
        return;
    }
    after(w, 20 + (int64_t)sim_below(400), look);
}

void world_kill_worker(void)
{
    struct worker *w = &workers[sim_below((uint32_t)n_workers)];
    sim_trace("worker %d: killed", (int)(w - workers));
    let_go(w, 100 + (int64_t)sim_below(20000));
}

/* ---- clients ---- */
static void client_look(void *arg);
struct client_tick { size_t i; };

static void client_after(size_t i, int64_t ms)
{
    struct client_tick *t = xcalloc(1, sizeof *t);
    t->i = i;
    sim_after(ms, client_look, t);
}

static void on_client(const struct call *c)
{
    clients[c->session].asked = false;
}

static void say(size_t i, bool once, void (*serve)(struct call *), const char *body)
{
    struct call c = { .serve = serve, .reply = on_client, .who = -1, .session = i, .once = once };
    (void)str_copy(c.body, sizeof c.body, body);
    clients[i].asked = true;
    send(&c);
}

/* A call that waits for the client; NULL: none. */
static const struct sim_event *waiting(const struct sim_session *s)
{
    for (size_t i = 0; i < s->n; i++) {
        const struct sim_event *v = &s->ev[i];
        if (!v->answered && ((v->kind == K_CALL && v->ask && !v->allowed && !v->denied) || v->kind == K_CALL_CUSTOM))
            return v;
    }
    return NULL;
}

static void answer(size_t i, const struct sim_event *v)
{
    char body[512];
    if (v->kind == K_CALL_CUSTOM)
        (void)snprintf(body, sizeof body, "[{\"type\":\"user.custom_tool_result\",\"custom_tool_use_id\":\"%s\",\"content\":[{\"type\":\"text\",\"text\":\"ran %ld\"}]}]", v->id, v->number);
    else
        (void)snprintf(body, sizeof body, "[{\"type\":\"user.tool_confirmation\",\"tool_use_id\":\"%s\",\"result\":\"%s\"}]", v->id, sim_chance(800) ? "allow" : "deny");
    say(i, false, serve_event, body);
}

static void client_look(void *arg)
{
    size_t i = ((struct client_tick *)arg)->i;
    free(arg);
    struct client *c = &clients[i];
    const struct sim_session *s = &sim_session[i];
    const struct sim_event *v = waiting(s);
    bool idle = !s->status[0] || str_eq(s->status, "idle");
    if (str_eq(s->status, "terminated"))
        return;
    if (c->asked || !sim_server.up) {
        /* one thing at a time */
    } else if (v) {
        answer(i, v);
    } else if (!idle && sim_faults() && sim_chance(60)) {
        say(i, true, serve_event, "[{\"type\":\"user.interrupt\"}]");
    } else if (c->messages && (idle || sim_chance(200))) {
        char body[128];
        (void)snprintf(body, sizeof body, "[{\"type\":\"user.message\",\"content\":[{\"type\":\"text\",\"text\":\"m%u\"}]}]", c->messages--);
        say(i, true, serve_event, body);
    } else if (!c->messages && idle && c->archive) {
        say(i, false, serve_archive, "");
    }
    client_after(i, 50 + (int64_t)sim_below(sim_faults() ? 8000 : 500));
}

/* ---- the beginning and the end ---- */
static void add_session(const char *agent)
{
    AUTO_PTR(arena) a = arena_new(64 * KIB, MIB);
    AUTO_JS initial = NULL;
    struct sim_session *s = &sim_session[sim_n_sessions++];
    struct store_step *first = NULL;
    struct err e = { 0 };
    id_new("sesn", s->id);
    id_new("sthr", s->thread_id);
    if (sim_chance(500))
        initial = json_pack("[{s:s,s:[{s:s,s:s}]}]", "type", "user.message", "content", "type", "text", "text", "first");
    if (inbox_initial(a, s->id, s->thread_id, initial, &first, &e) < 0)
        sim_fail("initial events: %s", e.msg);
    struct store_session in = { .id = s->id, .thread_id = s->thread_id, .env_id = sim_env_id, .agent_id = "agent_sim", .agent_version = 1, .agent = agent, .metadata = "{}",
                                .extra = "{}", .created_ms = clock_now_ms(), .updated_ms = clock_now_ms(), .archived_ms = -1, .terminated_ms = -1, .running_since_ms = -1 };
    if (server_truth()->ops->session_create(server_truth(), &in, first, &e) < 0)
        sim_fail("session: %s", e.msg);
}

void world_start(void)
{
    static const char agent[] = "{\"id\":\"agent_sim\",\"type\":\"agent\",\"version\":1,\"name\":\"sim\",\"model\":{\"id\":\"sim\"},\"tools\":["
                                "{\"type\":\"agent_toolset_20260401\",\"configs\":[{\"name\":\"write\",\"permission_policy\":{\"type\":\"always_ask\"}}]},"
                                "{\"type\":\"custom\",\"name\":\"pick\",\"description\":\"picks\",\"input_schema\":{\"type\":\"object\"}}]}";
    memset(workers, 0, sizeof workers);
    memset(clients, 0, sizeof clients);
    n_workers = 1 + sim_below(SIM_WORKERS_MAX);
    uint32_t n = 1 + sim_below(SIM_SESSIONS_MAX);
    for (size_t i = 0; i < n; i++) {
        add_session(agent);
        clients[i] = (struct client){ .messages = 1 + sim_below(5), .archive = sim_chance(200) };
        client_after(i, sim_below(5000));
    }
    for (size_t i = 0; i < n_workers; i++)
        let_go(&workers[i], sim_below(3000));
}

size_t world_unsettled(void)
{
    for (size_t i = 0; i < sim_n_sessions; i++) {
        const struct sim_session *s = &sim_session[i];
        bool over = str_eq(s->status, "terminated") || ((!s->status[0] || (str_eq(s->status, "idle") && !str_eq(s->stop, "requires_action"))) && !clients[i].archive);
        if (clients[i].messages > 0 || !over)
            return i;
    }
    return SIZE_MAX;
}
