/* server/api/agents.c - agents and their versions (api.md 2). */
#include <string.h>

#include "server/api/call.h"

#define LIMIT_DEFAULT 20
#define UPDATE_TRIES 8           /* last write wins: against other writers without `version` */

static int not_found(struct call *c)
{
    return call_fail(c, RC_NOT_FOUND, "Agent '%.60s' not found.", c->param[0]);
}

static int load(struct call *c, int64_t version, struct store_agent *ret)
{
    int rc = c->store->ops->agent_get(c->store, c->arena, c->param[0], version, ret, &c->e);
    if (rc == RC_NOT_FOUND && version)
        return call_fail(c, rc, "Agent '%.60s' has no version %lld, or does not exist.", c->param[0], (long long)version);
    return rc == RC_NOT_FOUND ? not_found(c) : rc;
}

static int answer(struct call *c)
{
    struct store_agent a;
    TRY(load(c, 0, &a));
    view_agent(&c->out, &a);
    return RC_OK;
}

int agents_list(struct call *c)
{
    struct page p;
    struct store_agent *rows;
    size_t n, first;
    TRY(page_read(c, CURSOR_AGENTS, "", false, LIMIT_DEFAULT, &p));
    TRY(c->store->ops->agent_list(c->store, c->arena, &p.st, &rows, &n, &c->e));
    bool more = page_cut(&p, n, &first, &n);
    buf_puts(&c->out, "{\"data\":[");
    for (size_t i = 0; i < n; i++) {
        if (i)
            buf_putc(&c->out, ',');
        view_agent(&c->out, &rows[first + i]);
    }
    struct page_key last = n ? (struct page_key){ rows[first + n - 1].created_ms, rows[first + n - 1].id } : (struct page_key){ 0, NULL };
    page_end(&p, &c->out, more, false, last, last);
    return RC_OK;
}

int agents_create(struct call *c)
{
    AUTO_JS agent = agent_blank();
    char id[ID_MAX];
    TRY(agent_apply(c, agent, c->body, false));
    AUTO_FREE char *body = js_text(agent);
    id_new("agent", id);
    struct store_agent in = {
        .id = id, .name = js_str(agent, "name"), .body = body, .version = 1, .created_ms = c->now_ms, .updated_ms = c->now_ms, .archived_ms = -1,
    };
    TRY(c->store->ops->agent_create(c->store, &in, &c->e));
    view_agent(&c->out, &in);
    return RC_OK;
}

int agents_get(struct call *c)
{
    struct store_agent a;
    TRY(load(c, js_int(c->query, "version", 0), &a));
    view_agent(&c->out, &a);
    return RC_OK;
}

/* One try against the latest version. RC_CONFLICT: somebody else was first. */
static int update_once(struct call *c)
{
    struct store_agent a;
    TRY(load(c, 0, &a));
    int64_t expect = js_int(c->body, "version", a.version);
    if (a.archived_ms >= 0)
        return call_fail(c, RC_INVALID, "Agent '%.60s' is archived and cannot be changed.", a.id);
    if (expect != a.version) {       /* also for what would be a no-op */
        c->no_retry = true;
        return call_fail(c, RC_CONFLICT, "version: the agent is at version %lld, not %lld", (long long)a.version, (long long)expect);
    }
    AUTO_JS old = parse_stored(a.body);
    AUTO_JS agent = json_deep_copy(old);
    TRY(agent_apply(c, agent, c->body, false));
    if (json_equal(old, agent))
        return RC_OK;
    AUTO_FREE char *body = js_text(agent);
    return c->store->ops->agent_update(c->store, a.id, a.version, js_str(agent, "name"), body, c->now_ms, &c->e);
}

int agents_update(struct call *c)
{
    int rc = RC_CONFLICT;
    bool locked = json_object_get(c->body, "version") != NULL;
    for (int i = 0; rc == RC_CONFLICT && i < (locked ? 1 : UPDATE_TRIES); i++)
        rc = update_once(c);
    if (rc == RC_CONFLICT && locked)
        c->no_retry = true;
    return rc < 0 ? rc : answer(c);
}

int agents_archive(struct call *c)
{
    int rc = c->store->ops->agent_archive(c->store, c->param[0], c->now_ms, &c->e);
    if (rc == RC_NOT_FOUND)
        return not_found(c);
    return rc < 0 ? rc : answer(c);
}

int agents_versions(struct call *c)
{
    struct page p;
    struct store_agent *rows, a;
    size_t n, first;
    TRY(load(c, 0, &a));
    TRY(page_read(c, CURSOR_VERSIONS, c->param[0], false, LIMIT_DEFAULT, &p));
    int64_t before = p.has_cursor ? p.cur.pos : 0;
    TRY(c->store->ops->agent_versions(c->store, c->arena, c->param[0], p.st.limit, before, &rows, &n, &c->e));
    bool more = page_cut(&p, n, &first, &n);
    buf_puts(&c->out, "{\"data\":[");
    for (size_t i = 0; i < n; i++) {
        if (i)
            buf_putc(&c->out, ',');
        view_agent(&c->out, &rows[first + i]);
    }
    struct page_key last = n ? (struct page_key){ rows[first + n - 1].version, "" } : (struct page_key){ 0, NULL };
    page_end(&p, &c->out, more, false, last, last);
    return RC_OK;
}
