/* worker/worker.c - the worker's main program: settings, sandboxes, keys, then one loop until a signal, a refusal or (in `run`) the end of the item. */
#include "worker/worker.h"

#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "log/log.h"
#include "worker/ctx.h"
#include "worker/item.h"
#include "worker/keys.h"
#include "worker/onwork.h"
#include "worker/poll.h"
#include "worker/record.h"
#include "worker/status.h"
#include "worker/sweep.h"
#include "worker/unpack.h"

#define STOP_MS 28000                    /* from the first signal to the exit, whatever hangs: inside the 30 s that --help promises */
#define POOL_IDLE_MAX 64                 /* kept connections: a burst of results of many sessions finds them warm */

/* ---- the end ---- */

static void on_last_post(void *arg)
{
    ev_stop(arg);
}

/* The sandboxes go first, and the loop ends behind what they have posted for their own end. */
static void end_loop(struct worker *w)
{
    if (w->sbx)
        sbx_host_stop(TAKE(w->sbx));
    ev_post(w->ev, on_last_post, w->ev);
}

static void on_stop_deadline(struct ev_timer *t)
{
    struct worker *w = container_of(t, struct worker, stop_deadline);
    log_error("worker.stop_late", "items=%zu", w->n_items);
    w->exit_status = w->exit_status ? w->exit_status : EXIT_FAIL;
    ev_stop(w->ev);
}

void worker_stop(struct worker *w, int exit_status, const char *why)
{
    if (w->exit_status == EXIT_OK)
        w->exit_status = exit_status;
    if (w->stopping)
        return;
    w->stopping = true;
    log_info("worker.stop", "why=%s items=%zu", why, w->n_items);
    ev_timer_set(w->ev, &w->stop_deadline, STOP_MS, on_stop_deadline);
    if (w->poller)
        poller_stop(w->poller);
    bool idle = w->n_items == 0;         /* else the last item ends the loop: worker_item_gone() */
    if (w->onwork)
        onwork_stop(w->onwork);
    items_stop(w, why);
    if (idle)
        end_loop(w);
}

void worker_item_gone(struct worker *w, enum item_outcome o)
{
    bool single = !w->poller;            /* `run` */
    if (single && o != ITEM_DONE && w->exit_status == EXIT_OK)
        w->exit_status = EXIT_FAIL;
    if (single || (w->stopping && w->n_items == 0))
        end_loop(w);
    else if (!w->stopping)
        poller_resume(w->poller, o == ITEM_NOT_CLAIMED);
}

static void on_signal(void *ctx, int signo)
{
    struct worker *w = ctx;
    if (w->stopping) {
        log_warn("worker.killed", "signal=%d", signo);
        if (w->sbx)
            sbx_host_stop(w->sbx);
        _exit(EXIT_FAIL);
    }
    worker_stop(w, EXIT_OK, signo == SIGTERM ? "terminated" : "interrupted");
}

/* ---- the start ---- */

static int complain(const char *command, int exit_status, const struct err *e)
{
    (void)fprintf(stderr, "%s: %s\n", command, e->msg);
    return exit_status;
}

/* Sandboxes first: the zygote is forked while this process is small, has one thread and no key in memory. */
static int start_sandboxes(struct worker *w, bool run, struct err *e)
{
    struct sbx_policy p;
    AUTO_JS report = NULL;
    if (settings_policy(&w->set, &p, e) < 0)
        return EXIT_USAGE;
    if (sbx_probe(&p, &report, e) < 0)
        return EXIT_SANDBOX;
    int rc = sbx_host_start(w->ev, &p, run ? 1 : (size_t)w->set.warm, &w->sbx, e);
    if (rc == RC_OK)
        return EXIT_OK;
    (void)err_wrap(e, rc, "sandbox");
    return rc == RC_UNSUPPORTED ? EXIT_SANDBOX : EXIT_FAIL;
}

static int start_parts(struct worker *w, struct err *e)
{
    struct http_client_conf hc = { .ca_file = w->set.ca_file, .http_proxy = w->set.http_proxy, .https_proxy = w->set.https_proxy,
                                   .no_proxy = w->set.no_proxy, .idle_max = POOL_IDLE_MAX, .user_agent = "outwork-worker/" OUTWORK_VERSION };
    TRY(ev_signal(w->ev, SIGTERM, on_signal, w, e));
    TRY(ev_signal(w->ev, SIGINT, on_signal, w, e));
    TRY(record_open(w->ev, w->set.audit_log, &w->record, e));
    TRY(http_client_new(w->ev, &hc, &w->http, e));
    w->api = (struct api){ .http = w->http, .base = w->set.base_url };
    TRY(status_start(w, &w->status, e));
    return w->set.on_work ? onwork_new(w, &w->onwork, e) : RC_OK;
}

