#include "server/loop/snapshot.h"

#include <string.h>

#include "base/str.h"

#define SNAPSHOT_MAX (64 * MIB)

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

void snapshot_done(struct snapshot *s)
{
    json_decref(s->agent);
    arena_free(s->arena);
    memset(s, 0, sizeof *s);
}
