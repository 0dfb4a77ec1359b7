/* inside/init.h - the parts of the program that is PID 1 of a sandbox. One thread, one loop; includes only libc and proto.h.
 * Everything that sends requests is trusted (the worker); everything else in the sandbox is not. */
#pragma once

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "inside/proto.h"

#define INSIDE_SOCK 3                          /* the worker's end arrives here */
#define INSIDE_IN_BYTES (64u * 1024)           /* read-ahead on the socket; a larger body gets memory of its own */
#define INSIDE_ENV_MAX 512                     /* variables HELLO may set */
#define INSIDE_ROOTS_MAX 2                     /* the working directory, /tmp */
#define INSIDE_OUTPUT_DEFAULT (100u * 1024)    /* of one bash or grep call (worker.md 5) */
#define INSIDE_OUTPUT_MAX (4u * 1024 * 1024)   /* the most a request may ask to keep */
#define INSIDE_BASH_DEFAULT_MS 120000u
#define INSIDE_GREP_DEFAULT_MS 30000u

/* An answer being built: room for the header stays free in front, so that it leaves in one write. */
struct answer {
    char    *mem;
    size_t   n, cap;         /* n counts the body only */
    uint32_t flags, kind;
    int32_t  exit_status;
    bool     over;           /* something did not fit in INSIDE_RES_MAX or in memory */
};
void  answer_clear(struct answer *a);
char *answer_body(struct answer *a);
char *answer_room(struct answer *a, size_t n);           /* NULL: over; then answer_add_len() what was written */
void  answer_put(struct answer *a, const void *p, size_t n);
void  answer_puts(struct answer *a, const char *s);
void  answer_printf(struct answer *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Throws away what was there and makes the answer this error text. */
void  answer_error(struct answer *a, uint32_t more_flags, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* One request as taken from the socket. `body` is NUL-terminated behind its end. */
struct request {
    struct inside_req h;
    char  *body;
    size_t n, next;          /* next: where the strings not yet taken begin */
};
/* The next NUL-terminated string of the body; NULL when there is none. */
const char *request_string(struct request *r);

/* Paths (paths.c). A root is a directory the file tools may work in. */
struct root { int fd; char given[PATH_MAX], real[PATH_MAX]; };
int  roots_init(const char *cwd);                        /* 0 or -errno; also changes to cwd */
const struct root *root_at(size_t i);                    /* NULL behind the last */
/* Opens what `path` leads to, never outside a root. -EXDEV: outside. Else -errno or a descriptor. `shown`, when not NULL, gets its
 * absolute name (PATH_MAX bytes). */
int  path_open(const char *path, int flags, char *shown);
/* Opens the directory that holds `path` after all symbolic links, missing directories made when `make` (0755); the last name goes to `leaf`. With
 * `keep_link` a link in the last place is not followed. -EXDEV: outside a root or a root itself. */
int  path_parent(const char *path, bool make, bool keep_link, char leaf[NAME_MAX + 1]);
/* "no such file or directory" ... of worker.md 5; the code in brackets for the rest. Static memory. */
const char *path_errno_text(int err);
/* The error answer for `err` (positive, EXDEV = outside) at `path`. */
void path_error(struct answer *a, const char *tool, const char *path, int err);

/* Programs (spawn.c). */
struct spawn {
    const char *path;                                    /* or, when NULL, exec_fd */
    int exec_fd;
    char *const *argv, *const *envp;
    struct { int from, to; } fds[8];
    size_t n_fds;
};
pid_t spawn_child(const struct spawn *s);                /* new session, default signals; -errno, also when exec failed */
/* SIGKILL to what grew out of `shell` since `since_ticks` (kill_now_ticks()), and to `shell`. What an earlier call left in the background lives on. */
void     kill_command(pid_t shell, uint64_t since_ticks);
void     kill_everything(void);                          /* all our descendants */
uint64_t kill_now_ticks(void);

/* The loop (init.c). */
enum { WAKE_SOCK = 1, WAKE_CTL = 2, WAKE_OUT = 4, WAKE_EXTRA = 8, WAKE_TIMEOUT = 16, WAKE_INTERRUPT = 32 };
/* Waits for something to happen; output of the shell has been taken into its ring, children are reaped, an interrupt is consumed. `extra_fd`: -1 = none. */
unsigned loop_turn(int extra_fd, int64_t deadline_ms);
int64_t  loop_now_ms(void);
void     loop_reap(void);
/* From now on the end of this child is noted for loop_wait_pid(): call it before the first loop_turn() that could reap it. */
void     loop_watch_pid(pid_t pid);
/* Waits for the end of one child of ours that has been killed or has closed its pipe; its wait status, -1 when it did not end in 2 s. */
int      loop_wait_pid(pid_t pid);

/* The shell (shell.c). */
int  shell_init(char *const *envp);                      /* 0 or -errno; the environment is kept by pointer */
void shell_prestart(void);
void shell_fds(int *ret_ctl, int *ret_out);              /* -1: none */
void shell_read_output(void);                            /* a bounded amount, never blocks */
void shell_child_gone(pid_t pid, int status);
void tool_bash(struct request *r, struct answer *a);

/* The file tools (files.c, edit.c, walk.c, grep_run.c). */
void tool_read(struct request *r, struct answer *a);
void tool_write(struct request *r, struct answer *a);
void tool_edit(struct request *r, struct answer *a);
void tool_put(struct request *r, struct answer *a);
void tool_remove(struct request *r, struct answer *a);
void tool_glob(struct request *r, struct answer *a);
void tool_grep(struct request *r, struct answer *a);
/* Reads all of an open regular file of at most `max` bytes behind `a`'s contents; 0 or -errno. */
int  file_read_all(int fd, size_t size, struct answer *a);
/* Replaces or makes `leaf` in `dirfd` by rename; the mode of an existing file is kept when `mode` is 0. 0 or -errno. */
int  file_replace(int dirfd, const char *leaf, const void *p, size_t n, mode_t mode);
