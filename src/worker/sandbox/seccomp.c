/* seccomp.c - the allow-list of system calls. Compiled once, by the zygote, with libseccomp; the child loads raw BPF.
 * What is not named answers ENOSYS, so that libraries fall back as on an older kernel; what is refused on purpose answers EPERM; a foreign ABI kills. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "worker/sandbox/internal.h"

#define FILTER_BYTES_MAX (64 * KIB)
#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
#define CLONE_NEW_ALL (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)   /* NEWTIME lies in CSIGNAL: clone() cannot take it */

static const int ip_families[] = { AF_INET, AF_INET6 };

static const char *const allowed[] = {
    /* files */
    "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "open", "openat", "openat2", "creat", "close",
    "close_range", "stat", "fstat", "lstat", "newfstatat", "fstatat64", "statx", "statfs", "fstatfs", "lseek", "_llseek", "access", "faccessat", "faccessat2", "dup", "dup2",
    "dup3", "pipe", "pipe2", "fcntl", "fcntl64", "flock", "fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "truncate", "ftruncate",
    "fallocate", "fadvise64", "readahead", "getdents", "getdents64", "getcwd", "chdir", "fchdir", "rename", "renameat", "renameat2", "mkdir", "mkdirat",
    "rmdir", "link", "linkat", "unlink", "unlinkat", "symlink", "symlinkat", "readlink", "readlinkat", "chmod", "fchmod", "fchmodat", "chown", "fchown",
    "fchownat", "lchown", "umask", "utime", "utimes", "futimesat", "utimensat", "mknod", "mknodat", "setxattr", "lsetxattr", "fsetxattr", "getxattr",
    "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr", "removexattr", "lremovexattr", "fremovexattr", "sendfile", "sendfile64",
    "copy_file_range", "memfd_create", "splice", "tee", "vmsplice", "inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch",
    /* waiting */
    "poll", "ppoll", "select", "_newselect", "pselect6", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "eventfd",
    "eventfd2", "signalfd", "signalfd4", "timerfd_create", "timerfd_settime", "timerfd_gettime", "io_setup", "io_destroy", "io_submit", "io_cancel",
    "io_getevents", "io_pgetevents",
    /* memory */
    "mmap", "mmap2", "munmap", "mremap", "mprotect", "madvise", "msync", "mincore", "mlock", "mlock2", "munlock", "mlockall", "munlockall", "brk",
    "membarrier", "pkey_alloc", "pkey_free", "pkey_mprotect", "get_mempolicy",
    /* processes */
    "fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid", "waitpid", "kill", "tkill", "tgkill", "pidfd_open", "pidfd_send_signal",
    "getpid", "getppid", "gettid", "getpgid", "getpgrp", "setpgid", "getsid", "setsid", "set_tid_address", "set_robust_list", "get_robust_list", "rseq",
    "futex", "futex_waitv", "sched_yield", "sched_getaffinity", "sched_getparam", "sched_getscheduler", "sched_setscheduler", "sched_setparam",
    "sched_getattr", "sched_get_priority_max", "sched_get_priority_min", "sched_rr_get_interval", "getpriority", "setpriority", "ioprio_get", "ioprio_set",
    "getrlimit", "ugetrlimit", "setrlimit", "prlimit64", "getrusage", "times", "prctl", "arch_prctl", "seccomp", "landlock_create_ruleset", "landlock_add_rule",
    "landlock_restrict_self", "getcpu", "restart_syscall", "set_thread_area", "get_thread_area",
    /* identity: without privilege these change nothing, but programs call them */
    "getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups", "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid",
    "setfsuid", "setfsgid", "setgroups", "capget", "capset",
    /* signals and time */
    "rt_sigaction", "rt_sigprocmask", "rt_sigpending", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "sigaltstack",
    "sigreturn", "pause", "alarm", "setitimer", "getitimer", "nanosleep", "clock_nanosleep", "clock_gettime", "clock_getres", "gettimeofday", "time",
    "timer_create", "timer_settime", "timer_gettime", "timer_getoverrun", "timer_delete",
    /* sockets; socket and socketpair have rules of their own below */
    "bind", "connect", "listen", "accept", "accept4", "getsockname", "getpeername", "getsockopt", "setsockopt", "shutdown", "sendto", "recvfrom", "sendmsg",
    "recvmsg", "sendmmsg", "recvmmsg",
    /* System V and POSIX queues and semaphores: of the sandbox's own ipc namespace */
    "semget", "semop", "semctl", "semtimedop", "mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive", "mq_notify", "mq_getsetattr",
    /* the machine */
    "uname", "sysinfo", "getrandom",
    "ioctl",    /* the second filter takes TIOCSTI and TIOCLINUX out */
};
/* Memory that neither an rlimit nor a look at the processes shows: only where a memory cgroup counts it. */
static const char *const hidden_memory[] = { "shmget", "shmat", "shmdt", "shmctl", "msgget", "msgsnd", "msgrcv", "msgctl" };
/* Refused by name with EPERM, so that the answer says "not permitted" and not "no such call". */
static const char *const refused[] = {
    "unshare", "setns", "mount", "umount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick",
    "mount_setattr", "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp", "pidfd_getfd", "bpf", "perf_event_open", "userfaultfd", "keyctl",
    "add_key", "request_key", "io_uring_setup", "io_uring_enter", "io_uring_register", "kexec_load", "kexec_file_load", "init_module", "finit_module",
    "delete_module", "create_module", "reboot", "swapon", "swapoff", "syslog", "acct", "quotactl", "quotactl_fd", "settimeofday", "clock_settime", "clock_adjtime",
    "adjtimex", "sethostname", "setdomainname", "iopl", "ioperm", "modify_ldt", "vhangup", "lookup_dcookie", "name_to_handle_at", "open_by_handle_at",
    "fanotify_init", "fanotify_mark", "nfsservctl", "uselib", "ustat", "sysfs", "_sysctl", "mbind", "set_mempolicy", "migrate_pages", "move_pages",
    "vm86", "vm86old", "memfd_secret",
};
/* Newer than many libseccomp versions; these numbers are the same on every architecture. */
static const int allowed_new[] = { 451 /* cachestat */, 452 /* fchmodat2 */, 454 /* futex_wake */, 455 /* futex_wait */, 456 /* futex_requeue */, 462 /* mseal */,
                                   463, 464, 465, 466 /* the *xattrat calls */ };

