/* probe.c - what this kernel and this user can enforce, found by doing it: each namespace on its own, then one whole trial sandbox. For `outwork doctor`. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/dur.h"
#include "base/fd.h"
#include "base/str.h"
#include "worker/sandbox/internal.h"

static void row(json_t *report, const char *name, bool ok, const char *how, const char *detail)
{
    json_t *r = json_object();
    js_set_str(r, "name", name);
    js_set_bool(r, "ok", ok);
    js_set_str(r, "how", how);
    js_set_str(r, "detail", detail);
    js_push(js_at(report, "layers"), r);
}

static bool sysctl_is(const char *path, char digit)
{
    AUTO_FREE char *text = NULL;
    size_t n = 0;
    return fd_read_file(AT_FDCWD, path, 64, &text, &n, NULL) == RC_OK && text[0] == digit && (text[1] == '\n' || text[1] == 0);
}

static const char *userns_hint(void)
{
    if (sysctl_is("/proc/sys/user/max_user_namespaces", '0'))
        return "user.max_user_namespaces is 0: raise it with sysctl";
    if (sysctl_is("/proc/sys/kernel/unprivileged_userns_clone", '0'))
        return "kernel.unprivileged_userns_clone is 0: set it to 1, or run the worker as root";
    if (sysctl_is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", '1'))
        return "AppArmor restricts unprivileged user namespaces: give the outwork program a profile with 'userns,', or run the worker as root";
    return "refused, as by a container's default profile: run the worker outside, as root, or with a profile that allows unshare and mount";
}

/* Tries one namespace in a child; errno, 0 when it worked. As an ordinary user it is tried inside a new user namespace, as the sandbox does. */
static int try_ns(int flag, bool user_first)
{
    pid_t pid = fork();
    if (pid == 0) {
        if (user_first && flag != CLONE_NEWUSER && unshare(CLONE_NEWUSER) < 0)
            _exit(errno & 0x7f);
        _exit(unshare(flag) < 0 ? errno & 0x7f : 0);
    }
    int status = 0;
    if (pid < 0)
        return errno;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : EIO;
}

static bool probe_namespaces(const struct sbx_policy *p, const struct sbx_plan *pl, json_t *report)
{
    static const struct { const char *name; int flag; const char *what; } all[] = {
        { "user_namespace", CLONE_NEWUSER, NULL }, { "mount_namespace", CLONE_NEWNS, "only what the sandbox may see is mounted" },
        { "pid_namespace", CLONE_NEWPID, "host processes are invisible" }, { "network_namespace", CLONE_NEWNET, "only a loopback interface" },
        { "ipc_namespace", CLONE_NEWIPC, "" }, { "uts_namespace", CLONE_NEWUTS, "" }, { "cgroup_namespace", CLONE_NEWCGROUP, "" } };
    bool ok = true;
    char who[96], fail[200];
    if (pl->mode == SBX_MODE_ROOT)
        (void)snprintf(who, sizeof who, "each session is a host uid of its own, %u to %u", p->uid_base, p->uid_base + p->uid_count - 1);
    else
        (void)snprintf(who, sizeof who, "sandboxes are host uid %u, the worker's own", pl->uid);
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        if (all[i].flag == CLONE_NEWNET && p->net == SBX_NET_HOST) {
            row(report, all[i].name, true, "off", "the operator chose the host's network");
            continue;
        }
        int code = try_ns(all[i].flag, pl->mode == SBX_MODE_USER);
        (void)snprintf(fail, sizeof fail, "%s: %s", strerror(code), userns_hint());
        row(report, all[i].name, code == 0, code == 0 ? "namespace" : "none", code != 0 ? fail : all[i].what ? all[i].what : who);
        ok = ok && code == 0;
    }
    return ok;
}

/* ---- a whole sandbox ---- */

static int answer_of(int sock, struct zy_ans *a, struct err *e)
{
    struct pollfd pf = { sock, POLLIN, 0 };
    int n, fds[FDS_MAX];
    do
        n = poll(&pf, 1, SBX_START_MS);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return err_set(e, RC_TIMEOUT, "no answer within %d ms", SBX_START_MS);
    if (fds_recv(sock, a, sizeof *a, fds, 0) <= 0)
        return err_set(e, RC_UNSUPPORTED, "the process that makes sandboxes died");
    for (size_t i = 0; i < FDS_MAX; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    a->text[sizeof a->text - 1] = 0;
    return a->type == ZA_FAILED ? err_set(e, a->rc < 0 ? a->rc : RC_UNSUPPORTED, "%s", a->text) : RC_OK;
}

static int trial(const struct sbx_policy *p, const struct sbx_plan *pl, const struct sbx_payload *payload, struct err *e)
{
    struct sbx_policy tp = *p;
    tp.state_dir = NULL;
    int z[2], w[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, z) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, w) < 0)
        return err_sys(e, RC_IO, errno, "socketpair");
    pid_t pid = fork();
    if (pid < 0)
        return err_sys(e, RC_IO, errno, "fork");
    if (pid == 0) {
        const struct zygote_args za = { .p = &tp, .pl = pl, .payload = payload, .sock = z[1], .warden_sock = w[1] };
        zygote_run(&za);
    }
    close(z[1]);
    close(w[1]);
    close(w[0]);
    struct zy_ans a;
    struct zy_req q = { .type = ZQ_MAKE, .seq = 1 };
    int rc = answer_of(z[0], &a, e);
    if (rc == RC_OK)
        rc = fds_send(z[0], &q, sizeof q, NULL, 0);
    if (rc == RC_OK)
        rc = answer_of(z[0], &a, e);
    close(z[0]);                /* ends the zygote and the trial with it */
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    return rc;
}

