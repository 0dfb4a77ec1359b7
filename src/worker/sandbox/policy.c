/* policy.c - the operator's wishes, checked and copied; and the plan: by what each limit will be enforced here. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/str.h"
#include "worker/sandbox/internal.h"

#define MEMORY_MIN (32 * MIB)
#define PIDS_MIN 8u
#define CPU_PERCENT_MAX 102400u
#define ABI_SCOPES 6             /* of Landlock: abstract sockets and signals */

const struct sbx_limits sbx_limits_default = { .memory_bytes = 2 * GIB, .disk_bytes = 4 * GIB, .tmp_bytes = 256 * MIB, .pids = 512, .cpu_percent = 200,
                                               .call_ms = 10 * 60 * 1000, .output_bytes = 100 * KIB };

static bool under(const char *path, const char *dir)
{
    size_t n = strlen(dir);
    return strncmp(path, dir, n) == 0 && (path[n] == 0 || path[n] == '/' || (n == 1 && dir[0] == '/'));
}

int policy_check_ro_path(const char *path, struct err *e)
{
    static const char *const never_under[] = { "/proc", "/sys", "/dev", "/tmp", "/workspace", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32" };
    static const char *const never_whole[] = { "/", "/etc", "/var", "/run", "/mnt", "/root", "/home", "/boot", "/etc/shadow", "/etc/gshadow", "/etc/passwd", "/etc/group" };
    size_t n = strlen(path);
    if (path[0] != '/' || n >= PATH_MAX || (n > 1 && path[n - 1] == '/') || strstr(path, "//") || strstr(path, "/../") || strstr(path, "/./") || str_suffix(path, "/..") || str_suffix(path, "/."))
        return err_set(e, RC_INVALID, "read-only path '%.200s' must be absolute and plain", path);
    for (size_t i = 0; i < COUNT_OF(never_under); i++)
        if (under(path, never_under[i]))
            return err_set(e, RC_INVALID, "read-only path '%.200s': the sandbox has its own %s", path, never_under[i]);
    for (size_t i = 0; i < COUNT_OF(never_whole); i++)
        if (str_eq(path, never_whole[i]))
            return err_set(e, RC_INVALID, "read-only path '%s' would show too much of the host", path);
    return RC_OK;
}

/* A shown directory that holds the state directory would show the workspaces of all sessions. */
static int check_state_apart(const char *path, const char *state, struct err *e)
{
    if (!state)
        return RC_OK;
    AUTO_FREE char *a = realpath(path, NULL);
    AUTO_FREE char *b = realpath(state, NULL);
    if (a && b && (under(a, b) || under(b, a)))
        return err_set(e, RC_INVALID, "read-only path '%.200s' and the state directory %.200s must lie apart", path, state);
    return RC_OK;
}

static int check_env(const char *v, struct err *e)
{
    size_t n = strcspn(v, "=");
    if (n == 0 || v[n] != '=')
        return err_set(e, RC_INVALID, "environment entry '%.40s' is not NAME=value", v);
    return RC_OK;
}

static int check(struct sbx_policy *p, struct err *e)
{
    const struct sbx_limits *l = &p->limits;
    if (p->uid_count == 0)
        p->uid_count = SBX_UID_COUNT_DEFAULT;
    if (p->uid_base == 0)
        p->uid_base = SBX_UID_BASE_DEFAULT;
    if (p->uid_count > SBX_UID_COUNT_MAX || (uint64_t)p->uid_base + p->uid_count > UINT32_MAX)
        return err_set(e, RC_INVALID, "uid_base %u with uid_count %u: at most %u, below 2^32", p->uid_base, p->uid_count, SBX_UID_COUNT_MAX);
    if (l->memory_bytes && l->memory_bytes < MEMORY_MIN)
        return err_set(e, RC_INVALID, "a memory limit under 32MiB starts no program");
    if (l->pids && l->pids < PIDS_MIN)
        return err_set(e, RC_INVALID, "a process limit under %u starts no shell", PIDS_MIN);
    if (l->tmp_bytes < MIB)
        return err_set(e, RC_INVALID, "/tmp needs at least 1MiB");
    if (l->cpu_percent > CPU_PERCENT_MAX)
        return err_set(e, RC_INVALID, "cpu_percent %u: at most %u", l->cpu_percent, CPU_PERCENT_MAX);
    if (l->call_ms < 1 || l->output_bytes < KIB)
        return err_set(e, RC_INVALID, "a call needs time and at least 1KiB of output");
    if (p->n_ro_paths > SBX_RO_PATHS_MAX || p->n_env > SBX_ENV_MAX)
        return err_set(e, RC_INVALID, "at most %u read-only paths and %u variables", SBX_RO_PATHS_MAX, SBX_ENV_MAX);
    for (size_t i = 0; i < p->n_ro_paths; i++) {
        TRY(policy_check_ro_path(p->ro_paths[i], e));
        TRY(check_state_apart(p->ro_paths[i], p->state_dir, e));
    }
    for (size_t i = 0; i < p->n_env; i++)
        TRY(check_env(p->env[i], e));
    return RC_OK;
}

static const char *const *copy_list(const char *const *v, size_t n)
{
    char **out = xcalloc(n + 1, sizeof *out);
    for (size_t i = 0; i < n; i++)
        out[i] = str_dup(v[i]);
    return (const char *const *)out;
}

static void free_list(const char *const *v, size_t n)
{
    for (size_t i = 0; v && i < n; i++)
        free((void *)(uintptr_t)v[i]);
    free((void *)(uintptr_t)v);
}

int policy_copy(const struct sbx_policy *p, struct sbx_policy **ret, struct err *e)
{
    struct sbx_policy tmp = *p;
    TRY(check(&tmp, e));
    struct sbx_policy *c = xcalloc(1, sizeof *c);
    *c = tmp;
    c->state_dir = str_dup(p->state_dir);
    c->ro_paths = copy_list(p->ro_paths, p->n_ro_paths);
    c->env = copy_list(p->env, p->n_env);
    *ret = c;
    return RC_OK;
}

void policy_free(struct sbx_policy *p)
{
    if (!p)
        return;
    free_list(p->ro_paths, p->n_ro_paths);
    free_list(p->env, p->n_env);
    free((void *)(uintptr_t)p->state_dir);
    free(p);
}

/* RLIMIT_NPROC counts per user namespace since Linux 5.14; before that one limit would span all sandboxes of a uid. */
static bool nproc_is_per_namespace(void)
{
    struct utsname u;
    if (uname(&u) < 0)
        return false;
    char *end = NULL;
    unsigned long major = strtoul(u.release, &end, 10), minor = *end == '.' ? strtoul(end + 1, NULL, 10) : 0;
    return major > 5 || (major == 5 && minor >= 14);
}

static enum lim_how by_cgroup(const struct cg *c, enum cg_ctl ctl)
{
    int v = cg_has(c, ctl);
    return v == 2 ? LIM_CGROUP2 : v == 1 ? LIM_CGROUP1 : LIM_OFF;
}

static int plan_layers(const struct sbx_policy *p, struct sbx_plan *pl, struct err *e)
{
    int code = 0;
    pl->landlock_abi = landlock_abi(&code);
    if (!pl->landlock_abi && !p->weak_landlock)
        return err_set(e, RC_UNSUPPORTED, "Landlock is %s: boot with lsm=landlock,... or name the weaker mode without it", code == EOPNOTSUPP ? "switched off" : "missing in this kernel");
    if (p->net == SBX_NET_HOST && pl->landlock_abi < ABI_SCOPES && !p->weak_landlock)
        return err_set(e, RC_UNSUPPORTED, "the host's network needs Landlock ABI %d (Linux 6.12) to keep abstract sockets of the host apart; this kernel has %d", ABI_SCOPES, pl->landlock_abi);
    pl->seccomp = filter_supported();
    if (!pl->seccomp && !p->weak_seccomp)
        return err_set(e, RC_UNSUPPORTED, "seccomp filters are missing in this kernel (CONFIG_SECCOMP_FILTER)");
    return RC_OK;
}

static int plan_limits(const struct sbx_policy *p, struct sbx_plan *pl, struct err *e)
{
    const struct sbx_limits *l = &p->limits;
    if (l->memory_bytes || l->pids || l->cpu_percent)
        cg_open(&pl->cg);
    if (l->memory_bytes) {
        pl->mem = by_cgroup(&pl->cg, CG_MEMORY);
        pl->mem = pl->mem ? pl->mem : LIM_WATCHDOG;
    }
    if (l->pids) {
        pl->pids = by_cgroup(&pl->cg, CG_PIDS);
        pl->pids = pl->pids ? pl->pids : nproc_is_per_namespace() ? LIM_RLIMIT : LIM_WATCHDOG;
    }
    if (l->cpu_percent) {
        pl->cpu = by_cgroup(&pl->cg, CG_CPU);
        if (!pl->cpu && pl->seccomp)        /* without the filter a program could widen it again */
            pl->cpu = LIM_AFFINITY;
        if (!pl->cpu && !p->weak_limits)
            return err_set(e, RC_UNSUPPORTED, "cpu limit: %s, and affinity needs seccomp", pl->cg.why);
    }
    return RC_OK;
}

int plan_make(const struct sbx_policy *p, struct sbx_plan *ret, struct err *e)
{
    memset(ret, 0, sizeof *ret);
    TRY(userns_detect(p, ret, e));
    TRY(plan_layers(p, ret, e));
    int rc = plan_limits(p, ret, e);
    if (rc < 0)
        cg_remove(&ret->cg);
    return rc;
}