static int add(scmp_filter_ctx c, uint32_t action, const char *name, struct err *e)
{
    int nr = seccomp_syscall_resolve_name(name);
    if (nr == __NR_SCMP_ERROR || nr < 0)        /* unknown here, or not on this architecture: it stays at ENOSYS */
        return RC_OK;
    int rc = seccomp_rule_add(c, action, nr, 0);
    return rc < 0 ? err_sys(e, RC_UNSUPPORTED, -rc, "seccomp rule %s", name) : RC_OK;
}

static int add_cmp(scmp_filter_ctx c, uint32_t action, int nr, unsigned n, const struct scmp_arg_cmp *cmp, struct err *e)
{
    int rc = seccomp_rule_add_array(c, action, nr, n, cmp);
    return rc < 0 ? err_sys(e, RC_UNSUPPORTED, -rc, "seccomp rule %d", nr) : RC_OK;
}

static int add_special(scmp_filter_ctx c, struct err *e)
{
    /* clone() without namespaces; clone3() hides its flags in memory, so it must look absent (glibc then uses clone). */
    TRY(add_cmp(c, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1, &SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_NEW_ALL, 0), e));
    /* Sockets: local, IPv4, IPv6, and routing queries (glibc's resolver asks for addresses). Stream, datagram and packet-sequence only: nothing raw. */
    static const int families[] = { AF_UNIX, AF_INET, AF_INET6 };
    static const int types[] = { SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET };
    for (size_t f = 0; f < COUNT_OF(families); f++)
        for (size_t t = 0; t < COUNT_OF(types); t++) {
            const struct scmp_arg_cmp cmp[] = { SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)families[f]), SCMP_A1(SCMP_CMP_MASKED_EQ, 0xf, (scmp_datum_t)types[t]) };
            TRY(add_cmp(c, SCMP_ACT_ALLOW, SCMP_SYS(socket), 2, cmp, e));
        }
    const struct scmp_arg_cmp route[] = { SCMP_A0(SCMP_CMP_EQ, AF_NETLINK), SCMP_A2(SCMP_CMP_EQ, NETLINK_ROUTE) };
    TRY(add_cmp(c, SCMP_ACT_ALLOW, SCMP_SYS(socket), 2, route, e));
    TRY(add_cmp(c, SCMP_ACT_ALLOW, SCMP_SYS(socketpair), 1, &SCMP_A0(SCMP_CMP_EQ, AF_UNIX), e));
    /* personality: Linux, its 32-bit face, no address randomisation (debuggers), and the query */
    static const uint64_t personas[] = { 0, 0x0008, 0x20000, 0x20008, 0x40000, 0xffffffff };
    for (size_t i = 0; i < COUNT_OF(personas); i++)
        TRY(add_cmp(c, SCMP_ACT_ALLOW, SCMP_SYS(personality), 1, &SCMP_A0(SCMP_CMP_EQ, personas[i]), e));
    return RC_OK;
}

