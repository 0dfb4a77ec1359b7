/* gateway/stdio_upstream.h - the upstream kind "stdio": MCP over streamable HTTP on one side, a child process that speaks newline-delimited JSON-RPC on its standard
 * input and output on the other. Loop thread only.
 *
 * Revisions 2025-03-26 to 2025-11-25: one process per MCP session. `initialize` starts it, DELETE, an idle time-out or its own end ends it; after that the
 * session answers 404, so that the client initialises again. Revision 2026-07-28 (no sessions): requests share processes, but two requests with the same id
 * or progress token never share one, so ids cross untouched and no answer can reach the wrong caller. docs/decisions/0015-*.md has the reasons. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "ev/ev.h"
#include "gateway/exchange.h"

#define STDIO_LINE_MAX (16 * MIB)            /* one message, either way */
#define STDIO_PROCS_MAX 32                   /* processes of one route */
#define STDIO_LINE_LIMIT (64 * MIB)          /* largest settings of the two */
#define STDIO_PROCS_LIMIT 1024
#define STDIO_IDLE_MS ((int64_t)30 * 60 * 1000)

struct stdio_conf {
    const char *route;                       /* for the log */
    char *const *argv;                       /* NULL-terminated; argv[0] is a path, or a name looked up in the PATH of `env` */
    char *const *env;                        /* "NAME=VALUE", NULL-terminated, or NULL: the child's whole environment. Only PATH has a default. */
    const char *cwd;                         /* NULL: the gateway's */
    size_t procs_max, line_max;              /* 0: the defaults above */
    int64_t idle_ms;                         /* without a request, an open stream or a message; 0: the default */
};
struct stdio_upstream;
extern const struct upstream_ops stdio_upstream_ops;     /* `upstream` is a struct stdio_upstream */

/* Copies `c`; nothing is started before the first request. RC_INVALID: no command, a bad variable; RC_NOT_FOUND: the program does not exist. */
MUST_CHECK int stdio_new(struct ev *ev, const struct stdio_conf *c, struct stdio_upstream **ret, struct err *e);
/* True when `c` says what `u` was made with: a reload keeps `u` and its sessions then. */
bool stdio_same(const struct stdio_upstream *u, const struct stdio_conf *c);
/* No new sessions (503); ends every process: end of input, SIGTERM to its group after 2 s, SIGKILL after 5 s. Requests that are out get an error. */
void stdio_stop(struct stdio_upstream *u);
size_t stdio_procs(const struct stdio_upstream *u);      /* that have not ended yet */
/* Ends what is left: end of input and SIGTERM, SIGKILL for those that have not gone after STDIO_FREE_MS (for which it waits). Calls that are out fail with
 * 503. NULL is fine. */
#define STDIO_FREE_MS 300
void stdio_free(struct stdio_upstream *u);

/* Splits a command line into words: white space separates, '...' and "..." hold together, a backslash takes the next character as it is. No shell, no
 * variables, no globs. *ret_argv is one malloc'd block (free()). RC_INVALID: empty, unfinished quote, over STDIO_WORDS_MAX words. */
#define STDIO_WORDS_MAX 64
MUST_CHECK int stdio_words(const char *line, char ***ret_argv, struct err *e);
