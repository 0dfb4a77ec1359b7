/* worker/onwork.c - see onwork.h */
#include "worker/onwork.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "base/str.h"
#include "log/log.h"
#include "proc/proc.h"
#include "worker/item.h"
#include "worker/record.h"
#include "worker/release.h"
#include "worker/status.h"

#define ACK_MS 15000

extern char **environ;

struct onwork {
    struct worker *w;
    struct api_call *ack;
    char *work_id, *session_id;        /* of the item being served; NULL: none */
    struct buf item;                   /* its JSON, with the secret: for the script's stdin */
    pid_t pid;                         /* 0: no script runs */
    struct ev_child child;
    struct ev_timer kill_timer;
    bool stopping;
    enum item_outcome outcome;
};

static void done(struct onwork *o)
{
    free(TAKE(o->work_id));
    free(TAKE(o->session_id));
    buf_wipe(&o->item);
    o->w->n_items--;
    status_sessions(o->w->status, o->w->n_items);
    worker_item_gone(o->w, o->outcome);
}

static void on_released(void *ctx)
{
    done(ctx);
}

/* The script has returned, or never ran. A graceful stop: whoever still serves the session sees it at the next heartbeat. */
static void finish(struct onwork *o, bool force)
{
    if (o->w->set.on_work_owns_stop && !force)
        done(o);
    else
        work_release(o->w, o->work_id, o->w->env_key, force, on_released, o);
}

static void on_script_exit(struct ev_child *c, int status)
{
    struct onwork *o = container_of(c, struct onwork, child);
    ev_timer_stop(&o->kill_timer);
    o->pid = 0;
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (code != 0)
        log_warn("on_work.failed", "work=%s status=%d", o->work_id, code);
    else
        log_info("on_work.done", "work=%s", o->work_id);
    json_t *f = json_object();
    js_set_str(f, "work", o->work_id);
    js_set_str(f, "session", o->session_id);
    js_set_str(f, "change", "script ended");
    js_set_int(f, "exit", code);
    record_add(o->w->record, "session", f);
    finish(o, false);
}

/* The parent's environment, without what we replace, and the four names of the contract. The key is in it: the caller wipes the new strings. */
#define ENV_NEW 4
static char **make_env(const struct onwork *o)
{
    static const char *const names[ENV_NEW] = { "ANTHROPIC_WORK_ID=", "ANTHROPIC_ENVIRONMENT_ID=", "ANTHROPIC_SESSION_ID=", "ANTHROPIC_ENVIRONMENT_KEY=" };
    const char *const values[ENV_NEW] = { o->work_id, o->w->set.environment_id, o->session_id, secret_text(o->w->env_key) };
    size_t n = 0, at = 0;
    while (environ[n])
        n++;
    char **env = xcalloc(n + ENV_NEW + 1, sizeof *env);
    for (; at < ENV_NEW; at++)
        env[at] = str_printf("%s%s", names[at], values[at]);
    for (size_t i = 0; i < n; i++) {
        bool ours = false;
        for (size_t k = 0; k < ENV_NEW; k++)
            ours = ours || str_prefix(environ[i], names[k]);
        if (!ours)
            env[at++] = environ[i];
    }
    return env;
}

static void free_env(char **env)
{
    for (size_t i = 0; i < ENV_NEW; i++) {
        wipe(env[i], strlen(env[i]));
        free(env[i]);
    }
    free(env);
}

static int start_script(struct onwork *o, struct err *e)
{
    AUTO_CLOSE int in = memfd_create("work-item", MFD_CLOEXEC);
    if (in < 0)
        return err_sys(e, RC_IO, errno, "memfd");
    TRY(fd_write_all(in, buf_data(&o->item), buf_len(&o->item), e));
    if (lseek(in, 0, SEEK_SET) < 0)
        return err_sys(e, RC_IO, errno, "memfd");
    char *argv[] = { o->w->set.on_work, NULL };
    char **env = make_env(o);
    struct proc_spec s = { .path = o->w->set.on_work, .argv = argv, .envp = env, .fd_in = in, .fd_out = STDERR_FILENO, .fd_err = STDERR_FILENO,
                           .new_group = true };
    int pidfd = -1;
    int rc = proc_spawn(&s, &o->pid, &pidfd, e);
    free_env(env);
    buf_wipe(&o->item);
    if (rc < 0) {
        o->pid = 0;
        return rc;
    }
    if (pidfd >= 0)
        (void)close(pidfd);
    rc = ev_child_start(o->w->ev, &o->child, o->pid, on_script_exit);
    if (rc < 0) {
        proc_kill_group(o->pid, SIGKILL);
        (void)waitpid(o->pid, NULL, 0);
        o->pid = 0;
        return err_set(e, rc, "cannot watch the script");
    }
    return RC_OK;
}

