/* conf/conf.h - settings as rows: one table per program gives parsing, bounds, environment names, flags, --help, shell completion and
 * the docs. Straight-line code for the start of a program; not thread-safe.
 * Order of precedence: flag, then environment (OUTWORK_<NAME>, dots and dashes as underscores), then YAML file, then default. */
#pragma once

#include "base/attr.h"
#include "base/err.h"
#include "base/buf.h"

enum conf_type {
    CONF_STR,        /* char *, malloc'd; NULL when unset */
    CONF_INT,        /* int64_t */
    CONF_BOOL,       /* bool */
    CONF_DUR,        /* int64_t ms; text needs a unit */
    CONF_SIZE,       /* uint64_t bytes; text needs a unit */
    CONF_ENUM,       /* int, index into `choices` ("a|b|c") */
    CONF_LIST,       /* struct conf_list: YAML sequence, or a flag given several times, or comma-separated text ("\," is a comma) */
    CONF_TREE,       /* struct conf_tree *, NULL when unset: a mapping of any shape, for the program to read; only in the file */
};
struct conf_list { char **item; size_t n; };

/* A part of the file as it was written. Names keep their form; each knows its line, so that whoever reads it can say where something is wrong. */
enum conf_node_kind { CONF_NODE_TEXT, CONF_NODE_LIST, CONF_NODE_MAP };
struct conf_node {
    enum conf_node_kind kind;
    size_t line;                 /* from 1 */
    char *key;                   /* in a mapping: its name; NULL elsewhere */
    char *text;                  /* CONF_NODE_TEXT; NULL: nothing was given (null, ~) */
    bool quoted;                 /* CONF_NODE_TEXT: in quotes, or a block */
    struct conf_node *child; size_t n;
};
struct conf_tree { char *file; struct conf_node root; };
/* The child of that name, NULL when there is none. */
const struct conf_node *conf_node_get(const struct conf_node *map, const char *key);
/* "file:line: path: text" -> RC_INVALID; `path` may be "". */
int conf_node_err(const struct conf_tree *t, const struct conf_node *at, const char *path, struct err *e, const char *fmt, ...) PRINTF_LIKE(5, 6);

struct conf_key {
    const char *name;            /* as in YAML: "model.url" (nested or dotted); flag: --model-url */
    char        short_flag;      /* 'c' for -c, or 0 */
    enum conf_type type;
    size_t      field;           /* offsetof in the program's settings struct */
    const char *dflt, *min, *max;/* text, or NULL */
    const char *choices;         /* CONF_ENUM */
    const char *env;             /* a further environment name that users know ("ANTHROPIC_BASE_URL"), or NULL */
    const char *arg;             /* placeholder for --help: "URL" */
    const char *help;            /* one sentence */
    bool        secret;          /* a file name is fine; a secret VALUE must never be a flag: such keys take no flag */
    bool        hidden;          /* not shown in --help */
};
struct conf_program {
    const char *command;         /* "outwork server" */
    const char *summary;         /* one line */
    const char *usage;           /* "[options]" or "[options] ENV_ID" */
    const char *epilog;          /* examples, printed after the options; may be NULL */
    const struct conf_key *keys; size_t n_keys;
};

#define CONF_FILE_MAX (1 * MIB)      /* the settings file */
#define CONF_ITEMS_MAX 1024          /* entries of one list */

/* Every program also has --config FILE (or OUTWORK_CONFIG), --print-config and --help (-h), unless its table has a row of that name.
 * Boolean rows have --x, --no-x and --x=true|false. An empty variable counts as unset. A secret row is taken from its variables (whose
 * text is wiped from the environment) or from a file that no other user can read.
 *
 * Parses argv (argv[0] is skipped), environment, and the file if there is one. `settings` must be zeroed; every key gets its value or
 * default; conf_free() is right after every outcome. Positional arguments go to *ret_pos (texts borrowed from argv, the array `item` is the
 * caller's to free, also after a failure); a NULL ret_pos refuses them. --help and --print-config print to stdout and return RC_OK with
 * *ret_help true. RC_INVALID names the key, where it came from (flag, variable, file:line) and what is allowed; unknown keys are refused
 * with the nearest known one. */
MUST_CHECK int conf_load(const struct conf_program *p, int argc, char **argv, void *settings,
                         struct conf_list *ret_pos, bool *ret_help, struct err *e);
void conf_free(const struct conf_program *p, void *settings);
int  conf_write_effective(const struct conf_program *p, const void *settings, struct buf *out);   /* YAML; for --print-config */
int  conf_write_markdown(const struct conf_program *p, struct buf *out);                          /* docs/ops tables */
int  conf_write_help(const struct conf_program *p, struct buf *out);                              /* what --help prints */
/* One line per flag: "--flag <TAB> placeholder, or a|b|c, or empty for a boolean <TAB> help": for shell completion. */
int  conf_complete(const struct conf_program *p, struct buf *out);
/* The settings file that conf_load() would read: --config, OUTWORK_CONFIG, or NULL. Borrowed. */
const char *conf_file(const struct conf_program *p, int argc, char *const *argv);
/* As conf_load() with this text as the file, without flags and environment: for tests and fuzzing. */
MUST_CHECK int conf_load_text(const struct conf_program *p, const char *yaml, size_t n, void *settings, struct err *e);
