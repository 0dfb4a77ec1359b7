/* request_mcp.c - mcp_servers, their toolsets and a history with their blocks: checked, and written as the provider takes it. Pure. */
#include <stdio.h>
#include <string.h>

#include "base/secret.h"
#include "json/span.h"
#include "server/messages/history.h"
#include "server/messages/private.h"

#define SERVER_NAME_MAX 255
#define URL_MAX 2048
#define TOKEN_TEXT_MAX (16 * KIB)
#define SERVERS_TEXT_MAX (1 * MIB)
#define PARTS_MAX 4096                       /* entries of `tools` */

static const struct { const char *value; enum beta beta; } betas[] = {
    { "mcp-client-2025-04-04", BETA_MCP_2025_04 }, { "mcp-client-2025-11-20", BETA_MCP_2025_11 }, { "mcp-client-2026-09-15", BETA_MCP_2026_09 },
};

/* Which of the values are there; they are taken out of the line, as the provider gets no MCP. */
static void read_betas(struct request *q)
{
    static const char name[] = "anthropic-beta: ";
    for (size_t i = 0; i < q->n_headers; i++) {
        if (!str_prefix(q->headers[i], name))
            continue;
        struct buf line;
        size_t kept = 0;
        buf_init(&line, strlen(q->headers[i]) + 2);
        (void)buf_puts(&line, name);
        for (const char *p = q->headers[i] + strlen(name); *p;) {
            size_t n = strcspn(p, ",");
            struct slice v = slice_trim((struct slice){ p, n });
            bool mine = false;
            for (size_t k = 0; k < COUNT_OF(betas); k++)
                if (slice_eq(v, betas[k].value)) {
                    q->betas |= betas[k].beta;
                    mine = true;
                }
            if (!mine && v.n) {
                if (kept++)
                    (void)buf_putc(&line, ',');
                (void)buf_put(&line, v.p, v.n);
            }
            p += n + (p[n] == ',');
        }
        free(q->headers[i]);
        q->headers[i] = kept ? buf_take(&line, NULL) : NULL;
        buf_done(&line);
        if (!q->headers[i])
            q->headers[i] = q->headers[--q->n_headers];
        return;
    }
}

/* ---- mcp_servers ---- */

/* The older form says in the server which of its tools are wanted. */
static json_t *toolset_of(const char *server, const json_t *configuration)
{
    json_t *set = json_object(), *dflt = json_object(), *configs = json_object(), *name;
    const json_t *allowed = json_object_get(configuration, "allowed_tools");
    bool enabled = js_bool(configuration, "enabled", true);
    size_t i;
    js_set_str(set, "type", "mcp_toolset");
    js_set_str(set, "mcp_server_name", server);
    js_set_bool(dflt, "enabled", enabled && !json_is_array(allowed));
    json_array_foreach(allowed, i, name) {
        json_t *on = json_object();
        js_set_bool(on, "enabled", enabled);
        if (json_is_string(name))
            js_set(configs, json_string_value(name), on);
        else
            json_decref(on);
    }
    js_set(set, "default_config", dflt);
    js_set(set, "configs", configs);
    return set;
}

static int read_server(struct request *q, size_t i, const json_t *v, struct err *e)
{
    const char *name = js_str(v, "name"), *url = js_str(v, "url"), *token = js_str(v, "authorization_token");
    struct server *s = &q->servers[q->n_servers];
    if (!str_eq(js_str(v, "type"), "url"))
        return err_set(e, RC_INVALID, "mcp_servers.%zu.type: expected \"url\"", i);
    if (!name || !name[0] || strlen(name) > SERVER_NAME_MAX)
        return err_set(e, RC_INVALID, "mcp_servers.%zu.name: expected a string of 1 to %d bytes", i, SERVER_NAME_MAX);
    if (!url || strlen(url) > URL_MAX || !(str_prefix(url, "https://") || str_prefix(url, "http://")))
        return err_set(e, RC_INVALID, "mcp_servers.%zu.url: must start with https:// and have at most %d bytes", i, URL_MAX);
    if (json_object_get(v, "authorization_token") && !js_is_null(v, "authorization_token") && !token)
        return err_set(e, RC_INVALID, "mcp_servers.%zu.authorization_token: expected a string", i);
    if (token && (strlen(token) > TOKEN_TEXT_MAX || token[strcspn(token, "\r\n")]))
        return err_set(e, RC_INVALID, "mcp_servers.%zu.authorization_token: longer than %zu bytes, or with a line break", i, TOKEN_TEXT_MAX);
    for (size_t k = 0; k < q->n_servers; k++)
        if (str_eq(q->servers[k].name, name))
            return err_set(e, RC_INVALID, "mcp_servers.%zu.name: '%.100s' is there twice", i, name);
    *s = (struct server){ .name = str_dup(name), .url = str_dup(url), .token = token && token[0] ? secret_new(token, strlen(token)) : NULL };
    q->n_servers++;
    if (q->betas == BETA_MCP_2025_04)
        s->toolset = toolset_of(name, json_object_get(v, "tool_configuration"));
    return RC_OK;
}

