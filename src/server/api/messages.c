/* messages.c - POST /v1/messages and /v1/messages/count_tokens: hands the request to server/messages and turns its answer into ours. */
#include <string.h>

#include "server/api/call.h"

/* Loop thread. */
static void answered(void *ctx, const struct messages_answer *a)
{
    struct call *c = ctx;
    if (a->rc < 0) {
        c->e = *a->e;
        c->error_type = a->error_type;
        call_finish(c, a->rc);
        return;
    }
    c->status = a->status;
    c->content_type = arena_strdup(c->arena, a->content_type);
    if (a->headers)
        buf_puts(&c->headers, a->headers);
    buf_done(&c->out);
    c->out = *a->body;
    buf_init(a->body, 0);
    call_finish(c, RC_OK);
}

static void streamed(void *ctx)
{
    call_free(ctx);
}

static int start(struct call *c, bool count)
{
    struct messages_request r = {
        .req = c->req, .count = count, .request_id = c->request_id, .answer = answered, .streamed = streamed, .ctx = c,
        .headers = arena_printf(c->arena, "request-id: %s\r\n%s", c->request_id, c->api->base_headers),
    };
    if (!r.headers)
        return call_fail(c, RC_NOMEM, "out of memory");
    TRY(messages_start(c->api->conf.messages, &r, &c->error_type, &c->e));
    return CALL_TAKEN;
}

int messages_create(struct call *c) { return start(c, false); }
int messages_count(struct call *c) { return start(c, true); }
