#include "server/loop/snapshot.h"

#include <string.h>

#include "base/str.h"

#define SNAPSHOT_MAX (64 * MIB)
#define SCAN_LIMIT_MAX 4096

int snapshot_load(struct store *st, const char *session_id, struct snapshot *ret, struct err *e)
{
    struct snapshot s = { .arena = arena_new(16 * KIB, SNAPSHOT_MAX) };
    if (!s.arena)
        return err_set(e, RC_NOMEM, "session %s", session_id);
    int rc = st->ops->session_get(st, s.arena, session_id, &s.s, e);
    if (rc == RC_OK && js_parse(s.s.agent, strlen(s.s.agent), SNAPSHOT_MAX, &s.agent, e) < 0)
        rc = err_wrap(e, RC_INVALID, "agent of session %s", session_id);
    if (rc < 0) {
        snapshot_done(&s);
        return rc;
    }
    s.agent_name = js_str(s.agent, "name");
    if (!s.agent_name)
        s.agent_name = "";
    s.model = js_str(s.agent, "model.id");
    if (!s.model)
        s.model = js_str(s.agent, "model");
    s.system = js_str(s.agent, "system");
    *ret = s;
    return RC_OK;
}

int snapshot_record(struct store *st, const char *session_id, int64_t seq, json_t **ret, struct err *e)
{
    AUTO_PTR(arena) a = arena_new(64 * KIB, SNAPSHOT_MAX * 2);
    struct store_event *rows = NULL;
    size_t n = 0;
    if (!a)
        return err_set(e, RC_NOMEM, "log of %s", session_id);
    /* Older events that were consumed later come first: then a wider look is needed. */
    for (int limit = 1; limit <= SCAN_LIMIT_MAX && (n == 0 || rows[n - 1].seq < seq); limit *= 16)
        TRY(st->ops->event_scan(st, a, session_id, seq - 1, limit, false, &rows, &n, e));
    while (n > 0 && rows[0].seq < seq)
        rows++, n--;
    if (n == 0 || rows[0].seq != seq || !rows[0].is_private)
        return err_set(e, RC_INVALID, "log position %lld of session %s is not the record it should be", (long long)seq, session_id);
    return js_parse(rows[0].body, strlen(rows[0].body), SNAPSHOT_MAX, ret, e);
}

int snapshot_tools(struct store *st, struct snapshot *ret, int64_t tools_seq, struct err *e)
{
    AUTO_JS record = NULL;
    if (ret->mcp || tools_seq == 0)
        return RC_OK;
    TRY(snapshot_record(st, ret->s.id, tools_seq, &record, e));
    json_t *servers = json_object_get(record, "servers");
    ret->mcp = servers ? json_incref(servers) : NULL;
    return RC_OK;
}

void snapshot_done(struct snapshot *s)
{
    json_decref(s->mcp);
    json_decref(s->agent);
    arena_free(s->arena);
    memset(s, 0, sizeof *s);
}
