/* The tables and how they came to be. A migration is never changed after a release: a new one is added at the end. */
#include "store/sqlite/sqlite.h"

#define APPLICATION_ID 0x4f75746b        /* "Outk": tells our files from other SQLite databases */

/* events.k is (session number << 32 | seq): one integer key clusters a session's log and keeps its order.
 * events.ord is store_event_ord(). leases keep their row after release, so that the epoch never goes back.
 * work.claim_ms: from when a queued item may be handed out (back-off, or the end of a reservation); work.handed: polls since it was queued.
 * Large columns stand last: SQLite reads a row from the left, through overflow pages. session_state stands apart from sessions because each step writes it: the large snapshot columns stay untouched. */
static const char schema_1[] =
    "CREATE TABLE environments(id TEXT PRIMARY KEY, name TEXT NOT NULL, created_ms INTEGER NOT NULL,"
    " updated_ms INTEGER NOT NULL, archived_ms INTEGER, body TEXT NOT NULL);"
    "CREATE UNIQUE INDEX environments_name ON environments(name) WHERE archived_ms IS NULL;"
    "CREATE INDEX environments_page ON environments(created_ms, id);"

    "CREATE TABLE keys(id TEXT PRIMARY KEY, kind INTEGER NOT NULL, role INTEGER NOT NULL, name TEXT NOT NULL,"
    " env_id TEXT REFERENCES environments(id) ON DELETE CASCADE, hint TEXT NOT NULL, hash BLOB NOT NULL UNIQUE CHECK(length(hash) = 32),"
    " created_ms INTEGER NOT NULL, revoked_ms INTEGER, last_used_ms INTEGER);"
    "CREATE INDEX keys_env ON keys(env_id) WHERE env_id IS NOT NULL;"

    "CREATE TABLE agents(id TEXT PRIMARY KEY, version INTEGER NOT NULL, created_ms INTEGER NOT NULL, archived_ms INTEGER);"
    "CREATE INDEX agents_page ON agents(created_ms, id);"
    "CREATE TABLE agent_versions(agent_id TEXT NOT NULL REFERENCES agents(id) ON DELETE CASCADE, version INTEGER NOT NULL,"
    " name TEXT NOT NULL, body TEXT NOT NULL, created_ms INTEGER NOT NULL, UNIQUE(agent_id, version));"

    "CREATE TABLE sessions(sn INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, thread_id TEXT NOT NULL,"
    " env_id TEXT NOT NULL REFERENCES environments(id), agent_id TEXT NOT NULL, agent_version INTEGER NOT NULL, created_ms INTEGER NOT NULL,"
    " archived_ms INTEGER, terminated_ms INTEGER, title TEXT, metadata TEXT NOT NULL, extra TEXT NOT NULL, agent TEXT NOT NULL);"
    "CREATE INDEX sessions_page ON sessions(created_ms, id);"
    "CREATE INDEX sessions_agent ON sessions(agent_id, created_ms, id);"
    "CREATE INDEX sessions_env ON sessions(env_id);"
    "CREATE TABLE session_state(sn INTEGER PRIMARY KEY REFERENCES sessions(sn) ON DELETE CASCADE, last_seq INTEGER NOT NULL,"
    " updated_ms INTEGER NOT NULL, stop_reason TEXT, active_ms INTEGER NOT NULL, needs_worker INTEGER NOT NULL, offers INTEGER NOT NULL,"
    " input INTEGER NOT NULL, output INTEGER NOT NULL, cache_read INTEGER NOT NULL, cache_write_5m INTEGER NOT NULL,"
    " cache_write_1h INTEGER NOT NULL, requests INTEGER NOT NULL);"
    "CREATE TABLE runs(sn INTEGER PRIMARY KEY REFERENCES sessions(sn) ON DELETE CASCADE, rescheduling INTEGER NOT NULL, since_ms INTEGER);"
    "CREATE TABLE leases(sn INTEGER PRIMARY KEY REFERENCES sessions(sn) ON DELETE CASCADE, owner TEXT, epoch INTEGER NOT NULL, until_ms INTEGER NOT NULL);"
    "CREATE INDEX leases_held ON leases(sn) WHERE owner IS NOT NULL;"

    "CREATE TABLE events(k INTEGER PRIMARY KEY, sn INTEGER NOT NULL, processed_seq INTEGER NOT NULL, ord INTEGER NOT NULL,"
    " is_private INTEGER NOT NULL, is_result INTEGER NOT NULL, created_ms INTEGER NOT NULL, processed_ms INTEGER,"
    " type TEXT NOT NULL, id TEXT, ref TEXT, thread_id TEXT, body TEXT NOT NULL);"
    "CREATE UNIQUE INDEX events_id ON events(id) WHERE id IS NOT NULL;"
    "CREATE INDEX events_ord ON events(sn, ord) WHERE is_private = 0;"
    "CREATE UNIQUE INDEX events_result ON events(sn, ref) WHERE is_result = 1;"
    "CREATE INDEX events_queued ON events(sn) WHERE processed_seq = 0;"
    "CREATE INDEX events_late ON events(sn, processed_seq) WHERE processed_seq > (k & 4294967295);"

    "CREATE TABLE work(wn INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, env_id TEXT NOT NULL REFERENCES environments(id) ON DELETE CASCADE,"
    " session_id TEXT NOT NULL, state INTEGER NOT NULL, metadata TEXT NOT NULL, created_ms INTEGER NOT NULL, queued_ms INTEGER NOT NULL,"
    " claim_ms INTEGER NOT NULL, handed INTEGER NOT NULL, acknowledged_ms INTEGER, started_ms INTEGER, heartbeat_ms INTEGER,"
    " previous_ms INTEGER, replaced_ms INTEGER, lease_ms INTEGER, stop_requested_ms INTEGER, stopped_ms INTEGER);"
    "CREATE UNIQUE INDEX work_live ON work(session_id) WHERE state <> 4;"
    "CREATE INDEX work_session ON work(session_id);"
    "CREATE INDEX work_queue ON work(env_id) WHERE state = 0;"
    "CREATE INDEX work_claim ON work(claim_ms) WHERE state = 0;"
    "CREATE INDEX work_lease ON work(lease_ms) WHERE state IN (1, 2, 3);"
    "CREATE INDEX work_done ON work(stopped_ms) WHERE state = 4;"
    "CREATE INDEX work_page ON work(env_id, created_ms, id);"
    "CREATE TABLE tokens(hash BLOB PRIMARY KEY CHECK(length(hash) = 32), work_id TEXT NOT NULL REFERENCES work(id) ON DELETE CASCADE,"
    " expires_ms INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE INDEX tokens_work ON tokens(work_id);"
    "CREATE INDEX tokens_expires ON tokens(expires_ms);"
    "CREATE TABLE workers(env_id TEXT NOT NULL REFERENCES environments(id) ON DELETE CASCADE, worker_id TEXT NOT NULL, seen_ms INTEGER NOT NULL,"
    " PRIMARY KEY(env_id, worker_id)) WITHOUT ROWID;";

