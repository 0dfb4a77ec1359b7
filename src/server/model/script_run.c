/* script_run.c - the script provider on the event loop: delays, streaming in chunks, injected errors. */
#include "server/model/provider.h"

#include <fcntl.h>
#include <string.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/list.h"
#include "base/str.h"
#include "server/model/stream.h"

#define SCRIPT_FILE_MAX (8 * MIB)

struct model_call {
    struct script *self;
    struct model_request req;
    struct ev_timer timer;
    json_t *answer;
    size_t block, off;               /* where the streaming is */
    bool began;                      /* the current block's start was told */
    int64_t chunks, fail_after;      /* fail_after: chunks before an injected error; -1 none */
    struct buf text;
    struct err err;
};

static uint64_t hash_bytes(const char *p, size_t n)          /* FNV-1a */
{
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)p[i]) * 1099511628211u;
    return h;
}

bool script_still_fails(struct script *s, const char *body, size_t body_n, const char *session_id, int64_t times)
{
    if (times < 0)
        return true;
    uint64_t h = hash_bytes(body, body_n) ^ (session_id ? hash_bytes(session_id, strlen(session_id)) : 0);
    for (size_t i = 0; i < SCRIPT_FAILS_MAX; i++)
        if (s->fails[i].hash == h)
            return s->fails[i].n++ < times;
    s->fails[s->fail_next] = (struct script_fail){ .hash = h, .n = 1 };
    s->fail_next = (s->fail_next + 1) % SCRIPT_FAILS_MAX;
    return times > 0;
}

const char *script_error_type(int status, const json_t *error)
{
    const char *type = js_str(error, "type");
    return type ? type : status == 429 ? "rate_limit_error" : status == 529 ? "overloaded_error" : "api_error";
}

/* About four bytes a token, unless the script says. */
struct model_usage script_usage(const json_t *answer, size_t body_n)
{
    const json_t *u = js_at(answer, "usage");
    AUTO_FREE char *out = js_text(js_at(answer, "content"));
    return (struct model_usage){
        .input = js_int(u, "input_tokens", (int64_t)(body_n / 4)), .output = js_int(u, "output_tokens", (int64_t)(strlen(out) / 4)),
        .cache_read = js_int(u, "cache_read_input_tokens", 0), .cache_write_5m = js_int(u, "cache_creation_input_tokens", 0),
    };
}

size_t script_chunk(const char *text, size_t left)
{
    size_t n = left < SCRIPT_CHUNK_BYTES ? left : SCRIPT_CHUNK_BYTES;
    while (n < left && ((unsigned char)text[n] & 0xC0) == 0x80)
        n++;
    return n;
}

static void call_free(struct model_call *c)
{
    ev_timer_stop(&c->timer);
    json_decref(c->answer);
    buf_done(&c->text);
    free(c);
}

static void done(struct model_call *c, const struct model_result *r)
{
    c->req.on_done(c->req.ctx, r);
    call_free(c);
}

static void fail(struct model_call *c)
{
    const json_t *er = js_at(c->answer, "error");
    int status = (int)js_int(er, "status", 529);
    const char *msg = js_str(er, "message");
    AUTO_JS body = json_object();
    json_t *in = json_object();
    js_set_str(in, "type", script_error_type(status, er));
    js_set_str(in, "message", msg ? msg : "injected by the script");
    js_set(body, "error", in);
    AUTO_FREE char *text = js_text(body);
    struct model_result r;
    if (status == 0) {
        r = (struct model_result){ .outcome = MODEL_OVERLOADED, .retry_after_ms = -1, .error_type = "connection_error", .message = msg ? msg : "injected: connection lost" };
    } else {
        msg_error_result(status, js_int(er, "retry_after_ms", -1), text, strlen(text), &c->text, &r);
    }
    done(c, &r);
}

static void finish(struct model_call *c)
{
    json_t *content = js_at(c->answer, "content");
    struct model_result r = { .outcome = MODEL_OK, .http_status = 200, .retry_after_ms = -1, .content = content, .model = c->req.model,
                              .stop_reason = js_str(c->answer, "stop_reason"), .stop_details = js_at(c->answer, "stop_details") };
    r.usage = script_usage(c->answer, c->req.body_n);
    r.context_tokens = r.usage.input + r.usage.output + r.usage.cache_read + r.usage.cache_write_5m;
    done(c, &r);
}