static void warn_of_settings(const struct worker *w)
{
    const struct worker_settings *s = &w->set;
    if (str_prefix(s->base_url, "http://") && !str_prefix(s->base_url, "http://127.0.0.1") && !str_prefix(s->base_url, "http://localhost") &&
        !str_prefix(s->base_url, "http://[::1]"))
        log_warn("worker.plain_http", "base_url=%s why=%s", s->base_url, "the key and all results travel unencrypted");
    if (s->workdir)
        log_warn("worker.workdir", "why=%s", "--workdir has no effect: tools work in the sandbox's /workspace");
    if (s->network)
        log_warn("worker.network", "why=%s", "--sandbox-network host: tools reach every network that this machine reaches");
}

static void free_parts(struct worker *w)
{
    poller_free(w->poller);
    onwork_free(w->onwork);
    status_free(w->status);
    http_client_free(w->http);
    if (w->sbx)
        sbx_host_stop(w->sbx);
    record_close(w->record);
    ev_timer_stop(&w->stop_deadline);
    ev_timer_stop(&w->sweep);
    secret_free(w->env_key);
}

static int serve(struct worker *w, bool run, struct keys *keys, const char *command)
{
    struct err e = { 0 };
    struct secret *token = NULL;
    if (!w->set.on_work || run) {
        int status = start_sandboxes(w, run, &e);
        if (status != EXIT_OK)
            return complain(command, status, &e);
    }
    if (keys_load(keys, &w->set, run, &w->env_key, &token, &e) < 0)
        return complain(command, EXIT_USAGE, &e);
    if (start_parts(w, &e) < 0) {
        secret_free(token);
        return complain(command, EXIT_FAIL, &e);
    }
    warn_of_settings(w);
    log_info("worker.start", "environment=%s base_url=%s worker=%s state_dir=%s max_sessions=%lld", w->set.environment_id, w->set.base_url,
             w->set.worker_id, w->set.state_dir, (long long)(run ? 1 : w->set.max_sessions));
    if (run)
        item_serve(w, w->set.work_id, w->set.session_id, token);
    else
        w->poller = poller_start(w);
    if (w->sbx && !run)
        sweep_start(w);
    ev_run(w->ev);
    return w->exit_status;
}

static int configure(const struct conf_program *program, int argc, char **argv, bool run, struct worker *w, bool *ret_quit, struct err *e)
{
    struct conf_list pos = { 0 };
    TRY(conf_load(program, argc, argv, &w->set, &pos, ret_quit, e));
    if (*ret_quit)
        return RC_OK;
    if (pos.n) {
        int rc = err_set(e, RC_INVALID, "unexpected argument '%s'; the only sub-command is `run`, see --help", pos.item[0]);
        free(pos.item);
        return rc;
    }
    TRY(settings_finish(&w->set, run, e));
    if (!w->set.print_config)
        return RC_OK;
    struct buf b;
    buf_init(&b, 64 * KIB);
    TRY(conf_write_effective(program, &w->set, &b));
    (void)fwrite(buf_data(&b), 1, buf_len(&b), stdout);
    buf_done(&b);
    *ret_quit = true;
    return RC_OK;
}

int worker_main(int argc, char **argv)
{
    if (argc == 2 && str_eq(argv[1], "unpack-skill"))
        return unpack_main();
    bool run = argc >= 2 && str_eq(argv[1], "run");
    const struct conf_program *program = run ? &worker_run_program : &worker_program;
    /* One arena, and large buffers straight from and back to the system: a worker is idle most of its life. */
    (void)mallopt(M_ARENA_MAX, 1);
    (void)mallopt(M_MMAP_THRESHOLD, 256 * 1024);
    (void)mallopt(M_TRIM_THRESHOLD, 256 * 1024);
    (void)signal(SIGPIPE, SIG_IGN);

    struct worker w = { .tool_limits = tool_limits_default };
    struct err e = { 0 };
    bool quit = false;
    list_init(&w.items);
    int status = EXIT_OK;
    struct keys *keys = NULL;
    if (configure(program, argc - run, argv + run, run, &w, &quit, &e) < 0) {
        status = complain(program->command, EXIT_USAGE, &e);
    } else if (!quit) {
        log_setup((enum log_level)w.set.log_level, (enum log_format)w.set.log_format, "worker");
        if (keys_take(w.set.on_work != NULL, &keys, &e) < 0 || ev_new(&w.ev, &e) < 0)
            status = complain(program->command, EXIT_FAIL, &e);
        else
            status = serve(&w, run, keys, program->command);
        if (w.n_items)                   /* stopped by the deadline: parts still refer to one another; the exit frees them */
            return w.sbx ? (sbx_host_stop(w.sbx), status) : status;
        free_parts(&w);
        if (w.ev)
            ev_free(w.ev);
    }
    conf_free(program, &w.set);
    return status;
}