/* ---- rows that need no trial ---- */

static bool probe_layers(const struct sbx_policy *p, struct sbx_plan *pl, json_t *report)
{
    int code = 0, abi = landlock_abi(&code);
    char how[64];
    (void)snprintf(how, sizeof how, abi ? "ABI %d" : "none", abi);
    const char *ll = abi >= 6 ? "files, abstract sockets and signals" : abi ? "files (abstract sockets and signals need ABI 6, Linux 6.12)"
                   : code == EOPNOTSUPP ? "switched off: boot with lsm=landlock,..." : "missing in this kernel (5.13 or later with CONFIG_SECURITY_LANDLOCK)";
    bool ll_ok = abi > 0 && (p->net != SBX_NET_HOST || abi >= 6);
    row(report, "landlock", ll_ok || p->weak_landlock, how, ll_ok || !p->weak_landlock ? ll : "weaker than usual: the operator named this mode");
    pl->landlock_abi = abi;
    pl->seccomp = filter_supported();
    row(report, "seccomp", pl->seccomp || p->weak_seccomp, pl->seccomp ? "allow-list" : "none",
        pl->seccomp ? "system calls that are not needed are refused; foreign ABIs are killed" : p->weak_seccomp ? "missing: the operator named this mode" : "missing in this kernel (CONFIG_SECCOMP_FILTER)");
    return (ll_ok || p->weak_landlock) && (pl->seccomp || p->weak_seccomp);
}

static void limit_row(json_t *report, const char *name, enum lim_how how, const char *value, const char *note, const char *why)
{
    char detail[600];
    bool cg = how == LIM_CGROUP1 || how == LIM_CGROUP2;
    (void)snprintf(detail, sizeof detail, "%s%s%s%s%s%s", value, *note ? "; " : "", note, !cg && how != LIM_OFF && *why ? " (" : "", !cg && how != LIM_OFF ? why : "", !cg && how != LIM_OFF && *why ? ")" : "");
    row(report, name, true, lim_how_name(how), how == LIM_OFF ? "no limit asked for" : detail);
}

static void probe_limits(const struct sbx_policy *p, const struct sbx_plan *pl, json_t *report)
{
    char v[64], size[24];
    const struct sbx_limits *l = &p->limits;
    size_format(l->memory_bytes, size);
    limit_row(report, "memory", pl->mem, size, pl->mem == LIM_WATCHDOG ? "resident memory is watched and the sandbox killed above it; kernel buffers are not counted" : "", pl->cg.why);
    (void)snprintf(v, sizeof v, "%u processes and threads", l->pids);
    limit_row(report, "pids", pl->pids, v, pl->pids == LIM_RLIMIT ? "per user namespace" : "", pl->cg.why);
    (void)snprintf(v, sizeof v, "%u%% of one processor", l->cpu_percent);
    limit_row(report, "cpu", pl->cpu, v, pl->cpu == LIM_AFFINITY ? "rounded up to whole processors" : "", pl->cg.why);
    size_format(l->disk_bytes, size);
    limit_row(report, "disk", l->disk_bytes ? LIM_WATCHDOG : LIM_OFF, size, "workspace size is watched; one file is limited at once", "");
    size_format(l->tmp_bytes, size);
    (void)snprintf(v, sizeof v, "%s each for /tmp and /dev/shm", size);
    row(report, "tmp", true, "tmpfs size", v);
}

int sbx_probe_with(const struct sbx_policy *policy, const struct sbx_payload *payload, json_t **ret_report, struct err *e)
{
    struct sbx_policy *p = NULL;
    TRY(policy_copy(policy, &p, e));
    json_t *report = json_object();
    js_set(report, "layers", json_array());
    struct sbx_plan pl = { 0 };
    struct err why = { 0 };
    int rc = userns_detect(p, &pl, &why);
    js_set_str(report, "mode", pl.mode == SBX_MODE_ROOT ? "root" : "user");
    if (rc < 0) {
        row(report, "identity", false, "none", why.msg);
    } else {
        bool spaces = probe_namespaces(p, &pl, report), layers = probe_layers(p, &pl, report);
        memset(&pl, 0, sizeof pl);
        rc = plan_make(p, &pl, &why);
        if (rc == RC_OK) {
            probe_limits(p, &pl, report);
            rc = trial(p, &pl, payload, &why);
            cg_remove(&pl.cg);
        } else if (spaces && layers) {
            row(report, "limits", false, "none", why.msg);
        }
        row(report, "trial", rc == RC_OK, rc == RC_OK ? "a whole sandbox was made" : "none",
            rc == RC_OK ? "new root without the host's, own proc, no capabilities, no_new_privs, sealed program as PID 1" : why.msg);
    }
    js_set_bool(report, "ok", rc == RC_OK);
    policy_free(p);
    *ret_report = report;
    return rc == RC_OK ? RC_OK : err_set(e, RC_UNSUPPORTED, "%s", why.msg);
}
