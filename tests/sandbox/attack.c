/* An attacker's program, run inside a sandbox as the agent would run it. One line per attempt: "PASS name" when it was refused, "FAIL name: why" when it
 * got somewhere. Arguments name=value tell what is on the host outside: pid, port (a listener on its loopback), abstract (a socket name), state (the state
 * directory), canary (a secret file), kind (root or user). Nothing here is destructive where it is refused. */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static const char *arg_pid = "1", *arg_port = "22", *arg_abstract = "none", *arg_state = "/var/lib/outwork", *arg_canary = "/root/canary", *arg_kind = "root";
static char why[400];

static int fail(const char *fmt, const char *x)
{
    snprintf(why, sizeof why, fmt, x ? x : strerror(errno));
    return 1;
}
static int readable(const char *path)
{
    char c;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, &c, 1);
    close(fd);
    return n > 0 ? fail("%s is readable", path) : 0;
}
static int writable(const char *path)
{
    int fd = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return 0;
    close(fd);
    return fail("%s opens for writing", path);
}
static int exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 ? fail("%s exists", path) : 0;
}
/* A call that must fail; ENOSYS is as good as EPERM. */
#define REFUSED(call) ((call) >= 0 ? fail("%s worked", #call) : 0)

/* ---- files of the host ---- */
static int p_shadow(void) { return readable("/etc/shadow") || readable("/etc/gshadow") || readable("/etc/sudoers"); }
static int p_root_home(void) { return exists("/root") || exists("/home"); }
static int p_canary(void) { return readable(arg_canary); }
static int p_state_dir(void) { return exists(arg_state); }
static int p_host_paths(void) { return exists("/boot") || exists("/srv") || exists("/sys/kernel") || exists("/var/lib") || exists("/var/log") || exists("/run/systemd") || exists("/run/docker.sock") || exists("/var/run"); }
static int p_old_root(void) { return exists("/old_root") || exists("/.oldroot") || exists("/oldroot") || exists("/lost+found"); }
static int p_ssh_keys(void) { return exists("/etc/ssh"); }
static int p_machine_id(void) { return readable("/etc/machine-id"); }
static int p_usr_readonly(void) { int fd = open("/usr/bin/x-outwork", O_CREAT | O_WRONLY, 0755); return fd >= 0 ? fail("created a file in %s", "/usr/bin") : writable("/usr/bin/env"); }
static int p_etc_readonly(void) { int fd = open("/etc/x", O_CREAT | O_WRONLY, 0644); return fd >= 0 ? fail("created a file in %s", "/etc") : writable("/etc/passwd") || writable("/etc/ld.so.cache"); }
static int p_root_readonly(void) { return mkdir("/x", 0755) == 0 ? fail("made %s", "/x") : 0; }
static int p_dev_readonly(void) { int fd = open("/dev/x", O_CREAT | O_WRONLY, 0644); return fd >= 0 ? fail("created a file in %s", "/dev") : 0; }
static int p_remount_usr(void) { return REFUSED(mount(NULL, "/usr", NULL, MS_REMOUNT | MS_BIND, NULL)); }
static int p_dotdot(void)
{
    char cwd[4096];
    for (int i = 0; i < 64; i++)
        (void)!chdir("..");
    if (!getcwd(cwd, sizeof cwd) || strcmp(cwd, "/") != 0)
        return fail("ended at %s", cwd);
    int r = exists("work") || exists("root") || exists("home");
    (void)!chdir("/workspace");
    return r;
}
static int p_symlink_out(void)
{
    (void)symlink("/etc/shadow", "/workspace/l1");
    (void)symlink("/../../../../etc/shadow", "/workspace/l2");
    (void)symlink(arg_canary, "/workspace/l3");
    return readable("/workspace/l1") || readable("/workspace/l2") || readable("/workspace/l3");
}
static int p_hardlink_suid(void) { return REFUSED(link("/usr/bin/su", "/workspace/su")) || REFUSED(linkat(AT_FDCWD, "/etc/passwd", AT_FDCWD, "/tmp/passwd", 0)); }
static int p_open_by_handle(void)
{
    struct { struct file_handle h; char b[128]; } fh;
    int id;
    memset(&fh, 0, sizeof fh);
    fh.h.handle_bytes = 128;
    (void)name_to_handle_at(AT_FDCWD, "/workspace", &fh.h, &id, 0);
    fh.h.handle_bytes = 8;
    fh.h.handle_type = 1;
    memcpy(fh.h.f_handle, "\2\0\0\0\0\0\0\0", 8);     /* inode 2: the root of ext4 (the "shocker" attack) */
    int d = open("/workspace", O_RDONLY);
    return REFUSED(open_by_handle_at(d, &fh.h, O_RDONLY));
}

