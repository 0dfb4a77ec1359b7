/* landlock.c - the layer beside the mount tree: even a path that should not be there can be neither read nor written. Raw system calls and own definitions,
 * as the headers of long-lived distributions lack the later ABIs. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

#include "worker/sandbox/internal.h"

#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif

enum {      /* access rights for files, by the ABI that brought them */
    LL_EXECUTE = 1 << 0, LL_WRITE_FILE = 1 << 1, LL_READ_FILE = 1 << 2, LL_READ_DIR = 1 << 3, LL_REMOVE_DIR = 1 << 4, LL_REMOVE_FILE = 1 << 5,
    LL_MAKE_CHAR = 1 << 6, LL_MAKE_DIR = 1 << 7, LL_MAKE_REG = 1 << 8, LL_MAKE_SOCK = 1 << 9, LL_MAKE_FIFO = 1 << 10, LL_MAKE_BLOCK = 1 << 11,
    LL_MAKE_SYM = 1 << 12, LL_REFER = 1 << 13 /* 2 */, LL_TRUNCATE = 1 << 14 /* 3 */, LL_IOCTL_DEV = 1 << 15 /* 5 */,
    LL_ABI1 = (1 << 13) - 1,
};
#define LL_SCOPE_ABSTRACT_UNIX 1u    /* 6 */
#define LL_SCOPE_SIGNAL 2u           /* 6 */
#define LL_READ (LL_EXECUTE | LL_READ_FILE | LL_READ_DIR)
/* Everything but device nodes. */
#define LL_ALL_OF_OURS (LL_READ | LL_WRITE_FILE | LL_REMOVE_DIR | LL_REMOVE_FILE | LL_MAKE_DIR | LL_MAKE_REG | LL_MAKE_SOCK | LL_MAKE_FIFO | LL_MAKE_SYM | LL_REFER | LL_TRUNCATE)

struct ll_ruleset { uint64_t fs, net, scoped; };
struct ll_path { uint64_t access; int fd; } __attribute__((packed));

int landlock_abi(int *ret_errno)
{
    long v = syscall(SYS_landlock_create_ruleset, NULL, 0, 1u /* VERSION */);
    if (ret_errno)
        *ret_errno = v < 0 ? errno : 0;
    return v < 0 ? 0 : (int)v;
}

static int allow(int rules, const char *path, uint64_t access, struct err *e)
{
    AUTO_CLOSE int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, RC_IO, errno, "landlock: open %s", path);
    struct ll_path r = { access, fd };
    if (syscall(SYS_landlock_add_rule, rules, 1 /* PATH_BENEATH */, &r, 0) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "landlock: rule for %s", path);
    return RC_OK;
}

int landlock_apply(int abi, struct err *e)
{
    uint64_t known = LL_ABI1 | (abi >= 2 ? LL_REFER : 0) | (abi >= 3 ? LL_TRUNCATE : 0) | (abi >= 5 ? LL_IOCTL_DEV : 0);
    struct ll_ruleset a = { .fs = known, .scoped = abi >= 6 ? LL_SCOPE_ABSTRACT_UNIX | LL_SCOPE_SIGNAL : 0 };
    size_t n = abi >= 6 ? sizeof a : abi >= 4 ? 16 : 8;
    AUTO_CLOSE int rules = (int)syscall(SYS_landlock_create_ruleset, &a, n, 0);
    if (rules < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "landlock (ABI %d)", abi);
    TRY(allow(rules, "/", LL_READ & known, e));
    TRY(allow(rules, "/workspace", LL_ALL_OF_OURS & known, e));
    TRY(allow(rules, "/tmp", LL_ALL_OF_OURS & known, e));
    TRY(allow(rules, "/dev/shm", LL_ALL_OF_OURS & known, e));
    TRY(allow(rules, "/dev", (LL_READ_FILE | LL_READ_DIR | LL_WRITE_FILE | LL_TRUNCATE | LL_IOCTL_DEV) & known, e));
    if (syscall(SYS_landlock_restrict_self, rules, 0) < 0)
        return err_sys(e, RC_UNSUPPORTED, errno, "landlock: restrict");
    return RC_OK;
}
