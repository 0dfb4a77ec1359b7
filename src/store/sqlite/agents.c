/* Agents: a head row with the latest version's number, and one row per version. */
#include "store/sqlite/sqlite.h"

/* A version's updated_ms is the time it was made; created_ms and archived_ms are the agent's. */
#define AGENT_SELECT "SELECT a.id, v.name, v.body, v.version, a.created_ms, v.created_ms, a.archived_ms FROM agents a JOIN agent_versions v ON v.agent_id = a.id"

static struct store_agent agent_row(struct row *r)
{
    struct store_agent g = { 0 };
    g.id = row_text(r);
    g.name = row_text(r);
    g.body = row_text(r);
    g.version = row_int(r);
    g.created_ms = row_int(r);
    g.updated_ms = row_int(r);
    g.archived_ms = row_time(r);
    return g;
}

static void read_agent(struct row *r, void *ret, const void *ctx)
{
    (void)ctx;
    *(struct store_agent *)ret = agent_row(r);
}

static int no_agent(struct err *e, const char *id) { return err_set(e, RC_NOT_FOUND, "no agent '%s'", id); }

static int agent_create_tx(struct tx *t, void *arg, struct err *e)
{
    const struct store_agent *g = arg;
    int64_t version = g->version > 0 ? g->version : 1;
    int rc = db_run(t->db, e, "INSERT INTO agents(id, version, created_ms) VALUES(?, ?, ?)", "sii", g->id, version, g->created_ms);
    if (rc < 0)
        return rc == RC_CONFLICT ? err_set(e, rc, "agent '%s' exists already", g->id) : rc;
    return db_run(t->db, e, "INSERT INTO agent_versions(agent_id, version, name, body, created_ms) VALUES(?, ?, ?, ?, ?)", "sissi", g->id, version,
                  g->name, g->body, g->created_ms);
}

int sqlite_agent_create(struct store *st, const struct store_agent *in, struct err *e)
{
    if (!in->id || !in->name || !in->body)
        return err_set(e, RC_INVALID, "an agent needs id, name and body");
    struct store_agent g = *in;
    return writer_run(sqlite_of(st), agent_create_tx, &g, e);
}

int sqlite_agent_get(struct store *st, struct arena *a, const char *id, int64_t version, struct store_agent *ret, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, AGENT_SELECT " AND v.version = CASE ?2 WHEN 0 THEN a.version ELSE ?2 END WHERE a.id = ?1", "si", id, version));
    int rc = row_next(&r, e);
    if (rc < 0)
        return rc;
    if (rc == 0)
        return version ? err_set(e, RC_NOT_FOUND, "no version %lld of agent '%s'", (long long)version, id) : no_agent(e, id);
    struct store_agent g = agent_row(&r);
    TRY(row_ok(&r, e));
    *ret = g;
    return RC_OK;
}

struct agent_update { const char *id, *name, *body; int64_t expect, now_ms; };

static int agent_update_tx(struct tx *t, void *arg, struct err *e)
{
    const struct agent_update *u = arg;
    {
        AUTO_ROW r = { 0 };
        TRY(db_query(t->db, &r, NULL, e, "SELECT version, archived_ms FROM agents WHERE id = ?", "s", u->id));
        int rc = row_next(&r, e);
        if (rc <= 0)
            return rc < 0 ? rc : no_agent(e, u->id);
        int64_t version = row_int(&r);
        if (row_time(&r) >= 0)
            return err_set(e, RC_INVALID, "agent '%s' is archived", u->id);
        if (version != u->expect)
            return err_set(e, RC_CONFLICT, "agent '%s' is at version %lld, not %lld", u->id, (long long)version, (long long)u->expect);
    }
    TRY(db_run(t->db, e, "UPDATE agents SET version = version + 1 WHERE id = ?", "s", u->id));
    return db_run(t->db, e, "INSERT INTO agent_versions(agent_id, version, name, body, created_ms) VALUES(?, ?, ?, ?, ?)", "sissi", u->id, u->expect + 1,
                  u->name, u->body, u->now_ms);
}

int sqlite_agent_update(struct store *st, const char *id, int64_t expect, const char *name, const char *body, int64_t now_ms, struct err *e)
{
    struct agent_update u = { id, name, body, expect, now_ms };
    return writer_run(sqlite_of(st), agent_update_tx, &u, e);
}

static int agent_archive_tx(struct tx *t, void *arg, struct err *e)
{
    const struct agent_update *u = arg;
    TRY(db_run(t->db, e, "UPDATE agents SET archived_ms = coalesce(archived_ms, ?) WHERE id = ?", "is", u->now_ms, u->id));
    return db_changes(t->db) ? RC_OK : no_agent(e, u->id);
}

int sqlite_agent_archive(struct store *st, const char *id, int64_t now_ms, struct err *e)
{
    struct agent_update u = { .id = id, .now_ms = now_ms };
    return writer_run(sqlite_of(st), agent_archive_tx, &u, e);
}

int sqlite_agent_list(struct store *st, struct arena *a, const struct store_page *p, struct store_agent **ret, size_t *ret_n, struct err *e)
{
    struct query q = { 0 };
    query_add(&q, AGENT_SELECT " AND v.version = a.version WHERE 1", "");
    page_live(&q, p, "a");
    return rows_page(st, a, &q, p, "a", read_agent, NULL, sizeof **ret, ret, ret_n, e);
}

/* Newest first; `before_version` 0: from the latest. */
int sqlite_agent_versions(struct store *st, struct arena *a, const char *id, int limit, int64_t before_version, struct store_agent **ret, size_t *ret_n, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    int64_t one;
    int rc = db_int(rd.db, &one, e, "SELECT 1 FROM agents WHERE id = ?", "s", id);
    if (rc < 0)
        return rc == RC_NOT_FOUND ? no_agent(e, id) : rc;
    AUTO_ROW r = { 0 };
    TRY(db_query(rd.db, &r, a, e, AGENT_SELECT " WHERE a.id = ?1 AND (?2 = 0 OR v.version < ?2) ORDER BY v.version DESC LIMIT ?3", "sid", id, before_version,
                 page_limit(limit)));
    return rows_read(&r, read_agent, NULL, sizeof **ret, ret, ret_n, e);
}