static int read_servers(struct request *q, struct slice text, struct err *e)
{
    AUTO_JS list = NULL;
    json_t *v;
    size_t i;
    if (js_parse(text.p, text.n, SERVERS_TEXT_MAX, &list, NULL) < 0)         /* the reason could quote a token */
        return err_set(e, RC_INVALID, "mcp_servers: a name is there twice, a text is not UTF-8, or it is larger than %zu bytes", SERVERS_TEXT_MAX);
    if (json_is_null(list))
        return RC_OK;
    if (!json_is_array(list) || json_array_size(list) > SERVERS_MAX)
        return err_set(e, RC_INVALID, "mcp_servers: expected an array of at most %d", SERVERS_MAX);
    if (json_array_size(list) && !q->betas)
        return err_set(e, RC_INVALID, "mcp_servers: needs the header 'anthropic-beta: mcp-client-2025-11-20'");
    json_array_foreach(list, i, v)
        TRY(read_server(q, i, v, e));
    return RC_OK;
}

/* ---- tools ---- */

static int check_config(const char *where, const json_t *c, struct err *e)
{
    const char *const keys[] = { "enabled", "defer_loading" };
    if (c && !json_is_object(c) && !json_is_null(c))
        return err_set(e, RC_INVALID, "%s: expected an object", where);
    for (size_t k = 0; k < COUNT_OF(keys); k++) {
        const json_t *v = json_object_get(c, keys[k]);
        if (v && !json_is_boolean(v) && !json_is_null(v))
            return err_set(e, RC_INVALID, "%s.%s: expected true or false", where, keys[k]);
    }
    return RC_OK;
}

static int check_toolset(struct request *q, size_t i, const json_t *set, struct err *e)
{
    char where[80];
    const char *key;
    json_t *v, *configs = json_object_get(set, "configs"), *pin = json_object_get(set, "tools");
    (void)snprintf(where, sizeof where, "tools.%zu.default_config", i);
    TRY(check_config(where, json_object_get(set, "default_config"), e));
    if (configs && !json_is_object(configs) && !json_is_null(configs))
        return err_set(e, RC_INVALID, "tools.%zu.configs: expected an object", i);
    (void)snprintf(where, sizeof where, "tools.%zu.configs", i);
    json_object_foreach(configs, key, v)
        TRY(check_config(where, v, e));
    if (pin && !json_is_null(pin) && (!json_is_array(pin) || !(q->betas & BETA_MCP_2026_09)))
        return err_set(e, RC_INVALID, "tools.%zu.tools: expected an array, with the header 'anthropic-beta: mcp-client-2026-09-15'", i);
    return RC_OK;
}

static int read_toolset(struct request *q, size_t i, struct slice raw, struct part *p, struct err *e)
{
    AUTO_JS set = NULL;
    if (js_parse(raw.p, raw.n, TOOLS_BYTES_MAX, &set, e) < 0)
        return err_wrap(e, RC_INVALID, "tools.%zu", i);
    const char *name = js_str(set, "mcp_server_name");
    struct server *s = NULL;
    for (size_t k = 0; k < q->n_servers; k++)
        if (str_eq(q->servers[k].name, name))
            s = &q->servers[k];
    if (!s)
        return err_set(e, RC_INVALID, "tools.%zu.mcp_server_name: '%.100s' is not in mcp_servers", i, name ? name : "");
    if (s->toolset)
        return err_set(e, RC_INVALID, "tools.%zu: the MCP server '%.100s' has a toolset already", i, name);
    TRY(check_toolset(q, i, set, e));
    if (json_is_array(json_object_get(set, "tools")))
        s->pinned = json_incref(json_object_get(set, "tools"));
    s->toolset = TAKE(set);
    *p = (struct part){ .server = s };
    return RC_OK;
}

static struct part *part_new(struct request *q)
{
    if (q->n_parts % 64 == 0)
        q->parts = xrealloc(q->parts, q->n_parts + 64, sizeof *q->parts);
    q->parts[q->n_parts] = (struct part){ .raw = { NULL, 0 } };
    return &q->parts[q->n_parts++];
}

static int read_tools(struct request *q, struct slice tools, struct err *e)
{
    struct span_walk w;
    struct slice v, type;
    int rc;
    if (q->betas == BETA_MCP_2025_04)        /* its servers bring their tools themselves, in front */
        for (size_t k = 0; k < q->n_servers; k++)
            part_new(q)->server = &q->servers[k];
    if (tools.p && span_kind(tools) != 'n') {
        if ((rc = span_enter(tools, '[', &w, e)) < 0)
            return err_wrap(e, rc, "tools");
        for (size_t i = 0; (rc = span_next(&w, NULL, &v, e)) == RC_OK; i++) {
            if (i == PARTS_MAX)
                return err_set(e, RC_INVALID, "tools: more than %d", PARTS_MAX);
            struct part *p = part_new(q);
            if (span_kind(v) == '{' && span_member(v, "type", &type, NULL) == RC_OK && span_is(type, "mcp_toolset"))
                TRY(read_toolset(q, i, v, p, e));
            else
                p->raw = v;
        }
        if (rc != RC_NOT_FOUND)
            return err_wrap(e, rc, "tools");
        q->has_tools = true;
    }
    for (size_t k = 0; k < q->n_servers; k++)
        if (!q->servers[k].toolset)
            return err_set(e, RC_INVALID, "mcp_servers.%zu: '%.100s' has no mcp_toolset in tools", k, q->servers[k].name);
    return RC_OK;
}