/* ---- who am I ---- */
static int p_uid(void) { return getuid() == 0 || geteuid() == 0 || getgid() == 0 ? fail("uid %s", "0") : 0; }
static int p_uid_map(void)
{
    char t[200] = "";
    int fd = open("/proc/self/uid_map", O_RDONLY);
    (void)!read(fd, t, sizeof t - 1);
    close(fd);
    char *end;
    unsigned long in = strtoul(t, &end, 10), out = strtoul(end, &end, 10), n = strtoul(end, NULL, 10);
    return in != 1000 || out == 0 || n != 1 ? fail("uid_map: %s", t) : 0;
}
static int p_setuid0(void) { return setuid(0) == 0 || setresuid(0, 0, 0) == 0 || setgid(0) == 0 ? fail("became %s", "0") : 0; }
static int p_groups(void) { gid_t g = 0; return setgroups(1, &g) == 0 ? fail("joined group %s", "0") : 0; }
static int p_caps(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char l[200];
    int bad = 0;
    while (f && fgets(l, sizeof l, f))
        if (strncmp(l, "Cap", 3) == 0 && strtoull(strchr(l, ':') + 1, NULL, 16) != 0)
            bad = fail("%s", l);
    if (f)
        fclose(f);
    return bad || !f;
}
static int p_no_new_privs(void) { return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 ? 0 : fail("no_new_privs is %s", "off"); }
static int p_seccomp_on(void) { return prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == 2 ? 0 : fail("seccomp is %s", "off"); }
static int p_securebits(void) { int b = prctl(PR_GET_SECUREBITS, 0, 0, 0, 0); return (b & 3) == 3 ? 0 : fail("securebits are %s", "open"); }
static int run(char *const argv[], char *out, size_t cap)
{
    int p[2], st = 0;
    if (pipe(p) < 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0) {
        dup2(p[1], 1);
        dup2(p[1], 2);
        close(p[0]);
        execvp(argv[0], argv);
        _exit(126);
    }
    close(p[1]);
    size_t n = 0;
    for (ssize_t g; n + 1 < cap && (g = read(p[0], out + n, cap - 1 - n)) > 0;)
        n += (size_t)g;
    out[n] = 0;
    close(p[0]);
    waitpid(pid, &st, 0);
    return WIFEXITED(st) ? WEXITSTATUS(st) : 128;
}
static int p_su(void) { char o[400]; return run((char *[]){ "su", "-c", "id", NULL }, o, sizeof o) == 0 ? fail("su: %s", o) : 0; }
static int p_mount_tool(void) { char o[400]; return run((char *[]){ "mount", "-t", "tmpfs", "none", "/tmp", NULL }, o, sizeof o) == 0 ? fail("mount: %s", o) : 0; }
static int p_passwd(void) { char o[400]; return run((char *[]){ "passwd", "-d", "root", NULL }, o, sizeof o) == 0 ? fail("passwd: %s", o) : 0; }
static int p_own_suid(void)
{
    int fd = open("/workspace/suid", O_CREAT | O_WRONLY, 0755);
    (void)!write(fd, "#!/bin/sh\nid -u\n", 16);
    fchmod(fd, 06755);
    close(fd);
    struct statvfs s;
    return statvfs("/workspace", &s) == 0 && !(s.f_flag & ST_NOSUID) ? fail("%s allows set-uid files", "/workspace") : 0;
}
static int p_file_caps(void) { int fd = open("/workspace/fc", O_CREAT | O_WRONLY, 0755); close(fd); return setxattr("/workspace/fc", "security.capability", "\1\0\0\2\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0", 20, 0) == 0 ? fail("set %s", "security.capability") : 0; }