/* tunnel_tokens: the row without expires_ms is the current one; its text is sealed, so that it can be revealed. connectors are what the edges said last.
 * credentials.sealed is NULL once the secrets were purged. Domains are never given twice, so archived tunnels stay. */
static const char schema_2[] =
    "CREATE TABLE tunnels(id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, display_name TEXT, domain TEXT NOT NULL UNIQUE,"
    " created_ms INTEGER NOT NULL, archived_ms INTEGER);"
    "CREATE INDEX tunnels_page ON tunnels(created_ms, id);"
    "CREATE TABLE tunnel_tokens(id TEXT PRIMARY KEY, tunnel_id TEXT NOT NULL REFERENCES tunnels(id) ON DELETE CASCADE,"
    " hash BLOB NOT NULL UNIQUE CHECK(length(hash) = 32), created_ms INTEGER NOT NULL, expires_ms INTEGER, sealed BLOB NOT NULL);"
    "CREATE UNIQUE INDEX tunnel_tokens_current ON tunnel_tokens(tunnel_id) WHERE expires_ms IS NULL;"
    "CREATE TABLE tunnel_certificates(id TEXT PRIMARY KEY, tunnel_id TEXT NOT NULL REFERENCES tunnels(id) ON DELETE CASCADE,"
    " fingerprint TEXT NOT NULL, expires_ms INTEGER NOT NULL, created_ms INTEGER NOT NULL, archived_ms INTEGER, pem TEXT NOT NULL);"
    "CREATE UNIQUE INDEX tunnel_certificates_active ON tunnel_certificates(tunnel_id, fingerprint) WHERE archived_ms IS NULL;"
    "CREATE INDEX tunnel_certificates_page ON tunnel_certificates(tunnel_id, created_ms, id);"
    "CREATE TABLE edges(id TEXT PRIMARY KEY, address TEXT NOT NULL, version TEXT NOT NULL, draining INTEGER NOT NULL, seen_ms INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE connectors(edge_id TEXT NOT NULL, id TEXT NOT NULL, tunnel_id TEXT NOT NULL REFERENCES tunnels(id) ON DELETE CASCADE, token_id TEXT NOT NULL,"
    " version TEXT NOT NULL, remote_address TEXT NOT NULL, connections INTEGER NOT NULL, connected_ms INTEGER NOT NULL, seen_ms INTEGER NOT NULL,"
    " PRIMARY KEY(edge_id, id, tunnel_id)) WITHOUT ROWID;"
    "CREATE INDEX connectors_tunnel ON connectors(tunnel_id, seen_ms);"

    "CREATE TABLE vaults(id TEXT PRIMARY KEY, created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL, archived_ms INTEGER, body TEXT NOT NULL);"
    "CREATE INDEX vaults_page ON vaults(created_ms, id);"
    "CREATE TABLE credentials(id TEXT PRIMARY KEY, vault_id TEXT NOT NULL REFERENCES vaults(id) ON DELETE CASCADE, kind TEXT NOT NULL, match TEXT NOT NULL,"
    " created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL, archived_ms INTEGER, body TEXT NOT NULL, sealed BLOB);"
    "CREATE UNIQUE INDEX credentials_active ON credentials(vault_id, kind = 'environment_variable', match) WHERE archived_ms IS NULL;"
    "CREATE INDEX credentials_page ON credentials(vault_id, created_ms, id);";