static bool has_toolset(struct slice tools)
{
    static const char type[] = "\"mcp_toolset\"";
    return tools.p && memmem(tools.p, tools.n, type, sizeof type - 1) != NULL;
}

/* What is said in every place of the request that is not rewritten, as it came. */
static int read_rest(struct request *q, struct err *e)
{
    static const char *const ours[] = { "stream", "mcp_servers", "tools", "messages" };
    struct span_walk w;
    struct slice key, value;
    int rc;
    buf_init(&q->rest, REWRITTEN_MAX);
    TRY(span_enter((struct slice){ buf_data(&q->body), buf_len(&q->body) }, '{', &w, e));
    while ((rc = span_next(&w, &key, &value, e)) == RC_OK) {
        bool mine = false;
        for (size_t i = 0; i < COUNT_OF(ours); i++)
            mine = mine || span_key_is(key, ours[i]);
        if (mine)
            continue;
        (void)buf_putc(&q->rest, '"');
        (void)buf_put(&q->rest, key.p, key.n);
        (void)buf_puts(&q->rest, "\":");
        (void)buf_put(&q->rest, value.p, value.n);
        (void)buf_putc(&q->rest, ',');
    }
    return rc == RC_NOT_FOUND ? RC_OK : rc;
}

int request_read_mcp(struct request *q, struct slice servers, struct slice tools, struct slice messages, struct err *e)
{
    bool blocks = history_has_mcp(messages);
    if (!servers.p && !blocks && !has_toolset(tools))
        return RC_OK;
    q->rewrite = true;
    read_betas(q);
    if (servers.p)
        TRY(read_servers(q, servers, e));
    TRY(read_tools(q, tools, e));
    AUTO_JS listings = json_object();
    buf_init(&q->history, REWRITTEN_MAX);
    if (messages.p)
        TRY(history_translate(messages, &q->history, listings, e));
    for (size_t k = 0; k < q->n_servers; k++) {
        json_t *known = q->betas & BETA_MCP_2026_09 ? json_object_get(listings, q->servers[k].name) : NULL;
        if (!q->servers[k].pinned && known)
            q->servers[k].pinned = json_incref(known);
    }
    return read_rest(q, e);
}

int request_names(const struct request *q, const struct tools *t, struct err *e)
{
    struct slice name;
    for (size_t i = 0; i < q->n_parts; i++) {
        if (!q->parts[i].raw.p || span_kind(q->parts[i].raw) != '{' || span_member(q->parts[i].raw, "name", &name, NULL) < 0)
            continue;
        for (size_t k = 0; k < t->n; k++)
            if (span_is(name, t->at[k].mapped))
                return err_set(e, RC_INVALID, "tools: the name '%s' is that of a tool of the MCP server '%.100s'", t->at[k].mapped, t->at[k].server);
    }
    return RC_OK;
}

static void put_buf(struct buf *out, const struct buf *b)
{
    (void)buf_put(out, buf_data((struct buf *)(uintptr_t)b), buf_len(b));
}

int request_write(const struct request *q, const struct buf *defs, const struct buf *more, bool stream, struct buf *out, struct err *e)
{
    (void)buf_reserve(out, buf_len(&q->rest) + buf_len(&q->history) + buf_len(more) + 4 * KIB);      /* one large piece instead of growing to it */
    (void)buf_putc(out, '{');
    put_buf(out, &q->rest);
    if (stream)
        (void)buf_puts(out, "\"stream\":true,");
    if (q->has_tools || q->n_servers) {
        size_t n = 0;
        (void)buf_puts(out, "\"tools\":[");
        for (size_t i = 0; i < q->n_parts; i++) {
            const struct part *p = &q->parts[i];
            const struct buf *d = p->raw.p ? NULL : &defs[p->server - q->servers];
            if (d && !buf_len(d))
                continue;
            if (n++)
                (void)buf_putc(out, ',');
            if (d)
                put_buf(out, d);
            else
                (void)buf_put(out, p->raw.p, p->raw.n);
        }
        (void)buf_puts(out, "],");
    }
    (void)buf_puts(out, "\"messages\":[");
    put_buf(out, &q->history);
    if (buf_len(more)) {
        if (buf_len(&q->history))
            (void)buf_putc(out, ',');
        put_buf(out, more);
    }
    (void)buf_puts(out, "]}");
    return buf_ok(out) ? RC_OK : err_set(e, RC_TOO_LARGE, "the request and what its tools answered are larger than %zu bytes", REWRITTEN_MAX);
}