/* ---- PID 1 and proc ---- */
static int p_environ1(void) { return readable("/proc/1/environ"); }
static int p_mem1(void) { return readable("/proc/1/mem") || readable("/proc/1/maps") || writable("/proc/1/mem"); }
static int p_exe1(void) { char b[100]; return readlink("/proc/1/exe", b, sizeof b) >= 0 ? fail("%s can be followed", "/proc/1/exe") : writable("/proc/1/exe") || readable("/proc/1/exe"); }
static int p_fd1(void) { DIR *d = opendir("/proc/1/fd"); if (d) closedir(d); return d ? fail("%s opens", "/proc/1/fd") : 0; }
static int p_root1(void) { DIR *d = opendir("/proc/1/root/"); if (d) closedir(d); return d ? fail("%s opens", "/proc/1/root") : 0; }
static int p_getfd1(void)
{
    int pf = (int)syscall(SYS_pidfd_open, 1, 0);
    return pf >= 0 && syscall(SYS_pidfd_getfd, pf, 3, 0) >= 0 ? fail("took descriptor 3 of %s", "PID 1") : 0;
}
static int p_ptrace1(void) { return REFUSED(ptrace(PTRACE_ATTACH, 1, 0, 0)) || REFUSED(ptrace(PTRACE_SEIZE, 1, 0, 0)); }
static int p_ptrace_child(void)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(ptrace(PTRACE_TRACEME, 0, 0, 0) == 0 ? 1 : 0);
    int st;
    waitpid(pid, &st, 0);
    return WIFEXITED(st) && WEXITSTATUS(st) == 0 ? 0 : fail("%s works", "PTRACE_TRACEME");
}
static int p_vm_readv(void)
{
    char b[8];
    struct iovec l = { b, 8 }, r = { (void *)0x400000, 8 };
    return REFUSED(process_vm_readv(1, &l, 1, &r, 1, 0));
}
static int p_other_pids(void)
{
    DIR *d = opendir("/proc");
    int n = 0;
    for (struct dirent *e; d && (e = readdir(d));)
        n += e->d_name[0] >= '1' && e->d_name[0] <= '9';
    if (d)
        closedir(d);
    char t[32];
    snprintf(t, sizeof t, "%d", n);
    return n > 12 ? fail("%s processes are visible", t) : 0;
}
static int p_kill_host(void) { pid_t p = (pid_t)atoi(arg_pid); return p > 300 && (kill(p, 0) == 0 || errno == EPERM) ? fail("host pid %s can be named", arg_pid) : 0; }
static int p_kill1(void) { (void)kill(1, SIGKILL); (void)kill(1, SIGTERM); (void)kill(1, SIGSTOP); return 0; /* being alive afterwards is the runner's check */ }
static int p_core_pattern(void) { return writable("/proc/sys/kernel/core_pattern") || writable("/proc/sys/kernel/modprobe") || writable("/proc/sys/kernel/hostname"); }
static int p_sysctl_any(void) { return writable("/proc/sys/vm/overcommit_memory") || writable("/proc/sys/net/ipv4/ip_forward") || writable("/proc/sys/fs/suid_dumpable") || writable("/proc/sys/kernel/shmmax"); }
static int p_sysrq(void) { return writable("/proc/sysrq-trigger"); }
static int p_kcore(void) { return readable("/proc/kcore") || readable("/proc/kmsg") || readable("/proc/keys") || readable("/proc/timer_list") || readable("/proc/kallsyms") || readable("/proc/cmdline"); }
static int p_proc_dirs(void)
{
    static const char *const d[] = { "/proc/acpi", "/proc/scsi", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/driver" };
    for (size_t i = 0; i < sizeof d / sizeof *d; i++) {
        DIR *x = opendir(d[i]);
        int n = 0;
        for (struct dirent *e; x && (e = readdir(x));)
            n++;
        if (x)
            closedir(x);
        if (n > 2)
            return fail("%s holds something", d[i]);
    }
    return 0;
}
static int p_proc_self_write(void) { return writable("/proc/self/uid_map") || writable("/proc/self/setgroups") || writable("/proc/self/oom_score_adj") || writable("/proc/self/attr/current"); }
static int p_oom_score(void) { int fd = open("/proc/self/oom_score_adj", O_RDONLY); char t[16] = ""; (void)!read(fd, t, 15); close(fd); return atoi(t) < 100 ? fail("oom_score_adj is %s", t) : 0; }
static int p_umount_proc(void) { return REFUSED(umount2("/proc", MNT_DETACH)) || REFUSED(umount2("/tmp", 0)); }
static int p_env_secrets(void)
{
    extern char **environ;
    for (char **e = environ; *e; e++)
        if (strstr(*e, "ANTHROPIC") || strstr(*e, "OUTWORK") || strstr(*e, "sk-") || strstr(*e, "CANARY"))
            return fail("environment: %s", *e);
    return 0;
}
static int p_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    int self = d ? dirfd(d) : -1;
    for (struct dirent *e; d && (e = readdir(d));) {
        int n = atoi(e->d_name);
        if (e->d_name[0] != '.' && n > 2 && n != self) {
            closedir(d);
            return fail("descriptor %s is open", e->d_name);
        }
    }
    if (d)
        closedir(d);
    return !d;
}
static int p_tty(void) { return open("/dev/tty", O_RDWR) >= 0 ? fail("%s opens", "/dev/tty") : 0; }

