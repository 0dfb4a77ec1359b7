#include "drive.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/str.h"

#define NOBODY 65534
#define ANSWER_MS 120000

void drive_become(const char *who)
{
    if (str_eq(who, "root") && geteuid() != 0) {
        (void)fprintf(stderr, "skipped: needs root\n");
        exit(77);
    }
    if (str_eq(who, "user") && geteuid() == 0 && (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)) {
        (void)fprintf(stderr, "skipped: cannot become uid %d\n", NOBODY);
        exit(77);
    }
}

void drive_init(struct drive *d)
{
    memset(d, 0, sizeof *d);
    struct err e = { 0 };
    if (ev_new(&d->ev, &e) < 0)
        abort();
    (void)str_copy(d->state, sizeof d->state, "/tmp/outwork-sbx-XXXXXX");
    if (!mkdtemp(d->state))
        abort();
    d->policy = (struct sbx_policy){ .net = SBX_NET_NONE, .limits = sbx_limits_default, .state_dir = d->state };
    d->policy.limits.memory_bytes = 512 * MIB;
    d->policy.limits.disk_bytes = 256 * MIB;
    d->policy.limits.tmp_bytes = 64 * MIB;
    d->policy.limits.pids = 128;
}

int drive_start(struct drive *d, size_t warm, const struct sbx_payload *payload, struct err *e)
{
    return payload ? sbx_host_start_with(d->ev, &d->policy, warm, payload, &d->host, e) : sbx_host_start(d->ev, &d->policy, warm, &d->host, e);
}

void drive_stop(struct drive *d)
{
    sbx_host_stop(d->host);
    d->host = NULL;
    (void)ev_run_once(d->ev, 0);
    ev_free(d->ev);
    struct err e = { 0 };
    if (fd_remove_tree(AT_FDCWD, d->state, &e) < 0)
        (void)fprintf(stderr, "%s stays: %s\n", d->state, e.msg);
}

bool drive_turn_until(struct drive *d, bool *flag, int ms)
{
    int64_t end = clock_mono_ms() + ms;
    while (!*flag && clock_mono_ms() < end)
        (void)ev_run_once(d->ev, (int)(end - clock_mono_ms()));
    return *flag;
}

struct claim_wait { bool done; int rc; struct sbx *s; struct err *e; };

static void on_claim(void *ctx, int rc, struct sbx *s, const struct err *e)
{
    struct claim_wait *w = ctx;
    w->done = true;
    w->rc = rc;
    w->s = s;
    if (e && w->e)
        *w->e = *e;
}

int drive_claim(struct drive *d, const char *id, struct sbx **ret, struct err *e)
{
    struct claim_wait w = { .e = e };
    sbx_claim(d->host, id, on_claim, &w);
    if (!drive_turn_until(d, &w.done, ANSWER_MS))
        abort();
    if (w.rc == RC_OK)
        *ret = w.s;
    return w.rc;
}

struct call_wait { bool done; struct drive_answer *a; };

static void on_answer(void *ctx, int rc, const struct inside_res *h, const char *body, size_t n, const struct err *e)
{
    struct call_wait *w = ctx;
    w->done = true;
    w->a->rc = rc;
    if (h)
        w->a->h = *h;
    if (body)
        w->a->body = str_ndup(body, n);
    w->a->n = n;
    if (e)
        w->a->e = *e;
}

void drive_call(struct drive *d, struct sbx *s, const struct inside_req *req, const void *body, size_t n, struct drive_answer *a)
{
    memset(a, 0, sizeof *a);
    struct call_wait w = { .a = a };
    sbx_call(s, req, body, n, on_answer, &w);
    if (!drive_turn_until(d, &w.done, ANSWER_MS))
        abort();
    if (!a->body)
        a->body = str_dup("");
}

void drive_bash(struct drive *d, struct sbx *s, const char *command, uint32_t timeout_ms, struct drive_answer *a)
{
    struct inside_req q = { .op = INSIDE_BASH, .timeout_ms = timeout_ms };
    drive_call(d, s, &q, command, strlen(command) + 1, a);
}

int drive_put(struct drive *d, struct sbx *s, const char *path, const void *data, size_t n, unsigned mode)
{
    struct buf b;
    buf_init(&b, INSIDE_REQ_MAX);
    buf_put(&b, path, strlen(path) + 1);
    buf_put(&b, data, n);
    struct inside_req q = { .op = INSIDE_PUT, .arg0 = mode };
    struct drive_answer a;
    drive_call(d, s, &q, buf_data(&b), buf_len(&b), &a);
    buf_done(&b);
    int rc = a.rc < 0 ? a.rc : a.h.flags & INSIDE_ERROR ? RC_IO : RC_OK;
    if (rc < 0)
        (void)fprintf(stderr, "put %s: %s\n", path, a.body);
    drive_answer_done(&a);
    return rc;
}

void drive_answer_done(struct drive_answer *a)
{
    free(a->body);
    a->body = NULL;
}

void drive_wait_warm(struct drive *d, size_t n)
{
    int64_t end = clock_mono_ms() + 20000;
    while (sbx_host_ready(d->host) < n && clock_mono_ms() < end)
        (void)ev_run_once(d->ev, 20);
}

static bool in_tree(pid_t pid, pid_t root)
{
    for (int i = 0; i < 64 && pid > 1; i++) {
        if (pid == root)
            return true;
        char path[64];
        (void)snprintf(path, sizeof path, "/proc/%d/stat", pid);
        char *text = NULL;
        size_t n = 0;
        if (fd_read_file(AT_FDCWD, path, 4096, &text, &n, NULL) < 0)
            return false;
        char *p = strrchr(text, ')');
        pid = p ? (pid_t)strtol(p + 4, NULL, 10) : 0;
        free(text);
    }
    return false;
}

pid_t drive_find(const struct sbx *s, const char *text)
{
    pid_t found = 0;
    DIR *d = opendir("/proc");
    for (struct dirent *de; d && !found && (de = readdir(d));) {
        pid_t pid = (pid_t)strtol(de->d_name, NULL, 10);
        if (pid <= 0)
            continue;
        char path[64], *cmd = NULL;
        size_t n = 0;
        (void)snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
        if (fd_read_file(AT_FDCWD, path, 65536, &cmd, &n, NULL) == RC_OK && memmem(cmd, n, text, strlen(text)) && in_tree(pid, sbx_pid(s)))
            found = pid;
        free(cmd);
    }
    if (d)
        closedir(d);
    return found;
}
