/* mount.c - what a sandbox sees. The zygote builds the root once, in a mount namespace that holds nothing else (no old root is left to reach); each sandbox
 * gets a copy of it, whose mounts are locked by the kernel because its user namespace is another one, and adds its own proc, tmp, shm, pts and workspace. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "base/str.h"
#include "worker/sandbox/internal.h"

#define ETC_FILE_MAX (4 * MIB)
#define RO_ATTRS (MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)

/* Masked in every sandbox's proc. The whole proc is read-only besides, which covers sys, sysrq-trigger, irq and the like for writing. */
static const char *const mask_dirs[] = { "acpi", "asound", "bus", "driver", "fs", "irq", "scsi" };
static const char *const mask_files[] = { "cmdline", "interrupts", "kallsyms", "kcore", "key-users", "keys", "kmsg", "latency_stats", "modules",
                                          "sched_debug", "sysrq-trigger", "timer_list" };

/* The host's /etc, as far as programs need it: nothing that holds a secret or tells about the host. */
static const char *const etc_files[] = { "ld.so.cache", "ld.so.conf", "localtime", "timezone", "mime.types", "protocols", "services", "ssl/openssl.cnf",
                                         "inputrc", "magic", "debian_version", "os-release", "gai.conf", "shells" };
static const char *const etc_dirs[] = { "alternatives", "ld.so.conf.d", "ssl/certs", "ca-certificates", "pki/tls/certs", "pki/ca-trust/extracted", "fonts" };
static const char *const etc_files_net[] = { "resolv.conf" };
static const struct { const char *name, *text; } etc_made[] = {
    { "passwd", "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\nagent:x:1000:1000:agent:/workspace:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n" },
    { "group", "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n" },
    { "hosts", "127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost\n" },
    { "hostname", "sandbox\n" },
    { "host.conf", "multi on\n" },
};

static int fsmount_new(const char *type, const char *const *opts, size_t n_opts, unsigned attrs, int *ret_fd, struct err *e)
{
    AUTO_CLOSE int fs = fsopen(type, FSOPEN_CLOEXEC);
    if (fs < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "fsopen %s", type);
    for (size_t i = 0; i + 1 < n_opts; i += 2)
        if (fsconfig(fs, opts[i + 1] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, opts[i], opts[i + 1], 0) < 0)
            return err_sys(e, RC_UNSUPPORTED, errno, "fsconfig %s %s", type, opts[i]);
    if (fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "create %s", type);
    int fd = fsmount(fs, FSMOUNT_CLOEXEC, attrs);
    if (fd < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "fsmount %s%s", type, errno == EPERM && str_eq(type, "proc") ? " (is /proc of this machine or container masked?)" : "");
    *ret_fd = fd;
    return RC_OK;
}

static int attach(int mfd, int dirfd, const char *path, struct err *e)
{
    if (move_mount(mfd, "", dirfd, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "move_mount to %s", path);
    return RC_OK;
}

static int clone_tree(int dirfd, const char *src, bool recursive, uint64_t attrs, int *ret_fd, struct err *e)
{
    AUTO_CLOSE int fd = open_tree(dirfd, src, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (recursive ? AT_RECURSIVE : 0));
    if (fd < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "open_tree %s", src);
    struct mount_attr a = { .attr_set = attrs, .propagation = MS_PRIVATE };
    if (mount_setattr(fd, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), &a, sizeof a) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "mount_setattr %s", src);
    *ret_fd = TAKE_FD(fd);
    return RC_OK;
}

static int mkdirs_at(int root, const char *path, mode_t mode, struct err *e)
{
    char part[PATH_MAX];
    if (!str_copy(part, sizeof part, path))
        return err_set(e, RC_INVALID, "path too long: %.64s", path);
    for (char *p = part; *p; p++) {
        if (*p != '/' || p == part)
            continue;
        *p = 0;
        if (mkdirat(root, part, 0755) < 0 && errno != EEXIST)
            return err_sys(e, RC_IO, errno, "mkdir %s in the sandbox root", part);
        *p = '/';
    }
    if (mkdirat(root, part, mode) < 0 && errno != EEXIST)
        return err_sys(e, RC_IO, errno, "mkdir %s in the sandbox root", part);
    return RC_OK;
}