/* ---- system calls ---- */
static int p_unshare(void)
{
    static const int f[] = { CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWIPC, CLONE_NEWUTS, CLONE_NEWCGROUP, 0x80 };
    for (size_t i = 0; i < sizeof f / sizeof *f; i++)
        if (unshare(f[i]) == 0)
            return fail("unshare %s worked", "of a namespace");
    return 0;
}
static int p_clone_ns(void)
{
    long r = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (r == 0)
        _exit(0);
    return r > 0 ? fail("clone with %s worked", "CLONE_NEWUSER") : errno == EPERM ? 0 : fail("clone: %s instead of EPERM", NULL);
}
static int p_clone3(void)
{
    uint64_t a[11] = { CLONE_NEWUSER, 0, 0, 0, SIGCHLD };
    long r = syscall(SYS_clone3, a, sizeof a);
    if (r == 0)
        _exit(0);
    return r > 0 ? fail("%s worked", "clone3") : errno == ENOSYS ? 0 : fail("clone3: %s instead of ENOSYS", NULL);
}
static int p_setns(void) { int fd = open("/proc/self/ns/net", O_RDONLY); return REFUSED(setns(fd, 0)); }
static int p_mount(void) { return REFUSED(mount("none", "/tmp", "tmpfs", 0, NULL)) || REFUSED(mount("/", "/tmp", NULL, MS_BIND, NULL)); }
static int p_new_mount_api(void) { return REFUSED(syscall(SYS_fsopen, "tmpfs", 0)) || REFUSED(syscall(SYS_open_tree, AT_FDCWD, "/usr", 1)) || REFUSED(syscall(SYS_move_mount, -1, "", -1, "/tmp", 0)) || REFUSED(syscall(SYS_mount_setattr, -1, "", 0, NULL, 0)); }
static int p_chroot(void) { return REFUSED(chroot("/tmp")) || REFUSED(syscall(SYS_pivot_root, ".", ".")); }
static int p_bpf(void) { char a[128] = { 0 }; return REFUSED(syscall(SYS_bpf, 0, a, sizeof a)); }
static int p_io_uring(void) { char a[256] = { 0 }; return REFUSED(syscall(SYS_io_uring_setup, 4, a)); }
static int p_perf(void) { struct perf_event_attr a = { .type = PERF_TYPE_SOFTWARE, .size = sizeof a }; return REFUSED(syscall(SYS_perf_event_open, &a, 0, -1, -1, 0)); }
static int p_keyctl(void) { return REFUSED(syscall(SYS_keyctl, 0, -3, 1)) || REFUSED(syscall(SYS_add_key, "user", "x", "y", 1, -3)) || REFUSED(syscall(SYS_request_key, "user", "x", "y", -3)); }
static int p_userfaultfd(void) { return REFUSED(syscall(SYS_userfaultfd, 1)); }
static int p_modules(void) { return REFUSED(syscall(SYS_init_module, "", 0, "")) || REFUSED(syscall(SYS_finit_module, -1, "", 0)) || REFUSED(syscall(SYS_delete_module, "x", 0)); }
static int p_kexec(void) { return REFUSED(syscall(SYS_kexec_load, 0, 0, NULL, 0)) || REFUSED(syscall(SYS_reboot, 0xfee1dead, 672274793, 0, NULL)); }
static int p_clock(void) { struct timespec t = { 1, 0 }; return REFUSED(clock_settime(CLOCK_REALTIME, &t)) || REFUSED(sethostname("x", 1)); }
static int p_iopl(void) { return REFUSED(syscall(SYS_iopl, 3)) || REFUSED(syscall(SYS_ioperm, 0, 8, 1)); }
static int p_syslog(void) { char b[64]; return REFUSED(syscall(SYS_syslog, 3, b, 64)); }
static int p_fanotify(void) { return REFUSED(syscall(SYS_fanotify_init, 0, 0)) || REFUSED(syscall(SYS_quotactl, 0, NULL, 0, NULL)) || REFUSED(syscall(SYS_acct, "/tmp/acct")) || REFUSED(syscall(SYS_swapon, "/tmp/x", 0)); }
static int p_x32(void)
{
    pid_t pid = fork();     /* a foreign ABI must kill, so not in this process */
    if (pid == 0) {
        long r = syscall(0x40000000 + SYS_getpid);
        _exit(r > 0 ? 1 : 0);
    }
    int st;
    waitpid(pid, &st, 0);
    return WIFEXITED(st) && WEXITSTATUS(st) == 1 ? fail("%s works", "the x32 ABI") : 0;
}
static int p_int80(void)
{
#ifdef __x86_64__
    pid_t pid = fork();
    if (pid == 0) {
        long r = 20;        /* getpid of i386 */
        __asm__ volatile("int $0x80" : "+a"(r) : : "memory", "r8", "r9", "r10", "r11");
        _exit(r > 0 ? 1 : 0);
    }
    int st;
    waitpid(pid, &st, 0);
    return WIFEXITED(st) && WEXITSTATUS(st) == 1 ? fail("%s works", "the i386 ABI") : 0;
#else
    return 0;
#endif
}
static int p_tiocsti(void)
{
    int m = posix_openpt(O_RDWR | O_NOCTTY), s = -1;
    if (m >= 0 && unlockpt(m) == 0)
        s = open(ptsname(m), O_RDWR | O_NOCTTY);
    int fd = s >= 0 ? s : 0;
    if (ioctl(fd, TIOCSTI, "x") == 0 || errno != EPERM)
        return fail("TIOCSTI: %s", NULL);
    if (syscall(SYS_ioctl, fd, (unsigned long)TIOCSTI | 0x100000000UL, "x") == 0 || errno != EPERM)
        return fail("TIOCSTI with high bits: %s", NULL);
    return ioctl(fd, TIOCLINUX, "\3") == 0 || errno != EPERM ? fail("TIOCLINUX: %s", NULL) : 0;
}
static int p_personality(void) { return personality(READ_IMPLIES_EXEC) != -1 ? fail("%s", "READ_IMPLIES_EXEC") : 0; }

