/* userns.c - who the sandbox is on the host: user namespaces and their maps. The host uid is never 0. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "base/str.h"
#include "worker/sandbox/internal.h"

#define MAP_TEXT_MAX (64 * KIB)

bool userns_outer(const char *map, uint32_t id, uint32_t count, uint32_t *ret_outer)
{
    for (const char *p = map; *p;) {
        char *end = NULL;
        unsigned long in = strtoul(p, &end, 10), out = strtoul(end, &end, 10), n = strtoul(end, &end, 10);
        if (id >= in && (uint64_t)id + count <= (uint64_t)in + n) {
            *ret_outer = (uint32_t)(out + (id - in));
            return true;
        }
        const char *nl = strchr(p, '\n');
        if (!nl)
            break;
        p = nl + 1;
    }
    return false;
}

static int outer_of(const char *file, uint32_t id, uint32_t count, uint32_t *ret, struct err *e)
{
    AUTO_FREE char *text = NULL;
    size_t n = 0;
    TRY(fd_read_file(AT_FDCWD, file, MAP_TEXT_MAX, &text, &n, e));
    if (!userns_outer(text, id, count, ret))
        return err_set(e, RC_UNSUPPORTED, "ids %u..%u are not mapped in this user namespace (%s)", id, id + count - 1, file);
    return RC_OK;
}

static bool has_caps(void)
{
    struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct d[2];
    memset(d, 0, sizeof d);
    if (syscall(SYS_capget, &h, d) < 0)
        return false;
    static const int need[] = { CAP_SYS_ADMIN, CAP_SETUID, CAP_SETGID, CAP_CHOWN, CAP_SYS_CHROOT, CAP_SYS_PTRACE, CAP_KILL, CAP_DAC_OVERRIDE };
    for (size_t i = 0; i < COUNT_OF(need); i++)
        if (!(d[need[i] / 32].effective & (1u << (need[i] % 32))))
            return false;
    return true;
}

int userns_detect(const struct sbx_policy *p, struct sbx_plan *pl, struct err *e)
{
    pl->uid = geteuid();
    pl->gid = getegid();
    uint32_t out_uid = 0, out_gid = 0;
    if (pl->uid != 0) {
        pl->mode = SBX_MODE_USER;
        TRY(outer_of("/proc/self/uid_map", pl->uid, 1, &out_uid, e));
        if (out_uid == 0)
            return err_set(e, RC_UNSUPPORTED, "uid %u of the worker is uid 0 of the host: start it as an ordinary user", pl->uid);
        return RC_OK;
    }
    pl->mode = SBX_MODE_ROOT;
    if (!has_caps())
        return err_set(e, RC_UNSUPPORTED, "uid 0 without CAP_SYS_ADMIN, SETUID, SETGID, CHOWN, SYS_CHROOT, SYS_PTRACE, KILL and DAC_OVERRIDE: "
                       "start the worker as an ordinary user, or grant these");
    int rc = outer_of("/proc/self/uid_map", p->uid_base, p->uid_count, &out_uid, e);
    if (rc == RC_OK)
        rc = outer_of("/proc/self/gid_map", p->uid_base, p->uid_count, &out_gid, e);
    if (rc < 0)
        return err_wrap(e, rc, "uid_base/uid_count");
    if (out_uid == 0 || out_gid == 0 || p->uid_base == 0)
        return err_set(e, RC_UNSUPPORTED, "uid_base %u holds uid 0 of the host", p->uid_base);
    return RC_OK;
}

static int put(int dirfd, const char *path, const char *text, struct err *e)
{
    AUTO_CLOSE int fd = openat(dirfd, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, RC_IO, errno, "open /proc/%s", path);
    size_t n = strlen(text);
    if (write(fd, text, n) != (ssize_t)n)
        return err_sys(e, RC_IO, errno, "write '%s' to /proc/%s", text, path);
    return RC_OK;
}

int userns_enter(const struct sbx_plan *pl, struct err *e)
{
    if (pl->mode == SBX_MODE_ROOT) {
        if (setgroups(0, NULL) < 0)
            return err_sys(e, RC_IO, errno, "setgroups");
        return RC_OK;
    }
    /* A user who may not write his own /proc/self (a non-dumpable process) could not map himself. */
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    if (unshare(CLONE_NEWUSER) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "user namespace (see kernel.unprivileged_userns_clone, user.max_user_namespaces, "
                       "kernel.apparmor_restrict_unprivileged_userns)");
    AUTO_CLOSE int proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (proc < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "open /proc");
    char map[64];
    TRY(put(proc, "self/setgroups", "deny", e));
    (void)snprintf(map, sizeof map, "%u %u 1", pl->uid, pl->uid);
    int rc = put(proc, "self/uid_map", map, e);
    if (rc < 0)     /* Ubuntu 24.04: unshare succeeds, but the new namespace gives no rights */
        return err_wrap(e, RC_UNSUPPORTED, "user namespace without rights (AppArmor restriction of unprivileged user namespaces?)");
    (void)snprintf(map, sizeof map, "%u %u 1", pl->gid, pl->gid);
    return put(proc, "self/gid_map", map, e);
}

int userns_map_pid(int procfd, pid_t pid, uid_t host_uid, gid_t host_gid, struct err *e)
{
    char path[64], map[64];
    (void)snprintf(path, sizeof path, "%d/uid_map", pid);
    (void)snprintf(map, sizeof map, "%u %u 1", SBX_INSIDE_UID, host_uid);
    TRY(put(procfd, path, map, e));
    (void)snprintf(path, sizeof path, "%d/gid_map", pid);
    (void)snprintf(map, sizeof map, "%u %u 1", SBX_INSIDE_UID, host_gid);
    return put(procfd, path, map, e);
}

int userns_map_self(int procfd, uid_t host_uid, gid_t host_gid, struct err *e)
{
    char map[64];
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    TRY(put(procfd, "self/setgroups", "deny", e));
    (void)snprintf(map, sizeof map, "%u %u 1", SBX_INSIDE_UID, host_uid);
    TRY(put(procfd, "self/uid_map", map, e));
    (void)snprintf(map, sizeof map, "%u %u 1", SBX_INSIDE_UID, host_gid);
    return put(procfd, "self/gid_map", map, e);
}

int userns_become_agent(struct err *e)
{
    /* Root's groups were dropped by the zygote; an ordinary user cannot drop his own (setgroups is denied in his namespace). */
    if (setresgid(SBX_INSIDE_UID, SBX_INSIDE_UID, SBX_INSIDE_UID) < 0 || setresuid(SBX_INSIDE_UID, SBX_INSIDE_UID, SBX_INSIDE_UID) < 0)
        return err_sys(e, RC_IO, errno, "become uid %u inside", SBX_INSIDE_UID);
    return RC_OK;
}