static void on_ack(void *ctx, const struct api_answer *a)
{
    struct onwork *o = ctx;
    struct err e;
    o->ack = NULL;
    if (a->outcome != API_OK) {
        log_warn("work.ack_failed", "work=%s why=%s", o->work_id, a->why);
        o->outcome = ITEM_NOT_CLAIMED;
        finish(o, true);
        return;
    }
    if (!o->session_id) {
        log_info("work.no_session", "work=%s", o->work_id);
        finish(o, true);
        return;
    }
    int rc = start_script(o, &e);
    if (rc < 0) {
        log_error("on_work.not_started", "script=%s why=%s", o->w->set.on_work, e.msg);
        o->outcome = ITEM_FAILED;
        worker_stop(o->w, EXIT_FAIL, "the --on-work script cannot be started");
        finish(o, true);
        return;
    }
    log_info("on_work.started", "work=%s session=%s pid=%d", o->work_id, o->session_id, (int)o->pid);
}

int onwork_claimed(struct onwork *o, const json_t *work, struct err *e)
{
    const char *id = js_str(work, "id"), *session = js_str(work, "data.id");
    bool is_session = str_eq(js_str(work, "data.type"), "session");
    if (!item_id_ok(id) || (is_session && !item_id_ok(session)))
        return err_set(e, RC_INVALID, "a work item without usable ids");
    buf_clear(&o->item);
    TRY(js_write(work, &o->item));
    o->outcome = ITEM_DONE;
    o->work_id = str_dup(id);
    o->session_id = is_session ? str_dup(session) : NULL;
    o->w->n_items++;
    status_sessions(o->w->status, o->w->n_items);
    log_info("work.claimed", "work=%s type=%s session=%s", id, js_str(work, "data.type"), session);
    char path[API_PATH_MAX];
    (void)snprintf(path, sizeof path, "/v1/environments/%s/work/%s/ack?beta=true", o->w->set.environment_id, id);
    struct api_req r = { .method = "POST", .path = path, .cred = o->w->env_key, .timeout_ms = ACK_MS, .raw = true, .done = on_ack, .ctx = o };
    o->ack = api_start(&o->w->api, &r);
    return RC_OK;
}

bool onwork_busy(const struct onwork *o)
{
    return o->work_id != NULL;
}

static void on_kill(struct ev_timer *t)
{
    struct onwork *o = container_of(t, struct onwork, kill_timer);
    log_warn("on_work.killed", "work=%s", o->work_id);
    proc_kill_group(o->pid, SIGKILL);
}

void onwork_stop(struct onwork *o)
{
    if (o->stopping)
        return;
    o->stopping = true;
    if (o->ack) {                      /* not begun: it returns to the queue by itself */
        api_cancel(TAKE(o->ack));
        done(o);
    } else if (o->pid) {
        (void)kill(o->pid, SIGTERM);
        ev_timer_set(o->w->ev, &o->kill_timer, ONWORK_KILL_MS, on_kill);
    }
}

int onwork_new(struct worker *w, struct onwork **ret, struct err *e)
{
    if (access(w->set.on_work, X_OK) < 0)
        return err_sys(e, errno == ENOENT ? RC_NOT_FOUND : RC_INVALID, errno, "--on-work %s", w->set.on_work);
    struct onwork *o = xcalloc(1, sizeof *o);
    o->w = w;
    buf_init(&o->item, 1 * MIB);
    *ret = o;
    return RC_OK;
}

void onwork_free(struct onwork *o)
{
    if (!o)
        return;
    api_cancel(o->ack);
    ev_timer_stop(&o->kill_timer);
    if (o->pid) {
        ev_child_stop(&o->child);
        proc_kill_group(o->pid, SIGKILL);
        (void)waitpid(o->pid, NULL, 0);
    }
    buf_wipe(&o->item);
    free(o->work_id);
    free(o->session_id);
    free(o);
}