/* ---- sockets and the network ---- */
static int p_vsock(void) { return REFUSED(socket(AF_VSOCK, SOCK_STREAM, 0)); }
static int p_packet(void) { return REFUSED(socket(AF_PACKET, SOCK_RAW, 0)) || REFUSED(socket(AF_PACKET, SOCK_DGRAM, 0)); }
static int p_raw(void) { return REFUSED(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP)) || REFUSED(socket(AF_INET6, SOCK_RAW, 58)); }
static int p_families(void)
{
    for (int f = 0; f < 46; f++)
        if (f != AF_UNIX && f != AF_INET && f != AF_INET6 && f != AF_NETLINK)
            for (int t = 1; t <= 5; t++)
                if (socket(f, t, 0) >= 0) {
                    snprintf(why, sizeof why, "family %d type %d opens", f, t);
                    return 1;
                }
    return 0;
}
static int p_netlink(void)
{
    for (int p = 1; p < 32; p++)
        if (socket(AF_NETLINK, SOCK_RAW, p) >= 0 || socket(AF_NETLINK, SOCK_DGRAM, p) >= 0)
            return fail("netlink protocol other than %s opens", "route");
    return 0;
}
static int p_interfaces(void)
{
    struct if_nameindex *n = if_nameindex();
    int bad = 0;
    for (struct if_nameindex *i = n; i && i->if_index; i++)
        if (strcmp(i->if_name, "lo") != 0)
            bad = fail("interface %s", i->if_name);
    if (n)
        if_freenameindex(n);
    return bad;
}
static int try_connect(const char *ip, int port)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    inet_pton(AF_INET, ip, &a.sin_addr);
    int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), r = connect(s, (void *)&a, sizeof a);
    if (r < 0 && errno == EINPROGRESS) {
        usleep(200000);
        int e = 0;
        socklen_t l = sizeof e;
        getsockopt(s, SOL_SOCKET, SO_ERROR, &e, &l);
        struct sockaddr_in p;
        l = sizeof p;
        r = getpeername(s, (void *)&p, &l);
    }
    close(s);
    return r == 0 ? fail("connected to %s", ip) : 0;
}
static int p_metadata(void) { return try_connect("169.254.169.254", 80); }
static int p_internet(void) { return try_connect("1.1.1.1", 443) || try_connect("10.0.0.1", 80); }
static int p_host_loopback(void) { return try_connect("127.0.0.1", atoi(arg_port)); }
static int p_dns(void)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(53) };
    inet_pton(AF_INET, "8.8.8.8", &a.sin_addr);
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    return sendto(s, "x", 1, 0, (void *)&a, sizeof a) == 1 ? fail("a datagram left for %s", "8.8.8.8") : 0;
}
static int p_lo_works(void)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t l = sizeof a;
    int s = socket(AF_INET, SOCK_STREAM, 0), c = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(s, (void *)&a, sizeof a) < 0 || listen(s, 1) < 0 || getsockname(s, (void *)&a, &l) < 0 || connect(c, (void *)&a, l) < 0)
        return fail("the sandbox's own loopback: %s", NULL);
    return 0;
}
static int p_abstract(void)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    strncpy(a.sun_path + 1, arg_abstract, sizeof a.sun_path - 2);
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    return connect(s, (void *)&a, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(arg_abstract))) == 0 ? fail("connected to abstract socket %s of the host", arg_abstract) : 0;
}

