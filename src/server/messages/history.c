/* history.c - see history.h. */
#include "server/messages/history.h"

#include <string.h>

#include "json/span.h"
#include "server/messages/tools.h"

#define NAME_TEXT_MAX 1024

struct id { char text[CALL_ID_MAX]; };
struct history {
    struct buf *out;
    json_t *listings;
    bool first;                              /* no message written yet */
    struct buf seg, results;                 /* blocks of the assistant's message that is being put together; results that open the next user message */
    size_t i, k;                             /* message and block, for errors */
    struct id open[HISTORY_OPEN_MAX];        /* calls of `seg` */
    bool answered[HISTORY_OPEN_MAX];
    size_t n_open;
    struct err *e;
};

bool history_has_mcp(struct slice messages)
{
    return messages.n && memmem(messages.p, messages.n, "mcp_tool_", 9) != NULL;
}

static int wrong(struct history *h, const char *what)
{
    return err_set(h->e, RC_INVALID, "messages.%zu.content.%zu: %s", h->i, h->k, what);
}

static void put(struct buf *b, struct slice s) { (void)buf_put(b, s.p, s.n); }

static void comma(struct buf *b)
{
    if (buf_len(b))
        (void)buf_putc(b, ',');
}

static void begin_message(struct history *h)
{
    if (!h->first)
        (void)buf_putc(h->out, ',');
    h->first = false;
}

static void message(struct history *h, const char *role, struct buf *blocks)
{
    if (!buf_len(blocks))
        return;
    begin_message(h);
    (void)buf_printf(h->out, "{\"role\":\"%s\",\"content\":[", role);
    (void)buf_put(h->out, buf_data(blocks), buf_len(blocks));
    (void)buf_puts(h->out, "]}");
    buf_clear(blocks);
}

static int all_answered(struct history *h)
{
    for (size_t i = 0; i < h->n_open; i++)
        if (!h->answered[i])
            return wrong(h, "an mcp_tool_use before it has no mcp_tool_result");
    h->n_open = 0;
    return RC_OK;
}

/* Results wait, and more of the assistant follows: what stands so far is a turn of its own. */
static int cut(struct history *h)
{
    if (!buf_len(&h->results))
        return RC_OK;
    TRY(all_answered(h));
    message(h, "assistant", &h->seg);
    message(h, "user", &h->results);
    return RC_OK;
}

static int text_of(struct slice object, const char *name, char out[NAME_TEXT_MAX])
{
    struct slice v;
    struct buf b;
    int rc = span_member(object, name, &v, NULL);
    if (rc < 0)
        return rc;
    buf_init(&b, NAME_TEXT_MAX - 1);
    rc = span_text(v, &b);
    if (rc == RC_OK)
        memcpy(out, buf_data(&b), buf_len(&b) + 1);
    buf_done(&b);
    return rc;
}

/* Copies the member as it is, under its name, when it is there and no null. */
static void keep(struct buf *out, struct slice object, const char *name)
{
    struct slice v;
    if (span_member(object, name, &v, NULL) != RC_OK || span_kind(v) == 'n')
        return;
    (void)buf_printf(out, ",\"%s\":", name);
    put(out, v);
}

static int tool_use(struct history *h, struct slice block)
{
    char id[NAME_TEXT_MAX], server[NAME_TEXT_MAX], name[NAME_TEXT_MAX], mapped[MCP_NAME_MAX];
    struct slice input;
    TRY(cut(h));
    if (h->n_open == HISTORY_OPEN_MAX)
        return wrong(h, "too many calls in one message");
    struct id *mine = &h->open[h->n_open];
    if (text_of(block, "id", id) < 0 || call_id_in(id, mine->text) < 0 || text_of(block, "server_name", server) < 0 || text_of(block, "name", name) < 0 ||
        span_member(block, "input", &input, NULL) < 0)
        return wrong(h, "an mcp_tool_use block needs id, name, server_name and input");
    h->answered[h->n_open++] = false;
    mcp_tool_name(server, name, mapped);
    comma(&h->seg);
    (void)buf_printf(&h->seg, "{\"type\":\"tool_use\",\"id\":\"%s\",\"name\":\"%s\",\"input\":", mine->text, mapped);
    put(&h->seg, input);
    keep(&h->seg, block, "cache_control");
    (void)buf_putc(&h->seg, '}');
    return RC_OK;
}

static int tool_result(struct history *h, struct slice block)
{
    char id[NAME_TEXT_MAX], mine[CALL_ID_MAX];
    struct slice content;
    if (text_of(block, "tool_use_id", id) < 0 || call_id_in(id, mine) < 0)
        return wrong(h, "an mcp_tool_result block needs tool_use_id");
    size_t i = 0;
    while (i < h->n_open && (h->answered[i] || strcmp(h->open[i].text, mine) != 0))
        i++;
    if (i == h->n_open)
        return wrong(h, "this mcp_tool_result answers no mcp_tool_use before it");
    h->answered[i] = true;
    comma(&h->results);
    (void)buf_printf(&h->results, "{\"type\":\"tool_result\",\"tool_use_id\":\"%s\"", mine);
    struct span_walk w;
    struct slice first;
    bool empty = span_member(block, "content", &content, NULL) < 0 || span_is(content, "") ||
                 (span_enter(content, '[', &w, NULL) == RC_OK && span_next(&w, NULL, &first, NULL) != RC_OK);
    if (!empty)
        keep(&h->results, block, "content");
    keep(&h->results, block, "is_error");
    keep(&h->results, block, "cache_control");
    (void)buf_putc(&h->results, '}');
    return RC_OK;
}