static int export_bpf(scmp_filter_ctx c, struct sbx_filter *f, size_t at, struct err *e)
{
    AUTO_CLOSE int fd = memfd_create("filter", MFD_CLOEXEC);
    if (fd < 0)
        return err_sys(e, RC_IO, errno, "memfd_create");
    int rc = seccomp_export_bpf(c, fd);
    if (rc < 0)
        return err_sys(e, RC_UNSUPPORTED, -rc, "export the seccomp filter");
    struct stat st;
    if (fstat(fd, &st) < 0 || st.st_size <= 0 || (size_t)st.st_size > FILTER_BYTES_MAX || (size_t)st.st_size % sizeof(struct sock_filter) != 0)
        return err_set(e, RC_UNSUPPORTED, "seccomp filter has an impossible size");
    size_t n = (size_t)st.st_size;
    void *p = malloc(n);
    if (!p)
        return err_set(e, RC_NOMEM, "seccomp filter");
    if (pread(fd, p, n, 0) != (ssize_t)n) {
        free(p);
        return err_sys(e, RC_IO, errno, "read the seccomp filter");
    }
    f->prog[at].insns = p;
    f->prog[at].n = (unsigned short)(n / sizeof(struct sock_filter));
    return RC_OK;
}

static int compile_allow(const struct sbx_filter_opts *o, scmp_filter_ctx c, struct err *e)
{
    if (seccomp_attr_set(c, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS) < 0 || seccomp_attr_set(c, SCMP_FLTATR_CTL_OPTIMIZE, 2) < 0)
        return err_set(e, RC_UNSUPPORTED, "seccomp attributes (libseccomp 2.5 is needed)");
    for (size_t i = 0; i < COUNT_OF(allowed); i++)
        TRY(add(c, SCMP_ACT_ALLOW, allowed[i], e));
    for (size_t i = 0; i < COUNT_OF(hidden_memory) && !o->no_hidden_memory; i++)
        TRY(add(c, SCMP_ACT_ALLOW, hidden_memory[i], e));
    for (size_t i = 0; i < COUNT_OF(allowed_new); i++)
        if (seccomp_rule_add(c, SCMP_ACT_ALLOW, allowed_new[i], 0) < 0)
            return err_set(e, RC_UNSUPPORTED, "seccomp rule for call %d", allowed_new[i]);
    for (size_t i = 0; i < COUNT_OF(refused); i++)
        TRY(add(c, SCMP_ACT_ERRNO(EPERM), refused[i], e));
    const uint32_t affinity = o->no_affinity ? SCMP_ACT_ERRNO(EPERM) : SCMP_ACT_ALLOW;
    TRY(add(c, affinity, "sched_setaffinity", e));
    TRY(add(c, affinity, "sched_setattr", e));
    return add_special(c, e);
}