/* ---- devices, cgroups, landlock ---- */
static int p_dev_list(void)
{
    static const char *const ok[] = { ".", "..", "null", "zero", "full", "random", "urandom", "fd", "stdin", "stdout", "stderr", "shm", "pts", "ptmx" };
    DIR *d = opendir("/dev");
    for (struct dirent *e; d && (e = readdir(d));) {
        size_t i = 0;
        while (i < sizeof ok / sizeof *ok && strcmp(ok[i], e->d_name) != 0)
            i++;
        if (i == sizeof ok / sizeof *ok) {
            fail("/dev/%s", e->d_name);
            closedir(d);
            return 1;
        }
    }
    if (d)
        closedir(d);
    return 0;
}
static int p_mknod(void)
{
    static const struct { int mode, major, minor; } n[] = { { S_IFBLK, 254, 0 }, { S_IFBLK, 8, 0 }, { S_IFCHR, 1, 1 }, { S_IFCHR, 0, 0 } };
    static const char *const where[] = { "/workspace/dev", "/tmp/dev", "/dev/shm/dev" };
    for (size_t w = 0; w < 3; w++)
        for (size_t i = 0; i < 4; i++)
            if (mknod(where[w], (mode_t)n[i].mode | 0666, makedev(n[i].major, n[i].minor)) == 0)
                return fail("made a device at %s", where[w]);
    return 0;
}
static int p_cgroup(void) { return exists("/sys/fs/cgroup") || writable("/proc/self/cgroup"); }
static int p_cgroup_path(void)
{
    FILE *f = fopen("/proc/self/cgroup", "r");
    char l[500];
    int bad = 0;
    while (f && fgets(l, sizeof l, f))
        if (strstr(l, "outwork") && !strstr(l, "/../"))
            bad = fail("cgroup path of the host is visible: %s", l);
    if (f)
        fclose(f);
    return bad;
}
static int p_landlock_write(void) { return writable("/dev/pts") || (open("/run/x", O_CREAT | O_WRONLY, 0600) >= 0 ? fail("%s is writable", "/run") : 0); }
static int p_keyring(void) { return readable("/proc/keys"); }
static int p_mqueue_ipc(void) { FILE *f = fopen("/proc/sysvipc/shm", "r"); char l[200]; int n = 0; while (f && fgets(l, sizeof l, f)) n++; if (f) fclose(f); return n > 1 ? fail("%s segments of others are visible", "shared memory") : 0; }
static int p_nice(void) { return setpriority(PRIO_PROCESS, 0, -10) == 0 ? fail("%s", "a higher priority") : 0; }
static int p_rlimit_core(void) { struct rlimit r = { 0, 0 }; getrlimit(RLIMIT_CORE, &r); struct rlimit up = { RLIM_INFINITY, RLIM_INFINITY }; return r.rlim_max != 0 || setrlimit(RLIMIT_CORE, &up) == 0 || setrlimit(RLIMIT_NPROC, &up) == 0 ? fail("%s can be raised", "a limit") : 0; }
static int p_hostname(void) { char h[80] = ""; gethostname(h, sizeof h - 1); return strcmp(h, "sandbox") != 0 ? fail("host name is %s", h) : 0; }

