/* Opens a store by its dsn, and the names of the enums that every back end and the API share. */
#include "store/store.h"

#include <string.h>

#include "base/str.h"
#include "store/backend.h"

#define SCHEME_MAX 16            /* longest "scheme:" with NUL; anything longer in front of a colon is a path */

static const struct store_backend *const backends[] = { &store_backend_sqlite };

const struct store_backend *store_backend_at(size_t i)
{
    return i < COUNT_OF(backends) ? backends[i] : NULL;
}

/* "sqlite:/x" has a scheme; "/x:y", "./a:b" and "C" have none. */
static bool split_scheme(const char *dsn, char scheme[SCHEME_MAX], const char **ret_rest)
{
    size_t n = strcspn(dsn, ":/");
    if (dsn[n] != ':' || n == 0 || n >= SCHEME_MAX)
        return false;
    memcpy(scheme, dsn, n);
    scheme[n] = '\0';
    *ret_rest = dsn + n + 1;
    return true;
}

int store_open(const char *dsn, bool create, struct store **ret, struct err *e)
{
    char scheme[SCHEME_MAX] = "sqlite";
    const char *rest = dsn;
    if (!dsn || !*dsn)
        return err_set(e, RC_INVALID, "the store needs a path or a dsn such as sqlite:/var/lib/outwork/outwork.db");
    (void)split_scheme(dsn, scheme, &rest);
    for (size_t i = 0; i < COUNT_OF(backends); i++)
        if (str_eq(backends[i]->scheme, scheme))
            return backends[i]->open(rest, create, ret, e);
    return err_set(e, RC_UNSUPPORTED, "no store back end '%s' in this build; use a path or sqlite:<path>", scheme);
}

void store_close(struct store *st)
{
    if (st)
        st->ops->close(st);
}

static const char *const session_status_names[SESSION_STATUS_MAX_] = {
    [SESSION_IDLE] = "idle", [SESSION_RUNNING] = "running", [SESSION_RESCHEDULING] = "rescheduling", [SESSION_TERMINATED] = "terminated",
};

const char *session_status_name(enum session_status s)
{
    return (unsigned)s < SESSION_STATUS_MAX_ ? session_status_names[s] : "unknown";
}

int session_status_parse(const char *s, enum session_status *ret)
{
    for (int i = 0; i < SESSION_STATUS_MAX_; i++)
        if (str_eq(s, session_status_names[i])) {
            *ret = (enum session_status)i;
            return RC_OK;
        }
    return RC_INVALID;
}

const char *work_state_name(enum work_state s)
{
    static const char *const names[WORK_STATE_MAX_] = {
        [WORK_QUEUED] = "queued", [WORK_STARTING] = "starting", [WORK_ACTIVE] = "active", [WORK_STOPPING] = "stopping", [WORK_STOPPED] = "stopped",
    };
    return (unsigned)s < WORK_STATE_MAX_ ? names[s] : "unknown";
}
