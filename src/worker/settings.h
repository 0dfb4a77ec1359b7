/* worker/settings.h - the settings of `outwork worker` and `outwork worker run`. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "conf/conf.h"
#include "worker/sandbox/sandbox.h"

struct worker_settings {
    /* the service */
    char *base_url, *environment_id, *environment_key_file, *worker_id;
    char *ca_file, *https_proxy, *http_proxy, *no_proxy;
    /* what is served */
    char *on_work; bool on_work_owns_stop;
    int64_t max_sessions, max_idle, keep_sessions, warm;
    char *workdir;
    /* `run` only */
    char *session_id, *work_id, *work_secret_file;
    /* the sandbox */
    int network;
    uint64_t memory, disk, tmp, output;
    int64_t pids, cpu_percent, call_ms;
    struct conf_list ro_paths, env, weak;
    /* this host */
    char *state_dir, *audit_log, *health_listen;
    int log_level, log_format;
    bool print_config;
};

extern const struct conf_program worker_program, worker_run_program;

/* Fills what has no fixed default (worker id, state directory, audit log, proxies in lower case) and checks what the rows cannot say. */
MUST_CHECK int settings_finish(struct worker_settings *s, bool run, struct err *e);
/* Points into `s`; n arrays are borrowed. RC_INVALID: a weaker mode that does not exist. */
MUST_CHECK int settings_policy(const struct worker_settings *s, struct sbx_policy *ret, struct err *e);