/* ---- what must still work ---- */
static int p_works(void)
{
    char o[2000];
    static char *const cmds[] = { "bash -c 'x=$(echo hi | tr a-z A-Z); [ $x = HI ]'", "python3 -c 'import subprocess,threading,ssl,multiprocessing;print(subprocess.run([\"true\"]).returncode)'",
                                  "cd /tmp && rm -rf g && git init -q g && cd g && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git log -1",
                                  "cd /tmp && printf 'int main(void){return 0;}' >m.c && gcc -o m m.c && ./m && printf 'all:\\n\\ttrue\\n' >Makefile && make -s" };
    for (size_t i = 0; i < sizeof cmds / sizeof *cmds; i++) {
        char first[16];
        snprintf(first, sizeof first, "%s", i == 0 ? "bash" : i == 1 ? "python3" : i == 2 ? "git" : "gcc");
        char which[64];
        snprintf(which, sizeof which, "/usr/bin/%s", first);
        if (access(which, X_OK) != 0)
            continue;
        if (run((char *[]){ "/bin/sh", "-c", cmds[i], NULL }, o, sizeof o) != 0)
            return fail("%.300s", o);
    }
    if (access("/usr/bin/node", X_OK) == 0 && run((char *[]){ "node", "-e", "require('fs').writeFileSync('/tmp/n','x');new Worker?0:0", NULL }, o, sizeof o) > 1)
        return fail("node: %.300s", o);
    return 0;
}
static int p_pty_works(void) { int m = posix_openpt(O_RDWR | O_NOCTTY); return m < 0 || grantpt(m) < 0 || unlockpt(m) < 0 || open(ptsname(m), O_RDWR | O_NOCTTY) < 0 ? fail("a pseudo terminal: %s", NULL) : 0; }
static int p_write_works(void) { int a = open("/workspace/w", O_CREAT | O_WRONLY, 0644), b = open("/tmp/w", O_CREAT | O_WRONLY, 0644), c = open("/dev/shm/w", O_CREAT | O_RDWR, 0644), d = open("/dev/null", O_WRONLY); (void)mkdir("/workspace/dd", 0755); return a < 0 || b < 0 || c < 0 || d < 0 || rename("/workspace/w", "/workspace/dd/w") < 0 ? fail("writing: %s", NULL) : 0; }

