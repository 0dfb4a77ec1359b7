/* limits.c - limits that need no cgroup: rlimits and processor affinity set in the child, usage read from outside through the sandbox's own proc; and the
 * end of all privilege. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/str.h"
#include "worker/sandbox/internal.h"

#define NOFILE_MAX 4096u
#define NOFILE_MAX_UNCOUNTED 1024u   /* without a memory cgroup: socket buffers are memory, too */
#define PROCS_SCAN_MAX 65536u
#define HIDDEN_INODES_MAX 4096u

const char *lim_how_name(enum lim_how h)
{
    switch (h) {
    case LIM_OFF: return "off";
    case LIM_CGROUP2: return "cgroup v2";
    case LIM_CGROUP1: return "cgroup v1";
    case LIM_RLIMIT: return "rlimit";
    case LIM_WATCHDOG: return "watchdog";
    case LIM_AFFINITY: return "affinity";
    }
    return "unknown";
}

static int set_limit(int what, uint64_t v, const char *name, struct err *e)
{
    struct rlimit old, r = { v, v };
    if (getrlimit((__rlimit_resource_t)what, &old) < 0)
        return err_sys(e, RC_IO, errno, "getrlimit %s", name);
    if (old.rlim_max != RLIM_INFINITY && r.rlim_max > old.rlim_max)      /* the worker's own limit is tighter: keep that */
        r.rlim_cur = r.rlim_max = old.rlim_max;
    if (setrlimit((__rlimit_resource_t)what, &r) < 0)
        return err_sys(e, RC_IO, errno, "setrlimit %s", name);
    return RC_OK;
}

/* cpu_percent rounded up to whole processors, spread by the sandbox's number. The filter refuses sched_setaffinity() then. */
static int pin(uint32_t percent, uint32_t seq, struct err *e)
{
    cpu_set_t have, want;
    if (sched_getaffinity(0, sizeof have, &have) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "sched_getaffinity");
    unsigned total = (unsigned)CPU_COUNT(&have), n = (percent + 99) / 100;
    if (n == 0 || n >= total)
        return RC_OK;
    CPU_ZERO(&want);
    unsigned first = (seq * n) % total, i = 0;
    for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &have))
            continue;
        if ((i + total - first) % total < n)
            CPU_SET(cpu, &want);
        i++;
    }
    if (sched_setaffinity(0, sizeof want, &want) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "sched_setaffinity");
    return RC_OK;
}

int limits_apply(const struct sbx_limits *l, const struct sbx_plan *pl, uint32_t seq, struct err *e)
{
    TRY(set_limit(RLIMIT_CORE, 0, "core", e));
    TRY(set_limit(RLIMIT_NOFILE, pl->mem == LIM_WATCHDOG ? NOFILE_MAX_UNCOUNTED : NOFILE_MAX, "nofile", e));
    TRY(set_limit(RLIMIT_MEMLOCK, 8 * MIB, "memlock", e));
    TRY(set_limit(RLIMIT_RTPRIO, 0, "rtprio", e));
    TRY(set_limit(RLIMIT_NICE, 0, "nice", e));
    if (l->disk_bytes)
        TRY(set_limit(RLIMIT_FSIZE, l->disk_bytes, "fsize", e));
    /* Counted per user namespace since Linux 5.14, so this is a limit of this sandbox alone, threads included. */
    if (l->pids)
        TRY(set_limit(RLIMIT_NPROC, l->pids, "nproc", e));
    if (pl->mem == LIM_WATCHDOG && l->memory_bytes)      /* one process cannot outrun the watchdog with private memory */
        TRY(set_limit(RLIMIT_DATA, l->memory_bytes, "data", e));
    if (pl->cpu == LIM_AFFINITY)
        TRY(pin(l->cpu_percent, seq, e));
    return RC_OK;
}

int caps_bound(struct err *e)
{
    for (int c = 0; c < 64; c++)
        if (prctl(PR_CAPBSET_DROP, c, 0, 0, 0) < 0) {
            if (errno == EINVAL)
                break;
            return err_sys(e, RC_UNSUPPORTED, errno, "drop capability %d from the bounding set", c);
        }
    const unsigned long bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED |
                               SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    if (prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "securebits");
    return RC_OK;
}

int caps_drop_all(struct err *e)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "no_new_privs");
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "ambient capabilities");
    struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct d[2];
    memset(d, 0, sizeof d);
    if (syscall(SYS_capset, &h, d) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "drop all capabilities");
    return RC_OK;
}