/* The second filter permits all but a few arguments that the first, which cannot say "unless", lets through or answers with a poor code. Of two ERRNO
 * answers the kernel gives that of the filter loaded last: this one.
 * For ioctl the low 32 bits decide: the kernel ignores the rest of the number, so that a plain compare could be slipped (CVE-2019-10063). */
static int compile_args(scmp_filter_ctx c, struct err *e)
{
    if (seccomp_attr_set(c, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS) < 0)
        return err_set(e, RC_UNSUPPORTED, "seccomp attributes");
    static const uint64_t bad_ioctls[] = { TIOCSTI, TIOCLINUX };
    for (size_t i = 0; i < COUNT_OF(bad_ioctls); i++)
        TRY(add_cmp(c, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(ioctl), 1, &SCMP_A1(SCMP_CMP_MASKED_EQ, 0xffffffff, bad_ioctls[i]), e));
    for (uint64_t bit = 1; bit <= CLONE_NEW_ALL; bit <<= 1)
        if (bit & CLONE_NEW_ALL)
            TRY(add_cmp(c, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(clone), 1, &SCMP_A0(SCMP_CMP_MASKED_EQ, bit, bit), e));
    TRY(add_cmp(c, SCMP_ACT_ERRNO(EAFNOSUPPORT), SCMP_SYS(socket), 1, &SCMP_A0(SCMP_CMP_GT, AF_NETLINK), e));       /* packet, vsock, alg, bluetooth, ... */
    for (scmp_datum_t family = 0; family < AF_NETLINK; family++)
        if (family != AF_UNIX && family != AF_INET && family != AF_INET6)
            TRY(add_cmp(c, SCMP_ACT_ERRNO(EAFNOSUPPORT), SCMP_SYS(socket), 1, &SCMP_A0(SCMP_CMP_EQ, family), e));
    for (size_t i = 0; i < COUNT_OF(ip_families); i++) {
        const struct scmp_arg_cmp raw[] = { SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)ip_families[i]), SCMP_A1(SCMP_CMP_MASKED_EQ, 0xf, SOCK_RAW) };
        TRY(add_cmp(c, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(socket), 2, raw, e));
    }
    return RC_OK;
}

int filter_compile(const struct sbx_filter_opts *o, struct sbx_filter *ret, struct err *e)
{
    memset(ret, 0, sizeof *ret);
    for (size_t i = 0; i < SECCOMP_PROGS; i++) {
        scmp_filter_ctx c = seccomp_init(i == 0 ? SCMP_ACT_ERRNO(ENOSYS) : SCMP_ACT_ALLOW);
        if (!c)
            return err_set(e, RC_NOMEM, "seccomp filter");
        int rc = i == 0 ? compile_allow(o, c, e) : compile_args(c, e);
        if (rc == RC_OK)
            rc = export_bpf(c, ret, i, e);
        seccomp_release(c);
        if (rc < 0) {
            filter_done(ret);
            return rc;
        }
    }
    return RC_OK;
}

void filter_done(struct sbx_filter *f)
{
    for (size_t i = 0; i < SECCOMP_PROGS; i++)
        free(f->prog[i].insns);
    memset(f, 0, sizeof *f);
}

int filter_load(const struct sbx_filter *f, struct err *e)
{
    /* The wider one last: the allow-list permits seccomp(). */
    for (size_t i = 0; i < SECCOMP_PROGS; i++) {
        struct sock_fprog p = { f->prog[i].n, f->prog[i].insns };
        if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &p) < 0)
            return err_sys(e, RC_UNSUPPORTED, errno, "load the seccomp filter");
    }
    return RC_OK;
}

bool filter_supported(void)
{
    uint32_t a = SECCOMP_RET_KILL_PROCESS;
    return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &a) == 0;
}
