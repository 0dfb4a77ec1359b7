/* The SQLite back end: opening the file, and its table of operations. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/str.h"
#include "store/backend.h"
#include "store/sqlite/sqlite.h"

#define OPEN_TRIES 100           /* times OPEN_WAIT_NS: 5 s */
#define OPEN_WAIT_NS 50000000

static void sqlite_close(struct store *st)
{
    struct sqlite_store *s = sqlite_of(st);
    readers_free(s->readers);        /* before the writer: the connection that closes last copies the log back and removes it */
    writer_free(s->writer);
    sightings_free(s->sightings);
    (void)pthread_mutex_destroy(&s->lock);
    free(s->path);
    free(s);
}

static void sqlite_on_note(struct store *st, store_note_fn fn, void *ctx)
{
    sqlite_of(st)->note = fn;
    sqlite_of(st)->note_ctx = ctx;
}

static int sqlite_ping(struct store *st, struct err *e)
{
    AUTO_READER rd = { 0 };
    TRY(reader_take(sqlite_of(st), &rd, e));
    return schema_check(rd.db, e);
}

/* The directory of the file: made when it is missing, and who owns it. */
static int make_dir_of(const char *path, struct stat *ret, struct err *e)
{
    AUTO_FREE char *dir = str_dup(path);
    char *slash = strrchr(dir, '/');
    if (slash && slash != dir) {
        *slash = '\0';
        TRY(fd_mkdirs(dir, 0700, e));
    }
    const char *name = !slash ? "." : slash == dir ? "/" : dir;
    return stat(name, ret) < 0 ? err_sys(e, RC_IO, errno, "directory '%s'", name) : RC_OK;
}

/* Only the owner may read or write the file; SQLite gives its -wal and -shm files the same mode. An existing file is never opened here: closing
 * it would drop the POSIX locks of a store that this process has open already. */
static int make_file(const char *path, bool create, struct err *e)
{
    struct stat sb;
    if (stat(path, &sb) == 0) {
        if (!S_ISREG(sb.st_mode))
            return err_set(e, RC_INVALID, "'%s' is not a regular file", path);
        if ((sb.st_mode & 077) && chmod(path, sb.st_mode & 0700) < 0)
            return err_sys(e, RC_DENIED, errno, "database '%s' is open to other users and its mode cannot be changed", path);
        return RC_OK;
    }
    if (errno != ENOENT)
        return err_sys(e, RC_IO, errno, "open database '%s'", path);
    if (!create)
        return err_set(e, RC_NOT_FOUND, "there is no database '%s'", path);
    TRY(make_dir_of(path, &sb, e));
    AUTO_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 && errno != EEXIST)
        return err_sys(e, RC_IO, errno, "create database '%s'", path);
    /* Made by root in a service user's directory: the service must be able to open it. */
    if (fd >= 0 && geteuid() == 0 && sb.st_uid != 0 && fchown(fd, sb.st_uid, sb.st_gid) < 0)
        return err_sys(e, RC_IO, errno, "give database '%s' to its directory's owner", path);
    return RC_OK;
}

/* Two processes may make the same new database at once; the loser's switch to WAL is refused without waiting. */
static int open_writer(const char *path, struct db **ret, struct err *e)
{
    int rc = RC_AGAIN;
    for (int i = 0; i < OPEN_TRIES && rc == RC_AGAIN; i++) {
        if (i)
            (void)nanosleep(&(struct timespec){ .tv_nsec = OPEN_WAIT_NS }, NULL);
        rc = db_open(path, DB_WRITER, ret, e);
    }
    TRY(rc);
    rc = schema_migrate(*ret, clock_now_ms(), e);
    if (rc < 0) {
        db_close(*ret);
        return err_wrap(e, rc, "database '%s'", path);
    }
    return RC_OK;
}

static int sqlite_open(const char *path, bool create, struct store **ret, struct err *e)
{
    if (!*path)
        return err_set(e, RC_INVALID, "the database needs a path");
    if (!sqlite3_threadsafe())
        return err_set(e, RC_UNSUPPORTED, "this SQLite library was built without threads");
    TRY(make_file(path, create, e));
    struct db *db;
    TRY(open_writer(path, &db, e));
    struct sqlite_store *s = xcalloc(1, sizeof *s);
    s->base.ops = &sqlite_ops;
    s->path = str_dup(path);
    (void)pthread_mutex_init(&s->lock, NULL);
    s->expired_ms = -1;
    s->readers = readers_new();
    s->sightings = sightings_new();
    int rc = writer_new(s, db, &s->writer, e);
    if (rc < 0) {
        sqlite_close(&s->base);
        return rc;
    }
    *ret = &s->base;
    return RC_OK;
}

const struct store_backend store_backend_sqlite = { "sqlite", sqlite_open };

const struct store_ops sqlite_ops = {
    .name = "sqlite", .close = sqlite_close, .on_note = sqlite_on_note, .ping = sqlite_ping,
    .key_create = sqlite_key_create, .key_find = sqlite_key_find, .key_list = sqlite_key_list, .key_revoke = sqlite_key_revoke,
    .token_find = sqlite_token_find,
    .agent_create = sqlite_agent_create, .agent_get = sqlite_agent_get, .agent_update = sqlite_agent_update,
    .agent_archive = sqlite_agent_archive, .agent_list = sqlite_agent_list, .agent_versions = sqlite_agent_versions,
    .environment_create = sqlite_environment_create, .environment_get = sqlite_environment_get, .environment_update = sqlite_environment_update,
    .environment_archive = sqlite_environment_archive, .environment_delete = sqlite_environment_delete, .environment_list = sqlite_environment_list,
    .session_create = sqlite_session_create, .session_get = sqlite_session_get, .session_list = sqlite_session_list,
    .session_archive = sqlite_session_archive, .session_delete = sqlite_session_delete,
    .step = sqlite_step, .event_list = sqlite_event_list, .event_scan = sqlite_event_scan, .event_get = sqlite_event_get,
    .lease_claim = sqlite_lease_claim, .lease_renew = sqlite_lease_renew, .lease_release = sqlite_lease_release,
    .lease_orphans = sqlite_lease_orphans, .lease_clear = sqlite_lease_clear,
    .work_poll = sqlite_work_poll, .work_ack = sqlite_work_ack, .work_heartbeat = sqlite_work_heartbeat, .work_stop = sqlite_work_stop,
    .work_get = sqlite_work_get, .work_list = sqlite_work_list, .work_update = sqlite_work_update, .work_stats = sqlite_work_stats,
    .work_expire = sqlite_work_expire,
    .tunnel = &sqlite_tunnel_ops, .vault = &sqlite_vault_ops,
};