/* ---- from outside, by the sandbox's own proc ---- */

static ssize_t read_small(int dirfd, const char *path, char *out, size_t cap)
{
    AUTO_CLOSE int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return -1;
    ssize_t n = read(fd, out, cap - 1);
    if (n >= 0)
        out[n] = 0;
    return n;
}

static uint64_t pid_resident(int procfd, const char *pid)
{
    char path[64], text[128];
    (void)snprintf(path, sizeof path, "%.20s/statm", pid);
    if (read_small(procfd, path, text, sizeof text) <= 0)
        return 0;
    char *end = NULL;
    (void)strtoull(text, &end, 10);
    return strtoull(end, NULL, 10) * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Proportional share: pages that several processes map count once in the sum. Falls back to the resident size. */
static uint64_t pid_share(int procfd, const char *pid)
{
    char path[64], text[1024];
    (void)snprintf(path, sizeof path, "%.20s/smaps_rollup", pid);
    if (read_small(procfd, path, text, sizeof text) > 0) {
        const char *p = strstr(text, "\nPss:");
        if (p)
            return strtoull(p + 5, NULL, 10) * KIB;
    }
    return pid_resident(procfd, pid);
}

static uint32_t pid_threads(int procfd, const char *pid)
{
    char path[64];
    (void)snprintf(path, sizeof path, "%.20s/task", pid);
    struct stat st;
    if (fstatat(procfd, path, &st, 0) < 0 || st.st_nlink < 3)
        return 1;
    return (uint32_t)(st.st_nlink - 2);
}

static bool is_pid(const char *s)
{
    for (const char *p = s; *p; p++)
        if (*p < '0' || *p > '9')
            return false;
    return *s != 0;
}

static DIR *open_list(int dirfd, const char *path)
{
    int fd = openat(dirfd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d && fd >= 0)
        close(fd);
    return d;
}

bool limits_usage(int procfd, uint64_t refine_above, struct sbx_usage *ret)
{
    memset(ret, 0, sizeof *ret);
    for (int pass = 0; pass < 2; pass++) {
        DIR *d = open_list(procfd, ".");
        if (!d)
            return false;
        uint64_t sum = 0;
        uint32_t procs = 0, seen = 0;
        for (struct dirent *de; seen < PROCS_SCAN_MAX && (de = readdir(d));) {
            if (!is_pid(de->d_name))
                continue;
            seen++;
            sum += pass ? pid_share(procfd, de->d_name) : pid_resident(procfd, de->d_name);
            procs += pid_threads(procfd, de->d_name);
        }
        closedir(d);
        *ret = (struct sbx_usage){ sum, procs };
        if (sum <= refine_above)
            break;
    }
    return true;
}

void limits_hidden(int procfd, dev_t disk_dev, dev_t memfd_dev, uint64_t *ret_disk, uint64_t *ret_memory)
{
    *ret_disk = *ret_memory = 0;
    DIR *d = open_list(procfd, ".");
    if (!d)
        return;
    size_t n_seen = 0;
    struct { ino_t ino; dev_t dev; } *seen = xcalloc(HIDDEN_INODES_MAX, sizeof *seen);
    for (struct dirent *de; (de = readdir(d));) {
        if (!is_pid(de->d_name))
            continue;
        char path[64];
        (void)snprintf(path, sizeof path, "%.20s/fd", de->d_name);
        DIR *fds = open_list(procfd, path);
        if (!fds)
            continue;
        for (struct dirent *fe; (fe = readdir(fds));) {
            struct stat st;
            if (fe->d_name[0] == '.' || fstatat(dirfd(fds), fe->d_name, &st, 0) < 0 || !S_ISREG(st.st_mode) || st.st_nlink != 0 || st.st_blocks == 0 ||
                (st.st_dev != disk_dev && st.st_dev != memfd_dev))
                continue;
            size_t i = 0;
            while (i < n_seen && (seen[i].ino != st.st_ino || seen[i].dev != st.st_dev))
                i++;
            if (i < n_seen)
                continue;
            if (n_seen < HIDDEN_INODES_MAX) {
                seen[n_seen].ino = st.st_ino;
                seen[n_seen++].dev = st.st_dev;
            }
            *(st.st_dev == disk_dev ? ret_disk : ret_memory) += (uint64_t)st.st_blocks * 512;
        }
        closedir(fds);
    }
    closedir(d);
    free(seen);
}