/* Which edge key said that this edge is there. */
static const char schema_3[] = "ALTER TABLE edges ADD COLUMN key_id TEXT NOT NULL DEFAULT '';";

static const char *const migrations[] = { schema_1, schema_2, schema_3 };
#define SCHEMA_CURRENT ((int64_t)COUNT_OF(migrations))

/* 0: an empty file. */
static int current_version(struct db *db, int64_t *ret, struct err *e)
{
    int64_t app = 0, tables = 0;
    TRY(db_int(db, &app, e, "PRAGMA application_id", ""));
    TRY(db_int(db, &tables, e, "SELECT count(*) FROM sqlite_schema", ""));
    if (app != APPLICATION_ID) {
        if (app || tables)
            return err_set(e, RC_INVALID, "the file is a database of another program, not of outwork");
        *ret = 0;
        return RC_OK;
    }
    int64_t v = 0;
    TRY(db_int(db, &v, e, "SELECT coalesce(max(version), 0) FROM schema_version", ""));
    *ret = v;
    return RC_OK;
}

static int refuse_newer(int64_t v, struct err *e)
{
    return err_set(e, RC_UNSUPPORTED, "the database has schema %lld, this program knows schemas up to %lld: run the newer outwork that wrote it",
                   (long long)v, (long long)SCHEMA_CURRENT);
}

static int migrate_locked(struct db *db, int64_t now_ms, struct err *e)
{
    int64_t v;
    TRY(current_version(db, &v, e));        /* again: another process may have been faster */
    if (v > SCHEMA_CURRENT)
        return refuse_newer(v, e);
    if (v == 0) {
        TRY(db_script(db, "PRAGMA application_id = 1333097579;"
                          "CREATE TABLE schema_version(version INTEGER PRIMARY KEY, applied_ms INTEGER NOT NULL);", e));
    }
    for (int64_t i = v; i < SCHEMA_CURRENT; i++) {
        TRY(db_script(db, migrations[i], e));
        TRY(db_run(db, e, "INSERT INTO schema_version(version, applied_ms) VALUES(?, ?)", "ii", i + 1, now_ms));
    }
    return RC_OK;
}

int schema_migrate(struct db *db, int64_t now_ms, struct err *e)
{
    _Static_assert(APPLICATION_ID == 1333097579, "the PRAGMA above spells the same number");
    int64_t v;
    TRY(current_version(db, &v, e));
    if (v > SCHEMA_CURRENT)
        return refuse_newer(v, e);
    if (v == SCHEMA_CURRENT)
        return RC_OK;
    TRY(db_script(db, "BEGIN IMMEDIATE", e));
    int rc = migrate_locked(db, now_ms, e);
    if (rc == RC_OK)
        rc = db_script(db, "COMMIT", e);
    if (rc < 0) {
        db_rollback(db);
        return err_wrap(e, rc, "migrate the database from schema %lld", (long long)v);
    }
    return RC_OK;
}

int schema_check(struct db *db, struct err *e)
{
    int64_t v;
    TRY(current_version(db, &v, e));
    if (v > SCHEMA_CURRENT)
        return refuse_newer(v, e);
    if (v < SCHEMA_CURRENT)
        return err_set(e, RC_IO, "the database has schema %lld, %lld is needed: restart the server", (long long)v, (long long)SCHEMA_CURRENT);
    return RC_OK;
}