static int put_file(int root, const char *path, const void *text, size_t n, struct err *e)
{
    char dir[256];
    const char *slash = strrchr(path, '/');
    if (slash && str_copy(dir, sizeof dir, path)) {
        dir[slash - path] = 0;
        TRY(mkdirs_at(root, dir, 0755, e));
    }
    AUTO_CLOSE int fd = openat(root, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return err_sys(e, RC_IO, errno, "create %s in the sandbox root", path);
    return fd_write_all(fd, text, n, e);
}

/* Shows host path `src` (file or directory) at `dst` of the new root, read-only, with what is mounted below it. */
static int bind_ro(int root, const char *src, const char *dst, uint64_t more_attrs, struct err *e)
{
    struct stat st;
    if (stat(src, &st) < 0)
        return err_sys(e, errno == ENOENT ? RC_NOT_FOUND : RC_DENIED, errno, "%s", src);
    bool dir = S_ISDIR(st.st_mode);
    if (dir)
        TRY(mkdirs_at(root, dst, 0755, e));
    else
        TRY(put_file(root, dst, "", 0, e));
    AUTO_CLOSE int fd = -1;
    TRY(clone_tree(AT_FDCWD, src, dir, RO_ATTRS | more_attrs, &fd, e));
    return attach(fd, root, dst, e);
}

static int build_usr(int root, struct err *e)
{
    TRY(bind_ro(root, "/usr", "usr", 0, e));
    static const char *const tops[] = { "bin", "sbin", "lib", "lib64", "lib32", "libx32" };
    for (size_t i = 0; i < COUNT_OF(tops); i++) {
        char abs[16], target[256];
        (void)snprintf(abs, sizeof abs, "/%s", tops[i]);
        struct stat st;
        if (lstat(abs, &st) < 0)
            continue;
        if (S_ISLNK(st.st_mode)) {
            ssize_t n = readlink(abs, target, sizeof target - 1);
            if (n <= 0)
                continue;
            target[n] = 0;
            if (symlinkat(target, root, tops[i]) < 0)
                return err_sys(e, RC_IO, errno, "symlink /%s", tops[i]);
        } else if (S_ISDIR(st.st_mode)) {
            TRY(bind_ro(root, abs, tops[i], 0, e));
        }
    }
    return RC_OK;
}

static int build_etc(int root, bool net, struct err *e)
{
    TRY(mkdirs_at(root, "etc", 0755, e));
    char src[256], dst[256];
    for (size_t i = 0; i < COUNT_OF(etc_files) + (net ? COUNT_OF(etc_files_net) : 0); i++) {
        const char *name = i < COUNT_OF(etc_files) ? etc_files[i] : etc_files_net[i - COUNT_OF(etc_files)];
        (void)snprintf(src, sizeof src, "/etc/%s", name);
        (void)snprintf(dst, sizeof dst, "etc/%s", name);
        AUTO_FREE char *text = NULL;
        size_t n = 0;
        if (fd_read_file(AT_FDCWD, src, ETC_FILE_MAX, &text, &n, NULL) == RC_OK)     /* absent or unreadable: simply not there */
            TRY(put_file(root, dst, text, n, e));
    }
    for (size_t i = 0; i < COUNT_OF(etc_dirs); i++) {
        (void)snprintf(src, sizeof src, "/etc/%s", etc_dirs[i]);
        (void)snprintf(dst, sizeof dst, "etc/%s", etc_dirs[i]);
        struct stat st;
        if (lstat(src, &st) == 0 && S_ISDIR(st.st_mode))
            TRY(bind_ro(root, src, dst, MOUNT_ATTR_NOEXEC, e));
    }
    for (size_t i = 0; i < COUNT_OF(etc_made); i++) {
        (void)snprintf(dst, sizeof dst, "etc/%s", etc_made[i].name);
        TRY(put_file(root, dst, etc_made[i].text, strlen(etc_made[i].text), e));
    }
    const char *nss = net ? "passwd: files\ngroup: files\nhosts: files dns\nnetworks: files\nservices: files\nprotocols: files\n"
                          : "passwd: files\ngroup: files\nhosts: files\nnetworks: files\nservices: files\nprotocols: files\n";
    return put_file(root, "etc/nsswitch.conf", nss, strlen(nss), e);
}

static int build_dev(int root, struct err *e)
{
    TRY(mkdirs_at(root, "dev/shm", 0755, e));
    TRY(mkdirs_at(root, "dev/pts", 0755, e));
    static const char *const nodes[] = { "null", "zero", "full", "random", "urandom" };
    for (size_t i = 0; i < COUNT_OF(nodes); i++) {
        char src[32], dst[32];
        (void)snprintf(src, sizeof src, "/dev/%s", nodes[i]);
        (void)snprintf(dst, sizeof dst, "dev/%s", nodes[i]);
        TRY(put_file(root, dst, "", 0, e));
        struct stat st;
        if (stat(src, &st) < 0 || !S_ISCHR(st.st_mode))
            return err_set(e, RC_UNSUPPORTED, "%s is not a character device", src);
        AUTO_CLOSE int fd = -1;
        TRY(clone_tree(AT_FDCWD, src, false, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, &fd, e));
        TRY(attach(fd, root, dst, e));
    }
    static const char *const links[][2] = { { "/proc/self/fd", "dev/fd" }, { "/proc/self/fd/0", "dev/stdin" }, { "/proc/self/fd/1", "dev/stdout" },
                                            { "/proc/self/fd/2", "dev/stderr" }, { "pts/ptmx", "dev/ptmx" } };
    for (size_t i = 0; i < COUNT_OF(links); i++)
        if (symlinkat(links[i][0], root, links[i][1]) < 0)
            return err_sys(e, RC_IO, errno, "symlink %s", links[i][1]);
    return RC_OK;
}

/* A proc of a pid namespace in which nobody lives. The kernel lets a user namespace mount a fresh proc only where some whole proc is visible already; this
 * one shows no process at all, and lies under the sandbox's own. */
static int build_dead_proc(int root, struct err *e)
{
    TRY(mkdirs_at(root, "proc", 0755, e));
    struct { uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls; } ca = { .flags = CLONE_NEWPID, .exit_signal = SIGCHLD };
    int p[2];
    if (pipe2(p, O_CLOEXEC) < 0)
        return err_sys(e, RC_IO, errno, "pipe");
    AUTO_CLOSE int rd = p[0];
    AUTO_CLOSE int wr = p[1];
    pid_t pid = (pid_t)syscall(SYS_clone3, &ca, sizeof ca);
    if (pid < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "pid namespace");
    if (pid == 0) {
        struct err ce = { 0 };
        int fd = -1;
        int rc = fsmount_new("proc", NULL, 0, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, &fd, &ce);
        if (rc == RC_OK)
            rc = attach(fd, root, "proc", &ce);
        if (rc < 0)
            (void)!write(wr, ce.msg, strlen(ce.msg));
        _exit(rc < 0);
    }
    close(TAKE_FD(wr));
    char msg[ERR_MSG_MAX] = "";
    ssize_t n = read(rd, msg, sizeof msg - 1);
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (n > 0 || status != 0)
        return err_set(e, RC_UNSUPPORTED, "%s", n > 0 ? msg : "proc of a new pid namespace");
    return RC_OK;
}

static int build_ro_paths(int root, const struct sbx_policy *p, struct err *e)
{
    for (size_t i = 0; i < p->n_ro_paths; i++) {
        TRY(policy_check_ro_path(p->ro_paths[i], e));
        int rc = bind_ro(root, p->ro_paths[i], p->ro_paths[i] + 1, 0, e);
        if (rc < 0)
            return err_wrap(e, rc, "read-only path");
    }
    return RC_OK;
}

static unsigned mask_bits(int procfd, const char *const *names, size_t n)
{
    unsigned bits = 0;
    for (size_t i = 0; i < n; i++)
        if (faccessat(procfd, names[i], F_OK, AT_SYMLINK_NOFOLLOW) == 0)
            bits |= 1u << i;
    return bits;
}

int mounts_enter(const struct sbx_policy *p, struct sbx_mounts *m, struct err *e)
{
    *m = (struct sbx_mounts){ -1, -1, -1, -1, 0, 0 };
    if (unshare(CLONE_NEWNS) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "mount namespace%s", errno == EPERM ? " (AppArmor restriction of unprivileged user namespaces, or a container without CAP_SYS_ADMIN?)" : "");
    if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "make the mounts private");
    m->host_ns = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    m->proc_fd = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (m->host_ns < 0 || m->proc_fd < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "open /proc");
    if (p->state_dir) {
        m->state_fd = open(p->state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (m->state_fd < 0)
            return err_sys(e, RC_IO, errno, "open %s", p->state_dir);
    }
    m->mask_dirs = mask_bits(m->proc_fd, mask_dirs, COUNT_OF(mask_dirs));
    m->mask_files = mask_bits(m->proc_fd, mask_files, COUNT_OF(mask_files));
    return RC_OK;
}

int mounts_build(const struct sbx_policy *p, struct sbx_mounts *m, struct err *e)
{
    if (unshare(CLONE_NEWNS) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "mount namespace");
    m->root_ns = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (m->root_ns < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "open /proc/self/ns/mnt");
    static const char *const opts[] = { "size", "16m", "nr_inodes", "8k", "mode", "0755" };
    AUTO_CLOSE int root = -1;
    TRY(fsmount_new("tmpfs", opts, COUNT_OF(opts), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, &root, e));
    /* A place for it that holds nothing to be shown. */
    struct stat st;
    TRY(attach(root, AT_FDCWD, stat("/sys", &st) == 0 ? "/sys" : "/proc", e));
    umask(022);
    TRY(build_usr(root, e));
    TRY(build_etc(root, p->net == SBX_NET_HOST, e));
    TRY(build_dev(root, e));
    TRY(build_dead_proc(root, e));
    static const char *const dirs[] = { "tmp", "run", "var", "workspace", "mnt" };
    for (size_t i = 0; i < COUNT_OF(dirs); i++)
        TRY(mkdirs_at(root, dirs[i], 0755, e));
    if (symlinkat("../tmp", root, "var/tmp") < 0)
        return err_sys(e, RC_IO, errno, "symlink /var/tmp");
    TRY(build_ro_paths(root, p, e));
    if (fchdir(root) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "pivot_root");
    struct mount_attr a = { .attr_set = RO_ATTRS | MOUNT_ATTR_NOEXEC, .propagation = MS_PRIVATE };
    if (mount_setattr(root, "", AT_EMPTY_PATH, &a, sizeof a) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "make the root read-only");
    return RC_OK;
}

int mounts_workspace(const struct sbx_mounts *m, const char *dir, int *ret_fd, struct err *e)
{
    char path[SBX_DIR_MAX + 16];
    (void)snprintf(path, sizeof path, "%s/workspace", dir);
    if (setns(m->host_ns, CLONE_NEWNS) < 0)
        return err_sys(e, RC_IO, errno, "enter the host's mounts");
    int rc = clone_tree(m->state_fd, path, false, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, ret_fd, e);
    if (setns(m->root_ns, CLONE_NEWNS) < 0)      /* never go on among the host's mounts */
        return err_sys(e, RC_IO, errno, "leave the host's mounts");
    return rc;
}

int mounts_proc(int *ret_fd, struct err *e)
{
    return fsmount_new("proc", NULL, 0, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, ret_fd, e);
}

static int tmpfs_at(const char *path, uint64_t bytes, const char *mode, uint64_t attrs, struct err *e)
{
    char size[32];
    (void)snprintf(size, sizeof size, "%llu", (unsigned long long)bytes);
    const char *opts[] = { "size", size, "nr_inodes", "64k", "mode", mode };
    AUTO_CLOSE int fd = -1;
    TRY(fsmount_new("tmpfs", opts, COUNT_OF(opts), (unsigned)attrs, &fd, e));
    return attach(fd, AT_FDCWD, path, e);
}

static int mask(const char *const *names, size_t n, unsigned bits, const char *with, struct err *e)
{
    char path[64];
    for (size_t i = 0; i < n; i++) {
        if (!(bits & (1u << i)))
            continue;
        (void)snprintf(path, sizeof path, "/proc/%s", names[i]);
        if (mount(with, path, NULL, MS_BIND, NULL) < 0 && errno != ENOENT)
            return err_sys(e, RC_UNSUPPORTED, errno, "mask %s", path);
    }
    return RC_OK;
}

int mounts_child(const struct sbx_policy *p, const struct sbx_mounts *m, int proc_mfd, struct err *e)
{
    struct mount_attr ro = { .attr_set = MOUNT_ATTR_RDONLY };
    if (mount_setattr(proc_mfd, "", AT_EMPTY_PATH, &ro, sizeof ro) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "make proc read-only");
    TRY(attach(proc_mfd, AT_FDCWD, "/proc", e));
    TRY(mask(mask_dirs, COUNT_OF(mask_dirs), m->mask_dirs, "/run", e));
    TRY(mask(mask_files, COUNT_OF(mask_files), m->mask_files, "/dev/null", e));
    TRY(tmpfs_at("/tmp", p->limits.tmp_bytes, "1777", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, e));
    TRY(tmpfs_at("/dev/shm", p->limits.tmp_bytes, "1777", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, e));
    static const char *const pts[] = { "ptmxmode", "0666", "mode", "0620" };
    AUTO_CLOSE int fd = -1;
    TRY(fsmount_new("devpts", pts, COUNT_OF(pts), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, &fd, e));
    return attach(fd, AT_FDCWD, "/dev/pts", e);
}

int mounts_child_workspace(const struct sbx_policy *p, int workspace_mfd, struct err *e)
{
    if (workspace_mfd >= 0)
        return attach(workspace_mfd, AT_FDCWD, "/workspace", e);
    return tmpfs_at("/workspace", p->limits.tmp_bytes, "0755", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, e);   /* the probe's trial run */
}