/* One step: the next piece of text, or the end. */
static void tick(struct ev_timer *t)
{
    struct model_call *c = container_of(t, struct model_call, timer);
    int64_t pause = js_int(c->answer, "chunk_ms", 0);
    json_t *content = js_at(c->answer, "content");
    for (;;) {
        if (c->fail_after >= 0 && c->chunks >= c->fail_after) {
            fail(c);
            return;
        }
        json_t *b = json_array_get(content, c->block);
        if (!b) {
            if (c->fail_after >= 0)
                fail(c);
            else
                finish(c);
            return;
        }
        const char *type = js_str(b, "type"), *text = str_eq(type, "text") ? js_str(b, "text") : NULL;
        struct model_delta d = { .index = (int)c->block };
        if (!c->began) {
            c->began = true;
            d.kind = text ? DELTA_TEXT_START : DELTA_THINKING_START;
            if (c->req.on_delta && (text || str_eq(type, "thinking")))
                c->req.on_delta(c->req.ctx, &d);
        }
        size_t left = text ? strlen(text) - c->off : 0;
        if (left == 0) {
            c->block++;
            c->off = 0;
            c->began = false;
            continue;
        }
        size_t n = script_chunk(text + c->off, left);
        d.kind = DELTA_TEXT;
        d.text = text + c->off;
        d.n = n;
        if (c->req.on_delta)
            c->req.on_delta(c->req.ctx, &d);
        c->off += n;
        c->chunks++;
        if (pause > 0) {
            ev_timer_set(c->self->ev, &c->timer, pause, tick);
            return;
        }
    }
}

static void bad_request(struct ev_timer *t)
{
    struct model_call *c = container_of(t, struct model_call, timer);
    struct model_result r = { .outcome = MODEL_FATAL, .http_status = 400, .retry_after_ms = -1, .error_type = "invalid_request_error", .message = c->err.msg };
    done(c, &r);
}

static struct model_call *start(void *ctx, const struct model_request *r)
{
    struct script *self = ctx;
    struct model_call *c = xcalloc(1, sizeof *c);
    c->self = self;
    c->req = *r;
    c->fail_after = -1;
    buf_init(&c->text, 64 * KIB);
    AUTO_JS req = NULL;
    int rc = js_parse(r->body, r->body_n, r->body_n + 1, &req, &c->err);
    if (rc == RC_OK)
        rc = model_script_answer(self->doc, req, &c->answer, &c->err);
    if (rc < 0) {
        ev_timer_set(self->ev, &c->timer, 0, bad_request);
        return c;
    }
    const json_t *er = js_at(c->answer, "error");
    if (er && script_still_fails(self, r->body, r->body_n, r->session_id, js_int(er, "times", -1)))
        c->fail_after = js_int(er, "after_chunks", 0);
    ev_timer_set(self->ev, &c->timer, js_int(c->answer, "delay_ms", 0), tick);
    return c;
}

static void cancel(struct model_call *c) { call_free(c); }

static const struct model_caps script_caps = { .context_tokens = 200000, .max_output_tokens = 32000, .cache_min_tokens = 1024, .mid_system = true };

static int caps(void *ctx, const char *model, struct model_caps *ret)
{
    const struct script *s = ctx;
    (void)model;
    *ret = script_caps;
    ret->context_tokens = js_int(s->doc, "caps.context_tokens", ret->context_tokens);
    ret->max_output_tokens = js_int(s->doc, "caps.max_output_tokens", ret->max_output_tokens);
    ret->mid_system = js_bool(s->doc, "caps.mid_system", ret->mid_system);
    return RC_OK;
}

static int list(void *ctx, json_t *into_array)
{
    const struct script *s = ctx;
    struct model_caps c;
    (void)caps(ctx, "", &c);
    size_t i;
    json_t *id;
    if (!js_at(s->doc, "models"))
        js_push(into_array, model_info_new("script-1", "Script", NULL, &c));
    json_array_foreach(js_at(s->doc, "models"), i, id)
        if (json_is_string(id))
            js_push(into_array, model_info_new(json_string_value(id), json_string_value(id), NULL, &c));
    return RC_OK;
}

static void script_free(void *ctx)
{
    struct script *s = ctx;
    json_decref(s->doc);
    free(s);
}

static const struct model_provider provider = { .name = "script", .start = start, .cancel = cancel, .caps = caps, .list = list, .free = script_free,
                                                 .raw_start = script_raw_start, .raw_hold = script_raw_hold, .raw_cancel = script_raw_cancel };

int model_script_new(struct ev *ev, const char *file, const struct model_provider **ret, void **ret_self, struct err *e)
{
    AUTO_JS doc = NULL;
    if (file) {
        AUTO_FREE char *text = NULL;
        size_t n = 0;
        TRY(fd_read_file(AT_FDCWD, file, SCRIPT_FILE_MAX, &text, &n, e));
        if (js_parse(text, n, SCRIPT_FILE_MAX, &doc, e) < 0)
            return err_wrap(e, RC_INVALID, "%s", file);
    } else {
        TRY(js_parse(model_script_demo, strlen(model_script_demo), SCRIPT_FILE_MAX, &doc, e));
    }
    if (model_script_check(doc, e) < 0)
        return err_wrap(e, RC_INVALID, "%s", file ? file : "built-in script");
    struct script *s = xcalloc(1, sizeof *s);
    s->ev = ev;
    s->doc = TAKE(doc);
    *ret = &provider;
    *ret_self = s;
    return RC_OK;
}