#define P(f) { #f, p_##f }
static const struct { const char *name; int (*fn)(void); } probes[] = {
    P(fds) /* first: later ones leave some open */, P(shadow), P(root_home), P(canary), P(state_dir), P(host_paths), P(old_root), P(ssh_keys), P(machine_id), P(usr_readonly), P(etc_readonly), P(root_readonly),
    P(dev_readonly), P(remount_usr), P(dotdot), P(symlink_out), P(hardlink_suid), P(open_by_handle), P(uid), P(uid_map), P(setuid0), P(groups), P(caps),
    P(no_new_privs), P(seccomp_on), P(securebits), P(su), P(mount_tool), P(passwd), P(own_suid), P(file_caps), P(environ1), P(mem1), P(exe1), P(fd1), P(root1),
    P(getfd1), P(ptrace1), P(ptrace_child), P(vm_readv), P(other_pids), P(kill_host), P(kill1), P(core_pattern), P(sysctl_any), P(sysrq), P(kcore), P(proc_dirs),
    P(proc_self_write), P(oom_score), P(umount_proc), P(env_secrets), P(tty), P(unshare), P(clone_ns), P(clone3), P(setns), P(mount), P(new_mount_api),
    P(chroot), P(bpf), P(io_uring), P(perf), P(keyctl), P(userfaultfd), P(modules), P(kexec), P(clock), P(iopl), P(syslog), P(fanotify), P(x32), P(int80), P(tiocsti),
    P(personality), P(vsock), P(packet), P(raw), P(families), P(netlink), P(interfaces), P(metadata), P(internet), P(host_loopback), P(dns), P(lo_works),
    P(abstract), P(dev_list), P(mknod), P(cgroup), P(cgroup_path), P(landlock_write), P(keyring), P(mqueue_ipc), P(nice), P(rlimit_core), P(hostname), P(works),
    P(pty_works), P(write_works),
};

int main(int argc, char **argv)
{
    static const struct { const char *name; const char **to; } args[] = { { "pid=", &arg_pid }, { "port=", &arg_port }, { "abstract=", &arg_abstract }, { "state=", &arg_state },
                                                                         { "canary=", &arg_canary }, { "kind=", &arg_kind } };
    for (int i = 1; i < argc; i++)
        for (size_t k = 0; k < sizeof args / sizeof *args; k++)
            if (strncmp(argv[i], args[k].name, strlen(args[k].name)) == 0)
                *args[k].to = argv[i] + strlen(args[k].name);
    int bad = 0;
    signal(SIGTTOU, SIG_IGN);
    for (size_t i = 0; i < sizeof probes / sizeof *probes; i++) {
        why[0] = 0;
        if (probes[i].fn()) {
            bad++;
            printf("FAIL %s: %s\n", probes[i].name, why);
        } else {
            printf("PASS %s\n", probes[i].name);
        }
        fflush(stdout);
    }
    printf("%zu attempts, %d got somewhere\n", sizeof probes / sizeof *probes, bad);
    return bad ? 1 : 0;
}
