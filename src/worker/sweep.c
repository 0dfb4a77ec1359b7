/* worker/sweep.c - see sweep.h */
#include "worker/sweep.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/str.h"
#include "log/log.h"
#include "worker/item.h"
#include "worker/record.h"

#define FIRST_MS 15000
#define GO_ON_MS 1000

static void forget(struct worker *w, const char *session_id)
{
    struct err e;
    int rc = sbx_forget(w->sbx, session_id, &e);
    if (rc < 0) {
        log_warn("session.forget_failed", "session=%s why=%s", session_id, e.msg);
        return;
    }
    log_info("session.forgotten", "session=%s", session_id);
    json_t *f = json_object();
    js_set_str(f, "session", session_id);
    js_set_str(f, "change", "files removed");
    record_add(w->record, "session", f);
}

static void on_sweep(struct ev_timer *t)
{
    struct worker *w = container_of(t, struct worker, sweep);
    AUTO_FREE char *path = str_printf("%s/sessions", w->set.state_dir);
    int64_t oldest = clock_now_ms() - w->set.keep_sessions;
    int removed = 0;
    DIR *d = opendir(path);
    struct dirent *en;
    while (d && removed < SWEEP_AT_ONCE && (en = readdir(d))) {
        struct stat st;
        if (!item_id_ok(en->d_name) || items_serve_session(w, en->d_name) || fstatat(dirfd(d), en->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
            !S_ISDIR(st.st_mode) || (int64_t)st.st_mtime * 1000 > oldest)
            continue;
        forget(w, en->d_name);
        removed++;
    }
    if (d)
        (void)closedir(d);
    ev_timer_set(w->ev, t, removed == SWEEP_AT_ONCE ? GO_ON_MS : SWEEP_EVERY_MS, on_sweep);
}

void sweep_start(struct worker *w)
{
    ev_timer_set(w->ev, &w->sweep, FIRST_MS, on_sweep);
}
