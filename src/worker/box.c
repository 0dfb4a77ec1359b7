/* worker/box.c - see box.h */
#include "worker/box.h"

#include <string.h>

#include "base/str.h"
#include "log/log.h"
#include "worker/record.h"

#define WHY_MAX 300

/* A claim or a request that the sandbox layer will answer once. It outlives the box when the box is freed first. */
struct op { struct box *box; uint64_t n; };

enum box_state { BOX_NONE, BOX_CLAIMING, BOX_READY, BOX_DEAD };

struct box {
    struct worker *w;
    char *session_id;
    enum box_state state;
    struct sbx *sbx;
    struct op *op;                       /* the claim or request under way */
    uint64_t op_n;
    bool waiting;                        /* a request waits for the claim, or runs */
    struct inside_req req;
    struct buf body;                     /* while waiting for the claim */
    box_done done;
    void *ctx;
    char why[WHY_MAX];                   /* what ended the sandbox last */
    bool tell_restart;
    struct ev_timer later;               /* answers box_kill(), and frees a dead sandbox outside its own callbacks */
};

static void begin_claim(struct box *b);

static struct op *op_new(struct box *b)
{
    struct op *o = xcalloc(1, sizeof *o);
    *o = (struct op){ .box = b, .n = ++b->op_n };
    b->op = o;
    return o;
}

/* The box, when the answer still belongs to what is under way. */
static struct box *op_end(struct op *o)
{
    struct box *b = o->box && o->box->op == o ? o->box : NULL;
    if (b)
        b->op = NULL;
    free(o);
    return b;
}

static void op_orphan(struct box *b)
{
    if (b->op)
        b->op->box = NULL;
    b->op = NULL;
}

static void answer(struct box *b, int rc, const struct inside_res *h, const char *body, size_t n, const char *why)
{
    char before[WHY_MAX];
    bool restarted = rc == RC_OK && b->tell_restart;
    (void)str_copy(before, sizeof before, restarted ? b->why : "");
    if (rc == RC_OK)
        b->tell_restart = false;
    b->waiting = false;
    buf_done(&b->body);
    b->done(b->ctx, rc, h, body, n, why, restarted ? before : NULL);     /* may free `b` or begin the next request */
}

static void drop_sandbox(struct box *b)
{
    if (b->sbx)
        sbx_close(TAKE(b->sbx));
    b->state = BOX_NONE;
}

static void on_later(struct ev_timer *t)
{
    struct box *b = container_of(t, struct box, later);
    if (b->state == BOX_DEAD) {
        op_orphan(b);
        drop_sandbox(b);
    }
    if (b->waiting && !b->op)
        answer(b, RC_CLOSED, NULL, NULL, 0, b->why);
}

static void died(struct box *b, const char *why)
{
    if (b->state == BOX_DEAD)
        return;
    b->state = BOX_DEAD;
    (void)str_copy(b->why, sizeof b->why, why && *why ? why : "it ended");
    b->tell_restart = true;
    log_warn("sandbox.died", "session=%s why=%s", b->session_id, b->why);
    json_t *f = json_object();
    js_set_str(f, "session", b->session_id);
    js_set_str(f, "why", b->why);
    record_add(b->w->record, "limit", f);
    ev_timer_set(b->w->ev, &b->later, 0, on_later);
}

static void on_death(void *ctx, const char *why)
{
    died(ctx, why);
}

static void on_result(void *ctx, int rc, const struct inside_res *h, const char *body, size_t n, const struct err *e)
{
    struct box *b = op_end(ctx);
    if (!b)
        return;
    if (rc == RC_OK) {
        answer(b, RC_OK, h, body, n, "");
        return;
    }
    died(b, e ? e->msg : rc_text(rc));   /* the death may have been told before, with a better reason */
    char why[WHY_MAX];
    (void)str_copy(why, sizeof why, b->why);
    answer(b, rc, NULL, NULL, 0, why);
}

static void send_request(struct box *b)
{
    struct op *o = op_new(b);
    sbx_call(b->sbx, &b->req, buf_data(&b->body), buf_len(&b->body), on_result, o);
}

static void on_claimed(void *ctx, int rc, struct sbx *s, const struct err *e)
{
    struct box *b = op_end(ctx);
    if (!b) {
        if (rc == RC_OK)
            sbx_close(s);
        return;
    }
    if (rc < 0) {
        b->state = BOX_NONE;
        log_warn("sandbox.failed", "session=%s why=%s", b->session_id, e ? e->msg : rc_text(rc));
        if (b->waiting)
            answer(b, rc, NULL, NULL, 0, e ? e->msg : rc_text(rc));
        return;
    }
    b->sbx = s;
    b->state = BOX_READY;
    sbx_on_death(s, on_death, b);
    if (b->waiting)
        send_request(b);
}

static void begin_claim(struct box *b)
{
    b->state = BOX_CLAIMING;
    sbx_claim(b->w->sbx, b->session_id, on_claimed, op_new(b));
}

void box_open(struct box *b)
{
    if (b->state == BOX_NONE)
        begin_claim(b);
}

void box_call(struct box *b, const struct inside_req *req, const void *body, size_t n, box_done done, void *ctx)
{
    b->done = done;
    b->ctx = ctx;
    b->req = *req;
    b->waiting = true;
    if (b->state == BOX_READY) {
        sbx_call(b->sbx, req, body, n, on_result, op_new(b));
        return;
    }
    if (b->state == BOX_DEAD)
        drop_sandbox(b);
    if (n)
        buf_put(&b->body, body, n);
    if (b->state == BOX_NONE)
        begin_claim(b);
}

void box_interrupt(struct box *b)
{
    if (b->state == BOX_READY && b->op)
        sbx_interrupt(b->sbx);
}

void box_kill(struct box *b, const char *why)
{
    op_orphan(b);
    drop_sandbox(b);
    (void)str_copy(b->why, sizeof b->why, why);
    b->tell_restart = true;
    if (b->waiting)
        ev_timer_set(b->w->ev, &b->later, 0, on_later);
}

static void nobody(void *ctx, int rc, const struct inside_res *h, const char *body, size_t n, const char *why, const char *restarted)
{
    (void)ctx, (void)rc, (void)h, (void)body, (void)n, (void)why, (void)restarted;
}

void box_forget(struct box *b)
{
    b->done = nobody;
}

bool box_busy(const struct box *b)
{
    return b->waiting;
}

bool box_alive(const struct box *b)
{
    return b->state == BOX_READY;
}

struct box *box_new(struct worker *w, const char *session_id)
{
    struct box *b = xcalloc(1, sizeof *b);
    b->w = w;
    b->session_id = str_dup(session_id);
    buf_init(&b->body, INSIDE_REQ_MAX);
    return b;
}

void box_free(struct box *b)
{
    if (!b)
        return;
    ev_timer_stop(&b->later);
    op_orphan(b);
    drop_sandbox(b);
    buf_done(&b->body);
    free(b->session_id);
    free(b);
}