static int listing(struct history *h, struct slice block)
{
    char server[NAME_TEXT_MAX];
    struct slice tools;
    json_t *list = NULL;
    if (text_of(block, "mcp_server_name", server) < 0 || span_member(block, "tools", &tools, NULL) < 0 || js_parse(tools.p, tools.n, JS_BODY_MAX, &list, NULL) < 0 ||
        !json_is_array(list)) {
        json_decref(list);
        return wrong(h, "an mcp_tool_listing block needs mcp_server_name and tools");
    }
    js_set(h->listings, server, list);
    return RC_OK;
}

static int assistant(struct history *h, struct slice content)
{
    struct span_walk w;
    struct slice block, type;
    int rc;
    if (buf_len(&h->results))                /* two assistant messages in a row */
        message(h, "user", &h->results);
    TRY(span_enter(content, '[', &w, h->e));
    for (h->k = 0; (rc = span_next(&w, NULL, &block, h->e)) == RC_OK; h->k++) {
        bool typed = span_kind(block) == '{' && span_member(block, "type", &type, NULL) == RC_OK;
        if (typed && span_is(type, "mcp_tool_use")) {
            TRY(tool_use(h, block));
        } else if (typed && span_is(type, "mcp_tool_result")) {
            TRY(tool_result(h, block));
        } else if (typed && span_is(type, "mcp_tool_listing")) {
            TRY(listing(h, block));
        } else {
            TRY(cut(h));
            comma(&h->seg);
            put(&h->seg, block);
        }
    }
    if (rc != RC_NOT_FOUND)
        return rc;
    h->k = h->k ? h->k - 1 : 0;
    TRY(all_answered(h));
    message(h, "assistant", &h->seg);        /* results stay for the next message */
    return RC_OK;
}

/* A user message behind results: one message, results first, as the provider wants it. */
static int user_after_results(struct history *h, struct slice content)
{
    struct span_walk w;
    struct slice block;
    int rc;
    if (span_kind(content) == '"') {
        if (!span_is(content, "")) {
            (void)buf_puts(&h->results, ",{\"type\":\"text\",\"text\":");
            put(&h->results, content);
            (void)buf_putc(&h->results, '}');
        }
    } else {
        TRY(span_enter(content, '[', &w, h->e));
        while ((rc = span_next(&w, NULL, &block, h->e)) == RC_OK) {
            comma(&h->results);
            put(&h->results, block);
        }
        if (rc != RC_NOT_FOUND)
            return rc;
    }
    message(h, "user", &h->results);
    return RC_OK;
}

static int one(struct history *h, struct slice m)
{
    struct slice role, content;
    bool typed = span_kind(m) == '{' && span_member(m, "role", &role, NULL) == RC_OK && span_member(m, "content", &content, NULL) == RC_OK;
    if (typed && span_is(role, "assistant") && span_kind(content) == '[' && history_has_mcp(content))
        return assistant(h, content);
    if (typed && span_is(role, "user") && buf_len(&h->results) && (span_kind(content) == '[' || span_kind(content) == '"'))
        return user_after_results(h, content);
    message(h, "user", &h->results);
    begin_message(h);
    put(h->out, m);
    return RC_OK;
}

static int all(struct history *h, struct slice messages)
{
    struct span_walk w;
    struct slice m;
    int rc = span_enter(messages, '[', &w, h->e);
    if (rc < 0)
        return err_wrap(h->e, rc, "messages");
    for (h->i = 0; (rc = span_next(&w, NULL, &m, h->e)) == RC_OK; h->i++) {
        h->k = 0;
        TRY(one(h, m));
    }
    if (rc != RC_NOT_FOUND)
        return err_wrap(h->e, rc, "messages");
    message(h, "user", &h->results);
    return RC_OK;
}

int history_translate(struct slice messages, struct buf *out, json_t *listings, struct err *e)
{
    struct history *h = xcalloc(1, sizeof *h);
    h->out = out;
    h->listings = listings;
    h->first = true;
    h->e = e;
    buf_init(&h->seg, out->max);
    buf_init(&h->results, out->max);
    int rc = all(h, messages);
    if (rc == RC_OK && !(buf_ok(out) && buf_ok(&h->seg) && buf_ok(&h->results)))
        rc = err_set(e, RC_TOO_LARGE, "messages: larger than %zu bytes for the provider", out->max);
    buf_done(&h->seg);
    buf_done(&h->results);
    free(h);
    return rc;
}
