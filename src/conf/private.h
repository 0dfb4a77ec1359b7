/* conf/private.h - shared by the files of conf/: texts collected per row before they are turned into values. */
#pragma once

#include "base/str.h"
#include "conf/conf.h"

#define CONF_NAME_MAX 128

/* Texts for one row from the best source that had any. */
struct conf_slot {
    char **item; size_t n;
    bool   set;              /* some source had it */
    bool   split;            /* items are comma-separated text (lists) */
    char  *where;            /* "flag --x", "variable X", "file.yaml:12", "default" */
    size_t file_line;        /* where the file set it, 0: nowhere */
    struct conf_tree *tree;  /* CONF_TREE */
};

const struct conf_key *conf_find(const struct conf_program *p, const char *name, size_t n);
/* Appends a copy; RC_LIMIT over CONF_ITEMS_MAX. */
int conf_slot_add(struct conf_slot *s, const char *text, size_t n);
/* Fills unset slots from YAML text; `name` is for messages. `others_read`: other users can read the file. */
int conf_read_yaml(const struct conf_program *p, struct conf_slot *slots, const char *name, const char *text, size_t n,
                   bool others_read, struct err *e);
/* Has no flag and no variable. */
static inline bool conf_file_only(const struct conf_key *k) { return k->type == CONF_TREE; }
static inline bool conf_no_flag(const struct conf_key *k) { return k->secret || conf_file_only(k); }
void conf_tree_free(struct conf_tree *t);
/* "--model-url" / "OUTWORK_MODEL_URL" of "model.url". */
void conf_flag_name(const char *name, char out[CONF_NAME_MAX]);
void conf_env_name(const char *name, char out[CONF_NAME_MAX]);
/* " (did you mean ...?)" or "". */
enum conf_kind { CONF_KIND_FLAG, CONF_KIND_FILE };
void conf_suggest(const struct conf_program *p, enum conf_kind kind, const char *wrong, char out[CONF_NAME_MAX + 32]);
/* The built-in options; shadowed by rows of the same name. */
#define CONF_CONFIG "config"
#define CONF_PRINT "print-config"
#define CONF_HELP "help"
static inline bool conf_builtin(const struct conf_program *p, const char *name) { return !conf_find(p, name, __builtin_strlen(name)); }
/* The i-th word of "a|b|c"; n 0 when there is none. */
struct slice conf_choice(const char *choices, size_t i);
