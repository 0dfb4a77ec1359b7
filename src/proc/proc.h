/* proc/proc.h - child processes: spawn with exact descriptors and environment, kill whole groups. */
#pragma once

#include <sys/types.h>

#include "base/attr.h"
#include "base/err.h"

struct proc_spec {
    const char *path; char *const *argv; char *const *envp;   /* envp NULL: inherit */
    int fd_in, fd_out, fd_err;       /* -1: /dev/null */
    const char *cwd;                 /* NULL: inherit */
    bool new_group;                  /* own process group (and its leader) */
};
/* RC_NOT_FOUND / RC_DENIED with text when exec fails: reported by the call itself, not by an exit status. All other descriptors are closed
 * in the child; all signals are unblocked and default. */
MUST_CHECK int proc_spawn(const struct proc_spec *s, pid_t *ret_pid, int *ret_pidfd, struct err *e);
void proc_kill_group(pid_t leader, int signo);
/* Every signal's action is the default again and none is blocked, in a new child before its exec. By the kernel's own call: libc refuses 32 and 33, which
 * it uses itself but which a parent may have left ignored. Async-signal-safe. */
void proc_default_signals(void);
